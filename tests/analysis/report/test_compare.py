"""Tests of `compare`: numbers, verdicts, answers and files, and safety against hostile text."""

import csv
import math
import pathlib
import re

import pytest

from minilm_jax.analysis import ablation_results, ablations
from minilm_jax.analysis.ablation_results import PairedRatio
from minilm_jax.analysis.report import compare, figures
from minilm_jax.cli import main
from minilm_jax.core.errors import InputError
from tests.fake_runs import (
  PLATEAU_BATCH_SIZE,
  PLATEAU_FLOPS_PER_ROW,
  PLATEAU_LOSS,
  ROW_LENGTH,
  write_plateau_run,
)
from tests.html_page import Page, check_rules

TOKENS_PER_UPDATE = PLATEAU_BATCH_SIZE * ROW_LENGTH


def make_rows(
  base: pathlib.Path, home: pathlib.Path, level: float | None = None
) -> dict[str, ablation_results.AblationRow]:
  comparison = ablations.read_comparison([base], [home])
  (part,) = comparison.shapes
  levels = ablation_results.find_levels(comparison, level)
  return {row.change: row for row in ablation_results.make_rows(part, levels)}


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
  """Returns a base that leaves after 2,000 updates, and ablations that leave at other steps."""
  folder = tmp_path / 'past'
  for seed, jitter in enumerate((0, 50, -50)):
    for name, leaves, fields in (
      ('paper', 2000, {}),
      ('relative', 500, {'model__positions': 'relative'}),
      ('warm', 1500, {'optimizer__warmup_fraction': 0.2}),
      ('tied', 2000, {'model__tied': True}),
      ('clip', 2500, {'optimizer__clip': 0.0}),
      ('bert', 9000, {'model__initialization': 'bert'}),
      ('both', 400, {'model__positions': 'relative', 'model__norm': 'pre'}),
    ):
      write_plateau_run(
        folder / f'{seed}' / name, leaves + jitter * leaves / 2000, seed=seed, **fields
      )
  write_plateau_run(folder / 'one', 400, model__positions='rotary')
  return folder


def test_numbers_of_changes(home: pathlib.Path):
  by_change = make_rows(home / '0' / 'paper', home)
  assert by_change['base'].level == pytest.approx(PLATEAU_LOSS, rel=0.01) and by_change[
    'base'
  ].tokens_to_leave[0] == str(2300 * TOKENS_PER_UPDATE)
  relative = by_change['positions=relative']
  assert relative.seeds == (0, 1, 2) and relative.updates_to_leave == ('600', '600', '600')
  assert relative.speed.value == pytest.approx(2300 / 600, rel=0.03) and relative.speed.paired
  assert relative.flops_to_leave[0] == f'{600 * PLATEAU_BATCH_SIZE * PLATEAU_FLOPS_PER_ROW:.4g}'
  # the same curve at four times the speed
  assert relative.multiplier.value == pytest.approx(4, rel=0.03)
  assert relative.loss == pytest.approx(
    max(PLATEAU_LOSS * (4000 / 2050) ** -0.4 * (1 + 0.002 * math.sin(1)), 0), rel=0.002
  )
  assert (
    by_change['clip=0'].multiplier.value < 1
    and by_change['initialization=bert'].updates_to_leave[0] == 'not within 4000'
  )
  assert relative.loss_at_half == pytest.approx(PLATEAU_LOSS * (2000 / 500) ** -0.4, rel=0.01)
  assert relative.test_loss == pytest.approx(relative.validation_loss + 0.1)
  assert list(by_change)[0] == 'base' and list(by_change)[1].startswith('norm=pre, pos')


@pytest.mark.parametrize(
  'low, high, verdict',
  [
    (2.01, 9, ablation_results.CAUSES),
    (2, 9, ablation_results.SHORTENS),
    (1.01, 1.4, ablation_results.SHORTENS),
    (1, 1.49, ablation_results.NOT),
    (0.9, 1.5, ablation_results.OPEN),
    (0.5, 3, ablation_results.OPEN),
    (0.2, 0.99, ablation_results.LENGTHENS),
    (2.5, math.inf, ablation_results.CAUSES),
    (0.0, 0.9, ablation_results.LENGTHENS),
    (0.0, 1.2, ablation_results.NOT),
  ],
)
def test_verdicts_follow_the_interval(low: float, high: float, verdict: str):
  speed = PairedRatio(1.2, low, high, '', 3, 3, True)
  assert ablation_results.classify_speed_up(['x=1'], speed) == verdict
  assert ablation_results.classify_speed_up(['x=1', 'y=2'], speed) == ''
  speed = PairedRatio(1.2, low, high, '', 3, 1, True)
  assert ablation_results.classify_speed_up(['x=1'], speed) == ablation_results.ONE_SEED


def test_answers(home: pathlib.Path):
  answers = list(compare.answer_questions(list(make_rows(home / '0' / 'paper', home).values())))
  base, best, *changes = answers
  assert base.verdict == 'yes' and '9,420,800' in base.number
  assert 'norm=pre, positions=relative' in best.question
  assert 'compute multiplier 5.00 [' in best.number
  assert best.verdict == 'no verdict (several fields)'
  by_change = {answer.question.split()[1]: answer for answer in changes}
  assert {name: answer.verdict for name, answer in by_change.items()} == {
    'positions=relative': ablation_results.CAUSES,
    'positions=rotary': ablation_results.ONE_SEED,
    'warmup_fraction=0.2': ablation_results.SHORTENS,
    'tied=True': ablation_results.NOT,
    'clip=0': ablation_results.LENGTHENS,
    'initialization=bert': ablation_results.LENGTHENS,
  }
  assert by_change['positions=relative'].number.startswith('speed 3.')
  assert by_change['clip=0'].number.endswith('compute multiplier 0.80 [0.80, 0.80]')
  assert 'n = 3' in by_change['clip=0'].notes[0]


def test_base_that_never_leaves_the_plateau(tmp_path: pathlib.Path):
  for seed in (0, 1):
    write_plateau_run(tmp_path / f'paper-{seed}', 9000, seed=seed)
    write_plateau_run(tmp_path / f'relative-{seed}', 500, seed=seed, model__positions='relative')
    write_plateau_run(tmp_path / f'tied-{seed}', 9000, seed=seed, model__tied=True)
  by_change = make_rows(tmp_path / 'paper-0', tmp_path)
  relative, tied = by_change['positions=relative'], by_change['tied=True']
  assert (
    str(relative.speed) == 'at least 6.67 [6.67, ∞]' and relative.verdict == ablation_results.CAUSES
  )
  assert tied.speed.bound == ablation_results.NEITHER_LEFT and tied.verdict == ablation_results.OPEN
  assert by_change['base'].tokens_to_leave == (f'not within {4000 * TOKENS_PER_UPDATE}',) * 2
  answers = list(compare.answer_questions(list(by_change.values())))
  assert answers[0].verdict == 'no'
  assert [answer.verdict for answer in answers if 'tied=True' in answer.question] == [
    'cannot be told'
  ]
  assert any('speed at least 6.67 [6.67, ∞]' in answer.number for answer in answers)


def test_level_is_estimated_or_given(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', 9000)
  write_plateau_run(tmp_path / 'tied', 9000, model__tied=True)
  by_change = make_rows(paper, tmp_path)
  assert math.isnan(by_change['base'].level) and not by_change['base'].tokens_to_leave
  answer = next(compare.answer_questions(list(by_change.values())))
  assert answer.verdict == 'no' and '--plateau_loss' in answer.number
  assert make_rows(paper, tmp_path, 8.0)['tied=True'].updates_to_leave == ('100',)


def test_another_tokenizer_has_a_separate_level_and_no_losses(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', 1000)
  write_plateau_run(
    tmp_path / 'small', 500, model__vocab_size=4010, corpus='others', tokenizer='def'
  )
  row = make_rows(paper, tmp_path)['vocab_size=4010']
  assert row.speed.value == pytest.approx(2, rel=0.05) and row.verdict == ablation_results.ONE_SEED
  assert (
    math.isnan(row.multiplier.value)
    and math.isnan(row.loss_at_half)
    and math.isnan(row.validation_loss)
  )
  assert row.note


def test_unfinished_runs_count_until_their_last_evaluation(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', 2000)
  write_plateau_run(tmp_path / 'relative', 500, updates=1500, model__positions='relative')
  row = make_rows(paper, tmp_path)['positions=relative']
  assert row.under_way == 1 and math.isnan(row.validation_loss) and math.isnan(row.loss_at_whole)
  assert row.multiplier.value == pytest.approx(4, rel=0.05) and row.loss == pytest.approx(
    PLATEAU_LOSS * 2**-0.4, rel=0.01
  )


def test_files_have_equal_bytes(home: pathlib.Path, capsys):
  command = [
    'ablations',
    f'--base={home}/0/paper',
    f'{home}/0',
    '--reference_losses=unigram=6.5,bigram=5',
  ]
  written = []
  for name in ('a', 'b'):
    assert main.main([*command, f'--workdir={home.parent / name}']) == 0
    written.append({path.name: path.read_bytes() for path in (home.parent / name).iterdir()})
  assert written[0] == written[1]
  assert set(written[0]) == {
    'changes.csv',
    'compare.html',
    *(f'{name}.{kind}' for name in ('curves', 'dots', 'multiplier') for kind in ('png', 'svg')),
  }
  text = written[0]['compare.html'].decode()
  page, answers = Page(text), check_rules(text)
  assert len(answers) == 7 and 'norm=pre, positions=relative' in answers[1][0]
  assert 'bigram, 5.00 nats' in page.text and 'script' not in page.tags
  assert all(address.startswith('#') for address in page.addresses)
  table = list(csv.DictReader(written[0]['changes.csv'].decode().splitlines()))
  assert {'speed_value', 'speed_low', 'multiplier_bound', 'verdict'} <= table[0].keys()
  assert len(table) == 7
  output = capsys.readouterr().out
  assert answers[1][2] in output and 'unigram' not in output


def test_recipes_with_many_different_fields(tmp_path: pathlib.Path, capsys):
  for seed in (0, 1, 2):
    write_plateau_run(tmp_path / f'honey-{seed}', 2000 + 30 * seed, seed=seed)
    write_plateau_run(
      tmp_path / f'modern-{seed}',
      500,
      seed=seed,
      model__norm='pre',
      model__positions='rotary',
      model__dropout=0.0,
      model__tied=True,
      batch_size=64,
      per_row=PLATEAU_FLOPS_PER_ROW / 2,
    )
  bases = ','.join(f'{tmp_path}/honey-{seed}' for seed in (0, 1, 2))
  others = [f'{tmp_path}/modern-{seed}' for seed in (0, 1, 2)]
  assert main.main(['ablations', f'--base={bases}', *others, f'--workdir={tmp_path / "out"}']) == 0
  output = ' '.join(capsys.readouterr().out.split())
  assert re.search(r'Does modern-0 [^?]+\?[^?]* compute multiplier 4\.\d+ \[3\.', output)


def test_each_shape_has_its_own_figures(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.setattr(figures.Drawing, 'to_png', lambda drawing: b'')  # saves seconds
  for name, shape in (('', {}), ('wide-', {'model__embedding_size': 64, 'model__hidden_size': 64})):
    write_plateau_run(tmp_path / 'runs' / f'{name}paper', **shape)
    write_plateau_run(tmp_path / 'runs' / f'{name}pre', 500, model__norm='pre', **shape)
  _, tables = compare.compare([tmp_path / 'runs' / 'paper'], [tmp_path / 'runs'], tmp_path / 'out')
  assert len(tables) == 2 and (tmp_path / 'out' / 'dots-e64-h64-f64-a8-l1.svg').exists()


def test_text_of_runs_is_escaped(tmp_path: pathlib.Path, capsys):
  paper = write_plateau_run(tmp_path / 'runs' / 'paper')
  write_plateau_run(tmp_path / 'runs' / '=<b>&amp;', 500, model__norm='<script>\x1b[2J')
  assert (
    main.main(['ablations', f'--base={paper}', f'{tmp_path}/runs', f'--workdir={tmp_path / "out"}'])
    == 0
  )
  page = Page((tmp_path / 'out' / 'compare.html').read_text())
  assert 'script' not in page.tags and 'norm=<script>\ufffd[2J' in page.text
  assert (
    '\x1b[2J' not in capsys.readouterr().out
    and "'=<b>" in (tmp_path / 'out' / 'changes.csv').read_text()
  )


def test_page_quotes_the_preregistration(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setattr(figures.Drawing, 'to_png', lambda drawing: b'')
  write_plateau_run(tmp_path / 'runs' / 'pre', 500, model__norm='pre')
  base = write_plateau_run(tmp_path / 'runs' / 'paper')
  recipe, command = tmp_path / 'recipe.py', ['ablations', f'--base={base}', f'{tmp_path}/runs']
  recipe.write_text('r"""Why <b>?\n\n    minilm \\\n      compare\n\nSo.\n"""\n')
  assert main.main([*command, f'--workdir={tmp_path / "out"}', f'--preregistration={recipe}']) == 0
  text = (tmp_path / 'out' / 'compare.html').read_text()
  page = Page(text)
  assert check_rules(text) and 'b' not in page.tags
  assert 'Why <b>?' in page.text and '    minilm \\\n      compare' in page.text
  assert page.text.index('plateau') < page.text.index('So.') < page.text.index('Loss by FLOPs')
  recipe.write_text('RUNS = ()\n')
  assert main.main([*command, f'--workdir={tmp_path / "none"}', f'--preregistration={recipe}']) == 2
  assert str(recipe) in capsys.readouterr().err and not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
  'flags, value',
  [
    ('--plateau_loss=0', '0'),
    ('--plateau_loss=nan', 'nan'),
    ('--reference_losses=unigram', 'unigram'),
    ('--reference_losses=unigram=-1', '-1'),
    ('--base=', '--base'),
    ('--base=,', 'folder'),
    ('--base=nowhere', 'nowhere'),
    ('', '--base'),
  ],
)
def test_unusable_flags_are_refused(flags: str, value: str, tmp_path: pathlib.Path, capsys):
  paper = write_plateau_run(tmp_path / 'runs' / 'paper')
  write_plateau_run(tmp_path / 'runs' / 'pre', model__norm='pre')
  base = [] if '--base' in flags or not flags else [f'--base={paper}']
  command = ['ablations', *base, *filter(None, [flags]), f'{tmp_path}/runs']
  assert main.main([*command, f'--workdir={tmp_path / "out"}']) == 2
  error = capsys.readouterr().err
  assert error.startswith('asked: ') and value in error and not (tmp_path / 'out').exists()


def test_missing_folders_are_refused(capsys):
  assert main.main(['ablations', '--base=a', '--workdir=b']) == 2
  assert capsys.readouterr().err.startswith('asked: minilm ablations')


@pytest.mark.parametrize('text', ['a', '1=', '=x', 'a=1,b'])
def test_reference_losses_are_names_with_numbers(text: str):
  with pytest.raises(InputError, match='--reference_losses'):
    compare.parse_losses(text)
  assert compare.parse_losses('a=1, b=2.5,') == {'a': 1.0, 'b': 2.5}
