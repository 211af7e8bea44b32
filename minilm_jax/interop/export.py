"""Resolves `--checkpoint` to a model, and writes export folders atomically.

A model is a checkpoint of a pre-training run, `run` or `run@step`, or a classifier that
`--config.save_classifiers=True` saved. `hf_export`, `stablehlo` and `model_card` write the formats.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from minilm_jax.core import files, paths, run_dir
from minilm_jax.core.errors import TEXT, InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data import wrapped_tokenizer
from minilm_jax.data.tokenizer import Tokenizer, load_tokenizer
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier
from minilm_jax.tasks.classifier import Card, SavedClassifier
from minilm_jax.training import checkpoint, pretrained

EXPORT_RECORD = 'export.json'  # the source and the checks of an export
# Other libraries support only these values; a StableHLO program may have a custom encoder.
_EXPORTABLE_VALUES = {'encoder': '', 'projection_norm': True, 'segment_embeddings_for_pairs': False}
_OTHER_WORKDIR = 'give another --workdir'
_USE_RUN_OR_CLASSIFIER = (
  'give the work directory of minilm pretrain, or a classifier of minilm finetune '
  '--config.save_classifiers=True'
)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model on the host that computes in float32.

  Attributes:
    folder: The run directory or the folder of a classifier.
    step: Step of the checkpoint of a run; None for a classifier.
    card: The card of a classifier; None for a run.
    num_steps: Number of updates of the run; 0 for a classifier.
    identity: Hash of the weights.
  """

  folder: epath.Path
  step: int | None
  config: EncoderConfig
  model: MaskedLanguageModel | Classifier
  tokenizer: Tokenizer
  card: Card | None
  num_steps: int
  identity: str

  @property
  def head(self) -> HeadConfig | None:
    """Configuration of the head of a classifier; None for a run."""
    return self.card.head if self.card else None

  @property
  def length(self) -> int:
    """Maximum number of tokens of a row, special tokens included."""
    return self.card.length if self.card else self.config.max_length

  def classifier(self) -> SavedClassifier:
    """Returns the model as a classifier.

    Raises:
      InputError: The model is that of a pre-training run.
    """
    if self.card is None or not isinstance(self.model, Classifier):
      raise InputError(
        f'a classifier of {self.folder}',
        'a pre-training run',
        'give a classifier of minilm finetune ... --config.save_classifiers=True',
      )
    return SavedClassifier(self.card, self.model, self.tokenizer, self.identity)

  def describe_source(self) -> dict[str, Any]:
    """Returns the fields of every export.json."""
    fields: dict[str, Any] = {
      'checkpoint': str(self.folder),
      'weights': self.identity,
      'parameters': count_parameters(self.model),
    }
    return fields if self.card else fields | {'step': self.step, 'updates': self.num_steps}


def model_kind(folder: epath.PathLike) -> str:
  """Returns 'classifier', or the kind in the config.json of a run.

  Raises:
    InputError: The folder is missing, or neither a run nor a classifier.
  """
  folder, subject = epath.Path(folder), f'the run {folder}'
  if not folder.is_dir():
    raise InputError(subject, 'no such folder', _USE_RUN_OR_CLASSIFIER)
  if (folder / classifier.CARD_FILE).exists():
    return classifier.CLASSIFIER_KIND
  if not (folder / run_dir.CONFIG).exists():
    raise InputError(
      subject,
      f'neither {run_dir.CONFIG} of a run nor {classifier.CARD_FILE} of a classifier',
      _USE_RUN_OR_CLASSIFIER,
    )
  return files.read_object(folder / run_dir.CONFIG, subject, {'kind': TEXT})['kind']


def parse_ref(ref: str) -> tuple[epath.Path, int | None]:
  """Returns folder and step of `run` or `run@step`; an existing folder `run@step` has priority."""
  folder, step = paths.split_step(ref)
  return (epath.Path(folder), int(step)) if step.isdecimal() else (epath.Path(ref), None)


def resolve_model(ref: str) -> tuple[epath.Path, int | None]:
  """Returns the folder of a model, and the step of a run, from the value of `--checkpoint`.

  Raises:
    InputError: The folder is missing, has no model or several models, or lacks the checkpoint.
  """
  folder, step = parse_ref(ref)
  kind = model_kind(folder)
  if kind == classifier.CLASSIFIER_KIND:
    if step is not None:
      raise InputError(
        f'step {step} of {folder}', 'a classifier, which has no steps', f'give {folder}'
      )
    return folder, None
  if kind == 'finetune':
    names = sorted(
      card.parent.name for card in paths.list_matches(folder, f'*/{classifier.CARD_FILE}')
    )
    raise InputError(
      f'the model of {folder}',
      'the work directory of minilm finetune, not a single model',
      f'give a classifier in the directory, such as {folder / names[0]}'
      if names
      else 'fine-tune again with --config.save_classifiers=True',
    )
  pretrained.load_single_config(folder)
  return folder, checkpoint.resolve_step(folder, step)


def load_model(ref: str, as_program: bool = False) -> LoadedModel:
  """Loads a model from the value of `--checkpoint`.

  An export `as_program` may have a custom encoder.

  Raises:
    InputError: The model is missing, damaged or not exportable: it has a custom encoder, fields
      without a counterpart in other libraries, or was imported by `minilm import`.
  """
  folder, step = resolve_model(ref)
  if step is None:
    config = classifier.read_card(folder).model
    _check_exportable(ref, load_tokenizer(folder / run_dir.TOKENIZER), config, as_program)
    saved = classifier.load_classifier(folder, changes={'dtype': 'float32'})
    card, model = saved.card, saved.model
    return LoadedModel(folder, None, card.model, model, saved.tokenizer, card, 0, saved.identity)
  recipe = pretrained.load_single_config(folder)
  _check_exportable(ref, pretrained.load_tokenizer(folder), recipe.model, as_program)
  run = pretrained.load(folder, step, changes={'dtype': 'float32'})
  model = jax.tree.map(np.asarray, run.model)
  identity = pretrained.hash_weights(model)
  return LoadedModel(
    folder, step, run.config.model, model, run.tokenizer, None, recipe.num_steps, identity
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
    faults.insert(0, 'a tokenizer of minilm import')
  if faults:
    remedy = 'export a model of minilm pretrain with supported fields'
    if all(fault.startswith('model.encoder=') for fault in faults):
      remedy = 'export a classifier with --format=stablehlo, or a model without custom encoder'
    raise InputError(f'an export of {ref}', ', '.join(faults), remedy)


def existing_export(workdir: str, identity: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the export.json of an existing export of the same model; None for an empty folder.

  Raises:
    InputError: The folder has another export or other files, or is not on this machine.
  """
  folder = pathlib.Path(workdir)
  if '://' in workdir:
    raise InputError(
      f'an export to {workdir}', 'not a local folder', 'export to a local folder and copy the files'
    )
  if not os.path.lexists(folder) or folder.is_dir() and not any(folder.iterdir()):
    return None
  if (folder / EXPORT_RECORD).is_file():
    record = files.read_object(folder / EXPORT_RECORD, f'the export in {folder}', {'to': TEXT})
    other = {
      name: record[name] if name in record else 'absent'
      for name, value in identity.items()
      if name not in record or not paths.is_same(record[name], value)
    }
    if not other:
      return record
    difference = ', '.join(f'{name} is {value}' for name, value in other.items())
    raise InputError(f'an export to {folder}', f'another export: {difference}', _OTHER_WORKDIR)
  raise InputError(f'an export to {folder}', 'other files in the folder', _OTHER_WORKDIR)


@contextlib.contextmanager
def atomic_export_folder(workdir: str) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that becomes `workdir` after the block, or is removed on a failure.

  Raises:
    InputError: The folder cannot be created or renamed.
  """
  target = pathlib.Path(workdir).resolve()  # a link to an empty folder cannot be replaced
  folder = target.parent / f'.{target.name}.{uuid.uuid4().hex[:8]}'
  missing = [parent for parent in target.parents if not parent.exists()]
  try:
    folder.mkdir(parents=True)
    yield folder
    folder.rename(target)  # replaces only an empty folder
  except OSError as error:
    raise InputError(
      f'an export to {workdir}', f'the folder cannot be written: {error}', _OTHER_WORKDIR
    ) from None
  finally:
    shutil.rmtree(folder, ignore_errors=True)  # exists only after a failure
    for parent in missing:
      with contextlib.suppress(OSError):
        parent.rmdir()  # fails if the folder is not empty
