"""Where the heads of a checkpoint look: the mean share of attention by how far away a token is.

From each query a head spends shares that add up to 1. Those on the query itself and on the three places to each side
are told one by one, whatever stands there; of the rest those on `<s>` and `</s>` (`ends`), which say where a row begins
and ends and nothing else, and those `elsewhere`. Pads get none. They are means over the rows that evaluation looks at,
hidden as there, once with every word of a row as the query and once with the hidden places alone, from which a token is
predicted. Early heads look everywhere alike; a head that has found the neighbours has its share at -1 or 1.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from rich import box
from rich import table as rich_table

from minilm_jax import claim, hosts, progress, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.corpus import Corpus
from minilm_jax.model.encoder import Encoder
from minilm_jax.model.looking import attention_shares
from minilm_jax.tasks import evaluate, suite
from minilm_jax.training import masking, population, pretrained, sharding

KIND = 'attention'
REACH = 3  # places to each side that are told one by one
PARTS = (*map(str, range(-REACH, REACH + 1)), 'ends', 'elsewhere')
QUERIES = ('all', 'masked')
_ROWS = 16  # of a split at one time: their shares of a layer are some MB


def attention(given: str, corpus: str, split: str, workdir: str) -> dict[str, Any]:
  """The mean shares of every head of every layer, of each member of a population, at some steps of a run.

  Args:
    given: a pre-training run: `run` for its latest checkpoint, `run@step`, or `run@all` for each that is there.
    corpus: a corpus folder with the run's tokenizer; '' is the one it was trained on.
    split: train, validation or test, of which the first `eval.rows` rows are looked at.
    workdir: for config.json and result.json; what stands there is not measured again. '' is nowhere.

  Returns:
    `rows`, one a step, member, layer, head (each from 0) and kind of query (one of QUERIES): those five, `count`, and
    `shares` by PARTS; then checkpoint, split and corpus.

  Raises:
    Held: another process is at work in the work directory.
    InputError: several runs, an encoder of the user's own, no such step, split or corpus, or a work directory of
      something else.
  """
  source, these = _named(given)
  config = pretrained.load_config(source)
  if config.model.encoder:
    raise InputError(f'the attention of {source}', f'an encoder of its own, {config.model.encoder}',
                     'give a run with an encoder of ours: where another one looks, if it does, is not known here')
  read = evaluate.read_split(source, config, corpus, split)
  described = {'checkpoint': source, 'steps': these, 'split': split, 'corpus': read.hash}
  if not workdir:
    return described | {'rows': _measured(config, source, these, read)}
  with claim.held(workdir):
    folder = run.open_run(workdir, {'kind': KIND, **described})
    if (folder / run.RESULT).exists():
      progress.say(f'nothing to do: {folder} has the attention of these checkpoints')
    else:
      run.write_json(folder / run.RESULT, described | {'rows': _measured(config, source, these, read)})
  return run.read_json(folder / run.RESULT, f'the attention in {folder}')


def _named(given: str) -> tuple[str, list[int]]:
  (source, these), *others = suite.checkpoints(given).items()
  if others:
    raise InputError(f'the attention of {given}', f'{1 + len(others)} runs', 'give one at a time')
  return source, these


def _measured(config: RunConfig, source: epath.PathLike, these: Sequence[int], read: Corpus) -> list[dict[str, Any]]:
  members = config.population.members
  mesh = population.make_member_mesh(members)
  strategy = population.choose_strategy(members, config.population.strategy, mesh.devices.flat[0].platform)
  corpus = jax.device_put(dataclasses.replace(read, tokens=read.tokens[:config.eval.rows]),
                          sharding.replicated(mesh))
  look, rows = jax.jit(population.map_over_members(totals, mesh, strategy)), []
  for step in these:
    encoder = pretrained.load(source, step, 'encoder', mesh, allow_population=True).model
    found = hosts.to_host(look(encoder, corpus))
    shares, counts = (np.reshape(found[name], (members, *size)) for name, size in (
        ('shares', (config.model.num_layers, len(QUERIES), config.model.num_heads, len(PARTS))), ('queries', (len(QUERIES),))))
    for member, layer, head, kind in np.ndindex(members, config.model.num_layers, config.model.num_heads, len(QUERIES)):
      count = counts[member, kind]
      rows.append({'step': step, 'member': member, 'layer': layer, 'head': head, 'queries': QUERIES[kind],
                   'count': int(count),
                   'shares': dict(zip(PARTS, (shares[member, layer, kind, head] / count).tolist(), strict=True))})
  return rows


def totals(encoder: Encoder, corpus: Corpus) -> dict[str, Array]:
  """Sums over the queries of a split: their `shares [layers Q H parts]`, and how many `queries [Q]` of each kind."""
  place = jnp.arange(corpus.length)
  distance = place[None, :] - place[:, None]

  def add(batch: Int[Array, ''], sums: dict[str, Array]) -> dict[str, Array]:
    row = batch * _ROWS + jnp.arange(_ROWS)
    hidden = masking.mask_eval_batch(corpus.tokens[jnp.minimum(row, corpus.rows - 1)], row, corpus.vocabulary)
    tokens = hidden.tokens
    ends = (tokens == pieces.BEGIN) | (tokens == pieces.END)
    queries = jnp.stack([hidden.mask & ~ends, tokens == pieces.MASK], axis=-1) & (row < corpus.rows)[:, None, None]
    far = jnp.where(ends, PARTS.index('ends'), PARTS.index('elsewhere'))[:, None]
    part = jnp.where((jnp.abs(distance) <= REACH)[None], distance[None] + REACH, far)
    add_up = functools.partial(_by_part, part=jax.nn.one_hot(part, len(PARTS)), queries=queries.astype(jnp.float32))
    shares = jnp.stack([add_up(one) for one in attention_shares(encoder, tokens, hidden.mask)])
    return {'shares': sums['shares'] + shares, 'queries': sums['queries'] + queries.sum((0, 1))}

  config = encoder.config
  zero = {'shares': jnp.zeros((config.num_layers, len(QUERIES), config.num_heads, len(PARTS))),
          'queries': jnp.zeros(len(QUERIES), jnp.int32)}
  return jax.lax.fori_loop(0, -(-corpus.rows // _ROWS), add, zero)


def _by_part(shares: Float[Array, 'B H L L'], part: Float[Array, 'B L L parts'],
             queries: Float[Array, 'B L Q']) -> Float[Array, 'Q H parts']:
  return jnp.einsum('BHLp,BLQ->QHp', jnp.einsum('BHLM,BLMp->BHLp', shares, part), queries)


def tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader: a line a head and kind of query, in percent."""
  title = f'Attention of {found["checkpoint"]} on {found["split"]}, percent by distance'
  table = rich_table.Table(title=title, title_justify='left', caption_justify='left', box=box.SIMPLE_HEAD,
                           pad_edge=False)
  names = ['step', 'member', 'layer', 'head', 'queries']
  if all(row['member'] == 0 for row in found['rows']):
    names.remove('member')
  for heading in (*names, *PARTS):
    table.add_column(heading, justify='left' if heading == 'queries' else 'right', no_wrap=True)
  for row in found['rows']:
    table.add_row(*(str(row[name]) for name in names), *(f'{100 * row["shares"][part]:.1f}' for part in PARTS))
  counts = {row['queries']: row['count'] for row in found['rows']}
  table.caption = (f'0 is the query itself; ends: <s> and </s> farther away. '
                   f'{counts["all"]:,} queries, {counts["masked"]:,} of them hidden.')
  return [table]
