"""Parts by overlap: of equal tokens, in the order of their overlap, the same everywhere, from
training texts alone.
"""

import json
import math
import pathlib

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
from tests.tiny_config import run_config

TEXTS = [
  'the old king sees the dog .',
  'a happy farmer sleeps .',
  'the king sleeps .',
  'the dog and the cat .',
]


def task(folder: str) -> FinetuneConfig:
  manifest = base.finetune()
  manifest.task.update(name='own', folder=folder, split='test')
  return recipe.resolve(manifest, 'finetune')


@pytest.fixture
def examples(tmp_path: pathlib.Path) -> str:
  rows = [{'text': text, 'label': number % 2} for number, text in enumerate(TEXTS)]
  return write_examples(tmp_path / 'examples', train=rows, test=rows[:2])


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


@pytest.mark.parametrize('parts', [2, 3, 5])
@pytest.mark.parametrize('seed', [0, 7])
def test_parts_have_equal_tokens_within_a_row(parts: int, seed: int):
  random = np.random.default_rng(seed)
  # many equal scores
  lengths, scores = random.integers(4, 129, 700), random.normal(size=700).round(1)
  result = overlap_subsets.cut_by_tokens(scores, lengths, parts, 0, seed)
  sizes = [int(lengths[part_rows].sum()) for part_rows in result]
  assert (
    max(sizes) - min(sizes) < lengths.max()
    and min(sizes) > 0.95 * lengths.sum() / parts - 2 * lengths.max()
  )
  assert len({row for part_rows in result for row in part_rows.tolist()}) == sum(map(len, result))
  for low, high in zip(result, result[1:]):
    assert scores[low].max() <= scores[high].min()
  fixed = overlap_subsets.cut_by_tokens(scores, lengths, parts, 2000, seed)
  assert all(2000 - lengths.max() < lengths[part_rows].sum() <= 2000 for part_rows in fixed)
  for less, more in zip(fixed, result):
    # a smaller part is inside the larger of its kind
    assert set(less.tolist()) < set(more.tolist())


@pytest.mark.parametrize('parts, tokens', [(3, 10**7), (200, 0), (3, 3)])
def test_what_the_corpus_cannot_give_is_refused(parts: int, tokens: int):
  with pytest.raises(InputError, match='parts') as caught:
    overlap_subsets.cut_by_tokens(np.arange(100.0), np.full(100, 10), parts, tokens, 0)
  assert 'token' in str(caught.value)


@pytest.mark.parametrize('by', overlap_subsets.SELECTIONS)
def test_every_part_is_a_corpus_that_pretrain_takes(
  by: str, tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path
):
  result = overlap_subsets.write_overlap_subsets(
    tiny_corpus, task(examples), tmp_path / 'parts', by
  )
  assert [part['part'] for part in result] == [1, 2, 3]
  full_manifest = corpus.read_manifest(tiny_corpus)
  assert (
    max(part['tokens'] for part in result) - min(part['tokens'] for part in result)
    < full_manifest['length']
  )
  hashes = set()
  for part in result:
    manifest = corpus.read_manifest(part['folder'])
    assert (
      corpus.load_split(part['folder'], 'train').rows
      == manifest['splits']['train']['rows']
      == part['rows']
    )
    assert manifest['splits']['train']['tokens'] == part['tokens']
    assert (
      manifest['splits']['validation'] == full_manifest['splits']['validation']
      and manifest['tokenizer'] == full_manifest['tokenizer']
    )
    assert manifest['hash'] == build.hash_corpus(
      manifest['tokenizer']['sha256'], manifest['length'], manifest['splits']
    )
    hashes.add(manifest['hash'])
    config = run_config(pathlib.Path(part['folder']))
    assert run_setup.validate(config) == manifest['hash']
    run_setup.open_or_create_run(config, tmp_path / 'runs' / str(part['part']))
    kept = files.read_json(tmp_path / 'runs' / str(part['part']) / run_dir.MANIFEST, 'it')[
      'training'
    ]
    assert kept['subset']['overlap'] == part['overlap'] and kept['subset']['task'] == 'own'
  assert len(hashes) == 3
  if by != 'random':
    scores = [part['score'] for part in result]
    assert scores == sorted(scores) and scores[0] < scores[-1]


def test_the_same_seed_gives_the_same_bytes(
  tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path, monkeypatch
):
  overlap_subsets.write_overlap_subsets(tiny_corpus, task(examples), tmp_path / 'one')
  monkeypatch.setattr(overlap_subsets, '_ROWS_PER_BLOCK', 7)  # however the work is cut
  monkeypatch.setattr(corpus, '_ROWS_PER_BLOCK', 5)
  overlap_subsets.write_overlap_subsets(tiny_corpus, task(examples), tmp_path / 'two')
  assert bytes_of(tmp_path / 'one') == bytes_of(tmp_path / 'two')
  overlap_subsets.write_overlap_subsets(
    tiny_corpus, task(examples), tmp_path / 'other', shuffle_seed=1
  )
  assert bytes_of(tmp_path / 'one') != bytes_of(tmp_path / 'other')


def test_any_number_of_workers_leads_to_the_same_parts(examples: str, tmp_path: pathlib.Path):
  manifest = []
  for workers in (1, 2):
    config = base.corpus()
    config.documents.sources = 'microworld:300'
    config.vocabulary.update(word_rule='plain', filters='documents')
    config.tokenizer.size, config.workers = 300, workers
    config.rows.update(length=32, packing='articles')
    config.splits.update(validation=0.1, test=0.0)
    folder = build.build_corpus(recipe.resolve(config, 'corpus'), tmp_path / f'corpus-{workers}')
    result = overlap_subsets.write_overlap_subsets(
      folder, task(examples), tmp_path / f'parts-{workers}', num_parts=2
    )
    manifest.append([corpus.read_manifest(part['folder'])['hash'] for part in result])
  assert manifest[0] == manifest[1]


def test_the_test_texts_change_nothing(
  tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path
):
  overlap_subsets.write_overlap_subsets(tiny_corpus, task(examples), tmp_path / 'one')
  row = {'text': 'zebra zebra qwx', 'label': 0}
  (pathlib.Path(examples) / 'test.jsonl').write_text(json.dumps(row) + '\n')
  overlap_subsets.write_overlap_subsets(tiny_corpus, task(examples), tmp_path / 'two')
  assert bytes_of(tmp_path / 'one') == bytes_of(tmp_path / 'two')


def test_scores_by_hand():
  task_counts, corpus_counts = (
    np.array([0, 0, 0, 9, 0, 2, 0, 4]),
    np.array([0, 0, 0, 0, 0, 1, 5, 2]),
  )
  weight = overlap_subsets.token_weights('overlap', task_counts, corpus_counts)
  assert weight.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
  files = corpus.CorpusFiles.__new__(corpus.CorpusFiles)
  files.shards = [np.array([[0, 5, 6, 7, 2, 1], [0, 6, 2, 1, 1, 1], [0, 2, 1, 1, 1, 1]], np.uint16)]
  assert overlap_subsets.score_rows(files, weight).tolist() == [pytest.approx(2 / 3), 0, 0]
  likely = overlap_subsets.token_weights('likelihood', task_counts, corpus_counts)
  assert (
    likely[7] == pytest.approx(math.log(5 / 23) - math.log(3 / 16)) and likely[6] < 0 < likely[7]
  )
  assert (
    not likely[:5].any()
    and not overlap_subsets.token_weights('random', task_counts, corpus_counts).any()
  )


@pytest.mark.parametrize(
  'flags, message',
  [
    ('--select_by=overlp', "did you mean 'overlap'"),
    ('--num_parts=1', 'at least 2'),
    ('--size=100000000', 'training split'),
    ('--shuffle_seed=-1', 'subset.shuffle_seed'),
    ('--size=-3', 'subset.tokens'),
  ],
)
def test_the_verb_refuses_what_it_cannot_do(
  flags: str, message: str, tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path, capsys
):
  command = [
    'overlap-subsets',
    f'--corpus={tiny_corpus}',
    '--config=configs/custom_task.py',
    f'--config.task.folder={examples}',
    f'--workdir={tmp_path / "parts"}',
    flags,
  ]
  assert main.main(command) == 2
  assert message in capsys.readouterr().err and not (tmp_path / 'parts').exists()


def test_the_verb(
  tiny_corpus: pathlib.Path, examples: str, tmp_path: pathlib.Path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # for the table, which folds what is long
  command = [
    'overlap-subsets',
    f'--corpus={tiny_corpus}',
    '--config=configs/custom_task.py',
    f'--config.task.folder={examples}',
    '--workdir=parts',
    '--num_parts=2',
    '--size=3000',
  ]
  assert main.main([*command, '--json']) == 0
  parts = json.loads(capsys.readouterr().out)['parts']
  assert all(3000 - 64 < part['tokens'] <= 3000 for part in parts)
  before = bytes_of(tmp_path / 'parts')
  assert main.main(command) == 0
  captured = capsys.readouterr()
  assert (
    'nothing to do' in captured.err
    and 'part-2' in captured.out
    and bytes_of(tmp_path / 'parts') == before
  )
