"""The fuzz in small, the same every time: no reader lets through anything but an InputError; and
what it would see.
"""

import pathlib
import random

import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.data import filters
from tests import input_cases
from tests.campaigns import fuzz


@pytest.mark.filterwarnings('ignore')
def test_no_mutated_input_gets_through():
  tally = fuzz.fuzz(seconds=60, executions=400, seed=0)
  assert tally.executions == 400 and tally.lines > 300 and not tally.findings


def test_a_reader_that_lets_something_through_is_found_and_replayed(
  monkeypatch, tmp_path: pathlib.Path, capsys
):
  def load(path: pathlib.Path) -> None:
    if b'\0' in path.read_bytes():
      raise KeyError('a hole')
    raise InputError('a', 'b', 'c')

  some = [
    input_cases.Input('words', input_cases.writes('words.txt', b'the\ndog\n'), lambda path: None)
  ]
  monkeypatch.setattr(input_cases, 'list_inputs', lambda: some)
  tally = fuzz.fuzz(executions=50, findings=tmp_path)
  assert not tally.findings and tally.executions == 50
  some[:] = [
    input_cases.Input(
      'words',
      input_cases.writes('words.txt', b'the\ndog\n'),
      lambda path: (
        path.read_bytes() and (load(path) if path.read_bytes() != b'the\ndog\n' else None)
      ),
    )
  ]
  tally = fuzz.fuzz(executions=300, findings=tmp_path)
  (found,) = tally.findings  # one a place
  assert b'\0' in found.read_bytes() and f"--replay 'words' {found}" in capsys.readouterr().err
  with pytest.raises(KeyError, match='a hole'):
    fuzz.replay('words', found)


def test_what_reaches_new_lines_is_kept_and_the_same_seed_tries_the_same():
  first, again = (fuzz.fuzz(executions=60, wanted='word list, .csv', seed=3) for _ in range(2))
  assert first.executions == again.executions == 60 and first.kept == again.kept > 0
  coverage = fuzz.Coverage()
  with coverage.watching():
    filters.extract_words('well-known', 'paper1')
  assert coverage.new() > 3 and not coverage.new()
  dice = [random.Random(5) for _ in range(2)]
  assert len({fuzz.mutated(one, [b'text']) for one in dice}) == 1
