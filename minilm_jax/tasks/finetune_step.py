"""What fine-tuning computes: a start, an update and outputs, each written for one member and lifted
to many.

Members of one task differ in the encoder that they start from, in seed and in learning rate. Which
examples make a batch is a function of seed and step, so members of one seed read the same batches.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped, UInt32

from minilm_jax.core import rng
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data import corpus, tokenizer
from minilm_jax.model import cross_entropy
from minilm_jax.model.encoder import Encoder
from minilm_jax.model.heads import Classifier, init_classifier
from minilm_jax.model.initialization import path_name
from minilm_jax.tasks.task import REGRESSION
from minilm_jax.tasks.task_data import TaskRows
from minilm_jax.training import optimizer, population, sharding, train_step
from minilm_jax.training.train_step import TrainState

# The table of token vectors in fine-tuning: only the rows of pieces that a task uses are stacked,
# trained and moved.
_TABLE = 'embedding.tokens.embedding'


def replace_embedding(
  model: Any, table: Float[Array, '*S U E'] | Float[np.ndarray, '*S U E']
) -> Any:
  """A classifier or an encoder with another table of token vectors."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: table if path_name(path).endswith(_TABLE) else x, model
  )


def prune_embedding(
  encoder: Encoder, used: Shaped[Array, 'U'] | Shaped[np.ndarray, 'U']
) -> Encoder:
  """An encoder (or a stack) with a table of vectors for the pieces that the task uses: no other is
  read or moved.
  """
  return replace_embedding(encoder, encoder.table[..., used, :])


def widen_embedding(
  model: Classifier, table: Float[np.ndarray, 'V E'], used: Shaped[np.ndarray, 'U']
) -> Classifier:
  """A member on the host with the whole table that its encoder started from, the rows that the task
  uses as trained.
  """
  whole = np.array(table)
  whole[used] = np.asarray(model.encoder.table)
  return jax.tree.map(np.asarray, replace_embedding(model, whole))


# tokens, from which on to compile an update for several lengths takes less than it saves
_MIN_TOKENS_TO_PRUNE = 10_000_000
_MAX_MEMBER_BYTES = 64  # members that an accelerator takes in each operation, at most
_EVAL_ROWS = 64  # rows whose outputs an accelerator computes at one time


@dataclasses.dataclass(frozen=True)
class StepShape:
  """What a program is compiled for: a task's kind and classes, its training examples, the lengths
  that rows come in.
  """

  kind: str
  classes: int
  examples: int
  lengths: tuple[int, ...]


@typing.no_type_check  # JAX puts shapes, stacks and tracers of its own into the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberInit:
  """What a member starts from: its seed, its learning rate, and which of the encoders."""

  seed: UInt32[Array, '*P']
  learning_rate: Float[Array, '*P']
  encoder: Int32[Array, '*P']


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberState:
  """A model on its way, and the learning rate at the top of its schedule."""

  state: TrainState
  learning_rate: Float[Array, '*P']


def loss_sum(
  model: Classifier,
  tokens: Int[Array, 'B L'],
  mask: Bool[Array, 'B L'],
  labels: Shaped[Array, 'B'],
  key: Any,
  kind: str,
) -> Float[Array, '']:
  """Cross-entropy of a classification, squared error of a regression, summed over examples; the
  mean over heads.
  """

  def one(outputs: Float[Array, 'B C']) -> Float[Array, '']:
    if kind == REGRESSION:
      return jnp.sum((outputs[:, 0] - labels) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum()

  sums = [one(outputs) for outputs in model.each(tokens, mask, key=key)]
  return functools.reduce(jnp.add, sums) / len(sums)


def cut_to_length(
  function: Callable[..., Any], lengths: Sequence[int], rows: Any, longest: Int[Array, '']
) -> Any:
  """`function(rows)` with the tokens cut to the first of `lengths` that holds the longest row.

  Args:
    function: of a TaskRows or of tokens `[B L]`; what it gives must not depend on pads.
    lengths: in ascending order; the last one is L.
    rows: its argument.
    longest: tokens of the longest row.
  """

  def cut(length: int) -> Callable[[Any], Any]:
    if isinstance(rows, TaskRows):
      return lambda rows: function(dataclasses.replace(rows, tokens=rows.tokens[:, :length]))
    return lambda rows: function(rows[:, :length])

  if len(lengths) == 1:
    return function(rows)
  return jax.lax.switch(
    jnp.searchsorted(jnp.asarray(lengths), longest), [cut(length) for length in lengths], rows
  )


def gradient_sums(
  model: Classifier, train: TaskRows, picked: Int[Array, 'B'], key: Any, shape: StepShape
) -> Any:
  """The loss of a batch, summed, and its gradient.

  Where rows come in several lengths, the batch is sorted by length and taken in as many parts, each
  as long as its longest row: the sums are those of the whole batch. The gradient of the table of
  token vectors is made once, from those of the vectors that the parts read: it is far larger than
  all else that parts would have to add up. Of an encoder of the user's own nobody knows how it
  reads its ids, so its table is added up as all else is.
  """
  batch = jax.tree.map(lambda x: x[picked], train)
  size = picked.shape[0]
  middle = shape.lengths[len(shape.lengths) // 2]
  best_count = train_step.count_micro_batches(size, middle, jax.default_backend())
  count = cross_entropy.smallest_divisor(size, max(len(shape.lengths), best_count))
  count = 1 if model.config.batch_norm else count  # statistics of a batch are those of all of it
  if len(shape.lengths) > 1:
    order = jnp.argsort(batch.lengths)
    batch, key = jax.tree.map(lambda x: x[order], (batch, key))
  parts = jax.tree.map(lambda x: cross_entropy.split_rows(x, count), (batch, key))
  if model.config.encoder:
    return _plain_sums(model, parts, shape)
  table = model.encoder.table
  bare = replace_embedding(model, table[:1])

  def sums(total: Any, part: tuple[TaskRows, Any]) -> tuple[Any, Float[Array, 'b L E']]:
    rows, key = part
    function = functools.partial(_value_and_gradient, model, key, shape)
    value, gradient, vectors = cut_to_length(function, shape.lengths, rows, rows.lengths.max())
    return jax.tree.map(jnp.add, total, (value, gradient)), vectors

  (value, gradient), vectors = jax.lax.scan(
    sums, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, bare)), parts
  )
  read = jnp.zeros_like(table).at[batch.tokens.ravel()].add(vectors.reshape(-1, table.shape[1]))
  return value, replace_embedding(gradient, read)


def _plain_sums(model: Classifier, parts: tuple[TaskRows, Any], shape: StepShape) -> Any:
  """The summed loss and its gradient, parameter by parameter, over the parts of a batch."""

  def sums(total: Any, part: tuple[TaskRows, Any]) -> tuple[Any, None]:
    def one(rows: TaskRows) -> Any:
      mask = rows.tokens != tokenizer.PAD_ID
      return jax.value_and_grad(loss_sum)(
        model, rows.tokens, mask, rows.labels, part[1], shape.kind
      )

    found = cut_to_length(one, shape.lengths, part[0], part[0].lengths.max())
    return jax.tree.map(jnp.add, total, found), None

  return jax.lax.scan(sums, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, model)), parts)[0]


def _value_and_gradient(model: Classifier, key: Any, shape: StepShape, part: TaskRows) -> Any:
  """The summed loss, its gradient with one row of zeros for the table's, and that of each token's
  vector, padded.

  The model reads its vectors from a table of its own, one row a token.
  """
  table = model.encoder.table
  vectors = table[part.tokens]  # [b l E]
  places = jnp.arange(part.tokens.size).reshape(part.tokens.shape)
  local = replace_embedding(model, vectors.reshape(-1, table.shape[1]))
  mask = part.tokens != tokenizer.PAD_ID
  value, gradient = jax.value_and_grad(loss_sum)(local, places, mask, part.labels, key, shape.kind)
  own = gradient.encoder.table.reshape(vectors.shape)
  padded = jnp.pad(own, ((0, 0), (0, shape.lengths[-1] - own.shape[1]), (0, 0)))
  return value, replace_embedding(gradient, jnp.zeros_like(table[:1])), padded


def finetune_step(
  member: MemberState, train: TaskRows, shape: StepShape, config: FinetuneConfig, updates: int
) -> tuple[MemberState, Float[Array, '']]:
  """One update on one batch; which examples make it is a function of seed and step.

  Gives the mean loss, too.
  """
  state, size = member.state, config.batch_size
  picked, _ = corpus.rows_at_step(state.seed, state.step, size, shape.examples)
  key = rng.batch_key(state.seed, rng.Stream.DROPOUT, state.step, jnp.arange(size))
  sums = gradient_sums(state.model, train, picked, key, shape)
  value, gradient = sums[0] / size, optimizer.mean_gradient(sums[1], size, 1)
  transform = optimizer.build_optimizer(
    config.optimizer, updates, state.model, member.learning_rate
  )
  change, moments = transform.update(gradient, state.optimizer, state.model)
  after = TrainState(state.step + 1, state.seed, optax.apply_updates(state.model, change), moments)
  return dataclasses.replace(member, state=after), value


@dataclasses.dataclass(frozen=True)
class FinetuneProgram:
  """What all members of a task share, compiled once; `together` members run at one time, `scored`
  rows are scored.
  """

  updates: int
  together: int
  scored: int
  mesh: Mesh
  start: Callable[[MemberInit, Encoder], MemberState]
  chunk: Callable[[MemberState, TaskRows, Int[Array, '']], tuple[MemberState, Float[Array, 'P']]]
  outputs: Callable[[Classifier, Int[Array, 'M B L']], Float[Array, 'P N C']]


@functools.lru_cache(maxsize=1)  # the next checkpoint on the same task compiles nothing new
def build_finetune_program(
  shape: StepShape, config: FinetuneConfig, model: EncoderConfig, members: int
) -> FinetuneProgram:
  """The functions of fine-tuning so many members on one task."""
  updates = math.ceil(config.epochs * shape.examples / config.batch_size)
  mesh = population.make_member_mesh(members)
  devices = mesh.devices.size
  how = population.choose_strategy(members, config.strategy, mesh.devices.flat[0].platform)
  each = 1 if how != 'vmap' else min(-(-members // devices), max(1, _MAX_MEMBER_BYTES // devices))
  work = members * updates * config.batch_size * shape.lengths[-1]
  if how == 'vmap' or work < _MIN_TOKENS_TO_PRUNE:  # under vmap every member takes every branch
    shape = dataclasses.replace(shape, lengths=shape.lengths[-1:])

  def start(origin: MemberInit, encoders: Any) -> MemberState:
    fresh = init_classifier(
      model, config.head, shape.classes, rng.make_key(origin.seed, rng.Stream.HEAD)
    )
    fresh.encoder = jax.tree.map(lambda saved: saved[origin.encoder], encoders)
    moments = optimizer.build_optimizer(config.optimizer, updates, fresh).init(fresh)
    return MemberState(
      TrainState(jnp.zeros((), jnp.int32), origin.seed, fresh, moments), origin.learning_rate
    )

  def chunk(
    member: MemberState, train: TaskRows, count: Int[Array, '']
  ) -> tuple[MemberState, Float[Array, '']]:
    def one(
      _: Int[Array, ''], carry: tuple[MemberState, Float[Array, '']]
    ) -> tuple[MemberState, Float[Array, '']]:
      member, value = finetune_step(carry[0], train, shape, config, updates)
      return member, carry[1] + value

    return jax.lax.fori_loop(0, count, one, (member, jnp.zeros(())))

  def outputs(fitted: Classifier, tokens: Int[Array, 'M B L']) -> Float[Array, 'N C']:
    def batch(tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
      longest = (tokens != tokenizer.PAD_ID).sum(1).max()
      return cut_to_length(
        lambda tokens: fitted(tokens, tokens != tokenizer.PAD_ID), shape.lengths, tokens, longest
      )

    found = jax.lax.map(batch, tokens)
    return found.reshape(-1, found.shape[-1])

  over = 'vmap' if how == 'vmap' else 'map'
  jitted = (
    jax.jit(population.map_over_members(function, mesh, over), donate_argnums=donated)
    for function, donated in ((start, ()), (chunk, 0), (outputs, ()))
  )
  scored = _EVAL_ROWS // train_step.count_micro_batches(
    _EVAL_ROWS, shape.lengths[-1], mesh.devices.flat[0].platform
  )
  return FinetuneProgram(updates, each * devices, scored, mesh, *jitted)


@functools.lru_cache(maxsize=1)  # what a start from scratch draws depends on no task
def init_encoders(model: EncoderConfig, head: HeadConfig) -> Callable[[UInt32[Array, 'P']], Any]:
  """Draws an encoder for each seed."""
  return jax.jit(
    jax.vmap(
      lambda seed: init_classifier(model, head, 1, rng.make_key(seed, rng.Stream.HEAD)).encoder
    )
  )


def group_members(
  program: FinetuneProgram, origins: Sequence[tuple[int, float, int]]
) -> MemberInit:
  """(seed, learning rate, encoder) of the members that run at one time; the last one fills what
  places are left.
  """
  filled = [*origins, *origins[-1:] * (program.together - len(origins))]
  seeds, rates, encoders = zip(*filled, strict=True)
  origin = MemberInit(
    np.array(seeds, np.uint32), np.array(rates, np.float32), np.array(encoders, np.int32)
  )
  return population.shard_members(origin, program.mesh)


def replicate(values: Any, program: FinetuneProgram) -> Any:
  """Puts on every device what all members read."""
  return jax.device_put(values, sharding.replicated(program.mesh))
