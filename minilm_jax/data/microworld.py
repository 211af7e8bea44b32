"""A built-in tiny language with labelled tasks, for tests and offline runs.

A document starts with a mood and a place, on which the probabilities of its sentiment words and
nouns depend to the end: distant context is informative. Subject and verb agree in number, also
across a phrase or a relative clause. Subjects and objects of a verb have fixed kinds (workers use
tools), and facts such as `every robin is a bird .` state the kinds. Words are lower case, sentences
end in ' .', and no noun or adjective starts with a vowel, so 'an' does not occur.

The grammar is simple: all productions of a symbol start with different words. The probability of a
text is therefore exact.
"""

import bisect
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from minilm_jax.core.errors import check_name

Words = tuple[str, ...]
GrammarRule = list[tuple[float, Words]]  # probability of a production; a word, words and symbols

PLACES = ('farm', 'forest', 'town', 'beach')
# Each kind with its nouns; noun i belongs to place i % 4 and to half i // 4.
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
# Each verb with the kinds of its subjects and of its objects; intransitive verbs have no objects.
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


def _split_words(*texts: str) -> tuple[Words, ...]:
  return tuple(tuple(text.split()) for text in texts)


# Negative and positive words; word i belongs to half i % 2.
ADJECTIVES = _split_words(
  'bad sad nasty cruel gloomy bitter horrible grim rotten rude terrible wicked dreadful miserable foul vile',
  'good happy lovely kind nice gentle sweet bright fine pleasant charming cheerful great friendly joyful calm',
)
ADVERBS = _split_words(
  'badly sadly cruelly bitterly horribly grimly rudely wickedly',
  'happily kindly nicely gently sweetly brightly cheerfully gracefully',
)
PLAIN_ADJECTIVES, PLAIN_ADVERBS = _split_words(
  'red blue green yellow brown big small tall short round thin heavy',
  'slowly quickly today now there daily',
)
DOCUMENT_END = '\n'


class _Symbol:
  """A compiled symbol: production i starts with `words[i]` and continues with reversed `tails[i]`."""

  __slots__ = ('cumulative', 'index', 'log', 'tails', 'words')


class Grammar:
  """A simple probabilistic grammar that samples text and computes exact probabilities.

  Args:
    rules: Productions of each symbol; names that are not keys are words.

  Raises:
    ValueError: The probabilities of a symbol do not add up to 1, or the grammar is not simple.

  >>> greeting = Grammar({'START': [(1.0, ('hello', 'WHOM'))], 'WHOM': [(0.5, ('world',)), (0.5, ('dear', 'WHOM'))]})
  >>> round(math.exp(greeting.compute_log_probability('START', 'hello dear world'.split())), 12)
  0.25
  """

  def __init__(self, rules: Mapping[str, GrammarRule]):
    self._symbols = {name: _Symbol() for name in rules}
    for name, rule in rules.items():
      probabilities, bodies = zip(*rule, strict=True)
      words = [body[0] for body in bodies]
      if min(probabilities) <= 0 or not math.isclose(math.fsum(probabilities), 1, abs_tol=1e-9):
        raise ValueError(f'{name}: probabilities must be positive and add up to 1')
      if len(set(words)) < len(words) or any(word in rules for word in words):
        raise ValueError(f'{name}: productions must start with different words')
      symbol = self._symbols[name]
      symbol.cumulative = [*itertools.accumulate(probabilities[:-1]), 1.0]
      symbol.words, symbol.index = words, {word: i for i, word in enumerate(words)}
      symbol.tails = [tuple(self._symbols.get(x, x) for x in reversed(body[1:])) for body in bodies]
      symbol.log = [math.log(p) for p in probabilities]

  def sample(self, start: str, source: random.Random) -> list[str]:
    """Returns the words of a random text derived from `start`."""
    uniform, words, stack = source.random, [], [self._symbols[start]]
    while stack:
      top = stack.pop()
      if isinstance(top, str):
        words.append(top)
      else:
        i = bisect.bisect_right(top.cumulative, uniform())
        words.append(top.words[i])
        stack.extend(top.tails[i])
    return words

  def compute_log_probability(self, start: str, words: Iterable[str]) -> float:
    """Returns the log-probability in nats that `start` derives exactly these words, or -inf."""
    total, stack = 0.0, [self._symbols[start]]
    for word in words:
      top = stack.pop() if stack else None
      if isinstance(top, _Symbol) and word in top.index:
        i = top.index[word]
        total += top.log[i]
        stack.extend(top.tails[i])
      elif word != top:
        return -math.inf
    return -math.inf if stack else total


def _inflect(word: str) -> str:
  """Returns the plural of a noun or the third person singular of a verb, spelled by one rule."""
  if word == 'knife':
    return 'knives'
  if word.endswith('y') and word[-2] not in 'aeou':
    return word[:-1] + 'ies'
  return word + ('es' if word.endswith(('s', 'x', 'z', 'ch', 'sh')) else 's')


_KIND = {noun: kind for kind, nouns in NOUNS.items() for noun in (kind, *nouns)}
_OTHER_NUMBER = {noun: _inflect(noun) for noun in _KIND} | {_inflect(verb): verb for verb in VERBS}
_OTHER_NUMBER |= {'is': 'are'}
_OTHER_NUMBER |= {plural: singular for singular, plural in _OTHER_NUMBER.items()}
_KIND |= {_inflect(noun): kind for noun, kind in _KIND.items()}
_SENTIMENT_WORDS = frozenset(word for side in ADJECTIVES + ADVERBS for word in side)


def _compute_noun_probabilities(
  kinds: tuple[str, ...], place: int, half: int | None, with_kinds: bool = True
) -> dict[str, float]:
  """Returns the probabilities of singular nouns and kinds; nouns are more frequent at their place."""
  weights = dict.fromkeys(kinds if with_kinds and half is None else (), 3.0)
  weights |= {
    noun: 6.0 if i % 4 == place else 1.0
    for kind in kinds
    for i, noun in enumerate(NOUNS[kind])
    if half is None or i // 4 == half
  }
  total = sum(weights.values())
  return {noun: weight / total for noun, weight in weights.items()}


def _compute_modifier_probabilities(
  sides: tuple[Words, ...], plain: Words, mood: int, half: int | None
) -> dict[str, float]:
  """Returns the probabilities of sentiment words, mostly of the mood, and of plain words."""
  side, other = sides[mood], sides[1 - mood]
  if half is not None:
    return dict.fromkeys(side[half::2], 1 / len(side[half::2]))
  return (
    dict.fromkeys(side, 0.6 / len(side))
    | dict.fromkeys(other, 1 / 15 / len(other))
    | dict.fromkeys(plain, 1 / 3 / len(plain))
  )


def _make_noun_phrase(symbol: str, at: str) -> GrammarRule:
  """Returns a rule of determiners before a noun of any number (X), singular (S) or plural (P)."""
  numbers = {'the': 'X', 'a': 'S', 'this': 'S', 'some': 'P', 'many': 'P', 'these': 'P'}
  probabilities = {'the': 0.4, 'a': 0.2}
  return [
    (probabilities.get(word, 0.1), (word, f'{symbol} {number} {at}'))
    for word, number in numbers.items()
  ]


@functools.cache
def build_grammar(half: int | None = None) -> Grammar:
  """Returns the grammar of the language; symbols are upper case.

  A half (0 or 1) has a part of the nouns and sentiment words, and moods never mix.
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
  """Adds the rules of sentences at one place in one mood."""
  at = f'{place}{mood}'
  adjectives = _compute_modifier_probabilities(ADJECTIVES, PLAIN_ADJECTIVES, mood, half)
  adverbs = _compute_modifier_probabilities(ADVERBS, PLAIN_ADVERBS, mood, half)

  def add_described(role: str, kinds: tuple[str, ...]) -> None:
    """Adds noun phrases with adjectives; a subject is followed by the rest of its sentence."""
    nouns = _compute_noun_probabilities(kinds, place, half)
    for number in 'SPX':
      symbol, share = f'{role} {number} {at}', 0.35 if number == 'X' else 0.7
      rules[symbol] = [(0.3 * p, (word, symbol)) for word, p in adjectives.items()]
      for noun, p in nouns.items():
        for n, form in (('S', noun), ('P', _inflect(noun))):
          if number in (n, 'X'):
            after = (f'AFTER {n} {_KIND[noun]} {at}',) if role == 'SUBJECT' else ()
            rules[symbol].append((share * p, (form, *after)))

  clause = rules[f'CLAUSE {at}'] = _make_noun_phrase('SUBJECT', at)
  rules[f'BODY {at}'] = [
    *((0.86 * p, (*body, f'BODY {at}')) for p, body in clause),
    (0.06, ('every', f'FACT {at}', f'BODY {at}')),
    (0.08, (DOCUMENT_END,)),
  ]
  facts = _compute_noun_probabilities(tuple(NOUNS), place, half, with_kinds=False)
  rules[f'FACT {at}'] = [(p, (noun, 'is', 'a', _KIND[noun], '.')) for noun, p in facts.items()]
  rules[f'FEELING {at}'] = [(p, (word,)) for word, p in adjectives.items()]
  for kinds in dict.fromkeys(objects for _, objects in VERBS.values() if objects):
    group = ','.join(kinds)
    rules[f'OBJECT {group} {at}'] = _make_noun_phrase(f'THING {group}', at)
    add_described(f'THING {group}', kinds)
  add_described('SUBJECT', tuple(NOUNS))
  for number, kind in itertools.product('SP', NOUNS):
    _add_verb_rules(rules, number, kind, at)
    tail = f'TAIL {number} {kind} {at}'
    rules[tail] += [(0.23 * p, (word, '.')) for word, p in adverbs.items()]


def _add_verb_rules(rules: dict[str, GrammarRule], number: str, kind: str, at: str) -> None:
  """Adds the rules of predicates for subjects of one number and kind."""
  verb, tail = f'VERB {number} {kind} {at}', f'TAIL {number} {kind} {at}'
  verbs = [(name, objects) for name, (subjects, objects) in VERBS.items() if kind in subjects]
  rules[verb] = [(0.2, ('is' if number == 'S' else 'are', f'FEELING {at}'))]
  for name, objects in verbs:
    form = _inflect(name) if number == 'S' else name
    object_symbol = (f'OBJECT {",".join(objects)} {at}',) if objects else ()
    rules[verb].append((0.8 / len(verbs), (form, *object_symbol)))
  rules[f'AFTER {number} {kind} {at}'] = [
    (0.2, ('near', f'OBJECT {",".join(NOUNS)} {at}', verb, tail)),
    (0.12, ('that', verb, verb, tail)),
    *((0.68 * p, (*body, tail)) for p, body in rules[verb]),
  ]
  rules[tail] = [(0.5, ('.',)), (0.15, ('and', verb, tail)), (0.12, ('because', f'CLAUSE {at}'))]


def generate_documents(seed: int, count: int) -> Iterator[str]:
  """Yields documents of one line each; document i depends only on `seed` and i."""
  for i in range(count):
    yield ' '.join(build_grammar().sample('DOCUMENT', random.Random(f'{seed}/{i}'))[:-1])


def _is_sentence(words: Iterable[str]) -> bool:
  """Returns whether words are a sentence of the language at any place and in any mood."""
  return build_grammar().compute_log_probability('CLAUSE 00', words) > -math.inf


def _make_acceptability(words: list[str], label: int, rng: random.Random) -> dict[str, str] | None:
  """Returns the sentence (1), or a version with one wrong number or two swapped words (0)."""
  if label:
    return {'sentence': ' '.join(words)}
  changed = [
    [*words[:i], _OTHER_NUMBER[word], *words[i + 1 :]]
    for i, word in enumerate(words)
    if word in _OTHER_NUMBER
  ]
  swapped = [[*words[:i], words[i + 1], words[i], *words[i + 2 :]] for i in range(len(words) - 2)]
  broken = [other for other in rng.choice((changed, swapped)) if not _is_sentence(other)]
  return {'sentence': ' '.join(rng.choice(broken))} if broken else None


def _make_entailment(words: list[str], label: int, rng: random.Random) -> dict[str, str] | None:
  """Returns a sentence, and a version with a noun replaced by its kind (0) or another kind (1)."""
  at = rng.choice([i for i, word in enumerate(words) if word in _KIND])
  is_plural = _inflect(_OTHER_NUMBER[words[at]]) == words[at]
  seconds = {
    kind: [*words[:at], _inflect(kind) if is_plural else kind, *words[at + 1 :]] for kind in NOUNS
  }
  others = [kind for kind in NOUNS if kind != _KIND[words[at]] and _is_sentence(seconds[kind])]
  if not others:  # required for both labels, so that they have the same kinds and verbs
    return None
  second = seconds[rng.choice(others) if label else _KIND[words[at]]]
  return {'sentence1': ' '.join(words), 'sentence2': ' '.join(second)}


def _make_sentiment(words: list[str], label: int, rng: random.Random) -> dict[str, str] | None:
  """Returns a sentence with positive (1) or negative (0) words, or None without such words."""
  return {'sentence': ' '.join(words)} if _SENTIMENT_WORDS.intersection(words) else None


MICROWORLD_TASKS = {
  'acceptability': _make_acceptability,
  'entailment': _make_entailment,
  'sentiment': _make_sentiment,
}
# The hash of the first sentence selects the split, so splits share no sentence.
MICROWORLD_SPLITS = ('train', 'train', 'validation', 'test')


def generate_examples(task: str, split: str, seed: int, count: int) -> list[dict[str, Any]]:
  """Returns distinct labelled examples.

  The nouns and sentiment words of 'train' do not occur in 'validation' and 'test'.

  Args:
    task: 'acceptability' (1 acceptable), 'entailment' (0 entailment, 1 not) or 'sentiment' (1
      positive).
    split: 'train', 'validation' or 'test'; splits share no sentence for any seeds.
    count: Number of rows with 'sentence' (or 'sentence1' and 'sentence2'), 'label' and 'idx'.

  Raises:
    InputError: The task or split is unknown.
  """
  for field, name, known in (('task', task, MICROWORLD_TASKS), ('split', split, MICROWORLD_SPLITS)):
    check_name(f'{field} {name!r} of the microworld', field, name, known)
  grammar, make = build_grammar(0 if split == 'train' else 1), MICROWORLD_TASKS[task]
  rng = random.Random(f'{task}/{split}/{seed}')
  rows: dict[str, dict[str, Any]] = {}  # by first sentence
  while len(rows) < count:
    place, label = rng.randrange(len(PLACES)), rng.randrange(2)
    mood = label if task == 'sentiment' else rng.randrange(2)
    fields = make(grammar.sample(f'CLAUSE {place}{mood}', rng), label, rng)
    if fields is None:
      continue
    first = next(iter(fields.values()))
    split_of_first = MICROWORLD_SPLITS[hashlib.sha256(first.encode()).digest()[0] % 4]
    if first not in rows and split_of_first == split:
      rows[first] = {**fields, 'label': label, 'idx': len(rows)}
  return list(rows.values())
