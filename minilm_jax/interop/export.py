"""Exports: resolves `--checkpoint` to a model and writes the export folder atomically.

A model is the checkpoint of a pre-training run, `run` or `run@step`, or a classifier that
`--config.save_classifiers=True` saved. The formats are in `hf_export`, `stablehlo` and `model_card`.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.core.schema import ANY, TEXT
from minilm_jax.data import wrapped_tokenizer
from minilm_jax.data.tokenizer import Tokenizer, load_tokenizer
from minilm_jax.model.heads import Classifier, MaskedLanguageModel, init_classifier
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier
from minilm_jax.tasks.classifier import Card, SavedClassifier
from minilm_jax.training import checkpoint, pretrained

EXPORT_RECORD = 'export.json'  # the origin of an export
# Fields with one value in other libraries; a StableHLO program may have a custom encoder.
_EXPORTABLE_VALUES = {
  'encoder': '',
  'projection_norm': True,
  'segment_embeddings_for_pairs': False,
}
_OTHER_WORKDIR = 'give another --workdir'
_USE_RUN_OR_CLASSIFIER = (
  'give the work directory of minilm pretrain, or a classifier that --config.save_classifiers=True '
  'saved'
)
_REF_WITH_STEP = re.compile(r'(.+)@(\d{1,18})')


@dataclasses.dataclass(frozen=True)
class ModelRef:
  """The folder of a model and, of a run, the step of the checkpoint; None for a classifier."""

  folder: epath.Path
  step: int | None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model on the host that computes in float32, and what belongs to it.

  Attributes:
    ref: its place.
    config: shape of its encoder.
    model: the model.
    tokenizer: its tokenizer.
    card: of a classifier.
    num_steps: of the whole run.
    identity: hash of the weights.
  """

  ref: ModelRef
  config: EncoderConfig
  model: MaskedLanguageModel | Classifier
  tokenizer: Tokenizer
  card: Card | None
  num_steps: int
  identity: str

  @property
  def head(self) -> HeadConfig | None:
    """That of a classifier."""
    return self.card.head if self.card else None

  @property
  def length(self) -> int:
    """Maximum tokens of a row, with special ones."""
    return self.card.length if self.card else self.config.max_length

  def classifier(self) -> SavedClassifier:
    """Returns the model as a classifier whose card has the shape in float32.

    Raises:
      InputError: it is a pre-training run.
    """
    if self.card is None or not isinstance(self.model, Classifier):
      raise InputError(
        f'a classifier of {self.ref.folder}',
        'a pre-training run, which classifies nothing',
        'give a classifier: minilm finetune ... --config.save_classifiers=True saves some',
      )
    card = dataclasses.replace(self.card, model=self.config)
    return SavedClassifier(card, self.model, self.tokenizer, self.identity)

  def describe_source(self) -> dict[str, Any]:
    """Returns the fields that every record of an export has."""
    fields: dict[str, Any] = {
      'checkpoint': str(self.ref.folder),
      'weights': self.identity,
      'parameters': count_parameters(self.model),
    }
    return fields if self.card else fields | {'step': self.ref.step, 'updates': self.num_steps}


def model_kind(folder: epath.PathLike) -> str:
  """Returns 'classifier', or the kind in the config.json of a run.

  Raises:
    InputError: there is no folder, or it is neither a run nor a classifier.
  """
  folder, what = epath.Path(folder), f'the run {folder}'
  if not folder.is_dir():
    raise InputError(what, 'no such folder', _USE_RUN_OR_CLASSIFIER)
  if (folder / classifier.CARD_FILE).exists():
    return classifier.CLASSIFIER_KIND
  if not (folder / run_dir.CONFIG).exists():
    raise InputError(
      what,
      f'neither {run_dir.CONFIG} of a run nor {classifier.CARD_FILE} of a classifier there',
      _USE_RUN_OR_CLASSIFIER,
    )
  return files.read_object(folder / run_dir.CONFIG, what, {'kind': TEXT})['kind']


def parse_ref(ref: str) -> tuple[epath.Path, int | None]:
  """Returns the folder and step of `run` or `run@step`; an existing folder of that name wins."""
  match = None if epath.Path(ref).exists() else _REF_WITH_STEP.fullmatch(ref)
  return (epath.Path(match[1]), int(match[2])) if match else (epath.Path(ref), None)


def resolve_model(ref: str) -> ModelRef:
  """Returns the place of the model that `--checkpoint` names.

  Raises:
    InputError: there is no folder, no model in it, several, or no checkpoint of that step.
  """
  folder, step = parse_ref(ref)
  kind = model_kind(folder)
  if kind == classifier.CLASSIFIER_KIND:
    if step is not None:
      raise InputError(
        f'step {step} of {folder}', 'a classifier, which has one checkpoint', f'give {folder}'
      )
    return ModelRef(folder, None)
  if kind == 'finetune':
    names = sorted(card.parent.name for card in folder.glob(f'*/{classifier.CARD_FILE}'))
    raise InputError(
      f'the model of {folder}',
      'the work directory of a fine-tuning, not one model',
      f'give one inside it, such as {folder / names[0]}'
      if names
      else 'fine-tune again with --config.save_classifiers=True, which saves classifiers',
    )
  pretrained.load_single_config(folder)
  return ModelRef(folder, resolve_checkpoint(folder, step))


def resolve_checkpoint(folder: epath.PathLike, step: int | None) -> int:
  """Returns the step of a saved checkpoint of a run, by default of the latest.

  Raises:
    InputError: there is none, or none of that step.
  """
  steps = checkpoint.list_steps(folder)
  if step is not None and step not in steps:
    raise InputError(
      f'the checkpoint of step {step} in {folder}',
      f'there are {", ".join(map(str, steps)) or "none"}',
      'give one of them; checkpoint.keep_last says how many a run keeps',
    )
  return checkpoint.resolve_step(folder, step)


def load_model(ref: str, as_program: bool = False) -> LoadedModel:
  """Loads the model that `--checkpoint` names.

  Args:
    ref: argument of `resolve_model`.
    as_program: it is exported as a program, which may have a custom encoder.

  Raises:
    InputError: there is no such model, it is damaged, or it cannot be exported: one with a custom
      encoder, with fields that no other library has, or imported by `minilm import`.
  """
  place = resolve_model(ref)
  if place.step is None:
    config = classifier.read_card(place.folder).model
    _check_exportable(ref, load_tokenizer(place.folder / run_dir.TOKENIZER), config, as_program)
    saved = classifier.load_classifier(place.folder)
    model, config = _with_float32(saved.model, saved.card)
    return LoadedModel(place, config, model, saved.tokenizer, saved.card, 0, saved.identity)
  recipe = pretrained.load_single_config(place.folder)
  _check_exportable(ref, pretrained.load_tokenizer(place.folder), recipe.model, as_program)
  run = pretrained.load(place.folder, place.step, changes={'dtype': 'float32'})
  model = jax.tree.map(np.asarray, run.model)
  identity = classifier.hash_classifier(model)
  return LoadedModel(
    place, run.config.model, model, run.tokenizer, None, recipe.num_steps, identity
  )


def _check_exportable(
  ref: str, tokenizer: Tokenizer, config: EncoderConfig, as_program: bool
) -> None:
  faults = [
    f'model.{name}={getattr(config, name)!r}'
    for name, value in _EXPORTABLE_VALUES.items()
    if getattr(config, name) != value and not (as_program and name == 'encoder')
  ]
  if wrapped_tokenizer.is_wrapped(tokenizer.model):
    faults.insert(0, 'a tokenizer that minilm import brought')
  if faults:
    raise InputError(
      f'an export of {ref}',
      ', '.join(faults),
      'use it here, or export a model of ours that was pre-trained here; --format=stablehlo takes a '
      'classifier of any encoder',
    )


def _with_float32(model: Classifier, card: Card) -> tuple[Classifier, EncoderConfig]:
  """Returns the same weights in a model that computes in float32, and its configuration."""
  config = dataclasses.replace(card.model, dtype='float32')
  shapes = jax.eval_shape(
    lambda: init_classifier(config, card.head, len(card.labels), jax.random.key(0))
  )
  return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model)), config


def existing_export(workdir: str, identity: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the record of an existing export of the same model; None for an empty folder.

  Raises:
    InputError: the folder holds something else.
  """
  folder = pathlib.Path(workdir)
  if '://' in workdir:
    raise InputError(f'an export to {workdir}', 'no local folder', 'export to one here and copy it')
  if not os.path.lexists(folder) or folder.is_dir() and not any(folder.iterdir()):
    return None
  if (folder / EXPORT_RECORD).is_file():
    record = files.read_object(
      folder / EXPORT_RECORD, f'the export in {folder}', dict.fromkeys(identity, ANY)
    )
    if all(record[name] == value for name, value in identity.items()):
      return record
  raise InputError(f'an export to {folder}', 'other things are there', _OTHER_WORKDIR)


@contextlib.contextmanager
def atomic_export_folder(workdir: str) -> Iterator[pathlib.Path]:
  """Yields a new folder beside `workdir` that is renamed to it at the end, or removed on a failure.

  Raises:
    InputError: the folder cannot be made, or `workdir` is no longer empty.
  """
  target = pathlib.Path(workdir).absolute()
  missing = [parent for parent in target.parents if not parent.exists()]
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
  except OSError as error:
    raise InputError(
      f'an export to {workdir}', f'the folder cannot be made: {error}', _OTHER_WORKDIR
    ) from None
  complete = False
  try:
    yield folder
    folder.chmod(0o777 & ~_umask())  # a temporary folder is for one user alone
    folder.rename(target)  # replaces nothing, or an empty folder
    complete = True
  except OSError as error:
    raise InputError(
      f'an export to {workdir}', f'it cannot be written: {error}', _OTHER_WORKDIR
    ) from None
  finally:
    if not complete:
      shutil.rmtree(folder, ignore_errors=True)
      for parent in missing:
        with contextlib.suppress(OSError):
          parent.rmdir()  # only if it is empty


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
