"""Soft committees: fine-tuned classifiers of one task that answer together (paper 2, soft
committee).

A committee is a folder that holds everything, copies of its members included, so it is its own
export: it works wherever it is copied to.

    config.json      kind, task and labels, and where the members came from
    manifest.json    identity, shape and seed of each member; parameters of all
    classifier-0 ... the members, as `classifiers.py` saves them
    committee.json   scores of its subsets (`subsets.py`) on the examples that the members were reported on
    result.json      the whole committee in a few numbers

Members stand in the order of their identities, so that the order in which they are named changes no
bit of an answer. They may differ in shape and in how many heads they have; task, labels and
tokenizer must be the same. Training members together is left out.
"""

import dataclasses
import functools
import glob
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from rich import table as rich_table

from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import TEXT
from minilm_jax.model.heads import Classifier
from minilm_jax.tasks import classifier, metrics
from minilm_jax.tasks.classifier import SavedClassifier
from minilm_jax.tasks.examples import Examples
from minilm_jax.tasks.metrics import softmax
from minilm_jax.tasks.task import REGRESSION

# What a committee gains with its size: scores of subsets of its members, from what each said of the
# same examples.
MAX_SUBSETS, _SEED = 100, 0
LOGIT, PROBABILITY, MEMBERS = 'mean logit', 'mean probability', 'members'
_QUALITY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
  'negative log-likelihood': metrics.negative_log_likelihood,
  'calibration error': metrics.calibration_error,
  'Brier score': metrics.brier_score,
}
DISAGREEMENT = 'disagreement'


@dataclasses.dataclass(frozen=True)
class SubsetScore:
  """One number: a metric of committees of one size, combined in one way.

  `mean` is over the subsets, `low` and `high` hold their middle 95% (nan of one subset), `every`
  says whether all subsets of that size were taken.
  """

  split: str
  size: int
  combined: str
  metric: str
  headline: bool
  mean: float
  low: float
  high: float
  subsets: int
  every: bool


def combine_outputs(logits: Float[np.ndarray, 'M N C'], how: str) -> Float[np.ndarray, 'N C']:
  """Probabilities of a committee from its members' logits: softmax of their mean, or the mean of
  their softmax.
  """
  return softmax(np.mean(logits, 0, np.float64)) if how == LOGIT else softmax(logits).mean(0)


def draw_subsets(members: int, size: int, most: int = MAX_SUBSETS) -> list[tuple[int, ...]]:
  """Subsets of a size, each in ascending order: all, or `most` different ones of a fixed seed.

  >>> draw_subsets(3, 2)
  [(0, 1), (0, 2), (1, 2)]
  """
  if math.comb(members, size) <= most:
    return list(itertools.combinations(range(members), size))
  random, found = np.random.default_rng([_SEED, members, size]), dict[tuple[int, ...], None]()
  while len(found) < most:
    found[tuple(sorted(random.choice(members, size, replace=False).tolist()))] = None
  return list(found)


def measure_disagreement(logits: Float[np.ndarray, 'M N C']) -> Float[np.ndarray, 'M M']:
  """For each two members the share of examples that they put into different classes."""
  said = logits.argmax(-1)
  return (said[:, None] != said[None]).mean(-1)


def study_sizes(
  logits: Float[np.ndarray, 'M N C'],
  labels: Int[np.ndarray, 'N'],
  headline: str,
  split: str,
  most: int = MAX_SUBSETS,
) -> list[SubsetScore]:
  """Scores of committees of every size up to M.

  Args:
    logits: of every member on the same examples.
    labels: class indices.
    headline: the metric of the task; accuracy is there too.
    split: the name of the examples.
    most: subsets of a size, at most.

  Raises:
    InputError: no members, or logits that are no numbers.
  """
  if not len(logits) or not np.isfinite(logits).all():
    found = 'logits that are no numbers' if len(logits) else 'no members'
    raise InputError(
      f'scores of a committee on {split}', found, 'leave the members out whose loss was no number'
    )
  names = tuple(dict.fromkeys((headline, 'accuracy')))
  alone = [_scores(softmax(one), labels, names) for one in logits]
  apart = measure_disagreement(logits)
  lines = []
  for size in range(1, len(logits) + 1):
    some = draw_subsets(len(logits), size, most)
    every = len(some) == math.comb(len(logits), size)
    columns: dict[tuple[str, str], list[float]] = {}
    for subset in some:
      for key, value in _of_subset(logits, labels, names, alone, apart, subset):
        columns.setdefault(key, []).append(value)
    for (how, metric), values in columns.items():
      lines.append(
        SubsetScore(
          split,
          size,
          how,
          metric,
          metric == headline,
          float(np.mean(values)),
          *_range(values),
          len(some),
          every,
        )
      )
  return lines


def _of_subset(
  logits: np.ndarray,
  labels: np.ndarray,
  names: tuple[str, ...],
  alone: Sequence[dict[str, float]],
  apart: np.ndarray,
  subset: Sequence[int],
) -> Iterator[tuple[tuple[str, str], float]]:
  """(how, metric) and value of one committee."""
  for how in (LOGIT, PROBABILITY):
    for metric, value in _scores(combine_outputs(logits[list(subset)], how), labels, names).items():
      yield (how, metric), value
  for metric in alone[0]:
    yield (MEMBERS, metric), float(np.mean([alone[member][metric] for member in subset]))
  if len(subset) > 1:
    pairs = list(itertools.combinations(subset, 2))
    yield (MEMBERS, DISAGREEMENT), float(np.mean([apart[pair] for pair in pairs]))


def _scores(
  probabilities: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, float]:
  own = metrics.compute_metric(names, probabilities.argmax(-1), labels)
  return own | {name: score(probabilities, labels) for name, score in _QUALITY.items()}


def _range(values: Sequence[float]) -> tuple[float, float]:
  if len(values) < 2:
    return math.nan, math.nan
  return tuple(float(end) for end in np.percentile(values, (2.5, 97.5)))


def subset_score_dict(line: SubsetScore) -> dict[str, Any]:
  """A line as plain data; what is not a number is None, as JSON has it."""
  return {
    name: None if isinstance(value, float) and math.isnan(value) else value
    for name, value in dataclasses.asdict(line).items()
  }


COMMITTEE_KIND = 'committee'
STUDY = 'committee.json'
_MANIFEST = {'members': [{'folder': TEXT, 'weights': TEXT}]}  # what is read of it


@dataclasses.dataclass(frozen=True)
class Committee:
  """Members that answer together."""

  members: tuple[SavedClassifier, ...]

  @functools.cached_property
  def _stacked(self) -> list[Classifier]:
    return classifier.stack_members(self.members)

  def logits(self, examples: Examples) -> Float[np.ndarray, 'M N C']:
    """What each member says of each example."""
    return classifier.compute_logits(self.members, examples, stacked=self._stacked)

  def probabilities(self, examples: Examples, how: str = PROBABILITY) -> Float[np.ndarray, 'N C']:
    """What the committee says, by the mean of its members' probabilities or of their logits."""
    return combine_outputs(self.logits(examples), how)


def parse_members(given: str) -> list[str]:
  """The folders that `--members` names, with commas and stars.

  Raises:
    InputError: none is there.
  """
  found = []
  for word in filter(None, map(str.strip, given.split(','))):
    if '*' not in word:
      found.append(word)
      continue
    fitting = [one for one in sorted(glob.glob(word)) if epath.Path(one).is_dir()]
    if not fitting:
      raise InputError(
        f'the members {word}',
        'no folder fits it',
        'fine-tune with --config.save_classifiers=True, which makes classifier-0, classifier-1 and so on',
      )
    found += fitting
  if not found:
    raise InputError(
      f'--members={given}',
      'it names no classifier',
      "give some, as in --members='runs/x/classifier-*'",
    )
  return found


def make_committee(given: str, workdir: epath.PathLike) -> dict[str, Any]:
  """Makes a committee of saved classifiers and scores its subsets; the same command again changes
  nothing.

  Args:
    given: the folders of its members, as in `named`.
    workdir: the folder of the committee; the members are copied into it.

  Returns:
    What result.json has, and the lines of committee.json.

  Raises:
    Held: another process is at work in the work directory.
    InputError: a member is missing or damaged, the same twice, or does not go with the others; the
      work directory is another committee's.
  """
  folders = [epath.Path(one) for one in parse_members(given)]
  workdir = epath.Path(workdir)
  pairs = sorted(
    ((classifier.load_classifier(one), one) for one in folders), key=lambda pair: pair[0].identity
  )
  members = [member for member, _ in pairs]
  check_members(members, [str(one) for _, one in pairs])
  with lock.hold_lock(workdir):
    return _write(members, [one for _, one in pairs], workdir)


def _write(
  members: Sequence[SavedClassifier], folders: Sequence[epath.Path], workdir: epath.Path
) -> dict[str, Any]:
  card = members[0].card
  run_dir.open_run(
    workdir,
    {
      'kind': COMMITTEE_KIND,
      'task': {'name': card.task, 'labels': card.labels},
      'members': [member.identity for member in members],
    },
  )
  for number, source in enumerate(folders):
    _copy(source, workdir / classifier.classifier_dir(number))
  counts = [files.read_json(one / run_dir.MANIFEST, str(one))['parameters'] for one in folders]
  files.write_json(
    workdir / run_dir.MANIFEST,
    {
      'tokenizer': card.tokenizer,
      'parameters': {'total': sum(counts)},
      'members': [
        {
          'folder': classifier.classifier_dir(number),
          'weights': member.identity,
          'parameters': counts[number],
          'layers': member.card.model.num_layers,
          'hidden': member.card.model.hidden_size,
          'heads': member.card.head.ensemble_size,
          'seed': member.card.seed,
          'learning_rate': member.card.learning_rate,
          'checkpoint': member.card.checkpoint,
          'step': member.card.step,
        }
        for number, member in enumerate(members)
      ],
    },
  )
  lines, reason, examples = _study(folders, card.headline)
  heads = [member.card.head.ensemble_size for member in members]
  files.write_json(
    workdir / STUDY,
    {
      'task': card.task,
      'headline': card.headline,
      'members': len(members),
      'heads': heads,
      'examples': examples,
      'unscored': reason,
      'lines': [subset_score_dict(line) for line in lines],
    },
  )
  whole = {
    f'{line.split}, {line.combined}, {line.metric}': line.mean
    for line in lines
    if line.size == len(members)
  }
  result = {
    'task': card.task,
    'members': len(members),
    'heads': heads,
    'parameters': sum(counts),
    'unscored': reason,
    'scores': whole,
  }
  files.write_json(workdir / run_dir.RESULT, result)
  return result | {'lines': [subset_score_dict(line) for line in lines]}


def _copy(source: epath.Path, target: epath.Path) -> None:
  """A member's folder, whole or not at all; one that is there whole stays."""
  if not classifier.missing_files(target):
    return
  temporary = target.parent / f'.{target.name}.partial'
  if temporary.exists():
    temporary.rmtree()
  for file in _files(source):
    name = '/'.join(file.parts[len(source.parts) :])
    # no link takes a file of the reader's along
    files.resolve_inside(source, name, f'the fine-tuned classifier {source}')
    place = temporary / name
    place.parent.mkdir(parents=True, exist_ok=True)
    file.copy(place)
  temporary.rename(target)


def _files(folder: epath.Path) -> list[epath.Path]:
  return [
    file
    for inner in sorted(folder.iterdir())
    for file in (_files(inner) if inner.is_dir() else [inner])
  ]


def check_members(members: Sequence[SavedClassifier], names: Sequence[str]) -> None:
  """Refuses members that cannot answer together; `names` are theirs.

  Raises:
    InputError: none, one twice, a regression, weights that are no numbers, or another task, label
      set or tokenizer.
  """
  if not members:
    raise InputError('a committee', 'no members', 'give at least one fine-tuned classifier')
  seen: dict[str, str] = {}
  first = members[0].card
  for member, name in zip(members, names, strict=True):
    card = member.card
    if member.identity in seen:
      raise InputError(
        f'a committee with {name}',
        f'it is {seen[member.identity]} once more: the same weights',
        'name each member once',
      )
    seen[member.identity] = name
    if card.task_kind == REGRESSION:
      raise InputError(
        f'a committee with {name}',
        'a regression, which has no probabilities',
        'give classifiers of a classification',
      )
    if not all(
      np.isfinite(leaf).all() for leaf in classifier.checkpoint.flat(member.model).values()
    ):
      raise InputError(f'a committee with {name}', 'weights that are no numbers', 'leave it out')
    for what, own, others in (
      ('different labels', card.labels, first.labels),
      ('different tasks', card.task, first.task),
      ('different columns of text', card.fields, first.fields),
      ('different tokenizers', card.tokenizer, first.tokenizer),
    ):
      if own != others:
        raise InputError(
          f'a committee of {names[0]} and {name}',
          f'{what}: {_short(others)} and {_short(own)}',
          'give members of one task, label set and tokenizer',
        )


def _short(value: Any) -> str:
  text = ', '.join(value) if isinstance(value, tuple) else str(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _study(
  folders: Sequence[epath.Path], headline: str
) -> tuple[list[SubsetScore], str, dict[str, int]]:
  """Scores of subsets on every split that all members were reported on, or why there are none;
  examples of each.
  """
  said = [classifier.read_outputs(one) for one in folders]
  digests = [classifier.read_manifest(one)['examples'] for one in folders]
  shared = [
    split
    for split in said[0]
    if all(split in own and own[split] == digests[0][split] for own in digests)
  ]
  if not shared:
    return [], 'members were reported on different examples', {}
  lines = [
    line
    for split in shared
    for line in study_sizes(
      np.stack([own[split][0] for own in said]), said[0][split][1], headline, split
    )
  ]
  return lines, '', {split: len(said[0][split][1]) for split in shared}


def load_committee(folder: epath.PathLike) -> Committee:
  """Opens a committee, wherever it was copied to.

  Raises:
    InputError: there is none, or a member is missing or damaged.
  """
  folder = epath.Path(folder)
  what = f'the committee {folder}'
  config = files.read_object(folder / run_dir.CONFIG, what)
  if 'kind' not in config or config['kind'] != COMMITTEE_KIND:
    raise InputError(what, 'a folder of something else', 'give what minilm committee made')
  wanted = files.read_object(folder / run_dir.MANIFEST, what, _MANIFEST)['members']
  members = tuple(
    classifier.load_classifier(files.resolve_inside(folder, one['folder'], what)) for one in wanted
  )
  for member, one in zip(members, wanted, strict=True):
    if member.identity != one['weights']:
      raise InputError(
        what,
        f'{one["folder"]} is another classifier than the one it was made with',
        'copy the folder again, whole',
      )
  check_members(members, [str(folder / one['folder']) for one in wanted])
  return Committee(members)


def list_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """Scores by size, for a reader."""
  several = max(found['heads']) > 1
  who = f'a committee of {found["members"]}' + (
    f' with {", ".join(map(str, found["heads"]))} heads' if several else ''
  )
  if found['unscored']:
    return [rich_table.Table(title=f'{who}, without scores: {found["unscored"]}')]
  metrics = list(dict.fromkeys(line['metric'] for line in found['lines']))
  table = rich_table.Table(
    'split',
    'size',
    'subsets',
    'combined by',
    *metrics,
    title=(f'{found["task"]}, {who}: mean over subsets, and their middle 95%'),
  )
  rows: dict[tuple[str, ...], dict[str, str]] = {}
  for line in found['lines']:
    ends = f' ({line["low"]:.3f}, {line["high"]:.3f})' if line['low'] is not None else ''
    key = (
      line['split'],
      str(line['size']),
      f'{line["subsets"]}{"" if line["every"] else " drawn"}',
      line['combined'],
    )
    rows.setdefault(key, {})[line['metric']] = f'{line["mean"]:.3f}{ends}'
  for key, cells in rows.items():
    table.add_row(*key, *(cells[metric] if metric in cells else '' for metric in metrics))
  return [table]
