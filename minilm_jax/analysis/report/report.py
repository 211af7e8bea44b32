"""Writes the report on run directories: tables, figures and one HTML page.

Reads also unfinished runs, and never trains. The numbers come from `minilm_jax.analysis`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from minilm_jax.analysis import logged_table, loss_curves, runs, scores, training_sets
from minilm_jax.analysis.report import (
  figures,
  finetune_figures,
  html,
  paper2_sections,
  scaling_report,
  sections,
  tables,
)
from minilm_jax.analysis.report.sections import Section
from minilm_jax.analysis.scores import ScoreRow, make_score_table, select_main
from minilm_jax.core import lock
from minilm_jax.core.errors import InputError
from minilm_jax.core.files import read_json, write_bytes, write_json

FILE_LIST = 'report-files.json'  # names of the files of a report, for the next report
_REPORT_FILE = re.compile(r'[A-Za-z0-9][\w.,=+@ -]*\.(csv|json|svg|png|html)')
# Files of reports without a list.
_UNLISTED_FILES = (
  *(
    f'{name}.csv'
    for name in (
      'scores averages runs frontier cost correlation depth models gap slopes verdicts matches '
      'latency committees'
    ).split()
  ),
  'fits.json',
  *(
    f'{name}.{suffix}'
    for name in (
      'scores learning training trajectory loss compute plane against gain gap-size gap-overlap'
    ).split()
    for suffix in ('svg', 'png')
  ),
)


def report(
  folders: Sequence[epath.PathLike],
  workdir: epath.PathLike = '',
  confusion: bool = False,
  table: epath.PathLike = '',
  draws: int = 1000,
  unfinished: bool = False,
) -> dict[str, epath.Path]:
  """Writes report.html, tables and figures (.svg and .png) of the available results.

  Files of an earlier report in the same directory are replaced or removed; other files stay.

  - All runs: scores.csv, averages.csv, runs.csv; figures scores, learning and training (by epoch),
    trajectory (by step of the checkpoint), loss.
  - Two or more pre-training runs: frontier.csv, fits.json, cost.csv, correlation.csv,
    training_correlation.csv (over checkpoints of a run), depth.csv, models.csv; figures compute,
    plane, against (scores against perplexity), gain.
  - Training sets of several sizes or overlaps: gap.csv, slopes.csv; figures gap-size, gap-overlap.
  - Paper 2: verdicts.csv, matches.csv (committee at equal cost), latency.csv, committees.csv and a
    figure for each committee.
  - A logged table: the files of a scaling study, with models.csv under the name runs.csv.

  Args:
    folders: run directories, or folders that hold them at any depth.
    workdir: directory of the files, made if absent; by default `report` in the first folder.
    confusion: also draw a confusion matrix for each classification, from logged predictions.
    table: instead of folders, a logged table of evaluations (`logged_table.read_csv`).
    draws: resamples for each interval of a scaling study.
    unfinished: include runs before the end of their schedule in the laws.

  Returns:
    The path of each file by its name.

  Raises:
    LockedError: another process writes a report there.
    InputError: a folder is missing or has no run; no predictions for `confusion`; a damaged logged
      table, or one with folders, with `confusion` or without a workdir.
  """
  if table:
    _check_table_options(table, folders, confusion, workdir)
  run_paths = {} if table else runs.find_runs(folders)
  workdir = epath.Path(workdir) if workdir else epath.Path(folders[0]) / 'report'
  with lock.hold_lock(workdir):
    contents = (
      _report_table(table, draws, unfinished)
      if table
      else _report_runs(run_paths, folders, confusion, draws, unfinished)
    )
    _replace_files(workdir, contents)
  return {name: workdir / name for name in contents}


def _replace_files(workdir: epath.Path, contents: Mapping[str, bytes]) -> None:
  """Writes the files of a report, and removes those of an earlier report with other names."""
  earlier = _list_earlier_files(workdir)
  # Until all files are written, the list names old and new files.
  write_json(workdir / FILE_LIST, {'files': sorted({*earlier, *contents})})
  for name, content in contents.items():
    write_bytes(workdir / name, content)
  for name in earlier - set(contents):
    if (workdir / name).is_file():
      (workdir / name).unlink(missing_ok=True)
  write_json(workdir / FILE_LIST, {'files': sorted(contents)})


def _list_earlier_files(workdir: epath.Path) -> set[str]:
  """Returns the names of the files of an earlier report; earlier versions stored no list."""
  path = workdir / FILE_LIST
  if not path.exists():
    return set(_UNLISTED_FILES) if (workdir / 'report.html').exists() else set()
  try:
    names = list(read_json(path, f'the list of files in {workdir}')['files'])
  except (InputError, LookupError, TypeError):  # damaged
    return set()
  return {name for name in names if isinstance(name, str) and _REPORT_FILE.fullmatch(name)}


def _check_table_options(
  table: epath.PathLike, folders: Sequence[epath.PathLike], confusion: bool, workdir: epath.PathLike
) -> None:
  for is_fault, problem, remedy in (
    (folders, f'folders too: {", ".join(map(str, folders))}', 'write two reports'),
    (confusion, 'no predictions in a table', 'leave out --confusion'),
    (not workdir, 'no --workdir', 'give the directory of the report: --workdir=runs/report'),
  ):
    if is_fault:
      raise InputError(f'a report of the logged table {table}', problem, remedy)


def _report_runs(
  run_paths: Mapping[str, epath.Path],
  folders: Sequence[epath.PathLike],
  confusion: bool,
  draws: int,
  unfinished: bool,
) -> dict[str, bytes]:
  """Returns the contents of all files by name."""
  run_rows = [row for name, path in run_paths.items() for row in runs.summarize_run(name, path)]
  score_rows = make_score_table(runs.read_scores(run_paths))
  averages = scores.average_tasks(score_rows)
  latest_averages = scores.select_latest(averages)
  failed = runs.read_failures(folders, run_paths)
  curves, left_out = loss_curves.read_runs(run_paths)
  paper2 = paper2_sections.study_paper2(run_paths, failed, curves, select_main(score_rows))
  other_sets = training_sets.find_other_sets(training_sets.read_training_sets(run_paths))
  comparable = [curve for curve in curves if curve.name.partition(' member ')[0] not in other_sets]
  num_models = sum(row.kind == 'pretrain' for row in run_rows)
  scaling = scaling_report.study_models(
    comparable,
    select_main(score_rows, every_step=True),
    averages,
    [*(left_out if num_models >= scaling_report.MIN_MODELS else ()), *other_sets.values()],
    failed,
    draws,
    unfinished,
  )
  answers = [
    *paper2_sections.answer_questions(paper2),
    *scaling_report.answer_questions(scaling),
    *tables.answer_scores(score_rows),
    *tables.answer_runs(run_rows),
  ]
  page_sections = [
    *paper2_sections.make_sections(paper2),
    *scaling_report.make_sections(scaling),
    *_make_figure_sections(run_paths, score_rows, confusion),
    *tables.make_score_sections(score_rows, latest_averages, run_rows),
  ]
  title = f'Report on {len(run_rows)} {"run" if len(run_rows) == 1 else "runs"}'
  return {
    'scores.csv': sections.as_csv(ScoreRow, score_rows),
    'averages.csv': sections.as_csv(scores.Average, averages),
    'runs.csv': sections.as_csv(runs.RunRow, run_rows),
    **scaling_report.make_files(scaling),
    **paper2_sections.make_files(paper2),
    **sections.encode_figures(page_sections),
    'report.html': html.render(title, answers, page_sections).encode(),
  }


def _report_table(path: epath.PathLike, draws: int, unfinished: bool) -> dict[str, bytes]:
  """Returns the contents of all files on a logged table by name."""
  curves = logged_table.read_csv(path)
  scaling = scaling_report.study_models(curves, [], [], [], {}, draws, unfinished)
  contents = scaling_report.make_files(scaling)
  contents['runs.csv'] = contents.pop('models.csv', scaling_report.encode_models([]))
  title = f'Report on {len(curves)} logged {"model" if len(curves) == 1 else "models"}'
  answers = list(scaling_report.answer_questions(scaling))
  page_sections = list(scaling_report.make_sections(scaling))
  contents |= sections.encode_figures(page_sections)
  contents['report.html'] = html.render(title, answers, page_sections).encode()
  return contents


def _make_figure_sections(
  run_paths: Mapping[str, epath.Path], rows: Sequence[ScoreRow], confusion: bool
) -> Iterator[Section]:
  """Yields the figures of scores, fine-tuning and losses that have content."""
  headlines = [row for row in select_main(rows) if row.headline]
  if headlines:
    yield Section(
      'Scores by task',
      figures={'scores': figures.draw_dots(_make_dot_rows(headlines), 'score × 100', 100)},
      caption='Headline scores times 100 with the 95% interval over seeds.',
    )
  score_panels, loss_panels = finetune_figures.read_learning_curves(run_paths, rows)
  if score_panels:
    yield Section(
      'Fine-tuning',
      figures={'learning': figures.draw_panels(score_panels, 'epoch', 'score × 100', 100)},
      caption='Scores times 100 by epoch: mean over seeds with its 95% interval.',
      notes=[
        'Scores by epoch are those on the held-out part of the training examples or, without one, '
        'on the reported split.'
      ],
    )
  if loss_panels:
    yield Section(
      'Fine-tuning loss',
      figures={'training': figures.draw_panels(loss_panels, 'epoch', 'training loss')},
      caption='Training loss of the same runs by epoch.',
    )
  trajectories = finetune_figures.make_trajectories(rows)
  if trajectories:
    drawing = figures.draw_panels(trajectories, 'step of the checkpoint', 'score × 100', 100)
    yield Section(
      'Scores during pre-training',
      figures={'trajectory': drawing},
      caption='Headline scores times 100 by the step of the checkpoint; dotted: majority class.',
    )
  if confusion:
    matrices = finetune_figures.read_confusions(run_paths, rows)
    yield Section(
      'Confusion matrices',
      figures={
        f'confusion-{number}': figures.draw_confusion(matrix)
        for number, matrix in enumerate(matrices, 1)
      },
      caption='Examples by true and predicted class, summed over seeds.',
    )
  curves = [curve for name, path in run_paths.items() for curve in runs.read_losses(name, path)]
  if curves:
    yield Section(
      'Pre-training loss',
      figures={'loss': figures.draw_losses(curves)},
      caption='Loss of masked tokens by tokens seen, a line a run.',
    )


def _make_dot_rows(rows: Sequence[ScoreRow]) -> list[figures.DotRow]:
  has_several = len({row.checkpoint for row in rows}) > 1
  dot_rows = []
  for row, differences in zip(rows, tables.describe_rows(rows), strict=True):
    arms = {'pre-trained': row.pretrained, 'from scratch': row.scratch}
    baselines = {'majority': row.majority, 'by frequency': row.frequency}
    label = row.task_name + (f' {row.checkpoint}' if has_several else '')
    label = ', '.join(filter(None, (label, differences)))
    dot_rows.append(figures.DotRow(label, arms, baselines))
  return dot_rows
