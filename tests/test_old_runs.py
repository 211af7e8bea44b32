"""Runs of an earlier version, with old names of fields, files and columns, give equal numbers.

`data/old_run` holds a corpus, a pre-training run and a fine-tuned classifier of commit ff499c2.
Their recipes set the renamed fields to values other than the defaults. `data/old_run.json` holds
the numbers of that version, but for the loss of fine-tuning: it is that of
`segment_embeddings_for_pairs=False`, equal for single sentences. The old version gave tokens of the
first sentence of a batch the second segment.
"""

import csv
import json
import pathlib
import shutil
from typing import Any

import pytest

import minilm_jax
from minilm_jax.cli import main
from minilm_jax.core import old_names

DATA = pathlib.Path(__file__).resolve().parent / 'data'
EXPECTED: dict[str, Any] = json.loads((DATA / 'old_run.json').read_text())
TEXT = 'the dog sees the box .'


@pytest.fixture
def old_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
  """Changes to a copy of the old run, because its paths are relative, and returns the copy."""
  folder = tmp_path / 'old_run'
  shutil.copytree(DATA / 'old_run', folder)
  monkeypatch.chdir(folder)
  return folder


def test_evaluate_gives_the_old_losses(old_run: pathlib.Path, capsys: pytest.CaptureFixture[str]):
  assert main.main(['evaluate', '--checkpoint=run']) == 0
  printed = json.loads(capsys.readouterr().out)
  for name, value in EXPECTED['evaluate'].items():
    assert printed[name] == pytest.approx(value, rel=1e-6), name


def test_load_gives_the_old_vectors_and_probabilities(old_run: pathlib.Path):
  assert minilm_jax.load('run').encode([TEXT])[0] == pytest.approx(
    EXPECTED['vector'], rel=1e-4, abs=1e-5
  )
  prediction = minilm_jax.load('task/classifier-0').predict([TEXT])[0]
  assert prediction['probabilities'] == pytest.approx(EXPECTED['probability'], rel=1e-5)


def test_report_reads_the_old_columns(old_run: pathlib.Path):
  assert main.main(['report', 'run', 'task', '--workdir=report']) == 0
  rows = {}
  for table in ('scores', 'runs'):
    with (old_run / 'report' / f'{table}.csv').open() as file:
      rows |= next(csv.DictReader(file))
  for name, value in EXPECTED['report'].items():
    assert float(rows[name]) == pytest.approx(value), name


def test_a_field_outside_a_group_gets_the_value_of_earlier_versions(
  monkeypatch: pytest.MonkeyPatch,
):
  added = {**old_names.ADDED_FIELDS, 'pretrain': {'z_loss': 0.0}}
  monkeypatch.setattr(old_names, 'ADDED_FIELDS', added)
  for stored, value in (({}, 0.0), ({'z_loss': 0.1}, 0.1)):
    assert old_names.complete_recipe({'kind': 'pretrain', **stored})['z_loss'] == value
  assert 'z_loss' not in old_names.complete_recipe({'kind': 'finetune'})


# Settings of configs/custom_task.py in the version of the old run.
OLD_PROTOCOL = {'head.pooling': 'first', 'learning_rates': ''}


def test_finetune_starts_from_the_old_checkpoint(old_run: pathlib.Path):
  settings = OLD_PROTOCOL | {
    'task.train': 'examples.csv',
    'task.fields': 'sentence',
    'seeds': '3',
    'epochs': '1',
    'batch_size': '8',
    'length': '16',
    'optimizer.learning_rate': '0.02',
    'validation_fraction': '0.25',
  }
  command = ['finetune', '--config=configs/custom_task.py', '--checkpoint=run', '--workdir=again']
  assert (
    main.main([*command, *(f'--config.{name}={value}' for name, value in settings.items())]) == 0
  )
  lines = [
    json.loads(line) for line in (old_run / 'again' / 'metrics.jsonl').read_text().splitlines()
  ]
  losses = [[line['split'], line['loss']] for line in lines if 'loss' in line]
  assert [split for split, _ in losses] == [split for split, _ in EXPECTED['finetune']]
  assert [loss for _, loss in losses] == pytest.approx(
    [loss for _, loss in EXPECTED['finetune']], rel=1e-4
  )


def test_an_old_fine_tuning_is_finished_under_its_own_recipe(old_run: pathlib.Path):
  settings = OLD_PROTOCOL | {
    'task.train': 'examples.csv',
    'task.fields': 'sentence',
    'task.max_train_examples': '64',
    'task.eval_per_label': '5',
    'seeds': '0,1',
    'epochs': '2',
    'batch_size': '8',
    'length': '16',
    'validation_fraction': '0.25',
    'save_classifiers': 'True',
    'predictions': 'True',
    'strategy': 'map',
    'head.ensemble_size': '2',
    'optimizer.learning_rate': '0.02',
  }
  command = ['finetune', '--config=configs/custom_task.py', '--checkpoint=run', '--workdir=task']
  before = json.loads((old_run / 'task' / 'result.json').read_text())
  assert (
    main.main([*command, *(f'--config.{name}={value}' for name, value in settings.items())]) == 0
  )
  result = json.loads((old_run / 'task' / 'result.json').read_text())
  assert [row['mean'] for row in result['scores']] == [row['mean'] for row in before['scores']]
  assert [row['epoch_choice'] for row in result['scores']] == [
    row['which'] for row in before['scores']
  ]


def test_export_writes_a_card_of_the_old_run(old_run: pathlib.Path):
  assert main.main(['export', '--checkpoint=run', '--format=card', '--workdir=card']) == 0
  assert f'{EXPECTED["report"]["parameters"]:,}' in (old_run / 'card' / 'README.md').read_text()
