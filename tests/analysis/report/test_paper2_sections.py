"""Tests of `paper2_sections`: committees in a report have the numbers of committee.json."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.paper2 import claims, committee_study, pretraining_gap
from minilm_jax.analysis.report import paper2_sections, report
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import committee, committee_scores
from tests.fake_runs import write_pretraining_run
from tests.html_page import Page, check_rules


def write_committee(folder: pathlib.Path, members: int = 4) -> pathlib.Path:
  """Writes the files of `minilm committee`, with members whose errors are independent."""
  random = np.random.default_rng(0)
  labels = random.integers(0, 3, 200)
  logits = 1.5 * np.eye(3)[labels] + random.normal(size=(members, 200, 3))
  lines = committee_scores.study_sizes(logits, labels, 'accuracy', 'validation')
  folder.mkdir(parents=True)
  files.write_json(
    folder / run_dir.CONFIG, {'kind': committee.COMMITTEE_KIND, 'task': {'name': 'ag_news'}}
  )
  files.write_json(folder / run_dir.MANIFEST, {'parameters': {'total': 5_000_000}, 'members': []})
  files.write_json(
    folder / committee.STUDY,
    {
      'task': 'ag_news',
      'headline': 'accuracy',
      'members': members,
      'examples': {'validation': 200},
      'unscored': '',
      'lines': files.to_json_types([dataclasses.asdict(line) for line in lines]),
    },
  )
  files.write_json(folder / run_dir.RESULT, {})
  return folder


def test_file_names_are_those_of_the_committee_command():
  assert (committee_study.KIND, committee_study.STUDY) == (
    committee.COMMITTEE_KIND,
    committee.STUDY,
  ) and committee.COMMITTEE_KIND in runs.KINDS


def test_page_has_the_numbers_of_the_study(tmp_path: pathlib.Path):
  write_committee(tmp_path / 'runs' / 'five')
  written = report.report([tmp_path / 'runs'], tmp_path / 'report')
  study = json.loads((tmp_path / 'runs' / 'five' / committee.STUDY).read_text())
  text = written['report.html'].read_text()
  page = Page(text)
  assert 'Committee five, ag_news, validation' in page.headings and 'svg' in page.tags
  (full,) = [
    line['mean']
    for line in study['lines']
    if (line['size'], line['combined'], line['metric']) == (4, 'mean probability', 'accuracy')
  ]
  assert f'{100 * full:.1f} by mean probability' in page.text
  assert [verdict for question, verdict, _ in check_rules(text) if 'five' in question] == ['yes']
  assert '5,000,000' in page.text and 'committee-1.svg' in written and 'committee-1.png' in written
  rows = list(csv.DictReader(written['committees.csv'].read_text().splitlines()))
  assert len(rows) == len(study['lines'])
  assert [float(row['mean']) for row in rows] == [line['mean'] for line in study['lines']]


def test_table_has_a_row_for_each_size_and_combination(tmp_path: pathlib.Path):
  path = write_committee(tmp_path / 'five')
  rows = committee_study.read_committee_rows({'five': epath.Path(path)})
  table = paper2_sections.COMMITTEE_FORMAT.fill(paper2_sections.group_by_metric(rows))
  assert [(cells[0], cells[2]) for cells in table.rows] == [
    (str(size), name)
    for size in range(1, 5)
    for name in ('one member', 'mean logit', 'mean probability')
  ]
  assert all(('[' in cells[3]) == (cells[0] != '4') for cells in table.rows)


@pytest.mark.parametrize('gain', [0.1, -0.1])
def test_the_gain_of_a_committee_is_that_of_the_mean_probability(
  tmp_path: pathlib.Path, gain: float
):
  path = write_committee(tmp_path / 'five')
  means = {
    committee_scores.MEMBERS: 0.5,
    committee_scores.PROBABILITY: 0.5 + gain,
    committee_scores.LOGIT: 0.5 - gain,
  }
  rows = [
    dataclasses.replace(row, mean=means[row.combined])
    for row in committee_study.read_committee_rows({'five': epath.Path(path)})
  ]
  study = paper2_sections.Paper2Study(
    rows, [], claims.ClaimResults([], [], []), pretraining_gap.GapStudy([], [], [])
  )
  (answer,) = paper2_sections.answer_questions(study)
  assert answer.verdict == ('yes' if gain > 0 else 'no')
  assert answer.number.startswith(f'{100 * gain:+.1f} points')


def test_figure_has_a_curve_for_each_combination_and_closed_bands(tmp_path: pathlib.Path):
  path = write_committee(tmp_path / 'five')
  rows = committee_study.read_committee_rows({'five': epath.Path(path)})
  figure = paper2_sections.draw_committee(rows).figure
  for axes, metric, scale in zip(figure.axes, ('accuracy', 'negative log-likelihood'), (100, 1)):
    combinations = (committee_scores.MEMBERS, committee_scores.LOGIT, committee_scores.PROBABILITY)
    assert [len(line.get_xdata()) for line in axes.lines] == [4, 4, 4]
    for line, combined in zip(axes.lines, combinations):
      expected = [
        scale * row.mean for row in rows if (row.combined, row.metric) == (combined, metric)
      ]
      assert list(line.get_ydata()) == pytest.approx(expected)
    assert len(axes.collections) == 2
    assert all(np.isfinite(band.get_paths()[0].vertices).all() for band in axes.collections)


def test_reports_without_committees_omit_them(tmp_path: pathlib.Path):
  write_pretraining_run(tmp_path / 'runs' / 'tiny')
  written = report.report([tmp_path / 'runs'], tmp_path / 'report')
  assert 'Committee' not in written['report.html'].read_text() and 'committees.csv' not in written


def test_committees_without_scores_are_only_runs(tmp_path: pathlib.Path):
  folder = write_committee(tmp_path / 'runs' / 'five')
  files.write_json(
    folder / committee.STUDY,
    {
      'task': 'custom',
      'headline': 'accuracy',
      'members': 4,
      'examples': {},
      'unscored': 'other examples',
      'lines': [],
    },
  )
  assert committee_study.read_committee_rows({'five': epath.Path(folder)}) == []
  (folder / committee.STUDY).unlink()
  page = report.report([tmp_path / 'runs'], tmp_path / 'report')['report.html'].read_text()
  assert 'Committee five' not in page and 'five' in page


def test_unknown_committee_files_are_refused(tmp_path: pathlib.Path):
  folder = write_committee(tmp_path / 'five')
  files.write_json(
    folder / committee.STUDY,
    {
      'task': 'custom',
      'members': 3,
      'examples': {'test': 1},
      'lines': [{'split': 'test', 'strange': 1}],
    },
  )
  with pytest.raises(InputError, match='committee.json'):
    committee_study.read_committee_rows({'five': epath.Path(folder)})
