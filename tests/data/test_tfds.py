"""TFDS data sets: lookup by name and version, reading without TensorFlow, no code from data."""

import json
import shutil
import sys

import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.data import tfds


def test_rows_are_plain_values(tfds_folder):
  rows = tfds.read_examples(tfds.find_dataset('tiny', str(tfds_folder)), 'train')
  rows = sorted(rows, key=lambda row: row['text'])
  assert rows == [{'text': f'größe {i}', 'label': i % 2, 'words': ['a', 'b']} for i in range(3)]
  assert type(rows[0]['label']) is int
  assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('percent, first', [(33, 1), (50, 2), (67, 2)])
def test_slices_of_a_split_are_rounded_and_have_every_example_once(
  tfds_folder, percent: int, first: int
):
  folder = tfds.find_dataset('tiny', str(tfds_folder))
  slices = [f'train[:{percent}%]', f'train[{percent}%:]']
  rows = [[row['text'] for row in tfds.read_examples(folder, split)] for split in slices]
  assert len(rows[0]) == first == tfds.count_examples(folder, slices[0])
  assert sorted(rows[0] + rows[1]) == ['größe 0', 'größe 1', 'größe 2']


def test_a_folder_may_have_brackets_in_its_name(tfds_folder, tmp_path):
  folder = shutil.copytree(tfds_folder, tmp_path / 'data [1]')
  rows = tfds.read_examples(tfds.find_dataset('tiny', str(folder)), 'train')
  assert [row['text'] for row in rows] == ['größe 0', 'größe 1', 'größe 2']


def test_the_newest_version_is_the_default(tfds_folder):
  assert tfds.find_dataset('tiny', str(tfds_folder)).endswith('tiny/10.0.0')
  assert tfds.find_dataset('tiny:9.0.0', str(tfds_folder)).endswith('tiny/9.0.0')
  fingerprint = tfds.fingerprint_dataset(tfds.find_dataset('tiny', str(tfds_folder)))
  assert fingerprint['dataset'] == 'tiny/10.0.0'


def test_the_error_without_tfds_names_the_extra(tfds_folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_folder))
  with pytest.raises(InputError, match=r'(?s)tensorflow_datasets.*minilm_jax\[data\]'):
    tfds.read_examples(tfds.find_dataset('tiny', ''), 'train')


@pytest.mark.parametrize(
  'name, split, part',
  [
    ('tinny', 'train', "'tiny'"),
    ('tiny:8.0.0', 'train', 'tiny'),
    ('tiny', 'dev', 'train'),
    ('tiny:9.0.0', 'train', 'array_record'),
  ],
)
def test_missing_data_sets_and_splits_are_refused(tfds_folder, name, split, part):
  with pytest.raises(InputError, match=part):
    tfds.read_examples(tfds.find_dataset(name, str(tfds_folder)), split)


TFDS_CLASS = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'


@pytest.mark.parametrize(
  'features',
  [
    {'pythonClassName': 'evil.Class', 'x': 1},
    {'python_class_name': 'evil.Class'},
    {'type': 'evil.Class', 'content': {}},
    {'content': '{"python_class_name": "evil.Class"}'},
    {
      'pythonClassName': TFDS_CLASS,
      'featuresDict': {'features': {'text': {'pythonClassName': 'evil.Class'}}},
    },
    {'pythonClassName': TFDS_CLASS, 'jsonFeature': {'json': '{"a": [{"type": "evil.Class"}]}'}},
    None,  # the prepared features with another module
  ],
)
def test_a_data_set_runs_no_code(tfds_folder, tmp_path, monkeypatch, features):
  folder = tmp_path / 'tiny' / '10.0.0'
  shutil.copytree(tfds_folder / 'tiny' / '10.0.0', folder)
  path = folder / 'features.json'
  text = path.read_text().replace('tensorflow_datasets.core.features.text_feature', 'evil')
  path.write_text(json.dumps(features) if features else text)
  assert 'evil' in path.read_text()
  (tmp_path / 'evil.py').write_text('raise SystemExit("foreign code has run")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(InputError, match="'evil."):
    tfds.read_examples(str(folder), 'train')
  assert 'evil' not in sys.modules
