"""Plots loss curves of pre-training runs in the terminal, once or while the runs train.

On a terminal, the plot has colors and is redrawn in place. In a file or pipe, it is plain text.
Unprintable characters of run names are replaced by U+FFFD.
"""

import dataclasses
import math
import string
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotext
from etils import epath
from rich import console as rich_console
from rich import live as rich_live
from rich import table as rich_table
from rich import text as rich_text

from minilm_jax.analysis import runs
from minilm_jax.core import files, lock, progress, run_dir
from minilm_jax.core.errors import InputError

AXES = {'step': 'updates', 'tokens': 'tokens', 'flops': 'FLOPs', 'seconds': 'seconds'}
SPLITS = ('train', 'validation')
_COLORS = (6, 5, 3, 2, 1, 4)  # of the 256-color palette, one per run
_POLL_SECONDS = 3.0
_MAX_ROWS, _MIN_ROWS = 24, 10  # height of the plot
_MAX_COLUMNS, _MIN_COLUMNS = 120, 24  # width of the plot
_FULL_TABLE_COLUMNS = 80  # narrower terminals omit `_OPTIONAL_COLUMNS`
# Columns of the table: heading, field of `RunStatus`, format.
_TABLE_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
  ('update', 'step', '{:,}'.format),
  ('of', 'updates', '{:,}'.format),
  ('train', 'train', '{:.3f}'.format),
  ('validation', 'validation', '{:.3f}'.format),
  ('tokens/s', 'speed', '{:,.0f}'.format),
)
_OPTIONAL_COLUMNS = ('of', 'tokens/s')
_ASCII = str.maketrans('│┤├─┬┴┼┌┐└┘', '|||-+++++++')


@dataclasses.dataclass(frozen=True)
class RunStatus:
  """Name, curve of points (x, loss), state and last logged values of one model."""

  name: str
  points: Sequence[tuple[float, float]]
  state: str
  step: int | None
  updates: int | None
  train: float | None
  validation: float | None
  speed: float | None


def watch_runs(folders: Sequence[epath.PathLike], axis: str, split: str, follow: bool) -> None:
  """Plots the losses of runs on standard output.

  Args:
    folders: run directories, or folders of run directories.
    axis: horizontal axis, a key of `AXES`.
    split: split of the losses, one of `SPLITS`.
    follow: redraws every few seconds until all runs have ended.

  Raises:
    InputError: the logs have no curve of the split, no pre-training run is in the folders, or a log
      is damaged.
  """
  if split not in SPLITS:
    raise InputError(f'--split={split}', 'no curve of this split', f'give {" or ".join(SPLITS)}')
  if not folders:
    raise InputError(
      'minilm watch', 'no run directory', 'give a directory: minilm watch runs/tiny --follow'
    )
  console = progress.Console(markup=False, emoji=False, highlight=False)
  paths = _find_runs(folders)

  def render() -> rich_console.Group:
    return _render(read_statuses(paths, axis, split), axis, split, console)

  if follow and console.is_terminal and not console.is_dumb_terminal:
    try:
      with rich_live.Live(
        render(), console=console, auto_refresh=False, redirect_stderr=False
      ) as live:
        while not _have_ended(paths):
          time.sleep(_POLL_SECONDS)
          live.update(render(), refresh=True)
    finally:
      console.show_cursor()  # a signal can arrive before `live` handles it
    return
  console.print(render())
  sizes = _list_file_sizes(paths)
  while follow and not _have_ended(paths):
    time.sleep(_POLL_SECONDS)
    if sizes != (sizes := _list_file_sizes(paths)):
      console.print(render())


def _find_runs(folders: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """Returns the pre-training runs in the folders by printable name."""
  paths = {
    name: path
    for name, path in runs.find_runs(folders).items()
    if runs.read_kind(path) == 'pretrain'
  }
  if not paths:
    raise InputError(
      f'loss curves of {", ".join(map(str, folders))}',
      'no pre-training run among the runs',
      'give a run directory of minilm pretrain',
    )
  return {
    ''.join(letter if letter.isprintable() else '\ufffd' for letter in name): path
    for name, path in paths.items()
  }


def _have_ended(paths: Mapping[str, epath.Path]) -> bool:
  return all((path / run_dir.RESULT).exists() for path in paths.values())


def _list_file_sizes(paths: Mapping[str, epath.Path]) -> list[int]:
  """Returns the bytes of logs and results, -1 for missing files: a change needs a new plot."""
  logs = [path / name for path in paths.values() for name in (run_dir.METRICS, run_dir.RESULT)]
  return [files.read_status(log).size if log.exists() else -1 for log in logs]


def read_statuses(paths: Mapping[str, epath.Path], axis: str, split: str) -> list[RunStatus]:
  """Returns the status of each run, or of each member of a population, from the logs.

  Raises:
    InputError: a log is damaged.
  """
  statuses = []
  for name, path in paths.items():
    updates, state = runs.read_config(path).get('num_steps'), _read_state(path)
    for member, lines in runs.split_members(path).items():
      pairs = [(line.get(axis), line.get('loss')) for line in lines if line['split'] == split]
      points = [
        (x, loss)
        for x, loss in pairs
        if x is not None and loss is not None and math.isfinite(x + loss)
      ]
      statuses.append(
        RunStatus(
          name + member,
          points,
          state,
          max((line['step'] for line in lines), default=None),
          updates if isinstance(updates, int) else None,
          _find_last(lines, 'train', 'loss'),
          _find_last(lines, 'validation', 'loss'),
          _find_last(lines, 'train', 'tokens_per_second'),
        )
      )
  return statuses


def _read_state(path: epath.Path) -> str:
  if (path / run_dir.RESULT).exists():
    return 'ended'
  try:
    silent_seconds = time.time() - files.read_status(path / lock.LOCK_FILE).changed_at
  except OSError:
    return 'stopped'
  return 'running' if silent_seconds < lock.STALE_SECONDS else 'stopped'


def _find_last(lines: Sequence[Mapping[str, Any]], split: str, name: str) -> float | None:
  return next((line.get(name) for line in reversed(lines) if line['split'] == split), None)


def _render(
  statuses: Sequence[RunStatus], axis: str, split: str, console: rich_console.Console
) -> rich_console.Group:
  """Returns the plot, the names of runs without a point, and a table that is the legend."""
  ascii_only = console.options.ascii_only
  if ascii_only:
    statuses = [
      dataclasses.replace(status, name=status.name.encode('ascii', 'replace').decode())
      for status in statuses
    ]
  colored = (
    console.color_system is not None and not console.no_color and len(statuses) <= len(_COLORS)
  )
  letters = '*' if len(statuses) == 1 else string.ascii_letters
  dotted = not ascii_only and (colored or len(statuses) == 1)
  markers = ['braille' if dotted else letters[n % len(letters)] for n in range(len(statuses))]
  columns = min(console.width, _MAX_COLUMNS)
  rows = min(_MAX_ROWS, console.height - len(statuses) - 5) if console.is_terminal else _MAX_ROWS
  parts: list[Any] = []
  if any(status.points for status in statuses):
    drawing = draw_curves(
      [status.points for status in statuses], markers, _COLORS if colored else (), columns, rows
    )
    text = rich_text.Text.from_ansi(
      drawing.translate(_ASCII) if ascii_only else drawing, no_wrap=True, overflow='crop'
    )
    parts = [rich_text.Text(f'{split} loss by {AXES[axis]}'), text]
  parts += [
    rich_text.Text(f'no {split} loss logged yet: {status.name}')
    for status in statuses
    if not status.points
  ]
  signs = ['─' if marker == 'braille' else marker for marker in markers]
  return rich_console.Group(
    *parts, _make_table(statuses, signs, colored, columns >= _FULL_TABLE_COLUMNS)
  )


def draw_curves(
  curves: Sequence[Sequence[tuple[float, float]]],
  markers: Sequence[str],
  colors: Sequence[int],
  columns: int,
  rows: int,
) -> str:
  """Returns a plot of curves with axis labels, as lines of text.

  Args:
    curves: finite points (x, y) from left to right; later curves cover earlier curves.
    markers: letter, or 'braille', of each curve.
    colors: number in the 256-color palette of each curve; () gives plain text.
    columns: width of the plot, at least 24.
    rows: height of the plot, at least 10.
  """
  figure = plotext.figure
  figure.clear()
  figure.theme('colorless')
  figure.plot_size(max(columns, _MIN_COLUMNS), max(rows, _MIN_ROWS))
  for number, points in enumerate(curves):
    if points:
      marker = plotext.marker(markers[number], colors[number]) if colors else markers[number]
      signal = figure.signal([x for x, _ in points], [y for _, y in points], marker=marker)
      signal.lines(True)
      figure.draw(signal)
  return figure.build().string(colorless=not colors).rstrip('\n')


def _make_table(
  statuses: Sequence[RunStatus], signs: Sequence[str], colored: bool, full: bool
) -> rich_table.Table:
  """Returns a table of the last logged values of each run; `full` adds `_OPTIONAL_COLUMNS`."""
  columns = {
    heading: [
      '' if (value := getattr(status, field)) is None else form(value) for status in statuses
    ]
    for heading, field, form in _TABLE_COLUMNS
    if full or heading not in _OPTIONAL_COLUMNS
  }
  columns = {heading: values for heading, values in columns.items() if any(values)}
  table = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  table.add_column('')
  table.add_column('run', overflow='fold')
  for heading in columns:
    table.add_column(heading, justify='right', no_wrap=True)
  table.add_column('', no_wrap=True)
  for number, status in enumerate(statuses):
    sign = rich_text.Text(signs[number], f'color({_COLORS[number]})' if colored else '')
    table.add_row(
      sign,
      rich_text.Text(status.name),
      *(values[number] for values in columns.values()),
      status.state,
    )
  return table
