"""Tests attention statistics: shares that sum to 1 and equal plain loops, by member and step."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.analysis import runs
from minilm_jax.cli import main
from minilm_jax.core import files, run_dir
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from minilm_jax.evaluation import attention, ngram_baselines
from minilm_jax.model.encoder import Encoder
from minilm_jax.training import pretrained, run
from tests import tiny_config
from tests.run_files import edit_json


@pytest.fixture(scope='module')
def result(tiny_run: Path) -> dict[str, Any]:
  return attention.evaluate_attention(str(tiny_run), '', 'validation', '')


def test_the_shares_of_a_head_sum_to_1(result: dict):
  assert [
    (row['step'], row['member'], row['layer'], row['head'], row['queries'])
    for row in result['rows']
  ] == [(8, 0, 0, head, kind) for head in (0, 1) for kind in attention.QUERIES]
  for row in result['rows']:
    assert tuple(row['shares']) == attention.PARTS and min(row['shares'].values()) > 0
    assert sum(row['shares'].values()) == pytest.approx(1, rel=1e-4)


def test_shares_are_means_over_the_queries_of_a_split(
  result: dict, tiny_run: Path, tiny_corpus: Path
):
  """Expected values are from loops over positions, for several batches with pads."""
  batch = ngram_baselines.mask_split(corpus.load_split(tiny_corpus, 'validation'))
  model = pretrained.load(tiny_run).model
  (shares,) = jax.jit(Encoder.attention_weights)(model.encoder, batch.tokens, batch.mask)
  assert len(batch.tokens) > attention._ROWS_PER_BATCH and not batch.mask.all()
  sums, counts = np.zeros((2, 2, len(attention.PARTS))), np.zeros(2)
  for row, weights in zip(batch.tokens, np.asarray(shares), strict=True):
    part = np.where(
      np.isin(row, (BEGIN_ID, END_ID)),
      attention.PARTS.index('ends'),
      attention.PARTS.index('elsewhere'),
    )
    for query in np.flatnonzero(~np.isin(row, (BEGIN_ID, END_ID, PAD_ID))):
      query_part = part.copy()
      for key in range(max(0, query - 3), min(len(row), query + 4)):
        query_part[key] = attention.PARTS.index(str(key - query))
      output = np.stack(
        [np.bincount(query_part, weights[head, query], len(attention.PARTS)) for head in (0, 1)]
      )
      kinds = [0, 1] if row[query] == MASK_ID else [0]
      sums[kinds] += output
      counts[kinds] += 1
  assert counts[1] == batch.weights.sum()
  for row in result['rows']:
    kind = attention.QUERIES.index(row['queries'])
    assert row['count'] == counts[kind]
    np.testing.assert_allclose(
      list(row['shares'].values()), sums[kind, row['head']] / counts[kind], rtol=1e-4
    )


def test_members_and_steps_of_a_population_are_separate(tiny_corpus: Path, tmp_path: Path):
  changes = {'population.members': 2, 'checkpoint.every': 2, 'eval.every': 4}
  config = tiny_config.make_run_config(
    tiny_corpus, num_steps=4, **changes, **{'model.positions': 'relative'}
  )
  run.pretrain(config, tmp_path / 'two')
  rows = attention.evaluate_attention(f'{tmp_path / "two"}@all', '', 'validation', '')['rows']
  assert {(row['step'], row['member']) for row in rows} == {(2, 0), (2, 1), (4, 0), (4, 1)}
  pretrained.extract_member(tmp_path / 'two', 1, tmp_path / 'one')
  alone = attention.evaluate_attention(str(tmp_path / 'one'), '', 'validation', '')['rows']
  together = [row for row in rows if row['step'] == 4 and row['member'] == 1]
  for first, second in zip(alone, together, strict=True):
    assert first['shares'] == pytest.approx(second['shares'], rel=1e-4)
  others = [row for row in rows if row['step'] == 4 and row['member'] == 0]
  assert any(
    first['shares'] != second['shares'] for first, second in zip(others, together, strict=True)
  )


def test_the_command_returns_a_stored_result(tiny_run: Path, tmp_path: Path, result: dict, capsys):
  command = ['evaluate', f'--checkpoint={tiny_run}', '--attention', f'--workdir={tmp_path / "W"}']
  assert main.main(command) == 0
  out = capsys.readouterr().out
  assert 'elsewhere' in out and 'masked' in out and 'member' not in out
  assert main.main([*command, '--json']) == 0
  assert json.loads(capsys.readouterr().out)['rows'] == result['rows']
  assert [path.name for path in runs.find_runs([tmp_path]).values()] == ['W']
  assert main.main([*command, '--split=test']) == 2 and 'split' in capsys.readouterr().err


def test_attention_of_other_weights_at_the_same_path_is_refused(tiny_run: Path, tmp_path: Path):
  run_folder, workdir = shutil.copytree(tiny_run, tmp_path / 'run'), tmp_path / 'W'

  def evaluate() -> dict[str, Any]:
    return attention.evaluate_attention(f'{run_folder}@all', '', 'validation', str(workdir))

  result = evaluate()
  assert evaluate() == result
  shutil.rmtree(run_folder / 'checkpoints' / '8')
  shutil.copytree(run_folder / 'checkpoints' / '4', run_folder / 'checkpoints' / '8')
  with pytest.raises(InputError, match=r'recipe: weights\.8 is [^;]*$'):
    evaluate()
  edit_json(workdir / 'config.json', lambda stored: stored.pop('weights'))  # an earlier version
  assert evaluate() == result


@pytest.mark.parametrize(
  'flag, match',
  [
    ('--pll_variant=original', '--pll_variant'),
    ('--pairs=x.csv', '--pairs'),
    ('--split=tset', "'test'"),
  ],
)
def test_contradictory_flags_are_refused(tiny_run: Path, flag: str, match: str, capsys):
  assert main.main(['evaluate', f'--checkpoint={tiny_run}', '--attention', flag]) == 2
  assert match in capsys.readouterr().err


def test_custom_encoders_several_runs_and_missing_steps_are_refused(tiny_run: Path, tmp_path: Path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  stored = files.read_json(tmp_path / 'run' / run_dir.CONFIG, '')
  stored['model']['encoder'] = 'own:Encoder'
  files.write_json(tmp_path / 'run' / run_dir.CONFIG, stored)
  with pytest.raises(InputError, match='own:Encoder'):
    attention.evaluate_attention(str(tmp_path / 'run'), '', 'validation', '')
  with pytest.raises(InputError, match='2 runs'):
    attention.evaluate_attention(f'{tiny_run},{tmp_path / "run"}', '', 'validation', '')
  with pytest.raises(InputError, match='4, 8'):
    attention.evaluate_attention(f'{tiny_run}@5', '', 'validation', '')
