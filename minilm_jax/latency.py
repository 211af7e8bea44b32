"""How long one answer takes: of a classifier, of a committee of it, of other shapes; all with fresh weights.

Protocol: rows of random ordinary pieces, full to their last token, in batches of 1 and of 32. A call goes from token
ids on the host to probabilities on the host, and a committee's are its members' mean. Each contestant compiles and
answers `_WARM` times untimed; then all answer in turns, once a round, and the median and the 95th percentile over
rounds are printed. FLOPs are of the matrix products for one row; the depth is the number of layers that must run one
after another where a committee has what it is spread over: what no machine, however wide, can shorten.

Left out: tokenizing, which costs all the same, and a queue of requests.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich import table as rich_table

from minilm_jax import machine
from minilm_jax.config import EncoderConfig, HeadConfig, RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.model import size as sizes
from minilm_jax.model.heads import Classifier, classifier
from minilm_jax.tasks import forward
from minilm_jax.training import population

BATCHES, CLASSES, LENGTH = (1, 32), 4, 128
_WARM = 10
_HEAD = HeadConfig('first', 0.0)
Answer = Callable[[np.ndarray], np.ndarray]


def latency(configs: Mapping[str, RunConfig], size: int, calls: int) -> dict[str, Any]:
  """Times answers of the first recipe alone, of a committee of it in three ways, and of the other recipes alone.

  Args:
    configs: pre-training recipes by name, for their shapes; the first is the member.
    size: members of the committee.
    calls: timed rounds.

  Returns:
    `rows`, one a contestant and batch: name, batch, length, members, devices, depth, parameters, flops (a row),
    milliseconds (median, p95, lowest) and `over_member`, the median over that of the member alone; then calls, warm_up,
    machine, load_before, versions.

  Raises:
    InputError: no committee of that size, or nothing to time.
  """
  for name, value, least in (('--size', size, 1), ('--calls', calls, 2)):
    if value < least:
      raise InputError(f'{name}={value}', f'a value below {least}', f'give at least {least}')
  small = next((name for name, one in configs.items() if one.model.vocabulary <= len(pieces.SPECIAL)), '')
  if small:
    raise InputError(f'the latency of {small}', 'a vocabulary of special ids alone', 'give a larger model.vocabulary')
  load, found = machine.load(), []
  for batch in BATCHES:
    made = contestants({name: one.model for name, one in configs.items()}, size)
    seconds = _timed({name: functools.partial(answer, rows(model, batch)) for name, (answer, model, _) in made.items()},
                     calls)
    own = float(np.median(next(iter(seconds.values()))))
    for name, (_, model, facts) in made.items():
      spent = 1e3 * np.array(seconds[name])
      found.append({'name': name, 'batch': batch, 'length': min(LENGTH, model.length), **facts, 'milliseconds': {
          'median': float(np.median(spent)), 'p95': float(np.percentile(spent, 95)), 'lowest': float(spent.min())},
          'over_member': float(np.median(spent)) / 1e3 / own})
  return {'rows': found, 'calls': calls, 'warm_up': _WARM, 'machine': machine.describe(), 'load_before': load,
          'versions': machine.versions()}


def contestants(models: Mapping[str, EncoderConfig],
                size: int) -> dict[str, tuple[Answer, EncoderConfig, dict[str, Any]]]:
  """Who answers, by name: from tokens `[B L]` to probabilities `[B C]`, whose shape it has, and what is known of it."""
  (name, member), *others = models.items()
  found = {name: (_alone(member), member, _facts(member, 1, 1, 1))}
  stacked = _fresh(member, size)
  together = {'one after another': 'loop', 'vmapped': 'vmap'}
  for words, how in together.items():
    turns = size if how == 'loop' else 1
    found[f'{size} x {name}, {words}'] = _committee(stacked, how), member, _facts(member, size, 1, turns)
  mesh = forward.spread(size)
  if mesh.devices.size > 1:
    how = population.how(size, 'auto', mesh.devices.flat[0].platform)
    each = size // mesh.devices.size
    found[f'{size} x {name}, over {mesh.devices.size} devices'] = (
        _spread(stacked, how), member, _facts(member, size, mesh.devices.size, each if how == 'loop' else 1))
  for other, model in others:
    found[other] = _alone(model), model, _facts(model, 1, 1, 1)
  return found


def rows(model: EncoderConfig, batch: int) -> Int[np.ndarray, 'B L']:
  """Rows of ordinary pieces, full to their last token."""
  random = np.random.default_rng(0)
  tokens = random.integers(len(pieces.SPECIAL), model.vocabulary, (batch, min(LENGTH, model.length)), np.int32)
  tokens[:, 0], tokens[:, -1] = pieces.BEGIN, pieces.END
  return tokens


def depth(model: EncoderConfig) -> int:
  """Layers of one model, one after another."""
  return model.layers


def flops(model: EncoderConfig, length: int) -> int:
  """Matrix products of an answer to one row: the encoder, and two layers of the head at one position."""
  return sizes.encoder_flops(model, length) + 2 * model.hidden * (model.hidden + CLASSES)


def _facts(model: EncoderConfig, members: int, devices: int, turns: int) -> dict[str, Any]:
  shapes = jax.eval_shape(lambda: classifier(model, _HEAD, CLASSES, jax.random.key(0)))
  return {'members': members, 'devices': devices, 'depth': turns * depth(model),
          'parameters': members * sum(leaf.size for leaf in jax.tree.leaves(shapes)),
          'flops': members * flops(model, min(LENGTH, model.length))}


def _fresh(model: EncoderConfig, members: int) -> Classifier:
  """Members with weights of their own, stacked, on the host."""
  made = jax.jit(jax.vmap(lambda seed: classifier(model, _HEAD, CLASSES, jax.random.key(seed))))(jnp.arange(members))
  return jax.tree.map(np.asarray, made)


def _probabilities(model: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
  return jax.nn.softmax(forward.probable(model, tokens))


def _alone(model: EncoderConfig) -> Answer:
  one = jax.device_put(jax.tree.map(lambda x: x[0], _fresh(model, 1)), jax.devices()[0])
  answer = jax.jit(_probabilities)
  return lambda tokens: np.asarray(answer(one, tokens))


def _committee(stacked: Classifier, how: str) -> Answer:
  """All members on the first device."""
  placed = jax.device_put(stacked, jax.devices()[0])

  @jax.jit
  def answer(members: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
    one = functools.partial(_probabilities, tokens=tokens)
    return (jax.vmap(one)(members) if how == 'vmap' else jax.lax.map(one, members)).mean(0)

  return lambda tokens: np.asarray(answer(placed, tokens))


def _spread(stacked: Classifier, how: str) -> Answer:
  """Some members on each device, as `tasks/forward.py` runs them."""
  mesh = forward.spread(jax.tree.leaves(stacked)[0].shape[0])
  placed = population.place(stacked, mesh)
  lifted = population.lift(_probabilities, mesh, 'vmap' if how == 'vmap' else 'loop')
  answer = jax.jit(lambda members, tokens: lifted(members, tokens).mean(0))
  return lambda tokens: np.asarray(answer(placed, tokens))


def _timed(answers: Mapping[str, Callable[[], np.ndarray]], calls: int) -> dict[str, list[float]]:
  """Seconds of each call of each contestant, which take turns."""
  for answer in answers.values():
    for _ in range(1 + _WARM):
      answer()
  found: dict[str, list[float]] = {name: [] for name in answers}
  for _ in range(calls):
    for name, answer in answers.items():
      start = time.perf_counter()
      answer()
      found[name].append(time.perf_counter() - start)
  return found


def tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  table = rich_table.Table('', 'batch', 'ms, median', 'p95', 'to the member', 'depth', 'parameters', 'MFLOPs a row',
                           title=f'Latency: {found["calls"]} answers each')
  for row in found['rows']:
    spent = row['milliseconds']
    table.add_row(row['name'], str(row['batch']), f'{spent["median"]:.3f}', f'{spent["p95"]:.3f}',
                  f'{row["over_member"]:.2f}', str(row['depth']), f'{row["parameters"]:,}',
                  f'{row["flops"] / 1e6:,.1f}')
  facts = rich_table.Table('what', 'value')
  for name, value in (('machine', found['machine']), ('load in the minute before', f'{found["load_before"]:.2f}'),
                      ('untimed answers of each', str(found['warm_up'])),
                      ('versions', ', '.join(f'{name} {version}' for name, version in found['versions'].items()))):
    facts.add_row(name, value)
  return [table, facts]
