"""Evaluation of a checkpoint: the logged loss again, on any corpus of its tokenizer and no other."""

import json
import shutil
from pathlib import Path

import pytest

from configs import tiny
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import build
from minilm_jax.evaluation import evaluate

pytestmark = pytest.mark.usefixtures('fast_compile')


def another_corpus(folder: Path, **changes: object) -> str:
  config = tiny.get_config('corpus')
  config.documents.sources = 'microworld:300'
  config.workers = 1
  config.update_from_flattened_dict(changes)
  return str(build.build_corpus(recipe.resolve(config, 'corpus'), folder))


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_it_is_the_loss_that_the_run_logged(tiny_run: Path, split: str):
  logged = [
    line for line in run_dir.read_lines(tiny_run / 'metrics.jsonl') if line['split'] == split
  ][-1]
  result = evaluate.evaluate_loss(tiny_run, '', split)
  assert result['step'] == logged['step'] == 8
  for name in ('loss', 'perplexity', 'padded_loss'):
    assert result[name] == pytest.approx(logged[name], rel=1e-6)


def test_every_row_counts(tiny_run: Path, tiny_corpus: Path):
  rows = json.loads((tiny_corpus / 'manifest.json').read_text())['splits']['train']['rows']
  assert evaluate.evaluate_loss(tiny_run, '', 'train')['rows'] == rows


def test_a_copied_run_needs_nothing_but_itself_and_a_corpus(
  tiny_run: Path, tiny_corpus: Path, tmp_path: Path
):
  shutil.copytree(tiny_run, tmp_path / 'run')
  shutil.copytree(tiny_corpus, tmp_path / 'corpus')
  expected = evaluate.evaluate_loss(tiny_run, '', 'test')
  assert evaluate.evaluate_loss(tmp_path / 'run', str(tmp_path / 'corpus'), 'test') == expected
  described = json.loads((tmp_path / 'run' / 'manifest.json').read_text())
  files.write_json(
    tmp_path / 'run' / 'manifest.json', described | {'corpus_folder': str(tmp_path / 'gone')}
  )
  with pytest.raises(InputError, match='--corpus=FOLDER'):
    evaluate.evaluate_loss(tmp_path / 'run', '', 'test')


def test_another_text_of_the_same_tokenizer_is_judged(tiny_run: Path, tmp_path: Path):
  folder = another_corpus(
    tmp_path / 'corpus', **{'tokenizer.path': str(tiny_run / 'tokenizer.model')}
  )
  assert 0 < evaluate.evaluate_loss(tiny_run, folder, 'validation')['loss'] < 10


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'tokenizer.size': 500}, 'another tokenizer'),
    ({'rows.length': 96}, 'the model reads 64'),
    ({'splits.test': 0.0}, 'no rows'),
  ],
)
def test_what_the_model_cannot_read_is_refused(
  tiny_run: Path, tmp_path: Path, changes: dict, message: str
):
  same = (
    {} if 'tokenizer.size' in changes else {'tokenizer.path': str(tiny_run / 'tokenizer.model')}
  )
  with pytest.raises(InputError, match=message):
    evaluate.evaluate_loss(tiny_run, another_corpus(tmp_path / 'corpus', **same, **changes), 'test')


def test_an_unknown_split_is_refused_with_what_was_meant(tiny_run: Path):
  with pytest.raises(InputError, match="did you mean 'validation'"):
    evaluate.evaluate_loss(tiny_run, '', 'validaton')
