"""Writes the comparison of recipes with a base: page, tables and figures.

The numbers come from `ablations` and `ablation_results`, the figures from `compare_figures`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import rich.table
from etils import epath

from minilm_jax.analysis import ablation_results, ablations, runs
from minilm_jax.analysis.ablation_results import (
  AVERAGE,
  CAUSES,
  CAUSES_ABOVE,
  LENGTHENS,
  NEITHER_LEFT,
  NO_WORSE,
  NOT,
  ONE_SEED,
  OPEN,
  SHORTENS,
  UNCHANGED_BELOW,
  WORSE,
  AblationRow,
  GlueRow,
)
from minilm_jax.analysis.ablations import Comparison
from minilm_jax.analysis.report import compare_figures, figures
from minilm_jax.analysis.report.html import frame, to_html
from minilm_jax.analysis.report.sections import (
  Picture,
  Section,
  Table,
  TableFormat,
  as_csv,
  to_terminal,
)
from minilm_jax.analysis.scores import (
  NONE,
  TRAININGS,
  format_interval,
  format_points,
  score_table,
  select_main,
)
from minilm_jax.core import lock, recipe
from minilm_jax.core.errors import InputError
from minilm_jax.core.files import write_bytes

TITLE = 'Recipes against a base'
GLUE_CAPTION = (
  'Headline scores times 100 of runs fine-tuned on runs of the change and of the base: the change’s against the '
  'base’s, n pairs, and the difference with its 95% interval. Pairs are seeds of pre-training where several are '
  'scored, else seeds of fine-tuning (f), which do not hold what another pre-training would change. The average is '
  'over the tasks that all pairs of its line have; averages over other tasks are other numbers.'
)
# The pictures in order: the beginning of their names, and what stands above them.
PICTURES = {
  'curves': 'Validation loss against FLOPs, a line a run; of many changes those that change most. Point at a line to '
  'read what it is.',
  'dots': 'Tokens of the base until it leaves the plateau over those of the change, with the 95% interval. A hollow '
  'triangle is a bound: some run never left.',
  'multiplier': 'FLOPs of the base to a loss over those of the change to the same loss, along the curve, with the '
  '95% interval where there are seeds for one.',
}
_SAID = {
  CAUSES: 'The plateau is caused by what these change (they leave it at no more than half the tokens)',
  SHORTENS: 'It is shortened by',
  LENGTHENS: 'It is lengthened by',
  NOT: 'It is not shortened to two thirds or less by',
  OPEN: 'Cannot be told yet',
  ONE_SEED: 'One seed each, an indication and no verdict',
}
_SAID_OF_GLUE = {
  NO_WORSE: 'No worse on GLUE (the interval lies above minus one point)',
  WORSE: 'Worse on GLUE (it lies below minus one point)',
  OPEN: 'On GLUE it cannot be told of',
  ONE_SEED: 'On GLUE an indication and no verdict, from one pair of pre-trainings each',
}


def _losses(*values: float) -> str:
  return '; '.join(f'{value:.3f}' if math.isfinite(value) else NONE for value in values)


def _compute_cell(row: AblationRow) -> str:
  target = f'; to {row.loss:.3f}' if math.isfinite(row.multiplier.value) else ''
  return (str(row.multiplier) or NONE) + target


ABLATION_FORMAT = TableFormat(
  2,
  (
    ('change', lambda row: row.change + (f'; {row.under_way} under way' if row.under_way else '')),
    ('verdict', lambda row: row.verdict or NONE),
    ('seeds', lambda row: '; '.join(map(str, row.seeds))),
    ('tokens to leave', lambda row: '; '.join(map(_grouped, row.tokens_to_leave)) or NONE),
    ('speed, base’s tokens / its own; [95% interval]', lambda row: str(row.speed) or NONE),
    ('compute multiplier, base’s FLOPs / its own; [95% interval]', _compute_cell),
    (
      'loss at 1/4; 1/2; 1 of the base’s',
      lambda row: _losses(row.loss_at_quarter, row.loss_at_half, row.loss_at_whole),
    ),
    ('end: validation; test', lambda row: _losses(row.validation_loss, row.test_loss)),
  ),
  'A change is what a recipe differs in from the base. Tokens include pads, FLOPs are those that the program '
  'counts, losses are nats a masked token on validation rows, means over seeds. Times fewer: what the base took '
  'over what the change took, the geometric mean over seeds with Student’s 95% interval. Tokens are those until '
  'the plateau is left (at least, at most: some run never left). FLOPs are those to the loss below them, the lowest '
  'that all runs of both have reached: a change that stops there while the base goes on is worse than this number '
  f'says. Verdicts go by the interval of the tokens: above {CAUSES_ABOVE:g} {CAUSES}, above 1 {SHORTENS}, below 1 '
  f'{LENGTHENS}, below {UNCHANGED_BELOW:g} {NOT}; a change of several fields gets none.',
)


def sentences(rows: Sequence[AblationRow]) -> Iterator[str]:
  """What the rows of one shape say in plain words, the base's first among them."""
  base, *changes = rows
  yield _of_base(base)
  measured = [row for row in changes if math.isfinite(row.multiplier.value)]
  if measured:
    best = measured[0]
    how = (
      'The best change is'
      if best.multiplier.value > 1
      else 'No change is better than the base; the nearest is'
    )
    yield f'{how} {best.change}: {_multiplier(best)}.'
  for said, own in (
    (
      'No difference from the base is found in FLOPs to a loss (the interval contains 1)',
      [row for row in measured if row.multiplier.low <= 1 <= row.multiplier.high],
    ),
    (
      'More FLOPs to a loss than the base (the interval lies below 1)',
      [row for row in measured if row.multiplier.high < 1],
    ),
  ):
    if own:
      yield f'{said}: ' + '; '.join(f'{row.change} ({row.multiplier})' for row in own) + '.'
  several = [row for row in measured[1:] if len(row.fields) > 1]
  if several:
    yield (
      'Of several fields: '
      + '; '.join(f'{row.change}: {_multiplier(row)}' for row in several)
      + '.'
    )
  for verdict, said in _SAID.items() if base.tokens_to_leave else ():
    own = [row for row in changes if row.verdict == verdict and row.speed.bound != NEITHER_LEFT]
    if own:
      yield f'{said}: ' + '; '.join(f'{row.change} ({_speed(row)})' for row in own) + '.'
  held = [row.change for row in changes if row.speed.bound == NEITHER_LEFT]
  if held:
    yield f'Neither the base nor these have left it in every seed, so they cannot be told apart: {"; ".join(held)}.'
  for verdict, said in _SAID_OF_GLUE.items():
    own = [row for row in changes if row.glue_verdict == verdict]
    if own:
      yield f'{said}: ' + '; '.join(f'{row.change} ({_glue(row)})' for row in own) + '.'
  for row in changes:
    if row.note:
      yield f'{row.change}: {row.note}.'


def _of_base(base: AblationRow) -> str:
  if not base.tokens_to_leave:
    return (
      'No plateau can be seen in these runs: none stood still and then fell, or they disagree; give its loss in '
      'nats with --plateau_loss.'
    )
  tokens = '; '.join(_grouped(one) for one in base.tokens_to_leave)
  return f'The plateau is at {base.level:.3f} nats. Tokens until the base leaves it, seed by seed: {tokens}.'


def _multiplier(row: AblationRow) -> str:
  own = row.multiplier
  ends = (
    f' (95% interval {own.low:.2f} to {own.high:.2f}, n = {own.seeds}{", paired by seed" if own.paired else ""})'
    if not math.isnan(own.low)
    else f' (n = {own.seeds}: no interval)'
  )
  return f'compute multiplier {own.value:.2f} to a loss of {row.loss:.3f}{ends}'


def _speed(row: AblationRow) -> str:
  return f'speed {row.speed}' if math.isfinite(row.speed.value) else row.note or 'not measured'


def _glue(row: AblationRow) -> str:
  difference = format_interval(row.glue.difference, row.glue.low, row.glue.high)
  return f'{difference} points, {len(row.glue_tasks)} tasks, n = {row.glue.n} {row.glue.of}'


def _grouped(tokens: str) -> str:
  """A number of tokens for a reader.

  >>> _grouped('not within 8192000')
  'not within 8,192,000'
  """
  words, _, number = tokens.rpartition(' ')
  return f'{words} {int(number):,}'.strip()


def around(compared: Comparison) -> Iterator[str]:
  """What is said of all shapes together: what counts reach, runs under way, and those in none of
  the tables.
  """
  if compared.ngram_losses:
    yield f'Counts alone reach: {"; ".join(f"{name} {loss:.3f}" for name, loss in compared.ngram_losses.items())} nats.'
  if compared.under_way:
    yield f'Under way, and taken as far as they are: {"; ".join(compared.under_way)}.'
  if compared.left_out:
    yield f'Left out: {"; ".join(compared.left_out)}.'


def render(
  compared: Comparison,
  tables: Mapping[str, Sequence[AblationRow]],
  glue: Mapping[str, Sequence[GlueRow]],
  pictures: Mapping[str, Mapping[str, str]],
  question: str = '',
) -> str:
  """Returns the whole page.

  Args:
    compared: the recipes that were compared.
    tables: the rows of each shape, the base first.
    glue: the scores of each shape.
    pictures: `<svg>` elements by their names, of each shape.
    question: the question and its rules, if anything.
  """
  sections = (
    [Section('The question, and its rules', text=question.split('\n\n'), folded=True)]
    if question
    else []
  )
  for shape, rows in tables.items():
    sections.append(shape_section(shape, rows, pictures[shape]))
    if glue[shape]:
      sections.append(Section('GLUE', table=glue_table(glue[shape]), level=3))
  sections.append(Section(items=list(around(compared))))
  return frame(TITLE, [f'<h1>{TITLE}</h1>', *map(to_html, sections)])


def shape_section(shape: str, rows: Sequence[AblationRow], pictures: Mapping[str, str]) -> Section:
  """Returns the section of one shape; `pictures` are `<svg>` elements by name."""
  return Section(
    shape,
    items=list(sentences(rows)),
    figures=[
      Picture(pictures[name], caption) for name, caption in PICTURES.items() if name in pictures
    ],
    table=ABLATION_FORMAT.fill(rows),
  )


def glue_table(rows: Sequence[GlueRow]) -> Table:
  """Returns the GLUE scores: a line a change, a column a task."""
  tasks = sorted({row.task for row in rows}, key=lambda task: (task != AVERAGE, task))
  by_change: dict[str, dict[str, str]] = {}
  for row in rows:
    by_change.setdefault(row.change, {})[row.task] = _glue_cell(row)
  return Table(
    ['change', *tasks],
    1,
    [
      [change, *(scores[task] if task in scores else NONE for task in tasks)]
      for change, scores in by_change.items()
    ],
    GLUE_CAPTION,
  )


def _glue_cell(row: GlueRow) -> str:
  score = row.score
  tasks = f'; {len(row.tasks)} tasks' if row.tasks else ''
  return (
    f'{format_points(score.value)} against {format_points(score.base)}; n = {score.n}{"" if score.of == TRAININGS else " f"}'
    f'{tasks}; {format_interval(score.difference, score.low, score.high)}'
  )


Tables = Mapping[str, Sequence[AblationRow]]


def compare(
  bases: Sequence[epath.PathLike],
  folders: Sequence[epath.PathLike],
  workdir: epath.PathLike,
  level: float | None = None,
  lines: Mapping[str, float] | None = None,
  question: str = '',
) -> tuple[Comparison, Tables]:
  """Writes compare.html, changes.csv and, as .svg and .png, the figures curves, dots and
  multiplier.

  Where runs of both sides were fine-tuned on GLUE, each task stands in glue.csv. Of several shapes
  each has figures of its own, curves-e64-h64-f256-a8-l2 and so on.

  Args:
    bases: run directories of the base recipe.
    folders: run directories, or folders that hold them at any depth; the bases may be among them.
    workdir: where the files go; it is made.
    level: of the plateau, nats; without one the loss of word frequencies, of a `minilm
      ngram-baselines` in the folders, or that of the runs, where they show it.
    lines: other losses to draw, nats by name, beside those of these baselines.
    question: a recipe at whose head stands what is asked and by which rules; the page begins with
      that.

  Returns:
    Who was compared with whom, and the rows of each shape, the base first.

  Raises:
    LockedError: another process writes there.
    InputError: no base, nothing that differs from it, a level or a line that is no loss, a damaged
      file, or no head.
  """
  for name, loss in {**(lines or {}), **({} if level is None else {'level': level})}.items():
    if not (math.isfinite(loss) and loss > 0):
      raise InputError(
        f'a loss {name} of {loss:g}', 'not a positive number of nats', 'give one, as in 5.9'
      )
  asked = recipe.read_docstring(question) if question else ''
  compared = ablations.read_comparison(bases, folders)
  levels = ablation_results.find_levels(compared, level)
  scores = select_main(score_table(runs.read_scores(compared.found)))
  glue = {part.shape: ablation_results.find_glue_rows(part, scores) for part in compared.shapes}
  tables = {
    part.shape: ablation_results.make_rows(part, levels, glue[part.shape])
    for part in compared.shapes
  }
  lines = {**compared.ngram_losses, **(lines or {})}
  drawn = {
    part.shape: dict(compare_figures.figures(part, tables[part.shape], levels[''], lines))
    for part in compared.shapes
  }
  pictures = {shape: {name: one.svg() for name, one in of.items()} for shape, of in drawn.items()}
  files = {'changes.csv': as_csv(AblationRow, [row for rows in tables.values() for row in rows])}
  if any(glue.values()):
    files['glue.csv'] = as_csv(GlueRow, [row for rows in glue.values() for row in rows])
  for shape, of in drawn.items():
    end = f'-{shape}' if len(drawn) > 1 else ''
    files |= {f'{name}{end}.svg': pictures[shape][name].encode() for name in of}
    files |= {f'{name}{end}.png': figures.png(one.figure) for name, one in of.items()}
  files['compare.html'] = render(compared, tables, glue, pictures, asked).encode()
  workdir = epath.Path(workdir)
  with lock.hold_lock(workdir):
    for name, content in files.items():
      write_bytes(workdir / name, content)
  return compared, tables


def shown(compared: Comparison, tables: Tables) -> list[rich.table.Table | str]:
  """Returns the table of each shape and its sentences, for a terminal."""
  parts: list[rich.table.Table | str] = []
  for shape, rows in tables.items():
    parts += [*to_terminal(shape_section(shape, rows, {})), '']
  return [*parts, *around(compared)]


def named_losses(given: str) -> dict[str, float]:
  """The lines of `--reference_losses`, as in unigram=5.9,bigram=4.2.

  Raises:
    InputError: something else.
  """
  found = {}
  for word in filter(None, map(str.strip, given.split(','))):
    name, _, loss = word.partition('=')
    try:
      found[name.strip()] = float(loss)
    except ValueError:
      raise InputError(
        f'--reference_losses={given}',
        f'{word!r} is no name with a loss in nats',
        'give some with commas between, as in --reference_losses=unigram=5.9,bigram=4.2',
      ) from None
  return found
