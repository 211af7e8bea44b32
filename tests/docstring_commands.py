"""Finds the commands in a docstring."""

import re


def find_commands(text: str) -> list[str]:
  """Returns the indented commands of a docstring, with continued lines joined."""
  return re.findall(r'^ {4}(minilm .*)$', text.replace('\\\n', ' '), re.M)
