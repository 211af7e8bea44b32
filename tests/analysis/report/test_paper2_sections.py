"""Committees on the page: numbers are those of committee.json, and pages without committees do not
mention them.
"""

import csv
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis import committee_study, runs
from minilm_jax.analysis.report import paper2_sections, report
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import committee, committee_scores
from tests.fake_runs import write_pretraining_run
from tests.html_page import Page


def made(folder: pathlib.Path, members: int = 4) -> pathlib.Path:
  """What `minilm committee` leaves behind, of members that are right more often together."""
  dice = np.random.default_rng(0)
  labels = dice.integers(0, 3, 200)
  logits = 1.5 * np.eye(3)[labels] + dice.normal(size=(members, 200, 3))
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
      'lines': [line.to_dict() for line in lines],
    },
  )
  files.write_json(folder / run_dir.RESULT, {})
  return folder


def test_names_of_files_are_those_of_the_room_that_writes_them():
  assert (committee_study.KIND, committee_study.STUDY) == (
    committee.COMMITTEE_KIND,
    committee.STUDY,
  ) and committee.COMMITTEE_KIND in runs.KINDS


def test_numbers_on_the_page_are_those_of_the_study(tmp_path: pathlib.Path):
  made(tmp_path / 'runs' / 'five')
  written = report.report([tmp_path / 'runs'], tmp_path / 'report')
  study = json.loads((tmp_path / 'runs' / 'five' / committee.STUDY).read_text())
  page = Page(written['report.html'].read_text())
  assert 'Committees' in page.headings and 'svg' in page.tags
  (whole,) = [
    line['mean']
    for line in study['lines']
    if (line['size'], line['combined'], line['metric']) == (4, 'mean probability', 'accuracy')
  ]
  assert (
    f'five: on ag_news, 200 validation examples, 4 members reach accuracy {100 * whole:.1f}'
    in page.text
  )
  assert '5,000,000' in page.text and 'committee-1.svg' in written and 'committee-1.png' in written
  rows = list(csv.DictReader(written['committees.csv'].read_text().splitlines()))
  assert len(rows) == len(study['lines'])
  assert [float(row['mean']) for row in rows] == [line['mean'] for line in study['lines']]


def test_a_table_has_a_line_a_size_and_way_and_intervals_but_at_the_end(tmp_path: pathlib.Path):
  rows = committee_study.read_committee_rows({'five': epath.Path(made(tmp_path / 'five'))})
  lines = paper2_sections.committee_cells(rows)
  assert [(line[0], line[2]) for line in lines] == [
    (str(size), name)
    for size in range(1, 5)
    for name in ('one member', 'mean logit', 'mean probability')
  ]
  assert all(len(line) == len(paper2_sections.COMMITTEE_HEADINGS) for line in lines)
  assert all(('[' in line[3]) == (line[0] != '4') for line in lines)


def test_the_figure_has_a_curve_a_way_and_a_band_that_closes(tmp_path: pathlib.Path):
  rows = committee_study.read_committee_rows({'five': epath.Path(made(tmp_path / 'five'))})
  drawn = paper2_sections.figure(rows)
  for axes, metric, scale in zip(drawn.axes, ('accuracy', 'negative log-likelihood'), (100, 1)):
    assert [len(line.get_xdata()) for line in axes.lines] == [4, 4, 4]
    for line, how in zip(
      axes.lines, (committee_scores.MEMBERS, committee_scores.LOGIT, committee_scores.PROBABILITY)
    ):
      expected = [scale * row.mean for row in rows if (row.combined, row.metric) == (how, metric)]
      assert list(line.get_ydata()) == pytest.approx(expected)
    assert len(axes.collections) == 2 and all(
      np.isfinite(band.get_paths()[0].vertices).all() for band in axes.collections
    )


def test_runs_without_committees_have_no_word_of_them(tmp_path: pathlib.Path):
  write_pretraining_run(tmp_path / 'runs' / 'tiny')
  written = report.report([tmp_path / 'runs'], tmp_path / 'report')
  assert 'Committee' not in written['report.html'].read_text() and 'committees.csv' not in written


def test_a_committee_without_scores_or_cut_short_is_a_run_and_no_more(tmp_path: pathlib.Path):
  folder = made(tmp_path / 'runs' / 'five')
  files.write_json(
    folder / committee.STUDY,
    {
      'task': 'own',
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
  assert 'Committees' not in page and 'five' in page


def test_a_study_of_another_version_is_refused(tmp_path: pathlib.Path):
  folder = made(tmp_path / 'five')
  files.write_json(
    folder / committee.STUDY,
    {
      'task': 'own',
      'members': 3,
      'examples': {'test': 1},
      'lines': [{'split': 'test', 'strange': 1}],
    },
  )
  with pytest.raises(InputError, match='committee.json'):
    committee_study.read_committee_rows({'five': epath.Path(folder)})
