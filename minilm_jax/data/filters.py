"""Filters that keep text inside a word list (paper 1, selection of the pre-training corpora).

A *sentence* is kept with more than `min_words_per_sentence` counted words, and a *span*,
`span_words` fields from every `span_stride`-th on (fewer at the end of a document), with more than
`min_words_per_span`; both only if no word is out of vocabulary. So is, on demand, a whole
*document* with any counted word (as in paper 2). The kept text is in lower case and with single
spaces. Deduplication and rows come later.

A field is a stretch of text between white space, and every filter needs only what depends on a
field alone. So each distinct field is analysed once, into one integer. All fields of a batch of
documents make one array of these, and its running sums give the counted words and the fields out of
vocabulary of any stretch.
"""

import collections
import dataclasses
import hashlib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from minilm_jax.core import files, schema
from minilm_jax.core.corpus_config import VocabularyConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import readers

_MAX_LIST_LINE_CHARS = 1_000_000  # of a word list
_PAPER1_WORDS = re.compile(r'\b\w\w+\b')
_PAPER1_DIGITS = re.compile(r'\b\d+')
_PAPER1_LINK = re.compile(r'http\S*')
_PLAIN_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PLAIN_NUMBER = re.compile(r'\b\d+(?:[.,]\d+)*\b')
NUMBER_TOKEN = '0'  # the word for every number under the plain rule
_GLUE_DELETED = str.maketrans('', '', '0123456789!:&“”—-_,@#$?;’.\'()"')
_GLUE_PARTS = frozenset(('', 'nt', 's', 're', 't', 'd', 'll'))

_MAX_CACHED_FIELDS = 1 << 18  # distinct ones, some 40 MB
# Bits of a field's integer: the end of a sentence, a word out of vocabulary, and the counted words.
_LOWERCASE_START = 1  # opens with a small letter, or with what continues a sentence
_LONE_END_MARK = 2  # nothing but the mark that ends it
_CLOSER = 4  # nothing but closing quotes and brackets
_SENTENCE_END = 8  # may end a sentence
_EXCLUDED_BIT, _WORDS_BIT = 4, 5
_ENDERS, _CLOSERS, _OPENERS, _CONTINUES = '.!?…', '"\')]}”’»', '"“‘«([{', ',;:-–—'
_END_CHARS = frozenset(_ENDERS + _CLOSERS)
_PUNCTUATION = '.,;:!?…"\'()[]{}“”‘’«»*'
_ABBREVIATIONS = frozenset(
  'mr mrs ms messrs mme mlle dr prof rev fr gen col maj capt cpt cmdr lt sgt cpl sen rep gov pres hon st ste mt ft '
  'jr sr jan feb aug sept oct nov dec vs viz cf ca approx vol fig pp eds'.split()
)
_INITIALS = re.compile(r'(?:[^\W\d_]\.)*[^\W\d_]')


@dataclasses.dataclass(frozen=True)
class WordList:
  """Words, the name of the list, and a hash of the sorted words, whatever the form of the file."""

  words: frozenset[str]
  name: str
  sha256: str


def _make_word_list(words: Iterable[str], name: str) -> WordList:
  checksum = hashlib.sha256('\n'.join(sorted(words)).encode()).hexdigest()
  return WordList(frozenset(words), name, checksum)


def load_word_list(path: epath.PathLike) -> WordList:
  """Reads a word list: a table with a column `word`, as the paper's CSV, or one word a line.

  The file is plain or compressed. Words are taken as they stand. Text is matched in lower case, so
  that an entry with a capital never matches: TRUE and FALSE in the paper's list, damage by a
  spreadsheet. Its `nan` is a word.

  Raises:
    InputError: the file cannot be read, is not UTF-8, has no such column, holds more than a word in
      a line, or no word, or too many.
  """
  what, remedy = f'the word list {path}', 'give one word a line, or a table with a column `word`'
  words = set(files.limit_items(_read_words(path, what, remedy), len, what)) - {''}
  if not words:
    raise InputError(what, 'no word in it', remedy)
  return _make_word_list(words, epath.Path(path).name)


def _read_words(path: epath.PathLike, what: str, remedy: str) -> Iterator[str]:
  if readers.detect_format(path) in ('txt', None):
    for number, line in enumerate(readers.read_lines(path, 'strict', _MAX_LIST_LINE_CHARS), 1):
      if len(line.split()) > 1 or ',' in line:
        raise InputError(what, f'line {number} is more than a word: {line[:40]!r}', remedy)
      yield line.strip()
    return
  for number, row in enumerate(readers.read_rows(path, 'strict', _MAX_LIST_LINE_CHARS), 1):
    word = row.get('word')
    if not isinstance(word, str) or schema.NO_TEXT.search(word):
      raise InputError(what, f'row {number} has no word: {", ".join(map(str, row))}', remedy)
    yield word.strip()


def most_frequent_words(counts: Mapping[str, int], n: int) -> WordList:
  """Returns the n most frequent words, of equally frequent ones the first in the alphabet.

  >>> sorted(most_frequent_words({'the': 3, 'dog': 1, 'cat': 1}, 2).words)
  ['cat', 'the']
  """
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  return _make_word_list(ranked[:n], f'most_frequent_{n}')


def extract_words(field: str, rule: str) -> tuple[str, ...]:
  """Returns the words that count in one field, in lower case.

  'paper1' is the rule of paper 1: hyphens separate, runs of digits become the word "number" and
  links "hlink", words are runs of two or more word characters. So single letters do not count, and
  an apostrophe cuts: "don't" is "don". 'plain' takes words of any length with the apostrophes
  inside them, and every number as '0'.

  >>> extract_words("Don't", 'paper1'), extract_words('well-known,', 'paper1'), extract_words('1,000', 'paper1')
  (('don',), ('well', 'known'), ('number', 'number'))
  >>> extract_words("Don't", 'plain'), extract_words('I', 'plain'), extract_words('(1,000)', 'plain')
  (("don't",), ('i',), ('0',))
  """
  field = field.lower()
  if field.isalpha() and not field.startswith('http'):
    return (field,) if rule == 'plain' or len(field) > 1 else ()
  if rule == 'plain':
    return tuple(_PLAIN_WORDS.findall(_PLAIN_NUMBER.sub(NUMBER_TOKEN, field.replace('’', "'"))))
  field = field.replace('-', ' ').replace('@,@', '#number').replace('@.@', '#number')
  field = _PAPER1_LINK.sub('#hlink', _PAPER1_DIGITS.sub('#number ', field))
  return tuple(_PAPER1_WORDS.findall(field))


def is_inside_word_list(text: str, words: frozenset[str]) -> bool:
  """Returns whether a labelled example stays inside the word list, by paper 1's filter of GLUE.

  This is not the rule of `extract_words`. All words but the first are ignored if they have a
  capital; digits and most marks are deleted.

  >>> is_inside_word_list("The dog, Rover, doesn't.", frozenset(('the', 'dog', 'doesnt')))
  True
  """
  first, *others = text.split(' ')
  fields = (first.lower(), *(word for word in others if word == word.lower()))
  bare = (field.translate(_GLUE_DELETED) for field in fields)
  return all(word in words or word in _GLUE_PARTS for word in bare)


@dataclasses.dataclass
class FilterResult:
  """The kept text of some documents, and sums over them.

  `items` are (number of the document, 'sentences', 'spans' or 'documents', text), document by
  document. Of each kind `counts` holds how many were read, kept, out_of_vocabulary or else short,
  as 'spans_kept', and the counted words in those kept, as 'spans_words', windows that overlap each
  in full; 'words_read' are those of the documents.
  """

  items: list[tuple[int, str, str]]
  counts: collections.Counter[str]


class _FieldCodes(dict[str, int]):
  """Maps a field to its integer, made on first use.

  Of fields outside the word list every fourth is cached: most never come again, and one that does
  soon is in. A full cache is emptied, so that memory is bounded.
  """

  def __init__(self, words: frozenset[str] | None, rule: str):
    super().__init__()
    self._words, self._rule, self._num_excluded = words, rule, 0

  def __missing__(self, field: str) -> int:
    if len(self) >= _MAX_CACHED_FIELDS:
      self.clear()
    core = field.strip(_PUNCTUATION)
    word = core.lower()
    if word.isalpha() and len(word) > 1 and self._words is not None and word[:4] != 'http':
      # nearly all fields; the other branch gives the same, slowly
      num_words, is_excluded = 1, word not in self._words
    else:
      words = extract_words(core, self._rule)
      num_words, is_excluded = len(words), not self._includes(words)
    code = num_words << _WORDS_BIT | is_excluded << _EXCLUDED_BIT | _sentence_flags(field, core)
    self._num_excluded += is_excluded
    if not is_excluded or self._num_excluded % 4 == 0:
      # a copy: keys strewn among the fields of a batch would hold its memory
      self[field[:1] + field[1:]] = code
    return code

  def _includes(self, words: tuple[str, ...]) -> bool:
    known = self._words
    if known is None or known.issuperset(words):
      return True
    return self._rule == 'plain' and all(
      word == NUMBER_TOKEN or word in known or word.replace("'", '') in known for word in words
    )


def _sentence_flags(field: str, core: str) -> int:
  """Returns the bits of a field about the end of a sentence."""
  opened = core or field.lstrip(_OPENERS)
  flags = _LOWERCASE_START if opened and (opened[0].islower() or opened[0] in _CONTINUES) else 0
  if field[-1] not in _END_CHARS:
    return flags
  body = field.rstrip(_CLOSERS)
  if not body:
    # an opening quote looks like these two
    return flags | _LOWERCASE_START | _CLOSER if field not in ('"', "'") else flags
  if body[-1] not in _ENDERS or body[-1] == '.' and _is_abbreviation(core):
    return flags
  return flags | _SENTENCE_END | (_LONE_END_MARK if len(field) == 1 and field != '…' else 0)


def _is_abbreviation(core: str) -> bool:
  """Returns whether a sentence goes on after the full stop of a word.

  It does after a title, an initial (but "I." more often ends), and letters and stops as in U.S.
  """
  is_initials = core not in ('I', 'i') and _INITIALS.fullmatch(core) is not None
  return is_initials or core.lower() in _ABBREVIATIONS


class Filter:
  """Keeps text inside a word list, or with None inside the rules of length alone."""

  def __init__(self, words: WordList | None, config: VocabularyConfig):
    self._words, self._config = words, config
    self._codes = _FieldCodes(words and words.words, config.word_rule)

  def __reduce__(self) -> tuple[Any, ...]:
    return Filter, (self._words, self._config)

  def apply(self, texts: Sequence[str]) -> FilterResult:
    """Returns the kept sentences, spans and documents of some documents."""
    fields, line_ends, document_ends = [], [0], []
    for text in texts:
      for line in text.split('\n'):
        fields += line.split()
        line_ends.append(len(fields))
      document_ends.append(len(fields))
    codes = np.fromiter(map(self._codes.__getitem__, fields), np.int64, len(fields))
    config, ends = self._config, np.array(document_ends, int)
    stretches = _Stretches(fields, codes, ends)
    items = []
    if 'sentences' in config.filters:
      caseless = np.array([text.islower() for text in texts], bool)
      is_bound = np.zeros(len(fields) + 1, bool)
      is_bound[line_ends] = is_bound[_find_sentence_ends(codes, ends, caseless)] = True
      bounds = np.flatnonzero(is_bound)
      items += stretches.select('sentences', bounds[:-1], bounds[1:], config.min_words_per_sentence)
    if 'spans' in config.filters:
      starts, stops = _find_windows(ends, config.span_words, config.span_stride)
      items += stretches.select('spans', starts, stops, config.min_words_per_span)
    if 'documents' in config.filters:
      items += stretches.select('documents', np.append(0, ends)[:-1], ends, 0)
    return FilterResult(sorted(items, key=operator.itemgetter(0, 1)), stretches.counts)


def _find_sentence_ends(
  codes: Int[np.ndarray, 'fields'],
  ends: Int[np.ndarray, 'documents'],
  caseless: Bool[np.ndarray, 'documents'],
) -> Int[np.ndarray, 'n']:
  """Returns the ends of sentences inside lines: behind the end marks and the quotes that close.

  Before a small letter the sentence goes on (`"Stop!" he said`), unless the whole document is in
  small letters or the mark stands alone, as in text that was split into words before.
  """
  marked = np.flatnonzero(codes & _SENTENCE_END)
  document = np.searchsorted(ends, marked, 'right')
  # all fields that are more than a closer
  opens = np.append(np.flatnonzero(codes & _CLOSER == 0), len(codes))
  stops = np.minimum(opens[np.searchsorted(opens, marked + 1)], ends[document])
  goes_on = np.append(codes & _LOWERCASE_START, 0)[stops] > 0
  is_alone = (codes[marked] & _LONE_END_MARK > 0) & (stops == marked + 1)
  return stops[caseless[document] | (stops == ends[document]) | ~goes_on | is_alone]


def _find_windows(
  ends: Int[np.ndarray, 'documents'], words: int, stride: int
) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
  """Returns starts and stops of the windows of all documents; none reaches into the next one."""
  begins = np.append(0, ends)[:-1]
  count = -(-(ends - begins) // stride)
  # of a window in its document
  number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
  starts = np.repeat(begins, count) + stride * number
  return starts, np.minimum(starts + words, np.repeat(ends, count))


class _Stretches:
  """Runs of fields inside documents; `counts` sums over those that were looked at."""

  def __init__(
    self, fields: list[str], codes: Int[np.ndarray, 'fields'], ends: Int[np.ndarray, 'documents']
  ):
    self._fields, self._ends = fields, ends
    self._words = np.append(0, np.cumsum(codes >> _WORDS_BIT))
    self._excluded = np.append(0, np.cumsum(codes >> _EXCLUDED_BIT & 1))
    self.counts = collections.Counter(words_read=int(self._words[-1]))

  def select(
    self,
    kind: str,
    starts: Int[np.ndarray, 'n'],
    stops: Int[np.ndarray, 'n'],
    more_than: int,
  ) -> list[tuple[int, str, str]]:
    """Returns the items from starts[i] to before stops[i] with more counted words than given."""
    words = self._words[stops] - self._words[starts]
    is_inside = self._excluded[stops] == self._excluded[starts]
    selected = np.flatnonzero(is_inside & (words > more_than))
    num_inside = int(is_inside.sum())
    numbers = {
      'read': len(starts),
      'kept': len(selected),
      'out_of_vocabulary': len(starts) - num_inside,
      'short': num_inside - len(selected),
      'words': int(words[selected].sum()),
    }
    self.counts.update({f'{kind}_{name}': number for name, number in numbers.items()})
    starts, stops = starts[selected], stops[selected]
    documents = np.searchsorted(self._ends, starts, 'right')
    bounds = zip(documents.tolist(), starts.tolist(), stops.tolist(), strict=True)
    return [
      (document, kind, ' '.join(self._fields[start:stop]).lower())
      for document, start, stop in bounds
    ]
