"""How often each type, a piece or a word, stands in a corpus and in each example of a task.

A piece is one of the tokenizer's that is neither special nor `<unk>`. A word is one of the plain rule of
`language/vocabulary.py`, in lower case; those of a corpus are read from its rows, so a word that the end of a row cuts
counts as what is left of it.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from minilm_jax import progress
from minilm_jax.language import corpus as corpora
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language import vocabulary
from minilm_jax.language.tokenizer import Tokenizer

_AT_ONCE = 1 << 14  # rows


@dataclasses.dataclass(frozen=True)
class Texts:
  """Types in the examples of a task: entry k says that example `owner[k]` holds `count[k]` times the type `kind[k]`.

  Attributes:
    owner, kind, count: each pair of example and type once.
    examples: how many there are; some may hold nothing.
    types: T, types are numbered below it.
  """

  owner: Int[np.ndarray, 'K']
  kind: Int[np.ndarray, 'K']
  count: Int[np.ndarray, 'K']
  examples: int
  types: int

  def totals(self) -> Int[np.ndarray, 'T']:
    """How often each type stands in all examples."""
    return np.bincount(self.kind, self.count, self.types).astype(int)


def of_examples(examples: Sequence[Iterable[int]], types: int) -> Texts:
  """Counts of examples that are given as type numbers."""
  owner, kind, count = [], [], []
  for number, one in enumerate(examples):
    for which, times in Counter(one).items():
      owner.append(number)
      kind.append(which)
      count.append(times)
  return Texts(*(np.array(values, int) for values in (owner, kind, count)), len(examples), types)


def words_of(text: str) -> list[str]:
  """The words of a text, in order.

  >>> words_of("The dog's 12 bones")
  ['the', "dog's", '0', 'bones']
  """
  return [word for field in text.split() for word in vocabulary.counted_words(field, 'plain')]


def of_corpus(files: corpora.Files, tokenizer: Tokenizer, some: Int[np.ndarray, 'n'] | None = None,
              with_words: bool = True) -> tuple[Int[np.ndarray, 'V'], Counter[str]]:
  """Counts of each piece and of each word in the rows of a split, or in some of them."""
  total = int(files.ends[-1]) if some is None else len(some)
  of_pieces, fields = np.zeros(files.manifest['vocabulary'], int), Counter()
  with progress.track('counting the corpus', total, 'rows') as tick:
    for at in range(0, total, _AT_ONCE):
      numbers = np.arange(at, min(at + _AT_ONCE, total)) if some is None else some[at:at + _AT_ONCE]
      tokens = files[numbers]
      of_pieces += np.bincount(tokens.ravel(), minlength=len(of_pieces))
      if with_words:
        for row in tokens:
          fields.update(tokenizer.decode(row[row != pieces.PAD].tolist()).split())
      tick(at + len(numbers), '')
  of_pieces[:len(pieces.SPECIAL)] = 0
  return of_pieces, _words(fields)


def _words(fields: Mapping[str, int]) -> Counter[str]:
  found: Counter[str] = Counter()
  for field, times in fields.items():
    for word in vocabulary.counted_words(field, 'plain'):
      found[word] += times
  return found
