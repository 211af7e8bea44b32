"""Predictions: files as the GLUE server takes them, one line an example, and what every member
said.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from configs import glue
from minilm_jax.analysis import scores
from minilm_jax.core import recipe, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.data import tokenizer
from minilm_jax.tasks import finetune, finetune_results, metrics, task, task_data
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.task import find_task
from minilm_jax.tasks.task_data import TaskData
from tests.fake_runs import write_examples

COLA, STSB = task.find_task('cola'), task.find_task('stsb')
LABELS = np.array([0, 1, 1, 0, 1], np.int32)
OUTPUTS = np.array([[2, 1], [0, 1], [3, 0], [1, 0], [0, 9]], np.float32)  # says 0, 1, 0, 0, 1
# what a run adds to each line
OF_RUN = {'train_examples', 'held_out', 'checkpoint', 'filtered', 'truncated'}
ENTRY = MemberSpec(3, 400, 7, 1e-3)


def settings(**changes: Any) -> FinetuneConfig:
  config = glue.get_config('cola')
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'finetune')


def made(
  kept: dict[str, EpochResult], task: task.Task = COLA, labels: np.ndarray = LABELS
) -> list[dict[str, Any]]:
  floors = {
    'validation': {
      'majority': metrics.majority_baseline(task, labels, labels),
      'frequency': metrics.frequency_baseline(task, labels, labels),
    }
  }
  return list(finetune_results.score_lines(task, ENTRY, kept, {'validation': labels}, floors))


def test_members_are_each_start_with_each_rate_and_each_seed():
  config = settings(seeds='5,2', learning_rates='1e-3,1e-4,1e-2', validation_fraction=0.1)
  found = finetune_results.member_specs(config, (400, 800, None))
  assert len(found) == len(set(found)) == 3 * 3 * 2
  assert [entry.member for entry in found] == list(range(18))
  assert [(entry.step, entry.learning_rate, entry.seed) for entry in found[:7]] == [
    (400, 1e-3, 5),
    (400, 1e-3, 2),
    (400, 1e-4, 5),
    (400, 1e-4, 2),
    (400, 1e-2, 5),
    (400, 1e-2, 2),
    (800, 1e-3, 5),
  ]
  assert {entry.step for entry in found[12:]} == {None}
  assert [entry.fields()['pretrained'] for entry in found] == [True] * 12 + [False] * 6


def test_without_rates_to_try_it_is_that_of_the_optimizer():
  config = settings(seeds='0', **{'optimizer.learning_rate': 3e-4})
  assert [entry.learning_rate for entry in finetune_results.member_specs(config, (None,))] == [3e-4]


def test_the_best_epoch_is_reported_only_where_something_is_held_out():
  assert finetune_results.reported_epochs(settings(validation_fraction=0.1)) == ('best', 'last')
  assert finetune_results.reported_epochs(settings()) == ('last',)


@pytest.mark.parametrize(
  'values, best',
  [
    ([0.1, 0.3, 0.2], 1),
    ([0.3, 0.3, 0.3], 0),
    ([math.nan, -0.2, math.nan], 1),
    ([math.nan, math.nan], 0),
    ([-0.1, math.nan, -0.1, 0.0], 3),
    ([-math.inf, 0.0], 1),
  ],
)
def test_the_best_epoch_is_the_first_of_equals_and_nan_is_least(values: list[float], best: int):
  kept = None
  for epoch, value in enumerate(values):
    now = EpochResult(epoch, value, {})
    kept = now if finetune_results.is_better(now, kept) else kept
  assert kept.epoch == best


def test_a_line_has_every_field_that_tables_ask_for():
  found = made(
    {
      'best': EpochResult(2.0, 0.5, {'validation': OUTPUTS}),
      'last': EpochResult(3.0, 0.4, {'validation': OUTPUTS}),
    }
  )
  assert [(line['epoch_choice'], line['metric']) for line in found] == [
    ('best', 'matthews'),
    ('best', 'accuracy'),
    ('last', 'matthews'),
    ('last', 'accuracy'),
  ]
  for line in found:
    assert set(line) | OF_RUN == set(scores.FIELDS) and not set(line) & OF_RUN
    assert (
      line.items()
      >= {
        'task': 'cola',
        'split': 'validation',
        'examples': 5,
        'pretrained': True,
        'member': 3,
        'checkpoint_step': 400,
        'seed': 7,
        'learning_rate': 1e-3,
        'constant_prediction': False,
      }.items()
    )
    assert line['low'] <= line['value'] <= line['high'] and line['headline'] == (
      line['metric'] == 'matthews'
    )
  assert [(line['epoch'], line['validation_score']) for line in found] == [(2.0, 0.5)] * 2 + [
    (3.0, 0.4)
  ] * 2
  accuracy = found[1]
  assert accuracy['value'] == pytest.approx(0.8) and accuracy['majority'] == pytest.approx(0.6)
  assert accuracy['frequency'] == pytest.approx(0.6**2 + 0.4**2)


@pytest.mark.parametrize(
  'task, labels, width', [(COLA, LABELS, 2), (STSB, LABELS.astype(np.float32), 1)]
)
@pytest.mark.parametrize('broken', [math.nan, math.inf])
def test_outputs_that_are_no_numbers_score_nothing(
  task, labels: np.ndarray, width: int, broken: float, tmp_path
):
  outputs = OUTPUTS[:, :width].copy()
  outputs[4, 0] = broken  # one is enough: what a class of it is would be chance
  assert math.isnan(finetune_results.headline_value(task, outputs, labels))
  found = made({'last': EpochResult(1.0, math.nan, {'validation': outputs})}, task, labels)
  assert [line['metric'] for line in found] == list(task.metrics) and all(
    line['constant_prediction'] for line in found
  )
  for line in found:
    run_dir.append_line(tmp_path / 'scores.jsonl', line)
  for text in (tmp_path / 'scores.jsonl').read_text().splitlines():
    assert {json.loads(text)[name] for name in ('value', 'low', 'high', 'validation_score')} == {
      None
    }


def test_one_answer_to_everything_has_collapsed_but_is_scored():
  found = made(
    {'last': EpochResult(1.0, math.nan, {'validation': np.tile(np.float32([0, 1]), (5, 1))})}
  )
  assert [(line['constant_prediction'], line['value']) for line in found] == [
    (True, 0),
    (True, pytest.approx(0.6)),
  ]


def test_predictions_are_classes_or_numbers():
  assert finetune_results.decode_outputs(COLA, OUTPUTS).tolist() == [0, 1, 0, 0, 1]
  numbers = OUTPUTS[:, :1]
  assert finetune_results.decode_outputs(STSB, numbers).tolist() == [2, 0, 3, 1, 0]
  right = np.array([2, 0, 3, 1, 0], np.float32)
  assert finetune_results.headline_value(STSB, numbers, right) == pytest.approx(1)


def test_summaries_are_over_seeds_and_nothing_else():
  def line(value: float | None, **fields: Any) -> dict[str, Any]:
    return {
      'pretrained': True,
      'checkpoint_step': 8,
      'learning_rate': 1e-3,
      'epoch_choice': 'last',
      'split': 'validation',
      'metric': 'accuracy',
      'value': value,
      'seed': 0,
    } | fields

  other = [
    {'pretrained': False, 'checkpoint_step': None},
    {'checkpoint_step': 4},
    {'learning_rate': 1e-2},
    {'epoch_choice': 'best'},
    {'split': 'test'},
    {'metric': 'f1'},
  ]
  found = finetune_results.summary_lines(
    [
      line(0.5),
      *(line(0.9, **change) for change in other),
      line(0.7, seed=1),
      line(None, seed=3, epoch_choice='best'),
    ]
  )
  assert len(found) == 7
  assert (
    found[0].items()
    >= {'mean': pytest.approx(0.6), 'n': 2, 'checkpoint_step': 8, 'epoch_choice': 'last'}.items()
  )
  assert found[0]['low'] < 0.6 < found[0]['high']
  best = next(one for one in found if one['epoch_choice'] == 'best')
  # of one that is no number the mean is not known
  assert best['n'] == 2 and math.isnan(best['mean'])


NOUNS = 'dog fox pig seal cow hen duck swan tree pear bone wolf'.split()


def settings_server(task: str, **changes: Any):
  config = glue.get_config(task)
  config.update_from_flattened_dict(
    {'seeds': '0,1', 'epochs': 1.0, 'batch_size': 16, 'predictions': True, **changes}
  )
  return recipe.resolve(config, 'finetune')


def rows(task: str, count: int, numbers: list[int] | None = None) -> list[dict]:
  """Examples of a task of two texts; where numbers are given, of a test split: without labels."""
  first, second = find_task(task).fields
  classes = len(find_task(task).labels)
  made = [
    {
      first: f'the {NOUNS[i % 12]} sleeps .',
      second: f'a {NOUNS[i * 5 % 12]} runs .',
      'label': i % classes if classes else i % 6,
    }
    for i in range(count)
  ]
  return [
    row | ({} if numbers is None else {'label': -1, 'idx': numbers[i]})
    for i, row in enumerate(made)
  ]


def prepared(task: str, folder: str, tiny_run: Path, **changes: Any) -> TaskData:
  return task_data.prepare_task_data(
    settings_server(task, **{'task.folder': folder}, **changes),
    64,
    tokenizer.load_tokenizer(tiny_run / 'tokenizer.model'),
  )


def outputs(ready: TaskData, number: int) -> dict[str, np.ndarray]:
  """As of a model: of the reported and the unlabelled splits."""
  draw = np.random.default_rng(number)
  width = len(ready.task.labels) or 1
  return {
    split: draw.normal(2, 3, (len(ready.rows[split].labels), width)).astype(np.float32)
    for split in (*ready.reported, *ready.unlabelled)
  }


def read(path: Path) -> list[list[str]]:
  return [line.split('\t') for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
  'task, said, expected',
  [
    ('cola', [1, 0, 1], ['1', '0', '1']),
    ('sst2', [1, 0, 0], ['1', '0', '0']),
    ('mrpc', [0, 1, 1], ['0', '1', '1']),
    ('qqp', [0, 1, 1], ['0', '1', '1']),
    ('wnli', [1, 1, 0], ['1', '1', '0']),
    ('rte', [0, 1, 0], ['entailment', 'not_entailment', 'entailment']),
    ('qnli', [1, 1, 0], ['not_entailment', 'not_entailment', 'entailment']),
    ('mnli', [2, 1, 0], ['contradiction', 'neutral', 'entailment']),
    ('ax', [0, 1, 2], ['entailment', 'neutral', 'contradiction']),
    ('stsb', [-0.3, 5.2, 3.14159], ['0.000', '5.000', '3.142']),
  ],
)
def test_a_file_says_what_the_server_understands(task: str, said: list, expected: list[str]):
  found = finetune_results.submission_rows(find_task(task), np.array(said), (0, 1, 2)).decode()
  assert found == 'index\tprediction\n' + ''.join(
    f'{i}\t{text}\n' for i, text in enumerate(expected)
  )


def test_lines_are_in_the_order_of_the_official_file():
  found = finetune_results.submission_rows(
    task.find_task('cola'), np.array([1, 0, 0, 1]), (10, 2, 0, 9)
  ).decode()
  assert found == 'index\tprediction\n0\t0\n2\t0\n9\t1\n10\t1\n'


def test_each_split_has_a_file_of_its_own(tiny_run: Path, tmp_path: Path):
  folder = write_examples(
    tmp_path / 'data',
    train=rows('mnli', 12),
    validation_matched=rows('mnli', 6),
    validation_mismatched=rows('mnli', 5),
    test_matched=rows('mnli', 4, [3, 2, 1, 0]),
    test_mismatched=rows('mnli', 3, [0, 1, 2]),
    test=rows('ax', 5, [4, 0, 1, 2, 3]),
  )
  ready = prepared('mnli', folder, tiny_run)
  entry, said = MemberSpec(0, 8, 0, 1e-3), outputs(ready, 0)
  kept = {'last': EpochResult(1.0, float('nan'), said)}
  finetune_results.save_test_outputs(epath.Path(tmp_path), ready, entry, kept)
  line = {
    'member': 0,
    'epoch_choice': 'last',
    'headline': True,
    'value': 0.5,
    'validation_score': None,
    **entry.fields(),
  }
  finetune_results.write_submission(epath.Path(tmp_path), ready, [line], 'last')
  assert {path.name for path in (tmp_path / 'submission').iterdir()} == {
    'MNLI-m.tsv',
    'MNLI-mm.tsv',
    'AX.tsv',
  }
  for name, split, order in (
    ('MNLI-m', 'test_matched', [3, 2, 1, 0]),
    ('MNLI-mm', 'test_mismatched', [0, 1, 2]),
    ('AX', 'ax test', [1, 2, 3, 4, 0]),
  ):
    classes = said[split].argmax(-1)[order]
    assert read(tmp_path / 'submission' / f'{name}.tsv')[1:] == [
      [str(i), task.find_task('mnli').labels[number]] for i, number in enumerate(classes)
    ]


def test_predictions_are_kept_beside_the_right_labels(tiny_run: Path, tmp_path: Path):
  folder = write_examples(
    tmp_path / 'data',
    train=rows('stsb', 12),
    validation=rows('stsb', 6),
    test=rows('stsb', 4, [0, 1, 2, 3]),
  )
  ready = prepared('stsb', folder, tiny_run)
  kept = {
    which: EpochResult(1.0, 0.5, outputs(ready, number))
    for number, which in enumerate(('best', 'last'))
  }
  finetune_results.save_test_outputs(
    epath.Path(tmp_path), ready, MemberSpec(5, None, 7, 1e-3), kept
  )
  found = list(run_dir.read_lines(tmp_path / 'predictions.jsonl'))
  assert [(line['epoch_choice'], line['split']) for line in found] == [
    ('best', 'validation'),
    ('best', 'test'),
    ('last', 'validation'),
    ('last', 'test'),
  ]
  for line in found:
    assert line.items() >= {'task': 'stsb', 'member': 5, 'seed': 7, 'pretrained': False}.items()
    # as they are, not clipped
    assert line['predictions'] == kept[line['epoch_choice']].outputs[line['split']][:, 0].tolist()
  assert found[0]['labels'] == [0, 1, 2, 3, 4, 5] and 'labels' not in found[1]


@pytest.mark.parametrize(
  'selections, values, expected',
  [
    # the best on what is held out, and the fourth is from scratch
    ([0.1, 0.3, 0.2, 0.9], [0.5] * 4, 1),
    # what is reported never chooses
    ([0.1, 0.3, 0.3, 0.9], [0.5] * 4, 1),
    ([None] * 4, [0.1, 0.2, 0.3, 0.4], 0),
    ([0.1, 0.3, 0.2, 0.9], [0.5, None, 0.5, 0.5], 2),
    ([None, -0.2, -0.1, 0.9], [0.5] * 4, 0),
    ([0.1] * 4, [None, None, None, 0.5], 3),
    ([0.1] * 4, [None] * 4, None),
  ],
)
def test_what_is_held_out_chooses_whose_predictions_they_are(
  selections: list, values: list, expected: int | None, tiny_run: Path, tmp_path: Path
):
  folder = write_examples(
    tmp_path / 'data',
    train=rows('rte', 12),
    validation=rows('rte', 6),
    test=rows('rte', 9, list(range(9))),
  )
  ready = prepared('rte', folder, tiny_run)
  entries = [MemberSpec(number, 8 if number < 3 else None, number, 1e-3) for number in range(4)]
  for entry in entries:
    finetune_results.save_test_outputs(
      epath.Path(tmp_path),
      ready,
      entry,
      {
        which: EpochResult(1.0, 0.5, outputs(ready, 2 * entry.member + (which == 'last')))
        for which in ('best', 'last')
      },
    )
  lines = [
    {
      'headline': headline,
      'epoch_choice': which,
      'value': value,
      'validation_score': selection,
      **entry.fields(),
    }
    for entry, value, selection in zip(entries, values, selections, strict=True)
    for which in ('last', 'best')
    for headline in (False, True)
  ]
  finetune_results.write_submission(epath.Path(tmp_path), ready, lines, 'best')
  if expected is None:
    assert not (tmp_path / 'submission').exists()
    return
  said = [row[1] for row in read(tmp_path / 'submission' / 'RTE.tsv')[1:]]
  assert said == [
    ready.task.labels[number] for number in outputs(ready, 2 * expected)['test'].argmax(-1)
  ]


@pytest.mark.usefixtures('fast_compile')
def test_from_files_to_a_file(tiny_run: Path, tmp_path: Path):
  """Fine-tuning writes it, and once more where the run had been stopped before it could."""
  numbers = list(range(70))
  # more than one batch, in no order at all
  order = np.random.default_rng(0).permutation(70).tolist()
  test = [rows('rte', 70, numbers)[i] for i in order]
  folder = write_examples(
    tmp_path / 'data', train=rows('rte', 32), validation=rows('rte', 9), test=test
  )
  config, workdir = settings_server('rte', **{'task.folder': folder}), tmp_path / 'run'
  scores = finetune.finetune(config, tiny_run, workdir, [8])
  found = list(run_dir.read_lines(workdir / 'predictions.jsonl'))
  assert [(line['member'], line['split'], len(line['predictions'])) for line in found] == [
    (0, 'validation', 9),
    (0, 'test', 70),
    (1, 'validation', 9),
    (1, 'test', 70),
  ]
  for line, score in zip(found[::2], scores, strict=True):  # what is kept is what was scored
    assert np.mean(np.equal(line['predictions'], line['labels'])) == pytest.approx(score['value'])
  lines = read(workdir / 'submission' / 'RTE.tsv')
  said = dict(zip(order, found[1]['predictions'], strict=True))
  assert lines == [
    ['index', 'prediction'],
    *([str(i), task.find_task('rte').labels[said[i]]] for i in numbers),
  ]

  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
  (workdir / 'submission' / 'RTE.tsv').unlink()
  finetune.finetune(config, tiny_run, workdir, [8])
  assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


def test_a_task_that_the_server_does_not_have_gets_no_file(tiny_run: Path, tmp_path: Path):
  ready = task_data.prepare_task_data(
    settings_server('microworld/sentiment', **{'task.max_train_examples': 24}),
    64,
    tokenizer.load_tokenizer(tiny_run / 'tokenizer.model'),
  )
  finetune_results.write_submission(epath.Path(tmp_path), ready, [], finetune_results.LAST_EPOCH)
  assert not ready.unlabelled and not list(tmp_path.iterdir())
