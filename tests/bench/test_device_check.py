"""The check of a device runs commands in processes, and keeps the results of each."""

import json
import pathlib

import pytest

from minilm_jax.bench import device_check
from minilm_jax.bench.device_check import Part
from minilm_jax.core import errors
from tests.docstring_commands import parse


def test_a_failed_part_leaves_the_results_of_the_others(tmp_path: pathlib.Path):
  check = device_check.check_device(
    tmp_path / 'check',
    [
      Part('refused', ['show', '--config=[/x].py']),
      Part('facts', ['show', '--config=configs/tiny.py:corpus'], 'a target'),
    ],
  )
  refused, facts = check['parts']
  assert 'result' not in refused and 'exit status 2' in refused['error']
  assert facts['result']['recipe']['kind'] == 'corpus' and 'error' not in facts
  assert json.loads((tmp_path / 'check' / device_check.RESULT).read_text()) == check
  text = (tmp_path / 'check' / device_check.TABLE).read_text()
  # Brackets are no markup.
  assert 'a target' in text and 'exit status 2' in text and '[/x]' in text


def test_a_repeated_check_runs_only_the_parts_without_a_result(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  failing, ran = {'slow'}, []

  def run_part(part: Part) -> dict:
    ran.append(part.name)
    line = {'name': part.name, 'command': part.command, 'target': '', 'seconds': 1.0}
    return line | ({'error': 'no memory'} if part.name in failing else {'result': {}})

  monkeypatch.setattr(device_check, 'run_part', run_part)
  driver = ['one GPU']
  monkeypatch.setattr(device_check, '_describe_driver', lambda: driver[0])
  fast, slow = Part('fast', ['bench']), Part('slow', ['bench', '--steps=9'])
  device_check.check_device(tmp_path, [fast, slow])
  failing.clear()
  check = device_check.check_device(tmp_path, [fast, slow])
  assert ran == ['fast', 'slow', 'slow']
  assert [sorted(part) for part in check['parts']] == [
    ['command', 'name', 'result', 'seconds', 'target']
  ] * 2
  # Another command of the same name, and another GPU.
  device_check.check_device(tmp_path, [Part('fast', ['latency']), slow])
  driver[0] = 'another GPU'
  device_check.check_device(tmp_path, [slow])
  assert ran[3:] == ['fast', 'slow']
  (tmp_path / device_check.RESULT).write_text('{"driver": "another GPU", "parts": [1]}')
  with pytest.raises(errors.InputError, match='not an object'):
    device_check.check_device(tmp_path, [slow])


@pytest.mark.parametrize('part', device_check.PARTS, ids=lambda part: part.name)
def test_the_command_of_a_part_parses(part: Part, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.chdir(pathlib.Path(device_check.__file__).parents[2])
  name, *words = part.arguments
  parse(name, [*words, '--json'])


@pytest.mark.parametrize(
  'driver, topology',
  [
    ('NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB, 700.00 W', 'h100'),
    ('Tesla T4, 535.1, 15360 MiB, 70.00 W', 't4'),
    ('NVIDIA GeForce RTX 4090, 580.65, 24564 MiB, 450.00 W', 'rtx4090'),
    ('NVIDIA L40S, 580.65, 46068 MiB, 350.00 W', ''),
    ('', ''),
  ],
)
def test_a_known_gpu_gets_a_preflight(driver: str, topology: str):
  parts = device_check._list_preflight_parts(driver)
  assert [part.arguments[-1] for part in parts] == [f'--topology={topology}'] * 2 * bool(topology)


@pytest.mark.parametrize(
  'result, values',
  [
    (
      {'tokens_per_second': 1234.4, 'utilisation': 0.125, 'peak_bytes': 3 << 20},
      [('tokens/s', '1,234'), ('utilisation', '12.5%'), ('peak memory', '3 MiB')],
    ),
    (
      {'recipes': {'one': {'bytes': {'total': 5 << 20}}, 'two': {'fits': False}}},
      [('memory by preflight', '5 MiB')],
    ),
    (
      {'rows': [{'name': 'a', 'batch': 1, 'milliseconds': {'median': 2}, 'over_member': 1.25}]},
      [('a, batch 1', '2.000 ms, 1.25 of a member')],
    ),
    ({}, []),
  ],
)
def test_values_of_results_become_text(result: dict, values: list):
  assert device_check.list_values(result) == values
