"""Starts runs with the weights of another run: `--init_from` and `--init_optimizer`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Sharding

from minilm_jax.core import distributed, files, paths, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.heads import trace_masked_language_model
from minilm_jax.training import checkpoint, optimizer, pretrained, sharding, train_step
from minilm_jax.training.program import TrainProgram
from minilm_jax.training.train_step import TrainState

# Fields of a model without influence on the meaning of its weights.
_FREE_FIELDS = ('dropout', 'initialization', 'flops_heads', 'dtype', 'remat')


@dataclasses.dataclass(frozen=True)
class Origin:
  """The checkpoint that gives a new run its first weights.

  Attributes:
    folder: The run directory of the checkpoint.
    step: Step of the checkpoint; None for the latest.
    optimizer: Whether the checkpoint also gives the moments of the optimizer.
  """

  folder: str
  step: int | None = None
  optimizer: bool = False

  def __str__(self) -> str:
    step = '' if self.step is None else f'@{self.step}'
    return f'{self.folder}{step}{" with its optimizer" if self.optimizer else ""}'


def parse_origin(name: str, has_optimizer: bool = False) -> Origin | None:
  """Returns the origin that `--init_from=RUN[@STEP]` names; None for ''.

  Raises:
    InputError: The name has several steps, or is empty with `--init_optimizer`.
  """
  if not name:
    if has_optimizer:
      raise InputError('--init_optimizer', 'no --init_from', 'give --init_from=RUN or RUN@STEP')
    return None
  folder, step = paths.split_step(name)
  if step == 'all':
    raise InputError(f'--init_from={name}', 'several steps', 'give RUN, or RUN@STEP for one step')
  return Origin(folder, int(step) if step else None, has_optimizer)


def resolve_origin(
  config: RunConfig, workdir: epath.PathLike, origin: Origin | None
) -> dict[str, Any]:
  """Returns the field `origin` of the manifest of a new run; {} without an origin, or on resuming.

  Raises:
    InputError: The model does not fit the origin, see `check_origin`. The run directory
      has a run from another origin; the origin of a resumed run is not read.
  """
  if origin is None:
    return {}
  if not (epath.Path(workdir) / run_dir.MANIFEST).exists():
    step = check_origin(config, origin)
    link = run_dir.link_source(origin.folder, workdir)
    fields = {'checkpoint_step': step, 'optimizer': origin.optimizer}
    return {'checkpoint': origin.folder, **link, **fields}
  stored = _read_origin(workdir)
  if (
    stored is None
    or not paths.is_same(stored.folder, origin.folder)
    or origin.step not in (None, stored.step)
    or origin.optimizer != stored.optimizer
  ):
    raise InputError(
      f'a run from {origin} in {workdir}',
      f'a run from {"random weights" if stored is None else stored}',
      'give another --workdir, or omit --init_from and --init_optimizer to resume this run',
    )
  return {}


def _read_origin(workdir: epath.PathLike) -> Origin | None:
  """Returns the origin in the manifest of a run."""
  record = run_dir.read_origin(workdir)
  if not record:
    return None
  folder = run_dir.find_source(workdir, record, record['checkpoint'])
  return Origin(folder, record['checkpoint_step'], record['optimizer'])


def check_origin(config: RunConfig, origin: Origin) -> int:
  """Checks that the model of a recipe can start with a checkpoint; returns the step.

  Raises:
    InputError: The checkpoint is missing or damaged, or is that of a population. The model has other
      fields, of which the error names the first. The optimizer differs.
  """
  source = pretrained.load_mlm_config(origin.folder)
  step, saved = checkpoint.resolve_step(origin.folder, origin.step), origin.folder
  subject = f'the weights of step {step} of {saved}'
  if damage := checkpoint.find_damage(checkpoint.step_folder(saved, step)):
    raise InputError(subject, damage, 'restore the files from a copy, or give another step')
  if fields := _list_different_fields(config, source):
    name = next(iter(fields))
    raise InputError(
      f'{subject} for model.{name}={getattr(config.model, name)}',
      f'model.{name}={getattr(source.model, name)} in {saved}',
      f'give {" ".join(f"--config.model.{name}={value}" for name, value in fields.items())}',
    )
  if origin.optimizer and run_dir.read_import_record(saved):
    raise InputError(f'the optimizer of {saved}', 'an imported model', 'omit --init_optimizer')
  algorithm = source.optimizer.algorithm
  if origin.optimizer and algorithm != config.optimizer.algorithm:
    raise InputError(
      f'the optimizer of {saved} for optimizer.algorithm={config.optimizer.algorithm}',
      f'optimizer.algorithm={algorithm} in {saved}',
      f'give --config.optimizer.algorithm={algorithm}, or omit --init_optimizer',
    )
  return step


def _list_different_fields(config: RunConfig, source: RunConfig) -> dict[str, str]:
  """Returns the fields of the model of a run that its origin has with another value, as text."""
  length, free = config.model.max_length, list(_FREE_FIELDS)
  # Models without learned positions accept rows of any length.
  if length != source.model.max_length and config.model.encoder == source.model.encoder:
    models = source.model, dataclasses.replace(source.model, max_length=length)
    first, second = (jax.tree.leaves(trace_masked_language_model(model)) for model in models)
    free += ['max_length'] if first == second else []
  fields, new_fields = recipe.as_dict(source)['model'], recipe.as_dict(config)['model']
  return {
    name: ','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    for name, value in fields.items()
    if name not in free and value != new_fields[name]
  }


def _load_origin(config: RunConfig, origin: Origin, target: Sharding) -> tuple[Any, Any]:
  """Returns the model of an origin, and the state of its optimizer or None."""
  source = pretrained.load_single_config(origin.folder)
  shapes = jax.eval_shape(
    functools.partial(
      train_step.init_state, config=dataclasses.replace(config, optimizer=source.optimizer)
    ),
    np.uint32(config.seed),
  )
  restore = functools.partial(
    checkpoint.restore_part, origin.folder, step=origin.step, sharding=target
  )
  moments = restore(shapes.optimizer, 'optimizer') if origin.optimizer else None
  return restore(shapes.model, 'model'), moments


def make_start_state(config: RunConfig, workdir: epath.Path, program: TrainProgram) -> TrainState:
  """Returns the state before the first step; all members have the weights of an origin."""
  state, origin = program.init(), _read_origin(workdir)
  if origin is None:
    return state
  model, moments = _load_origin(config, origin, sharding.replicated(program.mesh))
  checksum = pretrained.hash_weights(model)
  distributed.primary_first(lambda: _check_weights(workdir, checksum))
  progress.log(f'starting with the weights of {run_dir.name_origin(workdir)}')

  def start(state: TrainState, model: Any, moments: Any) -> TrainState:
    fresh = state.optimizer
    return dataclasses.replace(
      state,
      model=jax.tree.map(lambda new, old: jnp.broadcast_to(old, new.shape), state.model, model),
      optimizer=fresh if moments is None else optimizer.continue_moments(fresh, moments),
    )

  shardings = jax.tree.map(lambda shape: shape.sharding, program.shapes)
  return jax.jit(start, out_shardings=shardings)(state, model, moments)


def _check_weights(workdir: epath.Path, checksum: str) -> None:
  """Stores the checksum of the weights of the origin, or compares it with the stored one."""
  manifest = files.read_object(workdir / run_dir.MANIFEST, f'the manifest of {workdir}')
  origin = manifest[run_dir.ORIGIN]
  if 'weights' not in origin:
    manifest[run_dir.ORIGIN] = origin | {'weights': checksum}
    files.write_json(workdir / run_dir.MANIFEST, manifest)
  elif origin['weights'] != checksum:
    raise InputError(
      f'the weights of {run_dir.name_origin(workdir)}, from which the run in {workdir} started',
      f'weights with the checksum {checksum[:12]}, not {origin["weights"][:12]}',
      'restore the checkpoint from a copy, or give another --workdir',
    )
