"""Progress in a log: few plain lines on standard error."""

import json
import logging

import numpy as np
import pytest

from minilm_jax.core import distributed, progress


def test_progress_prints_few_lines_on_standard_error(capsys):
  with progress.track_progress('reading', total=1000, unit='rows') as update:
    for done in range(1, 1001):
      update(done=done, note='loss 6.2')
  out, err = capsys.readouterr()
  assert out == ''
  assert 'reading: 1,000/1,000 rows' in err and 'loss 6.2' in err
  assert len(err.splitlines()) <= 2  # a line each ten seconds, and the last line


def test_remaining_time_ignores_earlier_units(capsys, monkeypatch):
  clock = iter((100.0, 120.0))
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
  with progress.track_progress('training', total=100, unit='updates', done=50) as update:
    update(done=60)  # 10 updates in 20 seconds, 40 remain
  assert '0:00:20 spent, 0:01:20 left' in capsys.readouterr().err


def test_an_unknown_total_has_no_remaining_time(capsys):
  with progress.track_progress('reading', total=0, unit='bytes') as update:
    update(done=5)
  assert 'left' not in capsys.readouterr().err


def test_only_process_0_prints(capsys, monkeypatch):
  monkeypatch.setattr(distributed, 'is_primary', lambda: False)
  progress.log('training')
  with progress.track_progress('training', total=1, unit='updates') as update:
    update(done=1)
  assert capsys.readouterr() == ('', '')


def test_results_are_strict_json(capsys):
  result = {'loss': float('nan'), 'parts': [float('inf'), np.float32(0.5)], 'steps': np.int64(3)}
  progress.print_result(result)
  expected = {'loss': None, 'parts': [None, 0.5], 'steps': 3}
  assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == expected


def test_silence_disables_logging_inside_the_block(caplog):
  with pytest.raises(KeyError), progress.silence():
    logging.getLogger('library').error('hidden')
    raise KeyError
  logging.getLogger('library').error('visible')
  assert [record.message for record in caplog.records] == ['visible']
