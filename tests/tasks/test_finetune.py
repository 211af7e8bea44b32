"""Tests fine-tuning: scores, logs and resumption for several starts, rates and seeds."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.analysis import scores
from minilm_jax.core import recipe, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.evaluation import evaluate, inference, likelihood
from minilm_jax.model.initialization import flatten
from minilm_jax.tasks import finetune, finetune_resume, finetune_step, task_data
from minilm_jax.training import checkpoint, pretrained, run
from tests import tiny_config
from tests.fake_runs import write_examples
from tests.run_files import edit_json, read_log

pytestmark = pytest.mark.usefixtures('few_microworld_examples')
TASK = 'microworld/sentiment'
STARTS = [4, 8, None]
# Short rows compile faster.
DIVERGING = {'validation_fraction': 0.25, 'epochs': 6.0, 'optimizer.clip': 0.0, 'length': 16}
# Fields of the run `finished`.
CHANGES = {'validation_fraction': 0.25, 'learning_rates': '1e-3,2e-2', 'head.dropout': 0.1}


def make_config(task: str = TASK, **changes: Any) -> FinetuneConfig:
  fields = {'seeds': '0,1', 'epochs': 2.0, 'batch_size': 16, 'head.dropout': 0.0}
  return tiny_config.make_finetune_config(
    task, **{'task.max_train_examples': 48, **fields, **changes}
  )


def read_scores(workdir: Path) -> list[dict]:
  return list(run_dir.read_lines(workdir / run_dir.SCORES))


def read_losses(workdir: Path) -> list[dict]:
  return [line for line in read_log(workdir) if line['split'] == 'train']


@pytest.fixture(scope='module', autouse=True)
def share_programs():
  """Shares a program among recipes that differ only in fields that programs ignore."""
  build = functools.lru_cache(finetune_step.build_finetune_program.__wrapped__)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      finetune_step,
      'build_finetune_program',
      lambda shape, config, *args: build(
        shape, dataclasses.replace(config, seeds=(0,), learning_rates=(), patience=0), *args
      ),
    )
    yield


@pytest.fixture
def no_training(monkeypatch):
  """Replaces training by an error."""

  def fail(*_):
    raise AssertionError

  monkeypatch.setattr(finetune_step, 'build_finetune_program', fail)


@pytest.fixture(scope='module')
def finished(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Returns a run with three starts, two rates and two seeds; copy it before changes."""
  workdir = tmp_path_factory.mktemp('finetune') / 'finished'
  finetune.finetune(make_config(**CHANGES), tiny_run, workdir, STARTS)
  return workdir


def test_score_lines_describe_each_member(finished: Path):
  lines = read_scores(finished)
  members = [(step, rate, seed) for step in STARTS for rate in (1e-3, 2e-2) for seed in (0, 1)]
  names = ('checkpoint_step', 'learning_rate', 'seed', 'epoch_choice')
  assert [tuple(line[name] for name in names) for line in lines] == [
    (*member, choice) for member in members for choice in ('best', 'last')
  ]
  constants = {
    'task': TASK,
    'metric': 'accuracy',
    'split': 'validation',
    'examples': 100,
    'train_examples': 36,
    'held_out': 12,
    'checkpoint': 'tiny',
    'filtered': False,
    'headline': True,
    'truncated': 0,
  }
  for line in lines:
    assert set(line) == set(scores.FIELDS) and line.items() >= constants.items()
    assert line['pretrained'] == (line['checkpoint_step'] is not None)
    assert line['member'] == members.index(tuple(line[name] for name in names[:3]))
    assert 0 <= line['low'] <= line['value'] <= line['high'] <= 1
    assert isinstance(line['constant_prediction'], bool)
    assert line['epoch'] in ((2,) if line['epoch_choice'] == 'last' else (1, 2))


def test_scores_are_of_the_epoch_with_the_best_validation_score(finished: Path):
  metrics = read_log(finished)
  for line in read_scores(finished):
    validation, reported = (
      [
        metric['accuracy']
        for metric in metrics
        if metric['member'] == line['member'] and metric['split'] == split
      ]
      for split in ('held_out', 'validation')
    )
    epoch = int(np.argmax(validation)) if line['epoch_choice'] == 'best' else 1
    assert line['epoch'] == epoch + 1
    assert (line['validation_score'], line['value']) == (validation[epoch], reported[epoch])


def test_the_log_has_every_epoch_of_every_member(finished: Path):
  assert len(read_log(finished)) == 12 * 2 * 3
  losses = read_losses(finished)
  assert len({line['loss'] for line in losses}) == 24
  assert {(line['epoch'], line['step']) for line in losses} == {(1, 3), (2, 5)}  # 2.25 batches


def test_the_result_summarizes_seeds(finished: Path):
  result = json.loads((finished / 'result.json').read_text())
  fields = {'task': TASK, 'train_examples': 36, 'held_out': 12, 'seeds': 2}
  assert result.items() >= fields.items() and len(result['scores']) == 3 * 2 * 2
  keys = ('checkpoint_step', 'learning_rate', 'epoch_choice')
  for row in result['scores']:
    values = [
      line['value']
      for line in read_scores(finished)
      if all(line[name] == row[name] for name in keys)
    ]
    assert row['mean'] == np.mean(values) and row['n'] == 2
    assert row['pretrained'] == (row['checkpoint_step'] is not None)


def test_the_stored_recipe_has_the_starts(finished: Path, tiny_run: Path):
  config = json.loads((finished / 'config.json').read_text())
  assert config.pop('starts') == STARTS and config.pop('checkpoint') == str(tiny_run)
  assert (finished / config.pop('checkpoint_link')).samefile(tiny_run)
  assert recipe.resolve(config, 'finetune') == make_config(**CHANGES)


def test_a_finished_run_trains_nothing(finished: Path, tiny_run: Path, no_training):
  before = {path.name: path.read_bytes() for path in finished.iterdir()}
  # A process that was killed after the last score has left a state file.
  (finished / finetune_resume.STATE_FILE).write_bytes(b'stale')
  lines = finetune.finetune(make_config(**CHANGES), tiny_run, finished, STARTS)
  assert lines == read_scores(finished)
  assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_stopped_run_trains_the_members_that_lack_scores(
  finished: Path, tiny_run: Path, tmp_path: Path, monkeypatch
):
  """Members have equal scores in other groups, also with dropout."""
  workdir = tmp_path / 'stopped'
  shutil.copytree(finished, workdir)
  (workdir / 'result.json').unlink()
  text = (workdir / 'scores.jsonl').read_text().splitlines(keepends=True)
  # The last line of the first group is cut, and a line of another member is missing.
  (workdir / 'scores.jsonl').write_text(''.join(text[:4] + text[5:15]) + text[15][:20])
  trained, train_group = [], finetune.train_group

  def note_group(run: Any, program: Any, data: Any, group: finetune.Group) -> None:
    trained.append([spec.member for spec in group.state.specs])
    train_group(run, program, data, group)

  monkeypatch.setattr(finetune, 'train_group', note_group)
  finetune.finetune(make_config(**CHANGES), tiny_run, workdir, STARTS)
  assert trained == [[2, 7, 8, 9, 10, 11]]
  resumed = (workdir / 'scores.jsonl').read_text().splitlines(keepends=True)
  assert resumed[:12] == text[:4] + text[6:14] and sorted(resumed) == sorted(text)
  assert sorted(read_log(workdir), key=str) == sorted(read_log(finished), key=str)
  assert not (workdir / finetune_resume.STATE_FILE).exists()
  results = [json.loads((folder / 'result.json').read_text()) for folder in (workdir, finished)]
  for result in results:
    result['scores'].sort(key=str)
  assert results[0] == results[1]


@pytest.mark.parametrize('stop_after', [0, 1, 3, 5])
def test_members_resume_from_their_last_save(
  finished: Path, tiny_run: Path, tmp_path: Path, monkeypatch, stop_after: int
):
  """Stops are within an epoch, at its end and in the second group; no update is repeated."""
  monkeypatch.setattr(finetune_resume, 'SAVE_SECONDS', 0)
  monkeypatch.setattr(finetune, '_STEPS_PER_CHUNK', 2)  # the first epoch has three updates
  saved_steps, save_state = [], finetune_resume.save_state

  def save_and_stop(workdir: Any, state: finetune_resume.FinetuneState) -> None:
    save_state(workdir, state)
    saved_steps.append(state.step)
    if len(saved_steps) == stop_after + 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(finetune_resume, 'save_state', save_and_stop)
  config, workdir = make_config(**CHANGES), tmp_path / 'run'
  with pytest.raises(KeyboardInterrupt):
    finetune.finetune(config, tiny_run, workdir, STARTS)
  assert saved_steps == [2, 3, 5, 2, 3, 5][: stop_after + 1]
  assert (workdir / finetune_resume.STATE_FILE).exists()
  assert finetune.finetune(config, tiny_run, workdir, STARTS) == read_scores(finished)
  assert saved_steps == [2, 3, 5, 2, 3, 5]
  assert not (workdir / finetune_resume.STATE_FILE).exists()
  for path in finished.iterdir():
    if path.name == run_dir.METRICS:  # chunks of other lengths sum losses in another order
      resumed, expected = (
        [line | {'loss': 0} for line in read_log(folder)] for folder in (workdir, finished)
      )
      assert resumed == expected
    else:
      assert (workdir / path.name).read_bytes() == path.read_bytes()


def write_reviews(path: Path, labels: str, num_rows: int = 48) -> None:
  rows = [f'the dog {i} eats,{labels[i % len(labels)]}\n' for i in range(num_rows)]
  path.write_text('text,label\n' + ''.join(rows))


def test_a_run_with_changed_examples_is_not_resumed(tiny_run: Path, tmp_path: Path, monkeypatch):
  train, workdir = tmp_path / 'train.csv', tmp_path / 'run'
  config = make_config(
    'own', **{'task.train': str(train), 'task.max_train_examples': 0, 'epochs': 1.0}
  )
  monkeypatch.setattr(finetune_resume, 'SAVE_SECONDS', 0)
  save_state = finetune_resume.save_state

  def save_and_stop(*args: Any) -> None:
    save_state(*args)
    raise KeyboardInterrupt

  write_reviews(train, 'ab')
  with monkeypatch.context() as context:
    context.setattr(finetune_resume, 'save_state', save_and_stop)
    with pytest.raises(KeyboardInterrupt):
      finetune.finetune(config, tiny_run, workdir, [None])
  state = (workdir / finetune_resume.STATE_FILE).read_bytes()
  for labels, changes in (('ba', 'train, validation'), ('ac', 'labels')):
    write_reviews(train, labels)
    with pytest.raises(InputError, match=changes):
      finetune.finetune(config, tiny_run, workdir, [None])
  assert (workdir / finetune_resume.STATE_FILE).read_bytes() == state
  write_reviews(train, 'ab')
  lines = finetune.finetune(config, tiny_run, workdir, [None])
  result = json.loads((workdir / 'result.json').read_text())
  write_reviews(train, 'ba', 40)
  assert finetune.finetune(config, tiny_run, workdir, [None]) == lines
  changed = json.loads((workdir / 'result.json').read_text())
  assert changed == {**result, 'changed_examples': ['train', 'validation']}
  write_reviews(train, 'ab')
  assert finetune.finetune(config, tiny_run, workdir, [None]) == lines
  assert json.loads((workdir / 'result.json').read_text()) == result


def test_another_checkpoint_of_the_same_path_and_step_is_refused(
  finished: Path, tiny_run: Path, tmp_path: Path, no_training
):
  """A folder of an earlier version has no checksums of encoders."""
  source = shutil.copytree(tiny_run, tmp_path / 'run')
  workdir = shutil.copytree(finished, tmp_path / 'finished')
  stored = json.loads((workdir / 'config.json').read_text())
  link = {'checkpoint': str(source), 'checkpoint_link': '../run'}
  (workdir / 'config.json').write_text(json.dumps(stored | link))
  lines = finetune.finetune(make_config(**CHANGES), source, workdir, STARTS)
  shutil.rmtree(source / 'checkpoints' / '8')
  shutil.copytree(source / 'checkpoints' / '4', source / 'checkpoints' / '8')
  with pytest.raises(InputError, match='other weights'):
    finetune.finetune(make_config(**CHANGES), source, workdir, STARTS)
  (workdir / 'result.json').unlink()
  (workdir / 'scores.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines[:4]))
  with pytest.raises(InputError, match='other weights'):
    finetune.finetune(make_config(**CHANGES), source, workdir, STARTS)
  run_dir.write_lines(workdir / 'scores.jsonl', lines)
  edit_json(workdir / 'examples.json', lambda inputs: inputs.pop('weights'))
  assert finetune.finetune(make_config(**CHANGES), source, workdir, STARTS) == lines


@pytest.mark.parametrize(
  'starts, changes, field',
  [([4, 8], {}, 'starts'), ([8, 4, None], {}, 'starts'), (STARTS, {'seeds': '0,2'}, 'seeds')],
)
def test_other_members_in_the_same_directory_are_refused(
  finished: Path, tiny_run: Path, no_training, starts: list, changes: dict, field: str
):
  with pytest.raises(InputError, match=field):
    finetune.finetune(make_config(**CHANGES, **changes), tiny_run, finished, starts)


def test_a_diverging_rate_changes_no_other_member(tiny_run: Path, tmp_path: Path, capsys):
  config = make_config(learning_rates='1e-3,1e30', **DIVERGING)
  lines = finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  assert [(line['learning_rate'], line['value'] is None) for line in lines] == [
    *[(1e-3, False)] * 4,
    *[(1e30, True)] * 4,
  ]
  assert all(line['constant_prediction'] and line['low'] is None for line in lines[4:])
  epochs = [(line['member'], line['epoch']) for line in read_losses(tmp_path / 'run')]
  assert sorted(epochs) == [*((n, e) for n in (0, 1) for e in range(1, 7)), (2, 1), (3, 1)]
  assert 'learning rate 1e+30' in capsys.readouterr().err
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert [row['mean'] is None for row in result['scores']] == [False, False, True, True]
  row, _ = scores.make_score_table(lines)
  assert row.pretrained.learning_rate == 1e-3 and row.pretrained.n == 2


def test_non_finite_losses_of_all_members_are_refused(tiny_run: Path, tmp_path: Path):
  config = make_config(learning_rates='1e25,1e30', **DIVERGING)
  for _ in range(2):  # a repeated command raises the same error
    with pytest.raises(InputError, match='optimizer.learning_rate'):
      finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
    assert not (tmp_path / 'run' / 'result.json').exists()


def test_patience_stops_a_stagnant_member(tiny_run: Path, tmp_path: Path, monkeypatch):
  config = make_config(learning_rates='1e-12,2e-12', patience=2, **DIVERGING)
  epochs_trained, train_epoch = [], finetune.train_epoch
  monkeypatch.setattr(
    finetune, 'train_epoch', lambda *args: epochs_trained.append(args) or train_epoch(*args)
  )
  lines = finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  assert {(line['epoch_choice'], line['epoch']) for line in lines} == {('best', 1), ('last', 3)}
  epochs = [(line['member'], line['epoch']) for line in read_losses(tmp_path / 'run')]
  assert sorted(epochs) == [(n, e) for n in range(4) for e in (1, 2, 3)]
  assert len(epochs_trained) == 3


def test_training_fits_examples_and_reports_the_majority_baseline(tiny_run: Path, tmp_path: Path):
  rows = [
    {'sentence': f'the {adjective} {noun} sleeps .', 'label': label}
    for label, adjective in enumerate(('bad', 'good'))
    for noun in ('dog', 'fox', 'pig', 'seal', 'cow', 'hen', 'duck', 'swan')[label:]
  ]
  changes = {
    'task.folder': write_examples(tmp_path / 'data', train=rows, test=rows),
    'task.split': 'test',
    'epochs': 30.0,
    'optimizer.learning_rate': 5e-3,
    'seeds': '0',
  }
  config = make_config('sentiment', **changes)
  (line,) = finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  first, *_, last = [line['loss'] for line in read_losses(tmp_path / 'run')]
  assert line['value'] == 1 and not line['constant_prediction'] and last < first / 5
  assert line['majority'] == pytest.approx(8 / 15) and line['split'] == 'test'
  assert (line['epoch_choice'], line['held_out'], line['validation_score']) == ('last', 0, None)


def test_a_regression_is_scored_by_correlation(tiny_run: Path, tmp_path: Path):
  rows = [
    {'sentence1': f'the {"good " * n}dog sleeps .', 'sentence2': 'a dog sleeps .', 'label': n / 2}
    for n in range(11)
  ]
  changes = {
    'task.folder': write_examples(tmp_path / 'data', train=rows, validation=rows),
    'epochs': 60.0,
    'optimizer.learning_rate': 5e-3,
    'seeds': '0',
    'batch_size': 11,
  }
  lines = finetune.finetune(make_config('stsb', **changes), tiny_run, tmp_path / 'run', [8])
  by_metric = {line['metric']: line for line in lines}
  assert set(by_metric) == {'pearson', 'spearman', 'pearson_spearman'}
  assert by_metric['pearson']['value'] > 0.9 and by_metric['pearson']['majority'] is None
  assert [name for name, line in by_metric.items() if line['headline']] == ['pearson_spearman']


def change_tokenizer(run: Path) -> None:
  """Changes the file of a tokenizer but not its encoding."""
  with (run / 'tokenizer.model').open('ab') as file:
    file.write(b'\xf8\x07\x00')  # an unknown protobuf field


@pytest.mark.parametrize(
  'damage, name',
  [
    (
      lambda run: edit_json(run / 'config.json', lambda c: c['model'].update(hidden_size=32)),
      r'\(16, 16\).*\(32, 32\)',
    ),
    (lambda run: edit_json(run / 'config.json', lambda c: c.update(kind='corpus')), "'corpus'"),
    (lambda run: edit_json(run / 'config.json', lambda c: c['model'].pop('norm')), 'model.norm'),
    (lambda run: (run / 'config.json').unlink(), 'config.json'),
    (lambda run: (run / 'manifest.json').unlink(), 'manifest.json'),
    (lambda run: (run / 'tokenizer.model').unlink(), 'tokenizer.model'),
    (lambda run: (run / 'tokenizer.model').write_bytes(b'no model'), 'tokenizer.model'),
    (change_tokenizer, 'tokenizer.model'),
    (lambda run: shutil.rmtree(run / 'checkpoints'), 'run'),
    (lambda run: shutil.rmtree(run / 'checkpoints' / '8'), 'step 8'),
  ],
  ids='shape kind field run manifest tokenizer no-tokenizer other-tokenizer no-checkpoint step'.split(),
)
def test_an_invalid_checkpoint_writes_no_directory(
  tiny_run: Path, tmp_path: Path, no_training, damage, name: str
):
  shutil.copytree(tiny_run, tmp_path / 'run')
  damage(tmp_path / 'run')
  with pytest.raises(InputError, match=name):
    finetune.finetune(make_config(), tmp_path / 'run', tmp_path / 'task', [8])
  assert not (tmp_path / 'task').exists()


def test_an_unlabelled_split_writes_no_directory(tiny_run: Path, tmp_path: Path, no_training):
  folder = write_examples(
    tmp_path / 'data',
    train=[{'sentence': 'a dog .', 'label': 1}],
    validation=[{'sentence': 'a dog .', 'label': None}],
  )
  config = make_config('sentiment', **{'task.folder': folder})
  with pytest.raises(InputError, match='validation split of sentiment'):
    finetune.finetune(config, tiny_run, tmp_path / 'task', [None])
  assert not (tmp_path / 'task').exists()


def test_checkpoints_have_different_encoders(tiny_run: Path):
  model = pretrained.load_single_config(tiny_run).model
  first, last = (flatten(finetune.load_encoder(tiny_run, model, step)) for step in (4, 8))
  assert checkpoint.list_steps(tiny_run) == [4, 8] and first.keys() == last.keys()
  for name, leaf in first.items():
    assert isinstance(leaf, np.ndarray) and not np.array_equal(leaf, last[name])


@pytest.fixture(scope='module')
def convolved_run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Pre-trains a model with running statistics for a few updates."""
  folder = tmp_path_factory.mktemp('convolved') / 'run'
  config = tiny_config.make_run_config(tiny_corpus, **tiny_config.CONVOLUTION, num_steps=4)
  run.pretrain(config, folder)
  return folder


def test_fine_tuning_continues_running_statistics(convolved_run: Path, tmp_path: Path, monkeypatch):
  """Statistics start from those of the checkpoint; rows and batches are not cut."""
  model, statistics = pretrained.load_single_config(convolved_run).model, []
  encoder = flatten(finetune.load_encoder(convolved_run, model, 4))
  name = 'convolution.layers.0.norm.running_mean'
  assert np.abs(encoder[name]).max() > 0
  train_group = finetune.train_group

  def note_statistics(run: Any, program: Any, data: finetune.DeviceData, group: Any) -> None:
    copied = jax.tree.map(jax.numpy.copy, group.state.members)  # chunks donate their argument
    trained, _ = program.chunk(copied, data.train, jax.numpy.int32(3))
    for members in (group.state.members, trained):
      statistics.append(np.asarray(flatten(members.state.model)[f'encoder.{name}']))
    train_group(run, program, data, group)

  monkeypatch.setattr(finetune, 'train_group', note_statistics)
  config = make_config(seeds='0', epochs=1.0, length=16)
  finetune.finetune(config, convolved_run, tmp_path, [4])
  np.testing.assert_array_equal(statistics[0][0], encoder[name])
  assert np.abs(statistics[1][0] - encoder[name]).min() > 1e-6
  data = task_data.prepare_task_data(
    config, model.max_length, pretrained.load_tokenizer(convolved_run), model.batch_norm
  )
  assert data.lengths == (model.max_length,)
  assert data.rows['train'].tokens.shape[1] == model.max_length


def test_every_command_reads_a_model_with_running_statistics(convolved_run: Path):
  """Losses do not depend on the batch or on the length of rows."""
  logged = json.loads((convolved_run / 'result.json').read_text())['test_loss']
  loss = evaluate.evaluate_loss(convolved_run, '', 'test')['loss']
  assert loss == pytest.approx(logged, rel=1e-4)
  assert len(inference.LanguageModel(convolved_run).fill_mask('the dog <mask> .', 2)) == 2
  short, long = 'the dog sleeps .', 'the good dog sees a fox and a cow and a hen .'
  first, second, total = (
    likelihood.measure_pseudo_perplexity(convolved_run, text, 'original')['log_likelihood']
    for text in (short, long, f'{short}\n{long}')
  )
  assert total == pytest.approx(first + second, rel=1e-5)
