"""From a recipe to typed, complete configuration: the one door.

A recipe (`configs/`) is data: a ConfigDict that imports nothing of ours. `resolve` turns it into the frozen types of
`config.py`, refusing unknown, missing and ill-typed fields with what was probably meant.

A recipe that is given by its path is code, and runs: give none that you would not start as a program. A recipe that a
run has stored, its config.json, is data: it is read as JSON and fills fields of known types. Nothing that stands in it
is imported, run or formatted, nor does a path in it, such as that of its corpus, run a recipe when the run is read.
"""

import dataclasses
import functools
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ml_collections import config_dict

from minilm_jax import progress, shape
from minilm_jax.config import FinetuneConfig, RunConfig
from minilm_jax.corpus_config import CorpusConfig
from minilm_jax.errors import InputError, nearest

T = TypeVar('T')
_WRITTEN = {int: re.compile(r'-?\d+'), float: re.compile(r'-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')}
# What a recipe may raise, which is code, or what it names; RecursionError is a RuntimeError, and one that leaves gives
# no recipe either.
FAULTS = (SyntaxError, ImportError, AttributeError, TypeError, ValueError, LookupError, NameError, ArithmeticError,
          AssertionError, RuntimeError, OSError, MemoryError, StopIteration, SystemExit)
_LARGEST = 1 << 20  # bytes of a recipe; ours have thousands
# Of a whole number; above, JSON and floating point lose digits, and no shape or count is so large. Of one in text.
_BITS, _DIGITS = 53, 100

KINDS: dict[str, type] = {'pretrain': RunConfig, 'corpus': CorpusConfig, 'finetune': FinetuneConfig}


def locate(path: str) -> str:
  """The file that `configs/x.py[:argument]` names: in the working directory, else beside this package, which it says.

  So `configs/tiny.py` is the one that was installed wherever there is no other. The folder that holds `configs` is put
  on the import path, because recipes build on `configs/base.py`.

  Raises:
    InputError: there is no such file.
  """
  file, colon, argument = path.partition(':')
  beside = pathlib.Path(__file__).resolve().parent.parent
  found = next((p for p in (pathlib.Path(file), beside / file) if p.is_file()), None)
  if found is None:
    folder = next((p for p in (pathlib.Path(file).parent, beside / 'configs') if p.is_dir()), pathlib.Path())
    there = [f'{folder.name}/{p.name}' for p in folder.glob('*.py') if p.stem != '__init__']
    raise InputError(f'the recipe {file}', 'no such file', nearest(file, there))
  if found.stat().st_size > _LARGEST:
    raise InputError(f'the recipe {file}', f'it has more than {_LARGEST:,} bytes',
                     'give a recipe, such as those of configs/')
  if not pathlib.Path(file).is_file():
    _say_installed(file, str(found))
  if str(beside) not in sys.path:
    sys.path.insert(0, str(beside))
  return f'{found}{colon}{argument}'


@functools.cache  # once is enough
def _say_installed(file: str, found: str) -> None:
  progress.say(f'{file} is the one that was installed, {found}: there is no other here')


def load(path: str) -> config_dict.ConfigDict:
  """The recipe that `configs/x.py[:argument]` names. A recipe is code: it runs.

  Raises:
    InputError: no such file, or the file cannot give a recipe for this argument.
  """
  _, colon, argument = path.partition(':')
  found = _called(path, lambda module: module.get_config(argument) if colon else module.get_config())
  if not isinstance(found, config_dict.ConfigDict):
    raise InputError(f'the recipe {path}', f'get_config gives a {type(found).__name__}',
                     'let it return a ConfigDict, such as those of configs/base.py')
  return found


def runs(path: str, argument: str) -> list[str]:
  """The arguments of a recipe that one with commas in it stands for.

  Args:
    path: the file.
    argument: names with commas between; 'all' is every name of the table `RUNS` of the file, and a name of its table
      `SETS` is each of that set.

  Raises:
    InputError: no such file, 'all' of one without that table, or a name twice.
  """
  every, sets = _called(path, lambda module: (list(getattr(module, 'RUNS', ())), dict(getattr(module, 'SETS', {}))))
  if argument == 'all':
    if not every:
      raise InputError(f'all runs of the recipe {path}', 'no table RUNS in it', 'name one: --config=FILE[:argument]')
    return every
  names = filter(None, map(str.strip, argument.split(',')))
  found = [one for name in names for one in (sets[name] if name in sets else [name])]
  twice = [name for name in dict.fromkeys(found) if found.count(name) > 1]
  if twice:
    raise InputError(f'--config={path}:{argument}', f'{", ".join(twice)} more than once', 'name each once')
  return found


def head(path: str) -> str:
  """What a recipe says of itself, the docstring of its file.

  Raises:
    InputError: no such file, or it says nothing.
  """
  found = inspect.cleandoc(_called(path, lambda module: module.__doc__ or ''))
  if not found:
    raise InputError(f'what {path} says of itself', 'no text at its head', 'begin the file with one in """')
  return found


def _called(path: str, call: Callable[[types.ModuleType], Any]) -> Any:
  """What `call` makes of the module of a recipe."""
  file = locate(path).partition(':')[0]
  spec = importlib.util.spec_from_file_location('recipe_' + pathlib.Path(file).stem, file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return call(module)
  except FAULTS as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f' in line {lines[-1]}' if lines else ''
    raise InputError(f'the recipe {path}', f'{type(error).__name__}{where}: {error}',
                     'mend the file or its argument') from None


def fields(recipe: config_dict.ConfigDict, prefix: str = '') -> list[str]:
  """The names of all fields of a recipe, with dots."""
  names = []
  for name, value in recipe.items():
    names.append(prefix + name)
    if isinstance(value, config_dict.ConfigDict):
      names += fields(value, f'{prefix}{name}.')
  return names


def resolve(recipe: config_dict.ConfigDict | Mapping[str, Any], kind: str) -> Any:
  """The typed configuration of a recipe.

  Args:
    recipe: a ConfigDict or any nested mapping, as a recipe's `get_config` returns it or a run's config.json holds it.
    kind: what the caller can run; a row of `KINDS`.

  Raises:
    InputError: the recipe is of another kind, or a field is unknown, missing, of the wrong type or out of range.
  """
  if isinstance(recipe, config_dict.ConfigDict):
    recipe = recipe.to_dict()
  found = recipe['kind'] if 'kind' in recipe else None
  if found != kind:
    verb = {'pretrain': 'minilm pretrain', 'corpus': 'minilm corpus', 'finetune': 'minilm finetune'}
    raise InputError(f'a recipe of kind {kind!r}', f'one of kind {found!r}',
                     f'use {verb[found]}' if isinstance(found, str) and found in verb else
                     'start the recipe from configs/base.py')
  return build(KINDS[kind], recipe)


def build(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
  """Fills a dataclass from a mapping of the same shape, field by field."""
  hints = typing.get_type_hints(cls)
  fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise InputError(f'the field {where}{name}', f'no such field in {cls.__name__}', nearest(str(name), fields))
  missing = [where + name for name in fields if name not in values]
  if missing:
    raise InputError(f'a complete {cls.__name__}', f'missing {", ".join(missing)}',
                     'start the recipe from configs/base.py')
  return cls(**{name: _convert(kind, values[name], where + name) for name, kind in fields.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise InputError(f'{where} as a group of fields', f'{value!r}', 'give its fields one by one')
    return build(kind, value, where + '.')
  if isinstance(kind, types.GenericAlias):  # tuple[X, ...]: a list, or a string with commas as on the command line
    items = [item.strip() for item in value.split(',') if item.strip()] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
      items = [items]
    return tuple(_convert(typing.get_args(kind)[0], item, where) for item in items)
  if isinstance(value, str) and (found := shape.NO_TEXT.search(value)):
    raise InputError(where, f'U+{ord(found[0]):04X} at character {found.start()} is no text', 'give text in UTF-8')
  if isinstance(value, str) and kind in _WRITTEN and len(value) < _DIGITS and _WRITTEN[kind].fullmatch(value):
    value = kind(value)
  if isinstance(value, int) and value.bit_length() > _BITS:
    raise InputError(where, f'a whole number of more than {_BITS} bits', 'give a smaller one')
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
    raise InputError(f'{where} as {kind.__name__}', f'{value!r} ({type(value).__name__})',
                     f'give a value of type {kind.__name__}')
  return value


def as_dict(config: Any) -> dict[str, Any]:
  """A configuration as plain data; `resolve` reads it back."""
  return dataclasses.asdict(config)
