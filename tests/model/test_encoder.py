"""Properties of the encoder: pads, other rows, gradients, positions, attention, dropout, types."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minilm_jax.core import rng
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model import encoder, flops, heads, layers
from minilm_jax.model.initialization import path_name
from tests.tiny_encoders import (
  SMALL,
  compute_logits,
  draw_arrays,
  draw_tokens,
  encode,
  logits,
  make_model,
  pad_tokens,
)

SWITCHES = tuple(
  {'norm': norm, 'positions': positions}
  for norm, positions in itertools.product(
    ('post', 'pre'), ('learned', 'sinusoidal', 'relative', 'rotary', 'none')
  )
) + ({'short_convolution': 3},)
OTHERS = (
  {'projection': False, 'embedding_size': 16},
  {'tied': True, 'embedding_size': 16},
  {'segments': 0},
  {'activation': 'relu'},
  {'num_layers': 2},
  {'projection_norm': False},
  {'segment_embeddings_for_pairs': True},
)


@functools.cache
def compute_gradient(**changes: Any) -> tuple[jax.Array, Any]:
  """Returns the logits of fixed tokens, and the gradient of a sum over them."""
  tokens = draw_tokens(8, SMALL.max_length)

  def add(model: heads.MaskedLanguageModel) -> tuple[jax.Array, jax.Array]:
    logits = compute_logits(model, tokens)
    return jnp.sum(jnp.sin(logits)), logits

  gradient, logits = jax.jit(jax.grad(add, has_aux=True))(make_model(changes))
  return logits, gradient


@pytest.mark.parametrize('changes', SWITCHES)
def test_padding_changes_nothing(changes: dict[str, Any]):
  model, tokens = make_model(changes), draw_tokens(2, 7)
  longer = logits(model, pad_tokens(tokens, SMALL.max_length))
  np.testing.assert_allclose(longer[:, :7], logits(model, tokens), atol=2e-5)


@pytest.mark.parametrize('changes', SWITCHES)
def test_other_rows_change_nothing(changes: dict[str, Any]):
  model, tokens = make_model(changes), draw_tokens(2, 7)
  other = tokens.at[0].set(draw_tokens(1, 7, seed=1)[0])
  np.testing.assert_array_equal(logits(model, tokens)[1], logits(model, other)[1])


@pytest.mark.parametrize('changes', SWITCHES + OTHERS)
def test_every_parameter_gets_a_gradient(changes: dict[str, Any]):
  """The bias of keys shifts all scores of a query equally, and has none without rotation."""
  tokens = draw_tokens(8, SMALL.max_length)
  min_share = 0.4 if 'relu' in changes.values() else 0.99  # an inactive unit of ReLU has none
  _, gradient = compute_gradient(**changes)
  for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
    name, leaf = path_name(path), np.abs(np.asarray(leaf))
    if name.endswith('attention.key.bias') and changes.get('positions') != 'rotary':
      assert leaf.max() < 1e-3
    elif name.endswith('embedding.positions.embedding'):
      # The position offset of RoBERTa leaves two rows unused.
      assert leaf[:2].max() == 0 and leaf[2:].max(axis=1).min() > 1e-4
    elif name.endswith('embedding.segments.embedding'):
      assert leaf[0].max() > 1e-4 and leaf[1].max() == 0  # pre-training has one segment
    elif name.endswith('embedding.tokens.embedding'):
      seen = np.isin(np.arange(SMALL.vocab_size), tokens)
      assert leaf[seen].max(axis=1).min() > 1e-4
      assert 'tied' in changes or leaf[~seen].max() == 0
    else:
      assert (leaf > 0).mean() > min_share, name


@pytest.mark.parametrize('changes', SWITCHES)
def test_every_token_affects_every_output(changes: dict[str, Any]):
  model, tokens = make_model(changes), draw_tokens(2, 7)
  before = logits(model, tokens)
  for position in range(7):
    change = jnp.abs(logits(model, tokens.at[0, position].set(4)) - before).max(axis=-1)[0]
    assert change.min() > 1e-3


def test_the_content_of_pads_changes_nothing():
  model, tokens = make_model({}).encoder, pad_tokens(draw_tokens(2, 5), SMALL.max_length)
  mask = tokens != 1
  output, other_output = (
    encode(model, tokens, mask),
    encode(model, jnp.where(mask, tokens, 30), mask),
  )
  np.testing.assert_array_equal(output[:, :5], other_output[:, :5])


def test_a_row_of_pads_gives_finite_logits():
  assert np.isfinite(logits(make_model({}), jnp.ones((1, 8), jnp.int32))).all()


@pytest.mark.parametrize(
  'positions, absolute',
  [
    ('learned', True),
    ('sinusoidal', True),
    ('relative', False),
    ('rotary', False),
    ('none', False),
  ],
)
def test_only_absolute_positions_depend_on_the_start_of_a_row(positions: str, absolute: bool):
  """Tokens shifted to the right, after masked positions, have the same outputs."""
  model = make_model({'positions': positions}).encoder
  row = pad_tokens(draw_tokens(2, 5), SMALL.max_length)
  shifted = jnp.roll(row, 4, axis=1)
  output, shifted_output = (
    encode(model, row, row != 1)[:, :5],
    encode(model, shifted, shifted != 1)[:, 4:9],
  )
  assert (np.abs(output - shifted_output).max() > 1e-2) == absolute


@pytest.mark.parametrize('positions', ['learned', 'sinusoidal', 'relative', 'rotary'])
def test_order_matters(positions: str):
  model, tokens = make_model({'positions': positions}), draw_tokens(2, 7)
  assert np.abs(logits(model, tokens)[:, ::-1] - logits(model, tokens[:, ::-1])).max() > 1e-2


@pytest.mark.parametrize('norm', ['post', 'pre'])
def test_without_positions_outputs_follow_the_order_of_tokens(norm: str):
  model, tokens = make_model({'positions': 'none', 'norm': norm}), pad_tokens(draw_tokens(2, 7), 9)
  order = np.array([3, 8, 0, 6, 1, 7, 5, 2, 4])
  np.testing.assert_allclose(
    logits(model, tokens[:, order]), logits(model, tokens)[:, order], atol=2e-5
  )


def test_sinusoids_equal_those_of_vaswani():
  """PE(p, 2i) = sin(p / 10000^(2i / E)), PE(p, 2i + 1) is the cosine; times 0.02."""
  table = [
    [
      function(position / 10_000 ** (2 * pair / 6))
      for pair in range(3)
      for function in (math.sin, math.cos)
    ]
    for position in range(9)
  ]
  np.testing.assert_allclose(encoder._build_sinusoids(9, 6), 0.02 * np.array(table), atol=1e-7)
  with pytest.raises(InputError, match='model.embedding_size'):
    dataclasses.replace(SMALL, positions='sinusoidal', embedding_size=11)


def test_relative_bias_distinguishes_left_from_right():
  """The score of token j for token i has the bias of index j - i + length - 1."""
  config = dataclasses.replace(
    SMALL, positions='relative', max_length=4, num_heads=1, hidden_size=4, dropout=0.0
  )
  attention = make_uniform_attention(config)
  # Attend to the second token to the right.
  attention.distance_bias = nnx.Param(jnp.where(jnp.arange(7) == 3 + 2, 50.0, 0.0)[None])
  x = jax.random.normal(jax.random.key(0), (1, 4, 4))
  output = attend(attention, x, jnp.ones((1, 4), bool))
  np.testing.assert_allclose(output[0, :2], x[0, 2:], atol=1e-5)


def make_uniform_attention(config: EncoderConfig) -> encoder.Attention:
  """Returns attention with equal scores and identity matrices for values and outputs."""
  attention = jax.eval_shape(lambda: encoder.Attention(config, nnx.Rngs(0)))
  for name in ('query', 'key', 'value', 'output'):
    linear = getattr(attention, name)
    linear.kernel = nnx.Param(jnp.eye(config.hidden_size) * (name in ('value', 'output')))
    linear.bias = nnx.Param(jnp.zeros(config.hidden_size))
  return attention


attend = jax.jit(lambda attention, x, mask: attention(x, mask, None))


def test_uniform_attention_is_the_mean_of_the_tokens():
  config = dataclasses.replace(SMALL, num_heads=2, hidden_size=4)
  x = jax.random.normal(jax.random.key(0), (1, 5, 4))
  mask = jnp.array([[True, True, False, True, False]])
  output = attend(make_uniform_attention(config), x, mask)
  np.testing.assert_allclose(
    output, np.broadcast_to(np.asarray(x)[0, [0, 1, 3]].mean(0), (1, 5, 4)), atol=1e-6
  )


def test_attention_equals_a_direct_computation():
  """Each of two heads with one feature computes softmax(q k) v over two tokens."""
  config = dataclasses.replace(SMALL, num_heads=2, hidden_size=2)
  attention = make_uniform_attention(config)
  attention.query.kernel, attention.key.kernel = nnx.Param(jnp.eye(2)), nnx.Param(2 * jnp.eye(2))
  x = jnp.array([[[1.0, -1.0], [2.0, 3.0]]])
  expected = np.zeros((2, 2))
  for head, (a, b) in enumerate([(1.0, 2.0), (-1.0, 3.0)]):
    for i, q in enumerate((a, b)):
      share = 1 / (1 + math.exp(2 * q * (b - a)))
      expected[i, head] = share * a + (1 - share) * b
  np.testing.assert_allclose(attend(attention, x, jnp.ones((1, 2), bool))[0], expected, rtol=1e-5)


def encode_by_numpy(model: encoder.Encoder, tokens: np.ndarray) -> np.ndarray:
  """Computes the encoder of paper 1 in float64: post-LN, learned positions, no dropout or pads."""
  p = {
    path_name(path): np.asarray(leaf, np.float64)
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
  }

  def linear(name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[name + '.kernel'] + p[name + '.bias']

  def norm(name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return (
      centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[name + '.scale']
      + p[name + '.bias']
    )

  gelu = np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))))
  batch, length = tokens.shape
  x = p['embedding.tokens.embedding'][tokens] + p['embedding.positions.embedding'][2 : 2 + length]
  x = norm('embedding.norm', x + p['embedding.segments.embedding'][0])
  x = norm('projection.norm', linear('projection.linear', x))
  for i in range(SMALL.num_layers):
    block = f'blocks.{i}.'
    q, k, v = (
      linear(f'{block}attention.{n}', x).reshape(batch, length, 4, 4)
      for n in ('query', 'key', 'value')
    )
    shares = np.exp(np.einsum('blhd,bmhd->bhlm', q, k) / 2)
    mixed = np.einsum('bhlm,bmhd->blhd', shares / shares.sum(-1, keepdims=True), v).reshape(
      batch, length, 16
    )
    x = norm(block + 'attention_norm', x + linear(block + 'attention.output', mixed))
    inner = linear(block + 'feed_forward.down', gelu(linear(block + 'feed_forward.up', x)))
    x = norm(block + 'feed_forward_norm', x + inner)
  return x


def test_the_encoder_equals_the_formula_of_paper1():
  model, tokens = make_model({}).encoder, draw_tokens(2, SMALL.max_length)
  np.testing.assert_allclose(
    encode(model, tokens, tokens != 1), encode_by_numpy(model, np.asarray(tokens)), atol=2e-5
  )


def make_keys(seed: int, rows: int = 2) -> jax.Array:
  return rng.make_batch_keys(seed, rng.Stream.DROPOUT, 0, jnp.arange(rows))


def test_dropout_is_a_function_of_the_key():
  model, tokens = make_model({'dropout': 0.5}).encoder, draw_tokens(2, 9)
  run = jax.jit(lambda model, key: model(tokens, tokens != 1, key=key))
  np.testing.assert_array_equal(
    run(model, None), run(make_model({'dropout': 0.0}).encoder, make_keys(0))
  )
  first, again, other = (run(model, make_keys(i)) for i in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-2


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate: float):
  x = jnp.ones((1000, 1000))
  dropped = np.asarray(layers.apply_dropout(x, rate, make_keys(0, 1000)))
  assert abs((dropped == 0).mean() - rate) < 4 * math.sqrt(rate * (1 - rate)) / 1000 + 2**-16
  assert len(np.unique(dropped)) == 2 and abs(dropped.mean() - 1) < 0.02
  assert (
    layers.apply_dropout(x, rate, None) is x
    and layers.apply_dropout(x, 0.0, make_keys(0, 1000)) is x
  )


@pytest.mark.parametrize('rate', [1.0, 1 - 1e-9])
def test_a_dropout_rate_of_one_drops_everything(rate: float):
  x = jnp.full((2, 5), 3.0)
  np.testing.assert_array_equal(layers.apply_dropout(x, rate, make_keys(0)), np.zeros((2, 5)))
  gradient = jax.grad(lambda x: layers.apply_dropout(x, rate, make_keys(0)).sum())(x)
  np.testing.assert_array_equal(gradient, np.zeros((2, 5)))


def test_dropout_masks_are_independent(monkeypatch: pytest.MonkeyPatch):
  """A key that is used twice would give two equal masks."""
  drawn: list[jax.Array] = []
  original = rng.draw_coins
  monkeypatch.setattr(
    rng, 'draw_coins', lambda *arguments: drawn.append(original(*arguments)) or drawn[-1]
  )

  def draw(model: encoder.Encoder, tokens: jax.Array) -> list[jax.Array]:
    model(tokens, tokens != 1, key=make_keys(0))
    return list(drawn)

  values = jax.jit(draw)(make_model({'hidden_size': 12}).encoder, draw_tokens(2, 12))
  # Embedding; weights, attention and feed-forward of each block.
  assert len(values) == 1 + SMALL.num_layers * 3
  assert not any(
    a.shape == b.shape and (a == b).mean() > 0.01 for a, b in itertools.combinations(values, 2)
  )


def test_graph_modes_of_flax_compute_the_same():
  """The program uses models as pytrees, so reference tracking of Flax does not matter."""
  tokens, losses = draw_tokens(2, 7), []
  for mode in (True, False):
    with nnx.set_graph_mode(mode):
      model = make_model({})
      losses.append(
        jax.jit(jax.value_and_grad(lambda model: jnp.sum(compute_logits(model, tokens) ** 2)))(
          model
        )
      )
  np.testing.assert_array_equal(losses[0][0], losses[1][0])
  jax.tree.map(
    np.testing.assert_array_equal, *(jax.tree.leaves(gradient) for _, gradient in losses)
  )


def test_vmap_equals_single_models():
  models, tokens = [make_model({}, seed) for seed in (0, 1)], draw_tokens(2, 7)
  together = jax.jit(jax.vmap(compute_logits, in_axes=(0, None)))(
    jax.tree.map(lambda *x: jnp.stack(x), *models), tokens
  )
  for output, model in zip(together, models):
    np.testing.assert_allclose(output, logits(model, tokens), atol=2e-5)


def relative_distance(values: Any, expected: Any) -> float:
  """Returns the largest distance of two arrays, relative to its norm plus 1% of the total norm."""
  values, expected = (
    [np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (values, expected)
  )
  offset = 0.01 * math.sqrt(sum(np.sum(leaf**2) for leaf in expected))
  return max(
    np.linalg.norm(value - other) / (np.linalg.norm(other) + offset)
    for value, other in zip(values, expected, strict=True)
  )


@pytest.mark.parametrize('changes', (*SWITCHES, {'tied': True, 'embedding_size': 16}))
def test_bfloat16_is_close_to_float32(changes: dict[str, Any]):
  """Logits are within 2% and gradients within 5%; a rounding to bfloat16 is off by up to 0.4%."""
  logits, gradient = compute_gradient(**changes, dtype='bfloat16')
  expected, expected_gradient = compute_gradient(**changes)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, gradient))} == {jnp.dtype('float32')}
  assert 1e-3 < relative_distance(logits, expected) < 0.02
  assert relative_distance(gradient, expected_gradient) < 0.05


@pytest.mark.parametrize('compute', ['float32', 'bfloat16'])
def test_every_product_has_the_compute_type(compute: str):
  model, tokens = (
    make_model({'positions': 'relative', 'num_layers': 2, 'dtype': compute}),
    draw_tokens(2, SMALL.max_length),
  )
  text = jax.jit(jax.grad(lambda model: encode_sum(model, tokens))).lower(model.encoder).as_text()
  read = re.findall(r'dot_general .*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\)', text)
  assert (
    set(read) == {({'float32': 'f32', 'bfloat16': 'bf16'}[compute],) * 2} and len(read) >= 3 * 17
  )


def encode_sum(model: encoder.Encoder, tokens: jax.Array) -> jax.Array:
  """Returns a number that depends on every output."""
  return jnp.sum(
    jnp.sin(model(tokens, tokens != 1, key=make_keys(0, len(tokens))).astype(jnp.float32))
  )


def test_scores_and_weights_of_attention_are_float32():
  """Scores of 20 and 20 + 1/32 are equal in bfloat16; in float32 weights differ by tanh(1/64)."""
  attention = make_uniform_attention(
    dataclasses.replace(SMALL, num_heads=1, hidden_size=4, dtype='bfloat16')
  )
  attention.query.bias, attention.key.kernel = (
    nnx.Param(jnp.array([8.0, 2, 0, 0])),
    nnx.Param(jnp.eye(4)),
  )
  x = jnp.array([[[5, 0, 1, 0], [5, 1 / 32, -1, 0]]], jnp.bfloat16)
  output = attend(attention, x, jnp.ones((1, 2), bool))[0, :, 2]
  assert output.dtype == jnp.bfloat16
  np.testing.assert_allclose(output.astype(jnp.float32), -math.tanh(1 / 64), rtol=0.3)


def test_norms_are_computed_in_float32():
  """Numbers around 100 have steps of 0.5 in bfloat16, and their squares steps of 64."""
  config = dataclasses.replace(SMALL, dtype='bfloat16', norm_epsilon=0.0)
  x = jnp.asarray(100 + np.random.default_rng(0).integers(-4, 5, (64, 16)) / 2, jnp.bfloat16)
  expected = np.asarray(x, np.float64)
  expected -= expected.mean(-1, keepdims=True)
  expected /= np.sqrt((expected**2).mean(-1, keepdims=True))
  output = layers.build_layer_norm(16, config, nnx.Rngs(0))(x)
  assert output.dtype == jnp.bfloat16
  np.testing.assert_allclose(output.astype(jnp.float32), expected, rtol=0.01, atol=1e-3)


def test_gradients_over_tokens_are_summed_in_float32():
  """A bias has a gradient of 3,001, which bfloat16 lacks; a table has its gradient in float32."""
  config = dataclasses.replace(SMALL, dtype='bfloat16', dropout=0.0)
  ones = jnp.ones((3001, SMALL.hidden_size), jnp.bfloat16)
  for layer in (
    layers.Linear(16, 16, config, nnx.Rngs(0)),
    layers.build_layer_norm(16, config, nnx.Rngs(0)),
  ):
    gradient = jax.jit(jax.grad(lambda layer: layer(ones).astype(jnp.float32).sum()))(layer)
    np.testing.assert_array_equal(gradient.bias[...], 3001)
  factors = jnp.asarray(np.random.default_rng(0).integers(1, 9, (300, 12, 12)), jnp.float32)
  gradient = jax.jit(
    jax.grad(
      lambda table: jnp.sum(table(jnp.full((300, 12), 7), None).astype(jnp.float32) * factors)
    )
  )
  tables = [make_model({'dtype': compute}).encoder.embedding for compute in ('bfloat16', 'float32')]
  assert relative_distance(*map(gradient, tables)) < 1e-4


@pytest.mark.parametrize(
  'changes', [{}, {'norm': 'pre', 'positions': 'relative', 'short_convolution': 3}]
)
def test_remat_changes_nothing(changes: dict[str, Any]):
  """Recomputed blocks drop the same units."""
  changes, tokens = {'num_layers': 3, 'dropout': 0.3, **changes}, draw_tokens(4, SMALL.max_length)
  run = jax.jit(jax.value_and_grad(encode_sum))
  stored, recomputed = (
    run(make_model({**changes, 'remat': remat}).encoder, tokens) for remat in (False, True)
  )
  assert (
    float(recomputed[0]) == pytest.approx(float(stored[0]), rel=1e-6)
    and relative_distance(recomputed[1], stored[1]) < 1e-5
  )


def test_remat_needs_less_than_half_of_the_memory():
  """A model of 6 layers stores the activations of one layer and 6 inputs."""
  sizes = {}
  for remat in (False, True):
    model = make_model({'num_layers': 6, 'dropout': 0.0, 'remat': remat}).encoder
    run = (
      jax.jit(jax.grad(encode_sum))
      .lower(model, jnp.zeros((64, SMALL.max_length), jnp.int32))
      .compile()
    )
    sizes[remat] = run.memory_analysis().temp_size_in_bytes
  assert sizes[True] < sizes[False] / 2, sizes


@pytest.mark.parametrize(
  'name, expected',
  [
    ('gelu', lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    ('relu', lambda x: max(x, 0)),
    ('silu', lambda x: x / (1 + math.exp(-x))),
    (
      'gelu_tanh',
      lambda x: x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
  ],
)
def test_activations(name: str, expected: Callable[[float], float]):
  x = jnp.linspace(-3, 3, 13)
  np.testing.assert_allclose(
    layers.apply_activation(name, x), [expected(float(v)) for v in x], atol=1e-6
  )


FRONT = {'positions': 'rotary', 'convolutions': 1, 'kernel': (3, 3), 'channels': 2}
CHANGES = (
  {},
  {'norm': 'pre', 'positions': 'relative'},
  {'positions': 'rotary', 'num_layers': 2, 'remat': True},
  FRONT,
  FRONT | {'convolution': 'fixed', 'norm': 'pre'},
)
attention_weights = jax.jit(encoder.Encoder.attention_weights)


@pytest.mark.parametrize('changes', CHANGES)
def test_attention_weights_sum_to_1_over_tokens(changes: dict[str, Any]):
  model, tokens = make_model(changes).encoder, pad_tokens(draw_tokens(2, 7), 9)
  weights = attention_weights(model, tokens, tokens != 1)
  assert len(weights) == model.config.num_layers
  for layer in weights:
    assert layer.shape == (2, model.config.num_heads, 9, 9) and layer.min() >= 0
    np.testing.assert_allclose(layer.sum(-1), 1, rtol=1e-5)
    assert layer[..., 7:].max() == 0 and layer[..., :7].min() > 0


@pytest.mark.parametrize('norm', ['pre', 'post'])
def test_attention_weights_reproduce_the_output(norm: str, monkeypatch: pytest.MonkeyPatch):
  model, tokens = make_model({'norm': norm, 'num_layers': 2}).encoder, draw_tokens(2, 9)
  expected = encode(model, tokens, tokens != 1)
  weights = iter(attention_weights(model, tokens, tokens != 1))
  # Weights sum to 1, so they replace the numerators of softmax.
  monkeypatch.setattr(encoder.Attention, 'exponentials', lambda self, x, mask: next(weights))
  result = jax.jit(lambda model: model(tokens, tokens != 1))(model)
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_attention_weights_drop_nothing_and_do_not_change_the_model():
  tokens = draw_tokens(2, 9)
  model, deterministic = (
    make_model({'dropout': rate, 'num_layers': 2, 'remat': True}).encoder for rate in (0.5, 0.0)
  )
  blocks, config = model.blocks, model.config
  for weight, other in zip(
    attention_weights(model, tokens, tokens != 1),
    attention_weights(deterministic, tokens, tokens != 1),
    strict=True,
  ):
    np.testing.assert_array_equal(weight, other)
  jax.eval_shape(lambda: model.attention_weights(tokens, tokens != 1))
  assert model.blocks is blocks and model.config is config


def test_a_large_bias_for_the_previous_token_is_a_weight_of_1():
  model, tokens = make_model({'positions': 'relative'}).encoder, draw_tokens(2, 9)
  is_previous = jnp.arange(2 * SMALL.max_length - 1) == SMALL.max_length - 2
  model.blocks[0].attention.distance_bias = nnx.Param(
    jnp.tile(jnp.where(is_previous, 100.0, 0.0), (SMALL.num_heads, 1))
  )
  (layer_weights,) = attention_weights(model, tokens, tokens != 1)
  np.testing.assert_allclose(jnp.diagonal(layer_weights, offset=-1, axis1=2, axis2=3), 1, atol=1e-5)


def make_short_convolution(width: int, **changes: Any) -> encoder.ShortConvolution:
  """Returns a layer with random weights."""
  config = dataclasses.replace(SMALL, short_convolution=width, **changes)
  return draw_arrays(jax.eval_shape(lambda: encoder.ShortConvolution(config)))


def draw_padded_rows(rows: int = 3, length: int = 9) -> tuple[jax.Array, jax.Array]:
  """Returns rows of 9, 6 and 2 tokens with large values at pads."""
  mask = jnp.arange(length)[None] < jnp.array([9, 6, 2])[:rows, None]
  x = jax.random.normal(jax.random.key(0), (rows, length, SMALL.hidden_size))
  return jnp.where(mask[:, :, None], x, 1e3), mask


def convolve_by_xla(layer: encoder.ShortConvolution, x: jax.Array, mask: jax.Array) -> jax.Array:
  kernel = layer.kernel[...]
  near = jax.lax.conv_general_dilated(
    jnp.where(mask[:, :, None], x, 0),
    kernel[:, None],
    (1,),
    'SAME',
    dimension_numbers=('NWC', 'WIO', 'NWC'),
    feature_group_count=kernel.shape[1],
  )
  return x + near + layer.bias[...].reshape(1, 1, -1)


@pytest.mark.parametrize('width', [1, 3, 7])
def test_a_short_convolution_equals_the_depthwise_convolution_of_xla(width: int):
  """Outputs and the gradients of weights and inputs are equal."""
  layer, (x, mask) = make_short_convolution(width), draw_padded_rows()
  toward = jax.random.normal(jax.random.key(2), x.shape)
  results, expected = (
    jax.jit(jax.value_and_grad(lambda layer, x, f=f: (f(layer, x, mask) * toward).sum(), (0, 1)))(
      layer, x
    )
    for f in (lambda layer, x, mask: layer(x, mask), convolve_by_xla)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), results, expected
  )
  # The gradient of a pad passes only through the residual.
  np.testing.assert_array_equal(results[1][1][~mask], toward[~mask])


def test_a_short_convolution_in_bfloat16_adds_in_float32():
  layer, (x, mask) = make_short_convolution(7, dtype='bfloat16'), draw_padded_rows()
  narrow = x.astype(jnp.bfloat16)
  output = layer(narrow, mask)
  assert output.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    output, layer(narrow.astype(jnp.float32), mask).astype(jnp.bfloat16)
  )


def init_short_convolution(rule: str, width: int) -> heads.MaskedLanguageModel:
  config = dataclasses.replace(SMALL, initialization=rule, short_convolution=width)
  return jax.jit(lambda: heads.init_masked_language_model(config, jax.random.key(0)))()


@pytest.mark.parametrize('rule', ['standard', 'paper1', 'bert'])
def test_a_short_convolution_starts_at_0(rule: str):
  expected, arrays = (
    {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    for model in (init_short_convolution(rule, 0), init_short_convolution(rule, 3))
  )
  for name in ('bias', 'kernel'):
    assert not np.any(arrays.pop(f'encoder.short_convolution.{name}'))
  jax.tree.map(np.testing.assert_array_equal, arrays, expected)


@pytest.mark.parametrize('rule', ['standard', 'paper1', 'bert'])
def test_a_short_convolution_learns_from_the_first_step(rule: str):
  without, model = init_short_convolution(rule, 0), init_short_convolution(rule, 3)
  tokens = jax.random.randint(jax.random.key(3), (4, 12), 5, SMALL.vocab_size)

  def loss(model: heads.MaskedLanguageModel) -> tuple[jax.Array, jax.Array]:
    x = model(tokens, tokens > 0, jnp.broadcast_to(jnp.arange(12), tokens.shape))
    return jnp.sin(1e3 * x).sum(), x

  (gradient, x), (_, y) = (jax.jit(jax.grad(loss, has_aux=True))(m) for m in (model, without))
  np.testing.assert_array_equal(x, y)
  assert np.abs(gradient.encoder.short_convolution.kernel[...]).min() > 0


def test_xla_confirms_the_flops_of_a_short_convolution():
  """The taps count; the residual and the zeros at pads are element-wise operations."""
  x, mask = draw_padded_rows()
  for width in (1, 3, 7):
    program = jax.jit(lambda layer, x: layer(x, mask)).lower(make_short_convolution(width), x)
    config = dataclasses.replace(SMALL, short_convolution=width)
    counted = flops.encoder_flops(config, 9) - flops.encoder_flops(SMALL, 9)
    assert counted == 2 * 9 * width * SMALL.hidden_size
    # XLA also counts the bias, the residual and up to two scalars.
    assert 0 <= program.cost_analysis()['flops'] - len(x) * counted - 2 * x.size <= 2


@pytest.mark.parametrize('width', [2, 13, -1])
def test_invalid_width_is_refused(width: int):
  with pytest.raises(InputError, match=f'model.short_convolution={width}'):
    dataclasses.replace(SMALL, short_convolution=width)
