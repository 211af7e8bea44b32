"""The gap between pre-trained and from scratch, by size and task overlap of the pre-training set.

Paper 2 claims that the gap grows with both. The gap of a run on a task is the score pre-trained
minus from scratch, paired by seed of fine-tuning. Comparable runs share the model and the
tokenizer. In addition:

- By size, runs share the number of rows seen (same updates) or the number of epochs. No task
  selected their training sets. Otherwise, the name of the comparison states that both differ.
- By overlap, runs share the size, within 1%, and the number of rows seen. Such runs train on
  subsets of `minilm overlap-subsets` for the task.

A least-squares slope over the runs is for a doubling of the tokens or for 0.01 of overlap. It is
one number a seed of fine-tuning, averaged over the tasks of a mean, and likewise one number a seed of
pre-training. Of the two intervals of Student the wider counts. Without two seeds of pre-training in
all levels, the interval lacks the variance of pre-training.

A fresh encoder depends on its seed alone. So a run also uses the scores from scratch of other runs
with the same model, tokenizer and protocol. Of them, those of the run's own seeds count, or all if a
seed has none.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import runs
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.analysis.seed_groups import (
  Difference,
  Group,
  compute_difference,
  make_group,
  subtract_by_seed,
)
from minilm_jax.analysis.training_sets import TrainingSet

SIZE, OVERLAP = 'size', 'overlap'  # axes
FINETUNING, PRETRAINING = 'fine-tuning', 'pre-training'  # kinds of seeds
MIN_LEVELS = 2  # in a slope
# Minimal distance of two levels, in doublings of tokens and in points of overlap.
_MIN_LEVEL_DISTANCE = {SIZE: 0.02, OVERLAP: 0.2}
_SAME_SIZE_FACTOR = 1.01  # sizes within this factor count as equal
BySeed = Mapping[int, float]  # seed: number


@dataclasses.dataclass(frozen=True)
class Gap:
  """The gap of one run on one task.

  Attributes:
    axis: SIZE or OVERLAP.
    series: task with metric, split, number of training examples and protocol.
    comparison: shape of the model, and the property that the runs share.
    tokens: tokens of the pre-training set, without padding.
    overlap: share of the task's words in the pre-training set; nan if not measured.
    borrowed: some of the scores from scratch are those of another run.
    seeds, values: gaps by the seeds of fine-tuning that have a score pre-trained and from scratch.
  """

  axis: str
  series: str
  comparison: str
  checkpoint: str
  rows: int
  tokens: int
  epochs: float
  overlap: float
  pretrained: float
  scratch: float
  gap: Difference
  borrowed: bool
  pretraining_seed: int
  seeds: tuple[int, ...]
  values: tuple[float, ...]

  @property
  def by_seed(self) -> dict[int, float]:
    """Values by seed."""
    return dict(zip(self.seeds, self.values, strict=True))

  @property
  def position(self) -> float:
    """Position on the axis: the tokens in doublings, or the overlap in points."""
    return math.log2(self.tokens) if self.axis == SIZE else 100 * self.overlap


@dataclasses.dataclass(frozen=True)
class Slope:
  """The slope of the gap in one comparison, for a doubling of tokens or 0.01 of overlap.

  Attributes:
    axis: SIZE or OVERLAP.
    series: that of the gaps, or a mean over tasks.
    levels: number of distinct sizes or overlaps.
    seeds: number of seeds of the interval; 0 without two common seeds of fine-tuning.
    seeds_of: FINETUNING or PRETRAINING.
    low, high: ends of the 95% interval over seeds; nan with fewer than two.
    note: limitations of the estimate, or ''.
  """

  axis: str
  series: str
  comparison: str
  points: int
  levels: int
  tasks: int
  seeds: int
  seeds_of: str
  slope: float
  low: float
  high: float
  note: str


@dataclasses.dataclass(frozen=True)
class GapStudy:
  """Gaps and slopes, which are empty without two comparable runs, and reasons for omissions."""

  points: Sequence[Gap]
  slopes: Sequence[Slope]
  left_out: Sequence[str]


def find_gaps(sets: Mapping[str, TrainingSet], rows: Iterable[ScoreRow]) -> GapStudy:
  """Returns the gaps and slopes of every comparison with two sizes or two overlaps."""
  points: list[Gap] = []
  by_series, left_out = select_single_rows(rows, sets)
  for series, single in by_series.items():
    for axis in (SIZE, OVERLAP):
      gaps = list(_find_series_gaps(axis, series, single, sets))
      points += gaps
      # Runs on a subset, or with an overlap, are made for a comparison along this axis.
      num_candidates = sum(
        bool(sets[name].task) if axis == OVERLAP else sets[name].rows < sets[name].split_rows
        for name in single
      )
      if num_candidates and not gaps:
        left_out.append(
          f'the gap of {series} by {axis}: {num_candidates} runs, but no two with one model and '
          f'training, different {axis}s, and scores both pre-trained and from scratch'
        )
  return GapStudy(points, fit_slopes(points), left_out)


def select_single_rows(
  rows: Iterable[ScoreRow], sets: Mapping[str, TrainingSet]
) -> tuple[dict[str, dict[str, ScoreRow]], list[str]]:
  """Returns the headline rows by series and run, and the reasons for omissions.

  The rows of a series have one protocol. A run with rows of several learning rates is left out.
  """
  by_series = runs.group_by(
    (row for row in rows if row.headline and row.checkpoint in sets),
    lambda row: (
      f'{row.task_name}, {row.metric}, {row.split}, {row.train_examples:,} training examples'
      + (f', {row.protocol}' if row.protocol else '')
    ),
  )
  single: dict[str, dict[str, ScoreRow]] = {}
  left_out = []
  for series, same_series in by_series.items():
    by_name = runs.group_by(same_series, lambda row: row.checkpoint)
    single[series] = runs.select_single(by_name)
    left_out += [
      f'the gap of {series} from {name}: {len(several)} learning rates, of which none was chosen'
      for name, several in by_name.items()
      if len(several) > 1
    ]
  return single, left_out


def _find_series_gaps(
  axis: str, series: str, rows: Mapping[str, ScoreRow], sets: Mapping[str, TrainingSet]
) -> Iterator[Gap]:
  """Yields the gaps of one series along one axis, by model and tokenizer, then by comparison."""
  suited = [
    sets[name]
    for name, row in rows.items()
    if (not sets[name].selected if axis == SIZE else sets[name].task == row.task)
  ]
  by_key = runs.group_by(suited, lambda training_set: training_set.key)
  shapes: list[str] = []
  for key, same_model in by_key.items():
    shape = same_model[0].shape
    shapes.append(shape)
    if shapes.count(shape) > 1:  # another tokenizer or model field
      shape += f' ({shapes.count(shape)})'
    scratch = {
      seed: value
      for name in reversed([*rows])  # the first run with a seed counts
      if sets[name].key == key
      for seed, value in rows[name].scratch.by_seed.items()
    }
    complete = [
      training_set
      for training_set in same_model
      if scratch and rows[training_set.name].pretrained.n
    ]
    for shared, cluster in (
      _group_by_size(complete) if axis == SIZE else _group_by_overlap(complete)
    ):
      comparison = f'{shape}, {shared}'
      for training_set in _sort_by(cluster, 'tokens' if axis == SIZE else 'overlap'):
        yield _make_gap(axis, series, comparison, training_set, rows[training_set.name], scratch)


def _make_gap(
  axis: str,
  series: str,
  comparison: str,
  training_set: TrainingSet,
  row: ScoreRow,
  borrowed: Mapping[int, float],
) -> Gap:
  pretrained, own = row.pretrained, row.scratch.by_seed
  by_seed = {**borrowed, **own}
  gaps = subtract_by_seed(pretrained.by_seed, by_seed)
  if len(gaps) == pretrained.n:
    by_seed = {seed: by_seed[seed] for seed in gaps}
  scratch = make_group(by_seed)
  return Gap(
    axis=axis,
    series=series,
    comparison=comparison,
    checkpoint=training_set.name,
    rows=training_set.rows,
    tokens=training_set.tokens,
    epochs=training_set.epochs,
    overlap=training_set.overlap,
    pretrained=pretrained.mean,
    scratch=scratch.mean,
    gap=compute_difference(pretrained, scratch),
    borrowed=not by_seed.keys() <= own.keys(),
    pretraining_seed=training_set.seed,
    seeds=tuple(gaps),
    values=tuple(gaps.values()),
  )


def _group_by_size(sets: Sequence[TrainingSet]) -> Iterator[tuple[str, list[TrainingSet]]]:
  """Yields the runs of several sizes with equal updates and with equal epochs, or else all runs."""
  is_shared = False
  for field, shared in (('rows_seen', 'same updates'), ('epochs', 'same epochs')):
    groups = [group for group in _cluster(sets, field) if len(_cluster(group, 'tokens')) > 1]
    for group in groups:
      is_shared = True
      detail = f' ({group[0].epochs:.3g})'
      if field == 'rows_seen':
        detail = f' ({group[0].rows_seen:,} rows)' if len(groups) > 1 else ''
      yield shared + detail, group
  if not is_shared and len(_cluster(sets, 'tokens')) > 1:
    yield 'updates and epochs differ', list(sets)


def _group_by_overlap(sets: Sequence[TrainingSet]) -> Iterator[tuple[str, list[TrainingSet]]]:
  """Yields the runs of one size and number of rows seen, with different overlaps."""
  for same_size in _cluster(sets, 'tokens'):
    for group in _cluster(same_size, 'rows_seen'):
      if len({training_set.overlap for training_set in group}) > 1:
        yield f'{group[0].tokens:,} tokens', group


def _cluster(sets: Iterable[TrainingSet], field: str) -> list[list[TrainingSet]]:
  """Returns runs in the order of a field, split at increases of more than 1%."""
  clusters: list[list[TrainingSet]] = []
  for training_set in _sort_by(sets, field):
    value = getattr(training_set, field)
    if clusters and value <= _SAME_SIZE_FACTOR * getattr(clusters[-1][-1], field):
      clusters[-1].append(training_set)
    else:
      clusters.append([training_set])
  return clusters


def _sort_by(sets: Iterable[TrainingSet], field: str) -> list[TrainingSet]:
  return sorted(sets, key=lambda training_set: (getattr(training_set, field), training_set.name))


def fit_slopes(points: Iterable[Gap]) -> list[Slope]:
  """Returns the slope of each series and the mean slope of comparisons with several series."""
  slopes = []
  compared = runs.group_by(points, lambda point: (point.axis, point.comparison))
  for (axis, comparison), same_comparison in compared.items():
    by_series = runs.group_by(same_comparison, lambda point: point.series)
    tasks = {
      series: [gaps] for series, gaps in by_series.items() if _count_levels(gaps) >= MIN_LEVELS
    }
    if len(tasks) > 1:
      tasks[f'mean of {len(tasks)} tasks'] = [gaps for (gaps,) in tasks.values()]
    slopes += [
      _fit_slope((axis, series, comparison), task_gaps) for series, task_gaps in tasks.items()
    ]
  return slopes


def fit_seed_slopes(points: Sequence[Gap]) -> dict[int, float]:
  """Returns the slope for each common seed of fine-tuning.

  The result is empty if all points have one level, or with fewer than two common seeds.
  """
  seeds = _list_common_seeds(points)
  if _count_levels(points) < MIN_LEVELS or len(seeds) < 2:
    return {}
  return {seed: _fit_line(points, [point.by_seed[seed] for point in points]) for seed in seeds}


def fit_pretraining_slopes(points: Sequence[Gap]) -> dict[int, float]:
  """Returns the slope of the mean gaps for each seed of pre-training that all levels have."""
  num_levels = _count_levels(points)
  by_seed = runs.group_by(points, lambda point: point.pretraining_seed)
  return {
    seed: _fit_line(same_seed, _average_gaps(same_seed))
    for seed, same_seed in by_seed.items()
    if _count_levels(same_seed) == num_levels >= MIN_LEVELS
  }


def average_seeds(finetuning: Sequence[BySeed], pretraining: Sequence[BySeed]) -> tuple[Group, str]:
  """Returns the means over tasks, by the kind of seeds with the wider interval.

  With fewer than two common seeds of fine-tuning there is no interval.

  Args:
    finetuning: numbers of each task by seed of fine-tuning.
    pretraining: the same numbers by seed of pre-training, if known.

  Returns:
    The means by seed, and FINETUNING or PRETRAINING.
  """
  by_finetuning, by_pretraining = (
    make_group(average_common_seeds(numbers)) for numbers in (finetuning, pretraining)
  )
  if by_pretraining.high - by_pretraining.low > by_finetuning.high - by_finetuning.low:
    return by_pretraining, PRETRAINING
  return by_finetuning, FINETUNING


def average_common_seeds(numbers: Sequence[BySeed]) -> dict[int, float]:
  """Returns the mean for each seed that all mappings have."""
  common = set.intersection(*map(set, numbers)) if numbers else set()
  return {seed: float(np.mean([by_seed[seed] for by_seed in numbers])) for seed in sorted(common)}


def _count_levels(points: Sequence[Gap]) -> int:
  """Returns the number of distinct sizes or overlaps."""
  distances = np.diff(np.sort([point.position for point in points]))
  return 1 + int(np.sum(distances > _MIN_LEVEL_DISTANCE[points[0].axis]))


def _list_common_seeds(points: Sequence[Gap]) -> list[int]:
  return sorted(set.intersection(*(set(point.seeds) for point in points)))


def _average_gaps(points: Sequence[Gap]) -> Sequence[float]:
  """Returns the mean gap of each point over common seeds or, with fewer than two, over its own."""
  seeds = _list_common_seeds(points)
  if len(seeds) < 2:
    return [point.pretrained - point.scratch for point in points]
  return np.mean([[point.by_seed[seed] for point in points] for seed in seeds], axis=0).tolist()


def _fit_line(points: Sequence[Gap], gaps: Sequence[float]) -> float:
  """Returns the slope of the least-squares line."""
  x = np.array([point.position for point in points])
  dx = x - x.mean()
  return float(dx @ np.asarray(gaps) / (dx @ dx))


def _fit_slope(names: tuple[str, str, str], tasks: Sequence[Sequence[Gap]]) -> Slope:
  """Returns the mean slope over tasks; `names` are axis, series and comparison."""
  by_pretraining = [fit_pretraining_slopes(gaps) for gaps in tasks]
  means, seeds_of = average_seeds([fit_seed_slopes(gaps) for gaps in tasks], by_pretraining)
  # Without common seeds, the slope is that of the mean gaps.
  slopes = means.values or [_fit_line(gaps, _average_gaps(gaps)) for gaps in tasks]
  levels = min(map(_count_levels, tasks))
  notes = []
  if levels == MIN_LEVELS:
    notes.append('two levels alone, so the form of the growth is unknown')
  if not means.values:
    notes.append('fewer than two common seeds of fine-tuning, so there is no interval')
  elif len(average_common_seeds(by_pretraining)) < 2:
    notes.append(
      'fewer than two seeds of pre-training in all levels, so the interval lacks their variance'
    )
  return Slope(
    *names,
    points=max(map(len, tasks)),
    levels=levels,
    tasks=len(tasks),
    seeds=means.n,
    seeds_of=seeds_of,
    slope=float(np.mean(slopes)),
    low=means.low,
    high=means.high,
    note='; '.join(notes),
  )
