"""Loads pre-training runs: recipe, manifest, tokenizer, model; extracts members of populations."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from minilm_jax.core import distributed, files, lock, old_names, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.model.heads import trace_masked_language_model
from minilm_jax.model.initialization import flatten
from minilm_jax.training import checkpoint, metrics_log, population, train_step
from minilm_jax.training.train_step import TrainState

PARTS = {'model': 'model', 'encoder': 'model.encoder'}  # paths in a checkpoint


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint of a run.

  Attributes:
    model: The masked language model, or its encoder; with a leading axis `P` for a population.
  """

  config: RunConfig
  tokenizer: Tokenizer
  model: Any
  step: int


def load(
  workdir: epath.PathLike,
  step: int | None = None,
  part: str = 'model',
  mesh: Mesh | None = None,
  changes: Mapping[str, Any] = {},
  allow_population: bool = False,
) -> Pretrained:
  """Loads a checkpoint of a run.

  Args:
    part: 'model' for the masked language model, 'encoder' for its encoder.
    mesh: Copies the model to every device, or puts members along the axis `population`; the first
      device by default.
    changes: Fields of `config.model` to replace, such as `dropout`.
    allow_population: Whether to load all members of a population instead of refusing it.

  Raises:
    InputError: The directory is not a pre-training run, holds a population, or has no masked-LM
      head (part 'model'). The checkpoint is missing. The tokenizer is not that of the run.
    CorruptCheckpointError: A file differs from its checksum.
  """
  read_config = load_mlm_config if part == 'model' else load_single_config
  config = load_config(workdir) if allow_population else read_config(workdir)
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
  members = config.population.members
  run_tokenizer, step = load_tokenizer(workdir), checkpoint.resolve_step(workdir, step)
  shapes: Any = trace_masked_language_model(config.model)
  shapes = shapes.encoder if part == 'encoder' else shapes
  if members > 1:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), shapes)
  model = checkpoint.restore_part(workdir, shapes, PARTS[part], step)
  if mesh is not None:
    strategy = 'single' if members == 1 else 'map'
    model = jax.device_put(model, population.member_sharding(mesh, strategy))
  return Pretrained(config, run_tokenizer, model, step)


def load_config(workdir: epath.PathLike) -> RunConfig:
  """Loads the recipe of a run, without running any code that the recipe names.

  The recipe of an imported run has the fields of its model, and defaults for all other fields.

  Raises:
    InputError: The directory is neither a pre-training run nor an imported model.
  """
  subject = f'the pre-training run {workdir}'
  remedy = 'give the work directory of minilm pretrain or minilm import'
  if (epath.Path(workdir) / run_dir.CLASSIFIER).exists():
    raise InputError(subject, f'a saved classifier with {run_dir.CLASSIFIER}', remedy)
  stored = files.read_object(epath.Path(workdir) / run_dir.CONFIG, subject)
  kind = stored['kind'] if 'kind' in stored else None
  if kind == run_dir.IMPORTED:
    stored['kind'] = kind = 'pretrain'
  if kind != 'pretrain':
    raise InputError(subject, f'kind={kind!r} in {run_dir.CONFIG}', remedy)
  try:
    return recipe.resolve(old_names.complete_recipe(stored), kind)
  except InputError as error:
    raise InputError(
      f'{error.asked}, in {run_dir.CONFIG} of {subject}',
      error.found,
      'give an unchanged run directory of minilm pretrain or minilm import',
    ) from None


def load_single_config(workdir: epath.PathLike) -> RunConfig:
  """Loads the recipe of a run of one model.

  Raises:
    InputError: The directory is not a pre-training run, or holds a population.
  """
  config = load_config(workdir)
  if config.population.members > 1:
    raise InputError(
      f'the model of {workdir}',
      f'a population of {config.population.members} models',
      'extract a member: '
      f'minilm extract-member --checkpoint={workdir} --member=0 --workdir={workdir}-0',
    )
  return config


def load_mlm_config(workdir: epath.PathLike) -> RunConfig:
  """Loads the recipe of a run of one model with a masked-LM head.

  Raises:
    InputError: The directory is not a pre-training run, holds a population, or was imported without
      a masked-LM head.
  """
  config, record = load_single_config(workdir), run_dir.read_import_record(workdir)
  if record and not record['head']:
    raise InputError(
      f'predictions of masked tokens by the model of {workdir}',
      f'no masked-LM head in {record["from"]}, the source of the import',
      'use the model for fine-tuning, or import a BertForMaskedLM or RobertaForMaskedLM',
    )
  return config


def load_tokenizer(workdir: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer of a run.

  Raises:
    InputError: The tokenizer has another hash than the manifest of the run.
  """
  path = epath.Path(workdir) / run_dir.TOKENIZER
  run_tokenizer = tokenizer.load_tokenizer(path)
  if run_tokenizer.sha256 != run_dir.read_corpus_hashes(workdir)['tokenizer']:
    raise InputError(
      f'the tokenizer of {workdir}',
      f'{path} has another sha256 than the tokenizer of the training',
      f'copy {run_dir.TOKENIZER} from the corpus of the run',
    )
  return run_tokenizer


def hash_weights(model: Any) -> str:
  """Returns the SHA-256 checksum of the names, shapes, types and bytes of all weights."""
  digest = hashlib.sha256()
  for name, array in sorted(flatten(distributed.to_host(model)).items()):
    digest.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def extract_member(source: epath.PathLike, member: int, workdir: epath.PathLike) -> dict[str, Any]:
  """Writes checkpoint, log and recipe of a member of a population into a run directory.

  The new run equals a run of the member alone, and can be resumed.

  Returns:
    `workdir`, `member`, `seed` and `step` of the new run.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: Population, member or checkpoint are missing; the checkpoint is corrupt; the work
      directory holds another run, or a later checkpoint of the member.
  """
  source, config = epath.Path(source), load_config(source)
  members = config.population.members
  if not 0 <= member < members or members == 1:
    raise InputError(
      f'member {member} of {source}',
      f'population.members={members}',
      f'give --member from 0 to {members - 1}'
      if members > 1
      else f'use --checkpoint={source} without extracting a member',
    )
  step = checkpoint.resolve_step(source)
  member_config = population.member_configs(config)[member]
  shapes = jax.eval_shape(
    jax.vmap(functools.partial(train_step.init_state, config=config)),
    population.member_seeds(config),
  )
  state = population.select_member(checkpoint.restore_part(source, shapes, '', step), member)
  with lock.hold_lock(workdir):
    if (later := checkpoint.latest_step(workdir) or 0) > step:
      raise InputError(
        f'member {member} of {source} at update {step:,} in {workdir}',
        f'the checkpoint of update {later:,} there',
        'give another --workdir',
      )
    _write_member(
      member_config, state, member, source, run_dir.open_run(workdir, recipe.as_dict(member_config))
    )
  return {
    'workdir': str(workdir),
    'member': member,
    'seed': member_config.seed,
    'step': int(state.step),
  }


def _write_member(
  config: RunConfig, state: TrainState, member: int, source: epath.Path, workdir: epath.Path
) -> None:
  """Writes the files of an extracted member."""
  step = int(state.step)
  name = run_dir.TOKENIZER
  files.write_bytes(workdir / name, files.read_bytes(source / name, f'{name} of {source}'))
  manifest = files.read_object(source / run_dir.MANIFEST, f'the manifest of {source}')
  corpus_folder = run_dir.read_corpus_hashes(source)['corpus_folder']
  manifest |= run_dir.name_corpus(workdir, corpus_folder) if corpus_folder else {}
  if origin := run_dir.read_origin(source):
    folder = run_dir.find_source(source, origin, origin['checkpoint'])
    manifest[run_dir.ORIGIN] = origin | {
      'checkpoint': folder,
      **run_dir.link_source(folder, workdir),
    }
  files.write_json(workdir / run_dir.MANIFEST, manifest)
  lines = [
    {key: value for key, value in line.items() if key != 'member'}
    for line in run_dir.read_lines(source / run_dir.METRICS, (*run_dir.RUN_LINE, 'member'))
    if line['member'] == member and line['step'] <= step
  ]
  run_dir.write_lines(workdir / run_dir.METRICS, lines)
  with checkpoint.open_writer(workdir, config.checkpoint.keep_last) as writer:
    writer.save(state, step)
  if step == config.num_steps and (source / run_dir.RESULT).exists():
    metrics_log.write_result(config, workdir)
