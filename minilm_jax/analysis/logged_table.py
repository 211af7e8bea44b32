"""Reads loss curves from a logged table, as of paper 1.

A logged table is a CSV file, plain or gzipped, with one evaluation a row in any order. Columns
other than `NEEDED` and `OPTIONAL` are ignored. A cell that is not a number is an error.
"""

import collections
import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.loss_curves import HONEY, KAPLAN, LossCurve, ModelShape
from minilm_jax.core import progress
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import readers

_RUN, _UPDATES, _TOKENS = 'run_name', 'eval/updates', 'Tokens'
_SHAPE_COLUMNS = {
  'embedding': 'embedding_size',
  'hidden': 'hidden_size',
  'feed_forward': 'intermediate_size',
  'heads': 'num_attention_heads',
  'layers': 'num_hidden_layers',
}
_EMBEDDING, _OTHER = 'Embedding parameters', 'Non-embedding parameters'
_FLOPS = {HONEY: 'FLOPS Hoffman per sequence', KAPLAN: 'FLOPS Kaplan per sequence'}
_CONSTANT_COLUMNS = (*_SHAPE_COLUMNS.values(), _EMBEDDING, _OTHER, _FLOPS[HONEY])
NEEDED = (_RUN, _UPDATES, 'eval/loss', *_CONSTANT_COLUMNS, _FLOPS[KAPLAN], _TOKENS)
# The vocabulary and the sequence length are derived if they are missing.
OPTIONAL = (
  'vocabulary',
  'sequence_length',
  'seed',
  'learning_rate',
  'warmup',
  'test/loss',
  'bits_per_word',
  'bits_per_byte',
)
_COUNT_COLUMNS = (
  *(_UPDATES, *_SHAPE_COLUMNS.values(), _EMBEDDING, _OTHER),
  *('vocabulary', 'sequence_length', 'seed', 'warmup'),
)
# The logarithm of a perplexity replaces a missing loss.
_PERPLEXITIES = {'eval/loss': 'eval/perplexity', 'test/loss': 'test/perplexity'}
# Embedding rows outside the vocabulary: 130 positions, 2 segments, gain and bias.
_EXTRA_EMBEDDING_ROWS = 134
_MAX_NAMES = 3  # in an error or log line
_LENGTH_TOLERANCE = 1e-6  # relative, for FLOPs that are logged as floats


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """A line of a logged table, with its number in the file and its numbers by column.

  A number is None if an optional cell is empty, or if a loss is missing or not finite.
  """

  path: epath.Path
  line: int
  run: str
  numbers: Mapping[str, Any]

  @property
  def location(self) -> str:
    return f'{self.path}, line {self.line}'

  @property
  def batch_tokens(self) -> int:
    return round(self.numbers[_TOKENS] / max(self.numbers[_UPDATES], 1))

  @property
  def derived_length(self) -> int | None:
    """Length of a row by the FLOPs of Kaplan, or None if it is not an integer."""
    parameters = self.numbers[_OTHER]
    length = self.numbers[_FLOPS[KAPLAN]] / (6 * parameters) if parameters else 0.0
    return round(length) if length > 0.5 and _is_close(length, round(length)) else None


def _parse_evaluation(path: epath.Path, line: int, cells: Mapping[str, str]) -> _Evaluation:
  numbers: dict[str, Any] = {}
  for column in (*NEEDED[1:], *OPTIONAL):
    logged = column if column in cells else _PERPLEXITIES.get(column, column)
    text = cells.get(logged, '')
    if column in ('eval/loss', *OPTIONAL) and text.strip().lower() in ('', 'nan', 'none'):
      numbers[column] = None
      continue
    is_count = column in _COUNT_COLUMNS
    try:
      value = float(text)
      is_valid = not is_count or (value >= 0 and value == round(value))
    except (ValueError, OverflowError):  # OverflowError: infinity has no integer
      value, is_valid = math.nan, False
    if logged != column:
      value = math.log(value) if value > 0 else math.nan
    if not is_valid or not (math.isfinite(value) or column in _PERPLEXITIES):
      remedy = 'give a non-negative integer' if is_count else 'give a number'
      raise InputError(f'the logged table {path}, line {line}', f'{logged} is {text!r}', remedy)
    # Studies take the logarithm of a loss.
    is_usable = math.isfinite(value) and (value > 0 or column not in _PERPLEXITIES)
    numbers[column] = int(value) if is_count else value if is_usable else None
  return _Evaluation(path, line, cells[_RUN], numbers)


def read_csv(path: epath.PathLike) -> list[LossCurve]:
  """Returns the loss curves of a logged table, in the order of the runs in the table.

  If not logged, the length of a row follows from the FLOPs of Kaplan, 6 N a token. Lines that
  disagree with most lines of their run are logged. A run without usable lines has the length of
  runs with as many tokens an update. The vocabulary V follows from the embedding parameters,
  (V + 134) e. The other parameters determine whether the head is tied. A run with a test loss is
  finished. In a table without test losses, a run is finished if its last finite loss is at 99% of
  the last update of the table or later.

  Args:
    path: .csv or .csv.gz file with the columns of `NEEDED`; a perplexity replaces a loss.

  Returns:
    A curve for each run with finite losses, without evaluations before the first token.
    Evaluations without a finite loss are counted in `non_finite` and logged.

  Raises:
    InputError: the file is missing, damaged or truncated; columns or rows are missing; a cell is
      not a number; no loss is finite; a run has two evaluations at one update, or two shapes.
  """
  path = epath.Path(path)
  evaluations = _read_evaluations(path)
  last_update = max(evaluation.numbers[_UPDATES] for evaluation in evaluations)
  has_tests = any(evaluation.numbers['test/loss'] is not None for evaluation in evaluations)
  by_run = {
    name: _sort_evaluations(name, same_run)
    for name, same_run in runs.group_by(evaluations, lambda evaluation: evaluation.run).items()
  }
  row_sizes = _find_row_sizes(by_run)
  curves = []
  for name, same_run in by_run.items():
    curve = _make_table_curve(name, same_run, *row_sizes[name])
    if not has_tests and curve.loss:
      is_finished = curve.updates[-1] >= 0.99 * last_update
      curve = dataclasses.replace(curve, finished=is_finished)
    curves.append(curve)
  if damaged := [curve for curve in curves if curve.non_finite]:
    names = ', '.join(f'{curve.name} {curve.non_finite}' for curve in damaged[:_MAX_NAMES])
    progress.log(
      f'{path}: left out {sum(curve.non_finite for curve in damaged)} evaluations without a finite '
      f'loss: {names}' + (', ...' if len(damaged) > _MAX_NAMES else '')
    )
  if not any(curve.loss for curve in curves):
    raise InputError(
      f'the logged table {path}', 'no finite loss', 'give a table with finite losses'
    )
  return [curve for curve in curves if curve.loss]


def _read_evaluations(path: epath.Path) -> list[_Evaluation]:
  table = f'the logged table {path}'
  if not path.is_file():
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise InputError(
      table, 'no such file', suggest_name(path.name, [name for name in siblings if '.csv' in name])
    )
  try:
    text = readers.read_decompressed(path).decode('utf-8-sig')
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    header, *rows = [(reader.line_num, cells) for cells in reader if cells] or [(1, [])]
  except (InputError, UnicodeDecodeError, csv.Error) as error:
    reason = error.found if isinstance(error, InputError) else error
    raise InputError(
      table,
      f'the file is damaged or no table: {reason}',
      'copy the file again, or give a .csv or .csv.gz file',
    ) from None
  columns = header[1]
  _check_columns(table, columns)
  if not rows:
    raise InputError(table, 'a header without rows', 'give a table with one evaluation a row')
  for number, cells in rows:
    if len(cells) != len(columns):
      raise InputError(
        f'{table}, line {number}',
        f'{len(cells)} cells for {len(columns)} columns',
        'copy the file again, or remove this line',
      )
  return [
    _parse_evaluation(path, number, dict(zip(columns, cells, strict=True)))
    for number, cells in rows
  ]


def _check_columns(table: str, columns: Sequence[str]) -> None:
  missing = [
    name for name in NEEDED if name not in columns and _PERPLEXITIES.get(name, name) not in columns
  ]
  if missing:
    known = [name for name in columns if name]
    near = '; '.join(f'for {name!r}, {suggest_name(name, known)}' for name in missing[:_MAX_NAMES])
    raise InputError(
      table, f'no column {", ".join(map(repr, missing))}', f'rename the columns: {near}'
    )
  repeated = sorted(
    {name for name in columns if name in NEEDED + OPTIONAL and columns.count(name) > 1}
  )
  if repeated:
    raise InputError(table, f'several columns {", ".join(repeated)}', 'remove the repeated columns')


def _sort_evaluations(name: str, evaluations: Sequence[_Evaluation]) -> list[_Evaluation]:
  """Returns the evaluations of one run by update, after checks of their consistency."""
  ordered = sorted(evaluations, key=lambda evaluation: evaluation.numbers[_UPDATES])
  for previous, evaluation in itertools.pairwise(ordered):
    updates = evaluation.numbers[_UPDATES]
    previous_tokens, tokens = previous.numbers[_TOKENS], evaluation.numbers[_TOKENS]
    if updates == previous.numbers[_UPDATES]:
      raise InputError(
        f'the logged table {evaluation.location}',
        f'the run {name!r} also has update {updates} in line {previous.line}',
        'remove one of the lines, or give the runs different names',
      )
    if tokens <= previous_tokens:  # as in a last line that ends inside a number
      raise InputError(
        f'the logged table {evaluation.location}',
        f'{_TOKENS} is {tokens:g}, but {previous_tokens:g} at an earlier update of {name!r}',
        'correct or remove this line',
      )
  for column in _CONSTANT_COLUMNS:
    values = {evaluation.numbers[column] for evaluation in ordered}
    if len(values) > 1:
      raise _make_models_error(ordered[0], column, values)
  return ordered


def _make_models_error(evaluation: _Evaluation, column: str, values: Iterable[float]) -> InputError:
  return InputError(
    f'the run {evaluation.run!r} of {evaluation.path}',
    f'{column} is {" and ".join(f"{value:g}" for value in sorted(values))}',
    'give runs with different models different names',
  )


def _find_row_sizes(by_run: Mapping[str, Sequence[_Evaluation]]) -> dict[str, tuple[int, float]]:
  """Returns the tokens of a row and its FLOPs by Kaplan for every run.

  Lines whose FLOPs by Kaplan disagree are logged.
  """
  evaluations = list(itertools.chain.from_iterable(by_run.values()))
  by_batch = {
    tokens: collections.Counter(filter(None, (other.derived_length for other in same_batch)))
    for tokens, same_batch in runs.group_by(evaluations, lambda e: e.batch_tokens).items()
  }
  sizes = {name: _find_row_size(same_run, by_batch) for name, same_run in by_run.items()}
  outliers = [
    evaluation
    for evaluation in evaluations
    if not _is_close(evaluation.numbers[_FLOPS[KAPLAN]], sizes[evaluation.run][1])
  ]
  if outliers:
    numbers = ', '.join(map(str, sorted(other.line for other in outliers)[:_MAX_NAMES]))
    progress.log(
      f'{outliers[0].path}: ignored {_FLOPS[KAPLAN]} of {len(outliers)} lines that disagree with '
      f'the length of their rows: {numbers}' + (', ...' if len(outliers) > _MAX_NAMES else '')
    )
  return sizes


def _find_row_size(
  evaluations: Sequence[_Evaluation], by_batch: Mapping[int, collections.Counter[int]]
) -> tuple[int, float]:
  """Returns the tokens of a row and its FLOPs by Kaplan of one run.

  Args:
    by_batch: number of lines of the table by tokens of an update and length of a row.

  Raises:
    InputError: the lines disagree, or none of them determines the length.
  """
  column, first = _FLOPS[KAPLAN], evaluations[0]
  length = first.numbers['sequence_length']
  lengths = collections.Counter(filter(None, (other.derived_length for other in evaluations)))
  if length is None and not lengths:
    same_batch = sum((by_batch[other.batch_tokens] for other in evaluations), collections.Counter())
    if not same_batch:
      raise _make_length_error(first)
    length = same_batch.most_common(1)[0][0]
    return length, 6.0 * first.numbers[_OTHER] * length
  if length == 0:
    raise _make_length_error(first)
  values = collections.Counter(other.numbers[column] for other in evaluations)
  value, num_votes = values.most_common(1)[0]
  if length is None:
    length, num_votes = lengths.most_common(1)[0]
    value = next(other.numbers[column] for other in evaluations if other.derived_length == length)
  if len(values) > 1 and 2 * num_votes <= len(evaluations):
    raise _make_models_error(first, column, values)
  return length, value


def _is_close(value: float, expected: float) -> bool:
  return math.isclose(value, expected, rel_tol=_LENGTH_TOLERANCE)


def _make_length_error(evaluation: _Evaluation) -> InputError:
  numbers = evaluation.numbers
  return InputError(
    f'the length of a row in {evaluation.location}',
    f'{numbers[_FLOPS[KAPLAN]]:g} FLOPs by Kaplan, not 6 x {numbers[_OTHER]:,} x an integer',
    'add the column sequence_length',
  )


def _make_table_curve(
  name: str, evaluations: Sequence[_Evaluation], length: int, kaplan: float
) -> LossCurve:
  """Returns the curve of one run, which is finished if it has a test loss."""
  first = evaluations[0].numbers
  shape = ModelShape(
    **{field: first[column] for field, column in _SHAPE_COLUMNS.items()},
    vocabulary=_find_vocab_size(evaluations[0]),
  )
  # Evaluations at token 0 have no compute.
  counted = [
    other.numbers
    for other in evaluations
    if other.numbers['eval/loss'] is not None and other.numbers[_TOKENS] > 0
  ]
  tests = [other.numbers['test/loss'] for other in evaluations]
  tests = [loss for loss in tests if loss is not None]
  optional = ('seed', 'learning_rate', 'warmup', 'bits_per_word', 'bits_per_byte')
  return LossCurve(
    name=name,
    shape=shape,
    embedding_parameters=first[_EMBEDDING],
    other_parameters=first[_OTHER],
    tied=_find_tied(shape, first[_OTHER]),
    length=length,
    flops_per_row={HONEY: first[_FLOPS[HONEY]], KAPLAN: kaplan},
    updates=tuple(numbers[_UPDATES] for numbers in counted),
    rows=tuple(round(numbers[_TOKENS] / length) for numbers in counted),
    loss=tuple(numbers['eval/loss'] for numbers in counted),
    non_finite=sum(other.numbers['eval/loss'] is None for other in evaluations),
    finished=bool(tests),
    test_loss=tests[-1] if tests else None,
    **{field: first[field] for field in optional},
  )


def _find_vocab_size(evaluation: _Evaluation) -> int:
  numbers = evaluation.numbers
  size, parameters = numbers[_SHAPE_COLUMNS['embedding']], numbers[_EMBEDDING]
  if numbers['vocabulary'] is not None:
    return numbers['vocabulary']
  if not size or parameters % size or parameters // size <= _EXTRA_EMBEDDING_ROWS:
    raise InputError(
      f'the vocabulary in {evaluation.location}',
      f'{parameters:,} embedding parameters, not (vocabulary + {_EXTRA_EMBEDDING_ROWS}) x {size}',
      'add the column vocabulary',
    )
  return parameters // size - _EXTRA_EMBEDDING_ROWS


def _find_tied(shape: ModelShape, other: int) -> bool | None:
  """Returns whether the head is tied, if the other parameters equal a count of paper 1."""
  hidden = shape.hidden
  blocks = shape.layers * (
    4 * hidden**2 + 9 * hidden + 2 * hidden * shape.feed_forward + shape.feed_forward
  )
  head = hidden**2 + 3 * hidden + shape.vocabulary
  projection = shape.embedding * hidden + 3 * hidden
  counts = {blocks + head: True, projection + blocks + head + hidden * shape.vocabulary: False}
  return counts.get(other)
