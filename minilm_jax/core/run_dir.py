"""Reads and writes a run directory: config.json, manifest.json, result.json and logs.

The logs metrics.jsonl, scores.jsonl and predictions.jsonl have one JSON object a line. Readers
ignore an incomplete last line, which a crash can leave. Process 0 of a multi-process run writes.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import distributed, files, lock, old_names, paths, progress
from minilm_jax.core.errors import COUNT, FLAG, MAYBE, NUMBER, TEXT, InputError, find_schema_fault

CONFIG, MANIFEST, RESULT = 'config.json', 'manifest.json', 'result.json'
TOKENIZER = 'tokenizer.model'  # also in the folder of a corpus
CLASSIFIER = 'classifier.json'  # card in the folder of a saved classifier, which has no config.json
FAILURE, BITS_PER_WORD = 'failure.json', 'bits_per_word.json'  # files of a sweep point
METRICS, SCORES, PREDICTIONS = 'metrics.jsonl', 'scores.jsonl', 'predictions.jsonl'
IMPORTED = 'imported'  # kind of a run of `minilm import`, and a field of its manifest
PENDING_ORIGIN = '.origin.json'  # origin of a run that has no manifest yet
ORIGIN = 'origin'  # field of the manifest of a run that starts with the weights of another run
# Types of log fields. All fields are optional; each reader requires the fields that it needs.
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
# Fields of each line of the log of a pre-training run.
RUN_LINE = ('step', 'split', 'loss', 'perplexity', 'tokens', 'flops', 'seconds')
# Recipe fields that can differ when a run is resumed.
_CHANGEABLE_FIELDS = ('log.sinks', 'log.project', 'log.name')
# Fields for the machine, which the last start determines.
_MACHINE_FIELDS = (
  *('mesh.population', 'mesh.data', 'mesh.model'),
  *('corpus_placement', 'population.strategy'),
)
# Checksums, which folders of earlier versions lack.
_CHECKSUM_FIELDS = ('weights', 'examples')
_ABSENT = '(absent)'
_CHECKPOINT, _CHECKPOINT_LINK = 'checkpoint', 'checkpoint_link'
_MAX_LINE_BYTES = 1 << 24  # log lines of this package have a few KB


def append_line(path: epath.PathLike, record: dict[str, Any]) -> None:
  """Appends one JSON line; only process 0 writes."""
  if distributed.is_primary():
    files.append_bytes(path, files.format_json_line(record).encode())


def compute_row_length(line: Mapping[str, Any], batch_size: int) -> int:
  """Returns the tokens of a row of the corpus, from a line of metrics.jsonl after step 0."""
  return round(line['tokens'] / (line['step'] * batch_size))


def read_lines(path: epath.PathLike, needed: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
  """Yields the records of a log without an incomplete last line; nothing for a missing file.

  Raises:
    InputError: the log cannot be read, or a complete line is not a JSON object with the needed
      fields and the field types of this log.
  """
  path = epath.Path(path)
  if not path.exists():
    return
  try:
    with path.open('rb') as file:
      # The files of a bucket have no limit for the length of a line.
      is_remote = '://' in os.fspath(path)
      lines = file if is_remote else iter(lambda: file.readline(_MAX_LINE_BYTES), b'')
      for number, line in enumerate(lines, 1):
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
        if fault := find_schema_fault(record, line_schema, f'line {number}'):
          raise InputError(f'the log {path}', fault, 'remove that line')
        if missing := [name for name in needed if name not in record]:
          fault = f'line {number} without {", ".join(missing)}'
          raise InputError(f'the log {path}', fault, 'remove that line')
        yield record
  except OSError as error:
    raise InputError(
      f'the log {path}', f'an unreadable file: {error}', 'check the path and its permissions'
    ) from None


def _is_cut_short(line: bytes) -> bool:
  """Returns whether a line without line feed was interrupted; unwritten bytes of a file are NUL."""
  return (
    not line.endswith(b'\n')
    and len(line) < _MAX_LINE_BYTES
    and (line.startswith(b'{') or not line.strip(b'\0'))
  )


def keep_lines(
  path: epath.PathLike, is_valid: Callable[[dict[str, Any]], bool], needed: Sequence[str] = ()
) -> list[dict[str, Any]]:
  """Removes the other records from a log and returns the valid records.

  A resumed run removes the records that were logged after its checkpoint.
  """
  records = [record for record in read_lines(path, needed) if is_valid(record)]
  write_lines(path, records)
  return records


def write_lines(path: epath.PathLike, records: Sequence[dict[str, Any]]) -> None:
  """Writes a JSON-lines log atomically."""
  files.write_bytes(path, ''.join(map(files.format_json_line, records)).encode())


def open_run(
  workdir: epath.PathLike,
  config: Mapping[str, Any],
  changeable: Sequence[str] = (),
  origin: Mapping[str, Any] = {},
) -> epath.Path:
  """Creates a run directory with config.json, or opens an existing directory of the same recipe.

  Fields for the machine, such as those of `mesh`, may have other values; `store_machine_fields`
  stores them.

  Args:
    changeable: fields that can differ from the stored recipe, in addition to the log sinks.
    origin: record of `read_origin` for a new run; a later start finds it without a manifest.

  Returns:
    The run directory.

  Raises:
    InputError: the directory has another recipe or a classifier, or cannot be created.
  """
  workdir = epath.Path(workdir)
  files.make_folder(workdir, f'a run in {workdir}')
  path = workdir / CONFIG
  if (workdir / CLASSIFIER).exists():
    raise InputError(
      f'a run in {workdir}', f'a saved classifier with {CLASSIFIER}', 'give another --workdir'
    )
  if not path.exists():
    # In a recipe of pre-training, the name is that of a group of fields.
    source = config[_CHECKPOINT] if _CHECKPOINT in config else ''
    link = link_source(source, workdir) if isinstance(source, str) else {}
    if origin:
      files.write_json(workdir / PENDING_ORIGIN, dict(origin))
    else:
      (workdir / PENDING_ORIGIN).unlink(missing_ok=True)  # of a start that ended before config.json
    files.write_json(path, {**config, **link})
    return workdir
  stored = files.read_object(path, f'the recipe of the run in {workdir}', {'kind?': TEXT})
  stored_link = stored.pop(_CHECKPOINT_LINK, '')
  old = flatten(old_names.complete_recipe(stored))
  new = flatten(old_names.complete_recipe(json.loads(files.format_json_line(config))))
  if isinstance(old.get(_CHECKPOINT), str):
    old[_CHECKPOINT] = paths.follow_reference(old[_CHECKPOINT], workdir, str(stored_link))
  # Recipes of an earlier version lack newer fields; a newer field that is off changes nothing.
  off = {
    name
    for name in new.keys() - old.keys()
    if not new[name] or name.partition('.')[0] in _CHECKSUM_FIELDS
  }
  changes = [
    f'{name} is {new.get(name, _ABSENT)!r}, stored is {old.get(name, _ABSENT)!r}'
    for name in sorted(
      (old.keys() | new.keys()).difference(off, _CHANGEABLE_FIELDS, _MACHINE_FIELDS, changeable)
    )
    if not paths.is_same(old.get(name, _ABSENT), new.get(name, _ABSENT))
  ]
  if changes:
    raise InputError(
      f'a run in {workdir}',
      f'a run of another recipe: {"; ".join(changes[:6])}',
      'give another --workdir, or the stored recipe',
    )
  return workdir


def store_machine_fields(workdir: epath.PathLike, config: Mapping[str, Any]) -> None:
  """Stores a recipe of pre-training that differs from the stored recipe in fields for the machine."""
  path = epath.Path(workdir) / CONFIG
  stored = files.read_object(path, f'the recipe of the run in {workdir}')
  old, new = flatten(old_names.complete_recipe(stored)), flatten(dict(config))
  if any(name in old and old[name] != new[name] for name in _MACHINE_FIELDS):
    files.write_json(path, config)


def measure_once(
  workdir: epath.PathLike,
  identity: dict[str, Any],
  measure: Callable[[], dict[str, Any]],
  name: str,
  list_scores: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
  """Returns the content of result.json, which the first call for a work directory measures.

  Args:
    workdir: Directory for config.json and result.json; '' measures and writes no files.
    identity: Content of config.json.
    measure: Returns the content of result.json.
    name: Name of the measurement in messages, such as 'scores of these pairs'.
    list_scores: Returns the lines of scores.jsonl; None writes no such file.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: The work directory has another run than `identity`.
  """
  if not os.fspath(workdir):
    return measure()
  # A finished work directory may be read-only, so no lock is taken.
  is_finished = (epath.Path(workdir) / RESULT).exists()
  with contextlib.nullcontext() if is_finished else lock.hold_lock(workdir):
    folder = open_run(workdir, identity)
    if (folder / RESULT).exists():
      lock.remove_stale_lock(folder)  # of a process that was killed after writing its result
      progress.log(f'nothing to do: {folder} has the {name}')
    else:
      result = measure()
      if list_scores:
        write_lines(folder / SCORES, list_scores(result))
      files.write_json(folder / RESULT, result)
  return files.read_json(folder / RESULT, f'the {name} in {folder}')


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts by dotted name.

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
  """Returns the source and the omitted parts of an imported model; {} for other runs.

  Raises:
    InputError: the manifest is damaged.
  """
  return _read_record(
    workdir, IMPORTED, {'from': TEXT, 'head': FLAG, 'left_out': [TEXT], 'files': {}}
  )


def read_origin(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns the checkpoint that gave a run its first weights; {} for a run from random weights.

  The fields are `checkpoint` and `checkpoint_link` (the run, for `find_source`), `checkpoint_step`,
  `optimizer` (whether its moments were taken too), and `weights`, the checksum of the weights.

  Raises:
    InputError: the manifest is damaged.
  """
  schema = {'checkpoint': TEXT, 'checkpoint_step': COUNT, 'optimizer': FLAG, 'weights?': TEXT}
  schema[f'{_CHECKPOINT_LINK}?'] = TEXT
  folder = epath.Path(workdir)
  if (folder / PENDING_ORIGIN).exists() and not (folder / MANIFEST).exists():
    return files.read_object(folder / PENDING_ORIGIN, f'the origin of {workdir}', schema)
  return _read_record(workdir, ORIGIN, schema)


def name_origin(workdir: epath.PathLike) -> str:
  """Returns the origin of a run as RUN@STEP; '' for a run from random weights."""
  record = read_origin(workdir)
  return f'{record["checkpoint"]}@{record["checkpoint_step"]}' if record else ''


def _read_record(workdir: epath.PathLike, name: str, schema: dict[str, Any]) -> dict[str, Any]:
  """Returns an object in the manifest of a run; {} without it."""
  path = epath.Path(workdir) / MANIFEST
  if not path.exists():
    return {}
  manifest = files.read_object(path, f'the manifest of {workdir}', {f'{name}?': schema})
  return manifest[name] if name in manifest else {}


def read_corpus_hashes(workdir: epath.PathLike) -> dict[str, str]:
  """Returns the hashes `corpus` and `tokenizer` of a run, and its `corpus_folder` as a path.

  Raises:
    InputError: the manifest of the run is missing or damaged.
  """
  names = ('corpus', 'tokenizer', 'corpus_folder')
  manifest = files.read_object(
    epath.Path(workdir) / MANIFEST,
    f'the manifest of {workdir}',
    {**dict.fromkeys(names, TEXT), 'corpus_link?': TEXT},
  )
  link = manifest.get('corpus_link', '')
  folder = paths.follow_reference(manifest['corpus_folder'], workdir, link)
  return {name: manifest[name] for name in names} | {'corpus_folder': folder}


def name_corpus(workdir: epath.PathLike, folder: epath.PathLike) -> dict[str, str]:
  """Returns the fields of the manifest of a run that name its corpus."""
  link = paths.link_to(folder, workdir)
  return {'corpus_folder': str(folder)} | ({'corpus_link': link} if link else {})


def link_source(source: str, workdir: epath.PathLike) -> dict[str, str]:
  """Returns the field of a JSON file that connects a folder with its checkpoint; {} without one."""
  link = paths.link_to(source, workdir)
  return {_CHECKPOINT_LINK: link} if link else {}


def find_source(workdir: epath.PathLike, record: Mapping[str, Any], name: str) -> str:
  """Returns the path of the checkpoint `name`; `record` has the field of `link_source` or not."""
  return paths.follow_reference(name, workdir, str(record.get(_CHECKPOINT_LINK, '')))
