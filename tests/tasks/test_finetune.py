"""Fine-tuning: one population of starts, rates and seeds; what is scored, what is logged, and going
on after a stop.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import glue
from minilm_jax.analysis import scores
from minilm_jax.cli import main
from minilm_jax.core import recipe, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.evaluation import evaluate, inference, likelihood
from minilm_jax.tasks import (
  finetune,
  finetune_results,
  finetune_resume,
  finetune_step,
  loading,
  task,
)
from minilm_jax.training import checkpoint, pretrain
from tests import tiny_config
from tests.fake_runs import write_examples

TASK = task.find_task('microworld/sentiment')
STARTS = [4, 8, None]
# short rows compile sooner
BROKEN = {'validation_fraction': 0.25, 'epochs': 6.0, 'optimizer.clip': 0.0, 'length': 16}
# of the run that `finished` is
CHANGES = {'validation_fraction': 0.25, 'learning_rates': '1e-3,2e-2', 'head.dropout': 0.1}


def settings(task: str = TASK.name, **changes: Any) -> FinetuneConfig:
  config = glue.get_config(task)
  config.update_from_flattened_dict(
    {
      'task.max_train_examples': 48,
      'seeds': '0,1',
      'epochs': 2.0,
      'batch_size': 16,
      'head.dropout': 0.0,
      **changes,
    }
  )
  return recipe.resolve(config, 'finetune')


def lines(workdir: Path, name: str = 'scores.jsonl') -> list[dict]:
  return list(run_dir.read_lines(workdir / name))


def untimed(workdir: Path) -> list[dict]:
  return [line | {'seconds': 0} for line in lines(workdir, 'metrics.jsonl')]


def losses(workdir: Path) -> list[dict]:
  return [line for line in lines(workdir, 'metrics.jsonl') if line['split'] == 'train']


def change(folder: Path, name: str, edit) -> None:
  content = json.loads((folder / name).read_text())
  edit(content)
  (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope='module', autouse=True)
def share_programs(fast_compile: None):
  """Lets recipes that differ in what no program depends on share one program."""
  make = functools.lru_cache(finetune_step.build_finetune_program.__wrapped__)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      finetune_step,
      'build_finetune_program',
      lambda shape, config, *more: make(
        shape, dataclasses.replace(config, seeds=(0,), learning_rates=(), patience=0), *more
      ),
    )
    yield


@pytest.fixture
def never(monkeypatch):
  """Makes it an error to train."""

  def trained(*_):
    raise AssertionError('a member ran')

  monkeypatch.setattr(finetune_step, 'build_finetune_program', trained)


@pytest.fixture(scope='module')
def finished(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A whole run of two checkpoints and from scratch, two rates, two seeds; copy it before changing
  anything in it.
  """
  workdir = tmp_path_factory.mktemp('finetune') / 'finished'
  finetune.finetune(settings(**CHANGES), tiny_run, workdir, STARTS)
  return workdir


def test_a_line_of_scores_says_what_was_scored(finished: Path):
  found = lines(finished)
  members = [(step, rate, seed) for step in STARTS for rate in (1e-3, 2e-2) for seed in (0, 1)]
  assert [
    (line['checkpoint_step'], line['learning_rate'], line['seed'], line['epoch_choice'])
    for line in found
  ] == [(*member, which) for member in members for which in ('best', 'last')]
  for line in found:
    assert set(line) == set(scores.FIELDS)
    assert (
      line.items()
      >= {
        'task': TASK.name,
        'metric': 'accuracy',
        'split': 'validation',
        'examples': 1000,
        'train_examples': 36,
        'held_out': 12,
        'checkpoint': 'tiny',
        'filtered': False,
        'headline': True,
        'truncated': 0,
      }.items()
    )
    assert line['pretrained'] == (line['checkpoint_step'] is not None) and line[
      'member'
    ] == members.index((line['checkpoint_step'], line['learning_rate'], line['seed']))
    assert 0 <= line['low'] <= line['value'] <= line['high'] <= 1 and isinstance(
      line['constant_prediction'], bool
    )
    assert line['epoch'] == 2 if line['epoch_choice'] == 'last' else line['epoch'] in (1, 2)


def test_scores_are_those_of_the_epoch_that_was_best_on_what_is_held_out(finished: Path):
  logged = lines(finished, 'metrics.jsonl')
  for line in lines(finished):
    mine = [other for other in logged if other['member'] == line['member']]
    own = {
      split: [other['accuracy'] for other in mine if other['split'] == split]
      for split in ('held_out', 'validation')
    }
    epoch = int(np.argmax(own['held_out'])) if line['epoch_choice'] == 'best' else 1
    assert (line['epoch'], line['validation_score'], line['value']) == (
      epoch + 1,
      own['held_out'][epoch],
      own['validation'][epoch],
    )


def test_the_log_has_every_epoch_of_every_member(finished: Path):
  logged = lines(finished, 'metrics.jsonl')
  assert len(logged) == 12 * 2 * 3
  train = losses(finished)
  assert len({line['loss'] for line in train}) == 24  # members are not copies of each other
  # 36 examples are 2.25 batches
  assert {(line['epoch'], line['step']) for line in train} == {(1, 3), (2, 5)}
  at = {line['member']: line['loss'] for line in train if line['step'] == 5}
  assert all(at[slow] != at[slow + 2] for slow in (0, 1, 4, 5, 8, 9))  # rates act


def test_the_result_is_a_summary_over_seeds(finished: Path):
  result = json.loads((finished / 'result.json').read_text())
  assert (
    result.items() >= {'task': TASK.name, 'train_examples': 36, 'held_out': 12, 'seeds': 2}.items()
  )
  assert len(result['scores']) == 3 * 2 * 2
  for row in result['scores']:
    values = [
      line['value']
      for line in lines(finished)
      if all(
        line[name] == row[name] for name in ('checkpoint_step', 'learning_rate', 'epoch_choice')
      )
    ]
    assert (
      row.items()
      >= {'mean': np.mean(values), 'n': 2, 'pretrained': row['checkpoint_step'] is not None}.items()
    )


def test_the_recipe_that_is_kept_says_what_it_started_from(finished: Path, tiny_run: Path):
  config = json.loads((finished / 'config.json').read_text())
  assert config['starts'] == STARTS and config['checkpoint'] == str(tiny_run)
  kept = {name: value for name, value in config.items() if name not in ('starts', 'checkpoint')}
  assert recipe.resolve(kept, 'finetune') == settings(**CHANGES)


def test_what_is_finished_is_not_run_again(finished: Path, tiny_run: Path, never):
  before = {path.name: path.read_bytes() for path in finished.iterdir()}
  (finished / finetune_resume.STATE_FILE).write_bytes(
    b'left by a process that was killed after the last score'
  )
  assert finetune.finetune(settings(**CHANGES), tiny_run, finished, STARTS) == lines(finished)
  assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_stopped_run_goes_on_with_the_members_that_were_cut(
  finished: Path, tiny_run: Path, tmp_path: Path, monkeypatch
):
  """In other groups than before, with dropout: they come to the same."""
  workdir = tmp_path / 'stopped'
  shutil.copytree(finished, workdir)
  (workdir / 'result.json').unlink()
  text = (workdir / 'scores.jsonl').read_text().splitlines(keepends=True)
  # 8 run at a time: the first group is written but for its last line, which is cut, and so is one
  # of another member
  (workdir / 'scores.jsonl').write_text(''.join(text[:4] + text[5:15]) + text[15][:20])
  ran, fit = [], finetune._fit
  monkeypatch.setattr(
    finetune, '_fit', lambda *args: ran.append([one.member for one in args[4]]) or fit(*args)
  )
  finetune.finetune(settings(**CHANGES), tiny_run, workdir, STARTS)
  assert ran == [[2, 7, 8, 9, 10, 11]]
  kept = (workdir / 'scores.jsonl').read_text().splitlines(keepends=True)
  assert kept[:12] == text[:4] + text[6:14] and sorted(kept) == sorted(text)
  assert sorted(untimed(workdir), key=str) == sorted(untimed(finished), key=str)
  assert not (workdir / finetune_resume.STATE_FILE).exists()
  results = [json.loads((folder / 'result.json').read_text()) for folder in (workdir, finished)]
  assert sorted(results[0].pop('scores'), key=str) == sorted(results[1].pop('scores'), key=str)
  assert results[0] == results[1]


@pytest.mark.parametrize('at', [0, 1, 3, 5])
def test_members_go_on_from_where_they_were(
  finished: Path, tiny_run: Path, tmp_path: Path, monkeypatch, at: int
):
  """Stopped at a save, within an epoch, at its end, or in the second group: nothing is made twice,
  nothing differs.
  """
  monkeypatch.setattr(finetune_resume, 'SAVE_SECONDS', 0)
  monkeypatch.setattr(finetune, '_STEPS_PER_CHUNK', 2)  # of the three of the first epoch
  saves, save = [], finetune_resume.save_state

  def stopped(*args: Any) -> None:
    save(*args)
    saves.append(args[2].step)
    if len(saves) == at + 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(finetune_resume, 'save_state', stopped)
  config, workdir = settings(**CHANGES), tmp_path / 'run'
  with pytest.raises(KeyboardInterrupt):
    finetune.finetune(config, tiny_run, workdir, STARTS)
  assert saves == [2, 3, 5, 2, 3, 5][: at + 1] and (workdir / finetune_resume.STATE_FILE).exists()
  assert finetune.finetune(config, tiny_run, workdir, STARTS) == lines(finished)
  assert saves == [2, 3, 5, 2, 3, 5]  # each once, in spite of the stop
  assert not (workdir / finetune_resume.STATE_FILE).exists()
  for path in finished.iterdir():
    if path.name == run_dir.METRICS:  # of a longer chunk the losses are summed in another order
      for one, other in zip(untimed(workdir), untimed(finished), strict=True):
        assert one | {'loss': 0} == other | {'loss': 0}
    else:
      assert (workdir / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
  'starts, changes, said',
  [
    ([4, 8], {}, r'starts is \[4, 8, None\] there and \[4, 8\] here'),
    ([8, 4, None], {}, 'starts is'),
    (STARTS, {'seeds': '0,2'}, 'seeds is'),
  ],
)
def test_other_members_are_another_run(
  finished: Path, tiny_run: Path, never, starts: list, changes: dict, said: str
):
  with pytest.raises(InputError, match=said):
    finetune.finetune(settings(**CHANGES, **changes), tiny_run, finished, starts)


@pytest.mark.parametrize(
  'limit, batch, epochs, expected',
  [
    (48, 16, 2.0, [(1, 3), (2, 6)]),
    (50, 16, 5.0, [(1, 4), (2, 7), (3, 10), (4, 13), (5, 16)]),
    (48, 16, 2.5, [(1, 4), (2, 7), (2.5, 8)]),  # the last is half of one
    (48, 16, 0.5, [(0.5, 2)]),
    (10, 32, 4.0, [(2, 1), (4, 2)]),
  ],
)
def test_epochs_end_where_they_end(limit: int, batch: int, epochs: float, expected: list):
  updates = -int(-(epochs * limit) // batch)
  assert finetune_results.epoch_ends(updates, epochs) == expected


def test_a_rate_that_diverges_spoils_no_other(tiny_run: Path, tmp_path: Path, capsys):
  config = settings(learning_rates='1e-3,1e30', **BROKEN)
  found = finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  assert [(line['learning_rate'], line['value'] is None) for line in found] == [
    *[(1e-3, False)] * 4,
    *[(1e30, True)] * 4,
  ]
  assert all(line['constant_prediction'] and line['low'] is None for line in found[4:])
  epochs = [(line['member'], line['epoch']) for line in losses(tmp_path / 'run')]
  # what is lost is left
  assert sorted(epochs) == [*((n, e) for n in (0, 1) for e in range(1, 7)), (2, 1), (3, 1)]
  assert 'seed 1 with learning rate 1e+30 was no number by update 3' in capsys.readouterr().err
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert [row['mean'] is None for row in result['scores']] == [False, False, True, True]
  row, _ = scores.score_table(found)  # and a table shows the rate that is one
  assert row.pretrained.learning_rate == 1e-3 and row.pretrained.n == 2


def test_no_finite_loss_at_all_is_an_error(tiny_run: Path, tmp_path: Path):
  config = settings(learning_rates='1e25,1e30', **BROKEN)
  for _ in range(2):  # nor does it pass as finished when it is started again
    with pytest.raises(
      InputError, match='none of 4 members kept one\n.*lower optimizer.learning_rate'
    ):
      finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
    assert not (tmp_path / 'run' / 'result.json').exists()


def test_patience_ends_a_member_that_gets_no_better(tiny_run: Path, tmp_path: Path, monkeypatch):
  config = settings(learning_rates='1e-12,2e-12', patience=2, **BROKEN)
  updates, epoch = [], finetune._epoch
  monkeypatch.setattr(
    finetune, '_epoch', lambda *args: updates.append(args[4] - args[3]) or epoch(*args)
  )
  found = finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  assert {(line['epoch_choice'], line['epoch']) for line in found} == {('best', 1), ('last', 3)}
  epochs = [(line['member'], line['epoch']) for line in losses(tmp_path / 'run')]
  assert sorted(epochs) == [(n, e) for n in range(4) for e in (1, 2, 3)]
  assert len(updates) == 3  # of 6: when all have ended nothing runs


def test_it_learns_and_the_floor_is_the_most_frequent_class(tiny_run: Path, tmp_path: Path):
  rows = [
    {'sentence': f'the {adjective} {noun} sleeps .', 'label': label}
    for label, adjective in enumerate(('bad', 'good'))
    for noun in ('dog', 'fox', 'pig', 'seal', 'cow', 'hen', 'duck', 'swan')[label:]
  ]
  folder = write_examples(tmp_path / 'data', train=rows, test=rows)
  config = settings(
    'sentiment',
    **{
      'task.folder': folder,
      'task.split': 'test',
      'epochs': 30.0,
      'optimizer.learning_rate': 5e-3,
      'seeds': '0',
    },
  )
  (line,) = finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  first, *_, last = [line['loss'] for line in losses(tmp_path / 'run')]
  assert line['value'] == 1 and not line['constant_prediction'] and last < first / 5
  assert line['majority'] == pytest.approx(8 / 15) and line['split'] == 'test'
  assert (line['epoch_choice'], line['held_out'], line['validation_score']) == ('last', 0, None)


def test_a_regression_is_scored_by_correlation(tiny_run: Path, tmp_path: Path):
  rows = [
    {'sentence1': f'the {"good " * n}dog sleeps .', 'sentence2': 'a dog sleeps .', 'label': n / 2}
    for n in range(11)
  ]
  config = settings(
    'stsb',
    **{
      'task.folder': write_examples(tmp_path / 'data', train=rows, validation=rows),
      'epochs': 60.0,
      'optimizer.learning_rate': 5e-3,
      'seeds': '0',
      'batch_size': 11,
    },
  )
  found = {
    line['metric']: line for line in finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  }
  assert set(found) == {'pearson', 'spearman', 'pearson_spearman'}
  # a constant correlates with nothing
  assert found['pearson']['value'] > 0.9 and found['pearson']['majority'] is None
  assert [name for name, line in found.items() if line['headline']] == ['pearson_spearman']


def other_tokenizer(folder: Path) -> None:
  """One that can be read and says the same, but is not the file that the run had."""
  with (folder / 'tokenizer.model').open('ab') as file:
    file.write(b'\xf8\x07\x00')  # a field that no one reads


@pytest.mark.parametrize(
  'spoil, said',
  [
    (
      lambda run: change(run, 'config.json', lambda c: c['model'].update(hidden_size=32)),
      r'is \(.*\) there and \(',
    ),
    (lambda run: change(run, 'config.json', lambda c: c.update(kind='corpus')), "kind 'corpus'"),
    (
      lambda run: change(run, 'config.json', lambda c: c['model'].pop('norm')),
      'missing model.norm',
    ),
    (lambda run: (run / 'config.json').unlink(), 'no file'),
    (lambda run: (run / 'manifest.json').unlink(), 'no file'),
    (lambda run: (run / 'tokenizer.model').unlink(), 'cannot be read'),
    (lambda run: (run / 'tokenizer.model').write_bytes(b'no model'), 'not a SentencePiece model'),
    (other_tokenizer, 'tokenizer.model is not the one that the checkpoint was trained with'),
    (lambda run: shutil.rmtree(run / 'checkpoints'), 'no arrays in'),
    (lambda run: shutil.rmtree(run / 'checkpoints' / '8'), 'of step 8 in'),
  ],
  ids=[
    'shape',
    'kind',
    'field',
    'no run',
    'no manifest',
    'no tokenizer',
    'not a tokenizer',
    'another tokenizer',
    'no checkpoint',
    'no such step',
  ],
)
def test_a_checkpoint_that_cannot_be_used_leaves_nothing_behind(
  tiny_run: Path, tmp_path: Path, never, spoil, said: str
):
  shutil.copytree(tiny_run, tmp_path / 'run')
  spoil(tmp_path / 'run')
  with pytest.raises(InputError, match=said):
    finetune.finetune(settings(), tmp_path / 'run', tmp_path / 'task', [8])
  assert not (tmp_path / 'task').exists()


def test_a_split_that_cannot_be_scored_leaves_nothing_behind(tiny_run: Path, tmp_path: Path, never):
  folder = write_examples(
    tmp_path / 'data',
    train=[{'sentence': 'a dog .', 'label': 1}],
    validation=[{'sentence': 'a dog .', 'label': -1}],
  )
  with pytest.raises(InputError, match='no label'):
    finetune.finetune(
      settings('sentiment', **{'task.folder': folder}), tiny_run, tmp_path / 'task', [None]
    )
  assert not (tmp_path / 'task').exists()


def test_an_encoder_is_that_of_its_checkpoint(tiny_run: Path):
  model = finetune.pretrained.load_single_config(tiny_run).model
  first, last = (
    checkpoint.flatten(finetune.load_encoder(tiny_run, model, step)) for step in (4, 8)
  )
  assert checkpoint.list_steps(tiny_run) == [4, 8] and first.keys() == last.keys()
  assert all(
    isinstance(leaf, np.ndarray) and not np.array_equal(leaf, last[name])
    for name, leaf in first.items()
  )


@pytest.fixture(scope='module')
def convolved_run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A few updates of a model with running statistics."""
  folder = tmp_path_factory.mktemp('convolved') / 'run'
  pretrain.pretrain(
    tiny_config.run_config(tiny_corpus, **tiny_config.CONVOLVED, num_steps=4), folder
  )
  return folder


def test_running_statistics_go_on_in_fine_tuning(convolved_run: Path, tmp_path: Path, monkeypatch):
  """They start from those of the checkpoint, beside a fresh head, and move; rows are whole and
  batches too.
  """
  model, seen = finetune.pretrained.load_single_config(convolved_run).model, []
  encoder = checkpoint.flatten(finetune.load_encoder(convolved_run, model, 4))
  name = 'convolution.layers.0.norm.running_mean'
  assert np.abs(encoder[name]).max() > 0
  original = finetune._fit

  def looked_at(program: Any, reached: Any, *more: Any) -> Any:
    seen.append(np.asarray(checkpoint.flatten(reached.member.state.model)[f'encoder.{name}']))
    after = dataclasses.replace(reached, member=jax.tree.map(jax.numpy.copy, reached.member))
    finetune._epoch(program, after, more[0], 0, 3, lambda *_: None, lambda: None)
    seen.append(np.asarray(checkpoint.flatten(after.member.state.model)[f'encoder.{name}']))
    return original(program, reached, *more)

  monkeypatch.setattr(finetune, '_fit', looked_at)
  config = settings(seeds='0', epochs=1.0, length=16)
  finetune.finetune(config, convolved_run, tmp_path, [4])
  np.testing.assert_array_equal(seen[0][0], encoder[name])
  assert np.abs(seen[1][0] - encoder[name]).min() > 1e-6
  found = finetune.task_data.prepare(
    config, model.max_length, finetune.pretrained.load_tokenizer(convolved_run), model.batch_norm
  )
  assert found.lengths == (model.max_length,)
  assert found.rows['train'].tokens.shape[1] == model.max_length


def test_every_verb_reads_a_model_with_running_statistics(convolved_run: Path):
  """The logged test loss comes again, whatever else is in a batch; short rows are whole ones."""
  logged = json.loads((convolved_run / 'result.json').read_text())['test_loss']
  assert evaluate.evaluate_loss(convolved_run, '', 'test')['loss'] == pytest.approx(
    logged, rel=1e-4
  )
  assert len(inference.fill_mask(convolved_run, 'the dog <mask> .', 2)) == 2
  one, two = (
    likelihood.pseudo_perplexity(convolved_run, text, 'original')['log_likelihood']
    for text in (
      'the dog sleeps .',
      'the dog sleeps .\nthe good dog sees a fox and a cow and a hen .',
    )
  )
  rest = likelihood.pseudo_perplexity(
    convolved_run, 'the good dog sees a fox and a cow and a hen .', 'original'
  )
  assert two == pytest.approx(one + rest['log_likelihood'], rel=1e-5)


ROOT = pathlib.Path(__file__).resolve().parents[2]


def settings_suite(task: str, **changes: Any) -> FinetuneConfig:
  config = glue.get_config(task)
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'finetune')


def of_sizes(**sizes: int) -> dict[str, FinetuneConfig]:
  return {
    name: settings_suite(f'microworld/{name}', **{'task.max_train_examples': size})
    for name, size in sizes.items()
  }


@pytest.fixture(autouse=True)
def fewer_examples(monkeypatch):
  for split in loading.MICROWORLD:
    monkeypatch.setitem(loading.MICROWORLD, split, 400)


@pytest.fixture
def runs(tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
  """A folder of runs a and b, with checkpoints of updates 4 and 8."""
  for name in ('a', 'b'):
    shutil.copytree(tiny_run, tmp_path / name)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def called(monkeypatch) -> list[tuple]:
  """What fine-tuning is asked for, instead of doing it: task, run, folder, starts."""
  found = []

  def noted(config: FinetuneConfig, source: str, workdir: Any, starts: list) -> list[dict]:
    found.append((config.task.name.removeprefix('microworld/'), source, str(workdir), starts))
    if config.task.name == 'microworld/entailment':
      raise InputError('entailment', 'it cannot be', 'do without it')
    return [{'task': config.task.name}]

  monkeypatch.setattr(finetune, 'finetune', noted)
  return found


@pytest.mark.parametrize(
  'given, expected',
  [
    ('a', {'a': [8]}),
    ('a@4', {'a': [4]}),
    ('a@all', {'a': [4, 8]}),
    ('a@4,a@8,b', {'a': [4, 8], 'b': [8]}),
    ('a@8,a@4', {'a': [8, 4]}),
    ('a@4, a@all,', {'a': [4, 8]}),
    ('b,a,b@8', {'b': [8], 'a': [8]}),
    ('./a@4', {'./a': [4]}),
  ],
)
def test_checkpoints_are_named_by_run_and_update(runs: pathlib.Path, given: str, expected: dict):
  found = finetune.expand_checkpoints(given)
  assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(
  'given, said',
  [
    ('a@5', 'there are 4, 8'),
    ('a@4,b@5', 'step 5 in b'),
    ('c', 'none saved there'),
    ('a@best', 'none saved there'),
    ('c@all', 'none saved there'),
    ('a,c@4', 'the checkpoint of c'),
    (',', 'it names no run'),
    ('', 'it names no run'),
  ],
)
def test_a_checkpoint_that_is_not_there_is_refused(runs: pathlib.Path, given: str, said: str):
  with pytest.raises(InputError, match=said):
    finetune.expand_checkpoints(given)


def test_a_run_may_have_an_at_in_its_name(runs: pathlib.Path):
  (runs / 'a').rename(runs / 'me@home')
  assert finetune.expand_checkpoints('me@home') == {'me@home': [8]} and finetune.expand_checkpoints(
    'me@home@4'
  ) == {'me@home': [4]}


def test_members_start_from_checkpoints_from_scratch_or_from_both():
  assert finetune.starting_points([4, 8], False, False) == [4, 8]
  assert finetune.starting_points([4, 8], False, True) == [4, 8, None]  # one control serves all
  assert finetune.starting_points([4, 8], True, False) == [None]
  with pytest.raises(InputError, match='give one of them'):
    finetune.starting_points([4, 8], True, True)


def test_small_tasks_are_first(runs: pathlib.Path, called: list):
  lines, failed = finetune.finetune_all(
    of_sizes(sentiment=300, acceptability=40), 'a', 'out', False, False
  )
  assert called == [
    ('acceptability', 'a', 'out/acceptability', [8]),
    ('sentiment', 'a', 'out/sentiment', [8]),
  ]
  assert [line['task'] for line in lines] == [
    'microworld/acceptability',
    'microworld/sentiment',
  ] and not failed
  called.clear()
  half = settings_suite('microworld/acceptability', epochs=0.5, **{'task.max_train_examples': 60})
  both = of_sizes(sentiment=40) | {'acceptability': half}
  finetune.finetune_all(both, 'a', 'out', False, False)
  assert [name for name, *_ in called] == ['acceptability', 'sentiment']  # epochs count too


def test_each_run_and_task_has_a_folder(runs: pathlib.Path, called: list):
  one, two = of_sizes(sentiment=40), of_sizes(sentiment=40, acceptability=80)
  found = []
  for configs, given in ((one, 'a@all'), (one, 'a,b'), (two, 'a'), (two, 'a,b@4')):
    finetune.finetune_all(configs, given, 'out', False, True)
    found.append([(source, folder, starts) for _, source, folder, starts in called])
    called.clear()
  assert found == [
    [('a', 'out', [4, 8, None])],
    [('a', 'out/a', [8, None]), ('b', 'out/b', [8, None])],
    [('a', 'out/sentiment', [8, None]), ('a', 'out/acceptability', [8, None])],
    [
      ('a', 'out/a/sentiment', [8, None]),
      ('b', 'out/b/sentiment', [4, None]),
      ('a', 'out/a/acceptability', [8, None]),
      ('b', 'out/b/acceptability', [4, None]),
    ],
  ]


def test_runs_of_one_name_are_told_apart_by_where_they_are(runs: pathlib.Path, called: list):
  for name in ('a', 'b'):
    (runs / 'sweep' / name).mkdir(parents=True)
    (runs / name).rename(runs / 'sweep' / name / 'member-0')
  (runs / 'sweep' / 'c' / 'member-0').mkdir(parents=True)  # has no checkpoint yet
  assert finetune.expand_checkpoints('sweep/*/member-*@4') == {
    'sweep/a/member-0': [4],
    'sweep/b/member-0': [4],
  }
  lines, _ = finetune.finetune_all(of_sizes(sentiment=40), 'sweep/*/member-*', 'out', False, False)
  assert [line['checkpoint'] for line in lines] == ['a/member-0', 'b/member-0']
  assert [(source, folder) for _, source, folder, _ in called] == [
    ('sweep/a/member-0', 'out/a/member-0'),
    ('sweep/b/member-0', 'out/b/member-0'),
  ]
  with pytest.raises(InputError, match='no run with a checkpoint there'):
    finetune.expand_checkpoints('sweep/d*')


def test_one_run_by_two_names_is_refused(runs: pathlib.Path, called: list):
  with pytest.raises(InputError, match='two of them are one run'):
    finetune.finetune_all(of_sizes(sentiment=40), 'b,./b', 'out', False, False)
  assert not called


def test_what_one_task_lacks_stops_that_task_alone(runs: pathlib.Path, called: list, capsys):
  configs = {'rte': settings_suite('rte'), **of_sizes(entailment=20, sentiment=40)}
  lines, failed = finetune.finetune_all(configs, 'a', 'out', False, False)
  # rte is nowhere, entailment fails on its way
  assert [name for name, *_ in called] == ['entailment', 'sentiment']
  assert [line['task'] for line in lines] == ['microworld/sentiment']
  assert [error.asked for error in failed] == ['examples of rte', 'entailment']
  said = capsys.readouterr().err
  assert (
    'give task.data_dir' in said
    and 'do without it' in said
    and 'task 2 of 2: sentiment, from a' in said
  )


def test_where_nothing_can_be_run_it_is_an_error(runs: pathlib.Path, called: list):
  with pytest.raises(InputError, match='examples of rte'):
    finetune.finetune_all(
      {name: settings_suite(name) for name in ('rte', 'cola')}, 'a', 'out', False, False
    )
  assert not called and not (runs / 'out').exists()
  with pytest.raises(InputError, match='it cannot be'):  # of one task and run, whatever it lacks
    finetune.finetune_all(of_sizes(entailment=20), 'a', 'out', False, False)


def test_a_misspelt_task_stops_all(runs: pathlib.Path, called: list):
  broken = settings_suite('sentimant')
  with pytest.raises(InputError, match="did you mean 'sentiment'"):
    finetune.finetune_all({**of_sizes(sentiment=40), 'other': broken}, 'a', 'out', False, False)
  assert not called


@pytest.mark.usefixtures('fast_compile')
def test_the_command_does_what_it_can_and_says_what_it_could_not(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  command = [
    'finetune',
    '--config=configs/glue.py:cola,microworld/sentiment',
    f'--checkpoint={tiny_run}@all',
    f'--workdir={tmp_path / "out"}',
    '--config.task.max_train_examples=32',
    '--config.seeds=0',
    '--config.epochs=1',
    '--config.batch_size=16',
    '--config.length=16',
    '--with_scratch',
  ]
  assert main.main(command) == 2
  out, err = capsys.readouterr()
  assert 'microworld/sentiment' in out and 'cola' not in out
  assert 'asked: scores on 2 tasks\nfound: examples of cola: no place to read them from\n' in err
  folder = tmp_path / 'out' / 'microworld' / 'sentiment'
  assert json.loads((folder / 'config.json').read_text())['starts'] == [4, 8, None]
  scores = list(run_dir.read_lines(folder / 'scores.jsonl'))
  assert [line['checkpoint_step'] for line in scores] == [4, 8, None]
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {'microworld'}
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  assert main.main(command) == 2  # and again it says the same, from what is there
  assert capsys.readouterr().out == out
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
