"""What data from a file must look like before anything reads it: forms of JSON, and what keeps a value from its form.

A form is one of the names below, a list with the form of every item, or a dict with the form of every field that is
needed; a field whose name ends in `?` may be missing, and fields that no form names may be there. Recipes have types of
their own (`recipe.build`), and are not read so.
"""

import re
import reprlib
from typing import Any

TEXT, COUNT, NUMBER, FLAG, ANY = 'text', 'a whole number from 0', 'a number or null', 'true or false', 'anything'
MAYBE = 'a whole number from 0 or null'
Form = str | list | dict

# JSON can hold halves of surrogate pairs, which is also how Python hands on arguments that are not UTF-8.
NO_TEXT = re.compile('[\0\ud800-\udfff]')
_COUNTED, _LARGEST = 2**63, 10**300  # what fits an array, and what fits a float


def fault(value: Any, form: Form, name: str = 'it') -> str:
  """What keeps a value from having a form, in words; '' where nothing does.

  >>> fault({'step': -1, 'more': 0}, {'step': COUNT, 'loss?': NUMBER})
  'step is -1, not a whole number from 0'
  >>> fault([{'file': 'a'}, {}], [{'file': TEXT}], 'shards')
  'no file in shards[1]'
  """
  if isinstance(form, dict):
    if not isinstance(value, dict):
      return f'{name} is {reprlib.repr(value)}, not an object'
    inside = '' if name == 'it' else f'{name}.'
    for field, inner in form.items():
      key = field.removesuffix('?')
      if key not in value and key == field:
        return f'no {key} in {name}'
      if key in value and (found := fault(value[key], inner, inside + key)):
        return found
    return ''
  if isinstance(form, list):
    if not isinstance(value, list):
      return f'{name} is {reprlib.repr(value)}, not a list'
    return next((found for i, item in enumerate(value) if (found := fault(item, form[0], f'{name}[{i}]'))), '')
  return '' if _has(value, form) else f'{name} is {reprlib.repr(value)}, not {form}'


def _has(value: Any, form: str) -> bool:
  if form == ANY or value is None and form in (NUMBER, MAYBE):
    return True
  if form == TEXT:
    return isinstance(value, str) and not NO_TEXT.search(value)
  if isinstance(value, bool) or form == FLAG:
    return isinstance(value, bool) and form == FLAG
  if form == NUMBER:
    return isinstance(value, float) or isinstance(value, int) and abs(value) < _LARGEST
  return isinstance(value, int) and 0 <= value < _COUNTED
