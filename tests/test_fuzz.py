"""Readers raise no exception but InputError in a short fuzz, and the fuzz finds faulty readers."""

import pathlib
import random

import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.data import filters
from tests import input_cases
from tests.campaigns import fuzz


@pytest.mark.filterwarnings('ignore')
def test_readers_raise_no_exception_but_input_error():
  tally = fuzz.fuzz(seconds=60, executions=400, seed=0)
  assert tally.executions == 400 and tally.lines > 300 and not tally.findings


def test_a_faulty_reader_is_found_and_replayed(
  monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
  valid = b'the\ndog\n'

  def read(path: pathlib.Path) -> None:
    content = path.read_bytes()
    if b'\0' in content:
      raise KeyError('zero byte')
    if content != valid:
      raise InputError('a', 'b', 'c')

  def set_reader(reader) -> None:
    case = input_cases.Input('words', input_cases.create_file('words.txt', valid), reader)
    monkeypatch.setattr(input_cases, 'list_inputs', lambda: [case])

  set_reader(lambda path: None)
  tally = fuzz.fuzz(executions=50, findings=tmp_path)
  assert not tally.findings and tally.executions == 50
  set_reader(read)
  (finding,) = fuzz.fuzz(
    executions=300, findings=tmp_path
  ).findings  # one for each line that raises
  assert b'\0' in finding.read_bytes()
  assert f"--replay 'words' {finding}" in capsys.readouterr().err
  with pytest.raises(KeyError, match='zero byte'):
    fuzz.replay('words', finding)


def test_the_corpus_grows_by_new_lines_and_the_seed_decides_on_the_inputs():
  first, second = (fuzz.fuzz(executions=60, only='word list, .csv', seed=3) for _ in range(2))
  assert first.executions == second.executions == 60
  assert first.corpus_growth == second.corpus_growth > 0
  generators = [random.Random(5) for _ in range(2)]
  assert len({fuzz.mutate(generator, [b'text']) for generator in generators}) == 1


def test_a_line_counts_as_new_once():
  coverage = fuzz.Coverage()
  with coverage.record():
    filters.extract_words('well-known', 'paper1')
  assert coverage.count_new_lines() > 3 and not coverage.count_new_lines()
