"""Simple probabilistic grammars: text drawn from them, its probability and its entropy, all exact.

In a simple grammar every production starts with a word, and no two productions of one symbol start with the same word.
Reading a text from left to right therefore recovers every choice that made it, so the probability of a text is the
product over its choices and the entropy of the text is the entropy of the choices. General context-free grammars, where
both are hard, are left out.
"""

import bisect
import itertools
import math
import random
from collections.abc import Iterable, Mapping

import numpy as np

Body = tuple[str, ...]  # what stands in place of a symbol: a word, then words and symbols
Rule = list[tuple[float, Body]]  # the productions of a symbol, each with its probability


class _Symbol:
  """A symbol made ready: for production i, `first[i]` is its word, `rest[i]` what follows, last thing first."""

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

  def __init__(self, rules: Mapping[str, Rule]):
    self._rules = rules
    self._symbols = {name: _Symbol() for name in rules}
    for name, rule in rules.items():
      symbol, words = self._symbols[name], [body[0] for _, body in rule]
      if not math.isclose(math.fsum(p for p, _ in rule), 1, abs_tol=1e-9) or min(p for p, _ in rule) <= 0:
        raise ValueError(f'{name}: probabilities must be positive and add up to 1')
      if len(set(words)) < len(words) or any(word in rules for word in words):
        raise ValueError(f'{name}: every production must start with a word of its own')
      symbol.cumulative = [*itertools.accumulate(p for p, _ in rule[:-1]), 1.0]
      symbol.first = words
      symbol.rest = [tuple(self._symbols[x] if x in rules else x for x in reversed(body[1:])) for _, body in rule]
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
    """The natural logarithm of the probability that `start` becomes exactly these words; -inf where it cannot."""
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

    With v the expected number of times each symbol is expanded, v = start + M' v, where M holds how many of each symbol
    an expansion leaves; entropy and words are then sums over v.
    """
    index = {name: i for i, name in enumerate(self._rules)}
    leaves, entropy, words = np.zeros((len(index), len(index))), np.zeros(len(index)), np.zeros(len(index))
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
