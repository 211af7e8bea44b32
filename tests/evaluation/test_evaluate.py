"""Tests evaluation of a checkpoint: the logged loss, on any corpus with the tokenizer of the run."""

import json
import shutil
from pathlib import Path

import pytest

from configs import tiny
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import build
from minilm_jax.evaluation import evaluate


def build_other_corpus(folder: Path, **changes: object) -> str:
  config = tiny.get_config('corpus')
  config.documents.sources = 'microworld:300'
  config.workers = 1
  config.update_from_flattened_dict(changes)
  return str(build.build_corpus(recipe.resolve(config, 'corpus'), folder))


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_the_loss_equals_the_logged_loss(tiny_run: Path, split: str):
  lines = run_dir.read_lines(tiny_run / 'metrics.jsonl')
  logged = [line for line in lines if line['split'] == split][-1]
  result = evaluate.evaluate_loss(tiny_run, '', split)
  assert result['step'] == logged['step'] == 8
  for name in ('loss', 'perplexity', 'padded_loss'):
    assert result[name] == pytest.approx(logged[name], rel=1e-6)


def test_all_rows_are_evaluated(tiny_run: Path, tiny_corpus: Path):
  rows = json.loads((tiny_corpus / 'manifest.json').read_text())['splits']['train']['rows']
  assert evaluate.evaluate_loss(tiny_run, '', 'train')['rows'] == rows


def test_a_copied_run_is_evaluated_with_a_copied_corpus(
  tiny_run: Path, tiny_corpus: Path, tmp_path: Path
):
  shutil.copytree(tiny_run, tmp_path / 'run')
  shutil.copytree(tiny_corpus, tmp_path / 'corpus')
  expected = evaluate.evaluate_loss(tiny_run, '', 'test')
  assert evaluate.evaluate_loss(tmp_path / 'run', str(tmp_path / 'corpus'), 'test') == expected
  manifest = json.loads((tmp_path / 'run' / 'manifest.json').read_text())
  manifest |= {'corpus_folder': str(tmp_path / 'gone'), 'corpus_link': ''}
  files.write_json(tmp_path / 'run' / 'manifest.json', manifest)
  with pytest.raises(InputError, match='--corpus=FOLDER'):
    evaluate.evaluate_loss(tmp_path / 'run', '', 'test')


def test_another_corpus_with_the_same_tokenizer_is_evaluated(tiny_run: Path, tmp_path: Path):
  path = str(tiny_run / 'tokenizer.model')
  folder = build_other_corpus(tmp_path / 'corpus', **{'tokenizer.path': path})
  assert 0 < evaluate.evaluate_loss(tiny_run, folder, 'validation')['loss'] < 10


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'tokenizer.size': 500}, '--config.tokenizer.path'),
    ({'rows.length': 96}, '96 (.|\n)*--config.rows.length=64'),
    ({'splits.test': 0.0}, 'splits.test'),
  ],
)
def test_an_unsuitable_corpus_is_refused(tiny_run: Path, tmp_path: Path, changes: dict, match: str):
  if 'tokenizer.size' not in changes:
    changes = {**changes, 'tokenizer.path': str(tiny_run / 'tokenizer.model')}
  with pytest.raises(InputError, match=match):
    evaluate.evaluate_loss(tiny_run, build_other_corpus(tmp_path / 'corpus', **changes), 'test')
