"""Tests the fine-tuning step: members depend on seed, rate and start, not on pads or other members."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core import rng
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer
from minilm_jax.data.rows import select_batch_rows
from minilm_jax.model.encoder import Encoder
from minilm_jax.model.heads import init_classifier
from minilm_jax.model.initialization import flatten
from minilm_jax.tasks import finetune, finetune_step, task_data
from minilm_jax.tasks.finetune_step import FinetuneProgram, StepShape
from minilm_jax.tasks.task import find_task
from minilm_jax.tasks.task_data import TaskRows
from minilm_jax.training import population
from minilm_jax.training.pretrained import load_single_config
from tests import tiny_config

ROWS, LENGTHS = 48, (32, 64)
# Index of the fresh encoder of each seed, after the encoders of two checkpoints.
FRESH = {0: 2, 3: 3, 4: 4, 9: 5}
TABLE = 'encoder.embedding.tokens.embedding'
KINDS = [
  ('sentiment', np.array([0, 1, 1, 0], np.int32)),
  ('stsb', np.array([0.5, 5, 2, 3.3], np.float32)),
]


def sum_losses(model: Any, batch: Any, kind: str) -> jax.Array:
  return finetune_step.sum_losses(
    model, batch.tokens, batch.tokens != tokenizer.PAD_ID, batch.labels, None, kind
  )


def make_config(**changes: Any) -> FinetuneConfig:
  fields = {'seeds': '0,1', 'epochs': 2.0, 'batch_size': 16, 'head.dropout': 0.0}
  return tiny_config.make_finetune_config(**(fields | changes))


def make_shape(lengths: tuple[int, ...] = LENGTHS) -> StepShape:
  return StepShape('classification', 2, ROWS, lengths)


def build_program(
  model: EncoderConfig, members: int, lengths: tuple[int, ...], **changes: Any
) -> FinetuneProgram:
  return finetune_step.build_finetune_program(
    make_shape(lengths), make_config(**changes), model, members
  )


@pytest.fixture(scope='module')
def model(tiny_run: Path) -> EncoderConfig:
  return dataclasses.replace(load_single_config(tiny_run).model, dropout=0.0)


@pytest.fixture(scope='module')
def full_rows() -> TaskRows:
  """Returns rows of lengths up to 64 with 40 different pieces."""
  draw = np.random.default_rng(0)
  counts = np.append(draw.integers(3, 40, ROWS - 1), 62)
  ids = draw.choice(np.arange(len(tokenizer.SPECIAL_TOKENS), 500), 40, replace=False)
  sequences = [
    [tokenizer.BEGIN_ID, *draw.choice(ids, n).tolist(), tokenizer.END_ID] for n in counts
  ]
  return task_data.build_task_rows(sequences, draw.integers(0, 2, ROWS, np.int32), 64)


@pytest.fixture(scope='module')
def used_ids(full_rows: TaskRows) -> np.ndarray:
  return task_data.list_used_ids((full_rows,))


@pytest.fixture(scope='module')
def rows(full_rows: TaskRows, used_ids: np.ndarray) -> TaskRows:
  return task_data.narrow_ids(full_rows, used_ids)


@pytest.fixture(scope='module')
def saved(tiny_run: Path, model: EncoderConfig) -> list[Encoder]:
  return [finetune.load_encoder(tiny_run, model, step) for step in (4, 8)]


@pytest.fixture(scope='module')
def fresh(model: EncoderConfig) -> Encoder:
  """Returns a stack with an encoder for each seed of FRESH."""
  return finetune_step.init_encoders.__wrapped__(model, make_config().head)(
    np.array(list(FRESH), np.uint32)
  )


@pytest.fixture(scope='module')
def encoders(saved: list[Encoder], fresh: Encoder, used_ids: np.ndarray) -> Encoder:
  """Returns a stack of the encoders of two checkpoints and from scratch."""
  stack = jax.tree.map(
    lambda first, second, more: np.concatenate([first[None], second[None], more]), *saved, fresh
  )
  return finetune_step.prune_embedding(stack, used_ids)


@pytest.fixture(scope='module')
def program(model: EncoderConfig) -> FinetuneProgram:
  """Returns a program for four members that trains one member at a time on each device."""
  return build_program(model, 4, LENGTHS, strategy='map')


@pytest.fixture(scope='module')
def narrow_run(
  program: FinetuneProgram, encoders: Encoder, rows: TaskRows
) -> list[dict[str, np.ndarray]]:
  """Returns members after an epoch: two seeds of checkpoint 1, one of checkpoint 0, one fresh."""
  return train(
    program, [(0, 1e-3, 1), (1, 1e-3, 1), (0, 1e-3, 0), (0, 1e-3, FRESH[0])], encoders, rows
  )


def start_members(
  program: FinetuneProgram, inits: Sequence[tuple[int, float, int]], encoders: Any
) -> Any:
  return program.start(finetune_step.group_members(program, inits), encoders)


def train(
  program: FinetuneProgram,
  inits: Sequence[tuple[int, float, int]],
  encoders: Any,
  rows: TaskRows,
  updates: int = 3,
) -> list[dict[str, np.ndarray]]:
  """Returns parameters, sum of losses and outputs of each member after some updates."""
  member, losses = program.chunk(
    start_members(program, inits, encoders),
    finetune_step.replicate_arrays(rows, program),
    jnp.int32(updates),
  )
  tokens, (place,) = task_data.batch_rows([rows], 16)
  outputs = np.asarray(
    program.outputs(member.state.model, finetune_step.replicate_arrays(tokens, program))
  )[:, place]
  parameters = {name: np.asarray(leaf) for name, leaf in flatten(member.state.model).items()}
  return [
    {
      **{name: leaf[number] for name, leaf in parameters.items()},
      'outputs': outputs[number],
      'loss': np.asarray(losses)[number],
    }
    for number in range(len(inits))
  ]


def is_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
  return first.keys() == second.keys() and all(
    np.array_equal(first[name], second[name]) for name in first
  )


def assert_close(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
  assert first.keys() == second.keys()
  for name, value in first.items():
    np.testing.assert_allclose(value, second[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize('num_heads', [1, 3])
@pytest.mark.parametrize('name, labels', KINDS)
def test_the_loss_is_a_sum_over_examples_and_a_mean_over_heads(
  name: str, labels: np.ndarray, num_heads: int, model: EncoderConfig
):
  task, head = find_task(name), dataclasses.replace(make_config().head, ensemble_size=num_heads)
  batch = TaskRows(jnp.arange(32).reshape(4, 8) + 5, jnp.full(4, 8), jnp.asarray(labels))

  @jax.jit
  def compute_loss() -> Any:
    fresh = init_classifier(model, head, len(task.labels), jax.random.key(0))
    return sum_losses(fresh, batch, task.kind), jnp.stack(
      fresh.logits_by_head(batch.tokens, batch.tokens != tokenizer.PAD_ID)
    )

  loss, outputs = compute_loss()
  outputs = np.asarray(outputs, np.float64)
  head_losses = (
    np.sum((outputs[..., 0] - labels) ** 2, 1)
    if not task.labels
    else np.sum(np.log(np.exp(outputs).sum(-1)) - outputs[:, np.arange(4), labels], 1)
  )
  assert float(loss) == pytest.approx(head_losses.mean(), rel=1e-5)
  assert len(set(head_losses)) == num_heads


@pytest.mark.parametrize(
  'pooling, positions',
  [
    ('first', 'learned'),
    ('mean', 'relative'),
    ('first', 'rotary'),
    ('first', 'sinusoidal'),
    ('mean', 'none'),
  ],
)
def test_pads_change_no_logit(pooling: str, positions: str, model: EncoderConfig):
  plain = dataclasses.replace(model, positions=positions)
  head = dataclasses.replace(make_config().head, pooling=pooling)
  sequences = [[0, *range(10, 10 + n), 2] for n in (1, 5, 12)]

  @jax.jit
  def logits(tokens: Any, longest: Any) -> Any:
    fresh = init_classifier(plain, head, 2, jax.random.key(0))
    lengths = tuple(length for length in (14, 64) if length <= tokens.shape[1])
    return finetune_step.cut_to_length(
      lambda tokens: fresh(tokens, tokens != tokenizer.PAD_ID), lengths, tokens, longest
    )

  short, long = (
    task_data.build_task_rows(sequences, np.zeros(3, np.int32), length).tokens
    for length in (14, 64)
  )
  alone = logits(short, 14)
  for longest in (14, 15):  # cut to 14 tokens, then to 64
    np.testing.assert_allclose(logits(long, longest), alone, atol=1e-6)
  assert np.ptp(np.asarray(alone), axis=0).min() > 1e-3


def test_rows_are_cut_to_the_shortest_length_that_fits(rows: TaskRows):
  choose = jax.jit(
    lambda longest: finetune_step.cut_to_length(
      lambda part: jnp.int32(part.tokens.shape[1]), (16, 32, 64), rows, longest
    )
  )
  assert [int(choose(longest)) for longest in (1, 16, 17, 32, 33, 64)] == [16, 16, 32, 32, 64, 64]


@pytest.mark.parametrize(
  'lengths, changes',
  [
    ((16, 64), {}),
    ((64,), {}),
    ((16, 64), {'segments': 2, 'segment_embeddings_for_pairs': True}),
  ],
)
def test_gradients_of_parts_add_up_to_the_gradient_of_the_batch(
  lengths: tuple[int, ...], changes: dict[str, Any], model: EncoderConfig, full_rows: TaskRows
):
  model = dataclasses.replace(model, **changes)
  # The first sequence of each pair ends at the second token.
  pairs = full_rows.tokens.copy()
  pairs[:, 2] = tokenizer.END_ID
  full_rows = dataclasses.replace(full_rows, tokens=pairs)
  fresh = jax.jit(lambda: init_classifier(model, make_config().head, 2, jax.random.key(0)))()
  picked, train = jnp.arange(7, 23), jax.tree.map(jnp.asarray, full_rows)
  key = rng.make_batch_keys(0, rng.Stream.DROPOUT, 0, jnp.arange(16))
  loss, gradient = jax.jit(
    lambda: finetune_step.sum_gradients(fresh, train, picked, key, make_shape(lengths))
  )()
  batch = jax.tree.map(lambda x: x[picked], train)
  expected, other = jax.jit(
    lambda: jax.value_and_grad(sum_losses)(fresh, batch, 'classification')
  )()
  assert float(loss) == pytest.approx(float(expected), rel=1e-5)
  other = flatten(other)
  for name, leaf in flatten(gradient).items():
    np.testing.assert_allclose(leaf, other[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('platform, parts', [('cpu', 2), ('gpu', 1)])
def test_micro_batches_follow_the_platform_of_the_program(
  platform: str, parts: int, model: EncoderConfig, full_rows: TaskRows
):
  """A program for an absent GPU is lowered on a CPU; a micro-batch of a CPU has 512 tokens."""
  shape = dataclasses.replace(make_shape((64,)), platform=platform)
  fresh = jax.eval_shape(lambda: init_classifier(model, make_config().head, 2, jax.random.key(0)))
  key = rng.make_batch_keys(0, rng.Stream.DROPOUT, 0, jnp.arange(16))
  jaxpr = jax.make_jaxpr(
    lambda model, train: finetune_step.sum_gradients(model, train, jnp.arange(16), key, shape)
  )(fresh, full_rows)
  scans = [e.params['length'] for e in jaxpr.eqns if e.primitive.name == 'scan']
  assert scans == [parts]


def test_an_update_returns_the_mean_loss_of_the_batch(
  program: FinetuneProgram, encoders: Encoder, rows: TaskRows
):
  before = population.select_member(start_members(program, [(5, 1e-3, 1)], encoders), 0).state
  _, losses = program.chunk(
    start_members(program, [(5, 1e-3, 1)], encoders),
    finetune_step.replicate_arrays(rows, program),
    jnp.int32(1),
  )
  picked, _ = select_batch_rows(before.seed, before.step, 16, ROWS)
  batch = jax.tree.map(lambda x: jnp.asarray(x)[picked], rows)
  expected = jax.jit(lambda: sum_losses(before.model, batch, 'classification'))()
  assert float(losses[0]) == pytest.approx(float(expected) / 16, rel=1e-5)


def test_members_start_from_their_checkpoint_and_a_fresh_head(
  program: FinetuneProgram, saved: list[Encoder], encoders: Encoder, used_ids: np.ndarray
):
  members = start_members(
    program, [(3, 1e-3, 0), (3, 1e-3, 1), (3, 1e-3, FRESH[3]), (4, 1e-3, FRESH[4])], encoders
  )
  first, second, fresh, other = (
    flatten(population.select_member(members, n).state.model) for n in range(4)
  )
  for parameters, encoder in ((first, saved[0]), (second, saved[1])):
    for name, leaf in flatten(encoder).items():
      expected = leaf[used_ids] if f'encoder.{name}' == TABLE else leaf
      np.testing.assert_array_equal(parameters[f'encoder.{name}'], expected)
  for name, leaf in fresh.items():
    if name.startswith('encoder.'):
      assert not np.array_equal(leaf, second[name]), name
    else:  # heads depend on the seed alone
      np.testing.assert_array_equal(leaf, first[name])
      np.testing.assert_array_equal(leaf, second[name])
    if name.endswith(('kernel', 'embedding')):
      assert not np.array_equal(leaf, other[name]), name


def test_a_fresh_encoder_depends_on_the_seed_alone(model: EncoderConfig, fresh: Encoder):
  encoder = jax.jit(
    lambda: init_classifier(model, make_config().head, 3, rng.make_key(9, rng.Stream.HEAD))
  )().encoder
  for name, leaf in flatten(encoder).items():
    np.testing.assert_allclose(
      flatten(fresh)[name][list(FRESH).index(9)], leaf, rtol=1e-6, err_msg=name
    )


def test_a_member_does_not_depend_on_other_members_bit_for_bit(
  program: FinetuneProgram, narrow_run: list, encoders: Encoder, rows: TaskRows
):
  members = train(
    program, [(9, 1e-2, FRESH[9]), (0, 1e-3, FRESH[0]), (0, 1e-3, 1), (1, 5e-3, 0)], encoders, rows
  )
  assert is_equal(members[1], narrow_run[3]) and is_equal(members[2], narrow_run[0])
  (alone,) = train(program, [(1, 1e-3, 1)], encoders, rows)
  assert is_equal(alone, narrow_run[1])


def test_members_differ_by_seed_by_start_and_by_rate(
  program: FinetuneProgram, narrow_run: list, encoders: Encoder, rows: TaskRows
):
  others = train(program, [(0, 0.0, 1), (0, 2e-3, 1)], encoders, rows)
  for member in (*narrow_run[1:], *others):
    assert not np.allclose(member['outputs'], narrow_run[0]['outputs'], atol=1e-4)
  members = start_members(program, [(0, 0.0, 1)], encoders)
  for name, leaf in flatten(population.select_member(members, 0).state.model).items():
    np.testing.assert_array_equal(others[0][name], leaf)  # a rate of 0 changes nothing


def test_an_epoch_changes_every_parameter_that_a_row_uses(
  program: FinetuneProgram, narrow_run: list, encoders: Encoder, used_ids: np.ndarray
):
  members = start_members(program, [(0, 1e-3, 1)], encoders)
  for name, before in flatten(population.select_member(members, 0).state.model).items():
    moved = narrow_run[0][name] != np.asarray(before)
    assert moved.any(), name
    if name == TABLE:
      is_special = used_ids < len(tokenizer.SPECIAL_TOKENS)
      assert moved[~is_special].any(1).all()
      assert moved[[tokenizer.BEGIN_ID, tokenizer.END_ID]].any()
      assert not moved[[tokenizer.PAD_ID, tokenizer.MASK_ID, tokenizer.UNKNOWN_ID]].any()


def test_full_tables_and_rows_give_the_same_member(
  narrow_run: list,
  model: EncoderConfig,
  saved: list[Encoder],
  full_rows: TaskRows,
  used_ids: np.ndarray,
):
  stack = jax.tree.map(lambda x: x[None], saved[1])
  (member,) = train(build_program(model, 1, (64,)), [(0, 1e-3, 0)], stack, full_rows)
  before = np.asarray(flatten(saved[1])[TABLE.removeprefix('encoder.')])
  unused = np.setdiff1d(np.arange(520), used_ids)
  assert member[TABLE].shape[0] == 520 and len(unused) > 400
  np.testing.assert_array_equal(member[TABLE][unused], before[unused])
  assert_close({**member, TABLE: member[TABLE][used_ids]}, narrow_run[0])


def test_map_and_vmap_give_the_same_members(
  narrow_run: list, model: EncoderConfig, encoders: Encoder, rows: TaskRows
):
  other = build_program(model, 16, LENGTHS, strategy='vmap')
  assert (other.group_size, other.mesh.devices.size) == (16, 8)
  inits = [(5, 1e-2, 0)] * 9 + [(0, 1e-3, 1), (1, 1e-3, 1), (0, 1e-3, 0), (0, 1e-3, FRESH[0])]
  for member, expected in zip(train(other, inits, encoders, rows)[9:], narrow_run, strict=True):
    assert_close(member, expected)


def test_a_second_call_compiles_nothing(
  program: FinetuneProgram, encoders: Encoder, rows: TaskRows, narrow_run
):
  programs = program.start, program.chunk, program.outputs
  before = [function._cache_size() for function in programs]
  shifted = jax.tree.map(lambda x: x + 0.01, encoders)
  train(program, [(7, 1e-2, 1)] * 3, shifted, rows, updates=2)
  member = start_members(program, [(7, 1e-2, 1)], encoders)
  for count in (1, 2):
    member, _ = program.chunk(
      member, finetune_step.replicate_arrays(rows, program), jnp.int32(count)
    )
  assert [function._cache_size() for function in programs] == before


@pytest.mark.parametrize(
  'epochs, examples, updates',
  [(1.1, 1600, 55), (2.2, 3200, 220), (1.1, 1601, 56), (5.0, 50, 8), (0.5, 10, 1)],
)
def test_updates_are_exact_for_fractions_of_epochs(epochs: float, examples: int, updates: int):
  config = make_config(epochs=epochs, batch_size=32)
  assert finetune_step.count_updates(config, examples) == updates


def test_equal_recipes_share_a_program(model: EncoderConfig):
  first, second, longer = (
    finetune_step.build_finetune_program(make_shape(), make_config(epochs=epochs), model, 2)
    for epochs in (2.0, 2.0, 2.1)
  )
  assert first is second and (first.updates, longer.updates) == (6, 7)


def test_the_last_member_fills_the_group(program: FinetuneProgram):
  init = finetune_step.group_members(program, [(3, 1e-3, 0), (4, 1e-2, FRESH[4])])
  assert init.seed.tolist() == [3, 4, 4, 4] and init.encoder.tolist() == [0, 4, 4, 4]
  assert init.learning_rate.tolist() == pytest.approx([1e-3, 1e-2, 1e-2, 1e-2])
