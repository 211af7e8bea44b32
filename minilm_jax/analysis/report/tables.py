"""Answers, tables and sections of scores and of runs.

Pages show scores times 100. A cell breaks at '; ' and before an interval (`sections.split_cell`).
"""

import math
from collections.abc import Iterator, Sequence

from minilm_jax.analysis.number_format import (
  NONE,
  format_interval,
  format_points,
  format_points_interval,
)
from minilm_jax.analysis.report.sections import Answer, Section, TableFormat, to_terminal
from minilm_jax.analysis.runs import RunRow
from minilm_jax.analysis.scores import (
  ALL,
  Average,
  ScoreLine,
  ScoreRow,
  average_tasks,
  describe_differences,
  make_score_table,
  select_latest,
  select_main,
)
from minilm_jax.analysis.seed_groups import Group, subtract_by_seed
from minilm_jax.core import progress
from minilm_jax.core.progress import format_duration
from minilm_jax.tasks.metrics import smallest_detectable_effect

_NO_VARIANCE = 1e-9  # width of an interval of equal numbers, with rounding
MAX_SCORE_ANSWERS = 9  # above, one answer summarizes all tasks and checkpoints
_HIGHER, _LOWER, _OPEN = 'yes', 'no, lower', 'undecided'
ORIGIN_NOTE = (
  'Updates, tokens, FLOPs and time of a continued run exclude those of the checkpoint that gave its '
  'first weights.'
)


def answer_scores(scores: Sequence[ScoreRow]) -> Iterator[Answer]:
  """Yields the effect of pre-training on each headline score, or one summary of many effects."""
  rows = [row for row in select_main(scores) if row.headline]
  if len(rows) <= MAX_SCORE_ANSWERS:
    for row, differences in zip(rows, describe_rows(rows), strict=True):
      yield _answer_score(row, differences)
    return
  compared = [row for row in rows if math.isfinite(row.difference.mean)]
  verdicts = [_decide(row) for row in compared]
  higher, lower = verdicts.count(_HIGHER), verdicts.count(_LOWER)
  means = sorted(row.difference.mean for row in compared)
  number = f'{len(rows)} scores, none with both arms'
  if compared:
    number = (
      f'{len(compared) - higher - lower} of {len(compared)} comparisons undecided, {lower} lower; '
      f'differences from {format_points(means[0], "+")} to {format_points(means[-1], "+")} points'
    )
  yield Answer('Does pre-training raise the scores?', f'in {higher} of {len(compared)}', number)


def describe_rows(rows: Sequence[ScoreRow]) -> list[str]:
  """Returns the split, protocol and learning rate of each row, as far as rows differ in them.

  Rows are of one task and metric; their checkpoints are not described.
  """

  def make_key(row: ScoreRow) -> tuple[str, str]:
    return row.task_name, row.metric

  settings = describe_differences(rows, make_key, ('split', 'train_examples', 'protocol'))
  keys = [(*make_key(row), row.checkpoint, text) for row, text in zip(rows, settings, strict=True)]
  descriptions = []
  for row, key, text in zip(rows, keys, settings, strict=True):
    # Without a selection, each learning rate has a row.
    rate = row.pretrained.learning_rate or row.scratch.learning_rate
    descriptions.append(
      f'{text}, rate {rate:g}'.removeprefix(', ') if keys.count(key) > 1 and rate else text
    )
  return descriptions


def _explain_indecision(row: ScoreRow) -> str:
  """Returns the reason for which the interval decides nothing, or ''."""
  if all(
    0 < group.n + group.undefined <= group.collapsed for group in (row.pretrained, row.scratch)
  ):
    return 'All models, pre-trained and from scratch, predict one class.'
  if row.difference.high - row.difference.low < _NO_VARIANCE:
    return 'The difference is equal for all seeds, so the interval has no width.'
  return ''


def _decide(row: ScoreRow) -> str:
  if _explain_indecision(row) or not math.isfinite(row.difference.low):
    return _OPEN
  return _HIGHER if row.difference.low > 0 else _LOWER if row.difference.high < 0 else _OPEN


def _answer_score(row: ScoreRow, differences: str) -> Answer:
  checkpoint = f' from {row.checkpoint}' if row.checkpoint else ''
  checkpoint += f' with {differences}' if differences else ''
  question = f'Does pre-training raise {row.metric} on {row.task_name}{checkpoint}?'
  split = '' if row.split == ALL else f'{row.split} '
  examples = f'{row.task} has {row.examples:,} {split}examples.'
  arms = {'pre-trained': row.pretrained, 'from scratch': row.scratch}
  if absent := [name for name, group in arms.items() if not group.n]:
    arm = 'from scratch' if absent[0] == 'pre-trained' else 'pre-trained'
    group = arms[arm]
    interval = format_interval(group.mean, group.low, group.high, '.1f', 100)
    number = f'{interval} {arm} (n = {group.n})'
    return Answer(question, 'not measured', number, [f'No scores {absent[0]}. {examples}'])
  difference = row.difference
  number = format_points_interval(difference.mean, difference.low, difference.high)
  n = f'n = {row.pretrained.n}' + ('' if difference.paired else f' and {row.scratch.n}')
  scores = ' against '.join(f'{format_points(group.mean)} {arm}' for arm, group in arms.items())
  notes = [f'{scores}. {examples}']
  if not math.isfinite(difference.low):
    n += ', no interval'
  else:
    kind = 'paired by seed' if difference.paired else 'Welch’s'
    notes = [f'The interval is {kind}. {notes[0]}']
  if reason := _explain_indecision(row):
    notes.append(reason)
  elif difference.paired and math.isfinite(difference.low):
    by_seed = subtract_by_seed(row.pretrained.by_seed, row.scratch.by_seed)
    effect = smallest_detectable_effect(list(by_seed.values()))
    notes.append(
      f'These seeds find an effect of {format_points(effect)} points with a power of 80%.'
    )
  return Answer(question, _decide(row), f'{number} ({n})', notes)


def answer_runs(runs: Sequence[RunRow]) -> Iterator[Answer]:
  """Yields the lowest of the last validation losses, and whether all runs have finished."""
  evaluated = [
    (row.validation_loss, row)
    for row in runs
    if row.kind == 'pretrain' and row.validation_loss is not None
  ]
  if evaluated:
    loss, row = min(evaluated, key=lambda pair: pair[0])
    perplexity = _format_loss(row, row.validation_perplexity, 1)
    number = (
      f'perplexity {perplexity} after {_format_count(row.validation_tokens)} tokens ({row.name})'
    )
    yield Answer('What is the lowest of the last validation losses?', f'{loss:.3f} nats', number)
  finished = sum(row.state == 'finished' for row in runs)
  devices = sorted({row.devices for row in runs if row.devices})
  yield Answer(
    'Have all runs finished?',
    'yes' if finished == len(runs) else 'no',
    f'{finished} of {len(runs)}',
    [f'Devices: {"; ".join(devices)}.'] if devices else (),
  )


def make_score_sections(
  scores: Sequence[ScoreRow],
  averages: Sequence[Average],
  runs: Sequence[RunRow],
) -> Iterator[Section]:
  """Yields the tables of scores and runs that have content."""
  rows, phenomena = select_main(scores), select_main(scores, phenomena=True)
  if rows:
    notes = [*filter(None, [describe_protocol(scores)])]
    yield Section('Scores', table=SCORE_FORMAT.fill(rows, notes))
  if averages:
    yield Section('Averages', table=AVERAGE_FORMAT.fill(averages))
  if phenomena:
    yield Section('Phenomena', table=PHENOMENON_FORMAT.fill(phenomena))
  notes = [ORIGIN_NOTE] if any(row.origin for row in runs) else []
  yield Section('Runs', table=RUN_FORMAT.fill(runs, notes))


def describe_protocol(scores: Sequence[ScoreRow]) -> str:
  """Returns seeds, share of examples held out and epochs of the scores, or '' without training."""
  rows = [row for row in select_main(scores) if row.train_examples]
  if not rows:
    return ''
  groups = [group for row in rows for group in (row.pretrained, row.scratch) if group.seeds]
  seeds = _format_range([group.n + group.undefined for group in groups], ' seed', 's')
  held_out = [row for row in rows if row.held_out]
  shares = [round(100 * row.held_out / (row.held_out + row.train_examples)) for row in held_out]
  selection = 'no held-out part, no selection'
  if held_out:
    scope = ' of some tasks' if len(held_out) < len(rows) else ''
    has_best = any(row.which == 'best' for row in held_out)
    selection = (
      f'{_format_range(shares, "%")} of the training examples{scope} held out to select the learning '
      f'rate of each arm{" and the epoch of each seed" if has_best else ""}'
    )
  epochs = [row.epochs for row in rows if math.isfinite(row.epochs)]
  return f'Protocol: {seeds}; {selection}; {_format_range(epochs, " epoch", "s")}.'


def _format_range(values: Sequence[float], unit: str, plural: str = '') -> str:
  """Returns one number or two, with their unit: '1 seed', '3 to 5 seeds'."""
  ends = list(dict.fromkeys(f'{end:g}' for end in (min(values), max(values)))) if values else ['0']
  return ' to '.join(ends) + unit + ('' if ends == ['1'] else plural)


def _format_difference(row: ScoreRow | Average) -> str:
  return format_interval(row.difference.mean, row.difference.low, row.difference.high)


def _format_baselines(row: ScoreRow) -> str:
  """Returns the scores that need no model."""
  baselines = ((row.majority, 'majority'), (row.frequency, 'by frequency'))
  cells = [f'{format_points(value)} {name}' for value, name in baselines if math.isfinite(value)]
  return '; '.join(cells) or 'undefined'


def _format_phenomenon(row: ScoreRow) -> str:
  group = row.pretrained if row.pretrained.n else row.scratch
  text = format_points(group.mean) + (f' ± {format_points(group.std)}' if group.n > 1 else '')
  if not math.isfinite(group.mean_example_low):
    return text
  return (
    f'{text} [{format_points(group.mean_example_low)}, {format_points(group.mean_example_high)}]'
  )


def _format_checkpoint(row: ScoreRow | Average) -> str:
  step = '' if row.step is None else f'; step {row.step:,}'
  protocol = f'; {row.protocol}' if row.protocol else ''
  return (row.checkpoint or NONE) + step + protocol


def _format_group(group: Group) -> str:
  if not group.n + group.undefined:
    return f'{format_points(group.mean)}; seeds differ' if math.isfinite(group.mean) else NONE
  lines = [f'{format_points(group.mean)} (n = {group.n})']
  if group.n > 1:
    lines = [
      f'{format_points(group.mean)} ± {format_points(group.std)} (n = {group.n}) '
      f'[{format_points(group.low)}, {format_points(group.high)}]'
    ]
  elif group.n and math.isfinite(group.mean_example_low):
    ends = (group.mean_example_low, group.mean_example_high)
    lines.append(f'{" to ".join(map(format_points, ends))} over examples')
  if group.learning_rate is not None:
    lines.append(f'rate {group.learning_rate:g}')
  if group.undefined and group.n:
    lines.append(f'{group.undefined} undefined')
  if group.collapsed:
    lines.append(f'{group.collapsed} collapsed')
  return '; '.join(lines)


def _format_loss(row: RunRow, value: float | None, digits: int) -> str:
  if value is not None:
    return f'{value:,.{digits}f}'
  return 'undefined' if row.evaluated else NONE


def _format_count(value: float | None) -> str:
  return NONE if value is None else f'{value:,.0f}'


SCORE_FORMAT = TableFormat(
  3,
  (
    ('task', lambda row: row.task_name),
    ('metric', lambda row: row.metric),
    ('checkpoint', _format_checkpoint),
    ('pre-trained', lambda row: _format_group(row.pretrained)),
    ('from scratch', lambda row: _format_group(row.scratch)),
    ('difference [95% interval]', _format_difference),
    ('without a model', _format_baselines),
    (
      'examples',
      lambda row: (
        f'{row.examples:,} {row.split}'
        + (f'; {row.train_examples:,} training' if row.train_examples else '')
        + ('; best epoch' if row.which == 'best' else '')
      ),
    ),
  ),
  'Scores times 100: mean ± sample standard deviation (n seeds) [95% interval of the mean].',
  (
    'The table has the last step of each checkpoint; scores.csv has all steps.',
    'Majority is the score of the most frequent class. By frequency: classes are guessed at their '
    'training frequencies, or sentences of a pair by the frequency of their words.',
    'A collapsed model predicts a single class.',
  ),
)
AVERAGE_FORMAT = TableFormat(
  2,
  (
    ('average', lambda row: f'{row.name}{" (filtered)" if row.filtered else ""}, {row.split}'),
    ('checkpoint', _format_checkpoint),
    ('pre-trained', lambda row: _format_group(row.pretrained)),
    ('from scratch', lambda row: _format_group(row.scratch)),
    ('difference [95% interval]', _format_difference),
    (
      'tasks',  # three a line of the cell
      lambda row: '; '.join(
        ', '.join(row.tasks[first : first + 3]) for first in range(0, len(row.tasks), 3)
      ),
    ),
  ),
  'Means of headline scores over tasks.',
  (
    'An average is a mean over tasks for each seed, then over seeds. Averages over different tasks '
    'do not compare.',
  ),
)
PHENOMENON_FORMAT = TableFormat(
  3,
  (
    ('phenomenon', lambda row: row.split),
    ('task', lambda row: row.task),
    ('checkpoint', _format_checkpoint),
    ('accuracy', _format_phenomenon),
    (
      'by frequency',
      lambda row: format_points(row.frequency) if math.isfinite(row.frequency) else NONE,
    ),
    ('pairs', lambda row: f'{row.examples:,}'),
  ),
  'Accuracy times 100 on sentence pairs [95% interval over pairs]; chance is 50.',
)
RUN_FORMAT = TableFormat(
  3,
  (
    ('run', lambda row: row.name + (f'; from {row.origin}' if row.origin else '')),
    ('kind', lambda row: row.kind),
    ('state', lambda row: row.state),
    ('parameters', lambda row: _format_count(row.parameters)),
    ('updates', lambda row: _format_count(row.updates)),
    ('tokens', lambda row: _format_count(row.tokens)),
    ('FLOPs', lambda row: NONE if row.flops is None else f'{row.flops:.2e}'),
    ('time', lambda row: NONE if row.seconds is None else format_duration(row.seconds)),
    ('validation loss', lambda row: _format_loss(row, row.validation_loss, 3)),
    ('perplexity', lambda row: _format_loss(row, row.validation_perplexity, 1)),
    ('scores', lambda row: str(row.scores) if row.scores else NONE),
  ),
  'Loss of masked tokens at fixed masks, in nats, at the last evaluation.',
)


def print_scores(lines: Sequence[ScoreLine]) -> None:
  """Prints the tables of score lines: scores and, of several GLUE tasks, averages."""
  rows = make_score_table(lines)
  title = 'scores × 100: mean ± standard deviation (n) [95% interval]'
  parts = [Section(title, table=SCORE_FORMAT.fill(select_main(rows)))]
  averages = select_latest(average_tasks(rows))
  if averages:
    table = AVERAGE_FORMAT.fill(averages)
    parts.append(Section('averages of headline scores', table=table))
  progress.print_result([part for section in parts for part in to_terminal(section)])
