"""Minimal pairs: does a model find the good sentence of a pair more probable than the bad one
(BLiMP and its like)?

An accuracy is the mean over paradigms, as in BLiMP, and a tie, two scores that are the same float32
number, counts one
half: a model that cannot tell has 0.5. Beside it stands what word frequency alone achieves, the sum
of log unigram probabilities of the tokens, under the same rule. How a sentence is scored is left to
`likelihood`, where pairs come from to `pair_sources`.
"""

import collections
import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, Float64
from rich import box, text
from rich import table as rich_table
from scipy import stats

from minilm_jax.core import files, lock, progress, run_dir, schema
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import corpus, documents, readers, tokenizer
from minilm_jax.data.corpus import read_manifest
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.evaluation import likelihood
from minilm_jax.evaluation.likelihood import (
  check_variant,
  count_calls,
  encode_sentences,
  pseudo_log_likelihoods,
)
from minilm_jax.tasks import metrics
from minilm_jax.training import pretrained

# Where minimal pairs come from: BLiMP as it is published, as TFDS has prepared it, or any table of
# that form.
ALL_PARADIGMS = 'all'  # no phenomenon may have this name: it is the mean over all
# a .json beside tables tells of them
_TABLES = tuple(form for form in readers.FORMATS if form not in ('txt', 'json'))
_SENTENCES = ('sentence_good', 'sentence_bad')
# the first column that is there
_PARADIGM, _PHENOMENON = ('paradigm', 'UID'), ('phenomenon', 'linguistics_term')


@dataclasses.dataclass(frozen=True)
class MinimalPair:
  """Two sentences that differ in one respect; of the first speakers say that it is good."""

  good: str
  bad: str
  paradigm: str
  phenomenon: str


def read_pairs(source: epath.PathLike) -> list[MinimalPair]:
  """The pairs of a .jsonl, .csv, .tsv or .parquet, of a folder of these, or of the `blimp/*` in a
  data_dir of TFDS.

  A paradigm without a name has that of its file, a phenomenon that of its paradigm.

  Raises:
    InputError: nothing is there, a file is damaged or empty, a column is missing, or a sentence is
      no text.
  """
  return [pair for table, rows in _tables(source)[1] for pair in _pairs(table, rows)]


def name_paradigm(source: epath.PathLike) -> str:
  """What a set is called: `blimp` in a data_dir of TFDS, else as its file or folder, without what
  tells the form.

  Raises:
    InputError: nothing is there.
  """
  return _tables(source)[0]


def _tables(source: epath.PathLike) -> tuple[str, list[tuple[str, Iterator[dict[str, Any]]]]]:
  """The name of a set, and its tables by the names of their files."""
  path = epath.Path(source).expanduser()
  asked = f'minimal pairs in {source}'
  if not str(source) or not path.exists():
    raise InputError(
      asked,
      'no such file or folder',
      f'give a table with {" and ".join(_SENTENCES)}, a folder of '
      'tables, or a data_dir where TFDS prepared blimp',
    )
  if not path.is_dir():
    return _stem(path), [(_stem(path), documents.read_table_rows(str(path), 'strict'))]
  tables = sorted(inner for inner in path.iterdir() if readers.detect_format(inner) in _TABLES)
  if tables:
    return path.name or 'pairs', [
      (_stem(inner), documents.read_table_rows(str(inner), 'strict')) for inner in tables
    ]
  root = path.parent if path.name == 'blimp' else path
  found = sorted(
    {inner.parent.parent.name for inner in (root / 'blimp').glob('*/*/dataset_info.json')}
  )
  if not found:
    there = ', '.join(sorted(inner.name for inner in path.iterdir())[:10]) or 'nothing'
    raise InputError(
      asked,
      f'neither a table nor blimp as TFDS prepares it; there: {there}',
      f'tables are .{", .".join(_TABLES)}',
    )
  return 'blimp', [
    (one, documents.read_tfds_rows(f'blimp/{one}', 'train', str(root))) for one in found
  ]


def _stem(path: epath.Path) -> str:
  return path.name.partition('.')[0] or path.name


def _pairs(table: str, rows: Iterator[dict[str, Any]]) -> Iterator[MinimalPair]:
  """The pairs of one table."""
  number = 0
  for number, row in enumerate(rows, 1):
    where = f'row {number:,} of {table}'
    for column in _SENTENCES:
      if column not in row:
        raise InputError(
          f'the column {column!r}',
          f'{where} has {", ".join(map(str, row)) or "nothing"}',
          suggest_name(column, map(str, row)),
        )
      if (
        not isinstance(row[column], str)
        or not row[column].strip()
        or schema.NO_TEXT.search(row[column])
      ):
        raise InputError(
          f'a sentence in {column!r}',
          f'{row[column]!r} in {where}',
          'give text, or leave the row out',
        )
    paradigm = _named(row, _PARADIGM) or table
    phenomenon = _named(row, _PHENOMENON) or paradigm
    if found := schema.NO_TEXT.search(paradigm + phenomenon):
      raise InputError(
        f'a name in {where}', f'U+{ord(found[0]):04X}, which is no text', 'name it otherwise'
      )
    if phenomenon == ALL_PARADIGMS:
      raise InputError(
        f'a phenomenon {phenomenon!r}',
        f'{where} has it',
        'name it otherwise: it is the mean over all',
      )
    yield MinimalPair(row['sentence_good'], row['sentence_bad'], paradigm, phenomenon)
  if not number:
    raise InputError(
      f'minimal pairs in {table}', 'no row', f'give rows with {" and ".join(_SENTENCES)}'
    )


def _named(row: dict[str, Any], columns: tuple[str, ...]) -> str:
  return next(
    (str(row[column]) for column in columns if column in row and row[column] not in (None, '')), ''
  )


_NEVER_SCORED = (tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID, tokenizer.MASK_ID)
_PAIRS_PER_CALL = 1 << 16  # of a corpus, counted at once
PairScorer = Callable[[Sequence[Sequence[int]]], Float32[np.ndarray, 'N']]


def wilson_interval(share: float, n: float) -> tuple[float, float]:
  """Wilson's 95% interval of a share of `n` cases: inside 0 to 1, and of some width at both ends
  too.

  >>> [round(end, 3) for end in wilson_interval(0.5, 100)]
  [0.404, 0.596]
  """
  z = float(stats.norm.ppf((1 + metrics.CONFIDENCE) / 2))
  middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  low, high = ((middle + side) / (1 + z**2 / n) for side in (-half, half))
  # at 0 and 1 rounding would leave the share outside
  return min(share, max(0.0, low)), max(share, min(1.0, high))


def format_points(
  good: Float32[np.ndarray, 'N'], bad: Float32[np.ndarray, 'N']
) -> Float[np.ndarray, 'N']:
  """1 where the good sentence has the higher score, 1/2 where both have the same, else 0."""
  return np.where(good == bad, 0.5, (good > bad).astype(np.float64))


def summarize_pairs(
  pairs: Sequence[MinimalPair], won: Float[np.ndarray, 'N'], frequent: Float[np.ndarray, 'N'] | None
) -> dict[str, Any]:
  """Accuracies of each paradigm, each phenomenon and all: a mean over paradigms, as a share.

  The interval is Wilson's, for as many pairs as make a mean of shares that sure, P^2 / sum_p (1 /
  n_p) of P paradigms; it speaks of other pairs of the same paradigms, and is a little too wide
  where these differ.

  Args:
    pairs: what was compared.
    won: what each gains, by `points`.
    frequent: the same for word frequency, if that is known.

  Returns:
    'all', and under 'phenomena' and 'paradigms' one dict each: 'value', 'low', 'high', 'pairs',
    'paradigms', 'ties' (their share) and 'frequency' (accuracy, or None).
  """
  members: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
  for number, pair in enumerate(pairs):
    members[pair.phenomenon, pair.paradigm].append(number)

  def line(groups: Sequence[list[int]]) -> dict[str, Any]:
    picked = np.concatenate([np.asarray(group) for group in groups])
    value, by_chance = (
      None if gained is None else float(np.mean([gained[group].mean() for group in groups]))
      for gained in (won, frequent)
    )
    low, high = wilson_interval(value, len(groups) ** 2 / sum(1 / len(group) for group in groups))
    return {
      'value': value,
      'low': low,
      'high': high,
      'pairs': len(picked),
      'paradigms': len(groups),
      'ties': float(np.mean(won[picked] == 0.5)),
      'frequency': by_chance,
    }

  phenomena = dict.fromkeys(phenomenon for phenomenon, _ in members)
  return {
    ALL_PARADIGMS: line(list(members.values())),
    'phenomena': [
      {'phenomenon': name, **line([group for key, group in members.items() if key[0] == name])}
      for name in phenomena
    ],
    'paradigms': [
      {'paradigm': paradigm, 'phenomenon': phenomenon, **line([group])}
      for (phenomenon, paradigm), group in members.items()
    ],
  }


def compare_pairs(
  pairs: Sequence[MinimalPair],
  sentences: Sequence[Sequence[int]],
  score: PairScorer,
  unigrams: Float64[np.ndarray, 'V'] | None,
) -> dict[str, Any]:
  """Scores both halves of all pairs and sums up.

  Args:
    pairs: what to compare.
    sentences: ids of all good halves, then of all bad ones.
    score: a number for each sentence, higher where it is more probable.
    unigrams: log-probability of each piece alone; None leaves the baseline out.
  """
  count = len(pairs)
  scores = score(sentences)
  frequent = None
  if unigrams is not None:
    alone = np.array(
      [math.fsum(unigrams[ids].tolist()) for ids in map(list, sentences)], np.float32
    )
    frequent = format_points(alone[:count], alone[count:])
  tokens, unknown = likelihood.count_calls(sentences)
  same = sum(
    list(good) == list(bad) for good, bad in zip(sentences[:count], sentences[count:], strict=True)
  )
  return {
    **summarize_pairs(pairs, format_points(scores[:count], scores[count:]), frequent),
    'identical': same,
    'tokens': tokens,
    'unknown': unknown / tokens,
  }


def score_unigram(folder: epath.PathLike, size: int) -> Float64[np.ndarray, 'V']:
  """log((count + 1) / (total + pieces)) of each piece in the training split of a corpus; special
  ones do not count.

  Raises:
    InputError: the folder is no corpus, or a damaged one.
  """
  counts = np.zeros(size, np.int64)
  for shard in corpus.CorpusFiles(folder, 'train').shards:
    for first in range(0, len(shard), _PAIRS_PER_CALL):
      counts += np.bincount(shard[first : first + _PAIRS_PER_CALL].ravel(), minlength=size)
  counts[list(_NEVER_SCORED)] = 0
  return np.log((counts + 1) / (counts.sum() + size - len(_NEVER_SCORED)))


def evaluate_pairs(
  source: epath.PathLike, given: epath.PathLike, likelihood: str, corpus: str, workdir: str
) -> dict[str, Any]:
  """Scores minimal pairs by the latest checkpoint of a run.

  Args:
    source: the pre-training run.
    given: what `pair_sources.read` reads.
    likelihood: one of `likelihood.LIKELIHOODS`.
    corpus: where the run's corpus is, for word frequencies; '' is where it was, and if it is gone
      they are left out.
    workdir: where config.json, scores.jsonl and result.json go; '' is nowhere.

  Returns:
    What `compare` gives, with what was compared and how.

  Raises:
    Held: another process is at work in the work directory.
    InputError: pairs, run or corpus that cannot be used, or a sentence that is longer than the
      model reads.
  """
  check_variant(likelihood)
  pairs, task, source = read_pairs(given), name_paradigm(given), epath.Path(source)
  pretrained_run = pretrained.load(source)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  sentences = encode_sentences(
    [pair.good for pair in pairs] + [pair.bad for pair in pairs], tokenizer, config.model.max_length
  )
  unigrams, said = _baseline(source, corpus, tokenizer)
  step = pretrained_run.step
  # a finished one may be anyone's to read
  write = bool(workdir) and not (epath.Path(workdir) / run_dir.RESULT).exists()
  with lock.hold_lock(workdir) if write else contextlib.nullcontext():
    if workdir:
      folder = run_dir.open_run(
        workdir,
        {
          'kind': 'evaluate',
          'checkpoint': str(source),
          'checkpoint_step': step,
          'task': task,
          'pairs': _digest(pairs),
          'likelihood': likelihood,
          'corpus': corpus,
        },
      )
      if (folder / run_dir.RESULT).exists():
        lock.remove_stale_lock(folder)  # of one that was killed just after its result
        progress.log(f'nothing to do: {folder} has the scores of these pairs')
        return files.read_json(folder / run_dir.RESULT, f'the result of {folder}')
    started, starts = time.monotonic(), tokenizer.starts_word()
    with progress.track_progress(
      f'scoring {task}', count_calls(list(set(map(tuple, sentences))))[0], 'tokens'
    ) as tick:
      found = compare_pairs(
        pairs,
        sentences,
        lambda sentences: pseudo_log_likelihoods(model, sentences, starts, likelihood, tick),
        unigrams,
      )
    found = {
      'task': task,
      'likelihood': likelihood,
      'checkpoint': source.name,
      'checkpoint_step': step,
      'seed': config.seed,
      **found,
      'frequency_from': said,
      'seconds': round(time.monotonic() - started, 3),
    }
    if workdir:
      run_dir.write_lines(folder / run_dir.SCORES, score_lines(found))
      files.write_json(folder / run_dir.RESULT, found)
    return found


def _digest(pairs: Sequence[MinimalPair]) -> str:
  """What identifies a set, wherever it lies."""
  digest = hashlib.sha256()
  for pair in pairs:
    digest.update('\0'.join((pair.good, pair.bad, pair.paradigm, pair.phenomenon, '')).encode())
  return digest.hexdigest()


def _baseline(
  source: epath.Path, corpus: str, tokenizer: Tokenizer
) -> tuple[Float64[np.ndarray, 'V'] | None, str]:
  """Log-probabilities of pieces in the corpus of a run, if that is still there, and a word on it
  for the reader.
  """
  described = pretrained.corpus_hashes(source)
  if not corpus and not described['corpus_folder']:
    return (
      None,
      'left out, for the model was imported and has no corpus of its own: name one, --corpus=FOLDER',
    )
  folder = epath.Path(corpus or described['corpus_folder'])
  try:
    if read_manifest(folder)['tokenizer']['sha256'] != described['tokenizer']:
      raise InputError(
        f'word frequencies in {folder}',
        'the corpus was made with another tokenizer',
        f'give the corpus of {source}',
      )
    return score_unigram(folder, tokenizer.size), f'the training split of {folder}'
  except InputError as error:
    if corpus:
      raise
    return (
      None,
      f'left out, for {folder} cannot be used ({error.found}): say where the corpus is, --corpus=FOLDER',
    )


def score_lines(found: dict[str, Any]) -> list[dict[str, Any]]:
  """The lines of scores.jsonl: one a phenomenon, and one for the mean over all paradigms, the
  headline.
  """
  common = {name: found[name] for name in ('task', 'checkpoint', 'checkpoint_step', 'seed')}
  splits = {line['phenomenon']: line for line in found['phenomena']} | {
    ALL_PARADIGMS: found[ALL_PARADIGMS]
  }
  return [
    {
      **common,
      'metric': 'accuracy',
      'split': split,
      'value': line['value'],
      'low': line['low'],
      'high': line['high'],
      'headline': split == ALL_PARADIGMS,
      'examples': line['pairs'],
      'train_examples': 0,
      'held_out': 0,
      'pretrained': True,
      'filtered': False,
      'learning_rate': None,
      'member': 0,
      'epoch': None,
      'epoch_choice': 'last',
      'validation_score': None,
      'majority': 0.5,
      'frequency': line['frequency'],
      'ties': line['ties'],
      'constant_prediction': line['ties'] == 1,
      'truncated': 0,
    }
    for split, line in splits.items()
  ]


def pair_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader: a line a phenomenon, and what there is to say about the set."""
  table = rich_table.Table(
    title=text.Text(f'{found["task"]} by {found["checkpoint"]}, {found["likelihood"]}, x 100'),
    title_justify='left',
    caption_justify='left',
    box=box.SIMPLE_HEAD,
    pad_edge=False,
  )
  for heading in ('phenomenon', 'pairs', 'accuracy', '95%', 'ties', 'frequency'):
    table.add_column(
      heading,
      justify='left' if heading == 'phenomenon' else 'right',
      no_wrap=heading != 'phenomenon',
      overflow='fold',
    )
  lines = [(line['phenomenon'], line) for line in found['phenomena']] + [
    (ALL_PARADIGMS, found[ALL_PARADIGMS])
  ]
  for number, (name, line) in enumerate(lines, 1):
    value, low, high, ties = (
      f'{100 * line[field]:.1f}' for field in ('value', 'low', 'high', 'ties')
    )
    table.add_row(
      text.Text(name),
      f'{line["pairs"]:,}',
      value,
      f'{low}-{high}',
      ties,
      '-' if line['frequency'] is None else f'{100 * line["frequency"]:.1f}',
      end_section=number == len(lines) - 1,
    )
  table.caption = text.Text(
    f'{found["tokens"]:,} tokens, {100 * found["unknown"]:.2f}% of them <unk>; {found["identical"]:,} pairs whose '
    f'halves are the same tokens; word frequencies: {found["frequency_from"]}'
  )
  return [table]
