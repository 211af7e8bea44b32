"""Filters that select text inside a word list (paper 1, selection of the pre-training corpora).

A filter selects segments of a document without words outside the list:

- a *sentence* with more than `min_words_per_sentence` counted words;
- a *span* with more than `min_words_per_span` counted words: a window of `span_words` fields that
  starts at every `span_stride`-th field;
- a *document* with at least one counted word (paper 2).

Selected text is lower case with single spaces.

A field is text between white space. Each distinct field is encoded once as an integer: its number
of counted words and flags. Cumulative sums over the integers of a batch then give the counted words
and the excluded fields of any segment.
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

from minilm_jax.core import files
from minilm_jax.core.corpus_config import VocabularyConfig
from minilm_jax.core.errors import NO_TEXT, InputError
from minilm_jax.data import readers
from minilm_jax.data.normalization import list_mark_ranges, normalize_text

_MAX_LIST_LINE_CHARS = 1_000_000
_MARKS = list_mark_ranges()
_PAPER1_WORDS = re.compile(rf'\w[\w{_MARKS}]+')
_PAPER1_DIGITS = re.compile(rf'(?<![\w{_MARKS}])\d+')
_PAPER1_LINK = re.compile(r'http\S*')
_PLAIN_LETTERS = rf'(?:[^\W_][{_MARKS}]*)+'
_PLAIN_WORDS = re.compile(rf"{_PLAIN_LETTERS}(?:'{_PLAIN_LETTERS})*")
_PLAIN_NUMBER = re.compile(rf'(?<![\w{_MARKS}])\d+(?:[.,]\d+)*(?![\w{_MARKS}])')
NUMBER_TOKEN = '0'  # replaces every number under the plain rule
_GLUE_DELETED = str.maketrans('', '', '0123456789!:&“”—-_,@#$?;’.\'()"')
_GLUE_PARTS = frozenset(('', 'nt', 's', 're', 't', 'd', 'll'))

_MAX_CACHED_FIELDS = 1 << 18  # about 40 MB
# Bits of the integer of a field.
_CONTINUATION = 1  # starts with a lower-case letter or a mark that continues a sentence
_LONE_END_MARK = 2  # consists of one end mark
_CLOSER = 4  # consists of closing quotes and brackets
_SENTENCE_END = 8  # may end a sentence
_EXCLUDED_BIT, _WORDS_BIT = 4, 5  # a word outside the list; the number of counted words
_ENDERS, _CONTINUES = '.!?…。｡！？؟۔।॥', ',;:-–—'
_CLOSERS, _OPENERS = '"\')]}”’»」』）》】', '"“‘«([{「『（《【'
_END_CHARS = frozenset(_ENDERS + _CLOSERS)
_PUNCTUATION = '.,;:!?…"\'()[]{}“”‘’«»*'
_ABBREVIATIONS = frozenset(
  'mr mrs ms messrs mme mlle dr prof rev fr gen col maj capt cpt cmdr lt sgt cpl sen rep gov pres hon st ste mt ft '
  'jr sr jan feb aug sept oct nov dec vs viz cf ca approx vol fig pp eds'.split()
)
_INITIALS = re.compile(r'(?:[^\W\d_]\.)*[^\W\d_]')


@dataclasses.dataclass(frozen=True)
class WordList:
  """Words, the name of their file, and the checksum of the sorted words."""

  words: frozenset[str]
  name: str
  sha256: str


def _make_word_list(words: Iterable[str], name: str) -> WordList:
  checksum = hashlib.sha256('\n'.join(sorted(words)).encode()).hexdigest()
  return WordList(frozenset(words), name, checksum)


def load_word_list(path: epath.PathLike) -> WordList:
  """Reads a word list: a table with a column `word`, as in paper 1, or one word a line.

  Words are normalised to NFC, and text is matched in lower case. Entries with capitals therefore
  never match, such as TRUE and FALSE, which a spreadsheet left in the list of paper 1.

  Raises:
    InputError: The file is unreadable, empty, too large or not UTF-8, a line holds several words,
      or the column is missing.
  """
  subject, remedy = f'the word list {path}', 'give one word a line, or a table with a column `word`'
  words = set(files.limit_items(_read_words(path, subject, remedy), len, subject)) - {''}
  if not words:
    raise InputError(subject, 'no words', remedy)
  return _make_word_list(words, epath.Path(path).name)


def _read_words(path: epath.PathLike, subject: str, remedy: str) -> Iterator[str]:
  if readers.detect_format(path) in ('txt', None):
    for number, line in enumerate(readers.read_lines(path, 'strict', _MAX_LIST_LINE_CHARS), 1):
      if len(line.split()) > 1 or ',' in line:
        raise InputError(subject, f'line {number} has several words: {line[:40]!r}', remedy)
      yield normalize_text(line.strip())
    return
  for number, row in enumerate(readers.read_rows(path, 'strict', _MAX_LIST_LINE_CHARS), 1):
    word = row.get('word')
    if not isinstance(word, str) or NO_TEXT.search(word):
      raise InputError(subject, f'row {number} has no word: {", ".join(map(str, row))}', remedy)
    yield normalize_text(word.strip())


def select_frequent_words(counts: Mapping[str, int], n: int) -> WordList:
  """Returns the n most frequent words; ties are broken in alphabetical order.

  >>> sorted(select_frequent_words({'the': 3, 'dog': 1, 'cat': 1}, 2).words)
  ['cat', 'the']
  """
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  return _make_word_list(ranked[:n], f'most_frequent_{n}')


def extract_words(field: str, rule: str) -> tuple[str, ...]:
  """Returns the counted words of one field in lower case.

  Combining marks belong to the letter before them. Under 'paper1', words are runs of two or more
  word characters, so "don't" gives "don". Digits give "number", links give "hlink". Under 'plain',
  words have any length and may contain apostrophes; numbers give '0'.

  >>> extract_words("Don't", 'paper1'), extract_words('well-known,', 'paper1'), extract_words('1,000', 'paper1')
  (('don',), ('well', 'known'), ('number', 'number'))
  >>> extract_words("Don't", 'plain'), extract_words('I', 'plain'), extract_words('(1,000)', 'plain')
  (("don't",), ('i',), ('0',))
  """
  field = normalize_text(field).lower()
  if field.isalpha() and not field.startswith('http'):
    return (field,) if rule == 'plain' or len(field) > 1 else ()
  if rule == 'plain':
    return tuple(_PLAIN_WORDS.findall(_PLAIN_NUMBER.sub(NUMBER_TOKEN, field.replace('’', "'"))))
  field = field.replace('-', ' ').replace('@,@', '#number').replace('@.@', '#number')
  field = _PAPER1_LINK.sub('#hlink', _PAPER1_DIGITS.sub('#number ', field))
  return tuple(_PAPER1_WORDS.findall(field))


def is_inside_word_list(text: str, words: frozenset[str]) -> bool:
  """Returns whether paper 1's filter of GLUE keeps a labelled example.

  The rule differs from `extract_words`: words with a capital are ignored, except the first word;
  digits and most punctuation marks are deleted.

  >>> is_inside_word_list("The dog, Rover, doesn't.", frozenset(('the', 'dog', 'doesnt')))
  True
  """
  first, *others = normalize_text(text).split(' ')
  fields = (first.lower(), *(word for word in others if word == word.lower()))
  bare = (field.translate(_GLUE_DELETED) for field in fields)
  return all(word in words or word in _GLUE_PARTS for word in bare)


@dataclasses.dataclass
class FilterResult:
  """Selected text of a batch of documents.

  Attributes:
    items: (index of the document, kind, text) in document order; the kind is 'sentences', 'spans'
      or 'documents'.
    counts: Segments of each kind by outcome: 'spans_read', 'spans_kept',
      'spans_out_of_vocabulary', 'spans_short'; counted words of selected segments, 'spans_words';
      and counted words of the documents, 'words_read'.
  """

  items: list[tuple[int, str, str]]
  counts: collections.Counter[str]


class _FieldCodes(dict[str, int]):
  """Cache from a field to its integer; emptied when full.

  Only every fourth field outside the word list is cached, because most such fields are rare.
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
      # Fast path for most fields; equals the general path below.
      num_words, is_excluded = 1, word not in self._words
    else:
      words = extract_words(core, self._rule)
      num_words, is_excluded = len(words), not self._includes(words)
    code = (
      num_words << _WORDS_BIT | is_excluded << _EXCLUDED_BIT | _compute_sentence_flags(field, core)
    )
    self._num_excluded += is_excluded
    if not is_excluded or self._num_excluded % 4 == 0:
      # Cache a copy, because a slice of the batch would keep its memory alive.
      self[field[:1] + field[1:]] = code
    return code

  def _includes(self, words: tuple[str, ...]) -> bool:
    known = self._words
    if known is None or known.issuperset(words):
      return True
    return self._rule == 'plain' and all(
      word == NUMBER_TOKEN or word in known or word.replace("'", '') in known for word in words
    )


def _compute_sentence_flags(field: str, core: str) -> int:
  """Returns the bits of a field that concern sentence ends."""
  start = core or field.lstrip(_OPENERS)
  flags = _CONTINUATION if start and (start[0].islower() or start[0] in _CONTINUES) else 0
  if field[-1] not in _END_CHARS:
    return flags
  body = field.rstrip(_CLOSERS)
  if not body:
    # Straight quotes may also open.
    return flags | _CONTINUATION | _CLOSER if field not in ('"', "'") else flags
  if body[-1] not in _ENDERS or body[-1] == '.' and _is_abbreviation(core):
    return flags
  return flags | _SENTENCE_END | (_LONE_END_MARK if len(field) == 1 and field != '…' else 0)


def _is_abbreviation(core: str) -> bool:
  """Returns whether a full stop marks a title, an initial or an abbreviation such as "U.S."."""
  # "I." ends a sentence more often than it is an initial.
  is_initials = core not in ('I', 'i') and _INITIALS.fullmatch(core) is not None
  return is_initials or core.lower() in _ABBREVIATIONS


class Filter:
  """Selects text inside a word list; without a list, only by length."""

  def __init__(self, words: WordList | None, config: VocabularyConfig):
    self._words, self._config = words, config
    self._codes = _FieldCodes(words and words.words, config.word_rule)

  def __reduce__(self) -> tuple[Any, ...]:
    return Filter, (self._words, self._config)

  def apply(self, texts: Sequence[str]) -> FilterResult:
    """Returns the selected sentences, spans and documents of a batch of documents."""
    fields, line_ends, document_ends = [], [0], []
    for text in texts:
      for line in text.split('\n'):
        fields += line.split()
        line_ends.append(len(fields))
      document_ends.append(len(fields))
    codes = np.fromiter(map(self._codes.__getitem__, fields), np.int64, len(fields))
    config, ends = self._config, np.array(document_ends, int)
    selector = _SegmentSelector(fields, codes, ends)
    items = []
    if 'sentences' in config.filters:
      caseless = np.array([text.islower() for text in texts], bool)
      is_bound = np.zeros(len(fields) + 1, bool)
      is_bound[line_ends] = is_bound[_find_sentence_ends(codes, ends, caseless)] = True
      bounds = np.flatnonzero(is_bound)
      items += selector.select('sentences', bounds[:-1], bounds[1:], config.min_words_per_sentence)
    if 'spans' in config.filters:
      starts, stops = _find_windows(ends, config.span_words, config.span_stride)
      items += selector.select('spans', starts, stops, config.min_words_per_span)
    if 'documents' in config.filters:
      items += selector.select('documents', np.append(0, ends)[:-1], ends, 0)
    return FilterResult(sorted(items, key=operator.itemgetter(0, 1)), selector.counts)


def _find_sentence_ends(
  codes: Int[np.ndarray, 'fields'],
  ends: Int[np.ndarray, 'documents'],
  caseless: Bool[np.ndarray, 'documents'],
) -> Int[np.ndarray, 'n']:
  """Returns the ends of sentences inside lines, after end marks and closing quotes.

  A sentence continues before a lower-case letter (`"Stop!" he said`), unless the document has no
  capitals or the end mark is a field of its own, as in tokenised text.
  """
  marked = np.flatnonzero(codes & _SENTENCE_END)
  document = np.searchsorted(ends, marked, 'right')
  # fields other than closers
  opens = np.append(np.flatnonzero(codes & _CLOSER == 0), len(codes))
  stops = np.minimum(opens[np.searchsorted(opens, marked + 1)], ends[document])
  is_continued = np.append(codes & _CONTINUATION, 0)[stops] > 0
  is_alone = (codes[marked] & _LONE_END_MARK > 0) & (stops == marked + 1)
  return stops[caseless[document] | (stops == ends[document]) | ~is_continued | is_alone]


def _find_windows(
  ends: Int[np.ndarray, 'documents'], words: int, stride: int
) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
  """Returns starts and stops of the windows of all documents; windows end with their document."""
  begins = np.append(0, ends)[:-1]
  count = -(-(ends - begins) // stride)
  number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
  starts = np.repeat(begins, count) + stride * number
  return starts, np.minimum(starts + words, np.repeat(ends, count))


class _SegmentSelector:
  """Selects segments of fields by counted words; `counts` sums over all segments."""

  def __init__(
    self, fields: list[str], codes: Int[np.ndarray, 'fields'], ends: Int[np.ndarray, 'documents']
  ):
    self._fields, self._ends = fields, ends
    self._words = np.append(0, np.cumsum(codes >> _WORDS_BIT))
    self._excluded = np.append(0, np.cumsum(codes >> _EXCLUDED_BIT & 1))
    self.counts = collections.Counter(words_read=int(self._words[-1]))

  def select(
    self, kind: str, starts: Int[np.ndarray, 'n'], stops: Int[np.ndarray, 'n'], min_words: int
  ) -> list[tuple[int, str, str]]:
    """Returns the segments [starts[i], stops[i]) with more than `min_words` counted words."""
    words = self._words[stops] - self._words[starts]
    is_inside = self._excluded[stops] == self._excluded[starts]
    selected = np.flatnonzero(is_inside & (words > min_words))
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
