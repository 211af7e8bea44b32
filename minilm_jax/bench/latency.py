"""How long one answer takes: of a classifier, of a committee of it, of other shapes; all with fresh
weights.

Protocol: rows of random ordinary pieces, full to their last token, in batches of 1 and of 32. A
call goes from token ids on the host to probabilities on the host, and a committee's are its
members' mean. Each contestant compiles and answers `_WARM` times untimed; then all answer in turns,
once a round, and the median and the 95th percentile over rounds are printed. The 95% interval of a
median is that of the order statistics of the rounds, which supposes nothing about their
distribution but that they are independent. FLOPs are of the matrix products for one row.

The depth is the number of layers that must run one after another where a committee has what it is
spread over: what no machine, however wide, can shorten. Each block is one, and each convolution of
the front-end is one, the last one, of 1 x 1, too; embedding and heads are not counted, and heads of
one body stand side by side.

Left out: tokenizing, which costs all the same, and a queue of requests.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from rich import table as rich_table
from scipy import stats

from minilm_jax.bench import machine
from minilm_jax.core import files, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.model import flops
from minilm_jax.model.heads import Classifier, init_classifier
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier
from minilm_jax.training import population

LATENCY_KIND = 'latency'
BATCHES, CLASSES, MAX_LENGTH, COMMITTEE_SIZE = (1, 32), 4, 128, 5
_WARMUP_CALLS = 10
_HEAD = HeadConfig('first', 0.0, 1)
LatencyResult = Callable[[np.ndarray], np.ndarray]


def measure_latency(
  configs: Mapping[str, RunConfig],
  size: int,
  calls: int,
  heads: int = 0,
  workdir: epath.PathLike = '',
) -> dict[str, Any]:
  """Times answers of the first recipe alone, of a committee of it in three ways, and of the other
  recipes alone.

  Args:
    configs: pre-training recipes by name, for their shapes; the first is the member.
    size: members of the committee.
    calls: timed rounds.
    heads: also one body of the first recipe with so many heads, the cheap control of a committee; 0
      leaves it out.
    workdir: a run directory for what is found, which `minilm report` reads; what stands there is
      not timed again.

  Returns:
    `rows`, one a contestant and batch: name, recipe, batch, length, members, heads (of one member),
    devices, depth, parameters, flops (a row), milliseconds (median with its interval low to high,
    p95, lowest) and `over_member`, the median over that of the member alone; then calls, warm_up,
    machine, load_before, versions.

  Raises:
    InputError: no committee of that size, nothing to time, or a work directory of something else.
  """
  for name, value, least in (('--size', size, 1), ('--num_calls', calls, 2), ('--heads', heads, 0)):
    if value < least:
      raise InputError(f'{name}={value}', f'a value below {least}', f'give at least {least}')
  small = next(
    (
      name for name, one in configs.items() if one.model.vocab_size <= len(tokenizer.SPECIAL_TOKENS)
    ),
    '',
  )
  if small:
    raise InputError(
      f'the latency of {small}',
      'a vocabulary of special ids alone',
      'give a larger model.vocab_size',
    )
  if not workdir:
    return _measured(configs, size, calls, heads)
  workdir = run_dir.open_run(
    workdir,
    {
      'kind': LATENCY_KIND,
      'size': size,
      'calls': calls,
      'heads': heads,
      'models': {name: recipe.as_dict(one.model) for name, one in configs.items()},
    },
  )
  if (workdir / run_dir.RESULT).exists():
    progress.log(f'{workdir} has its result: give another --workdir to time it anew')
  else:
    files.write_json(workdir / run_dir.RESULT, _measured(configs, size, calls, heads))
  return files.read_json(workdir / run_dir.RESULT, f'the latency in {workdir}')


def _measured(
  configs: Mapping[str, RunConfig], size: int, calls: int, heads: int
) -> dict[str, Any]:
  load, found = machine.read_load(), []
  made = list_contestants({name: one.model for name, one in configs.items()}, size, heads)
  for batch in BATCHES:
    seconds = _timed(
      {
        name: functools.partial(answer, make_rows(model, batch))
        for name, (answer, model, _) in made.items()
      },
      calls,
      f'batch {batch}',
    )
    own = float(np.median(next(iter(seconds.values()))))
    for name, (_, model, facts) in made.items():
      spent = 1e3 * np.sort(seconds[name])
      low, high = iqr_ends(len(spent))
      found.append(
        {
          'name': name,
          'batch': batch,
          'length': min(MAX_LENGTH, model.max_length),
          **facts,
          'milliseconds': {
            'median': float(np.median(spent)),
            'low': float(spent[low]),
            'high': float(spent[high]),
            'p95': float(np.percentile(spent, 95)),
            'lowest': float(spent[0]),
          },
          'over_member': float(np.median(spent)) / 1e3 / own,
        }
      )
  return {
    'rows': found,
    'calls': calls,
    'warm_up': _WARMUP_CALLS,
    'machine': machine.describe_machine(),
    'load_before': load,
    'versions': machine.list_versions(),
  }


def iqr_ends(rounds: int) -> tuple[int, int]:
  """Places, in ascending order, of the values between which the median lies in 95 of 100 samples of
  so many or more.

  Of fewer than six it lies between the first and the last less often than that.

  >>> iqr_ends(100), iqr_ends(5)
  ((39, 60), (0, 4))
  """
  low = max(0, int(stats.binom.ppf(0.025, rounds, 0.5)) - 1)
  return low, rounds - 1 - low


def list_contestants(
  models: Mapping[str, EncoderConfig], size: int, heads: int = 0
) -> dict[str, tuple[LatencyResult, EncoderConfig, dict[str, Any]]]:
  """Who answers, by name: from tokens `[B L]` to probabilities `[B C]`, whose shape it has, and
  what is known of it.
  """
  (name, member), *others = models.items()
  found = {name: (_build_solo(member), member, {'recipe': name, **_facts(member)})}
  if heads:
    head = dataclasses.replace(_HEAD, ensemble_size=heads)
    found[f'{name}, {heads} heads'] = (
      _build_solo(member, head),
      member,
      {'recipe': name, **_facts(member, head)},
    )
  stacked = _init_classifier(member, size)
  together = {'one after another': 'map', 'vmapped': 'vmap'}
  for words, how in together.items():
    turns = size if how == 'map' else 1
    facts = _facts(member, _HEAD, size, 1, turns)
    found[f'{size} x {name}, {words}'] = _committee(stacked, how), member, {'recipe': name, **facts}
  mesh = population.make_even_mesh(size)
  if mesh.devices.size > 1:
    how = population.choose_strategy(size, 'auto', mesh.devices.flat[0].platform)
    facts = _facts(
      member, _HEAD, size, mesh.devices.size, size // mesh.devices.size if how == 'map' else 1
    )
    found[f'{size} x {name}, over {mesh.devices.size} devices'] = (
      _spread(stacked, how),
      member,
      {'recipe': name, **facts},
    )
  for other, model in others:
    found[other] = _build_solo(model), model, {'recipe': other, **_facts(model)}
  return found


def make_rows(model: EncoderConfig, batch: int) -> Int[np.ndarray, 'B L']:
  """Rows of ordinary pieces, full to their last token."""
  random = np.random.default_rng(0)
  tokens = random.integers(
    len(tokenizer.SPECIAL_TOKENS),
    model.vocab_size,
    (batch, min(MAX_LENGTH, model.max_length)),
    np.int32,
  )
  tokens[:, 0], tokens[:, -1] = tokenizer.BEGIN_ID, tokenizer.END_ID
  return tokens


def measure_depth(model: EncoderConfig) -> int:
  """Layers of one model, one after another: blocks, and before them convolutions, short or with one
  to one channel.

  Conv-2 before one block is 4 deep, BERT-6 is 6.
  """
  return (
    model.num_layers
    + (model.short_convolution > 0)
    + (model.convolutions + 1 if model.convolutions else 0)
  )


def forward_flops(model: EncoderConfig, length: int, heads: int = 1) -> int:
  """Matrix products of an answer to one row: the encoder, and two layers of each head at one
  position.
  """
  return flops.encoder_flops(model, length) + heads * 2 * model.hidden_size * (
    model.hidden_size + CLASSES
  )


def _facts(
  model: EncoderConfig, head: HeadConfig = _HEAD, members: int = 1, devices: int = 1, turns: int = 1
) -> dict[str, Any]:
  shapes = jax.eval_shape(lambda: init_classifier(model, head, CLASSES, jax.random.key(0)))
  return {
    'members': members,
    'heads': head.ensemble_size,
    'devices': devices,
    'depth': turns * measure_depth(model),
    'parameters': members * count_parameters(shapes),
    'flops': members * forward_flops(model, min(MAX_LENGTH, model.max_length), head.ensemble_size),
  }


def _init_classifier(model: EncoderConfig, members: int, head: HeadConfig = _HEAD) -> Classifier:
  """Members with weights of their own, stacked, on the host."""
  made = jax.jit(
    jax.vmap(lambda seed: init_classifier(model, head, CLASSES, jax.random.key(seed)))
  )(jnp.arange(members))
  return jax.tree.map(np.asarray, made)


def _probabilities(model: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
  return jax.nn.softmax(classifier.row_logits(model, tokens))


def _build_solo(model: EncoderConfig, head: HeadConfig = _HEAD) -> LatencyResult:
  one = jax.device_put(
    jax.tree.map(lambda x: x[0], _init_classifier(model, 1, head)), jax.devices()[0]
  )
  answer = jax.jit(_probabilities)
  return lambda tokens: np.asarray(answer(one, tokens))


def _committee(stacked: Classifier, how: str) -> LatencyResult:
  """All members on the first device."""
  placed = jax.device_put(stacked, jax.devices()[0])

  @jax.jit
  def answer(members: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
    one = functools.partial(_probabilities, tokens=tokens)
    return (jax.vmap(one)(members) if how == 'vmap' else jax.lax.map(one, members)).mean(0)

  return lambda tokens: np.asarray(answer(placed, tokens))


def _spread(stacked: Classifier, how: str) -> LatencyResult:
  """Some members on each device, as `tasks/classifier.py` runs them."""
  mesh = population.make_even_mesh(jax.tree.leaves(stacked)[0].shape[0])
  placed = population.shard_members(stacked, mesh)
  lifted = population.map_over_members(_probabilities, mesh, 'vmap' if how == 'vmap' else 'map')
  answer = jax.jit(lambda members, tokens: lifted(members, tokens).mean(0))
  return lambda tokens: np.asarray(answer(placed, tokens))


def _timed(
  answers: Mapping[str, Callable[[], np.ndarray]], calls: int, what: str
) -> dict[str, list[float]]:
  """Seconds of each call of each contestant, which take turns."""
  once = 0.0
  with progress.track_progress(f'{what}, untimed', len(answers), 'contestants') as tick:
    for done, (name, answer) in enumerate(answers.items()):
      tick(done, f'now {name}')
      once += min(_seconds(answer) for _ in range(1 + _WARMUP_CALLS))
    tick(len(answers))
  # Nothing is drawn between the timed answers: a live bar has a thread of its own, which would be
  # timed with them.
  progress.log(
    f'{what}: {calls:,} rounds are timed, in {progress.format_duration(once * calls)} or more'
  )
  rounds = [{name: _seconds(answer) for name, answer in answers.items()} for _ in range(calls)]
  return {name: [one[name] for one in rounds] for name in answers}


def _seconds(answer: Callable[[], np.ndarray]) -> float:
  start = time.perf_counter()
  answer()
  return time.perf_counter() - start


def latency_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  table = rich_table.Table(
    '',
    'batch',
    'ms, median',
    'p95',
    'to the member',
    'heads',
    'depth',
    'parameters',
    'MFLOPs a row',
    title=f'Latency: {found["calls"]} answers each',
  )
  for row in found['rows']:
    spent = row['milliseconds']
    table.add_row(
      row['name'],
      str(row['batch']),
      f'{spent["median"]:.3f}',
      f'{spent["p95"]:.3f}',
      f'{row["over_member"]:.2f}',
      str(row['members'] * row['heads']),
      str(row['depth']),
      f'{row["parameters"]:,}',
      f'{row["flops"] / 1e6:,.1f}',
    )
  facts = rich_table.Table('what', 'value')
  for name, value in (
    ('machine', found['machine']),
    ('load in the minute before', f'{found["load_before"]:.2f}'),
    ('untimed answers of each', str(found['warm_up'])),
    ('versions', ', '.join(f'{name} {version}' for name, version in found['versions'].items())),
  ):
    facts.add_row(name, value)
  return [table, facts]
