"""Logged tables of evaluations, such as those the first paper left, as the curves that a study is
made from.

A table is a CSV file, plain or gzipped, with a row an evaluation, in any order, and any columns
beside those of `NEEDED` and `OPTIONAL`. `run_name,eval/updates,eval/loss,Tokens`, the shape, the
two counts of parameters and the two of FLOPs are the least that it can be. Nothing is guessed: what
is not a number is an error with its line.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from minilm_jax.analysis import runs
from minilm_jax.core import files, old_names, progress, run_dir
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.core.schema import NUMBER
from minilm_jax.data import readers

# What the study of a grid is made from: the evaluations of one pre-trained model after another.
HONEY, KAPLAN, ACTUAL = 'honey', 'kaplan', 'actual'  # counts of FLOPs, `model/flops.py`


@dataclasses.dataclass(frozen=True, order=True)
class ModelShape:
  """What a grid varies; `heads` is the count that the paper's formula is given."""

  embedding: int
  hidden: int
  feed_forward: int
  heads: int
  layers: int
  vocabulary: int


@dataclasses.dataclass(frozen=True)
class LossCurve:
  """One pre-trained model and its evaluations in the order of its updates.

  Attributes:
    name: of the run; of a member of a population, with its number.
    shape, embedding_parameters, other_parameters: of the model.
    seed, learning_rate, warmup: at the top of the schedule, and the updates until there; None where
    nobody logged them.
    tied: does the head share the embedding table? None where nobody logged it.
    length: tokens of a row.
    flops_per_row: forward and backward, by how they are counted; what cannot be known is left out.
    updates, rows, loss: of each evaluation: updates made, rows seen, nats a masked token on the
    validation split.
    lost: evaluations whose loss is no number; they are in none of these.
    finished: has the run reached the end of its schedule?
    test_loss: nats a masked token, after the end.
    bits_per_word, bits_per_byte: of masked words, where they were taken
    (`evaluation/likelihood.py`).
  """

  name: str
  shape: ModelShape
  embedding_parameters: int
  other_parameters: int
  seed: int | None
  learning_rate: float | None
  warmup: int | None
  tied: bool | None
  length: int
  flops_per_row: Mapping[str, float]
  updates: tuple[int, ...]
  rows: tuple[int, ...]
  loss: tuple[float, ...]
  lost: int
  finished: bool
  test_loss: float | None
  bits_per_word: float | None
  bits_per_byte: float | None

  @property
  def parameters(self) -> int:
    """With embeddings."""
    return self.embedding_parameters + self.other_parameters

  @property
  def tokens(self) -> Float[np.ndarray, 'N']:
    """Tokens seen at each evaluation, pads included."""
    return np.asarray(self.rows, float) * self.length

  def flops(self, count: str = HONEY) -> Float[np.ndarray, 'N']:
    """FLOPs of training until each evaluation."""
    return np.asarray(self.rows, float) * self.flops_per_row[count]


# Pre-training runs as the curves that the study of a grid is made from.
_SHAPE_FIELDS = {
  'embedding': 'embedding_size',
  'hidden': 'hidden_size',
  'feed_forward': 'intermediate_size',
  'heads': 'flops_heads',
  'layers': 'num_layers',
  'vocabulary': 'vocab_size',
}
_WORDS = {'bits_per_word?': NUMBER, 'bits_per_byte?': NUMBER}
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LossCurves:
  """The curves of some runs, and why some pre-training runs have none."""

  curves: list[LossCurve]
  left_out: list[str]


def read_runs(found: Mapping[str, epath.Path]) -> LossCurves:
  """A curve for each pre-training run, or for each member of a population, as `<run> member N`.

  A member that was taken out into `<run>/member-N` is the curve of that run and no other. The seed
  and the learning rate of a member are its own. FLOPs a row are those of the manifest. Where the
  rows of the corpus are shorter than the model could read, they are in proportion, which for the
  paper's count is somewhat too much, and the true ones are those that the log has.

  Args:
    found: runs by name.

  Raises:
    InputError: a file of a run is damaged.
  """
  grid = LossCurves([], [])
  for name, path in found.items():
    if runs.read_kind(path) != 'pretrain':
      continue
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    words = (
      files.read_object(
        old_names.find_file(path / run_dir.BITS_PER_WORD), f'what words cost {path}', _WORDS
      )
      if old_names.find_file(path / run_dir.BITS_PER_WORD).exists()
      else {}
    )
    for member, lines in runs.split_members(path).items():
      try:
        curve = _curve_of_run(
          name + member, config, manifest, lines, int(member.split()[-1]) if member else 0
        )
      except (
        KeyError,
        TypeError,
        IndexError,
        ArithmeticError,
        ValueError,
        AttributeError,
      ) as error:
        grid.left_out.append(f'{name}{member}: {describe_missing(error)}')
        continue
      if not curve.loss:
        grid.left_out.append(f'{curve.name}: no validation loss yet')
        continue
      curve = dataclasses.replace(
        curve,
        finished=(path / run_dir.RESULT).exists()
        and max(line['step'] for line in lines) >= config['num_steps'],
      )
      bits = {
        name: words[name] if name in words else None for name in ('bits_per_word', 'bits_per_byte')
      }
      grid.curves.append(dataclasses.replace(curve, **bits))
  return grid


def describe_missing(error: Exception) -> str:
  """What a run lacks, in words."""
  if isinstance(error, KeyError):
    return f'no {error.args[0]!r} in its {run_dir.CONFIG}, {run_dir.MANIFEST} or {run_dir.METRICS}: written by another version?'
  return (
    f'its {run_dir.CONFIG}, {run_dir.MANIFEST} or {run_dir.METRICS} is of another form ({error})'
  )


def _curve_of_run(
  name: str, config: Record, manifest: Record, lines: Sequence[Record], member: int
) -> LossCurve:
  model, population = config['model'], config['population']
  validation = {
    line['step']: line
    for line in lines
    if line['split'] == 'validation' and 'loss' in line and line['step'] > 0
  }  # before any training there is no compute
  kept = {
    step: line
    for step, line in sorted(validation.items())
    if math.isfinite(runs.to_float(line['loss']))
  }
  test = [
    runs.to_float(line['loss']) for line in lines if line['split'] == 'test' and 'loss' in line
  ]
  batch = config['batch_size']
  last = kept[max(kept)] if kept else None
  length = round(last['tokens'] / (last['step'] * batch)) if last else model['max_length']
  flops = {
    count: float(value) * length / model['max_length']
    for count, value in manifest['flops_per_row'].items()
  }
  if last and 'flops' in last and ACTUAL in flops and length != model['max_length']:
    flops[ACTUAL] = last['flops'] / (last['step'] * batch)
  return LossCurve(
    name=name,
    shape=ModelShape(**{ours: int(model[theirs]) for ours, theirs in _SHAPE_FIELDS.items()}),
    embedding_parameters=int(manifest['parameters']['embedding']),
    other_parameters=int(manifest['parameters']['other']),
    seed=int(_own(population['seeds'], member, config['seed'] + member)),
    learning_rate=float(
      _own(population['learning_rates'], member, config['optimizer']['learning_rate'])
    ),
    warmup=int(manifest['warmup']),
    tied=bool(model['tied']),
    length=length,
    flops_per_row=flops,
    updates=tuple(kept),
    rows=tuple(step * batch for step in kept),
    loss=tuple(float(line['loss']) for line in kept.values()),
    lost=len(validation) - len(kept),
    finished=False,
    test_loss=test[-1] if test and math.isfinite(test[-1]) else None,
    bits_per_word=None,
    bits_per_byte=None,
  )


def _own(values: Sequence[Any], member: int, otherwise: Any) -> Any:
  """What a member has of its own, or else the recipe's."""
  return values[member] if values else otherwise


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
NEEDED = (
  _RUN,
  _UPDATES,
  'eval/loss',
  *_SHAPE_COLUMNS.values(),
  _EMBEDDING,
  _OTHER,
  *_FLOPS.values(),
  _TOKENS,
)
# Of a run, where it was logged; the first two are otherwise derived, `test/perplexity` stands in
# for `test/loss`.
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
_INSTEAD = {
  'eval/loss': 'eval/perplexity',
  'test/loss': 'test/perplexity',
}  # its logarithm is the loss
# rows of the embedding's other tables and norm: 130 positions, 2 segments, gain and bias (papers.md
# 1.1)
_TABLES = 134
_SHOWN = 3
CsvLine = tuple[int, Mapping[str, str]]  # its number in the file, and its cells by column


def read_csv(path: epath.PathLike) -> list[LossCurve]:
  """The curves of a logged table, in the order in which their runs first appear.

  The length of a row follows from Kaplan's count, 6 N a token; the vocabulary V from the embedding
  parameters, (V + 134) e; whether the head shares the embedding table from the other parameters. A
  run is finished that has a test loss or, in a table without any, that was evaluated within 1% of
  the last update of the table.

  Args:
    path: of a .csv or .csv.gz file with the columns of `NEEDED`, where the perplexity can stand for
      the loss.

  Returns:
    A curve a run, without evaluations before any token was seen. Those whose loss is no number are
    counted in `lost`, and told on standard error; a run that has no other is left out.

  Raises:
    InputError: no such file; it is no such table or was cut off; columns or rows are missing; a
      cell is no number, or no loss is; a run has two evaluations at one update, or two shapes.
  """
  path = epath.Path(path)
  lines = _lines(path)
  runs: dict[str, list[CsvLine]] = {}
  for number, cells in lines:
    runs.setdefault(cells[_RUN], []).append((number, cells))
  last = max(_number(path, line, _UPDATES) for line in lines)
  tested = any(_loss(path, line, 'test/loss') is not None for line in lines)
  found = [_curve_of_table(path, name, own, last, tested) for name, own in runs.items()]
  _say_lost(path, [curve for curve in found if curve.lost])
  if not any(curve.loss for curve in found):
    raise InputError(
      f'the logged table {path}', 'no loss in it is a number', 'give the log of runs that went well'
    )
  return [curve for curve in found if curve.loss]


def _say_lost(path: epath.Path, lost: Sequence[LossCurve]) -> None:
  if lost:
    names = ', '.join(f'{curve.name} {curve.lost}' for curve in lost[:_SHOWN])
    progress.log(
      f'{path}: left out {sum(curve.lost for curve in lost)} evaluations whose loss is no number: {names}'
      + (', ...' if len(lost) > _SHOWN else '')
    )


def _lines(path: epath.Path) -> list[CsvLine]:
  what = f'the logged table {path}'
  if not path.is_file():
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise InputError(
      what, 'no such file', suggest_name(path.name, [name for name in beside if '.csv' in name])
    )
  try:
    text = readers.read_decompressed(path).decode('utf-8-sig')
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    header, *rows = [(reader.line_num, cells) for cells in reader if cells] or [(1, [])]
  except (InputError, UnicodeDecodeError, csv.Error) as error:
    said = error.found if isinstance(error, InputError) else error
    raise InputError(
      what, f'it is damaged, or no table: {said}', 'copy it again, or give a .csv or .csv.gz file'
    ) from None
  _check_columns(what, header[1])
  if not rows:
    raise InputError(what, 'columns and no row', 'give a table with a row an evaluation')
  for number, cells in rows:
    if len(cells) != len(header[1]):
      raise InputError(
        f'{what}, line {number}',
        f'{len(cells)} cells under {len(header[1])} columns: it was cut off',
        'copy the file again, or remove that line',
      )
  return [(number, dict(zip(header[1], cells, strict=True))) for number, cells in rows]


def _check_columns(what: str, header: Sequence[str]) -> None:
  missing = [
    name for name in NEEDED if name not in header and _INSTEAD.get(name, name) not in header
  ]
  if missing:
    known = [name for name in header if name]
    near = '; '.join(f'for {name!r}, {suggest_name(name, known)}' for name in missing[:_SHOWN])
    raise InputError(
      what, f'no column {", ".join(map(repr, missing))}', f'name the columns so: {near}'
    )
  twice = sorted({name for name in header if name in NEEDED + OPTIONAL and header.count(name) > 1})
  if twice:
    raise InputError(what, f'the column {", ".join(twice)} twice', 'keep one of them')


def _number(path: epath.Path, line: CsvLine, column: str, whole: bool = True) -> float:
  """A cell that must be a finite number and, where `whole`, a count."""
  number, cells = line
  try:
    value = float(cells[column])
  except ValueError:
    value = math.nan
  if not math.isfinite(value) or whole and (value != round(value) or value < 0):
    raise InputError(
      f'the logged table {path}, line {number}',
      f'{column} is {cells[column]!r}',
      'give a whole number' if whole else 'give a number',
    )
  return int(value) if whole else value


def _loss(path: epath.Path, line: CsvLine, column: str) -> float | None:
  """Nats a token, from the loss or else the perplexity; None where the cell is empty or says that
  it is no number.
  """
  number, cells = line
  given = column if column in cells else _INSTEAD[column]
  if given not in cells or not cells[given].strip():
    return None
  try:
    value = float(cells[given])
  except ValueError:
    raise InputError(
      f'the logged table {path}, line {number}',
      f'{given} is {cells[given]!r}',
      'give a number, or nan',
    ) from None
  if given != column:
    value = math.log(value) if value > 0 else math.nan
  return value if math.isfinite(value) else None


def _optional(path: epath.Path, line: CsvLine, column: str, whole: bool = True) -> float | None:
  if column not in line[1] or line[1][column].strip().lower() in ('', 'nan', 'none'):
    return None
  return _number(path, line, column, whole)


def _curve_of_table(
  path: epath.Path, name: str, lines: Sequence[CsvLine], last: float, tested: bool
) -> LossCurve:
  by_update: dict[int, CsvLine] = {}
  for line in lines:
    updates = _number(path, line, _UPDATES)
    if updates in by_update:
      raise InputError(
        f'the logged table {path}, line {line[0]}',
        f'run {name!r} has update {updates} in line {by_update[updates][0]} too',
        'keep one of them, or give the runs different names',
      )
    by_update[updates] = line
  ordered = [by_update[updates] for updates in sorted(by_update)]
  tokens = [_number(path, line, _TOKENS, whole=False) for line in ordered]
  for line, before, now in zip(ordered[1:], tokens, tokens[1:]):
    if now <= before:  # so looks a last line that was cut off inside its last number
      raise InputError(
        f'the logged table {path}, line {line[0]}',
        f'{_TOKENS} is {now:g}, and {before:g} at an earlier update of {name!r}',
        'mend that line, or remove it',
      )
  for column in (*_SHAPE_COLUMNS.values(), _EMBEDDING, _OTHER, *_FLOPS.values()):
    values = {_number(path, line, column, whole=False) for line in ordered}
    if len(values) > 1:
      raise InputError(
        f'the run {name!r} of {path}',
        f'{column} is {" and ".join(f"{v:g}" for v in sorted(values))}',
        'give runs of different shapes different names',
      )
  first = ordered[0]
  embedding, other = (int(_number(path, first, column)) for column in (_EMBEDDING, _OTHER))
  flops = {count: _number(path, first, column, whole=False) for count, column in _FLOPS.items()}
  shape = ModelShape(
    **{field: int(_number(path, first, column)) for field, column in _SHAPE_COLUMNS.items()},
    vocabulary=_vocabulary(path, first, embedding),
  )
  length = _length(path, first, flops[KAPLAN], other)
  losses = [_loss(path, line, 'eval/loss') for line in ordered]
  kept = [
    (line, loss)
    for line, loss, seen in zip(ordered, losses, tokens, strict=True)
    if loss is not None and seen > 0
  ]  # before any training there is no compute
  test = next(
    (loss for line in reversed(ordered) if (loss := _loss(path, line, 'test/loss')) is not None),
    None,
  )
  return LossCurve(
    name=name,
    shape=shape,
    embedding_parameters=embedding,
    other_parameters=other,
    seed=_optional(path, first, 'seed'),
    learning_rate=_optional(path, first, 'learning_rate', whole=False),
    warmup=_optional(path, first, 'warmup'),
    tied=_tied(shape, other),
    length=length,
    flops_per_row=flops,
    updates=tuple(int(_number(path, line, _UPDATES)) for line, _ in kept),
    rows=tuple(round(_number(path, line, _TOKENS, whole=False) / length) for line, _ in kept),
    loss=tuple(loss for _, loss in kept),
    lost=losses.count(None),
    finished=test is not None if tested else max(by_update) >= 0.99 * last,
    test_loss=test,
    bits_per_word=_optional(path, first, 'bits_per_word', whole=False),
    bits_per_byte=_optional(path, first, 'bits_per_byte', whole=False),
  )


def _vocabulary(path: epath.Path, line: CsvLine, parameters: int) -> int:
  given = _optional(path, line, 'vocabulary')
  if given is not None:
    return int(given)
  size = int(_number(path, line, _SHAPE_COLUMNS['embedding']))
  if not size or parameters % size or parameters // size <= _TABLES:
    raise InputError(
      f'the vocabulary in {path}, line {line[0]}',
      f'{parameters:,} embedding parameters are not (vocabulary + {_TABLES}) x {size}',
      'add a column vocabulary',
    )
  return parameters // size - _TABLES


def _length(path: epath.Path, line: CsvLine, kaplan: float, other: int) -> int:
  given = _optional(path, line, 'sequence_length')
  length = kaplan / (6 * other) if given is None and other else given or 0
  if length < 1 or abs(length - round(length)) > 1e-6 * length:
    raise InputError(
      f'the length of a row in {path}, line {line[0]}',
      f'{kaplan:g} FLOPs after Kaplan are not 6 x {other:,} x a whole number',
      'add a column sequence_length',
    )
  return round(length)


def _tied(s: ModelShape, other: int) -> bool | None:
  """Does the head share the table? The count of the other parameters says it, if it is one of the
  paper's two.
  """
  blocks = s.layers * (
    4 * s.hidden**2 + 9 * s.hidden + 2 * s.hidden * s.feed_forward + s.feed_forward
  )
  head = s.hidden**2 + 3 * s.hidden + s.vocabulary
  projection = s.embedding * s.hidden + 3 * s.hidden
  counts = {blocks + head: True, projection + blocks + head + s.hidden * s.vocabulary: False}
  return counts[other] if other in counts else None
