"""Confusion matrices: those of what the table of scores shows, summed over seeds."""

import pathlib
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax import run
from minilm_jax.analysis import confusions
from minilm_jax.analysis.scores import score_table
from minilm_jax.errors import InputError
from tests.fake_runs import make_score_line


def predicted(predictions: list, seed: int = 0, **fields: Any) -> dict[str, Any]:
  return {'task': 'cola', 'split': 'validation', 'pretrained': True, 'checkpoint_step': 100, 'seed': seed,
          'learning_rate': 1e-4, 'epoch_choice': 'last', 'predictions': predictions, 'labels': [0, 1, 1], **fields}


def logged(folder: pathlib.Path, *lines: dict[str, Any]) -> dict[str, epath.Path]:
  run.open_run(folder, {'kind': 'finetune', 'checkpoint': 'tiny'})
  run.write_lines(folder / run.PREDICTIONS, lines)
  return {'a': epath.Path(folder)}


def test_seeds_are_added_and_arms_are_not(tmp_path: pathlib.Path):
  found = logged(tmp_path / 'a', predicted([0, 1, 0]), predicted([1, 1, 1], seed=1),
                 predicted([0, 0, 0], pretrained=False, checkpoint_step=None))
  one, = confusions.confusions(found, [])
  assert one.classes == ('unacceptable', 'acceptable') and one.checkpoint == 'tiny'
  np.testing.assert_array_equal(one.arms['pre-trained'], [[1, 1], [1, 3]])
  np.testing.assert_array_equal(one.arms['from scratch'], [[1, 0], [2, 0]])


def test_only_what_the_table_shows_counts(tmp_path: pathlib.Path):
  other = [predicted([1, 1, 1], learning_rate=2e-4), predicted([1, 1, 1], epoch_choice='best'),
           predicted([1, 1, 1], checkpoint_step=50)]
  found = logged(tmp_path / 'a', predicted([0, 1, 1]), *other)
  one, = confusions.confusions(found, score_table([make_score_line(0.5, checkpoint_step=step) for step in (50, 100)]))
  np.testing.assert_array_equal(one.arms['pre-trained'], [[1, 0], [0, 2]])


def test_classes_without_names_are_numbers(tmp_path: pathlib.Path):
  one, = confusions.confusions(logged(tmp_path / 'a', predicted([0, 2, 1], task='own')), [])
  assert one.classes == ('0', '1', '2') and one.arms['pre-trained'].sum() == 3


def test_predictions_without_labels_are_for_the_server(tmp_path: pathlib.Path):
  unlabelled = {name: value for name, value in predicted([1, 1], split='test').items() if name != 'labels'}
  one, = confusions.confusions(logged(tmp_path / 'a', predicted([0, 1, 1]), unlabelled), [])
  assert one.split == 'validation' and one.arms['pre-trained'].sum() == 3


@pytest.mark.parametrize('lines, said', [
    ([], 'no predictions.jsonl'),
    ([predicted([0.5, 0.1, 0.2], labels=[1.0, 2.5, 3.0])], 'no predictions.jsonl with classes'),
    ([predicted([0, 1])], '2 of them for 3 labels'),
])
def test_what_cannot_be_drawn_is_refused(tmp_path: pathlib.Path, lines: list, said: str):
  with pytest.raises(InputError, match=said):
    confusions.confusions(logged(tmp_path / 'a', *lines), [])
