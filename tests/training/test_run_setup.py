"""A run must fit its recipe and its corpus; a refusal writes no file."""

import json
import os
import pathlib
import shutil
from typing import Any

import pytest
from etils import epath

from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus
from minilm_jax.training import run_setup
from tests.run_files import read_times
from tests.tiny_config import make_run_config


@pytest.fixture(scope='module')
def opened_run(tiny_corpus, tmp_path_factory) -> pathlib.Path:
  """A run before its first step."""
  folder = tmp_path_factory.mktemp('opened')
  assert run_setup.open_or_create_run(make_run_config(tiny_corpus), folder)[:2] == (
    epath.Path(folder),
    epath.Path(tiny_corpus),
  )
  return folder


def test_the_manifest_names_corpus_tokenizer_and_size(opened_run, tiny_corpus):
  manifest = json.loads((opened_run / run_dir.MANIFEST).read_text())
  corpus_manifest = corpus.read_manifest(tiny_corpus)
  train = corpus_manifest['splits']['train']
  assert manifest['corpus'] == corpus_manifest['hash']
  assert files.hash_file(opened_run / run_dir.TOKENIZER) == manifest['tokenizer']
  assert manifest['training'] == {
    'rows': train['rows'],
    'tokens': train['tokens'],
    'of_rows': train['rows'],
    'of_tokens': train['tokens'],
    'subset': None,
  }
  assert manifest['warmup'] > 0 and manifest['parameters']['total'] > 0


@pytest.mark.parametrize('part', ['corpus', 'tokenizer'])
def test_a_run_continues_only_with_its_corpus(part: str, opened_run, tiny_corpus, tmp_path):
  folder = shutil.copytree(opened_run, tmp_path / 'run')
  path = folder / run_dir.MANIFEST
  path.write_text(json.dumps({**json.loads(path.read_text()), part: '0' * 64}))
  times = read_times(folder)
  with pytest.raises(InputError, match=f'{part} {"0" * 12} '):
    run_setup.open_or_create_run(make_run_config(tiny_corpus), folder)
  assert read_times(folder) == times


def test_the_corpus_of_a_run_may_move(opened_run, tiny_corpus, tmp_path):
  folder = shutil.copytree(opened_run, tmp_path / 'run')
  moved = shutil.copytree(tiny_corpus, tmp_path / 'moved')
  run_setup.open_or_create_run(make_run_config(moved), folder)
  before, after = map(run_dir.read_corpus_hashes, (opened_run, folder))
  assert after == before | {'corpus_folder': str(moved)}


def test_another_recipe_is_refused(opened_run, tiny_corpus):
  times = read_times(opened_run)
  with pytest.raises(InputError, match='seed'):
    run_setup.open_or_create_run(make_run_config(tiny_corpus, seed=1), opened_run)
  assert read_times(opened_run) == times


@pytest.mark.parametrize('data', [b'another', None])
def test_a_corpus_without_its_tokenizer_is_refused(data: bytes | None, tiny_corpus, tmp_path):
  folder = shutil.copytree(tiny_corpus, tmp_path / 'corpus')
  (folder / run_dir.TOKENIZER).unlink()
  if data:
    (folder / run_dir.TOKENIZER).write_bytes(data)
  with pytest.raises(InputError, match=str(folder / run_dir.TOKENIZER)):
    run_setup.open_or_create_run(make_run_config(folder), tmp_path / 'run')


@pytest.mark.parametrize(
  'changes, value',
  [
    ({'model.vocab_size': 500}, '--config.model.vocab_size=512'),
    ({'model.max_length': 60}, '--config.model.max_length=64'),
    ({'corpus': ''}, '--config.corpus=FOLDER'),
    ({'corpus': '/nowhere'}, 'manifest.json'),
    ({'corpus': 'configs/nowhere.py:corpus'}, 'configs/nowhere.py'),
    ({'corpus': 'configs/tiny.py:pretrain'}, 'config.corpus=configs/tiny.py:pretrain'),
    ({'corpus': 'configs/tiny.py:corpus', 'model.vocab_size': 100}, 'model.vocab_size=512'),
  ],
)
def test_a_corpus_that_does_not_fit_is_refused(
  changes: dict[str, Any], value: str, tiny_corpus, tmp_path
):
  with pytest.raises(InputError, match=value):
    run_setup.check_recipe(make_run_config(tiny_corpus, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('is_recipe', [False, True])
def test_another_tokenizer_than_that_of_the_origin_is_refused(
  is_recipe: bool, tiny_run, tiny_corpus, tmp_path
):
  """A corpus recipe is refused before the corpus is built if it names its tokenizer."""
  origin, name = {'checkpoint': str(tiny_run)}, 'corpus'
  folder = shutil.copytree(tiny_corpus, tmp_path / name)
  (folder / run_dir.TOKENIZER).write_bytes(b'another')
  changed = files.hash_file(folder / run_dir.TOKENIZER)
  manifest = json.loads((folder / run_dir.MANIFEST).read_text())
  manifest['tokenizer']['sha256'] = changed
  (folder / run_dir.MANIFEST).write_text(json.dumps(manifest))
  if is_recipe:
    (tmp_path / 'own.py').write_text(
      'from configs import tiny\n\n\n'
      'def get_config():\n'
      '  config = tiny.corpus()\n'
      f'  config.tokenizer.path = {str(folder / run_dir.TOKENIZER)!r}\n'
      '  return config\n'
    )
    folder = tmp_path / 'own.py'
  run_setup.check_recipe(make_run_config(tiny_corpus), tmp_path / 'run', origin)
  with pytest.raises(InputError) as refused:
    run_setup.check_recipe(make_run_config(folder), tmp_path / 'run', origin)
  assert changed[:12] in refused.value.asked
  assert str(tiny_run / run_dir.TOKENIZER) in refused.value.remedy
  assert not (tmp_path / 'run').exists()


def test_a_result_ends_a_run_and_removes_a_stale_lock(opened_run, tiny_corpus, tmp_path):
  folder, config = shutil.copytree(opened_run, tmp_path / 'run'), make_run_config(tiny_corpus)
  assert run_setup.read_result(config, epath.Path(folder)) is None
  (folder / lock.LOCK_FILE).touch()
  os.utime(folder / lock.LOCK_FILE, (0, 0))
  files.write_json(folder / run_dir.RESULT, {'updates': 12})
  assert run_setup.read_result(config, epath.Path(folder)) == {'updates': 12}
  assert not (folder / lock.LOCK_FILE).exists()


def test_an_interrupted_build_of_the_corpus_keeps_the_origin(
  tiny_run, tiny_corpus, tmp_path, monkeypatch
):
  """The repeated command has no --init_from."""
  folder, config = tmp_path / 'run', make_run_config('configs/tiny.py:corpus')

  def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt

  monkeypatch.setattr(build, 'build_corpus', interrupt)
  record = {'checkpoint': str(tiny_run), 'checkpoint_step': 8, 'optimizer': False}
  with pytest.raises(KeyboardInterrupt):
    run_setup.open_or_create_run(config, folder, record)
  monkeypatch.setattr(build, 'build_corpus', lambda *_: epath.Path(tiny_corpus))
  run_setup.open_or_create_run(config, folder)
  assert run_dir.read_origin(folder) == record
  assert not (folder / run_dir.PENDING_ORIGIN).exists()


@pytest.mark.parametrize('rows', [0, 24])
def test_the_manifest_has_the_size_of_the_subset(rows: int, tiny_corpus, tmp_path):
  manifest = corpus.read_manifest(tiny_corpus)
  config = make_run_config(tiny_corpus, **{'subset.rows': rows})
  run_setup.open_or_create_run(config, tmp_path / 'run')
  record = files.read_json(tmp_path / 'run' / run_dir.MANIFEST, 'manifest')['training']
  size = corpus.measure_subset(config.subset, tiny_corpus, manifest)
  of_rows = manifest['splits']['train']['rows']
  assert record == {**record, **size, 'of_rows': of_rows, 'subset': None}
  with pytest.raises(InputError, match='subset.rows'):
    run_setup.open_or_create_run(
      make_run_config(tiny_corpus, **{'subset.rows': 25}), tmp_path / 'run'
    )
