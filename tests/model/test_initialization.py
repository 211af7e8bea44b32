"""Initial parameters follow their rule, and depend only on seed and path."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from configs import paper1
from minilm_jax.core import recipe
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.model import heads
from minilm_jax.model.initialization import path_name


def make_config(**changes: Any) -> EncoderConfig:
  fields = paper1.get_config('misty-lake-11')
  fields.model.update({'vocab_size': 3000, 'num_layers': 2, **changes})
  return recipe.resolve(fields, 'pretrain').model


def init_parameters(config: EncoderConfig, seed: int = 0) -> dict[str, np.ndarray]:
  model = heads.init_masked_language_model(config, jax.random.key(seed))
  return {
    path_name(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
  }


@pytest.fixture(scope='module')
def paper1_start() -> dict[str, np.ndarray]:
  return init_parameters(make_config())


@pytest.fixture(scope='module')
def standard() -> dict[str, np.ndarray]:
  return init_parameters(make_config(initialization='standard'))


def standard_errors(values: np.ndarray, std: float) -> float:
  """Returns the larger distance of mean and standard deviation from (0, std), in standard errors."""
  n = values.size
  return max(
    abs(values.std() / std - 1) * math.sqrt(2 * n), abs(values.mean()) / std * math.sqrt(n)
  )


def test_paper1_draws_matrices_and_tables_by_xavier(paper1_start: dict[str, np.ndarray]):
  """Arrays with two axes have variance 2 / (rows + columns), in rows of pads and unused rows too."""
  for name, values in paper1_start.items():
    if values.ndim == 2:
      assert standard_errors(values, math.sqrt(2 / sum(values.shape))) < 5, name
      assert (values != 0).mean() > 0.999 and np.abs(values).max() < 7 * math.sqrt(
        2 / sum(values.shape)
      ), name
  table = paper1_start['encoder.embedding.tokens.embedding']
  assert standard_errors(table[1], math.sqrt(2 / sum(table.shape))) < 5  # <pad>


def test_standard_deviation_of_the_table_of_paper1():
  """The 19,010 x 32 table of the smallest model has about 0.01025."""
  assert math.sqrt(2 / (19_010 + 32)) == pytest.approx(0.01025, rel=1e-3)
  table = init_parameters(make_config(vocab_size=19_010, num_layers=1))[
    'encoder.embedding.tokens.embedding'
  ]
  assert table.std() == pytest.approx(0.01025, rel=0.01)


def test_paper1_treats_the_norm_of_the_projection_as_a_bias(paper1_start: dict[str, np.ndarray]):
  """Its gain and bias are 0.01, as are linear biases; all other norms start at (1, 0)."""
  kinds = set()
  for name, values in paper1_start.items():
    if values.ndim == 1:
      norm = 'norm.' in name and 'projection' not in name
      expected = (1.0 if name.endswith('scale') else 0.0) if norm else 0.01
      assert (values == np.float32(expected)).all(), name
      kinds.add((norm, 'projection.norm' in name, name.endswith('scale')))
  assert len(kinds) == 5  # gain and bias of norms and of the projection's norm; linear biases


def test_standard_preserves_the_scale_of_activations(standard: dict[str, np.ndarray]):
  for name, values in standard.items():
    if name.endswith('.embedding'):
      assert standard_errors(values, 0.02) < 5, name
    elif values.ndim == 2:
      assert standard_errors(values, 1 / math.sqrt(values.shape[0])) < 5, name  # [inputs, outputs]
    else:
      assert (values == name.endswith('.scale')).all(), name


def test_distance_biases_start_at_0():
  parameters = init_parameters(
    make_config(initialization='standard', positions='relative', num_layers=1)
  )
  assert not parameters['encoder.blocks.0.attention.distance_bias'].any()


def test_initial_parameters_depend_only_on_seed_and_path(standard: dict[str, np.ndarray]):
  """Another depth or kind of positions changes no shared parameter; a classifier is equal too."""
  other = make_config(
    initialization='standard', num_layers=3, positions='rotary', norm='pre', segments=0
  )
  changed = init_parameters(other)
  shared = standard.keys() & changed.keys()
  assert len(shared) > 30
  for name in shared:
    np.testing.assert_array_equal(standard[name], changed[name], err_msg=name)
  head = HeadConfig(pooling='first', dropout=0.1, ensemble_size=1)
  classifier = heads.init_classifier(
    dataclasses.replace(other, num_layers=2), head, 2, jax.random.key(0)
  )
  np.testing.assert_array_equal(
    classifier.encoder.blocks[1].feed_forward.up.kernel[...],
    standard['encoder.blocks.1.feed_forward.up.kernel'],
  )


def test_parameters_and_seeds_differ_in_initial_values(standard: dict[str, np.ndarray]):
  other = init_parameters(make_config(initialization='standard'), seed=1)
  drawn = [
    values.ravel()[:32].tolist()
    for parameters in (standard, other)
    for values in parameters.values()
    if values.ndim == 2
  ]
  assert len({tuple(values) for values in drawn}) == len(drawn)
