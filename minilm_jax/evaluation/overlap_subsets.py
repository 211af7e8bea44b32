"""Parts of a corpus that overlap more or less with a task, of one size: what `minilm
overlap-subsets` makes.

Every training row of the corpus gets a score, the mean over its pieces t of a weight:

    overlap      1 where t stands in the task's training texts, 0 elsewhere: the share of the row that the task knows
    likelihood   ln p(t) - ln q(t), p and q the smoothed shares of t in the task's training texts and in the corpus: the
                 difference of cross-entropies of Moore and Lewis (2010) for unigrams
    random       none: parts of the same size by the fixed random order, the control

Rows in the order of their scores are cut where the tokens are at quantiles, and of each part so
many rows are taken, in the fixed random order, as have the tokens of the smallest part: parts have
equal tokens within one row. Each is a corpus with the tokenizer and the validation and test splits
of the whole, so what differs is which text was read.

Only the task's training texts are looked at. The test texts are what the gap is measured on: a
corpus that was chosen by them would have been told what will be asked, and its score would say
nothing of other texts of the task.

What is of one size may still differ in more than overlap: rows that share many pieces with a task
are of its subject too, and may be easier or shorter. The manifest has the rows, tokens and mean
score of each part.
"""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from rich import table as rich_table

from minilm_jax.core import progress, recipe
from minilm_jax.core.config import FinetuneConfig, SubsetConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import corpus, subset, tokenizer
from minilm_jax.evaluation import overlap
from minilm_jax.tasks.examples import complete_task, read_examples

SELECTION_ORDERS = ('overlap', 'likelihood', 'random')
_ROWS_PER_BLOCK = 1 << 14  # rows scored at a time


def write_overlap_subsets(
  folder: epath.PathLike,
  config: FinetuneConfig,
  workdir: epath.PathLike,
  by: str = 'overlap',
  parts: int = 3,
  tokens: int = 0,
  order: int = 0,
) -> list[dict[str, Any]]:
  """Makes `part-1` (the lowest scores) to `part-N` (the highest) in `workdir`, each a corpus of its
  own.

  The same arguments give the same bytes on any machine; a part that is there is left as it is.

  Args:
    folder: the whole corpus.
    config: the recipe of the task; what is looked at are its training examples, as drawn for
      fine-tuning.
    workdir: of all parts.
    by: one of `WAYS`.
    parts: how many.
    tokens: of each part; 0: as many as all can have.
    order: of the fixed random order.

  Returns:
    For each part its folder, rows, tokens, scores and overlap.

  Raises:
    InputError: no such way, fewer than 2 parts, more tokens than a part can have, a task without
      text, or a corpus that cannot be read.
  """
  if by not in SELECTION_ORDERS:
    raise InputError(
      f'--select_by={by}',
      'no such choice',
      f'{suggest_name(by, SELECTION_ORDERS)} (choices: {", ".join(SELECTION_ORDERS)})',
    )
  if parts < 2:
    raise InputError(
      f'--num_parts={parts}',
      'nothing to compare',
      'give at least 2; subset.rows is a part by chance',
    )
  part, described = SubsetConfig(0, tokens, order), corpus.read_manifest(folder)
  subset.check_subset(part, described, folder)
  task = complete_task(config.task)
  examples = read_examples(task, config.task, 'train')
  files, tokenizer = (
    corpus.CorpusFiles(folder, subset.TRAIN_SPLIT),
    overlap.open_tokenizer(folder, described),
  )
  texts, _ = overlap.read_texts(examples, tokenizer, f'the train split of {task.name}')
  lengths = subset.row_lengths(files)
  scores = score_rows(
    files,
    token_weights(by, texts.totals(), overlap.count_corpus(files, tokenizer, with_words=False)[0]),
  )
  chosen = cut_by_tokens(scores, lengths, parts, tokens, order)
  settings = {
    'kind': 'subset',
    'corpus': described['hash'],
    'task': recipe.as_dict(config.task),
    'by': by,
    'parts': parts,
    'tokens': tokens,
    'order': order,
  }
  found = []
  for number, some in enumerate(chosen, 1):
    progress.log(f'part {number} of {parts}: {len(some):,} rows')
    measured = overlap.compute_measures(
      examples,
      tokenizer,
      *overlap.count_corpus(files, tokenizer, some),
      f'the train split of {task.name}',
    )
    one = overlap.headline_measure(measured)
    more = {
      'by': by,
      'part': number,
      'parts': parts,
      'order': order,
      'task': task.name,
      'split': 'train',
      'examples': len(examples.labels),
      'score': _mean(scores[some]),
      'lowest': float(scores[some].min()),
      'highest': float(scores[some].max()),
      'overlap': {'value': one.value, 'low': one.low, 'high': one.high},
      'measures': [
        {'unit': m.unit, 'name': m.name, 'least': m.least, 'value': m.value} for m in measured
      ],
    }
    made = subset.write_subset(
      folder, some, epath.Path(workdir) / f'part-{number}', settings | {'part': number}, more
    )
    found.append(
      {'folder': str(made), 'rows': len(some), 'tokens': int(lengths[some].sum()), **more}
    )
  return found


def token_weights(
  by: str, task: Int[np.ndarray, 'V'], corpus: Int[np.ndarray, 'V']
) -> Float[np.ndarray, 'V']:
  """What each piece adds to the score of a row; special pieces and `<unk>` nothing.

  Args:
    by: one of `WAYS`.
    task, corpus: how often each piece stands in the task's texts and in the corpus.
  """
  if by == 'overlap':
    found = (task > 0).astype(float)
  elif by == 'likelihood':
    found = np.log((task + 1) / (task.sum() + len(task))) - np.log(
      (corpus + 1) / (corpus.sum() + len(corpus))
    )
  else:
    found = np.zeros(len(task))
  found[: len(tokenizer.SPECIAL_TOKENS)] = 0
  return found


def score_rows(files: corpus.CorpusFiles, weight: Float[np.ndarray, 'V']) -> Float[np.ndarray, 'N']:
  """The mean weight of the pieces of each row, `<s>`, `</s>` and pads left out; of a row without
  any 0.
  """
  found = []
  for shard in files.shards:
    for at in range(0, len(shard), _ROWS_PER_BLOCK):
      tokens = shard[at : at + _ROWS_PER_BLOCK]
      inner = (tokens != tokenizer.PAD_ID).sum(1) - 2
      found.append(weight[tokens].sum(1) / np.maximum(inner, 1))
  return np.concatenate(found)


def cut_by_tokens(
  scores: Float[np.ndarray, 'N'], lengths: Int[np.ndarray, 'N'], parts: int, tokens: int, order: int
) -> list[Int[np.ndarray, 'n']]:
  """Row numbers of each part, in ascending order: from the lowest scores to the highest, of equal
  tokens within a row.

  Args:
    scores, lengths: of each row; of equal scores the fixed random order decides.
    parts: how many.
    tokens: of each part, 0 for as many as the smallest has.
    order: of the fixed random order.

  Raises:
    InputError: a part has fewer tokens than are asked for, or no row.
  """
  place = np.argsort(subset.order_rows(len(scores), order))
  ranked = np.lexsort((place, scores))
  ends = np.cumsum(lengths[ranked])
  bounds = np.searchsorted(ends, np.linspace(0, ends[-1], parts + 1), 'right')
  whole = [ranked[first:last] for first, last in zip(bounds, bounds[1:])]
  least = min(int(lengths[some].sum()) for some in whole)
  if tokens > least or not all(map(len, whole)):
    raise InputError(
      f'{parts} parts of {tokens:,} tokens' if tokens else f'{parts} parts of equal tokens',
      f'{len(scores):,} rows of {int(ends[-1]):,} tokens, of which the smallest part has {least:,}',
      'give fewer parts or tokens, or a corpus of more text',
    )
  found = []
  for some in whole:
    some = some[np.argsort(place[some])]
    some = some[: np.searchsorted(np.cumsum(lengths[some]), tokens or least, 'right')]
    found.append(np.sort(some))
  if not all(map(len, found)):
    raise InputError(
      f'{parts} parts of {tokens or least:,} tokens', 'a row has more than that', 'give more tokens'
    )
  return found


def _mean(values: Float[np.ndarray, 'n']) -> float:
  return float(np.mean(values))


def subset_tables(found: list[dict[str, Any]]) -> list[rich_table.Table]:
  """A row a part."""
  first = found[0]
  made = rich_table.Table(
    title=f'parts by {first["by"]} with {first["examples"]:,} training examples of {first["task"]}',
    title_justify='left',
  )
  for heading in (
    'part',
    'rows',
    'tokens',
    'mean score',
    'scores',
    'token overlap of words (%)',
    '95% interval',
  ):
    made.add_column(heading, justify='left' if heading == 'part' else 'right')
  for one in found:
    value, low, high = (100 * one['overlap'][name] for name in ('value', 'low', 'high'))
    made.add_row(
      one['folder'],
      f'{one["rows"]:,}',
      f'{one["tokens"]:,}',
      f'{one["score"]:.3f}',
      f'{one["lowest"]:.3f} to {one["highest"]:.3f}',
      f'{value:.2f}',
      f'{low:.2f} to {high:.2f}',
    )
  return [made]
