"""Measures the latency of a classifier, of a committee of it, and of other models, all untrained.

A call maps token ids on the host to probabilities on the host. Batches have 1 or 32 random rows
without padding. A committee returns the mean of its members. Each variant compiles and runs
`_WARMUP_CALLS` times untimed. All variants then run in turns, one call a round. The result has the
median and the 95th percentile over the rounds. The 95% interval of the median comes from order
statistics, which assumes independent rounds and no distribution. FLOPs are the matrix products for
one row.

The depth is the number of layers that must run in sequence, on any number of devices. Each block
and each convolution counts as one layer, including the last 1 x 1 convolution. Embedding and heads
do not count, because heads of one model run in parallel.

Tokenization, which costs all variants the same, and a queue of requests are not measured.
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

from minilm_jax.bench import machine, timing
from minilm_jax.core import progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.model import flops
from minilm_jax.model.heads import Classifier, init_classifier
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier
from minilm_jax.training import population

LATENCY_KIND = 'latency'
BATCHES, CLASSES, MAX_LENGTH, COMMITTEE_SIZE = (1, 32), 4, 128, 5
_WARMUP_CALLS = 10
_HEAD = HeadConfig('first', 0.0, 1)
Predict = Callable[[np.ndarray], np.ndarray]  # maps tokens `[B L]` to probabilities `[B C]`


def measure_latency(
  configs: Mapping[str, RunConfig],
  size: int,
  calls: int,
  heads: int = 0,
  workdir: epath.PathLike = '',
) -> dict[str, Any]:
  """Times the first recipe as a single model and as a committee, and the others as single models.

  Args:
    configs: pre-training recipes by name, which give the model shapes; the first is the member.
    size: members of the committee.
    calls: timed rounds.
    heads: heads of an additional variant, one model of the first recipe with several heads; 0 omits
      this variant.
    workdir: a run directory for the result, which `minilm report` reads; a stored result is
      returned without timing.

  Returns:
    `rows` has an entry for each variant and batch: name, recipe, batch, length, members, heads (of
    one member), devices, depth, parameters, flops (of a row), milliseconds and over_member.
    `milliseconds` has the median with its interval low to high, p95 and lowest. `over_member` is
    the ratio of the median to that of the single member. The result also has calls, warm_up,
    machine, load_before and versions.

  Raises:
    InputError: a number is below its minimum, a vocabulary has special tokens alone, the work
      directory holds another run, or another process uses it.
  """
  timing.check_minimums(
    ('--size', size, 1),
    ('--num_calls', calls, 2),
    ('--heads', heads, 0),
    *(
      (f'model.vocab_size of {name}', config.model.vocab_size, timing.MIN_VOCAB_SIZE)
      for name, config in configs.items()
    ),
  )
  models = {name: config.model for name, config in configs.items()}
  identity = {
    'kind': LATENCY_KIND,
    'size': size,
    'calls': calls,
    'heads': heads,
    'models': {name: recipe.as_dict(model) for name, model in models.items()},
  }
  return run_dir.measure_once(
    workdir, identity, lambda: _measure(models, size, calls, heads), 'latency'
  )


def _measure(
  models: Mapping[str, EncoderConfig], size: int, calls: int, heads: int
) -> dict[str, Any]:
  load, rows = machine.read_load(), []
  variants = build_variants(models, size, heads)
  for batch in BATCHES:
    predictions = {
      name: functools.partial(predict, make_rows(model, batch))
      for name, (predict, model, _) in variants.items()
    }
    seconds = _time_calls(predictions, calls, f'batch {batch}')
    member_median = float(np.median(next(iter(seconds.values()))))
    for name, (_, model, facts) in variants.items():
      times = 1e3 * np.sort(seconds[name])
      low, high = compute_median_interval(len(times))
      milliseconds = {
        'median': float(np.median(times)),
        'low': float(times[low]),
        'high': float(times[high]),
        'p95': float(np.percentile(times, 95)),
        'lowest': float(times[0]),
      }
      rows.append(
        {
          'name': name,
          'batch': batch,
          'length': min(MAX_LENGTH, model.max_length),
          **facts,
          'milliseconds': milliseconds,
          'over_member': milliseconds['median'] / 1e3 / member_median,
        }
      )
  conditions = machine.describe_conditions(load)
  return {'rows': rows, 'calls': calls, 'warm_up': _WARMUP_CALLS, **conditions}


def compute_median_interval(rounds: int) -> tuple[int, int]:
  """Returns the indices of the sorted rounds that bound a 95% interval of the median.

  The interval covers the median less often for fewer than six rounds.

  >>> compute_median_interval(100), compute_median_interval(5)
  ((39, 60), (0, 4))
  """
  low = max(0, int(stats.binom.ppf(0.025, rounds, 0.5)) - 1)
  return low, rounds - 1 - low


def build_variants(
  models: Mapping[str, EncoderConfig], size: int, heads: int = 0
) -> dict[str, tuple[Predict, EncoderConfig, dict[str, Any]]]:
  """Returns a predict function, its model shape and its facts for each variant, by name."""
  (name, member), *others = models.items()
  variants = {name: (_build_single(member), member, {'recipe': name, **_list_facts(member)})}

  def add(label: str, predict: Predict, **facts: Any) -> None:
    variants[label] = predict, member, {'recipe': name, **_list_facts(member, **facts)}

  if heads:
    head = dataclasses.replace(_HEAD, ensemble_size=heads)
    add(f'{name}, {heads} heads', _build_single(member, head), head=head)
  stacked = _init_classifier(member, size)
  for label, strategy in (('one after another', 'map'), ('vmapped', 'vmap')):
    predict = _build_committee(stacked, strategy)
    turns = size if strategy == 'map' else 1
    add(f'{size} x {name}, {label}', predict, members=size, turns=turns)
  mesh = population.make_even_mesh(size)
  devices = mesh.devices.size
  if devices > 1:
    strategy = population.choose_strategy(size, 'auto', mesh.devices.flat[0].platform)
    predict = _build_sharded_committee(stacked, strategy)
    turns = size // devices if strategy == 'map' else 1
    label = f'{size} x {name}, over {devices} devices'
    add(label, predict, members=size, devices=devices, turns=turns)
  for other, model in others:
    variants[other] = _build_single(model), model, {'recipe': other, **_list_facts(model)}
  return variants


def make_rows(model: EncoderConfig, batch: int) -> Int[np.ndarray, 'B L']:
  """Returns random rows without padding."""
  return timing.draw_rows(
    model.vocab_size, (batch, min(MAX_LENGTH, model.max_length)), seed=0, dtype=np.int32
  )


def measure_depth(model: EncoderConfig) -> int:
  """Returns the layers that run in sequence: 4 for Conv-2 with one block, 6 for BERT-6."""
  convolutions = model.convolutions + 1 if model.convolutions else 0
  return model.num_layers + (model.short_convolution > 0) + convolutions


def count_forward_flops(model: EncoderConfig, length: int, heads: int = 1) -> int:
  """Returns the FLOPs of the matrix products for one row: the encoder, and two layers a head."""
  head = 2 * model.hidden_size * (model.hidden_size + CLASSES)
  return flops.encoder_flops(model, length) + heads * head


def _list_facts(
  model: EncoderConfig, head: HeadConfig = _HEAD, members: int = 1, devices: int = 1, turns: int = 1
) -> dict[str, Any]:
  shapes = jax.eval_shape(lambda: init_classifier(model, head, CLASSES, jax.random.key(0)))
  return {
    'members': members,
    'heads': head.ensemble_size,
    'devices': devices,
    'depth': turns * measure_depth(model),
    'parameters': members * count_parameters(shapes),
    'flops': members
    * count_forward_flops(model, min(MAX_LENGTH, model.max_length), head.ensemble_size),
  }


def _init_classifier(model: EncoderConfig, members: int, head: HeadConfig = _HEAD) -> Classifier:
  """Returns stacked members with different weights, on the host."""
  init = jax.vmap(lambda seed: init_classifier(model, head, CLASSES, jax.random.key(seed)))
  return jax.tree.map(np.asarray, jax.jit(init)(jnp.arange(members)))


def _predict_probabilities(model: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
  return jax.nn.softmax(classifier.compute_row_logits(model, tokens))


def _build_single(model: EncoderConfig, head: HeadConfig = _HEAD) -> Predict:
  single = jax.tree.map(lambda x: x[0], _init_classifier(model, 1, head))
  placed = jax.device_put(single, jax.devices()[0])
  predict = jax.jit(_predict_probabilities)
  return lambda tokens: np.asarray(predict(placed, tokens))


def _build_committee(stacked: Classifier, strategy: str) -> Predict:
  """Returns the predict function of all members on the first device."""
  placed = jax.device_put(stacked, jax.devices()[0])

  @jax.jit
  def predict(members: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
    member = functools.partial(_predict_probabilities, tokens=tokens)
    vmapped = strategy == 'vmap'
    return (jax.vmap(member)(members) if vmapped else jax.lax.map(member, members)).mean(0)

  return lambda tokens: np.asarray(predict(placed, tokens))


def _build_sharded_committee(stacked: Classifier, strategy: str) -> Predict:
  """Returns the predict function of members on several devices, as `tasks/classifier` runs them."""
  mesh = population.make_even_mesh(jax.tree.leaves(stacked)[0].shape[0])
  placed = population.shard_members(stacked, mesh)
  mapped = population.map_over_members(_predict_probabilities, mesh, strategy)
  predict = jax.jit(lambda members, tokens: mapped(members, tokens).mean(0))
  return lambda tokens: np.asarray(predict(placed, tokens))


def _time_calls(
  predictions: Mapping[str, Callable[[], np.ndarray]], calls: int, label: str
) -> dict[str, list[float]]:
  """Returns the seconds of each call of each variant; variants run in turns."""
  timed_calls = {
    name: functools.partial(_time_predictions, predict) for name, predict in predictions.items()
  }
  with progress.track_progress(f'{label}, untimed', len(predictions), 'variants') as update:
    for count, (name, time_calls) in enumerate(timed_calls.items()):
      update(count, f'now {name}')
      time_calls(_WARMUP_CALLS)
    update(len(predictions))
  return timing.time_interleaved(timed_calls, 1, calls, label)


def _time_predictions(predict: Callable[[], np.ndarray], calls: int) -> float:
  start = time.perf_counter()
  for _ in range(calls):
    predict()
  return time.perf_counter() - start


def make_latency_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns the tables of `measure_latency`."""
  columns = (
    '',
    'batch',
    'ms, median',
    'p95',
    'over member',
    'heads',
    'depth',
    'parameters',
    'MFLOPs a row',
  )
  table = rich_table.Table(*columns, title=f'Latency: {result["calls"]} calls each')
  for row in result['rows']:
    table.add_row(
      row['name'],
      str(row['batch']),
      f'{row["milliseconds"]["median"]:.3f}',
      f'{row["milliseconds"]["p95"]:.3f}',
      f'{row["over_member"]:.2f}',
      str(row['members'] * row['heads']),
      str(row['depth']),
      f'{row["parameters"]:,}',
      f'{row["flops"] / 1e6:,.1f}',
    )
  facts = rich_table.Table('quantity', 'value')
  facts.add_row('untimed calls each', str(result['warm_up']))
  for name, value in machine.format_conditions(result):
    facts.add_row(name, value)
  return [table, facts]
