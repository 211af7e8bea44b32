"""A small word list, the path of the word list of paper 1, and text with words inside and outside
the list.
"""

import random
import re

from minilm_jax.data import filters

WORDS = frozenset('the dog cat ran and saw number dont i a it was big said mr smith'.split())
LIST = filters.WordList(WORDS, 'test', '')
PAPER_LIST = 'aochildes/AOChildes_word_frequency.csv'


def split_honey_words(text: str) -> list[str]:
  """The paper's rule on a whole text at once, step by step."""
  text = text.lower().replace('-', ' ').replace('@,@', '#NUMBER').replace('@.@', '#NUMBER')
  text = re.sub(r'http\S*', '#HLINK', re.sub(r'\b\d+', '#NUMBER ', text))
  return re.findall(r'(?u)\b\w\w+\b', text.lower())


def draw_text(seed: int, size: int) -> str:
  """Words inside and outside the list, in capitals, with marks, digits, hyphens and white space
  anywhere.
  """
  dice = random.Random(seed)
  pieces = [
    *sorted(WORDS),
    'wolf',
    'Łódź',
    "don't",
    'x',
    '1,000',
    '3rd',
    'http://a.b-c',
    '@,@',
    '-',
    '…',
    '_',
    '²',
  ]
  ends = [' ', ' ', ' ', ' ', '  ', '\n', '. ', '." ', ', ', '-', "'s ", '! ', '\t', '\u00a0']
  return ''.join(
    dice.choice((str, str.upper, str.title))(dice.choice(pieces)) + dice.choice(ends)
    for _ in range(size)
  )
