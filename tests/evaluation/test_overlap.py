"""Tests overlap: 1 with the corpus itself, 0 with disjoint text, hand-computed shares, intervals."""

import json
import lzma
import math
import pathlib
from collections import Counter

import numpy as np
import pytest

from configs import base
from minilm_jax.cli import main
from minilm_jax.core import recipe
from minilm_jax.core.config import FinetuneConfig, SubsetConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus, tokenizer
from minilm_jax.evaluation import overlap
from minilm_jax.evaluation.overlap import HEADLINE_MEASURE, Measure
from minilm_jax.tasks.examples import Examples
from tests.fake_runs import write_examples

Key = tuple[str, str, int]


def make_config(folder: str) -> FinetuneConfig:
  config = base.finetune()
  config.task.update(name='own', folder=folder, split='test')
  return recipe.resolve(config, 'finetune')


def make_rows(texts: list[str]) -> list[dict]:
  return [{'text': text, 'label': number % 2} for number, text in enumerate(texts)]


def index_measures(result: dict, split: str) -> dict[Key, dict]:
  measures = result['measures'][split]
  return {(row['unit'], row['name'], row['least']): row for row in measures}


@pytest.fixture(scope='module')
def corpus_texts(tiny_corpus: pathlib.Path, tiny_tokenizer: tokenizer.Tokenizer) -> list[str]:
  tokens = np.asarray(corpus.load_split(tiny_corpus, 'train').tokens)
  return [tiny_tokenizer.decode(row) for row in tokens.tolist()]


def measure(texts: list[str], pieces: tokenizer.Tokenizer, counts: tuple) -> dict[Key, Measure]:
  examples = Examples(tuple(texts), (), np.zeros(len(texts), np.int32))
  measures = overlap.compute_measures(examples, pieces, *counts, 'a task')
  return {(row.unit, row.name, row.min_count): row for row in measures}


def test_a_corpus_overlaps_fully_with_its_text(
  tiny_corpus: pathlib.Path, corpus_texts: list[str], tmp_path: pathlib.Path
):
  rows = make_rows(corpus_texts)
  folder = write_examples(tmp_path / 'own', train=rows, test=rows[:50])
  result = overlap.measure_overlap(tiny_corpus, make_config(folder), SubsetConfig(0, 0, 0))
  train, test = index_measures(result, 'train'), index_measures(result, 'test')
  for unit in ('pieces', 'words'):
    for name in ('type overlap', 'token overlap'):
      for row in (train[unit, name, 1], test[unit, name, 1]):
        assert row['value'] == row['low'] == row['high'] == 1
    assert train[unit, 'Jaccard', 1]['value'] == 1 > test[unit, 'Jaccard', 1]['value']
  assert train['words', 'out of vocabulary', 1]['value'] == 0
  assert train['pieces', 'unknown', 1]['value'] == 0
  assert train['pieces', 'divergence', 1]['value'] < 0.01 < test['pieces', 'divergence', 1]['value']
  assert result['examples'] == {'train': len(corpus_texts), 'test': 50}
  assert result['rows'] == corpus.read_manifest(tiny_corpus)['splits']['train']['rows']


def test_text_of_other_characters_has_no_overlap(tiny_tokenizer: tokenizer.Tokenizer, tiny_corpus):
  counts = overlap.count_corpus(corpus.CorpusFiles(tiny_corpus, 'train'), tiny_tokenizer)
  result = measure(['ѩѩѩ ѭѭ', 'ѭѭ ѩ'], tiny_tokenizer, counts)
  for name in ('type overlap', 'token overlap', 'Jaccard'):
    assert result['words', name, 1].value == result['words', name, 1].low == 0
  assert result['words', 'out of vocabulary', 1].value == 1
  assert result['pieces', 'unknown', 1].value > 0.4  # the other pieces are spaces


def test_disjoint_pieces_have_no_overlap(tiny_tokenizer: tokenizer.Tokenizer):
  text = ['the dog sees the cat .', 'a cat sleeps .']
  used = {piece for ids in tiny_tokenizer.encode(text) for piece in ids}
  piece_counts = np.array(
    [0 if piece in used or piece < 5 else 7 for piece in range(tiny_tokenizer.size)]
  )
  result = measure(text, tiny_tokenizer, (piece_counts, Counter({'zebra': 9})))
  for unit in ('pieces', 'words'):
    for name in ('type overlap', 'token overlap', 'Jaccard'):
      row = result[unit, name, 1]
      assert row.value == row.low == row.high == 0


def test_shares_equal_hand_computed_values(tiny_tokenizer: tokenizer.Tokenizer):
  """The texts have "the" 3 times, "dog" twice, and "cat" and "and" once."""
  counts = np.zeros(tiny_tokenizer.size, int), Counter(the=10, dog=1, tree=4)
  result = measure(['The dog and', 'the dog, the cat!'], tiny_tokenizer, counts)
  assert result['words', 'token overlap', 1].value == pytest.approx(5 / 7)
  assert result['words', 'token overlap', 10].value == pytest.approx(3 / 7)
  assert result['words', 'token overlap', 100].value == 0
  assert result['words', 'type overlap', 1].value == pytest.approx(2 / 4)
  assert result['words', 'type overlap', 10].value == pytest.approx(1 / 4)
  assert result['words', 'Jaccard', 1].value == pytest.approx(2 / 5)
  out = result['words', 'out of vocabulary', 1]
  assert out.value == pytest.approx(2 / 7) and out.low <= out.value <= out.high
  # Without counts, every piece has the same probability.
  uniform = result['pieces', 'cross-entropy', 1].value
  assert uniform == pytest.approx(math.log(tiny_tokenizer.size))


def compute_by_definition(
  examples: list[list[int]], corpus: np.ndarray, distinct: int, logarithm: np.ndarray
) -> dict[str, float]:
  f = Counter(kind for example in examples for kind in example)
  n, types = sum(f.values()), set(f)
  covered = {kind for kind in types if corpus[kind]}
  cross = -sum(times / n * logarithm[kind] for kind, times in f.items())
  return {
    'types': len(covered) / len(types),
    'tokens': sum(f[kind] for kind in covered) / n,
    'jaccard': len(covered) / (distinct + len(types) - len(covered)),
    'cross': cross,
    'divergence': cross + sum(times / n * math.log(times / n) for times in f.values()),
  }


def test_leave_one_out_values_equal_measures_of_the_other_examples():
  random = np.random.default_rng(0)
  examples = [random.integers(0, 40, random.integers(1, 12)).tolist() for _ in range(15)]
  corpus = random.integers(0, 3, 40)
  logarithm, distinct = np.log(random.dirichlet(np.ones(40))), int((corpus > 0).sum())
  texts = overlap.count_types(examples, 40)
  result = {
    'types': overlap._compute_type_share(texts, corpus > 0),
    'tokens': overlap._compute_mean(texts, corpus > 0),
    'jaccard': overlap._compute_jaccard(texts, corpus > 0, distinct),
    'cross': overlap._compute_mean(texts, -logarithm),
    'divergence': overlap._compute_divergence(texts, logarithm),
  }
  samples = [examples, *(examples[:i] + examples[i + 1 :] for i in range(15))]
  expected = [compute_by_definition(sample, corpus, distinct, logarithm) for sample in samples]
  for name, (value, without) in result.items():
    values = [value, *without]
    np.testing.assert_allclose(values, [row[name] for row in expected], err_msg=name)


def test_jackknife_intervals_cover_the_true_value():
  random, covered, mask = np.random.default_rng(1), 0, np.arange(50) < 30
  for _ in range(200):
    shares = random.beta(6, 4, 60)  # tokens of an example are correlated
    examples = [
      np.where(
        random.random(20) < share, random.integers(0, 30, 20), random.integers(30, 50, 20)
      ).tolist()
      for share in shares
    ]
    statistic = overlap._compute_mean(overlap.count_types(examples, 50), mask)
    interval = overlap._make_measure('words', 'token overlap', 1, statistic)
    covered += interval.low <= 0.6 <= interval.high
  assert 180 <= covered <= 199  # of a binomial distribution with mean 190


def test_one_example_has_no_interval(tiny_tokenizer: tokenizer.Tokenizer):
  result = measure(['the dog'], tiny_tokenizer, (np.ones(tiny_tokenizer.size, int), Counter(the=1)))
  assert result[HEADLINE_MEASURE].value == 0.5 and math.isnan(result[HEADLINE_MEASURE].low)


def test_overlap_grows_with_the_subset(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  rows = make_rows(['the dog sees a cat .', 'the old king sleeps .', 'qwx the'])
  folder = write_examples(tmp_path / 'own', train=rows, test=make_rows(['the dog .']))
  measures = [
    index_measures(
      overlap.measure_overlap(tiny_corpus, make_config(folder), SubsetConfig(size, 0, 0)), 'train'
    )
    for size in (1, 4, 16, 0)
  ]
  for less, more in zip(measures, measures[1:]):
    for key, row in less.items():
      if key[1] in ('type overlap', 'token overlap'):
        assert row['value'] <= more[key]['value']
  first, *_, last = (rows[HEADLINE_MEASURE]['value'] for rows in measures)
  assert first < last < 1


@pytest.mark.parametrize('texts', [['', ''], ['. , !', '...']])
def test_a_task_without_text_is_refused(
  texts: list[str], tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  folder = write_examples(tmp_path / 'own', train=make_rows(texts), test=make_rows(texts))
  with pytest.raises(InputError, match='2 examples'):
    overlap.measure_overlap(tiny_corpus, make_config(folder), SubsetConfig(0, 0, 0))


def test_a_subset_larger_than_the_corpus_is_refused(tiny_corpus: pathlib.Path):
  with pytest.raises(InputError, match='training split'):
    overlap.measure_overlap(tiny_corpus, make_config('/nowhere'), SubsetConfig(10**9, 0, 0))


def test_the_command_prints_a_table_or_json(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys
):
  rows = make_rows(['the dog', 'a qwx', 'the dog', 'a qwx'])
  folder = write_examples(tmp_path / 'own', train=rows, test=make_rows(['the', 'cat']))
  command = [
    'overlap',
    f'--corpus={tiny_corpus}',
    '--config=configs/custom_task.py',
    f'--config.task.folder={folder}',
    '--config.task.train=',
    '--config.task.split=test',
    '--rows=50',
  ]
  assert main.main([*command, '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['rows'] == 50 and set(result['measures']) == {'train', 'test'}
  assert main.main(command) == 0
  assert 'token overlap' in capsys.readouterr().out
  assert main.main([*command[:-1], '--rows=-1']) == 2
  assert 'rows=-1' in capsys.readouterr().err


def test_news_overlap_more_with_wikipedia_than_with_speech(
  data: pathlib.Path, tmp_path: pathlib.Path
):
  values = {}
  for name, source in (
    ('wikipedia', 'wikipedia_2014/wikipedia_2014.2.txt.xz@line'),
    ('speech', 'switchboard/switchboard.txt.xz'),
  ):
    config = base.corpus()
    config.vocabulary.update(word_rule='plain', filters='documents')
    config.tokenizer.size, config.workers = 1000, 1
    config.rows.update(length=128, packing='articles')
    config.splits.update(validation=0.0, test=0.0)
    (tmp_path / f'{name}.txt').write_text('\n'.join(read_documents(str(data / source), 400)))
    config.documents.update(sources=str(tmp_path / f'{name}.txt'), document_unit='line')
    folder = build.build_corpus(recipe.resolve(config, 'corpus'), tmp_path / name)
    news = base.finetune()
    news.task.update(
      name='ag_news',
      train=str(data / 'ag_news' / 'train_sample.jsonl.gz'),
      test=str(data / 'ag_news' / 'test.jsonl.gz'),
      split='test',
      max_train_examples=500,
      eval_per_label=100,
    )
    result = overlap.measure_overlap(
      folder, recipe.resolve(news, 'finetune'), SubsetConfig(100, 0, 0)
    )
    values[name] = index_measures(result, 'test')[HEADLINE_MEASURE]
  assert values['speech']['high'] < values['wikipedia']['low']
  assert 0.3 < values['wikipedia']['value'] < 0.95


def read_documents(path: str, count: int) -> list[str]:
  """Returns the first documents of a file of the data folder as single lines."""
  with lzma.open(path.partition('@')[0], 'rt', encoding='utf-8') as file:
    if path.endswith('@line'):
      return [next(file).rstrip('\n') for _ in range(count)]
    return [' '.join(text.split()) for text in file.read(4_000_000).split('\n\n')[:count]]
