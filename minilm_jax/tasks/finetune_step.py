"""Initializes, updates and applies a member of a fine-tuning run; programs map over members.

Members of a task differ in initial encoder, seed and learning rate. The examples of a batch are a
function of seed and step, so members with equal seeds read equal batches.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped, UInt32

from minilm_jax.core import rng
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.corpus_config import PAD_ID
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data.rows import select_batch_rows
from minilm_jax.model import cross_entropy
from minilm_jax.model.encoder import Encoder
from minilm_jax.model.heads import Classifier, init_classifier
from minilm_jax.model.initialization import cache_by_encoder, path_name
from minilm_jax.tasks.task import REGRESSION
from minilm_jax.tasks.task_data import TaskRows
from minilm_jax.training import optimizer, population, train_step
from minilm_jax.training.train_step import TrainState

_EMBEDDING_TABLE = 'embedding.tokens.embedding'
# Training on more tokens is faster with an update compiled for several lengths. Dropout depends on the
# lengths, so the scores of a seed may depend on the number of members.
_MIN_TOKENS_TO_BUCKET = 10_000_000
_MAX_VMAP_MEMBERS = 64  # of one operation on an accelerator
_EVAL_ROWS = 64  # of one batch on an accelerator


@dataclasses.dataclass(frozen=True)
class StepShape:
  """Stores the static properties of a task that programs are compiled for.

  Attributes:
    kind: 'classification' or 'regression'.
    classes: Number of classes.
    examples: Number of training examples.
    lengths: Lengths of batches, ascending.
    platform: Platform of the devices, which `build_finetune_program` sets.
  """

  kind: str
  classes: int
  examples: int
  lengths: tuple[int, ...]
  platform: str = 'cpu'


@typing.no_type_check  # JAX stores shapes, stacks and tracers in the fields of a pytree.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberInit:
  """Stores the seed, learning rate and index into the encoder stack of a member."""

  seed: UInt32[Any, '*P']
  learning_rate: Float[Any, '*P']
  encoder: Int32[Any, '*P']


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberState:
  """Stores the training state of a member and the peak learning rate of its schedule."""

  state: TrainState
  learning_rate: Float[Any, '*P']


@dataclasses.dataclass(frozen=True)
class FinetuneProgram:
  """Stores the compiled functions that members of a task share.

  Attributes:
    updates: Number of updates of a member.
    group_size: Number of members that train together.
    eval_rows: Rows of an evaluation batch.
    mesh: Mesh that spreads members over devices.
    start: Returns members before the first update, from a stack of encoders.
    chunk: Returns members after a number of updates, and the sums of their losses.
    outputs: Returns the outputs of all evaluation rows.
  """

  updates: int
  group_size: int
  eval_rows: int
  mesh: Mesh
  start: Callable[[MemberInit, Encoder], MemberState]
  chunk: Callable[[MemberState, TaskRows, Int[Array, '']], tuple[MemberState, Float[Array, 'P']]]
  outputs: Callable[[Classifier, Int[Array, 'M B L']], Float[Array, 'P N C']]


def replace_embedding(
  model: Any, table: Float[Array, '*S U E'] | Float[np.ndarray, '*S U E']
) -> Any:
  """Returns a classifier or an encoder with another embedding table."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: table if path_name(path).endswith(_EMBEDDING_TABLE) else x, model
  )


def prune_embedding(
  encoder: Encoder, used_ids: Shaped[Array, 'U'] | Shaped[np.ndarray, 'U']
) -> Encoder:
  """Returns an encoder, or a stack of encoders, with the embedding rows of `used_ids` alone."""
  return replace_embedding(encoder, encoder.table[..., used_ids, :])


def widen_embedding(
  model: Classifier, table: Float[np.ndarray, 'V E'], used_ids: Shaped[np.ndarray, 'U']
) -> Classifier:
  """Returns a member on the host with its full embedding table, including the trained rows."""
  full_table = np.array(table)
  full_table[used_ids] = np.asarray(model.encoder.table)
  return jax.tree.map(np.asarray, replace_embedding(model, full_table))


def sum_losses(
  model: Classifier,
  tokens: Int[Array, 'B L'],
  mask: Bool[Array, 'B L'],
  labels: Shaped[Array, 'B'],
  key: Any,
  kind: str,
) -> Float[Array, '']:
  """Returns the cross-entropy or squared error, summed over examples, as a mean over heads."""

  def head_loss(outputs: Float[Array, 'B C']) -> Float[Array, '']:
    if kind == REGRESSION:
      return jnp.sum((outputs[:, 0] - labels) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum()

  losses = [head_loss(outputs) for outputs in model.logits_by_head(tokens, mask, key=key)]
  return functools.reduce(jnp.add, losses) / len(losses)


def cut_to_length(
  function: Callable[..., Any], lengths: Sequence[int], rows: Any, longest: Int[Array, '']
) -> Any:
  """Returns `function(rows)` with tokens cut to the shortest of `lengths` that fits all rows.

  Args:
    function: Function of a TaskRows or of tokens `[B L]`, independent of pads.
    lengths: Lengths to choose from, ascending; the last length is L.
    rows: Argument of the function.
    longest: Number of tokens of the longest row.
  """

  def at_length(length: int) -> Callable[[Any], Any]:
    if isinstance(rows, TaskRows):
      return lambda rows: function(dataclasses.replace(rows, tokens=rows.tokens[:, :length]))
    return lambda rows: function(rows[:, :length])

  if len(lengths) == 1:
    return function(rows)
  return jax.lax.switch(
    jnp.searchsorted(jnp.asarray(lengths), longest), [at_length(length) for length in lengths], rows
  )


def sum_gradients(
  model: Classifier, train: TaskRows, indices: Int[Array, 'B'], key: Any, shape: StepShape
) -> Any:
  """Returns the summed loss of a batch and its gradient.

  With several lengths, the batch is sorted by length and split into as many parts, each cut to its
  longest row. Losses and gradients are added over the parts. The large gradient of the embedding
  table is computed once, from the gradients of all token vectors.
  Custom encoders may read their table in any way, and segments of pairs depend on the token ids, so
  all gradients of such models are added.
  """
  batch = jax.tree.map(lambda x: x[indices], train)
  size, lengths = indices.shape[0], shape.lengths
  micro_batches = train_step.count_micro_batches(size, lengths[len(lengths) // 2], shape.platform)
  count = cross_entropy.smallest_divisor(size, max(len(lengths), micro_batches))
  count = 1 if model.config.batch_norm else count  # batch norm needs statistics of the batch
  if len(lengths) > 1:
    order = jnp.argsort(batch.lengths)
    batch, key = jax.tree.map(lambda x: x[order], (batch, key))
  if model.config.encoder or model.config.segment_embeddings_for_pairs:
    function = functools.partial(_compute_plain_gradients, shape)
    return train_step.accumulate(function, model, (batch, key), count)
  parts = jax.tree.map(lambda x: cross_entropy.split_rows(x, count), (batch, key))
  table = model.encoder.table
  small_model = replace_embedding(model, table[:1])

  def add_part(sums: Any, part: tuple[TaskRows, Any]) -> tuple[Any, Float[Array, 'b L E']]:
    rows, key = part
    function = functools.partial(_compute_part_gradients, model, key, shape)
    loss, gradient, vectors = cut_to_length(function, lengths, rows, rows.lengths.max())
    return jax.tree.map(jnp.add, sums, (loss, gradient)), vectors

  (loss, gradient), vectors = jax.lax.scan(
    add_part, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, small_model)), parts
  )
  table_gradient = jnp.zeros_like(table).at[batch.tokens.ravel()]
  return loss, replace_embedding(gradient, table_gradient.add(vectors.reshape(-1, table.shape[1])))


def _compute_plain_gradients(shape: StepShape, model: Classifier, part: TaskRows, key: Any) -> Any:
  """Returns the summed loss of a part of a batch and its gradient."""

  def loss_and_gradient(rows: TaskRows) -> Any:
    mask = rows.tokens != PAD_ID
    return jax.value_and_grad(sum_losses)(model, rows.tokens, mask, rows.labels, key, shape.kind)

  return cut_to_length(loss_and_gradient, shape.lengths, part, part.lengths.max())


def _compute_part_gradients(model: Classifier, key: Any, shape: StepShape, part: TaskRows) -> Any:
  """Returns the summed loss, its gradient, and the gradient of each token vector `[b L E]`.

  The model reads token vectors from a local table with a row for each token. The returned gradient
  has a single row of zeros for the real table.
  """
  table = model.encoder.table
  vectors = table[part.tokens]  # [b l E]
  positions = jnp.arange(part.tokens.size).reshape(part.tokens.shape)
  local_model = replace_embedding(model, vectors.reshape(-1, table.shape[1]))
  mask = part.tokens != PAD_ID
  loss, gradient = jax.value_and_grad(sum_losses)(
    local_model, positions, mask, part.labels, key, shape.kind
  )
  vector_gradient = gradient.encoder.table.reshape(vectors.shape)
  pad = shape.lengths[-1] - vector_gradient.shape[1]
  padded = jnp.pad(vector_gradient, ((0, 0), (0, pad), (0, 0)))
  return loss, replace_embedding(gradient, jnp.zeros_like(table[:1])), padded


def count_updates(config: FinetuneConfig, examples: int) -> int:
  """Returns the number of updates of a member."""
  # A product of floats such as 1.1 * 1600 can exceed a whole number of batches.
  return math.ceil(Fraction(str(config.epochs)) * examples / config.batch_size)


def check_optimizer(config: FinetuneConfig, model: EncoderConfig) -> None:
  """Checks that the parameters of a model have the names in `optimizer.no_decay`.

  Raises:
    InputError: They lack one of the names.
  """
  if config.optimizer.weight_decay:
    init = lambda: init_classifier(model, config.head, 0, jax.random.key(0))
    optimizer.check_no_decay(config.optimizer, jax.eval_shape(init))


def init_member(
  init: MemberInit, encoders: Any, shape: StepShape, model: EncoderConfig, config: FinetuneConfig
) -> MemberState:
  """Returns a member before its first update, with an encoder of the stack and a fresh head."""
  key = rng.make_key(init.seed, rng.Stream.HEAD)
  member: Any = init_classifier(model, config.head, shape.classes, key)
  member.encoder = jax.tree.map(lambda stack: stack[init.encoder], encoders)
  updates = count_updates(config, shape.examples)
  moments = optimizer.build_optimizer(config.optimizer, updates, member).init(member)
  state = TrainState(jnp.zeros((), jnp.int32), init.seed, member, moments)
  return MemberState(state, init.learning_rate)


def finetune_step(
  member: MemberState, train: TaskRows, shape: StepShape, config: FinetuneConfig
) -> tuple[MemberState, Float[Array, '']]:
  """Returns a member after one update on one batch, and the mean loss of the batch."""
  state, size = member.state, config.batch_size
  indices, _ = select_batch_rows(state.seed, state.step, size, shape.examples)
  key = rng.make_batch_keys(state.seed, rng.Stream.DROPOUT, state.step, jnp.arange(size))
  loss, gradient = sum_gradients(state.model, train, indices, key, shape)
  loss, gradient = loss / size, optimizer.mean_gradient(gradient, size, 1)
  transform = optimizer.build_optimizer(
    config.optimizer, count_updates(config, shape.examples), state.model, member.learning_rate
  )
  change, moments = transform.update(gradient, state.optimizer, state.model)
  model = optax.apply_updates(state.model, change)
  return dataclasses.replace(
    member, state=TrainState(state.step + 1, state.seed, model, moments)
  ), loss


def train_chunk(
  member: MemberState,
  train: TaskRows,
  count: Int[Array, ''],
  shape: StepShape,
  config: FinetuneConfig,
) -> tuple[MemberState, Float[Array, '']]:
  """Returns a member after `count` updates, and the sum of their losses."""

  def update(
    _: Int[Array, ''], carry: tuple[MemberState, Float[Array, '']]
  ) -> tuple[MemberState, Float[Array, '']]:
    member, loss = finetune_step(carry[0], train, shape, config)
    return member, carry[1] + loss

  return jax.lax.fori_loop(0, count, update, (member, jnp.zeros(())))


def compute_outputs(
  model: Classifier, tokens: Int[Array, 'M B L'], lengths: Sequence[int]
) -> Float[Array, 'N C']:
  """Returns the outputs of all rows, batch by batch."""

  def batch_outputs(tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
    longest = (tokens != PAD_ID).sum(1).max()
    return cut_to_length(lambda tokens: model(tokens, tokens != PAD_ID), lengths, tokens, longest)

  outputs = jax.lax.map(batch_outputs, tokens)
  return outputs.reshape(-1, outputs.shape[-1])


@cache_by_encoder(maxsize=1)  # further checkpoints on the same task compile nothing
def build_finetune_program(
  shape: StepShape,
  config: FinetuneConfig,
  model: EncoderConfig,
  members: int,
  devices: Sequence[jax.Device] = (),
) -> FinetuneProgram:
  """Builds the functions that fine-tune `members` members on one task, on all devices by default."""
  mesh = population.make_member_mesh(members, devices)
  num_devices, platform = mesh.devices.size, mesh.devices.flat[0].platform
  use_vmap = population.choose_strategy(members, config.strategy, platform) == 'vmap'
  per_device = 1
  if use_vmap:
    per_device = min(-(-members // num_devices), max(1, _MAX_VMAP_MEMBERS // num_devices))
  updates = count_updates(config, shape.examples)
  train_tokens = members * updates * config.batch_size * shape.lengths[-1]
  # Under vmap, every member executes every branch.
  if use_vmap or train_tokens < _MIN_TOKENS_TO_BUCKET:
    shape = dataclasses.replace(shape, lengths=shape.lengths[-1:])
  shape = dataclasses.replace(shape, platform=platform)

  def jit_over_members(function: Callable[..., Any], donated: Sequence[int] = ()) -> Any:
    strategy = 'vmap' if use_vmap else 'map'
    mapped = population.map_over_members(function, mesh, strategy)
    return jax.jit(mapped, donate_argnums=donated)

  return FinetuneProgram(
    updates=updates,
    group_size=per_device * num_devices,
    eval_rows=_EVAL_ROWS // train_step.count_micro_batches(_EVAL_ROWS, shape.lengths[-1], platform),
    mesh=mesh,
    start=jit_over_members(functools.partial(init_member, shape=shape, model=model, config=config)),
    chunk=jit_over_members(functools.partial(train_chunk, shape=shape, config=config), (0,)),
    outputs=jit_over_members(functools.partial(compute_outputs, lengths=shape.lengths)),
  )


@cache_by_encoder(maxsize=1)  # fresh encoders do not depend on the task
def init_encoders(model: EncoderConfig, head: HeadConfig) -> Callable[[Any], Any]:
  """Returns a compiled function from seeds `[P]` to a stack of fresh encoders."""
  return jax.jit(
    jax.vmap(
      lambda seed: init_classifier(model, head, 1, rng.make_key(seed, rng.Stream.HEAD)).encoder
    )
  )


def group_members(program: FinetuneProgram, inits: Sequence[tuple[int, float, int]]) -> MemberInit:
  """Puts (seed, learning rate, encoder) of members on devices; repeats the last to fill the group."""
  filled = [*inits, *[inits[-1]] * (program.group_size - len(inits))]
  seeds, rates, encoders = zip(*filled, strict=True)
  group = MemberInit(
    np.array(seeds, np.uint32), np.array(rates, np.float32), np.array(encoders, np.int32)
  )
  return population.shard_members(group, program.mesh)


def replicate_arrays(values: Any, program: FinetuneProgram) -> Any:
  """Copies arrays to all devices."""
  return jax.device_put(values, NamedSharding(program.mesh, PartitionSpec()))
