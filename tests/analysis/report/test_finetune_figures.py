"""Panels: the mean over seeds of what a table shows, and nothing of what it does not."""

import math
import pathlib
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis.report import finetune_figures
from minilm_jax.analysis.scores import score_table
from minilm_jax.core import run_dir
from minilm_jax.core.errors import InputError
from tests.fake_runs import make_score_line, write_finetune_config


def predicted(predictions: list, seed: int = 0, **fields: Any) -> dict[str, Any]:
  return {
    'task': 'cola',
    'split': 'validation',
    'pretrained': True,
    'checkpoint_step': 100,
    'seed': seed,
    'learning_rate': 1e-4,
    'epoch_choice': 'last',
    'predictions': predictions,
    'labels': [0, 1, 1],
    **fields,
  }


def logged(folder: pathlib.Path, *lines: dict[str, Any]) -> dict[str, epath.Path]:
  run_dir.open_run(folder, {'kind': 'finetune', 'checkpoint': 'tiny'})
  run_dir.write_lines(folder / run_dir.PREDICTIONS, lines)
  return {'a': epath.Path(folder)}


def test_seeds_are_added_and_arms_are_not(tmp_path: pathlib.Path):
  found = logged(
    tmp_path / 'a',
    predicted([0, 1, 0]),
    predicted([1, 1, 1], seed=1),
    predicted([0, 0, 0], pretrained=False, checkpoint_step=None),
  )
  (one,) = finetune_figures.confusions(found, [])
  assert one.classes == ('unacceptable', 'acceptable') and one.checkpoint == 'tiny'
  np.testing.assert_array_equal(one.arms['pre-trained'], [[1, 1], [1, 3]])
  np.testing.assert_array_equal(one.arms['from scratch'], [[1, 0], [2, 0]])


def test_only_what_the_table_shows_counts(tmp_path: pathlib.Path):
  other = [
    predicted([1, 1, 1], learning_rate=2e-4),
    predicted([1, 1, 1], epoch_choice='best'),
    predicted([1, 1, 1], checkpoint_step=50),
  ]
  found = logged(tmp_path / 'a', predicted([0, 1, 1]), *other)
  (one,) = finetune_figures.confusions(
    found, score_table([make_score_line(0.5, checkpoint_step=step) for step in (50, 100)])
  )
  np.testing.assert_array_equal(one.arms['pre-trained'], [[1, 0], [0, 2]])


def test_classes_without_names_are_numbers(tmp_path: pathlib.Path):
  (one,) = finetune_figures.confusions(logged(tmp_path / 'a', predicted([0, 2, 1], task='own')), [])
  assert one.classes == ('0', '1', '2') and one.arms['pre-trained'].sum() == 3


def test_predictions_without_labels_are_for_the_server(tmp_path: pathlib.Path):
  unlabelled = {
    name: value for name, value in predicted([1, 1], split='test').items() if name != 'labels'
  }
  (one,) = finetune_figures.confusions(logged(tmp_path / 'a', predicted([0, 1, 1]), unlabelled), [])
  assert one.split == 'validation' and one.arms['pre-trained'].sum() == 3


@pytest.mark.parametrize(
  'lines, said',
  [
    ([], 'no predictions.jsonl'),
    ([predicted([0.5, 0.1, 0.2], labels=[1.0, 2.5, 3.0])], 'no predictions.jsonl with classes'),
    ([predicted([0, 1])], '2 of them for 3 labels'),
  ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: pathlib.Path, lines: list, said: str):
  with pytest.raises(InputError, match=said):
    finetune_figures.confusions(logged(tmp_path / 'a', *lines), [])


VALUES = {
  (seed, epoch): 0.5 + 0.1 * seed + 0.01 * epoch for seed in range(2) for epoch in (1.0, 2.0)
}


def logged_curves(
  folder: pathlib.Path, lines: list[dict[str, Any]], **task: Any
) -> dict[str, epath.Path]:
  write_finetune_config(folder, 'runs/tiny', 'cola', epochs=2.0, **task)
  run_dir.write_lines(folder / run_dir.METRICS, lines)
  return {folder.name: epath.Path(folder)}


def log(
  pretrained: bool = True,
  rate: float = 1e-4,
  shift: float = 0.0,
  split: str = 'held_out',
  member: int = 0,
) -> list[dict[str, Any]]:
  """A score and a loss at each epoch of two seeds."""
  lines = []
  for (seed, epoch), value in VALUES.items():
    common = {
      'step': int(10 * epoch),
      'epoch': epoch,
      'seed': seed,
      'learning_rate': rate,
      'member': member,
      'pretrained': pretrained,
    }
    lines += [
      {**common, 'split': 'train', 'loss': 1 - value, 'seconds': 1.0},
      {**common, 'split': split, 'matthews': value + shift},
    ]
  return lines


def test_both_arms_are_means_over_seeds_with_their_interval(tmp_path: pathlib.Path):
  found = logged_curves(tmp_path / 'a', log()) | logged_curves(
    tmp_path / 'b', log(False, shift=-0.2)
  )
  (scores,), (losses,) = finetune_figures.learning(found, [])
  assert scores.title == losses.title == 'cola'
  ours, theirs = scores.bands
  assert (ours.name, theirs.name) == ('pre-trained', 'from scratch') and ours.x == (1.0, 2.0)
  assert ours.mean == pytest.approx((56, 57)) and theirs.mean == pytest.approx((36, 37))
  # t of one degree, standard error 5
  assert ours.high[0] - ours.mean[0] == pytest.approx(12.706 * 5, rel=1e-3)
  assert losses.bands[0].mean == pytest.approx((0.44, 0.43))


def test_only_the_rate_that_a_table_shows_is_drawn(tmp_path: pathlib.Path):
  found = logged_curves(tmp_path / 'a', log(rate=1e-4) + log(rate=2e-4, shift=0.1, member=1))
  rows = score_table(
    make_score_line(
      0.5, learning_rate=rate, validation_score=rate, checkpoint='runs/tiny', held_out=9
    )
    for rate in (1e-4, 2e-4)
  )
  (panel,), _ = finetune_figures.learning(found, rows)
  assert [band.mean[0] for band in panel.bands] == pytest.approx([66])
  (panel,), _ = finetune_figures.learning(found, [])  # no score yet: each rate has a line
  assert [band.name for band in panel.bands] == ['pre-trained, 0.0001', 'pre-trained, 0.0002']


def test_the_held_out_part_comes_before_the_reported_split(tmp_path: pathlib.Path):
  (panel,), _ = finetune_figures.learning(
    logged_curves(tmp_path / 'a', log(split='validation')), []
  )
  assert panel.bands[0].mean[0] == pytest.approx(56)
  (panel,), _ = finetune_figures.learning(
    logged_curves(tmp_path / 'b', log(split='validation') + log(shift=0.1)), []
  )
  assert panel.bands[0].mean[0] == pytest.approx(66)


def test_of_several_steps_of_a_checkpoint_the_last_is_drawn(tmp_path: pathlib.Path):
  found = logged_curves(tmp_path / 'a', log() + log(shift=0.1, member=1) + log(False, member=2))
  run_dir.write_lines(
    tmp_path / 'a' / run_dir.SCORES,
    [
      make_score_line(0.5, member=0, checkpoint_step=50),
      make_score_line(0.5, member=1, checkpoint_step=200),
      make_score_line(0.5, pretrained=False, member=2),
    ],
  )
  (panel,), _ = finetune_figures.learning(found, [])
  assert [band.mean[0] for band in panel.bands] == pytest.approx([66, 56])


def test_protocols_stay_apart_and_a_score_that_is_no_number_leaves_a_gap(tmp_path: pathlib.Path):
  broken = [
    {**one, 'matthews': None} if 'matthews' in one and one['epoch'] == 1 else one for one in log()
  ]
  found = logged_curves(tmp_path / 'a', broken) | logged_curves(
    tmp_path / 'b', log(), max_train_examples=300
  )
  panels, _ = finetune_figures.learning(found, [])
  assert len(panels) == 2
  assert sum(math.isnan(panel.bands[0].mean[0]) for panel in panels) == 1


def test_a_log_of_another_version_is_refused(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='without epoch, .*pretrained'):
    finetune_figures.learning(
      logged_curves(tmp_path / 'a', [{'step': 1, 'split': 'train', 'seed': 0, 'loss': 1.0}]), []
    )


def test_pretraining_has_no_curve_here(tmp_path: pathlib.Path):
  run_dir.open_run(tmp_path / 'a', {'kind': 'pretrain'})
  assert finetune_figures.learning({'a': epath.Path(tmp_path / 'a')}, []) == ([], [])


def test_a_trajectory_needs_two_steps_and_has_scratch_beside_it():
  given = [
    make_score_line(value, seed, checkpoint_step=step, majority=0.1)
    for step, values in ((50, (0.1, 0.3)), (200, (0.4, 0.6)))
    for seed, value in enumerate(values)
  ] + [make_score_line(0.15, seed, False) for seed in range(2)]
  (panel,) = finetune_figures.trajectories(score_table(given))
  ours, theirs = panel.bands
  assert (
    ours.x == (50.0, 200.0)
    and ours.mean == pytest.approx((20, 50))
    and theirs.mean == pytest.approx((15, 15))
  )
  assert panel.level == pytest.approx(10)
  assert (
    finetune_figures.trajectories(
      score_table([make_score_line(0.1), make_score_line(0.1, pretrained=False)])
    )
    == []
  )
  assert (
    finetune_figures.trajectories(
      score_table([make_score_line(0.1, checkpoint_step=n, headline=False) for n in (1, 2)])
    )
    == []
  )
