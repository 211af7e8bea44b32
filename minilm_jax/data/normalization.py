"""Normalises the Unicode of text: a composed and a decomposed accent are one character."""

import unicodedata

NORMALIZATION = 'NFC'  # of all text of a corpus, of word lists, and of texts that a model reads


def normalize_text(text: str) -> str:
  """Returns a text with composed accents.

  >>> len('cafe\u0301'), len(normalize_text('cafe\u0301'))
  (5, 4)
  """
  return text if text.isascii() else unicodedata.normalize(NORMALIZATION, text)
