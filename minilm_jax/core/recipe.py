"""From a recipe to typed, complete configuration: the one door.

A recipe (`configs/`) is data: a ConfigDict that imports nothing of ours. `resolve` turns it into
the frozen types of `config.py`, refusing unknown, missing and ill-typed fields with what was
probably meant.

A recipe that is given by its path is code, and runs: give none that you would not start as a
program. A recipe that a run has stored, its config.json, is data: it is read as JSON and fills
fields of known types. Nothing that stands in it is imported, run or formatted, nor does a path in
it, such as that of its corpus, run a recipe when the run is read.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ml_collections import config_dict

from minilm_jax.core import progress, schema
from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.errors import InputError, suggest_name

T = TypeVar('T')
_TYPE_NAMES = {int: re.compile(r'-?\d+'), float: re.compile(r'-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')}
# What a recipe may raise, which is code, or what it names; RecursionError is a RuntimeError, and
# one that leaves gives no recipe either.
RECIPE_ERRORS = (
  SyntaxError,
  ImportError,
  AttributeError,
  TypeError,
  ValueError,
  LookupError,
  NameError,
  ArithmeticError,
  AssertionError,
  RuntimeError,
  OSError,
  MemoryError,
  StopIteration,
  SystemExit,
)
_MAX_RECIPE_BYTES = 1 << 20  # bytes of a recipe; ours have thousands
# Of a whole number; above, JSON and floating point lose digits, and no shape or count is so large.
# Of one in text.
_BITS, _DIGITS = 53, 100
KINDS: dict[str, type] = {'pretrain': RunConfig, 'corpus': CorpusConfig, 'finetune': FinetuneConfig}


def find_file(path: str) -> str:
  """The file that `configs/x.py[:argument]` names: in the working directory, else beside this
  package, which it says.

  So `configs/tiny.py` is the one that was installed wherever there is no other. The folder that
  holds `configs` is put on the import path, because recipes build on `configs/base.py`.

  Raises:
    InputError: there is no such file.
  """
  file, colon, argument = path.partition(':')
  beside = pathlib.Path(__file__).resolve().parents[2]
  found = next((p for p in (pathlib.Path(file), beside / file) if p.is_file()), None)
  if found is None:
    folder = next(
      (p for p in (pathlib.Path(file).parent, beside / 'configs') if p.is_dir()), pathlib.Path()
    )
    there = [f'{folder.name}/{p.name}' for p in folder.glob('*.py') if p.stem != '__init__']
    raise InputError(f'the recipe {file}', 'no such file', suggest_name(file, there))
  if found.stat().st_size > _MAX_RECIPE_BYTES:
    raise InputError(
      f'the recipe {file}',
      f'it has more than {_MAX_RECIPE_BYTES:,} bytes',
      'give a recipe, such as those of configs/',
    )
  if not pathlib.Path(file).is_file():
    _say_installed(file, str(found))
  if str(beside) not in sys.path:
    sys.path.insert(0, str(beside))
  return f'{found}{colon}{argument}'


@functools.cache  # once is enough
def _say_installed(file: str, found: str) -> None:
  progress.log(f'{file} is the one that was installed, {found}: there is no other here')


def load(path: str) -> config_dict.ConfigDict:
  """The recipe that `configs/x.py[:argument]` names. A recipe is code: it runs.

  Raises:
    InputError: no such file, or the file cannot give a recipe for this argument.
  """
  _, colon, argument = path.partition(':')
  found = _exec_recipe(
    path, lambda module: module.get_config(argument) if colon else module.get_config()
  )
  if not isinstance(found, config_dict.ConfigDict):
    raise InputError(
      f'the recipe {path}',
      f'get_config gives a {type(found).__name__}',
      'let it return a ConfigDict, such as those of configs/base.py',
    )
  return found


def expand_names(path: str, argument: str) -> list[str]:
  """The arguments of a recipe that one with commas in it stands for.

  Args:
    path: the file.
    argument: names with commas between; 'all' is every name of the table `RUNS` of the file, and a
      name of its table `SETS` is each of that set.

  Raises:
    InputError: no such file, 'all' of one without that table, or a name twice.
  """
  every, sets = _exec_recipe(
    path, lambda module: (list(getattr(module, 'RUNS', ())), dict(getattr(module, 'SETS', {})))
  )
  if argument == 'all':
    if not every:
      raise InputError(
        f'all runs of the recipe {path}',
        'no table RUNS in it',
        'name one: --config=FILE[:argument]',
      )
    return every
  names = filter(None, map(str.strip, argument.split(',')))
  found = [one for name in names for one in (sets[name] if name in sets else [name])]
  twice = [name for name in dict.fromkeys(found) if found.count(name) > 1]
  if twice:
    raise InputError(
      f'--config={path}:{argument}', f'{", ".join(twice)} more than once', 'name each once'
    )
  return found


def read_docstring(path: str) -> str:
  """What a recipe says of itself, the docstring of its file.

  Raises:
    InputError: no such file, or it says nothing.
  """
  found = inspect.cleandoc(_exec_recipe(path, lambda module: module.__doc__ or ''))
  if not found:
    raise InputError(
      f'what {path} says of itself', 'no text at its head', 'begin the file with one in """'
    )
  return found


def _exec_recipe(path: str, call: Callable[[types.ModuleType], Any]) -> Any:
  """What `call` makes of the module of a recipe."""
  file = find_file(path).partition(':')[0]
  spec = importlib.util.spec_from_file_location('recipe_' + pathlib.Path(file).stem, file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return call(module)
  except RECIPE_ERRORS as error:
    lines = [
      frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
    ]
    where = f' in line {lines[-1]}' if lines else ''
    raise InputError(
      f'the recipe {path}',
      f'{type(error).__name__}{where}: {error}',
      'mend the file or its argument',
    ) from None


def list_fields(recipe: config_dict.ConfigDict, prefix: str = '') -> list[str]:
  """The names of all fields of a recipe, with dots."""
  names = []
  for name, value in recipe.items():
    names.append(prefix + name)
    if isinstance(value, config_dict.ConfigDict):
      names += list_fields(value, f'{prefix}{name}.')
  return names


def resolve(recipe: config_dict.ConfigDict | Mapping[str, Any], kind: str) -> Any:
  """The typed configuration of a recipe.

  Args:
    recipe: a ConfigDict or any nested mapping, as a recipe's `get_config` returns it or a run's
      config.json holds it.
    kind: what the caller can run; a row of `KINDS`.

  Raises:
    InputError: the recipe is of another kind, or a field is unknown, missing, of the wrong type or
      out of range.
  """
  if isinstance(recipe, config_dict.ConfigDict):
    recipe = recipe.to_dict()
  found = recipe['kind'] if 'kind' in recipe else None
  if found != kind:
    verb = {'pretrain': 'minilm pretrain', 'corpus': 'minilm corpus', 'finetune': 'minilm finetune'}
    raise InputError(
      f'a recipe of kind {kind!r}',
      f'one of kind {found!r}',
      f'use {verb[found]}'
      if isinstance(found, str) and found in verb
      else 'start the recipe from configs/base.py',
    )
  return build(KINDS[kind], recipe)


def build(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
  """Fills a dataclass from a mapping of the same shape, field by field."""
  hints = typing.get_type_hints(cls)
  fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise InputError(
        f'the field {where}{name}',
        f'no such field in {cls.__name__}',
        suggest_name(str(name), fields),
      )
  missing = [where + name for name in fields if name not in values]
  if missing:
    raise InputError(
      f'a complete {cls.__name__}',
      f'missing {", ".join(missing)}',
      'start the recipe from configs/base.py',
    )
  return cls(**{name: _convert(kind, values[name], where + name) for name, kind in fields.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise InputError(f'{where} as a group of fields', f'{value!r}', 'give its fields one by one')
    return build(kind, value, where + '.')
  # tuple[X, ...]: a list, or a string with commas as on the command line
  if isinstance(kind, types.GenericAlias):
    items = (
      [item.strip() for item in value.split(',') if item.strip()]
      if isinstance(value, str)
      else value
    )
    if not isinstance(items, (list, tuple)):
      items = [items]
    return tuple(_convert(typing.get_args(kind)[0], item, where) for item in items)
  if isinstance(value, str) and (found := schema.NO_TEXT.search(value)):
    raise InputError(
      where, f'U+{ord(found[0]):04X} at character {found.start()} is no text', 'give text in UTF-8'
    )
  if (
    isinstance(value, str)
    and kind in _TYPE_NAMES
    and len(value) < _DIGITS
    and _TYPE_NAMES[kind].fullmatch(value)
  ):
    value = kind(value)
  if isinstance(value, int) and value.bit_length() > _BITS:
    raise InputError(where, f'a whole number of more than {_BITS} bits', 'give a smaller one')
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
    raise InputError(
      f'{where} as {kind.__name__}',
      f'{value!r} ({type(value).__name__})',
      f'give a value of type {kind.__name__}',
    )
  return value


def as_dict(config: Any) -> dict[str, Any]:
  """A configuration as plain data; `resolve` reads it back."""
  return dataclasses.asdict(config)


# Code that a recipe names: who has said that it may run, and where it is found.
# a line there tells nobody what to mend
_LIBRARY = re.compile(r'[\\/](site|dist)-packages[\\/]|^<')
_trusted: set[str] = set()


def allow_modules(names: str) -> None:
  """Lets modules be imported: `package.module` or `package.module:Class`, several with commas
  between; '' is none.
  """
  _trusted.update(filter(None, (name.partition(':')[0].strip() for name in names.split(','))))


def is_allowed() -> str:
  """The modules that may be imported, as `allow` takes them: for a process that this one starts."""
  return ','.join(sorted(_trusted))


def import_class(name: str) -> Any:
  """What `package.module:Class` names, imported from the working directory or from Python's path.

  Raises:
    InputError: nobody has said that its code may run; there is no such module, or nothing of that
      name in it; or it cannot be imported.
  """
  module, _, attribute = name.partition(':')
  what = f'the encoder {name}'
  if module not in _trusted:
    raise InputError(
      f'{what}, which a stored recipe names',
      f'{module} is code, may do anything, and is not trusted',
      f'read it; if you would start it as a program, give --trust={module}, in Python trust={module!r}',
    )
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # last, so that nothing there takes the place of a library
  try:
    found = importlib.import_module(module)
  except RECIPE_ERRORS as error:
    absent = isinstance(error, ModuleNotFoundError) and f'{module}.'.startswith(f'{error.name}.')
    raise (
      _absent(what, module, error.name)
      if absent
      else describe_import_error(what, f'import {module}', error)
    ) from None
  if attribute not in vars(found):
    there = [
      key
      for key, value in vars(found).items()
      if isinstance(value, type) and value.__module__ == module
    ]
    raise InputError(what, f'no {attribute} in {found.__file__}', suggest_name(attribute, there))
  return getattr(found, attribute)


def _absent(what: str, module: str, missing: str) -> InputError:
  package = sys.modules[missing.rpartition('.')[0]] if '.' in missing else None
  looked = ', '.join(getattr(package, '__path__', ())) or f'{os.getcwd()} and on the path of Python'
  return InputError(
    what,
    f'no module {missing} in {looked}',
    f'start in the folder that holds {module.partition(".")[0]}, or put that on PYTHONPATH',
  )


def describe_import_error(what: str, call: str, error: BaseException) -> InputError:
  """What a stranger's code has raised, as an error of the input: which call, what, and where."""
  frames = traceback.extract_tb(error.__traceback__)
  theirs = [frame for frame in frames if not _LIBRARY.search(frame.filename)]
  frame = (theirs or frames)[-1]
  where = f'{os.path.basename(frame.filename)}, line {frame.lineno}'
  return InputError(
    what,
    f'{call} gives {type(error).__name__} ({where}): {" ".join(str(error).split())[:500]}',
    'mend the file',
  )
