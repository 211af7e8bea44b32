"""Reports over run directories made here: what is read, what is said about it, and that nothing in
it runs or leaks.
"""

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

from minilm_jax.analysis import runs, scores
from minilm_jax.analysis.report import report, tables
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from tests import fake_runs
from tests.html_page import Page, read_csv

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
  """Two pre-training runs, one of them cut short, and a task from the first, pre-trained and from
  scratch.
  """
  folder = tmp_path / 'runs'
  first = fake_runs.write_pretraining_run(folder / 'tiny')
  fake_runs.write_pretraining_run(folder / 'cut', updates=150, finished=False, nan_at=100)
  write_task_run(folder / 'sst2' / 'pretrained', first, [0.70, 0.71, 0.72], pretrained=True)
  write_task_run(folder / 'sst2' / 'scratch', first, [0.60, 0.62, 0.61], pretrained=False)
  return folder


def test_members_of_a_population_are_rows_and_curves_of_their_own(tmp_path: pathlib.Path):
  folder = fake_runs.write_pretraining_run(tmp_path / 'both')
  lines = list(run_dir.read_lines(folder / run_dir.METRICS))
  run_dir.write_lines(
    folder / run_dir.METRICS,
    [{**line, 'member': n, 'loss': line['loss'] + n} for line in lines for n in (0, 1)],
  )
  first, second = runs.summarize_run('both', epath.Path(folder))
  assert (first.name, second.name) == ('both member 0', 'both member 1')
  assert (
    second.validation_loss == pytest.approx(first.validation_loss + 1)
    and first.updates == second.updates == 300
  )
  assert [curve.name for curve in runs.read_losses('both', epath.Path(folder))] == [
    'both member 0',
    'both member 1',
  ]
  report.report([str(folder)], tmp_path / 'report')
  assert 'both member 1' in (tmp_path / 'report' / 'report.html').read_text()


def test_the_report_is_some_files_and_a_page_that_stands_alone(
  home: pathlib.Path, tmp_path: pathlib.Path
):
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
  assert sorted(p.name for p in (tmp_path / 'out' / 'deep').iterdir()) == sorted(written)
  text = written['report.html'].read_text()
  found = Page(text)
  assert 'svg' in found.tags and 'script' not in found.tags
  assert all(address.startswith('#') for address in found.addresses)
  assert 'url(http' not in text and '@import' not in text
  assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text


def test_numbers_on_the_page_are_those_of_the_runs(home: pathlib.Path, tmp_path: pathlib.Path):
  text = Page(report.report([home], tmp_path)['report.html'].read_text()).text
  # By hand: differences 0.10, 0.09, 0.11; mean 0.10, standard error 0.01 / sqrt(3), t(0.975, 2) =
  # 4.3027.
  assert all(number in text for number in ('71.0', '61.0', '+10.0', '[+7.5, +12.5]', 'n = 3'))
  assert '1,250,000' in text and '50.9' in text


def test_the_words_of_the_page_are_the_golden_ones(home: pathlib.Path, tmp_path: pathlib.Path):
  page = report.report([home], tmp_path)['report.html'].read_text()
  # the figures depend on the version of Matplotlib
  page = re.sub(r'<(style|svg).*?</\1>', '', page, flags=re.DOTALL)
  words = re.sub(r'\n+', '\n', html.unescape(re.sub(r'<[^>]+>', '\n', page))).strip() + '\n'
  assert words == GOLDEN.read_text(), f'if the change is wanted, write this to {GOLDEN}:\n{words}'


def test_the_same_runs_give_the_same_bytes(home: pathlib.Path, tmp_path: pathlib.Path):
  first, second = (report.report([home], tmp_path / name) for name in 'ab')
  for name in first:
    assert first[name].read_bytes() == second[name].read_bytes(), name


def test_reports_are_no_runs_and_change_none(home: pathlib.Path):
  before = {path: path.read_bytes() for path in home.rglob('*') if path.is_file()}
  first = report.report([home], home / 'report')['report.html'].read_text()
  assert report.report([home], home / 'report')['report.html'].read_text() == first
  assert {path: path.read_bytes() for path in before} == before


def test_runs_under_way_are_there_and_marked(home: pathlib.Path, tmp_path: pathlib.Path):
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
  assert 'undefined' in (tmp_path / 'report.html').read_text()  # the loss that was not a number
  assert '1 not finished' not in (tmp_path / 'report.html').read_text()
  assert '2 not finished' in (tmp_path / 'report.html').read_text()


HOSTILE = (
  '<script>alert(1)</script>',
  '"><img src=x onerror=alert(1)>',
  '=$\\frac$&amp;$',
  'a\nb\u202egpj.exe\x1b[2J',
  '-\u2066',
)


@pytest.mark.parametrize('kind', ['svg', 'csv', 'html'])
def test_text_from_runs_is_never_markup(kind: str, hostile_report: dict[str, epath.Path]):
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
      found = Page(text)
      assert not found.tags & {'script', 'img'} and not any(
        name.startswith('on') for name in found.attributes
      )


def test_text_from_runs_is_all_there(hostile_report: dict[str, epath.Path]):
  found = Page(hostile_report['report.html'].read_text())
  for text in HOSTILE[:3]:
    assert text in found.text, text
  assert 'b\ufffdgpj.exe\ufffd[2J' in found.text
  assert {path.name for path in hostile_report.values()} >= {
    'confusion-1.svg',
    'scores.svg',
    'loss.svg',
    'learning.svg',
  }


@pytest.fixture(scope='module')
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, epath.Path]:
  """Of runs whose folders, tasks, splits, metrics, devices and reasons to fail are what a stranger
  may call them.
  """
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
        # in ASCII: half a character is one of JSON, none of UTF-8
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


def test_only_pretraining_gives_a_report_without_scores(tmp_path: pathlib.Path):
  fake_runs.write_pretraining_run(tmp_path / 'runs' / 'a')
  text = Page(report.report([tmp_path / 'runs'], tmp_path)['report.html'].read_text()).text
  assert 'There are no scores yet.' in text and 'Scores\n' not in text


def test_only_an_empty_run_gives_a_report_without_a_figure(tmp_path: pathlib.Path):
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
def test_no_runs_is_said_before_anything_is_written(tmp_path: pathlib.Path, make: Any):
  make(tmp_path / 'runs')
  with pytest.raises(InputError, match='runs'):
    report.report([tmp_path / 'runs'], tmp_path / 'out')
  with pytest.raises(InputError):
    report.report([], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_folder_without_a_name_is_not_the_current_one(
  home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.chdir(home)
  assert runs.find_runs(['.'])
  with pytest.raises(InputError, match='its name is empty'):
    runs.find_runs([''])


def test_names_tell_runs_apart_and_no_run_counts_twice(tmp_path: pathlib.Path):
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


def test_scores_of_runs_with_one_name_stay_apart(tmp_path: pathlib.Path):
  for place, value in (('a', 0.9), ('b', 0.1)):
    source = fake_runs.write_pretraining_run(tmp_path / place / 'pretrain')
    write_task_run(tmp_path / place / 'cola', source, [value, value], pretrained=True, task='cola')
  rows = read_csv(report.report([tmp_path], tmp_path / 'out')['scores.csv'])
  means = {row['checkpoint']: float(row['pretrained_mean']) for row in rows}
  assert means == {'a/pretrain': 0.9, 'b/pretrain': 0.1}


@pytest.mark.parametrize(
  'ours, theirs, said',
  [
    ([0.7], [0.6], 'n = 1: no interval'),
    ([0.7, 0.5], [0.6, 0.61], 'the interval contains zero'),
    ([0.7, 0.71, 0.72], [0.6, 0.61], 'Welch, n = 3 and 2'),
    ([0.7, 0.71], [], 'nothing from scratch to compare with'),
    ([], [0.7, 0.71], 'nothing pre-trained to compare with'),
    ([math.nan, math.nan], [0.7, 0.71], 'nothing pre-trained to compare with'),
  ],
)
def test_a_sentence_claims_no_more_than_its_numbers(
  tmp_path: pathlib.Path, ours: list[float], theirs: list[float], said: str
):
  source = fake_runs.write_pretraining_run(tmp_path / 'runs' / 'tiny')
  for name, values, pretrained in (('a', ours, True), ('b', theirs, False)):
    write_task_run(tmp_path / 'runs' / name, source, values, pretrained=pretrained)
  (sentence,) = tables.sentences(
    scores.score_table(runs.read_scores(runs.find_runs([tmp_path / 'runs'])))
  )
  assert said in sentence


def test_the_terminal_shows_every_number_whole(
  home: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
  write_task_run(
    home / 'cola',
    home / 'tiny',
    [0.0, math.nan, 0.0],
    pretrained=False,
    task='cola[bold]',
    collapsed=True,
  )
  report.print_tables(list(runs.read_scores(runs.find_runs([home]))))
  out, err = capsys.readouterr()
  assert err == '' and 'cola[bold]' in out
  assert (
    '71.0 ± 1.0 (n = 3)' in out
    and '+10.0' in out
    and '[+7.5, +12.5]' in out
    and '3 collapsed' in out
    and '1 undefined' in out
  )


def test_confusion_matrices_are_drawn_when_asked(home: pathlib.Path, tmp_path: pathlib.Path):
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
  found = Page(written['report.html'].read_text())
  assert 'Confusion' in found.text and all(address.startswith('#') for address in found.addresses)
  assert 'confusion-1.svg' not in report.report([home], tmp_path / 'c')


def test_minimal_pairs_have_a_table_by_phenomenon(home: pathlib.Path, tmp_path: pathlib.Path):
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


def test_a_run_of_many_fine_tuned_models_is_one_row(home: pathlib.Path):
  (row,) = runs.summarize_run('task', epath.Path(home / 'sst2' / 'pretrained'))
  assert (row.name, row.scores, row.seconds, row.evaluated) == ('task', 3, 5.0, False)


def test_averages_and_steps_reach_the_page(home: pathlib.Path, tmp_path: pathlib.Path):
  folder = write_task_run(home / 'rte', home / 'tiny', [0.5, 0.6, 0.7], pretrained=True, task='rte')
  lines = list(run_dir.read_lines(folder / run_dir.SCORES))
  run_dir.write_lines(
    folder / run_dir.SCORES, [*lines, *({**one, 'checkpoint_step': 300} for one in lines)]
  )
  written = report.report([home], tmp_path)
  assert {'trajectory.svg', 'trajectory.png'} < set(written)
  (average,) = read_csv(written['averages.csv'])
  assert (average['tasks'], average['step'], average['pretrained_n']) == ('sst2 rte', '100', '3')
  assert float(average['pretrained_mean']) == pytest.approx((0.71 + 0.6) / 2)
  text = Page(written['report.html'].read_text()).text
  assert (
    'Averages' in text
    and 'Along pre-training' in text
    and 'Protocol: 3 seeds; nothing held out' in text
  )


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
  """Six models of three widths and two depths, all fine-tuned on two tasks and their arm from
  scratch; one point failed.
  """
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
        (tuned / run_dir.METRICS).unlink()  # its curves take long to draw
  (folder / 'h512').mkdir()
  files.write_json(
    folder / 'h512' / run_dir.FAILURE,
    {'asked': 'memory for h 512', 'found': 'too little <b>', 'remedy': 'x'},
  )
  return folder


@pytest.fixture(scope='module')
def grid_written(grid: pathlib.Path) -> dict[str, epath.Path]:
  """Their report, where it goes without a workdir."""
  return report.report([grid], draws=5)


def test_several_models_are_a_grid_with_its_files_and_sections(
  grid: pathlib.Path, grid_written: dict[str, epath.Path]
):
  written = grid_written
  assert GRID | {f'{name}.{kind}' for name in ('against', 'gain') for kind in ('svg', 'png')} < set(
    written
  )
  found = Page(written['report.html'].read_text())
  assert 'How do loss, compute, shape and score hang together in these 6 models' in found.text
  assert found.headings == [
    'Loss against compute',
    'Laws',
    'Cost-effectiveness',
    'Perplexity and scores',
    'What pre-training adds, by size',
    'Depth',
    'Models',
    'Points that failed',
    'Left out',
    'Scores',
    'Averages',
    'Loss',
    'Runs',
  ]
  assert 'h512: memory for h 512: too little <b>' in found.text and 'script' not in found.tags
  assert all(address.startswith('#') for address in found.addresses)
  assert 'title' in found.tags and 'h64-l2: e 32, h 64, i 64, a 1, l 2' in found.text

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


def test_a_grid_gives_the_same_bytes_and_its_report_is_no_run(
  grid: pathlib.Path, grid_written: dict[str, epath.Path], tmp_path: pathlib.Path
):
  assert {path.parent for path in grid_written.values()} == {epath.Path(grid) / 'report'}
  for name, path in report.report([grid], tmp_path, draws=5).items():
    assert path.read_bytes() == grid_written[name].read_bytes(), name


def test_unfinished_runs_count_when_asked(tmp_path: pathlib.Path):
  for hidden in (32, 64):
    fake_runs.write_scaling_run(
      tmp_path / 'runs' / f'h{hidden}', hidden=hidden, finished=False, updates=600
    )
  without = report.report([tmp_path / 'runs'], tmp_path / 'a', draws=5)
  assert read_csv(without['frontier.csv']) == [] and 'plane.svg' not in without
  text = Page(without['report.html'].read_text()).text
  assert 'no run has reached the end of its schedule' in text and 'unfinished' in text
  assert (
    len(
      read_csv(
        report.report([tmp_path / 'runs'], tmp_path / 'b', draws=5, unfinished=True)['frontier.csv']
      )
    )
    > 3
  )


@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_models_leave_parts_out_and_say_why(tmp_path: pathlib.Path, count: int):
  for n in range(count):
    source = fake_runs.write_scaling_run(tmp_path / 'runs' / f'r{n}', hidden=32 * 2**n)
    write_task_run(tmp_path / 'runs' / 'task' / str(n), source, [0.5 + n / 10], pretrained=True)
  fake_runs.write_scaling_run(tmp_path / 'runs' / 'early', updates=0, finished=False)
  written = report.report([tmp_path / 'runs'], tmp_path / 'out', draws=5)
  text = Page(written['report.html'].read_text()).text
  assert (GRID < set(written)) == (count > 1) and 'early: no validation loss yet' in text
  assert ('one model was evaluated, and it needs 2' in text) == (count == 1)
  if count > 1:
    assert f'{count} models, and fewer than 4 say nothing' in text


def test_a_member_that_became_a_run_is_in_no_table_twice(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'both', members=2)
  fake_runs.write_scaling_run(folder / 'member-1', seed=1)
  written = report.report([tmp_path / 'runs'], tmp_path / 'out', draws=5)
  for name in ('runs.csv', 'models.csv'):
    assert [row['name'] for row in read_csv(written[name])] == ['both member 0', 'both/member-1']


def test_a_logged_table_gives_the_same_study(tmp_path: pathlib.Path):
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
  found = Page(written['report.html'].read_text())
  assert 'in these 2 models' in found.text and '<b>' in found.text and 'b' not in found.tags
  assert 'There are no scores yet' not in found.text and 'No run has logged' not in found.text
  assert [row['name'] for row in read_csv(written['runs.csv'])] == ['$a', '<b>']
  (step,) = read_csv(written['cost.csv'])
  gain = (math.exp(3) - math.exp(2.8)) / (64e6 * 800 * 256 / 1e15)
  assert float(step['per_1e15']) == pytest.approx(gain)
  one = fake_runs.write_log_table(tmp_path / 'one.csv', rows[:4])
  assert set(report.report([], tmp_path / 'one', table=one)) == {'report.html', 'runs.csv'}


@pytest.mark.parametrize(
  'asked, said',
  [
    ({'folders': ['x']}, 'folders beside it'),
    ({'workdir': ''}, 'no --workdir'),
    ({'confusion': True}, 'no predictions'),
    ({'draws': 0}, '0 draws'),
  ],
)
def test_what_does_not_go_with_a_logged_table_is_refused(
  tmp_path: pathlib.Path, asked: dict[str, Any], said: str
):
  path = fake_runs.write_log_table(tmp_path / 'x.csv', [fake_runs.make_log_row()])
  with pytest.raises(InputError, match=said):
    report.report(**{'folders': [], 'workdir': tmp_path / 'out', 'table': path, **asked})
  assert not (tmp_path / 'out').exists()
