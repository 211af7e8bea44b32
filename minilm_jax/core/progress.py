"""Prints messages and progress on standard error, and results on standard output.

    with progress.track_progress('pre-training', total=1000, unit='updates') as update:
      update(done=50, note='loss 6.21, 31,000 tokens/s')

Progress is a live bar on a terminal, and plain lines in a file or pipe. Only process 0 prints.
"""

import contextlib
import datetime
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

from minilm_jax.core import distributed
from minilm_jax.core.errors import to_json_types

Update = Callable[..., None]  # update(done, note='')
_LINE_INTERVAL_SECONDS = 10.0
_FILE_COLUMNS = 160


class Console(rich_console.Console):
  """A console that raises BrokenPipeError; that of rich ends the process with status 1."""

  def on_broken_pipe(self) -> None:
    """Raises BrokenPipeError; rich calls this method after the error."""
    raise BrokenPipeError from None


def log(text: str) -> None:
  """Prints a line on standard error in process 0."""
  if distributed.is_primary():
    print(text, file=sys.stderr, flush=True)


def print_result(
  result: Mapping[str, Any] | Iterable[rich_table.Table | str], indent: int | None = 2
) -> None:
  """Prints a result on standard output of process 0: a mapping as JSON, or tables and lines.

  Tables have the width of the terminal, or up to 160 columns in a file.
  """
  if not distributed.is_primary():
    return
  if isinstance(result, Mapping):
    print(json.dumps(to_json_types(result), indent=indent))
    return
  console = Console(markup=False, emoji=False, highlight=False)
  if not console.is_terminal:
    console.width = _FILE_COLUMNS
  for table in result:
    console.print(table)


def format_duration(seconds: float) -> str:
  """Returns a duration as hours, minutes and seconds.

  >>> format_duration(3723.4)
  '1:02:03'
  """
  return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """Disables the logging of libraries inside the block."""
  level = logging.root.manager.disable
  logging.disable(logging.CRITICAL)
  try:
    yield
  finally:
    logging.disable(level)


def track_progress(
  label: str, total: float, unit: str, done: float = 0
) -> contextlib.AbstractContextManager[Update]:
  """Shows the progress of a long computation by a context that gives `update(done, note='')`."""
  is_terminal = sys.stderr.isatty() and distributed.is_primary()
  return (_show_bar if is_terminal else _print_lines)(label, total, unit, done)


@contextlib.contextmanager
def _show_bar(label: str, total: float, unit: str, done: float) -> Iterator[Update]:
  of_total = f'/{total:,.0f}' if total else ''
  columns = (
    rich_progress.TextColumn('{task.description}'),
    rich_progress.BarColumn(bar_width=24),
    rich_progress.TextColumn('{task.completed:,.0f}' + f'{of_total} {unit}'),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TextColumn('left'),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn('{task.fields[note]}'),
  )
  with rich_progress.Progress(*columns, console=rich_console.Console(stderr=True)) as bar:
    task = bar.add_task(label, total=total or None, note='')
    bar.update(task, completed=done)
    yield lambda done, note='': bar.update(task, completed=done, note=note)


@contextlib.contextmanager
def _print_lines(label: str, total: float, unit: str, done: float) -> Iterator[Update]:
  start_time, start_done = time.monotonic(), done
  last_time = 0.0
  of_total = f'/{total:,.0f}' if total else ''

  def update(done: float, note: str = '') -> None:
    nonlocal last_time
    now = time.monotonic()
    if now - last_time < _LINE_INTERVAL_SECONDS and done != total:
      return
    last_time = now
    spent = now - start_time
    parts = [f'{label}: {done:,.0f}{of_total} {unit}', f'{format_duration(spent)} spent']
    if total and done > start_done:
      remaining = spent * (total - done) / (done - start_done)
      parts.append(f'{format_duration(remaining)} left')
    log(', '.join([*parts, note] if note else parts))

  yield update
