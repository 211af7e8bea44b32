"""Baselines of counts: asked for what evaluation asks for, exactly; the formula they state; no
better than can be.
"""

import dataclasses
import math
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
from minilm_jax.data import corpus, ngrams
from minilm_jax.evaluation import ngram_baselines
from minilm_jax.model.heads import MaskedLanguageModel, init_masked_language_model
from minilm_jax.training import train_step
from tests import fast_jit
from tests.ngram_cases import CANDIDATES, VOCABULARY, count_by_dictionary, draw_rows

ORDER = ('unigram', 'left', 'right', 'mixture', 'product', 'both', 'trigram')


def run_config(folder: Path, **changes: Any) -> RunConfig:
  config = tiny.get_config()
  config.corpus = str(folder)
  config.eval.rows = 1000
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'pretrain')


def losses(
  result: dict[str, Any], split: str = 'validation', field: str = 'loss'
) -> dict[str, float]:
  return {row['predictor']: row[field] for row in result['rows'] if row['split'] == split}


def predicted(tokens: np.ndarray, seen: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
  return ngram_baselines.ngram_probabilities(
    lambda offsets: ngrams.count_ngrams([tokens], offsets, VOCABULARY), seen, targets, VOCABULARY
  )


@pytest.fixture(scope='module')
def result(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
  return ngram_baselines.measure_baselines(
    run_config(tiny_corpus), tmp_path_factory.mktemp('baselines') / 'run'
  )


def test_frequencies_have_the_loss_of_a_model_that_knows_nothing_else(
  result: dict, tiny_corpus: Path
):
  """Evaluation itself, of a model whose logits are a bias alone: the same hidden tokens, the same
  padded loss.
  """
  config, read = run_config(tiny_corpus), corpus.load_split(tiny_corpus, 'validation')
  unigrams = ngrams.count_ngrams([corpus.load_split(tiny_corpus, 'train').tokens], (), 512)
  counted = (
    unigrams.find_shares(np.zeros(512, np.uint64), np.arange(512))
    + unigrams.find_backoffs(np.zeros(512, np.uint64)) / 508
  )
  counted[list(ngrams.UNPREDICTED_IDS)] = 1e-30

  def deaf(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)

  model: MaskedLanguageModel = jax.tree.map(
    deaf, jax.eval_shape(lambda: init_masked_language_model(config.model, jax.random.key(0)))
  )
  model.output.bias[...] = jnp.log(jnp.asarray(counted, jnp.float32))
  judge = fast_jit.jit(
    lambda model, read: train_step.eval_step(model, read, jnp.int32(0), read.rows, read.rows)
  )
  judged = train_step.mean_metrics(judge(model, read))
  for field in ('loss', 'padded_loss'):
    assert losses(result, 'validation', field)['unigram'] == pytest.approx(judged[field], rel=1e-5)


def test_more_that_is_seen_is_more_that_is_known(result: dict):
  """On the microworld, whose grammar makes neighbours tell much."""
  for split in ('validation', 'test'):
    loss = losses(result, split)
    assert tuple(loss) == ORDER == tuple(ngram_baselines.CONTEXTS)
    assert (
      math.log(512) > loss['unigram'] > max(loss['left'], loss['right'])
      and loss['left'] > loss['trigram']
    )
    assert min(loss['left'], loss['right']) > max(loss['product'], loss['both'])
    assert max(loss['left'], loss['right']) > loss['mixture'] > loss['product']


def test_they_are_the_formula():
  """From dictionaries, token by token; <mask> beside a token, or both sides hidden, included."""
  tokens, generator = draw_rows(60), np.random.default_rng(1)
  seen = np.concatenate(
    [
      draw_rows(8)[:, :3],
      [[6, MASK_ID, 7], [MASK_ID, 6, 7], [6, 7, MASK_ID], [MASK_ID] * 3, [BEGIN_ID, 6, END_ID]],
    ]
  )
  targets = generator.choice(CANDIDATES, len(seen))
  result = predicted(tokens, seen, targets)

  def backed(
    offsets: tuple[int, ...], context: tuple[int, ...], target: int, lower: float
  ) -> float:
    slow = count_by_dictionary(tokens, offsets)
    times = [n for counter in slow.values() for n in counter.values()]
    discount = (times.count(1) + 1) / (times.count(1) + 2 * times.count(2) + 2)
    if context not in slow:
      return lower
    counts = slow[context]
    return (max(counts[target] - discount, 0) + discount * len(counts) * lower) / counts.total()

  def predict(target: int, far: int, left: int, right: int) -> dict[str, float]:
    unigram = backed((), (), target, 1 / len(CANDIDATES))
    sides = [backed((-1,), (left,), target, unigram), backed((1,), (right,), target, unigram)]
    below = backed((-2,), (far,), target, unigram) if left == MASK_ID else sides[0]
    return {
      'unigram': unigram,
      'left': sides[0],
      'right': sides[1],
      'mixture': sum(sides) / 2,
      'product': sides[0] * sides[1] / unigram,
      'trigram': backed((-2, -1), (far, left), target, below),
    }

  for number, (around, target) in enumerate(zip(seen.tolist(), targets.tolist(), strict=True)):
    expected = predict(target, *around)
    expected['product'] /= sum(predict(other, *around)['product'] for other in CANDIDATES.tolist())
    expected['both'] = backed((-1, 1), (around[1], around[2]), target, expected['product'])
    assert {name: values[number] for name, values in result.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
  'around',
  [(6, 7, 8), (6, MASK_ID, 8), (6, 7, MASK_ID), (MASK_ID, MASK_ID, MASK_ID), (BEGIN_ID, 6, END_ID)],
)
def test_probabilities_add_up_to_1(around: tuple[int, int, int]):
  for name, values in predicted(
    draw_rows(60), np.tile(around, (len(CANDIDATES), 1)), CANDIDATES
  ).items():
    assert values.min() > 0 and values.sum() == pytest.approx(1), name


def test_a_hidden_neighbour_tells_nothing():
  seen = np.array(
    [
      [6, MASK_ID, MASK_ID],
      [MASK_ID, 7, MASK_ID],
      [MASK_ID, MASK_ID, 7],
      [MASK_ID, MASK_ID, MASK_ID],
    ]
  )
  result = predicted(draw_rows(60), seen, np.full(4, 6))
  assert result['product'] == pytest.approx(
    [result['unigram'][0], result['left'][1], result['right'][2], result['unigram'][3]]
  )
  np.testing.assert_allclose(result['both'], result['product'])
  assert result['trigram'][1] == result['left'][1] and result['trigram'][3] == result['unigram'][3]
  # what stands before the hidden one is still seen
  assert result['trigram'][0] != result['unigram'][0]


def test_on_a_markov_chain_they_reach_its_entropies():
  """Of a chain p(t | left, right) is the product, exactly, and two tokens to the left tell what one
  does.
  """
  kinds, length, generator = 6, 200, np.random.default_rng(0)
  chain = generator.dirichlet(np.full(kinds, 0.5), kinds)
  alone = np.linalg.matrix_power(chain, 200)[0]
  tokens = np.zeros((1000, length), int)
  tokens[:, 0] = generator.choice(kinds, 1000, p=alone)
  for place in range(1, length):
    tokens[:, place] = (generator.random((1000, 1)) > chain[tokens[:, place - 1]].cumsum(1)).sum(1)
  tokens = np.minimum(tokens, kinds - 1).astype('uint16') + 5
  joint = alone[:, None, None] * chain[:, :, None] * chain[None]  # left, token, right

  def entropy(*axes: int) -> float:
    """Of the token, with the places seen that are not summed out."""
    p = joint.sum(axes)
    totals = p.sum(1 if 0 not in axes else 0, keepdims=True)
    return float(-(p * np.log(p / totals)).sum())

  places, train, test = np.arange(2, length - 1), tokens[:500], tokens[500:]
  seen = np.stack([test[:, places + offset].ravel() for offset in (-2, -1, 1)], axis=1)
  values = predicted(train, seen, test[:, places].ravel())
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


def test_a_part_of_the_training_split_is_all_that_is_counted(
  tiny_corpus: Path, tmp_path: Path, result: dict
):
  config = run_config(tiny_corpus, **{'subset.rows': 40})
  part = ngram_baselines.measure_baselines(config, tmp_path / 'part')
  rows = corpus.select_rows(config.subset, corpus.CorpusFiles(tiny_corpus, 'train'))
  tokens = corpus.load_split(tiny_corpus, 'train').tokens[rows]
  hidden = ngram_baselines.mask_split(corpus.load_split(tiny_corpus, 'validation', 1000))
  values = ngram_baselines.ngram_probabilities(
    lambda offsets: ngrams.count_ngrams([tokens], offsets, 512),
    *ngram_baselines.masked_contexts(hidden),
    512,
  )
  assert losses(part) == {
    name: pytest.approx(-np.log(counts).mean()) for name, counts in values.items()
  }
  assert part['train']['rows'] == 40 and losses(part)['left'] > losses(result)['left']


def test_only_the_rows_that_evaluation_looks_at_count(tiny_corpus: Path, tmp_path: Path):
  few = ngram_baselines.measure_baselines(
    run_config(tiny_corpus, **{'eval.rows': 5}), tmp_path / 'few'
  )
  assert {row['rows'] for row in few['rows']} == {5}


def test_it_can_be_run_twice_and_is_the_same_each_time(
  tiny_corpus: Path, tmp_path: Path, result: dict, capsys
):
  command = [
    'ngram-baselines',
    '--config=configs/tiny.py',
    f'--config.corpus={tiny_corpus}',
    '--config.eval.rows=1000',
    f'--workdir={tmp_path / "W"}',
  ]
  assert main.main(command) == 0 and 'both sides, their product' in capsys.readouterr().out
  assert files.read_json(tmp_path / 'W' / run_dir.RESULT, '')['rows'] == result['rows']
  assert main.main([*command, '--json']) == 0
  assert 'nothing to do' in capsys.readouterr().err
  assert [path.name for path in runs.find_runs([tmp_path]).values()] == ['W']
  with pytest.raises(InputError, match='another recipe'):
    ngram_baselines.measure_baselines(run_config(tiny_corpus, **{'eval.rows': 5}), tmp_path / 'W')


def test_a_corpus_without_anything_to_judge_on_is_refused(tiny_corpus: Path, tmp_path: Path):
  described = files.read_json(tiny_corpus / run_dir.MANIFEST, '')
  for split in ('validation', 'test'):
    described['splits'][split] |= {'rows': 0, 'shards': []}
  files.write_json(tmp_path / run_dir.MANIFEST, described)
  with pytest.raises(InputError, match='splits.validation'):
    ngram_baselines.measure_baselines(
      dataclasses.replace(run_config(tiny_corpus), corpus=str(tmp_path)), tmp_path / 'W'
    )
