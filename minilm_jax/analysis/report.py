"""From run directories to tables, figures and one HTML page.

Reads what runs left behind, also of runs that are under way or were cut short, and never trains. What is said about a
run stands in `runs.py`, what about scores in `scores.py` and `averages.py`, how it looks in `cells.py`, `page.py` and
`figures.py`.
"""

import csv
import dataclasses
import io
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.table
from etils import epath
from matplotlib.figure import Figure

from minilm_jax import run
from minilm_jax.analysis import averages, cells, confusions, curves, figures, page, runs
from minilm_jax.analysis.scores import ScoreRow, score_table

_WIDTH_OF_A_LOG = 160  # columns, where there is no terminal to ask


def report(folders: Sequence[epath.PathLike], workdir: epath.PathLike,
           confusion: bool = False) -> dict[str, epath.Path]:
  """Writes report.html, scores.csv, averages.csv, runs.csv and, as .svg and .png, figures of what there is.

  These are scores (a row a task), learning and training (by epoch), trajectory (by step of the checkpoint) and loss.

  Args:
    folders: run directories, or folders that hold them at any depth.
    workdir: where the files go; it is made.
    confusion: also draw a confusion matrix for each classification, from logged predictions.

  Returns:
    The path of each file by its name.

  Raises:
    InputError: a folder is missing, there is no run under any of them, or no predictions where they are asked for.
  """
  found = runs.find(folders)
  run_rows = [row for name, path in found.items() for row in runs.rows(name, path)]
  score_rows = score_table(runs.scores(found))
  average_rows = averages.averages(score_rows)
  pictures = dict(_figures(found, score_rows, confusion))
  drawn = {name: figures.svg(figure) for name, figure in pictures.items()}
  files = {'scores.csv': _csv(ScoreRow, score_rows), 'averages.csv': _csv(averages.Average, average_rows),
           'runs.csv': _csv(runs.RunRow, run_rows)}
  files |= {f'{name}.svg': picture.encode() for name, picture in drawn.items()}
  files |= {f'{name}.png': figures.png(figure) for name, figure in pictures.items()}
  files['report.html'] = page.render(score_rows, cells.latest(average_rows), run_rows, drawn).encode()
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    run.write_bytes(workdir / name, content)
  return {name: workdir / name for name in files}


def _figures(found: Mapping[str, epath.Path], rows: Sequence[ScoreRow],
             confusion: bool) -> Iterator[tuple[str, Figure]]:
  """The figures that have something to show, by the name of their files."""
  headlines = [row for row in cells.main(rows) if row.headline]
  if headlines:
    yield 'scores', figures.dots(_dots(headlines), 'score × 100, with 95% interval over seeds')
  scored, trained = curves.learning(found, rows)
  if scored:
    yield 'learning', figures.learning(scored, 'score × 100')
  if trained:
    yield 'training', figures.learning(trained, 'training loss')
  steps = curves.trajectories(rows)
  if steps:
    yield 'trajectory', figures.trajectory(steps, 'score × 100')
  if confusion:
    for number, one in enumerate(confusions.confusions(found, rows), 1):
      title = f'{one.task}, {one.split}, {one.checkpoint}'
      yield f'confusion-{number}', figures.confusion(title, one.classes, one.arms)
  losses = [curve for name, path in found.items() for curve in runs.curves(name, path)]
  if losses:
    yield 'loss', figures.loss(losses)


def _dots(rows: Sequence[ScoreRow]) -> list[figures.Dots]:
  several = len({row.checkpoint for row in rows}) > 1
  found = []
  for row in rows:
    arms = {name: tuple(100 * end for end in (group.mean, group.low, group.high))
            for name, group in (('pre-trained', row.pretrained), ('from scratch', row.scratch))}
    name = f'{row.task}{" (filtered)" if row.filtered else ""}{" " + row.checkpoint if several else ""}'
    found.append(figures.Dots(name, arms, {'majority': 100 * row.majority, 'by frequency': 100 * row.frequency}))
  return found


def print_tables(lines: Sequence[Mapping[str, Any]]) -> None:
  """The tables of score lines on standard output: scores and, of several GLUE tasks, averages."""
  console = rich.console.Console(markup=False, emoji=False, highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(markup=False, emoji=False, highlight=False, width=_WIDTH_OF_A_LOG)
  rows = score_table(lines)
  console.print(_table('scores × 100: mean ± standard deviation (n) [95% interval]', cells.SCORE_HEADINGS,
                       cells.SCORE_WORDS, [cells.score_cells(row) for row in cells.main(rows)]))
  means = cells.latest(averages.averages(rows))
  if means:
    console.print(_table('averages of headline scores', cells.AVERAGE_HEADINGS, cells.AVERAGE_WORDS,
                         [cells.average_cells(row) for row in means]))


def _table(title: str, headings: Sequence[str], words: int, rows: Sequence[Sequence[str]]) -> rich.table.Table:
  """A table whose first columns hold words; a long cell goes on in the next line."""
  table = rich.table.Table(title=title, title_justify='left')
  for number, heading in enumerate(headings):
    table.add_column('\n'.join(cells.broken(heading)), justify='left' if number < words else 'right', overflow='fold')
  for row in rows:
    table.add_row(*('\n'.join(cells.broken(cell)) for cell in row))
  return table


def _csv(kind: type, rows: Sequence[Any]) -> bytes:
  """A row a line under the names of the fields; a field inside a field is `outer_inner`, several values have spaces."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(_names(kind))
  writer.writerows(list(_values(row)) for row in rows)
  return file.getvalue().encode()


def _names(kind: type, prefix: str = '') -> Iterator[str]:
  for name, inner in typing.get_type_hints(kind).items():
    yield from _names(inner, f'{prefix}{name}_') if dataclasses.is_dataclass(inner) else (prefix + name,)


def _values(row: Any) -> Iterator[Any]:
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if dataclasses.is_dataclass(value):
      yield from _values(value)
    else:
      yield ' '.join(map(str, value)) if isinstance(value, tuple) else value
