"""Builds one program of pre-training for recipes that differ only in fields that no program reads."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from minilm_jax.core.config import RunConfig
from minilm_jax.training import program


def cache_programs() -> Callable[..., program.TrainProgram]:
  """Returns `build_program` with a cache of its own."""
  built: dict[str, program.TrainProgram] = {}

  def build(config: RunConfig, devices: Sequence[jax.Device] = ()) -> program.TrainProgram:
    fields = dataclasses.asdict(config)
    for name in ('corpus', 'checkpoint', 'log'):
      del fields[name]
    for name in ('every', 'first_at'):
      del fields['eval'][name]
    fields['nonfinite'] = config.nonfinite == 'skip'
    key = repr((fields, devices))
    if key not in built:
      built[key] = program.build_program(config, devices)
    return built[key]

  return build
