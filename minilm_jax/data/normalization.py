"""Normalises the Unicode of text, folds it, escapes U+2581, and lists the marks of letters.

A tokenizer with the notation of SentencePiece writes U+2581 for a space, and so would read the letter
U+2581 of a text as a space. The letter is therefore encoded as U+FDD0, which Unicode reserves for
the internal use of programs. Both have three bytes in UTF-8.
"""

import re
import unicodedata

NORMALIZATION = 'NFC'  # of all text of a corpus, of word lists, and of texts that a model reads
# White space other than the space, as in `str.split`; a class of `re` and of Oniguruma.
WHITE_SPACE = r'[\t-\r\x1c-\x1f\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]'
SPACE_MARK = '\u2581'  # of SentencePiece, in place of a space
_ESCAPED_MARK = '\ufdd0'
_END_OF_MARKS = 0x1F000  # higher planes have variation selectors alone
_WHITE_SPACE = re.compile(WHITE_SPACE)


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


def fold_text(text: str) -> str:
  """Returns a text in NFC and lower case with spaces as the only white space, as in a corpus.

  >>> fold_text(' The\\tdog\\nsleeps')
  ' the dog sleeps'
  """
  return _WHITE_SPACE.sub(' ', normalize_text(text).lower())


def escape_space_mark(text: str) -> str:
  """Returns a text in which U+2581 is no space for a tokenizer; see `unescape_space_mark`."""
  return text.replace(SPACE_MARK, _ESCAPED_MARK)


def unescape_space_mark(text: str) -> str:
  """Returns the text of a result of `escape_space_mark`.

  >>> unescape_space_mark(escape_space_mark('a\u2581b')) == 'a\u2581b'
  True
  """
  return text.replace(_ESCAPED_MARK, SPACE_MARK)
