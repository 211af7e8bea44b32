"""A word list, the rule by which words are counted, and the paper's filter of GLUE.

Which text of a document stays inside a list is for `passes.py` to say.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from etils import epath

from minilm_jax import shape, untrusted
from minilm_jax.errors import InputError
from minilm_jax.language import files

_LONGEST_LINE = 1_000_000  # characters in a line of a word list
_HONEY_WORDS, _HONEY_DIGITS, _HONEY_LINK = re.compile(r'\b\w\w+\b'), re.compile(r'\b\d+'), re.compile(r'http\S*')
_PLAIN_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PLAIN_NUMBER = re.compile(r'\b\d+(?:[.,]\d+)*\b')
NUMBER = '0'  # what every number counts as under the plain rule

_GLUE_DELETED = str.maketrans('', '', '0123456789!:&“”—-_,@#$?;’.\'()"')
_GLUE_PARTS = frozenset(('', 'nt', 's', 're', 't', 'd', 'll'))


@dataclasses.dataclass(frozen=True)
class WordList:
  """Words, what the list is called, and a hash of the sorted words, whatever the form of the file."""

  words: frozenset[str]
  name: str
  sha256: str


def _word_list(words: Iterable[str], name: str) -> WordList:
  return WordList(frozenset(words), name, hashlib.sha256('\n'.join(sorted(words)).encode()).hexdigest())


def load(path: epath.PathLike) -> WordList:
  """Reads a word list: a table with a column `word`, as the paper's CSV, or one word a line; plain or compressed.

  Words are taken as they stand. Text is matched in lower case, so that an entry with a capital never matches: TRUE and
  FALSE in the paper's list, damage by a spreadsheet. Its `nan` is a word.

  Raises:
    InputError: the file cannot be read, is not UTF-8, has no such column, holds more than a word in a line, or no word,
      or too many.
  """
  words, remedy = set(), 'give one word a line, or a table with a column `word`'
  for word in untrusted.kept(_words(path, remedy), len, f'the word list {path}'):
    words.add(word)
  words.discard('')
  if not words:
    raise InputError(f'the word list {path}', 'no word in it', remedy)
  return _word_list(words, epath.Path(path).name)


def _words(path: epath.PathLike, remedy: str) -> Iterator[str]:
  if files.form_of(path) not in ('txt', None):
    for number, row in enumerate(files.rows(path, 'strict', _LONGEST_LINE), 1):
      if not isinstance(row.get('word'), str) or shape.NO_TEXT.search(row['word']):
        raise InputError(f'the word list {path}', f'row {number} has no word: {", ".join(map(str, row))}', remedy)
      yield row['word'].strip()
  else:
    for number, line in enumerate(files.lines(path, 'strict', _LONGEST_LINE), 1):
      if len(line.split()) > 1 or ',' in line:
        raise InputError(f'the word list {path}', f'line {number} is more than a word: {line[:40]!r}', remedy)
      yield line.strip()


def most_frequent(counts: Mapping[str, int], n: int) -> WordList:
  """The n most frequent words, of equally frequent ones the first in the alphabet.

  >>> sorted(most_frequent({'the': 3, 'dog': 1, 'cat': 1}, 2).words)
  ['cat', 'the']
  """
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  return _word_list(ranked[:n], f'most_frequent_{n}')


def counted_words(field: str, counting: str) -> tuple[str, ...]:
  """The words that count in one field, a stretch of text without white space, in lower case.

  'honey' is the rule of paper 1: hyphens separate, runs of digits become the word "number" and links "hlink", words are
  runs of two or more word characters. So single letters do not count, and an apostrophe cuts: "don't" is "don".
  'plain' takes words of any length with the apostrophes inside them, and every number as '0'.

  >>> counted_words("Don't", 'paper1'), counted_words('well-known,', 'paper1'), counted_words('1,000', 'paper1')
  (('don',), ('well', 'known'), ('number', 'number'))
  >>> counted_words("Don't", 'plain'), counted_words('I', 'plain'), counted_words('(1,000)', 'plain')
  (("don't",), ('i',), ('0',))
  """
  field = field.lower()
  if field.isalpha() and not field.startswith('http'):
    return (field,) if counting == 'plain' or len(field) > 1 else ()
  if counting == 'plain':
    return tuple(_PLAIN_WORDS.findall(_PLAIN_NUMBER.sub(NUMBER, field.replace('’', "'"))))
  field = field.replace('-', ' ').replace('@,@', '#number').replace('@.@', '#number')
  return tuple(_HONEY_WORDS.findall(_HONEY_LINK.sub('#hlink', _HONEY_DIGITS.sub('#number ', field))))


def glue_inside(text: str, words: frozenset[str]) -> bool:
  """Does a labelled example stay inside the word list? (Paper 1, its filter of GLUE; not the rule of `counted_words`.)

  All words but the first are passed over if they have a capital; digits and most marks are deleted.

  >>> glue_inside("The dog, Rover, doesn't.", frozenset(('the', 'dog', 'doesnt')))
  True
  """
  first, *rest = text.split(' ')
  fields = [first.lower(), *(word for word in rest if word == word.lower())]
  return all(word in words or word in _GLUE_PARTS for word in (field.translate(_GLUE_DELETED) for field in fields))
