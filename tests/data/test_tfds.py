"""Prepared TFDS data sets: found by name and version, read without TensorFlow, refused with what
there is.
"""

import json
import pathlib
import shutil
import sys

import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.data import tfds


def test_rows_are_plain_values(prepared):
  rows = sorted(
    tfds.read_examples(tfds.find_dataset('tiny', str(prepared)), 'train'),
    key=lambda row: row['text'],
  )
  assert rows == [{'text': f'größe {i}', 'label': i % 2, 'words': ['a', 'b']} for i in range(3)]
  assert type(rows[0]['label']) is int
  assert 'tensorflow' not in sys.modules


def test_the_newest_version_is_meant_unless_one_is_named(prepared):
  assert tfds.find_dataset('tiny', str(prepared)).endswith('tiny/10.0.0')
  assert tfds.find_dataset('tiny:9.0.0', str(prepared)).endswith('tiny/9.0.0')
  assert (
    tfds.fingerprint_dataset(tfds.find_dataset('tiny', str(prepared)))['dataset'] == 'tiny/10.0.0'
  )


def test_a_class_that_a_data_set_names_is_not_imported(
  prepared, tmp_path: pathlib.Path, monkeypatch
):
  shutil.copytree(prepared, tmp_path / 'tfds')
  (tmp_path / 'stranger.py').write_text('raise SystemExit("it ran")\n')
  monkeypatch.syspath_prepend(tmp_path)
  features = tmp_path / 'tfds' / 'tiny' / '10.0.0' / 'features.json'
  told = features.read_text()
  for text in (
    told.replace('tensorflow_datasets.core.features.text_feature', 'stranger'),
    '{"type": "stranger.X"}',
    json.dumps({'content': '{"python_class_name": "stranger.X"}'}),
  ):
    assert 'stranger' in text
    features.write_text(text)
    with pytest.raises(InputError, match='not of TFDS'):
      tfds.read_examples(tfds.find_dataset('tiny', str(tmp_path / 'tfds')), 'train')
  assert 'stranger' not in sys.modules


def test_without_the_extra_sets_are_found_and_the_extra_is_named(prepared, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  with pytest.raises(
    InputError, match=r'tensorflow_datasets is not installed(.|\n)*minilm_jax\[data\]'
  ):
    tfds.read_examples(tfds.find_dataset('tiny', ''), 'train')
  with pytest.raises(InputError, match="did you mean 'tiny'"):
    tfds.find_dataset('tinny', '')


@pytest.mark.parametrize(
  'name, split, said',
  [
    ('tinny', 'train', "did you mean 'tiny'"),
    ('tiny:8.0.0', 'train', 'tiny'),
    ('tiny', 'dev', 'name one of train'),
    ('tiny:9.0.0', 'train', 'array_record'),
  ],
)
def test_what_is_not_there_is_refused(prepared, name, split, said):
  with pytest.raises(InputError, match=said):
    tfds.read_examples(tfds.find_dataset(name, str(prepared)), split)


@pytest.mark.parametrize(
  'features',
  [
    '{"pythonClassName": "evil.Class", "x": 1}',
    '{"python_class_name": "evil.Class"}',
    '{"type": "evil.Class", "content": {}}',
    '{"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {"features": '
    '{"text": {"pythonClassName": "evil.Class"}}}}',
    '{"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "jsonFeature": {"json": '
    '"{\\"a\\": [{\\"type\\": \\"evil.Class\\"}]}"}}',
  ],
)
def test_a_data_set_brings_no_code(prepared, tmp_path, monkeypatch, features: str):
  """TFDS imports what features.json names, also from the folder that Python was started in."""
  folder = tmp_path / 'tiny' / '10.0.0'
  shutil.copytree(prepared / 'tiny' / '10.0.0', folder)
  (folder / 'features.json').write_text(features)
  (tmp_path / 'evil.py').write_text('raise SystemExit("code of a stranger has run")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(InputError, match="names the class 'evil.Class', which is not of TFDS"):
    tfds.read_examples(str(folder), 'train')
