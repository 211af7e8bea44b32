"""Corpus builds: content of the folder, same bytes after interruptions, invalid input."""

import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import unicodedata

import numpy as np
import pytest
from etils import epath

from configs import base
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.corpus_config import SPLITS, CorpusConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus, documents, filtering, filters, packing, tokenizer
from tests.filter_cases import read_corpus

WORDS = (
  'the a little big old king queen farmer dog cat house sea saw found liked called and then because when '
  'morning evening water bread was happy tired again'
).split()


def write_text(path: pathlib.Path, count: int = 200, seed: int = 0) -> pathlib.Path:
  """Writes documents with sentences that are too short, repeated, or have a word outside WORDS."""
  dice, texts = random.Random(seed), []
  for _ in range(count):
    sentences = ['The king was tired again and the queen was happy.']
    for _ in range(dice.randint(3, 8)):
      words = dice.choices(WORDS, k=dice.choice([4, 9, 12, 14, 17]))
      if dice.random() < 0.2:
        words[dice.randrange(len(words))] = 'zygote'
      if words[-1] == 'a':
        words[-1] = 'the'  # 'a.' would be an initial
      sentences.append(' '.join(words).capitalize() + '.')
    texts.append('\n'.join(sentences))
  path.write_text('\n\n'.join(texts) + '\n')
  return path


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> pathlib.Path:
  """Returns a folder of two text files and their word list."""
  folder = tmp_path_factory.mktemp('text')
  write_text(folder / 'a.txt')
  write_text(folder / 'b.txt', count=60, seed=1)
  (folder / 'words.txt').write_text('\n'.join(WORDS) + '\n')
  return folder


def read_source(source: pathlib.Path) -> str:
  return ''.join((source / f'{name}.txt').read_text() for name in 'ab')


def make_config(source: pathlib.Path, **changes: object) -> CorpusConfig:
  config = base.corpus()
  config.documents.sources = f'{source}/[ab].txt'
  config.vocabulary.word_list = str(source / 'words.txt')
  config.vocabulary.filters = 'sentences'
  config.tokenizer.size, config.workers = 60, 1
  config.rows.update(length=128, packing='tokens')
  config.splits.update(validation=0.1, test=0.1)
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'corpus')


@pytest.fixture(scope='module')
def built(source, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('runs') / 'built'
  return pathlib.Path(build.build_corpus(make_config(source), folder))


def decode(folder: pathlib.Path, split: str) -> list[str]:
  pieces = tokenizer.load_tokenizer(folder / 'tokenizer.model')
  rows = np.asarray(corpus.load_split(folder, split).tokens)
  return [pieces.decode(row) for row in rows.tolist()]


def refuse_filtering(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(filtering.LocalRunner, 'filter_corpus', lambda *_: pytest.fail('repeated'))


def interrupt(*_: object) -> None:
  raise KeyboardInterrupt


def test_manifest_and_files_describe_the_corpus(built, source):
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
  checksums = [files.hash_file(source / f'{name}.txt') for name in 'ab']
  assert [entry['sha256'] for entry in manifest['sources']] == checksums
  assert manifest['word_list']['words'] == len(WORDS)
  assert manifest['stages']['tokenizer']['word_split_ratio'] >= 1
  stored = files.read_json(built / run_dir.CONFIG, 'config')
  assert recipe.resolve(stored, 'corpus') == make_config(source, workers=0)
  for split in SPLITS:
    rows = corpus.load_split(built, split)
    expected = (manifest['splits'][split]['rows'], 128, 60)
    assert (rows.rows, rows.length, rows.vocab_size) == expected


def test_rows_decode_to_distinct_sentences_of_more_than_five_listed_words(built, source):
  expected = []
  for sentence in re.findall(r'[^.]+\.', read_source(source).lower()):
    words = [word for word in re.findall(r'\w+', sentence) if len(word) > 1]
    if len(words) > 5 and set(words) <= set(WORDS):
      expected.append(' '.join(sentence.split()))
  rows = [text for split in SPLITS for text in decode(built, split)]
  sentences = [text.strip() for row in rows for text in re.findall(r'[^.]+\.', row)]
  assert sorted(sentences) == sorted(set(expected))
  counts = corpus.read_manifest(built)['stages']['keep']['passes']
  assert counts['sentences_repeated'] == len(expected) - len(set(expected)) >= 100


def test_splits_share_no_sentence(built):
  sentences = [
    {s.strip() for text in decode(built, split) for s in text.split('.') if s.strip()}
    for split in SPLITS
  ]
  assert all(sentences)
  assert not any(a & b for a, b in itertools.combinations(sentences, 2))


def test_windows_of_a_document_stay_in_one_split(source, tmp_path):
  spans = {'filters': 'spans', 'span_words': 8, 'span_stride': 2, 'min_words_per_span': 5}
  config = make_config(source, **{f'vocabulary.{name}': value for name, value in spans.items()})
  folder = epath.Path(tmp_path) / 'text'
  sources = documents.expand_sources(config.documents)
  filtering.LocalRunner(1).filter_corpus(config, sources, None, folder)
  items = [(item, s) for s in SPLITS for item in filtering.read_items(folder, s, 'spans')]
  split_of = dict(items)
  assert len(split_of) == len(items)
  text = (source / 'a.txt').read_text().lower()
  flat = text.replace('\n', ' ')
  for document in text.split('\n\n'):
    words = document.split()
    windows = [' '.join(words[i : i + 8]) for i in range(0, len(words), 2)]
    # Windows that also occur in an earlier document may be in another split.
    unique = [window for window in windows if flat.count(window) == 1]
    assert len({split_of[window] for window in unique if window in split_of}) <= 1


def test_the_hash_depends_on_the_tokens_alone(built, source, tmp_path):
  changes = {'same': {'documents.max_chars': 1_000_000}, 'other': {'rows.length': 120}}
  same, other = (
    corpus.read_manifest(build.build_corpus(make_config(source, **change), tmp_path / name))['hash']
    for name, change in changes.items()
  )
  assert same == corpus.read_manifest(built)['hash'] != other


def test_composed_and_decomposed_accents_give_one_corpus(source, tmp_path):
  manifests = []
  for form in ('NFC', 'NFD'):
    folder = tmp_path / form
    folder.mkdir()
    for name in ('a.txt', 'b.txt', 'words.txt'):
      text = (source / name).read_text().replace('house', 'café')
      (folder / name).write_text(unicodedata.normalize(form, text))
    # The word list has the other form.
    words = unicodedata.normalize('NFD' if form == 'NFC' else 'NFC', '\n'.join(WORDS) + '\ncafé\n')
    (folder / 'words.txt').write_text(words)
    build.build_corpus(make_config(folder), folder / 'corpus')
    manifests.append(corpus.read_manifest(folder / 'corpus'))
  first, second = manifests
  assert first['hash'] == second['hash'] and first['word_list'] == second['word_list']
  assert first['normalization'] == 'NFC'
  trained = tokenizer.load_tokenizer(tmp_path / 'NFC' / 'corpus' / run_dir.TOKENIZER)
  ids = trained.encode([trained.fold(text) for text in ('The caf\u00e9', 'the cafe\u0301')])
  assert ids[0] == ids[1] and tokenizer.UNKNOWN_ID not in ids[0]


def test_the_number_of_workers_does_not_change_the_corpus(built, source, tmp_path, monkeypatch):
  monkeypatch.setattr(filtering, '_CHARS_PER_BATCH', 2000)  # gives work to both
  folder = build.build_corpus(make_config(source, workers=2), tmp_path / 'two')
  assert read_corpus(folder) == read_corpus(built)


def test_a_finished_corpus_is_not_changed(built, source):
  before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
  build.build_corpus(make_config(source, workers=2), built)
  assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before
  with pytest.raises(InputError, match='tokenizer.size'):
    build.build_corpus(make_config(source, **{'tokenizer.size': 61}), built)


def test_a_copy_without_a_recipe_keeps_that_of_its_manifest(built, source, tmp_path):
  copy = shutil.copytree(built, tmp_path / 'copy')
  recipe_file = copy / run_dir.CONFIG
  recipe_file.unlink()
  with pytest.raises(InputError, match='tokenizer.size'):
    build.build_corpus(make_config(source, **{'tokenizer.size': 61}), copy)
  build.build_corpus(make_config(source), copy)
  assert json.loads(recipe_file.read_text())['tokenizer']['size'] == 60


def test_documents_above_the_sample_of_the_ratio_are_measured(source, tmp_path, monkeypatch):
  monkeypatch.setattr(build, '_MAX_SPLIT_RATIO_BYTES', 20)
  folder = build.build_corpus(make_config(source), tmp_path / 'corpus')
  manifest = json.loads((pathlib.Path(folder) / run_dir.MANIFEST).read_text())
  assert manifest['stages']['tokenizer']['word_split_ratio'] > 1


KILLED_PROGRAM = """
import json, os, signal, sys
from minilm_jax.core import recipe
from minilm_jax.data import build, filtering, packing, tokenizer
module, name = sys.argv[3].split('.')
setattr(globals()[module], name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
build.build_corpus(recipe.resolve(json.loads(sys.argv[2]), 'corpus'), sys.argv[1])
"""


@pytest.mark.parametrize(
  'function, is_repeated',
  [
    ('filtering._refuse_empty', True),
    ('tokenizer.train_tokenizer', False),
    ('packing._save_array', False),
  ],
)
def test_a_killed_build_continues(
  built, source, tmp_path, monkeypatch, function: str, is_repeated: bool
):
  workdir, config = tmp_path / 'killed', make_config(source)
  arguments = [str(workdir), json.dumps(recipe.as_dict(config)), function]
  done = subprocess.run(
    [sys.executable, '-c', KILLED_PROGRAM, *arguments],
    check=False,
    capture_output=True,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(build.__file__).parents[2])},
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  assert not (workdir / run_dir.MANIFEST).exists() and (workdir / '.work').exists()
  with pytest.raises(InputError, match='tokenizer.size'):
    build.build_corpus(make_config(source, **{'tokenizer.size': 61}), workdir)
  calls, original = [], filtering.LocalRunner.filter_corpus
  monkeypatch.setattr(
    filtering.LocalRunner, 'filter_corpus', lambda *args: calls.append(args) or original(*args)
  )
  build.build_corpus(config, workdir)
  assert bool(calls) == is_repeated
  assert read_corpus(workdir) == read_corpus(built)


def test_a_continued_build_reads_changed_text(source, tmp_path, monkeypatch):
  path = write_text(tmp_path / 'a.txt')
  config = make_config(tmp_path, **{'vocabulary.word_list': str(source / 'words.txt')})
  with monkeypatch.context() as patch:
    patch.setattr(packing, 'write_rows', interrupt)
    with pytest.raises(KeyboardInterrupt):
      build.build_corpus(config, tmp_path / 'resumed')
  write_text(path, seed=7)
  resumed, fresh = (build.build_corpus(config, tmp_path / name) for name in ('resumed', 'fresh'))
  assert read_corpus(resumed) == read_corpus(fresh)


def test_a_failed_tokenizer_keeps_the_filtered_text(built, source, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  with pytest.raises(InputError, match='tokenizer.size'):
    build.build_corpus(make_config(source, **{'tokenizer.size': 30_000}), workdir)
  assert [path.name for path in workdir.iterdir()] == ['.work']
  refuse_filtering(monkeypatch)
  assert read_corpus(build.build_corpus(make_config(source), workdir)) == read_corpus(built)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'vocabulary.min_words_per_sentence': 500}, 'train split'),
    ({'splits.validation': 1e-9}, 'splits.validation'),
    ({'splits.test': 1e-9}, 'splits.test'),
  ],
)
def test_empty_splits_are_refused_with_counts(source, tmp_path, changes: dict, message: str):
  with pytest.raises(InputError, match=message) as refused:
    build.build_corpus(make_config(source, **changes), tmp_path / 'run')
  assert 'train' in refused.value.found and len(re.findall(r'\d+', refused.value.found)) >= 5
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('field', ['documents.sources', 'vocabulary.word_list', 'tokenizer.path'])
def test_missing_input_leaves_no_folder(source, tmp_path, field: str):
  with pytest.raises(InputError, match='/no/such.txt'):
    build.build_corpus(make_config(source, **{field: '/no/such.txt'}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_hard_wrapped_text_gives_the_corpus_of_unwrapped_text(source, tmp_path):
  hashes = []
  for width in (20, 33, 10_000):
    folder = tmp_path / str(width)
    folder.mkdir()
    for name in ('a.txt', 'b.txt'):
      paragraphs = (source / name).read_text().strip().split('\n\n')
      wrapped = (textwrap.fill(' '.join(text.split()), width) for text in paragraphs)
      (folder / name).write_text('\n\n'.join(wrapped) + '\n')
    changes = {'vocabulary.word_list': str(source / 'words.txt')}
    build.build_corpus(make_config(folder, **changes), folder / 'corpus')
    hashes.append(corpus.read_manifest(folder / 'corpus')['hash'])
  assert len(set(hashes)) == 1


def test_words_with_capitals_are_counted(source, tmp_path, capsys):
  words = tmp_path / 'words.txt'
  words.write_text('\n'.join([*WORDS, 'King', 'TRUE', 'Größe', 'größe']) + '\n')
  for path, numbers in ((words, ['3', str(len(WORDS) + 4)]), (source / 'words.txt', None)):
    config = make_config(source, **{'vocabulary.word_list': str(path)})
    build.build_corpus(config, tmp_path / path.parent.name)
    line = re.search('^word list: (.*) words have capitals', capsys.readouterr().err, re.M)
    assert (line and line[1].split(' of ')) == numbers


def test_text_without_spaces_is_named_as_the_reason(tmp_path):
  lines = '我们看到了那座红色的大房子和院子里的小狗', '今天的天气很好所以大家都出去散步了'
  (tmp_path / 'a.txt').write_text('\n\n'.join(lines))
  changes = {'vocabulary.word_list': '', 'documents.sources': f'{tmp_path}/a.txt'}
  with pytest.raises(InputError, match='spaces between words'):
    build.build_corpus(make_config(tmp_path, **changes), tmp_path / 'corpus')


def test_damaged_text_is_refused_or_replaced(source, tmp_path):
  damaged = tmp_path / 'a.txt'
  damaged.write_bytes((source / 'a.txt').read_bytes() + b'\n\xff\xfe broken\n')
  changes = {'documents.sources': str(damaged)}
  with pytest.raises(InputError, match='UTF-8'):
    build.build_corpus(make_config(source, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  changes['documents.on_invalid_utf8'] = 'replace'
  build.build_corpus(make_config(source, **changes), tmp_path / 'run')


def test_train_may_be_the_only_split_under_the_most_frequent_words(source, tmp_path):
  changes = {'vocabulary.word_list': '', 'vocabulary.most_frequent': 20}
  changes |= {'splits.test': 0.0, 'splits.validation': 0.0}
  folder = pathlib.Path(build.build_corpus(make_config(source, **changes), tmp_path / 'run'))
  manifest = corpus.read_manifest(folder)
  rows = {split: entry['rows'] for split, entry in manifest['splits'].items()}
  assert rows['train'] and not rows['validation'] and not manifest['splits']['test']['shards']
  assert manifest['word_list']['words'] == 20
  counts = filtering.count_document_words([read_source(source)], 'paper1')
  frequent = filters.select_frequent_words(counts, 20).words
  words = {word for text in decode(folder, 'train') for word in re.findall(r'\w\w+', text)}
  assert words and words <= frequent


def test_all_words_are_selected_without_a_word_list(source, tmp_path):
  changes = {'vocabulary.word_list': '', 'tokenizer.size': 80}
  folder = pathlib.Path(build.build_corpus(make_config(source, **changes), tmp_path / 'run'))
  assert corpus.read_manifest(folder)['word_list'] is None
  assert any('zygote' in text for text in decode(folder, 'train'))


def test_documents_are_truncated_rows(source, tmp_path, capsys):
  changes = {
    'vocabulary.word_list': '',
    'vocabulary.filters': 'documents',
    'rows.packing': 'articles',
    'tokenizer.size': 80,
    'rows.length': 64,
  }
  folder = pathlib.Path(build.build_corpus(make_config(source, **changes), tmp_path / 'run'))
  texts = {
    ' '.join(text.lower().split())
    for name in 'ab'
    for text in (source / f'{name}.txt').read_text().split('\n\n')
  } - {''}
  rows = [text for split in SPLITS for text in decode(folder, split)]
  counts = corpus.read_manifest(folder)['stages']['keep']['documents']
  assert len(rows) == len(texts) == sum(counts.values())
  assert all(any(text.startswith(row) for text in texts) for row in rows)
  assert min(map(len, rows)) > 50
  pieces = tokenizer.load_tokenizer(folder / 'tokenizer.model')
  lengths = [len(ids) for ids in pieces.encode(sorted(texts)) if len(ids) > 62]
  cut = re.search('^cut: ([0-9,]+) tokens of ([0-9,]+) rows', capsys.readouterr().err, re.M)
  numbers = [int(group.replace(',', '')) for group in cut.groups()] if cut else []
  assert numbers == [sum(lengths) - 62 * len(lengths), len(lengths)] and numbers[0] > 0
  build.build_corpus(make_config(source, **changes | {'rows.packing': 'tokens'}), tmp_path / 'all')
  assert 'cut:' not in capsys.readouterr().err
  with pytest.raises(InputError, match='vocabulary.filters=documents'):
    make_config(source, **changes | {'vocabulary.filters': 'sentences'})


def test_an_existing_tokenizer_is_copied(built, source, tmp_path):
  path = built / 'tokenizer.model'
  changes = {'tokenizer.path': str(path), 'tokenizer.size': 999, 'rows.packing': 'words'}
  folder = build.build_corpus(make_config(source, **changes), tmp_path / 'run')
  assert (folder / 'tokenizer.model').read_bytes() == path.read_bytes()
  assert corpus.read_manifest(folder)['vocabulary'] == 60


def test_real_stories_give_a_plausible_corpus(data, tmp_path):
  config = base.corpus()
  config.documents.sources = f'{data}/fairy_tales/fairytaleqa_stories.txt.xz'
  config.vocabulary.word_list = f'{data}/aochildes/AOChildes_word_frequency.csv'
  config.vocabulary.filters = 'sentences'
  config.tokenizer.size, config.workers = 2000, 1
  folder = build.build_corpus(recipe.resolve(config, 'corpus'), tmp_path / 'run')
  manifest = corpus.read_manifest(folder)
  assert sum(manifest['stages']['keep']['documents'].values()) == 278
  assert 100_000 < manifest['splits']['train']['tokens'] < 600_000
  assert 1.0 < manifest['stages']['tokenizer']['word_split_ratio'] < 1.6


def test_extra_sizes_are_measured(source, tmp_path):
  config = make_config(source, **{'tokenizer.extra_sizes': '70,90'})
  folder = build.build_corpus(config, tmp_path / 'run')
  sweep = corpus.read_manifest(folder)['stages']['tokenizer']['sweep']
  assert [row['size'] for row in sweep] == [70, 90]
  assert sweep[0]['word_split_ratio'] > sweep[1]['word_split_ratio'] >= 1


@pytest.mark.parametrize('sizes', ['70,30000', '16'])
def test_extra_sizes_without_a_tokenizer_name_their_field(source, tmp_path, sizes: str):
  config = make_config(source, **{'tokenizer.extra_sizes': sizes})
  with pytest.raises(InputError) as refused:
    build.build_corpus(config, tmp_path / 'run')
  assert sizes.split(',')[-1] in refused.value.asked
  assert re.search(r'tokenizer\.extra_sizes to \d+', refused.value.remedy)
