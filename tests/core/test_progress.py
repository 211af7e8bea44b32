"""Progress in a log: plain lines on standard error, never many."""

import logging

import pytest

from minilm_jax.core import distributed, progress


def test_a_log_gets_lines_on_standard_error_only(capsys: pytest.CaptureFixture[str]):
  with progress.track_progress('reading', total=1000, unit='rows') as tick:
    for done in range(1, 1001):
      tick(done=done, note='loss 6.2')
  out, err = capsys.readouterr()
  assert out == ''
  assert 'reading: 1,000/1,000 rows' in err and 'loss 6.2' in err
  assert len(err.splitlines()) <= 2  # a line in ten seconds, and the last


def test_time_left_counts_only_what_this_start_did(
  capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
  clock = iter((100.0, 120.0))
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
  with progress.track_progress('training', total=100, unit='updates', done=50) as tick:
    tick(done=60)  # 10 updates in 20 seconds, 40 are left
  assert '0:00:20 spent, 0:01:20 left' in capsys.readouterr().err


def test_work_of_unknown_length_promises_no_end(capsys: pytest.CaptureFixture[str]):
  with progress.track_progress('reading', total=0, unit='bytes') as tick:
    tick(done=5)
  assert 'left' not in capsys.readouterr().err


def test_one_process_of_several_speaks(
  capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(distributed, 'is_primary', lambda: False)
  progress.log('training')
  with progress.track_progress('training', total=1, unit='updates') as tick:
    tick(done=1)
  assert capsys.readouterr() == ('', '')


def test_libraries_are_quiet_for_a_while(caplog):
  with pytest.raises(KeyError), progress.silence():
    logging.getLogger('library').error('not for the reader')
    raise KeyError
  logging.getLogger('library').error('for the reader again')
  assert [record.message for record in caplog.records] == ['for the reader again']
