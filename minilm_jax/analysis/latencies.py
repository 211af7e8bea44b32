"""Latencies: what `minilm latency --workdir` left behind, and which contestant has the shape of a run."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from minilm_jax import model_config, run
from minilm_jax.analysis import runs
from minilm_jax.errors import InputError

KIND = 'latency'
# What the time of an answer does not depend on, but for the head of a masked language model, which is not there.
_WITHOUT = (
  'vocab_size',
  'dropout',
  'initialization',
  'flops_heads',
  'tied',
  'norm_epsilon',
  'position_offset',
  'segment_embeddings_for_pairs',
)


@dataclasses.dataclass(frozen=True)
class LatencyRow:
  """One contestant at one batch size.

  Attributes:
    run: the run directory that it stands in.
    name, recipe: of the contestant, and of its one recipe; `shape` is the model's, as `shape` below writes it.
    members, heads, devices: heads of one member.
    median, low, high, p95: milliseconds; the interval is that of the median.
    over_member: the median over that of the member alone.
    machine, calls: where, and how many rounds.
  """

  run: str
  name: str
  recipe: str
  shape: str
  batch: int
  length: int
  members: int
  heads: int
  devices: int
  depth: int
  parameters: int
  flops: int
  median: float
  low: float
  high: float
  p95: float
  over_member: float
  machine: str
  calls: int


def shape(model: Mapping[str, Any]) -> str:
  """All of a model that the time of an answer depends on: equal of models that a latency is shared by."""
  model = model_config.LATER | dict(model)
  return json.dumps(
    {name: value for name, value in model.items() if name not in _WITHOUT}, sort_keys=True
  )


def read_latencies(found: Mapping[str, epath.Path]) -> list[LatencyRow]:
  """The rows of every latency among some runs that has ended.

  Args:
    found: runs by name, of `runs.find`.

  Raises:
    InputError: a result that is damaged.
  """
  rows = []
  for name, path in found.items():
    if runs.kind(path) != KIND or not (path / run.RESULT).exists():
      continue
    models = run.read_json(path / run.CONFIG, f'the recipe of {path}')['models']
    result = run.read_json(path / run.RESULT, f'the latency in {path}')
    own = [field.name for field in dataclasses.fields(LatencyRow)]
    try:
      for row in result['rows']:
        flat = row | {
          end: runs.number(row['milliseconds'][end]) for end in ('median', 'low', 'high', 'p95')
        }
        rows.append(
          LatencyRow(
            run=name,
            shape=shape(models[row['recipe']]),
            machine=result['machine'],
            calls=result['calls'],
            **{field: flat[field] for field in own if field in flat},
          )
        )
    except (KeyError, TypeError) as error:
      raise InputError(
        f'the latency in {path}',
        f'{run.RESULT} lacks {error}',
        'time it again into a new --workdir: another version has written this one',
      ) from None
  return rows
