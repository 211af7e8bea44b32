"""A fine-tuned classifier as a folder of its own: saved whole or not at all, opened on any devices, moved like a file.

    classifier.json   the card: task, labels, shape, tokenizer, seed, learning rate, where it came from
    tokenizer.model   the tokenizer itself
    checkpoints/0     encoder and head, by Orbax
    outputs.npz       what it said of each reported split, beside the right labels
    manifest.json     hashes of the files and of the weights; what has none was not saved whole

A folder is written under a temporary name and renamed. What is done with classifiers is left to `forward.py`,
`committee.py` and `predict.py`.
"""

import dataclasses
import hashlib
import io
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from minilm_jax import recipe, run, shape, untrusted
from minilm_jax.checks import Checked, Positive
from minilm_jax.config import EncoderConfig, HeadConfig, completed
from minilm_jax.errors import InputError
from minilm_jax.language import build
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model.heads import Classifier, classifier
from minilm_jax.model.initialization import count
from minilm_jax.shape import COUNT, TEXT
from minilm_jax.training import checkpoint, pretrained

KIND = 'classifier'
CARD, OUTPUTS = 'classifier.json', 'outputs.npz'
# What a zip of arrays, each with a Python expression as its header, can make of the one who reads it.
_NO_ARRAYS = (OSError, ValueError, TypeError, LookupError, SyntaxError, ArithmeticError, EOFError, MemoryError,
              RuntimeError, AttributeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)
_FOLDER = re.compile(r'classifier-\d+')
_FILES = (CARD, build.TOKENIZER, OUTPUTS)
_MANIFEST = {'kind': TEXT, 'files': dict.fromkeys(_FILES, TEXT), 'weights': TEXT, 'examples': {}, 'parameters': COUNT}
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
  length: Positive
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
class Fitted:
  """A classifier that can be used: its card, its weights on the host, its tokenizer, and their identity.

  `identity` is a hash of the weights: two classifiers with the same one say the same of everything.
  """

  card: Card
  model: Classifier
  tokenizer: Tokenizer
  identity: str


def folder(member: int) -> str:
  """The name of a member's folder in the work directory of its fine-tuning."""
  return f'classifier-{member}'


def missing(path: epath.PathLike) -> bool:
  """Was no classifier saved there whole?"""
  return not (epath.Path(path) / run.MANIFEST).exists()


def digest(model: Any) -> str:
  """A hash of all weights: of paths, shapes, types and bytes."""
  found = hashlib.sha256()
  for name, leaf in sorted(checkpoint.flatten(model).items()):
    array = np.asarray(leaf)
    found.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()


def save(path: epath.PathLike, card: Card, model: Classifier, tokenizer: Tokenizer,
         outputs: Mapping[str, Outputs], digests: Mapping[str, str]) -> None:
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
  run.write_json(temporary / CARD, recipe.as_dict(card))
  run.write_bytes(temporary / build.TOKENIZER, tokenizer.model)
  arrays = {f'{split} {name}': value for split, both in outputs.items()
            for name, value in zip(('outputs', 'labels'), both, strict=True)}
  file = io.BytesIO()
  np.savez(file, **arrays)
  run.write_bytes(temporary / OUTPUTS, file.getvalue())
  with checkpoint.open_writer(temporary, 1) as saves:
    saves.save({'model': model}, 0)
  run.write_json(temporary / run.MANIFEST, {
      'kind': KIND, 'files': {name: run.sha256(temporary / name) for name in _FILES}, 'weights': digest(model),
      'examples': dict(digests), 'parameters': count(model), 'jax': jax.__version__})
  temporary.rename(path)


def read_manifest(path: epath.PathLike) -> dict[str, Any]:
  """The manifest of a classifier, after its files have been compared with it.

  Raises:
    InputError: there is no classifier, or a file is not the one that was saved.
  """
  path = epath.Path(path)
  what = f'the fine-tuned classifier {path}'
  if not path.is_dir() or missing(path):
    found = 'no such folder' if not path.is_dir() else f'no {run.MANIFEST}: nothing was saved whole there'
    inside = sorted(one.name for one in path.iterdir() if _FOLDER.fullmatch(one.name)) if path.is_dir() else []
    raise InputError(what, found, f'name one inside it, such as {path / inside[0]}' if inside else _REMEDY)
  manifest = run.read_json(path / run.MANIFEST, what)
  if shape.fault(manifest, _MANIFEST) or manifest['kind'] != KIND:
    raise InputError(what, f'a {run.MANIFEST} of something else', f'{_REMEDY}; a committee is given as --committee')
  for name, wanted in manifest['files'].items():
    file = untrusted.inside(path, name, what)
    if not file.is_file() or run.sha256(file) != wanted:
      raise InputError(what, f'{name} is not the file that was saved', 'copy the folder again, whole')
  return manifest


def load(path: epath.PathLike) -> Fitted:
  """Opens a saved classifier, on the first of the devices there are.

  Raises:
    InputError: there is none, or something in it is not what was saved.
  """
  path = epath.Path(path)
  manifest, card = read_manifest(path), read_card(path)
  if checkpoint.latest_step(path) is None:
    raise InputError(f'the weights of {path}', f'no checkpoint in {path / checkpoint.FOLDER}',
                     'copy the folder again, whole')
  restored = pretrained.restore_model(
      path, lambda key: classifier(card.model, card.head, len(card.labels), key), step=0)
  model = jax.tree.map(np.asarray, restored)
  identity = digest(model)
  if identity != manifest['weights']:
    raise InputError(f'the weights of {path}', 'not those that were saved', 'copy the folder again, whole')
  return Fitted(card, model, pieces.load(path / build.TOKENIZER), identity)


def read_card(path: epath.PathLike) -> Card:
  """What the classifier in a folder is.

  Raises:
    InputError: it is none.
  """
  found = run.read_object(epath.Path(path) / CARD, f'the fine-tuned classifier {path}')
  return recipe.build(Card, completed(found))


def outputs(path: epath.PathLike) -> dict[str, Outputs]:
  """What the classifier in a folder said of each reported split, and the right labels.

  Raises:
    InputError: the file is missing, not what was saved, or too large, as it is or unpacked.
  """
  file, what = epath.Path(path) / OUTPUTS, f'the outputs of the fine-tuned classifier {path}'
  try:
    data = io.BytesIO(untrusted.read_bytes(file, what))
    size = sum(part.file_size for part in zipfile.ZipFile(data).infolist())
    if size > untrusted.LARGEST:
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
