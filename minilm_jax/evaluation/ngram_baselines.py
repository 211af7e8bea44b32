"""What counts alone reach: the loss of predictors that look a place or two to each side, where
evaluation looks.

They are asked for exactly the hidden tokens that the evaluation of a recipe asks a model for, with
the rest of the row as the model sees it, and know the training split. A model that does no better
has learned no more: this gives the plateau of `analysis/frontier.py` a name. Each is made of counts
by absolute discounting (`data/ngrams.py`):

    unigram     p(t), over what can be predicted: no <s>, </s>, <pad> or <mask>
    left        p(t | left), backing off to p(t); so `right`
    mixture     (p(t | left) + p(t | right)) / 2; on the first paper's corpus no other weights are better
    product     p(t | left) p(t | right) / p(t), normalised: right where the one side tells nothing about the other that
                the token does not, as in a Markov chain; what logits that are sums of a part for each side can express
    both        p(t | left, right), backing off to `product`
    trigram     p(t | the two to the left), backing off to `left`

A neighbour that is hidden too was never counted beside anything, so that each falls back to what it
still sees; the trigram, where only the nearer one is hidden, to p(t | the one before that).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Integer
from rich import box
from rich import table as rich_table

from minilm_jax.core import files, lock, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, ngrams, subset, tokenizer
from minilm_jax.training import masking, pretrain, train_step

BASELINE_KIND = 'baselines'
CONTEXTS = {
  'unigram': 'nothing',
  'left': 'one to the left',
  'right': 'one to the right',
  'mixture': 'both sides, their mean',
  'product': 'both sides, their product',
  'both': 'both sides, and counts of both at once',
  'trigram': 'two to the left',
}
_SPLITS = ('validation', 'test')
# rows that are counted at once, and whose tokens are hidden at once
_MAX_ROWS, _MASK_RATE = 1 << 14, 64
CountNgrams = Callable[[Sequence[int]], ngrams.NgramCounts]


def measure_baselines(config: RunConfig, workdir: epath.PathLike) -> dict[str, Any]:
  """Counts the training split of a recipe and scores the hidden tokens of its evaluation, in a run
  directory.

  Args:
    config: whose corpus, a folder, `subset` and `eval.rows` are used.
    workdir: for config.json and result.json; what stands there is not counted again.

  Returns:
    `rows`, one a predictor and split: predictor, sees, split, loss (nats a hidden token),
    perplexity, padded_loss (as the evaluation of a model has it), rows and masked (hidden tokens);
    then `train` (rows and tokens counted), the corpus, its folder, and seconds.

  Raises:
    Held: another process is at work in the work directory.
    InputError: no corpus of a split to judge on, or a work directory of something else.
  """
  folder = epath.Path(config.corpus)
  described = pretrain.validate_corpus(config, folder)
  splits = [split for split in _SPLITS if described['splits'][split]['rows']]
  if not splits:
    raise InputError(
      f'baselines on {folder}',
      'neither a validation nor a test split',
      'build the corpus with splits.validation above 0',
    )
  with lock.hold_lock(workdir):
    workdir = run_dir.open_run(
      workdir,
      {
        'kind': BASELINE_KIND,
        'corpus': described['hash'],
        'rows': config.eval.rows,
        'subset': recipe.as_dict(config.subset),
      },
    )
    if (workdir / run_dir.RESULT).exists():
      progress.log(f'nothing to do: {workdir} has the baselines of this corpus')
    else:
      files.write_json(
        workdir / run_dir.RESULT,
        {
          **_measured(config, folder, splits),
          'train': subset.subset_size(config.subset, folder, described),
          'corpus': described['hash'],
          'corpus_folder': str(folder),
        },
      )
  return files.read_json(workdir / run_dir.RESULT, f'the baselines in {workdir}')


def _measured(config: RunConfig, folder: epath.Path, splits: Sequence[str]) -> dict[str, Any]:
  started, files = time.monotonic(), corpus.CorpusFiles(folder, subset.TRAIN_SPLIT)
  chosen, vocabulary = subset.select_rows(config.subset, files), files.manifest['vocabulary']
  numbers = np.arange(files.ends[-1]) if chosen is None else chosen
  batches = {
    split: hide_tokens(corpus.load_split(folder, split, config.eval.rows)) for split in splits
  }
  seen, targets = (
    np.concatenate(parts)
    for parts in zip(*(masked_places(one) for one in batches.values()), strict=True)
  )
  with progress.track_progress('counting the corpus', 0, 'tables') as tick:
    done = 0

    def count(offsets: Sequence[int]) -> ngrams.NgramCounts:
      nonlocal done
      tick(done := done + 1)
      return ngrams.count_ngrams(
        (files[numbers[at : at + _MAX_ROWS]] for at in range(0, len(numbers), _MAX_ROWS)),
        offsets,
        vocabulary,
      )

    found = ngram_probabilities(count, seen, targets, vocabulary)
  rows, begin = [], 0
  for split, batch in batches.items():
    masked = int(batch.weights.sum())
    for name, values in found.items():
      sums = {
        'loss': -np.log(values[begin : begin + masked]).sum(),
        'masked': masked,
        'padding': (~batch.mask).sum(),
      }
      rows.append(
        {
          'predictor': name,
          'sees': CONTEXTS[name],
          'split': split,
          **train_step.mean_metrics(sums),
          'rows': len(batch.tokens),
          'masked': masked,
        }
      )
    begin += masked
  return {'rows': rows, 'seconds': round(time.monotonic() - started, 3)}


def hide_tokens(corpus: corpus.Corpus) -> masking.MaskedBatch:
  """Rows of a split as evaluation hides them, on the host."""
  found = []
  for begin in range(0, corpus.rows, _MASK_RATE):
    # filled up: all have one shape
    row = np.resize(np.arange(begin, min(begin + _MASK_RATE, corpus.rows)), _MASK_RATE)
    batch = _hide_rows(corpus.tokens[row], row, corpus.vocab_size)
    found.append(jax.tree.map(lambda x, left=corpus.rows - begin: np.asarray(x)[:left], batch))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


_hide_rows = jax.jit(masking.mask_eval_batch, static_argnums=2)


def masked_places(
  batch: masking.MaskedBatch,
) -> tuple[Integer[np.ndarray, 'N 3'], Integer[np.ndarray, 'N']]:
  """Of each hidden token what stands two to the left, one to the left and one to the right, and the
  token itself.
  """
  row, column = np.nonzero(batch.weights)
  place = row, batch.positions[row, column]
  around = [ngrams.context_keys(batch.tokens, offset)[place] for offset in (-2, -1, 1)]
  return np.stack(around, axis=1), batch.targets[row, column]


def ngram_probabilities(
  count: CountNgrams,
  seen: Integer[np.ndarray, 'N 3'],
  targets: Integer[np.ndarray, 'N'],
  vocabulary: int,
) -> dict[str, Float[np.ndarray, 'N']]:
  """The probability that each predictor gives to each target.

  Args:
    count: gives what was counted by the tokens at some offsets.
    seen: what stands two to the left, one to the left and one to the right of each target.
    targets: ids; none of `ngrams.NEVER`.
    vocabulary: V.
  """

  def backed(
    counts: ngrams.NgramCounts, columns: Iterable[int], lower: Any
  ) -> Float[np.ndarray, 'N']:
    context = ngrams.pack_keys(seen[:, list(columns)], vocabulary)
    return counts.share(context, targets) + counts.rest(context) * lower

  everything = np.arange(vocabulary)
  nothing, alone = np.zeros(vocabulary, np.uint64), count(())
  frequencies = alone.share(nothing, everything) + alone.rest(nothing) / (
    vocabulary - len(ngrams.UNSEEN_LOG_PROBABILITY)
  )
  unigram = frequencies[targets]
  lefts, rights = count((-1,)), count((1,))
  left, right = backed(lefts, [1], unigram), backed(rights, [2], unigram)
  here, there = (ngrams.pack_keys(seen[:, [column]], vocabulary) for column in (1, 2))
  rest, other = lefts.rest(here), rights.rest(there)
  scale = (
    ngrams.measure_agreement(lefts, rights, here, there, frequencies) + rest + other - rest * other
  )
  product = left * right / unigram / scale
  nearest = backed(
    lefts,
    [1],
    np.where(seen[:, 1] == tokenizer.MASK_ID, backed(count((-2,)), [0], unigram), unigram),
  )
  return {
    'unigram': unigram,
    'left': left,
    'right': right,
    'mixture': (left + right) / 2,
    'product': product,
    'both': backed(count((-1, 1)), [1, 2], product),
    'trigram': backed(count((-2, -1)), [0, 1], nearest),
  }


def baseline_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader: a line a predictor."""
  splits = list(dict.fromkeys(row['split'] for row in found['rows']))
  title = f'Counts of {found["train"]["tokens"]:,} tokens: nats a hidden token'
  table = rich_table.Table(
    'predictor',
    'sees',
    title=title,
    title_justify='left',
    caption_justify='left',
    box=box.SIMPLE_HEAD,
    pad_edge=False,
  )
  for split in splits:
    table.add_column(split, justify='right')
    table.add_column('with pads', justify='right')
  for name in dict.fromkeys(row['predictor'] for row in found['rows']):
    own = [row for row in found['rows'] if row['predictor'] == name]
    numbers = (f'{row[field]:.4f}' for row in own for field in ('loss', 'padded_loss'))
    table.add_row(name, own[0]['sees'], *numbers)
  judged = ', '.join(
    f'{row["masked"]:,} of {split}'
    for split in splits
    for row in found['rows']
    if row['split'] == split and row['predictor'] == 'unigram'
  )
  table.caption = (
    f'Hidden tokens: {judged}. With pads: these counted at loss 0, as in the padded_loss of a run. '
    f'{found["seconds"]:.1f} seconds.'
  )
  return [table]
