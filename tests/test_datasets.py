"""Prepared TFDS data sets: found by name and version, read without TensorFlow, refused with what there is."""

import pathlib
import sys

import pytest

from minilm_jax.errors import InputError
from minilm_jax.language import datasets


@pytest.fixture(scope='module')
def prepared(tmp_path_factory) -> pathlib.Path:
  """A folder with the data set `tiny` in two versions, the older one with records that need TensorFlow to read."""
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder):
    """Three rows."""
    VERSION = tfds.core.Version('10.0.0')

    def _info(self):
      features = tfds.features.FeaturesDict({
          'text': tfds.features.Text(), 'label': tfds.features.ClassLabel(names=['no', 'yes']),
          'words': tfds.features.Sequence(tfds.features.Text())})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': ((i, {'text': f'größe {i}', 'label': i % 2, 'words': ['a', 'b']}) for i in range(3))}

    def _generate_examples(self):
      raise NotImplementedError

  folder = tmp_path_factory.mktemp('tfds')
  builder = Tiny(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  old = folder / 'tiny' / '9.0.0'
  old.mkdir()
  for path in (folder / 'tiny' / '10.0.0').glob('*.json'):
    (old / path.name).write_text(path.read_text().replace('10.0.0', '9.0.0').replace('array_record', 'tfrecord'))
  return folder


def test_rows_are_plain_values(prepared):
  rows = sorted(datasets.examples(datasets.folder('tiny', str(prepared)), 'train'), key=lambda row: row['text'])
  assert rows == [{'text': f'größe {i}', 'label': i % 2, 'words': ['a', 'b']} for i in range(3)]
  assert type(rows[0]['label']) is int
  assert 'tensorflow' not in sys.modules


def test_the_newest_version_is_meant_unless_one_is_named(prepared):
  assert datasets.folder('tiny', str(prepared)).endswith('tiny/10.0.0')
  assert datasets.folder('tiny:9.0.0', str(prepared)).endswith('tiny/9.0.0')
  assert datasets.fingerprint(datasets.folder('tiny', str(prepared)))['dataset'] == 'tiny/10.0.0'


@pytest.mark.parametrize('name, split, said', [
    ('tinny', 'train', "did you mean 'tiny'"), ('tiny:8.0.0', 'train', 'tiny'), ('tiny', 'dev', 'name one of train'),
    ('tiny:9.0.0', 'train', 'array_record')])
def test_what_is_not_there_is_refused(prepared, name, split, said):
  with pytest.raises(InputError, match=said):
    datasets.examples(datasets.folder(name, str(prepared)), split)
