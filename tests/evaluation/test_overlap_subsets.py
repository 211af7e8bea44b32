"""Tests parts by overlap: equal tokens, ordered scores, reproducible bytes, training texts alone."""

import json
import math
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from configs import base
from minilm_jax.cli import main
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus
from minilm_jax.evaluation import overlap_subsets
from minilm_jax.training import run_setup
from tests.fake_runs import write_examples
from tests.run_files import edit_json, read_files
from tests.tiny_config import make_run_config

TEXTS = [
  'the old king sees the dog .',
  'a happy farmer sleeps .',
  'the king sleeps .',
  'the dog and the cat .',
]


def make_config(folder: str) -> FinetuneConfig:
  config = base.finetune()
  config.task.update(name='own', folder=folder, split='test')
  return recipe.resolve(config, 'finetune')


@pytest.fixture
def examples(tmp_path: pathlib.Path) -> str:
  rows = [{'text': text, 'label': number % 2} for number, text in enumerate(TEXTS)]
  return write_examples(tmp_path / 'examples', train=rows, test=rows[:2])


def write_parts(
  folder: pathlib.Path, examples: str, workdir: pathlib.Path, *args: Any, **settings: Any
) -> list[dict[str, Any]]:
  return overlap_subsets.write_overlap_subsets(
    folder, make_config(examples), workdir, *args, **settings
  )


@pytest.mark.parametrize('parts', [2, 3, 5])
@pytest.mark.parametrize('seed', [0, 7])
def test_parts_have_equal_tokens_within_a_row(parts: int, seed: int):
  random = np.random.default_rng(seed)
  lengths, scores = random.integers(4, 129, 700), random.normal(size=700).round(1)
  result = overlap_subsets.cut_by_tokens(scores, lengths, parts, 0, seed)
  sizes = [int(lengths[part_rows].sum()) for part_rows in result]
  assert max(sizes) - min(sizes) < lengths.max()
  assert min(sizes) > 0.95 * lengths.sum() / parts - 2 * lengths.max()
  assert len({row for part_rows in result for row in part_rows.tolist()}) == sum(map(len, result))
  for low, high in zip(result, result[1:]):
    assert scores[low].max() <= scores[high].min()
  fixed = overlap_subsets.cut_by_tokens(scores, lengths, parts, 2000, seed)
  assert all(2000 - lengths.max() < lengths[part_rows].sum() <= 2000 for part_rows in fixed)
  for less, more in zip(fixed, result):
    assert set(less.tolist()) < set(more.tolist())


@pytest.mark.parametrize('parts, tokens', [(3, 10**7), (200, 0), (3, 3)])
def test_impossible_parts_are_refused(parts: int, tokens: int):
  with pytest.raises(InputError, match=f'{parts} parts'):
    overlap_subsets.cut_by_tokens(np.arange(100.0), np.full(100, 10), parts, tokens, 0)


@pytest.mark.parametrize('by', overlap_subsets.SELECTIONS)
def test_pretraining_accepts_every_part_as_a_corpus(
  by: str, tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path
):
  result = write_parts(tiny_corpus, examples, tmp_path / 'parts', by)
  assert [part['part'] for part in result] == [1, 2, 3]
  full_manifest = corpus.read_manifest(tiny_corpus)
  sizes = [part['tokens'] for part in result]
  assert max(sizes) - min(sizes) < full_manifest['length']
  hashes = set()
  for part in result:
    manifest = corpus.read_manifest(part['folder'])
    train = manifest['splits']['train']
    assert corpus.load_split(part['folder'], 'train').rows == train['rows'] == part['rows']
    assert train['tokens'] == part['tokens']
    assert manifest['splits']['validation'] == full_manifest['splits']['validation']
    assert manifest['tokenizer'] == full_manifest['tokenizer']
    assert manifest['hash'] == build.hash_corpus(
      manifest['tokenizer']['sha256'], manifest['length'], manifest['splits']
    )
    hashes.add(manifest['hash'])
    config, run = (
      make_run_config(pathlib.Path(part['folder'])),
      tmp_path / 'runs' / str(part['part']),
    )
    assert run_setup.validate(config) == manifest['hash']
    run_setup.open_or_create_run(config, run)
    record = json.loads((run / run_dir.MANIFEST).read_text())['training']['subset']
    assert record['overlap'] == part['overlap'] and record['task'] == 'own'
  assert len(hashes) == 3
  if by != 'random':
    scores = [part['score'] for part in result]
    assert scores == sorted(scores) and scores[0] < scores[-1]


def test_bytes_depend_on_the_seed_but_not_on_block_sizes_or_test_texts(
  tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path, monkeypatch
):
  write_parts(tiny_corpus, examples, tmp_path / 'one')
  monkeypatch.setattr(corpus, '_ROWS_PER_BLOCK', 5)
  row = {'text': 'zebra zebra qwx', 'label': 0}
  (pathlib.Path(examples) / 'test.jsonl').write_text(json.dumps(row) + '\n')
  write_parts(tiny_corpus, examples, tmp_path / 'two')
  assert read_files(tmp_path / 'one') == read_files(tmp_path / 'two')
  write_parts(tiny_corpus, examples, tmp_path / 'other', shuffle_seed=1)
  assert read_files(tmp_path / 'one') != read_files(tmp_path / 'other')


def test_parts_do_not_depend_on_the_number_of_workers(examples: str, tmp_path: pathlib.Path):
  hashes = []
  for workers in (1, 2):
    config = base.corpus()
    config.documents.sources = 'microworld:300'
    config.vocabulary.update(word_rule='plain', filters='documents')
    config.tokenizer.size, config.workers = 300, workers
    config.rows.update(length=32, packing='articles')
    config.splits.update(validation=0.1, test=0.0)
    folder = build.build_corpus(recipe.resolve(config, 'corpus'), tmp_path / f'corpus-{workers}')
    result = write_parts(folder, examples, tmp_path / f'parts-{workers}', num_parts=2)
    hashes.append([corpus.read_manifest(part['folder'])['hash'] for part in result])
  assert hashes[0] == hashes[1]


def test_scores_equal_hand_computed_values():
  task_counts = np.array([0, 0, 0, 9, 0, 2, 0, 4])
  corpus_counts = np.array([0, 0, 0, 0, 0, 1, 5, 2])
  weight = overlap_subsets.compute_token_weights('overlap', task_counts, corpus_counts)
  assert weight.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
  files = corpus.CorpusFiles.__new__(corpus.CorpusFiles)
  files.shards = [np.array([[0, 5, 6, 7, 2, 1], [0, 6, 2, 1, 1, 1], [0, 2, 1, 1, 1, 1]], np.uint16)]
  files.ends, files.manifest = np.array([3]), {'length': 6}
  assert overlap_subsets.score_rows(files, weight).tolist() == [pytest.approx(2 / 3), 0, 0]
  weight = overlap_subsets.compute_token_weights('likelihood', task_counts, corpus_counts)
  assert weight[7] == pytest.approx(math.log(5 / 23) - math.log(3 / 16))
  assert weight[6] < 0 < weight[7] and not weight[:5].any()
  assert not overlap_subsets.compute_token_weights('random', task_counts, corpus_counts).any()


@pytest.fixture
def command(tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path, monkeypatch) -> list:
  monkeypatch.chdir(tmp_path)  # a short path fits the table
  return [
    'overlap-subsets',
    f'--corpus={tiny_corpus}',
    '--config=configs/custom_task.py',
    f'--config.task.folder={examples}',
    '--workdir=parts',
  ]


@pytest.mark.parametrize(
  'flag, match',
  [
    ('--select_by=overlp', "'overlap'"),
    ('--num_parts=1', '--num_parts=1'),
    ('--size=100000000', 'training split'),
    ('--shuffle_seed=-1', 'subset.shuffle_seed'),
    ('--size=-3', 'subset.tokens'),
  ],
)
def test_the_command_refuses_invalid_flags(flag: str, match: str, command: list, capsys):
  assert main.main([*command, flag]) == 2
  assert match in capsys.readouterr().err and not pathlib.Path('parts').exists()


def test_the_command_writes_parts_once(command: list, capsys):
  command += ['--num_parts=2', '--size=3000']
  assert main.main([*command, '--json']) == 0
  parts = json.loads(capsys.readouterr().out)['parts']
  assert all(3000 - 64 < part['tokens'] <= 3000 for part in parts)
  before = read_files(pathlib.Path('parts'))
  assert main.main(command) == 0
  assert 'part-2' in capsys.readouterr().out and read_files(pathlib.Path('parts')) == before


def test_parts_of_other_examples_are_refused(
  tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path
):
  parts = write_parts(tiny_corpus, examples, tmp_path / 'parts')
  row = {'text': 'a cat sees a cow .', 'label': 1}
  with (pathlib.Path(examples) / 'train.jsonl').open('a') as file:
    file.write(json.dumps(row) + '\n')
  with pytest.raises(InputError, match='examples is'):
    write_parts(tiny_corpus, examples, tmp_path / 'parts')
  for part in parts:  # an earlier version stored no checksum
    edit_json(pathlib.Path(part['folder']) / run_dir.CONFIG, lambda stored: stored.pop('examples'))
  assert len(write_parts(tiny_corpus, examples, tmp_path / 'parts')) == 3


@pytest.fixture(scope='module')
def corpus_files(tiny_corpus: pathlib.Path) -> corpus.CorpusFiles:
  return corpus.CorpusFiles(tiny_corpus, 'train')


@pytest.fixture(scope='module')
def manifest(tiny_corpus: pathlib.Path) -> dict:
  return corpus.read_manifest(tiny_corpus)


def test_a_subset_has_the_other_splits_of_the_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  rows, arguments = np.array([9, 2, 40]), ({'kind': 'subset'}, {'by': 'hand'})
  folder = pathlib.Path(
    overlap_subsets.write_subset(tiny_corpus, rows, tmp_path / 'part', *arguments)
  )
  copied = corpus.read_manifest(folder)
  np.testing.assert_array_equal(corpus.load_split(folder, 'train').tokens, corpus_files[rows])
  for split in ('validation', 'test'):
    tokens = corpus.load_split(folder, split).tokens
    np.testing.assert_array_equal(tokens, corpus.load_split(tiny_corpus, split).tokens)
    assert copied['splits'][split] == manifest['splits'][split]
  assert copied['tokenizer'] == manifest['tokenizer'] and copied['hash'] != manifest['hash']
  of_rows = manifest['splits']['train']['rows']
  assert copied['subset'] == {'of': manifest['hash'], 'of_rows': of_rows, 'by': 'hand'}
  assert copied['splits']['train']['tokens'] == corpus.count_row_tokens(corpus_files)[rows].sum()
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  overlap_subsets.write_subset(tiny_corpus, rows, folder, *arguments)
  assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
  with pytest.raises(InputError, match='part'):
    overlap_subsets.write_subset(tiny_corpus, rows, folder, {'kind': 'subset', 'part': 2}, {})
  with pytest.raises(InputError, match='no row'):
    overlap_subsets.write_subset(tiny_corpus, rows[:0], tmp_path / 'empty', {}, {})


def test_a_subset_of_all_rows_has_the_hash_of_the_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  rows = np.arange(int(corpus_files.ends[-1]))
  folder = overlap_subsets.write_subset(tiny_corpus, rows, tmp_path / 'part', {}, {})
  assert corpus.read_manifest(folder)['hash'] == manifest['hash']


def test_an_interrupted_subset_is_not_a_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
):
  write_json = files.write_json

  def stop_at_manifest(path, value):
    if path.name == run_dir.MANIFEST:
      raise KeyboardInterrupt
    write_json(path, value)

  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_json', stop_at_manifest)
    with pytest.raises(KeyboardInterrupt):
      overlap_subsets.write_subset(tiny_corpus, np.arange(5), tmp_path / 'part', {}, {})
  with pytest.raises(InputError, match='manifest.json'):
    corpus.read_manifest(tmp_path / 'part')
  resumed, fresh = (
    overlap_subsets.write_subset(tiny_corpus, np.arange(5), tmp_path / name, {}, {})
    for name in ('part', 'fresh')
  )
  assert json.dumps(corpus.read_manifest(resumed)) == json.dumps(corpus.read_manifest(fresh))


def test_damaged_rows_are_refused(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  copy = shutil.copytree(tiny_corpus, tmp_path / 'copy')
  shard = copy / 'test-00000.npy'
  shard.write_bytes(shard.read_bytes()[:-2] + b'\0\0')
  with pytest.raises(InputError, match='sha256'):
    overlap_subsets.write_subset(copy, np.arange(5), tmp_path / 'part', {}, {})
  assert not (tmp_path / 'part' / run_dir.MANIFEST).exists()
