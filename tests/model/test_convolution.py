"""The convolutional front-end: PyTorch's numbers, pads, statistics that no gradient moves, the
mended form.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from minilm_jax.core import rng
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model import convolution, encoder, heads
from minilm_jax.model.initialization import initialize, is_statistic, path_name
from minilm_jax.training import optimizer, sharding
from tests import fast_jit
from tests.tiny_config import make_optimizer_config

SMALL = EncoderConfig(
  encoder='',
  vocab_size=50,
  embedding_size=16,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  num_layers=1,
  max_length=12,
  norm='post',
  positions='learned',
  segments=2,
  projection=False,
  tied=True,
  activation='gelu',
  dropout=0.0,
  initialization='bert',
  norm_epsilon=1e-12,
  flops_heads=4,
  dtype='float32',
  remat=False,
  projection_norm=True,
  segment_embeddings_for_pairs=False,
  short_convolution=0,
  position_offset=0,
  convolutions=2,
  kernel=(3, 3),
  channels=5,
  convolution='paper2',
)
FORMS = ('paper2', 'fixed')
BATCH, PAD = 4, 1


def config_of(**changes: Any) -> EncoderConfig:
  return dataclasses.replace(SMALL, **changes)


def randomized(model: Any, seed: int = 0) -> Any:
  """A module whose every array is random, variances positive, so that no part is without effect."""
  dice = np.random.default_rng(seed)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = path_name(path)
    if name.endswith('variance'):
      return jnp.asarray(dice.uniform(0.5, 2, leaf.shape), jnp.float32)
    return jnp.asarray(name.endswith('scale') + 0.3 * dice.standard_normal(leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, model)


def front_end(seed: int = 0, **changes: Any) -> convolution.FrontEnd:
  config = config_of(**changes)
  return randomized(jax.eval_shape(lambda: convolution.FrontEnd(config, nnx.Rngs(0))), seed)


def language_model(seed: int = 0, **changes: Any) -> heads.MaskedLanguageModel:
  config = config_of(**changes)
  return randomized(
    jax.eval_shape(lambda: heads.init_masked_language_model(config, jax.random.key(0))), seed
  )


def some(seed: int = 0, rows: int = BATCH, length: int = 12, hidden: int = 16) -> jax.Array:
  return jnp.asarray(
    np.random.default_rng(seed).standard_normal((rows, length, hidden)), jnp.float32
  )


def keys_of(rows: int) -> jax.Array:
  return rng.batch_key(0, rng.Stream.DROPOUT, 0, jnp.arange(rows))


@fast_jit.jit
def run(front: convolution.FrontEnd, x: jax.Array, mask: jax.Array, key: Any = None) -> jax.Array:
  return front(x, mask, key)


def everywhere(x: jax.Array) -> jax.Array:
  return jnp.ones(x.shape[:2], bool)


def values(module: Any) -> dict[str, np.ndarray]:
  return {
    path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(module)
  }


def as_torch(torch: Any, front: convolution.FrontEnd) -> Any:
  """The paper's stack in PyTorch's own modules, with the weights of ours."""
  parts = []
  for layer in (*front.layers, front.last):
    kernel, own = np.asarray(layer.convolution.kernel[...]), torch.nn
    conv = own.Conv2d(*kernel.shape[2:], tuple(kernel.shape[:2]), padding='same')
    norm = own.BatchNorm2d(kernel.shape[3])
    put = lambda into, value: into.data.copy_(torch.tensor(np.array(value)))  # noqa: E731
    put(conv.weight, kernel.transpose(3, 2, 0, 1)), put(conv.bias, layer.convolution.bias[...])
    put(norm.weight, layer.norm.scale[...]), put(norm.bias, layer.norm.bias[...])
    (
      put(norm.running_mean, layer.norm.running_mean[...]),
      put(norm.running_var, layer.norm.running_variance[...]),
    )
    parts += [conv, norm, own.GELU()]
  return torch.nn.Sequential(*parts)


def norms_of(stack: Any) -> list[Any]:
  return [part for part in stack if type(part).__name__ == 'BatchNorm2d']


KERNELS = [
  {'kernel': (3, 3)},
  {'kernel': (4, 3), 'convolutions': 1},
  {'kernel': (2, 5), 'convolutions': 3},
  {'kernel': (16, 3), 'max_length': 20},
]


@pytest.mark.parametrize('changes', KERNELS, ids=str)
@pytest.mark.parametrize('training', [False, True])
def test_the_front_end_is_that_of_pytorch(training: bool, changes: dict[str, Any]):
  """Outputs and gradients in both modes, statistics after a step, even kernels too."""
  torch = pytest.importorskip('torch', reason='needs PyTorch, which is an extra')
  front = front_end(**changes)
  x = some(length=front.config.max_length)
  stack = as_torch(torch, front).train(training)
  theirs = torch.tensor(np.asarray(x), requires_grad=True)
  out = stack(theirs[:, None])[:, 0]
  toward = np.random.default_rng(1).standard_normal(out.shape).astype('float32')
  (out * torch.tensor(toward)).sum().backward()
  key = keys_of(len(x)) if training else None

  def loss(front: convolution.FrontEnd, x: jax.Array) -> Any:
    found = front(x, everywhere(x), key)
    return (found * toward).sum(), found

  gradients, found = fast_jit.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(front, x)
  np.testing.assert_allclose(found, out.detach().numpy(), atol=1e-5)
  np.testing.assert_allclose(gradients[1], theirs.grad.numpy(), atol=2e-4)
  for layer, conv, norm in zip(
    (*gradients[0].layers, gradients[0].last), stack[::3], norms_of(stack), strict=True
  ):
    np.testing.assert_allclose(
      layer.convolution.kernel[...], conv.weight.grad.numpy().transpose(2, 3, 1, 0), atol=1e-3
    )
    np.testing.assert_allclose(layer.norm.scale[...], norm.weight.grad.numpy(), atol=1e-3)
    np.testing.assert_allclose(layer.norm.bias[...], norm.bias.grad.numpy(), atol=1e-3)
  if training:
    moved = after_a_step(front, gradients[0])
    for layer, norm in zip((*moved.layers, moved.last), norms_of(stack), strict=True):
      np.testing.assert_allclose(layer.norm.running_mean[...], norm.running_mean.numpy(), atol=1e-5)
      np.testing.assert_allclose(
        layer.norm.running_variance[...], norm.running_var.numpy(), atol=1e-5
      )
    started, ended = (values(one)['layers.0.norm.running_mean'] for one in (front, moved))
    assert np.abs(ended - started).max() > 1e-3


def after_a_step(front: Any, gradient: Any, **changes: Any) -> Any:
  """The module after one update of AdamW."""
  transform = optimizer.build_optimizer(make_optimizer_config(no_decay=(), **changes), 10, front)
  change, _ = transform.update(
    optimizer.mean_gradient(gradient, 1, 1), transform.init(front), front
  )
  return jax.tree.map(jnp.add, front, change)


@pytest.mark.parametrize('training', [False, True])
def test_the_encoder_is_that_of_pytorch(training: bool):
  """Front-end and one block of BERT, pads masked in attention and in nothing else."""
  torch = pytest.importorskip('torch', reason='needs PyTorch, which is an extra')
  model = language_model().encoder
  tokens = jax.random.randint(jax.random.key(0), (BATCH, 12), 5, 50).at[:2, 7:].set(PAD)
  mask = np.array(tokens != PAD)
  block, config = model.blocks[0], model.config
  layer = torch.nn.TransformerEncoderLayer(
    config.hidden_size, config.num_heads, config.intermediate_size, 0.0, 'gelu', 1e-12, True
  )
  put = lambda into, value: into.data.copy_(torch.tensor(np.array(value)))  # noqa: E731
  with torch.no_grad():
    three = (block.attention.query, block.attention.key, block.attention.value)
    put(
      layer.self_attn.in_proj_weight,
      np.concatenate([np.asarray(one.kernel[...]).T for one in three]),
    )
    put(layer.self_attn.in_proj_bias, np.concatenate([np.asarray(one.bias[...]) for one in three]))
    for theirs, ours in (
      (layer.self_attn.out_proj, block.attention.output),
      (layer.linear1, block.feed_forward.up),
      (layer.linear2, block.feed_forward.down),
    ):
      put(theirs.weight, np.asarray(ours.kernel[...]).T), put(theirs.bias, ours.bias[...])
    for theirs, ours in (
      (layer.norm1, block.attention_norm),
      (layer.norm2, block.feed_forward_norm),
    ):
      put(theirs.weight, ours.scale[...]), put(theirs.bias, ours.bias[...])
    torch.backends.mha.set_fastpath_enabled(False)
    stack = as_torch(torch, model.convolution).train(training)
    table = model.embedding
    x = (
      np.asarray(table.tokens.embedding[...])[tokens]
      + np.asarray(table.positions.embedding[...])[:12]
    )
    x = x + np.asarray(table.segments.embedding[...])[0]
    x = torch.nn.functional.layer_norm(
      torch.tensor(x),
      (16,),
      torch.tensor(np.array(table.norm.scale[...])),
      torch.tensor(np.array(table.norm.bias[...])),
      1e-12,
    )
    expected = layer.eval()(
      stack(x[:, None])[:, 0], src_key_padding_mask=torch.tensor(~mask)
    ).numpy()
  found = fast_jit.jit(
    lambda model: model(tokens, tokens != PAD, key=keys_of(BATCH) if training else None)
  )(model)
  np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=1e-5)


def tokens_of(lengths: tuple[int, ...], total: int, seed: int = 0) -> jax.Array:
  rows = np.random.default_rng(seed).integers(5, 50, (len(lengths), total))
  for row, length in zip(rows, lengths, strict=True):
    row[length:] = PAD
  return jnp.asarray(rows)


@fast_jit.jit
def encode(model: encoder.Encoder, tokens: jax.Array) -> jax.Array:
  return model(tokens, tokens != PAD)


@pytest.mark.parametrize('kernel, norm', [((3, 3), 'post'), ((4, 2), 'pre')])
def test_what_is_at_pads_changes_nothing_in_the_mended_form_alone(
  kernel: tuple[int, int], norm: str
):
  """In the paper's it does, within the reach of the kernels, as its own has it."""
  x, mask = some(), jnp.arange(12)[None] < jnp.array([7, 12, 4, 9])[:, None]
  other = jnp.where(mask[:, :, None], x, some(1))
  for form in FORMS:
    front = front_end(convolution=form, kernel=kernel, norm=norm)
    gap = np.abs(np.asarray(run(front, x, mask) - run(front, other, mask))).max(-1)
    assert not gap[1].any()  # a row without pads
    if form == 'fixed':
      np.testing.assert_allclose(gap[np.asarray(mask)], 0, atol=1e-6)
    else:
      reach = 2 * (kernel[0] // 2)  # of two layers
      assert gap[0, 7 - reach : 7].max() > 1e-3 and not gap[0, : 7 - reach].any()


@pytest.mark.parametrize('form', FORMS)
def test_how_a_row_is_padded_changes_nothing(form: str):
  """In the paper's form because every row is filled up to the length of the model."""
  model = language_model(convolution=form).encoder
  short = tokens_of((7, 5), 7)
  whole = jnp.pad(short, ((0, 0), (0, 5)), constant_values=PAD)
  some_length, full = encode(model, short), encode(model, whole)
  assert some_length.shape == (2, 7, 16)
  mask = np.asarray(short != PAD)
  np.testing.assert_allclose(
    np.asarray(some_length)[mask], np.asarray(full)[:, :7][mask], atol=1e-5
  )


def test_a_pixel_whose_channels_nearly_agree_is_normalised_exactly():
  """The mean of the squares less the square of the mean would be nothing but rounding here."""
  layer = front_end(convolution='fixed').layers[1]
  image = 30 + 0.01 * np.random.default_rng(0).standard_normal((2, 3, 4, SMALL.channels)).astype(
    np.float32
  )
  wide = image.astype(np.float64)
  apart = wide - wide.mean(-1, keepdims=True)
  expected = apart / np.sqrt(np.square(apart).mean(-1, keepdims=True) + SMALL.norm_epsilon)
  expected = expected * np.asarray(layer.norm.scale[...]) + np.asarray(layer.norm.bias[...])
  np.testing.assert_allclose(layer.norm(jnp.asarray(image)), expected, atol=1e-3)


def test_neighbours_in_a_batch_change_a_row_in_training_alone_and_only_in_the_paper_s_form():
  x, other = some(), some().at[0].set(some(3)[0])
  for form, key in itertools.product(FORMS, (None, keys_of(BATCH))):
    front = front_end(convolution=form)
    gap = np.abs(
      np.asarray(run(front, x, everywhere(x), key) - run(front, other, everywhere(x), key))
    )[1:].max()
    assert (gap > 1e-3) == (form == 'paper' and key is not None), form
    assert gap > 1e-3 or gap < 1e-6


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('remat', [False, True])
def test_every_parameter_gets_a_gradient(form: str, remat: bool):
  """But a bias that the norm after it takes away: before BatchNorm, and the mended form's one
  number for all features.
  """
  model = language_model(convolution=form, remat=remat)
  tokens = tokens_of((12, 9, 12, 8), 12)

  def loss(model: heads.MaskedLanguageModel) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    return jnp.sin(model(tokens, tokens != PAD, positions, key=keys_of(BATCH))).sum()

  gradient = values(fast_jit.jit(jax.grad(loss))(model))
  front = {
    name: value
    for name, value in gradient.items()
    if 'convolution.' in name and not is_statistic(name)
  }
  assert len(front) == 12
  without_effect = 'convolution.bias' if form == 'paper' else 'last.bias'
  for name, value in front.items():
    if name.endswith(without_effect):
      assert np.abs(value).max() < 2e-3, name
    else:
      assert np.mean(np.abs(value) > 1e-6) > 0.99, name


def test_making_a_layer_again_changes_no_gradient():
  x, toward = some(), some(5)

  def loss(front: convolution.FrontEnd) -> jax.Array:
    return (front(x, everywhere(x), keys_of(BATCH)) * toward).sum()

  plain, again = (
    values(fast_jit.jit(jax.grad(loss))(front_end(remat=remat))) for remat in (False, True)
  )
  for name, value in plain.items():
    np.testing.assert_allclose(again[name], value, atol=1e-4, err_msg=name)


def test_statistics_are_observed_and_not_learned():
  """They move by a tenth of the way; no decay, no moments, no share in the clipped norm; in
  evaluation they are used.
  """
  front, x = front_end(), some()

  def loss(front: convolution.FrontEnd) -> jax.Array:
    return front(x, everywhere(x), keys_of(BATCH)).sum()

  gradient = fast_jit.jit(jax.grad(loss))(front)
  observed, start = values(gradient), values(front)
  image = np.asarray(front.layers[0].convolution(x[..., None]), np.float64)
  np.testing.assert_allclose(
    observed['layers.0.norm.running_mean'], image.mean((0, 1, 2)), atol=1e-5
  )
  np.testing.assert_allclose(
    observed['layers.0.norm.running_variance'], image.var((0, 1, 2), ddof=1), rtol=1e-5
  )
  for changes in ({'weight_decay': 0.5}, {'clip': 1e-6}):
    moved = values(after_a_step(front, gradient, **changes))
    for name in filter(is_statistic, start):
      np.testing.assert_allclose(
        moved[name], start[name] + 0.1 * (observed[name] - start[name]), rtol=1e-6
      )
  moments = optimizer.build_optimizer(make_optimizer_config(no_decay=()), 10, front).init(front)
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(moments)]
  assert any('mu.last.norm.scale' in name for name in names) and not any(map(is_statistic, names))
  gap = run(front, x, everywhere(x)) - run(
    after_a_step(front, gradient, learning_rate=0.0), x, everywhere(x)
  )
  assert np.abs(np.asarray(gap)).max() > 1e-4


def test_gradients_of_parameters_do_not_depend_on_what_is_remembered():
  front, x = front_end(), some()
  other = randomized(front, 7)
  other = jax.tree_util.tree_map_with_path(
    lambda path, a, b: b if is_statistic(path_name(path)) else a, front, other
  )

  def loss(front: convolution.FrontEnd) -> jax.Array:
    return jnp.sin(front(x, everywhere(x), keys_of(BATCH))).sum()

  one, two = (values(fast_jit.jit(jax.grad(loss))(made)) for made in (front, other))
  for name, value in one.items():
    np.testing.assert_array_equal(value, two[name], err_msg=name)


def test_statistics_are_of_the_rows_of_all_devices():
  front, x, toward = front_end(), some(rows=8), some(5, rows=8)

  def gradient(front: convolution.FrontEnd, x: jax.Array, toward: jax.Array) -> Any:
    return jax.value_and_grad(
      lambda front: (front(x, everywhere(x), keys_of(len(x))) * toward).sum()
    )(front)

  alone = fast_jit.jit(gradient)(front, x, toward)
  rows, whole = PartitionSpec('data'), PartitionSpec()
  for devices in (2, 8):
    mesh = sharding.make_mesh(MeshConfig(1, devices, 1))
    spread = jax.shard_map(
      lambda *given: jax.lax.psum(gradient(*given), 'data'),
      mesh=mesh,
      in_specs=(whole, rows, rows),
      out_specs=whole,
      check_vma=False,
    )
    together = fast_jit.jit(spread)(front, x, toward)
    assert float(together[0]) == pytest.approx(float(alone[0]), rel=1e-4)
    found, expected = values(together[1]), values(alone[1])
    for name, value in expected.items():
      np.testing.assert_allclose(
        found[name], value, rtol=1e-4, atol=2e-4, err_msg=f'{name}, {devices} devices'
      )


@pytest.mark.parametrize('form', FORMS)
def test_bfloat16_stays_near(form: str):
  x = some()
  found = [
    run(
      front_end(convolution=form, dtype=compute, norm_epsilon=1e-5),
      x,
      everywhere(x),
      keys_of(BATCH),
    )
    for compute in ('float32', 'bfloat16')
  ]
  assert found[1].dtype == jnp.bfloat16
  gap = np.abs(np.asarray(found[0]) - np.asarray(found[1], np.float32))
  assert 0 < gap.mean() < 0.02


def test_convolutions_start_as_in_pytorch():
  """Uniform within 1 / sqrt(inputs of a unit), kernel and bias, whatever the rule; statistics at 0
  and 1.
  """
  for rule in ('standard', 'paper1', 'bert'):
    config = config_of(channels=64, kernel=(5, 3), initialization=rule)
    start = values(initialize(convolution.FrontEnd(config, nnx.Rngs(0)), rule, jax.random.key(0)))
    for layer, inputs in (('layers.0', 15), ('layers.1', 15 * 64), ('last', 64)):
      kernel, bias = (start[f'{layer}.convolution.{kind}'] for kind in ('kernel', 'bias'))
      most = inputs**-0.5
      assert np.abs(kernel).max() <= most and np.abs(bias).max() <= most
      if kernel.size > 500:
        assert (
          kernel.std() == pytest.approx(most / 3**0.5, rel=0.05)
          and np.abs(kernel).max() > 0.98 * most
        )
      assert (start[f'{layer}.norm.running_mean'] == 0).all() and (
        start[f'{layer}.norm.running_variance'] == 1
      ).all()
      assert (start[f'{layer}.norm.scale'] == 1).all() and (start[f'{layer}.norm.bias'] == 0).all()


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'kernel': (13, 3)}, 'larger than the image of 12 tokens x 16 features'),
    ({'kernel': (3, 17)}, 'larger than'),
    ({'kernel': (3,)}, 'not two sizes'),
    ({'kernel': ()}, 'not two sizes'),
    ({'kernel': (3, 0)}, 'not two sizes'),
    ({'channels': 0}, 'not two sizes'),
    ({'convolutions': 0}, 'of no convolution'),
    ({'convolutions': 0, 'kernel': ()}, 'of no convolution'),
    ({'convolution': 'papre'}, 'no such choice'),
  ],
)
def test_what_is_no_front_end_is_refused(changes: dict[str, Any], said: str):
  with pytest.raises(InputError, match=said):
    config_of(**changes)
