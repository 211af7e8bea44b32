"""The protocol: who is trained, which epoch counts, and lines that say all there is to a score."""

import json
import math
from typing import Any

import numpy as np
import pytest

from configs import glue
from minilm_jax import recipe, run
from minilm_jax.analysis import scores
from minilm_jax.config import FinetuneConfig
from minilm_jax.tasks import metrics, protocol, table
from minilm_jax.tasks.protocol import Entry, Scored

COLA, STSB = table.find('cola'), table.find('stsb')
LABELS = np.array([0, 1, 1, 0, 1], np.int32)
OUTPUTS = np.array([[2, 1], [0, 1], [3, 0], [1, 0], [0, 9]], np.float32)  # says 0, 1, 0, 0, 1
OF_RUN = {'train_examples', 'held_out', 'checkpoint', 'filtered', 'truncated'}  # what a run adds to each line
ENTRY = Entry(3, 400, 7, 1e-3)


def settings(**changes: Any) -> FinetuneConfig:
  config = glue.get_config('cola')
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'finetune')


def made(kept: dict[str, Scored], task: table.Task = COLA, labels: np.ndarray = LABELS) -> list[dict[str, Any]]:
  floors = {'validation': {'majority': metrics.majority(task, labels, labels),
                           'frequency': metrics.frequency(task, labels, labels)}}
  return list(protocol.lines(task, ENTRY, kept, {'validation': labels}, floors))


def test_members_are_each_start_with_each_rate_and_each_seed():
  config = settings(seeds='5,2', learning_rates='1e-3,1e-4,1e-2', validation_fraction=0.1)
  found = protocol.entries(config, (400, 800, None))
  assert len(found) == len(set(found)) == 3 * 3 * 2
  assert [entry.member for entry in found] == list(range(18))
  assert [(entry.step, entry.learning_rate, entry.seed) for entry in found[:7]] == [
      (400, 1e-3, 5), (400, 1e-3, 2), (400, 1e-4, 5), (400, 1e-4, 2), (400, 1e-2, 5), (400, 1e-2, 2), (800, 1e-3, 5)]
  assert {entry.step for entry in found[12:]} == {None}
  assert [entry.fields()['pretrained'] for entry in found] == [True] * 12 + [False] * 6


def test_without_rates_to_try_it_is_that_of_the_optimizer():
  config = settings(seeds='0', **{'optimizer.learning_rate': 3e-4})
  assert [entry.learning_rate for entry in protocol.entries(config, (None,))] == [3e-4]


def test_the_best_epoch_is_reported_only_where_something_is_held_out():
  assert protocol.epochs_reported(settings(validation_fraction=0.1)) == ('best', 'last')
  assert protocol.epochs_reported(settings()) == ('last',)


@pytest.mark.parametrize('values, best', [
    ([0.1, 0.3, 0.2], 1), ([0.3, 0.3, 0.3], 0), ([math.nan, -0.2, math.nan], 1), ([math.nan, math.nan], 0),
    ([-0.1, math.nan, -0.1, 0.0], 3), ([-math.inf, 0.0], 1)])
def test_the_best_epoch_is_the_first_of_equals_and_nan_is_least(values: list[float], best: int):
  kept = None
  for epoch, value in enumerate(values):
    now = Scored(epoch, value, {})
    kept = now if protocol.better(now, kept) else kept
  assert kept.epoch == best


def test_a_line_has_every_field_that_tables_ask_for():
  found = made({'best': Scored(2.0, 0.5, {'validation': OUTPUTS}), 'last': Scored(3.0, 0.4, {'validation': OUTPUTS})})
  assert [(line['epoch_choice'], line['metric']) for line in found] == [
      ('best', 'matthews'), ('best', 'accuracy'), ('last', 'matthews'), ('last', 'accuracy')]
  for line in found:
    assert set(line) | OF_RUN == set(scores.FIELDS) and not set(line) & OF_RUN
    assert line.items() >= {'task': 'cola', 'split': 'validation', 'examples': 5, 'pretrained': True, 'member': 3,
                            'checkpoint_step': 400, 'seed': 7, 'learning_rate': 1e-3, 'constant_prediction': False}.items()
    assert line['low'] <= line['value'] <= line['high'] and line['headline'] == (line['metric'] == 'matthews')
  assert [(line['epoch'], line['validation_score']) for line in found] == [(2.0, 0.5)] * 2 + [(3.0, 0.4)] * 2
  accuracy = found[1]
  assert accuracy['value'] == pytest.approx(0.8) and accuracy['majority'] == pytest.approx(0.6)
  assert accuracy['frequency'] == pytest.approx(0.6**2 + 0.4**2)


@pytest.mark.parametrize('task, labels, width', [(COLA, LABELS, 2), (STSB, LABELS.astype(np.float32), 1)])
@pytest.mark.parametrize('broken', [math.nan, math.inf])
def test_outputs_that_are_no_numbers_score_nothing(task, labels: np.ndarray, width: int, broken: float, tmp_path):
  outputs = OUTPUTS[:, :width].copy()
  outputs[4, 0] = broken  # one is enough: what a class of it is would be chance
  assert math.isnan(protocol.headline(task, outputs, labels))
  found = made({'last': Scored(1.0, math.nan, {'validation': outputs})}, task, labels)
  assert [line['metric'] for line in found] == list(task.metrics) and all(line['constant_prediction'] for line in found)
  for line in found:
    run.append_line(tmp_path / 'scores.jsonl', line)
  for text in (tmp_path / 'scores.jsonl').read_text().splitlines():
    assert {json.loads(text)[name] for name in ('value', 'low', 'high', 'validation_score')} == {None}


def test_one_answer_to_everything_has_collapsed_but_is_scored():
  found = made({'last': Scored(1.0, math.nan, {'validation': np.tile(np.float32([0, 1]), (5, 1))})})
  assert [(line['constant_prediction'], line['value']) for line in found] == [(True, 0), (True, pytest.approx(0.6))]


def test_predictions_are_classes_or_numbers():
  assert protocol.predictions(COLA, OUTPUTS).tolist() == [0, 1, 0, 0, 1]
  numbers = OUTPUTS[:, :1]
  assert protocol.predictions(STSB, numbers).tolist() == [2, 0, 3, 1, 0]
  right = np.array([2, 0, 3, 1, 0], np.float32)
  assert protocol.headline(STSB, numbers, right) == pytest.approx(1)


def test_summaries_are_over_seeds_and_nothing_else():
  def line(value: float | None, **fields: Any) -> dict[str, Any]:
    return {'pretrained': True, 'checkpoint_step': 8, 'learning_rate': 1e-3, 'epoch_choice': 'last', 'split': 'validation',
            'metric': 'accuracy', 'value': value, 'seed': 0} | fields

  other = [{'pretrained': False, 'checkpoint_step': None}, {'checkpoint_step': 4}, {'learning_rate': 1e-2},
           {'epoch_choice': 'best'}, {'split': 'test'}, {'metric': 'f1'}]
  found = protocol.summaries([line(0.5), *(line(0.9, **change) for change in other), line(0.7, seed=1),
                              line(None, seed=3, epoch_choice='best')])
  assert len(found) == 7
  assert found[0].items() >= {'mean': pytest.approx(0.6), 'n': 2, 'checkpoint_step': 8, 'epoch_choice': 'last'}.items()
  assert found[0]['low'] < 0.6 < found[0]['high']
  best = next(one for one in found if one['epoch_choice'] == 'best')
  assert best['n'] == 2 and math.isnan(best['mean'])  # of one that is no number the mean is not known
