"""A classifier as one StableHLO program with its weights inside, to be called where our code is
not.

    classifier.jax_export    what `jax.export` serializes: tokens [B L] int32 -> probabilities [B C] float32
    tokenizer.model          SentencePiece; how text becomes tokens is said in call.json
    call.json                labels, lengths, ids, platforms, and lines of Python that answer a text in that folder
    export.json              what it is an export of, how far it was from the model, and how long an answer took

The program needs `jax` alone to run, and its bytes hold the StableHLO for other compilers. B is
free where that can be lowered, else fixed; L is fixed, for rows are filled up with pads, which
change no answer. Every export is read back from its file, run, and compared with the model. Left
out: tokenizing inside the program, and servers.
"""

import functools
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
from minilm_jax.core import files
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, tokenizer
from minilm_jax.interop import export
from minilm_jax.interop.export import LoadedModel
from minilm_jax.model.heads import Classifier
from minilm_jax.tasks.classifier import Card
from minilm_jax.tasks.task import REGRESSION

PROGRAM_FILE, CALL_FILE = 'classifier.jax_export', 'call.json'
PLATFORMS = ('cpu', 'cuda', 'tpu')
TOLERANCE = 1e-5  # between probabilities
_WARMUP_CALLS, _NUM_CALLS = 10, 200
# what a free batch may raise in lowering
_UNLOWERED = (ValueError, TypeError, NotImplementedError, RuntimeError)
CallResult = Callable[[Int[np.ndarray, 'B L']], np.ndarray]


def export_stablehlo(given: str, workdir: str, batch: int = 0) -> dict[str, Any]:
  """Writes the classifier that `--checkpoint` names as a program, runs what was written, and
  compares.

  Args:
    given: a classifier that `--config.save_classifiers=True` saved.
    workdir: the folder, not there or empty; one that holds this very export is left as it is.
    batch: rows of every call; 0 leaves them free where that can be lowered.

  Returns:
    What `export.json` holds: source, `batch` (None: free), `difference`, and on this machine the
    `milliseconds` of an answer to one row, `median` and `p95`.

  Raises:
    InputError: it is no classifier, one of an encoder that is not trusted, the folder holds
      something else, a negative batch, or the two differ.
  """
  if batch < 0:
    raise InputError(
      f'--batch={batch}', 'a negative number of rows', 'give 1 or more, or 0 for any'
    )
  if export.resolve_model(given).step is not None:
    raise InputError(
      f'a program of {given}',
      'a pre-training run, which classifies nothing',
      'give a classifier: minilm finetune ... --config.save_classifiers=True saves some',
    )
  if importlib.util.find_spec('flatbuffers') is None:  # of which jax tells only at the end
    raise InputError('a StableHLO program', 'flatbuffers not installed', 'pip install flatbuffers')
  released = export.load_model(given, program=True)
  identity = {'to': 'stablehlo', **released.facts(), 'asked_batch': batch}
  found = export.existing_export(workdir, identity)
  if found is not None:
    return found
  exported = _lowered(released, batch)
  size = exported.in_avals[0].shape[0]
  fixed = size if isinstance(size, int) else None
  with export.atomic_export_folder(workdir) as folder:
    files.write_bytes(folder / PROGRAM_FILE, bytes(exported.serialize()))
    files.write_bytes(folder / build.TOKENIZER, released.tokenizer.model)
    files.write_json(folder / CALL_FILE, describe_program(released, fixed))
    answer = open_program(folder)
    difference = _compare(released, answer, fixed)
    record = {
      **identity,
      'batch': fixed,
      'difference': difference,
      'tolerance': TOLERANCE,
      'milliseconds': _milliseconds(answer, released, fixed or 1),
      'rows_timed': fixed or 1,
      'calls': _NUM_CALLS,
      'machine': machine.describe_machine(),
      'versions': machine.list_versions(),
    }
    files.write_json(folder / export.EXPORT_RECORD, record)
  return record


def exported_length(released: LoadedModel) -> int:
  """L: what the head has weights for, or what the model reads, or else the longest text it was
  fine-tuned on.
  """
  whole = released.card.head.pooling == 'positions' or released.config.batch_norm
  return released.config.max_length if whole else released.card.length


def _probabilities(
  model: Classifier, regression: bool, tokens: Int[Array, 'B L']
) -> Float[Array, 'B C']:
  logits = model(tokens, tokens != tokenizer.PAD_ID)
  return logits if regression else jax.nn.softmax(logits)


def _program(released: LoadedModel) -> Callable[[Int[Array, 'B L']], Float[Array, 'B C']]:
  return functools.partial(_probabilities, released.model, released.card.task_kind == REGRESSION)


def _lowered(released: LoadedModel, batch: int) -> jax_export.Exported:
  """The program for all platforms; its batch is free where none is asked for and that can be
  lowered, else one row.
  """

  def lower(size: Any) -> jax_export.Exported:
    shape = jax.ShapeDtypeStruct((size, exported_length(released)), jnp.int32)
    return jax_export.export(jax.jit(_program(released)), platforms=PLATFORMS)(shape)

  if batch:
    return lower(batch)
  try:
    return lower(jax_export.symbolic_shape('batch')[0])
  except _UNLOWERED:
    return lower(1)


def describe_program(released: LoadedModel, fixed: int | None) -> dict[str, Any]:
  """What `call.json` says."""
  card, two = released.card, len(released.card.fields) == 2 and not released.card.concatenate_fields
  return {
    'task': card.task,
    'kind': card.task_kind,
    'labels': list(card.labels),
    'fields': list(card.fields),
    'program': PROGRAM_FILE,
    'platforms': list(PLATFORMS),
    'input': {
      'name': 'tokens',
      'dtype': 'int32',
      'shape': [fixed or 'batch', exported_length(released)],
    },
    'output': {
      'name': 'value' if card.task_kind == REGRESSION else 'probabilities',
      'dtype': 'float32',
      'shape': [fixed or 'batch', max(1, len(card.labels))],
    },
    'tokenizer': {
      'file': build.TOKENIZER,
      'library': 'sentencepiece',
      'before': 'lower-case the text'
      + (', the fields joined by a space' if card.concatenate_fields else ''),
      'template': '<s> A </s></s> B </s>' if two else '<s> A </s>',
      'longest': card.length,
      'longer': 'loses tokens from the end of its longer text',
      'pad_to': exported_length(released),
      'ids': {piece: number for number, piece in enumerate(tokenizer.SPECIAL_TOKENS)},
    },
    'python': _python(card, fixed or 1, exported_length(released), two),
  }


def _python(card: Card, rows: int, most: int, two: bool) -> list[str]:
  """Lines that answer one text, or pair, where `jax`, `numpy` and `sentencepiece` are installed and
  nothing of ours.
  """
  # so many pieces of either text are sure to fit
  begin, end, half = tokenizer.BEGIN_ID, tokenizer.END_ID, (card.length - 4) // 2
  ids = [f"ids = [{begin}, *reads.encode('a text'.lower())[:{card.length - 2}], {end}]"]
  if two:
    ids = [
      f"a, b = (reads.encode(text.lower())[:{half}] for text in ('a text', 'another'))",
      f'ids = [{begin}, *a, {end}, {end}, *b, {end}]',
    ]
  return [
    'import jax, numpy, sentencepiece',
    'from jax import export',
    f"program = jax.jit(export.deserialize(bytearray(open('{PROGRAM_FILE}', 'rb').read())).call)",
    f"reads = sentencepiece.SentencePieceProcessor(model_file='{build.TOKENIZER}')",
    *ids,
    f"tokens = numpy.full(({rows}, {most}), {tokenizer.PAD_ID}, 'int32')",
    'tokens[0, :len(ids)] = ids',
    'answer = numpy.asarray(program(tokens))[0]',
  ]


def open_program(folder: pathlib.Path) -> CallResult:
  """The program in a folder, as a function of tokens on the host."""
  data = files.read_bytes(folder / PROGRAM_FILE, f'the program {folder / PROGRAM_FILE}')
  exported = jax_export.deserialize(bytearray(data))
  call = jax.jit(exported.call)
  return lambda tokens: np.asarray(call(tokens))


def _rows(released: LoadedModel, count: int) -> Int[np.ndarray, 'B L']:
  """Rows of ordinary pieces of every length."""
  dice, most = np.random.default_rng(0), exported_length(released)
  tokens = dice.integers(
    len(tokenizer.SPECIAL_TOKENS), released.tokenizer.size, (count, most), np.int32
  )
  tokens[:, 0] = tokenizer.BEGIN_ID
  for row, end in zip(
    tokens, np.linspace(2, released.card.length - 1, count).astype(int), strict=True
  ):
    row[end], row[end + 1 :] = tokenizer.END_ID, tokenizer.PAD_ID
  return tokens


def _compare(released: LoadedModel, answer: CallResult, fixed: int | None) -> float:
  """The largest difference between the program's answers and the model's, in batches of one and of
  several.
  """
  ours, found = jax.jit(_program(released)), []
  for count in (fixed,) if fixed else (1, 5):
    tokens = _rows(released, count)
    found.append(np.abs(answer(tokens) - np.asarray(ours(tokens))).max())
  worst = float(np.max(found))  # NaN where one is
  if not worst <= TOLERANCE:
    raise InputError(
      f'answers that differ by {TOLERANCE} at most',
      f'{worst:.2g}',
      'report it, with the shape of the model; what was written is removed',
    )
  return worst


def _milliseconds(answer: CallResult, released: LoadedModel, count: int) -> dict[str, float]:
  """How long an answer takes from tokens on the host to probabilities on the host: `median` and
  `p95` of `_CALLS`.
  """
  tokens, spent = _rows(released, count), []
  for number in range(_WARMUP_CALLS + _NUM_CALLS):
    begin = time.perf_counter()
    answer(tokens)
    if number >= _WARMUP_CALLS:
      spent.append(time.perf_counter() - begin)
  return {
    name: 1e3 * float(np.quantile(spent, share)) for name, share in (('median', 0.5), ('p95', 0.95))
  }
