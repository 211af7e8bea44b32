"""The commands from text to a report, each of them twice."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from minilm_jax.analysis.report import report
from minilm_jax.cli import main
from minilm_jax.core import run_dir
from tests.run_files import read_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = [
  '--config.num_steps=8',
  '--config.log.every=2',
  '--config.eval.every=4',
  '--config.eval.rows=64',
  '--config.checkpoint.every=4',
  '--config.model.embedding_size=16',
  '--config.model.hidden_size=16',
  '--config.model.intermediate_size=16',
  '--config.model.num_layers=1',
  '--config.mesh.data=1',
]


def minilm(capsys: pytest.CaptureFixture, *arguments: str) -> str:
  """Returns the output of a command, which must succeed."""
  capsys.readouterr()
  status = main.main(list(arguments))
  out, err = capsys.readouterr()
  assert status == 0, err
  return out


@pytest.mark.slow
def test_the_tiny_recipe_beats_the_plateau(tmp_path: pathlib.Path, monkeypatch, capsys):
  """The loss is below that of word frequencies, and evaluations have the period of the recipe."""
  monkeypatch.chdir(ROOT)
  pretrain = [
    'pretrain',
    '--config=configs/tiny.py',
    f'--workdir={tmp_path}',
    '--config.mesh.data=1',
  ]
  result = json.loads(minilm(capsys, *pretrain))
  assert result['test_loss'] < 5.1
  steps = [
    line['step']
    for line in run_dir.read_lines(tmp_path / 'metrics.jsonl')
    if line['split'] == 'validation'
  ]
  assert steps == [100, 200, 300, 400, 500, 600]


# The tiny recipe with a fifth of its documents.
RECIPE = """
from configs import tiny

def get_config(part='pretrain'):
  config = tiny.get_config(part)
  if part == 'corpus':
    config.documents.sources, config.workers = 'microworld:800', 1
  else:
    config.corpus = f'{__file__}:corpus'
  return config
"""


@pytest.mark.usefixtures('few_microworld_examples')
def test_text_to_table(tmp_path: pathlib.Path, monkeypatch, capsys):
  """Standard output contains JSON or a table alone."""
  monkeypatch.chdir(ROOT)
  recipe, runs = tmp_path / 'small.py', tmp_path / 'runs'
  recipe.write_text(RECIPE)
  tiny = runs / 'tiny'
  pretrain = ['pretrain', f'--config={recipe}', f'--workdir={tiny}', *SMALL]
  result = json.loads(minilm(capsys, *pretrain))
  assert result['updates'] == 8 and result['test_loss'] > 0
  logged = list(run_dir.read_lines(tiny / 'metrics.jsonl'))
  assert [(line['split'], line['step']) for line in logged] == [
    ('train', 2),
    ('train', 4),
    ('validation', 4),
    ('train', 6),
    ('train', 8),
    ('validation', 8),
    ('test', 8),
  ]
  assert all(
    {'step', 'split', 'loss', 'perplexity', 'tokens', 'flops', 'seconds'} <= set(line)
    for line in logged
  )
  assert all('learning_rate' in line for line in logged if line['split'] == 'train')

  old_files = read_files(tiny)
  assert json.loads(minilm(capsys, *pretrain)) == result  # already finished
  assert read_files(tiny) == old_files

  evaluate = ['evaluate', f'--checkpoint={tiny}', '--split=validation']
  evaluated = minilm(capsys, *evaluate)
  assert minilm(capsys, *evaluate) == evaluated and json.loads(evaluated)['split'] == 'validation'
  fill = ['fill-mask', f'--checkpoint={tiny}', '--text=the dog <mask> a bone .', '--best=2']
  filled = minilm(capsys, *fill)
  assert minilm(capsys, *fill) == filled and re.fullmatch(r'(1  0\.\d{4}  \S+\n){2}', filled)
  guesses = json.loads(minilm(capsys, *fill, '--json'))['guesses']
  assert [guess['hole'] for guess in guesses] == [1, 1]

  finetune = [
    'finetune',
    '--config=configs/paper1_tasks.py:microworld/acceptability',
    f'--checkpoint={tiny}@4,{tiny}@8',
    f'--workdir={runs / "task"}',
    '--config.seeds=0,1',
    '--config.task.max_train_examples=64',
    '--config.epochs=1',
    '--with_scratch',
  ]
  table = minilm(capsys, *finetune)
  assert 'microworld/acceptability' in table
  old_files = read_files(runs / 'task')
  assert minilm(capsys, *finetune) == table
  assert read_files(runs / 'task') == old_files
  scores = list(run_dir.read_lines(runs / 'task' / 'scores.jsonl'))
  fields = {'task', 'metric', 'value', 'seed', 'split', 'examples', 'filtered'}
  assert all(fields <= set(line) for line in scores)
  assert [(line['pretrained'], line['checkpoint_step']) for line in scores] == [
    (True, 4),
    (True, 4),
    (True, 8),
    (True, 8),
    (False, None),
    (False, None),
  ]

  report = ['report', str(runs), f'--workdir={tmp_path / "report"}']
  printed = minilm(capsys, *report)
  paths = {pathlib.Path(line).name: pathlib.Path(line) for line in printed.splitlines()}
  assert {'report.html', 'scores.csv', 'averages.csv', 'runs.csv', 'loss.svg', 'scores.png'} < set(
    paths
  )
  # one line a checkpoint, with and without pre-training
  assert len(paths['scores.csv'].read_text().splitlines()) == 3
  assert all(name in paths['runs.csv'].read_text() for name in ('tiny', 'task'))
  minilm(capsys, *report)
  assert paths['scores.csv'].read_text() == (tmp_path / 'report' / 'scores.csv').read_text()


PROGRAM = """
import os, pathlib, sys, threading, time
from minilm_jax.cli import main

def list_sockets():
  sockets = set()
  for name in os.listdir('/proc/self/fd'):
    try:
      sockets.add(os.readlink(f'/proc/self/fd/{name}'))
    except OSError:
      pass  # closed in the meantime
  addresses = []
  for table in ('tcp', 'tcp6', 'udp', 'udp6'):
    path = pathlib.Path(f'/proc/net/{table}')
    for line in path.read_text().splitlines()[1:] if path.exists() else ():
      words = line.split()
      if words[3] == ('0A' if table.startswith('tcp') else '07') and f'socket:[{words[9]}]' in sockets:
        addresses.append(f'{table} {words[1]}')
  return addresses

def poll():
  while True:
    sockets_seen.update(list_sockets())
    polls.append(1)
    time.sleep(0.05)

sockets_seen, polls = set(), []
threading.Thread(target=poll, daemon=True).start()
status = main.main(sys.argv[1:])
print('POLLS', len(polls), 'LISTENS', sorted(sockets_seen), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.skipif(not pathlib.Path('/proc/net/tcp').exists(), reason='needs Linux')
def test_nothing_listens_and_no_secret_is_stored(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  """The environment of the run contains secrets."""
  secrets = {
    name: f'canary-{name}'
    for name in ('WANDB_API_KEY', 'HF_TOKEN', 'GOOGLE_APPLICATION_CREDENTIALS')
  }
  small = [word for word in SMALL if 'every' not in word]
  process = subprocess.run(
    [
      sys.executable,
      '-c',
      PROGRAM,
      'pretrain',
      '--config=configs/tiny.py',
      f'--config.corpus={tiny_corpus}',
      f'--workdir={tmp_path / "run"}',
      '--config.num_steps=2',
      '--config.log.every=1',
      *small,
    ],
    cwd=ROOT,
    env=os.environ | secrets,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  polls, listens = process.stderr.splitlines()[-1].split(' LISTENS ')
  assert int(polls.removeprefix('POLLS ')) > 20 and listens == '[]', listens
  report.report([tmp_path / 'run'], tmp_path / 'report')
  outputs = read_files(tmp_path)
  assert {'config.json', 'manifest.json', 'metrics.jsonl', 'result.json', 'report.html'} <= {
    p.name for p in outputs
  }
  for content in (process.stdout.encode(), process.stderr.encode(), *outputs.values()):
    assert b'canary' not in content
