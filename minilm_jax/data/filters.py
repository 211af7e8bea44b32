"""The passes that keep text inside a word list (paper 1, selection of the pre-training corpora).

Kept is a *sentence* with more than `min_words_per_sentence` counted words, and a *span*,
`span_words` fields from every `span_stride`-th on (fewer at the end of a document), with more than
`min_words_per_span`; both only where no word is out of vocabulary. So is, where it is asked for, a
whole *document* with any counted word (as in paper 2). It is the text itself, in lower case and
with single spaces. Repetitions and rows are for others to see to.

A field is what stands between white space, and all that either pass needs of it depends on it
alone. So each distinct field is analysed once, into one integer. All fields of a batch of documents
make one array of these, and its running sums tell of any stretch how many words count and how many
fields are out of vocabulary.
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

# A word list, the rule by which words are counted, and the paper's filter of GLUE.
_MAX_WORD_LINE_CHARS = 1_000_000  # characters in a line of a word list
_PAPER1_WORDS, _PAPER1_DIGITS, _PAPER1_LINK = (
  re.compile(r'\b\w\w+\b'),
  re.compile(r'\b\d+'),
  re.compile(r'http\S*'),
)
_PLAIN_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PLAIN_NUMBER = re.compile(r'\b\d+(?:[.,]\d+)*\b')
NUMBER_TOKEN = '0'  # what every number counts as under the plain rule
_GLUE_DELETED = str.maketrans('', '', '0123456789!:&“”—-_,@#$?;’.\'()"')
_GLUE_PARTS = frozenset(('', 'nt', 's', 're', 't', 'd', 'll'))


@dataclasses.dataclass(frozen=True)
class WordList:
  """Words, what the list is called, and a hash of the sorted words, whatever the form of the file.
  """

  words: frozenset[str]
  name: str
  sha256: str


def _word_list(words: Iterable[str], name: str) -> WordList:
  return WordList(
    frozenset(words), name, hashlib.sha256('\n'.join(sorted(words)).encode()).hexdigest()
  )


def load_word_list(path: epath.PathLike) -> WordList:
  """Reads a word list: a table with a column `word`, as the paper's CSV, or one word a line; plain
  or compressed.

  Words are taken as they stand. Text is matched in lower case, so that an entry with a capital
  never matches: TRUE and FALSE in the paper's list, damage by a spreadsheet. Its `nan` is a word.

  Raises:
    InputError: the file cannot be read, is not UTF-8, has no such column, holds more than a word in
      a line, or no word, or too many.
  """
  words, remedy = set(), 'give one word a line, or a table with a column `word`'
  for word in files.limit_items(_words(path, remedy), len, f'the word list {path}'):
    words.add(word)
  words.discard('')
  if not words:
    raise InputError(f'the word list {path}', 'no word in it', remedy)
  return _word_list(words, epath.Path(path).name)


def _words(path: epath.PathLike, remedy: str) -> Iterator[str]:
  if readers.detect_format(path) not in ('txt', None):
    for number, row in enumerate(readers.read_rows(path, 'strict', _MAX_WORD_LINE_CHARS), 1):
      if not isinstance(row.get('word'), str) or schema.NO_TEXT.search(row['word']):
        raise InputError(
          f'the word list {path}', f'row {number} has no word: {", ".join(map(str, row))}', remedy
        )
      yield row['word'].strip()
  else:
    for number, line in enumerate(readers.read_lines(path, 'strict', _MAX_WORD_LINE_CHARS), 1):
      if len(line.split()) > 1 or ',' in line:
        raise InputError(
          f'the word list {path}', f'line {number} is more than a word: {line[:40]!r}', remedy
        )
      yield line.strip()


def most_frequent_words(counts: Mapping[str, int], n: int) -> WordList:
  """The n most frequent words, of equally frequent ones the first in the alphabet.

  >>> sorted(most_frequent_words({'the': 3, 'dog': 1, 'cat': 1}, 2).words)
  ['cat', 'the']
  """
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  return _word_list(ranked[:n], f'most_frequent_{n}')


def count_words(field: str, counting: str) -> tuple[str, ...]:
  """The words that count in one field, a stretch of text without white space, in lower case.

  'honey' is the rule of paper 1: hyphens separate, runs of digits become the word "number" and
  links "hlink", words are runs of two or more word characters. So single letters do not count, and
  an apostrophe cuts: "don't" is "don". 'plain' takes words of any length with the apostrophes
  inside them, and every number as '0'.

  >>> count_words("Don't", 'paper1'), count_words('well-known,', 'paper1'), count_words('1,000', 'paper1')
  (('don',), ('well', 'known'), ('number', 'number'))
  >>> count_words("Don't", 'plain'), count_words('I', 'plain'), count_words('(1,000)', 'plain')
  (("don't",), ('i',), ('0',))
  """
  field = field.lower()
  if field.isalpha() and not field.startswith('http'):
    return (field,) if counting == 'plain' or len(field) > 1 else ()
  if counting == 'plain':
    return tuple(_PLAIN_WORDS.findall(_PLAIN_NUMBER.sub(NUMBER_TOKEN, field.replace('’', "'"))))
  field = field.replace('-', ' ').replace('@,@', '#number').replace('@.@', '#number')
  return tuple(
    _PAPER1_WORDS.findall(_PAPER1_LINK.sub('#hlink', _PAPER1_DIGITS.sub('#number ', field)))
  )


def is_inside_word_list(text: str, words: frozenset[str]) -> bool:
  """Does a labelled example stay inside the word list? (Paper 1, its filter of GLUE; not the rule
  of `counted_words`.)

  All words but the first are passed over if they have a capital; digits and most marks are deleted.

  >>> is_inside_word_list("The dog, Rover, doesn't.", frozenset(('the', 'dog', 'doesnt')))
  True
  """
  first, *rest = text.split(' ')
  fields = [first.lower(), *(word for word in rest if word == word.lower())]
  return all(
    word in words or word in _GLUE_PARTS
    for word in (field.translate(_GLUE_DELETED) for field in fields)
  )


_FIELDS = 1 << 18  # distinct fields remembered, some 40 MB
# One field in one integer: what ends a sentence, if a word is out of vocabulary, and from there up
# the counted words.
_LOWERCASE_START = 1  # opens with a small letter, or with what continues a sentence
_LONE_INITIAL = 2  # nothing but the mark that ends it
_CLOSER = 4  # nothing but closing quotes and brackets
_END = 8  # may end a sentence
# the bit that is set where a word is out of vocabulary, and the first of the number of words
_EXCLUDED, _WORDS = 4, 5
_ENDERS, _CLOSERS, _OPENERS, _CONTINUES = '.!?…', '"\')]}”’»', '"“‘«([{', ',;:-–—'
_LAST = frozenset(_ENDERS + _CLOSERS)
_PUNCTUATION = '.,;:!?…"\'()[]{}“”‘’«»*'
_ABBREVIATIONS = frozenset(
  'mr mrs ms messrs mme mlle dr prof rev fr gen col maj capt cpt cmdr lt sgt cpl sen rep gov pres hon st ste mt ft '
  'jr sr jan feb aug sept oct nov dec vs viz cf ca approx vol fig pp eds'.split()
)
_INITIALS = re.compile(r'(?:[^\W\d_]\.)*[^\W\d_]')


@dataclasses.dataclass
class FilterResult:
  """What is kept of some documents, and sums over them.

  `items` are (number of the document, 'sentences', 'spans' or 'documents', text), document by
  document, sentences before spans. Of each kind `counts` holds how many were read, kept,
  out_of_vocabulary or else short, as 'spans_kept', and the counted words in those kept, as
  'spans_words', windows that overlap each in full; 'words_read' are those of the documents.
  """

  items: list[tuple[int, str, str]]
  counts: collections.Counter[str]


class _WordCache(dict[str, int]):
  """Field -> its integer, made when first asked for.

  Of fields outside the word list every fourth is remembered: most never come again, and one that
  does soon is in. The table is emptied when full, so that memory is bounded.
  """

  def __init__(self, words: frozenset[str] | None, counting: str):
    super().__init__()
    self._words, self._counting, self._strangers = words, counting, 0

  def __missing__(self, field: str) -> int:
    if len(self) >= _FIELDS:
      self.clear()
    core = field.strip(_PUNCTUATION)
    word = core.lower()
    if word.isalpha() and len(word) > 1 and self._words is not None and word[:4] != 'http':
      # nearly all fields; the other branch would say the same, slowly
      words, outside = 1, word not in self._words
    else:
      found = count_words(core, self._counting)
      words, outside = len(found), not self._inside(found)
    code = words << _WORDS | outside << _EXCLUDED | _ends(field, core)
    self._strangers += outside
    if not outside or self._strangers % 4 == 0:
      # a copy: keys strewn among the fields of a batch would hold its memory
      self[field[:1] + field[1:]] = code
    return code

  def _inside(self, found: tuple[str, ...]) -> bool:
    return (
      self._words is None
      or self._words.issuperset(found)
      or self._counting == 'plain'
      and all(
        word == NUMBER_TOKEN or word in self._words or word.replace("'", '') in self._words
        for word in found
      )
    )


def _ends(field: str, core: str) -> int:
  """What a field says of the end of a sentence."""
  opened = core or field.lstrip(_OPENERS)
  code = _LOWERCASE_START if opened and (opened[0].islower() or opened[0] in _CONTINUES) else 0
  if field[-1] not in _LAST:
    return code
  body = field.rstrip(_CLOSERS)
  if not body:
    # an opening quote looks like these two
    return code | _LOWERCASE_START | _CLOSER if field not in ('"', "'") else code
  if body[-1] not in _ENDERS or body[-1] == '.' and _is_abbreviation(core):
    return code
  return code | _END | (_LONE_INITIAL if len(field) == 1 and field != '…' else 0)


def _is_abbreviation(core: str) -> bool:
  """Does a word with a full stop go on? A title, an initial (but "I." more often ends), letters and
  stops as in U.S.
  """
  return (
    core.lower() in _ABBREVIATIONS
    or core not in ('I', 'i')
    and _INITIALS.fullmatch(core) is not None
  )


class Filter:
  """Keeps what stays inside a word list, or with None inside the rules of length alone."""

  def __init__(self, words: WordList | None, config: VocabularyConfig):
    self._words, self._config = words, config
    self._analysis = _WordCache(words and words.words, config.word_rule)

  def __reduce__(self) -> tuple[Any, ...]:
    return Filter, (self._words, self._config)

  def kept(self, texts: Sequence[str]) -> FilterResult:
    """The kept sentences and spans of some documents."""
    fields, breaks, ends = [], [0], []
    for text in texts:
      for line in text.split('\n'):
        fields += line.split()
        breaks.append(len(fields))
      ends.append(len(fields))
    codes = np.fromiter(map(self._analysis.__getitem__, fields), np.int64, len(fields))
    stretches, config = _TextSpans(fields, codes, np.array(ends)), self._config
    items, counts = [], collections.Counter(words_read=stretches.words)
    if 'sentences' in config.filters:
      caseless = np.array([text.islower() for text in texts])
      is_bound = np.zeros(len(fields) + 1, bool)
      is_bound[breaks] = is_bound[_sentence_ends(codes, np.array(ends), caseless)] = True
      bounds = np.flatnonzero(is_bound)
      items += stretches.take(
        'sentences', bounds[:-1], bounds[1:], config.min_words_per_sentence, counts
      )
    if 'spans' in config.filters:
      starts, stops = _windows(np.array(ends), config.span_words, config.span_stride)
      items += stretches.take('spans', starts, stops, config.min_words_per_span, counts)
    if 'documents' in config.filters:
      items += stretches.take(
        'documents', np.append(0, ends[:-1]).astype(int), np.array(ends), 0, counts
      )
    return FilterResult(sorted(items, key=operator.itemgetter(0, 1)), counts)


def _sentence_ends(
  codes: Int[np.ndarray, 'fields'],
  ends: Int[np.ndarray, 'documents'],
  caseless: Bool[np.ndarray, 'documents'],
) -> Int[np.ndarray, 'n']:
  """Where sentences end inside a line: behind the marks that end them, with the quotes that close
  there.

  Before a small letter the sentence goes on (`"Stop!" he said`), unless the whole document is in
  small letters or the mark stands alone, as in text that was split into words before.
  """
  marked = np.flatnonzero(codes & _END)
  document = np.searchsorted(ends, marked, 'right')
  # all fields that are more than a closer
  opens = np.append(np.flatnonzero(codes & _CLOSER == 0), len(codes))
  found = np.minimum(opens[np.searchsorted(opens, marked + 1)], ends[document])
  goes_on = np.append(codes & _LOWERCASE_START, 0)[found] > 0
  alone = (codes[marked] & _LONE_INITIAL > 0) & (found == marked + 1)
  return found[caseless[document] | (found == ends[document]) | ~goes_on | alone]


def _windows(
  ends: Int[np.ndarray, 'documents'], words: int, stride: int
) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
  """Where the windows of all documents start and stop; none reaches into the next document."""
  begins = np.append(0, ends[:-1])
  count = -(-(ends - begins) // stride)
  # of a window in its document
  number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
  starts = np.repeat(begins, count) + stride * number
  return starts, np.minimum(starts + words, np.repeat(ends, count))


class _TextSpans:
  """Runs of fields inside documents: what counts in them, and the text of those that are kept."""

  def __init__(
    self, fields: list[str], codes: Int[np.ndarray, 'fields'], ends: Int[np.ndarray, 'documents']
  ):
    self._fields, self._ends = fields, ends
    self._words, self._out = (
      np.append(0, np.cumsum(each)) for each in (codes >> _WORDS, codes >> _EXCLUDED & 1)
    )
    self.words = int(self._words[-1])

  def take(
    self,
    kind: str,
    starts: Int[np.ndarray, 'n'],
    stops: Int[np.ndarray, 'n'],
    more_than: int,
    counts: collections.Counter[str],
  ) -> list[tuple[int, str, str]]:
    """Those from starts[i] to before stops[i] with more counted words than `more_than`; adds to
    `counts`.
    """
    words, inside = self._words[stops] - self._words[starts], self._out[stops] == self._out[starts]
    kept = np.flatnonzero(inside & (words > more_than))
    numbers = {
      'read': len(starts),
      'kept': len(kept),
      'out_of_vocabulary': len(starts) - int(inside.sum()),
      'short': int(inside.sum()) - len(kept),
      'words': int(words[kept].sum()),
    }
    counts.update({f'{kind}_{name}': number for name, number in numbers.items()})
    starts, stops = starts[kept], stops[kept]
    documents = np.searchsorted(self._ends, starts, 'right')
    return [
      (document, kind, ' '.join(self._fields[start:stop]).lower())
      for document, start, stop in zip(
        documents.tolist(), starts.tolist(), stops.tolist(), strict=True
      )
    ]
