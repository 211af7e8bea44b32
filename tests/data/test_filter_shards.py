"""Filter shards: merged shards equal the result of one process, in any order of work."""

import collections
import pathlib
import random

import numpy as np
import pytest
from etils import epath

from minilm_jax.core.corpus_config import CorpusConfig, SplitConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filter_shards, filtering, filters, tfds
from tests.filter_cases import WORDS, make_corpus_config, write_sources
from tests.run_files import read_files


@pytest.fixture
def work(tmp_path) -> epath.Path:
  folder = epath.Path(tmp_path) / 'work'
  folder.mkdir()
  return folder


def filter_in_shards(
  config: CorpusConfig, words: filters.WordList | None, work: epath.Path, dice: random.Random
) -> dict:
  """Filters shards in random order, some twice, as a runner would; merges them into `merged`."""
  target = work.parent / 'merged'
  target.mkdir()
  sources = documents.expand_sources(config.documents)
  shards = list(enumerate(filter_shards.plan_shards(sources, config.documents)))
  buckets, repeats = collections.defaultdict(list), collections.defaultdict(list)
  for shard in dice.sample(shards, len(shards)):
    for _ in range(dice.randint(1, 2)):
      text_filter = filters.Filter(words, config.vocabulary)
      entries = list(filter_shards.filter_shard(shard, config, text_filter, work))
    for bucket, entry in entries:
      buckets[bucket].append(entry)
  for bucket in dice.sample(sorted(buckets), len(buckets)):
    for number, numbers in filtering.find_repeated(buckets[bucket]):
      repeats[number].append(numbers)
  for shard in repeats.items():
    filter_shards.save_repeats(shard, work)
  assert not [path for path in work.iterdir() if 'partial' in path.name]
  return filter_shards.merge_shards(work, len(shards), target, config.splits)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
  'words', [None, filters.WordList(frozenset(WORDS), 'words', '')], ids=['all', 'words']
)
def test_merged_shards_equal_a_single_process(tmp_path, work, monkeypatch, words, seed: int):
  dice = random.Random(seed)
  monkeypatch.setattr(filtering, '_CHARS_PER_BATCH', dice.choice([50, 500, 1 << 20]))
  monkeypatch.setattr(filter_shards, '_DIGESTS_PER_MESSAGE', dice.choice([1, 20, 1 << 20]))
  config = make_corpus_config(write_sources(tmp_path, seed))
  sources, single = documents.expand_sources(config.documents), epath.Path(tmp_path) / 'single'
  expected = filtering.LocalRunner(1).filter_corpus(config, sources, words, single)
  summary = filter_in_shards(config, words, work, dice)
  assert read_files(tmp_path / 'merged') == read_files(pathlib.Path(single))
  assert any(read_files(pathlib.Path(single)).values())
  assert summary.pop('processor_seconds') > 0
  assert summary == {name: expected[name] for name in summary}
  assert summary['passes']['sentences_repeated'] > 10


def test_word_counts_of_messages_add_up(tmp_path, monkeypatch):
  config, total = make_corpus_config(write_sources(tmp_path)), collections.Counter()
  monkeypatch.setattr(filter_shards, '_WORDS_PER_MESSAGE', 5)
  monkeypatch.setattr(filtering, '_CHARS_PER_BATCH', 100)
  sources = documents.expand_sources(config.documents)
  for shard in enumerate(sources):
    for word, count in filter_shards.count_shard_words(shard, config, epath.Path(tmp_path)):
      total[word] += count
  texts = [text for s in sources for text in documents.read_documents(s, config.documents)]
  assert total == filtering.count_document_words(texts, 'paper1')


@pytest.mark.parametrize('records', [1, 2, 3, 100])
def test_ranges_of_a_data_set_give_all_records(tfds_folder, monkeypatch, records: int):
  monkeypatch.setattr(filter_shards, '_RECORDS_PER_SHARD', records)
  config = make_corpus_config(['tiny'], **{'documents.data_dir': str(tfds_folder)}).documents
  (source,) = documents.expand_sources(config)
  assert tfds.count_examples(source.path, 'train') == 3
  shards = filter_shards.plan_shards([source], config)
  assert len(shards) == -(-3 // records)
  texts = [text for shard in shards for text in documents.read_documents(shard, config)]
  assert texts == list(documents.read_documents(source, config))


def test_the_error_of_the_first_shard_is_reported(tmp_path, work):
  """The order of the text counts, not the order of work; no other files remain."""
  for name in 'ab':
    (tmp_path / f'{name}.txt').write_bytes(b'fine\nnot fine \xff\n')
  config = make_corpus_config([f'{tmp_path}/{name}.txt' for name in 'ab'])
  assert filter_shards.read_refusal(work) is None
  for shard in reversed(list(enumerate(documents.expand_sources(config.documents)))):
    with pytest.raises(InputError, match='UTF-8'):
      list(filter_shards.filter_shard(shard, config, filters.Filter(None, config.vocabulary), work))
  error = filter_shards.read_refusal(work)
  assert 'a.txt, line 2' in error.asked and 'on_invalid_utf8=replace' in error.remedy
  assert sorted(path.name for path in work.iterdir()) == ['0000000.error', '0000001.error']


def test_missing_shards_are_refused(tmp_path):
  folder = epath.Path(tmp_path)
  with pytest.raises(InputError, match='(?s)shard 0.*--temp_location'):
    filter_shards.merge_shards(folder, 1, folder, SplitConfig())


def test_items_are_numbered_and_carry_their_kind(tmp_path, work):
  config = make_corpus_config(write_sources(tmp_path))
  shard = 0, documents.expand_sources(config.documents)[0]
  text_filter = filters.Filter(None, config.vocabulary)
  entries = list(filter_shards.filter_shard(shard, config, text_filter, work))
  lines = (work / '0000000.items').read_bytes().splitlines()
  numbers = np.concatenate([np.frombuffer(numbers, '<u8') for _, (_, numbers, _) in entries])
  assert sorted(numbers) == list(range(len(lines))) and all(line[:1].isdigit() for line in lines)
