"""Schemas of JSON: valid values pass with further fields, faults name their field."""

import json

import pytest

from minilm_jax.core import schema
from minilm_jax.core.schema import ANY, COUNT, FLAG, MAYBE, NUMBER, TEXT

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
  assert schema.find_schema_fault(json.loads(text), SCHEMA) == ''


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
  assert part in schema.find_schema_fault(json.loads(text), SCHEMA)
