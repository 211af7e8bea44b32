"""One file: every form and compression reads alike; faults are refused with their line."""

import contextlib
import gzip
import json
import lzma
import os
import pathlib
import re
import sys
import tracemalloc
import zlib

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from minilm_jax.core.errors import InputError
from minilm_jax.data import readers

PACK = {
  '': bytes,
  '.gz': gzip.compress,
  '.xz': lzma.compress,
  '.zst': zstandard.ZstdCompressor().compress,
}
ROWS = [{'text': f'row {i}: "quoted", with, commas', 'label': str(i % 3)} for i in range(300)]


def lines(path: pathlib.Path, errors: str = 'strict', max_chars: int = 1000) -> list[str]:
  return list(readers.read_lines(path, errors, max_chars))


def rows(path: pathlib.Path) -> list[dict]:
  return list(readers.read_rows(path, 'strict', 1000))


@pytest.mark.parametrize('suffix', PACK)
def test_lines_read_alike_whatever_the_compression(tmp_path, suffix):
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix]('\ufeffone\n\n  zwei ü \nlast'.encode()))
  assert lines(path) == ['one', '', '  zwei ü ', 'last']


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
def test_joined_streams_are_all_read(tmp_path, suffix):
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix](b'one\n') + PACK[suffix](b'two\n'))
  assert lines(path) == ['one', 'two']


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
@pytest.mark.parametrize('damage', ['truncated', 'garbage'])
def test_damage_is_refused(tmp_path, suffix, damage):
  path = tmp_path / f'a.txt{suffix}'
  whole = PACK[suffix](os.urandom(5000).hex().encode())
  path.write_bytes(whole[: len(whole) // 2] if damage == 'truncated' else b'no such format' * 9)
  with pytest.raises(InputError, match='cannot be read'):
    lines(path, max_chars=100_000)


@pytest.mark.parametrize('name', ['a.parquet', 'a.jsonl.zst'])
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, name):
  (tmp_path / name).write_bytes(b'some')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(InputError, match=rf'(?s){name}.*pyarrow.*minilm_jax\[data\]'):
    rows(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='a.txt'):
    lines(tmp_path / 'a.txt')


@pytest.mark.parametrize(
  'bad, message',
  [(b'\xff', r'line 2.*byte 6 \(0xff\)'), (b'\0', 'line 2.*byte 6 of the text is NUL')],
)
def test_other_bytes_are_refused_with_their_place_or_replaced(tmp_path, bad, message):
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(gzip.compress(b'one\ntw' + bad + b'o\n'))
  with pytest.raises(InputError, match=f'(?s){message}'):
    lines(path)
  assert lines(path, errors='replace') == ['one', 'tw\ufffdo']


def test_a_line_may_have_as_many_characters_as_allowed_and_no_more(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('𝄞' * 10 + '\n')  # four bytes each
  assert lines(path, max_chars=10) == ['𝄞' * 10]
  with pytest.raises(InputError, match='9 characters'):
    lines(path, max_chars=9)


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path):
  path = tmp_path / 'a.txt.zst'
  path.write_bytes(PACK['.zst'](b'a' * 50_000_000))
  tracemalloc.start()
  with pytest.raises(InputError, match='1,000 characters'):
    lines(path)
  assert tracemalloc.get_traced_memory()[1] < 5e6
  tracemalloc.stop()


@contextlib.contextmanager
def at_most(mebibytes: int):
  """The resident memory of this process grows no further."""

  def peak() -> int:
    return int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1])

  try:
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak is counted from here
  except OSError:
    pytest.skip('needs Linux')
  before = peak()
  yield
  assert peak() - before < mebibytes << 10


def bomb(path: pathlib.Path, begin: bytes, middle: bytes, times: int) -> pathlib.Path:
  """A file that decompresses to a beginning and so many times 16 MiB of the same bytes."""
  block = middle * ((16 << 20) // len(middle))
  if path.suffix == '.zst':
    made = zstandard.ZstdCompressor(1).compressobj()
  else:
    made = lzma.LZMACompressor(preset=0) if path.suffix == '.xz' else zlib.compressobj(1, wbits=31)
  path.write_bytes(
    b''.join([made.compress(begin), *(made.compress(block) for _ in range(times)), made.flush()])
  )
  return path


@pytest.mark.parametrize(
  'name, begin, middle, message',
  [
    ('a.txt.gz', b'', b'a', '1,000 characters'),
    ('a.jsonl.xz', b'{"a": "', b'a', '1,000 characters'),
    ('a.jsonl.gz', b'', b'[', '1,000 characters'),
    ('a.csv.zst', b'a\n"', b'a', '1,000 characters'),
    # one cell of many lines
    ('a.csv.gz', b'a,b\n1,"', b'a\n', 'row.*1,000 characters'),
    # one row of many cells
    ('a.csv.zst', b'a,b\n1', b',"\n"', 'row.*1,000 characters'),
    ('a.tsv.gz', b'a\tb\n', b'\t', '1,000 characters'),
  ],
)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path, name, begin, middle, message):
  path = bomb(tmp_path / name, begin, middle, 4)
  with at_most(16), pytest.raises(InputError, match=message):
    list((readers.read_lines if '.txt' in name else readers.read_rows)(path, 'strict', 1000))


@pytest.mark.parametrize('size, fits', [(64 << 20, True), (1536 << 20, False)])
def test_a_dictionary_of_xz_is_bounded(tmp_path, size, fits):
  path = tmp_path / 'a.txt.xz'
  plain = lzma.compress(b'one\n', filters=[{'id': lzma.FILTER_LZMA2, 'dict_size': 1 << 20}])
  # xz-file-format 5.3.1: the size as one byte of the block header
  stated = {64 << 20: 28, 1536 << 20: 37}[size]
  at = plain.index(bytes([0x21, 1, 16]))  # LZMA2, one byte of properties, 1 MiB
  header = bytearray(plain[12:24])
  header[at + 2 - 12] = stated
  header[8:12] = zlib.crc32(bytes(header[:8])).to_bytes(4, 'little')
  path.write_bytes(plain[:12] + bytes(header) + plain[24:])
  with at_most(100):
    if fits:
      assert lines(path) == ['one']
    else:
      with pytest.raises(InputError, match='cannot be read: Memory usage limit'):
        lines(path)


@pytest.mark.parametrize('log_size, fits', [(20, True), (31, False)])
def test_a_window_of_zstd_is_bounded(tmp_path, log_size: int, fits: bool):
  path = tmp_path / 'a.txt.zst'
  header = bytes.fromhex('28b52ffd') + bytes([0, (log_size - 10) << 3])
  path.write_bytes(header + bytes.fromhex('210000') + b'one\n')
  with at_most(16):
    if fits:
      assert lines(path) == ['one']
    else:
      with pytest.raises(InputError, match='cannot be read'):
        lines(path)


def test_streams_of_xz_may_have_zeros_between_them(tmp_path):
  path = tmp_path / 'a.txt.xz'
  path.write_bytes(
    lzma.compress(b'one\n') + bytes(8) + lzma.compress(b'') + lzma.compress(b'two\n') + bytes(4)
  )
  assert lines(path) == ['one', 'two']


@pytest.mark.parametrize(
  'places, texts',
  [
    ([0], ['a' * (64 << 20)]),
    ([0] * 999 + [1], ['b', 'a' * (32 << 20)]),
    ([0] * 100, ['a' * (8 << 20)]),
  ],
)  # stored once, and in every row
def test_a_parquet_that_unpacks_to_much_is_refused(tmp_path, places, texts):
  path = tmp_path / 'a.parquet'
  column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(places, 'int32'), pyarrow.array(texts))
  parquet.write_table(
    pyarrow.table({'text': column}),
    path,
    compression='zstd',
    store_schema=False,
    dictionary_pagesize_limit=1 << 30,
  )
  assert path.stat().st_size < 1 << 20
  with at_most(500), pytest.raises(InputError, match='row.*1,000 characters'):
    rows(path)


def write_table(path: pathlib.Path) -> None:
  """Writes ROWS in the form of the name, by hand: .tsv has no quoting."""
  if path.suffix == '.parquet':
    return parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
  if '.jsonl' in path.name:
    text = ''.join(json.dumps(row) + '\n' for row in ROWS)
  elif '.csv' in path.name:
    text = 'text,label\r\n' + ''.join(
      '"{}",{}\r\n'.format(r['text'].replace('"', '""'), r['label']) for r in ROWS
    )
  else:
    text = 'text\tlabel\n' + ''.join(f'{row["text"]}\t{row["label"]}\n' for row in ROWS)
  return path.write_bytes(PACK[path.suffix if path.suffix in PACK else ''](text.encode()))


@pytest.mark.parametrize(
  'name', ['a.jsonl', 'a.jsonl.gz', 'a.csv', 'a.csv.xz', 'a.tsv', 'a.tsv.zst', 'a.parquet']
)
def test_tables_read_alike_whatever_the_form(tmp_path, name):
  write_table(tmp_path / name)
  assert rows(tmp_path / name) == ROWS


def test_a_quoted_field_may_have_several_lines(tmp_path):
  (tmp_path / 'a.csv').write_text('text,n\n"one\ntwo",1\n')
  assert rows(tmp_path / 'a.csv') == [{'text': 'one\ntwo', 'n': '1'}]


@pytest.mark.parametrize(
  'name, text, message',
  [
    ('a.jsonl', '{"a": 1}\n{"a": \n', 'line 2.*not JSON'),
    ('a.jsonl', '{"a": 1}\n\n[1]\n', 'line 3.*not an object'),
    ('a.jsonl', '[' * 900 + '\n', 'line 1.*not JSON'),
    ('a.csv', 'a,b\n1,2\n3\n', 'line 3.*1 fields where the first line names 2'),
    ('a.csv', 'a,b\n1,"2\n', 'line 2.*not CSV'),
    ('a.tsv', 'a\tb\n1\t2\t3\n', 'line 2.*3 fields'),
    ('a.parquet', 'no parquet', 'not Parquet'),
    ('a.txt', 'text', 'not a table'),
  ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=f'(?s){message}'):
    rows(tmp_path / name)
