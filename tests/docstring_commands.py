"""Parses command lines, also those in a docstring."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from minilm_jax.cli import commands, flags


def parse(name: str, arguments: Sequence[str]) -> tuple[Any, flags.FlagValues, Sequence[str]]:
  """Returns the configuration, the flags and the paths of a command line."""
  return flags.parse_arguments(name, commands.COMMANDS[name], arguments)


def parse_commands(text: str) -> list[str]:
  """Parses the indented commands of a docstring, with continued lines joined; returns them."""
  found = re.findall(r'^ {4}(minilm .*)$', text.replace('\\\n', ' '), re.M)
  for command in found:
    _, name, *arguments = shlex.split(command)
    parse(name, arguments)
  return found
