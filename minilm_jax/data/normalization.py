"""Normalises the Unicode of text, and lists the marks that belong to the letter before them."""

import unicodedata

NORMALIZATION = 'NFC'  # of all text of a corpus, of word lists, and of texts that a model reads
_END_OF_MARKS = 0x1F000  # higher planes have variation selectors alone


def list_mark_ranges() -> str:
  """Returns the ranges of combining marks (Mn, Mc) for a character class of `re`.

  Python's `\\w` has no marks, so it would end a Hindi word at every vowel sign.
  """
  marks = [code for code in range(_END_OF_MARKS) if unicodedata.category(chr(code)) in ('Mn', 'Mc')]
  gaps = [i for i in range(1, len(marks)) if marks[i] > marks[i - 1] + 1]
  starts, stops = (marks[i] for i in (0, *gaps)), (marks[i - 1] for i in (*gaps, len(marks)))
  return ''.join(f'{chr(start)}-{chr(stop)}' for start, stop in zip(starts, stops, strict=True))


def normalize_text(text: str) -> str:
  """Returns a text with composed accents.

  >>> len('cafe\u0301'), len(normalize_text('cafe\u0301'))
  (5, 4)
  """
  return text if text.isascii() else unicodedata.normalize(NORMALIZATION, text)
