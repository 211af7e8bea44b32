"""Lists every input of the program: a small valid example, its reader and its command.

`tests/test_bad_input.py` applies the corruptions of `corruptions.WAYS`, and
`tests/campaigns/fuzz.py` applies mutations. Readers must raise InputError or read the input.
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from configs import base, custom_task
from minilm_jax.analysis import logged_table, loss_curves, runs, scores, training_sets
from minilm_jax.analysis.paper2 import pretraining_gap
from minilm_jax.analysis.report import finetune_figures
from minilm_jax.core import recipe, run_dir
from minilm_jax.data import build, corpus, documents, filters, tfds, tokenizer
from minilm_jax.evaluation import minimal_pairs, overlap
from minilm_jax.tasks import classifier, committee, committee_scores, examples
from minilm_jax.training import pretrained
from tests import corruptions, fake_runs
from tests.corruptions import PACK
from tests.docstring_commands import parse

TEXTS = tuple(
  f'the {a} {b} sees a größer {c} near tree {n} .'
  for n, (a, b, c) in enumerate(
    (a, b, c) for a in ('red', 'big', 'old') for b in ('dog', 'cat') for c in ('hen', 'pig', 'cow')
  )
)
Create = Callable[[pathlib.Path], pathlib.Path]
OTHER_TEXT = 'other valid text'
UNSEEN = 'bytes without effect'


@dataclasses.dataclass(frozen=True)
class Input:
  """An input of the program.

  Attributes:
    name: name in the table of results.
    create: creates a valid input in a folder; returns the file or folder to corrupt.
    read: reads the path without running a command.
    command: returns the command line for the path and a work directory.
    hostile: returns hostile contents for the valid bytes.
    packing: compression suffix in `corruptions.PACK`; text is corrupted before compression.
    harmless: corruptions that can still be read, with the reason.
    impossible: corruptions that do not apply, with the reason.
    write: writes a hostile content, if necessary with a matching hash.
    max_examples: maximum number of examples of a corruption, for slow readers.
  """

  name: str
  create: Create
  read: Callable[[pathlib.Path], Any]
  command: Callable[[pathlib.Path, pathlib.Path], list[str]] | None = None
  hostile: Callable[[bytes], list[bytes]] = lambda valid: []
  packing: str = ''
  harmless: Mapping[str, str] = dataclasses.field(default_factory=dict)
  impossible: Mapping[str, str] = dataclasses.field(default_factory=dict)
  write: Callable[[pathlib.Path, bytes], Any] = pathlib.Path.write_bytes
  max_examples: int = 1000


def create_file(name: str, content: bytes) -> Create:
  """Returns a function that creates one file."""
  return create_files('', lambda: {name: content}, name)


def create_files(root: str, list_files: Callable[[], dict[str, bytes]], name: str = '') -> Create:
  """Returns a function that creates files in a folder; `name` is the file to corrupt, '' the folder."""

  def create(folder: pathlib.Path) -> pathlib.Path:
    for file, content in list_files().items():
      path = folder / root / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
    return folder / root / name

  return create


def find_folder(path: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the folder with a name among a path and its parents."""
  return next(folder for folder in (path, *path.parents) if folder.name == name)


def format_table(form: str, rows: list[dict[str, Any]]) -> bytes:
  """Returns a table as .jsonl, .csv, .tsv or .parquet."""
  if form == 'parquet':
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()
  if form == 'jsonl':
    return _dump_lines(rows)
  mark = {'csv': ',', 'tsv': '\t'}[form]

  def format_cell(cell: Any) -> str:
    is_quoted = form == 'csv' and isinstance(cell, str)
    return '"{}"'.format(cell.replace('"', '""')) if is_quoted else str(cell)

  lines = [mark.join(rows[0]), *(mark.join(map(format_cell, row.values())) for row in rows)]
  return ''.join(f'{line}\n' for line in lines).encode()


def damage_table(form: str, valid: bytes) -> list[bytes]:
  """Returns hostile tables."""
  if form == 'jsonl':
    return corruptions.replace_values(valid)
  if form == 'parquet':
    return [
      *_make_bad_parquet(),
      valid[:-8] + b'\xff\xff\xff\x7fPAR1',
      valid[:-8] + b'\0\0\0\0PAR1',
      b'PAR1' + b'\0' * 8 + b'PAR1',
    ]
  header, _, body = valid.partition(b'\n')
  mark = b',' if form == 'csv' else b'\t'
  return [
    header + b'\n' + b'\0' * 99,
    header + mark + header + b'\n' + body,
    b'"' + valid,
    b'"' * 9999,
    mark * 99999,
    header + b'\n' + mark * 5 + b'\n',
    b'a\n' * 9999,
    header + b'\n"a\nb',
    header.replace(b'text', b'../%s%n') + b'\n' + body,
  ]


def _make_bad_parquet() -> list[bytes]:
  """Returns tables whose columns are not text or have no Python value."""
  ends = {'label': pyarrow.array(['0', '1'])}
  columns = (
    pyarrow.array([b'\xff', b'\0']),
    pyarrow.array([[1], None]),
    pyarrow.array([2**50, -(2**50)], 'timestamp[s]'),
    pyarrow.array([1, 2], pyarrow.timestamp('s', 'No/Where')),
    pyarrow.array([1, 2], 'timestamp[ns]'),
    pyarrow.array([1.5, float('nan')]),
    pyarrow.array([None, None], 'string'),
    pyarrow.array(['a', 'b']).dictionary_encode(),
    pyarrow.array([b'\xff\xfe', b'\xed\xa0\x80']).view('string'),
  )
  files = []
  for column in columns:
    file = io.BytesIO()
    parquet.write_table(
      pyarrow.table({'text': column, 'sentence_good': column, 'word': column, **ends}), file
    )
    files.append(file.getvalue())
  return files


# Readers and their recipes.


def _resolve_corpus(changes: Mapping[str, Any]) -> Any:
  source = base.corpus()
  source.workers = 1
  source.update_from_flattened_dict(dict(changes))
  return recipe.resolve(source, 'corpus')


def read_documents(path: pathlib.Path) -> list[str]:
  """Returns all documents of a file."""
  config = _resolve_corpus({'documents.sources': str(path)}).documents
  return [
    text
    for source in documents.expand_sources(config)
    for text in documents.read_documents(source, config)
  ]


def read_tokenizer(path: pathlib.Path) -> Any:
  model = tokenizer.load_tokenizer(path)
  return [model.decode(ids) for ids in model.encode(TEXTS[:2])], model.starts_word()


def read_task(path: pathlib.Path, **changes: Any) -> Any:
  source = custom_task.get_config()
  source.task.update(train=str(path), **changes)
  config = recipe.resolve(source, 'finetune').task
  task = examples.complete_task(config)
  splits = [examples.read_examples(task, config, split) for split in ('train', 'validation')]
  return [examples.hash_examples(split) for split in splits]


def read_pairs(path: pathlib.Path) -> Any:
  return minimal_pairs.read_pairs(path)


def read_recipe(path: pathlib.Path) -> Any:
  return parse('show', [f'--config={path}'])


def read_corpus(path: pathlib.Path) -> Any:
  folder = find_folder(path, 'corpus')
  return [corpus.load_split(folder, split).tokens.sum() for split in ('train', 'test')]


def read_run(path: pathlib.Path) -> Any:
  """Reads runs like a report, without figures."""
  paths = runs.find_runs([path if path.name == 'runs' else path.parent.parent])
  rows = [row for name, folder in paths.items() for row in runs.summarize_run(name, folder)]
  table = scores.make_score_table(runs.read_scores(paths))
  curves = [curve for name, folder in paths.items() for curve in runs.read_losses(name, folder)]
  matrices = (
    finetune_figures.read_confusions(paths, table)
    if any((folder / run_dir.PREDICTIONS).exists() for folder in paths.values())
    else []
  )
  return (
    rows,
    table,
    scores.average_tasks(table),
    finetune_figures.read_learning_curves(paths, table),
    finetune_figures.make_trajectories(table),
    curves,
    loss_curves.read_runs(paths),
    pretraining_gap.find_gaps(training_sets.read_training_sets(paths), table),
    matrices,
    runs.read_failures([path.parent.parent], paths),
  )


def read_dataset(path: pathlib.Path) -> Any:
  root = find_folder(path, 'tfds')
  return list(tfds.read_examples(tfds.find_dataset('tiny', str(root)), 'train'))


# Valid inputs.

TABLE = [{'text': text, 'label': str(i % 2)} for i, text in enumerate(TEXTS)]
PAIRS = [
  {'sentence_good': text, 'sentence_bad': text[::-1], 'paradigm': f'p{i % 2}'}
  for i, text in enumerate(TEXTS[:6])
]
FEWREL = {
  f'P{i}': [
    {'tokens': text.split(), 'h': ['a', 'Q1', [[1, 2]]], 't': ['b', 'Q2', [[4]]]}
    for text in TEXTS[i::2]
  ]
  for i in range(2)
}
RECIPE = (
  'from configs import base\n\n\ndef get_config():\n  """größer"""\n  config = base.corpus()\n'
  '  config.documents.sources = "microworld:30"\n  return config\n'
).encode()
_SHAPE = (
  b'embedding_size,hidden_size,intermediate_size,num_attention_heads,num_hidden_layers,Embedding parameters,'
  b'Non-embedding parameters,FLOPS Hoffman per sequence,FLOPS Kaplan per sequence'
)
LOGGED = (
  b'run_name,eval/updates,eval/loss,Tokens,'
  + _SHAPE
  + b'\n'
  + b''.join(
    f'größer {name},{n},{3 + 1 / n},{n * 32768},32,32,64,1,1,612608,638114,943964160,{6 * 638114 * 128}\n'.encode()
    for name in 'ab'
    for n in (100, 200, 300)
  )
)
METRICS = [
  {
    'step': step,
    'split': split,
    'loss': 3.0,
    'perplexity': 20.0,
    'tokens': step * 4096,
    'flops': 1e9 * step,
    'seconds': 0.5 * step,
  }
  for step in (10, 20, 30)
  for split in ('train', 'validation')
]
MANIFEST = {
  'corpus': 'c' * 64,
  'tokenizer': 't' * 64,
  'corpus_folder': 'corpora/x',
  'warmup': 2,
  'devices': ['cpu größer'],
  'training': {'rows': 100, 'tokens': 6400, 'of_rows': 100, 'of_tokens': 6400, 'subset': None},
  'parameters': {'embedding': 100, 'other': 200, 'total': 300},
  'flops_per_row': {'honey': 1e6, 'actual': 1e6},
}


@functools.cache
def tokenizer_model() -> bytes:
  """Returns a SentencePiece model that is trained on the texts."""
  return tokenizer.train_tokenizer(TEXTS, 'bpe', 60).model


def _corpus_files() -> dict[str, bytes]:
  """Returns the files of a corpus with 8 and 2 rows of 16 ids."""
  files, splits = {'tokenizer.model': tokenizer_model()}, {}
  for split, count in (('train', 8), ('validation', 0), ('test', 2)):
    shards = []
    if count:
      file = io.BytesIO()
      np.save(file, np.arange(count * 16, dtype='<u2').reshape(count, 16) % 50, allow_pickle=False)
      files[f'{split}-00000.npy'] = file.getvalue()
      shards = [
        {
          'file': f'{split}-00000.npy',
          'rows': count,
          'sha256': hashlib.sha256(file.getvalue()).hexdigest(),
        }
      ]
    splits[split] = {'rows': count, 'tokens': count * 16, 'shards': shards}
  digest = hashlib.sha256(tokenizer_model()).hexdigest()
  manifest = {
    'format': build.FORMAT,
    'length': 16,
    'vocabulary': 60,
    'dtype': 'uint16',
    'tokenizer': {'file': 'tokenizer.model', 'sha256': digest},
    'splits': splits,
    'settings': {'größer': 1},
    'sources': [],
    'hash': build.hash_corpus(digest, 16, splits),
  }
  return files | {'manifest.json': _dump(manifest)}


def make_hostile_shards(valid: bytes) -> list[bytes]:
  """Returns .npy files with hostile headers."""

  def array(header: bytes) -> bytes:
    header += b' ' * (-(len(header) + 11) % 64) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + valid[-256:]

  shape = b"{'descr': %s, 'fortran_order': False, 'shape': %s}"
  return [
    array(shape % pair)
    for pair in (
      (b"'|O'", b'(8, 16)'),
      (b"'<u2'", b'(-8, 16)'),
      (b"'<u2'", b'(1000000000000, 16)'),
      (b"'<u2'", b'(8, 16), ' + b'(' * 900),
      (b"'<u2'", b'(' + b'-' * 5000 + b'1,)'),
      (b"'<u2'", b"(8, '16')"),
      (b"'<u2'", b'(8.0, 16)'),
      (b"'../x'", b'(8, 16)'),
      (b"[('a', '<u2')]", b'(8, 16)'),
      (b"'<f4'", b'(8, 16)'),
      (b"'<u2'", b'(True, 16)'),
    )
  ] + [
    array(b'{1: 2, "a": 3}'),
    array(b'[]'),
    array(b'__import__("os")'),
    array(b'\xff\xfe'),
    array(b"'''"),
    b'\x93NUMPY\x01\x00\xff\xff',
    b'\x93NUMPY\x09\x00',
    b'\x93NUMPY',
  ]


def write_with_hash(path: pathlib.Path, content: bytes) -> None:
  """Writes a file of a corpus or classifier, and its hash into the manifest."""
  manifest = path.parent / 'manifest.json'
  old, new = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), content))
  manifest.write_text(manifest.read_text().replace(old, new))
  path.write_bytes(content)


def _run_files() -> dict[str, bytes]:
  """Returns the files of a pre-training run `pre` and a fine-tuning run `fine`."""
  model = {
    'embedding_size': 32,
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_heads': 8,
    'flops_heads': 8,
    'num_layers': 1,
    'vocab_size': 100,
    'max_length': 64,
    'tied': False,
  }
  pretrain_config = {
    'kind': 'pretrain',
    'seed': 0,
    'batch_size': 64,
    'num_steps': 30,
    'model': model,
    'optimizer': {'learning_rate': 1e-3, 'größer': 1},
    'population': {'members': 1, 'seeds': [], 'learning_rates': []},
  }
  finetune_config = {
    'kind': 'finetune',
    'checkpoint': 'runs/größer',
    'epochs': 3.0,
    'task': {'name': 'cola', 'filtered': False},
  }
  lines = [
    fake_runs.make_score_line(0.3 + 0.1 * seed, seed, pretrained, checkpoint='größer')
    for seed in range(2)
    for pretrained in (True, False)
  ]
  fields = ('epoch', 'split', 'seed', 'learning_rate', 'member', 'pretrained')
  predictions = {
    'task': 'cola',
    'split': 'validation',
    'epoch_choice': 'last',
    'seed': 0,
    'learning_rate': 1e-4,
    'member': 0,
    'checkpoint_step': 100,
    'pretrained': True,
    'predictions': [0, 1],
    'labels': [1, 1],
    'of': 'größer',
  }
  return {
    'pre/config.json': _dump(pretrain_config),
    'pre/manifest.json': _dump(MANIFEST),
    'pre/metrics.jsonl': _dump_lines([METRICS[0] | {'größer': 1}, *METRICS[1:]]),
    'fine/config.json': _dump(finetune_config),
    'fine/manifest.json': _dump({'parameters': {'total': 300}, 'devices': ['cpu größer']}),
    'fine/metrics.jsonl': _dump_lines(
      {key: line[key] for key in fields} | {'step': 10, 'matthews': 0.5, 'of': 'größer'}
      for line in lines
    ),
    'fine/scores.jsonl': _dump_lines(lines),
    'fine/predictions.jsonl': _dump_lines([predictions]),
  }


def _dump(value: Any) -> bytes:
  return json.dumps(value, ensure_ascii=False).encode()


def _dump_lines(records: Iterable[Any]) -> bytes:
  return b''.join(_dump(record) + b'\n' for record in records)


def copy_folder(source: pathlib.Path, into: str, name: str) -> Create:
  """Returns a function that copies a folder; `name` is the file to corrupt, '' the folder."""

  def create(folder: pathlib.Path) -> pathlib.Path:
    shutil.copytree(source, folder / into)
    return folder / into / name

  return create


def swap_type(path: pathlib.Path) -> None:
  """Replaces a file by a folder, or a folder by a file."""
  if path.is_dir():
    shutil.rmtree(path)
    path.write_bytes(b'a file\n')
  else:
    path.unlink()
    path.mkdir()


# Inputs without checkpoints.

_LAST = 'checkpoints/8/default'
SMALL = ['--config=configs/tiny.py:corpus', '--config.tokenizer.size=60', '--config.workers=1']
_TEXT = {'flipped': OTHER_TEXT, 'truncated': 'a shorter text'}
_ROWS = {'flipped': OTHER_TEXT, 'truncated': 'fewer rows'}
_PACKED = {
  '.gz': {'flipped': UNSEEN},
  '.xz': {},
  '.zst': {'flipped': 'no checksum: ' + OTHER_TEXT},
}
_NO_TEXT = {'UTF-16': 'no text', 'Latin-1': 'no text'}
_FIELD = {'hostile': 'an unused field, or a valid value', 'flipped': UNSEEN}

_JSON = {**_FIELD, 'truncated': 'complete except for the line feed'}


def damage_text(valid: bytes) -> list[bytes]:
  return [
    b'a\0b\n' + valid,
    b'\xed\xa0\x80\n',
    b'\xc0\xaf\n',
    b'\xf5\x80\x80\x80',
    valid + b'\xff',
    valid + b'\n' + bytes(99),
  ]


def make_json_input(name: str, create: Any, read: Any, command: Any, **fields: Any) -> Input:
  """Returns a file of ASCII JSON, whose hostile contents have other values."""
  defaults = {
    'hostile': corruptions.replace_values,
    'harmless': _JSON,
    'impossible': {'Latin-1': 'only ASCII'},
  }
  return Input(name, create, read, command, **{**defaults, **fields})


def make_corpus_command(*fields: str) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
  """Returns the command that builds a corpus with a path as the value of the last field."""
  return lambda path, work: [
    'corpus',
    *SMALL,
    *(f'--config.{field}' for field in fields[:-1]),
    f'--config.{fields[-1]}={path}',
    f'--workdir={work}',
  ]


def list_table_inputs(
  label: str, content: list[dict[str, Any]], read: Callable[[pathlib.Path], Any], command: Any
) -> list[Input]:
  """Returns an input for each format and compression."""
  inputs = []
  for name in ('jsonl', 'csv', 'tsv', 'parquet', 'jsonl.zst', 'csv.gz', 'tsv.xz'):
    form, _, packing = name.partition('.')
    packing = packing and f'.{packing}'
    harmless = (
      _PACKED[packing] if packing else {'flipped': OTHER_TEXT} if form == 'parquet' else _ROWS
    )
    inputs.append(
      Input(
        f'{label}, .{name}',
        create_file(f'a.{name}', PACK[packing](format_table(form, content))),
        read,
        command,
        functools.partial(damage_table, form),
        packing,
        {**harmless, 'hostile': 'an unused row, or unusual text'},
        _NO_TEXT if form == 'parquet' else {},
      )
    )
  return inputs


def list_document_inputs() -> list[Input]:
  command, text = (
    make_corpus_command('documents.sources'),
    ''.join(text + '\n\n' for text in TEXTS).encode(),
  )
  return [
    Input(
      f'text, .txt{packing}',
      create_file(f'a.txt{packing}', PACK[packing](text)),
      read_documents,
      command,
      damage_text,
      packing,
      _PACKED[packing] if packing else _TEXT,
    )
    for packing in PACK
  ] + list_table_inputs('text', TABLE, read_documents, command)


def list_task_inputs() -> list[Input]:
  def command(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    return ['show', '--config=configs/custom_task.py', f'--config.task.train={path}']

  return [
    *list_table_inputs('task', TABLE, read_task, command),
    Input(
      'task, FewRel .json',
      create_file('a.json', _dump(FEWREL)),
      functools.partial(read_task, markers=True),
      command,
      corruptions.replace_values,
      harmless={
        'flipped': OTHER_TEXT,
        'UTF-16': 'JSON parsers detect UTF-16',
        **_FIELD,
      },
    ),
  ]


def _show(path: pathlib.Path, work: pathlib.Path) -> list[str]:
  return ['show', f'--config={path}', '--json']


def _report(path: pathlib.Path, work: pathlib.Path) -> list[str]:
  return [
    'report',
    str(find_folder(path, 'runs')),
    f'--workdir={work}',
    *(['--confusion'] if path.name == run_dir.PREDICTIONS else []),
  ]


def _overlap(path: pathlib.Path, work: pathlib.Path) -> list[str]:
  folder = find_folder(path, 'corpus')
  return ['overlap', f'--corpus={folder}', '--config=configs/glue.py:microworld/sentiment']


def damage_recipe(valid: bytes) -> list[bytes]:
  """Returns recipes that raise exceptions or return invalid values."""

  def add_line(line: str) -> bytes:
    return valid.replace(b'  return', f'  {line}\n  return'.encode())

  return [
    b'def get_config():\n  return get_config()\n',
    b'import sys\nsys.exit()\n',
    b'(' * 999,
    b'-' * 99999 + b'1\n',
    b'def get_config():\n  raise RuntimeError("../%s")\n',
    b'def get_config():\n  assert 0, "no"\n',
    b'def get_config():\n  return open("/no/such")\n',
    b'x = bytearray(1 << 60)\n',
    b'raise StopIteration\n',
    valid + b'\0',
    b'get_config = 3\n',
    b'import configs.nothing\n',
    b'class get_config(dict): pass\n',
  ] + [
    add_line(line)
    for line in (
      'config.rows.length = -5',
      'config.rows.length = 10**30',
      'config.rows.length = "1" * 5000',
      'config.splits.test = float("nan")',
      'config.splits.test = 10**5000',
      'config.kind = ["corpus"]',
      'config.documents.sources = "a\\0b.txt"',
      'config.documents.sources = "\\ud800"',
      'config.rows = 3',
      'config.documents.sources = "../" * 2000 + "x.txt"',
      'config.documents.sources = "%s%n{0}.txt"',
      'config.documents.sources = "/dev/zero"',
      'config.tokenizer.size = None',
      'config.documents = [1]',
      'config.documents.sources = "microworld:" + "9" * 5000',
      'config["a" * 99] = 1',
      'config.workers = True',
    )
  ]


def _list_corpus_inputs() -> list[Input]:
  def make(
    name: str, file: str, read: Any = read_corpus, hostile: Any = None, **fields: Any
  ) -> Input:
    fields = {'impossible': _NO_TEXT, **fields, **({'hostile': hostile} if hostile else {})}
    create = create_files('corpus', _corpus_files, file)
    return Input(f'corpus, {name}', create, read, _overlap, **fields)

  return [
    make('folder', '', impossible={}),
    make('rows', 'train-00000.npy', hostile=make_hostile_shards, write=write_with_hash),
    make(
      'manifest.json',
      'manifest.json',
      hostile=corruptions.replace_values,
      harmless=_FIELD,
      impossible={},
    ),
    make(
      'tokenizer',
      'tokenizer.model',
      read_corpus_tokenizer,
      lambda valid: [b'', valid * 2, valid[:-9]],
    ),
  ]


def read_corpus_tokenizer(path: pathlib.Path) -> Any:
  return overlap.open_tokenizer(path.parent, corpus.read_manifest(path.parent)).size


def _list_run_inputs() -> list[Input]:
  log = {
    'missing': 'an interrupted run',
    'empty': 'an empty log',
    'truncated': 'an interrupted write',
  }
  harmless = {
    'pre/config.json': {'missing': 'a folder without a run'},
    'pre/manifest.json': {'missing': 'an interrupted run'},
    'fine/config.json': {'missing': 'a folder without a run'},
    'fine/manifest.json': {'missing': 'an interrupted run'},
    'pre/metrics.jsonl': log,
    'fine/metrics.jsonl': log,
    'fine/scores.jsonl': log,
    'fine/predictions.jsonl': log,
  }
  return [
    Input('runs, folder', create_files('runs', _run_files), read_run, _report),
    *(
      make_json_input(
        f'run, {name}',
        create_files('runs', _run_files, name),
        read_run,
        _report,
        harmless={**_FIELD, **reasons},
        impossible={},
      )
      for name, reasons in harmless.items()
    ),
  ]


def list_inputs() -> list[Input]:
  """Returns all inputs without checkpoints and TFDS data."""

  words = make_corpus_command('vocabulary.word_list')

  def logged(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    return ['report', f'--logged={path}', f'--workdir={work}']

  listed = '\n'.join(sorted({word for text in TEXTS for word in text.split()})).encode()
  return [
    Input(
      'recipe',
      create_file('a.py', RECIPE),
      read_recipe,
      _show,
      damage_recipe,
      harmless={'flipped': 'another recipe', 'truncated': 'a valid recipe'},
    ),
    *list_document_inputs(),
    Input(
      'word list, .txt',
      create_file('words.txt', listed),
      filters.load_word_list,
      words,
      lambda valid: [b'two words\n', b'a,b\n', b'a\0b\n', b'\xed\xa0\x80', b' \n\t\n'],
      harmless=_TEXT,
    ),
    *list_table_inputs(
      'word list',
      [{'word': word} for word in listed.decode().split()],
      filters.load_word_list,
      words,
    )[:2],
    Input(
      'tokenizer',
      create_file('a.model', tokenizer_model()),
      read_tokenizer,
      make_corpus_command('tokenizer.path'),
      damage_model,
      impossible=_NO_TEXT,
      harmless={
        'flipped': 'another valid tokenizer',
        'truncated': 'a tokenizer with fewer pieces',
        'hostile': 'another valid tokenizer',
      },
    ),
    *_list_corpus_inputs(),
    *list_task_inputs(),
    *_list_run_inputs(),
    *(
      Input(
        f'logged table{suffix}',
        create_file(f'a.csv{packing}', PACK[packing](LOGGED)),
        logged_table.read_csv,
        logged,
        damage_log_table,
        packing,
        {**harmless, 'hostile': 'valid numbers'},
      )
      for suffix, packing, harmless in (('', '', _ROWS), (', .gz', '.gz', _PACKED['.gz']))
    ),
    *[
      case
      for case in list_table_inputs('minimal pairs', PAIRS, read_pairs, None)
      if not case.packing
    ],
  ]


def read_member(path: pathlib.Path) -> Any:
  """Reads a pre-training run without its weights."""
  folder = find_folder(path, 'run')
  return (
    pretrained.load_single_config(folder),
    pretrained.load_tokenizer(folder),
    run_dir.read_corpus_hashes(folder),
  )


def read_weights(path: pathlib.Path) -> Any:
  return pretrained.load(find_folder(path, 'run'))


def list_checkpoint_inputs(run_folder: pathlib.Path) -> list[Input]:
  """Returns the files of a pre-training run that commands read."""

  def command(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    folder = find_folder(path, 'run')
    return ['fill-mask', f'--checkpoint={folder}', '--text=the <mask> .']

  def create(name: str) -> Create:
    return copy_folder(run_folder, 'run', name)

  arrays = [file for file in (run_folder / _LAST).rglob('*') if file.is_file()]
  weights = str(max(arrays, key=lambda file: file.stat().st_size).relative_to(run_folder))
  fallback = dict.fromkeys(
    ('truncated', 'missing', 'swapped', 'empty'), 'fallback to the previous checkpoint'
  )
  fallback['flipped'] = UNSEEN
  return [
    Input('checkpoint, folder', create(''), read_weights, command),
    *(
      make_json_input(f'checkpoint, {name}', create(name), read_member, command)
      for name in ('config.json', 'manifest.json')
    ),
    Input(
      'checkpoint, tokenizer',
      create('tokenizer.model'),
      read_member,
      command,
      damage_model,
      impossible=_NO_TEXT,
      max_examples=3,
    ),
    Input(
      'checkpoint, weights',
      create(weights),
      read_weights,
      command,
      impossible={**_NO_TEXT, 'hostile': 'tested with _METADATA'},
      harmless=fallback,
      max_examples=2,
    ),
    make_json_input(
      'checkpoint, _METADATA',
      create(f'{_LAST}/_METADATA'),
      read_weights,
      command,
      harmless={**_FIELD, **fallback},
      max_examples=3,
    ),
  ]


def read_classifier(path: pathlib.Path) -> Any:
  folder = find_folder(path, 'classifier-0')
  return classifier.load_classifier(folder), committee_scores.read_outputs(folder)


def read_committee(path: pathlib.Path) -> Any:
  return committee.load_committee(find_folder(path, 'committee'))


def damage_outputs(valid: bytes) -> list[bytes]:
  """Returns damaged archives and archives with other arrays."""
  archives = []
  for arrays in ({'x': np.zeros(3)}, {'a outputs': np.zeros(3)}, {}):
    file = io.BytesIO()
    np.savez(file, **arrays)
    archives.append(file.getvalue())
  return [
    *archives[1:2],
    valid[:-30],
    valid.replace(b'NUMPY', b'NUMPX'),
    valid.replace(b'descr', b'%s%n,'),
    b'PK\x05\x06' + bytes(18),
    valid.replace(b"'shape': (", b"'shape': (-"),
    valid[:30] + b'\xff' * 30 + valid[60:],
  ]


def list_classifier_inputs(root: pathlib.Path) -> list[Input]:
  """Returns the files of a classifier and of a committee of two classifiers."""

  def make(build: Any, name: str, file: str, **fields: Any) -> Input:
    """Returns a file or folder of one kind, with a reader and a command of that kind."""
    kind, _, part = name.partition(', ')
    folder, read = {
      'classifier': ('classifier-0', read_classifier),
      'committee': ('committee', read_committee),
    }[kind]

    def predict(path: pathlib.Path, work: pathlib.Path) -> list[str]:
      return ['predict', f'--{kind}={find_folder(path, folder)}', '--text=the dog .']

    command = None if part == 'outputs.npz' else predict
    return build(name, copy_folder(root / folder, folder, file), read, command, **fields)

  return [
    make(Input, 'classifier, folder', ''),
    make(make_json_input, 'classifier, manifest.json', 'manifest.json', max_examples=12),
    make(
      make_json_input,
      'classifier, classifier.json',
      'classifier.json',
      write=write_with_hash,
      harmless={'hostile': 'another valid name or number'},
      max_examples=40,
    ),
    make(
      Input,
      'classifier, tokenizer',
      'tokenizer.model',
      impossible={**_NO_TEXT, 'hostile': 'tested with the other tokenizers'},
      max_examples=3,
    ),
    make(
      Input,
      'classifier, outputs.npz',
      'outputs.npz',
      hostile=damage_outputs,
      impossible=_NO_TEXT,
      write=write_with_hash,
      max_examples=7,
    ),
    make(Input, 'committee, folder', ''),
    make(make_json_input, 'committee, config.json', 'config.json', max_examples=8),
    make(make_json_input, 'committee, manifest.json', 'manifest.json', max_examples=12),
  ]


def damage_features(valid: bytes) -> list[bytes]:
  """Returns features with classes that TFDS would import."""
  return [
    *corruptions.replace_values(valid),
    valid.replace(b'tensorflow_datasets.core', b'tests.campaigns'),
    b'{"type": "this.module", "content": {}}',
    b'{"python_class_name": "os.path", "json_feature": {"json": "{}"}}',
  ]


def list_dataset_inputs(tfds_folder: pathlib.Path) -> list[Input]:
  """Returns the files of a dataset that TFDS prepared."""

  def command(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    fields = ('documents.sources=tiny', 'documents.data_dir')
    return make_corpus_command(*fields)(find_folder(path, 'tfds'), work)

  def create(name: str) -> Create:
    return copy_folder(tfds_folder, 'tfds', name and f'tiny/10.0.0/{name}')

  return [
    Input('TFDS, folder', create(''), read_dataset, command),
    *(
      make_json_input(
        f'TFDS, {name}',
        create(name),
        read_dataset,
        command,
        hostile=hostile,
        max_examples=25,
      )
      for name, hostile in (
        ('dataset_info.json', corruptions.replace_values),
        ('features.json', damage_features),
      )
    ),
    Input(
      'TFDS, records',
      create(next((tfds_folder / 'tiny/10.0.0').glob('*array_record*')).name),
      read_dataset,
      command,
      lambda valid: [valid[:-16] + b'\xff' * 16, valid[:64] + b'\xff' * 64 + valid[128:]],
      harmless={'flipped': UNSEEN, 'hostile': UNSEEN},
      impossible=_NO_TEXT,
      max_examples=4,
    ),
  ]


def damage_log_table(valid: bytes) -> list[bytes]:
  """Returns tables with invalid cells in each column."""
  header, line, *others = valid.splitlines(keepends=True)
  cells, tables = line.rstrip(b'\n').split(b','), []
  for number in range(len(cells)):
    for value in (
      b'-1',
      b'nan',
      b'1e999',
      b'1e300',
      b'',
      b'9' * 5000,
      b'"%s%n',
      b'0',
      b'1' + b'0' * 30,
    ):
      changed = b','.join([*cells[:number], value, *cells[number + 1 :]]) + b'\n'
      tables.append(header + changed + b''.join(others))
  return [*tables, *damage_table('csv', valid)]


def damage_model(valid: bytes) -> list[bytes]:
  """Returns SentencePiece models with fields that are too long, unknown or repeated."""
  return [
    valid * 2,
    valid + b'\x0a\xff\xff\xff\xff\x0f',
    b'\x0a\x80\x80\x80\x80\x10' + valid,
    b'\x0a\x00' * 999,
    b'\x0a\x03\x0a\x01\xff' * 9,
    valid[:40] + b'\0' * 40 + valid[40:],
    valid.replace(b'<pad>', b'<pa\xff>'),
    valid.replace(b'<mask>', b'\xff\xfe\xfd\xfc\xfb\xfa'),
    valid.replace(b'the', b'\xff\xfe\0'),
  ]
