"""The run directory: config.json, manifest.json, result.json and the logs of JSON lines.

The logs are metrics.jsonl, scores.jsonl and predictions.jsonl. Lines are appended one at a time; a
reader ignores a last line that a crash cut short. Process 0 of a multi-process run writes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import distributed, files, old_names, schema
from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import COUNT, FLAG, MAYBE, NUMBER, TEXT

CONFIG, MANIFEST, RESULT = 'config.json', 'manifest.json', 'result.json'
TOKENIZER = 'tokenizer.model'  # also in the folder of a corpus
FAILURE, BITS_PER_WORD = 'failure.json', 'bits_per_word.json'  # of a point of a sweep
METRICS, SCORES, PREDICTIONS = 'metrics.jsonl', 'scores.jsonl', 'predictions.jsonl'
IMPORTED = 'imported'  # kind of a run that `minilm import` wrote, and a field of its manifest
# Types of the fields of a log line. All are optional here; each reader requires those it needs.
_LINE_FIELDS = {
  'task?': TEXT,
  'split?': TEXT,
  'epoch_choice?': TEXT,
  'checkpoint?': TEXT,
  'member?': COUNT,
  'seed?': COUNT,
  'pretrained?': FLAG,
  'learning_rate?': NUMBER,
  'epoch?': NUMBER,
  'checkpoint_step?': MAYBE,
}
_LINE_SCHEMAS = {
  METRICS: _LINE_FIELDS
  | {
    'step?': COUNT,
    'loss?': NUMBER,
    'perplexity?': NUMBER,
    'tokens?': NUMBER,
    'flops?': NUMBER,
    'seconds?': NUMBER,
    'gradient_norm?': NUMBER,
    'parameter_norm?': NUMBER,
    'tokens_per_second?': NUMBER,
  },
  SCORES: _LINE_FIELDS
  | {
    'metric?': TEXT,
    'value?': NUMBER,
    'low?': NUMBER,
    'high?': NUMBER,
    'headline?': FLAG,
    'examples?': COUNT,
    'train_examples?': COUNT,
    'held_out?': COUNT,
    'filtered?': FLAG,
    'validation_score?': NUMBER,
    'majority?': NUMBER,
    'frequency?': NUMBER,
    'constant_prediction?': FLAG,
    'truncated?': COUNT,
  },
  PREDICTIONS: _LINE_FIELDS | {'predictions?': [NUMBER], 'labels?': [NUMBER]},
}
# Recipe fields that may change when a run is resumed.
_CHANGEABLE_FIELDS = ('log.sinks', 'log.project', 'log.name')
_ABSENT = '(absent)'
_MAX_LINE_BYTES = 1 << 24  # our lines have thousands


def append_line(path: epath.PathLike, record: dict[str, Any]) -> None:
  """Appends one JSON line in process 0; does nothing in the others."""
  if distributed.is_primary():
    with epath.Path(path).open('a') as file:
      file.write(files.format_json_line(record))


def read_lines(path: epath.PathLike) -> Iterator[dict[str, Any]]:
  """Yields the records of a JSON-lines log, without a last line that was cut short.

  A missing file yields nothing.

  Raises:
    InputError: the log cannot be read, or a complete line is not a JSON object with fields of the
      types of this log.
  """
  path = epath.Path(path)
  if not path.exists():
    return
  try:
    with path.open('rb') as file:
      for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b''), 1):
        if not line.strip():
          continue
        try:
          record = files.parse_json(line)
        except ValueError as error:
          if _is_cut_short(line):
            return
          raise InputError(
            f'the log {path}', f'line {number} is not JSON: {error}', 'remove that line'
          ) from None
        if path.name in _LINE_SCHEMAS and isinstance(record, dict):
          record = old_names.rename_columns(record)
        line_schema = _LINE_SCHEMAS.get(path.name, {})
        if fault := schema.find_schema_fault(record, line_schema, f'line {number}'):
          raise InputError(f'the log {path}', fault, 'remove that line')
        yield record
  except OSError as error:
    raise InputError(
      f'the log {path}', f'it cannot be read: {error}', 'check the path and its permissions'
    ) from None


def _is_cut_short(line: bytes) -> bool:
  """Returns whether the write of a last line was interrupted; unwritten bytes of a file are NUL."""
  return (
    not line.endswith(b'\n')
    and len(line) < _MAX_LINE_BYTES
    and (line.startswith(b'{') or not line.strip(b'\0'))
  )


def keep_lines(
  path: epath.PathLike, is_kept: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
  """Rewrites a log with some of its records, as a resumed run does with those after its checkpoint.

  Returns:
    The records that stay.
  """
  records = [record for record in read_lines(path) if is_kept(record)]
  write_lines(path, records)
  return records


def write_lines(path: epath.PathLike, records: Sequence[dict[str, Any]]) -> None:
  """Writes a JSON-lines log atomically."""
  files.write_bytes(path, ''.join(map(files.format_json_line, records)).encode())


def open_run(
  workdir: epath.PathLike, config: Mapping[str, Any], changeable: Sequence[str] = ()
) -> epath.Path:
  """Creates the run directory, or opens the one that an earlier start of the same recipe created.

  Args:
    workdir: the directory.
    config: the resolved recipe as plain data.
    changeable: recipe fields that may differ from the stored ones, besides those of the log sinks.

  Raises:
    InputError: the directory belongs to another recipe, or cannot be created.
  """
  workdir = epath.Path(workdir)
  files.make_folder(workdir, f'a run in {workdir}')
  path = workdir / CONFIG
  if not path.exists():
    files.write_json(path, config)
    return workdir
  stored = files.read_object(path, f'the recipe of the run in {workdir}')
  old = flatten(old_names.complete_recipe(stored))
  new = flatten(old_names.complete_recipe(json.loads(files.format_json_line(config))))
  # An earlier version lacks fields of today: the same recipe, as long as they are off.
  off = {name for name in new.keys() - old.keys() if not new[name]}
  changes = [
    f'{name} is {old.get(name, _ABSENT)!r} there and {new.get(name, _ABSENT)!r} here'
    for name in sorted((old.keys() | new.keys()).difference(off, _CHANGEABLE_FIELDS, changeable))
    if old.get(name, _ABSENT) != new.get(name, _ABSENT)
  ]
  if changes:
    raise InputError(
      f'a run in {workdir}',
      f'it belongs to another recipe: {"; ".join(changes[:6])}',
      'give another --workdir, or the recipe that the directory was made with',
    )
  return workdir


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts by their names with dots.

  >>> flatten({'a': 1, 'b': {'c': 2}})
  {'a': 1, 'b.c': 2}
  """
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    name: leaf
    for key, value in tree.items()
    for name, leaf in flatten(value, f'{prefix}.{key}' if prefix else key).items()
  }


def read_import_record(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns the source of an imported run and what was left out; {} for a run trained here.

  Raises:
    InputError: the manifest is damaged.
  """
  path, what = epath.Path(workdir) / MANIFEST, f'the manifest of {workdir}'
  form = {'from': TEXT, 'head': FLAG, 'left_out': [TEXT], 'files': {}}
  manifest = files.read_object(path, what, {f'{IMPORTED}?': form}) if path.exists() else {}
  return manifest[IMPORTED] if IMPORTED in manifest else {}


def read_corpus_hashes(workdir: epath.PathLike) -> dict[str, str]:
  """Returns the hashes of a run's `corpus` and `tokenizer`, and its `corpus_folder`.

  Raises:
    InputError: its manifest is missing or damaged.
  """
  names = ('corpus', 'tokenizer', 'corpus_folder')
  manifest = files.read_object(
    epath.Path(workdir) / MANIFEST, f'the manifest of {workdir}', dict.fromkeys(names, TEXT)
  )
  return {name: manifest[name] for name in names}
