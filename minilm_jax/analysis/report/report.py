"""Writes the report on run directories: tables, figures and one HTML page.

Also reads runs that are unfinished or were cut short, and never trains. The numbers come from
`minilm_jax.analysis`; `tables`, `html` and the modules of figures give them their form.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from minilm_jax.analysis import loss_curves, pretraining_gap, runs, scores
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
from minilm_jax.analysis.report.tables import ModelRow
from minilm_jax.analysis.scores import ScoreRow, score_table, select_main
from minilm_jax.core import lock, progress
from minilm_jax.core.errors import InputError
from minilm_jax.core.files import write_bytes


def report(
  folders: Sequence[epath.PathLike],
  workdir: epath.PathLike = '',
  confusion: bool = False,
  table: epath.PathLike = '',
  draws: int = 1000,
  unfinished: bool = False,
) -> dict[str, epath.Path]:
  """Writes report.html, tables and, as .svg and .png, figures of what there is.

  Tables of run directories are scores.csv, averages.csv and runs.csv; figures are scores (a row a
  task), learning and training (by epoch), trajectory (by step of the checkpoint) and loss. Two
  pre-training runs are a grid: then there are frontier.csv, fits.json, cost.csv, correlation.csv,
  depth.csv and models.csv, and the figures compute, plane, against (scores against perplexity) and
  gain. Runs on sets of several sizes, or of several overlaps with a task, give gap.csv, slopes.csv
  and the figures gap-size and gap-overlap; committees have committees.csv and a figure each,
  latencies latency.csv; what is said of the claims of paper 2 stands in verdicts.csv, and its
  committee at equal costs in matches.csv. Of a logged table runs.csv is what models.csv is else.

  Args:
    folders: run directories, or folders that hold them at any depth.
    workdir: where the files go; it is made. Without it, `report` in the first folder.
    confusion: also draw a confusion matrix for each classification, from logged predictions.
    table: instead of folders, a logged table of evaluations (`loss_curves.read_csv`).
    draws: resamples for each interval of a grid.
    unfinished: do laws count runs that have not reached the end of their schedule?

  Returns:
    The path of each file by its name.

  Raises:
    LockedError: another process writes a report there.
    InputError: a folder is missing, there is no run under any of them, or no predictions where they
      are asked for; a logged table that cannot be read, or one beside folders or without a workdir.
  """
  if table:
    if folders or confusion or not workdir:
      found, remedy = (
        (f'folders beside it: {", ".join(map(str, folders))}', 'make two reports')
        if folders
        else ('no predictions in a table', 'leave --confusion out')
        if confusion
        else ('no --workdir', 'say where the report goes: --workdir=runs/report')
      )
      raise InputError(f'a report of the logged table {table}', found, remedy)
  run_paths = {} if table else runs.find_runs(folders)
  workdir = epath.Path(workdir) if workdir else epath.Path(folders[0]) / 'report'
  with lock.hold_lock(workdir):
    files = (
      _of_table(table, draws, unfinished)
      if table
      else _of_runs(run_paths, folders, confusion, draws, unfinished)
    )
    for name, content in files.items():
      write_bytes(workdir / name, content)
  return {name: workdir / name for name in files}


def _of_runs(
  run_paths: Mapping[str, epath.Path],
  folders: Sequence[epath.PathLike],
  confusion: bool,
  draws: int,
  unfinished: bool,
) -> dict[str, bytes]:
  run_rows = [row for name, path in run_paths.items() for row in runs.summarize_run(name, path)]
  score_rows = score_table(runs.read_scores(run_paths))
  averages = scores.average_tasks(score_rows)
  latest_averages = scores.select_latest(averages)
  failed = runs.read_failures(folders)
  curves = loss_curves.read_runs(run_paths)
  paper2 = paper2_sections.study_paper2(
    run_paths, failed, curves.curves, select_main(score_rows), draws
  )
  drawings = dict(_figures(run_paths, score_rows, confusion))
  drawings |= paper2_sections.figures(paper2.committees)
  other_sets = pretraining_gap.find_other_sets(pretraining_gap.read_training_sets(run_paths))
  comparable = [
    curve for curve in curves.curves if curve.name.partition(' member ')[0] not in other_sets
  ]
  several = sum(row.kind == 'pretrain' for row in run_rows) >= scaling_report.MIN_MODELS
  findings = scaling_report.find(
    comparable,
    select_main(score_rows),
    latest_averages,
    [*(curves.left_out if several else []), *other_sets.values()],
    failed,
    draws,
    unfinished,
  )
  pictures = {name: figures.svg(figure) for name, figure in drawings.items()}
  scaling_files, scaling_pictures = scaling_report.make_files(findings)
  paper2_files, gap_pictures = paper2_sections.make_files(paper2)
  page = html.render(
    score_rows,
    latest_averages,
    run_rows,
    pictures,
    scaling_report.opening(findings),
    [
      *paper2_sections.claim_sections(paper2.statement),
      *paper2_sections.gap_sections(paper2.gaps, gap_pictures),
      *scaling_report.make_sections(findings, scaling_pictures),
      *paper2_sections.committee_sections(paper2.committees, pictures),
      *paper2_sections.match_sections(paper2.statement.matched),
      *paper2_sections.latency_sections(paper2.latencies),
    ],
  )
  return {
    'scores.csv': sections.as_csv(ScoreRow, score_rows),
    'averages.csv': sections.as_csv(scores.Average, averages),
    'runs.csv': sections.as_csv(runs.RunRow, run_rows),
    **{f'{name}.svg': picture.encode() for name, picture in pictures.items()},
    **{f'{name}.png': figures.png(figure) for name, figure in drawings.items()},
    **scaling_files,
    **paper2_files,
    'report.html': page.encode(),
  }


def _of_table(path: epath.PathLike, draws: int, unfinished: bool) -> dict[str, bytes]:
  findings = scaling_report.find(loss_curves.read_csv(path), [], [], [], {}, draws, unfinished)
  files, pictures = scaling_report.make_files(findings)
  files['runs.csv'] = (
    files.pop('models.csv') if 'models.csv' in files else sections.as_csv(ModelRow, [])
  )
  files['report.html'] = html.render(
    [],
    [],
    [],
    {},
    scaling_report.opening(findings),
    list(scaling_report.make_sections(findings, pictures)),
  ).encode()
  return files


def _figures(
  run_paths: Mapping[str, epath.Path], rows: Sequence[ScoreRow], confusion: bool
) -> Iterator[tuple[str, Figure]]:
  """The figures that have something to show, by the name of their files."""
  headlines = [row for row in select_main(rows) if row.headline]
  if headlines:
    yield 'scores', figures.dots(_dots(headlines), 'score × 100, with 95% interval over seeds')
  scored, trained = finetune_figures.learning(run_paths, rows)
  if scored:
    yield 'learning', figures.learning(scored, 'score × 100')
  if trained:
    yield 'training', figures.learning(trained, 'training loss')
  steps = finetune_figures.trajectories(rows)
  if steps:
    yield 'trajectory', figures.trajectory(steps, 'score × 100')
  if confusion:
    for number, matrices in enumerate(finetune_figures.confusions(run_paths, rows), 1):
      title = f'{matrices.task}, {matrices.split}, {matrices.checkpoint}'
      yield f'confusion-{number}', figures.confusion(title, matrices.classes, matrices.arms)
  losses = [curve for name, path in run_paths.items() for curve in runs.read_losses(name, path)]
  if losses:
    yield 'loss', figures.loss(losses)


def _dots(rows: Sequence[ScoreRow]) -> list[figures.DotRow]:
  several = len({row.checkpoint for row in rows}) > 1
  dot_rows = []
  for row in rows:
    arms = {
      name: (100 * group.mean, 100 * group.low, 100 * group.high)
      for name, group in (('pre-trained', row.pretrained), ('from scratch', row.scratch))
    }
    name = (
      f'{row.task}{" (filtered)" if row.filtered else ""}{" " + row.checkpoint if several else ""}'
    )
    dot_rows.append(
      figures.DotRow(
        name, arms, {'majority': 100 * row.majority, 'by frequency': 100 * row.frequency}
      )
    )
  return dot_rows


def print_tables(lines: Sequence[Mapping[str, Any]]) -> None:
  """Prints the tables of score lines: scores and, of several GLUE tasks, averages."""
  rows = score_table(lines)
  title = 'scores × 100: mean ± standard deviation (n) [95% interval]'
  parts = [Section(title, table=tables.SCORE_FORMAT.fill(select_main(rows)))]
  means = scores.select_latest(scores.average_tasks(rows))
  if means:
    table = tables.AVERAGE_FORMAT.fill(means)
    parts.append(Section('averages of headline scores', table=table))
  progress.print_table([part for section in parts for part in sections.to_terminal(section)])
