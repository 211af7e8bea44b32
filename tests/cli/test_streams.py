"""Commands end with their documented status for any encoding and for closed streams."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from minilm_jax.cli import streams

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOW = f'{sys.executable} -m minilm_jax show --config=configs/tiny.py'
REFUSED = f'{sys.executable} -m minilm_jax shw'


@pytest.mark.parametrize(
  'command, status',
  [
    (f'{SHOW} | true; exit ${{PIPESTATUS[0]}}', 0),
    (f'{SHOW} >&-', 0),
    (f'{SHOW} <&- >&- 2>&-', 0),
    (f'{SHOW} >/dev/full', 2),
    (f'{REFUSED} 2>&-', 2),
    (f'{REFUSED} 2>/dev/full', 2),
  ],
)
def test_a_closed_stream_has_the_documented_status(command: str, status: int):
  process = subprocess.run(
    ['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert process.returncode == status and 'Traceback' not in process.stderr, process.stderr


def test_messages_without_standard_error_do_not_join_the_result():
  program = (
    'import os, sys\n'
    'from minilm_jax.cli import streams\n'
    'from minilm_jax.core import progress\n'
    'with streams.prepare_streams():\n'
    '  progress.log("message")\n'
    '  file = os.open("/dev/null", os.O_WRONLY)\n'
    '  print(file > 2)\n'
  )
  command = f"{sys.executable} -c '{program}' 2>&-"
  process = subprocess.run(
    ['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert (process.returncode, process.stdout) == (0, 'True\n')


@pytest.mark.parametrize(
  'encoding, output',
  [
    ('ascii', b"58.7 +- 1.1 x 100: _the R2 \\xe9 \\u65e5 \\udc80 'a'"),
    ('latin-1', b"58.7 \xb1 1.1 \xd7 100: _the R\xb2 \xe9 \\u65e5 \\udc80 'a'"),
    ('utf-8', '58.7 ± 1.1 × 100: ▁the R² é 日 \\udc80 ‘a’'.encode()),
  ],
)
def test_output_that_is_not_utf8_has_ascii_for_other_characters(
  encoding: str, output: bytes, monkeypatch: pytest.MonkeyPatch
):
  buffer = io.BytesIO()
  stream = io.TextIOWrapper(buffer, encoding)
  monkeypatch.setattr(sys, 'stdout', stream)
  with streams.prepare_streams():
    print('58.7 ± 1.1 × 100: ▁the R² é 日 \udc80 ‘a’', end='', flush=True)
  stream.flush()
  assert buffer.getvalue() == output


def test_a_broken_standard_error_drops_messages(monkeypatch: pytest.MonkeyPatch):
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, 'w') as broken:
    monkeypatch.setattr(sys, 'stderr', broken)
    with streams.prepare_streams():
      for _ in range(3):
        print('message', file=sys.stderr, flush=True)
      assert sys.stderr.fileno() == writer and not sys.stderr.isatty()
    assert sys.stderr is broken
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # closing writes the buffer
