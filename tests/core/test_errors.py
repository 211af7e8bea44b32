"""InputError has three safe parts; a schema accepts further fields and names a fault."""

import json

import pytest

from minilm_jax.core.errors import (
  ANY,
  COUNT,
  FLAG,
  MAYBE,
  NUMBER,
  TEXT,
  InputError,
  find_schema_fault,
  sanitize,
  suggest_name,
)


def test_an_error_has_three_parts():
  error = InputError('a run in runs/x', 'a file is there', 'give another --workdir')
  assert (error.asked, error.found, error.remedy) == (
    'a run in runs/x',
    'a file is there',
    'give another --workdir',
  )
  assert [line.split(':')[0] for line in str(error).splitlines()] == ['asked', 'found', 'to do']


def test_parts_are_escaped_and_truncated():
  error = InputError('the column \x1b[2J', 'größer\nasked: a second line', 'x' * 100_000)
  assert error.asked == r'the column \x1b[2J' and error.found == r'größer\nasked: a second line'
  assert len(str(error)) < 3000 and len(str(error).splitlines()) == 3


def test_the_nearest_name_is_suggested_or_all_names_are_listed():
  assert 'learning_rate' in suggest_name('learnin_rate', ['learning_rate', 'clip'])
  assert 'clip' not in suggest_name('learnin_rate', ['learning_rate', 'clip'])
  assert suggest_name('xyz', ['learning_rate', 'clip']) == 'known names are clip, learning_rate'
  assert suggest_name('xyz', []) == 'known names are (none)'


@pytest.mark.parametrize('text', ['\x1b[2J', '\r', '\x9b', '\u202e', '\u2066', '\ud800', '\0'])
def test_control_characters_are_replaced(text: str):
  assert sanitize(f'a{text}b').startswith('a\ufffd') and text not in str(InputError('', text, text))


def test_other_text_is_unchanged():
  assert sanitize('größe 𝄞 שלום\tα\n') == 'größe 𝄞 שלום\tα\n'


SCHEMA = {
  'name': TEXT,
  'rows': COUNT,
  'loss?': NUMBER,
  'step?': MAYBE,
  'tied?': FLAG,
  'parts?': [{'file': TEXT}],
  'x?': ANY,
}


@pytest.mark.parametrize(
  'text',
  [
    '{"name": "a", "rows": 0}',
    '{"name": "", "rows": 9, "more": [[]]}',
    '{"name": "ü", "rows": 1, "loss": null}',
    '{"name": "a", "rows": 1, "loss": NaN, "step": null, "tied": true, "parts": [], "x": {}}',
    '{"name": "a", "rows": 1, "loss": 3, "step": 3, "parts": [{"file": "b"}]}',
  ],
)
def test_a_valid_value_passes(text: str):
  assert find_schema_fault(json.loads(text), SCHEMA) == ''


@pytest.mark.parametrize(
  'text, part',
  [
    ('[]', 'it is []'),
    ('{"rows": 1}', 'no name in it'),
    ('{"name": 1, "rows": 1}', 'name is 1, not text'),
    ('{"name": "\\ud800", "rows": 1}', 'not text'),
    ('{"name": "a\\u0000", "rows": 1}', 'not text'),
    ('{"name": "a", "rows": true}', 'rows is True'),
    ('{"name": "a", "rows": 1.0}', 'rows is 1.0'),
    ('{"name": "a", "rows": -1}', 'rows is -1'),
    ('{"name": "a", "rows": 9223372036854775808}', 'rows is'),
    ('{"name": "a", "rows": null}', 'rows is None'),
    ('{"name": "a", "rows": 1, "loss": "3"}', "loss is '3'"),
    ('{"name": "a", "rows": 1, "loss": true}', 'loss is True'),
    ('{"name": "a", "rows": 1, "tied": 1}', 'tied is 1'),
    ('{"name": "a", "rows": 1, "parts": {}}', 'parts is {}'),
    ('{"name": "a", "rows": 1, "step": -1}', 'step is -1'),
    ('{"name": "a", "rows": 1, "parts": [{"file": "b"}, {"file": 2}]}', r'parts[1].file is 2'),
  ],
)
def test_a_fault_names_its_field(text: str, part: str):
  assert part in find_schema_fault(json.loads(text), SCHEMA)
