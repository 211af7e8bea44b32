"""Every input that the program takes: a small good one, what reads it, and the verb that a user
would give it to.

`tests/test_bad_input.py` spoils each in every way of `corruptions.WAYS`, `tests/campaigns/fuzz.py`
in ways of its own. A reader says of bad input that it is an InputError, or reads what can be read.
"""

import dataclasses
import functools
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from minilm_jax.core import recipe, run_dir
from tests import corruptions
from tests.corruptions import PACK, UNPACK

TEXTS = tuple(
  f'the {a} {b} sees a größer {c} near tree {n} .'
  for n, (a, b, c) in enumerate(
    (a, b, c) for a in ('red', 'big', 'old') for b in ('dog', 'cat') for c in ('hen', 'pig', 'cow')
  )
)
OTHER_TEXT = 'other text, as good as the first'
UNSEEN = 'bytes that nothing depends on'


@dataclasses.dataclass(frozen=True)
class Input:
  """A row of the matrix.

  Attributes:
    name: what it is called.
    lay: puts a good one into an empty folder and gives the file, or folder, that is spoiled.
    read: what reads it, given that file; quicker than a verb.
    verb: the words of a command, given the file and a work directory.
    hostile: contents made to harm, from the good bytes.
    packing: a suffix of `corruptions.PACK`: text is spoiled inside it.
    harmless: ways of which some examples may be read, and why that is right.
    impossible: ways that this input has not, and why.
    leaves: what the verb may leave in the work directory, which a good start accepts.
    write: how a hostile content is written, with the hash that is to fit.
    most: examples of a way at most; few where a reader takes long.
  """

  name: str
  lay: Callable[[pathlib.Path], pathlib.Path]
  read: Callable[[pathlib.Path], Any]
  verb: Callable[[pathlib.Path, pathlib.Path], list[str]] | None = None
  hostile: Callable[[bytes], list[bytes]] = lambda good: []
  packing: str = ''
  harmless: Mapping[str, str] = dataclasses.field(default_factory=dict)
  impossible: Mapping[str, str] = dataclasses.field(default_factory=dict)
  leaves: tuple[str, ...] = ()
  write: Callable[[pathlib.Path, bytes], Any] = pathlib.Path.write_bytes
  most: int = 1000


def writes(name: str, content: bytes) -> Callable[[pathlib.Path], pathlib.Path]:
  """Lays out one file."""

  def lay(folder: pathlib.Path) -> pathlib.Path:
    (folder / name).write_bytes(content)
    return folder / name

  return lay


def of_columns(form: str, rows: list[dict[str, Any]]) -> bytes:
  """A table in one of the forms."""
  if form == 'parquet':
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()
  if form == 'jsonl':
    return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()
  mark = {'csv': ',', 'tsv': '\t'}[form]
  quoted = '"{}"'.format if form == 'csv' else str
  return ''.join(
    mark.join(map(quoted, line)) + '\n' for line in (rows[0], *(row.values() for row in rows))
  ).encode()


def bad_rows(form: str, good: bytes) -> list[bytes]:
  """Tables made to harm."""
  if form == 'jsonl':
    return corruptions.values(good)
  if form == 'parquet':
    return [
      *_bad_parquet(),
      good[:-8] + b'\xff\xff\xff\x7fPAR1',
      good[:-8] + b'\0\0\0\0PAR1',
      b'PAR1' + b'\0' * 8 + b'PAR1',
    ]
  first, _, rest = good.partition(b'\n')
  mark = b',' if form == 'csv' else b'\t'
  return [
    first + b'\n' + b'\0' * 99,
    first + mark + first + b'\n' + rest,
    b'"' + good,
    b'"' * 9999,
    mark * 99999,
    first + b'\n' + mark * 5 + b'\n',
    b'a\n' * 9999,
    first + b'\n"a\nb',
    first.replace(b'text', b'../%s%n') + b'\n' + rest,
  ]


def _bad_parquet() -> list[bytes]:
  """Tables of columns that are no text, or no value that Python has."""
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


# Readers, and the recipes that they need.


def _corpus(changes: Mapping[str, Any]) -> Any:
  from configs import base

  made = base.corpus()
  made.workers = 1
  made.update_from_flattened_dict(dict(changes))
  return recipe.resolve(made, 'corpus')


def read_documents(path: pathlib.Path) -> list[str]:
  """All documents of a file."""
  from minilm_jax.data import documents

  config = _corpus({'documents.sources': str(path)}).documents
  return [
    text
    for source in documents.expand_sources(config)
    for text in documents.read_documents(source, config)
  ]


def read_words(path: pathlib.Path) -> Any:
  from minilm_jax.data import filters

  return filters.load_word_list(path)


def read_tokenizer(path: pathlib.Path) -> Any:
  from minilm_jax.data import tokenizer

  made = tokenizer.load_tokenizer(path)
  return [made.decode(ids) for ids in made.encode(TEXTS[:2])], made.starts_word()


def read_task(path: pathlib.Path, **changes: Any) -> Any:
  from configs import custom_task
  from minilm_jax.tasks import examples

  made = custom_task.get_config()
  made.task.update(train=str(path), **changes)
  config = recipe.resolve(made, 'finetune').task
  task = examples.complete_task(config)
  splits = [examples.read_examples(task, config, split) for split in ('train', 'validation')]
  return [examples.hash_examples(split) for split in splits]


def read_pairs(path: pathlib.Path) -> Any:
  from minilm_jax.evaluation import minimal_pairs

  return minimal_pairs.name_pair_set(path), minimal_pairs.read_pairs(path)


def read_logged(path: pathlib.Path) -> Any:
  from minilm_jax.analysis import loss_curves

  return loss_curves.read_csv(path)


def read_recipe(path: pathlib.Path) -> Any:
  from minilm_jax.cli import commands, flags

  return flags.parse_arguments('show', commands.COMMANDS['show'], [f'--config={path}'])


def read_corpus(path: pathlib.Path) -> Any:
  from minilm_jax.data import corpus

  folder = path if path.name == 'corpus' else path.parent
  return [corpus.load_split(folder, split).tokens.sum() for split in ('train', 'test')]


def read_run(path: pathlib.Path) -> Any:
  """All that a report reads of runs, without its figures."""
  from minilm_jax.analysis import loss_curves, pretraining_gap, runs, scores
  from minilm_jax.analysis.report import finetune_figures

  found = runs.find_runs([path if path.name == 'runs' else path.parent.parent])
  rows = [row for name, where in found.items() for row in runs.summarize_run(name, where)]
  table = scores.make_score_table(runs.read_scores(found))
  drawn = [curve for name, where in found.items() for curve in runs.read_losses(name, where)]
  matrices = (
    finetune_figures.read_confusions(found, table)
    if any((one / run_dir.PREDICTIONS).exists() for one in found.values())
    else []
  )
  return (
    rows,
    table,
    scores.average_tasks(table),
    finetune_figures.read_learning_curves(found, table),
    finetune_figures.make_trajectories(table),
    drawn,
    loss_curves.read_runs(found),
    pretraining_gap.find_gaps(found, table, 10),
    matrices,
    runs.read_failures([path.parent.parent]),
  )


def read_dataset(path: pathlib.Path) -> Any:
  from minilm_jax.data import documents

  root = next(one for one in (path, *path.parents) if one.name == 'tfds')
  return list(documents.read_tfds_rows('tiny', 'train', str(root)))


# Good ones.

TABLE = [{'text': text, 'label': str(i % 2)} for i, text in enumerate(TEXTS)]
PAIRS = [
  {'sentence_good': text, 'sentence_bad': text[::-1], 'paradigm': f'p{i % 2}'}
  for i, text in enumerate(TEXTS[:6])
]
FEWREL = json.dumps(
  {
    f'P{i}': [
      {'tokens': text.split(), 'h': ['a', 'Q1', [[1, 2]]], 't': ['b', 'Q2', [[4]]]}
      for text in TEXTS[i::2]
    ]
    for i in range(2)
  },
  ensure_ascii=False,
).encode()
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
METRICS = b''.join(
  json.dumps(
    {
      'step': step,
      'split': split,
      'loss': 3.0,
      'perplexity': 20.0,
      'tokens': step * 4096,
      'flops': 1e9 * step,
      'seconds': 0.5 * step,
    }
  ).encode()
  + b'\n'
  for step in (10, 20, 30)
  for split in ('train', 'validation')
)
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
  """A SentencePiece model of the texts."""
  from minilm_jax.data import tokenizer

  return tokenizer._train_sentencepiece(TEXTS, 'bpe', 60).model


def _corpus_files() -> dict[str, bytes]:
  """A corpus folder: 8 and 2 rows of 16 ids."""
  from minilm_jax.data import build

  files, splits = {'tokenizer.model': tokenizer_model()}, {}
  for split, count in (('train', 8), ('validation', 0), ('test', 2)):
    shards = []
    if count:
      file = io.BytesIO()
      np.save(file, np.arange(count * 16, dtype='<u2').reshape(count, 16) % 50, allow_pickle=False)
      files[f'{split}-00000.npy'] = file.getvalue()
      shards = [{'file': f'{split}-00000.npy', 'rows': count, 'sha256': _sha256(file.getvalue())}]
    splits[split] = {'rows': count, 'tokens': count * 16, 'shards': shards}
  digest = _sha256(tokenizer_model())
  files['manifest.json'] = json.dumps(
    {
      'format': build.FORMAT,
      'length': 16,
      'vocabulary': 60,
      'dtype': 'uint16',
      'tokenizer': {'file': 'tokenizer.model', 'sha256': digest},
      'splits': splits,
      'settings': {'größer': 1},
      'sources': [],
      'hash': build.hash_corpus(digest, 16, splits),
    },
    ensure_ascii=False,
  ).encode()
  return files


def _sha256(data: bytes) -> str:
  import hashlib

  return hashlib.sha256(data).hexdigest()


def lays_corpus(name: str) -> Callable[[pathlib.Path], pathlib.Path]:
  """Lays out a corpus, of which one file is to be spoiled ('' the folder)."""

  def lay(folder: pathlib.Path) -> pathlib.Path:
    (folder / 'corpus').mkdir()
    for file, content in _corpus_files().items():
      (folder / 'corpus' / file).write_bytes(content)
    return folder / 'corpus' / name if name else folder / 'corpus'

  return lay


def hostile_shard(good: bytes) -> list[bytes]:
  """Arrays whose header is a trap; the manifest is made to fit, as an enemy would."""

  def array(header: bytes) -> bytes:
    header += b' ' * (-(len(header) + 11) % 64) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + good[-256:]

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


def signed(path: pathlib.Path, content: bytes) -> None:
  """Writes a shard or tokenizer of a corpus and its hash into the manifest."""
  path.write_bytes(content)
  told = json.loads((path.parent / 'manifest.json').read_text())
  for split in told['splits'].values():
    for shard in split['shards']:
      if shard['file'] == path.name:
        shard['sha256'] = _sha256(content)
  if path.name == told['tokenizer']['file']:
    told['tokenizer']['sha256'] = _sha256(content)
  (path.parent / 'manifest.json').write_text(json.dumps(told))


def score_lines() -> list[dict[str, Any]]:
  from tests import fake_runs

  return [
    fake_runs.make_score_line(0.3 + 0.1 * seed, seed, pretrained, checkpoint='größer')
    for seed in range(2)
    for pretrained in (True, False)
  ]


def lays_run(name: str) -> Callable[[pathlib.Path], pathlib.Path]:
  """Lays out a pre-training run and a fine-tuning, of which one file is to be spoiled ('' the
  folder of both).
  """

  def lay(folder: pathlib.Path) -> pathlib.Path:
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
    runs = {
      'pre': {
        'config.json': {
          'kind': 'pretrain',
          'seed': 0,
          'batch_size': 64,
          'num_steps': 30,
          'model': model,
          'optimizer': {'learning_rate': 1e-3, 'größer': 1},
          'population': {'members': 1, 'seeds': [], 'learning_rates': []},
        },
        'manifest.json': MANIFEST,
      },
      'fine': {
        'config.json': {
          'kind': 'finetune',
          'checkpoint': 'runs/größer',
          'epochs': 3.0,
          'task': {'name': 'cola', 'filtered': False},
        },
        'manifest.json': {'parameters': {'total': 300}, 'devices': ['cpu größer']},
      },
    }
    lines = score_lines()
    said = [
      {
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
    ]
    tuned = [
      {
        key: line[key]
        for key in ('epoch', 'split', 'seed', 'learning_rate', 'member', 'pretrained')
      }
      | {'step': 10, 'matthews': 0.5, 'of': 'größer'}
      for line in lines
    ]
    logs = {
      'pre': {
        'metrics.jsonl': METRICS.replace(b'"step": 10,', '"step": 10, "größer": 1,'.encode())
      },
      'fine': {
        'metrics.jsonl': _lines(tuned),
        'scores.jsonl': _lines(lines),
        'predictions.jsonl': _lines(said),
      },
    }
    for one, files in runs.items():
      (folder / 'runs' / one).mkdir(parents=True)
      for file, content in files.items():
        (folder / 'runs' / one / file).write_text(json.dumps(content, ensure_ascii=False))
      for file, data in logs[one].items():
        (folder / 'runs' / one / file).write_bytes(data)
    return folder / 'runs' / name if name else folder / 'runs'

  return lay


def _lines(records: list[dict[str, Any]]) -> bytes:
  return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()


def copies(source: pathlib.Path, into: str, name: str) -> Callable[[pathlib.Path], pathlib.Path]:
  """Lays out a copy of a folder, in which one file is to be spoiled ('' the folder)."""

  def lay(folder: pathlib.Path) -> pathlib.Path:
    shutil.copytree(source, folder / into)
    return folder / into / name if name else folder / into

  return lay


def swapped(path: pathlib.Path) -> None:
  """A folder in place of a file, or a file in place of a folder."""
  if path.is_dir():
    shutil.rmtree(path)
    path.write_bytes(b'a file\n')
  else:
    path.unlink()
    path.mkdir()


def inner(one: Input, good: bytes) -> bytes:
  """What is inside the packing."""
  return UNPACK[one.packing](good)


def packed(one: Input, content: bytes) -> bytes:
  """As it stands in the file."""
  return PACK[one.packing](content)


# The rows that need no checkpoint. A verb's work directory is {work}.

SMALL = ['--config=configs/tiny.py:corpus', '--config.tokenizer.size=60', '--config.workers=1']
_TEXT = {'flipped': OTHER_TEXT, 'truncated': 'a shorter text'}
_ROWS = {'flipped': OTHER_TEXT, 'truncated': 'fewer rows'}
_PACKED = {
  '.gz': {'flipped': UNSEEN},
  '.xz': {},
  '.zst': {'flipped': 'it has no checksum: ' + OTHER_TEXT},
}
_NO_TEXT = {'UTF-16': 'no text', 'Latin-1': 'no text'}
_FIELD = {'hostile': 'a field that is not needed, or a value that it may have', 'flipped': UNSEEN}

_JSON = {**_FIELD, 'truncated': 'whole but for its last line feed'}


def bad_text(good: bytes) -> list[bytes]:
  return [
    b'a\0b\n' + good,
    b'\xed\xa0\x80\n',
    b'\xc0\xaf\n',
    b'\xf5\x80\x80\x80',
    good + b'\xff',
    good + b'\n' + bytes(99),
  ]


def corpus_verb(field: str, *more: str) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
  return lambda path, work: [
    'corpus',
    *SMALL,
    *more,
    f'--config.{field}={path}',
    f'--workdir={work}',
  ]


def tables(
  what: str, content: list[dict[str, Any]], read: Callable[[pathlib.Path], Any], verb: Any
) -> list[Input]:
  """A row a form and packing."""
  found = []
  for name in ('jsonl', 'csv', 'tsv', 'parquet', 'jsonl.zst', 'csv.gz', 'tsv.xz'):
    form, _, packing = name.partition('.')
    packing = packing and f'.{packing}'
    harmless = (
      _PACKED[packing] if packing else {'flipped': OTHER_TEXT} if form == 'parquet' else _ROWS
    )
    found.append(
      Input(
        f'{what}, .{name}',
        writes(f'a.{name}', PACK[packing](of_columns(form, content))),
        read,
        verb,
        functools.partial(bad_rows, form),
        packing,
        {**harmless, 'hostile': 'a row that is not needed, or strange text'},
        _NO_TEXT if form == 'parquet' else {},
      )
    )
  return found


def documents_rows() -> list[Input]:
  verb, text = corpus_verb('documents.sources'), ''.join(text + '\n\n' for text in TEXTS).encode()
  return [
    Input(
      f'text, .txt{packing}',
      writes(f'a.txt{packing}', PACK[packing](text)),
      read_documents,
      verb,
      bad_text,
      packing,
      _PACKED[packing] if packing else _TEXT,
    )
    for packing in PACK
  ] + tables('text', TABLE, read_documents, verb)


def task_rows() -> list[Input]:
  def verb(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    return ['show', '--config=configs/custom_task.py', f'--config.task.train={path}']

  return [
    *tables('task', TABLE, read_task, verb),
    Input(
      'task, FewRel .json',
      writes('a.json', FEWREL),
      functools.partial(read_task, markers=True),
      verb,
      lambda good: [one for one in corruptions.values(good)],
      harmless={
        'flipped': OTHER_TEXT,
        'UTF-16': 'JSON may be UTF-16, and is told by its first bytes',
        **_FIELD,
      },
    ),
  ]


def _show(path: pathlib.Path, work: pathlib.Path) -> list[str]:
  return ['show', f'--config={path}', '--json']


def _report(path: pathlib.Path, work: pathlib.Path) -> list[str]:
  return [
    'report',
    str(next(one for one in (path, *path.parents) if one.name == 'runs')),
    f'--workdir={work}',
    *(['--confusion'] if path.name == run_dir.PREDICTIONS else []),
  ]


def _overlap(path: pathlib.Path, work: pathlib.Path) -> list[str]:
  folder = next(one for one in (path, *path.parents) if one.name == 'corpus')
  return ['overlap', f'--corpus={folder}', '--config=configs/glue.py:microworld/sentiment']


def bad_recipes(good: bytes) -> list[bytes]:
  """Recipes are code: what they raise is told, and what they give is checked."""

  def gives(line: str) -> bytes:
    return good.replace(b'  return', f'  {line}\n  return'.encode())

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
    good + b'\0',
    b'get_config = 3\n',
    b'import configs.nothing\n',
    b'class get_config(dict): pass\n',
  ] + [
    gives(line)
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


def _corpus_rows() -> list[Input]:
  shard, pieces = lays_corpus('train-00000.npy'), lays_corpus('tokenizer.model')
  return [
    Input('corpus, folder', lays_corpus(''), read_corpus, _overlap),
    Input(
      'corpus, rows', shard, read_corpus, _overlap, hostile_shard, impossible=_NO_TEXT, write=signed
    ),
    Input(
      'corpus, manifest.json',
      lays_corpus('manifest.json'),
      read_corpus,
      _overlap,
      corruptions.values,
      harmless=_FIELD,
    ),
    Input(
      'corpus, tokenizer',
      pieces,
      read_corpus_tokenizer,
      _overlap,
      lambda good: [b'', good * 2, good[:-9]],
      impossible=_NO_TEXT,
    ),
  ]


def read_corpus_tokenizer(path: pathlib.Path) -> Any:
  from minilm_jax.data import corpus
  from minilm_jax.evaluation import overlap

  return overlap.open_tokenizer(path.parent, corpus.read_manifest(path.parent)).size


def _run_rows() -> list[Input]:
  short = {
    'missing': 'a run that was cut short',
    'empty': 'nothing is logged yet',
    'truncated': 'a write that was cut short',
  }
  found = [Input('runs, folder', lays_run(''), read_run, _report)]
  for name in ('pre/config.json', 'pre/manifest.json', 'fine/config.json', 'fine/manifest.json'):
    missing = 'a folder that is no run' if 'config' in name else 'a run that was cut short'
    found.append(
      Input(
        f'run, {name}',
        lays_run(name),
        read_run,
        _report,
        corruptions.values,
        harmless={**_FIELD, 'missing': missing},
      )
    )
  for name in (
    'pre/metrics.jsonl',
    'fine/metrics.jsonl',
    'fine/scores.jsonl',
    'fine/predictions.jsonl',
  ):
    found.append(
      Input(
        f'run, {name}',
        lays_run(name),
        read_run,
        _report,
        corruptions.values,
        harmless={**_FIELD, **short},
      )
    )
  return found


def list_inputs() -> list[Input]:
  """All rows that need neither a checkpoint nor TFDS."""

  def words(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    return ['corpus', *SMALL, f'--config.vocabulary.word_list={path}', f'--workdir={work}']

  def pieces(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    return ['corpus', *SMALL, f'--config.tokenizer.path={path}', f'--workdir={work}']

  def logged(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    return ['report', f'--logged={path}', f'--workdir={work}']

  listed = '\n'.join(sorted({word for text in TEXTS for word in text.split()})).encode()
  return [
    Input(
      'recipe',
      writes('a.py', RECIPE),
      read_recipe,
      _show,
      bad_recipes,
      harmless={'flipped': 'another recipe', 'truncated': 'a recipe all the same'},
    ),
    *documents_rows(),
    Input(
      'word list, .txt',
      writes('words.txt', listed),
      read_words,
      words,
      lambda good: [b'two words\n', b'a,b\n', b'a\0b\n', b'\xed\xa0\x80', b' \n\t\n'],
      harmless=_TEXT,
    ),
    *tables('word list', [{'word': word} for word in listed.decode().split()], read_words, words)[
      :2
    ],
    Input(
      'tokenizer',
      writes('a.model', tokenizer_model()),
      read_tokenizer,
      pieces,
      bad_models,
      impossible=_NO_TEXT,
      harmless={
        'flipped': 'another tokenizer, of the same special pieces',
        'truncated': 'one of fewer pieces',
        'hostile': 'another tokenizer, of the same special pieces',
      },
    ),
    *_corpus_rows(),
    *task_rows(),
    *_run_rows(),
    Input(
      'logged table',
      writes('a.csv', LOGGED),
      read_logged,
      logged,
      bad_logs,
      harmless={**_ROWS, 'hostile': 'numbers that a run may have logged'},
    ),
    Input(
      'logged table, .gz',
      writes('a.csv.gz', PACK['.gz'](LOGGED)),
      read_logged,
      logged,
      bad_logs,
      '.gz',
      {**_PACKED['.gz'], 'hostile': 'numbers that a run may have logged'},
    ),
    *[one for one in tables('minimal pairs', PAIRS, read_pairs, None) if not one.packing],
  ]


def read_member(path: pathlib.Path) -> Any:
  """All that is read of a pre-training run but its weights."""
  from minilm_jax.training import pretrained

  folder = next(one for one in (path, *path.parents) if one.name == 'run')
  return (
    pretrained.load_single_config(folder),
    pretrained.load_tokenizer(folder),
    run_dir.read_corpus_hashes(folder),
  )


def read_weights(path: pathlib.Path) -> Any:
  from minilm_jax.training import pretrained

  return pretrained.load(next(one for one in (path, *path.parents) if one.name == 'run'))


def run_with_weights(run_folder: pathlib.Path) -> list[Input]:
  """A pre-training run as a checkpoint: what a verb opens that goes on from it."""

  def verb(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    folder = next(one for one in (path, *path.parents) if one.name == 'run')
    return ['fill-mask', f'--checkpoint={folder}', '--text=the <mask> .']

  lay = functools.partial(copies, run_folder, 'run')
  arrays = sorted(
    (run_folder / 'checkpoints' / '8' / 'default').rglob('*'), key=lambda file: file.stat().st_size
  )
  weights = str([file for file in arrays if file.is_file()][-1].relative_to(run_folder))
  last = 'checkpoints/8/default'
  kept = {
    'flipped': UNSEEN,
    'truncated': 'an older one is used',
    'missing': 'an older one is used',
    'swapped': 'the same',
    'empty': 'the same',
  }
  return [
    Input('checkpoint, folder', lay(''), read_weights, verb),
    Input(
      'checkpoint, config.json',
      lay('config.json'),
      read_member,
      verb,
      corruptions.values,
      harmless=_JSON,
      impossible={'Latin-1': 'ASCII alone'},
    ),
    Input(
      'checkpoint, manifest.json',
      lay('manifest.json'),
      read_member,
      verb,
      corruptions.values,
      harmless=_JSON,
      impossible={'Latin-1': 'ASCII alone'},
    ),
    Input(
      'checkpoint, tokenizer',
      lay('tokenizer.model'),
      read_member,
      verb,
      bad_models,
      impossible=_NO_TEXT,
      most=3,
    ),
    Input(
      'checkpoint, weights',
      lay(weights),
      read_weights,
      verb,
      impossible={**_NO_TEXT, 'hostile': 'see its metadata'},
      harmless=kept,
      most=2,
    ),
    Input(
      'checkpoint, _METADATA',
      lay(f'{last}/_METADATA'),
      read_weights,
      verb,
      corruptions.values,
      impossible={'Latin-1': 'ASCII alone'},
      harmless={**_FIELD, **kept},
      most=3,
    ),
  ]


def read_classifier(path: pathlib.Path) -> Any:
  from minilm_jax.tasks import classifier

  folder = next(one for one in (path, *path.parents) if one.name == 'classifier-0')
  return classifier.load_classifier(folder), classifier.read_outputs(folder)


def read_committee(path: pathlib.Path) -> Any:
  from minilm_jax.tasks import committee

  return committee.load_committee(next(one for one in (path, *path.parents) if one.name == 'made'))


def sign_member(path: pathlib.Path, content: bytes) -> None:
  """Writes a file of a classifier, and its hash into the manifest."""
  path.write_bytes(content)
  told = json.loads((path.parent / 'manifest.json').read_text())
  told['files'][path.name] = _sha256(content)
  (path.parent / 'manifest.json').write_text(json.dumps(told))


def bad_outputs(good: bytes) -> list[bytes]:
  """Archives that are none, or of other arrays."""
  found = []
  for arrays in ({'x': np.zeros(3)}, {'a outputs': np.zeros(3)}, {}):
    file = io.BytesIO()
    np.savez(file, **arrays)
    found.append(file.getvalue())
  return [
    *found[1:2],
    good[:-30],
    good.replace(b'NUMPY', b'NUMPX'),
    good.replace(b'descr', b'%s%n,'),
    b'PK\x05\x06' + bytes(18),
    good.replace(b"'shape': (", b"'shape': (-"),
    good[:30] + b'\xff' * 30 + good[60:],
  ]


def members(home: pathlib.Path) -> list[Input]:
  """A fine-tuned classifier and a committee of two, as `classifiers.save` and `committee.make` left
  them in `home`.
  """

  def predict(flag: str, name: str) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
    return lambda path, work: [
      'predict',
      f'--{flag}={next(one for one in (path, *path.parents) if one.name == name)}',
      '--text=the dog .',
    ]

  one, all_of = (functools.partial(copies, home / name, name) for name in ('classifier-0', 'made'))
  verb, ascii_alone = predict('classifier', 'classifier-0'), {'Latin-1': 'ASCII alone'}
  return [
    Input('classifier, folder', one(''), read_classifier, verb),
    Input(
      'classifier, manifest.json',
      one('manifest.json'),
      read_classifier,
      verb,
      corruptions.values,
      most=12,
      harmless=_JSON,
      impossible=ascii_alone,
    ),
    Input(
      'classifier, classifier.json',
      one('classifier.json'),
      read_classifier,
      verb,
      corruptions.values,
      write=sign_member,
      harmless={'hostile': 'another name or number that its weights fit'},
      impossible=ascii_alone,
      most=40,
    ),
    Input(
      'classifier, tokenizer',
      one('tokenizer.model'),
      read_classifier,
      verb,
      impossible={**_NO_TEXT, 'hostile': 'as any tokenizer'},
      most=3,
    ),
    Input(
      'classifier, outputs.npz',
      one('outputs.npz'),
      read_classifier,
      None,
      bad_outputs,
      impossible=_NO_TEXT,
      write=sign_member,
      most=7,
    ),
    Input('committee, folder', all_of(''), read_committee, predict('committee', 'made')),
    Input(
      'committee, config.json',
      all_of('config.json'),
      read_committee,
      predict('committee', 'made'),
      corruptions.values,
      harmless=_JSON,
      impossible=ascii_alone,
      most=8,
    ),
    Input(
      'committee, manifest.json',
      all_of('manifest.json'),
      read_committee,
      predict('committee', 'made'),
      corruptions.values,
      harmless=_JSON,
      impossible=ascii_alone,
      most=12,
    ),
  ]


def bad_features(good: bytes) -> list[bytes]:
  """Features whose class is anybody's: TFDS would import it."""
  return [
    *corruptions.values(good),
    good.replace(b'tensorflow_datasets.core', b'tests.campaigns'),
    b'{"type": "this.module", "content": {}}',
    b'{"python_class_name": "os.path", "json_feature": {"json": "{}"}}',
  ]


def dataset(prepared: pathlib.Path) -> list[Input]:
  """A data set that TFDS prepared."""

  def verb(path: pathlib.Path, work: pathlib.Path) -> list[str]:
    root = next(one for one in (path, *path.parents) if one.name == 'tfds')
    return [
      'corpus',
      *SMALL,
      '--config.documents.sources=tiny',
      f'--config.documents.data_dir={root}',
      f'--workdir={work}',
    ]

  lay, inside = functools.partial(copies, prepared, 'tfds'), 'tiny/10.0.0'
  records = next((prepared / inside).glob('*array_record*')).name
  ascii_alone = {'Latin-1': 'ASCII alone'}
  return [
    Input('TFDS, folder', lay(''), read_dataset, verb),
    Input(
      'TFDS, dataset_info.json',
      lay(f'{inside}/dataset_info.json'),
      read_dataset,
      verb,
      corruptions.values,
      most=25,
      harmless=_JSON,
      impossible=ascii_alone,
    ),
    Input(
      'TFDS, features.json',
      lay(f'{inside}/features.json'),
      read_dataset,
      verb,
      bad_features,
      most=25,
      harmless=_JSON,
      impossible=ascii_alone,
    ),
    Input(
      'TFDS, records',
      lay(f'{inside}/{records}'),
      read_dataset,
      verb,
      lambda good: [good[:-16] + b'\xff' * 16, good[:64] + b'\xff' * 64 + good[128:]],
      harmless={'flipped': UNSEEN, 'hostile': UNSEEN},
      impossible=_NO_TEXT,
      most=4,
    ),
  ]


def bad_logs(good: bytes) -> list[bytes]:
  """A cell that is something else, column by column."""
  header, line, *rest = good.splitlines(keepends=True)
  cells, found = line.rstrip(b'\n').split(b','), []
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
      found.append(header + changed + b''.join(rest))
  return [*found, *bad_rows('csv', good)]


def bad_models(good: bytes) -> list[bytes]:
  """SentencePiece models with fields that are too long, unknown, or repeated."""
  return [
    good * 2,
    good + b'\x0a\xff\xff\xff\xff\x0f',
    b'\x0a\x80\x80\x80\x80\x10' + good,
    b'\x0a\x00' * 999,
    b'\x0a\x03\x0a\x01\xff' * 9,
    good[:40] + b'\0' * 40 + good[40:],
    good.replace(b'<pad>', b'<pa\xff>'),
    good.replace(b'<mask>', b'\xff\xfe\xfd\xfc\xfb\xfa'),
    good.replace(b'the', b'\xff\xfe\0'),
  ]
