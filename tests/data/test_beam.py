"""The keep stage by Apache Beam: the corpus of the local build, to the byte, and failures told in
one error.
"""

import json
import pathlib
import signal

import pytest

pytest.importorskip('apache_beam', reason='Apache Beam, the extra [beam], is not installed')
from minilm_jax.cli.main import main
from minilm_jax.core import run_dir, signals
from minilm_jax.core.errors import InputError
from minilm_jax.data import beam, build, filter_shards, filtering, packing
from tests.filter_cases import WORDS, make_corpus_config, read_files, write_sources

FAST = '--runner=FnApiRunner'  # what DirectRunner comes to, without a look for other runners first


def contents(folder: pathlib.Path) -> tuple[dict[str, bytes], dict]:
  """The bytes of all files but the manifest, and the manifest without times and workers."""
  found = read_files(folder)
  manifest = json.loads(found.pop(run_dir.MANIFEST))
  for stage in manifest['stages'].values():
    for name in ('seconds', 'processor_seconds', 'workers'):
      stage.pop(name, None)
  return found, manifest


@pytest.mark.parametrize('options', ['--runner=DirectRunner', FAST])
def test_the_corpus_is_that_of_the_local_build(prepared, tmp_path, monkeypatch, options: str):
  """Of files of all kinds and a data set in ranges, with a word list of its own or a given one."""
  monkeypatch.setattr(filter_shards, '_RECORDS', 2)
  (tmp_path / 'words.txt').write_text('\n'.join(WORDS))
  changes = (
    {'vocabulary.word_list': str(tmp_path / 'words.txt')}
    if options == FAST
    else {
      'vocabulary.most_frequent': 12,
      'splits.test': 0.0,
      'vocabulary.min_words_per_sentence': 1,
    }
  )
  made = make_corpus_config(
    ['tiny', *write_sources(tmp_path)], **changes, **{'documents.data_dir': str(prepared)}
  )
  alone = contents(build.build_corpus(made, tmp_path / 'single'))
  assert contents(build.build_corpus(made, tmp_path / 'spread', options)) == alone
  assert alone[1]['stages']['keep']['passes']['words_read'] > 1000


def test_a_build_that_was_stopped_goes_on_with_and_without_beam(tmp_path, monkeypatch):
  """What a killed pipeline left goes; parts lie in the folder for what is temporary, and leave
  nothing there.
  """
  made, options = (
    make_corpus_config(write_sources(tmp_path)),
    f'{FAST} --temp_location={tmp_path}/temporary',
  )
  left = beam.read_pipeline_options(options, tmp_path / 'spread').folder
  assert str(left.parent) == str(tmp_path / 'temporary')
  left.mkdir(parents=True)
  filter_shards.shard_path(left, 0, 'repeated').write_bytes(b'12345678')
  with monkeypatch.context() as patch:
    patch.setattr(packing, 'write_rows', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      build.build_corpus(made, tmp_path / 'spread', options)
  assert not left.exists()
  alone = contents(build.build_corpus(made, tmp_path / 'single'))
  monkeypatch.setattr(
    filtering, 'filter_corpus', lambda *_: pytest.fail('the text was kept before')
  )
  assert contents(build.build_corpus(made, tmp_path / 'spread')) == alone


@pytest.mark.parametrize(
  'options, said',
  [
    ('--runner=NoSuchRunner', 'NoSuchRunner'),
    ('--runer=DirectRunner', "did you mean 'runner'"),
    ('DirectRunner', "no option 'DirectRunner'"),
    (f'{FAST} --direct_num_workers=two', 'direct_num_workers'),
    ("--runner='FnApiRunner", 'close the quotes'),
    (f'{FAST} --temp_location=/proc/none', 'cannot be made'),
  ],
)
def test_options_that_beam_refuses(tmp_path, options: str, said: str):
  made = make_corpus_config(write_sources(tmp_path))
  with pytest.raises(InputError, match=said):
    build.build_corpus(made, tmp_path / 'run', options)
  assert not (tmp_path / 'run').exists()


def test_a_part_that_cannot_be_read_is_told_once(tmp_path, capfd):
  """By the verb itself: status 2, three parts, nothing left."""
  sources = write_sources(tmp_path)
  with open(tmp_path / 'c.txt', 'ab') as file:
    file.write(b'\nbroken \xff\n')
  status = main(
    [
      'corpus',
      '--config=configs/corpus.py',
      f'--config.documents.sources={",".join(sources)}',
      f'--workdir={tmp_path}/run',
      f'--beam={FAST}',
    ]
  )
  said = capfd.readouterr().err
  assert (
    status == 2 and said.count('asked: ') == 1 and 'c.txt, line' in said and 'Traceback' not in said
  )
  assert not (tmp_path / 'run').exists()


def test_a_worker_that_fails_is_told_once(tmp_path, monkeypatch, capfd):
  def broken(*_: object, **__: object) -> None:
    raise KeyError('a worker that is broken')

  made = make_corpus_config(write_sources(tmp_path))
  monkeypatch.setattr(filtering, 'filter_documents', broken)
  with pytest.raises(
    InputError, match='(?s)filtering 5 parts, by FnApiRunner.*a worker that is broken'
  ):
    build.build_corpus(made, tmp_path / 'run', FAST)
  assert not (tmp_path / 'run').exists() and 'Traceback' not in capfd.readouterr().err


def test_a_signal_stays_one(tmp_path, monkeypatch):
  """In the work of a runner in this process too, which takes it for a failure; whole stages and the
  recipe stay.
  """

  def ended(*_: object, **__: object) -> None:
    raise signals.Interrupted(signal.SIGTERM)

  monkeypatch.setattr(filtering, 'filter_documents', ended)
  with pytest.raises(signals.Interrupted, match='SIGTERM'):
    build.build_corpus(make_corpus_config(write_sources(tmp_path)), tmp_path / 'run', FAST)
  assert not (tmp_path / 'run' / '.work' / 'beam').exists()


def test_nothing_is_left_of_a_split(tmp_path):
  made = make_corpus_config(
    write_sources(tmp_path),
    **{'vocabulary.min_words_per_sentence': 500, 'vocabulary.min_words_per_span': 500},
  )
  with pytest.raises(InputError, match='(?s)train split.*none is left') as caught:
    build.build_corpus(made, tmp_path / 'run', FAST)
  with pytest.raises(InputError) as alone:
    build.build_corpus(made, tmp_path / 'run')
  assert str(caught.value) == str(alone.value) and not (tmp_path / 'run').exists()
