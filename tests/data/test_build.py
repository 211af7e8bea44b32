"""Building a corpus: the folder's contract, the same bytes whatever happens on the way, input that
cannot be used.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from configs import base
from minilm_jax.core import corpus_config, files, recipe, run_dir
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus, documents, filtering, filters, packing, tokenizer

WORDS = (
  'the a little big old king queen farmer dog cat house sea saw found liked called and then because when '
  'morning evening water bread was happy tired again'
).split()


def write_text(path: pathlib.Path, count: int = 200, seed: int = 0) -> pathlib.Path:
  """Documents of some sentences, a fifth of them with a word outside `WORDS`, a fifth too short,
  some repeated.
  """
  dice = random.Random(seed)
  documents = []
  for _ in range(count):
    sentences = ['The king was tired again and the queen was happy.']
    for _ in range(dice.randint(3, 8)):
      words = dice.choices(WORDS, k=dice.choice([4, 9, 12, 14, 17]))
      if dice.random() < 0.2:
        words[dice.randrange(len(words))] = 'zygote'
      sentences.append(' '.join(words).capitalize() + '.')
    documents.append('\n'.join(sentences))
  path.write_text('\n\n'.join(documents) + '\n')
  return path


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('text')
  write_text(folder / 'a.txt')
  write_text(folder / 'b.txt', count=60, seed=1)
  (folder / 'words.txt').write_text('\n'.join(WORDS) + '\n')
  return folder


def config(place: pathlib.Path, **changes: object) -> CorpusConfig:
  made = base.corpus()
  made.documents.sources = f'{place}/[ab].txt'
  made.vocabulary.word_list = str(place / 'words.txt')
  made.vocabulary.filters = 'sentences'
  made.tokenizer.size, made.workers = 60, 1
  made.rows.update(length=128, packing='tokens')
  made.splits.update(validation=0.1, test=0.1)
  made.update_from_flattened_dict(changes)
  return recipe.resolve(made, 'corpus')


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """The bytes of all files but the manifest, and of the manifest what does not tell the time."""
  found = {
    path.name: path.read_bytes()
    for path in pathlib.Path(folder).iterdir()
    if path.name != run_dir.MANIFEST
  }
  manifest = json.loads((pathlib.Path(folder) / run_dir.MANIFEST).read_text())
  for stage in manifest['stages'].values():
    for name in ('seconds', 'processor_seconds', 'workers'):
      stage.pop(name, None)
  return found | {run_dir.MANIFEST: json.dumps(manifest).encode()}


@pytest.fixture(scope='module')
def built(place, tmp_path_factory) -> pathlib.Path:
  return pathlib.Path(build.build_corpus(config(place), tmp_path_factory.mktemp('runs') / 'built'))


def decoded(folder: pathlib.Path, split: str) -> list[str]:
  pieces = tokenizer.load_tokenizer(folder / 'tokenizer.model')
  return [
    pieces.decode(row) for row in np.asarray(corpus.load_split(folder, split).tokens).tolist()
  ]


def test_the_folder(built, place):
  manifest = corpus.read_manifest(built)
  assert sorted(path.name for path in built.iterdir()) == [
    'config.json',
    'manifest.json',
    'test-00000.npy',
    'tokenizer.model',
    'train-00000.npy',
    'validation-00000.npy',
  ]
  assert (manifest['length'], manifest['vocabulary'], manifest['dtype']) == (128, 60, 'uint16')
  assert files.hash_file(built / 'tokenizer.model') == manifest['tokenizer']['sha256']
  assert [source['sha256'] for source in manifest['sources']] == [
    files.hash_file(place / f'{name}.txt') for name in 'ab'
  ]
  assert manifest['word_list']['words'] == len(WORDS)
  assert manifest['stages']['tokenizer']['word_split_ratio'] >= 1
  assert recipe.resolve(files.read_json(built / run_dir.CONFIG, 'config'), 'corpus') == config(
    place, workers=0
  )
  for split in corpus_config.SPLITS:
    loaded = corpus.load_split(built, split)
    assert (loaded.rows, loaded.length, loaded.vocabulary) == (
      manifest['splits'][split]['rows'],
      128,
      60,
    )


def test_rows_are_the_text_that_is_kept(built, place):
  """Restates what is kept: sentences of known words alone, more than five of them, once, as the
  file has them.
  """
  expected = []
  for sentence in re.findall(
    r'[^.]+\.', f'{(place / "a.txt").read_text()}{(place / "b.txt").read_text()}'.lower()
  ):
    words = [word for word in re.findall(r'\w+', sentence) if len(word) > 1]
    if len(words) > 5 and set(words) <= set(WORDS):
      expected.append(' '.join(sentence.split()))
  found = [
    sentence.strip()
    for split in corpus_config.SPLITS
    for text in decoded(built, split)
    for sentence in re.findall(r'[^.]+\.', text)
  ]
  assert sorted(found) == sorted(set(expected))
  numbers = corpus.read_manifest(built)['stages']['keep']
  assert numbers['passes']['sentences_repeated'] == len(expected) - len(set(expected)) >= 100


def test_splits_share_nothing(built):
  sentences = [
    {s.strip() for text in decoded(built, split) for s in text.split('.') if s.strip()}
    for split in corpus_config.SPLITS
  ]
  assert all(sentences)
  assert (
    not sentences[0] & sentences[1]
    and not sentences[0] & sentences[2]
    and not sentences[1] & sentences[2]
  )


def test_windows_of_a_document_stay_in_one_split(place, tmp_path):
  spans = {
    'vocabulary.filters': 'spans',
    'vocabulary.span_words': 8,
    'vocabulary.span_stride': 2,
    'vocabulary.min_words_per_span': 5,
  }
  made, folder = config(place, **spans), epath.Path(tmp_path) / 'kept'
  sources = documents.expand_sources(made.documents)
  filtering.filter_corpus(made, sources, [1] * len(sources), None, folder, 1)
  place_of = {
    item: split
    for split in corpus_config.SPLITS
    for item in filtering.read_items(folder, split, 'spans')
  }
  assert len(place_of) == sum(
    1 for split in corpus_config.SPLITS for _ in filtering.read_items(folder, split, 'spans')
  )
  for document in (place / 'a.txt').read_text().lower().split('\n\n'):
    words = document.split()
    windows = [' '.join(words[i : i + 8]) for i in range(0, len(words), 2)]
    # A window may be text of another document as well, which came first and may lie elsewhere.
    alone = [
      w for w in windows if (place / 'a.txt').read_text().lower().replace('\n', ' ').count(w) == 1
    ]
    assert len({place_of[window] for window in alone if window in place_of}) <= 1


def test_the_hash_is_of_the_tokens(built, place, tmp_path):
  same = build.build_corpus(config(place, **{'documents.max_chars': 1_000_000}), tmp_path / 'same')
  other = build.build_corpus(config(place, **{'rows.length': 120}), tmp_path / 'other')
  assert (
    corpus.read_manifest(same)['hash']
    == corpus.read_manifest(built)['hash']
    != corpus.read_manifest(other)['hash']
  )


def test_workers_leave_no_trace(built, place, tmp_path, monkeypatch):
  monkeypatch.setattr(filtering, '_BATCH_CHARS', 2000)  # so that there is something to do for two
  assert contents(build.build_corpus(config(place, workers=2), tmp_path / 'two')) == contents(built)


def test_a_finished_corpus_is_left_alone(built, place, capsys):
  before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
  build.build_corpus(config(place, workers=2), built)
  assert 'nothing to do' in capsys.readouterr().err
  assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before
  with pytest.raises(InputError, match='another recipe'):
    build.build_corpus(config(place, **{'tokenizer.size': 61}), built)


KILLED = """
import os, signal, sys
from minilm_jax.core import recipe
from minilm_jax.data import build
from minilm_jax.data import filtering
from minilm_jax.data import packing
from minilm_jax.data import tokenizer
room, name = sys.argv[3].split('.')
setattr(globals()[room], name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
build.build_corpus(recipe.resolve(__import__('json').loads(sys.argv[2]), 'corpus'), sys.argv[1])
"""


@pytest.mark.parametrize(
  'stage, again', [('keep._refuse_empty', True), ('tokenizer.train', False), ('rows._save', False)]
)
def test_killed_in_a_stage_it_goes_on(built, place, tmp_path, monkeypatch, stage: str, again: bool):
  workdir = tmp_path / 'killed'
  done = subprocess.run(
    [sys.executable, '-c', KILLED, str(workdir), json.dumps(recipe.as_dict(config(place))), stage],
    check=False,
    capture_output=True,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(build.__file__).parents[2])},
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  assert not (workdir / run_dir.MANIFEST).exists() and (workdir / '.work').exists()
  with pytest.raises(InputError, match='another recipe'):
    build.build_corpus(config(place, **{'tokenizer.size': 61}), workdir)
  calls, original = [], filtering.filter_corpus
  monkeypatch.setattr(
    filtering, 'filter_corpus', lambda *given: calls.append(given) or original(*given)
  )
  build.build_corpus(config(place), workdir)
  assert bool(calls) == again
  assert contents(workdir) == contents(built)


def test_a_source_that_changed_is_read_again(place, tmp_path, monkeypatch):
  path = write_text(tmp_path / 'a.txt')
  with monkeypatch.context() as patch:
    patch.setattr(packing, 'write_rows', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      build.build_corpus(
        config(tmp_path, **{'vocabulary.word_list': str(place / 'words.txt')}), tmp_path / 'resumed'
      )
  write_text(path, seed=7)
  for name in ('resumed', 'fresh'):
    build.build_corpus(
      config(tmp_path, **{'vocabulary.word_list': str(place / 'words.txt')}), tmp_path / name
    )
  assert contents(tmp_path / 'resumed') == contents(tmp_path / 'fresh')


def test_an_impossible_tokenizer_leaves_the_kept_text(built, place, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  with pytest.raises(InputError, match='tokenizer.size'):
    build.build_corpus(config(place, **{'tokenizer.size': 30_000}), workdir)
  assert [path.name for path in workdir.iterdir()] == ['.work']
  monkeypatch.setattr(
    filtering, 'filter_corpus', lambda *_: pytest.fail('the text was kept before')
  )
  assert contents(build.build_corpus(config(place), workdir)) == contents(built)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'vocabulary.min_words_per_sentence': 500}, 'train split.*none is left'),
    ({'splits.validation': 1e-9}, 'splits.validation, or set it to 0'),
    ({'splits.test': 1e-9}, 'splits.test, or set it to 0'),
  ],
)
def test_empty_splits_say_what_was_dropped(place, tmp_path, changes: dict, said: str):
  with pytest.raises(InputError, match=f'(?s){said}') as caught:
    build.build_corpus(config(place, **changes), tmp_path / 'run')
  assert 'train' in caught.value.found and len(re.findall(r'\d+', caught.value.found)) >= 5
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'changes',
  [
    {'documents.sources': '/no/such/file.txt'},
    {'vocabulary.word_list': '/no/such/list'},
    {'tokenizer.path': '/no/such.model'},
  ],
)
def test_missing_input_touches_nothing(place, tmp_path, changes: dict):
  with pytest.raises(InputError, match='/no/such'):
    build.build_corpus(config(place, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_damaged_text_leaves_nothing(place, tmp_path):
  bad = tmp_path / 'a.txt'
  bad.write_bytes((place / 'a.txt').read_bytes() + b'\n\xff\xfe broken\n')
  with pytest.raises(InputError, match='UTF-8'):
    build.build_corpus(config(place, **{'documents.sources': str(bad)}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  build.build_corpus(
    config(place, **{'documents.sources': str(bad), 'documents.on_invalid_utf8': 'replace'}),
    tmp_path / 'run',
  )


def test_no_split_but_train(place, tmp_path):
  made = build.build_corpus(
    config(place, **{'splits.validation': 0.0, 'splits.test': 0.0}), tmp_path / 'run'
  )
  splits = corpus.read_manifest(made)['splits']
  assert (
    splits['train']['rows'] and not splits['validation']['rows'] and not splits['test']['shards']
  )


def test_the_most_frequent_words_of_the_source(place, tmp_path):
  made = build.build_corpus(
    config(
      place,
      **{
        'vocabulary.word_list': '',
        'vocabulary.most_frequent': 20,
        'splits.test': 0.0,
        'splits.validation': 0.0,
      },
    ),
    tmp_path / 'run',
  )
  assert corpus.read_manifest(made)['word_list']['words'] == 20
  counts = filtering.count_document_words(
    [(place / f'{name}.txt').read_text() for name in 'ab'], 'paper1'
  )
  frequent = filters.most_frequent_words(counts, 20).words
  found = {
    word for text in decoded(pathlib.Path(made), 'train') for word in re.findall(r'\w\w+', text)
  }
  assert found and found <= frequent


def test_without_a_word_list_all_words_stay(place, tmp_path):
  made = build.build_corpus(
    config(place, **{'vocabulary.word_list': '', 'tokenizer.size': 80}), tmp_path / 'run'
  )
  assert corpus.read_manifest(made)['word_list'] is None
  assert any('zygote' in text for text in decoded(pathlib.Path(made), 'train'))


def test_whole_documents_are_rows(place, tmp_path):
  """Each document whole, in lower case, cut at the length of a row; those of the splits are the
  same as of sentences.
  """
  articles = {
    'vocabulary.word_list': '',
    'vocabulary.filters': 'documents',
    'rows.packing': 'articles',
    'tokenizer.size': 80,
    'rows.length': 64,
  }
  made = pathlib.Path(build.build_corpus(config(place, **articles), tmp_path / 'run'))
  texts = {
    ' '.join(text.lower().split())
    for name in 'ab'
    for text in (place / f'{name}.txt').read_text().split('\n\n')
  } - {''}
  found = [text for split in corpus_config.SPLITS for text in decoded(made, split)]
  assert (
    len(found)
    == len(texts)
    == sum(corpus.read_manifest(made)['stages']['keep']['documents'].values())
  )
  assert (
    all(any(text.startswith(row) for text in texts) for row in found) and min(map(len, found)) > 50
  )
  with pytest.raises(InputError, match='passes=documents'):
    config(place, **articles | {'vocabulary.filters': 'sentences'})


def test_a_given_tokenizer_is_used(built, place, tmp_path):
  made = build.build_corpus(
    config(
      place,
      **{
        'tokenizer.path': str(built / 'tokenizer.model'),
        'tokenizer.size': 999,
        'rows.packing': 'words',
      },
    ),
    tmp_path / 'run',
  )
  assert (pathlib.Path(made) / 'tokenizer.model').read_bytes() == (
    built / 'tokenizer.model'
  ).read_bytes()
  assert corpus.read_manifest(made)['vocabulary'] == 60


def test_real_stories(data, tmp_path):
  """The share of sentences inside the list, 44 of 100 by the data's own count, which asks for three
  words, not six.
  """
  made = base.corpus()
  made.documents.sources = f'{data}/fairy_tales/fairytaleqa_stories.txt.xz'
  made.vocabulary.update(
    word_list=f'{data}/aochildes/AOChildes_word_frequency.csv', filters='sentences'
  )
  made.tokenizer.size, made.workers = 2000, 1
  manifest = corpus.read_manifest(
    build.build_corpus(recipe.resolve(made, 'corpus'), tmp_path / 'run')
  )
  assert sum(manifest['stages']['keep']['documents'].values()) == 278
  assert 100_000 < manifest['splits']['train']['tokens'] < 600_000
  assert 1.0 < manifest['stages']['tokenizer']['word_split_ratio'] < 1.6


def test_a_sweep_of_sizes_is_reported(place, tmp_path, capsys):
  made = build.build_corpus(config(place, **{'tokenizer.extra_sizes': '70,90'}), tmp_path / 'run')
  sweep = files.read_json(made / 'manifest.json', 'the manifest')['stages']['tokenizer']['sweep']
  assert [row['size'] for row in sweep] == [70, 90]
  assert sweep[0]['word_split_ratio'] > sweep[1]['word_split_ratio'] >= 1
  assert '70 pieces' in capsys.readouterr().err
