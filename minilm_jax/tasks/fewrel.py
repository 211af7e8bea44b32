"""FewRel's files: sentences by the relation that they state between a head and a tail entity.

A file is one JSON object, `{relation: [{tokens, h, t}, ...]}`, plain or .gz, .xz, .zst; `h` and `t` are the name of an
entity, its id, and the places of its mentions, each a list of token indices (Han et al., 2018). Which relations are
trained and which examples reported is left to `sources.py`.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax.errors import InputError
from minilm_jax.language import files

# Letters alone: brackets and digits may be no character of a tokenizer that learned from a small language, and would
# all become <unk>; capitals would be lost. No word is written so, and the four remain four different ones where a
# tokenizer takes them apart into letters.
HEAD, TAIL = ('qj', 'jq'), ('qz', 'zq')


def is_file(path: epath.PathLike) -> bool:
  """Does a name end as FewRel's files do?

  >>> is_file('val_wiki.json.xz'), is_file('train.jsonl')
  (True, False)
  """
  stem, _, last = str(path).lower().rpartition('.')
  return last == 'json' or last in files.COMPRESSIONS and stem.endswith('.json')


def rows(path: epath.PathLike, markers: bool) -> Iterator[dict[str, Any]]:
  """One row a sentence, in the order of the file: its tokens with spaces between as `text`, its relation as `label`.

  Args:
    path: the file.
    markers: also give `marked`, the text with `qj`, `jq` round every mention of the head, `qz`, `zq` of the tail.

  Raises:
    InputError: the file cannot be read or is too large, is not of this form, or (for markers) a mention lies outside
      its sentence.
  """
  try:
    relations = json.loads(files.whole(path))
  except (ValueError, RecursionError) as error:
    raise InputError(f'relations in {path}', f'not JSON: {error}', 'give a .jsonl a name that ends so') from None
  if not isinstance(relations, dict) or not all(isinstance(items, list) for items in relations.values()):
    raise _malformed(str(path), 'no object of lists')
  for relation, items in relations.items():
    for number, item in enumerate(items, 1):
      where = f'{path}, {relation}, example {number:,}'
      tokens = item['tokens'] if isinstance(item, dict) and 'tokens' in item else None
      if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _malformed(where, 'no list of tokens')
      row = {'text': ' '.join(tokens), 'label': relation}
      yield row | {'marked': _marked(tokens, item, where)} if markers else row


def _marked(tokens: list[str], item: dict[str, Any], where: str) -> str:
  before, after = [[] for _ in tokens], [[] for _ in tokens]
  for name, (start, end) in (('h', HEAD), ('t', TAIL)):
    for first, last in _mentions(item, name, len(tokens), where):
      before[first].append(start)
      after[last].insert(0, end)
  return ' '.join(itertools.chain.from_iterable([*a, token, *b] for a, token, b in zip(before, tokens, after)))


def _mentions(item: dict[str, Any], name: str, length: int, where: str) -> list[tuple[int, int]]:
  """The first and the last token of each mention."""
  entity = item[name] if name in item else None
  found = entity[2] if isinstance(entity, list) and len(entity) == 3 and isinstance(entity[2], list) else []
  for places in found:
    if not isinstance(places, list) or not places or not all(type(i) is int and 0 <= i < length for i in places):
      raise _malformed(where, f'{places!r} as a mention among {length} tokens')
  if not found:
    raise _malformed(where, f'no mention in {name!r}')
  return [(min(places), max(places)) for places in found]


def _malformed(where: str, found: str) -> InputError:
  return InputError(f'relations in {where}', found,
                    'give FewRel\'s form: {relation: [{"tokens": [...], "h": [name, id, [[index, ...]]], "t": ...}]}')
