"""One file: every form and compression reads alike, and what cannot be read is refused with its place."""

import gzip
import json
import lzma
import os
import pathlib

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from minilm_jax.errors import InputError
from minilm_jax.language import files

PACK = {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress, '.zst': zstandard.ZstdCompressor().compress}
ROWS = [{'text': f'row {i}: "quoted", with, commas', 'label': str(i % 3)} for i in range(300)]


def lines(path: pathlib.Path, errors: str = 'strict', longest: int = 1000) -> list[str]:
  return list(files.lines(path, errors, longest))


def rows(path: pathlib.Path) -> list[dict]:
  return list(files.rows(path, 'strict', 1000))


@pytest.mark.parametrize('suffix', PACK)
def test_lines_read_alike_whatever_the_compression(tmp_path, suffix):
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix]('\ufeffone\n\n  zwei ü \nlast'.encode()))
  assert lines(path) == ['one', '', '  zwei ü ', 'last']


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
def test_parts_that_were_joined_are_all_read(tmp_path, suffix):
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix](b'one\n') + PACK[suffix](b'two\n'))
  assert lines(path) == ['one', 'two']


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
@pytest.mark.parametrize('damage', ['truncated', 'garbage'])
def test_damage_is_refused(tmp_path, suffix, damage):
  path = tmp_path / f'a.txt{suffix}'
  whole = PACK[suffix](os.urandom(5000).hex().encode())
  path.write_bytes(whole[:len(whole) // 2] if damage == 'truncated' else b'no such format' * 9)
  with pytest.raises(InputError, match='cannot be read'):
    lines(path, longest=100_000)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='no such file'):
    lines(tmp_path / 'a.txt')


@pytest.mark.parametrize('bad, said', [
    (b'\xff', r'line 2.*byte 6 \(0xff\)'), (b'\0', 'line 2.*byte 6 of the text is NUL')])
def test_what_is_no_text_is_refused_with_its_byte_or_replaced(tmp_path, bad, said):
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(gzip.compress(b'one\ntw' + bad + b'o\n'))
  with pytest.raises(InputError, match=f'(?s){said}'):
    lines(path)
  assert lines(path, errors='replace') == ['one', 'tw\ufffdo']


def test_a_line_may_have_as_many_characters_as_allowed_and_no_more(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('𝄞' * 10 + '\n')  # four bytes each
  assert lines(path, longest=10) == ['𝄞' * 10]
  with pytest.raises(InputError, match='more than 9 characters'):
    lines(path, longest=9)


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path):
  path = tmp_path / 'a.txt.zst'
  path.write_bytes(PACK['.zst'](b'a' * 50_000_000))
  import tracemalloc
  tracemalloc.start()
  with pytest.raises(InputError, match='more than 1,000 characters'):
    lines(path)
  assert tracemalloc.get_traced_memory()[1] < 5e6
  tracemalloc.stop()


def write_table(path: pathlib.Path) -> None:
  """Writes ROWS in the form of the name, by hand: .tsv has no quoting."""
  if path.suffix == '.parquet':
    return parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
  if '.jsonl' in path.name:
    text = ''.join(json.dumps(row) + '\n' for row in ROWS)
  elif '.csv' in path.name:
    text = 'text,label\r\n' + ''.join('"{}",{}\r\n'.format(r['text'].replace('"', '""'), r['label']) for r in ROWS)
  else:
    text = 'text\tlabel\n' + ''.join(f'{row["text"]}\t{row["label"]}\n' for row in ROWS)
  return path.write_bytes(PACK[path.suffix if path.suffix in PACK else ''](text.encode()))


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.csv', 'a.csv.xz', 'a.tsv', 'a.tsv.zst', 'a.parquet'])
def test_tables_read_alike_whatever_the_form(tmp_path, name):
  write_table(tmp_path / name)
  assert rows(tmp_path / name) == ROWS


def test_a_quoted_field_may_have_several_lines(tmp_path):
  (tmp_path / 'a.csv').write_text('text,n\n"one\ntwo",1\n')
  assert rows(tmp_path / 'a.csv') == [{'text': 'one\ntwo', 'n': '1'}]


@pytest.mark.parametrize('name, text, said', [
    ('a.jsonl', '{"a": 1}\n{"a": \n', 'line 2.*not JSON'),
    ('a.jsonl', '{"a": 1}\n\n[1]\n', 'line 3.*not an object'),
    ('a.jsonl', '[' * 900 + '\n', 'line 1.*not JSON'),
    ('a.csv', 'a,b\n1,2\n3\n', 'line 3.*1 fields where the first line names 2'),
    ('a.csv', 'a,b\n1,"2\n', 'line 2.*not CSV'),
    ('a.tsv', 'a\tb\n1\t2\t3\n', 'line 2.*3 fields'),
    ('a.parquet', 'no parquet', 'not Parquet'),
    ('a.txt', 'text', 'not a table'),
])
def test_bad_rows_are_refused_with_their_line(tmp_path, name, text, said):
  (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=f'(?s){said}'):
    rows(tmp_path / name)
