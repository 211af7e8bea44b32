"""From run directories to tables, figures and one HTML page.

Reads what runs left behind, also of runs that are under way or were cut short, and never trains.
What is said about a run stands in `runs.py`, what about scores in `scores.py` and `averages.py`,
what about several pre-training runs as a grid in `grid_report.py`, how it looks in `cells.py`,
`page.py` and `figures.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from minilm_jax.analysis import (
  claims,
  committee_study,
  loss_curves,
  power_laws,
  pretraining_gap,
  runs,
  scores,
)
from minilm_jax.analysis.report import (
  figures,
  finetune_figures,
  html,
  paper2_sections,
  scaling_figures,
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
    table: instead of folders, a logged table of evaluations (`logged.py`).
    draws: resamples for each interval of a grid.
    unfinished: do laws count runs that have not reached the end of their schedule?

  Returns:
    The path of each file by its name.

  Raises:
    Held: another process writes a report there.
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
  found = {} if table else runs.find_runs(folders)
  workdir = epath.Path(workdir) if workdir else epath.Path(folders[0]) / 'report'
  with lock.hold_lock(workdir):
    files = (
      _of_table(table, draws, unfinished)
      if table
      else _of_runs(found, folders, confusion, draws, unfinished)
    )
    for name, content in files.items():
      write_bytes(workdir / name, content)
  return {name: workdir / name for name in files}


def _of_runs(
  found: Mapping[str, epath.Path],
  folders: Sequence[epath.PathLike],
  confusion: bool,
  draws: int,
  unfinished: bool,
) -> dict[str, bytes]:
  run_rows = [row for name, path in found.items() for row in runs.summarize_run(name, path)]
  score_rows = score_table(runs.read_scores(found))
  average_rows = scores.average_tasks(score_rows)
  answering = paper2_sections.read_committees(found)
  pictures = dict(_figures(found, score_rows, confusion)) | paper2_sections.figures(answering)
  drawn = {name: figures.svg(figure) for name, figure in pictures.items()}
  files = {
    'scores.csv': sections.as_csv(ScoreRow, score_rows),
    'averages.csv': sections.as_csv(scores.Average, average_rows),
    'runs.csv': sections.as_csv(runs.RunRow, run_rows),
  }
  failed = runs.read_failures(folders)
  tracks, timed = loss_curves.read_runs(found), runs.read_latencies(found)
  statement = claims.find_verdicts(found, failed, tracks.curves)
  files |= {f'{name}.svg': picture.encode() for name, picture in drawn.items()}
  files |= {f'{name}.png': figures.png(figure) for name, figure in pictures.items()}
  others = pretraining_gap.find_other_sets(pretraining_gap.read_training_sets(found))
  fair = [track for track in tracks.curves if track.name.partition(' member ')[0] not in others]
  several = sum(row.kind == 'pretrain' for row in run_rows) >= scaling_report.MIN_MODELS
  left_out = [*(tracks.left_out if several else []), *others.values()]
  findings = scaling_report.find(
    fair,
    select_main(score_rows),
    scores.select_latest(average_rows),
    left_out,
    failed,
    draws,
    unfinished,
  )
  more, own = _of_grid(findings)
  files |= more
  files |= _paper2_tables(answering, timed, statement)
  gaps = pretraining_gap.find_gaps(found, select_main(score_rows), draws)
  more, of_gaps = _of_gaps(gaps)
  files |= more
  files['report.html'] = html.render(
    score_rows,
    scores.select_latest(average_rows),
    run_rows,
    drawn,
    scaling_report.opening(findings),
    [
      *paper2_sections.claim_sections(statement),
      *paper2_sections.gap_sections(gaps, of_gaps),
      *scaling_report.make_sections(findings, own),
      *paper2_sections.committee_sections(answering, drawn),
      *paper2_sections.match_sections(statement.matched),
      *paper2_sections.latency_sections(timed),
    ],
  ).encode()
  return files


def _paper2_tables(
  answering: Sequence[paper2_sections.CommitteeRow],
  timed: Sequence[runs.LatencyRow],
  statement: claims.Statement,
) -> dict[str, bytes]:
  files = {}
  for name, kind, rows in (
    ('committees', paper2_sections.CommitteeRow, answering),
    ('latency', runs.LatencyRow, timed),
    ('verdicts', claims.Verdict, statement.verdicts),
    ('matches', committee_study.Match, statement.matched),
  ):
    if rows:
      files[f'{name}.csv'] = sections.as_csv(kind, rows)
  return files


def _of_table(path: epath.PathLike, draws: int, unfinished: bool) -> dict[str, bytes]:
  findings = scaling_report.find(loss_curves.read_csv(path), [], [], [], {}, draws, unfinished)
  files, own = _of_grid(findings)
  files['runs.csv'] = (
    files.pop('models.csv') if 'models.csv' in files else sections.as_csv(ModelRow, [])
  )
  files['report.html'] = html.render(
    [],
    [],
    [],
    {},
    scaling_report.opening(findings),
    list(scaling_report.make_sections(findings, own)),
  ).encode()
  return files


def _of_grid(findings: scaling_report.Findings) -> tuple[dict[str, bytes], dict[str, str]]:
  """The files of a grid, and its figures as `<svg>` elements."""
  files = {
    name: sections.as_csv(*content)
    for name, content in scaling_report.list_csv_rows(findings).items()
  }
  if findings.study is not None:
    files['fits.json'] = (
      json.dumps([power_laws.fit_to_json(fit) for fit in findings.study.fits], indent=2) + '\n'
    ).encode()
  drawn = {}
  for name, one in scaling_report.draw_figures(findings):
    drawn[name] = one.svg()
    files |= {f'{name}.svg': drawn[name].encode(), f'{name}.png': figures.png(one.figure)}
  return files, drawn


def _of_gaps(found: pretraining_gap.GapStudy) -> tuple[dict[str, bytes], dict[str, str]]:
  """The files of the study of the gap, where it has points, and its figures as `<svg>` elements."""
  if not found.points:
    return {}, {}
  files = {
    'gap.csv': sections.as_csv(pretraining_gap.Gap, found.points),
    'slopes.csv': sections.as_csv(pretraining_gap.Slope, found.slopes),
  }
  drawn = {}
  for axis in dict.fromkeys(point.axis for point in found.points):
    one = scaling_figures.gaps([point for point in found.points if point.axis == axis])
    name = f'gap-{axis}'
    drawn[name] = one.svg()
    files |= {f'{name}.svg': drawn[name].encode(), f'{name}.png': figures.png(one.figure)}
  return files, drawn


def _figures(
  found: Mapping[str, epath.Path], rows: Sequence[ScoreRow], confusion: bool
) -> Iterator[tuple[str, Figure]]:
  """The figures that have something to show, by the name of their files."""
  headlines = [row for row in select_main(rows) if row.headline]
  if headlines:
    yield 'scores', figures.dots(_dots(headlines), 'score × 100, with 95% interval over seeds')
  scored, trained = finetune_figures.learning(found, rows)
  if scored:
    yield 'learning', figures.learning(scored, 'score × 100')
  if trained:
    yield 'training', figures.learning(trained, 'training loss')
  steps = finetune_figures.trajectories(rows)
  if steps:
    yield 'trajectory', figures.trajectory(steps, 'score × 100')
  if confusion:
    for number, one in enumerate(finetune_figures.confusions(found, rows), 1):
      title = f'{one.task}, {one.split}, {one.checkpoint}'
      yield f'confusion-{number}', figures.confusion(title, one.classes, one.arms)
  losses = [curve for name, path in found.items() for curve in runs.read_losses(name, path)]
  if losses:
    yield 'loss', figures.loss(losses)


def _dots(rows: Sequence[ScoreRow]) -> list[figures.DotRow]:
  several = len({row.checkpoint for row in rows}) > 1
  found = []
  for row in rows:
    arms = {
      name: tuple(100 * end for end in (group.mean, group.low, group.high))
      for name, group in (('pre-trained', row.pretrained), ('from scratch', row.scratch))
    }
    name = (
      f'{row.task}{" (filtered)" if row.filtered else ""}{" " + row.checkpoint if several else ""}'
    )
    found.append(
      figures.DotRow(
        name, arms, {'majority': 100 * row.majority, 'by frequency': 100 * row.frequency}
      )
    )
  return found


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
