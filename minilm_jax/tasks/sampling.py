"""Which examples of many are taken: by hash of their text, or so many of each label.

Every choice is a function of what there is: nothing here knows what a task is or where its examples lie. Examples are
their places, 0 and up.
"""

import collections
import hashlib
import random
from collections.abc import Sequence

from minilm_jax.errors import InputError

_SEED = 42  # of paper 2
_HELD_OUT = 'held out\0'  # else what is held out would be what a small limit takes first


def first_by_hash(texts: Sequence[str], count: int) -> list[int]:
  """The `count` first places by hash of the text: a part of what a larger count gives, and in no order by label."""
  return sorted(range(len(texts)), key=lambda i: (_digest(texts[i]), i))[:count]


def held_out(texts: Sequence[str], share: float) -> set[int]:
  """The first round(share n) places by another hash of the text; equal texts go together, or stay if they do not fit.

  >>> held_out(['a', 'b', 'a', 'c', 'a'], 0.4) & {0, 2, 4}
  set()
  """
  count, places = round(share * len(texts)), collections.defaultdict(list)
  for place, text in enumerate(texts):
    places[text].append(place)
  held = set()
  for text in sorted(places, key=lambda text: _digest(_HELD_OUT + text)):
    if len(held) + len(places[text]) <= count:
      held.update(places[text])
  return held


def balanced(labels: Sequence[str], count: int) -> list[int]:
  """So many places of each label, in ascending order, drawn as paper 2 draws them; 0 takes all.

  Python's `random.sample` of seed 42, labels in the order in which they first appear.

  Raises:
    InputError: a label has fewer examples.
  """
  return sorted(place for drawn in _draw(labels, count) for place in drawn) if count else list(range(len(labels)))


def two_balanced(texts: Sequence[str], labels: Sequence[str], first: int, second: int) -> tuple[list[int], list[int]]:
  """Two balanced samples of the same examples that share no text: `first` of each label, and `second` of each.

  Drawn together as `balanced` draws. What is in the second stands nowhere else among the examples: a sentence that
  states two relations is for training.

  Raises:
    InputError: a label has fewer examples than both ask for, or too few whose text is its own.
  """
  counts, taken, reported = collections.Counter(texts), [], []
  for drawn in _draw(labels, first + second):
    alone = [place for place in drawn if counts[texts[place]] == 1][:second]
    if len(alone) < second:
      raise InputError(f'{second:,} examples of {labels[drawn[0]]!r} that training does not show',
                       f'{len(alone):,} whose text stands nowhere else', 'ask for fewer, or give a file of their own')
    reported += alone
    taken += set(drawn).difference(alone)
  return sorted(taken), sorted(reported)


def _draw(labels: Sequence[str], count: int) -> list[list[int]]:
  """So many places of each label, in the order drawn."""
  generator, places = random.Random(_SEED), collections.defaultdict(list)
  for place, label in enumerate(labels):
    places[label].append(place)
  for label, found in places.items():
    if len(found) < count:
      raise InputError(f'{count:,} examples of each label', f'{len(found):,} of {label!r}',
                       'lower task.per_label and task.eval_per_label, or give more examples')
  return [generator.sample(found, count) for found in places.values()]


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()
