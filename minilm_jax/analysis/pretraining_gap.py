"""The gap between pre-trained and not, against what was pre-trained on: its size, and its overlap
with the task.

The second paper says that the gap grows with the pre-training set and with token overlap. A point
here is one pre-training run and one task: the score pre-trained less that from scratch, paired by
the seed of fine-tuning. Runs are compared that share the model and the tokenizer, and

- by size, also either the rows that they saw (same updates) or how often they saw each (same
epochs), and whose corpus
  was not selected by a task. Where neither is shared, size and training go together, and it is
  said.
- by overlap, the size within a hundredth and the rows that they saw: those of `minilm
overlap-subsets`, on the task whose
  training texts the overlap is with.

The line is that of least squares through the runs: score for a doubling of the tokens, or for 0.01
of overlap. Its interval resamples the seeds of fine-tuning, the same ones for all runs; runs of one
size, where there are several; and for all tasks together the tasks too. With one pre-training run a
size the interval does not hold what another pre-training would have changed, and one of few seeds
is too narrow.

Sizes and overlap are those that a run's manifest has. An arm from scratch that a run lacks is that
of another run of the same model and tokenizer: a fresh encoder depends on its seed alone.
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
from minilm_jax.analysis.scores import Difference, Group, ScoreRow, compute_difference
from minilm_jax.core import model_config, old_names, run_dir
from minilm_jax.core.errors import InputError

# Points of the gap and lines through them: how steep, and how sure that is. `gap.py` says which
# runs compare.
SIZE, OVERLAP = 'size', 'overlap'  # axes
MIN_LEVELS = 2  # levels of one of them
_POINT = 100  # a slope by overlap is for 0.01
_SAME = {
  SIZE: 0.02,
  OVERLAP: 0.2,
}  # doublings, and points of overlap: levels that are nearer are one


@dataclasses.dataclass(frozen=True)
class Gap:
  """One point of one comparison; scores are shares or correlations.

  Attributes:
    axis: SIZE or OVERLAP.
    series: the task, its metric and split.
    comparison: the shape, and what else the runs share.
    borrowed: is the arm from scratch that of another run?
    seeds, values: the differences of each seed, where they are paired.
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
  """A line through the points of one comparison; shares of a score for a doubling of tokens, or for
  0.01 of overlap.

  Attributes:
    axis, series, comparison: as of its points; a series of several tasks is their mean.
    points, levels: runs, and sizes or overlaps among them.
    tasks, seeds: that the slope is of; seeds are those of fine-tuning that all runs have.
    slope: least squares.
    low, high: the middle 95% over resamples; nan where there is one seed and one task.
    note: what keeps it from saying more, or ''.
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
class _Series:
  """The points of one series and comparison: `x [R]`, and `y [S R]` by seed, one row alone where
  seeds differ.
  """

  x: Float[np.ndarray, 'R']
  y: Float[np.ndarray, 'S R']
  levels: Int[np.ndarray, 'R']
  paired: bool


def fit_slopes(points: Iterable[Gap], draws: int, seed: int = 0) -> list[Slope]:
  """The line of each series and, where a comparison has several series, of their mean.

  Args:
    points: of `gap.find_gaps`.
    draws, seed: of the resamples, which the seed decides.
  """
  grouped: dict[tuple[str, str], dict[str, list[Gap]]] = {}
  for point in points:
    grouped.setdefault((point.axis, point.comparison), {}).setdefault(point.series, []).append(
      point
    )
  found = []
  for (axis, comparison), by_series in grouped.items():
    ready = {name: _ready(axis, own) for name, own in by_series.items()}
    ready = {name: one for name, one in ready.items() if one.levels.max() + 1 >= MIN_LEVELS}
    for name, one in ready.items():
      found.append(_slope(axis, name, comparison, [one], draws, seed))
    if len(ready) > 1:
      found.append(
        _slope(axis, f'mean of {len(ready)} tasks', comparison, list(ready.values()), draws, seed)
      )
  return found


def fit_seed_slopes(own: Sequence[Gap]) -> dict[int, float]:
  """The slope of each seed of fine-tuning that all points of one line have; none where they are at
  one level.
  """
  one = _ready(own[0].axis, own)
  if one.levels.max() + 1 < MIN_LEVELS or not one.paired:
    return {}
  return {seed: _fit(one.x, y) for seed, y in zip(_common(own), one.y, strict=True)}


def _common(own: Sequence[Gap]) -> list[int]:
  return sorted(set.intersection(*(set(point.seeds) for point in own)))


def _ready(axis: str, own: Sequence[Gap]) -> _Series:
  x = np.array(
    [math.log2(point.tokens) if axis == SIZE else _POINT * point.overlap for point in own]
  )
  order = np.argsort(x, kind='stable')
  levels = np.empty(len(x), int)
  levels[order] = np.cumsum(np.diff(x[order], prepend=x[order[0]]) > _SAME[axis])
  common = _common(own)
  if len(common) > 1:
    values = [dict(zip(point.seeds, point.values, strict=True)) for point in own]
    return _Series(x, np.array([[of[one] for of in values] for one in common]), levels, True)
  return _Series(x, np.array([[point.pretrained - point.scratch for point in own]]), levels, False)


def _fit(x: Float[np.ndarray, 'R'], y: Float[np.ndarray, 'R']) -> float:
  """The slope of the least-squares line."""
  dx = x - x.mean()
  return float(dx @ y / (dx @ dx))


def _drawn(one: _Series, random: np.random.Generator) -> float:
  """The slope of resampled seeds and, inside each level that has several, resampled runs."""
  seeds = random.integers(len(one.y), size=len(one.y))
  runs = np.concatenate(
    [
      random.choice(np.flatnonzero(one.levels == level), int((one.levels == level).sum()))
      for level in range(one.levels.max() + 1)
    ]
  )
  return _fit(one.x[runs], one.y[seeds].mean(0)[runs])


def _slope(
  axis: str, name: str, comparison: str, several: Sequence[_Series], draws: int, seed: int
) -> Slope:
  value = float(np.mean([_fit(one.x, one.y.mean(0)) for one in several]))
  low = high = math.nan
  if len(several) > 1 or several[0].paired:
    random, made = np.random.default_rng(seed), []
    for _ in range(draws):
      tasks = random.integers(len(several), size=len(several)) if len(several) > 1 else (0,)
      made.append(np.mean([_drawn(several[task], random) for task in tasks]))
    low, high = (float(end) for end in np.percentile(made, (2.5, 97.5)))
  levels = min(int(one.levels.max()) + 1 for one in several)
  return Slope(
    axis,
    name,
    comparison,
    max(len(one.x) for one in several),
    levels,
    len(several),
    min(len(one.y) if one.paired else 0 for one in several),
    value,
    low,
    high,
    '; '.join(_notes(several)),
  )


def _notes(several: Sequence[_Series]) -> Iterator[str]:
  if any(int(one.levels.max()) + 1 == MIN_LEVELS for one in several):
    yield 'two levels: nothing is known between or beyond them'
  if not all(one.paired for one in several):
    yield 'fewer than two seeds that all arms share: none were resampled'
  if all(len(one.x) == int(one.levels.max()) + 1 for one in several):
    yield 'one pre-training run a level: what another would change is not in the interval'


_SAME_SIZE_FACTOR = 1.01  # sizes that differ by a smaller factor are one
_SELECTED = ('overlap', 'likelihood')  # ways of `minilm overlap-subsets` that look at a task


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """What a pre-training run was trained on.

  Attributes:
    name: of the run.
    shape: of the model, in short; `key` is all that fine-tuning from scratch depends on.
    rows, tokens: of the corpus, or the part of it, pads not counted; `of_rows` are those of the
    whole training split.
    seen: rows over the whole run.
    task, overlap: whose training texts the overlap is with, and how much it is; '' and nan where
    none was measured.
    selected: were the rows chosen by a task?
    corpus, whole: hashes of the corpus and of the one that it is a part of, which may be the same.
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
    return not (
      'convolutions' in self.model and self.model['convolutions']
    )  # runs from before there were any

  @property
  def epochs(self) -> float:
    """How often each row was seen."""
    return self.seen / self.rows


@dataclasses.dataclass(frozen=True)
class GapStudy:
  """All that is said about the gap; nothing where no two sizes or overlaps compare."""

  points: Sequence[Gap]
  slopes: Sequence[Slope]
  left_out: Sequence[str]


def find_gaps(
  found: Mapping[str, epath.Path], rows: Iterable[ScoreRow], draws: int = 1000
) -> GapStudy:
  """The points of every comparison that has two sizes or two overlaps, and their lines.

  Args:
    found: runs by name.
    rows: of `scores.select_main`: one row a task, checkpoint and protocol.
    draws: resamples for each interval.

  Raises:
    InputError: a file of a run is damaged.
  """
  there = {one.name: one for one in read_training_sets(found)}
  points: list[Gap] = []
  by_series, left_out = select_single_rows(rows, there)
  for series, single in by_series.items():
    for axis in (SIZE, OVERLAP):
      made = list(_points(axis, series, single, there))
      points += made
      wanted = [there[name] for name in single if _is_part(there[name], axis)]
      if wanted and not made:
        left_out.append(
          f'the gap of {series} by {axis}: {len(wanted)} of these runs, and no two that share model, '
          f'tokenizer and training differ in their {axis} and have both arms'
        )
  return GapStudy(points, fit_slopes(points, draws), left_out)


def select_single_rows(
  rows: Iterable[ScoreRow], there: Mapping[str, TrainingSet]
) -> tuple[dict[str, dict[str, ScoreRow]], list[str]]:
  """The headline rows of some runs by series and run, and which are left out because nothing chose
  between several.
  """
  found: dict[str, dict[str, list[ScoreRow]]] = {}
  for row in rows:
    if row.headline and row.checkpoint in there:
      found.setdefault(_series(row), {}).setdefault(row.checkpoint, []).append(row)
  left_out = [
    f'the gap of {series} from {name}: {len(own)} rows that nothing chose between'
    for series, of in found.items()
    for name, own in of.items()
    if len(own) > 1
  ]
  return {
    series: {name: own[0] for name, own in of.items() if len(own) == 1}
    for series, of in found.items()
  }, left_out


def read_training_sets(found: Mapping[str, epath.Path]) -> Iterator[TrainingSet]:
  """What each pre-training run among these was trained on; runs of versions that did not write it
  are left out.
  """
  for name, path in found.items():
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    if runs.read_kind(path) == 'pretrain' and 'training' in manifest:
      try:
        yield _trained(name, config, manifest)
      except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        found = f'no {error}' if isinstance(error, KeyError) else str(error)
        raise InputError(
          f'what {path} was trained on',
          f'{found} in its {run_dir.CONFIG} or {run_dir.MANIFEST}',
          'restore both, or leave the run out: another version may have written it',
        ) from None


def _trained(name: str, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> TrainingSet:
  model, of, part = config['model'], manifest['training'], manifest['training']['subset']
  shape = model_config.short_shape(model)
  key = json.dumps(
    [{**old_names.ADDED_FIELDS['model'], **model}, manifest['tokenizer']], sort_keys=True
  )
  rows, tokens, of_rows = (int(of[field]) for field in ('rows', 'tokens', 'of_rows'))
  if min(rows, tokens) < 1:
    raise ValueError(f'{rows} rows of {tokens} tokens')
  return TrainingSet(
    name,
    shape,
    key,
    rows,
    tokens,
    of_rows,
    int(config['num_steps']) * int(config['batch_size']),
    str(part['task']) if part else '',
    float(part['overlap']['value']) if part else math.nan,
    bool(part) and part['by'] in _SELECTED,
    str(manifest['corpus']),
    str(part['of']) if part else str(manifest['corpus']),
  )


def find_other_sets(there: Iterable[TrainingSet]) -> dict[str, str]:
  """Runs that the study of a grid must leave out, and why: it compares models, which is fair on one
  set alone.

  Of the parts of one corpus, and the corpus itself, the largest that a run was trained on stays.
  """
  families: dict[str, dict[tuple[int, str], list[str]]] = {}
  for one in there:
    families.setdefault(one.whole, {}).setdefault((one.rows, one.corpus), []).append(one.name)
  return {
    name: f'{name}: trained on {rows:,} rows, and the study of a grid is of models that were trained on one set, '
    f'here {max(sets)[0]:,} rows'
    for sets in families.values()
    for (rows, corpus), names in sets.items()
    if (rows, corpus) != max(sets)
    for name in names
  }


def _is_part(one: TrainingSet, axis: str) -> bool:
  """Was the run made for a comparison along this axis?"""
  return bool(one.task) if axis == OVERLAP else one.rows < one.of_rows


def _series(row: ScoreRow) -> str:
  return (
    f'{row.task}{" (filtered)" if row.filtered else ""}, {row.metric}, {row.split}, '
    f'{row.train_examples:,} training examples'
  )


def _points(
  axis: str, series: str, rows: Mapping[str, ScoreRow], there: Mapping[str, TrainingSet]
) -> Iterator[Gap]:
  """The points of one series along one axis: first the model and the tokenizer, then what else is
  shared.
  """
  by_key: dict[str, list[TrainingSet]] = {}
  task = next((row.task for row in rows.values()), '')
  for name in rows:
    one = there[name]
    if axis == SIZE and not one.selected or axis == OVERLAP and one.task == task:
      by_key.setdefault(one.key, []).append(one)
  shapes = [own[0].shape for own in by_key.values()]
  for number, (key, own) in enumerate(by_key.items()):
    twin = shapes.index(own[0].shape) < number
    shape = f'{own[0].shape} ({shapes[:number].count(own[0].shape) + 1})' if twin else own[0].shape
    scratch = next(
      (rows[name].scratch for name in rows if there[name].key == key and rows[name].scratch.n), None
    )
    complete = [
      one for one in own if rows[one.name].pretrained.n and (scratch or rows[one.name].scratch.n)
    ]
    for shared, some in _by_size(complete) if axis == SIZE else _by_overlap(complete):
      for one in sorted(
        some, key=lambda one: (one.tokens if axis == SIZE else one.overlap, one.name)
      ):
        yield _gap(axis, series, f'{shape}, {shared}', one, rows[one.name], scratch)


def _gap(
  axis: str, series: str, comparison: str, one: TrainingSet, row: ScoreRow, other: Group | None
) -> Gap:
  scratch = row.scratch if row.scratch.n else other
  found = row.difference if row.scratch.n else compute_difference(row.pretrained, scratch)
  seeds = row.pretrained.seeds if found.paired else ()
  values = (
    tuple(np.subtract(row.pretrained.values, scratch.values).tolist()) if found.paired else ()
  )
  return Gap(
    axis,
    series,
    comparison,
    one.name,
    one.rows,
    one.tokens,
    one.epochs,
    one.overlap,
    row.pretrained.mean,
    scratch.mean,
    found,
    not row.scratch.n,
    seeds,
    values,
  )


def _by_size(own: Sequence[TrainingSet]) -> Iterator[tuple[str, list[TrainingSet]]]:
  """Runs of several sizes that saw as many rows, or each row as often; all of them where neither is
  shared.
  """
  some = False
  for what, clusters in (
    ('same updates', _clusters(own, 'seen')),
    ('same epochs', _clusters(own, 'epochs')),
  ):
    several = [cluster for cluster in clusters if len(_clusters(cluster, 'tokens')) > 1]
    for cluster in several:
      some = True
      one = cluster[0]
      yield (
        what
        + (
          f' ({one.seen:,} rows)'
          if len(several) > 1 and what == 'same updates'
          else f' ({one.epochs:.3g})'
          if what == 'same epochs'
          else ''
        ),
        cluster,
      )
  if not some and len(_clusters(own, 'tokens')) > 1:
    yield 'updates and epochs differ', list(own)


def _by_overlap(own: Sequence[TrainingSet]) -> Iterator[tuple[str, list[TrainingSet]]]:
  """Runs of one size that saw as many rows, and whose overlap differs."""
  for size in _clusters(own, 'tokens'):
    for cluster in _clusters(size, 'seen'):
      if len({one.overlap for one in cluster}) > 1:
        yield f'{cluster[0].tokens:,} tokens', cluster


def _clusters(own: Iterable[TrainingSet], field: str) -> list[list[TrainingSet]]:
  """Runs in the order of a field, parted where it grows by more than a hundredth."""
  found: list[list[TrainingSet]] = []
  for one in sorted(own, key=lambda one: (getattr(one, field), one.name)):
    if found and getattr(one, field) <= _SAME_SIZE_FACTOR * getattr(found[-1][-1], field):
      found[-1].append(one)
    else:
      found.append([one])
  return found
