"""Tests members, score lines, stored predictions and files for the GLUE server."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis import scores
from minilm_jax.core import run_dir
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.tasks import finetune, finetune_results, task_data
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.task import Task, find_task
from minilm_jax.tasks.task_data import TaskData
from tests.fake_runs import write_examples
from tests.run_files import read_files
from tests.tiny_config import make_finetune_config

COLA, STSB = find_task('cola'), find_task('stsb')
LABELS = np.array([0, 1, 1, 0, 1], np.int32)
OUTPUTS = np.array([[2, 1], [0, 1], [3, 0], [1, 0], [0, 9]], np.float32)  # predicts 0, 1, 0, 0, 1
# Fields that a run adds to score lines.
RUN_FIELDS = {'train_examples', 'held_out', 'checkpoint', 'filtered', 'truncated'}
SPEC = MemberSpec(3, 400, 7, 1e-3)


def make_score_lines(
  results: dict[str, EpochResult], task: Task = COLA, labels: np.ndarray = LABELS
) -> list[dict[str, Any]]:
  rows = task_data.TaskRows(None, None, labels)
  data = TaskData(
    task=task,
    rows={'train': rows, 'validation': rows},
    reported=('validation',),
    unlabelled={},
    used_ids=np.arange(5),
    lengths=(16,),
    numbers={},
    truncated=0,
    digests={},
  )
  return list(finetune_results.make_score_lines(data, SPEC, results))


@pytest.mark.parametrize('fraction, choices', [(0.1, ('best', 'last')), (0.0, ('last',))])
def test_the_best_epoch_is_reported_only_with_a_validation_part(fraction: float, choices: tuple):
  config = make_finetune_config('cola', validation_fraction=fraction)
  assert finetune_results.list_epoch_choices(config) == choices


@pytest.mark.parametrize(
  'examples, batch_size, epochs, expected',
  [
    (48, 16, 2.0, [(1, 3), (2, 6)]),
    (50, 16, 5.0, [(1, 4), (2, 7), (3, 10), (4, 13), (5, 16)]),
    (48, 16, 2.5, [(1, 4), (2, 7), (2.5, 8)]),
    (48, 16, 0.5, [(0.5, 2)]),
    (10, 32, 4.0, [(2, 1), (4, 2)]),
    (1600, 32, 2.3, [(1, 50), (2, 100), (2.3, 115)]),
  ],
)
def test_epoch_ends_cover_all_updates(
  examples: int, batch_size: int, epochs: float, expected: list
):
  updates = -int(-(epochs * examples) // batch_size)
  assert finetune_results.list_epoch_ends(updates, epochs) == expected


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
def test_the_best_epoch_is_the_first_maximum_and_ignores_nan(values: list[float], best: int):
  best_result = None
  for epoch, value in enumerate(values):
    result = EpochResult(epoch, value, {})
    best_result = result if finetune_results.is_better(result, best_result) else best_result
  assert best_result.epoch == best


def test_score_lines_have_all_fields():
  results = {
    'best': EpochResult(2.0, 0.5, {'validation': OUTPUTS}),
    'last': EpochResult(3.0, 0.4, {'validation': OUTPUTS}),
  }
  lines = make_score_lines(results)
  assert [(line['epoch_choice'], line['metric']) for line in lines] == [
    (choice, metric) for choice in ('best', 'last') for metric in ('matthews', 'accuracy')
  ]
  constants = {
    'task': 'cola',
    'split': 'validation',
    'examples': 5,
    'pretrained': True,
    'member': 3,
    'checkpoint_step': 400,
    'seed': 7,
    'learning_rate': 1e-3,
    'constant_prediction': False,
  }
  for line in lines:
    assert set(line) | RUN_FIELDS == set(scores.FIELDS) and not set(line) & RUN_FIELDS
    assert line.items() >= constants.items()
    assert line['low'] <= line['value'] <= line['high']
    assert line['headline'] == (line['metric'] == 'matthews')
  expected = [(2.0, 0.5)] * 2 + [(3.0, 0.4)] * 2
  assert [(line['epoch'], line['validation_score']) for line in lines] == expected
  accuracy = lines[1]
  assert accuracy['value'] == pytest.approx(0.8) and accuracy['majority'] == pytest.approx(0.6)
  assert accuracy['frequency'] == pytest.approx(0.6**2 + 0.4**2)


@pytest.mark.parametrize(
  'task, labels, width', [(COLA, LABELS, 2), (STSB, LABELS.astype(np.float32), 1)]
)
@pytest.mark.parametrize('broken', [math.nan, math.inf])
def test_non_finite_outputs_have_no_score(
  task, labels: np.ndarray, width: int, broken: float, tmp_path
):
  outputs = OUTPUTS[:, :width].copy()
  outputs[4, 0] = broken
  values = finetune_results.compute_metrics(task, outputs, labels)
  assert set(values) == set(task.metrics) and all(map(math.isnan, values.values()))
  results = {'last': EpochResult(1.0, math.nan, {'validation': outputs})}
  lines = make_score_lines(results, task, labels)
  assert [line['metric'] for line in lines] == list(task.metrics)
  assert all(line['constant_prediction'] for line in lines)
  for line in lines:
    run_dir.append_line(tmp_path / 'scores.jsonl', line)
  names = ('value', 'low', 'high', 'validation_score')
  for line in run_dir.read_lines(tmp_path / 'scores.jsonl'):
    assert [line[name] for name in names] == [None] * 4


def test_a_constant_prediction_is_scored():
  outputs = np.tile(np.float32([0, 1]), (5, 1))
  lines = make_score_lines({'last': EpochResult(1.0, math.nan, {'validation': outputs})})
  assert all(line['constant_prediction'] for line in lines)
  assert [line['value'] for line in lines] == [0, pytest.approx(0.6)]


def test_predictions_are_classes_or_numbers():
  assert finetune_results.decode_outputs(COLA, OUTPUTS).tolist() == [0, 1, 0, 0, 1]
  numbers = OUTPUTS[:, :1]
  assert finetune_results.decode_outputs(STSB, numbers).tolist() == [2, 0, 3, 1, 0]
  labels = np.array([2, 0, 3, 1, 0], np.float32)
  values = finetune_results.compute_metrics(STSB, numbers, labels)
  assert values == pytest.approx(dict.fromkeys(STSB.metrics, 1))


def test_summaries_are_only_over_seeds():
  keys = {
    'pretrained': True,
    'checkpoint_step': 8,
    'learning_rate': 1e-3,
    'epoch_choice': 'last',
    'split': 'validation',
    'metric': 'accuracy',
  }
  changes = [
    {'pretrained': False, 'checkpoint_step': None},
    {'checkpoint_step': 4},
    {'learning_rate': 1e-2},
    {'epoch_choice': 'best'},
    {'split': 'test'},
    {'metric': 'f1'},
  ]
  lines = [
    {**keys, 'value': 0.5, 'seed': 0},
    *({**keys, 'value': 0.9, 'seed': 0, **change} for change in changes),
    {**keys, 'value': 0.7, 'seed': 1},
    {**keys, 'value': None, 'seed': 3, 'epoch_choice': 'best'},
  ]
  summary = finetune_results.summarize_seeds(lines)
  first = summary[0]
  assert len(summary) == 7 and {name: first[name] for name in keys} == keys
  assert first['n'] == 2 and first['mean'] == pytest.approx(0.6)
  assert first['low'] < 0.6 < first['high']
  best = next(row for row in summary if row['epoch_choice'] == 'best')
  assert best['n'] == 2 and math.isnan(best['mean'])


NOUNS = 'dog fox pig seal cow hen duck swan tree pear bone wolf'.split()


def submission_config(task: str, **changes: Any):
  fields = {'seeds': '0,1', 'epochs': 1.0, 'batch_size': 16, 'predictions': True}
  return make_finetune_config(task, **(fields | changes))


def make_rows(task: str, count: int, numbers: Sequence[int] | None = None) -> list[dict]:
  """Returns pairs of texts; with numbers, the unlabelled examples of a test split."""
  first, second = find_task(task).fields
  classes = len(find_task(task).labels)
  examples = [
    {
      first: f'the {NOUNS[i % 12]} sleeps .',
      second: f'a {NOUNS[i * 5 % 12]} runs .',
      'label': i % classes if classes else i % 6,
    }
    for i in range(count)
  ]
  return [
    row | ({} if numbers is None else {'label': -1, 'idx': numbers[i]})
    for i, row in enumerate(examples)
  ]


def prepare(task: str, pieces: Tokenizer, folder: Path, **splits: int | Sequence[int]) -> TaskData:
  """Writes and encodes splits with a number of examples, or unlabelled with these numbers."""
  rows = {
    split: make_rows(task, size) if isinstance(size, int) else make_rows(task, len(size), size)
    for split, size in splits.items()
  }
  config = submission_config(task, **{'task.folder': write_examples(folder / 'data', **rows)})
  return task_data.prepare_task_data(config, 64, pieces)


def draw_outputs(data: TaskData, seed: int) -> dict[str, np.ndarray]:
  """Returns random outputs of the reported and the unlabelled splits."""
  draw = np.random.default_rng(seed)
  width = len(data.task.labels) or 1
  return {
    split: draw.normal(2, 3, (len(data.rows[split].labels), width)).astype(np.float32)
    for split in (*data.reported, *data.unlabelled)
  }


def read_tsv(path: Path) -> list[list[str]]:
  return [line.split('\t') for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
  'task, predictions, expected',
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
def test_submissions_have_the_values_of_the_server(
  task: str, predictions: list, expected: list[str]
):
  rows = finetune_results.format_submission(find_task(task), np.array(predictions), (0, 1, 2))
  assert rows.decode() == 'index\tprediction\n' + ''.join(
    f'{i}\t{text}\n' for i, text in enumerate(expected)
  )


def test_submissions_are_in_the_order_of_the_official_file():
  rows = finetune_results.format_submission(COLA, np.array([1, 0, 0, 1]), (10, 2, 0, 9))
  assert rows.decode() == 'index\tprediction\n0\t0\n2\t0\n9\t1\n10\t1\n'


def test_each_split_has_a_submission(tiny_tokenizer: Tokenizer, tmp_path: Path):
  numbers = {'test_matched': [3, 2, 1, 0], 'test_mismatched': [0, 1, 2], 'test': [4, 0, 1, 2, 3]}
  sizes = {'train': 12, 'validation_matched': 6, 'validation_mismatched': 5}
  data = prepare('mnli', tiny_tokenizer, tmp_path, **sizes, **numbers)
  spec, outputs = MemberSpec(0, 8, 0, 1e-3), draw_outputs(data, 0)
  results = {'last': EpochResult(1.0, float('nan'), outputs)}
  finetune_results.append_predictions(epath.Path(tmp_path), data, spec, results)
  line = {'epoch_choice': 'last', 'headline': True, 'value': 0.5, 'validation_score': None}
  line |= spec.log_fields()
  finetune_results.write_submission(epath.Path(tmp_path), data, [line], 'last')
  files = {
    'MNLI-m.tsv': ('test_matched', [3, 2, 1, 0]),
    'MNLI-mm.tsv': ('test_mismatched', [0, 1, 2]),
    'AX.tsv': ('ax test', [1, 2, 3, 4, 0]),
  }
  assert {path.name for path in (tmp_path / 'submission').iterdir()} == set(files)
  for name, (split, order) in files.items():
    classes = outputs[split].argmax(-1)[order]
    assert read_tsv(tmp_path / 'submission' / name)[1:] == [
      [str(i), find_task('mnli').labels[number]] for i, number in enumerate(classes)
    ]


def test_predictions_are_stored_with_labels(tiny_tokenizer: Tokenizer, tmp_path: Path):
  data = prepare('stsb', tiny_tokenizer, tmp_path, train=12, validation=6, test=range(4))
  results = {
    choice: EpochResult(1.0, 0.5, draw_outputs(data, seed))
    for seed, choice in enumerate(('best', 'last'))
  }
  spec = MemberSpec(5, None, 7, 1e-3)
  finetune_results.append_predictions(epath.Path(tmp_path), data, spec, results)
  lines = list(run_dir.read_lines(tmp_path / 'predictions.jsonl'))
  assert [(line['epoch_choice'], line['split']) for line in lines] == [
    (choice, split) for choice in ('best', 'last') for split in ('validation', 'test')
  ]
  for line in lines:
    assert line.items() >= {'task': 'stsb', 'member': 5, 'seed': 7, 'pretrained': False}.items()
    outputs = results[line['epoch_choice']].outputs[line['split']]
    assert line['predictions'] == outputs[:, 0].tolist()
  assert lines[0]['labels'] == [0, 1, 2, 3, 4, 5] and 'labels' not in lines[1]


@pytest.mark.parametrize(
  'validation_scores, values, expected',
  [
    ([0.1, 0.3, 0.2, 0.9], [0.5] * 4, 1),  # the last member is from scratch
    ([0.1, 0.3, 0.3, 0.9], [0.5] * 4, 1),
    ([None] * 4, [0.1, 0.2, 0.3, 0.4], 0),
    ([0.1, 0.3, 0.2, 0.9], [0.5, None, 0.5, 0.5], 2),
    ([None, -0.2, -0.1, 0.9], [0.5] * 4, 0),
    ([0.1] * 4, [None, None, None, 0.5], 3),
    ([0.1] * 4, [None] * 4, None),
  ],
)
def test_the_validation_score_chooses_the_member_of_a_submission(
  validation_scores: list,
  values: list,
  expected: int | None,
  tiny_tokenizer: Tokenizer,
  tmp_path: Path,
):
  data = prepare('rte', tiny_tokenizer, tmp_path, train=12, validation=6, test=range(9))
  specs = [MemberSpec(number, 8 if number < 3 else None, number, 1e-3) for number in range(4)]
  for spec in specs:
    results = {
      choice: EpochResult(1.0, 0.5, draw_outputs(data, 2 * spec.member + (choice == 'last')))
      for choice in ('best', 'last')
    }
    finetune_results.append_predictions(epath.Path(tmp_path), data, spec, results)
  lines = [
    {'headline': headline, 'epoch_choice': choice, 'value': value, 'validation_score': score}
    | spec.log_fields()
    for spec, value, score in zip(specs, values, validation_scores, strict=True)
    for choice in ('last', 'best')
    for headline in (False, True)
  ]
  finetune_results.write_submission(epath.Path(tmp_path), data, lines, 'best')
  if expected is None:
    assert not (tmp_path / 'submission').exists()
    return
  classes = draw_outputs(data, 2 * expected)['test'].argmax(-1)
  submitted = [row[1] for row in read_tsv(tmp_path / 'submission' / 'RTE.tsv')[1:]]
  assert submitted == [data.task.labels[index] for index in classes]


def test_a_constant_finite_prediction_is_submitted(
  tiny_tokenizer: Tokenizer, tmp_path: Path, capsys
):
  """Its correlation is undefined; a member with non-finite outputs has no file."""
  data = prepare('stsb', tiny_tokenizer, tmp_path, train=12, validation=6, test=range(4))
  lines = []
  for member, value in enumerate((math.nan, 2.5)):
    spec = MemberSpec(member, 8, member, 1e-3)
    sizes = {split: len(data.rows[split].labels) for split in ('validation', 'test')}
    outputs = {split: np.full((size, 1), value, np.float32) for split, size in sizes.items()}
    results = {'last': EpochResult(1.0, math.nan, outputs)}
    finetune_results.append_predictions(epath.Path(tmp_path), data, spec, results)
    fields = {'headline': True, 'epoch_choice': 'last', 'value': None, 'validation_score': None}
    lines.append(fields | spec.log_fields())
  finetune_results.write_submission(epath.Path(tmp_path), data, lines[:1], 'last')
  assert not (tmp_path / 'submission').exists() and 'finite outputs' in capsys.readouterr().err
  finetune_results.write_submission(epath.Path(tmp_path), data, lines, 'last')
  rows = read_tsv(tmp_path / 'submission' / 'STS-B.tsv')
  assert rows == [['index', 'prediction'], *([str(i), '2.500'] for i in range(4))]


def test_fine_tuning_writes_a_missing_submission(tiny_run: Path, tmp_path: Path):
  numbers = list(range(70))
  order = np.random.default_rng(0).permutation(70).tolist()
  test = [make_rows('rte', 70, numbers)[i] for i in order]
  folder = write_examples(
    tmp_path / 'data', train=make_rows('rte', 32), validation=make_rows('rte', 9), test=test
  )
  config, workdir = submission_config('rte', **{'task.folder': folder}), tmp_path / 'run'
  scores = finetune.finetune(config, tiny_run, workdir, [8])
  predictions = list(run_dir.read_lines(workdir / 'predictions.jsonl'))
  assert [(line['member'], line['split'], len(line['predictions'])) for line in predictions] == [
    (member, *split) for member in (0, 1) for split in (('validation', 9), ('test', 70))
  ]
  for line, score in zip(predictions[::2], scores, strict=True):
    assert np.mean(np.equal(line['predictions'], line['labels'])) == pytest.approx(score['value'])
  lines = read_tsv(workdir / 'submission' / 'RTE.tsv')
  classes = dict(zip(order, predictions[1]['predictions'], strict=True))
  assert lines == [
    ['index', 'prediction'],
    *([str(i), find_task('rte').labels[classes[i]]] for i in numbers),
  ]
  before = read_files(workdir)
  (workdir / 'submission' / 'RTE.tsv').unlink()
  finetune.finetune(config, tiny_run, workdir, [8])
  assert read_files(workdir) == before


def test_a_task_outside_glue_has_no_submission(tiny_tokenizer: Tokenizer, tmp_path: Path):
  data = task_data.prepare_task_data(
    submission_config('microworld/sentiment', **{'task.max_train_examples': 24}),
    64,
    tiny_tokenizer,
  )
  finetune_results.write_submission(epath.Path(tmp_path), data, [], finetune_results.LAST_EPOCH)
  assert not data.unlabelled and not list(tmp_path.iterdir())
