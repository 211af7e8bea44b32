"""What leaves the house: a model found by the name that `--checkpoint` gives it, and a folder that
appears whole.

A model is the checkpoint of a pre-training run, `run` or `run@step`, or a classifier that
`--config.save_classifiers=True` saved. What is made of it, and for whom, is left to `hf_export`,
`serving` and `model_card`.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.core.schema import ANY, TEXT
from minilm_jax.data import build, tokenizer, wrapped_tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.model.heads import Classifier, MaskedLanguageModel, init_classifier
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier
from minilm_jax.tasks.classifier import Card
from minilm_jax.training import checkpoint, pretrained

EXPORT_RECORD = 'export.json'  # what a folder is an export of
# fields of shapes that others have no words for, beside `encoder`
_FOREIGN_FILES = ('projection_norm', 'segment_embeddings_for_pairs')
_ELSEWHERE = 'give another --workdir'
_STEP = re.compile(r'(.+)@(\d{1,18})')


@dataclasses.dataclass(frozen=True)
class ModelRef:
  """Where a model is: its folder, and of a run the step of the checkpoint; None of a classifier."""

  folder: epath.Path
  step: int | None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model on the host, in float32 arithmetic whatever it was trained in, and what it needs.

  `card` is that of a classifier, `updates` are those of the whole run, `identity` is a hash of the
  weights.
  """

  place: ModelRef
  config: EncoderConfig
  model: MaskedLanguageModel | Classifier
  tokenizer: Tokenizer
  card: Card | None
  updates: int
  identity: str

  @property
  def head(self) -> HeadConfig | None:
    """That of a classifier."""
    return self.card.head if self.card else None

  @property
  def length(self) -> int:
    """Tokens of a row at most, the special ones included."""
    return self.card.length if self.card else self.config.max_length

  def facts(self) -> dict[str, Any]:
    """What every record of an export says of its source."""
    found: dict[str, Any] = {
      'checkpoint': str(self.place.folder),
      'weights': self.identity,
      'parameters': count_parameters(self.model),
    }
    return found if self.card else found | {'step': self.place.step, 'updates': self.updates}


def model_kind(folder: epath.PathLike) -> str:
  """What a folder holds: 'classifier', or the kind that its config.json says.

  Raises:
    InputError: no folder, or neither a run nor a classifier.
  """
  folder, what = epath.Path(folder), f'the run {folder}'
  if not folder.is_dir():
    raise InputError(
      what,
      'no such folder',
      'give the work directory of minilm pretrain, or a classifier that '
      '--config.save_classifiers=True saved',
    )
  if (folder / classifier.CARD_FILE).exists():
    return classifier.CLASSIFIER_KIND
  if not (folder / run_dir.CONFIG).exists():
    raise InputError(
      what,
      f'neither {run_dir.CONFIG} of a run nor {classifier.CARD_FILE} of a classifier there',
      'give the work directory of minilm pretrain, or a classifier that --config.save_classifiers=True saved',
    )
  return files.read_object(folder / run_dir.CONFIG, what, {'kind': TEXT})['kind']


def parse_ref(given: str) -> tuple[epath.Path, int | None]:
  """The folder and the step that `run` or `run@step` names; a folder that is really called so goes
  first.
  """
  match = None if epath.Path(given).exists() else _STEP.fullmatch(given)
  return (epath.Path(match[1]), int(match[2])) if match else (epath.Path(given), None)


def resolve_model(given: str) -> ModelRef:
  """Where the model is that `--checkpoint` names.

  Raises:
    InputError: no folder, no model in it, several, or no checkpoint of that step.
  """
  folder, step = parse_ref(given)
  found = model_kind(folder)
  if found == classifier.CLASSIFIER_KIND:
    if step is not None:
      raise InputError(
        f'step {step} of {folder}', 'a classifier, which has one checkpoint', f'give {folder}'
      )
    return ModelRef(folder, None)
  if found == 'finetune':
    inside = sorted(one.parent.name for one in folder.glob(f'*/{classifier.CARD_FILE}'))
    raise InputError(
      f'the model of {folder}',
      'the work directory of a fine-tuning, not one model',
      f'give one inside it, such as {folder / inside[0]}'
      if inside
      else 'fine-tune again with --config.save_classifiers=True, which saves classifiers',
    )
  pretrained.load_single_config(folder)
  steps = checkpoint.list_steps(folder)
  if not steps:
    raise InputError(
      f'the checkpoint of {folder}', 'none saved there yet', 'let the run reach its first one'
    )
  if step is not None and step not in steps:
    raise InputError(
      f'the checkpoint of step {step} in {folder}',
      f'there are {", ".join(map(str, steps))}',
      'give one of them; checkpoint.keep_last says how many a run keeps',
    )
  return ModelRef(folder, steps[-1] if step is None else step)


def load_model(given: str, program: bool = False) -> LoadedModel:
  """The model that `--checkpoint` names.

  Args:
    given: as `find` takes it.
    program: it leaves as a program, which needs no words for an encoder of somebody's own.

  Raises:
    InputError: there is none, something of it is not what was saved, or it is one that stays here:
      of somebody's own encoder (of which a program may be, where its code is trusted), or brought
      by `minilm import`.
  """
  place, fields = resolve_model(given), _FOREIGN_FILES if program else ('encoder', *_FOREIGN_FILES)
  if place.step is None:
    _check_ours(
      given,
      tokenizer.load_tokenizer(place.folder / build.TOKENIZER),
      classifier.read_card(place.folder).model,
      fields,
    )
    found = classifier.load_classifier(place.folder)
    model, config = _with_float32(found.model, found.card)
    return LoadedModel(place, config, model, found.tokenizer, found.card, 0, found.identity)
  recipe = pretrained.load_single_config(place.folder)
  _check_ours(given, pretrained.load_tokenizer(place.folder), recipe.model, fields)
  pretrained_run = pretrained.load(place.folder, place.step, changes={'dtype': 'float32'})
  model = jax.tree.map(np.asarray, pretrained_run.model)
  return LoadedModel(
    place,
    pretrained_run.config.model,
    model,
    pretrained_run.tokenizer,
    None,
    recipe.num_steps,
    classifier.hash_classifier(model),
  )


def _check_ours(given: str, reads: Tokenizer, config: EncoderConfig, fields: Sequence[str]) -> None:
  found = (
    ['a tokenizer that minilm import brought'] if wrapped_tokenizer.is_wrapped(reads.model) else []
  )
  found += [f'model.{name}={getattr(config, name)!r}' for name in fields if getattr(config, name)]
  if found:
    raise InputError(
      f'an export of {given}',
      ', '.join(found),
      'use it here, or export a model of ours that was pre-trained here; --format=stablehlo takes a '
      'classifier of any encoder',
    )


def _with_float32(model: Classifier, card: Card) -> tuple[Classifier, EncoderConfig]:
  """The same weights in a model that computes in float32, and its configuration."""
  config = dataclasses.replace(card.model, dtype='float32')
  shapes = jax.eval_shape(
    lambda: init_classifier(config, card.head, len(card.labels), jax.random.key(0))
  )
  return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model)), config


def existing_export(workdir: str, identity: dict[str, Any]) -> dict[str, Any] | None:
  """The record of an export that stands there already, where it is of the same; None where nothing
  is there.

  Raises:
    InputError: the folder holds something else.
  """
  folder = pathlib.Path(workdir)
  if '://' in workdir:
    raise InputError(f'an export to {workdir}', 'no local folder', 'export to one here and copy it')
  if not os.path.lexists(folder) or folder.is_dir() and not any(folder.iterdir()):
    return None
  if (folder / EXPORT_RECORD).is_file():
    found = files.read_object(
      folder / EXPORT_RECORD, f'the export in {folder}', dict.fromkeys(identity, ANY)
    )
    if all(found[name] == value for name, value in identity.items()):
      return found
  raise InputError(f'an export to {folder}', 'other things are there', _ELSEWHERE)


@contextlib.contextmanager
def atomic_export_folder(workdir: str) -> Iterator[pathlib.Path]:
  """A new folder beside `workdir` to write into, which becomes it at the end; where the block
  fails, it goes.

  Raises:
    InputError: it cannot be made, or something came into `workdir` meanwhile.
  """
  target = pathlib.Path(workdir).absolute()
  missing = [one for one in target.parents if not one.exists()]
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
  except OSError as error:
    raise InputError(
      f'an export to {workdir}', f'the folder cannot be made: {error}', _ELSEWHERE
    ) from None
  done = False
  try:
    yield made
    made.chmod(0o777 & ~_umask())  # a temporary folder is for one user alone
    made.rename(target)  # onto nothing, or an empty folder
    done = True
  except OSError as error:
    raise InputError(
      f'an export to {workdir}', f'it cannot be written: {error}', _ELSEWHERE
    ) from None
  finally:
    if not done:
      shutil.rmtree(made, ignore_errors=True)
      for one in missing:
        with contextlib.suppress(OSError):
          one.rmdir()  # only where it is empty


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
