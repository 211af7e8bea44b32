"""Committees against the deep model, and against rivals of equal training FLOPs, parameters or
latency, paired by the seed of fine-tuning.

A committee is the mean probability of the pre-trained members of one seed of fine-tuning. A folder
of `minilm committee` with several pre-trainings, each fine-tuned with several seeds, holds one of
each seed; folders of one seed each are equivalent. The deep model is the deepest run without
convolutions that was fine-tuned on the task, deeper than every member, on as many rows as the
members if such a run exists.

Only files are read: the outputs of members on the reported examples are in their outputs.npz.
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
STUDY = 'committee.json'
NEEDED = 'committees of two or more members, some with convolutions, for two seeds of fine-tuning'
NEEDED_DEEP = 'a deeper model without convolutions that is fine-tuned on the same task'
TRAINING, PARAMETERS, LATENCY = COSTS = ('training FLOPs', 'parameters', 'latency')
BySeed = Mapping[int, float]  # scores by seed of fine-tuning


@dataclasses.dataclass(frozen=True)
class CommitteeRow(committee_scores.SubsetScore):
  """A line of committee.json with the committee's name and task.

  Attributes:
    committee: name of the run.
    task: name of the task.
    members: number of members.
    heads: number of heads of each member.
    examples: number of examples of the split.
  """

  committee: str
  task: str
  members: int
  heads: tuple[int, ...]
  examples: int


def read_committee_rows(run_paths: Mapping[str, epath.Path]) -> list[CommitteeRow]:
  """Returns the lines of committee.json of every committee that has this file.

  Args:
    run_paths: runs by name, of `runs.find_runs`.

  Raises:
    InputError: committee.json is damaged or lacks a field.
  """
  rows = []
  for name, path in run_paths.items():
    if runs.read_kind(path) != KIND or not (path / STUDY).exists():
      continue
    study = files.read_object(path / STUDY, f'the study of the committee {path}')
    try:
      # Committees of earlier versions have one head a member.
      heads = tuple(study['heads']) if 'heads' in study else (1,) * study['members']
      for line in study['lines']:
        numbers = {field: runs.to_float(line[field]) for field in ('mean', 'low', 'high')}
        rows.append(
          CommitteeRow(
            committee=name,
            task=study['task'],
            members=study['members'],
            heads=heads,
            examples=study['examples'][line['split']],
            **line | numbers,
          )
        )
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f'the study of the committee {path}',
        f'{STUDY} has no valid field {error}',
        'make the committee again with minilm committee',
      ) from None
  return rows


@dataclasses.dataclass(frozen=True)
class SeedCommittee:
  """The members of one seed in one folder, on one reported split.

  Attributes:
    folder: the committee's name among the runs.
    task, split, examples, headline: what it was scored on, and the metric.
    seed: of fine-tuning, of all its members.
    shapes: of its members, one each, as `runs.latency_shape` writes them, in ascending order.
    layers: the most blocks among its members.
    convolved: does one of its members have convolutions? Four of the five of paper 2 do.
    checkpoints: names of the pre-training runs of its members that are among the runs, each once.
    rows: of the training set of its members; 0 if they differ or are not among the runs.
    values: scores of 1, 2, ..., all members: the mean over subsets of each size, by the mean
      probability.
    collapsed: members with constant predictions.
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
    differences: the committee's score less the deep model's, by seed, by a description of each task.
    collapsed: members and runs among them with constant predictions.
    shapes, deep: of one committee's members, and of the deep model; '' if missing.
    missing: the runs that a difference lacks.
  """

  differences: Mapping[str, Mapping[int, float]]
  collapsed: int
  shapes: tuple[str, ...]
  deep: str
  missing: str


def read_seed_committees(
  found: Mapping[str, epath.Path], sets: Mapping[str, TrainingSet]
) -> list[SeedCommittee]:
  """Returns the committees of every folder, by seed and split, of two members or more.

  Args:
    found: runs by name; unfinished folders have none.
    sets: training sets of the pre-training runs among them.

  Raises:
    InputError: a folder lacks a file of a member.
  """
  by_path = {str(found[name].resolve()): training_set for name, training_set in sets.items()}
  committees = []
  for name, path in found.items():
    if runs.read_kind(path) == KIND and (path / run_dir.RESULT).exists():
      committees += _read_folder(name, path, by_path)
  return committees


def _read_folder(
  name: str, path: epath.Path, sets: Mapping[str, TrainingSet]
) -> Iterator[SeedCommittee]:
  by_seed: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
  for member in files.read_json(path / run_dir.MANIFEST, f'the members of {path}')['members']:
    folder = path / member['folder']
    card = files.read_json(folder / CARD, f'a member of the committee {path}')
    if card['step'] >= 0:  # -1 is from scratch
      by_seed.setdefault(card['seed'], []).append((card, _read_outputs(folder / OUTPUTS)))
  for seed, members in by_seed.items():
    if len(members) < 2:
      continue
    cards, outputs = zip(*members, strict=True)
    sources = [str(epath.Path(card['checkpoint']).resolve()) for card in cards]
    starts = [sets[source] for source in sources if source in sets]
    rows = {start.rows for start in starts}
    for split in sorted(set.intersection(*map(set, outputs))):
      labels = outputs[0][split][1]
      if not all(np.array_equal(of_member[split][1], labels) for of_member in outputs):
        continue  # the members were reported on different examples
      logits = np.stack([of_member[split][0] for of_member in outputs])
      yield SeedCommittee(
        folder=name,
        task=cards[0]['task'],
        split=split,
        examples=len(labels),
        headline=cards[0]['headline'],
        seed=seed,
        shapes=tuple(sorted(runs.latency_shape(card['model']) for card in cards)),
        layers=max(card['model']['num_layers'] for card in cards),
        convolved=any(card['model']['convolutions'] for card in cards),
        checkpoints=tuple(dict.fromkeys(start.name for start in starts)),
        rows=starts[0].rows if len(starts) == len(cards) and len(rows) == 1 else 0,
        values=_score_sizes(logits, labels, cards[0]['headline']),
        collapsed=sum(metrics.is_constant(of_member.argmax(-1)) for of_member in logits),
      )


def _read_outputs(path: epath.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns the outputs of a member and the labels, by split."""
  if not path.exists():
    raise InputError(
      f'a member of the committee {path.parent.parent}',
      f'no file {path}',
      'copy the folder again, whole',
    )
  with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
    splits = [name.removesuffix(' outputs') for name in arrays if name.endswith(' outputs')]
    return {split: (arrays[f'{split} outputs'], arrays[f'{split} labels']) for split in splits}


def _score_sizes(logits: np.ndarray, labels: np.ndarray, headline: str) -> tuple[float, ...]:
  def score(subset: tuple[int, ...]) -> float:
    probabilities = committee_scores.combine_outputs(
      logits[list(subset)], committee_scores.PROBABILITY
    )
    return metrics.compute_metric((headline,), probabilities.argmax(-1), labels)[headline]

  return tuple(
    float(np.mean([score(subset) for subset in committee_scores.draw_subsets(len(logits), size)]))
    for size in range(1, len(logits) + 1)
  )


def compare_with_deep(
  committees: Sequence[SeedCommittee],
  rows: Sequence[ScoreRow],
  sets: Mapping[str, TrainingSet],
) -> CommitteeComparison:
  """Returns the largest committees with convolutional members that have a deeper run to compare.

  Of several kinds of one size the one with the most tasks and seeds counts, then the first by name.

  Args:
    committees: of `read_seed_committees`.
    rows: of `scores.select_main`, for the deep model.
    sets: training sets of the pre-training runs by name.
  """
  kinds: dict[tuple[str, ...], list[SeedCommittee]] = {}
  for committee in committees:
    if committee.convolved:
      kinds.setdefault(committee.shapes, []).append(committee)
  without = CommitteeComparison({}, 0, (), '', NEEDED)
  for shapes, of_kind in sorted(
    kinds.items(), key=lambda kind: (-len(kind[0]), -len(kind[1]), kind[1][0].folder)
  ):
    differences, deep = {}, ''
    collapsed = sum(committee.collapsed for committee in of_kind)
    for (task, split), of_task in _group_by_task(of_kind).items():
      rivals = _select_deepest(of_task[0], rows, sets)
      if not rivals:
        continue
      ours = _average_by_seed([{committee.seed: committee.value} for committee in of_task])
      theirs = _average_by_seed([row.pretrained.by_seed for row in rivals])
      folders = ', '.join(dict.fromkeys(committee.folder for committee in of_task))
      checkpoints = ', '.join(dict.fromkeys(row.checkpoint for row in rivals))
      differences[f'{task}, {split}: {folders} against {checkpoints}'] = {
        seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())
      }
      collapsed += sum(row.pretrained.collapsed for row in rivals)
      deep = runs.latency_shape(sets[rivals[0].checkpoint].model)
    if differences:
      return CommitteeComparison(differences, collapsed, shapes, deep, '')
    without = CommitteeComparison({}, 0, shapes, '', NEEDED_DEEP)
  return without


def _group_by_task(
  committees: Sequence[SeedCommittee],
) -> dict[tuple[str, str], list[SeedCommittee]]:
  by_task: dict[tuple[str, str], list[SeedCommittee]] = {}
  for committee in committees:
    by_task.setdefault((committee.task, committee.split), []).append(committee)
  return by_task


def _is_same_test(row: ScoreRow, committee: SeedCommittee) -> bool:
  """Returns whether a row and a committee were scored on the same examples by the same metric."""
  return row.headline and (row.task, row.metric, row.split, row.examples) == (
    committee.task,
    committee.headline,
    committee.split,
    committee.examples,
  )


def _is_deeper(training_set: TrainingSet, committee: SeedCommittee) -> bool:
  return training_set.plain and training_set.model['num_layers'] > committee.layers


def _select_deepest(
  committee: SeedCommittee, rows: Sequence[ScoreRow], sets: Mapping[str, TrainingSet]
) -> list[ScoreRow]:
  """Returns the rows of the deepest runs that were scored on the same examples."""
  candidates = [
    row
    for row in rows
    if _is_same_test(row, committee)
    and row.checkpoint in sets
    and row.pretrained.n
    and _is_deeper(sets[row.checkpoint], committee)
  ]
  same_rows = [row for row in candidates if sets[row.checkpoint].rows == committee.rows]
  layers = {id(row): sets[row.checkpoint].model['num_layers'] for row in same_rows or candidates}
  deepest = max(layers.values(), default=0)
  return [row for row in same_rows or candidates if layers[id(row)] == deepest]


def _average_by_seed(scores_by_seed: Sequence[BySeed]) -> dict[int, float]:
  """Returns the mean of the scores of each seed."""
  seeds = sorted({seed for by_seed in scores_by_seed for seed in by_seed})
  return {
    seed: float(np.mean([by_seed[seed] for by_seed in scores_by_seed if seed in by_seed]))
    for seed in seeds
  }


def compare_latency(
  comparison: CommitteeComparison, timed: Sequence[LatencyRow]
) -> tuple[tuple[float, float, float], str, str]:
  """Returns the committee's latency over the deep model's at batch 1: value, low and high; the
  contestants; and the missing measurements.

  The committee's is that of its fastest way. The ends are quotients of the ends of both medians'
  intervals, so that the interval is too wide rather than too narrow; of several measurements the
  largest ratio counts.
  """
  shape = comparison.shapes[0] if len(set(comparison.shapes)) == 1 else ''
  pairs = []
  for of_run in _group_single_batch(timed):
    one_head = [row for row in of_run if row.heads == 1]
    whole = [
      row for row in one_head if row.shape == shape and row.members == len(comparison.shapes)
    ]
    deep = [row for row in one_head if row.shape == comparison.deep and row.members == 1]
    if whole and deep:
      pairs.append((min(whole, key=lambda row: row.median), deep[0]))
  if pairs and shape:
    ours, theirs = max(pairs, key=lambda pair: pair[0].median / pair[1].median)
    return (
      (ours.median / theirs.median, ours.low / theirs.high, ours.high / theirs.low),
      f'latency: {ours.name} against {theirs.name} in {ours.run}',
      '',
    )
  missing = 'a latency of this committee and of the deep model: minilm latency --workdir'
  if comparison.shapes and not shape:
    missing = 'a latency: members of several shapes are not timed together'
  return (math.nan, math.nan, math.nan), '', missing


def _group_single_batch(timed: Sequence[LatencyRow]) -> list[list[LatencyRow]]:
  """Returns the rows of batch 1 of each latency run."""
  by_run: dict[str, list[LatencyRow]] = {}
  for row in timed:
    if row.batch == 1:
      by_run.setdefault(row.run, []).append(row)
  return list(by_run.values())


@dataclasses.dataclass(frozen=True)
class Match:
  """One rival and the committee of nearest cost.

  Attributes:
    task: with the split.
    rival, cost: name of the rival, and one of `COSTS`.
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
class _Contestant:
  """A committee or a rival on one task: its costs, nan if unknown, and its score by seed."""

  name: str
  costs: Mapping[str, float]
  scores: BySeed


@dataclasses.dataclass(frozen=True)
class Measurements:
  """The runs that costs and rivals come from.

  Attributes:
    committees: of `read_seed_committees`.
    rows: of `scores.select_main`.
    sets: training sets of the pre-training runs by name.
    curves: of `loss_curves.read_runs`, by name, for the costs of the runs.
    timed: of `runs.read_latencies`.
    deep: shape of the deep model.
  """

  committees: Sequence[SeedCommittee]
  rows: Sequence[ScoreRow]
  sets: Mapping[str, TrainingSet]
  curves: Mapping[str, LossCurve]
  timed: Sequence[LatencyRow]
  deep: str

  def relative_latency(self, shape: str, members: int, heads: int = 1) -> float:
    """Returns the fastest way's median at batch 1 over that of the deep model in the same
    measurement, the largest of several.
    """
    ratios = []
    for of_run in _group_single_batch(self.timed):
      medians: dict[tuple[str, int, int], list[float]] = {}
      for row in of_run:
        medians.setdefault((row.shape, row.members, row.heads), []).append(row.median)
      ours, theirs = medians.get((shape, members, heads)), medians.get((self.deep, 1, 1))
      if ours and theirs:
        ratios.append(min(ours) / theirs[0])
    return max(ratios, default=math.nan)


def find_matches(comparison: CommitteeComparison, measurements: Measurements) -> list[Match]:
  """Returns every rival of the committee at every cost that is known of both.

  Args:
    comparison: of `compare_with_deep`, on the same runs.
    measurements: with the deep model of the comparison.
  """
  matches = []
  compared = [
    committee
    for committee in measurements.committees
    if comparison.deep and committee.convolved and committee.shapes == comparison.shapes
  ]
  for (task, split), of_task in _group_by_task(compared).items():
    by_size = [
      _make_contestant(of_task, size, measurements) for size in range(1, len(comparison.shapes) + 1)
    ]
    for rival in _find_rivals(of_task[0], measurements):
      if by_size[0].scores.keys() & rival.scores.keys():
        for cost in COSTS:
          match = _match_cost(f'{task}, {split}', rival, cost, by_size)
          matches += [match] if match is not None else []
  return matches


def _make_contestant(
  committees: Sequence[SeedCommittee], size: int, measurements: Measurements
) -> _Contestant:
  """Returns committees of one task, one a seed, with only `size` of their members."""
  first = committees[0]
  curves = measurements.curves
  starts = [curves[name] for name in first.checkpoints if name in curves]
  share = size / len(starts) if len(starts) == len(first.shapes) else math.nan
  shape = first.shapes[0] if len(set(first.shapes)) == 1 else ''
  return _Contestant(
    first.folder,
    _list_costs(starts, share, size, measurements.relative_latency(shape, size)),
    {committee.seed: committee.values[size - 1] for committee in committees},
  )


def _find_rivals(committee: SeedCommittee, measurements: Measurements) -> Iterator[_Contestant]:
  """Yields the deeper runs, the members with several heads and the deeper committees that were
  scored on the examples of a committee.
  """
  for row in measurements.rows:
    name, heads = row.checkpoint, 1
    if row.checkpoint.endswith(' heads'):
      name, _, suffix = row.checkpoint.rpartition(', ')
      heads = int(suffix.split()[0])
    if not _is_same_test(row, committee) or not (
      name in measurements.sets and name in measurements.curves
    ):
      continue
    start = measurements.sets[name]
    has_heads = name != row.checkpoint
    if name in committee.checkpoints if has_heads else _is_deeper(start, committee):
      latency = measurements.relative_latency(runs.latency_shape(start.model), 1, heads)
      costs = _list_costs([measurements.curves[name]], 1, 1, latency)
      yield _Contestant(row.checkpoint, costs, row.pretrained.by_seed)
  by_folder: dict[str, list[SeedCommittee]] = {}
  test = (committee.task, committee.split, committee.examples, committee.headline)
  for other in measurements.committees:
    is_deeper = not other.convolved and other.layers > committee.layers
    if is_deeper and (other.task, other.split, other.examples, other.headline) == test:
      by_folder.setdefault(other.folder, []).append(other)
  for folder, others in by_folder.items():
    size = len(others[0].shapes)
    contestant = _make_contestant(others, size, measurements)
    yield dataclasses.replace(contestant, name=f'{folder}, a committee of {size}')


def _list_costs(
  starts: Sequence[LossCurve], share: float, members: int, latency: float
) -> dict[str, float]:
  """Returns the costs of a share of some pre-training runs, and of some models of their size."""
  training = parameters = math.nan
  if starts:
    parameters = float(members * np.mean([start.parameters for start in starts]))
    training = share * sum(
      float(start.flops(ACTUAL)[-1]) if ACTUAL in start.flops_per_row else math.nan
      for start in starts
    )
  return {TRAINING: training, PARAMETERS: parameters, LATENCY: latency}


def _match_cost(
  task: str, rival: _Contestant, cost: str, by_size: Sequence[_Contestant]
) -> Match | None:
  """Returns the rival and the committee of nearest cost; None if a cost is unknown."""
  ratios = {size: ours.costs[cost] / rival.costs[cost] for size, ours in enumerate(by_size, 1)}
  known = [size for size, ratio in ratios.items() if math.isfinite(ratio)]
  if not known:
    return None
  size = min(known, key=lambda size: abs(math.log(ratios[size])))
  ours, theirs = by_size[size - 1].scores, rival.scores
  seeds = sorted(ours.keys() & theirs.keys())
  contrast = scores.make_contrast([(theirs[seed], ours[seed]) for seed in seeds], TUNINGS)
  return Match(
    task=task,
    rival=rival.name,
    cost=cost,
    members=size,
    of=len(by_size),
    ratio=ratios[size],
    committee=contrast.value,
    theirs=contrast.base,
    difference=contrast.difference,
    low=contrast.low,
    high=contrast.high,
    seeds=contrast.n,
  )
