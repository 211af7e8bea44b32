"""TensorBoard events: what metrics.jsonl says, once, however often the run was stopped."""

import math
import pathlib
from typing import Any

import pytest
from etils import epath

from minilm_jax.training.events import FOLDER, Events
from tests import eventfile

pytest.importorskip('tensorboardX', reason='needs tensorboardX, which setup.py requires: pip install tensorboardX')


def line(step: int, split: str = 'train', **more: Any) -> dict[str, Any]:
  return {'step': step, 'split': split, 'loss': 5 - step / 8, 'perplexity': 2.0, 'tokens': 100 * step, 'seconds': step / 2,
          **more}


def made(folder: pathlib.Path, lines: list[dict[str, Any]], members: int = 1) -> Events:
  return Events(epath.Path(folder), members, lines)


def steps(folder: pathlib.Path, tag: str = 'train/loss') -> list[int]:
  return [step for _, step, name, _ in eventfile.scalars(folder) if name == tag]


def test_lines_become_scalars(tmp_path: pathlib.Path):
  """Those that are numbers to draw, under the name of their split; what is not finite is left out."""
  to = made(tmp_path, [])
  to.append([line(2, gradient_norm=1.5, learning_rate=0.25, parameter_norm=math.inf)])
  to.append([line(2, 'validation', gradient_norm=None), line(2, 'test')])
  assert eventfile.scalars(tmp_path) == [
      ('events', 2, 'train/loss', 4.75), ('events', 2, 'train/perplexity', 2.0), ('events', 2, 'train/learning_rate', 0.25),
      ('events', 2, 'train/gradient_norm', 1.5), ('events', 2, 'validation/loss', 4.75),
      ('events', 2, 'validation/perplexity', 2.0)]


def test_each_start_makes_them_anew(tmp_path: pathlib.Path):
  """From the lines that are kept: what came after the last save is gone; times go on as if the run had not stood still."""
  made(tmp_path, []).append([line(2), line(4), line(6)])
  first = list((tmp_path / FOLDER).iterdir())
  to = made(tmp_path, [line(2), line(4)])
  assert steps(tmp_path) == [2, 4]
  to.append([line(6)])
  assert steps(tmp_path) == [2, 4, 6]
  empty, file = sorted((tmp_path / FOLDER).iterdir())
  assert empty == first[0] and not empty.stat().st_size
  made(tmp_path, [line(2)])
  assert steps(tmp_path) == [2] and first[0] not in (tmp_path / FOLDER).iterdir()
  made(tmp_path, [line(2), line(4), line(6)])
  *_, file = sorted((tmp_path / FOLDER).iterdir())
  head, start, *rest = eventfile.events(file)
  assert head.file_version == 'brain.Event:2' and start.step == 0 and start.session_log.status == 1
  assert [event.wall_time - rest[0].wall_time for event in rest] == [0, 1, 2]


def test_files_of_others_stay(tmp_path: pathlib.Path):
  other = tmp_path / FOLDER / 'events.out.tfevents.1700000000.host'
  other.parent.mkdir()
  other.write_bytes(b'')
  made(tmp_path, [])
  made(tmp_path, [])
  made(tmp_path, [])
  assert other.exists() and len(list(other.parent.iterdir())) == 3


def test_each_member_has_a_folder(tmp_path: pathlib.Path):
  to = made(tmp_path, [line(2, member=0), line(2, member=1)], members=2)
  to.append([line(4, member=1)])
  assert [(whose, step) for whose, step, tag, _ in eventfile.scalars(tmp_path) if tag == 'train/loss'] == [
      ('member-0', 2), ('member-1', 2), ('member-1', 4)]


def test_tensorboard_itself_reads_one_curve(tmp_path: pathlib.Path):
  """Also a viewer that was open while the run was stopped and started again."""
  reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator',
                               reason='needs TensorBoard: pip install tensorboard')
  made(tmp_path, []).append([line(2), line(4), line(6), line(8)])
  viewer = reader.EventAccumulator(str(tmp_path / FOLDER))
  viewer.Reload()
  assert [event.step for event in viewer.Scalars('train/loss')] == [2, 4, 6, 8]
  to = made(tmp_path, [line(2), line(4)])
  to.append([line(6)])
  fresh = reader.EventAccumulator(str(tmp_path / FOLDER))
  for one in (viewer, fresh):
    one.Reload()
    assert [(event.step, event.value) for event in one.Scalars('train/loss')] == [(2, 4.75), (4, 4.5), (6, 4.25)]
