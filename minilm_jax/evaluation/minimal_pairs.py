"""Scores minimal pairs: the share of pairs with a higher score of the acceptable sentence (BLiMP).

Accuracies are means over paradigms, as in BLiMP. Ties, two equal float32 scores, count one half, so
random scores have an accuracy of 0.5. The baseline `frequency` scores a sentence by the sum of its
log unigram probabilities. Sources of pairs are the published files of BLiMP, a data_dir of TFDS, and
any table with the same columns.
"""

import collections
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, Float64
from rich import table as rich_table
from rich import text
from scipy import stats

from minilm_jax.core import paths, progress, run_dir
from minilm_jax.core.errors import NO_TEXT, InputError, suggest_name
from minilm_jax.data import corpus, documents, readers, tfds
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.evaluation import evaluate, likelihood
from minilm_jax.evaluation.ngrams import UNPREDICTED_IDS
from minilm_jax.tasks import metrics
from minilm_jax.training import population, pretrained

_ALL_PARADIGMS = 'all'  # the mean over all paradigms; not allowed as the name of a phenomenon
_SENTENCE_COLUMNS = ('sentence_good', 'sentence_bad')
# The first column that a row has is used.
_PARADIGM_COLUMNS = ('paradigm', 'UID')
_PHENOMENON_COLUMNS = ('phenomenon', 'linguistics_term')
PairScorer = Callable[[Sequence[Sequence[int]]], Float32[np.ndarray, 'N']]


@dataclasses.dataclass(frozen=True)
class MinimalPair:
  """Stores an acceptable and an unacceptable sentence that differ minimally."""

  good: str
  bad: str
  paradigm: str
  phenomenon: str


def read_pairs(source: epath.PathLike) -> tuple[str, list[MinimalPair]]:
  """Returns the name and the pairs of a set: a table, a folder of tables, or a data_dir of TFDS.

  The name is 'blimp' for a data_dir of TFDS with `blimp/*`, else that of the file or folder without
  suffixes. Paradigms without a name have the name of their file, and phenomena that of their
  paradigm.

  Raises:
    InputError: The source does not exist, a file is damaged or empty, a column is missing, or a
      sentence is not text.
  """
  name, tables = _open_tables(source)
  return name, [pair for table, rows in tables for pair in _parse_pairs(table, rows)]


def _open_tables(source: epath.PathLike) -> tuple[str, list[tuple[str, Iterator[dict[str, Any]]]]]:
  """Returns the name of a set, and the name and rows of each of its tables."""
  path = epath.Path(source)
  subject = f'minimal pairs in {source}'
  if not str(source) or not path.exists():
    raise InputError(
      subject,
      'no such file or folder',
      f'give a table with {" and ".join(_SENTENCE_COLUMNS)}, a folder of tables, or a data_dir of '
      'TFDS with blimp',
    )
  name, tables, names = readers.name_table(path), [path], []
  if path.is_dir():
    # Hidden files are not tables: macOS adds `._a.jsonl` to `a.jsonl`.
    contents = sorted(file for file in path.iterdir() if not file.name.startswith('.'))
    tables = [file for file in contents if readers.is_table(file)]
    # Beside other tables, .json files have information about them.
    tables = [file for file in tables if readers.detect_format(file) != 'json'] or tables
    name, names = path.name or 'pairs', [file.name for file in contents]
  if tables:
    return name, [
      (readers.name_table(file), documents.read_table_rows(str(file))) for file in tables
    ]
  root = path.parent if path.name == 'blimp' else path
  infos = paths.list_matches(root / 'blimp', '*/*/dataset_info.json')
  paradigms = sorted({info.parent.parent.name for info in infos})
  if not paradigms:
    raise InputError(
      subject,
      'neither a table nor blimp as TFDS prepares it; the files are '
      f'{", ".join(names[:10]) or "(none)"}',
      f'give tables in the formats .{", .".join(readers.TABLE_FORMATS)}',
    )
  return 'blimp', [
    (paradigm, tfds.read_examples(tfds.find_dataset(f'blimp/{paradigm}', str(root)), 'train'))
    for paradigm in paradigms
  ]


def _parse_pairs(table: str, rows: Iterator[dict[str, Any]]) -> Iterator[MinimalPair]:
  number = 0
  for number, row in enumerate(rows, 1):
    where = f'row {number:,} of {table}'
    good, bad = (_parse_sentence(row, column, where) for column in _SENTENCE_COLUMNS)
    named_paradigm = _find_value(row, _PARADIGM_COLUMNS)
    named_phenomenon = _find_value(row, _PHENOMENON_COLUMNS) or named_paradigm
    paradigm, phenomenon = named_paradigm or table, named_phenomenon or table
    if match := NO_TEXT.search(paradigm + phenomenon):
      raise InputError(
        f'a name in {where}',
        f'the character U+{ord(match[0]):04X}, which is not text',
        'change the name',
      )
    if phenomenon == _ALL_PARADIGMS:
      raise InputError(
        where,
        f'the phenomenon {phenomenon!r}, a name reserved for the mean over paradigms',
        'change the name of the phenomenon'
        if named_phenomenon
        else f'rename the file, or add the column {_PHENOMENON_COLUMNS[0]!r}',
      )
    yield MinimalPair(good, bad, paradigm, phenomenon)
  if not number:
    raise InputError(
      f'minimal pairs in {table}', 'no rows', f'give rows with {" and ".join(_SENTENCE_COLUMNS)}'
    )


def _parse_sentence(row: Mapping[str, Any], column: str, where: str) -> str:
  if column not in row:
    raise InputError(
      f'the column {column!r}',
      f'{where} has {", ".join(map(str, row)) or "nothing"}',
      suggest_name(column, map(str, row)),
    )
  value = row[column]
  if not isinstance(value, str) or not value.strip() or NO_TEXT.search(value):
    raise InputError(
      f'a sentence in {column!r}', f'{value!r} in {where}', 'give text, or remove the row'
    )
  return value


def _find_value(row: Mapping[str, Any], columns: Sequence[str]) -> str:
  values = (row[column] for column in columns if column in row)
  return next((str(value) for value in values if value not in (None, '')), '')


def wilson_interval(share: float, n: float) -> tuple[float, float]:
  """Returns Wilson's 95% interval of a share of `n` cases, inside [0, 1] and with positive width.

  >>> [round(end, 3) for end in wilson_interval(0.5, 100)]
  [0.404, 0.596]
  """
  z = float(stats.norm.ppf((1 + metrics.CONFIDENCE) / 2))
  middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  low, high = ((middle + side) / (1 + z**2 / n) for side in (-half, half))
  # Rounding could exclude a share of 0 or 1 from its interval.
  return min(share, max(0.0, low)), max(share, min(1.0, high))


def summarize_pairs(
  pairs: Sequence[MinimalPair],
  points: Float[np.ndarray, 'N'],
  frequency_points: Float[np.ndarray, 'N'] | None,
) -> dict[str, Any]:
  """Returns accuracies of each paradigm, each phenomenon and all pairs, as means over paradigms.

  Intervals are Wilson's for the effective number of pairs P^2 / sum_p (1 / n_p) of P paradigms.
  They cover other pairs of the same paradigms, and are slightly too wide if paradigms differ.

  Returns:
    A dict for 'all', and lists of dicts under 'phenomena' and 'paradigms'. Each dict has 'value',
    'low', 'high', 'pairs', 'paradigms', 'ties' (a share) and 'frequency' (an accuracy or None).
  """
  members: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
  for number, pair in enumerate(pairs):
    members[pair.phenomenon, pair.paradigm].append(number)

  def mean_over(groups: Sequence[list[int]], values: Float[np.ndarray, 'N']) -> float:
    return float(np.mean([values[group].mean() for group in groups]))

  def summarize(groups: Sequence[list[int]]) -> dict[str, Any]:
    indices, value = np.concatenate(groups), mean_over(groups, points)
    low, high = wilson_interval(value, len(groups) ** 2 / sum(1 / len(group) for group in groups))
    return {
      'value': value,
      'low': low,
      'high': high,
      'pairs': len(indices),
      'paradigms': len(groups),
      'ties': float(np.mean(points[indices] == 0.5)),
      'frequency': None if frequency_points is None else mean_over(groups, frequency_points),
    }

  phenomena: dict[str, list[list[int]]] = collections.defaultdict(list)
  for (phenomenon, _), group in members.items():
    phenomena[phenomenon].append(group)
  return {
    _ALL_PARADIGMS: summarize(list(members.values())),
    'phenomena': [{'phenomenon': name, **summarize(phenomena[name])} for name in phenomena],
    'paradigms': [
      {'paradigm': paradigm, 'phenomenon': phenomenon, **summarize([group])}
      for (phenomenon, paradigm), group in members.items()
    ],
  }


def compare_pairs(
  pairs: Sequence[MinimalPair],
  sentences: Sequence[Sequence[int]],
  score: PairScorer,
  unigrams: Float64[np.ndarray, 'V'] | None,
) -> dict[str, Any]:
  """Scores both sentences of all pairs and summarizes the results.

  Args:
    sentences: Ids of all good sentences, then of all bad sentences.
    score: Function that returns a score for each sentence; probable sentences have high scores.
    unigrams: Log-probability of each piece; None omits the baseline.
  """

  def award_points(scores: Float32[np.ndarray, 'M']) -> Float[np.ndarray, 'N']:
    """Returns 1 for a higher score of the good sentence, 1/2 for a tie, else 0."""
    good, bad = np.split(scores.astype(np.float64), 2)
    return np.heaviside(good - bad, 0.5)

  points, frequency_points = award_points(score(sentences)), None
  if unigrams is not None:
    sums = [math.fsum(unigrams[list(ids)].tolist()) for ids in sentences]
    frequency_points = award_points(np.array(sums, np.float32))
  tokens, unknown = likelihood.count_tokens(sentences)
  halves = zip(sentences[: len(pairs)], sentences[len(pairs) :], strict=True)
  return {
    **summarize_pairs(pairs, points, frequency_points),
    'identical': sum(list(good) == list(bad) for good, bad in halves),
    'tokens': tokens,
    'unknown': unknown / tokens,
  }


def compute_unigram_log_probabilities(
  folder: epath.PathLike, size: int
) -> Float64[np.ndarray, 'V']:
  """Returns log((count + 1) / (total + V)) of each piece in the training split of a corpus.

  Counts exclude `<s>`, `</s>`, `<pad>` and `<mask>`.

  Raises:
    InputError: The folder is not a corpus, or the corpus is damaged.
  """
  counts = np.zeros(size, np.int64)
  for tokens in corpus.CorpusFiles(folder, 'train').read_blocks():
    counts += np.bincount(tokens.ravel(), minlength=size)
  counts[list(UNPREDICTED_IDS)] = 0
  return np.log((counts + 1) / (counts.sum() + size - len(UNPREDICTED_IDS)))


def evaluate_pairs(
  source: epath.PathLike,
  pair_source: epath.PathLike,
  variant: str,
  corpus_folder: str,
  workdir: str,
) -> dict[str, Any]:
  """Scores minimal pairs by the latest checkpoint of a run.

  Args:
    source: Pre-training run.
    pair_source: File or folder of pairs, as for `read_pairs`.
    variant: One of `likelihood.PLL_VARIANTS`.
    corpus_folder: Corpus of the run, for word frequencies. '' is the recorded folder; if that folder
      is missing, the baseline is omitted.
    workdir: Directory for config.json, scores.jsonl and result.json; '' writes no files.

  Returns:
    The result of `compare_pairs` and the settings.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: Pairs, run or corpus are invalid, or a sentence exceeds the model's length.
  """
  likelihood.check_variant(variant)
  source = epath.Path(source)
  (task, pairs), run = read_pairs(pair_source), pretrained.load(source)
  sentences = likelihood.encode_sentences(
    [pair.good for pair in pairs] + [pair.bad for pair in pairs],
    run.tokenizer,
    run.config.model.max_length,
  )
  unigrams, frequency_from = _load_unigrams(source, corpus_folder, run.tokenizer)

  def score(sentences: Sequence[Sequence[int]]) -> Float32[np.ndarray, 'N']:
    total = likelihood.count_tokens(list(set(map(tuple, sentences))))[0]
    with progress.track_progress(f'scoring {task}', total, 'tokens') as update:
      return likelihood.compute_pseudo_log_likelihoods(
        run.model, sentences, run.tokenizer.starts_word(), variant, update
      )

  def measure() -> dict[str, Any]:
    started = time.monotonic()
    return {
      'task': task,
      'likelihood': variant,
      'checkpoint': source.name,
      'checkpoint_step': run.step,
      'seed': int(population.member_seeds(run.config)[0]),
      **compare_pairs(pairs, sentences, score, unigrams),
      'frequency_from': frequency_from,
      'seconds': round(time.monotonic() - started, 3),
    }

  identity = {
    'kind': 'evaluate',
    'checkpoint': str(source),
    'checkpoint_step': run.step,
    'weights': pretrained.hash_weights(run.model),
    'task': task,
    'pairs': _hash_pairs(pairs),
    'likelihood': variant,
    'corpus': corpus_folder,
  }
  return run_dir.measure_once(workdir, identity, measure, 'scores of these pairs', make_score_lines)


def _hash_pairs(pairs: Sequence[MinimalPair]) -> str:
  digest = hashlib.sha256()
  for pair in pairs:
    digest.update('\0'.join((pair.good, pair.bad, pair.paradigm, pair.phenomenon, '')).encode())
  return digest.hexdigest()


def _load_unigrams(
  source: epath.Path, corpus_folder: str, tokenizer: Tokenizer
) -> tuple[Float64[np.ndarray, 'V'] | None, str]:
  """Returns log-probabilities of pieces in the corpus of a run, or None, and a remark."""
  hashes = run_dir.read_corpus_hashes(source)
  if not corpus_folder and not hashes['corpus_folder']:
    return None, 'omitted, because the run was imported and has no corpus: give --corpus=FOLDER'
  folder = epath.Path(corpus_folder or hashes['corpus_folder'])
  try:
    if corpus.read_manifest(folder)['tokenizer']['sha256'] != hashes['tokenizer']:
      raise InputError(
        f'word frequencies in {folder}',
        'a corpus with another tokenizer',
        f'give the corpus of {source}',
      )
    return compute_unigram_log_probabilities(
      folder, tokenizer.size
    ), f'the training split of {folder}'
  except InputError as error:
    if corpus_folder:
      raise
    return None, f'omitted, because {folder} is unusable ({error.found}): give --corpus=FOLDER'


def make_score_lines(result: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the lines of scores.jsonl: one per phenomenon, and the mean as the headline score."""
  common = {name: result[name] for name in ('task', 'checkpoint', 'checkpoint_step', 'seed')}
  return [
    {
      **common,
      'metric': 'accuracy',
      'split': split,
      **{name: line[name] for name in ('value', 'low', 'high')},
      'headline': split == _ALL_PARADIGMS,
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
    for split, line in _list_summaries(result).items()
  ]


def _list_summaries(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
  phenomena = {line['phenomenon']: line for line in result['phenomena']}
  return phenomena | {_ALL_PARADIGMS: result[_ALL_PARADIGMS]}


def make_pair_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns a table with one row per phenomenon and a caption on the set."""
  table = evaluate.make_table(
    text.Text(f'{result["task"]} by {result["checkpoint"]}, {result["likelihood"]}, x 100')
  )
  table.add_column('phenomenon', overflow='fold')
  for heading in ('pairs', 'accuracy', '95%', 'ties', 'frequency'):
    table.add_column(heading, justify='right', no_wrap=True, overflow='fold')
  for name, line in _list_summaries(result).items():
    if name == _ALL_PARADIGMS:
      table.add_section()
    value, low, high, ties = (
      f'{100 * line[field]:.1f}' for field in ('value', 'low', 'high', 'ties')
    )
    frequency = '-' if line['frequency'] is None else f'{100 * line["frequency"]:.1f}'
    table.add_row(text.Text(name), f'{line["pairs"]:,}', value, f'{low}-{high}', ties, frequency)
  table.caption = text.Text(
    f'{result["tokens"]:,} tokens, {100 * result["unknown"]:.2f}% <unk>; '
    f'{result["identical"]:,} pairs of identical token sequences; '
    f'word frequencies: {result["frequency_from"]}'
  )
  return [table]
