"""The keep stage in parts: joined they are what one process makes, however text is cut and whoever
is asked twice.
"""

import collections
import pathlib
import random

import numpy as np
import pytest
from etils import epath

from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filter_shards, filtering, filters, tfds
from tests.filter_cases import WORDS, make_corpus_config, read_files, write_sources


def in_parts(
  made: CorpusConfig, words: filters.WordList | None, folder: pathlib.Path, dice: random.Random
) -> dict:
  """As a runner would: parts in any order, some of them twice."""
  work, to = epath.Path(folder) / 'work', epath.Path(folder) / 'joined'
  work.mkdir()
  to.mkdir()
  some = list(
    enumerate(filter_shards.plan_shards(documents.expand_sources(made.documents), made.documents))
  )
  met, returned = collections.defaultdict(list), collections.defaultdict(list)
  for part in dice.sample(some, len(some)):
    for _ in range(dice.randint(1, 2)):
      found = list(
        filter_shards.filter_shard(part, made, filters.Filter(words, made.vocabulary), work)
      )
    for bucket, item in found:
      met[bucket].append(item)
  for bucket in dice.sample(sorted(met), len(met)):
    for number, numbers in filter_shards.find_shard_repeats((bucket, met[bucket])):
      returned[number].append(numbers)
  for part in returned.items():
    filter_shards.save_repeats(part, work)
  assert not [path for path in work.iterdir() if 'partial' in path.name]
  return filter_shards.merge_shards(work, len(some), to)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
  'words', [None, filters.WordList(frozenset(WORDS), 'words', '')], ids=['all', 'words']
)
def test_joined_parts_are_the_stage(tmp_path, monkeypatch, words, seed: int):
  dice = random.Random(seed)
  monkeypatch.setattr(filtering, '_BATCH_CHARS', dice.choice([50, 500, 1 << 20]))
  monkeypatch.setattr(filter_shards, '_ITEMS', dice.choice([1, 20, 1 << 20]))
  made = make_corpus_config(write_sources(tmp_path, seed))
  sources = documents.expand_sources(made.documents)
  alone = filtering.filter_corpus(
    made, sources, [1] * len(sources), words, epath.Path(tmp_path) / 'single', 1
  )
  found = in_parts(made, words, tmp_path, dice)
  assert read_files(tmp_path / 'joined') == read_files(tmp_path / 'single') and any(
    read_files(tmp_path / 'single').values()
  )
  assert found.pop('processor_seconds') > 0
  assert (
    found == {name: alone[name] for name in found} and found['passes']['sentences_repeated'] > 10
  )


def test_words_are_counted_in_pieces(tmp_path, monkeypatch):
  made, total = make_corpus_config(write_sources(tmp_path)), collections.Counter()
  monkeypatch.setattr(filter_shards, '_WORDS', 5)
  monkeypatch.setattr(filtering, '_BATCH_CHARS', 100)
  sources = documents.expand_sources(made.documents)
  for part in enumerate(sources):
    for word, times in filter_shards.count_shard_words(part, made, epath.Path(tmp_path)):
      total[word] += times
  assert total == filtering.count_document_words(
    [text for one in sources for text in documents.read_documents(one, made.documents)], 'paper1'
  )


@pytest.mark.parametrize('records', [1, 2, 3, 100])
def test_a_data_set_is_read_in_ranges(prepared, monkeypatch, records: int):
  monkeypatch.setattr(filter_shards, '_RECORDS', records)
  made = make_corpus_config(['tiny'], **{'documents.data_dir': str(prepared)}).documents
  (source,) = documents.expand_sources(made)
  assert tfds.count_examples(source.path, 'train') == 3
  some = filter_shards.plan_shards([source], made)
  assert len(some) == -(-3 // records)
  assert [text for part in some for text in documents.read_documents(part, made)] == list(
    documents.read_documents(source, made)
  )


def test_what_cannot_be_read_is_told(tmp_path):
  """The first part in the order of the text, whichever was read first; nothing of it stays."""
  for name in ('a', 'b'):
    (tmp_path / f'{name}.txt').write_bytes(b'fine\nnot fine \xff\n')
  made, folder = (
    make_corpus_config([f'{tmp_path}/{name}.txt' for name in 'ab']),
    epath.Path(tmp_path) / 'work',
  )
  folder.mkdir()
  assert filter_shards.refusal_of(folder) is None
  for part in reversed(list(enumerate(documents.expand_sources(made.documents)))):
    with pytest.raises(InputError, match='UTF-8'):
      list(filter_shards.filter_shard(part, made, filters.Filter(None, made.vocabulary), folder))
  error = filter_shards.refusal_of(folder)
  assert 'a.txt, line 2' in error.asked and 'UTF-8' in error.found and 'replace' in error.remedy
  assert sorted(path.name for path in folder.iterdir()) == ['0000000.error', '0000001.error']


def test_parts_that_are_elsewhere_are_missed(tmp_path):
  with pytest.raises(InputError, match='(?s)nothing of part 0.*all workers share'):
    filter_shards.merge_shards(epath.Path(tmp_path), 1, epath.Path(tmp_path))


def test_part_files_hold_text_and_numbers(tmp_path):
  made, folder = make_corpus_config(write_sources(tmp_path)), epath.Path(tmp_path) / 'work'
  folder.mkdir()
  part = 0, documents.expand_sources(made.documents)[0]
  found = list(
    filter_shards.filter_shard(part, made, filters.Filter(None, made.vocabulary), folder)
  )
  lines = (folder / '0000000.items').read_bytes().splitlines()
  numbers = np.concatenate([np.frombuffer(numbers, '<u8') for _, (_, numbers, _) in found])
  assert sorted(numbers) == list(range(len(lines))) and all(line[:1].isdigit() for line in lines)
