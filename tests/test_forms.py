"""The front-end of paper 2 against the mended one: pairs that differ in nothing else, and their differences by hand."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest

from minilm_jax import run
from minilm_jax.analysis import cells, forms, grid, report, runs
from minilm_jax.analysis.forms import LOSS, FormRow
from minilm_jax.analysis.scores import score_table
from tests import gridded, scored
from tests.test_report import Page


def pretrained(home: pathlib.Path, form: str, seed: int, loss: float, updates: int = 200, convolutions: int = 2,
               corpus: str = 'c', **changes: Any) -> pathlib.Path:
  """A run of one form, whose last validation loss is given."""
  folder = gridded.pretraining(home / f'{form}-{len(list(home.glob("*")))}', seed=seed, updates=updates)
  config = run.read_json(folder / run.CONFIG, 'it') | {'mask': {'rate': 0.15}, 'evaluation': {'every': seed, 'rows': 2000}}
  config['model'] |= {'convolution': form, 'convolutions': convolutions, 'kernel': [3, 3], 'channels': 4} | changes
  run.write_json(folder / run.CONFIG, config)
  run.write_json(folder / run.MANIFEST, run.read_json(folder / run.MANIFEST, 'it') | {'corpus': corpus, 'tokenizer': 't'})
  lines = list(run.read_lines(folder / run.METRICS))
  run.write_lines(folder / run.METRICS, [line | {'loss': loss} if line['step'] == updates else line for line in lines])
  return folder


def tuned(home: pathlib.Path, source: pathlib.Path, values: dict[int, float]) -> None:
  folder = home / f'task-{source.name}'
  folder.mkdir()
  run.write_json(folder / run.CONFIG, {'kind': 'finetune', 'checkpoint': str(source), 'epochs': 3.0,
                                      'task': {'name': 'ag_news', 'filtered': False}})
  run.write_lines(folder / run.SCORES, [scored.line(value, seed, True, task='ag_news', metric='accuracy',
                                                    checkpoint=source.name) for seed, value in values.items()])


def found(home: pathlib.Path) -> dict[str, FormRow]:
  there = runs.find([str(home)])
  made = forms.find(there, grid.read(there).tracks, cells.main(score_table(runs.scores(there))))
  assert len({one.what for one in made}) == len(made)
  return {one.what: one for one in made}


def test_one_pair_is_compared_by_seeds_of_fine_tuning(tmp_path: pathlib.Path):
  paper, mended = (pretrained(tmp_path, form, 0, loss) for form, loss in (('paper', 5.0), ('mended', 4.5)))
  tuned(tmp_path, paper, {0: 0.5, 1: 0.6, 2: 0.7, 9: 0.1})
  tuned(tmp_path, mended, {0: 0.6, 1: 0.8, 2: 0.7})
  loss, score = found(tmp_path).values()
  assert (loss.what, loss.paper, loss.mended, loss.difference, loss.n) == (LOSS, 5.0, 4.5, -0.5, 1) and np.isnan(loss.low)
  assert score.what == 'ag_news, accuracy, validation' and (score.n, score.of) == (3, 'seeds of fine-tuning')
  assert (score.paper, score.mended, score.difference) == pytest.approx((0.6, 0.7, 0.1))
  half = 4.302653 * 0.1 / 3**0.5  # Student's t of two degrees; the differences are 0.1, 0.2, 0
  assert (score.low, score.high) == pytest.approx((0.1 - half, 0.1 + half), rel=1e-5)


def test_several_pairs_are_compared_by_seeds_of_pre_training(tmp_path: pathlib.Path):
  for seed in (3, 4, 5):
    for form, gain in (('paper', 0), ('mended', 0.01 * seed)):
      tuned(tmp_path, pretrained(tmp_path, form, seed, 5 - 10 * gain), {0: 0.5 + gain, 1: 0.7 + gain})
  pretrained(tmp_path, 'mended', 8, 1.0)  # no twin
  loss, score = found(tmp_path).values()
  assert (loss.n, loss.of) == (score.n, score.of) == (3, 'pre-trainings')
  assert loss.difference == pytest.approx(-0.4) and loss.low < -0.4 < loss.high < 0
  assert (score.paper, score.difference) == pytest.approx((0.6, 0.04)) and score.low == pytest.approx(0.04 - 0.0248, abs=1e-4)


@pytest.mark.parametrize('changes', [{'channels': 8}, {'corpus': 'other'}, {'updates': 100}, {'convolutions': 0}])
def test_what_differs_in_more_is_no_pair(changes: dict, tmp_path: pathlib.Path):
  pretrained(tmp_path, 'paper', 0, 5.0)
  pretrained(tmp_path, 'mended', 0, 4.5, **changes)
  assert not found(tmp_path)


def test_the_report_has_a_table_where_there_are_both(tmp_path: pathlib.Path):
  home = tmp_path / 'runs'
  home.mkdir()
  paper = pretrained(home, 'paper', 0, 5.0)
  tuned(home, paper, {0: 0.5, 1: 0.6})
  written = report.report([str(home)], tmp_path / 'one', draws=5)
  assert 'forms.csv' not in written
  tuned(home, pretrained(home, 'mended', 0, 4.5), {0: 0.6, 1: 0.8})
  written = report.report([str(home)], tmp_path / 'two', draws=5)
  page = Page(written['report.html'].read_text())
  assert 'The convolutional front-end, mended' in page.headings
  assert all(text in page.text for text in ('-0.500', '+15.0', '2 seeds of fine-tuning'))
  assert [row['what'] for row in csv.DictReader(written['forms.csv'].read_text().splitlines())] == [
      LOSS, 'ag_news, accuracy, validation']
