"""Every number of a recipe can be set to its limits: one step is compiled, or the value is refused.

Tracing runs the Python code of a step without memory for its arrays; two sets of limits also train.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from configs import base, tiny
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.data.rows import Corpus
from minilm_jax.training import batches, program
from tests.tiny_config import make_run_config

LIMITS = {int: (0, 1, 2**24, 2**53 - 1), float: (0.0, 5e-324, 1.0, 1e300)}
# Groups of fields that the program of a step does not read.
OUTSIDE_STEP = ('checkpoint.', 'log.', 'eval.', 'subset.')
TINY = {'model.hidden_size': 8, 'model.embedding_size': 8, 'model.intermediate_size': 8}
# Limits that train together.
SETS = [
  {
    'model.dropout': 0.0,
    'mask.rate': 5e-324,
    'optimizer.warmup_fraction': 0.0,
    'optimizer.beta1': 0.0,
    'optimizer.beta2': 0.0,
    'optimizer.clip': 0.0,
    'optimizer.learning_rate': 0.0,
    'optimizer.weight_decay': 0.0,
    'model.segments': 0,
  },
  {
    'model.dropout': 1.0,
    'mask.rate': 1.0,
    'mask.random_share': 1.0,
    'optimizer.warmup_fraction': 1.0,
    'optimizer.decay_fraction': 1.0,
    'optimizer.schedule': 'warmup_stable_decay',
    'optimizer.beta1': 1.0,
    'optimizer.clip': 5e-324,
    'seed': 2**32 - 1,
  },
]


def list_numbers(config: Any) -> dict[str, type]:
  """Returns the fields of a recipe that are numbers, with their types."""
  fields = recipe.list_fields(config)
  return {name: type(value) for name, value in fields.items() if type(value) in LIMITS}


def trace_step(config: Any) -> None:
  """Traces a step, without memory for its arrays."""
  programs, length = program.build_program(config), max(64, config.model.max_length)
  rows = Corpus(jax.ShapeDtypeStruct((64, length), 'uint16'), 512, 'hash')
  jax.eval_shape(programs.chunk, programs.shapes, rows, jax.ShapeDtypeStruct((), 'int32'))


def halve(changes: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns both halves, or nothing for a single limit."""
  items, middle = list(changes.items()), len(changes) // 2
  return [dict(items[:middle]), dict(items[middle:])] if middle else []


def is_refused(changes: dict[str, Any], corpus: pathlib.Path, check: Callable[..., None]) -> bool:
  """Returns whether the check of a recipe with these limits raises an error in three parts."""
  try:
    check(make_run_config(corpus, **TINY | changes))
  except InputError as error:
    assert error.asked and error.found and error.remedy, changes
    return True
  return False


def split_built(changes: dict[str, Any], corpus: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the limits in groups that have programs, without limits that are refused alone."""
  if is_refused(changes, corpus, program.build_program):
    return [group for half in halve(changes) for group in split_built(half, corpus)]
  return [changes]


def count_traced(changes: dict[str, Any], corpus: pathlib.Path) -> int:
  """Traces a step with these limits, or with each half of them after a refusal.

  Returns:
    The number of limits that have a step.
  """
  if is_refused(changes, corpus, trace_step):
    return sum(count_traced(half, corpus) for half in halve(changes))
  return len(changes)


def check_together(changes: dict[str, Any], corpus: pathlib.Path) -> int:
  """Returns the number of limits that have a step, traced together if they fit each other."""
  groups = split_built(changes, corpus)
  union = {name: limit for group in groups for name, limit in group.items()}
  if not is_refused(union, corpus, trace_step):
    return len(union)
  return sum(count_traced(group, corpus) for group in groups)


def is_accepted(changes: dict[str, Any], corpus: pathlib.Path) -> bool:
  """Returns whether a recipe with these limits is not refused."""
  return not is_refused(changes, corpus, lambda config: None)


def test_a_limit_is_refused_or_has_a_step(tiny_corpus: pathlib.Path):
  """Limits of different fields are traced together as far as they fit each other."""
  pending = [
    (name, limit)
    for name, number in list_numbers(tiny.get_config()).items()
    for limit in LIMITS[number]
    if is_accepted({name: limit}, tiny_corpus)
  ]
  pending = [(name, limit) for name, limit in pending if not name.startswith(OUTSIDE_STEP)]
  fields, num_traced = {name for name, _ in pending}, 0
  while pending:
    together: dict[str, Any] = {}
    for name, limit in pending:
      if name not in together and is_accepted(together | {name: limit}, tiny_corpus):
        together[name] = limit
    pending = [item for item in pending if item not in together.items()]
    num_traced += check_together(together, tiny_corpus)
  assert num_traced > 2 * len(fields)


@pytest.mark.parametrize('kind', ['corpus', 'finetune'])
def test_a_limit_of_another_recipe_is_refused_or_accepted(kind: str):
  for name, number in list_numbers(getattr(base, kind)()).items():
    for limit in LIMITS[number]:
      config = getattr(base, kind)()
      config.update_from_flattened_dict({name: limit})
      try:
        recipe.resolve(config, kind)
      except InputError as error:
        assert name.rpartition('.')[2] in error.asked, (name, limit)


@pytest.mark.parametrize('changes', SETS)
def test_limits_train(changes: dict[str, Any], tiny_corpus: pathlib.Path):
  config = make_run_config(tiny_corpus, **TINY | changes)
  programs = program.build_program(config)
  rows = batches.load_resident(programs, tiny_corpus, 'train')
  _, sums, record = programs.chunk(programs.init(), rows, np.int32(1))
  assert float(sums['masked']) > 0 and np.isfinite(float(sums['loss'])), record
