"""Parts of a corpus of one size that overlap more or less with a task: `minilm overlap-subsets`.

Every training row of the corpus is scored by the mean over its pieces t of a weight:

    overlap      1 where t occurs in the task's training texts, else 0: the share of the row that the task knows
    likelihood   ln p(t) - ln q(t), p and q the smoothed shares of t in the task's training texts and in the corpus: the
                 difference of cross-entropies of Moore and Lewis (2010) for unigrams
    random       none: parts of the same size by the fixed random order, the control

Rows in the order of their scores are cut at quantiles of the tokens. Of each part, rows are taken in
the fixed random order up to the tokens of the smallest part, so that parts have equal tokens within
one row. Each part is a corpus with the tokenizer and the validation and test splits of the whole.

Only the task's training texts are used. A corpus chosen by the test texts, on which the gap is
measured, would leak them.

Parts of one size may differ in more than overlap: rows that share many pieces with a task share its
subject, and may be easier or shorter. The manifest has the rows, tokens and mean score of each part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from rich import table as rich_table

from minilm_jax.core import progress, recipe
from minilm_jax.core.config import FinetuneConfig, SubsetConfig
from minilm_jax.core.corpus_config import PAD_ID, SPECIAL_TOKENS
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import subset
from minilm_jax.data.corpus import (
  TRAIN_SPLIT,
  CorpusFiles,
  check_subset,
  count_row_tokens,
  order_rows,
  read_manifest,
)
from minilm_jax.evaluation import overlap
from minilm_jax.evaluation.overlap import Measure
from minilm_jax.tasks.examples import complete_task, read_examples

SELECTIONS = ('overlap', 'likelihood', 'random')
_ROWS_PER_BLOCK = 1 << 14


def write_overlap_subsets(
  folder: epath.PathLike,
  config: FinetuneConfig,
  workdir: epath.PathLike,
  by: str = 'overlap',
  num_parts: int = 3,
  tokens: int = 0,
  shuffle_seed: int = 0,
) -> list[dict[str, Any]]:
  """Writes `part-1` (lowest scores) to `part-N` (highest) into `workdir`, each a corpus.

  The same arguments give the same bytes on any machine; an existing part is left as it is.

  Args:
    folder: the whole corpus.
    config: the recipe of the task; its training examples, as drawn for fine-tuning, are used.
    workdir: of all parts.
    by: one of `SELECTIONS`.
    num_parts: at least 2.
    tokens: of each part; 0: as many as all can have.
    shuffle_seed: of the fixed random order.

  Returns:
    For each part its folder, rows, tokens, scores and overlap.

  Raises:
    InputError: an unknown selection, fewer than 2 parts, more tokens than a part can have, a task
      without text, or a corpus that cannot be read.
  """
  _check_selection(by, num_parts)
  manifest = read_manifest(folder)
  check_subset(SubsetConfig(0, tokens, shuffle_seed), manifest, folder)
  task = complete_task(config.task)
  examples, source = (
    read_examples(task, config.task, 'train'),
    f'the train split of {task.name}',
  )
  files, tokenizer = (
    CorpusFiles(folder, TRAIN_SPLIT),
    overlap.open_tokenizer(folder, manifest),
  )
  texts, _ = overlap.read_texts(examples, tokenizer, source)
  piece_counts, _ = overlap.count_corpus(files, tokenizer, with_words=False)
  scores = score_rows(files, token_weights(by, texts.totals(), piece_counts))
  lengths = count_row_tokens(files)
  settings = {
    'kind': 'subset',
    'corpus': manifest['hash'],
    'task': recipe.as_dict(config.task),
    'by': by,
    'parts': num_parts,
    'tokens': tokens,
    'order': shuffle_seed,
  }
  parts = []
  for number, rows in enumerate(cut_by_tokens(scores, lengths, num_parts, tokens, shuffle_seed), 1):
    progress.log(f'part {number} of {num_parts}: {len(rows):,} rows')
    counts = overlap.count_corpus(files, tokenizer, rows)
    description = {
      'by': by,
      'part': number,
      'parts': num_parts,
      'order': shuffle_seed,
      'task': task.name,
      'split': 'train',
      'examples': len(examples.labels),
      **_describe_scores(scores[rows]),
      **_describe_overlap(overlap.compute_measures(examples, tokenizer, *counts, source)),
    }
    target = epath.Path(workdir) / f'part-{number}'
    path = subset.write_subset(folder, rows, target, settings | {'part': number}, description)
    size = {'rows': len(rows), 'tokens': int(lengths[rows].sum())}
    parts.append({'folder': str(path), **size, **description})
  return parts


def _check_selection(by: str, num_parts: int) -> None:
  if by not in SELECTIONS:
    raise InputError(
      f'--select_by={by}',
      'no such choice',
      f'{suggest_name(by, SELECTIONS)} (choices: {", ".join(SELECTIONS)})',
    )
  if num_parts < 2:
    raise InputError(
      f'--num_parts={num_parts}',
      'nothing to compare',
      'give at least 2; subset.rows is a part by chance',
    )


def _describe_scores(scores: Float[np.ndarray, 'n']) -> dict[str, float]:
  return {
    'score': float(np.mean(scores)),
    'lowest': float(scores.min()),
    'highest': float(scores.max()),
  }


def _describe_overlap(measures: Sequence[Measure]) -> dict[str, Any]:
  headline = overlap.headline_measure(measures)
  return {
    'overlap': {name: getattr(headline, name) for name in ('value', 'low', 'high')},
    'measures': [
      {name: getattr(measure, name) for name in ('unit', 'name', 'least', 'value')}
      for measure in measures
    ],
  }


def token_weights(
  by: str, task_counts: Int[np.ndarray, 'V'], corpus_counts: Int[np.ndarray, 'V']
) -> Float[np.ndarray, 'V']:
  """Returns the weight of each piece in the score of a row; 0 for special pieces and `<unk>`.

  Args:
    by: one of `SELECTIONS`.
    task_counts, corpus_counts: of each piece in the task's texts and in the corpus.
  """
  weights = np.zeros(len(task_counts))
  if by == 'overlap':
    weights = (task_counts > 0).astype(float)
  elif by == 'likelihood':
    weights = _log_shares(task_counts) - _log_shares(corpus_counts)
  weights[: len(SPECIAL_TOKENS)] = 0
  return weights


def _log_shares(counts: Int[np.ndarray, 'V']) -> Float[np.ndarray, 'V']:
  return np.log((counts + 1) / (counts.sum() + len(counts)))


def score_rows(files: CorpusFiles, weights: Float[np.ndarray, 'V']) -> Float[np.ndarray, 'N']:
  """Returns the mean weight of the ordinary pieces of each row; 0 for a row without any."""
  scores = []
  for shard in files.shards:
    for start in range(0, len(shard), _ROWS_PER_BLOCK):
      tokens = shard[start : start + _ROWS_PER_BLOCK]
      ordinary = (tokens != PAD_ID).sum(1) - 2  # without <s> and </s>
      scores.append(weights[tokens].sum(1) / np.maximum(ordinary, 1))
  return np.concatenate(scores)


def cut_by_tokens(
  scores: Float[np.ndarray, 'N'],
  lengths: Int[np.ndarray, 'N'],
  num_parts: int,
  tokens: int,
  shuffle_seed: int,
) -> list[Int[np.ndarray, 'n']]:
  """Returns the rows of each part, ascending: from lowest to highest scores, of equal tokens.

  Args:
    scores, lengths: of each row; the fixed random order decides between equal scores.
    num_parts: the number of parts.
    tokens: of each part, 0 for as many as the smallest has.
    shuffle_seed: of the fixed random order.

  Raises:
    InputError: a part has fewer tokens than requested, or no row.
  """
  place = np.argsort(order_rows(len(scores), shuffle_seed))
  ranked = np.lexsort((place, scores))
  ends = np.cumsum(lengths[ranked])
  bounds = np.searchsorted(ends, np.linspace(0, ends[-1], num_parts + 1), 'right')
  slices = [ranked[first:last] for first, last in zip(bounds, bounds[1:])]
  smallest = min(int(lengths[rows].sum()) for rows in slices)
  if tokens > smallest or not all(map(len, slices)):
    raise InputError(
      f'{num_parts} parts of {tokens:,} tokens' if tokens else f'{num_parts} parts of equal tokens',
      f'{len(scores):,} rows of {int(ends[-1]):,} tokens, of which the smallest part has {smallest:,}',
      'give fewer parts or tokens, or a corpus of more text',
    )
  parts = []
  for rows in slices:
    rows = rows[np.argsort(place[rows])]
    count = np.searchsorted(np.cumsum(lengths[rows]), tokens or smallest, 'right')
    parts.append(np.sort(rows[:count]))
  if not all(map(len, parts)):
    raise InputError(
      f'{num_parts} parts of {tokens or smallest:,} tokens',
      'a row has more than that',
      'give more tokens',
    )
  return parts


def subset_tables(parts: list[dict[str, Any]]) -> list[rich_table.Table]:
  """Returns a table with one row per part."""
  first = parts[0]
  table = rich_table.Table(
    'part',
    title=f'parts by {first["by"]} with {first["examples"]:,} training examples of {first["task"]}',
    title_justify='left',
  )
  headings = 'rows', 'tokens', 'mean score', 'scores', 'token overlap of words (%)', '95% interval'
  for heading in headings:
    table.add_column(heading, justify='right')
  for part in parts:
    value, low, high = (100 * part['overlap'][name] for name in ('value', 'low', 'high'))
    table.add_row(
      part['folder'],
      f'{part["rows"]:,}',
      f'{part["tokens"]:,}',
      f'{part["score"]:.3f}',
      f'{part["lowest"]:.3f} to {part["highest"]:.3f}',
      f'{value:.2f}',
      f'{low:.2f} to {high:.2f}',
    )
  return [table]
