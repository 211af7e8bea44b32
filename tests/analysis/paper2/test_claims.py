"""Each verdict on the claims of paper 2 can be reached; excluded runs are listed with the reason."""

import csv
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from configs import paper2_data_sizes, tiny
from minilm_jax.analysis import loss_curves, runs, training_sets
from minilm_jax.analysis.paper2 import claims, committee_study, latencies
from minilm_jax.analysis.paper2.claims import FAILS, HOLDS, OPEN, ClaimResults, Verdict
from minilm_jax.analysis.report import report
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import committee
from tests.fake_runs import (
  change_config,
  continue_run,
  make_loss_curve,
  write_finetune_pair,
  write_finetune_run,
  write_subset_run,
)
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
EXAMPLES = 400


def find_results(folder: pathlib.Path) -> ClaimResults:
  run_paths = runs.find_runs([str(folder)])
  return claims.find_verdicts(
    run_paths, runs.read_failures([str(folder)], run_paths), loss_curves.read_runs(run_paths)[0]
  )


def map_verdicts(folder: pathlib.Path) -> dict[int, Verdict]:
  return {verdict.claim: verdict for verdict in find_results(folder).verdicts}


def finish(folder: pathlib.Path) -> pathlib.Path:
  files.write_json(folder / run_dir.RESULT, {})
  return folder


def add_noise(value: float, spread: float = 1.0) -> list[float]:
  return [value + spread * noise for noise in NOISE]


def write_sizes(
  folder: pathlib.Path,
  gains: dict[int, float],
  spread: float = 1.0,
  updates: int = 6250,  # 50 epochs of 4,000 rows in batches of 32
  **options: Any,
) -> None:
  """Writes a run for each number of rows with the gap of that run; the order of the noise differs."""
  for number, (rows, gain) in enumerate(gains.items()):
    source = finish(write_subset_run(folder / f'n{rows}', rows, updates))
    values = [0.5 + gain + spread * noise for noise in (*NOISE[number % 4 :], *NOISE[: number % 4])]
    write_finetune_pair(folder, source, values, [0.5] * 4, seeds=SEEDS, **options)


def test_the_recipe_states_the_rules():
  text = ' '.join(paper2_data_sizes.__doc__.split()).lower()
  assert 'pre-registered' in text and 'analysis/paper2/claims.py' in text and claims.MARGIN == 0.01
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
def test_verdicts_on_the_gap_and_its_growth_follow_the_intervals(
  gains: dict[int, float], spread: float, first: str, second: str, tmp_path: pathlib.Path
):
  write_sizes(tmp_path, gains, spread)
  verdicts = map_verdicts(tmp_path)
  gap, growth = verdicts[1], verdicts[2]
  assert (gap.verdict, growth.verdict) == (first, second)
  largest = list(gains.values())[-1]
  assert gap.value == pytest.approx(largest) and gap.seeds == 4
  assert 'n4000' in gap.of and 'n1000' not in gap.of
  slope = (largest - list(gains.values())[0]) / 2
  assert growth.value == pytest.approx(slope, abs=1e-9) and growth.low < slope < growth.high
  assert (gap.missing == '') == (first != OPEN)
  assert all(verdicts[claim].verdict == OPEN and verdicts[claim].missing for claim in (3, 4))


def test_fewer_epochs_than_in_the_paper_leave_a_claim_undecided(tmp_path: pathlib.Path):
  # 6,249 updates of 32 rows are 49.99 epochs of 4,000 rows
  write_sizes(tmp_path, {1000: -0.05, 2000: -0.05, 4000: -0.05}, updates=6249)
  verdicts = map_verdicts(tmp_path)
  for verdict in (verdicts[1], verdicts[2]):
    assert verdict.verdict == OPEN and verdict.high < claims.MARGIN and verdict.missing
    assert 'n4000' in verdict.limits and 'n2000' not in verdict.limits


def test_a_positive_gap_holds_with_few_epochs(tmp_path: pathlib.Path):
  write_sizes(tmp_path, {1000: 0.05, 2000: 0.05, 4000: 0.05}, updates=100)
  gap = map_verdicts(tmp_path)[1]
  assert gap.verdict == HOLDS and 'n4000' in gap.limits


def test_a_run_on_the_plateau_leaves_a_claim_undecided():
  # The plateau of 6.4 nats lies between the updates 1,000 and 4,000.
  updates = list(range(100, 10_001, 100))
  loss = [6.4 * max(1, (step / 1000) ** -0.3) * min(1, (step / 4000) ** -0.4) for step in updates]
  curves = {
    name: make_loss_curve(name, updates[:count], loss[:count], counts=('actual',))
    for name, count in (('left', 100), ('stays', 40))
  }
  training_set = training_sets.TrainingSet(
    'left', '', {}, 'abc', 10, 1000, 10, 500, 0, '', math.nan, False, '', ''
  )
  sets = {name: dataclasses.replace(training_set, name=name) for name in curves}
  limits = claims.find_limits(sets, curves)
  assert limits['left'] == [] and len(limits['stays']) == 1


def test_the_slope_is_the_mean_over_seeds_with_students_interval(tmp_path: pathlib.Path):
  slopes = (0.01, 0.02, 0.03, 0.06)
  for rows in (1000, 4000):
    write_finetune_pair(
      tmp_path,
      finish(write_subset_run(tmp_path / f'n{rows}', rows)),
      [0.6 + slope * math.log2(rows / 1000) for slope in slopes],
      [0.5] * 4,
      seeds=SEEDS,
    )
  growth = map_verdicts(tmp_path)[2]
  half = 3.182446 * np.std(slopes, ddof=1) / 2  # Student's t of three degrees, four seeds
  assert (growth.value, growth.low, growth.high) == pytest.approx(
    (0.03, 0.03 - half, 0.03 + half), rel=1e-5
  )


NOISE_OF_LARGE_SET = (0.02, -0.02, 0.01, -0.01)  # by seed of fine-tuning


@pytest.mark.parametrize(
  'changes, seeds_of, seeds, half',
  [
    # Student's t of two degrees, three runs, and of three degrees, four seeds
    ((-0.03, 0.0, 0.03), 'pre-training', 3, 4.302653 * 0.03 / math.sqrt(3)),
    ((-0.001, 0.0, 0.001), 'fine-tuning', 4, 3.182446 * np.std(NOISE_OF_LARGE_SET, ddof=1) / 2),
  ],
)
def test_the_wider_interval_of_both_kinds_of_seeds_counts(
  changes: tuple[float, ...], seeds_of: str, seeds: int, half: float, tmp_path: pathlib.Path
):
  """The gap of the larger set, and thus the growth, differs between three pre-training runs."""
  for seed, change in enumerate(changes):
    for rows, gap, noise in (
      (1000, 0.05, (0.0,) * 4),
      (4000, 0.10 + change, NOISE_OF_LARGE_SET),
    ):
      source = finish(write_subset_run(tmp_path / f'n{rows}-{seed}', rows, 6250, seed=seed))
      values = [0.5 + gap + number for number in noise]
      write_finetune_pair(tmp_path, source, values, [0.5] * 4, seeds=SEEDS)
  verdicts = map_verdicts(tmp_path)
  for claim, value, scale in ((1, 0.10, 1), (2, 0.025, 0.5)):  # two doublings between the sizes
    verdict = verdicts[claim]
    assert (verdict.seeds_of, verdict.seeds) == (seeds_of, seeds)
    assert (verdict.value, verdict.low, verdict.high) == pytest.approx(
      (value, value - scale * half, value + scale * half), rel=1e-5
    )


def test_runs_of_one_pretraining_seed_are_averaged(tmp_path: pathlib.Path):
  """Gains of seed 0 are 0.10 and -0.04, of seed 1 0.08: the means 0.03 and 0.08."""
  for name, seed, gain in (('a', 0, 0.10), ('b', 0, -0.04), ('c', 1, 0.08)):
    source = finish(write_subset_run(tmp_path / name, 4000, 6250, seed=seed))
    write_finetune_pair(tmp_path, source, [0.5 + gain] * 2, [0.5] * 2, seeds=(0, 1))
  gap = map_verdicts(tmp_path)[1]
  assert (gap.seeds, gap.seeds_of, gap.verdict) == (2, 'pre-training', OPEN)
  ends = [gap.value, gap.low, gap.high]
  assert ends == pytest.approx([0.055, 0.055 - 12.706 * 0.025, 0.055 + 12.706 * 0.025], rel=1e-3)


def test_runs_of_one_size_with_different_seeds_have_no_slope_by_pretraining(tmp_path: pathlib.Path):
  """Seed 1 has one size, so seed 0 alone has a slope and seeds of fine-tuning count."""
  for rows, seed, gap in ((1000, 0, 0.05), (4000, 0, 0.10), (4000, 1, 0.30)):
    source = finish(write_subset_run(tmp_path / f'n{rows}-{seed}', rows, 6250, seed=seed))
    write_finetune_pair(tmp_path, source, add_noise(0.5 + gap), [0.5] * 4, seeds=SEEDS)
  growth = map_verdicts(tmp_path)[2]
  assert growth.seeds_of == 'fine-tuning' and growth.value == pytest.approx((0.20 - 0.05) / 2)


def test_growth_with_overlap_is_for_ten_points(tmp_path: pathlib.Path):
  for number, overlap in enumerate((0.80, 0.85, 0.90)):
    source = finish(write_subset_run(tmp_path / f'part-{number}', 1000, overlap=overlap))
    write_finetune_pair(
      tmp_path, source, add_noise(0.5 + 0.4 * (overlap - 0.7)), [0.5] * 4, seeds=SEEDS
    )
  verdicts = map_verdicts(tmp_path)
  assert verdicts[3].verdict == HOLDS and verdicts[3].value == pytest.approx(0.04)
  # The task selected all sets, so none counts for claim 1.
  assert verdicts[1].verdict == OPEN and verdicts[1].seeds == 0 and verdicts[1].missing


def test_scores_from_scratch_of_another_protocol_do_not_count(tmp_path: pathlib.Path):
  for rows, epochs in ((1000, 10.0), (4000, 1.0)):
    source = finish(write_subset_run(tmp_path / f'n{rows}', rows))
    for is_pretrained in (True, False) if epochs > 1 else (True,):
      folder = tmp_path / 'tasks' / f'{rows}-{is_pretrained}'
      values = add_noise(0.5 + 0.1 * is_pretrained)
      change_config(
        write_finetune_run(folder, source, values, is_pretrained, seeds=SEEDS), epochs=epochs
      )
  verdicts = map_verdicts(tmp_path)
  assert math.isnan(verdicts[2].value) and verdicts[2].verdict == OPEN
  assert verdicts[1].value == pytest.approx(0.1) and 'n4000' not in verdicts[1].of


def test_the_mean_is_over_tasks_by_common_seed(tmp_path: pathlib.Path):
  source = finish(write_subset_run(tmp_path / 'a', 1000))
  write_finetune_pair(tmp_path, source, [0.6, 0.7, 0.8], [0.5] * 3, seeds=(0, 1, 2))
  write_finetune_pair(tmp_path, source, [0.9, 0.6, 0.6], [0.5] * 3, seeds=(3, 1, 2), task='fewrel')
  gap = map_verdicts(tmp_path)[1]
  assert gap.seeds == 2 and gap.value == pytest.approx((0.15 + 0.2) / 2)
  write_finetune_pair(tmp_path, source, [0.6], [0.5], seeds=(7,), task='dbpedia_14')
  gap = map_verdicts(tmp_path)[1]
  assert gap.verdict == OPEN and gap.seeds == 0 and gap.missing


def test_a_single_seed_decides_nothing(tmp_path: pathlib.Path):
  write_finetune_pair(
    tmp_path, finish(write_subset_run(tmp_path / 'a', 1000)), [0.9], [0.5], seeds=(0,)
  )
  gap = map_verdicts(tmp_path)[1]
  assert gap.verdict == OPEN and gap.value == pytest.approx(0.4) and gap.missing


def test_failed_unfinished_and_continued_runs_are_excluded_and_listed(tmp_path: pathlib.Path):
  continued = continue_run(finish(write_subset_run(tmp_path / 'n9000', 9000)), 'runs/n1000', 100)
  write_finetune_pair(tmp_path, continued, [0.1] * 4, [0.5] * 4, seeds=SEEDS)
  write_sizes(tmp_path, {1000: 0.05, 2000: 0.05})
  worse = write_subset_run(tmp_path / 'n4000', 4000)
  write_finetune_pair(tmp_path, worse, [0.1] * 4, [0.5] * 4, seeds=SEEDS)
  files.write_json(worse / run_dir.FAILURE, {'asked': 'a finite loss', 'found': 'none'})
  write_finetune_pair(
    tmp_path, write_subset_run(tmp_path / 'n8000', 8000), [0.1] * 4, [0.5] * 4, seeds=SEEDS
  )
  committee_folder = write_committee(tmp_path, [0.9] * 4, worse)
  results = find_results(tmp_path)
  gap, committee_verdict = results.verdicts[0], results.verdicts[3]
  assert gap.value == pytest.approx(0.05) and 'n4000' not in gap.of
  reasons = dict(text.split(': ', 1) for text in results.excluded)
  assert reasons.keys() == {'n4000', 'n8000', 'n9000', committee_folder.name}
  assert 'runs/n1000@100' in reasons['n9000']
  assert 'a finite loss' in reasons['n4000'] and run_dir.RESULT in reasons['n8000']
  assert 'n4000' in reasons[committee_folder.name]
  assert committee_verdict.missing.split(';')[0] == committee_study.NEEDED


def test_constant_predictions_are_counted_and_included(tmp_path: pathlib.Path):
  source = finish(write_subset_run(tmp_path / 'a', 1000))
  write_finetune_pair(tmp_path, source, add_noise(0.6), [0.5] * 4, seeds=SEEDS)
  scores = next((tmp_path / 'tasks').glob('*-s')) / run_dir.SCORES
  run_dir.write_lines(
    scores,
    [line | {'constant_prediction': line['seed'] == 2} for line in run_dir.read_lines(scores)],
  )
  gap = map_verdicts(tmp_path)[1]
  assert (gap.collapsed, gap.seeds, gap.verdict) == (1, 4, HOLDS)


def test_constant_predictions_leave_a_claim_undecided(tmp_path: pathlib.Path):
  source = finish(write_subset_run(tmp_path / 'a', 1000, updates=1600))
  write_finetune_pair(tmp_path, source, add_noise(0.4), [0.5] * 4, seeds=SEEDS)
  assert map_verdicts(tmp_path)[1].verdict == FAILS
  scores = next((tmp_path / 'tasks').glob('*-s')) / run_dir.SCORES
  run_dir.write_lines(
    scores, [line | {'constant_prediction': True} for line in run_dir.read_lines(scores)]
  )
  gap = map_verdicts(tmp_path)[1]
  assert gap.verdict == OPEN and gap.high < 0 and gap.limits


def make_model(**changes: Any) -> dict[str, Any]:
  """Returns all fields of a model, as in config.json of a run."""
  config = tiny.get_config()
  config.model.update(num_heads=2, flops_heads=2)
  return {**recipe.as_dict(recipe.resolve(config, 'pretrain').model), **changes}


def write_committee(
  folder: pathlib.Path,
  values: list[float],
  source: pathlib.Path,
  members: int = 3,
  seeds: tuple[int, ...] = SEEDS,
  **changes: Any,
) -> pathlib.Path:
  """Writes a committee with members for each seed, whose accuracies are `values`."""
  workdir = folder / f'committee-{len(list(folder.glob("committee-*")))}'
  workdir.mkdir()
  labels, member_entries = np.arange(EXAMPLES) % 2, []
  for seed, value in zip(seeds, values, strict=True):
    answers = np.where(np.arange(EXAMPLES) < round(value * EXAMPLES), labels, 1 - labels)
    for _ in range(members):
      member = workdir / f'classifier-{len(member_entries)}'
      member.mkdir()
      arrays = {'test outputs': 3 * np.eye(2)[answers], 'test labels': labels}
      np.savez(member / 'outputs.npz', **arrays)
      files.write_json(
        member / 'classifier.json',
        {
          'task': 'ag_news',
          'headline': 'accuracy',
          'seed': seed,
          'step': 8,
          'checkpoint': str(source),
          'model': make_model(**SHALLOW, **changes),
        },
      )
      member_entries.append({'folder': member.name, 'checkpoint': str(source)})
  files.write_json(
    workdir / run_dir.CONFIG, {'kind': committee.COMMITTEE_KIND, 'task': {'name': 'ag_news'}}
  )
  files.write_json(
    workdir / run_dir.MANIFEST, {'parameters': {'total': 9}, 'members': member_entries}
  )
  return finish(workdir)


def write_deep_run(
  folder: pathlib.Path,
  values: list[float],
  name: str = 'bert-6',
  rows: int = 1000,
  updates: int = 1600,
  **changes: Any,
) -> None:
  source = finish(write_subset_run(folder / name, rows, updates, **make_model(**DEEP) | changes))
  write_finetune_run(folder / 'tasks' / name, source, values, True, seeds=SEEDS)
  scores = folder / 'tasks' / name / run_dir.SCORES
  run_dir.write_lines(
    scores, [line | {'split': 'test', 'examples': EXAMPLES} for line in run_dir.read_lines(scores)]
  )


def write_latency(
  folder: pathlib.Path,
  committee_ms: float,
  deep_ms: float,
  members: int = 3,
  relative_error: float = 0.01,
) -> None:
  """Writes latencies of a shallow model, its committees and the deep model, in milliseconds."""

  def make_row(name: str, model_name: str, members: int, median: float) -> dict[str, Any]:
    milliseconds = {
      'median': median,
      'low': median * (1 - relative_error),
      'high': median * (1 + relative_error),
      'p95': 2 * median,
      'lowest': 0.1,
    }
    return {
      'name': name,
      'recipe': model_name,
      'batch': 1,
      'length': 64,
      'members': members,
      'heads': 1,
      'devices': 1,
      'depth': 3,
      'parameters': 5,
      'flops': 7,
      'milliseconds': milliseconds,
      'over_member': 1.0,
    }

  workdir = folder / f'latency-{len(list(folder.glob("latency-*")))}'
  workdir.mkdir()
  files.write_json(
    workdir / run_dir.CONFIG,
    {
      'kind': 'latency',
      'models': {
        'conv': make_model(**SHALLOW, dropout=0.3, vocab_size=9),
        'bert': make_model(**DEEP),
      },
    },
  )
  files.write_json(
    workdir / run_dir.RESULT,
    {
      'machine': 'a <machine>',
      'calls': 100,
      'rows': [
        make_row('conv', 'conv', 1, 0.5),
        make_row('turns', 'conv', members, 9.0),
        make_row('vmapped', 'conv', members, committee_ms),
        make_row('bert', 'bert', 1, deep_ms),
      ],
    },
  )


@pytest.mark.parametrize(
  'committee_score, deep_score, latency, verdict',
  [
    (0.80, 0.80, (1.0, 2.0), HOLDS),
    (0.795, 0.80, (1.0, 2.0), HOLDS),
    (0.77, 0.80, (1.0, 2.0), FAILS),
    (0.80, 0.80, (2.0, 1.0), FAILS),
    (0.80, 0.80, (1.0, 1.005), OPEN),
    (0.80, 0.80, None, OPEN),
  ],
)
def test_the_verdict_on_the_committee_follows_score_and_latency(
  committee_score: float,
  deep_score: float,
  latency: tuple[float, float] | None,
  verdict: str,
  tmp_path: pathlib.Path,
):
  source = finish(write_subset_run(tmp_path / 'conv', 1000, 1600, **make_model(**SHALLOW)))
  write_committee(
    tmp_path,
    [committee_score, committee_score, committee_score + 0.0025, committee_score + 0.0025],
    source,
  )
  write_deep_run(tmp_path, [deep_score, deep_score + 0.0025, deep_score, deep_score + 0.0025])
  if latency:
    write_latency(tmp_path, *latency)
  result = map_verdicts(tmp_path)[4]
  assert result.verdict == verdict and result.seeds == 4
  assert result.value == pytest.approx(committee_score - deep_score, abs=1e-9)
  assert (result.missing == '') == (verdict != OPEN) and 'bert-6' in result.of
  if latency:
    assert result.latency == pytest.approx(latency[0] / latency[1])  # of the fastest strategy
    assert result.latency_low == pytest.approx(latency[0] * 0.99 / (latency[1] * 1.01))
    assert result.latency_low < result.latency < result.latency_high
  else:
    assert 'minilm latency --workdir' in result.missing


def test_the_largest_committee_is_compared_with_the_deepest_run_on_equal_rows(
  tmp_path: pathlib.Path,
):
  source = finish(write_subset_run(tmp_path / 'conv', 1000, **make_model(**SHALLOW)))
  write_committee(tmp_path, [0.5] * 4, source, members=2)
  largest = write_committee(tmp_path, [0.8] * 4, source, members=3)
  for name, rows, changes in (
    ('b-6', 1000, {}),
    ('b-6-less', 1000, {'updates': 1599}),
    ('b-4', 1000, {'num_layers': 4}),
    ('b-6-other', 9000, {}),
    ('b-8-conv', 1000, SHALLOW | {'num_layers': 8}),
  ):
    write_deep_run(tmp_path, add_noise({'b-6': 0.75}.get(name, 0.99)), name, rows, **changes)
  result = map_verdicts(tmp_path)[4]
  assert result.value == pytest.approx(0.05)
  assert f'{largest.name} against b-6' in result.of and 'b-6-' not in result.of
  write_latency(tmp_path, 1.0, 2.0, members=2)  # of the smaller committee
  assert 'minilm latency' in map_verdicts(tmp_path)[4].missing
  write_latency(tmp_path, 1.0, 2.0)
  write_latency(tmp_path, 1.5, 2.0)
  assert map_verdicts(tmp_path)[4].latency == pytest.approx(0.75)  # the largest ratio


def test_members_of_a_seed_predict_by_their_mean_probability(tmp_path: pathlib.Path):
  folder = write_committee(tmp_path, [0.9, 0.6], tmp_path / 'nowhere', seeds=(4, 7))
  outputs = folder / 'classifier-0' / 'outputs.npz'
  with np.load(outputs) as arrays:
    labels = arrays['test labels']
  # The mean logit would follow this confident member alone.
  np.savez(outputs, **{'test outputs': 100 * np.eye(2)[1 - labels], 'test labels': labels})
  run_paths = runs.find_runs([str(tmp_path)])
  first, second = committee_study.read_seed_committees(run_paths, {})
  assert [(first.seed, first.value), (second.seed, second.value)] == [(4, 0.9), (7, 0.6)]
  assert (
    first.shapes == (latencies.encode_latency_shape(make_model(**SHALLOW)),) * 3 and first.rows == 0
  )
  card_path = folder / 'classifier-5' / 'classifier.json'
  card = files.read_json(card_path, 'the card')
  files.write_json(card_path, card | {'step': -1})  # a classifier from scratch is no member
  committees = committee_study.read_seed_committees(run_paths, {})
  assert [len(seed_committee.shapes) for seed_committee in committees] == [3, 2]
  damaged = folder / 'classifier-3' / 'outputs.npz'
  damaged.write_bytes(damaged.read_bytes()[:-30])
  with pytest.raises(InputError, match=r'unreadable .*classifier-3.*outputs\.npz'):
    committee_study.read_seed_committees(run_paths, {})
  damaged.unlink()
  with pytest.raises(InputError, match=r'classifier-3'):
    committee_study.read_seed_committees(run_paths, {})


def test_a_verdict_on_the_committee_lists_the_missing_runs(tmp_path: pathlib.Path):
  source = finish(write_subset_run(tmp_path / 'conv', 1000, **make_model(**SHALLOW)))
  write_finetune_pair(tmp_path, source, [0.6] * 4, [0.5] * 4, seeds=SEEDS)
  assert map_verdicts(tmp_path)[4].missing.startswith(committee_study.NEEDED)
  write_committee(tmp_path, [0.8] * 4, source, members=1)
  assert map_verdicts(tmp_path)[4].missing.startswith(committee_study.NEEDED)
  write_committee(tmp_path, [0.8] * 4, source)
  assert map_verdicts(tmp_path)[4].missing.startswith(committee_study.NEEDED_DEEP)


def test_a_report_has_verdicts_and_latencies(tmp_path: pathlib.Path):
  folder = tmp_path / 'runs'
  write_sizes(folder, {1000: 0.05, 2000: 0.08, 4000: 0.11})
  source = finish(write_subset_run(folder / 'conv', 1000, **make_model(**SHALLOW)))
  write_committee(folder, [0.8] * 4, source)
  write_deep_run(folder, add_noise(0.75))
  write_latency(folder, 1.0, 2.0)
  written = report.report([str(folder)], tmp_path / 'report', draws=20)
  page = Page(written['report.html'].read_text())
  assert all(text in page.text for text in (*claims.CLAIMS.values(), 'a <machine>', '0.50'))
  rows = list(csv.DictReader(written['verdicts.csv'].read_text().splitlines()))
  assert [row['verdict'] for row in rows] == [HOLDS, HOLDS, OPEN, HOLDS]
  first, *_ = csv.DictReader(written['latency.csv'].read_text().splitlines())
  rows = latencies.read_latencies(runs.find_runs([folder]))
  assert float(first['median']) == rows[0].median == 0.5 and len(rows) == 4
  json.dumps([dataclasses.asdict(row) for row in rows])


def test_reports_of_other_studies_have_no_verdicts(tmp_path: pathlib.Path):
  folder = tmp_path / 'runs'
  write_finetune_pair(
    folder,
    finish(write_subset_run(folder / 'a', 1000, of_rows=1000)),
    [0.6] * 3,
    [0.5] * 3,
    task='cola',
  )
  written = report.report([str(folder)], tmp_path / 'report', draws=20)
  page = Page(written['report.html'].read_text())
  assert 'verdicts.csv' not in written and claims.CLAIMS[1] not in page.text


def test_a_latency_without_a_field_is_refused(tmp_path: pathlib.Path):
  write_latency(tmp_path, 1.0, 2.0)
  result = tmp_path / 'latency-0' / run_dir.RESULT
  files.write_json(result, {'rows': [{'name': 'a', 'recipe': 'conv'}], 'machine': '', 'calls': 2})
  with pytest.raises(InputError, match='milliseconds'):
    latencies.read_latencies(runs.find_runs([str(tmp_path)]))
