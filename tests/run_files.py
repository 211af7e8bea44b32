"""Reads and changes the files of run directories, to compare runs before and after a command."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minilm_jax.core import run_dir
from minilm_jax.model.initialization import flatten


def read_files(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  """Returns the content of each file by its path in the folder."""
  return {
    path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


def read_times(folder: pathlib.Path) -> dict[pathlib.Path, int]:
  """Returns the time of the last change of each file and folder by its path in the folder."""
  return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob('*')}


def read_log(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of the log without their times."""
  return [
    {k: v for k, v in line.items() if k not in ('seconds', 'tokens_per_second')}
    for line in run_dir.read_lines(folder / run_dir.METRICS)
  ]


def bits(tree: Any) -> dict[str, bytes]:
  """Returns the bytes of each array of a tree by its name in a checkpoint."""
  return {name: np.asarray(leaf).tobytes() for name, leaf in flatten(tree).items()}


def edit_json(path: pathlib.Path, change: Callable[[Any], object]) -> None:
  """Applies a function that changes the content to a JSON file."""
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
