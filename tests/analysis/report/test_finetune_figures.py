"""Tests of `finetune_figures`: panels and matrices have the scores that the tables show."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.report import finetune_figures
from minilm_jax.analysis.report.figures import Panel
from minilm_jax.analysis.scores import Group, make_score_table
from minilm_jax.core import run_dir
from minilm_jax.core.errors import InputError
from tests.fake_runs import change_config, make_score_line, write_finetune_config


def make_prediction(predictions: list, seed: int = 0, **fields: Any) -> dict[str, Any]:
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


def write_predictions(folder: pathlib.Path, *lines: dict[str, Any]) -> dict[str, epath.Path]:
  run_dir.open_run(folder, {'kind': 'finetune', 'checkpoint': 'tiny'})
  run_dir.write_lines(folder / run_dir.PREDICTIONS, lines)
  return {'a': epath.Path(folder)}


def test_confusions_sum_over_seeds_within_arms(tmp_path: pathlib.Path):
  run_paths = write_predictions(
    tmp_path / 'a',
    make_prediction([0, 1, 0]),
    make_prediction([1, 1, 1], seed=1),
    make_prediction([0, 0, 0], pretrained=False, checkpoint_step=None),
  )
  (matrices,) = finetune_figures.read_confusions(run_paths, [])
  assert matrices.classes == ('unacceptable', 'acceptable')
  assert matrices.title == 'cola, validation\ntiny'
  np.testing.assert_array_equal(matrices.arms['pre-trained'], [[1, 1], [1, 3]])
  np.testing.assert_array_equal(matrices.arms['from scratch'], [[1, 0], [2, 0]])


def test_confusions_count_the_displayed_scores(tmp_path: pathlib.Path):
  other = [
    make_prediction([1, 1, 1], learning_rate=2e-4),
    make_prediction([1, 1, 1], epoch_choice='best'),
    make_prediction([1, 1, 1], checkpoint_step=50),
  ]
  run_paths = write_predictions(tmp_path / 'a', make_prediction([0, 1, 1]), *other)
  (matrices,) = finetune_figures.read_confusions(
    run_paths, make_score_table([make_score_line(0.5, checkpoint_step=step) for step in (50, 100)])
  )
  np.testing.assert_array_equal(matrices.arms['pre-trained'], [[1, 0], [0, 2]])


def test_each_displayed_learning_rate_has_a_matrix(tmp_path: pathlib.Path):
  run_paths = write_predictions(
    tmp_path / 'a', make_prediction([0, 1, 1]), make_prediction([1, 1, 1], learning_rate=0.01)
  )
  rates = (make_prediction([])['learning_rate'], 0.01)
  lines = [make_score_line(0.5, learning_rate=rate, held_out=0) for rate in rates]
  low, high = finetune_figures.read_confusions(run_paths, make_score_table(lines))
  assert 'learning rate 0.01' in high.title and low.title != high.title
  np.testing.assert_array_equal(low.arms['pre-trained'], [[1, 0], [0, 2]])
  np.testing.assert_array_equal(high.arms['pre-trained'], [[0, 1], [0, 2]])


def test_runs_with_several_heads_have_matrices_of_their_own(tmp_path: pathlib.Path):
  run_paths = {}
  for name, head, prediction in (('one', {}, [0, 1, 0]), ('five', {'ensemble_size': 5}, [0, 1, 1])):
    folder = tmp_path / name
    run_dir.open_run(folder, {'kind': 'finetune', 'checkpoint': 'tiny', 'head': head})
    run_dir.write_lines(folder / run_dir.PREDICTIONS, [make_prediction(prediction)])
    run_paths[name] = epath.Path(folder)
  one, five = finetune_figures.read_confusions(run_paths, [])
  assert [matrices.title for matrices in (one, five)] == [
    'cola, validation\ntiny',
    'cola, validation\ntiny, 5 heads',
  ]
  np.testing.assert_array_equal(one.arms['pre-trained'], [[1, 0], [1, 1]])
  np.testing.assert_array_equal(five.arms['pre-trained'], [[1, 0], [0, 2]])


def test_filtered_runs_and_protocols_have_matrices_of_their_own(tmp_path: pathlib.Path):
  run_paths = {}
  lines = []
  for name, is_filtered, epochs, rate in (
    ('a', False, 3.0, 1e-4),
    ('b', True, 3.0, 1e-4),
    ('c', False, 10.0, 2e-4),
  ):
    folder = tmp_path / name
    write_finetune_config(folder, 'tiny', 'cola', epochs=epochs, filtered=is_filtered)
    number = 2 if is_filtered else 3
    run_dir.write_lines(
      folder / run_dir.PREDICTIONS,
      [
        make_prediction([0] * number, labels=[0, 1, 1][:number], learning_rate=each)
        for each in (1e-4, 2e-4)
      ],
    )
    line = make_score_line(0.5, filtered=is_filtered, learning_rate=rate)
    run_dir.write_lines(folder / run_dir.SCORES, [line])
    run_paths[name] = epath.Path(folder)
    lines.append({**line, 'protocol': runs.read_protocol(run_paths[name])})
  confusions = finetune_figures.read_confusions(run_paths, make_score_table(lines))
  assert {matrices.title: int(matrices.arms['pre-trained'].sum()) for matrices in confusions} == {
    'cola, validation, epochs=3.0\ntiny': 3,
    'cola, validation, epochs=10.0\ntiny': 3,
    'cola (filtered), validation\ntiny': 2,
  }


def test_classes_without_names_have_numbers(tmp_path: pathlib.Path):
  (matrices,) = finetune_figures.read_confusions(
    write_predictions(tmp_path / 'a', make_prediction([0, 2, 1], task='own')), []
  )
  assert matrices.classes == ('0', '1', '2') and matrices.arms['pre-trained'].sum() == 3


def test_predictions_without_labels_are_skipped(tmp_path: pathlib.Path):
  unlabelled = {
    name: value for name, value in make_prediction([1, 1], split='test').items() if name != 'labels'
  }
  (matrices,) = finetune_figures.read_confusions(
    write_predictions(tmp_path / 'a', make_prediction([0, 1, 1]), unlabelled), []
  )
  assert 'validation' in matrices.title and matrices.arms['pre-trained'].sum() == 3


@pytest.mark.parametrize(
  'lines, message',
  [
    ([], 'predictions.jsonl'),
    ([make_prediction([0.5, 0.1, 0.2], labels=[1.0, 2.5, 3.0])], 'predictions.jsonl'),
    ([make_prediction([0, 1])], '2 .* 3'),
  ],
)
def test_unusable_predictions_are_refused(tmp_path: pathlib.Path, lines: list, message: str):
  with pytest.raises(InputError, match=message):
    finetune_figures.read_confusions(write_predictions(tmp_path / 'a', *lines), [])


VALUES = {
  (seed, epoch): 0.5 + 0.1 * seed + 0.01 * epoch for seed in range(2) for epoch in (1.0, 2.0)
}


def write_log(
  folder: pathlib.Path, lines: list[dict[str, Any]], **task: Any
) -> dict[str, epath.Path]:
  write_finetune_config(folder, 'runs/tiny', 'cola', epochs=2.0, **task)
  run_dir.write_lines(folder / run_dir.METRICS, lines)
  return {folder.name: epath.Path(folder)}


def make_log(
  pretrained: bool = True,
  rate: float = 1e-4,
  shift: float = 0.0,
  split: str = 'held_out',
  member: int = 0,
) -> list[dict[str, Any]]:
  """Returns a score and a loss at each epoch of two seeds."""
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


def read_means(band: Mapping[float, Group]) -> list[float]:
  return [group.mean for group in band.values()]


def read_first_means(panel: Panel) -> list[float]:
  """Returns the mean of each band at the first epoch."""
  return [read_means(band)[0] for band in panel.bands.values()]


def test_bands_are_means_over_seeds_with_intervals(tmp_path: pathlib.Path):
  run_paths = write_log(tmp_path / 'a', make_log()) | write_log(
    tmp_path / 'b', make_log(False, shift=-0.2)
  )
  (scores,), (losses,) = finetune_figures.read_learning_curves(run_paths, [])
  assert scores.title == losses.title == 'cola'
  assert list(scores.bands) == ['pre-trained', 'from scratch']
  pretrained, scratch = scores.bands.values()
  assert list(pretrained) == [1.0, 2.0]
  assert read_means(pretrained) == pytest.approx([0.56, 0.57])
  assert read_means(scratch) == pytest.approx([0.36, 0.37])
  # t of one degree, standard error 0.05
  assert pretrained[1.0].high - pretrained[1.0].mean == pytest.approx(12.706 * 0.05, rel=1e-3)
  assert read_means(losses.bands['pre-trained']) == pytest.approx([0.44, 0.43])


def test_curves_have_the_displayed_rate(tmp_path: pathlib.Path):
  run_paths = write_log(
    tmp_path / 'a', make_log(rate=1e-4) + make_log(rate=2e-4, shift=0.1, member=1)
  )
  rows = make_score_table(
    {
      **make_score_line(
        0.5, learning_rate=rate, validation_score=rate, checkpoint='runs/tiny', held_out=9
      ),
      'protocol': runs.read_protocol(run_paths['a']),
    }
    for rate in (1e-4, 2e-4)
  )
  (panel,), _ = finetune_figures.read_learning_curves(run_paths, rows)
  assert read_first_means(panel) == pytest.approx([0.66])
  (panel,), _ = finetune_figures.read_learning_curves(
    run_paths, []
  )  # no score yet: each rate has a line
  assert list(panel.bands) == ['pre-trained, 0.0001', 'pre-trained, 0.0002']


def test_curves_prefer_the_held_out_part(tmp_path: pathlib.Path):
  (panel,), _ = finetune_figures.read_learning_curves(
    write_log(tmp_path / 'a', make_log(split='validation')), []
  )
  assert read_first_means(panel) == pytest.approx([0.56])
  (panel,), _ = finetune_figures.read_learning_curves(
    write_log(tmp_path / 'b', make_log(split='validation') + make_log(shift=0.1)), []
  )
  assert read_first_means(panel) == pytest.approx([0.66])


def test_curves_have_the_last_step_of_a_checkpoint(tmp_path: pathlib.Path):
  run_paths = write_log(
    tmp_path / 'a', make_log() + make_log(shift=0.1, member=1) + make_log(False, member=2)
  )
  run_dir.write_lines(
    tmp_path / 'a' / run_dir.SCORES,
    [
      make_score_line(0.5, member=0, checkpoint_step=50),
      make_score_line(0.5, member=1, checkpoint_step=200),
      make_score_line(0.5, pretrained=False, member=2),
    ],
  )
  (panel,), _ = finetune_figures.read_learning_curves(run_paths, [])
  assert read_first_means(panel) == pytest.approx([0.66, 0.56])


def test_protocols_have_separate_panels_and_undefined_scores_a_gap(tmp_path: pathlib.Path):
  broken = [
    {**line, 'matthews': None} if 'matthews' in line and line['epoch'] == 1 else line
    for line in make_log()
  ]
  run_paths = write_log(tmp_path / 'a', broken) | write_log(
    tmp_path / 'b', make_log(), max_train_examples=300
  )
  panels, _ = finetune_figures.read_learning_curves(run_paths, [])
  assert len(panels) == 2
  assert sum(math.isnan(read_first_means(panel)[0]) for panel in panels) == 1


def test_runs_of_other_settings_have_panels_and_rates_of_their_own(tmp_path: pathlib.Path):
  run_paths = {}
  lines = []
  for name, batch_size, rate in (('a', 16, 1e-4), ('b', 64, 2e-4)):
    folder = tmp_path / name
    run_paths |= write_log(
      folder, make_log(rate=1e-4) + make_log(rate=2e-4, shift=0.1 if name == 'b' else 0, member=1)
    )
    change_config(folder, batch_size=batch_size)
    line = make_score_line(0.5, learning_rate=rate, checkpoint='runs/tiny')
    run_dir.write_lines(folder / run_dir.SCORES, [line])
    lines.append({**line, 'protocol': runs.read_protocol(run_paths[name])})
  panels, _ = finetune_figures.read_learning_curves(run_paths, make_score_table(lines))
  assert {panel.title: read_first_means(panel) for panel in panels} == {
    'cola, batch_size=16': pytest.approx([0.56]),
    'cola, batch_size=64': pytest.approx([0.66]),
  }


def test_log_lines_without_fields_are_refused(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='epoch, .*pretrained'):
    finetune_figures.read_learning_curves(
      write_log(tmp_path / 'a', [{'step': 1, 'split': 'train', 'seed': 0, 'loss': 1.0}]), []
    )


def test_pretraining_has_no_learning_curve(tmp_path: pathlib.Path):
  run_dir.open_run(tmp_path / 'a', {'kind': 'pretrain'})
  assert finetune_figures.read_learning_curves({'a': epath.Path(tmp_path / 'a')}, []) == ([], [])


def test_trajectories_of_other_protocols_have_panels_of_their_own():
  lines = [
    {**make_score_line(value + step / 1000, checkpoint_step=step), 'protocol': {'epochs': epochs}}
    for epochs, value in ((1, 0.5), (10, 0.7))
    for step in (10, 20)
  ]
  panels = finetune_figures.make_trajectories(make_score_table(lines))
  bands = {panel.title: list(panel.bands.values()) for panel in panels}
  assert {title: read_means(band) for title, (band,) in bands.items()} == {
    'cola, epochs=1': pytest.approx([0.51, 0.52]),
    'cola, epochs=10': pytest.approx([0.71, 0.72]),
  }
  assert [list(band) for (band,) in bands.values()] == [[10.0, 20.0]] * 2


def test_trajectories_need_two_steps():
  lines = [
    make_score_line(value, seed, checkpoint_step=step, majority=0.1)
    for step, values in ((50, (0.1, 0.3)), (200, (0.4, 0.6)))
    for seed, value in enumerate(values)
  ] + [make_score_line(0.15, seed, False) for seed in range(2)]
  (panel,) = finetune_figures.make_trajectories(make_score_table(lines))
  pretrained, scratch = panel.bands.values()
  assert list(pretrained) == [50.0, 200.0]
  assert read_means(pretrained) == pytest.approx([0.2, 0.5])
  assert read_means(scratch) == pytest.approx([0.15, 0.15])
  assert panel.majority == pytest.approx(0.1)
  assert (
    finetune_figures.make_trajectories(
      make_score_table([make_score_line(0.1), make_score_line(0.1, pretrained=False)])
    )
    == []
  )
  assert (
    finetune_figures.make_trajectories(
      make_score_table([make_score_line(0.1, checkpoint_step=n, headline=False) for n in (1, 2)])
    )
    == []
  )
