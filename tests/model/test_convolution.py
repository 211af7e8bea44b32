"""The convolutional front-end equals PyTorch; pads, running statistics and the form `fixed`."""

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
from minilm_jax.model import convolution, heads
from minilm_jax.model.initialization import initialize, is_statistic, path_name
from minilm_jax.training import optimizer, sharding
from tests.tiny_config import make_optimizer_config
from tests.tiny_encoders import draw_arrays, encode, make_model

SMALL = EncoderConfig(
  vocab_size=50,
  embedding_size=16,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  max_length=12,
  projection=False,
  tied=True,
  dropout=0.0,
  initialization='bert',
  norm_epsilon=1e-12,
  position_offset=0,
  convolutions=2,
  kernel=(3, 3),
  channels=5,
)
FORMS = ('paper2', 'fixed')
BATCH, PAD = 4, 1


def make_front_end(seed: int = 0, **changes: Any) -> convolution.FrontEnd:
  config = dataclasses.replace(SMALL, **changes)
  return draw_arrays(jax.eval_shape(lambda: convolution.FrontEnd(config, nnx.Rngs(0))), seed)


def draw_vectors(seed: int = 0, rows: int = BATCH, length: int = 12) -> jax.Array:
  generator = np.random.default_rng(seed)
  return jnp.asarray(generator.standard_normal((rows, length, SMALL.hidden_size)), jnp.float32)


def make_keys(rows: int) -> jax.Array:
  return rng.make_batch_keys(0, rng.Stream.DROPOUT, 0, jnp.arange(rows))


@jax.jit
def run(front: convolution.FrontEnd, x: jax.Array, mask: jax.Array, key: Any = None) -> jax.Array:
  return front(x, mask, key)


def full_mask(x: jax.Array) -> jax.Array:
  return jnp.ones(x.shape[:2], bool)


def values(module: Any) -> dict[str, np.ndarray]:
  return {
    path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(module)
  }


def copy_into(torch_parameter: Any, array: Any) -> None:
  torch_parameter.data.copy_(torch_parameter.new_tensor(np.array(array)))


def build_torch_stack(torch: Any, front: convolution.FrontEnd) -> Any:
  """Returns the paper's stack in PyTorch's modules, with the weights of `front`."""
  parts = []
  for layer in (*front.layers, front.last):
    kernel = np.asarray(layer.convolution.kernel[...])
    conv = torch.nn.Conv2d(*kernel.shape[2:], tuple(kernel.shape[:2]), padding='same')
    norm = torch.nn.BatchNorm2d(kernel.shape[3])
    copy_into(conv.weight, kernel.transpose(3, 2, 0, 1))
    copy_into(conv.bias, layer.convolution.bias[...])
    copy_into(norm.weight, layer.norm.scale[...])
    copy_into(norm.bias, layer.norm.bias[...])
    copy_into(norm.running_mean, layer.norm.running_mean[...])
    copy_into(norm.running_var, layer.norm.running_variance[...])
    parts += [conv, norm, torch.nn.GELU()]
  return torch.nn.Sequential(*parts)


def batch_norms(stack: Any) -> list[Any]:
  return [part for part in stack if type(part).__name__ == 'BatchNorm2d']


KERNELS = [
  {'kernel': (3, 3)},
  {'kernel': (4, 3), 'convolutions': 1},
  {'kernel': (2, 5), 'convolutions': 3},
  {'kernel': (16, 3), 'max_length': 20},
]


@pytest.mark.parametrize('changes', KERNELS, ids=str)
@pytest.mark.parametrize('training', [False, True])
def test_the_front_end_equals_pytorch(training: bool, changes: dict[str, Any]):
  """Outputs, gradients and statistics after a step are equal, also for even kernel sizes."""
  torch = pytest.importorskip('torch', reason='needs PyTorch, which is an extra')
  front = make_front_end(**changes)
  x = draw_vectors(length=front.config.max_length)
  stack = build_torch_stack(torch, front).train(training)
  torch_x = torch.tensor(np.asarray(x), requires_grad=True)
  out = stack(torch_x[:, None])[:, 0]
  toward = np.random.default_rng(1).standard_normal(out.shape).astype('float32')
  (out * torch.tensor(toward)).sum().backward()
  key = make_keys(len(x)) if training else None

  def loss(front: convolution.FrontEnd, x: jax.Array) -> Any:
    result = front(x, full_mask(x), key)
    return (result * toward).sum(), result

  gradients, result = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(front, x)
  np.testing.assert_allclose(result, out.detach().numpy(), atol=1e-5)
  np.testing.assert_allclose(gradients[1], torch_x.grad.numpy(), atol=2e-4)
  for layer, conv, norm in zip(
    (*gradients[0].layers, gradients[0].last), stack[::3], batch_norms(stack), strict=True
  ):
    np.testing.assert_allclose(
      layer.convolution.kernel[...], conv.weight.grad.numpy().transpose(2, 3, 1, 0), atol=1e-3
    )
    np.testing.assert_allclose(layer.norm.scale[...], norm.weight.grad.numpy(), atol=1e-3)
    np.testing.assert_allclose(layer.norm.bias[...], norm.bias.grad.numpy(), atol=1e-3)
  if training:
    moved = update_once(front, gradients[0])
    for layer, norm in zip((*moved.layers, moved.last), batch_norms(stack), strict=True):
      np.testing.assert_allclose(layer.norm.running_mean[...], norm.running_mean.numpy(), atol=1e-5)
      np.testing.assert_allclose(
        layer.norm.running_variance[...], norm.running_var.numpy(), atol=1e-5
      )
    started, ended = (
      values(front_end)['layers.0.norm.running_mean'] for front_end in (front, moved)
    )
    assert np.abs(ended - started).max() > 1e-3


def update_once(front: Any, gradient: Any, **changes: Any) -> Any:
  """Returns the module after one update of AdamW."""
  transform = optimizer.build_optimizer(make_optimizer_config(no_decay=(), **changes), 10, front)
  change, _ = transform.update(
    optimizer.mean_gradient(gradient, 1, 1), transform.init(front), front
  )
  return jax.tree.map(jnp.add, front, change)


@pytest.mark.parametrize('training', [False, True])
def test_the_encoder_equals_pytorch(training: bool):
  """The front-end and a block of BERT are equal; only attention masks pads."""
  torch = pytest.importorskip('torch', reason='needs PyTorch, which is an extra')
  model = make_model({}, config=SMALL).encoder
  tokens = jax.random.randint(jax.random.key(0), (BATCH, 12), 5, 50).at[:2, 7:].set(PAD)
  mask = np.array(tokens != PAD)
  block, config = model.blocks[0], model.config
  layer = torch.nn.TransformerEncoderLayer(
    config.hidden_size, config.num_heads, config.intermediate_size, 0.0, 'gelu', 1e-12, True
  )
  with torch.no_grad():
    projections = (block.attention.query, block.attention.key, block.attention.value)
    kernels = [np.asarray(linear.kernel[...]).T for linear in projections]
    copy_into(layer.self_attn.in_proj_weight, np.concatenate(kernels))
    biases = [np.asarray(linear.bias[...]) for linear in projections]
    copy_into(layer.self_attn.in_proj_bias, np.concatenate(biases))
    for torch_linear, linear in (
      (layer.self_attn.out_proj, block.attention.output),
      (layer.linear1, block.feed_forward.up),
      (layer.linear2, block.feed_forward.down),
    ):
      copy_into(torch_linear.weight, np.asarray(linear.kernel[...]).T)
      copy_into(torch_linear.bias, linear.bias[...])
    for torch_norm, norm in (
      (layer.norm1, block.attention_norm),
      (layer.norm2, block.feed_forward_norm),
    ):
      copy_into(torch_norm.weight, norm.scale[...])
      copy_into(torch_norm.bias, norm.bias[...])
    torch.backends.mha.set_fastpath_enabled(False)
    stack = build_torch_stack(torch, model.convolution).train(training)
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
  result = jax.jit(
    lambda model: model(tokens, tokens != PAD, key=make_keys(BATCH) if training else None)
  )(model)
  np.testing.assert_allclose(np.asarray(result)[mask], expected[mask], atol=1e-5)


def draw_rows(lengths: tuple[int, ...], total: int, seed: int = 0) -> jax.Array:
  rows = np.random.default_rng(seed).integers(5, 50, (len(lengths), total))
  for row, length in zip(rows, lengths, strict=True):
    row[length:] = PAD
  return jnp.asarray(rows)


@pytest.mark.parametrize('kernel, norm', [((3, 3), 'post'), ((4, 2), 'pre')])
def test_content_of_pads_changes_only_the_form_paper2(kernel: tuple[int, int], norm: str):
  """In this form, pads change tokens within the reach of the kernels."""
  x, mask = draw_vectors(), jnp.arange(12)[None] < jnp.array([7, 12, 4, 9])[:, None]
  other = jnp.where(mask[:, :, None], x, draw_vectors(1))
  for form in FORMS:
    front = make_front_end(convolution=form, kernel=kernel, norm=norm)
    gap = np.abs(np.asarray(run(front, x, mask) - run(front, other, mask))).max(-1)
    assert not gap[1].any()  # a row without pads
    if form == 'fixed':
      np.testing.assert_allclose(gap[np.asarray(mask)], 0, atol=1e-6)
    else:
      reach = 2 * (kernel[0] // 2)  # two layers
      assert gap[0, 7 - reach : 7].max() > 1e-3 and not gap[0, : 7 - reach].any()


@pytest.mark.parametrize('form', FORMS)
def test_the_number_of_pads_changes_nothing(form: str):
  """The form `paper2` pads every row to the length of the model."""
  model = make_model({'convolution': form}, config=SMALL).encoder
  short = draw_rows((7, 5), 7)
  padded = jnp.pad(short, ((0, 0), (0, 5)), constant_values=PAD)
  unpadded, full = encode(model, short, short != PAD), encode(model, padded, padded != PAD)
  assert unpadded.shape == (2, 7, 16)
  mask = np.asarray(short != PAD)
  np.testing.assert_allclose(np.asarray(unpadded)[mask], np.asarray(full)[:, :7][mask], atol=1e-5)


def test_a_pixel_with_similar_channels_is_normalised_exactly():
  """The mean of squares minus the square of the mean would be rounding error."""
  layer = make_front_end(convolution='fixed').layers[1]
  image = 30 + 0.01 * np.random.default_rng(0).standard_normal((2, 3, 4, SMALL.channels)).astype(
    np.float32
  )
  wide = image.astype(np.float64)
  centred = wide - wide.mean(-1, keepdims=True)
  expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + SMALL.norm_epsilon)
  expected = expected * np.asarray(layer.norm.scale[...]) + np.asarray(layer.norm.bias[...])
  np.testing.assert_allclose(layer.norm(jnp.asarray(image)), expected, atol=1e-3)


def test_other_rows_change_a_row_only_in_training_of_the_form_paper2():
  x, other = draw_vectors(), draw_vectors().at[0].set(draw_vectors(3)[0])
  for form, key in itertools.product(FORMS, (None, make_keys(BATCH))):
    front = make_front_end(convolution=form)
    gap = np.abs(
      np.asarray(run(front, x, full_mask(x), key) - run(front, other, full_mask(x), key))
    )[1:].max()
    assert (gap > 1e-3) == (form == 'paper2' and key is not None), form
    assert gap > 1e-3 or gap < 1e-6


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('remat', [False, True])
def test_every_parameter_gets_a_gradient(form: str, remat: bool):
  """A bias that the next norm removes has none: before BatchNorm, and the last bias of `fixed`."""
  model = make_model({'convolution': form, 'remat': remat}, config=SMALL)
  tokens = draw_rows((12, 9, 12, 8), 12)

  def loss(model: heads.MaskedLanguageModel) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    return jnp.sin(model(tokens, tokens != PAD, positions, key=make_keys(BATCH))).sum()

  gradient = values(jax.jit(jax.grad(loss))(model))
  front = {
    name: value
    for name, value in gradient.items()
    if 'convolution.' in name and not is_statistic(name)
  }
  assert len(front) == 12
  without_effect = 'convolution.bias' if form == 'paper2' else 'last.bias'
  for name, value in front.items():
    if name.endswith(without_effect):
      assert np.abs(value).max() < 2e-3, name
    else:
      assert np.mean(np.abs(value) > 1e-6) > 0.99, name


def test_remat_changes_no_gradient():
  x, toward = draw_vectors(), draw_vectors(5)

  def loss(front: convolution.FrontEnd) -> jax.Array:
    return (front(x, full_mask(x), make_keys(BATCH)) * toward).sum()

  stored, recomputed = (
    values(jax.jit(jax.grad(loss))(make_front_end(remat=remat))) for remat in (False, True)
  )
  for name, value in stored.items():
    np.testing.assert_allclose(recomputed[name], value, atol=1e-4, err_msg=name)


def test_statistics_are_observed_and_not_learned():
  """Statistics move by a tenth, without decay, moments or clipping; evaluation uses them."""
  front, x = make_front_end(), draw_vectors()

  def loss(front: convolution.FrontEnd) -> jax.Array:
    return front(x, full_mask(x), make_keys(BATCH)).sum()

  gradient = jax.jit(jax.grad(loss))(front)
  observed, start = values(gradient), values(front)
  image = np.asarray(front.layers[0].convolution(x[..., None]), np.float64)
  np.testing.assert_allclose(
    observed['layers.0.norm.running_mean'], image.mean((0, 1, 2)), atol=1e-5
  )
  np.testing.assert_allclose(
    observed['layers.0.norm.running_variance'], image.var((0, 1, 2), ddof=1), rtol=1e-5
  )
  for changes in ({'weight_decay': 0.5}, {'clip': 1e-6}):
    moved = values(update_once(front, gradient, **changes))
    for name in filter(is_statistic, start):
      np.testing.assert_allclose(
        moved[name], start[name] + 0.1 * (observed[name] - start[name]), rtol=1e-6
      )
  moments = optimizer.build_optimizer(make_optimizer_config(no_decay=()), 10, front).init(front)
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(moments)]
  assert any('mu.last.norm.scale' in name for name in names) and not any(map(is_statistic, names))
  gap = run(front, x, full_mask(x)) - run(
    update_once(front, gradient, learning_rate=0.0), x, full_mask(x)
  )
  assert np.abs(np.asarray(gap)).max() > 1e-4


def test_gradients_do_not_depend_on_running_statistics():
  front, x = make_front_end(), draw_vectors()
  other = draw_arrays(front, 7)
  other = jax.tree_util.tree_map_with_path(
    lambda path, a, b: b if is_statistic(path_name(path)) else a, front, other
  )

  def loss(front: convolution.FrontEnd) -> jax.Array:
    return jnp.sin(front(x, full_mask(x), make_keys(BATCH))).sum()

  gradients = [values(jax.jit(jax.grad(loss))(module)) for module in (front, other)]
  jax.tree.map(np.testing.assert_array_equal, *gradients)


def test_statistics_include_the_rows_of_all_devices():
  front, x, toward = make_front_end(), draw_vectors(rows=8), draw_vectors(5, rows=8)

  def gradient(front: convolution.FrontEnd, x: jax.Array, toward: jax.Array) -> Any:
    return jax.value_and_grad(
      lambda front: (front(x, full_mask(x), make_keys(len(x))) * toward).sum()
    )(front)

  single = jax.jit(gradient)(front, x, toward)
  rows, replicated = PartitionSpec('data'), PartitionSpec()
  for devices in (2, 8):
    mesh = sharding.make_mesh(MeshConfig(1, devices, 1))
    spread = jax.shard_map(
      lambda *operands: jax.lax.psum(gradient(*operands), 'data'),
      mesh=mesh,
      in_specs=(replicated, rows, rows),
      out_specs=replicated,
      check_vma=False,
    )
    together = jax.jit(spread)(front, x, toward)
    assert float(together[0]) == pytest.approx(float(single[0]), rel=1e-4)
    result, expected = values(together[1]), values(single[1])
    for name, value in expected.items():
      np.testing.assert_allclose(
        result[name], value, rtol=1e-4, atol=2e-4, err_msg=f'{name}, {devices} devices'
      )


@pytest.mark.parametrize('form', FORMS)
def test_bfloat16_is_close_to_float32(form: str):
  x = draw_vectors()
  result = [
    run(
      make_front_end(convolution=form, dtype=compute, norm_epsilon=1e-5),
      x,
      full_mask(x),
      make_keys(BATCH),
    )
    for compute in ('float32', 'bfloat16')
  ]
  assert result[1].dtype == jnp.bfloat16
  gap = np.abs(np.asarray(result[0]) - np.asarray(result[1], np.float32))
  assert 0 < gap.mean() < 0.02


def test_convolutions_start_as_in_pytorch():
  """Kernel and bias are uniform within 1 / sqrt(inputs of a unit); statistics are 0 and 1."""
  for rule in ('standard', 'paper1', 'bert'):
    config = dataclasses.replace(SMALL, channels=64, kernel=(5, 3), initialization=rule)
    start = values(initialize(convolution.FrontEnd(config, nnx.Rngs(0)), rule, jax.random.key(0)))
    for layer, inputs in (('layers.0', 15), ('layers.1', 15 * 64), ('last', 64)):
      kernel, bias = (start[f'{layer}.convolution.{kind}'] for kind in ('kernel', 'bias'))
      bound = inputs**-0.5
      assert np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound
      if kernel.size > 500:
        assert (
          kernel.std() == pytest.approx(bound / 3**0.5, rel=0.05)
          and np.abs(kernel).max() > 0.98 * bound
        )
      assert (start[f'{layer}.norm.running_mean'] == 0).all() and (
        start[f'{layer}.norm.running_variance'] == 1
      ).all()
      assert (start[f'{layer}.norm.scale'] == 1).all() and (start[f'{layer}.norm.bias'] == 0).all()


@pytest.mark.parametrize(
  'changes, value',
  [
    ({'kernel': (13, 3)}, 'model.kernel=13,3'),
    ({'kernel': (3, 17)}, 'model.kernel=3,17'),
    ({'kernel': (3,)}, 'model.kernel=3,'),
    ({'kernel': ()}, 'model.kernel=,'),
    ({'kernel': (3, 0)}, 'model.kernel=3,0'),
    ({'channels': 0}, 'model.channels=0'),
    ({'convolutions': 0}, 'model.convolutions=0'),
    ({'convolutions': 0, 'kernel': ()}, 'model.convolutions=0'),
    ({'convolution': 'papre'}, 'model.convolution'),
  ],
)
def test_invalid_front_end_is_refused(changes: dict[str, Any], value: str):
  with pytest.raises(InputError, match=value):
    dataclasses.replace(SMALL, **changes)
