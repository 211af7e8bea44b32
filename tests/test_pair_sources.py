"""Minimal pairs from every place that has them: the same pairs, or one error that says what is there."""

import csv
import json
import lzma
import pathlib
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from minilm_jax.errors import InputError
from minilm_jax.tasks import pair_sources
from minilm_jax.tasks.pair_sources import Pair

ROWS = [{'sentence_good': f'The dog {i} sleeps.', 'sentence_bad': f'The dog {i} sleep.', 'UID': f'agree_{i % 2}',
         'linguistics_term': 'agreement', 'pairID': str(i)} for i in range(4)]
PAIRS = [Pair(f'The dog {i} sleeps.', f'The dog {i} sleep.', f'agree_{i % 2}', 'agreement') for i in range(4)]


def jsonl(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.write_bytes(lzma.compress(text) if path.suffix == '.xz' else text)
  return path


def delimited(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0], dialect='excel-tab' if path.suffix == '.tsv' else 'excel')
    writer.writeheader()
    writer.writerows(rows)
  return path


def test_every_form_gives_the_same_pairs(tmp_path: pathlib.Path):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / 'p.parquet')
  for path in (jsonl(tmp_path / 'a.jsonl', ROWS), jsonl(tmp_path / 'b.jsonl.xz', ROWS),
               delimited(tmp_path / 'c.csv', ROWS), delimited(tmp_path / 'd.tsv', ROWS), tmp_path / 'p.parquet'):
    assert pair_sources.read(path) == PAIRS
    assert pair_sources.name(path) == path.name[0]
  assert pair_sources.read(tmp_path) == PAIRS * 5 and pair_sources.name(tmp_path) == tmp_path.name


def test_names_that_are_missing_come_from_the_file_and_the_paradigm(tmp_path: pathlib.Path):
  bare = [{name: row[name] for name in ('sentence_good', 'sentence_bad')} for row in ROWS]
  path = jsonl(tmp_path / 'mine.jsonl', bare)
  assert {(pair.paradigm, pair.phenomenon) for pair in pair_sources.read(path)} == {('mine', 'mine')}
  named = delimited(tmp_path / 'named.csv', [{**row, 'paradigm': 'one', 'phenomenon': ''} for row in bare])
  assert {(pair.paradigm, pair.phenomenon) for pair in pair_sources.read(named)} == {('one', 'one')}


def test_blimp_as_tfds_prepares_it(tmp_path: pathlib.Path):
  import tensorflow_datasets as tfds

  class Blimp(tfds.core.GeneratorBasedBuilder):
    """Two paradigms."""
    VERSION = tfds.core.Version('0.1.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ('agree_0', 'agree_1')]

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
          {name: tfds.features.Text() for name in ROWS[0]}))

    def _split_generators(self, dl_manager):
      return {'train': ((row['pairID'], row) for row in ROWS if row['UID'] == self.builder_config.name)}

    def _generate_examples(self):
      raise NotImplementedError

  for name in ('agree_0', 'agree_1'):
    Blimp(config=name, data_dir=tmp_path, file_format='array_record').download_and_prepare()
  for place in (tmp_path, tmp_path / 'blimp'):
    assert Counter(pair_sources.read(place)) == Counter(PAIRS) and pair_sources.name(place) == 'blimp'


def test_the_published_set(data: pathlib.Path):
  pairs = pair_sources.read(data / 'blimp' / 'blimp.jsonl.xz')
  sizes = Counter(pair.paradigm for pair in pairs)
  assert len(sizes) == 67 and set(sizes.values()) == {1000} and pair_sources.name(data / 'blimp') == 'blimp'
  assert len({pair.phenomenon for pair in pairs}) == 13


@pytest.mark.parametrize('change, said', [
    ({'sentence_good': 7}, 'row 2 of pairs'), ({'sentence_bad': ' '}, "in 'sentence_bad'"),
    ({'sentence_bad': '\ud800'}, 'give text'), ({'linguistics_term': 'all'}, 'name it otherwise'),
    ({'UID': '\ud800'}, 'which is no text')])
def test_a_row_that_is_no_pair_is_named(change: dict, said: str, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match=said):
    pair_sources.read(jsonl(tmp_path / 'pairs.jsonl', [ROWS[0], ROWS[1] | change]))


def test_what_is_no_set_is_refused(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='(?s)sentence_godo.*did you mean .sentence_godo.'):
    pair_sources.read(jsonl(tmp_path / 'typing.jsonl', [{'sentence_godo': 'a', 'sentence_bad': 'b'}]))
  with pytest.raises(InputError, match='no row'):
    pair_sources.read(jsonl(tmp_path / 'none.jsonl', []))
  (tmp_path / 'empty').mkdir()
  for place, said in ((tmp_path / 'empty', 'there: nothing'), (tmp_path / 'nowhere', 'no such file or folder'),
                      ('', 'no such file or folder'), (tmp_path / 'pairs.docx', 'not a table')):
    (tmp_path / 'pairs.docx').write_text('x')
    with pytest.raises(InputError, match=said):
      pair_sources.read(place)
