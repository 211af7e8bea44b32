"""Committees against the deep model: who is compared with whom, paired by the seed of fine-tuning.

A committee here is what the pre-trained members of one seed of fine-tuning say together, by their
mean probability: a folder that `minilm committee` made from several pre-trainings, each fine-tuned
with several seeds, holds one of each seed, and folders of one seed each are as good. The deep one
is the deepest run without convolutions that was fine-tuned on the task, deeper than every member,
on as many rows as the members where there is one.

Only files are read: what members said of the reported examples is in their outputs.npz.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import runs, scores
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.analysis.pretraining_gap import TrainingSet
from minilm_jax.analysis.runs import LatencyRow
from minilm_jax.analysis.scores import TUNINGS, ScoreRow
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import committee_scores, metrics

KIND, CARD, OUTPUTS = 'committee', 'classifier.json', 'outputs.npz'
NEEDED = 'committees with convolutional members: two or more of each of two seeds of fine-tuning'


@dataclasses.dataclass(frozen=True)
class SeedCommittee:
  """The members of one seed in one folder, on one reported split.

  Attributes:
    folder: the committee's name among the runs.
    task, split, examples, headline: what it was scored on, and the metric.
    seed: of fine-tuning, of all its members.
    shapes: of its members, one each, as `latencies.shape` writes them, in ascending order.
    layers: the most blocks among its members.
    convolved: has one of its members convolutions? Of the five that paper 2 released four have.
    checkpoints: the pre-training runs of its members, by name, each once; of those that are not
      among the runs none.
    rows: that the pre-training of its members saw in its set; 0 where they differ or are not among
      the runs.
    values: scores of 1, 2 and at last all of its members: the mean over subsets of each size, by
      the mean probability.
    collapsed: members that gave one answer to everything.
  """

  folder: str
  task: str
  split: str
  examples: int
  headline: str
  seed: int
  shapes: tuple[str, ...]
  layers: int
  convolved: bool
  checkpoints: tuple[str, ...]
  rows: int
  values: tuple[float, ...]
  collapsed: int

  @property
  def value(self) -> float:
    """The score of the whole committee."""
    return self.values[-1]


@dataclasses.dataclass(frozen=True)
class CommitteeComparison:
  """Committees of one kind, by the shapes of their members, against the deep model.

  Attributes:
    differences: the committee's score less the deep model's, by seed, by what it is of in words: a
      task each.
    collapsed: members and runs among them that gave one answer to everything.
    shapes, deep: of one committee's members, and of the deep model; '' of what there is not.
    missing: what there would have to be for a difference.
  """

  differences: Mapping[str, Mapping[int, float]]
  collapsed: int
  shapes: tuple[str, ...]
  deep: str
  missing: str


def read_committees(
  found: Mapping[str, epath.Path], there: Mapping[str, TrainingSet]
) -> list[SeedCommittee]:
  """The committees of every folder, by seed and split, of two members or more.

  Args:
    found: runs by name; of a folder that was cut short there is none.
    there: the pre-training runs among them.

  Raises:
    InputError: a folder that lacks a file of a member.
  """
  trained = {str(found[name].resolve()): one for name, one in there.items()}
  made = []
  for name, path in found.items():
    if runs.read_kind(path) == KIND and (path / run_dir.RESULT).exists():
      made += _seeded(name, path, trained)
  return made


def _seeded(
  name: str, path: epath.Path, trained: Mapping[str, TrainingSet]
) -> Iterator[SeedCommittee]:
  by_seed: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
  for one in files.read_json(path / run_dir.MANIFEST, f'the members of {path}')['members']:
    folder = path / one['folder']
    card = files.read_json(folder / CARD, f'a member of the committee {path}')
    if card['step'] >= 0:  # from scratch it is -1
      by_seed.setdefault(card['seed'], []).append((card, _outputs(folder / OUTPUTS)))
  for seed, members in by_seed.items():
    cards, said = zip(*members, strict=True)
    if len(members) < 2:
      continue
    paths = [str(epath.Path(card['checkpoint']).resolve()) for card in cards]
    starts = [trained[path] for path in paths if path in trained]
    rows = (
      starts[0].rows
      if len(starts) == len(cards) and len({start.rows for start in starts}) == 1
      else 0
    )
    for split in sorted(set.intersection(*(set(one) for one in said))):
      labels = said[0][split][1]
      if not all(np.array_equal(one[split][1], labels) for one in said):
        continue  # they were reported on other examples
      logits, headline = np.stack([one[split][0] for one in said]), cards[0]['headline']
      yield SeedCommittee(
        name,
        cards[0]['task'],
        split,
        len(labels),
        headline,
        seed,
        tuple(sorted(runs.latency_shape(card['model']) for card in cards)),
        max(card['model']['num_layers'] for card in cards),
        any(card['model']['convolutions'] for card in cards),
        tuple(dict.fromkeys(start.name for start in starts)),
        rows,
        _by_size(logits, labels, headline),
        sum(metrics.is_constant(one.argmax(-1)) for one in logits),
      )


def _by_size(logits: np.ndarray, labels: np.ndarray, headline: str) -> tuple[float, ...]:
  def score(subset: tuple[int, ...]) -> float:
    answers = committee_scores.combine_outputs(
      logits[list(subset)], committee_scores.PROBABILITY
    ).argmax(-1)
    return metrics.compute_metric((headline,), answers, labels)[headline]

  return tuple(
    float(np.mean([score(subset) for subset in committee_scores.draw_subsets(len(logits), size)]))
    for size in range(1, len(logits) + 1)
  )


def _outputs(path: epath.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """What a member said of each split, and the right labels."""
  if not path.exists():
    raise InputError(
      f'a member of the committee {path.parent.parent}',
      f'no file {path}',
      'copy the folder again, whole',
    )
  with path.open('rb') as file, np.load(file, allow_pickle=False) as found:
    splits = [name.removesuffix(' outputs') for name in found if name.endswith(' outputs')]
    return {split: (found[f'{split} outputs'], found[f'{split} labels']) for split in splits}


def compare_with_deep(
  made: Sequence[SeedCommittee], rows: Sequence[ScoreRow], there: Mapping[str, TrainingSet]
) -> CommitteeComparison:
  """The largest committees with convolutional members that a deeper run can be compared with, task
  by task.

  Of several kinds of one size the one with the most tasks and seeds counts, then the first by name.

  Args:
    made: of `committees`.
    rows: of `scores.select_main`, for the deep model.
    there: pre-training runs by name.
  """
  kinds: dict[tuple[str, ...], list[SeedCommittee]] = {}
  for one in made:
    if one.convolved:
      kinds.setdefault(one.shapes, []).append(one)
  without = CommitteeComparison({}, 0, (), '', NEEDED)
  for shapes, own in sorted(
    kinds.items(), key=lambda kind: (-len(kind[0]), -len(kind[1]), kind[1][0].folder)
  ):
    differences, collapsed, deep = {}, sum(one.collapsed for one in own), ''
    for task, split in dict.fromkeys((one.task, one.split) for one in own):
      some = [one for one in own if (one.task, one.split) == (task, split)]
      rivals = _deepest(some[0], rows, there)
      by_seed = _by_seed([{one.seed: one.value} for one in some])
      theirs = _by_seed([dict(zip(row.pretrained.seeds, row.pretrained.values)) for row in rivals])
      if rivals:
        names = [
          ', '.join(dict.fromkeys(names))
          for names in ((one.folder for one in some), (row.checkpoint for row in rivals))
        ]
        differences[f'{task}, {split}: {" against ".join(names)}'] = {
          seed: by_seed[seed] - theirs[seed] for seed in sorted(by_seed.keys() & theirs.keys())
        }
        collapsed += sum(row.pretrained.collapsed for row in rivals)
        deep = runs.latency_shape(there[rivals[0].checkpoint].model)
    if differences:
      return CommitteeComparison(differences, collapsed, shapes, deep, '')
    without = CommitteeComparison(
      {}, 0, shapes, '', 'a deeper model without convolutions, fine-tuned on the same task'
    )
  return without


def _deepest(
  one: SeedCommittee, rows: Sequence[ScoreRow], there: Mapping[str, TrainingSet]
) -> list[ScoreRow]:
  """The rows of the deepest runs that were scored on the same examples."""
  fit = [
    row
    for row in rows
    if row.headline
    and row.checkpoint in there
    and row.pretrained.n
    and (row.task, row.metric, row.split, row.examples)
    == (one.task, one.headline, one.split, one.examples)
    and there[row.checkpoint].model['num_layers'] > one.layers
    and there[row.checkpoint].plain
  ]
  same = [row for row in fit if there[row.checkpoint].rows == one.rows]
  fit = same or fit
  most = max((there[row.checkpoint].model['num_layers'] for row in fit), default=0)
  return [row for row in fit if there[row.checkpoint].model['num_layers'] == most]


def _by_seed(each: Sequence[Mapping[int, float]]) -> dict[int, float]:
  """The mean of what there is of each seed."""
  seeds = sorted({seed for one in each for seed in one})
  return {seed: float(np.mean([one[seed] for one in each if seed in one])) for seed in seeds}


def compare_latency(
  contest: CommitteeComparison, timed: Sequence[LatencyRow]
) -> tuple[tuple[float, float, float], str, str]:
  """The committee's latency over the deep model's at batch 1: value, low and high; what it is of;
  what is missing.

  The committee's is that of its fastest way. The ends are quotients of the ends of both medians'
  intervals, so that the interval is rather too wide; where several machines or times were measured,
  the largest ratio counts.
  """
  shape = contest.shapes[0] if len(set(contest.shapes)) == 1 else ''
  pairs = []
  for name in dict.fromkeys(row.run for row in timed):
    own = [row for row in timed if row.run == name and row.batch == 1 and row.heads == 1]
    whole = [row for row in own if row.shape == shape and row.members == len(contest.shapes)]
    deep = [row for row in own if row.shape == contest.deep and row.members == 1]
    if whole and deep:
      pairs.append((min(whole, key=lambda row: row.median), deep[0]))
  if pairs and shape:
    ours, theirs = max(pairs, key=lambda pair: pair[0].median / pair[1].median)
    return (
      (ours.median / theirs.median, ours.low / theirs.high, ours.high / theirs.low),
      f'latency: {ours.name} against {theirs.name} in {ours.run}',
      '',
    )
  missing = (
    'a latency: members of several shapes are not timed together'
    if contest.shapes and not shape
    else 'a latency of this committee and of the deep model: minilm latency --workdir'
  )
  return (math.nan, math.nan, math.nan), '', missing


# The committee beside what the same training, the same parameters or the same time would have
# bought instead.
TRAINING, PARAMETERS, LATENCY = COSTS = ('training FLOPs', 'parameters', 'latency')


@dataclasses.dataclass(frozen=True)
class Match:
  """One rival and the committee of nearest cost.

  Attributes:
    task: with the split.
    rival, cost: who, and one of `COSTS`.
    members, of: size of the committee, and of the largest that its members make.
    ratio: the committee's cost over the rival's.
    committee, theirs: mean scores over the seeds that both have, as shares.
    difference, low, high: the committee's less the rival's, with its 95% interval; nan of one seed.
    seeds: that both have.
  """

  task: str
  rival: str
  cost: str
  members: int
  of: int
  ratio: float
  committee: float
  theirs: float
  difference: float
  low: float
  high: float
  seeds: int


@dataclasses.dataclass(frozen=True)
class _Side:
  """A contestant on one task: its costs, nan of those that are not known, and its score by seed."""

  name: str
  costs: Mapping[str, float]
  scores: Mapping[int, float]


def find_matches(
  contest: CommitteeComparison,
  made: Sequence[SeedCommittee],
  rows: Sequence[ScoreRow],
  there: Mapping[str, TrainingSet],
  curves: Sequence[LossCurve],
  timed: Sequence[LatencyRow],
) -> list[Match]:
  """Every rival of the committee of a contest at every cost that is known of both.

  Args:
    contest: of `contests.contest`, on the same arguments.
    made: of `contests.committees`.
    rows: of `scores.select_main`.
    there: pre-training runs by name.
    curves: of `grid.read_runs`, for what the runs cost.
    timed: of `latencies.read_latencies`.
  """
  by_name, found = {curve.name: curve for curve in curves}, []
  own = [one for one in made if contest.deep and one.convolved and one.shapes == contest.shapes]
  for task, split in dict.fromkeys((one.task, one.split) for one in own):
    some = [one for one in own if (one.task, one.split) == (task, split)]
    sides = [
      _part(some, size, by_name, timed, contest.deep) for size in range(1, len(contest.shapes) + 1)
    ]
    for rival in _rivals(some[0], made, rows, there, by_name, timed, contest.deep):
      if sides[0].scores.keys() & rival.scores.keys():
        found += [
          _match(f'{task}, {split}', rival, cost, sides)
          for cost in COSTS
          if any(math.isfinite(side.costs[cost] / rival.costs[cost]) for side in sides)
        ]
  return found


def _part(
  some: Sequence[SeedCommittee],
  size: int,
  curves: Mapping[str, LossCurve],
  timed: Sequence[LatencyRow],
  deep: str,
) -> _Side:
  """So many members of the committees of one task, one a seed."""
  first = some[0]
  starts = [curves[name] for name in first.checkpoints if name in curves]
  share = size / len(starts) if len(starts) == len(first.shapes) else math.nan
  shape = first.shapes[0] if len(set(first.shapes)) == 1 else ''
  return _Side(
    first.folder,
    _costs(starts, share, size, _over_deep(timed, deep, shape, size)),
    {one.seed: one.values[size - 1] for one in some},
  )


def _rivals(
  one: SeedCommittee,
  made: Sequence[SeedCommittee],
  rows: Sequence[ScoreRow],
  there: Mapping[str, TrainingSet],
  curves: Mapping[str, LossCurve],
  timed: Sequence[LatencyRow],
  deep: str,
) -> Iterator[_Side]:
  """The rivals on the examples that a committee was scored on."""
  place = one.task, one.split, one.examples, one.headline
  for row in rows:
    name, _, heads = (
      row.checkpoint.rpartition(', ')
      if row.checkpoint.endswith(' heads')
      else (row.checkpoint, '', '')
    )
    if (
      not row.headline
      or (row.task, row.split, row.examples, row.metric) != place
      or name not in there
    ):
      continue
    start = there[name]
    if name in curves and (
      name in one.checkpoints if heads else start.plain and start.model['num_layers'] > one.layers
    ):
      latency = _over_deep(
        timed, deep, runs.latency_shape(start.model), 1, int(heads.split()[0]) if heads else 1
      )
      yield _Side(
        row.checkpoint,
        _costs([curves[name]], 1, 1, latency),
        dict(zip(row.pretrained.seeds, row.pretrained.values, strict=True)),
      )
  several: dict[str, list[SeedCommittee]] = {}
  for other in made:
    if (
      (other.task, other.split, other.examples, other.headline) == place
      and not other.convolved
      and (other.layers > one.layers)
    ):
      several.setdefault(other.folder, []).append(other)
  for folder, some in several.items():
    part = _part(some, len(some[0].shapes), curves, timed, deep)
    yield dataclasses.replace(part, name=f'{folder}, a committee of {len(some[0].shapes)}')


def _costs(
  starts: Sequence[LossCurve], share: float, members: int, latency: float
) -> dict[str, float]:
  """Of a share of some pre-training runs, and of so many models of their size."""
  if not starts:
    return {TRAINING: math.nan, PARAMETERS: math.nan, LATENCY: latency}
  training = sum(
    float(start.flops(ACTUAL)[-1]) if ACTUAL in start.flops_per_row else math.nan
    for start in starts
  )
  return {
    TRAINING: share * training,
    PARAMETERS: float(members * np.mean([start.parameters for start in starts])),
    LATENCY: latency,
  }


def _over_deep(
  timed: Sequence[LatencyRow], deep: str, shape: str, members: int, heads: int = 1
) -> float:
  """The fastest way's median at batch 1 over that of the deep model in the same measurement, the
  largest of several.
  """
  found = []
  for name in dict.fromkeys(row.run for row in timed):
    own = [row for row in timed if row.run == name and row.batch == 1]
    ours = [
      row.median for row in own if (row.shape, row.members, row.heads) == (shape, members, heads)
    ]
    theirs = [row.median for row in own if (row.shape, row.members, row.heads) == (deep, 1, 1)]
    found += [min(ours) / theirs[0]] if ours and theirs else []
  return max(found, default=math.nan)


def _match(task: str, rival: _Side, cost: str, sides: Sequence[_Side]) -> Match:
  ratios = {size: side.costs[cost] / rival.costs[cost] for size, side in enumerate(sides, 1)}
  known = [size for size, ratio in ratios.items() if math.isfinite(ratio)]
  size = min(known, key=lambda size: abs(math.log(ratios[size])))
  ours, theirs = sides[size - 1].scores, rival.scores
  both = scores.make_contrast(
    [(theirs[seed], ours[seed]) for seed in sorted(ours.keys() & theirs.keys())], TUNINGS
  )
  return Match(
    task,
    rival.name,
    cost,
    size,
    len(sides),
    ratios[size],
    both.value,
    both.base,
    both.difference,
    both.low,
    both.high,
    both.n,
  )
