"""Measures the mean share of attention of every head, by distance between query and key."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int
from rich import table as rich_table

from minilm_jax.core import distributed, run_dir
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data.rows import Corpus
from minilm_jax.evaluation import evaluate
from minilm_jax.model.encoder import Encoder
from minilm_jax.tasks import suite
from minilm_jax.training import masking, population, pretrained, sharding

ATTENTION_KIND = 'attention'
_MAX_DISTANCE = 3  # positions on each side that are listed separately
PARTS = (*map(str, range(-_MAX_DISTANCE, _MAX_DISTANCE + 1)), 'ends', 'elsewhere')
QUERIES = ('all', 'masked')
_ROWS_PER_BATCH = 16  # the attention weights of a layer take a few MB


def evaluate_attention(
  checkpoints: str, corpus_folder: str, split: str, workdir: str
) -> dict[str, Any]:
  """Returns mean attention shares of every layer and head, for each member and step of a run.

  Args:
    checkpoints: `run` for the latest checkpoint of a pre-training run, `run@step`, or `run@all`.
    corpus_folder: Corpus with the tokenizer of the run; '' is the corpus of the run.
    split: 'train', 'validation' or 'test'; the first `eval.rows` rows are used.
    workdir: Directory for config.json and result.json; '' writes no files. An existing result is
      returned.

  Returns:
    A dict with `rows`, checkpoint, steps, split and corpus. Each row has step, member, layer, head,
    queries (one of QUERIES), count (of queries), and shares by PARTS.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: Several runs or a custom encoder are given. A step, split or corpus does not exist.
      The work directory has another run, or one of other weights.
  """
  (source, steps), *others = suite.expand_checkpoints(checkpoints).items()
  if others:
    raise InputError(
      f'the attention of {checkpoints}', f'{1 + len(others)} runs', 'give a single run'
    )
  model = pretrained.load_config(source).model
  if model.encoder:
    raise InputError(
      f'the attention of {source}',
      f'the custom encoder {model.encoder}, which does not expose attention',
      'give a run without model.encoder',
    )
  corpus = evaluate.read_split(source, model.max_length, corpus_folder, split)
  fields = {'checkpoint': source, 'steps': steps, 'split': split, 'corpus': corpus.hash}

  def measure() -> dict[str, Any]:
    return fields | {'rows': _measure_attention(source, steps, corpus)}

  weights = {}
  if workdir:  # the checksums identify the work directory
    weights = {str(step): pretrained.hash_weights(_load_encoder(source, step)) for step in steps}
  identity = {'kind': ATTENTION_KIND, **fields, 'weights': weights}
  return run_dir.measure_once(workdir, identity, measure, 'attention of these checkpoints')


def _load_encoder(source: epath.PathLike, step: int, mesh: Mesh | None = None) -> Encoder:
  return pretrained.load(source, step, 'encoder', mesh, allow_population=True).model


def _measure_attention(
  source: epath.PathLike, steps: Sequence[int], corpus: Corpus
) -> list[dict[str, Any]]:
  config = pretrained.load_config(source)
  members, model = config.population.members, config.model
  mesh = population.make_even_mesh(members)
  strategy = population.choose_strategy(
    members, config.population.strategy, mesh.devices.flat[0].platform
  )
  corpus = dataclasses.replace(corpus, tokens=corpus.tokens[: config.eval.rows])
  corpus = jax.device_put(corpus, sharding.replicated(mesh))
  sum_members = jax.jit(population.map_over_members(sum_attention, mesh, strategy))
  rows = []
  for step in steps:
    encoder = _load_encoder(source, step, mesh)
    sums = distributed.to_host(sum_members(encoder, corpus))
    axes = members, model.num_layers, len(QUERIES), model.num_heads
    shares = np.reshape(sums['shares'], (*axes, len(PARTS)))
    counts = np.reshape(sums['queries'], (members, len(QUERIES)))
    for member, layer, head, kind in np.ndindex(
      members, model.num_layers, model.num_heads, len(QUERIES)
    ):
      means = shares[member, layer, kind, head] / counts[member, kind]
      rows.append(
        {
          'step': step,
          'member': member,
          'layer': layer,
          'head': head,
          'queries': QUERIES[kind],
          'count': int(counts[member, kind]),
          'shares': dict(zip(PARTS, means.tolist(), strict=True)),
        }
      )
  return rows


def sum_attention(encoder: Encoder, corpus: Corpus) -> dict[str, Array]:
  """Returns `shares [layers Q H parts]` summed over the queries of a split, and `queries [Q]`."""
  position = jnp.arange(corpus.length)
  distance = position[None, :] - position[:, None]
  ends_part, elsewhere_part = PARTS.index('ends'), PARTS.index('elsewhere')

  def add_batch(batch: Int[Array, ''], sums: dict[str, Array]) -> dict[str, Array]:
    row = batch * _ROWS_PER_BATCH + jnp.arange(_ROWS_PER_BATCH)
    masked = masking.mask_eval_batch(
      corpus.tokens[jnp.minimum(row, corpus.rows - 1)], row, corpus.vocab_size
    )
    tokens = masked.tokens
    ends = (tokens == BEGIN_ID) | (tokens == END_ID)
    kinds = jnp.stack([masked.mask & ~ends, tokens == MASK_ID], axis=-1)
    queries = kinds & (row < corpus.rows)[:, None, None]
    far_part = jnp.where(ends, ends_part, elsewhere_part)[:, None]
    near = (jnp.abs(distance) <= _MAX_DISTANCE)[None]
    part = jax.nn.one_hot(jnp.where(near, distance[None] + _MAX_DISTANCE, far_part), len(PARTS))
    layers = encoder.attention_weights(tokens, masked.mask)
    by_position = [jnp.einsum('BHLM,BLMp->BHLp', weights, part) for weights in layers]
    counted = queries.astype(jnp.float32)
    shares = jnp.stack([jnp.einsum('BHLp,BLQ->QHp', layer, counted) for layer in by_position])
    return {'shares': sums['shares'] + shares, 'queries': sums['queries'] + queries.sum((0, 1))}

  config = encoder.config
  zero = {
    'shares': jnp.zeros((config.num_layers, len(QUERIES), config.num_heads, len(PARTS))),
    'queries': jnp.zeros(len(QUERIES), jnp.int32),
  }
  return jax.lax.fori_loop(0, -(-corpus.rows // _ROWS_PER_BATCH), add_batch, zero)


def make_attention_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns a table with one row per head and kind of query, in percent."""
  rows = result['rows']
  table = evaluate.make_table(
    f'Attention of {result["checkpoint"]} on {result["split"]}, percent by distance'
  )
  names = ['step', 'member', 'layer', 'head', 'queries']
  if all(row['member'] == 0 for row in rows):
    names.remove('member')
  for heading in (*names, *PARTS):
    table.add_column(heading, justify='left' if heading == 'queries' else 'right', no_wrap=True)
  for row in rows:
    percent = (f'{100 * row["shares"][part]:.1f}' for part in PARTS)
    table.add_row(*(str(row[name]) for name in names), *percent)
  counts = {row['queries']: row['count'] for row in rows}
  table.caption = (
    f'0 is the query; ends are <s> and </s> at larger distances. '
    f'{counts["all"]:,} queries, {counts["masked"]:,} masked.'
  )
  return [table]
