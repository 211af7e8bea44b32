"""One member of a population run as a run of its own, which every verb takes like any other."""

import functools
from typing import Any

import jax
from etils import epath

from minilm_jax import claim, recipe, run, untrusted
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language import build
from minilm_jax.training import checkpoint, journal, population, start, steps


def take(source: epath.PathLike, number: int, workdir: epath.PathLike) -> dict[str, Any]:
  """Writes the latest checkpoint, the log and the recipe of a member into a run directory of its own.

  The run can be gone on with: it is the one that the member would have been alone.

  Args:
    source: the run of the population.
    number: of the member, from 0.
    workdir: the new run.

  Returns:
    Where it is, and its seed and step.

  Raises:
    Held: another process is at work in the work directory.
    InputError: no population, member or checkpoint is there, the latest one is damaged, or the work directory holds
      another run.
  """
  source, config = epath.Path(source), start.pretraining(source)
  count = config.population.members
  if not 0 <= number < count or count == 1:
    found = f'a population of {count}' if count > 1 else 'a run of one model'
    raise InputError(f'member {number} of {source}', found, f'give --member from 0 to {count - 1}' if count > 1
                     else 'give the run itself where a model is wanted')
  step = checkpoint.latest(source)
  if step is None:
    raise InputError(f'member {number} of {source}', 'no checkpoint saved there', 'let the run reach its first one')
  checkpoint.check(source, step)
  alone = population.solo(config)[number]
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(jax.vmap(functools.partial(steps.init_state, config=config)), population.seeds(config))
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
  state = population.take(checkpoint.restore(source, like, step), number)
  with claim.held(workdir):
    _write(alone, state, number, source, run.open_run(workdir, recipe.as_dict(alone)))
  return {'workdir': str(workdir), 'member': number, 'seed': alone.seed, 'step': int(state.step)}


def _write(alone: RunConfig, state: steps.TrainState, number: int, source: epath.Path, workdir: epath.Path) -> None:
  done = int(state.step)
  for name in (run.MANIFEST, build.TOKENIZER):
    run.write_bytes(workdir / name, untrusted.read_bytes(source / name, f'{name} of {source}'))
  lines = [{key: value for key, value in line.items() if key != 'member'}
           for line in run.read_lines(source / run.METRICS) if line['member'] == number and line['step'] <= done]
  run.write_lines(workdir / run.METRICS, lines)
  with checkpoint.manager(workdir, alone.checkpoint.keep) as saves:
    checkpoint.save(saves, state, done)
  if done == alone.updates and (source / run.RESULT).exists():
    journal.finish(alone, workdir)
