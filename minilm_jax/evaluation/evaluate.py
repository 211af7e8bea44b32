"""A checkpoint judged without training: the masked-token loss on a split of a corpus, and bits a
word and a byte.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from rich import box
from rich import table as rich_table

from minilm_jax.core import corpus_config, distributed, files, lock, progress, run_dir
from minilm_jax.core.config import MeshConfig, RunConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import build, tokenizer
from minilm_jax.data.corpus import Corpus, load_split, read_manifest
from minilm_jax.evaluation import likelihood
from minilm_jax.model.encoder import Encoder, attention_weights
from minilm_jax.tasks import finetune
from minilm_jax.training import masking, population, pretrained, program, sharding
from minilm_jax.training.pretrained import Pretrained


def evaluate_loss(source: epath.PathLike, corpus: str, split: str) -> dict[str, Any]:
  """Loss, perplexity, the paper's padded loss, bits a word and a byte of the latest checkpoint on
  all rows of a split.

  Args:
    source: the pre-training run.
    corpus: a corpus folder with the run's tokenizer; '' is the one it was trained on.
    split: train, validation or test.

  Raises:
    InputError: no such split or corpus, rows longer than the model reads, or a corpus that another
      tokenizer made.
  """
  pretrained_run, mesh, rows = _load(source, corpus, split)
  evaluate_model = program.build_evaluate(
    dataclasses.replace(pretrained_run.config.eval, rows=rows.rows), mesh
  )
  losses = evaluate_model(pretrained_run.model, jax.device_put(rows, sharding.replicated(mesh)))[0]
  return {
    'split': split,
    'rows': rows.rows,
    'step': pretrained_run.step,
    **losses,
    **likelihood.measure_bits(pretrained_run.model, rows.tokens, pretrained_run.tokenizer, mesh),
  }


def evaluate_word_bits(source: epath.PathLike, split: str) -> dict[str, Any]:
  """Bits a word and a byte alone, of the latest checkpoint on all rows of a split of its corpus.

  Raises:
    InputError: as `evaluate`.
  """
  pretrained_run, mesh, rows = _load(source, '', split)
  return {
    'split': split,
    'rows': rows.rows,
    'step': pretrained_run.step,
    **likelihood.measure_bits(pretrained_run.model, rows.tokens, pretrained_run.tokenizer, mesh),
  }


def _load(source: epath.PathLike, corpus: str, split: str) -> tuple[Pretrained, Mesh, Corpus]:
  """Returns a run with its model on every device of a mesh, the mesh, and a split on the host."""
  rows = read_split(source, pretrained.load_mlm_config(source), corpus, split)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  return pretrained.load(source, mesh=mesh), mesh, rows


def read_split(source: epath.PathLike, config: RunConfig, corpus: str, split: str) -> Corpus:
  """A split of the corpus of a run, or of another one of its tokenizer, on the host.

  Raises:
    InputError: as `evaluate`.
  """
  if split not in corpus_config.SPLITS:
    raise InputError(
      f'the split {split!r}', 'no such split', suggest_name(split, corpus_config.SPLITS)
    )
  described = pretrained.corpus_hashes(source)
  folder = epath.Path(corpus or described['corpus_folder'])
  if not corpus and not described['corpus_folder']:
    raise InputError(
      f'the loss of {source}',
      'it was imported, and has no corpus of its own',
      'give --corpus=FOLDER, built with --config.tokenizer.path='
      f'{epath.Path(source) / build.TOKENIZER}',
    )
  if not corpus and not folder.exists():
    raise InputError(
      f'the corpus of {source}', f'no folder {folder}', 'say where it is now: --corpus=FOLDER'
    )
  found = read_manifest(folder)
  if found['length'] > config.model.max_length:
    raise InputError(
      f'the loss of {source} on {folder}',
      f'rows of {found["length"]} tokens, and the model reads {config.model.max_length}',
      f'build it with --config.rows.length={config.model.max_length}',
    )
  if found['tokenizer']['sha256'] != described['tokenizer']:
    raise InputError(
      f'the loss of {source} on {folder}',
      'the corpus was made with another tokenizer',
      f'build it with --config.tokenizer.path={epath.Path(source) / build.TOKENIZER}',
    )
  return load_split(folder, split)


# Where the heads of a checkpoint look: the mean share of attention by how far away a token is.
ATTENTION_KIND = 'attention'
WINDOW_TOKENS = 3  # places to each side that are told one by one
PARTS = (*map(str, range(-WINDOW_TOKENS, WINDOW_TOKENS + 1)), 'ends', 'elsewhere')
QUERIES = ('all', 'masked')
_MAX_ROWS = 16  # of a split at one time: their shares of a layer are some MB


def evaluate_attention(given: str, corpus: str, split: str, workdir: str) -> dict[str, Any]:
  """The mean shares of every head of every layer, of each member of a population, at some steps of
  a run.

  Args:
    given: a pre-training run: `run` for its latest checkpoint, `run@step`, or `run@all` for each
      that is there.
    corpus: a corpus folder with the run's tokenizer; '' is the one it was trained on.
    split: train, validation or test, of which the first `eval.rows` rows are looked at.
    workdir: for config.json and result.json; what stands there is not measured again. '' is
      nowhere.

  Returns:
    `rows`, one a step, member, layer, head (each from 0) and kind of query (one of QUERIES): those
    five, `count`, and `shares` by PARTS; then checkpoint, split and corpus.

  Raises:
    Held: another process is at work in the work directory.
    InputError: several runs, an encoder of the user's own, no such step, split or corpus, or a work
      directory of something else.
  """
  source, these = _named(given)
  config = pretrained.load_config(source)
  if config.model.encoder:
    raise InputError(
      f'the attention of {source}',
      f'an encoder of its own, {config.model.encoder}',
      'give a run with an encoder of ours: where another one looks, if it does, is not known here',
    )
  read = read_split(source, config, corpus, split)
  described = {'checkpoint': source, 'steps': these, 'split': split, 'corpus': read.hash}
  if not workdir:
    return described | {'rows': _measured(config, source, these, read)}
  with lock.hold_lock(workdir):
    folder = run_dir.open_run(workdir, {'kind': ATTENTION_KIND, **described})
    if (folder / run_dir.RESULT).exists():
      progress.log(f'nothing to do: {folder} has the attention of these checkpoints')
    else:
      files.write_json(
        folder / run_dir.RESULT, described | {'rows': _measured(config, source, these, read)}
      )
  return files.read_json(folder / run_dir.RESULT, f'the attention in {folder}')


def _named(given: str) -> tuple[str, list[int]]:
  (source, these), *others = finetune.expand_checkpoints(given).items()
  if others:
    raise InputError(f'the attention of {given}', f'{1 + len(others)} runs', 'give one at a time')
  return source, these


def _measured(
  config: RunConfig, source: epath.PathLike, these: Sequence[int], read: Corpus
) -> list[dict[str, Any]]:
  members = config.population.members
  mesh = population.make_member_mesh(members)
  strategy = population.choose_strategy(
    members, config.population.strategy, mesh.devices.flat[0].platform
  )
  corpus = jax.device_put(
    dataclasses.replace(read, tokens=read.tokens[: config.eval.rows]), sharding.replicated(mesh)
  )
  look, rows = jax.jit(population.map_over_members(sum_attention, mesh, strategy)), []
  for step in these:
    encoder = pretrained.load(source, step, 'encoder', mesh, allow_population=True).model
    found = distributed.to_host(look(encoder, corpus))
    shares, counts = (
      np.reshape(found[name], (members, *size))
      for name, size in (
        ('shares', (config.model.num_layers, len(QUERIES), config.model.num_heads, len(PARTS))),
        ('queries', (len(QUERIES),)),
      )
    )
    for member, layer, head, kind in np.ndindex(
      members, config.model.num_layers, config.model.num_heads, len(QUERIES)
    ):
      count = counts[member, kind]
      rows.append(
        {
          'step': step,
          'member': member,
          'layer': layer,
          'head': head,
          'queries': QUERIES[kind],
          'count': int(count),
          'shares': dict(
            zip(PARTS, (shares[member, layer, kind, head] / count).tolist(), strict=True)
          ),
        }
      )
  return rows


def sum_attention(encoder: Encoder, corpus: Corpus) -> dict[str, Array]:
  """Sums over the queries of a split: their `shares [layers Q H parts]`, and how many `queries [Q]`
  of each kind.
  """
  place = jnp.arange(corpus.length)
  distance = place[None, :] - place[:, None]

  def add(batch: Int[Array, ''], sums: dict[str, Array]) -> dict[str, Array]:
    row = batch * _MAX_ROWS + jnp.arange(_MAX_ROWS)
    hidden = masking.mask_eval_batch(
      corpus.tokens[jnp.minimum(row, corpus.rows - 1)], row, corpus.vocab_size
    )
    tokens = hidden.tokens
    ends = (tokens == tokenizer.BEGIN_ID) | (tokens == tokenizer.END_ID)
    queries = (
      jnp.stack([hidden.mask & ~ends, tokens == tokenizer.MASK_ID], axis=-1)
      & (row < corpus.rows)[:, None, None]
    )
    far = jnp.where(ends, PARTS.index('ends'), PARTS.index('elsewhere'))[:, None]
    part = jnp.where(
      (jnp.abs(distance) <= WINDOW_TOKENS)[None], distance[None] + WINDOW_TOKENS, far
    )
    add_up = functools.partial(
      _by_part, part=jax.nn.one_hot(part, len(PARTS)), queries=queries.astype(jnp.float32)
    )
    shares = jnp.stack([add_up(one) for one in attention_weights(encoder, tokens, hidden.mask)])
    return {'shares': sums['shares'] + shares, 'queries': sums['queries'] + queries.sum((0, 1))}

  config = encoder.config
  zero = {
    'shares': jnp.zeros((config.num_layers, len(QUERIES), config.num_heads, len(PARTS))),
    'queries': jnp.zeros(len(QUERIES), jnp.int32),
  }
  return jax.lax.fori_loop(0, -(-corpus.rows // _MAX_ROWS), add, zero)


def _by_part(
  shares: Float[Array, 'B H L L'], part: Float[Array, 'B L L parts'], queries: Float[Array, 'B L Q']
) -> Float[Array, 'Q H parts']:
  return jnp.einsum('BHLp,BLQ->QHp', jnp.einsum('BHLM,BLMp->BHLp', shares, part), queries)


def attention_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader: a line a head and kind of query, in percent."""
  title = f'Attention of {found["checkpoint"]} on {found["split"]}, percent by distance'
  table = rich_table.Table(
    title=title, title_justify='left', caption_justify='left', box=box.SIMPLE_HEAD, pad_edge=False
  )
  names = ['step', 'member', 'layer', 'head', 'queries']
  if all(row['member'] == 0 for row in found['rows']):
    names.remove('member')
  for heading in (*names, *PARTS):
    table.add_column(heading, justify='left' if heading == 'queries' else 'right', no_wrap=True)
  for row in found['rows']:
    table.add_row(
      *(str(row[name]) for name in names), *(f'{100 * row["shares"][part]:.1f}' for part in PARTS)
    )
  counts = {row['queries']: row['count'] for row in found['rows']}
  table.caption = (
    f'0 is the query itself; ends: <s> and </s> farther away. '
    f'{counts["all"]:,} queries, {counts["masked"]:,} of them hidden.'
  )
  return [table]
