"""Overlap of a corpus with a task: 1 with its own text, 0 with another's, shares by hand, honest
intervals.
"""

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


def task(folder: str, **changes: object) -> FinetuneConfig:
  values = base.finetune()
  values.task.update(name='own', folder=folder, split='test', **changes)
  return recipe.resolve(values, 'finetune')


def rows(texts: list[str]) -> list[dict]:
  return [{'text': text, 'label': number % 2} for number, text in enumerate(texts)]


def by_name(result: list[Measure]) -> dict[Key, Measure]:
  return {(measure.unit, measure.name, measure.least): measure for measure in result}


@pytest.fixture(scope='module')
def pieces(tiny_corpus: pathlib.Path) -> tokenizer.Tokenizer:
  return tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model')


@pytest.fixture(scope='module')
def own_text(tiny_corpus: pathlib.Path, pieces: tokenizer.Tokenizer) -> list[str]:
  return [
    pieces.decode(row)
    for row in np.asarray(corpus.load_split(tiny_corpus, 'train').tokens).tolist()
  ]


def measured(texts: list[str], pieces: tokenizer.Tokenizer, of: tuple) -> dict[Key, Measure]:
  examples = Examples(tuple(texts), (), np.zeros(len(texts), np.int32))
  return by_name(overlap.compute_measures(examples, pieces, *of, 'a task'))


def test_a_corpus_overlaps_wholly_with_its_own_text(
  tiny_corpus: pathlib.Path, own_text: list[str], tmp_path: pathlib.Path
):
  folder = write_examples(tmp_path / 'own', train=rows(own_text), test=rows(own_text[:50]))
  result = overlap.measure_overlap(tiny_corpus, task(folder), SubsetConfig(0, 0, 0))
  train, test = (
    {
      (measure['unit'], measure['name'], measure['least']): measure
      for measure in result['measures'][split]
    }
    for split in ('train', 'test')
  )
  for unit in ('pieces', 'words'):
    for name in ('type overlap', 'token overlap'):
      for of in (train, test):
        assert (
          of[unit, name, 1]['value'],
          of[unit, name, 1]['low'],
          of[unit, name, 1]['high'],
        ) == (1, 1, 1)
    assert train[unit, 'Jaccard', 1]['value'] == 1 > test[unit, 'Jaccard', 1]['value']
  assert (
    train['words', 'out of vocabulary', 1]['value'] == 0 == train['pieces', 'unknown', 1]['value']
  )
  assert train['pieces', 'divergence', 1]['value'] < 0.01 < test['pieces', 'divergence', 1]['value']
  assert result['examples'] == {'train': len(own_text), 'test': 50}
  assert result['rows'] == corpus.read_manifest(tiny_corpus)['splits']['train']['rows']


def test_text_of_other_characters_has_no_overlap(
  own_text: list[str], pieces: tokenizer.Tokenizer, tiny_corpus
):
  of = overlap.count_corpus(corpus.CorpusFiles(tiny_corpus, 'train'), pieces)
  result = measured(['ѩѩѩ ѭѭ', 'ѭѭ ѩ'], pieces, of)
  for unit in ('words',):
    for name in ('type overlap', 'token overlap', 'Jaccard'):
      assert result[unit, name, 1].value == 0 == result[unit, name, 1].low
  assert result['words', 'out of vocabulary', 1].value == 1
  # the rest are the marks of the beginning of a word
  assert result['pieces', 'unknown', 1].value > 0.4


def test_disjoint_pieces_have_no_overlap(pieces: tokenizer.Tokenizer):
  """A corpus that holds what the task does not."""
  text = ['the dog sees the cat .', 'a cat sleeps .']
  used = {piece for ids in pieces.encode(text) for piece in ids}
  of_pieces = np.array([0 if piece in used or piece < 5 else 7 for piece in range(pieces.size)])
  result = measured(text, pieces, (of_pieces, Counter({'zebra': 9})))
  for unit in ('pieces', 'words'):
    for name in ('type overlap', 'token overlap', 'Jaccard'):
      assert [getattr(result[unit, name, 1], end) for end in ('value', 'low', 'high')] == [0, 0, 0]


def test_shares_by_hand(pieces: tokenizer.Tokenizer):
  """Running words: the 3, dog 2, cat 1, and 1; the corpus has the 10 times, dog once, and another
  word.
  """
  of = np.zeros(pieces.size, int), Counter(the=10, dog=1, tree=4)
  result = measured(['The dog and', 'the dog, the cat!'], pieces, of)
  assert result['words', 'token overlap', 1].value == pytest.approx(5 / 7)
  assert result['words', 'token overlap', 10].value == pytest.approx(3 / 7)
  assert result['words', 'token overlap', 100].value == 0
  assert result['words', 'type overlap', 1].value == pytest.approx(2 / 4)
  assert result['words', 'type overlap', 10].value == pytest.approx(1 / 4)
  assert result['words', 'Jaccard', 1].value == pytest.approx(2 / 5)
  out = result['words', 'out of vocabulary', 1]
  assert out.value == pytest.approx(2 / 7) and out.low <= out.value <= out.high
  # nothing was counted: every piece is as likely
  uniform = result['pieces', 'cross-entropy', 1].value
  assert uniform == pytest.approx(math.log(pieces.size))


def naive(
  examples: list[list[int]], corpus: np.ndarray, distinct: int, logarithm: np.ndarray
) -> dict[str, float]:
  """The definitions, example by example."""
  f = Counter(kind for measure in examples for kind in measure)
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


def test_what_is_left_without_an_example_is_the_measure_of_the_others():
  random = np.random.default_rng(0)
  examples = [random.integers(0, 40, random.integers(1, 12)).tolist() for _ in range(15)]
  corpus = random.integers(0, 3, 40)
  logarithm, distinct = np.log(random.dirichlet(np.ones(40))), int((corpus > 0).sum())
  texts = overlap.count_examples(examples, 40)
  result = {
    'types': overlap._types(texts, corpus > 0),
    'tokens': overlap._share(texts, corpus > 0),
    'jaccard': overlap._jaccard(texts, corpus > 0, distinct),
    'cross': overlap._cross_entropy(texts, logarithm),
    'divergence': overlap._divergence(texts, logarithm),
  }
  for name, (value, without) in result.items():
    assert value == pytest.approx(naive(examples, corpus, distinct, logarithm)[name]), name
    expected = [
      naive(examples[:i] + examples[i + 1 :], corpus, distinct, logarithm)[name] for i in range(15)
    ]
    np.testing.assert_allclose(without, expected, err_msg=name)


def test_intervals_cover_what_they_should():
  """Token overlap of examples of a known kind: the jackknife interval holds the truth in 95 of 100
  samples.
  """
  random, covered_intervals, mask = np.random.default_rng(1), 0, np.arange(50) < 30
  for _ in range(200):
    shares = random.beta(6, 4, 60)  # each example has its own: tokens of an example go together
    examples = [
      np.where(
        random.random(20) < share, random.integers(0, 30, 20), random.integers(30, 50, 20)
      ).tolist()
      for share in shares
    ]
    measure = overlap._measure(
      'words', 'token overlap', 1, overlap._share(overlap.count_examples(examples, 50), mask)
    )
    covered_intervals += measure.low <= 0.6 <= measure.high
  assert 180 <= covered_intervals <= 199  # binomial, 190 expected


def test_one_example_has_no_interval(pieces: tokenizer.Tokenizer):
  result = measured(['the dog'], pieces, (np.ones(pieces.size, int), Counter(the=1)))
  assert result[HEADLINE_MEASURE].value == 0.5 and math.isnan(result[HEADLINE_MEASURE].low)


def test_more_text_never_overlaps_less(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  folder = write_examples(
    tmp_path / 'own',
    train=rows(['the dog sees a cat .', 'the old king sleeps .', 'qwx the']),
    test=rows(['the dog .']),
  )
  result = []
  for part in (1, 4, 16, 0):
    values = overlap.measure_overlap(tiny_corpus, task(folder), SubsetConfig(part, 0, 0))
    result.append(
      {
        (measure['unit'], measure['name'], measure['least']): measure['value']
        for measure in values['measures']['train']
      }
    )
  for less, more in zip(result, result[1:]):
    for key, value in less.items():
      if key[1] in ('type overlap', 'token overlap'):
        assert value <= more[key]
  assert result[0][HEADLINE_MEASURE] < result[-1][HEADLINE_MEASURE] < 1


@pytest.mark.parametrize('texts', [['', ''], ['. , !', '...']])
def test_a_task_without_text_is_refused(
  texts: list[str], tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  folder = write_examples(tmp_path / 'own', train=rows(texts), test=rows(texts))
  with pytest.raises(InputError, match='2 examples'):
    overlap.measure_overlap(tiny_corpus, task(folder), SubsetConfig(0, 0, 0))


def test_a_part_larger_than_the_corpus_is_refused(tiny_corpus: pathlib.Path):
  with pytest.raises(InputError, match='training split'):
    overlap.measure_overlap(tiny_corpus, task('/nowhere'), SubsetConfig(10**9, 0, 0))


def test_the_verb(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys):
  folder = write_examples(
    tmp_path / 'own',
    train=rows(['the dog', 'a qwx', 'the dog', 'a qwx']),
    test=rows(['the', 'cat']),
  )
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


def test_real_news_and_real_articles(data: pathlib.Path, tmp_path: pathlib.Path):
  """AG News shares nearly all running words with some Wikipedia, fewer with children's speech."""
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
    (tmp_path / f'{name}.txt').write_text('\n'.join(own_documents(str(data / source), 400)))
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
    values[name] = {
      (measure['unit'], measure['name'], measure['least']): measure
      for measure in result['measures']['test']
    }[HEADLINE_MEASURE]
  assert (
    values['speech']['high'] < values['wikipedia']['low']
    and 0.3 < values['wikipedia']['value'] < 0.95
  )


def own_documents(path: str, count: int) -> list[str]:
  """The first documents of a file of the data folder, a line each."""
  with lzma.open(path.partition('@')[0], 'rt', encoding='utf-8') as file:
    if path.endswith('@line'):
      return [next(file).rstrip('\n') for _ in range(count)]
    return [' '.join(text.split()) for text in file.read(4_000_000).split('\n\n')[:count]]
