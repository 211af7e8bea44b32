"""Curves of pre-training runs in the terminal, from their logs alone, once or again as they grow.

A terminal gets colours and a picture that is drawn over; a file or a pipe gets plain lines. Names come from folders,
which others may have named: what does not print is shown as U+FFFD.
"""

import dataclasses
import operator
import string
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from rich import console as rich_console
from rich import live as rich_live
from rich import table as rich_table
from rich import text as rich_text

from minilm_jax import claim, plot, run
from minilm_jax.analysis import runs
from minilm_jax.errors import InputError, nearest

AXES = {'step': 'updates', 'tokens': 'tokens', 'flops': 'FLOPs', 'seconds': 'seconds'}
SPLITS = ('train', 'validation')
_COLOURS = ('cyan', 'magenta', 'yellow', 'green', 'red', 'blue')
_PAUSE = 3.0  # seconds between two looks
_TALLEST, _WIDE, _WIDEST = 24, 80, 120  # rows and columns of a picture, and those that all of its table takes
# Of the table: a name, a field of `Track`, how it is written; and what there is room for in a wide terminal only.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ('update', 'step', '{:,}'.format), ('of', 'updates', '{:,}'.format), ('train', 'train', '{:.3f}'.format),
    ('validation', 'validation', '{:.3f}'.format), ('tokens/s', 'speed', plot.short))
_LATER = ('of', 'tokens/s')


@dataclasses.dataclass(frozen=True)
class Track:
  """One model of a run: its name, the points of its curve, and where it stands."""

  name: str
  points: plot.Points
  state: str
  step: int | None
  updates: int | None
  train: float | None
  validation: float | None
  speed: float | None


def watch(folders: Sequence[epath.PathLike], axis: str, split: str, follow: bool) -> None:
  """Draws the losses of runs on standard output; with `follow` again every few seconds, until all have ended.

  Args:
    folders: runs, or folders that hold some.
    axis: one of `AXES`, from left to right.
    split: one of `SPLITS`, whose losses are drawn.
    follow: go on.

  Raises:
    InputError: no such axis or split, no folder, no pre-training run in one, or a damaged log.
  """
  for flag, given, known in (('axis', axis, AXES), ('split', split, SPLITS)):
    if given not in known:
      raise InputError(f'--{flag}={given}', 'no such choice', nearest(given, known))
  if not folders:
    raise InputError('minilm watch', 'no run directory', 'give one or more: minilm watch runs/tiny --follow')
  console = rich_console.Console(markup=False, emoji=False, highlight=False)
  found = _runs(folders)
  picture = _picture(tracks(found, axis, split), axis, split, console)
  if not follow:
    console.print(picture)
    return
  if console.is_terminal and not console.is_dumb_terminal:
    try:
      with rich_live.Live(picture, console=console, auto_refresh=False, redirect_stderr=False) as live:
        while not _ended(found):
          time.sleep(_PAUSE)
          live.update(_picture(tracks(found, axis, split), axis, split, console), refresh=True)
    finally:
      console.show_cursor()  # also where a signal comes before `live` could begin
    return
  console.print(picture)
  seen = _sizes(found)
  while not _ended(found):
    time.sleep(_PAUSE)
    if seen != (seen := _sizes(found)):
      console.print(_picture(tracks(found, axis, split), axis, split, console))


def _runs(folders: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """The pre-training runs in the folders, by names that print."""
  found = {name: path for name, path in runs.find(folders).items() if runs.kind(path) == 'pretrain'}
  if not found:
    raise InputError(f'curves of {", ".join(map(str, folders))}', 'runs, but none of pre-training',
                     'give a work directory of minilm pretrain')
  return {''.join(letter if letter.isprintable() else '\ufffd' for letter in name): path
          for name, path in found.items()}


def _ended(found: dict[str, epath.Path]) -> bool:
  return all((path / run.RESULT).exists() for path in found.values())


def _sizes(found: dict[str, epath.Path]) -> list[int]:
  """What tells that a log has grown, or a run ended."""
  files = [path / name for path in found.values() for name in (run.METRICS, run.RESULT)]
  return [file.stat().length if file.exists() else -1 for file in files]


def tracks(found: dict[str, epath.Path], axis: str, split: str) -> list[Track]:
  """Each run, or each member of a population, as its log has it now.

  Raises:
    InputError: a log is damaged.
  """
  made = []
  for name, path in found.items():
    settings = runs.config(path)
    updates = settings['updates'] if 'updates' in settings and isinstance(settings['updates'], int) else None
    state = _state(path)
    for of, lines in runs.members(path).items():
      points = [(line[axis], line['loss']) for line in lines if line['split'] == split
                and _number(line, axis) is not None and _number(line, 'loss') is not None]
      made.append(Track(
          name + of, points, state, max((line['step'] for line in lines), default=None), updates,
          _last(lines, 'train', 'loss'), _last(lines, 'validation', 'loss'),
          _last(lines, 'train', 'tokens_per_second')))
  return made


def _state(path: epath.Path) -> str:
  if (path / run.RESULT).exists():
    return 'ended'
  try:
    silent = time.time() - (path / claim.CLAIM).stat().mtime
  except OSError:
    return 'stopped'
  return 'running' if silent < claim.ABANDONED else 'stopped'


def _number(line: dict[str, Any], name: str) -> float | None:
  """A number of a line; earlier versions wrote fewer, and what was not finite is null."""
  return line[name] if name in line else None


def _last(lines: Sequence[dict[str, Any]], split: str, name: str) -> float | None:
  return next((_number(line, name) for line in reversed(lines) if line['split'] == split), None)


def _picture(shown: Sequence[Track], axis: str, split: str, console: rich_console.Console) -> rich_console.Group:
  """The curves, and a table that is their legend; what has no line yet is said."""
  plain = console.options.ascii_only
  if plain:  # who cannot write dots cannot write every name either
    shown = [dataclasses.replace(track, name=track.name.encode('ascii', 'replace').decode()) for track in shown]
  coloured = console.color_system is not None and not console.no_color and len(shown) <= len(_COLOURS)
  letters = '' if not plain and (coloured or len(shown) == 1) else '*' if len(shown) == 1 else string.ascii_letters
  width = min(console.width, _WIDEST)
  height = min(_TALLEST, console.height - len(shown) - 5) if console.is_terminal else _TALLEST
  rows = plot.draw([track.points for track in shown], width, height, letters, plain)
  parts: list[Any] = [rich_text.Text(f'{split} loss by {AXES[axis]}')] if rows else []
  for row in rows:
    parts.append(rich_text.Text(no_wrap=True, overflow='crop').append_tokens(
        (text, _COLOURS[number] if coloured and number is not None else None) for text, number in row))
  missing = [track.name for track in shown if not track.points]
  parts += [rich_text.Text(f'no {split} line yet: {name}') for name in missing]
  return rich_console.Group(*parts, _table(shown, coloured, letters, width >= _WIDE))


def _table(shown: Sequence[Track], coloured: bool, letters: str, wide: bool) -> rich_table.Table:
  """The last values, those that there are; a narrow terminal gets the most wanted ones."""
  columns = {name: [form(value) if value is not None else '' for value in map(operator.attrgetter(field), shown)]
             for name, field, form in _COLUMNS if wide or name not in _LATER}
  columns = {name: values for name, values in columns.items() if any(values)}
  found = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  found.add_column('')
  found.add_column('run', overflow='fold')
  for name in columns:
    found.add_column(name, justify='right', no_wrap=True)
  found.add_column('', no_wrap=True)
  for number, track in enumerate(shown):
    sign = rich_text.Text(letters[number % len(letters)] if letters else '─', _COLOURS[number] if coloured else '')
    found.add_row(sign, rich_text.Text(track.name), *(values[number] for values in columns.values()), track.state)
  return found
