"""The reduced language: a word list, the rule by which words are counted, and the text that stays inside the list.

Two passes keep text (paper 1, selection of the pre-training corpora), both only where no word is out of vocabulary: a
*sentence* with more than `sentence_words` counted words; a *span*, `span_words` fields from every `span_stride`-th on
(fewer at the end of a document), with more than `span_counted`. Kept is the text itself, in lower case and with single
spaces. Repetitions and rows are for others to see to.

A field is what stands between white space, and all that either pass needs of it depends on it alone. So each distinct
field is analysed once and its numbers packed into one integer; their running sum over a document tells of any stretch
how many words count and how many are out of vocabulary.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from minilm_jax.config import VocabularyConfig
from minilm_jax.errors import InputError
from minilm_jax.language import files

_LONGEST_LINE = 1_000_000  # characters in a line of a word list
_FIELDS = 1 << 18  # distinct fields remembered, some 50 MB

# One field in one integer: counted words, above them 1 if a word is out of vocabulary, above that what ends a sentence.
_OUT = 1 << 30
_SUMMED = (1 << 60) - 1
_SMALL = 1 << 60  # opens with a small letter, or with what continues a sentence
_ALONE = 1 << 61  # nothing but the mark that ends it
_CLOSER = 1 << 62  # nothing but closing quotes and brackets
_END = 1 << 63  # may end a sentence; the highest bit, so that comparing finds it

_CLOSERS = '"\')]}”’»'
_MARKS = '.,;:!?…"\'()[]{}“”‘’«»*'
_ABBREVIATIONS = frozenset(
    'mr mrs ms messrs mme mlle dr prof rev fr gen col maj capt cpt cmdr lt sgt cpl sen rep gov pres hon st ste mt ft '
    'jr sr jan feb aug sept oct nov dec vs viz cf ca approx vol fig pp eds'.split())
_INITIALS = re.compile(r'(?:[^\W\d_]\.)*[^\W\d_]')
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
    InputError: the file cannot be read, is not UTF-8, has no such column, holds more than a word in a line, or no word.
  """
  words, remedy = set(), 'give one word a line, or a table with a column `word`'
  if files.form_of(path) not in ('txt', None):
    for number, row in enumerate(files.rows(path, 'strict', _LONGEST_LINE), 1):
      if not isinstance(row.get('word'), str):
        raise InputError(f'the word list {path}', f'row {number} has no word: {", ".join(map(str, row))}', remedy)
      words.add(row['word'].strip())
  else:
    for number, line in enumerate(files.lines(path, 'strict', _LONGEST_LINE), 1):
      if len(line.split()) > 1 or ',' in line:
        raise InputError(f'the word list {path}', f'line {number} is more than a word: {line[:40]!r}', remedy)
      words.add(line.strip())
  words.discard('')
  if not words:
    raise InputError(f'the word list {path}', 'no word in it', remedy)
  return _word_list(words, epath.Path(path).name)


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

  >>> counted_words("Don't", 'honey'), counted_words('well-known,', 'honey'), counted_words('1,000', 'honey')
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


@dataclasses.dataclass
class Kept:
  """What is kept of one document, and sums over it.

  Of sentences and spans, `counts` holds how many were read, kept, out_of_vocabulary or else short, as 'spans_kept', and
  the counted words in those kept, as 'spans_words', windows that overlap each in full; 'words_read' are the document's.
  """

  sentences: list[str]
  spans: list[str]
  counts: collections.Counter[str]


class _Analysis(dict[str, int]):
  """Field -> its integer, made when first asked for; emptied when full, so that memory is bounded."""

  def __init__(self, words: frozenset[str] | None, counting: str):
    super().__init__()
    self._words, self._counting = words, counting

  def __missing__(self, field: str) -> int:
    if len(self) >= _FIELDS:
      self.clear()
    core = field.strip(_MARKS)
    found = counted_words(core, self._counting)
    inside = self._words is None or self._words.issuperset(found) or self._counting == 'plain' and all(
        word == NUMBER or word in self._words or word.replace("'", '') in self._words for word in found)
    self[field] = code = len(found) + (0 if inside else _OUT) + _ends(field, core)
    return code


def _ends(field: str, core: str) -> int:
  """What a field says of the end of a sentence."""
  opened = core or field.lstrip('"“‘«([{')
  code = _SMALL if opened and (opened[0].islower() or opened[0] in ',;:-–—') else 0
  if field == core:  # no mark around it
    return code
  body = field.rstrip(_CLOSERS)
  if not body:
    return code | _SMALL | _CLOSER if field not in ('"', "'") else code  # an opening quote looks like these two
  if body[-1] not in '.!?…' or body[-1] == '.' and _is_abbreviation(core):
    return code
  return code | _END | (_ALONE if len(field) == 1 and field != '…' else 0)


def _is_abbreviation(core: str) -> bool:
  """Does a word with a full stop go on? A title, an initial (but "I." more often ends), letters and stops as in U.S."""
  return core.lower() in _ABBREVIATIONS or core not in ('I', 'i') and _INITIALS.fullmatch(core) is not None


class Filter:
  """Keeps what stays inside a word list, or with None inside the rules of length alone."""

  def __init__(self, words: WordList | None, config: VocabularyConfig):
    self._words, self._config = words, config
    self._analysis = _Analysis(words and words.words, config.counting)

  def __reduce__(self) -> tuple[Any, ...]:
    return Filter, (self._words, self._config)

  def kept(self, text: str) -> Kept:
    """The kept sentences and spans of one document, in order."""
    fields, breaks = [], []
    for line in text.split('\n'):
      fields += line.split()
      breaks.append(len(fields))
    codes = list(map(self._analysis.__getitem__, fields))
    sums = list(itertools.accumulate(codes, initial=0))
    counts = collections.Counter(words_read=sums[-1] & (_OUT - 1))
    take = functools.partial(_take, fields=fields, sums=sums, counts=counts)
    config, sentences, spans = self._config, [], []
    if 'sentences' in config.passes:
      bounds = _bounds(codes, breaks, caseless=text.islower())
      sentences = take('sentences', itertools.pairwise(bounds), more_than=config.sentence_words)
    if 'spans' in config.passes:
      starts = range(0, len(fields), config.span_stride)
      windows = ((start, min(start + config.span_words, len(fields))) for start in starts)
      spans = take('spans', windows, more_than=config.span_counted)
    return Kept(sentences, spans, counts)


def _bounds(codes: list[int], breaks: list[int], caseless: bool) -> list[int]:
  """Where sentences start and end: at line breaks, and behind the marks that end them with the quotes that close there.

  Before a small letter the sentence goes on (`"Stop!" he said`), unless the whole document is in small letters or the
  mark stands alone, as in text that was split into words before.
  """
  found, last = {0, *breaks}, len(codes)
  for j in [i for i, code in enumerate(codes, 1) if code >= _END]:
    end = j
    while j < last and codes[j] & _CLOSER:
      j += 1
    if caseless or j == last or not codes[j] & _SMALL or codes[j - 1] & _ALONE and j == end:
      found.add(j)
  return sorted(found)


def _take(kind: str, stretches: Iterable[tuple[int, int]], more_than: int, fields: list[str], sums: list[int],
          counts: collections.Counter[str]) -> list[str]:
  kept, words, read, out, short = [], 0, 0, 0, 0
  for start, stop in stretches:
    read += 1
    found = (sums[stop] - sums[start]) & _SUMMED
    if found >= _OUT:
      out += 1
    elif found <= more_than:
      short += 1
    else:
      words += found
      kept.append(' '.join(fields[start:stop]).lower())
  numbers = {'read': read, 'kept': len(kept), 'out_of_vocabulary': out, 'short': short, 'words': words}
  counts.update({f'{kind}_{name}': number for name, number in numbers.items()})
  return kept
