"""Finds the commands in a docstring."""

import re


def find_commands(text: str) -> list[str]:
  """The find_commands that stand indented in a docstring, continued lines joined."""
  return re.findall(r'^ {4}(minilm .*)$', text.replace('\\\n', ' '), re.M)
