"""Tests n-gram baselines: the tokens of an evaluation, the stated formulas, entropies of a chain."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from minilm_jax.analysis import runs
from minilm_jax.cli import main
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from minilm_jax.evaluation import ngram_baselines, ngrams
from minilm_jax.model.heads import init_masked_language_model
from minilm_jax.training import train_step
from tests.ngram_cases import CANDIDATES, VOCABULARY, count_by_dictionary, draw_rows

ORDER = ('unigram', 'left', 'right', 'mixture', 'product', 'both', 'trigram')


def run_config(folder: Path, **changes: Any) -> RunConfig:
  config = tiny.get_config()
  config.corpus = str(folder)
  config.eval.rows = 1000
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'pretrain')


def list_losses(
  result: dict[str, Any], split: str = 'validation', field: str = 'loss'
) -> dict[str, float]:
  return {row['predictor']: row[field] for row in result['rows'] if row['split'] == split}


def compute_probabilities(
  tokens: np.ndarray, contexts: np.ndarray, targets: np.ndarray, vocabulary: int = VOCABULARY
) -> dict[str, np.ndarray]:
  def count(offsets: Sequence[int]) -> ngrams.NgramCounts:
    return ngrams.count_ngrams([tokens], offsets, vocabulary)

  return ngram_baselines.compute_probabilities(count, contexts, targets, vocabulary)


@pytest.fixture(scope='module')
def result(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
  return ngram_baselines.measure_baselines(
    run_config(tiny_corpus), tmp_path_factory.mktemp('baselines') / 'run'
  )


def test_the_unigram_loss_equals_the_evaluation_of_a_bias(result: dict, tiny_corpus: Path):
  """The model has only the bias of its output, so it predicts frequencies."""
  config, split = run_config(tiny_corpus), corpus.load_split(tiny_corpus, 'validation')
  unigrams = ngrams.count_ngrams([corpus.load_split(tiny_corpus, 'train').tokens], (), 512)
  empty = np.zeros(512, np.uint64)
  shares = unigrams.find_shares(empty, np.arange(512)) + unigrams.find_backoffs(empty) / 508
  shares[list(ngrams.UNPREDICTED_IDS)] = 1e-30
  shapes = jax.eval_shape(lambda: init_masked_language_model(config.model, jax.random.key(0)))
  model = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  model.output.bias[...] = jnp.log(jnp.asarray(shares, jnp.float32))
  evaluate = jax.jit(
    lambda model, split: train_step.eval_step(
      model, split, jnp.int32(0), split.rows, split.rows, jax.devices()[0]
    )
  )
  metrics = train_step.mean_metrics(evaluate(model, split))
  for field in ('loss', 'padded_loss'):
    losses = list_losses(result, 'validation', field)
    assert losses['unigram'] == pytest.approx(metrics[field], rel=1e-5)


def test_more_context_has_a_lower_loss(result: dict):
  for split in ('validation', 'test'):
    loss = list_losses(result, split)
    assert tuple(loss) == ORDER == tuple(ngram_baselines.CONTEXTS)
    assert math.log(512) > loss['unigram'] > max(loss['left'], loss['right'])
    assert loss['left'] > loss['trigram']
    assert min(loss['left'], loss['right']) > max(loss['product'], loss['both'])
    assert max(loss['left'], loss['right']) > loss['mixture'] > loss['product']


def test_probabilities_equal_the_formulas():
  """Expected values are from dictionaries, for contexts with and without masks."""
  tokens, generator = draw_rows(60), np.random.default_rng(1)
  contexts = np.concatenate(
    [
      draw_rows(8)[:, :3],
      [[6, MASK_ID, 7], [MASK_ID, 6, 7], [6, 7, MASK_ID], [MASK_ID] * 3, [BEGIN_ID, 6, END_ID]],
    ]
  )
  targets = generator.choice(CANDIDATES, len(contexts))
  result = compute_probabilities(tokens, contexts, targets)

  def back_off(
    offsets: tuple[int, ...], context: tuple[int, ...], target: int, lower: float
  ) -> float:
    counters = count_by_dictionary(tokens, offsets)
    times = [n for counter in counters.values() for n in counter.values()]
    discount = (times.count(1) + 1) / (times.count(1) + 2 * times.count(2) + 2)
    if context not in counters:
      return lower
    counts = counters[context]
    return (max(counts[target] - discount, 0) + discount * len(counts) * lower) / counts.total()

  def predict(target: int, far: int, left: int, right: int) -> dict[str, float]:
    unigram = back_off((), (), target, 1 / len(CANDIDATES))
    sides = [back_off((-1,), (left,), target, unigram), back_off((1,), (right,), target, unigram)]
    nearest = back_off((-2,), (far,), target, unigram) if left == MASK_ID else sides[0]
    return {
      'unigram': unigram,
      'left': sides[0],
      'right': sides[1],
      'mixture': sum(sides) / 2,
      'product': sides[0] * sides[1] / unigram,
      'trigram': back_off((-2, -1), (far, left), target, nearest),
    }

  for number, (context, target) in enumerate(zip(contexts.tolist(), targets.tolist(), strict=True)):
    expected = predict(target, *context)
    expected['product'] /= sum(predict(other, *context)['product'] for other in CANDIDATES.tolist())
    expected['both'] = back_off((-1, 1), tuple(context[1:]), target, expected['product'])
    assert {name: values[number] for name, values in result.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
  'context',
  [(6, 7, 8), (6, MASK_ID, 8), (6, 7, MASK_ID), (MASK_ID, MASK_ID, MASK_ID), (BEGIN_ID, 6, END_ID)],
)
def test_probabilities_sum_to_1(context: tuple[int, int, int]):
  contexts = np.tile(context, (len(CANDIDATES), 1))
  for name, values in compute_probabilities(draw_rows(60), contexts, CANDIDATES).items():
    assert values.min() > 0 and values.sum() == pytest.approx(1), name


def test_masked_neighbours_are_ignored():
  contexts = np.full((4, 3), MASK_ID)
  contexts[[0, 1, 2], [0, 1, 2]] = 6, 7, 7
  result = compute_probabilities(draw_rows(60), contexts, np.full(4, 6))
  assert result['product'] == pytest.approx(
    [result['unigram'][0], result['left'][1], result['right'][2], result['unigram'][3]]
  )
  np.testing.assert_allclose(result['both'], result['product'])
  assert result['trigram'][1] == result['left'][1] and result['trigram'][3] == result['unigram'][3]
  assert result['trigram'][0] != result['unigram'][0]  # the token before the mask is visible


def test_losses_on_a_markov_chain_equal_its_entropies():
  """In a chain, `product` is exact and a second token to the left has no information."""
  kinds, length, generator = 6, 200, np.random.default_rng(0)
  chain = generator.dirichlet(np.full(kinds, 0.5), kinds)
  stationary = np.linalg.matrix_power(chain, 200)[0]
  tokens = np.zeros((1000, length), int)
  tokens[:, 0] = generator.choice(kinds, 1000, p=stationary)
  for column in range(1, length):
    cumulative = chain[tokens[:, column - 1]].cumsum(1)
    tokens[:, column] = (generator.random((1000, 1)) > cumulative).sum(1)
  tokens = np.minimum(tokens, kinds - 1).astype('uint16') + 5
  joint = stationary[:, None, None] * chain[:, :, None] * chain[None]  # left, token, right

  def entropy(*axes: int) -> float:
    """Returns the entropy of the token given the neighbours that are not summed out."""
    p = joint.sum(axes)
    totals = p.sum(1 if 0 not in axes else 0, keepdims=True)
    return float(-(p * np.log(p / totals)).sum())

  columns, train, test = np.arange(2, length - 1), tokens[:500], tokens[500:]
  contexts = np.stack([test[:, columns + offset].ravel() for offset in (-2, -1, 1)], axis=1)
  values = compute_probabilities(train, contexts, test[:, columns].ravel())
  expected = {
    'unigram': entropy(0, 2),
    'left': entropy(2),
    'right': entropy(0),
    'product': entropy(),
    'both': entropy(),
    'trigram': entropy(2),
  }
  assert {name: -np.log(values[name]).mean() for name in expected} == pytest.approx(
    expected, abs=0.02
  )


def test_only_the_subset_of_the_training_split_is_counted(
  tiny_corpus: Path, tmp_path: Path, result: dict
):
  config = run_config(tiny_corpus, **{'subset.rows': 40})
  part = ngram_baselines.measure_baselines(config, tmp_path / 'part')
  rows = corpus.select_rows(config.subset, corpus.CorpusFiles(tiny_corpus, 'train'))
  tokens = corpus.load_split(tiny_corpus, 'train').tokens[rows]
  batch = ngram_baselines.mask_split(corpus.load_split(tiny_corpus, 'validation', 1000))
  values = compute_probabilities(tokens, *ngram_baselines.collect_contexts(batch), 512)
  losses = list_losses(part)
  assert losses == pytest.approx(
    {name: -np.log(probabilities).mean() for name, probabilities in values.items()}
  )
  assert part['train']['rows'] == 40 and losses['left'] > list_losses(result)['left']


def test_only_the_rows_of_an_evaluation_are_scored(tiny_corpus: Path, tmp_path: Path):
  config = run_config(tiny_corpus, **{'eval.rows': 5})
  few = ngram_baselines.measure_baselines(config, tmp_path / 'few')
  assert {row['rows'] for row in few['rows']} == {5}


def test_the_command_returns_a_stored_result(
  tiny_corpus: Path, tmp_path: Path, result: dict, capsys
):
  command = [
    'ngram-baselines',
    '--config=configs/tiny.py',
    f'--config.corpus={tiny_corpus}',
    '--config.eval.rows=1000',
    f'--workdir={tmp_path / "W"}',
  ]
  assert main.main(command) == 0 and 'product' in capsys.readouterr().out
  stored = files.read_json(tmp_path / 'W' / run_dir.RESULT, '')
  assert stored['rows'] == result['rows']
  assert main.main([*command, '--json']) == 0
  assert json.loads(capsys.readouterr().out) == stored
  assert [path.name for path in runs.find_runs([tmp_path]).values()] == ['W']
  with pytest.raises(InputError, match='rows'):
    ngram_baselines.measure_baselines(run_config(tiny_corpus, **{'eval.rows': 5}), tmp_path / 'W')


def test_a_corpus_without_evaluation_splits_is_refused(tiny_corpus: Path, tmp_path: Path):
  manifest = files.read_json(tiny_corpus / run_dir.MANIFEST, '')
  for split in ('validation', 'test'):
    manifest['splits'][split] |= {'rows': 0, 'shards': []}
  files.write_json(tmp_path / run_dir.MANIFEST, manifest)
  config = dataclasses.replace(run_config(tiny_corpus), corpus=str(tmp_path))
  with pytest.raises(InputError, match='splits.validation'):
    ngram_baselines.measure_baselines(config, tmp_path / 'W')
