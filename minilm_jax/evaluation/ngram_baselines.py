"""Computes n-gram baselines: losses of counts of one or two neighbours on the evaluation's tokens.

Predictors count the training split. They are scored on the masked tokens of a recipe's evaluation,
with the same masked rows as a model. A model with a higher loss has not learned to use these
neighbours. All predictors use absolute discounting (`data/ngrams.py`):

    unigram     p(t), over all tokens except <s>, </s>, <pad> and <mask>
    left        p(t | left), with back-off to p(t); `right` likewise
    mixture     (p(t | left) + p(t | right)) / 2; on paper 1's corpus no other weights are better
    product     p(t | left) p(t | right) / p(t), normalised: exact for a Markov chain, whose two sides
                are independent given the token
    both        p(t | left, right), with back-off to `product`
    trigram     p(t | two tokens to the left), with back-off to `left`

Counts never include masked neighbours, so predictors back off to the visible neighbours. If only
the left neighbour is masked, the trigram backs off to p(t | second token to the left).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Integer
from rich import table as rich_table

from minilm_jax.core import progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.corpus_config import MASK_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data.corpus import (
  TRAIN_SPLIT,
  Corpus,
  CorpusFiles,
  load_split,
  measure_subset,
  select_rows,
)
from minilm_jax.evaluation import evaluate, ngrams
from minilm_jax.training import masking, run_setup, train_step

BASELINE_KIND = 'baselines'
CONTEXTS = {
  'unigram': 'no context',
  'left': 'left neighbour',
  'right': 'right neighbour',
  'mixture': 'left and right, mean',
  'product': 'left and right, product',
  'both': 'left and right, joint counts',
  'trigram': 'two left neighbours',
}
_SPLITS = ('validation', 'test')
_ROWS_PER_MASKING = 64
CountNgrams = Callable[[Sequence[int]], ngrams.NgramCounts]


def measure_baselines(config: RunConfig, workdir: epath.PathLike) -> dict[str, Any]:
  """Counts the training split of a recipe and scores the masked tokens of its evaluation.

  Args:
    config: Recipe with `corpus`, a folder, `subset` and `eval.rows`.
    workdir: Directory for config.json and result.json; an existing result is returned.

  Returns:
    A dict with `rows`, `train` (counted rows and tokens), corpus, corpus_folder and seconds. Each
    row is of a predictor and split: predictor, sees, split, loss (nats per masked token),
    perplexity, padded_loss (as in the evaluation of a model), rows and masked (tokens).

  Raises:
    LockedError: Another process uses the work directory.
    InputError: The corpus has no evaluation split, or the work directory has another run.
  """
  folder = epath.Path(config.corpus)
  manifest = run_setup.validate_corpus(config, folder)
  splits = [split for split in _SPLITS if manifest['splits'][split]['rows']]
  if not splits:
    raise InputError(
      f'baselines on {folder}',
      'neither a validation nor a test split',
      'build the corpus with splits.validation above 0',
    )
  identity = {
    'kind': BASELINE_KIND,
    'corpus': manifest['hash'],
    'rows': config.eval.rows,
    'subset': recipe.as_dict(config.subset),
  }

  def measure() -> dict[str, Any]:
    return {
      **_measure(config, folder, splits),
      'train': measure_subset(config.subset, folder, manifest),
      'corpus': manifest['hash'],
      'corpus_folder': str(folder),
    }

  return run_dir.measure_once(workdir, identity, measure, 'baselines of this corpus')


def _measure(config: RunConfig, folder: epath.Path, splits: Sequence[str]) -> dict[str, Any]:
  started = time.monotonic()
  batches = {split: mask_split(load_split(folder, split, config.eval.rows)) for split in splits}
  contexts, targets = (
    np.concatenate(parts)
    for parts in zip(*(collect_contexts(batch) for batch in batches.values()), strict=True)
  )
  train_files = CorpusFiles(folder, TRAIN_SPLIT)
  chosen = select_rows(config.subset, train_files)
  vocabulary = train_files.manifest['vocabulary']
  with progress.track_progress('counting the corpus', 0, 'tables') as update:
    num_tables = 0

    def count(offsets: Sequence[int]) -> ngrams.NgramCounts:
      nonlocal num_tables
      num_tables += 1
      update(num_tables)
      return ngrams.count_ngrams(train_files.read_blocks(chosen), offsets, vocabulary)

    probabilities = compute_probabilities(count, contexts, targets, vocabulary)
  rows, begin = [], 0
  for split, batch in batches.items():
    masked = int(batch.weights.sum())
    for predictor, values in probabilities.items():
      sums = {
        'loss': -np.log(values[begin : begin + masked]).sum(),
        'masked': masked,
        'padding': (~batch.mask).sum(),
      }
      rows.append(
        {
          'predictor': predictor,
          'sees': CONTEXTS[predictor],
          'split': split,
          **train_step.mean_metrics(sums),
          'rows': len(batch.tokens),
          'masked': masked,
        }
      )
    begin += masked
  return {'rows': rows, 'seconds': round(time.monotonic() - started, 3)}


_mask_rows = jax.jit(masking.mask_eval_batch, static_argnums=2)


def mask_split(corpus: Corpus) -> masking.MaskedBatch:
  """Returns the rows of a split with the masks of an evaluation, on the host."""
  batches = []
  for begin in range(0, corpus.rows, _ROWS_PER_MASKING):
    end = min(begin + _ROWS_PER_MASKING, corpus.rows)
    rows = np.resize(np.arange(begin, end), _ROWS_PER_MASKING)  # batches have equal shapes
    batch = _mask_rows(corpus.tokens[rows], rows, corpus.vocab_size)
    batches.append(jax.tree.map(lambda x, size=end - begin: np.asarray(x)[:size], batch))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def collect_contexts(
  batch: masking.MaskedBatch,
) -> tuple[Integer[np.ndarray, 'N 3'], Integer[np.ndarray, 'N']]:
  """Returns contexts and targets of all masked tokens.

  Contexts are the second and first token to the left and the first token to the right.
  """
  row, column = np.nonzero(batch.weights)
  tokens, place = np.asarray(batch.tokens), (row, np.asarray(batch.positions)[row, column])
  neighbours = [ngrams.shift_tokens(tokens, offset)[place] for offset in (-2, -1, 1)]
  return np.stack(neighbours, axis=1), np.asarray(batch.targets)[row, column]


def compute_probabilities(
  count: CountNgrams,
  contexts: Integer[np.ndarray, 'N 3'],
  targets: Integer[np.ndarray, 'N'],
  vocabulary: int,
) -> dict[str, Float[np.ndarray, 'N']]:
  """Returns the probability of each target under each predictor.

  Args:
    count: Function that returns counts by the tokens at given offsets.
    contexts: Contexts of the targets, as from `collect_contexts`.
    targets: Ids without `ngrams.UNPREDICTED_IDS`.
  """

  def back_off(
    counts: ngrams.NgramCounts, columns: Iterable[int], lower: Any
  ) -> Float[np.ndarray, 'N']:
    keys = ngrams.pack_keys(contexts[:, list(columns)], vocabulary)
    return counts.find_shares(keys, targets) + counts.find_backoffs(keys) * lower

  num_predictable = vocabulary - len(ngrams.UNPREDICTED_IDS)
  empty, unigrams = np.zeros(vocabulary, np.uint64), count(())
  frequencies = unigrams.find_shares(empty, np.arange(vocabulary))
  frequencies = frequencies + unigrams.find_backoffs(empty) / num_predictable
  unigram = frequencies[targets]
  lefts, rights = count((-1,)), count((1,))
  left, right = back_off(lefts, [1], unigram), back_off(rights, [2], unigram)
  left_keys, right_keys = (ngrams.pack_keys(contexts[:, [i]], vocabulary) for i in (1, 2))
  left_backoff, right_backoff = lefts.find_backoffs(left_keys), rights.find_backoffs(right_keys)
  agreement = ngrams.measure_agreement(lefts, rights, left_keys, right_keys, frequencies)
  normalizer = agreement + left_backoff + right_backoff - left_backoff * right_backoff
  product = left * right / unigram / normalizer
  # A masked left neighbour backs off to the token before the mask.
  skip_unigram = np.where(contexts[:, 1] == MASK_ID, back_off(count((-2,)), [0], unigram), unigram)
  nearest = back_off(lefts, [1], skip_unigram)
  return {
    'unigram': unigram,
    'left': left,
    'right': right,
    'mixture': (left + right) / 2,
    'product': product,
    'both': back_off(count((-1, 1)), [1, 2], product),
    'trigram': back_off(count((-2, -1)), [0, 1], nearest),
  }


def make_baseline_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns a table with one row per predictor."""
  splits = list(dict.fromkeys(row['split'] for row in result['rows']))
  table = evaluate.make_table(
    f'Counts of {result["train"]["tokens"]:,} tokens: nats per masked token'
  )
  table.add_column('predictor')
  table.add_column('sees')
  for split in splits:
    table.add_column(split, justify='right')
    table.add_column('with pads', justify='right')
  for predictor in dict.fromkeys(row['predictor'] for row in result['rows']):
    rows = [row for row in result['rows'] if row['predictor'] == predictor]
    losses = (f'{row[field]:.4f}' for row in rows for field in ('loss', 'padded_loss'))
    table.add_row(predictor, rows[0]['sees'], *losses)
  masked = {row['split']: row['masked'] for row in result['rows']}
  table.caption = (
    f'Masked tokens: {", ".join(f"{masked[split]:,} of {split}" for split in splits)}. '
    'With pads: pads count with loss 0, as in the padded_loss of a run. '
    f'{result["seconds"]:.1f} seconds.'
  )
  return [table]
