"""Latencies of models and committees, from `minilm latency --workdir`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.core import files, old_names, run_dir
from minilm_jax.core.errors import InputError

# Model fields that do not change the latency.
_LATENCY_FREE_FIELDS = tuple(
  (
    'vocab_size dropout initialization flops_heads tied norm_epsilon position_offset '
    'segment_embeddings_for_pairs'
  ).split()
)


@dataclasses.dataclass(frozen=True)
class LatencyRow:
  """The latency of one contestant at one batch size, from `minilm latency --workdir`.

  Attributes:
    shape: fields of the model, of `encode_latency_shape`.
    members, heads: number of models, and of heads of each model.
    low, high: ends of the 95% interval of the median.
    over_member: ratio of the median to that of a single member.
    calls: number of timed calls.
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


def encode_latency_shape(model: Mapping[str, Any]) -> str:
  """Returns the model fields that determine the latency, as JSON."""
  model = {**old_names.ADDED_FIELDS['model'], **model}
  return json.dumps(
    {name: value for name, value in model.items() if name not in _LATENCY_FREE_FIELDS},
    sort_keys=True,
  )


def read_latencies(run_paths: Mapping[str, epath.Path]) -> list[LatencyRow]:
  """Returns the rows of every finished latency run.

  Raises:
    InputError: a result is damaged.
  """
  fields = {field.name for field in dataclasses.fields(LatencyRow)}
  rows = []
  for name, path in runs.select_kind(run_paths, 'latency').items():
    if not (path / run_dir.RESULT).exists():
      continue
    config = files.read_object(path / run_dir.CONFIG, f'the recipe of {path}', {'models': {}})
    result = files.read_json(path / run_dir.RESULT, f'the latency in {path}')
    try:
      for row in result['rows']:
        values = {
          **row,
          **{
            end: runs.to_float(row['milliseconds'][end]) for end in ('median', 'low', 'high', 'p95')
          },
          'run': name,
          'shape': encode_latency_shape(config['models'][row['recipe']]),
          'machine': result['machine'],
          'calls': result['calls'],
        }
        rows.append(LatencyRow(**{key: value for key, value in values.items() if key in fields}))
    except (KeyError, TypeError) as error:
      raise InputError(
        f'the latency in {path}',
        f'{run_dir.RESULT} has no valid field {error}',
        'run minilm latency again with a new --workdir',
      ) from None
  return rows


def find_slowest_pair(
  latencies: Sequence[LatencyRow], contestant: tuple[str, int, int], deep_shape: str
) -> tuple[LatencyRow, LatencyRow] | None:
  """Returns the rows of a contestant and the deep model in the run with the largest ratio.

  Args:
    latencies: rows of all runs; batch size 1 counts.
    contestant: shape, number of members and number of heads; its fastest strategy counts.
    deep_shape: shape of the deep model.
  """
  pairs = []
  single = [row for row in latencies if row.batch == 1]
  for same_run in runs.group_by(single, lambda row: row.run).values():
    by_model = runs.group_by(same_run, lambda row: (row.shape, row.members, row.heads))
    if contestant in by_model and (deep_shape, 1, 1) in by_model:
      fastest = min(by_model[contestant], key=lambda row: row.median)
      pairs.append((fastest, by_model[deep_shape, 1, 1][0]))
  return max(pairs, key=lambda pair: pair[0].median / pair[1].median, default=None)
