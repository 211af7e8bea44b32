"""Exports a classifier as a StableHLO program with its weights.

    classifier.jax_export    the program: tokens [B L] int32 -> probabilities [B C] float32
    tokenizer.model          the SentencePiece tokenizer
    call.json                labels, lengths, ids, platforms, tokenization, and example code
    export.json              source, difference from the model, latency

`jax.export` serializes the program, and running it needs only `jax`. The file contains StableHLO
for other compilers. B is dynamic if JAX can lower the program so, and otherwise fixed. L is fixed;
pads fill a row and do not change an answer. Every export is loaded from its file, run, and compared
with the model. The program does not include tokenization.
"""

import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, Int

from minilm_jax.bench import machine
from minilm_jax.core import files, run_dir
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, PAD_ID, SPECIAL_TOKENS
from minilm_jax.core.errors import InputError
from minilm_jax.interop import export
from minilm_jax.tasks.classifier import Card, SavedClassifier

PROGRAM_FILE, CALL_FILE = 'classifier.jax_export', 'call.json'
PLATFORMS = ('cpu', 'cuda', 'tpu')
MAX_DIFFERENCE = 1e-5  # between probabilities
_WARMUP_CALLS, _NUM_CALLS = 10, 200
# Errors of lowering with a dynamic batch size.
_LOWERING_ERRORS = (ValueError, TypeError, NotImplementedError, RuntimeError)
Program = Callable[[Int[np.ndarray, 'B L']], np.ndarray]


def export_stablehlo(ref: str, workdir: str, batch_size: int = 0) -> dict[str, Any]:
  """Writes a classifier as a program, and compares the written program with the model.

  Args:
    workdir: The folder, missing or empty; a folder with the same export is not changed.
    batch_size: Rows of every call; 0 for a dynamic number, if JAX can lower the program so.

  Returns:
    The content of `export.json`: source, `batch` (None if dynamic), `difference`, and the
    `milliseconds` of a call on this machine, `median` and `p95`.

  Raises:
    InputError: The model is no classifier, its encoder is not trusted, the folder has other files,
      the batch size is negative, or program and model differ.
  """
  if batch_size < 0:
    raise InputError(
      f'--batch={batch_size}', 'a negative number of rows', 'give at least 1, or 0 for any number'
    )
  if importlib.util.find_spec('flatbuffers') is None:  # jax reports this only after lowering
    raise InputError('a StableHLO program', 'flatbuffers not installed', 'pip install flatbuffers')
  loaded = export.load_model(ref, as_program=True)
  source = loaded.classifier()
  identity = {'to': 'stablehlo', **loaded.describe_source(), 'asked_batch': batch_size}
  record = export.existing_export(workdir, identity)
  if record is not None:
    return record
  exported = _lower(source, batch_size)
  rows = exported.in_avals[0].shape[0]
  fixed_batch = rows if isinstance(rows, int) else None
  with export.atomic_export_folder(workdir) as folder:
    files.write_bytes(folder / PROGRAM_FILE, bytes(exported.serialize()))
    files.write_bytes(folder / run_dir.TOKENIZER, source.tokenizer.model)
    files.write_json(folder / CALL_FILE, describe_program(source.card, fixed_batch))
    program = open_program(folder)
    record = {
      **identity,
      'batch': fixed_batch,
      'difference': _compare(source, program, fixed_batch),
      'tolerance': MAX_DIFFERENCE,
      'milliseconds': _measure_latency(program, _draw_rows(source, fixed_batch or 1)),
      'rows_timed': fixed_batch or 1,
      'calls': _NUM_CALLS,
      'machine': machine.describe_machine(),
      'versions': machine.list_versions(),
    }
    files.write_json(folder / export.EXPORT_RECORD, record)
  return record


def row_length(card: Card) -> int:
  """Returns L: `max_length` if head or encoder need full rows, otherwise the length of the card."""
  needs_full_rows = card.head.pooling == 'positions' or card.model.batch_norm
  return card.model.max_length if needs_full_rows else card.length


def _build_predict(source: SavedClassifier) -> Callable[[Int[Array, 'B L']], Float[Array, 'B C']]:
  """Returns the exported function."""

  def predict(tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
    logits = source.model(tokens, tokens != PAD_ID)
    return logits if source.card.is_regression else jax.nn.softmax(logits)

  return predict


def _lower(source: SavedClassifier, batch_size: int) -> jax_export.Exported:
  """Lowers for all platforms; batch size 0 gives a dynamic size, or one row if lowering fails."""

  def lower(rows: Any) -> jax_export.Exported:
    shape = jax.ShapeDtypeStruct((rows, row_length(source.card)), jnp.int32)
    return jax_export.export(jax.jit(_build_predict(source)), platforms=PLATFORMS)(shape)

  if batch_size:
    return lower(batch_size)
  try:
    return lower(jax_export.symbolic_shape('batch')[0])
  except _LOWERING_ERRORS:
    return lower(1)


def describe_program(card: Card, fixed_batch: int | None) -> dict[str, Any]:
  """Returns the content of call.json."""
  batch, length = fixed_batch or 'batch', row_length(card)
  joined = ', the fields joined by a space' if card.concatenate_fields else ''
  return {
    'task': card.task,
    'kind': card.task_kind,
    'labels': list(card.labels),
    'fields': list(card.fields),
    'program': PROGRAM_FILE,
    'platforms': list(PLATFORMS),
    'input': {'name': 'tokens', 'dtype': 'int32', 'shape': [batch, length]},
    'output': {
      'name': 'value' if card.is_regression else 'probabilities',
      'dtype': 'float32',
      'shape': [batch, max(1, len(card.labels))],
    },
    'tokenizer': {
      'file': run_dir.TOKENIZER,
      'library': 'sentencepiece',
      'before': f'NFC, lower case, spaces for white space, and U+FDD0 for U+2581{joined}',
      'template': '<s> A </s></s> B </s>' if card.reads_pairs else '<s> A </s>',
      'longest': card.length,
      'longer': 'remove tokens from the end of the longer text',
      'pad_to': length,
      'ids': {piece: number for number, piece in enumerate(SPECIAL_TOKENS)},
    },
    'python': _example_code(card, fixed_batch or 1),
  }


def _example_code(card: Card, rows: int) -> list[str]:
  """Returns code that classifies a text or pair with `jax`, `numpy` and `sentencepiece`."""
  ids = [f"ids = [{BEGIN_ID}, *encode('a text')[:{card.length - 2}], {END_ID}]"]
  if card.reads_pairs:
    half = (card.length - 4) // 2  # this number of pieces of both texts always fits
    ids = [
      f"a, b = (encode(text)[:{half}] for text in ('a text', 'another'))",
      f'ids = [{BEGIN_ID}, *a, {END_ID}, {END_ID}, *b, {END_ID}]',
    ]
  return [
    'import jax, numpy, sentencepiece, unicodedata',
    'from jax import export',
    f"program = jax.jit(export.deserialize(bytearray(open('{PROGRAM_FILE}', 'rb').read())).call)",
    f"tokenizer = sentencepiece.SentencePieceProcessor(model_file='{run_dir.TOKENIZER}')",
    "fold = lambda text: unicodedata.normalize('NFC', ' '.join(text.split())).lower()",
    "encode = lambda text: tokenizer.encode(fold(text).replace('\\u2581', '\\ufdd0'))",
    *ids,
    f"tokens = numpy.full(({rows}, {row_length(card)}), {PAD_ID}, 'int32')",
    'tokens[0, :len(ids)] = ids',
    'answer = numpy.asarray(program(tokens))[0]',
  ]


def open_program(folder: pathlib.Path) -> Program:
  """Returns the program in a folder as a function of tokens on the host."""
  data = files.read_bytes(folder / PROGRAM_FILE, f'the program {folder / PROGRAM_FILE}')
  call = jax.jit(jax_export.deserialize(bytearray(data)).call)
  return lambda tokens: np.asarray(call(tokens))


def _draw_rows(source: SavedClassifier, count: int) -> Int[np.ndarray, 'B L']:
  """Returns rows of random ordinary pieces, with lengths up to that of the card."""
  shape = count, row_length(source.card)
  generator = np.random.default_rng(0)
  tokens = generator.integers(len(SPECIAL_TOKENS), source.tokenizer.size, shape, np.int32)
  tokens[:, 0] = BEGIN_ID
  ends = np.linspace(2, source.card.length - 1, count).astype(int)
  for row, end in zip(tokens, ends, strict=True):
    row[end], row[end + 1 :] = END_ID, PAD_ID
  return tokens


def _compare(source: SavedClassifier, program: Program, fixed_batch: int | None) -> float:
  """Returns the largest difference between program and model, for one row and for several rows."""
  predict, differences = jax.jit(_build_predict(source)), []
  for count in (fixed_batch,) if fixed_batch else (1, 5):
    tokens = _draw_rows(source, count)
    differences.append(np.abs(program(tokens) - np.asarray(predict(tokens))).max())
  difference = float(np.max(differences))  # NaN if any difference is NaN
  if not difference <= MAX_DIFFERENCE:
    raise InputError(
      f'probabilities that differ by at most {MAX_DIFFERENCE}',
      f'a difference of {difference:.2g}',
      'report the error with the config.json of the run; the written folder was removed',
    )
  return difference


def _measure_latency(program: Program, tokens: Int[np.ndarray, 'B L']) -> dict[str, float]:
  """Returns `median` and `p95` of the milliseconds of a call, from tokens to probabilities."""
  seconds = []
  for _ in range(_WARMUP_CALLS + _NUM_CALLS):
    begin = time.perf_counter()
    program(tokens)
    seconds.append(time.perf_counter() - begin)
  median, p95 = np.quantile(seconds[_WARMUP_CALLS:], (0.5, 0.95)).tolist()
  return {'median': 1e3 * median, 'p95': 1e3 * p95}
