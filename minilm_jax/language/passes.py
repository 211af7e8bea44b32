"""The passes that keep text inside a word list (paper 1, selection of the pre-training corpora).

Kept is a *sentence* with more than `min_words_per_sentence` counted words, and a *span*, `span_words` fields from every
`span_stride`-th on (fewer at the end of a document), with more than `min_words_per_span`; both only where no word is out of
vocabulary. So is, where it is asked for, a whole *document* with any counted word (as in paper 2). It is the text
itself, in lower case and with single spaces. Repetitions and rows are for others to see to.

A field is what stands between white space, and all that either pass needs of it depends on it alone. So each distinct
field is analysed once, into one integer. All fields of a batch of documents make one array of these, and its running
sums tell of any stretch how many words count and how many fields are out of vocabulary.
"""

import collections
import dataclasses
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from minilm_jax.corpus_config import VocabularyConfig
from minilm_jax.language.vocabulary import NUMBER, WordList, counted_words

_FIELDS = 1 << 18  # distinct fields remembered, some 40 MB

# One field in one integer: what ends a sentence, if a word is out of vocabulary, and from there up the counted words.
_SMALL = 1  # opens with a small letter, or with what continues a sentence
_ALONE = 2  # nothing but the mark that ends it
_CLOSER = 4  # nothing but closing quotes and brackets
_END = 8  # may end a sentence
_OUT, _WORDS = 4, 5  # the bit that is set where a word is out of vocabulary, and the first of the number of words

_ENDERS, _CLOSERS, _OPENERS, _CONTINUES = '.!?…', '"\')]}”’»', '"“‘«([{', ',;:-–—'
_LAST = frozenset(_ENDERS + _CLOSERS)
_MARKS = '.,;:!?…"\'()[]{}“”‘’«»*'
_ABBREVIATIONS = frozenset(
    'mr mrs ms messrs mme mlle dr prof rev fr gen col maj capt cpt cmdr lt sgt cpl sen rep gov pres hon st ste mt ft '
    'jr sr jan feb aug sept oct nov dec vs viz cf ca approx vol fig pp eds'.split())
_INITIALS = re.compile(r'(?:[^\W\d_]\.)*[^\W\d_]')


@dataclasses.dataclass
class Kept:
  """What is kept of some documents, and sums over them.

  `items` are (number of the document, 'sentences', 'spans' or 'documents', text), document by document, sentences
  before spans. Of each kind `counts` holds how many were read, kept, out_of_vocabulary or else short, as 'spans_kept',
  and the counted words in those kept, as 'spans_words', windows that overlap each in full; 'words_read' are those of
  the documents.
  """

  items: list[tuple[int, str, str]]
  counts: collections.Counter[str]


class _Analysis(dict[str, int]):
  """Field -> its integer, made when first asked for.

  Of fields outside the word list every fourth is remembered: most never come again, and one that does soon is in. The
  table is emptied when full, so that memory is bounded.
  """

  def __init__(self, words: frozenset[str] | None, counting: str):
    super().__init__()
    self._words, self._counting, self._strangers = words, counting, 0

  def __missing__(self, field: str) -> int:
    if len(self) >= _FIELDS:
      self.clear()
    core = field.strip(_MARKS)
    word = core.lower()
    if word.isalpha() and len(word) > 1 and self._words is not None and word[:4] != 'http':
      words, outside = 1, word not in self._words  # nearly all fields; the other branch would say the same, slowly
    else:
      found = counted_words(core, self._counting)
      words, outside = len(found), not self._inside(found)
    code = words << _WORDS | outside << _OUT | _ends(field, core)
    self._strangers += outside
    if not outside or self._strangers % 4 == 0:
      self[field[:1] + field[1:]] = code  # a copy: keys strewn among the fields of a batch would hold its memory
    return code

  def _inside(self, found: tuple[str, ...]) -> bool:
    return self._words is None or self._words.issuperset(found) or self._counting == 'plain' and all(
        word == NUMBER or word in self._words or word.replace("'", '') in self._words for word in found)


def _ends(field: str, core: str) -> int:
  """What a field says of the end of a sentence."""
  opened = core or field.lstrip(_OPENERS)
  code = _SMALL if opened and (opened[0].islower() or opened[0] in _CONTINUES) else 0
  if field[-1] not in _LAST:
    return code
  body = field.rstrip(_CLOSERS)
  if not body:
    return code | _SMALL | _CLOSER if field not in ('"', "'") else code  # an opening quote looks like these two
  if body[-1] not in _ENDERS or body[-1] == '.' and _is_abbreviation(core):
    return code
  return code | _END | (_ALONE if len(field) == 1 and field != '…' else 0)


def _is_abbreviation(core: str) -> bool:
  """Does a word with a full stop go on? A title, an initial (but "I." more often ends), letters and stops as in U.S."""
  return core.lower() in _ABBREVIATIONS or core not in ('I', 'i') and _INITIALS.fullmatch(core) is not None


class Filter:
  """Keeps what stays inside a word list, or with None inside the rules of length alone."""

  def __init__(self, words: WordList | None, config: VocabularyConfig):
    self._words, self._config = words, config
    self._analysis = _Analysis(words and words.words, config.word_rule)

  def __reduce__(self) -> tuple[Any, ...]:
    return Filter, (self._words, self._config)

  def kept(self, texts: Sequence[str]) -> Kept:
    """The kept sentences and spans of some documents."""
    fields, breaks, ends = [], [0], []
    for text in texts:
      for line in text.split('\n'):
        fields += line.split()
        breaks.append(len(fields))
      ends.append(len(fields))
    codes = np.fromiter(map(self._analysis.__getitem__, fields), np.int64, len(fields))
    stretches, config = _Stretches(fields, codes, np.array(ends)), self._config
    items, counts = [], collections.Counter(words_read=stretches.words)
    if 'sentences' in config.filters:
      caseless = np.array([text.islower() for text in texts])
      is_bound = np.zeros(len(fields) + 1, bool)
      is_bound[breaks] = is_bound[_sentence_ends(codes, np.array(ends), caseless)] = True
      bounds = np.flatnonzero(is_bound)
      items += stretches.take('sentences', bounds[:-1], bounds[1:], config.min_words_per_sentence, counts)
    if 'spans' in config.filters:
      starts, stops = _windows(np.array(ends), config.span_words, config.span_stride)
      items += stretches.take('spans', starts, stops, config.min_words_per_span, counts)
    if 'documents' in config.filters:
      items += stretches.take('documents', np.append(0, ends[:-1]).astype(int), np.array(ends), 0, counts)
    return Kept(sorted(items, key=operator.itemgetter(0, 1)), counts)


def _sentence_ends(codes: Int[np.ndarray, 'fields'], ends: Int[np.ndarray, 'documents'],
                   caseless: Bool[np.ndarray, 'documents']) -> Int[np.ndarray, 'n']:
  """Where sentences end inside a line: behind the marks that end them, with the quotes that close there.

  Before a small letter the sentence goes on (`"Stop!" he said`), unless the whole document is in small letters or the
  mark stands alone, as in text that was split into words before.
  """
  marked = np.flatnonzero(codes & _END)
  document = np.searchsorted(ends, marked, 'right')
  opens = np.append(np.flatnonzero(codes & _CLOSER == 0), len(codes))  # all fields that are more than a closer
  found = np.minimum(opens[np.searchsorted(opens, marked + 1)], ends[document])
  goes_on = np.append(codes & _SMALL, 0)[found] > 0
  alone = (codes[marked] & _ALONE > 0) & (found == marked + 1)
  return found[caseless[document] | (found == ends[document]) | ~goes_on | alone]


def _windows(ends: Int[np.ndarray, 'documents'], words: int,
             stride: int) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
  """Where the windows of all documents start and stop; none reaches into the next document."""
  begins = np.append(0, ends[:-1])
  count = -(-(ends - begins) // stride)
  number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # of a window in its document
  starts = np.repeat(begins, count) + stride * number
  return starts, np.minimum(starts + words, np.repeat(ends, count))


class _Stretches:
  """Runs of fields inside documents: what counts in them, and the text of those that are kept."""

  def __init__(self, fields: list[str], codes: Int[np.ndarray, 'fields'], ends: Int[np.ndarray, 'documents']):
    self._fields, self._ends = fields, ends
    self._words, self._out = (np.append(0, np.cumsum(each)) for each in (codes >> _WORDS, codes >> _OUT & 1))
    self.words = int(self._words[-1])

  def take(self, kind: str, starts: Int[np.ndarray, 'n'], stops: Int[np.ndarray, 'n'], more_than: int,
           counts: collections.Counter[str]) -> list[tuple[int, str, str]]:
    """Those from starts[i] to before stops[i] with more counted words than `more_than`; adds to `counts`."""
    words, inside = self._words[stops] - self._words[starts], self._out[stops] == self._out[starts]
    kept = np.flatnonzero(inside & (words > more_than))
    numbers = {'read': len(starts), 'kept': len(kept), 'out_of_vocabulary': len(starts) - int(inside.sum()),
               'short': int(inside.sum()) - len(kept), 'words': int(words[kept].sum())}
    counts.update({f'{kind}_{name}': number for name, number in numbers.items()})
    starts, stops = starts[kept], stops[kept]
    documents = np.searchsorted(self._ends, starts, 'right')
    return [(document, kind, ' '.join(self._fields[start:stop]).lower())
            for document, start, stop in zip(documents.tolist(), starts.tolist(), stops.tolist(), strict=True)]
