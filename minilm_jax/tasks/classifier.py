"""A fine-tuned classifier as a folder of its own: saved whole or not at all, opened on any devices,
moved like a file.

    classifier.json   the card: task, labels, shape, tokenizer, seed, learning rate, where it came from
    tokenizer.model   the tokenizer itself
    checkpoints/0     encoder and head, by Orbax
    outputs.npz       what it said of each reported split, beside the right labels
    manifest.json     hashes of the files and of the weights; what has none was not saved whole

A folder is written under a temporary name and renamed. What is done with classifiers is left to
`forward.py`, `committee.py` and `predict.py`.
"""

import dataclasses
import functools
import hashlib
import io
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from minilm_jax.core import files, old_names, recipe, run_dir, schema
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.core.schema import COUNT, TEXT, Checked, PositiveInt
from minilm_jax.data import build, tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.model.heads import Classifier, init_classifier
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import task_data
from minilm_jax.tasks.examples import Examples
from minilm_jax.training import checkpoint, population, pretrained, sharding

CLASSIFIER_KIND = 'classifier'
CARD_FILE, OUTPUTS_FILE = 'classifier.json', 'outputs.npz'
# What a zip of arrays, each with a Python expression as its header, can make of the one who reads
# it.
_NO_ARRAYS = (
  OSError,
  ValueError,
  TypeError,
  LookupError,
  SyntaxError,
  ArithmeticError,
  EOFError,
  MemoryError,
  RuntimeError,
  AttributeError,
  zipfile.BadZipFile,
  zlib.error,
  tokenize.TokenError,
)
_FOLDER = re.compile(r'classifier-\d+')
_FILES = (CARD_FILE, build.TOKENIZER, OUTPUTS_FILE)
_MANIFEST = {
  'kind': TEXT,
  'files': dict.fromkeys(_FILES, TEXT),
  'weights': TEXT,
  'examples': {},
  'parameters': COUNT,
}
_REMEDY = 'fine-tune it again with --config.save_classifiers=True, or give another folder'
Outputs = tuple[Float[np.ndarray, 'N C'], Shaped[np.ndarray, 'N']]


@dataclasses.dataclass(frozen=True)
class Card(Checked):
  """What a classifier is, but for its weights.

  Attributes:
    kind: `KIND`.
    task: its name.
    task_kind: 'classification' or 'regression'.
    labels: names of the classes in the order of the outputs; none of a regression.
    fields: the one or two columns of text of an example.
    joined: are two fields one text?
    headline: the metric of the task.
    length: tokens of an example at most.
    model: the shape of the encoder.
    head: that of the head.
    tokenizer: hash of the tokenizer's file.
    seed: of its head and of the order of examples.
    learning_rate: at the top of its schedule.
    checkpoint: the pre-training run that it started from or, from scratch, took its shape from.
    step: of that run; -1 from scratch.
    which: the epoch that is kept, 'best' on what was held out or 'last'.
    epoch: the same in numbers.
  """

  where: ClassVar[str] = 'classifier.'
  kind: str
  task: str
  task_kind: str
  labels: tuple[str, ...]
  fields: tuple[str, ...]
  concatenate_fields: bool
  headline: str
  length: PositiveInt
  model: EncoderConfig
  head: HeadConfig
  tokenizer: str
  seed: int
  learning_rate: float
  checkpoint: str
  step: int
  epoch_choice: str
  epoch: float

  @property
  def shape(self) -> tuple[Any, ...]:
    """Equal of classifiers whose weights can be stacked and that read the same rows."""
    return self.model, self.head, len(self.labels), self.length


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
  """A classifier that can be used: its card, its weights on the host, its tokenizer, and their
  identity.

  `identity` is a hash of the weights: two classifiers with the same one say the same of everything.
  """

  card: Card
  model: Classifier
  tokenizer: Tokenizer
  identity: str


def classifier_dir(member: int) -> str:
  """The name of a member's folder in the work directory of its fine-tuning."""
  return f'classifier-{member}'


def missing_files(path: epath.PathLike) -> bool:
  """Was no classifier saved there whole?"""
  return not (epath.Path(path) / run_dir.MANIFEST).exists()


def hash_classifier(model: Any) -> str:
  """A hash of all weights: of paths, shapes, types and bytes."""
  found = hashlib.sha256()
  for name, leaf in sorted(checkpoint.flatten(model).items()):
    array = np.asarray(leaf)
    found.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()


def save_classifier(
  path: epath.PathLike,
  card: Card,
  model: Classifier,
  tokenizer: Tokenizer,
  outputs: Mapping[str, Outputs],
  digests: Mapping[str, str],
) -> None:
  """Writes a classifier into a folder, whole or not at all; what stood there goes.

  Args:
    path: the folder.
    card: what it is.
    model: its weights, those of one member.
    tokenizer: what it reads by.
    outputs: of each reported split what it said (logits, or numbers) and the right labels.
    digests: of the examples of those splits.
  """
  path = epath.Path(path)
  temporary = path.parent / f'.{path.name}.partial'
  for old in (temporary, path):
    if old.exists():
      old.rmtree()
  temporary.mkdir(parents=True)
  files.write_json(temporary / CARD_FILE, recipe.as_dict(card))
  files.write_bytes(temporary / build.TOKENIZER, tokenizer.model)
  arrays = {
    f'{split} {name}': value
    for split, both in outputs.items()
    for name, value in zip(('outputs', 'labels'), both, strict=True)
  }
  file = io.BytesIO()
  np.savez(file, **arrays)
  files.write_bytes(temporary / OUTPUTS_FILE, file.getvalue())
  with checkpoint.open_writer(temporary, 1) as saves:
    saves.save({'model': model}, 0)
  files.write_json(
    temporary / run_dir.MANIFEST,
    {
      'kind': CLASSIFIER_KIND,
      'files': {name: files.hash_file(temporary / name) for name in _FILES},
      'weights': hash_classifier(model),
      'examples': dict(digests),
      'parameters': count_parameters(model),
      'jax': jax.__version__,
    },
  )
  temporary.rename(path)


def read_manifest(path: epath.PathLike) -> dict[str, Any]:
  """The manifest of a classifier, after its files have been compared with it.

  Raises:
    InputError: there is no classifier, or a file is not the one that was saved.
  """
  path = epath.Path(path)
  what = f'the fine-tuned classifier {path}'
  if not path.is_dir() or missing_files(path):
    found = (
      'no such folder'
      if not path.is_dir()
      else f'no {run_dir.MANIFEST}: nothing was saved whole there'
    )
    inside = (
      sorted(one.name for one in path.iterdir() if _FOLDER.fullmatch(one.name))
      if path.is_dir()
      else []
    )
    raise InputError(
      what, found, f'name one inside it, such as {path / inside[0]}' if inside else _REMEDY
    )
  manifest = files.read_json(path / run_dir.MANIFEST, what)
  if schema.find_schema_fault(manifest, _MANIFEST) or manifest['kind'] != CLASSIFIER_KIND:
    raise InputError(
      what,
      f'a {run_dir.MANIFEST} of something else',
      f'{_REMEDY}; a committee is given as --committee',
    )
  for name, wanted in manifest['files'].items():
    file = files.resolve_inside(path, name, what)
    if not file.is_file() or files.hash_file(file) != wanted:
      raise InputError(
        what, f'{name} is not the file that was saved', 'copy the folder again, whole'
      )
  return manifest


def load_classifier(path: epath.PathLike) -> SavedClassifier:
  """Opens a saved classifier, on the first of the devices there are.

  Raises:
    InputError: there is none, or something in it is not what was saved.
  """
  path = epath.Path(path)
  manifest, card = read_manifest(path), read_card(path)
  if checkpoint.latest_step(path) is None:
    raise InputError(
      f'the weights of {path}',
      f'no checkpoint in {path / checkpoint.FOLDER}',
      'copy the folder again, whole',
    )
  restored = pretrained.restore_model(
    path, lambda key: init_classifier(card.model, card.head, len(card.labels), key), step=0
  )
  model = jax.tree.map(np.asarray, restored)
  identity = hash_classifier(model)
  if identity != manifest['weights']:
    raise InputError(
      f'the weights of {path}', 'not those that were saved', 'copy the folder again, whole'
    )
  return SavedClassifier(card, model, tokenizer.load_tokenizer(path / build.TOKENIZER), identity)


def read_card(path: epath.PathLike) -> Card:
  """What the classifier in a folder is.

  Raises:
    InputError: it is none.
  """
  found = files.read_object(epath.Path(path) / CARD_FILE, f'the fine-tuned classifier {path}')
  return recipe.build(Card, old_names.complete_recipe(found))


def read_outputs(path: epath.PathLike) -> dict[str, Outputs]:
  """What the classifier in a folder said of each reported split, and the right labels.

  Raises:
    InputError: the file is missing, not what was saved, or too large, as it is or unpacked.
  """
  file, what = epath.Path(path) / OUTPUTS_FILE, f'the outputs of the fine-tuned classifier {path}'
  try:
    data = io.BytesIO(files.read_bytes(file, what))
    size = sum(part.file_size for part in zipfile.ZipFile(data).infolist())
    if size > files.MAX_FILE_BYTES:
      raise InputError(what, f'{file} unpacks to {size:,} bytes', _REMEDY)
    data.seek(0)
    with np.load(data, allow_pickle=False) as found:
      arrays = dict(found)
    splits = [name.removesuffix(' outputs') for name in arrays if name.endswith(' outputs')]
    if not splits:
      raise ValueError('it holds no outputs')
    return {split: (arrays[f'{split} outputs'], arrays[f'{split} labels']) for split in splits}
  except _NO_ARRAYS as error:
    raise InputError(what, f'{file} cannot be read: {error}', _REMEDY) from None


# What fine-tuned classifiers say of examples: logits, many members in one program where their
# shapes are equal.
# rows at one time; fewer where there are fewer, in powers of two, so that few shapes are compiled
_BATCH_ROWS = 32


def group_by_shape(members: Sequence[SavedClassifier]) -> list[list[int]]:
  """The places of members that can be stacked, in the order of their first."""
  found: dict[Any, list[int]] = {}
  for number, member in enumerate(members):
    found.setdefault(member.card.shape, []).append(number)
  return list(found.values())


def spread_rows(members: int) -> Mesh:
  """A mesh with as many devices as divide the members."""
  devices = max(n for n in range(1, jax.device_count() + 1) if members % n == 0)
  return sharding.make_mesh(MeshConfig(population=devices, data=1, model=1))


def to_probabilities(model: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
  """Logits of each row by one member."""
  return model(tokens, tokens != tokenizer.PAD_ID)


@functools.lru_cache(maxsize=8)
def build_forward(
  members: int, how: str
) -> Callable[[Classifier, Int[np.ndarray, 'M B L']], Float[Array, 'P N C']]:
  """A jitted function of so many stacked members and of batches of tokens; `how` is a strategy of
  `population`.
  """

  def one(model: Classifier, tokens: Int[Array, 'M B L']) -> Float[Array, 'N C']:
    found = jax.lax.map(functools.partial(to_probabilities, model), tokens)
    return found.reshape(-1, found.shape[-1])

  return jax.jit(
    population.map_over_members(one, spread_rows(members), 'vmap' if how == 'vmap' else 'map')
  )


def stack_members(members: Sequence[SavedClassifier]) -> list[Classifier]:
  """Each group of members as one pytree with a leading axis `P`, every member on its device."""
  found = []
  for places in group_by_shape(members):
    stacked = jax.tree.map(
      lambda *leaves: np.stack(leaves), *(members[place].model for place in places)
    )
    found.append(population.shard_members(stacked, spread_rows(len(places))))
  return found


def compute_logits(
  members: Sequence[SavedClassifier],
  examples: Examples,
  lift: str = 'auto',
  stacked: Sequence[Classifier] = (),
) -> Float[np.ndarray, 'P N C']:
  """What each member says of each example: logits or, of regressions, numbers.

  Args:
    members: with one tokenizer; of any shapes.
    examples: texts; their labels are not looked at.
    lift: how members of one shape share a device: `loop`, `vmap`, or `auto`.
    stacked: what `stacks` made of these members, for who asks them again and again.
  """
  found: list[np.ndarray] = [np.zeros(0)] * len(members)
  for places, stack in zip(group_by_shape(members), stacked or stack_members(members), strict=True):
    first = members[places[0]]
    card = first.card
    sequences, _ = task_data.encode_examples(examples, first.tokenizer, card.length)
    whole = card.head.pooling == 'positions'  # a weight a position, pads included
    length = (
      card.model.max_length if whole else task_data.bucket_length(sequences, card.model.max_length)
    )
    rows = task_data.build_task_rows(sequences, np.zeros(len(sequences), np.int32), length)
    size = min(_BATCH_ROWS, 1 << (len(sequences) - 1).bit_length())
    tokens, (where,) = task_data.iter_batches([rows], size)
    how = population.choose_strategy(len(places), lift, jax.devices()[0].platform)
    outputs = np.asarray(build_forward(len(places), how)(stack, jnp.asarray(tokens)))
    for place, own in zip(places, outputs, strict=True):
      found[place] = own[where]
  return np.stack(found)
