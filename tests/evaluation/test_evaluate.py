"""A checkpoint judged again: the loss that was logged, on any corpus of its tokenizer and no other.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import tiny
from minilm_jax.analysis import runs
from minilm_jax.cli import main
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, PAD_ID
from minilm_jax.evaluation import evaluate, ngram_baselines
from minilm_jax.model.encoder import attention_weights
from minilm_jax.training import pretrain, pretrained
from tests import fast_jit, tiny_config


@pytest.fixture(scope='module')
def found(tiny_run: Path) -> dict[str, Any]:
  return evaluate.evaluate_attention(str(tiny_run), '', 'validation', '')


def test_every_head_gives_shares_that_add_up_to_1(found: dict):
  assert [
    (row['step'], row['member'], row['layer'], row['head'], row['queries']) for row in found['rows']
  ] == [(8, 0, 0, head, kind) for head in (0, 1) for kind in evaluate.QUERIES]
  for row in found['rows']:
    assert tuple(row['shares']) == evaluate.PARTS and min(row['shares'].values()) > 0
    assert sum(row['shares'].values()) == pytest.approx(1, rel=1e-4)


def test_they_are_means_over_the_queries_of_a_split(found: dict, tiny_run: Path, tiny_corpus: Path):
  """From loops over the places of each row; more rows than are looked at together, and pads among
  them.
  """
  batch = ngram_baselines.mask_split(corpus.load_split(tiny_corpus, 'validation'))
  model = pretrained.load(tiny_run).model
  (shares,) = fast_jit.jit(attention_weights)(model.encoder, batch.tokens, batch.mask)
  assert len(batch.tokens) > evaluate._MAX_ROWS and not batch.mask.all()
  sums, counts = np.zeros((2, 2, len(evaluate.PARTS))), np.zeros(2)
  for row, own in zip(batch.tokens, np.asarray(shares), strict=True):
    part = np.where(
      np.isin(row, (BEGIN_ID, END_ID)),
      evaluate.PARTS.index('ends'),
      evaluate.PARTS.index('elsewhere'),
    )
    for place in np.flatnonzero(~np.isin(row, (BEGIN_ID, END_ID, PAD_ID))):
      where = part.copy()
      for near in range(max(0, place - 3), min(len(row), place + 4)):
        where[near] = evaluate.PARTS.index(str(near - place))
      told = np.stack(
        [np.bincount(where, own[head, place], len(evaluate.PARTS)) for head in (0, 1)]
      )
      kinds = [0, 1] if row[place] == MASK_ID else [0]
      sums[kinds] += told
      counts[kinds] += 1
  assert counts[1] == batch.weights.sum()
  for row in found['rows']:
    kind = evaluate.QUERIES.index(row['queries'])
    assert row['count'] == counts[kind]
    np.testing.assert_allclose(
      list(row['shares'].values()), sums[kind, row['head']] / counts[kind], rtol=1e-4
    )


def test_each_member_and_step_of_a_population_is_told_by_itself(tiny_corpus: Path, tmp_path: Path):
  config = tiny_config.run_config(
    tiny_corpus,
    num_steps=4,
    **{
      'population.members': 2,
      'checkpoint.every': 2,
      'eval.every': 4,
      'model.positions': 'relative',
    },
  )
  pretrain.pretrain(config, tmp_path / 'two')
  rows = evaluate.evaluate_attention(f'{tmp_path / "two"}@all', '', 'validation', '')['rows']
  assert {(row['step'], row['member']) for row in rows} == {(2, 0), (2, 1), (4, 0), (4, 1)}
  pretrained.extract_member(tmp_path / 'two', 1, tmp_path / 'one')
  alone = evaluate.evaluate_attention(str(tmp_path / 'one'), '', 'validation', '')['rows']
  together = [row for row in rows if row['step'] == 4 and row['member'] == 1]
  for one, other in zip(alone, together, strict=True):
    assert one['shares'] == pytest.approx(other['shares'], rel=1e-4)
  others = [row for row in rows if row['step'] == 4 and row['member'] == 0]
  assert any(one['shares'] != other['shares'] for one, other in zip(others, together, strict=True))


def test_it_can_be_run_twice(tiny_run: Path, tmp_path: Path, found: dict, capsys):
  command = ['evaluate', f'--checkpoint={tiny_run}', '--attention', f'--workdir={tmp_path / "W"}']
  assert main.main(command) == 0
  out = capsys.readouterr().out
  assert 'elsewhere' in out and 'masked' in out and 'member' not in out
  assert main.main([*command, '--json']) == 0
  told = capsys.readouterr()
  assert 'nothing to do' in told.err and json.loads(told.out)['rows'] == found['rows']
  assert [path.name for path in runs.find_runs([tmp_path]).values()] == ['W']
  assert main.main([*command, '--split=test']) == 2 and 'another recipe' in capsys.readouterr().err


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--attention', '--pll_variant=original'], '--attention does not take it'),
    (['--attention', '--pairs=x.csv'], '--pairs does not take it'),
    (['--attention', '--split=tset'], "'test'"),
  ],
)
def test_flags_that_do_not_fit_are_refused(tiny_run: Path, flags: list[str], said: str, capsys):
  assert (
    main.main(['evaluate', f'--checkpoint={tiny_run}', *flags]) == 2
    and said in capsys.readouterr().err
  )


def test_what_has_no_heads_of_ours_is_refused(tiny_run: Path, tmp_path: Path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  stored = files.read_json(tmp_path / 'run' / run_dir.CONFIG, '')
  stored['model']['encoder'] = 'own:Encoder'
  files.write_json(tmp_path / 'run' / run_dir.CONFIG, stored)
  with pytest.raises(InputError, match='own:Encoder'):
    evaluate.evaluate_attention(str(tmp_path / 'run'), '', 'validation', '')
  with pytest.raises(InputError, match='2 runs'):
    evaluate.evaluate_attention(f'{tiny_run},{tmp_path / "run"}', '', 'validation', '')
  with pytest.raises(InputError, match='there are 4, 8'):
    evaluate.evaluate_attention(f'{tiny_run}@5', '', 'validation', '')


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
  found = evaluate.evaluate_loss(tiny_run, '', split)
  assert found['step'] == logged['step'] == 8
  for name in ('loss', 'perplexity', 'padded_loss'):
    assert found[name] == pytest.approx(logged[name], rel=1e-6)


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
  'changes, said',
  [
    ({'tokenizer.size': 500}, 'another tokenizer'),
    ({'rows.length': 96}, 'the model reads 64'),
    ({'splits.test': 0.0}, 'no rows'),
  ],
)
def test_what_the_model_cannot_read_is_refused(
  tiny_run: Path, tmp_path: Path, changes: dict, said: str
):
  same = (
    {} if 'tokenizer.size' in changes else {'tokenizer.path': str(tiny_run / 'tokenizer.model')}
  )
  with pytest.raises(InputError, match=said):
    evaluate.evaluate_loss(tiny_run, another_corpus(tmp_path / 'corpus', **same, **changes), 'test')


def test_an_unknown_split_is_refused_with_what_was_meant(tiny_run: Path):
  with pytest.raises(InputError, match="did you mean 'validation'"):
    evaluate.evaluate_loss(tiny_run, '', 'validaton')
