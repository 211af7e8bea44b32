"""Writes the comparison of ablations with a base recipe: page, tables and figures.

The numbers come from `ablation_results` and `ablation_glue`, the figures from `compare_figures`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import rich.table
from etils import epath

from minilm_jax.analysis import ablation_glue, ablation_results, ablations, runs
from minilm_jax.analysis.ablation_glue import AVERAGE, TRAININGS, GlueRow
from minilm_jax.analysis.ablation_results import (
  CAUSES,
  CAUSES_ABOVE,
  LENGTHENS,
  NOT,
  SHORTENS,
  UNCHANGED_BELOW,
  AblationRow,
)
from minilm_jax.analysis.ablations import Comparison
from minilm_jax.analysis.number_format import NONE, format_interval, format_points
from minilm_jax.analysis.report import compare_figures, html
from minilm_jax.analysis.report.sections import (
  Answer,
  Section,
  Table,
  TableFormat,
  as_csv,
  encode_figures,
  list_section,
  to_terminal,
)
from minilm_jax.analysis.scores import make_score_table, select_main
from minilm_jax.core import lock, recipe
from minilm_jax.core.errors import InputError
from minilm_jax.core.files import write_bytes

_GLUE_NOTES = (
  'Cells: score of the ablation against the base, n pairs, difference with its 95% interval.',
  'Pairs are seeds of pre-training if several are scored. Otherwise they are seeds of fine-tuning (f), '
  'which omit the variance of pre-training.',
  'The average covers the tasks that all pairs of a row have. Averages over different tasks do not '
  'compare.',
)
Tables = Mapping[str, Sequence[AblationRow]]  # shape: rows, the base first


def compare(
  bases: Sequence[epath.PathLike],
  folders: Sequence[epath.PathLike],
  workdir: epath.PathLike,
  level: float | None = None,
  lines: Mapping[str, float] | None = None,
  question: str = '',
) -> tuple[Comparison, Tables]:
  """Writes compare.html, changes.csv and the figures curves, dots and multiplier (.svg and .png).

  Fine-tuned runs add glue.csv. With several shapes, the names of figures end in the shape, as in
  curves-e64-h64-f256-a8-l2.

  Args:
    bases: run directories of the base recipe.
    folders: run directories, or folders that hold them at any depth, with or without the bases.
    workdir: directory of the files, made if absent.
    level: of the plateau, nats. By default the loss of word frequencies, from `minilm
      ngram-baselines` in the folders, or else the level of the runs.
    lines: other losses to draw, nats by name, besides those of n-gram baselines.
    question: path of a recipe whose docstring is the preregistration, which the page quotes.

  Returns:
    The comparison, and the rows of each shape, the base first.

  Raises:
    LockedError: another process writes there.
    InputError: no base, no ablation, a loss that is not positive, a damaged file, or a recipe
      without a docstring.
  """
  for name, loss in {**(lines or {}), **({} if level is None else {'level': level})}.items():
    if not (math.isfinite(loss) and loss > 0):
      raise InputError(
        f'a loss {name} of {loss:g}', 'not a positive number of nats', 'give a loss, as in 5.9'
      )
  preregistration = recipe.read_docstring(question) if question else ''
  comparison = ablations.read_comparison(bases, folders)
  levels = ablation_results.find_levels(comparison, level)
  scores = select_main(make_score_table(runs.read_scores(comparison.run_paths)))
  lines = {**comparison.ngram_losses, **(lines or {})}
  tables, all_glue, answers, sections = {}, [], [], []
  for part in comparison.shapes:
    glue = ablation_glue.find_glue_rows(part, scores)
    rows = ablation_results.make_rows(part, levels, glue)
    shape = part.shape if len(comparison.shapes) > 1 else ''
    answers += answer_questions(rows, shape)
    sections += compare_figures.make_figure_sections(part, rows, levels[''], lines, shape)
    sections += make_table_sections(shape, rows, glue)
    tables[part.shape] = rows
    all_glue += glue
  sections += list_other_runs(comparison)
  all_rows = [row for rows in tables.values() for row in rows]
  page = html.render('Ablations of a base recipe', answers, sections, preregistration)
  contents = {
    'changes.csv': as_csv(AblationRow, all_rows),
    **({'glue.csv': as_csv(GlueRow, all_glue)} if all_glue else {}),
    **encode_figures(sections),
    'compare.html': page.encode(),
  }
  workdir = epath.Path(workdir)
  with lock.hold_lock(workdir):
    for name, content in contents.items():
      write_bytes(workdir / name, content)
  return comparison, tables


def answer_questions(rows: Sequence[AblationRow], shape: str = '') -> Iterator[Answer]:
  """Yields the answers on the plateau and on each ablation.

  Args:
    shape: name of the shape in questions; '' with a single shape.
  """
  base, *changes = rows
  scope = f' ({shape})' if shape else ''
  yield _answer_base(base, scope)
  for row in changes:
    yield _answer_change(row, scope, bool(base.tokens_to_leave))
  for row in changes:
    if row.glue_verdict:
      difference = format_interval(row.glue.difference, row.glue.low, row.glue.high)
      number = f'{difference} points, {len(row.glue_tasks)} tasks, n = {row.glue.n} {row.glue.of}'
      yield Answer(f'Is {row.change} worse on GLUE{scope}?', row.glue_verdict, number)


def _answer_base(base: AblationRow, scope: str) -> Answer:
  if not base.tokens_to_leave:
    return Answer(
      f'Do the runs of the base show a plateau{scope}?',
      'no',
      'the flag --plateau_loss gives its loss in nats',
    )
  exits = [not tokens.startswith('not') for tokens in base.tokens_to_leave]
  tokens = ', '.join(map(_group_digits, base.tokens_to_leave))
  return Answer(
    f'Does the base leave the plateau{scope}?',
    'yes' if all(exits) else 'not all seeds' if any(exits) else 'no',
    f'plateau at {base.level:.3f} nats; tokens until the exit by seed: {tokens}',
  )


def _answer_change(row: AblationRow, scope: str, has_plateau: bool) -> Answer:
  """Returns the verdict on the plateau or, without a plateau, on FLOPs to a loss."""
  notes, ratio = [], row.multiplier
  if math.isfinite(ratio.value):
    pairing = 'paired by seed' if ratio.paired else 'not paired'
    interval = 'no interval' if math.isnan(ratio.low) else '95% interval'
    loss = f'loss of {row.loss:.3f} nats'
    notes.append(f'{row.change}: {loss}, n = {ratio.seeds}, {pairing}, {interval}.')
  if row.note:
    notes.append(f'{row.change}: {row.note}.')
  multiplier = f'compute multiplier {ratio}' if str(ratio) else ''
  if has_plateau:
    verdict = row.verdict or 'no verdict (several fields)'
    speed = f'speed {row.speed}' if str(row.speed) else ''
    number = '; '.join(filter(None, (speed, multiplier))) or 'not measured'
    return Answer(f'Does {row.change} shorten the plateau{scope}?', verdict, number, notes)
  verdict = 'yes' if ratio.low > 1 else 'no, more' if ratio.high < 1 else 'undecided'
  question = f'Does {row.change} need fewer FLOPs than the base{scope}?'
  return Answer(question, verdict, multiplier or 'not measured', notes)


def _group_digits(tokens: str) -> str:
  """Returns a number of tokens with thousands separators.

  >>> _group_digits('not within 8192000')
  'not within 8,192,000'
  """
  words, _, number = tokens.rpartition(' ')
  return f'{words} {int(number):,}'.strip()


def make_table_sections(
  shape: str, rows: Sequence[AblationRow], glue: Sequence[GlueRow] = ()
) -> Iterator[Section]:
  """Yields the tables of one shape, whose name is '' with a single shape."""
  scope = f', {shape}' if shape else ''
  yield Section(f'Ablations{scope}', table=ABLATION_FORMAT.fill(rows))
  if glue:
    yield Section(f'GLUE{scope}', table=make_glue_table(glue))


def list_other_runs(comparison: Comparison) -> Iterator[Section]:
  """Yields the n-gram baselines, the runs under way and the runs left out."""
  if comparison.ngram_losses:
    losses = '; '.join(f'{name} {loss:.3f}' for name, loss in comparison.ngram_losses.items())
    yield Section('N-gram baselines', f'N-gram predictors reach {losses} nats.')
  yield from list_section('Runs under way', 'run', comparison.under_way)
  yield from list_section('Left out', 'run: reason', comparison.left_out)


def make_glue_table(rows: Sequence[GlueRow]) -> Table:
  """Returns the GLUE scores: a row an ablation, a column a task."""
  tasks = sorted({row.task for row in rows}, key=lambda task: (task != AVERAGE, task))
  by_change: dict[str, dict[str, str]] = {}
  for row in rows:
    by_change.setdefault(row.change, {})[row.task] = _format_glue(row)
  return Table(
    ['ablation', *tasks],
    1,
    [[change, *(cells.get(task, NONE) for task in tasks)] for change, cells in by_change.items()],
    'Headline scores times 100 of models fine-tuned from the ablation and from the base.',
    _GLUE_NOTES,
  )


def _format_glue(row: GlueRow) -> str:
  score = row.score
  pairs = '' if score.of == TRAININGS else ' f'
  tasks = f'; {len(row.tasks)} tasks' if row.tasks else ''
  return (
    f'{format_points(score.value)} against {format_points(score.base)}; n = {score.n}{pairs}{tasks}; '
    f'{format_interval(score.difference, score.low, score.high)}'
  )


def list_terminal_parts(comparison: Comparison, tables: Tables) -> list[rich.table.Table | str]:
  """Returns the table and the answers of each shape, then the other runs, for a terminal."""
  parts: list[rich.table.Table | str] = []
  for shape, rows in tables.items():
    for section in make_table_sections(shape, rows):
      parts += to_terminal(section)
    parts += [*map(str, answer_questions(rows, shape if len(tables) > 1 else '')), '']
  return parts + [part for section in list_other_runs(comparison) for part in to_terminal(section)]


def parse_losses(text: str) -> dict[str, float]:
  """Returns losses by name, from the value of `--reference_losses`.

  >>> parse_losses('unigram=5.9,bigram=4.2')
  {'unigram': 5.9, 'bigram': 4.2}

  Raises:
    InputError: an entry is not a name with a number.
  """
  losses = {}
  for entry in filter(None, map(str.strip, text.split(','))):
    name, _, loss = entry.partition('=')
    try:
      losses[name.strip()] = float(loss)
    except ValueError:
      raise InputError(
        f'--reference_losses={text}',
        f'{entry!r}, not a name with a loss in nats',
        'give names and losses, as in --reference_losses=unigram=5.9,bigram=4.2',
      ) from None
  return losses


def _format_losses(*values: float) -> str:
  return '; '.join(f'{value:.3f}' if math.isfinite(value) else NONE for value in values)


def _format_multiplier(row: AblationRow) -> str:
  target = f'; to {row.loss:.3f}' if math.isfinite(row.multiplier.value) else ''
  return (str(row.multiplier) or NONE) + target


ABLATION_FORMAT = TableFormat(
  2,
  (
    (
      'ablation',
      lambda row: row.change + (f'; {row.under_way} under way' if row.under_way else ''),
    ),
    ('verdict', lambda row: row.verdict or NONE),
    ('seeds', lambda row: '; '.join(map(str, row.seeds))),
    ('tokens to leave', lambda row: '; '.join(map(_group_digits, row.tokens_to_leave)) or NONE),
    ('speed,; base / ablation [95% interval]', lambda row: str(row.speed) or NONE),
    ('compute multiplier,; base / ablation [95% interval]', _format_multiplier),
    (
      'loss at 1/4; 1/2; 1 of; base FLOPs',
      lambda row: _format_losses(row.loss_at_quarter, row.loss_at_half, row.loss_at_whole),
    ),
    ('last loss: validation; test', lambda row: _format_losses(row.validation_loss, row.test_loss)),
  ),
  'Ablations with the base in the first row. Losses are nats a masked token, means over seeds.',
  (
    'Speed is tokens of the base until it leaves the plateau over those of the ablation. “At least” and '
    '“at most” are bounds, as some run never left. Tokens include pads.',
    'The compute multiplier is FLOPs of the base over FLOPs of the ablation. Both sides stop at the '
    'lowest loss that all their runs reached. The multiplier is a bound if the first evaluation of a '
    'run is below that loss. FLOPs are those of the program.',
    'Ratios are geometric means over seeds with Student’s 95% interval.',
    f'Verdicts by the interval of the speed: above {CAUSES_ABOVE:g} {CAUSES}; above 1 {SHORTENS}; below 1 '
    f'{LENGTHENS}; below {UNCHANGED_BELOW:g} {NOT}. An ablation of several fields has no verdict.',
  ),
)
