"""Readers: formats and compressions give the same rows; errors name the line; memory is bounded."""

import contextlib
import gzip
import json
import lzma
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tracemalloc
import zlib

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from minilm_jax.core.errors import InputError
from minilm_jax.data import readers
from tests.corruptions import PACK
from tests.input_cases import format_table

ROWS = [{'text': f'row {i}: "quoted", with, commas', 'label': str(i % 3)} for i in range(300)]


def read_lines(path: pathlib.Path, errors: str = 'strict', max_chars: int = 1000) -> list[str]:
  return list(readers.read_lines(path, errors, max_chars))


def read_rows(path: pathlib.Path) -> list[dict]:
  return list(readers.read_rows(path, 'strict', 1000))


@pytest.mark.parametrize('suffix', PACK)
def test_lines_do_not_depend_on_the_compression(tmp_path, suffix):
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix]('\ufeffone\n\n  zwei ü \nlast'.encode()))
  assert read_lines(path) == ['one', '', '  zwei ü ', 'last']


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
def test_concatenated_streams_are_all_read(tmp_path, suffix):
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix](b'one\n') + PACK[suffix](b'two\n'))
  assert read_lines(path) == ['one', 'two']


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
@pytest.mark.parametrize('damage', ['truncated', 'garbage'])
def test_damaged_files_are_refused(tmp_path, suffix, damage):
  path = tmp_path / f'a.txt{suffix}'
  packed = PACK[suffix](os.urandom(5000).hex().encode())
  path.write_bytes(packed[: len(packed) // 2] if damage == 'truncated' else b'no such format' * 9)
  with pytest.raises(InputError, match='unreadable'):
    read_lines(path, max_chars=100_000)


@pytest.mark.parametrize('name', ['a.parquet', 'a.jsonl.zst'])
def test_the_error_for_a_missing_library_names_the_extra(tmp_path, monkeypatch, name):
  (tmp_path / name).write_bytes(b'content')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(InputError, match=rf'(?s){name}.*pyarrow.*minilm_jax\[data\]'):
    read_rows(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='a.txt'):
    read_lines(tmp_path / 'a.txt')


@pytest.mark.parametrize(
  'bad, message', [(b'\xff', r'line 2.*byte 6 \(0xff\)'), (b'\0', 'line 2.*byte 6 .*NUL')]
)
def test_bytes_that_are_not_text_are_refused_by_offset_or_replaced(tmp_path, bad, message):
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(gzip.compress(b'one\ntw' + bad + b'o\n'))
  with pytest.raises(InputError, match=f'(?s){message}'):
    read_lines(path)
  assert read_lines(path, errors='replace') == ['one', 'tw\ufffdo']


def convert(error: InputError, folder: pathlib.Path) -> pathlib.Path:
  """Runs the command of a remedy in a folder, and returns the file that it writes."""
  command = error.remedy.partition(': ')[2]
  subprocess.run(['bash', '-c', command], check=True, cwd=folder)
  return folder / shlex.split(command)[-1]


@pytest.mark.parametrize(
  'encoding, guess',
  [
    ('cp1252', 'cp1252'),
    ('utf-16', 'UTF-16'),
    ('utf-16-le', 'UTF-16LE'),
    ('utf-16-be', 'UTF-16BE'),
    ('utf-32', 'UTF-32'),
  ],
)
@pytest.mark.parametrize('name', ['a b.csv', 'a.csv.gz'])
def test_a_file_of_another_encoding_is_converted_by_the_command_of_the_error(
  tmp_path, encoding, guess, name
):
  rows = [{'text': f'café {i} was “nice”', 'label': '1'} for i in range(20)]
  text = 'text,label\n' + ''.join(f'{row["text"]},1\n' for row in rows)
  (tmp_path / name).write_bytes(
    PACK[(tmp_path / name).suffix.replace('.csv', '')](text.encode(encoding))
  )
  with pytest.raises(InputError, match=guess) as error:
    read_rows(tmp_path / name)
  assert 'documents.' not in error.value.remedy
  assert read_rows(convert(error.value, tmp_path)) == rows


@pytest.mark.parametrize(
  'name, text', [('a.csv', 'n,b\r1,2\r'), ('a.jsonl', '{"n":"1","b":"2"}\r' * 2)]
)
def test_carriage_returns_alone_are_converted_by_the_command_of_the_error(tmp_path, name, text):
  (tmp_path / name).write_text(text, newline='')
  with pytest.raises(InputError, match='carriage returns') as error:
    read_rows(tmp_path / name)
  assert read_rows(convert(error.value, tmp_path))[0] == {'n': '1', 'b': '2'}


@pytest.mark.parametrize(
  'name, text, match',
  [
    ('a.csv', 'text;label\ngood, film;1\n', 'semicolons'),
    ('a.tsv', 'text;label\na;1\n', 'semicolons'),
    ('a.csv', 'text\tlabel\na\t1\n', r'tabs(.|\n)*\.tsv'),
    ('a.tsv', 'text,label\na,1\n', r'commas(.|\n)*\.csv'),
  ],
)
def test_another_delimiter_is_named(tmp_path, name, text, match):
  (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=match):
    read_rows(tmp_path / name)


def test_a_line_has_at_most_max_chars_characters(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('𝄞' * 10 + '\n')  # four bytes each
  assert read_lines(path, max_chars=10) == ['𝄞' * 10]
  with pytest.raises(InputError, match='9 characters'):
    read_lines(path, max_chars=9)


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path):
  path = tmp_path / 'a.txt.zst'
  path.write_bytes(PACK['.zst'](b'a' * 50_000_000))
  tracemalloc.start()
  with pytest.raises(InputError, match='1,000 characters'):
    read_lines(path)
  assert tracemalloc.get_traced_memory()[1] < 5e6
  tracemalloc.stop()


@contextlib.contextmanager
def limit_memory_growth(mebibytes: int):
  """Asserts that the resident memory of this process grows by less."""

  def peak() -> int:
    return int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1])

  try:
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets the peak
  except OSError:
    pytest.skip('needs Linux')
  before = peak()
  yield
  assert peak() - before < mebibytes << 10


def write_bomb(path: pathlib.Path, begin: bytes, middle: bytes) -> pathlib.Path:
  """Writes a file that decompresses to a beginning and 64 MiB of repeated bytes."""
  block = middle * ((16 << 20) // len(middle))
  if path.suffix == '.zst':
    compressor = zstandard.ZstdCompressor(1).compressobj()
  elif path.suffix == '.xz':
    compressor = lzma.LZMACompressor(preset=0)
  else:
    compressor = zlib.compressobj(1, wbits=31)
  parts = [compressor.compress(data) for data in (begin, *[block] * 4)]
  path.write_bytes(b''.join([*parts, compressor.flush()]))
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
  path = write_bomb(tmp_path / name, begin, middle)
  with limit_memory_growth(16), pytest.raises(InputError, match=message):
    list((readers.read_lines if '.txt' in name else readers.read_rows)(path, 'strict', 1000))


def set_xz_dictionary(size_code: int) -> bytes:
  """Returns an .xz file of one line whose header requests a dictionary of another size."""
  plain = lzma.compress(b'one\n', filters=[{'id': lzma.FILTER_LZMA2, 'dict_size': 1 << 20}])
  header = bytearray(plain[12:24])
  # xz-file-format 5.3.1: LZMA2, one byte of properties, the code of 1 MiB
  header[header.index(bytes([0x21, 1, 16])) + 2] = size_code
  header[8:12] = zlib.crc32(bytes(header[:8])).to_bytes(4, 'little')
  return plain[:12] + bytes(header) + plain[24:]


def set_zstd_window(log_size: int) -> bytes:
  """Returns a .zst file of one line whose header requests a window of 2**log_size bytes."""
  header = bytes.fromhex('28b52ffd') + bytes([0, (log_size - 10) << 3])
  return header + bytes.fromhex('210000') + b'one\n'


@pytest.mark.parametrize(
  'suffix, content, mebibytes, reason',
  [
    ('xz', set_xz_dictionary(28), 100, None),  # 64 MiB
    ('xz', set_xz_dictionary(37), 100, 'Memory usage limit'),  # 1.5 GiB
    ('zst', set_zstd_window(20), 16, None),
    ('zst', set_zstd_window(31), 16, ''),
  ],
)
def test_the_memory_of_a_decompressor_is_bounded(tmp_path, suffix, content, mebibytes, reason):
  path = tmp_path / f'a.txt.{suffix}'
  path.write_bytes(content)
  with limit_memory_growth(mebibytes):
    if reason is None:
      assert read_lines(path) == ['one']
    else:
      with pytest.raises(InputError, match='unreadable.*' + reason):
        read_lines(path)


def test_xz_streams_may_have_padding(tmp_path):
  path = tmp_path / 'a.txt.xz'
  path.write_bytes(
    lzma.compress(b'one\n') + bytes(8) + lzma.compress(b'') + lzma.compress(b'two\n') + bytes(4)
  )
  assert read_lines(path) == ['one', 'two']


@pytest.mark.parametrize(
  'indices, texts',
  [
    # stored once, and repeated in every row
    ([0], ['a' * (64 << 20)]),
    ([0] * 999 + [1], ['b', 'a' * (32 << 20)]),
    ([0] * 100, ['a' * (8 << 20)]),
  ],
)
def test_a_parquet_with_large_values_is_refused(tmp_path, indices, texts):
  path = tmp_path / 'a.parquet'
  values = pyarrow.array(texts)
  column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(indices, 'int32'), values)
  parquet.write_table(
    pyarrow.table({'text': column}),
    path,
    compression='zstd',
    store_schema=False,
    dictionary_pagesize_limit=1 << 30,
  )
  assert path.stat().st_size < 1 << 20
  with limit_memory_growth(500), pytest.raises(InputError, match='row.*1,000 characters'):
    read_rows(path)


@pytest.mark.parametrize('kind', ['timestamp[s]', 'timestamp[ns]', 'duration[ns]', 'time64[ns]'])
def test_a_parquet_may_have_times_without_a_python_value(tmp_path, kind):
  times = pyarrow.array([2**45 + 1, None]).cast(kind)
  columns = {'text': ['a', 'b'], 'time': times, 'all': pyarrow.array([[1.5], []]), 'n': [1, 2]}
  columns['nested'] = pyarrow.StructArray.from_arrays([times], ['at'])
  parquet.write_table(pyarrow.table(columns), tmp_path / 'a.parquet')
  rows = read_rows(tmp_path / 'a.parquet')
  assert rows == [{'text': 'a', 'all': [1.5], 'n': 1}, {'text': 'b', 'all': [], 'n': 2}]


@pytest.mark.parametrize(
  'form, packing',
  [
    *(('jsonl', ''), ('jsonl', '.gz'), ('csv', ''), ('csv', '.xz')),
    *(('tsv', ''), ('tsv', '.zst'), ('parquet', '')),
  ],
)
def test_rows_do_not_depend_on_the_format(tmp_path, form, packing):
  path, content = tmp_path / f'a.{form}{packing}', format_table(form, ROWS)
  for table in (content, content.replace(b'\n', b'\r\n')) if form == 'csv' else (content,):
    path.write_bytes(PACK[packing](table))
    assert read_rows(path) == ROWS


@pytest.mark.parametrize('name', ['a.json', 'a.json.xz'])
def test_a_json_file_has_an_array_or_lines(tmp_path, name):
  pack = PACK[(tmp_path / name).suffix.replace('.json', '')]
  lines = ''.join(json.dumps(row) + '\n' for row in ROWS)
  for text in (lines, json.dumps(ROWS), '\ufeff\n ' + json.dumps(ROWS, indent=2), '\n' + lines):
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert read_rows(tmp_path / name) == ROWS
  for text, match in (('[{"a": 1}, 2]', 'item 2'), ('[{"a": 1}', 'not JSON'), ('[' * 9000, 'JSON')):
    (tmp_path / name).write_bytes(pack(text.encode()))
    with pytest.raises(InputError, match=match):
      read_rows(tmp_path / name)


@pytest.mark.parametrize('name', ['a.csv', 'a.tsv', 'a.jsonl'])
def test_a_mark_at_the_start_and_words_for_missing_values_change_no_cell(tmp_path, name: str):
  cells = ['null', 'NULL', 'None', 'NA', 'nan', 'N/A', '-', 'a\u2028b\x85c']
  lines = ['text', *cells]
  if name.endswith('jsonl'):
    lines = [json.dumps({'text': cell}, ensure_ascii=False) for cell in cells]
  (tmp_path / name).write_bytes(('\ufeff' + '\n'.join(lines)).encode())
  rows = list(readers.read_rows(tmp_path / name, 'strict', 1000))
  assert rows == [{'text': cell} for cell in cells]


def test_a_quoted_field_may_span_lines(tmp_path):
  (tmp_path / 'a.csv').write_text('text,n\n"one\ntwo",1\n')
  assert read_rows(tmp_path / 'a.csv') == [{'text': 'one\ntwo', 'n': '1'}]


@pytest.mark.parametrize(
  'name, text',
  [
    ('a.csv', 'text,label,text,,\na,1,b,x,y\n'),
    ('a.tsv', 'text\tlabel\ttext\na\t1\tb\n'),
    ('a.jsonl', '{"text": "a", "label": "1", "text": "b"}\n'),
    ('a.parquet', ''),
  ],
)
def test_a_repeated_column_is_refused_where_it_is_read(tmp_path, name, text):
  (tmp_path / name).write_text(text)
  if not text:
    cells = [pyarrow.array([value]) for value in ('a', '1', 'b')]
    table = pyarrow.Table.from_arrays(cells, names=['text', 'label', 'text'])
    parquet.write_table(table, tmp_path / name)
  (row,) = read_rows(tmp_path / name)
  assert row['label'] == row.get('label') == '1' and row.get('idx') is None and 'text' in row
  for read in (row.__getitem__, row.get):
    with pytest.raises(InputError, match=f"'text' of .*{name}"):
      read('text')


@pytest.mark.parametrize(
  'name, text, message',
  [
    ('a.jsonl', '{"a": 1}\n{"a": \n', 'line 2.*not JSON'),
    ('a.jsonl', '{"a": 1}\n\n[1]\n', 'line 3.*not an object'),
    ('a.jsonl', '[' * 900 + '\n', 'line 1.*not JSON'),
    ('a.csv', 'a,b\n1,2\n3\n', 'line 3.*1 fields.*names 2'),
    ('a.csv', 'a,b\n1,"2\n', 'line 2.*not CSV'),
    ('a.tsv', 'a\tb\n1\t2\t3\n', 'line 2.*3 fields'),
    ('a.parquet', 'no parquet', 'not Parquet'),
    ('a.txt', 'text', 'not a table'),
  ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=f'(?s){message}'):
    read_rows(tmp_path / name)
