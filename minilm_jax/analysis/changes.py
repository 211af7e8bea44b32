"""Which recipes are compared with a base recipe, and in what each differs from it.

A change is the set of fields of a recipe in which a run differs from the base of its shape. The base of a shape is what
`--base` names there and, at other shapes, the runs whose recipes differ from it in the five fields of the shape alone:
embedding, hidden, feed_forward, heads, layers. Runs of one change and shape are seeds of each other. Which fields count
stands in `entrants.py`.

Losses compare on the same tokens alone: evaluation hides the same ones whatever a recipe hides in training. A run on
another corpus, or evaluated on another number of rows, is left out by name. One with another tokenizer stays, for when
it leaves its own plateau; its losses are not compared.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from minilm_jax.analysis import counted, entrants, runs
from minilm_jax.analysis.entrants import AblationRun, differing
from minilm_jax.analysis.tracks import LossCurve
from minilm_jax.errors import InputError, shown

BASE = 'base'
NAMED = 4  # fields that make the name of a change; of more it is the name of the folder
_TOKENIZER = 'tokenizer'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Runs that differ from the base of their shape in the same fields, one a seed.

  Attributes:
    name: the fields in short, `base`, or the folder of the first run where there are more than `NAMED`.
    fields: as in positions=relative; those of the model and of the optimizer without these words.
    runs: by seed. Where one has ended, those that are under way are not among them.
    tokenizer: the hash, where it is another than the base's; else ''.
  """

  name: str
  fields: tuple[str, ...]
  runs: tuple[AblationRun, ...]
  tokenizer: str

  @property
  def tracks(self) -> dict[int, LossCurve]:
    """By seed."""
    return {one.track.seed: one.track for one in self.runs}


@dataclasses.dataclass(frozen=True)
class AblationAtSize:
  """The base of one shape and the changes that were tried there."""

  shape: str
  base: Ablation
  changes: tuple[Ablation, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What was tried.

  Attributes:
    shapes: the base's own first.
    found: runs of every kind, by the names that the tracks have.
    ngram_losses: what counts alone reach on the rows of the base, nats by name (`counted.py`).
    under_way: runs that have not ended.
    left_out: runs that are in none of these, and why.
  """

  shapes: list[AblationAtSize]
  found: Mapping[str, epath.Path]
  ngram_losses: Mapping[str, float]
  under_way: list[str]
  left_out: list[str]


def read_comparison(
  bases: Sequence[epath.PathLike], folders: Sequence[epath.PathLike]
) -> Comparison:
  """Who is compared with whom.

  Args:
    bases: run directories of one recipe; they need not be in the folders.
    folders: run directories, or folders that hold them at any depth.

  Raises:
    InputError: a folder is missing or without runs; the base was never evaluated, or is of several recipes; nothing
      differs from it; a file is damaged.
  """
  found = runs.find([*folders, *bases])
  read_from = {str(path.resolve()) for path in runs.find(bases).values()}
  there, left_out = entrants.read_ablation_runs(found)
  asked = f'a comparison with the base {", ".join(map(str, bases))}'
  own = [one for one in there if str(one.folder.resolve()) in read_from]
  if not own:
    raise InputError(
      asked,
      '; '.join(['no pre-training run there that was evaluated', *left_out]),
      'give --base=RUN, a run directory of pre-training',
    )
  first = own[0]
  for other in own[1:]:
    if differ := _unlike(first, other) or ', '.join(_fields(other, first)):
      raise InputError(
        asked,
        f'{other.track.name} is another recipe than {first.track.name}: {differ}',
        'give runs of one recipe, or name one run of them',
      )
  by_shape: dict[str, dict[tuple[str, ...], list[AblationRun]]] = {first.shape: {}}
  for one in there:
    if reason := _unlike(first, one):
      left_out.append(f'{one.track.name}: {reason}')
    else:
      by_shape.setdefault(one.shape, {}).setdefault(_fields(one, first), []).append(one)
  left_out += [
    f'{one.track.name}: no run of the base recipe has its shape, {shape}'
    for shape, of in by_shape.items()
    if () not in of
    for some in of.values()
    for one in some
  ]
  shapes = [_at_shape(shape, of, first, left_out) for shape, of in by_shape.items() if () in of]
  shapes = [part for part in shapes if part.changes]
  if not shapes:
    raise InputError(
      asked,
      '; '.join(['no run that differs from it in its recipe', *left_out]),
      'give folders with other recipes on the same corpus: minilm ablations --base=RUN FOLDER',
    )
  left_out += [f'{name}: {why}' for name, why in runs.failures(folders).items()]
  under_way = [
    f'{one.name}, after {one.tokens[-1]:,.0f} tokens'
    for part in shapes
    for change in (part.base, *part.changes)
    for one in change.tracks.values()
    if not one.finished
  ]
  reached, unlike = counted.read_ngram_baselines(found, first)
  return Comparison(shapes, found, reached, under_way, [*left_out, *unlike])


def _unlike(first: AblationRun, other: AblationRun) -> str:
  """Why losses of one say nothing beside those of the other; '' where they do, or the tokenizer was changed."""
  if other.tokenizer == first.tokenizer and other.corpus != first.corpus:
    return (
      f'another corpus, {shown(other.corpus[:8])}, than that of the base, {shown(first.corpus[:8])}'
    )
  if other.evaluated != first.evaluated:
    return f'evaluated on {other.evaluated:,} rows, the base on {first.evaluated:,}'
  return ''


def _fields(one: AblationRun, base: AblationRun) -> tuple[str, ...]:
  """The change; another tokenizer shows in the vocabulary, or else by its hash."""
  made = differing(one.fields, base.fields)
  if one.tokenizer != base.tokenizer and not any(field.startswith('vocabulary=') for field in made):
    made.append(f'{_TOKENIZER}={shown(one.tokenizer[:8])}')
  return tuple(made)


def _at_shape(
  shape: str,
  by_fields: Mapping[tuple[str, ...], list[AblationRun]],
  first: AblationRun,
  left_out: list[str],
) -> AblationAtSize:
  taken: set[str] = set()
  made = []
  for fields in sorted(by_fields, key=lambda fields: (len(fields), fields)):
    some = _seeds(by_fields[fields], left_out)
    name = BASE if not fields else ', '.join(fields) if len(fields) <= NAMED else some[0].home
    name = some[0].track.name if name in taken else name
    taken.add(name)
    other = some[0].tokenizer
    made.append(Ablation(name, fields, some, '' if other == first.tokenizer else other))
  return AblationAtSize(shape, made[0], tuple(made[1:]))


def _seeds(some: Iterable[AblationRun], left_out: list[str]) -> tuple[AblationRun, ...]:
  """One run a seed, the longest; none under way where another has ended."""
  some = sorted(some, key=lambda one: (-one.track.rows[-1], one.track.name))
  ended = [one for one in some if one.track.finished]
  kept: dict[int, AblationRun] = {}
  for one in ended or some:
    if one.track.seed in kept:
      left_out.append(
        f'{one.track.name}: seed {one.track.seed} of this recipe once more, '
        f'beside {kept[one.track.seed].track.name}'
      )
    else:
      kept[one.track.seed] = one
  if ended:
    left_out += [
      f'{one.track.name}: under way, and other seeds of this recipe have ended'
      for one in some
      if not one.track.finished
    ]
  return tuple(kept[seed] for seed in sorted(kept))
