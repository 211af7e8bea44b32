"""The gap between pre-trained and from scratch, by size of the pre-training set and by its overlap
with the task.

The second paper claims that the gap grows with both. A point is one pre-training run and one task:
the score pre-trained less that from scratch, paired by the seed of fine-tuning. Comparable runs
share the model and the tokenizer, and

- by size, also the rows that they saw (same updates) or how often they saw each (same epochs); no
  task selected their corpus. If neither is shared, the name of the comparison says so.
- by overlap, the size within a hundredth and the rows that they saw: runs of `minilm
  overlap-subsets`, on the task whose training texts the overlap is with.

The line is least squares through the runs: score for a doubling of the tokens, or for 0.01 of
overlap. Its interval resamples the seeds of fine-tuning, the same ones for all runs; runs of one
size if there are several; and for all tasks together the tasks too. With one pre-training run a size
the interval lacks the variance of pre-training, and with few seeds it is too narrow.

An arm from scratch that a run lacks is that of another run of the same model and tokenizer: a fresh
encoder depends on its seed alone.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from minilm_jax.analysis import runs
from minilm_jax.analysis.loss_curves import RUN_ERRORS
from minilm_jax.analysis.scores import Difference, Group, ScoreRow, compute_difference
from minilm_jax.core import model_config, old_names, run_dir
from minilm_jax.core.errors import InputError

SIZE, OVERLAP = 'size', 'overlap'  # axes
MIN_LEVELS = 2  # of a line
_POINTS = 100  # a slope by overlap is for 0.01
# Nearer levels are one: doublings of tokens, and points of overlap.
_MIN_LEVEL_DISTANCE = {SIZE: 0.02, OVERLAP: 0.2}
_SAME_SIZE_FACTOR = 1.01  # sizes that differ by a smaller factor are one
_TASK_SELECTIONS = ('overlap', 'likelihood')  # methods of `minilm overlap-subsets` that see a task


@dataclasses.dataclass(frozen=True)
class Gap:
  """One point of one comparison; scores are shares or correlations.

  Attributes:
    axis: SIZE or OVERLAP.
    series: the task, its metric and split.
    comparison: the shape, and what else the runs share.
    borrowed: is the arm from scratch that of another run?
    seeds, values: the differences of each seed, if they are paired.
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
  seeds: tuple[int, ...]
  values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Slope:
  """A line through the points of one comparison: score for a doubling of tokens, or for 0.01 of
  overlap.

  Attributes:
    axis, series, comparison: of its points; a series of several tasks is their mean.
    points, levels: runs, and distinct sizes or overlaps among them.
    tasks, seeds: of the slope; seeds are those of fine-tuning that all runs have.
    slope: least squares.
    low, high: the middle 95% over resamples; nan of one seed and one task.
    note: limits of the estimate, or ''.
  """

  axis: str
  series: str
  comparison: str
  points: int
  levels: int
  tasks: int
  seeds: int
  slope: float
  low: float
  high: float
  note: str


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """The training set of a pre-training run.

  Attributes:
    name: of the run.
    shape: of the model, in short.
    key: everything that fine-tuning from scratch depends on.
    rows, tokens: of the corpus or its subset, pads not counted.
    of_rows: rows of the whole training split.
    seen: rows over the whole run.
    task, overlap: the task whose training texts the overlap is with, and the overlap; '' and nan if
      not measured.
    selected: were the rows chosen by a task?
    corpus, whole: hashes of the corpus and of the corpus that it is a subset of, which may be the same.
  """

  name: str
  shape: str
  key: str
  rows: int
  tokens: int
  of_rows: int
  seen: int
  task: str
  overlap: float
  selected: bool
  corpus: str
  whole: str

  @property
  def model(self) -> dict[str, Any]:
    """The shape in full, as a recipe has it."""
    return json.loads(self.key)[0]

  @property
  def plain(self) -> bool:
    """Has it no convolutions?"""
    return not self.model.get('convolutions')  # old runs lack the field

  @property
  def epochs(self) -> float:
    """How often each row was seen."""
    return self.seen / self.rows


@dataclasses.dataclass(frozen=True)
class GapStudy:
  """The gaps and slopes; empty if no two sizes or overlaps compare."""

  points: Sequence[Gap]
  slopes: Sequence[Slope]
  left_out: Sequence[str]


def find_gaps(
  found: Mapping[str, epath.Path], rows: Iterable[ScoreRow], draws: int = 1000
) -> GapStudy:
  """Returns the points of every comparison that has two sizes or two overlaps, and their lines.

  Args:
    found: runs by name.
    rows: of `scores.select_main`: one row a task, checkpoint and protocol.
    draws: resamples for each interval.

  Raises:
    InputError: a file of a run is damaged.
  """
  sets = {training_set.name: training_set for training_set in read_training_sets(found)}
  points: list[Gap] = []
  by_series, left_out = select_single_rows(rows, sets)
  for series, single in by_series.items():
    for axis in (SIZE, OVERLAP):
      gaps = list(_find_series_gaps(axis, series, single, sets))
      points += gaps
      # Runs on a subset, or with an overlap, are meant for a comparison along this axis.
      num_meant = sum(
        bool(sets[name].task) if axis == OVERLAP else sets[name].rows < sets[name].of_rows
        for name in single
      )
      if num_meant and not gaps:
        left_out.append(
          f'the gap of {series} by {axis}: {num_meant} of these runs, and no two that share model, '
          f'tokenizer and training differ in their {axis} and have both arms'
        )
  return GapStudy(points, fit_slopes(points, draws), left_out)


def select_single_rows(
  rows: Iterable[ScoreRow], sets: Mapping[str, TrainingSet]
) -> tuple[dict[str, dict[str, ScoreRow]], list[str]]:
  """Returns the headline rows of some runs by series and run, and the omissions, where nothing chose
  between several rows.
  """
  by_series: dict[str, dict[str, list[ScoreRow]]] = {}
  for row in rows:
    if row.headline and row.checkpoint in sets:
      series = (
        f'{row.task}{" (filtered)" if row.filtered else ""}, {row.metric}, {row.split}, '
        f'{row.train_examples:,} training examples'
      )
      by_series.setdefault(series, {}).setdefault(row.checkpoint, []).append(row)
  single: dict[str, dict[str, ScoreRow]] = {}
  left_out = []
  for series, by_name in by_series.items():
    single[series] = {name: several[0] for name, several in by_name.items() if len(several) == 1}
    left_out += [
      f'the gap of {series} from {name}: {len(several)} rows that nothing chose between'
      for name, several in by_name.items()
      if len(several) > 1
    ]
  return single, left_out


def read_training_sets(found: Mapping[str, epath.Path]) -> Iterator[TrainingSet]:
  """Yields the training set of each pre-training run whose manifest has it.

  Raises:
    InputError: a file of a run is damaged.
  """
  for name, path in found.items():
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    if runs.read_kind(path) != 'pretrain' or 'training' not in manifest:
      continue
    try:
      yield _make_training_set(name, config, manifest)
    except RUN_ERRORS as error:
      reason = f'no {error}' if isinstance(error, KeyError) else str(error)
      raise InputError(
        f'the training set of {path}',
        f'{reason} in its {run_dir.CONFIG} or {run_dir.MANIFEST}',
        'restore both, or leave the run out: another version may have written it',
      ) from None


def _make_training_set(
  name: str, config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> TrainingSet:
  training, subset = manifest['training'], manifest['training']['subset']
  rows, tokens, of_rows = (int(training[field]) for field in ('rows', 'tokens', 'of_rows'))
  model = {**old_names.ADDED_FIELDS['model'], **config['model']}
  corpus = str(manifest['corpus'])
  if min(rows, tokens) < 1:
    raise ValueError(f'{rows} rows of {tokens} tokens')
  return TrainingSet(
    name=name,
    shape=model_config.short_shape(model),
    key=json.dumps([model, manifest['tokenizer']], sort_keys=True),
    rows=rows,
    tokens=tokens,
    of_rows=of_rows,
    seen=int(config['num_steps']) * int(config['batch_size']),
    task=str(subset['task']) if subset else '',
    overlap=float(subset['overlap']['value']) if subset else math.nan,
    selected=bool(subset) and subset['by'] in _TASK_SELECTIONS,
    corpus=corpus,
    whole=str(subset['of']) if subset else corpus,
  )


def find_other_sets(sets: Iterable[TrainingSet]) -> dict[str, str]:
  """Returns the runs that a scaling study leaves out, with the reason: it compares models that were
  trained on one set.

  Of the subsets of one corpus, and the corpus itself, the largest that a run was trained on stays.
  """
  families: dict[str, dict[tuple[int, str], list[str]]] = {}
  for training_set in sets:
    key = (training_set.rows, training_set.corpus)
    families.setdefault(training_set.whole, {}).setdefault(key, []).append(training_set.name)
  return {
    name: f'{name}: trained on {key[0]:,} rows, and the study of a grid is of models that were '
    f'trained on one set, here {max(by_set)[0]:,} rows'
    for by_set in families.values()
    for key, names in by_set.items()
    if key != max(by_set)
    for name in names
  }


def _find_series_gaps(
  axis: str, series: str, rows: Mapping[str, ScoreRow], sets: Mapping[str, TrainingSet]
) -> Iterator[Gap]:
  """Yields the points of one series along one axis, by model and tokenizer, then by comparison."""
  by_key: dict[str, list[TrainingSet]] = {}
  for name, row in rows.items():
    training_set = sets[name]
    if (not training_set.selected) if axis == SIZE else (training_set.task == row.task):
      by_key.setdefault(training_set.key, []).append(training_set)
  shapes: list[str] = []
  for key, same_model in by_key.items():
    shape = same_model[0].shape
    shapes.append(shape)
    if shapes.count(shape) > 1:  # another tokenizer, or another field of the model
      shape += f' ({shapes.count(shape)})'
    scratch = next(
      (rows[name].scratch for name in rows if sets[name].key == key and rows[name].scratch.n), None
    )
    complete = [
      training_set
      for training_set in same_model
      if rows[training_set.name].pretrained.n and (scratch or rows[training_set.name].scratch.n)
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
  borrowed: Group | None,
) -> Gap:
  pretrained, scratch, difference = row.pretrained, row.scratch, row.difference
  if not scratch.n and borrowed is not None:
    scratch, difference = borrowed, compute_difference(pretrained, borrowed)
  values = np.subtract(pretrained.values, scratch.values).tolist() if difference.paired else ()
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
    gap=difference,
    borrowed=not row.scratch.n,
    seeds=pretrained.seeds if difference.paired else (),
    values=tuple(values),
  )


def _group_by_size(sets: Sequence[TrainingSet]) -> Iterator[tuple[str, list[TrainingSet]]]:
  """Yields runs of several sizes that saw as many rows, or each row as often; all of them if neither
  is shared.
  """
  is_shared = False
  for field, shared in (('seen', 'same updates'), ('epochs', 'same epochs')):
    groups = [group for group in _cluster(sets, field) if len(_cluster(group, 'tokens')) > 1]
    for group in groups:
      is_shared = True
      detail = f' ({group[0].epochs:.3g})'
      if field == 'seen':
        detail = f' ({group[0].seen:,} rows)' if len(groups) > 1 else ''
      yield shared + detail, group
  if not is_shared and len(_cluster(sets, 'tokens')) > 1:
    yield 'updates and epochs differ', list(sets)


def _group_by_overlap(sets: Sequence[TrainingSet]) -> Iterator[tuple[str, list[TrainingSet]]]:
  """Yields runs of one size that saw as many rows, and whose overlap differs."""
  for same_size in _cluster(sets, 'tokens'):
    for group in _cluster(same_size, 'seen'):
      if len({training_set.overlap for training_set in group}) > 1:
        yield f'{group[0].tokens:,} tokens', group


def _cluster(sets: Iterable[TrainingSet], field: str) -> list[list[TrainingSet]]:
  """Returns runs in the order of a field, parted where it grows by more than a hundredth."""
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


@dataclasses.dataclass(frozen=True)
class _Line:
  """The points of one series and comparison.

  Attributes:
    x: sizes or overlaps.
    y: gaps by seed; one row, the mean, if the seeds differ.
    levels: index of the distinct size or overlap of each point.
    seeds: of the rows of y; empty if the seeds differ.
  """

  x: Float[np.ndarray, 'R']
  y: Float[np.ndarray, 'S R']
  levels: Int[np.ndarray, 'R']
  seeds: Sequence[int]

  @property
  def num_levels(self) -> int:
    return int(self.levels.max()) + 1


def fit_slopes(points: Iterable[Gap], draws: int, seed: int = 0) -> list[Slope]:
  """Returns the line of each series and, if a comparison has several series, of their mean.

  Args:
    points: of `find_gaps`.
    draws, seed: of the resamples.
  """
  grouped: dict[tuple[str, str], dict[str, list[Gap]]] = {}
  for point in points:
    by_series = grouped.setdefault((point.axis, point.comparison), {})
    by_series.setdefault(point.series, []).append(point)
  slopes = []
  for (axis, comparison), by_series in grouped.items():
    lines = {series: _make_line(gaps) for series, gaps in by_series.items()}
    lines = {series: line for series, line in lines.items() if line.num_levels >= MIN_LEVELS}
    for series, line in lines.items():
      slopes.append(_fit_slope((axis, series, comparison), [line], draws, seed))
    if len(lines) > 1:
      series = f'mean of {len(lines)} tasks'
      slopes.append(_fit_slope((axis, series, comparison), list(lines.values()), draws, seed))
  return slopes


def fit_seed_slopes(points: Sequence[Gap]) -> dict[int, float]:
  """Returns the slope of each seed of fine-tuning that all points of one line have; empty if they
  are at one level.
  """
  line = _make_line(points)
  if line.num_levels < MIN_LEVELS:
    return {}
  return {seed: _fit_line(line.x, y) for seed, y in zip(line.seeds, line.y)}


def _make_line(points: Sequence[Gap]) -> _Line:
  axis = points[0].axis
  x = np.array(
    [math.log2(point.tokens) if axis == SIZE else _POINTS * point.overlap for point in points]
  )
  order = np.argsort(x, kind='stable')
  levels = np.empty(len(x), int)
  levels[order] = np.cumsum(np.diff(x[order], prepend=x[order[0]]) > _MIN_LEVEL_DISTANCE[axis])
  seeds = sorted(set.intersection(*(set(point.seeds) for point in points)))
  if len(seeds) > 1:
    by_seed = [dict(zip(point.seeds, point.values, strict=True)) for point in points]
    return _Line(x, np.array([[of[seed] for of in by_seed] for seed in seeds]), levels, seeds)
  means = [point.pretrained - point.scratch for point in points]
  return _Line(x, np.array([means]), levels, ())


def _fit_line(x: Float[np.ndarray, 'R'], y: Float[np.ndarray, 'R']) -> float:
  """Returns the slope of the least-squares line."""
  dx = x - x.mean()
  return float(dx @ y / (dx @ dx))


def _draw_slope(line: _Line, random: np.random.Generator) -> float:
  """Returns the slope of resampled seeds and, inside each level, of resampled runs."""
  seeds = random.integers(len(line.y), size=len(line.y))
  members = [np.flatnonzero(line.levels == level) for level in range(line.num_levels)]
  drawn = np.concatenate([random.choice(places, len(places)) for places in members])
  return _fit_line(line.x[drawn], line.y[seeds].mean(0)[drawn])


def _fit_slope(names: tuple[str, str, str], lines: Sequence[_Line], draws: int, seed: int) -> Slope:
  """Returns the mean slope of the lines of several tasks; names are axis, series and comparison."""
  low = high = math.nan
  if len(lines) > 1 or lines[0].seeds:
    random, slopes = np.random.default_rng(seed), []
    for _ in range(draws):
      tasks = random.integers(len(lines), size=len(lines)) if len(lines) > 1 else (0,)
      slopes.append(np.mean([_draw_slope(lines[task], random) for task in tasks]))
    low, high = (float(end) for end in np.percentile(slopes, (2.5, 97.5)))
  return Slope(
    *names,
    points=max(len(line.x) for line in lines),
    levels=min(line.num_levels for line in lines),
    tasks=len(lines),
    seeds=min(len(line.seeds) for line in lines),
    slope=float(np.mean([_fit_line(line.x, line.y.mean(0)) for line in lines])),
    low=low,
    high=high,
    note='; '.join(_list_notes(lines)),
  )


def _list_notes(lines: Sequence[_Line]) -> Iterator[str]:
  if any(line.num_levels == MIN_LEVELS for line in lines):
    yield 'two levels: nothing is known between or beyond them'
  if not all(line.seeds for line in lines):
    yield 'fewer than two seeds that all arms share: none were resampled'
  if all(len(line.x) == line.num_levels for line in lines):
    yield 'one pre-training run a level: what another would change is not in the interval'
