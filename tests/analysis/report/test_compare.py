"""The verb compare on made runs: numbers, verdicts, sentences, files, and that nothing of a run
gets out of its cell.
"""

import csv
import doctest
import math
import pathlib

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
from tests.html_page import Page

TOKENS = PLATEAU_BATCH_SIZE * ROW_LENGTH  # of an update


def rows(
  base: pathlib.Path, home: pathlib.Path, level: float | None = None
) -> dict[str, ablation_results.AblationRow]:
  compared = ablations.read_comparison([base], [home])
  (part,) = compared.shapes
  return {
    row.change: row
    for row in ablation_results.make_rows(part, ablation_results.find_levels(compared, level))
  }


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
  """A base that leaves after 2,000 updates, and changes of one field: much sooner, a little, not,
  later, never.
  """
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


def test_examples_in_docstrings():
  assert doctest.testmod(compare).failed == 0


def test_numbers_of_changes(home: pathlib.Path):
  found = rows(home / '0' / 'paper', home)
  assert found['base'].level == pytest.approx(PLATEAU_LOSS, rel=0.01) and found[
    'base'
  ].tokens_to_leave[0] == str(2300 * TOKENS)
  relative = found['positions=relative']
  assert relative.seeds == (0, 1, 2) and relative.updates_to_leave == ('600', '600', '600')
  assert relative.speed.value == pytest.approx(2300 / 600, rel=0.03) and relative.speed.paired
  assert relative.flops_to_leave[0] == f'{600 * PLATEAU_BATCH_SIZE * PLATEAU_FLOPS_PER_ROW:.4g}'
  # the same curve at four times the speed
  assert relative.multiplier.value == pytest.approx(4, rel=0.03)
  assert relative.loss == pytest.approx(
    max(PLATEAU_LOSS * (4000 / 2050) ** -0.4 * (1 + 0.002 * math.sin(1)), 0), rel=0.002
  )
  assert (
    found['clip=0'].multiplier.value < 1
    and found['initialization=bert'].updates_to_leave[0] == 'not within 4000'
  )
  assert relative.loss_at_half == pytest.approx(PLATEAU_LOSS * (2000 / 500) ** -0.4, rel=0.01)
  assert relative.test_loss == pytest.approx(relative.validation_loss + 0.1)
  assert list(found)[0] == 'base' and list(found)[1].startswith('norm=pre, pos')


def test_verdicts(home: pathlib.Path):
  found = {name: row.verdict for name, row in rows(home / '0' / 'paper', home).items()}
  assert found == {
    'base': '',
    'norm=pre, positions=relative': '',
    'positions=relative': ablation_results.CAUSES,
    'positions=rotary': ablation_results.ONE_SEED,
    'warmup_fraction=0.2': ablation_results.SHORTENS,
    'tied=True': ablation_results.NOT,
    'clip=0': ablation_results.LENGTHENS,
    'initialization=bert': ablation_results.LENGTHENS,
  }


@pytest.mark.parametrize(
  'low, high, said',
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
def test_the_rules(low: float, high: float, said: str):
  assert ablation_results.judge_speed(['x=1'], PairedRatio(1.2, low, high, '', 3, 3, True)) == said
  assert (
    ablation_results.judge_speed(['x=1', 'y=2'], PairedRatio(1.2, low, high, '', 3, 3, True)) == ''
  )
  assert (
    ablation_results.judge_speed(['x=1'], PairedRatio(1.2, low, high, '', 3, 1, True))
    == ablation_results.ONE_SEED
  )


def test_sentences(home: pathlib.Path):
  said = list(compare.sentences(list(rows(home / '0' / 'paper', home).values())))
  for text in (
    'The best change is norm=pre, positions=relative: compute multiplier 5.00',
    'n = 3, paired by seed).',
    'More FLOPs to a loss than the base (the interval lies below 1): clip=0 (0.80 [0.80, 0.80])',
    'half the tokens): positions=relative (speed 3.',
    'It is shortened by: warmup_fraction=0.2 (speed 1.3',
    'It is not shortened to two thirds or less by: tied=True (speed 1.0',
    'One seed each, an indication and no verdict: positions=rotary (speed 4.',
  ):
    assert any(text in one for one in said), (text, said)


def test_a_base_that_never_leaves(tmp_path: pathlib.Path):
  for seed in (0, 1):
    write_plateau_run(tmp_path / f'paper-{seed}', 9000, seed=seed)
    write_plateau_run(tmp_path / f'relative-{seed}', 500, seed=seed, model__positions='relative')
    write_plateau_run(tmp_path / f'tied-{seed}', 9000, seed=seed, model__tied=True)
  found = rows(tmp_path / 'paper-0', tmp_path)
  relative, tied = found['positions=relative'], found['tied=True']
  assert (
    str(relative.speed) == 'at least 6.67 [6.67, ∞]' and relative.verdict == ablation_results.CAUSES
  )
  assert tied.speed.bound == ablation_results.NEITHER_LEFT and tied.verdict == ablation_results.OPEN
  assert found['base'].tokens_to_leave == (f'not within {4000 * TOKENS}',) * 2
  said = '\n'.join(compare.sentences(list(found.values())))
  assert (
    'leave it at no more than half the tokens): positions=relative (speed at least 6.67 [6.67, ∞])'
    in said
  )
  assert 'so they cannot be told apart: tied=True.' in said and 'Cannot be told yet' not in said


def test_the_level_is_found_or_given(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', 9000)
  write_plateau_run(tmp_path / 'tied', 9000, model__tied=True)
  found = rows(paper, tmp_path)
  assert math.isnan(found['base'].level) and not found['base'].tokens_to_leave
  assert 'give its loss in nats with --plateau_loss' in next(
    compare.sentences(list(found.values()))
  )
  assert rows(paper, tmp_path, 8.0)['tied=True'].updates_to_leave == ('100',)


def test_another_tokenizer_has_its_own_level_and_no_losses(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', 1000)
  write_plateau_run(
    tmp_path / 'small', 500, model__vocab_size=4010, corpus='others', tokenizer='def'
  )
  row = rows(paper, tmp_path)['vocab_size=4010']
  assert row.speed.value == pytest.approx(2, rel=0.05) and row.verdict == ablation_results.ONE_SEED
  assert (
    math.isnan(row.multiplier.value)
    and math.isnan(row.loss_at_half)
    and math.isnan(row.validation_loss)
  )
  assert 'another tokenizer' in row.note


def test_runs_under_way_count_as_far_as_they_are(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', 2000)
  write_plateau_run(tmp_path / 'relative', 500, updates=1500, model__positions='relative')
  row = rows(paper, tmp_path)['positions=relative']
  assert row.under_way == 1 and math.isnan(row.validation_loss) and math.isnan(row.loss_at_whole)
  assert row.multiplier.value == pytest.approx(4, rel=0.05) and row.loss == pytest.approx(
    PLATEAU_LOSS * 2**-0.4, rel=0.01
  )


def test_files_are_the_same_bytes_each_time(home: pathlib.Path, capsys):
  command = [
    'ablations',
    f'--base={home}/0/paper',
    f'{home}/0',
    '--reference_losses=unigram=6.5,bigram=5',
  ]
  made = []
  for place in ('a', 'b'):
    assert main.main([*command, f'--workdir={home.parent / place}']) == 0
    made.append({path.name: path.read_bytes() for path in (home.parent / place).iterdir()})
  assert made[0] == made[1]
  assert sorted(made[0]) == [
    'changes.csv',
    'compare.html',
    'curves.png',
    'curves.svg',
    'dots.png',
    'dots.svg',
    'multiplier.png',
    'multiplier.svg',
  ]
  page = Page(made[0]['compare.html'].decode())
  assert (
    'The best change is norm=pre, positions=relative' in page.text
    and 'bigram, 5.00 nats' in page.text
  )
  assert all(address.startswith('#') for address in page.addresses) and 'script' not in page.tags
  table = list(csv.DictReader(made[0]['changes.csv'].decode().splitlines()))
  assert {'speed_value', 'speed_low', 'multiplier_bound', 'verdict'} <= table[0].keys() and len(
    table
  ) == 7
  out = capsys.readouterr().out
  assert 'The best change is norm=pre, positions=relative' in out and 'unigram' not in out


def test_two_recipes_that_differ_in_much(tmp_path: pathlib.Path, capsys):
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
  assert (
    main.main(
      [
        'ablations',
        f'--base={bases}',
        *(f'{tmp_path}/modern-{seed}' for seed in (0, 1, 2)),
        f'--workdir={tmp_path / "out"}',
      ]
    )
    == 0
  )
  said = ' '.join(capsys.readouterr().out.split())
  assert 'The best change is modern-0: compute multiplier 4.' in said and '(95% interval 3.' in said


def test_several_shapes_have_figures_of_their_own(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.setattr(figures, 'png', lambda figure: b'')  # they take seconds
  for name, shape in (('', {}), ('wide-', {'model__embedding_size': 64, 'model__hidden_size': 64})):
    write_plateau_run(tmp_path / 'runs' / f'{name}paper', **shape)
    write_plateau_run(tmp_path / 'runs' / f'{name}pre', 500, model__norm='pre', **shape)
  _, tables = compare.compare([tmp_path / 'runs' / 'paper'], [tmp_path / 'runs'], tmp_path / 'out')
  assert len(tables) == 2 and (tmp_path / 'out' / 'dots-e64-h64-f64-a8-l1.svg').exists()


def test_what_a_run_says_of_itself_stays_text(tmp_path: pathlib.Path, capsys):
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


def test_the_page_begins_with_the_question(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setattr(figures, 'png', lambda figure: b'')
  write_plateau_run(tmp_path / 'runs' / 'pre', 500, model__norm='pre')
  asked, command = (
    tmp_path / 'asked.py',
    ['ablations', f'--base={write_plateau_run(tmp_path / "runs" / "paper")}', f'{tmp_path}/runs'],
  )
  asked.write_text('r"""Why <b>?\n\n    minilm \\\n      compare\n\nSo.\n"""\n')
  assert main.main([*command, f'--workdir={tmp_path / "out"}', f'--preregistration={asked}']) == 0
  page = Page((tmp_path / 'out' / 'compare.html').read_text())
  assert (
    'Why <b>?' in page.text and 'b' not in page.tags and '    minilm \\\n      compare' in page.text
  )
  assert page.text.index('So.') < page.text.index('The plateau is at')
  asked.write_text('RUNS = ()\n')
  assert main.main([*command, f'--workdir={tmp_path / "none"}', f'--preregistration={asked}']) == 2
  assert 'no text at its head' in capsys.readouterr().err and not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
  'flags, said',
  [
    ('--plateau_loss=0', 'a loss level of 0'),
    ('--plateau_loss=nan', 'not a positive'),
    ('--reference_losses=unigram', 'no name with a loss'),
    ('--reference_losses=unigram=-1', 'a loss unigram of -1'),
    ('--base=', 'no --base'),
    ('--base=,', 'no folder'),
    ('--base=nowhere', 'no such folder'),
    ('', 'no --base'),
  ],
)
def test_what_cannot_be_used_is_refused(flags: str, said: str, tmp_path: pathlib.Path, capsys):
  paper = write_plateau_run(tmp_path / 'runs' / 'paper')
  write_plateau_run(tmp_path / 'runs' / 'pre', model__norm='pre')
  base = [] if '--base' in flags or not flags else [f'--base={paper}']
  status = main.main(
    [
      'ablations',
      *base,
      *filter(None, [flags]),
      f'{tmp_path}/runs',
      f'--workdir={tmp_path / "out"}',
    ]
  )
  error = capsys.readouterr().err
  assert (
    status == 2
    and said in error
    and error.startswith('asked: ')
    and not (tmp_path / 'out').exists()
  )


def test_without_folders(capsys):
  assert main.main(['ablations', '--base=a', '--workdir=b']) == 2
  assert 'no folder with runs beside the base' in capsys.readouterr().err


@pytest.mark.parametrize('given', ['a', '1=', '=x', 'a=1,b'])
def test_lines_are_names_with_losses(given: str):
  with pytest.raises(InputError, match='with a loss'):
    compare.named_losses(given)
  assert compare.named_losses('a=1, b=2.5,') == {'a': 1.0, 'b': 2.5}
