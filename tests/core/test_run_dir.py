"""The run directory: atomic files, logs that survive a crash, one recipe a directory."""

import errno
import hashlib
import io
import json
import math
import os

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import distributed, files, run_dir
from minilm_jax.core.errors import InputError


def test_json_is_restored_and_no_other_file_remains(tmp_path):
  path = tmp_path / 'result.json'
  value = {
    'loss': np.float32(6.5),
    'steps': np.int64(3),
    'name': 'naïve',
    'list': (1, 2),
    'deep': {'nan': math.nan},
  }
  files.write_json(path, value)
  assert files.read_json(path, 'a result') == {
    'loss': 6.5,
    'steps': 3,
    'name': 'naïve',
    'list': [1, 2],
    'deep': {'nan': None},
  }
  assert [p.name for p in tmp_path.iterdir()] == ['result.json']


def test_a_failed_write_keeps_the_old_file(tmp_path):
  path = tmp_path / 'result.json'
  files.write_json(path, {'old': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'new': object()})
  assert files.read_json(path, 'a result') == {'old': 1}


def test_nan_and_infinity_become_null(tmp_path):
  run_dir.append_line(
    tmp_path / 'log', {'a': math.inf, 'b': [-math.inf, math.nan], 'c': np.float64('nan')}
  )

  def refuse(name: str) -> None:
    raise ValueError(name)

  record = json.loads((tmp_path / 'log').read_text(), parse_constant=refuse)
  assert record == {'a': None, 'b': [None, None], 'c': None}


def test_a_failed_rename_leaves_no_partial_file(tmp_path):
  (tmp_path / 'result.json').mkdir()
  with pytest.raises(OSError):
    files.write_json(tmp_path / 'result.json', {'a': 1})
  assert [path.name for path in tmp_path.iterdir()] == ['result.json']


def test_a_file_is_renamed_after_fsync(tmp_path, monkeypatch):
  def fail(_: int) -> None:
    assert not (tmp_path / 'a').exists()
    raise OSError(errno.EIO, 'disk error')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='disk error'):
    files.write_bytes(tmp_path / 'a', b'something')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('content', [None, b'{"a": ', b'\xff\xfe', b''])
def test_unreadable_json_is_refused(tmp_path, content: bytes | None):
  path = tmp_path / 'manifest.json'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match='manifest.json') as error:
    files.read_json(path, 'the manifest of a corpus')
  assert error.value.asked == 'the manifest of a corpus'


def test_a_log_in_a_bucket_is_read(monkeypatch):
  """The files of fsspec read whole lines, and accept no limit."""

  class BucketFile(io.BytesIO):
    def readline(self) -> bytes:
      return super().readline()

  path = epath.Path('gs://bucket/metrics.jsonl')
  monkeypatch.setattr(type(path), 'exists', lambda path: True)
  lines = b'{"step": 1, "split": "train"}\n{"step": 2, "split": "train"}\n{"st'
  monkeypatch.setattr(type(path), 'open', lambda path, mode: BucketFile(lines))
  assert [line['step'] for line in run_dir.read_lines(path)] == [1, 2]


def test_a_missing_log_is_empty(tmp_path):
  assert not list(run_dir.read_lines(tmp_path / 'none.jsonl'))


def test_an_invalid_line_inside_a_log_is_refused(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(InputError, match='line 2'):
    list(run_dir.read_lines(path))


def test_a_log_is_filtered_and_continued(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for step in range(4):
    run_dir.append_line(path, {'step': step})
  path.write_bytes(path.read_bytes() + '{"task": "é'.encode()[:-1])  # truncated inside a character
  assert run_dir.keep_lines(path, lambda record: record['step'] < 2) == [{'step': 0}, {'step': 1}]
  run_dir.append_line(path, {'step': 2})
  assert [record['step'] for record in run_dir.read_lines(path)] == [0, 1, 2]


@pytest.mark.parametrize('size', [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_covers_all_bytes(tmp_path, size: int):
  content = bytes(i % 251 for i in range(size))
  (tmp_path / 'file').write_bytes(content)
  assert files.hash_file(tmp_path / 'file') == hashlib.sha256(content).hexdigest()


def test_a_run_is_reopened_with_the_same_recipe_only(tmp_path):
  config = {'kind': 'pretrain', 'seeds': (0, 1), 'model': {'hidden_size': 32, 'clip': 1.0}}
  workdir = run_dir.open_run(tmp_path / 'a' / 'run', config)
  stored = (workdir / run_dir.CONFIG).read_bytes()
  assert run_dir.open_run(tmp_path / 'a' / 'run', config) == workdir
  with pytest.raises(InputError, match='model.hidden_size.* 64.* 32'):
    run_dir.open_run(workdir, {**config, 'model': {'hidden_size': 64, 'clip': 1.0}})
  assert run_dir.open_run(workdir, {**config, 'seeds': (2,)}, changeable=['seeds']) == workdir
  with pytest.raises(InputError, match='seeds'):
    run_dir.open_run(workdir, {k: v for k, v in config.items() if k != 'seeds'})
  assert (
    run_dir.open_run(workdir, {**config, 'later': 0, 'model': {**config['model'], 'more': ''}})
    == workdir
  )
  with pytest.raises(InputError, match='later'):
    # earlier versions lacked the field
    run_dir.open_run(workdir, {**config, 'later': 1})
  assert (workdir / run_dir.CONFIG).read_bytes() == stored


def test_the_checkpoint_of_a_run_may_have_any_of_its_names(tmp_path, monkeypatch):
  """Absolute and relative names are equivalent, also after all runs moved; other runs are not."""
  for name in ('old/runs/tiny', 'old/runs/b', 'elsewhere/runs/tiny'):
    (tmp_path / name).mkdir(parents=True)
  monkeypatch.chdir(tmp_path / 'old')
  run_dir.open_run('runs/ft', {'checkpoint': 'runs/tiny', 'task': {'train': 'x.csv'}})
  (tmp_path / 'old').rename(tmp_path / 'new')
  (tmp_path / 'latest').symlink_to('new')
  new = tmp_path / 'new'

  def reopen(directory: str, checkpoint: object, workdir: object, train: str = 'x.csv') -> None:
    monkeypatch.chdir(tmp_path / directory)
    run_dir.open_run(str(workdir), {'checkpoint': str(checkpoint), 'task': {'train': train}})

  reopen('new', 'runs/tiny', 'runs/ft')
  reopen('new', new / 'runs' / 'tiny', 'runs/ft', str(new / 'x.csv'))
  reopen('elsewhere', new / 'runs' / 'tiny', new / 'runs' / 'ft')
  reopen('elsewhere', '../latest/runs/tiny', '../latest/runs/ft')
  for directory, checkpoint, workdir in (
    ('elsewhere', 'runs/tiny', new / 'runs' / 'ft'),
    ('new', 'runs/b', 'runs/ft'),
    ('new', 'runs/absent', 'runs/ft'),
  ):
    with pytest.raises(InputError, match='stored is .*/new/runs/tiny'):
      reopen(directory, checkpoint, workdir)
  with pytest.raises(InputError, match='train is'):
    reopen('elsewhere', new / 'runs' / 'tiny', new / 'runs' / 'ft', str(new / 'x.csv'))


def test_the_corpus_of_a_run_is_found_after_both_moved(tmp_path, monkeypatch):
  for name in ('old/corpora/a', 'old/runs/tiny', 'elsewhere/corpora/a'):
    (tmp_path / name).mkdir(parents=True)
  hashes = {'corpus': 'c', 'tokenizer': 't'}
  for folder in ('corpora/a', str(tmp_path / 'old' / 'corpora' / 'a')):
    monkeypatch.chdir(tmp_path / 'old')
    fields = run_dir.name_corpus('runs/tiny', folder)
    files.write_json('runs/tiny/manifest.json', {**hashes, **fields})
    (tmp_path / 'old').rename(tmp_path / 'new')
    monkeypatch.chdir(tmp_path / 'elsewhere')
    for workdir in (tmp_path / 'new' / 'runs' / 'tiny', '../new/runs/tiny'):
      located = run_dir.read_corpus_hashes(workdir)['corpus_folder']
      assert located == str(tmp_path / 'new' / 'corpora' / 'a')
    (tmp_path / 'new').rename(tmp_path / 'old')


def test_a_file_in_place_of_a_run_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='--workdir'):
    run_dir.open_run(tmp_path / 'file', {})


def test_fields_for_the_machine_may_change_and_are_stored(tmp_path):
  recipe = {'kind': 'pretrain', 'seed': 0, 'mesh': {'data': 8, 'model': 1}}
  run_dir.open_run(tmp_path, recipe)
  changed = recipe | {'mesh': {'data': 2, 'model': 1}}
  run_dir.open_run(tmp_path, changed)
  assert files.read_json(tmp_path / run_dir.CONFIG, 'the recipe')['mesh']['data'] == 8
  run_dir.store_machine_fields(tmp_path, changed)
  stored = files.read_json(tmp_path / run_dir.CONFIG, 'the recipe')
  assert stored['mesh'] == {'data': 2, 'model': 1}
  with pytest.raises(InputError, match='seed is 1'):
    run_dir.open_run(tmp_path, recipe | {'seed': 1})


def test_a_recipe_of_an_invalid_kind_is_refused(tmp_path):
  (tmp_path / run_dir.CONFIG).write_text('{"kind": []}')
  with pytest.raises(InputError, match='kind'):
    run_dir.open_run(tmp_path, {'kind': 'pretrain'})


def test_a_line_without_a_needed_field_is_refused(tmp_path):
  (tmp_path / run_dir.METRICS).write_text('{"step": 1, "loss": 2.0}\n{"loss": 1.0}\n')
  with pytest.raises(InputError, match='line 2 without step'):
    run_dir.keep_lines(tmp_path / run_dir.METRICS, lambda line: True, ['step', 'loss'])


def test_the_folder_of_a_classifier_is_no_run(tmp_path):
  (tmp_path / 'classifier.json').write_text('{}')
  with pytest.raises(InputError, match='--workdir'):
    run_dir.open_run(tmp_path, {'kind': 'pretrain'})
  assert [path.name for path in tmp_path.iterdir()] == ['classifier.json']


def test_only_process_0_writes_and_others_check_its_files(tmp_path, monkeypatch):
  files.write_json(tmp_path / 'there.json', {'by': 0})
  monkeypatch.setattr(distributed, 'is_primary', lambda: False)
  files.write_json(tmp_path / 'there.json', {'by': 1})
  run_dir.append_line(tmp_path / 'log', {'by': 1})
  with pytest.raises(InputError, match='--workdir'):
    files.write_json(tmp_path / 'not-there.json', {'by': 1})
  assert files.read_json(tmp_path / 'there.json', 'it') == {'by': 0}
  assert [path.name for path in tmp_path.iterdir()] == ['there.json']
