"""The statement on paper 2's claims: each verdict can be reached and is from runs alone; what
failed is named.
"""

import csv
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from configs import paper2_data_sizes, tiny
from minilm_jax.analysis import claims, committee_study, loss_curves, runs
from minilm_jax.analysis.claims import FAILS, HOLDS, OPEN, Statement, Verdict
from minilm_jax.analysis.report import report
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import committee
from tests.fake_runs import write_finetune_pair, write_finetune_run, write_subset_run
from tests.html_page import Page

SEEDS, NOISE = (0, 1, 2, 3), (0.002, -0.002, 0.001, -0.001)
SHALLOW = {
  'num_layers': 1,
  'convolutions': 2,
  'kernel': [3, 3],
  'channels': 4,
  'convolution': 'paper2',
}
DEEP = {'num_layers': 6, 'convolutions': 0, 'kernel': [], 'channels': 0, 'convolution': 'paper2'}
EXAMPLES, RIGHT = 400, 320


def statement(home: pathlib.Path) -> Statement:
  found = runs.find_runs([str(home)])
  return claims.find_verdicts(
    found, runs.read_failures([str(home)]), loss_curves.read_runs(found).curves
  )


def told(home: pathlib.Path) -> dict[int, Verdict]:
  return {one.claim: one for one in statement(home).verdicts}


def ended(folder: pathlib.Path) -> pathlib.Path:
  files.write_json(folder / run_dir.RESULT, {})
  return folder


def noisy(value: float, spread: float = 1.0) -> list[float]:
  return [value + spread * noise for noise in NOISE]


def ladder(home: pathlib.Path, gains: dict[int, float], spread: float = 1.0, **more: Any) -> None:
  """Pre-training runs on so many rows, each with its gap, whose noise is another at each size."""
  for number, (rows, gain) in enumerate(gains.items()):
    source = ended(write_subset_run(home / f'n{rows}', rows))
    ours = [0.5 + gain + spread * noise for noise in (*NOISE[number % 4 :], *NOISE[: number % 4])]
    write_finetune_pair(home, source, ours, [0.5] * 4, seeds=SEEDS, **more)


def test_the_rules_stand_at_the_head_of_the_recipe():
  text = ' '.join(paper2_data_sizes.__doc__.split()).lower()
  assert 'pre-registered' in text and 'analysis/claims.py' in text and claims.MARGIN == 0.01
  assert all(word in text for word in ('one point of score', HOLDS, FAILS, OPEN, 'exclusions'))


@pytest.mark.parametrize(
  'gains, spread, first, second',
  [
    ({1000: 0.05, 2000: 0.08, 4000: 0.11}, 1, HOLDS, HOLDS),
    ({1000: 0.05, 2000: 0.05, 4000: 0.05}, 1, HOLDS, FAILS),
    ({1000: -0.05, 2000: -0.05, 4000: -0.05}, 1, FAILS, FAILS),
    ({1000: 0.02, 2000: 0.03, 4000: 0.04}, 30, OPEN, OPEN),
  ],
)
def test_the_gap_and_its_growth(
  gains: dict[int, float], spread: float, first: str, second: str, tmp_path: pathlib.Path
):
  ladder(tmp_path, gains, spread)
  found = told(tmp_path)
  assert (found[1].verdict, found[2].verdict) == (first, second)
  # that of the largest set
  assert found[1].value == pytest.approx(list(gains.values())[-1]) and found[1].seeds == 4
  assert 'n4000' in found[1].of and 'n1000' not in found[1].of
  slope = (list(gains.values())[-1] - list(gains.values())[0]) / 2
  assert found[2].value == pytest.approx(slope, abs=1e-9) and found[2].low < slope < found[2].high
  assert (found[1].missing == '') == (first != OPEN)
  assert {found[3].verdict, found[4].verdict} == {OPEN} and found[3].missing and found[4].missing


def test_the_slope_is_the_mean_of_those_of_the_seeds_with_their_interval(tmp_path: pathlib.Path):
  slopes = (0.01, 0.02, 0.03, 0.06)
  for rows in (1000, 4000):
    write_finetune_pair(
      tmp_path,
      ended(write_subset_run(tmp_path / f'n{rows}', rows)),
      [0.6 + slope * math.log2(rows / 1000) for slope in slopes],
      [0.5] * 4,
      seeds=SEEDS,
    )
  found = told(tmp_path)[2]
  half = 3.182446 * np.std(slopes, ddof=1) / 2  # Student's t of three degrees, four seeds
  assert (found.value, found.low, found.high) == pytest.approx(
    (0.03, 0.03 - half, 0.03 + half), rel=1e-5
  )


def test_growth_with_overlap_is_for_ten_points(tmp_path: pathlib.Path):
  for number, overlap in enumerate((0.80, 0.85, 0.90)):
    source = ended(write_subset_run(tmp_path / f'part-{number}', 1000, overlap=overlap))
    write_finetune_pair(
      tmp_path, source, noisy(0.5 + 0.4 * (overlap - 0.7)), [0.5] * 4, seeds=SEEDS
    )
  found = told(tmp_path)
  assert found[3].verdict == HOLDS and found[3].value == pytest.approx(0.04)
  # all were chosen by the task
  assert found[1].verdict == OPEN and found[1].missing.startswith('a task')


def test_the_mean_is_over_tasks_by_seed_of_those_that_all_have(tmp_path: pathlib.Path):
  source = ended(write_subset_run(tmp_path / 'a', 1000))
  write_finetune_pair(tmp_path, source, [0.6, 0.7, 0.8], [0.5] * 3, seeds=(0, 1, 2))
  write_finetune_pair(tmp_path, source, [0.9, 0.6, 0.6], [0.5] * 3, seeds=(3, 1, 2), task='fewrel')
  found = told(tmp_path)[1]
  assert found.seeds == 2 and found.value == pytest.approx((0.15 + 0.2) / 2)
  write_finetune_pair(tmp_path, source, [0.6], [0.5], seeds=(7,), task='dbpedia_14')
  found = told(tmp_path)[1]
  assert found.verdict == OPEN and found.seeds == 0 and 'two seeds' in found.missing


def test_one_seed_tells_nothing(tmp_path: pathlib.Path):
  write_finetune_pair(
    tmp_path, ended(write_subset_run(tmp_path / 'a', 1000)), [0.9], [0.5], seeds=(0,)
  )
  found = told(tmp_path)[1]
  assert (
    found.verdict == OPEN and found.value == pytest.approx(0.4) and 'two seeds' in found.missing
  )


def test_what_failed_or_was_cut_short_is_left_out_and_named(tmp_path: pathlib.Path):
  ladder(tmp_path, {1000: 0.05, 2000: 0.05})
  worse = write_subset_run(tmp_path / 'n4000', 4000)
  write_finetune_pair(tmp_path, worse, [0.1] * 4, [0.5] * 4, seeds=SEEDS)
  files.write_json(worse / run_dir.FAILURE, {'asked': 'a finite loss', 'found': 'none'})
  write_finetune_pair(
    tmp_path, write_subset_run(tmp_path / 'n8000', 8000), [0.1] * 4, [0.5] * 4, seeds=SEEDS
  )
  made = seeded(tmp_path, [0.9] * 4, worse)
  found = statement(tmp_path)
  assert found.verdicts[0].value == pytest.approx(0.05) and 'n4000' not in found.verdicts[0].of
  named = dict(text.split(': ', 1) for text in found.excluded)
  assert named.keys() == {'n4000', 'n8000', made.name} and 'a finite loss' in named['n4000']
  assert 'cut short' in named['n8000'] and 'started from n4000' in named[made.name]
  assert claims.committee_study.NEEDED == found.verdicts[3].missing.split(';')[0]


def test_members_that_collapsed_are_counted_and_kept(tmp_path: pathlib.Path):
  source = ended(write_subset_run(tmp_path / 'a', 1000))
  write_finetune_pair(tmp_path, source, noisy(0.6), [0.5] * 4, seeds=SEEDS)
  scores = next((tmp_path / 'tasks').glob('*-s')) / run_dir.SCORES
  run_dir.write_lines(
    scores,
    [line | {'constant_prediction': line['seed'] == 2} for line in run_dir.read_lines(scores)],
  )
  found = told(tmp_path)[1]
  assert (found.collapsed, found.seeds, found.verdict) == (1, 4, HOLDS)


def model(**changes: Any) -> dict[str, Any]:
  """All fields of a model, as a run's config.json has them."""
  made = tiny.get_config()
  made.model.update(num_heads=2, flops_heads=2)
  return {**recipe.as_dict(recipe.resolve(made, 'pretrain').model), **changes}


def seeded(
  home: pathlib.Path,
  values: list[float],
  source: pathlib.Path,
  members: int = 3,
  seeds: tuple[int, ...] = SEEDS,
  **changes: Any,
) -> pathlib.Path:
  """A committee of so many members of each seed, which together are right in these shares of the
  examples.
  """
  folder = home / f'committee-{len(list(home.glob("committee-*")))}'
  folder.mkdir()
  labels, listed = np.arange(EXAMPLES) % 2, []
  for seed, value in zip(seeds, values, strict=True):
    said = np.where(np.arange(EXAMPLES) < round(value * EXAMPLES), labels, 1 - labels)
    for _ in range(members):
      own = folder / f'classifier-{len(listed)}'
      own.mkdir()
      np.savez(own / 'outputs.npz', **{'test outputs': 3 * np.eye(2)[said], 'test labels': labels})
      files.write_json(
        own / 'classifier.json',
        {
          'task': 'ag_news',
          'headline': 'accuracy',
          'seed': seed,
          'step': 8,
          'checkpoint': str(source),
          'model': model(**SHALLOW, **changes),
        },
      )
      listed.append({'folder': own.name, 'checkpoint': str(source)})
  files.write_json(
    folder / run_dir.CONFIG, {'kind': committee.COMMITTEE_KIND, 'task': {'name': 'ag_news'}}
  )
  files.write_json(folder / run_dir.MANIFEST, {'parameters': {'total': 9}, 'members': listed})
  return ended(folder)


def deep(
  home: pathlib.Path, values: list[float], name: str = 'bert-6', rows: int = 1000, **changes: Any
) -> None:
  source = ended(write_subset_run(home / name, rows, **model(**DEEP) | changes))
  write_finetune_run(home / 'tasks' / name, source, values, True, seeds=SEEDS)
  scores = home / 'tasks' / name / run_dir.SCORES
  run_dir.write_lines(
    scores, [line | {'split': 'test', 'examples': EXAMPLES} for line in run_dir.read_lines(scores)]
  )


def timed(
  home: pathlib.Path, ours: float, theirs: float, members: int = 3, wide: float = 0.01
) -> None:
  """Rounds of the shallow model, committees of it and the deep one, in milliseconds."""

  def row(name: str, of: str, members: int, median: float) -> dict[str, Any]:
    spent = {
      'median': median,
      'low': median * (1 - wide),
      'high': median * (1 + wide),
      'p95': 2 * median,
      'lowest': 0.1,
    }
    return {
      'name': name,
      'recipe': of,
      'batch': 1,
      'length': 64,
      'members': members,
      'heads': 1,
      'devices': 1,
      'depth': 3,
      'parameters': 5,
      'flops': 7,
      'milliseconds': spent,
      'over_member': 1.0,
    }

  folder = home / f'latency-{len(list(home.glob("latency-*")))}'
  folder.mkdir()
  files.write_json(
    folder / run_dir.CONFIG,
    {
      'kind': 'latency',
      'models': {'conv': model(**SHALLOW, dropout=0.3, vocab_size=9), 'bert': model(**DEEP)},
    },
  )
  files.write_json(
    folder / run_dir.RESULT,
    {
      'machine': 'a <machine>',
      'calls': 100,
      'rows': [
        row('conv', 'conv', 1, 0.5),
        row('turns', 'conv', members, 9.0),
        row('vmapped', 'conv', members, ours),
        row('bert', 'bert', 1, theirs),
      ],
    },
  )


@pytest.mark.parametrize(
  'ours, theirs, latency, verdict',
  [
    (0.80, 0.80, (1.0, 2.0), HOLDS),
    (0.795, 0.80, (1.0, 2.0), HOLDS),
    (0.77, 0.80, (1.0, 2.0), FAILS),
    (0.80, 0.80, (2.0, 1.0), FAILS),
    (0.80, 0.80, (1.0, 1.005), OPEN),
    (0.80, 0.80, None, OPEN),
  ],
)
def test_the_committee(
  ours: float,
  theirs: float,
  latency: tuple[float, float] | None,
  verdict: str,
  tmp_path: pathlib.Path,
):
  source = ended(write_subset_run(tmp_path / 'conv', 1000, **model(**SHALLOW)))
  seeded(tmp_path, [ours, ours, ours + 0.0025, ours + 0.0025], source)
  deep(tmp_path, [theirs, theirs + 0.0025, theirs, theirs + 0.0025])
  if latency:
    timed(tmp_path, *latency)
  found = told(tmp_path)[4]
  assert (
    found.verdict == verdict
    and found.value == pytest.approx(ours - theirs, abs=1e-9)
    and found.seeds == 4
  )
  assert (found.missing == '') == (verdict != OPEN) and 'bert-6' in found.of
  if latency:
    assert found.latency == pytest.approx(latency[0] / latency[1])  # of the fastest way
    assert found.latency_low == pytest.approx(latency[0] * 0.99 / (latency[1] * 1.01))
    assert found.latency_low < found.latency < found.latency_high
  else:
    assert 'minilm latency --workdir' in found.missing


def test_who_is_compared_with_whom(tmp_path: pathlib.Path):
  """The largest committee, the deepest run on as many rows; a smaller committee, a convolved and
  another set are not.
  """
  source = ended(write_subset_run(tmp_path / 'conv', 1000, **model(**SHALLOW)))
  seeded(tmp_path, [0.5] * 4, source, members=2)
  largest = seeded(tmp_path, [0.8] * 4, source, members=3)
  for name, rows, changes in (
    ('b-6', 1000, {}),
    ('b-4', 1000, {'num_layers': 4}),
    ('b-6-other', 9000, {}),
    ('b-8-conv', 1000, SHALLOW | {'num_layers': 8}),
  ):
    deep(tmp_path, noisy({'b-6': 0.75}.get(name, 0.99)), name, rows, **changes)
  found = told(tmp_path)[4]
  assert (
    found.value == pytest.approx(0.05)
    and f'{largest.name} against b-6' in found.of
    and 'b-6-other' not in found.of
  )
  timed(tmp_path, 1.0, 2.0, members=2)  # of the smaller one
  assert 'minilm latency' in told(tmp_path)[4].missing
  timed(tmp_path, 1.0, 2.0)
  timed(tmp_path, 1.5, 2.0)
  assert told(tmp_path)[4].latency == pytest.approx(0.75)  # the worst that was measured


def test_members_of_one_seed_answer_by_their_mean_probability(tmp_path: pathlib.Path):
  folder = seeded(tmp_path, [0.9, 0.6], tmp_path / 'nowhere', seeds=(4, 7))
  loud = folder / 'classifier-0'
  with np.load(loud / 'outputs.npz') as kept:
    np.savez(
      loud / 'outputs.npz',
      **{
        'test outputs': 100 * np.eye(2)[1 - kept['test labels']],
        'test labels': kept['test labels'],
      },
    )
  found = {
    one.seed: one for one in committee_study.read_seed_committees(runs.find_runs([str(tmp_path)]), {})
  }
  # by the mean logit the loud one would win
  assert {seed: one.value for seed, one in found.items()} == {4: 0.9, 7: 0.6}
  assert found[4].shapes == (runs.latency_shape(model(**SHALLOW)),) * 3 and found[4].rows == 0
  card = files.read_json(folder / 'classifier-5' / 'classifier.json', 'it')
  # from scratch: no member of it
  files.write_json(folder / 'classifier-5' / 'classifier.json', card | {'step': -1})
  assert [
    len(one.shapes) for one in committee_study.read_seed_committees(runs.find_runs([str(tmp_path)]), {})
  ] == [3, 2]
  (folder / 'classifier-3' / 'outputs.npz').unlink()
  with pytest.raises(InputError, match='copy the folder again'):
    committee_study.read_seed_committees(runs.find_runs([str(tmp_path)]), {})


def test_what_is_missing_for_the_fourth_is_said(tmp_path: pathlib.Path):
  source = ended(write_subset_run(tmp_path / 'conv', 1000, **model(**SHALLOW)))
  write_finetune_pair(tmp_path, source, [0.6] * 4, [0.5] * 4, seeds=SEEDS)
  assert told(tmp_path)[4].missing.startswith(committee_study.NEEDED)
  seeded(tmp_path, [0.8] * 4, source, members=1)
  assert told(tmp_path)[4].missing.startswith(committee_study.NEEDED)
  seeded(tmp_path, [0.8] * 4, source)
  assert told(tmp_path)[4].missing.startswith('a deeper model')


def test_the_report(tmp_path: pathlib.Path):
  home = tmp_path / 'runs'
  ladder(home, {1000: 0.05, 2000: 0.08, 4000: 0.11})
  source = ended(write_subset_run(home / 'conv', 1000, **model(**SHALLOW)))
  seeded(home, [0.8] * 4, source)
  deep(home, noisy(0.75))
  timed(home, 1.0, 2.0)
  written = report.report([str(home)], tmp_path / 'report', draws=20)
  page = Page(written['report.html'].read_text())
  assert 'What becomes of the paper’s claims' in page.headings and 'Latency' in page.headings
  for claim, verdict in (
    (1, 'Holds: pre-trained less'),
    (2, 'Holds: gap for twice'),
    (3, 'Cannot be told'),
    (4, 'Holds: committee less'),
  ):
    assert f'{claim}. {claims.CLAIMS[claim]} {verdict}' in page.text
  assert 'latency 0.50 of the deep one' in page.text and 'a <machine>' in page.text
  rows = list(csv.DictReader(written['verdicts.csv'].read_text().splitlines()))
  assert [row['verdict'] for row in rows] == [HOLDS, HOLDS, OPEN, HOLDS]
  (first, *_), own = (
    csv.DictReader(written['latency.csv'].read_text().splitlines()),
    runs.read_latencies(runs.find_runs([home])),
  )
  assert float(first['median']) == own[0].median == 0.5 and len(own) == 4
  json.dumps([dataclasses.asdict(one) for one in own])


def test_pages_of_other_studies_have_no_statement(tmp_path: pathlib.Path):
  home = tmp_path / 'runs'
  write_finetune_pair(
    home, ended(write_subset_run(home / 'a', 1000, of_rows=1000)), [0.6] * 3, [0.5] * 3, task='cola'
  )
  written = report.report([str(home)], tmp_path / 'report', draws=20)
  assert (
    'verdicts.csv' not in written
    and 'What becomes' not in Page(written['report.html'].read_text()).text
  )


def test_a_latency_of_another_version_is_refused(tmp_path: pathlib.Path):
  timed(tmp_path, 1.0, 2.0)
  result = tmp_path / 'latency-0' / run_dir.RESULT
  files.write_json(result, {'rows': [{'name': 'a', 'recipe': 'conv'}], 'machine': '', 'calls': 2})
  with pytest.raises(InputError, match='another version'):
    runs.read_latencies(runs.find_runs([str(tmp_path)]))
