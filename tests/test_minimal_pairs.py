"""Minimal pairs: 50 for whoever cannot tell, 100 for whoever knows, a mean over paradigms, and nothing done twice."""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from minilm_jax import __main__ as door
from minilm_jax import claim, run
from minilm_jax.errors import InputError
from minilm_jax.language import corpus as corpora
from minilm_jax.language import tokenizer as pieces
from minilm_jax.tasks import likelihood, minimal_pairs
from minilm_jax.tasks.pair_sources import Pair
from minilm_jax.training import pretrained

SIZES = {('agreement', 'a'): 6, ('agreement', 'b'): 2, ('islands', 'c'): 4}
PAIRS = [Pair('good', 'bad', paradigm, phenomenon) for (phenomenon, paradigm), n in SIZES.items() for _ in range(n)]
SENTENCES = [[10 + i] for i in range(len(PAIRS))] + [[50 + i] for i in range(len(PAIRS))]
TABLE = ('sentence_good,sentence_bad,UID,linguistics_term\n'
         'The dog sleeps .,The dog sleep .,verb,agreement\nthe dogs sleep .,the dogs sleeps .,verb,agreement\n'
         'this dog,this dogs,noun,agreement\nA cat sees it .,a cat sees it .,same,nothing\n')
FIELDS = {'task', 'metric', 'value', 'low', 'high', 'headline', 'split', 'examples', 'train_examples', 'held_out',
          'pretrained', 'checkpoint', 'checkpoint_step', 'filtered', 'seed', 'learning_rate', 'member', 'epoch',
          'epoch_choice', 'validation_score', 'majority', 'frequency', 'ties', 'constant_prediction', 'truncated'}


def oracle(sentences: Sequence[Sequence[int]]) -> np.ndarray:
  return np.array([-1.0 if ids[0] < 50 else -2.0 for ids in sentences], np.float32)


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
  (tmp_path / 'mine.csv').write_text(TABLE)
  return tmp_path / 'mine.csv'


@pytest.mark.parametrize('score, value, ties', [
    (oracle, 1.0, 0.0), (lambda sentences: -oracle(sentences), 0.0, 0.0),
    (lambda sentences: np.full(len(sentences), -7, np.float32), 0.5, 1.0)])
def test_who_knows_and_who_cannot_tell(score, value: float, ties: float):
  found = minimal_pairs.compare(PAIRS, SENTENCES, score, None)
  for line in (found['all'], *found['phenomena'], *found['paradigms']):
    assert (line['value'], line['ties'], line['frequency']) == (value, ties, None)
    assert line['low'] <= value <= line['high'] and line['low'] < line['high']
  assert found['all']['pairs'] == 12 and found['all']['paradigms'] == 3
  assert found['tokens'] == 24 and found['unknown'] == 0 and found['identical'] == 0


def test_every_paradigm_counts_the_same():
  won = np.array([1] * 6 + [0] * 2 + [1, 1, 1, 0.5])
  found = minimal_pairs.summary(PAIRS, won, 1 - won)
  assert [line['value'] for line in found['paradigms']] == [1, 0, 0.875]
  assert [(line['phenomenon'], line['value'], line['pairs']) for line in found['phenomena']] == [
      ('agreement', 0.5, 8), ('islands', 0.875, 4)]
  assert found['all']['value'] == pytest.approx(1.875 / 3)
  assert found['all']['frequency'] == pytest.approx(1 - 1.875 / 3) and found['all']['ties'] == pytest.approx(1 / 12)


def test_a_tie_is_equal_in_float32():
  good, bad = np.array([1, 1, 1], np.float32), np.array([1 + 1e-9, 1 + 1e-6, 1 - 1e-6], np.float32)
  assert minimal_pairs.points(good, bad).tolist() == [0.5, 0, 1]


@pytest.mark.parametrize('right, n', [(0, 10), (7, 10), (530, 1000), (1000, 1000)])
def test_the_interval_is_wilsons(right: int, n: int):
  expected = stats.binomtest(right, n).proportion_ci(method='wilson')
  assert minimal_pairs.wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says():
  draw, truths, sizes = np.random.RandomState(0), (0.3, 0.9), (40, 160)
  pairs = [Pair('', '', str(p), 'x') for p, n in enumerate(sizes) for _ in range(n)]
  held = 0
  for _ in range(400):
    won = np.concatenate([draw.rand(n) < truth for truth, n in zip(truths, sizes, strict=True)]).astype(float)
    line = minimal_pairs.summary(pairs, won, None)['all']
    held += line['low'] <= np.mean(truths) <= line['high']
  assert held / 400 > 0.94


def test_word_frequencies_are_counted_with_one_added(tiny_corpus: pathlib.Path, tiny_run: pathlib.Path):
  size = pieces.load(tiny_run / 'tokenizer.model').size
  found = np.exp(minimal_pairs.unigram(tiny_corpus, size))
  tokens = np.asarray(corpora.load(tiny_corpus, 'train').tokens)
  counted = tokens[~np.isin(tokens, (pieces.BEGIN, pieces.PAD, pieces.END, pieces.MASK))]
  scored = [i for i in range(size) if i not in (pieces.BEGIN, pieces.PAD, pieces.END, pieces.MASK)]
  assert math.fsum(found[scored]) == pytest.approx(1)
  for piece in (pieces.UNKNOWN, scored[5], scored[100]):
    assert found[piece] == pytest.approx((np.sum(counted == piece) + 1) / (counted.size + len(scored)))


def test_frequency_ties_where_the_words_are_the_same_in_another_order():
  draw = np.random.RandomState(0)
  pairs = [Pair('', '', 'p', 'x')] * 50
  good = [draw.randint(5, 100, 12).tolist() for _ in pairs]
  found = minimal_pairs.compare(pairs, good + [sorted(ids) for ids in good], lambda s: np.zeros(len(s), np.float32),
                                np.log(draw.rand(100)))
  assert found['all']['frequency'] == 0.5


def test_the_verb_from_a_table_to_scores_and_nothing_a_second_time(tiny_run, table, tmp_path, capsys, monkeypatch):
  command = ['evaluate', f'--checkpoint={tiny_run}', f'--pairs={table}', f'--workdir={tmp_path / "W"}']
  assert door.main([*command, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found == json.loads((tmp_path / 'W' / 'result.json').read_text())
  assert found['identical'] == 1 and found['task'] == 'mine' and found['checkpoint_step'] == 8
  assert [line['paradigm'] for line in found['paradigms']] == ['verb', 'noun', 'same']
  nothing = found['phenomena'][1]
  assert [nothing[name] for name in ('phenomenon', 'value', 'pairs', 'paradigms', 'ties', 'frequency')] == [
      'nothing', 0.5, 1, 1, 1, 0.5]
  lines = list(run.read_lines(tmp_path / 'W' / 'scores.jsonl'))
  assert [line['split'] for line in lines] == ['agreement', 'nothing', 'all']
  assert all(line.keys() == FIELDS for line in lines)
  assert [line['headline'] for line in lines] == [False, False, True]
  assert [line['constant_prediction'] for line in lines] == [False, True, False]
  assert lines[-1]['value'] == found['all']['value'] and lines[-1]['checkpoint'] == tiny_run.name
  monkeypatch.setattr(likelihood, 'pseudo_log_likelihoods', lambda *_: 1 / 0)
  (tmp_path / 'W' / claim.CLAIM).touch()
  os.utime(tmp_path / 'W' / claim.CLAIM, (0, 0))  # of one that was killed just after its result
  assert door.main(command) == 0 and not (tmp_path / 'W' / claim.CLAIM).exists()
  out, err = capsys.readouterr()
  assert 'nothing to do' in err and 'agreement' in out and '1 pairs whose halves are the same' in ' '.join(out.split())
  assert door.main([*command, '--pll_variant=original']) == 2 and 'another recipe' in capsys.readouterr().err


def test_the_scores_are_the_likelihoods(tiny_run, table):
  found = minimal_pairs.evaluate(tiny_run, table, 'original', '', '')
  pretrained_run = pretrained.load(tiny_run)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  good, bad = (likelihood.pseudo_log_likelihoods(model, tokenizer.encode(texts), tokenizer.starts_word(), 'original')
               for texts in (['this dog'], ['this dogs']))
  assert found['paradigms'][1]['value'] == float(good[0] > bad[0])


def test_a_corpus_that_is_gone_is_said_and_left_out(tiny_run, tiny_corpus, table, tmp_path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  described = json.loads((tmp_path / 'run' / 'manifest.json').read_text())
  run.write_json(tmp_path / 'run' / 'manifest.json', described | {'corpus_folder': str(tmp_path / 'gone')})
  found = minimal_pairs.evaluate(tmp_path / 'run', table, 'within-word', '', '')
  assert found['all']['frequency'] is None and '--corpus=FOLDER' in found['frequency_from']
  with_corpus = minimal_pairs.evaluate(tmp_path / 'run', table, 'within-word', str(tiny_corpus), '')
  assert with_corpus['all']['frequency'] is not None and with_corpus['all']['value'] == found['all']['value']
  with pytest.raises(InputError, match='no manifest'):
    minimal_pairs.evaluate(tmp_path / 'run', table, 'within-word', str(tmp_path / 'gone'), '')


def test_a_sentence_too_long_leaves_nothing_behind(tiny_run, tmp_path):
  (tmp_path / 'long.csv').write_text(f'sentence_good,sentence_bad\na,{"the dog " * 60}\n')
  with pytest.raises(InputError, match='the model reads 62'):
    minimal_pairs.evaluate(tiny_run, tmp_path / 'long.csv', 'original', '', str(tmp_path / 'W'))
  assert not (tmp_path / 'W').exists()
