"""Divides a corpus into parts of equal size that overlap more or less with a task.

The command `minilm overlap-subsets` scores every training row by the mean weight of its pieces t:

    overlap      1 if t occurs in the task's training texts, else 0
    likelihood   ln p(t) - ln q(t), for smoothed shares p in the task's training texts and q in the corpus: the
                 difference of cross-entropies of Moore and Lewis (2010) for unigrams
    random       0: parts of the same size in a fixed random order, the control

Rows are sorted by score and divided at quantiles of the tokens. Each part keeps rows in a fixed
random order up to the tokens of the smallest part, so sizes differ by less than a row.
Each part is a corpus with the tokenizer and the validation and test splits of the full corpus.

Only training texts of the task are used. A selection by test texts would leak them.

Parts may differ in more than overlap: rows that share pieces with a task share its subject, and may
be easier or shorter. The manifest has the rows, tokens and mean score of each part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from rich import table as rich_table

from minilm_jax.core import files, lock, progress, recipe, run_dir
from minilm_jax.core.config import FinetuneConfig, SubsetConfig
from minilm_jax.core.corpus_config import PAD_ID, SPECIAL_TOKENS, SPLITS
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import build, packing
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
from minilm_jax.tasks.examples import complete_task, hash_examples, read_examples

SELECTIONS = ('overlap', 'likelihood', 'random')


def write_overlap_subsets(
  folder: epath.PathLike,
  config: FinetuneConfig,
  workdir: epath.PathLike,
  by: str = 'overlap',
  num_parts: int = 3,
  tokens: int = 0,
  shuffle_seed: int = 0,
) -> list[dict[str, Any]]:
  """Writes the corpora `part-1` (lowest scores) to `part-N` (highest scores) into `workdir`.

  Equal arguments give equal bytes on any machine, and existing parts are not written again.

  Args:
    folder: Full corpus.
    config: Recipe of the task, of which the training examples for fine-tuning are used.
    workdir: Directory of all parts.
    by: One of `SELECTIONS`.
    num_parts: Number of parts, at least 2.
    tokens: Number of tokens of each part; 0 is the size of the smallest part.
    shuffle_seed: Seed of the fixed random order.

  Returns:
    Folder, rows, tokens, scores and overlap of each part.

  Raises:
    InputError: The selection is unknown, the number of parts or tokens is impossible, the task has
      no text, the corpus is invalid, or a part in `workdir` is of other examples.
  """
  _check_selection(by, num_parts)
  manifest = read_manifest(folder)
  check_subset(SubsetConfig(0, tokens, shuffle_seed), manifest, folder)
  task = complete_task(config.task)
  examples, source = read_examples(task, config.task, 'train'), f'the train split of {task.name}'
  files, tokenizer = CorpusFiles(folder, TRAIN_SPLIT), overlap.open_tokenizer(folder, manifest)
  texts, _ = overlap.read_texts(examples, tokenizer, source)
  piece_counts, _ = overlap.count_corpus(files, tokenizer, with_words=False)
  scores = score_rows(files, compute_token_weights(by, texts.sum(0), piece_counts))
  lengths = count_row_tokens(files)
  settings = {
    'kind': 'subset',
    'corpus': manifest['hash'],
    'task': recipe.as_dict(config.task),
    'examples': hash_examples(examples),
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
      'score': float(scores[rows].mean()),
      'lowest': float(scores[rows].min()),
      'highest': float(scores[rows].max()),
      **_describe_overlap(overlap.compute_measures(examples, tokenizer, *counts, source)),
    }
    target = epath.Path(workdir) / f'part-{number}'
    path = write_subset(folder, rows, target, settings | {'part': number}, description)
    size = {'rows': len(rows), 'tokens': int(lengths[rows].sum())}
    parts.append({'folder': str(path), **size, **description})
  return parts


def _check_selection(by: str, num_parts: int) -> None:
  if by not in SELECTIONS:
    raise InputError(
      f'--select_by={by}',
      'no such selection',
      f'{suggest_name(by, SELECTIONS)} (selections: {", ".join(SELECTIONS)})',
    )
  if num_parts < 2:
    raise InputError(
      f'--num_parts={num_parts}',
      'fewer than 2 parts',
      'give at least 2 parts, or set subset.rows for a random subset',
    )


def _describe_overlap(measures: Sequence[Measure]) -> dict[str, Any]:
  headline = overlap.find_headline(measures)
  return {
    'overlap': {name: getattr(headline, name) for name in ('value', 'low', 'high')},
    'measures': [
      {name: fields[name] for name in ('unit', 'name', 'least', 'value')}
      for fields in (measure.to_dict() for measure in measures)
    ],
  }


def compute_token_weights(
  by: str, task_counts: Int[np.ndarray, 'V'], corpus_counts: Int[np.ndarray, 'V']
) -> Float[np.ndarray, 'V']:
  """Returns the weight of each piece in the score of a row; 0 for special tokens and `<unk>`."""
  weights = np.zeros(len(task_counts))
  if by == 'overlap':
    weights = (task_counts > 0).astype(float)
  elif by == 'likelihood':
    weights = _compute_log_shares(task_counts) - _compute_log_shares(corpus_counts)
  weights[: len(SPECIAL_TOKENS)] = 0
  return weights


def _compute_log_shares(counts: Int[np.ndarray, 'V']) -> Float[np.ndarray, 'V']:
  return np.log((counts + 1) / (counts.sum() + len(counts)))


def score_rows(files: CorpusFiles, weights: Float[np.ndarray, 'V']) -> Float[np.ndarray, 'N']:
  """Returns the mean weight of the ordinary pieces of each row; 0 for rows without such pieces."""
  scores = []
  for tokens in files.read_blocks():
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
  """Returns the ascending row numbers of each part, from lowest to highest scores.

  Args:
    scores: Score of each row; the fixed random order breaks ties.
    lengths: Number of tokens of each row.
    tokens: Number of tokens of each part; 0 is the size of the smallest part.

  Raises:
    InputError: A part has too few tokens or no row.
  """
  shuffled_index = np.argsort(order_rows(len(scores), shuffle_seed))
  ranked = np.lexsort((shuffled_index, scores))
  ends = np.cumsum(lengths[ranked])
  bounds = np.searchsorted(ends, np.linspace(0, ends[-1], num_parts + 1), 'right')
  slices = [ranked[first:last] for first, last in zip(bounds, bounds[1:])]
  smallest = min(int(lengths[rows].sum()) for rows in slices)
  if tokens > smallest or not all(map(len, slices)):
    raise InputError(
      f'{num_parts} parts of {tokens:,} tokens' if tokens else f'{num_parts} parts of equal tokens',
      f'{smallest:,} tokens in the smallest part of {len(scores):,} rows of {int(ends[-1]):,} tokens',
      'give fewer parts or tokens, or a corpus of more text',
    )
  parts = []
  for rows in slices:
    rows = rows[np.argsort(shuffled_index[rows])]
    count = np.searchsorted(np.cumsum(lengths[rows]), tokens or smallest, 'right')
    parts.append(np.sort(rows[:count]))
  if not all(map(len, parts)):
    raise InputError(
      f'{num_parts} parts of {tokens or smallest:,} tokens',
      'a row with more tokens',
      'give more tokens for each part',
    )
  return parts


def make_subset_tables(parts: list[dict[str, Any]]) -> list[rich_table.Table]:
  """Returns a table with a row for each part."""
  first = parts[0]
  table = rich_table.Table(
    'part',
    title=f'Parts by {first["by"]} with {first["examples"]:,} training examples of {first["task"]}',
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


def write_subset(
  folder: epath.PathLike,
  rows: Int[np.ndarray, 'n'],
  workdir: epath.PathLike,
  settings: dict[str, Any],
  description: Mapping[str, Any],
) -> epath.Path:
  """Writes a corpus of selected training rows; returns its folder.

  Args:
    folder: Original corpus.
    rows: Row numbers of its training split, in the order of the new corpus.
    workdir: Folder of the new corpus; a finished corpus is unchanged.
    settings: Rule of the selection, for config.json.
    description: Further fields of `subset` in the manifest.

  Raises:
    LockedError: Another process writes to the folder.
    InputError: No row is selected, the original corpus is damaged, or the folder has other content.
  """
  folder, manifest = epath.Path(folder), read_manifest(folder)
  if not len(rows):
    raise InputError(f'a subset of {folder}', 'no row', 'select at least one row')
  with lock.hold_lock(workdir):
    workdir = run_dir.open_run(workdir, settings)
    if (workdir / run_dir.MANIFEST).exists():
      progress.log(f'{workdir} has this subset: nothing to do')
      return workdir
    corpus_files, length = CorpusFiles(folder, TRAIN_SPLIT), manifest['length']
    shard_rows = packing.compute_shard_rows(length, np.dtype(manifest['dtype']))
    shards = (
      corpus_files[rows[start : start + shard_rows]] for start in range(0, len(rows), shard_rows)
    )
    splits = {TRAIN_SPLIT: packing.write_shards(shards, workdir, TRAIN_SPLIT)}
    for split in SPLITS[1:]:
      splits[split] = manifest['splits'][split]
      if splits[split]['rows']:
        CorpusFiles(folder, split)  # verifies checksums
      for shard in splits[split]['shards']:
        _copy_file(folder, shard['file'], workdir, f'a shard of {folder}')
    checksum = overlap.open_tokenizer(folder, manifest).sha256
    _copy_file(folder, manifest['tokenizer']['file'], workdir, f'the tokenizer of {folder}')
    origin = {'of': manifest['hash'], 'of_rows': manifest['splits'][TRAIN_SPLIT]['rows']}
    changes = {
      'splits': splits,
      'subset': {**origin, **description},
      'hash': build.hash_corpus(checksum, length, splits),
    }
    files.write_json(workdir / run_dir.MANIFEST, manifest | changes)
  return workdir


def _copy_file(folder: epath.Path, name: str, workdir: epath.Path, subject: str) -> None:
  data = files.read_bytes(files.resolve_inside(folder, name, subject), subject)
  files.write_bytes(files.resolve_inside(workdir, name, subject), data)
