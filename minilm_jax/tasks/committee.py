"""Builds and loads soft committees of fine-tuned classifiers (paper 2).

The folder of a committee contains copies of its members, so it can be moved:

    config.json      kind, task, labels, and checksums of the members
    manifest.json    checksum, shape and seed of each member; number of parameters
    classifier-0 ... members
    committee.json   scores of subsets of the members on their common examples
    result.json      scores of the full committee

Members are sorted by the checksum of their weights, so results do not depend on the order of
arguments. Members may differ in shape and number of heads, but not in task, labels or tokenizer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from rich import table as rich_table

from minilm_jax.core import files, lock, paths, progress, run_dir
from minilm_jax.core.errors import TEXT, InputError
from minilm_jax.model.heads import Classifier
from minilm_jax.model.initialization import flatten
from minilm_jax.tasks import classifier, metrics
from minilm_jax.tasks.classifier import SavedClassifier
from minilm_jax.tasks.committee_scores import read_outputs, study_sizes
from minilm_jax.tasks.examples import Examples

COMMITTEE_KIND = 'committee'
STUDY = 'committee.json'
_MAX_NAME_CHARS = 60  # in errors
_MANIFEST_SCHEMA = {'members': [{'folder': TEXT, 'weights': TEXT}]}


@dataclasses.dataclass(frozen=True)
class Committee:
  """Predicts with several classifiers of the same task."""

  members: tuple[SavedClassifier, ...]

  @functools.cached_property
  def _stacks(self) -> list[tuple[list[int], Classifier]]:
    return classifier.stack_members(self.members)

  def logits(self, examples: Examples) -> Float[np.ndarray, 'M N C']:
    """Returns the logits of each member for each example."""
    return classifier.compute_logits(self.members, examples, stacks=self._stacks)


def parse_members(members: str) -> list[str]:
  """Returns the folders of a `--members` flag: paths and patterns, separated by commas.

  If held-out examples chose a learning rate of a run, a pattern skips the classifiers of its other
  rates.

  Raises:
    InputError: The flag is empty, or a pattern matches no folder.
  """
  folders = []
  for pattern in paths.split_names(members):
    matches = paths.expand_pattern(pattern)
    if matches != [pattern]:
      matches = [path for path in paths.drop_links(matches) if epath.Path(path).is_dir()]
      matches = _skip_other_rates(matches)
    if not matches:
      raise InputError(
        f'the members {pattern}',
        'no matching folder',
        'fine-tune with --config.save_classifiers=True to write classifier-0, classifier-1, ...',
      )
    folders += matches
  if not folders:
    raise InputError(
      f'--members={members}',
      'no classifiers',
      "give folders, as in --members='runs/x/classifier-*'",
    )
  return folders


def _skip_other_rates(folders: Sequence[str]) -> list[str]:
  """Returns the folders without classifiers of a learning rate that was not chosen."""
  skipped = set()
  for run in dict.fromkeys(epath.Path(folder).parent for folder in folders):
    lines = list(run_dir.read_lines(run / run_dir.SCORES))
    groups: dict[int | None, list[dict[str, Any]]] = {}
    for line in lines:
      groups.setdefault(line['checkpoint_step'], []).append(line)
    chosen = {step: metrics.choose_rates(group) for step, group in groups.items()}
    skipped |= {
      str(run / classifier.name_member_folder(line['member']))
      for line in lines
      if line['learning_rate'] not in chosen[line['checkpoint_step']]
    }
  kept = [folder for folder in folders if folder not in skipped]
  if len(kept) < len(folders):
    progress.log(
      f'{len(kept)} of {len(folders)} classifiers have the learning rate that the held-out examples '
      'of their run chose; the others are skipped'
    )
  return kept


def make_committee(members: str, workdir: epath.PathLike) -> dict[str, Any]:
  """Builds a committee of saved classifiers and scores its subsets; a repeated call is harmless.

  Args:
    members: Folders of the members, as for `parse_members`.
    workdir: Folder of the committee, with copies of the members.

  Returns:
    The content of result.json and the lines of committee.json.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: A member is missing, damaged, repeated or incompatible, or the work directory has
      another committee.
  """
  loaded = [
    (classifier.load_classifier(folder), epath.Path(folder)) for folder in parse_members(members)
  ]
  loaded.sort(key=lambda pair: pair[0].identity)
  classifiers, folders = [member for member, _ in loaded], [folder for _, folder in loaded]
  check_members(classifiers, list(map(str, folders)))
  workdir, card = epath.Path(workdir), classifiers[0].card
  with lock.hold_lock(workdir):
    targets = [workdir / classifier.name_member_folder(number) for number in range(len(folders))]
    for folder, target in zip(folders, targets, strict=True):
      _check_target(folder, target)
    run_dir.open_run(
      workdir,
      {
        'kind': COMMITTEE_KIND,
        'task': {'name': card.task, 'labels': card.labels},
        'members': [member.identity for member in classifiers],
      },
    )
    for folder, target in zip(folders, targets, strict=True):
      _copy_member(folder, target)
    manifests = [classifier.read_manifest(folder) for folder in folders]
    _write_manifest(workdir, classifiers, folders, manifests)
    return _write_scores(workdir, classifiers, folders, manifests)


def _write_manifest(
  workdir: epath.Path,
  members: Sequence[SavedClassifier],
  folders: Sequence[epath.Path],
  manifests: Sequence[Mapping[str, Any]],
) -> None:
  """Writes the manifest of a committee with the parameters and checkpoint links of the members."""
  rows = [
    {
      'folder': classifier.name_member_folder(number),
      'weights': member.identity,
      'parameters': manifest['parameters'],
      'layers': member.card.model.num_layers,
      'hidden': member.card.model.hidden_size,
      'heads': member.card.head.ensemble_size,
      'seed': member.card.seed,
      'learning_rate': member.card.learning_rate,
      'checkpoint': member.card.checkpoint,
      'checkpoint_link': paths.link_to(
        run_dir.find_source(folder, manifest, member.card.checkpoint), workdir
      ),
      'step': member.card.step,
    }
    for number, (member, folder, manifest) in enumerate(
      zip(members, folders, manifests, strict=True)
    )
  ]
  files.write_json(
    workdir / run_dir.MANIFEST,
    {
      'tokenizer': members[0].card.tokenizer,
      'parameters': {'total': sum(row['parameters'] for row in rows)},
      'members': rows,
    },
  )


def _write_scores(
  workdir: epath.Path,
  members: Sequence[SavedClassifier],
  folders: Sequence[epath.Path],
  manifests: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """Writes committee.json and result.json; returns the result with the lines of committee.json.

  Only splits of which all members have the outputs on the same examples are scored.
  """
  card, outputs = members[0].card, [read_outputs(folder) for folder in folders]
  digests = [manifest['examples'] for manifest in manifests]
  examples, scores = {}, []
  for split, (_, labels) in outputs[0].items():
    if all(split in member and member[split] == digests[0][split] for member in digests):
      logits = np.stack([member[split][0] for member in outputs])
      scores += study_sizes(logits, labels, card.headline, split)
      examples[split] = len(labels)
  lines = files.to_json_types([dataclasses.asdict(score) for score in scores])
  heads = [member.card.head.ensemble_size for member in members]
  reason = '' if examples else 'members have no reported examples in common'
  files.write_json(
    workdir / STUDY,
    {
      'task': card.task,
      'headline': card.headline,
      'members': len(members),
      'heads': heads,
      'examples': examples,
      'unscored': reason,
      'lines': lines,
    },
  )
  result = {
    'task': card.task,
    'members': len(members),
    'heads': heads,
    'parameters': sum(manifest['parameters'] for manifest in manifests),
    'unscored': reason,
    'scores': {
      f'{score.split}, {score.combined}, {score.metric}': score.mean
      for score in scores
      if score.size == len(members)
    },
  }
  files.write_json(workdir / run_dir.RESULT, result)
  return result | {'lines': lines}


def _check_target(source: epath.Path, target: epath.Path) -> None:
  """Raises InputError if a complete classifier in `target` is not a copy of `source`."""
  if classifier.is_incomplete(target):
    return
  manifests = [classifier.read_manifest(folder) for folder in (source, target)]
  if any(manifests[0][name] != manifests[1][name] for name in ('files', 'weights')):
    raise InputError(
      f'a committee in {target.parent}',
      f'other members: {target.name} differs from {source}',
      'give another --workdir',
    )


def _copy_member(source: epath.Path, target: epath.Path) -> None:
  """Copies a member's folder atomically, unless a complete copy exists."""
  if not classifier.is_incomplete(target):
    return
  temporary = target.parent / f'.{target.name}.partial'
  temporary.rmtree(missing_ok=True)
  for file in _list_files(source):
    name = '/'.join(file.parts[len(source.parts) :])
    # A symbolic link must not copy a file from outside the folder.
    files.resolve_inside(source, name, f'the fine-tuned classifier {source}')
    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
    file.copy(temporary / name)
  temporary.rename(target)


def _list_files(folder: epath.Path) -> list[epath.Path]:
  return [
    file
    for entry in sorted(folder.iterdir())
    for file in (_list_files(entry) if entry.is_dir() else [entry])
  ]


def check_members(members: Sequence[SavedClassifier], names: Sequence[str]) -> None:
  """Checks that members can form a committee; errors identify members by `names`.

  Raises:
    InputError: No member is given, or a member is repeated, is a regression or has non-finite
      weights. Members differ in task, labels, text columns or tokenizer.
  """
  if not members:
    raise InputError('a committee', 'no members', 'give at least one fine-tuned classifier')
  name_by_identity: dict[str, str] = {}
  first = members[0].card
  for member, name in zip(members, names, strict=True):
    subject, card = f'a committee with {name}', member.card
    if member.identity in name_by_identity:
      raise InputError(
        subject, f'the same weights as {name_by_identity[member.identity]}', 'name each member once'
      )
    name_by_identity[member.identity] = name
    if card.is_regression:
      raise InputError(
        subject, 'a regression, which has no probabilities', 'give members of a classification task'
      )
    if not all(np.isfinite(leaf).all() for leaf in flatten(member.model).values()):
      raise InputError(subject, 'non-finite weights', 'remove the member')
    for fault, value, first_value in (
      ('different labels', card.labels, first.labels),
      ('different tasks', card.task, first.task),
      ('different columns of text', card.fields, first.fields),
      ('different tokenizers', card.tokenizer, first.tokenizer),
    ):
      if value != first_value:
        raise InputError(
          f'a committee of {names[0]} and {name}',
          f'{fault}: {_shorten(first_value)} and {_shorten(value)}',
          'give members with the same task, labels and tokenizer',
        )


def _shorten(value: Any) -> str:
  text = ', '.join(value) if isinstance(value, tuple) else str(value)
  return text if len(text) <= _MAX_NAME_CHARS else f'{text[: _MAX_NAME_CHARS - 3]}...'


def load_committee(folder: epath.PathLike) -> Committee:
  """Loads a committee.

  Raises:
    InputError: The folder is not a committee, or a member is missing or changed.
  """
  folder = epath.Path(folder)
  subject = f'the committee {folder}'
  config = files.read_object(folder / run_dir.CONFIG, subject)
  if 'kind' not in config or config['kind'] != COMMITTEE_KIND:
    raise InputError(subject, 'a folder of another kind', 'give a folder of minilm committee')
  rows = files.read_object(folder / run_dir.MANIFEST, subject, _MANIFEST_SCHEMA)['members']
  members = tuple(
    classifier.load_classifier(files.resolve_inside(folder, row['folder'], subject)) for row in rows
  )
  for member, row in zip(members, rows, strict=True):
    if member.identity != row['weights']:
      raise InputError(
        subject, f'another classifier in {row["folder"]}', 'copy the complete folder again'
      )
  check_members(members, [str(folder / row['folder']) for row in rows])
  return Committee(members)


def make_committee_tables(result: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns a table of scores by committee size, from the result of `make_committee`."""
  name = f'a committee of {result["members"]}'
  if max(result['heads']) > 1:
    name += f' with {", ".join(map(str, result["heads"]))} heads'
  if result['unscored']:
    return [rich_table.Table(title=f'{name}; not scored: {result["unscored"]}')]
  columns = list(dict.fromkeys(line['metric'] for line in result['lines']))
  table = rich_table.Table(
    *('split', 'size', 'subsets', 'combined by', *columns),
    title=f'{result["task"]}, {name}: mean over subsets (2.5th and 97.5th percentile)',
  )
  rows: dict[tuple[str, ...], dict[str, str]] = {}
  for line in result['lines']:
    subsets = f'{line["subsets"]}{"" if line["every"] else " drawn"}'
    interval = f' ({line["low"]:.3f}, {line["high"]:.3f})' if line['low'] is not None else ''
    cells = rows.setdefault((line['split'], str(line['size']), subsets, line['combined']), {})
    cells[line['metric']] = f'{line["mean"]:.3f}{interval}'
  for key, cells in rows.items():
    table.add_row(*key, *(cells.get(column, '') for column in columns))
  return [table]
