"""A built-in tiny language whose entropy is known, with labelled tasks: for tests, first tries and
offline runs.

A document opens with a mood and a place, which colour its words of feeling and its nouns to the
end: context helps from far away. Subject and verb agree in number, also across a phrase or a
relative clause. What does what to what depends on kinds of things (workers use tools), and the
kinds are told in facts such as `every robin is a bird .`. Words are lower case with spaces between,
sentences end in ' .', and no noun or adjective starts with a vowel, so 'an' is not needed.

The grammar is simple (`grammar.py`), so probability and entropy of the text are exact. They are
those of words: how words become tokens is no matter of this file.
"""

import bisect
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minilm_jax.core.errors import InputError, suggest_name

# Simple probabilistic grammars: text drawn from them, its probability and its entropy, all exact.
Body = tuple[str, ...]  # what stands in place of a symbol: a word, then words and symbols
GrammarRule = list[tuple[float, Body]]  # the productions of a symbol, each with its probability


class _Symbol:
  """A symbol made ready: for production i, `first[i]` is its word, `rest[i]` what follows, last
  thing first.
  """

  __slots__ = ('cumulative', 'first', 'log', 'rest', 'which')


class Grammar:
  """A grammar made ready for use.

  Args:
    rules: the productions of each symbol; every name that is no key is a word.

  Raises:
    ValueError: the probabilities of a symbol do not add up to 1, or the grammar is not simple.

  >>> greeting = Grammar({'START': [(1.0, ('hello', 'WHOM'))], 'WHOM': [(0.5, ('world',)), (0.5, ('dear', 'WHOM'))]})
  >>> round(math.exp(greeting.log_probability('START', 'hello dear world'.split())), 12)
  0.25
  >>> greeting.log_probability('START', 'hello hello'.split())
  -inf
  >>> entropy, words = greeting.expected('START')
  >>> round(entropy / math.log(2), 12), round(words, 12)
  (2.0, 3.0)
  """

  def __init__(self, rules: Mapping[str, GrammarRule]):
    self._rules = rules
    self._symbols = {name: _Symbol() for name in rules}
    for name, rule in rules.items():
      symbol, words = self._symbols[name], [body[0] for _, body in rule]
      if (
        not math.isclose(math.fsum(p for p, _ in rule), 1, abs_tol=1e-9)
        or min(p for p, _ in rule) <= 0
      ):
        raise ValueError(f'{name}: probabilities must be positive and add up to 1')
      if len(set(words)) < len(words) or any(word in rules for word in words):
        raise ValueError(f'{name}: every production must start with a word of its own')
      symbol.cumulative = [*itertools.accumulate(p for p, _ in rule[:-1]), 1.0]
      symbol.first = words
      symbol.rest = [
        tuple(self._symbols[x] if x in rules else x for x in reversed(body[1:])) for _, body in rule
      ]
      symbol.log = [math.log(p) for p, _ in rule]
      symbol.which = {word: i for i, word in enumerate(words)}

  def sample(self, start: str, source: random.Random) -> list[str]:
    """The words of one text that `start` becomes."""
    uniform, words, stack = source.random, [], [self._symbols[start]]
    while stack:
      top = stack.pop()
      if isinstance(top, str):
        words.append(top)
      else:
        i = bisect.bisect_right(top.cumulative, uniform())
        words.append(top.first[i])
        stack.extend(top.rest[i])
    return words

  def log_probability(self, start: str, words: Iterable[str]) -> float:
    """The natural logarithm of the probability that `start` becomes exactly these words; -inf where
    it cannot.
    """
    total, stack = 0.0, [self._symbols[start]]
    for word in words:
      if not stack:
        return -math.inf
      top = stack.pop()
      if isinstance(top, str):
        if word != top:
          return -math.inf
      elif word in top.which:
        i = top.which[word]
        total += top.log[i]
        stack.extend(top.rest[i])
      else:
        return -math.inf
    return -math.inf if stack else total

  def expected(self, start: str) -> tuple[float, float]:
    """Entropy in nats of the text that `start` becomes, and the number of words expected in it.

    With v the expected number of times each symbol is expanded, v = start + M' v, where M holds how
    many of each symbol an expansion leaves; entropy and words are then sums over v.
    """
    index = {name: i for i, name in enumerate(self._rules)}
    leaves, entropy, words = (
      np.zeros((len(index), len(index))),
      np.zeros(len(index)),
      np.zeros(len(index)),
    )
    for name, rule in self._rules.items():
      for p, body in rule:
        entropy[index[name]] -= p * math.log(p)
        for item in body:
          if item in index:
            leaves[index[name], index[item]] += p
          else:
            words[index[name]] += p
    visits = np.linalg.solve(np.eye(len(index)) - leaves.T, np.eye(len(index))[index[start]])
    return float(visits @ entropy), float(visits @ words)


PLACES = ('farm', 'forest', 'town', 'beach')
# A kind and its nouns. Noun i belongs to place i % 4 and to half i // 4.
NOUNS = {
  kind: tuple(nouns.split())
  for kind, nouns in {
    'bird': 'hen raven pigeon swan duck robin sparrow pelican',
    'beast': 'pig fox dog seal cow badger cat donkey',
    'bug': 'bee beetle moth cricket worm spider cockroach wasp',
    'worker': 'farmer hunter teacher sailor shepherd woodcutter baker diver',
    'relative': 'mother brother sister cousin father niece nephew grandmother',
    'tool': 'spade knife hammer bucket rake saw needle hook',
    'vehicle': 'tractor sled car boat wagon bicycle truck ferry',
    'toy': 'ball kite doll puzzle marble whistle puppet balloon',
    'fruit': 'pear berry lemon melon plum fig peach coconut',
    'dish': 'pie stew cake soup pudding pancake biscuit sandwich',
    'flower': 'tulip violet rose poppy sunflower bluebell lily daffodil',
    'tree': 'cherry pine poplar palm willow birch beech cedar',
  }.items()
}
LIVING, PEOPLE = ('bird', 'beast', 'bug', 'worker', 'relative'), ('worker', 'relative')
# Verb: the kinds that do it, and the kinds it is done to (none: it takes no object).
VERBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  'sing': (('bird', 'relative'), ()),
  'swoop': (('bird',), ()),
  'run': (('beast', 'relative'), ()),
  'growl': (('beast',), ()),
  'crawl': (('bug',), ()),
  'buzz': (('bug',), ()),
  'labour': (('worker',), ()),
  'laugh': (PEOPLE, ()),
  'sleep': (LIVING, ()),
  'wait': (LIVING, ()),
  'rust': (('tool', 'vehicle'), ()),
  'stop': (('vehicle',), ()),
  'bounce': (('toy',), ()),
  'snap': (('tool', 'toy'), ()),
  'ripen': (('fruit',), ()),
  'cool': (('dish',), ()),
  'rot': (('fruit', 'dish'), ()),
  'bloom': (('flower',), ()),
  'sway': (('tree',), ()),
  'wither': (('flower', 'tree'), ()),
  'fall': (tuple(NOUNS), ()),
  'see': (LIVING, tuple(NOUNS)),
  'like': (LIVING, tuple(NOUNS)),
  'find': (LIVING, tuple(NOUNS)),
  'chase': (('bird', 'beast'), ('bird', 'beast', 'bug')),
  'eat': (LIVING, ('fruit', 'dish')),
  'help': (PEOPLE, PEOPLE),
  'use': (('worker',), ('tool',)),
  'drive': (PEOPLE, ('vehicle',)),
  'juggle': (('relative',), ('toy',)),
  'cook': (PEOPLE, ('dish',)),
  'pick': (PEOPLE, ('fruit', 'flower')),
  'climb': (('beast', 'bug', 'relative'), ('tree',)),
  'carry': (('worker', 'vehicle'), ('tool', 'toy', 'fruit')),
}
# Words of feeling, blame before praise; word i belongs to half i % 2.
ADJECTIVES = tuple(
  tuple(words.split())
  for words in (
    'bad sad nasty cruel gloomy bitter horrible grim rotten rude terrible wicked dreadful miserable foul vile',
    'good happy lovely kind nice gentle sweet bright fine pleasant charming cheerful great friendly joyful calm',
  )
)
ADVERBS = tuple(
  tuple(words.split())
  for words in (
    'badly sadly cruelly bitterly horribly grimly rudely wickedly',
    'happily kindly nicely gently sweetly brightly cheerfully gracefully',
  )
)
PLAIN_ADJECTIVES = tuple(
  'red blue green yellow brown big small tall short round thin heavy'.split()
)
PLAIN_ADVERBS = tuple('slowly quickly today now there daily'.split())
SENTENCE_END = '\n'  # the word after the last one


def _inflected(word: str) -> str:
  """The plural of a noun, or the third person singular of a verb: one rule of English spelling for
  both.
  """
  if word == 'knife':
    return 'knives'
  if word.endswith('y') and word[-2] not in 'aeou':
    return word[:-1] + 'ies'
  return word + ('es' if word.endswith(('s', 'x', 'z', 'ch', 'sh')) else 's')


_KIND = {noun: kind for kind, nouns in NOUNS.items() for noun in (kind, *nouns)}
_OTHER_NUMBER = (
  {noun: _inflected(noun) for noun in _KIND}
  | {_inflected(verb): verb for verb in VERBS}
  | {'is': 'are'}
)
_OTHER_NUMBER |= {plural: singular for singular, plural in _OTHER_NUMBER.items()}
_KIND |= {_inflected(noun): kind for noun, kind in _KIND.items()}
_FEELING = frozenset(word for side in ADJECTIVES + ADVERBS for word in side)


def _nouns(
  kinds: tuple[str, ...], place: int, half: int | None, names: bool = True
) -> dict[str, float]:
  """Singular nouns and their probabilities: those of the place six times the others; kinds' own
  names if `names`.
  """
  weights = dict.fromkeys(kinds if names and half is None else (), 3.0)
  weights |= {
    noun: 6.0 if i % 4 == place else 1.0
    for kind in kinds
    for i, noun in enumerate(NOUNS[kind])
    if half is None or i // 4 == half
  }
  total = sum(weights.values())
  return {noun: weight / total for noun, weight in weights.items()}


def _coloured(
  sides: tuple[Body, Body], plain: Body, mood: int, half: int | None
) -> dict[str, float]:
  """Words of feeling (two thirds of the weight, nine tenths of that on the mood's side) and plain
  ones.
  """
  side, other = sides[mood], sides[1 - mood]
  if half is not None:
    return dict.fromkeys(side[half::2], 1 / len(side[half::2]))
  return (
    dict.fromkeys(side, 0.6 / len(side))
    | dict.fromkeys(other, 1 / 15 / len(other))
    | dict.fromkeys(plain, 1 / 3 / len(plain))
  )


def _determined(symbol: str, at: str) -> GrammarRule:
  """A determiner and what it determines: either number (X), singular (S) or plural (P)."""
  choices = (
    ('the', 0.4, 'X'),
    ('a', 0.2, 'S'),
    ('this', 0.1, 'S'),
    ('some', 0.1, 'P'),
    ('many', 0.1, 'P'),
    ('these', 0.1, 'P'),
  )
  return [(p, (word, f'{symbol} {number} {at}')) for word, p, number in choices]


@functools.cache
def build_grammar(half: int | None = None) -> Grammar:
  """The grammar of the language; symbols are upper case.

  Args:
    half: only nouns and words of feeling of this half (0 or 1), and moods that never mix; None is
      the language itself.
  """
  rules: dict[str, GrammarRule] = {'DOCUMENT': [(1.0, ('it', 'was', 'a', 'OPENING'))]}
  rules['OPENING'] = [
    (0.5 / len(words), (word, 'day', 'at', 'the', f'PLACE {mood}'))
    for mood, words in enumerate(ADJECTIVES)
    for word in words
  ]
  for mood in (0, 1):
    rules[f'PLACE {mood}'] = [
      (0.25, (name, '.', f'BODY {place}{mood}')) for place, name in enumerate(PLACES)
    ]
    for place in range(len(PLACES)):
      _add_rules(rules, place, mood, half)
  return Grammar(rules)


def _add_rules(rules: dict[str, GrammarRule], place: int, mood: int, half: int | None) -> None:
  """The rules of sentences at one place in one mood."""
  at = f'{place}{mood}'
  adjectives = _coloured(ADJECTIVES, PLAIN_ADJECTIVES, mood, half)
  adverbs = _coloured(ADVERBS, PLAIN_ADVERBS, mood, half)

  def add_described(role: str, kinds: tuple[str, ...]) -> None:
    """Adjectives, then a noun; a subject has more after it."""
    for number in 'SPX':
      symbol = f'{role} {number} {at}'
      rules[symbol] = [(0.3 * p, (word, symbol)) for word, p in adjectives.items()]
      rules[symbol] += [
        (
          0.35 * p if number == 'X' else 0.7 * p,
          (form, f'AFTER {n} {_KIND[noun]} {at}') if role == 'SUBJECT' else (form,),
        )
        for noun, p in _nouns(kinds, place, half).items()
        for n, form in (('S', noun), ('P', _inflected(noun)))
        if number in (n, 'X')
      ]

  rules[f'CLAUSE {at}'] = _determined('SUBJECT', at)
  rules[f'BODY {at}'] = [(0.86 * p, (*body, f'BODY {at}')) for p, body in rules[f'CLAUSE {at}']]
  rules[f'BODY {at}'] += [(0.06, ('every', f'FACT {at}', f'BODY {at}')), (0.08, (SENTENCE_END,))]
  rules[f'FACT {at}'] = [
    (p, (noun, 'is', 'a', _KIND[noun], '.'))
    for noun, p in _nouns(tuple(NOUNS), place, half, names=False).items()
  ]
  rules[f'FEELING {at}'] = [(p, (word,)) for word, p in adjectives.items()]
  for kinds in dict.fromkeys(objects for _, objects in VERBS.values() if objects):
    group = ','.join(kinds)
    rules[f'OBJECT {group} {at}'] = _determined(f'THING {group}', at)
    add_described(f'THING {group}', kinds)
  add_described('SUBJECT', tuple(NOUNS))
  for number, kind in itertools.product('SP', NOUNS):
    me = f'{number} {kind} {at}'
    doing = [(verb, objects) for verb, (kinds, objects) in VERBS.items() if kind in kinds]
    rules[f'VERB {me}'] = [(0.2, ('is' if number == 'S' else 'are', f'FEELING {at}'))] + [
      (
        0.8 / len(doing),
        (
          _inflected(verb) if number == 'S' else verb,
          *([f'OBJECT {",".join(objects)} {at}'] if objects else []),
        ),
      )
      for verb, objects in doing
    ]
    rules[f'AFTER {me}'] = [
      (0.2, ('near', f'OBJECT {",".join(NOUNS)} {at}', f'VERB {me}', f'TAIL {me}')),
      (0.12, ('that', f'VERB {me}', f'VERB {me}', f'TAIL {me}')),
      *((0.68 * p, (*body, f'TAIL {me}')) for p, body in rules[f'VERB {me}']),
    ]
    rules[f'TAIL {me}'] = [
      (0.5, ('.',)),
      (0.15, ('and', f'VERB {me}', f'TAIL {me}')),
      (0.12, ('because', f'CLAUSE {at}')),
      *((0.23 * p, (word, '.')) for word, p in adverbs.items()),
    ]


def generate_documents(seed: int, count: int) -> Iterator[str]:
  """Documents of the language, one line each; document i depends on `seed` and i alone.

  >>> next(generate_documents(seed=0, count=1)).startswith('it was a ')
  True
  """
  for i in range(count):
    yield ' '.join(build_grammar().sample('DOCUMENT', random.Random(f'{seed}/{i}'))[:-1])


def log_probability(document: str) -> float:
  """The logarithm of a document's probability, in nats; -inf for what is no document of the
  language.
  """
  return build_grammar().log_probability('DOCUMENT', [*document.split(' '), SENTENCE_END])


def entropy_rate() -> float:
  """Nats per word, exactly: the entropy of a document over the words expected in it.

  A full stop is a word.
  """
  entropy, words = build_grammar().expected('DOCUMENT')
  return entropy / (words - 1)  # END is none


def _grammatical(words: Iterable[str]) -> bool:
  """Is this a sentence of the language? (At whatever place and in whatever mood: they only change
  how likely it is.)
  """
  return build_grammar().log_probability('CLAUSE 00', words) > -math.inf


def _acceptability(words: list[str], label: int, rng: random.Random) -> dict[str, str] | None:
  """The sentence itself (1), or with one word in the other number or two neighbours swapped (0)."""
  if label:
    return {'sentence': ' '.join(words)}
  changed = [
    [*words[:i], _OTHER_NUMBER[word], *words[i + 1 :]]
    for i, word in enumerate(words)
    if word in _OTHER_NUMBER
  ]
  swapped = [[*words[:i], words[i + 1], words[i], *words[i + 2 :]] for i in range(len(words) - 2)]
  broken = [other for other in rng.choice((changed, swapped)) if not _grammatical(other)]
  return {'sentence': ' '.join(rng.choice(broken))} if broken else None


def _entailment(words: list[str], label: int, rng: random.Random) -> dict[str, str] | None:
  """A sentence, and the same with a noun's kind (0) or another kind that fits as well (1) in its
  place.
  """
  at = rng.choice([i for i, word in enumerate(words) if word in _KIND])
  plural = _inflected(_OTHER_NUMBER[words[at]]) == words[at]
  seconds = {
    kind: [*words[:at], _inflected(kind) if plural else kind, *words[at + 1 :]] for kind in NOUNS
  }
  others = [kind for kind in NOUNS if kind != _KIND[words[at]] and _grammatical(seconds[kind])]
  if not others:  # asked of both labels, so that the kinds and verbs met are those of both
    return None
  second = seconds[rng.choice(others) if label else _KIND[words[at]]]
  return {'sentence1': ' '.join(words), 'sentence2': ' '.join(second)}


def _sentiment(words: list[str], label: int, rng: random.Random) -> dict[str, str] | None:
  """A sentence with words of praise (1) or of blame (0), never both."""
  return {'sentence': ' '.join(words)} if _FEELING.intersection(words) else None


MICROWORLD_TASKS = {
  'acceptability': _acceptability,
  'entailment': _entailment,
  'sentiment': _sentiment,
}
# by hash of the (first) sentence: no split shares one with another
MICROWORLD_SPLITS = ('train', 'train', 'validation', 'test')


def generate_examples(task: str, split: str, seed: int, count: int) -> list[dict[str, Any]]:
  """Labelled examples; nouns and words of feeling in `train` are never those of `validation` and
  `test`.

  Args:
    task: 'acceptability' (1 acceptable), 'entailment' (0 entailment, 1 not) or 'sentiment' (1
      positive).
    split: 'train', 'validation' or 'test'; they share no sentence, whatever the seeds.
    seed: of the draw.
    count: how many rows, with 'sentence' (or 'sentence1' and 'sentence2'), 'label' and 'idx'; all
      different.

  Raises:
    InputError: no such task or split.
  """
  for what, name, known in (('task', task, MICROWORLD_TASKS), ('split', split, MICROWORLD_SPLITS)):
    if name not in known:
      raise InputError(
        f'{what} {name!r} of the microworld', f'no such {what}', suggest_name(name, set(known))
      )
  half = 0 if split == 'train' else 1
  rng = random.Random(f'{task}/{split}/{seed}')
  found: dict[str, dict[str, Any]] = {}
  while len(found) < count:
    place, label = rng.randrange(len(PLACES)), rng.randrange(2)
    mood = label if task == 'sentiment' else rng.randrange(2)
    fields = MICROWORLD_TASKS[task](
      build_grammar(half).sample(f'CLAUSE {place}{mood}', rng), label, rng
    )
    if fields is None:
      continue
    first = next(iter(fields.values()))
    if (
      first not in found
      and MICROWORLD_SPLITS[hashlib.sha256(first.encode()).digest()[0] % 4] == split
    ):
      found[first] = {**fields, 'label': label, 'idx': len(found)}
  return list(found.values())
