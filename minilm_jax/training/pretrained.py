"""Loads pre-training runs: recipe, manifest, tokenizer, model; extracts members of populations."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from etils import epath
from jax.sharding import Mesh

from minilm_jax.core import files, lock, old_names, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.model.heads import init_masked_language_model
from minilm_jax.training import checkpoint, metrics_log, population, train_step
from minilm_jax.training.train_step import TrainState

T = TypeVar('T')
PARTS = {'model': 'model', 'encoder': 'model.encoder'}  # paths in a checkpoint


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint of a run.

  Attributes:
    config: the recipe of the run.
    tokenizer: of the run.
    model: the masked language model, or its encoder; of a population with a leading axis `P`.
    step: of the checkpoint.
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
    workdir: of the run.
    step: of the checkpoint; the latest by default.
    part: 'model' for the masked language model, 'encoder' for its encoder.
    mesh: holds a copy on every device, or the members along its axis `population`; the first device
      by default.
    changes: fields of the model's configuration to replace, such as `dropout`.
    allow_population: loads all members of a population too.

  Raises:
    InputError: the directory is no pre-training run, holds a population, or has no masked-LM head
      (part 'model'); there is no such checkpoint; the tokenizer is another one.
    CorruptCheckpointError: a file differs from what was saved.
  """
  read_config = load_mlm_config if part == 'model' else load_single_config
  config = load_config(workdir) if allow_population else read_config(workdir)
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
  members = config.population.members

  def init(key: Any) -> Any:
    model = init_masked_language_model(config.model, key)
    return model.encoder if part == 'encoder' else model

  init_all = init if members == 1 else lambda key: jax.vmap(init)(jax.random.split(key, members))
  run_tokenizer, step = load_tokenizer(workdir), checkpoint.resolve_step(workdir, step)
  model = restore_model(workdir, init_all, PARTS[part], step)
  if mesh is not None:
    strategy = 'single' if members == 1 else 'map'
    model = jax.device_put(model, population.member_sharding(mesh, strategy))
  return Pretrained(config, run_tokenizer, model, step)


def restore_model(
  workdir: epath.PathLike, init: Callable[[Any], T], prefix: str = 'model', step: int | None = None
) -> T:
  """Restores the part of a checkpoint below `prefix` onto the first device.

  Args:
    workdir: of the run.
    init: a function from a key to a fresh model; it is not run.
    prefix: path of the model in the checkpoint.
    step: of the checkpoint; the latest by default.

  Raises:
    InputError: as `checkpoint.restore_part`.
  """
  return checkpoint.restore_part(workdir, jax.eval_shape(init, jax.random.key(0)), prefix, step)


def load_config(workdir: epath.PathLike) -> RunConfig:
  """Loads the recipe of a run; imports and runs nothing that it names.

  The recipe of an imported run has the fields of its model, and defaults for all others.

  Raises:
    InputError: the directory is neither a pre-training run nor an imported one.
  """
  what = f'the pre-training run {workdir}'
  stored = files.read_object(epath.Path(workdir) / run_dir.CONFIG, what)
  kind = stored['kind'] if 'kind' in stored else None
  if kind == run_dir.IMPORTED:
    stored['kind'] = kind = 'pretrain'
  if kind != 'pretrain':
    raise InputError(
      what,
      f'a folder of kind {kind!r}',
      'give the work directory of minilm pretrain or minilm import',
    )
  try:
    return recipe.resolve(old_names.complete_recipe(stored), kind)
  except InputError as error:
    raise InputError(
      f'{error.asked}, in {run_dir.CONFIG} of {what}',
      error.found,
      'give a run as minilm pretrain or minilm import wrote it',
    ) from None


def load_single_config(workdir: epath.PathLike) -> RunConfig:
  """Loads the recipe of a run of one model.

  Raises:
    InputError: the directory is no pre-training run, or holds a population.
  """
  config = load_config(workdir)
  if config.population.members > 1:
    raise InputError(
      f'the model of {workdir}',
      f'a population of {config.population.members}',
      'extract a member: '
      f'minilm extract-member --checkpoint={workdir} --member=0 --workdir={workdir}-0',
    )
  return config


def load_mlm_config(workdir: epath.PathLike) -> RunConfig:
  """Loads the recipe of a run of one model with a masked-LM head.

  Raises:
    InputError: the directory is no pre-training run, holds a population, or was imported without
      such a head.
  """
  config, record = load_single_config(workdir), run_dir.read_import_record(workdir)
  if record and not record['head']:
    raise InputError(
      f'predictions of masked tokens by the model of {workdir}',
      f'it was imported from {record["from"]} without a masked-LM head',
      'fine-tune it, or import one with such a head: BertForMaskedLM, RobertaForMaskedLM',
    )
  return config


def load_tokenizer(workdir: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer of a run.

  Raises:
    InputError: it is not the one that the run was trained with.
  """
  path = epath.Path(workdir) / run_dir.TOKENIZER
  run_tokenizer = tokenizer.load_tokenizer(path)
  if run_tokenizer.sha256 != run_dir.read_corpus_hashes(workdir)['tokenizer']:
    raise InputError(
      f'the tokenizer of {workdir}',
      f'{path} is not the one that the checkpoint was trained with',
      f'restore it: the corpus of the run has it as {run_dir.TOKENIZER}',
    )
  return run_tokenizer


def extract_member(source: epath.PathLike, member: int, workdir: epath.PathLike) -> dict[str, Any]:
  """Writes checkpoint, log and recipe of a member of a population into a run directory.

  The new run can be resumed: it is the run that the member would have been by itself.

  Args:
    source: the run of the population.
    member: its index, from 0.
    workdir: the new run.

  Returns:
    Its work directory, member, seed and step.

  Raises:
    LockedError: another process uses the work directory.
    InputError: there is no such population, member or checkpoint, the checkpoint is corrupt, or the
      work directory holds another run.
  """
  source, config = epath.Path(source), load_config(source)
  members = config.population.members
  if not 0 <= member < members or members == 1:
    found = f'a population of {members}' if members > 1 else 'a run of one model'
    raise InputError(
      f'member {member} of {source}',
      found,
      f'give --member from 0 to {members - 1}'
      if members > 1
      else 'give the run itself where a model is required',
    )
  step = checkpoint.latest_step(source)
  if step is None:
    raise InputError(
      f'member {member} of {source}', 'no checkpoint saved there', 'let the run reach its first one'
    )
  checkpoint.verify(source, step)
  member_config = population.member_configs(config)[member]
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(
    jax.vmap(functools.partial(train_step.init_state, config=config)),
    population.member_seeds(config),
  )
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
  state = population.select_member(checkpoint.restore(source, like, step), member)
  with lock.hold_lock(workdir):
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
  for name in (run_dir.MANIFEST, run_dir.TOKENIZER):
    files.write_bytes(workdir / name, files.read_bytes(source / name, f'{name} of {source}'))
  lines = [
    {key: value for key, value in line.items() if key != 'member'}
    for line in run_dir.read_lines(source / run_dir.METRICS)
    if line['member'] == member and line['step'] <= step
  ]
  run_dir.write_lines(workdir / run_dir.METRICS, lines)
  with checkpoint.open_writer(workdir, config.checkpoint.keep_last) as writer:
    writer.save(state, step)
  if step == config.num_steps and (source / run_dir.RESULT).exists():
    metrics_log.write_result(config, workdir)
