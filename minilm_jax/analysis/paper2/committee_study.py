"""Compares committees with a deep model by score and latency.

A committee predicts by the mean probability of its members. Its members are pre-trained models with
one seed of fine-tuning. A folder of `minilm committee` thus has a committee for each seed, and
scores are paired by seed. The deep model is the deepest fine-tuned run without convolutions. It is
deeper than every member and, if possible, has as many training rows. Of several such runs, those
with the most pre-training count.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.paper2.latencies import LatencyRow, encode_latency_shape, find_slowest_pair
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.analysis.seed_groups import subtract_by_seed
from minilm_jax.analysis.training_sets import TrainingSet
from minilm_jax.core import files, paths, run_dir
from minilm_jax.core.errors import COUNT, NUMBER, TEXT, InputError
from minilm_jax.tasks import committee_scores, metrics

KIND, STUDY = 'committee', 'committee.json'
NEEDED = 'committees of two or more members, some with convolutions, for two seeds of fine-tuning'
NEEDED_DEEP = 'a deeper model without convolutions that is fine-tuned on the same task'
# Needed fields of classifier.json; the step of a start from scratch is -1.
_CARD = {
  **{'task': TEXT, 'headline': TEXT, 'seed': COUNT, 'step': NUMBER},
  'model': {'num_layers': COUNT, 'convolutions': COUNT},
}


@dataclasses.dataclass(frozen=True)
class CommitteeRow(committee_scores.SubsetScore):
  """A line of committee.json with the committee's name and task."""

  committee: str
  task: str
  members: int
  heads: tuple[int, ...]
  examples: int


def read_committee_rows(run_paths: Mapping[str, epath.Path]) -> list[CommitteeRow]:
  """Returns the lines of committee.json of every committee that has this file.

  Raises:
    InputError: committee.json is damaged or lacks a field.
  """
  rows = []
  for name, path in runs.select_kind(run_paths, KIND).items():
    if not (path / STUDY).exists():
      continue
    study = files.read_object(path / STUDY, f'the study of the committee {path}')
    try:
      # Committees of earlier versions have one head a member.
      heads = tuple(study.get('heads') or (1,) * study['members'])
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
    folder: name of the run.
    headline: metric of the task.
    seed: seed of fine-tuning of all members.
    shapes: sorted shapes of the members, of `latencies.encode_latency_shape`.
    layers: largest number of layers of a member.
    has_convolutions: a member has convolutions.
    checkpoints: names of the pre-training runs of the members, as far as they are among the runs.
    rows: rows of the training set of the members; 0 if unknown or different.
    values: scores of committees of 1, 2, ... members, averaged over subsets.
    collapsed: number of members with constant predictions.
  """

  folder: str
  task: str
  split: str
  examples: int
  headline: str
  seed: int
  shapes: tuple[str, ...]
  layers: int
  has_convolutions: bool
  checkpoints: tuple[str, ...]
  rows: int
  values: tuple[float, ...]
  collapsed: int

  @property
  def value(self) -> float:
    """Score of all members together."""
    return self.values[-1]

  @property
  def test(self) -> tuple[str, str, str, int]:
    """Task, metric, split and number of examples, which comparable scores share."""
    return self.task, self.headline, self.split, self.examples

  def has_same_test(self, row: ScoreRow) -> bool:
    """Returns whether a row has scores on the same examples by the same metric."""
    return row.headline and (row.task, row.metric, row.split, row.examples) == self.test

  def is_shallower(self, training_set: TrainingSet) -> bool:
    """Returns whether the model of a run is deeper than all members and has no convolutions."""
    model = training_set.model  # recipes of old runs lack the field `convolutions`
    return not model.get('convolutions') and model['num_layers'] > self.layers


@dataclasses.dataclass(frozen=True)
class CommitteeComparison:
  """Committees with members of the same shapes, against the deep model.

  Attributes:
    differences: score of the committee minus the deep model, by task and seed.
    collapsed: number of members and deep models with constant predictions.
    deep_shape: shape of the deep model; '' if missing.
    missing: runs that are needed for a difference, or ''.
  """

  differences: Mapping[str, Mapping[int, float]]
  collapsed: int
  shapes: tuple[str, ...]
  deep_shape: str
  missing: str


def read_seed_committees(
  run_paths: Mapping[str, epath.Path], sets: Mapping[str, TrainingSet]
) -> list[SeedCommittee]:
  """Returns the committees of two or more members in finished folders, by seed and split.

  Raises:
    InputError: a file of a member is missing.
  """
  by_path = {
    paths.resolve_links(run_paths[name]): training_set for name, training_set in sets.items()
  }
  committees = []
  for name, path in runs.select_kind(run_paths, KIND).items():
    if (path / run_dir.RESULT).exists():
      committees += _read_folder(name, path, by_path)
  return committees


def read_members(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the entries of the members in the manifest of a committee.

  Raises:
    InputError: the manifest is damaged.
  """
  schema = {'members': [{'folder': TEXT, 'checkpoint?': TEXT}]}
  return files.read_object(path / run_dir.MANIFEST, f'the members of {path}', schema)['members']


def find_source(path: epath.Path, member: Mapping[str, Any]) -> str:
  """Returns the path of the run of a member in the manifest of a committee; '' without a name."""
  return run_dir.find_source(path, member, str(member.get('checkpoint', '')))


def _read_folder(
  name: str, path: epath.Path, sets: Mapping[str, TrainingSet]
) -> Iterator[SeedCommittee]:
  entries, subject = read_members(path), f'a member of the committee {path}'
  cards = [
    files.read_object(path / entry['folder'] / run_dir.CLASSIFIER, subject, _CARD)
    for entry in entries
  ]
  members = zip(cards, entries, strict=True)
  pretrained = [(card, entry) for card, entry in members if card['step'] >= 0]  # -1 from scratch
  by_seed = runs.group_by(pretrained, lambda member: member[0]['seed'])
  for seed, same_seed in by_seed.items():
    if len(same_seed) < 2:
      continue
    cards = [card for card, _ in same_seed]
    outputs = [committee_scores.read_outputs(path / entry['folder']) for _, entry in same_seed]
    sources = [paths.resolve_links(find_source(path, entry)) for _, entry in same_seed]
    starts = [sets[source] for source in sources if source in sets]
    rows = {start.rows for start in starts}
    for split in sorted(set.intersection(*map(set, outputs))):
      labels = outputs[0][split][1]
      if not all(np.array_equal(arrays[split][1], labels) for arrays in outputs):
        continue  # members with different examples make no committee
      logits = np.stack([arrays[split][0] for arrays in outputs])
      yield SeedCommittee(
        folder=name,
        task=cards[0]['task'],
        split=split,
        examples=len(labels),
        headline=cards[0]['headline'],
        seed=seed,
        shapes=tuple(sorted(encode_latency_shape(card['model']) for card in cards)),
        layers=max(card['model']['num_layers'] for card in cards),
        has_convolutions=any(card['model']['convolutions'] for card in cards),
        checkpoints=tuple(dict.fromkeys(start.name for start in starts)),
        rows=starts[0].rows if len(starts) == len(cards) and len(rows) == 1 else 0,
        values=_score_sizes(logits, labels, cards[0]['headline']),
        collapsed=sum(metrics.is_constant(member_logits.argmax(-1)) for member_logits in logits),
      )


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
  committees: Sequence[SeedCommittee], rows: Sequence[ScoreRow], sets: Mapping[str, TrainingSet]
) -> CommitteeComparison:
  """Returns the comparison of the largest committees with convolutional members and a deep model.

  Of several kinds of committees of one size, the kind with the most tasks and seeds counts.
  """
  kinds = runs.group_by(
    (committee for committee in committees if committee.has_convolutions),
    lambda committee: committee.shapes,
  )
  missing = CommitteeComparison({}, 0, (), '', NEEDED)
  for shapes, same_kind in sorted(
    kinds.items(), key=lambda kind: (-len(kind[0]), -len(kind[1]), kind[1][0].folder)
  ):
    differences, deep_shape = {}, ''
    collapsed = sum(committee.collapsed for committee in same_kind)
    for (task, split), same_task in group_by_task(same_kind).items():
      rivals = _select_deepest(same_task[0], rows, sets)
      if not rivals:
        continue
      by_committee = average_by_seed((committee.seed, committee.value) for committee in same_task)
      by_deep = average_by_seed(item for row in rivals for item in row.pretrained.by_seed.items())
      folders = ', '.join(dict.fromkeys(committee.folder for committee in same_task))
      checkpoints = ', '.join(dict.fromkeys(row.checkpoint for row in rivals))
      name = f'{task}, {split}: {folders} against {checkpoints}'
      differences[name] = subtract_by_seed(by_committee, by_deep)
      collapsed += sum(row.pretrained.collapsed for row in rivals)
      deep_shape = encode_latency_shape(sets[rivals[0].checkpoint].model)
    if differences:
      return CommitteeComparison(differences, collapsed, shapes, deep_shape, '')
    missing = CommitteeComparison({}, 0, shapes, '', NEEDED_DEEP)
  return missing


def group_by_task(
  committees: Iterable[SeedCommittee],
) -> dict[tuple[str, str], list[SeedCommittee]]:
  """Returns the committees by task and split."""
  return runs.group_by(committees, lambda committee: (committee.task, committee.split))


def _select_deepest(
  committee: SeedCommittee, rows: Sequence[ScoreRow], sets: Mapping[str, TrainingSet]
) -> list[ScoreRow]:
  """Returns the rows of the deepest runs with scores on the same examples.

  Of these runs, those with the most pre-training count.
  """
  candidates = [
    row
    for row in rows
    if committee.has_same_test(row)
    and row.checkpoint in sets
    and row.pretrained.n
    and committee.is_shallower(sets[row.checkpoint])
  ]
  same_rows = [row for row in candidates if sets[row.checkpoint].rows == committee.rows]
  by_rank = runs.group_by(
    same_rows or candidates,
    lambda row: (sets[row.checkpoint].model['num_layers'], sets[row.checkpoint].rows_seen),
  )
  return by_rank[max(by_rank)] if by_rank else []


def average_by_seed(scored: Iterable[tuple[int, float]]) -> dict[int, float]:
  """Returns the mean score of each seed, from pairs of seed and score."""
  by_seed = runs.group_by(scored, lambda pair: pair[0])
  return {seed: float(np.mean([score for _, score in pairs])) for seed, pairs in by_seed.items()}


def compare_latency(
  comparison: CommitteeComparison, latencies: Sequence[LatencyRow]
) -> tuple[tuple[float, float, float], str, str]:
  """Returns the ratio of latencies at batch size 1, committee over deep model.

  The fastest strategy of the committee counts and, of several runs, the largest ratio. The interval
  is conservative, as its ends are ratios of the ends of both intervals.

  Returns:
    The ratio with the ends of its interval, the names of the contestants, and the missing runs.
  """
  size = len(comparison.shapes)
  shape = comparison.shapes[0] if len(set(comparison.shapes)) == 1 else ''
  if pair := find_slowest_pair(latencies, (shape, size, 1), comparison.deep_shape):
    row, deep = pair
    return (
      (row.median / deep.median, row.low / deep.high, row.high / deep.low),
      f'latency: {row.name} against {deep.name} in {row.run}',
      '',
    )
  missing = 'latencies of this committee and of the deep model (minilm latency --workdir)'
  if size and not shape:
    missing = 'a latency of a committee whose members have one shape'
  return (math.nan, math.nan, math.nan), '', missing
