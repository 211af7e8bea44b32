"""Tests of `report`: files, numbers and answers of reports, and safety against hostile text."""

import csv
import html
import io
import json
import math
import pathlib
import re
from typing import Any

import pytest
from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.report import report, tables
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from tests import fake_runs
from tests.html_page import Page, check_rules, read_csv

GOLDEN = pathlib.Path(fake_runs.__file__).parent / 'golden' / 'report.txt'


def write_task_run(
  folder: pathlib.Path,
  source: pathlib.Path,
  values: list[float],
  *,
  pretrained: bool,
  task: str = 'sst2',
  collapsed: bool = False,
) -> pathlib.Path:
  fake_runs.write_finetune_run(
    folder,
    source,
    values,
    pretrained,
    task,
    examples=872,
    majority=0.509,
    constant_prediction=collapsed,
  )
  return fake_runs.write_finetune_log(folder)


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
  """Returns two pre-training runs, one of them unfinished, and a task with both arms."""
  folder = tmp_path / 'runs'
  first = fake_runs.write_pretraining_run(folder / 'tiny')
  fake_runs.write_pretraining_run(folder / 'cut', updates=150, finished=False, nan_at=100)
  write_task_run(folder / 'sst2' / 'pretrained', first, [0.70, 0.71, 0.72], pretrained=True)
  write_task_run(folder / 'sst2' / 'scratch', first, [0.60, 0.62, 0.61], pretrained=False)
  return folder


def test_report_has_files_and_a_standalone_page(home: pathlib.Path, tmp_path: pathlib.Path):
  written = report.report([home], tmp_path / 'out' / 'deep')
  assert set(written) == {
    'report.html',
    'scores.csv',
    'averages.csv',
    'runs.csv',
    *(
      f'{name}.{kind}'
      for name in ('loss', 'scores', 'learning', 'training')
      for kind in ('svg', 'png')
    ),
  }
  names = {path.name for path in (tmp_path / 'out' / 'deep').iterdir()}
  assert names == {*written, report.FILE_LIST}
  text = written['report.html'].read_text()
  page = Page(text)
  assert 'svg' in page.tags and 'script' not in page.tags
  assert all(address.startswith('#') for address in page.addresses)
  assert 'url(http' not in text and '@import' not in text
  assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text


def test_page_has_the_numbers_of_the_runs(home: pathlib.Path, tmp_path: pathlib.Path):
  text = Page(report.report([home], tmp_path)['report.html'].read_text()).text
  # By hand: differences 0.10, 0.09, 0.11; mean 0.10, standard error 0.01 / sqrt(3), t(0.975, 2) =
  # 4.3027.
  assert all(number in text for number in ('71.0', '61.0', '+10.0', '[+7.5, +12.5]', 'n = 3'))
  assert '1,250,000' in text and '50.9' in text


def test_page_has_the_golden_text(home: pathlib.Path, tmp_path: pathlib.Path):
  page = report.report([home], tmp_path)['report.html'].read_text()
  answers = check_rules(page)
  assert [verdict for _, verdict, _ in answers] == ['yes', '4.249 nats', 'no']
  assert '+10.0 points [+7.5, +12.5]' in answers[0][2]
  # Figures depend on the version of Matplotlib.
  page = re.sub(r'<(style|svg).*?</\1>', '', page, flags=re.DOTALL)
  text = re.sub(r'\s*\n\s*', '\n', html.unescape(re.sub(r'<[^>]+>', '\n', page))).strip() + '\n'
  assert text == GOLDEN.read_text(), f'if the change is intended, write this to {GOLDEN}:\n{text}'


def test_reports_change_no_run_are_not_runs_and_have_equal_bytes(home: pathlib.Path):
  before = {path: path.read_bytes() for path in home.rglob('*') if path.is_file()}
  first = {name: path.read_bytes() for name, path in report.report([home]).items()}
  again = {name: path.read_bytes() for name, path in report.report([home]).items()}
  assert again == first and {path: path.read_bytes() for path in before} == before


def test_a_continued_run_names_its_origin(home: pathlib.Path, tmp_path: pathlib.Path):
  fake_runs.continue_run(fake_runs.write_pretraining_run(home / 'more'), 'runs/<tiny>', 300)
  written = report.report([home], tmp_path)
  rows = {row['name']: row for row in read_csv(written['runs.csv'])}
  assert rows['more']['origin'] == 'runs/<tiny>@300' and rows['more']['updates'] == '300'
  assert {rows[name]['origin'] for name in ('tiny', 'cut', 'sst2/pretrained')} == {''}
  text = Page(written['report.html'].read_text()).text
  assert 'from runs/<tiny>@300' in text and tables.ORIGIN_NOTE in text


def test_unfinished_runs_are_marked(home: pathlib.Path, tmp_path: pathlib.Path):
  (home / 'new').mkdir()
  files.write_json(home / 'new' / run_dir.CONFIG, {'kind': 'pretrain'})
  with (home / 'cut' / run_dir.METRICS).open('a') as file:
    file.write('{"step": 200, "spl')  # a crash
  rows = {row['name']: row for row in read_csv(report.report([home], tmp_path)['runs.csv'])}
  assert {name: row['state'] for name, row in rows.items()} == {
    'tiny': 'finished',
    'cut': 'incomplete',
    'new': 'empty',
    'sst2/pretrained': 'finished',
    'sst2/scratch': 'finished',
  }
  assert rows['cut']['updates'] == '150' and rows['cut']['validation_loss'] == ''
  assert rows['sst2/scratch']['seconds'] == '5.0'  # all seeds share a clock
  page = (tmp_path / 'report.html').read_text()
  assert 'undefined' in page  # the loss of nan
  assert check_rules(page)[-1][1:] == ('no', '3 of 5')


HOSTILE = (
  '<script>alert(1)</script>',
  '"><img src=x onerror=alert(1)>',
  '=$\\frac$&amp;$',
  'a\nb\u202egpj.exe\x1b[2J',
  '-\u2066',
)


@pytest.mark.parametrize('kind', ['svg', 'csv', 'html'])
def test_text_of_runs_is_escaped(kind: str, hostile_report: dict[str, epath.Path]):
  for name, path in hostile_report.items():
    if not name.endswith(kind):
      continue
    text = path.read_text()
    assert not set(text) & {'\u202e', '\u2066', '\x1b'}
    if kind == 'csv':
      assert not any(
        cell.startswith(('=', '+', '@', '-\ufffd'))
        for row in csv.reader(io.StringIO(text))
        for cell in row
      )
      assert name != 'scores.csv' or "'=$" in text
    else:
      page = Page(text)
      assert not page.tags & {'script', 'img'}
      assert not any(name.startswith('on') for name in page.attributes)


def test_text_of_runs_is_complete(hostile_report: dict[str, epath.Path]):
  page = Page(hostile_report['report.html'].read_text())
  for text in HOSTILE[:3]:
    assert text in page.text, text
  assert 'b\ufffdgpj.exe\ufffd[2J' in page.text
  assert {path.name for path in hostile_report.values()} >= {
    'confusion-1.svg',
    'scores.svg',
    'loss.svg',
    'learning.svg',
  }


@pytest.fixture(scope='module')
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, epath.Path]:
  """Returns the report on runs with hostile folders, tasks, splits, metrics, devices and errors."""
  home = tmp_path_factory.mktemp('hostile')
  for number, text in enumerate(HOSTILE):
    plain = text.replace('/', '_')
    first = fake_runs.write_pretraining_run(home / 'runs' / plain, updates=100)
    files.write_json(first / run_dir.MANIFEST, {'parameters': {'total': 1}, 'devices': [plain]})
    task = write_task_run(
      home / 'runs' / f'task-{number}', first, [0.5, 0.6], pretrained=True, task=''
    )
    lines = [json.loads(line) for line in (task / run_dir.SCORES).read_text().splitlines()]
    with (
      (task / run_dir.SCORES).open('w') as scores,
      (task / run_dir.PREDICTIONS).open('w') as predictions,
    ):
      for line in lines:
        names = {'task': text, 'split': 'validation' if number % 2 else text}
        # JSON escapes lone surrogates, UTF-8 cannot encode them
        scores.write(json.dumps(line | names) + '\n')
        predictions.write(
          json.dumps(line | names | {'labels': [0, 1], 'predictions': [1, 1]}) + '\n'
        )
    failed = home / 'runs' / f'failed-{number}'
    failed.mkdir()
    (failed / run_dir.FAILURE).write_text(
      json.dumps({'asked': text, 'found': text, 'remedy': text})
    )
  return report.report([home / 'runs'], home / 'out', confusion=True, draws=20)


def test_pretraining_alone_has_a_report_without_scores(tmp_path: pathlib.Path):
  fake_runs.write_pretraining_run(tmp_path / 'runs' / 'a')
  text = report.report([tmp_path / 'runs'], tmp_path)['report.html'].read_text()
  assert [verdict for _, verdict, _ in check_rules(text)] == ['4.249 nats', 'yes']
  assert 'Scores' not in Page(text).headings


def test_empty_run_has_a_report_without_figures(tmp_path: pathlib.Path):
  run_dir.open_run(tmp_path / 'runs' / 'a', {'kind': 'pretrain'})
  assert set(report.report([tmp_path / 'runs'], tmp_path)) == {
    'report.html',
    'scores.csv',
    'averages.csv',
    'runs.csv',
  }


@pytest.mark.parametrize(
  'make',
  [
    lambda p: None,
    lambda p: p.mkdir(),
    lambda p: p.write_text('a file'),
    lambda p: run_dir.open_run(p / 'corpus', {'kind': 'corpus'}),
  ],
)
def test_missing_runs_are_refused_before_writing(tmp_path: pathlib.Path, make: Any):
  make(tmp_path / 'runs')
  with pytest.raises(InputError, match='runs'):
    report.report([tmp_path / 'runs'], tmp_path / 'out')
  with pytest.raises(InputError):
    report.report([], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_empty_folder_name_is_refused(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.chdir(home)
  assert runs.find_runs(['.'])
  with pytest.raises(InputError, match='empty'):
    runs.find_runs([''])


def test_run_names_are_unique_and_runs_count_once(tmp_path: pathlib.Path):
  for place in 'ab':
    fake_runs.write_pretraining_run(tmp_path / place / 'tiny')
  assert (
    len(runs.find_runs([tmp_path]))
    == len(runs.find_runs([tmp_path, tmp_path / 'a', tmp_path / 'a' / 'tiny']))
    == 2
  )
  assert set(runs.find_runs([tmp_path])) == {'a/tiny', 'b/tiny'}
  assert set(runs.find_runs([tmp_path / 'a' / 'tiny'])) == {'tiny'}
  names = runs.find_runs([tmp_path / 'a', tmp_path / 'b'])
  assert len(names) == 2 and all(name.endswith('tiny') for name in names)


def test_scores_of_equally_named_runs_are_separate(tmp_path: pathlib.Path):
  for place, value in (('a', 0.9), ('b', 0.1)):
    source = fake_runs.write_pretraining_run(tmp_path / place / 'pretrain')
    write_task_run(tmp_path / place / 'cola', source, [value, value], pretrained=True, task='cola')
  rows = read_csv(report.report([tmp_path], tmp_path / 'out')['scores.csv'])
  means = {row['checkpoint']: float(row['pretrained_mean']) for row in rows}
  assert means == {'a/pretrain': 0.9, 'b/pretrain': 0.1}


def test_terminal_has_complete_numbers(home: pathlib.Path, capsys: pytest.CaptureFixture[str]):
  write_task_run(
    home / 'cola',
    home / 'tiny',
    [0.0, math.nan, 0.0],
    pretrained=False,
    task='cola[bold]',
    collapsed=True,
  )
  tables.print_scores(list(runs.read_scores(runs.find_runs([home]))))
  out, err = capsys.readouterr()
  assert err == '' and 'cola[bold]' in out
  assert (
    '71.0 ± 1.0 (n = 3)' in out
    and '+10.0' in out
    and '[+7.5, +12.5]' in out
    and '3 collapsed' in out
    and '1 undefined' in out
  )


def test_confusion_matrices_need_their_flag_and_predictions(
  home: pathlib.Path, tmp_path: pathlib.Path
):
  with pytest.raises(InputError, match='predictions'):
    report.report([home], tmp_path / 'a', confusion=True)
  assert not (tmp_path / 'a').exists()
  for place, arm in (('pretrained', True), ('scratch', False)):
    run_dir.write_lines(
      home / 'sst2' / place / run_dir.PREDICTIONS,
      [
        {
          'task': 'sst2',
          'split': 'validation',
          'pretrained': arm,
          'checkpoint_step': 100 if arm else None,
          'seed': 0,
          'learning_rate': 1e-4,
          'epoch_choice': 'last',
          'predictions': [0, 1, 1],
          'labels': [0, 0, 1],
        }
      ],
    )
  written = report.report([home], tmp_path / 'b', confusion=True)
  assert {'confusion-1.svg', 'confusion-1.png'} < set(written)
  page = Page(written['report.html'].read_text())
  assert 'Confusion matrices' in page.headings
  assert all(address.startswith('#') for address in page.addresses)
  assert 'confusion-1.svg' not in report.report([home], tmp_path / 'c')


def test_minimal_pairs_have_a_table_of_phenomena(home: pathlib.Path, tmp_path: pathlib.Path):
  run_dir.open_run(home / 'pairs', {'kind': 'evaluate', 'checkpoint': str(home / 'tiny')})
  for split, value in (('all', 0.61), ('ellipsis', 0.62), ('islands', 0.63)):
    run_dir.append_line(
      home / 'pairs' / run_dir.SCORES,
      fake_runs.make_score_line(
        value,
        task='blimp',
        metric='accuracy',
        split=split,
        headline=split == 'all',
        majority=0.5,
        frequency=0.57,
        learning_rate=None,
        epoch=None,
        train_examples=0,
      ),
    )
  written = report.report([home], tmp_path)
  text = Page(written['report.html'].read_text()).text
  assert text.index('Phenomena') < text.index('ellipsis') < text.index('62.0') and '57.0' in text
  assert {row['checkpoint'] for row in read_csv(written['scores.csv'])} == {'tiny'}
  assert {row['name']: row['kind'] for row in read_csv(written['runs.csv'])}['pairs'] == 'evaluate'


def test_fine_tuning_run_is_one_row(home: pathlib.Path):
  (row,) = runs.summarize_run('task', epath.Path(home / 'sst2' / 'pretrained'))
  assert (row.name, row.scores, row.seconds, row.evaluated) == ('task', 3, 5.0, False)


def test_page_has_averages_and_checkpoint_steps(home: pathlib.Path, tmp_path: pathlib.Path):
  folder = write_task_run(home / 'rte', home / 'tiny', [0.5, 0.6, 0.7], pretrained=True, task='rte')
  lines = list(run_dir.read_lines(folder / run_dir.SCORES))
  run_dir.write_lines(
    folder / run_dir.SCORES, [*lines, *({**line, 'checkpoint_step': 300} for line in lines)]
  )
  written = report.report([home], tmp_path)
  assert {'trajectory.svg', 'trajectory.png'} < set(written)
  (average,) = read_csv(written['averages.csv'])
  assert (average['tasks'], average['step'], average['pretrained_n']) == ('sst2 rte', '100', '3')
  assert float(average['pretrained_mean']) == pytest.approx((0.71 + 0.6) / 2)
  page = Page(written['report.html'].read_text())
  assert {'Averages', 'Scores during pre-training'} <= set(page.headings)
  assert 'Protocol: 3 seeds' in page.text


GRID = {
  'frontier.csv',
  'fits.json',
  'cost.csv',
  'correlation.csv',
  'depth.csv',
  'models.csv',
  'compute.svg',
  'compute.png',
  'plane.svg',
  'plane.png',
}


@pytest.fixture(scope='module')
def grid(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns six models of three widths and two depths with both arms of two tasks, and a failure."""
  folder = tmp_path_factory.mktemp('grid') / 'runs'
  for n, (hidden, layers) in enumerate((h, layers) for h in (32, 64, 256) for layers in (1, 2)):
    source = fake_runs.write_scaling_run(
      folder / f'h{hidden}-l{layers}', hidden=hidden, layers=layers, seed=n
    )
    for task, base in (('cola', 0.2), ('sst2', 0.6)):
      for arm, values in ((True, [base + n / 50, base + n / 40]), (False, [base, base + 0.01])):
        tuned = write_task_run(
          folder / task / f'{n}-{arm}', source, values, pretrained=arm, task=task
        )
        (tuned / run_dir.METRICS).unlink()  # saves the time of drawing curves
  (folder / 'h512').mkdir()
  files.write_json(
    folder / 'h512' / run_dir.FAILURE,
    {'asked': 'memory for h 512', 'found': 'too little <b>', 'remedy': 'x'},
  )
  return folder


@pytest.fixture(scope='module')
def grid_written(grid: pathlib.Path) -> dict[str, epath.Path]:
  """Returns the report on the grid in its default directory."""
  return report.report([grid], draws=5)


def test_scaling_study_has_files_and_sections(
  grid: pathlib.Path, grid_written: dict[str, epath.Path]
):
  written = grid_written
  assert GRID | {f'{name}.{kind}' for name in ('against', 'gain') for kind in ('svg', 'png')} < set(
    written
  )
  text = written['report.html'].read_text()
  page, answers = Page(text), check_rules(text)
  assert len(answers) == 8 and answers[-3][1] == 'in 6 of 12' and answers[-1][2] == '30 of 30'
  assert page.headings == [
    'Loss by compute',
    'Perplexity by cost',
    'Scores by perplexity',
    'Gain of pre-training by size',
    'Scores by task',
    'Pre-training loss',
    'Fitted laws',
    'Cost-effectiveness',
    'Correlations',
    'Depth',
    'Pairs of depths',
    'Frontier',
    'Lower envelope',
    'Models',
    'Failed points',
    'Left out',
    'Scores',
    'Averages',
    'Runs',
    'Notes',
  ]
  assert 'h512: memory for h 512: too little <b>' in page.text and 'script' not in page.tags
  assert all(address.startswith('#') for address in page.addresses)
  assert 'title' in page.tags and 'h64-l2: e 32, h 64, i 64, a 1, l 2' in page.text

  frontier, models = read_csv(written['frontier.csv']), read_csv(written['models.csv'])
  assert list(frontier[0]) == ['flops', 'loss', 'run', 'tokens', 'parameters']
  assert len(models) == 6 and {row['run'] for row in frontier} <= {row['name'] for row in models}
  for row in models:
    manifest = json.loads((grid / row['name'] / run_dir.MANIFEST).read_text())
    assert int(row['parameters']) == manifest['parameters']['total']
    assert float(row['actual_flops']) == pytest.approx(
      manifest['flops_per_row']['actual'] * 800 * 256
    )
  fits = json.loads(written['fits.json'].read_text())
  assert fits and {'form', 'constants', 'intervals', 'r2', 'n', 'bic', 'method', 'count'} <= set(
    fits[0]
  )
  assert {
    (row['factor'], row['from_runs'], row['to_runs']) for row in read_csv(written['cost.csv'])
  } == {
    *(('hidden', f'h{a}-l{n}', f'h{b}-l{n}') for a, b in ((32, 64), (64, 256)) for n in (1, 2)),
    *(('layers', f'h{h}-l1', f'h{h}-l2') for h in (32, 64, 256)),
  }
  correlations = read_csv(written['correlation.csv'])
  assert {row['series'].split(',')[0] for row in correlations} == {
    'cola',
    'sst2',
    'average of cola',
  }
  assert all(
    row['models'] == '6' and -1 <= float(row['pearson_low']) <= float(row['pearson_value']) <= 1
    for row in correlations
  )


def test_report_on_a_grid_has_equal_bytes_and_is_not_a_run(
  grid: pathlib.Path, grid_written: dict[str, epath.Path], tmp_path: pathlib.Path
):
  assert {path.parent for path in grid_written.values()} == {epath.Path(grid) / 'report'}
  for name, path in report.report([grid], tmp_path, draws=5).items():
    assert path.read_bytes() == grid_written[name].read_bytes(), name


def test_four_checkpoints_of_a_run_have_a_correlation(tmp_path: pathlib.Path):
  """Scores of the first run rise at each step, those of the second fall at the last.

  RTE has a score at the first step alone. The average with RTE is not that of the end of a run.
  """
  home = tmp_path / 'runs'
  for hidden, values in ((32, (0.1, 0.2, 0.3, 0.4)), (64, (0.1, 0.2, 0.4, 0.3))):
    source = fake_runs.write_scaling_run(home / f'h{hidden}', hidden=hidden)
    for task, steps in (('cola', (200, 400, 600, 800)), ('mrpc', (200, 400)), ('rte', (200,))):
      folder = write_task_run(home / f'{task}-{hidden}', source, [0.4], pretrained=True, task=task)
      (line,) = run_dir.read_lines(folder / run_dir.SCORES)
      run_dir.write_lines(
        folder / run_dir.SCORES,
        [
          line | {'checkpoint_step': step, 'value': value}
          for step, value in zip(steps, values, strict=False)
        ],
      )
  written = report.report([home], tmp_path / 'out', draws=5)
  rows = {row['run']: row for row in read_csv(written['training_correlation.csv'])}
  assert set(rows) == {'h32', 'h64'} and {row['checkpoints'] for row in rows.values()} == {'4'}
  assert float(rows['h32']['spearman']) == pytest.approx(-1)
  assert float(rows['h64']['spearman']) == pytest.approx(-0.8)  # 1 - 6 * 2 / (4 * 15)
  page = Page(written['report.html'].read_text())
  assert 'Correlations during training' in page.headings and 'in 2 of 2 runs' in page.text
  assert 'average of cola, mrpc' in page.text and 'average of cola, mrpc, rte' not in page.text


def test_unfinished_runs_count_with_their_flag(tmp_path: pathlib.Path):
  for hidden in (32, 64):
    fake_runs.write_scaling_run(
      tmp_path / 'runs' / f'h{hidden}', hidden=hidden, finished=False, updates=600
    )
  without = report.report([tmp_path / 'runs'], tmp_path / 'a', draws=5)
  assert read_csv(without['frontier.csv']) == [] and 'plane.svg' not in without
  assert 'cost-effectiveness' in without['report.html'].read_text()  # left out
  assert (
    len(
      read_csv(
        report.report([tmp_path / 'runs'], tmp_path / 'b', draws=5, unfinished=True)['frontier.csv']
      )
    )
    > 3
  )


@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_models_leave_out_results(tmp_path: pathlib.Path, count: int):
  for n in range(count):
    source = fake_runs.write_scaling_run(tmp_path / 'runs' / f'r{n}', hidden=32 * 2**n)
    write_task_run(tmp_path / 'runs' / 'task' / str(n), source, [0.5 + n / 10], pretrained=True)
  fake_runs.write_scaling_run(tmp_path / 'runs' / 'early', updates=0, finished=False)
  written = report.report([tmp_path / 'runs'], tmp_path / 'out', draws=5)
  text = written['report.html'].read_text()
  check_rules(text)
  assert (GRID < set(written)) == (count > 1) and 'early: ' in text
  assert ('scaling study: 2 ' in text) == (count == 1)


def test_logged_table_has_a_scaling_study(tmp_path: pathlib.Path):
  rows = [
    fake_runs.make_log_row(
      name,
      updates,
      loss + 20 / updates,
      **{
        'test/loss': loss,
        'intermediate_size': width,
        'FLOPS Hoffman per sequence': 9e8 + 1e6 * width,
      },
    )
    for name, loss, width in (('$a', 3.0, 64), ('<b>', 2.8, 128))
    for updates in (100, 200, 400, 800)
  ]
  path = fake_runs.write_log_table(tmp_path / 'eval.csv.gz', rows)
  written = report.report([], tmp_path / 'out', table=path, draws=5)
  assert GRID - {'models.csv'} | {'report.html', 'runs.csv'} == set(written)
  text = written['report.html'].read_text()
  page = Page(text)
  assert check_rules(text) and '<b>' in page.text and 'b' not in page.tags
  assert not {'Scores', 'Pre-training loss'} & set(page.headings)
  assert [row['name'] for row in read_csv(written['runs.csv'])] == ['$a', '<b>']
  (step,) = read_csv(written['cost.csv'])
  gain = (math.exp(3) - math.exp(2.8)) / (64e6 * 800 * 256 / 1e15)
  assert float(step['per_1e15']) == pytest.approx(gain)
  single = fake_runs.write_log_table(tmp_path / 'single.csv', rows[:4])
  written = report.report([], tmp_path / 'single', table=single)
  assert set(written) == {'report.html', 'runs.csv'}


@pytest.mark.parametrize('is_listed', [True, False])
def test_a_report_removes_the_files_of_an_earlier_report_alone(
  tmp_path: pathlib.Path, is_listed: bool
):
  out, table = tmp_path / 'out', tmp_path / 'x.csv'
  rows = [
    fake_runs.make_log_row(name, updates, loss + 20 / updates, **{'test/loss': loss})
    for name, loss in (('a', 3.0), ('b', 2.8))
    for updates in (100, 200, 400, 800)
  ]
  first = report.report([], out, table=fake_runs.write_log_table(table, rows), draws=5)
  assert 'frontier.csv' in first and 'compute.svg' in first
  foreign = {'notes.txt': 'mine', 'data.csv': 'mine', 'compute.pdf': 'mine'}
  for name, text in foreign.items():
    (out / name).write_text(text)
  if not is_listed:  # a report of an earlier version
    (out / report.FILE_LIST).unlink()
  second = report.report([], out, table=fake_runs.write_log_table(table, rows[:4]))
  names = {path.name for path in out.iterdir()}
  assert names == {*second, *foreign, report.FILE_LIST} and not {'frontier.csv'} & names
  assert all((out / name).read_text() == text for name, text in foreign.items())


@pytest.mark.parametrize('content', ['{', '[]', '{"files": ["../x.csv", "/etc/x.csv", "sub"]}'])
def test_a_damaged_list_of_files_removes_nothing(tmp_path: pathlib.Path, content: str):
  table = fake_runs.write_log_table(tmp_path / 'x.csv', [fake_runs.make_log_row()])
  before = table.read_bytes()
  (tmp_path / 'out' / 'sub').mkdir(parents=True)
  (tmp_path / 'out' / 'sub' / 'models.csv').touch()
  (tmp_path / 'out' / report.FILE_LIST).write_text(content)
  report.report([], tmp_path / 'out', table=table)
  assert table.read_bytes() == before and (tmp_path / 'out' / 'sub' / 'models.csv').exists()


@pytest.mark.parametrize('losses', [(3.2, 2.6, 2.0), (2.0, 2.6, 3.2), (2000.0, 1000.0, 999.0)])
def test_runs_of_nearly_equal_compute_have_a_page_without_their_laws(
  tmp_path: pathlib.Path, losses: tuple[float, ...]
):
  rows = [
    fake_runs.make_log_row(name, updates, value)
    for name, last, loss in zip('abc', (1000, 1005, 1010), losses, strict=True)
    for updates, value in ((500, 2 * losses[0]), (last, loss))
  ]
  path = fake_runs.write_log_table(tmp_path / 'eval.csv', rows)
  written = report.report([], tmp_path / 'out', table=path, draws=5)
  assert 'a power law: a prefactor of e^' in Page(written['report.html'].read_text()).text
  assert [row['name'] for row in read_csv(written['runs.csv'])] == ['a', 'b', 'c']
  for fit in json.loads(written['fits.json'].read_text()):
    assert fit['name'] != 'ends of runs'


@pytest.mark.parametrize(
  'options, value',
  [
    ({'folders': ['x']}, 'x'),
    ({'workdir': ''}, '--workdir'),
    ({'confusion': True}, '--confusion'),
    ({'draws': 0}, '--bootstrap_samples=0'),
  ],
)
def test_unusable_options_of_a_logged_table_are_refused(
  tmp_path: pathlib.Path, options: dict[str, Any], value: str
):
  path = fake_runs.write_log_table(tmp_path / 'x.csv', [fake_runs.make_log_row()])
  with pytest.raises(InputError, match=value):
    report.report(**{'folders': [], 'workdir': tmp_path / 'out', 'table': path, **options})
  assert not (tmp_path / 'out').exists()
