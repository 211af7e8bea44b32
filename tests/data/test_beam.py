"""Filtering by Apache Beam: the bytes equal a local build, and failures give one error."""

import importlib.util
import pathlib
import signal

import pytest

pytest.importorskip('apache_beam', reason='Apache Beam, the extra [beam], is not installed')
from minilm_jax.cli.main import main
from minilm_jax.core import signals
from minilm_jax.core.errors import InputError
from minilm_jax.data import beam, build, filter_shards, filtering, packing
from tests.filter_cases import WORDS, make_corpus_config, read_corpus, write_sources

FAST = '--runner=FnApiRunner'  # the fallback of DirectRunner


def interrupt(*_: object, **__: object) -> None:
  raise signals.Interrupted(signal.SIGTERM)


@pytest.mark.parametrize('options', ['--runner=DirectRunner', FAST])
def test_the_corpus_equals_a_local_build(tfds_folder, tmp_path, monkeypatch, options: str):
  """Reads files of all formats and ranges of a data set; counts or loads the word list."""
  monkeypatch.setattr(filter_shards, '_RECORDS_PER_SHARD', 2)
  (tmp_path / 'words.txt').write_text('\n'.join(WORDS))
  changes = {
    'vocabulary.most_frequent': 12,
    'splits.test': 0.0,
    'vocabulary.min_words_per_sentence': 1,
  }
  if options == FAST:
    changes = {'vocabulary.word_list': str(tmp_path / 'words.txt')}
  changes['documents.data_dir'] = str(tfds_folder)
  config = make_corpus_config(['tiny', *write_sources(tmp_path)], **changes)
  expected = read_corpus(build.build_corpus(config, tmp_path / 'single'))
  assert read_corpus(build.build_corpus(config, tmp_path / 'beam', options)) == expected
  assert expected[1]['stages']['keep']['passes']['words_read'] > 1000


def test_an_interrupted_build_continues_with_and_without_beam(tmp_path, monkeypatch):
  """Shards are in the temporary folder, which is emptied at the start and removed at the end."""
  config = make_corpus_config(write_sources(tmp_path))
  options = f'{FAST} --temp_location={tmp_path}/temporary'
  folder = beam.make_runner(options, tmp_path / 'beam').folder
  assert str(folder.parent) == str(tmp_path / 'temporary')
  folder.mkdir(parents=True)
  filter_shards.locate_shard_file(folder, 0, 'repeated').write_bytes(b'12345678')
  with monkeypatch.context() as patch:
    patch.setattr(packing, 'write_rows', interrupt)
    with pytest.raises(KeyboardInterrupt):
      build.build_corpus(config, tmp_path / 'beam', options)
  assert not folder.exists()
  expected = read_corpus(build.build_corpus(config, tmp_path / 'single'))
  monkeypatch.setattr(filtering.LocalRunner, 'filter_corpus', lambda *_: pytest.fail('repeated'))
  assert read_corpus(build.build_corpus(config, tmp_path / 'beam')) == expected


@pytest.mark.parametrize(
  'options, message',
  [
    ('--runner=NoSuchRunner', 'NoSuchRunner'),
    ('--runer=DirectRunner', "'runner'"),
    ('DirectRunner', "'DirectRunner'"),
    (f'{FAST} --direct_num_workers=two', 'direct_num_workers'),
    ("--runner='FnApiRunner", 'FnApiRunner'),
    (f'{FAST} --temp_location=/proc/none', '/proc/none'),
  ],
)
def test_invalid_options_are_refused(tmp_path, options: str, message: str):
  config = make_corpus_config(write_sources(tmp_path))
  with pytest.raises(InputError, match=message):
    build.build_corpus(config, tmp_path / 'run', options)
  assert not (tmp_path / 'run').exists()


@pytest.mark.skipif(importlib.util.find_spec('gcsfs') is not None, reason='gcsfs is installed')
def test_a_temporary_folder_in_a_bucket_needs_its_library(tmp_path, capsys):
  flags = ['--config.documents.sources=microworld:20', f'--workdir={tmp_path}/run']
  options = f'--beam={FAST} --temp_location=gs://bucket/temporary'
  status = main(['corpus', '--config=configs/corpus.py', *flags, options])
  assert status == 2 and 'minilm_jax[gcs]' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_an_unreadable_shard_is_reported_once(tmp_path, capfd):
  """The command exits with status 2 and leaves no files."""
  sources = write_sources(tmp_path)
  with open(tmp_path / 'c.txt', 'ab') as file:
    file.write(b'\nbroken \xff\n')
  flags = [f'--config.documents.sources={",".join(sources)}', f'--workdir={tmp_path}/run']
  status = main(['corpus', '--config=configs/corpus.py', *flags, f'--beam={FAST}'])
  stderr = capfd.readouterr().err
  assert status == 2 and stderr.count('asked: ') == 1 and 'Traceback' not in stderr
  assert 'c.txt, line' in stderr and not (tmp_path / 'run').exists()


def test_a_failing_worker_is_reported_once(tmp_path, monkeypatch, capfd):
  def fail(*_: object, **__: object) -> None:
    raise KeyError('a broken worker')

  config = make_corpus_config(write_sources(tmp_path))
  monkeypatch.setattr(filtering, 'filter_documents', fail)
  with pytest.raises(InputError, match='(?s)FnApiRunner.*a broken worker'):
    build.build_corpus(config, tmp_path / 'run', FAST)
  assert not (tmp_path / 'run').exists() and 'Traceback' not in capfd.readouterr().err


def test_an_unreachable_job_server_is_one_error(tmp_path):
  options = '--runner=PortableRunner --job_endpoint=localhost:9 --job_server_timeout=1'
  config = make_corpus_config(write_sources(tmp_path))
  with pytest.raises(InputError, match='(?s)PortableRunner.*FutureTimeoutError.*reached'):
    build.build_corpus(config, tmp_path / 'run', options)
  assert not (tmp_path / 'run').exists()


def test_an_error_of_a_remote_call_has_its_text(tmp_path, monkeypatch):
  grpc = pytest.importorskip('grpc')

  def fail(*_: object) -> None:
    raise grpc.RpcError('<of RPC:\n  details = "connection refused"\n>')

  monkeypatch.setattr(beam, '_run_pipeline', fail)
  with pytest.raises(InputError, match='details = "connection refused"'):
    build.build_corpus(make_corpus_config(write_sources(tmp_path)), tmp_path / 'run', FAST)


def test_a_signal_during_the_work_of_a_local_runner_is_raised(tmp_path, monkeypatch):
  monkeypatch.setattr(filtering, 'filter_documents', interrupt)
  with pytest.raises(signals.Interrupted, match='SIGTERM'):
    build.build_corpus(make_corpus_config(write_sources(tmp_path)), tmp_path / 'run', FAST)
  assert not (tmp_path / 'run' / '.work' / 'beam').exists()


def test_an_empty_split_gives_the_error_of_a_local_build(tmp_path):
  limits = {'vocabulary.min_words_per_sentence': 500, 'vocabulary.min_words_per_span': 500}
  config, errors = make_corpus_config(write_sources(tmp_path), **limits), []
  for options in (FAST, ''):
    with pytest.raises(InputError, match='train') as refused:
      build.build_corpus(config, tmp_path / 'run', options)
    errors.append(str(refused.value))
  assert errors[0] == errors[1] and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('option', ['', ' --temp_location=TEMPORARY'])
def test_a_temporary_folder_of_a_bucket_may_disappear(tmp_path, option: str):
  """In a bucket, a folder without files does not exist."""
  option = option.replace('TEMPORARY', str(tmp_path / 'temporary'))
  runner = beam.make_runner(f'{FAST}{option}', tmp_path / 'run')
  with runner._empty_folder() as folder:
    folder.parent.rmtree()
  assert not folder.parent.exists()


def test_the_temporary_folder_of_a_bucket_does_not_depend_on_the_directory(
  tmp_path: pathlib.Path, monkeypatch
):
  options, folders = f'{FAST} --temp_location={tmp_path}/temporary', []
  for directory in (tmp_path, '/'):
    monkeypatch.chdir(directory)
    folders.append(beam.make_runner(options, 'gs://bucket/rows').folder)
  assert folders[0] == folders[1]
  assert folders[0] != beam.make_runner(options, 'gs://bucket/others').folder
