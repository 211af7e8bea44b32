"""Exports a classifier as one StableHLO program with its weights.

    classifier.jax_export    serialized by `jax.export`: tokens [B L] int32 -> probabilities [B C] float32
    tokenizer.model          SentencePiece; call.json describes how text becomes tokens
    call.json                labels, lengths, ids, platforms, and lines of Python that classify a text in that folder
    export.json              the source, the difference from the model, and the latency

The program needs `jax` alone to run; its bytes hold the StableHLO for other compilers. B is free
where that can be lowered, else fixed; L is fixed, for pads fill up rows and change no answer. Every
export is read back from its file, run, and compared with the model. Tokenization is not part of the
program.
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
# Errors of lowering with a free batch size.
_LOWERING_ERRORS = (ValueError, TypeError, NotImplementedError, RuntimeError)
Program = Callable[[Int[np.ndarray, 'B L']], np.ndarray]


def export_stablehlo(ref: str, workdir: str, batch_size: int = 0) -> dict[str, Any]:
  """Writes a classifier as a program, runs the written file, and compares it with the model.

  Args:
    ref: a classifier that `--config.save_classifiers=True` saved.
    workdir: the folder, absent or empty; one that holds this very export is left as it is.
    batch_size: rows of every call; 0 leaves them free where that can be lowered.

  Returns:
    The contents of `export.json`: source, `batch` (None: free), `difference`, and the
    `milliseconds` of one call on this machine, `median` and `p95`.

  Raises:
    InputError: it is no classifier, its encoder is not trusted, the folder holds something else,
      the batch size is negative, or program and model differ.
  """
  if batch_size < 0:
    raise InputError(
      f'--batch={batch_size}', 'a negative number of rows', 'give 1 or more, or 0 for any'
    )
  if importlib.util.find_spec('flatbuffers') is None:  # jax reports it only at the end
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
  """Returns L: the model's length if its head or encoder needs full rows, else the card's."""
  needs_full_rows = card.head.pooling == 'positions' or card.model.batch_norm
  return card.model.max_length if needs_full_rows else card.length


def _predict(source: SavedClassifier) -> Callable[[Int[Array, 'B L']], Float[Array, 'B C']]:
  """Returns the function that is exported."""

  def predict(tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
    logits = source.model(tokens, tokens != PAD_ID)
    return logits if source.card.is_regression else jax.nn.softmax(logits)

  return predict


def _lower(source: SavedClassifier, batch_size: int) -> jax_export.Exported:
  """Lowers for all platforms; without a batch size it is free, or one row if that fails."""

  def lower(rows: Any) -> jax_export.Exported:
    shape = jax.ShapeDtypeStruct((rows, row_length(source.card)), jnp.int32)
    return jax_export.export(jax.jit(_predict(source)), platforms=PLATFORMS)(shape)

  if batch_size:
    return lower(batch_size)
  try:
    return lower(jax_export.symbolic_shape('batch')[0])
  except _LOWERING_ERRORS:
    return lower(1)


def describe_program(card: Card, fixed_batch: int | None) -> dict[str, Any]:
  """Returns the contents of `call.json`."""
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
      'before': f'lower-case the text{joined}',
      'template': '<s> A </s></s> B </s>' if card.reads_pairs else '<s> A </s>',
      'longest': card.length,
      'longer': 'loses tokens from the end of its longer text',
      'pad_to': length,
      'ids': {piece: number for number, piece in enumerate(SPECIAL_TOKENS)},
    },
    'python': _example_code(card, fixed_batch or 1),
  }


def _example_code(card: Card, rows: int) -> list[str]:
  """Returns lines that classify one text, or pair, with `jax`, `numpy` and `sentencepiece` alone."""
  ids = [f"ids = [{BEGIN_ID}, *reads.encode('a text'.lower())[:{card.length - 2}], {END_ID}]"]
  if card.reads_pairs:
    half = (card.length - 4) // 2  # so many pieces of either text are sure to fit
    ids = [
      f"a, b = (reads.encode(text.lower())[:{half}] for text in ('a text', 'another'))",
      f'ids = [{BEGIN_ID}, *a, {END_ID}, {END_ID}, *b, {END_ID}]',
    ]
  return [
    'import jax, numpy, sentencepiece',
    'from jax import export',
    f"program = jax.jit(export.deserialize(bytearray(open('{PROGRAM_FILE}', 'rb').read())).call)",
    f"reads = sentencepiece.SentencePieceProcessor(model_file='{run_dir.TOKENIZER}')",
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
  """Returns rows of ordinary pieces, of lengths up to that of the card."""
  shape = count, row_length(source.card)
  generator = np.random.default_rng(0)
  tokens = generator.integers(len(SPECIAL_TOKENS), source.tokenizer.size, shape, np.int32)
  tokens[:, 0] = BEGIN_ID
  ends = np.linspace(2, source.card.length - 1, count).astype(int)
  for row, end in zip(tokens, ends, strict=True):
    row[end], row[end + 1 :] = END_ID, PAD_ID
  return tokens


def _compare(source: SavedClassifier, program: Program, fixed_batch: int | None) -> float:
  """Returns the largest difference between program and model, for one row and for several."""
  predict, differences = jax.jit(_predict(source)), []
  for count in (fixed_batch,) if fixed_batch else (1, 5):
    tokens = _draw_rows(source, count)
    differences.append(np.abs(program(tokens) - np.asarray(predict(tokens))).max())
  difference = float(np.max(differences))  # NaN if one is
  if not difference <= MAX_DIFFERENCE:
    raise InputError(
      f'answers that differ by {MAX_DIFFERENCE} at most',
      f'{difference:.2g}',
      'report it, with the shape of the model; what was written is removed',
    )
  return difference


def _measure_latency(program: Program, tokens: Int[np.ndarray, 'B L']) -> dict[str, float]:
  """Returns milliseconds from tokens to probabilities on the host: `median` and `p95`."""
  seconds = []
  for number in range(_WARMUP_CALLS + _NUM_CALLS):
    begin = time.perf_counter()
    program(tokens)
    if number >= _WARMUP_CALLS:
      seconds.append(time.perf_counter() - begin)
  return {
    name: 1e3 * float(np.quantile(seconds, share))
    for name, share in (('median', 0.5), ('p95', 0.95))
  }
