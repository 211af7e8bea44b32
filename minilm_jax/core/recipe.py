"""Recipes: Python files that run, stored recipes that are data, and the types that both become.

A recipe that is given by path is code, and runs: give none that you would not start as a program.
`resolve` turns its ConfigDict into the frozen types of `config.py`; it refuses unknown, missing and
ill-typed fields and suggests the nearest name. A recipe that a run has stored is data: it fills
fields of known types, nothing in it is imported, run or formatted, and its paths run no recipe.
Only custom encoders of modules that the user trusts are imported.
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
KINDS: dict[str, type] = {'pretrain': RunConfig, 'corpus': CorpusConfig, 'finetune': FinetuneConfig}
# Errors of code that a recipe is or names. RecursionError is a RuntimeError.
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
_NUMBERS = {int: re.compile(r'-?\d+'), float: re.compile(r'-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')}
_MAX_RECIPE_BYTES = 1 << 20  # our recipes have thousands
_MAX_DIGITS = 100  # of a number in text
_MAX_BITS = 53  # of a whole number; JSON and floating point lose digits above
# Code of libraries, which an error of a recipe does not name.
_LIBRARY = re.compile(r'[\\/](site|dist)-packages[\\/]|^<')
_trusted: set[str] = set()


def find_file(path: str) -> str:
  """Returns the file of `configs/x.py[:argument]`: in the working directory, else as installed.

  The parent of the installed `configs` is put on the import path, because recipes import
  `configs.base`.

  Raises:
    InputError: there is no such file, or it is too large for a recipe.
  """
  name, colon, argument = path.partition(':')
  installed = pathlib.Path(__file__).resolve().parents[2]
  file = next((p for p in (pathlib.Path(name), installed / name) if p.is_file()), None)
  if file is None:
    folders = (pathlib.Path(name).parent, installed / 'configs')
    folder = next((p for p in folders if p.is_dir()), pathlib.Path())
    known = [f'{folder.name}/{p.name}' for p in folder.glob('*.py') if p.stem != '__init__']
    raise InputError(f'the recipe {name}', 'no such file', suggest_name(name, known))
  if file.stat().st_size > _MAX_RECIPE_BYTES:
    raise InputError(
      f'the recipe {name}',
      f'it has more than {_MAX_RECIPE_BYTES:,} bytes',
      'give a recipe, such as those of configs/',
    )
  if not pathlib.Path(name).is_file():
    _log_installed(name, str(file))
  if str(installed) not in sys.path:
    sys.path.insert(0, str(installed))
  return f'{file}{colon}{argument}'


@functools.cache  # logs once
def _log_installed(name: str, file: str) -> None:
  progress.log(f'{name} is the one that was installed, {file}: there is no other here')


def load(path: str) -> config_dict.ConfigDict:
  """Runs the recipe `configs/x.py[:argument]` and returns its ConfigDict.

  Raises:
    InputError: no such file, or the file gives no recipe for this argument.
  """
  _, colon, argument = path.partition(':')
  recipe = _exec_recipe(
    path, lambda module: module.get_config(argument) if colon else module.get_config()
  )
  if not isinstance(recipe, config_dict.ConfigDict):
    raise InputError(
      f'the recipe {path}',
      f'get_config gives a {type(recipe).__name__}',
      'let it return a ConfigDict, such as those of configs/base.py',
    )
  return recipe


def expand_names(path: str, argument: str) -> list[str]:
  """Returns the single arguments of a recipe that an argument with commas stands for.

  Args:
    path: the file.
    argument: names with commas between; 'all' is every name of the table `RUNS` of the file, and a
      name of its table `SETS` is each of that set.

  Raises:
    InputError: no such file, 'all' of one without that table, or a name twice.
  """
  runs, sets = _exec_recipe(
    path, lambda module: (list(getattr(module, 'RUNS', ())), dict(getattr(module, 'SETS', {})))
  )
  if argument == 'all':
    if not runs:
      raise InputError(
        f'all runs of the recipe {path}',
        'no table RUNS in it',
        'name one: --config=FILE[:argument]',
      )
    return runs
  words = filter(None, map(str.strip, argument.split(',')))
  names = [name for word in words for name in sets.get(word, [word])]
  repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if repeated:
    raise InputError(
      f'--config={path}:{argument}', f'{", ".join(repeated)} more than once', 'name each once'
    )
  return names


def read_docstring(path: str) -> str:
  """Returns the docstring of a recipe; raises InputError without a file or a docstring."""
  text = inspect.cleandoc(_exec_recipe(path, lambda module: module.__doc__ or ''))
  if not text:
    raise InputError(
      f'what {path} says of itself', 'no text at its head', 'begin the file with one in """'
    )
  return text


def _exec_recipe(path: str, call: Callable[[Any], Any]) -> Any:
  """Runs a recipe and returns what `call` makes of its module."""
  file = find_file(path).partition(':')[0]
  spec = importlib.util.spec_from_file_location('recipe_' + pathlib.Path(file).stem, file)
  if spec is None or spec.loader is None:
    raise InputError(f'the recipe {path}', 'no Python file', 'give one that ends with .py')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return call(module)
  except RECIPE_ERRORS as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    place = f' in line {lines[-1]}' if lines else ''
    raise InputError(
      f'the recipe {path}',
      f'{type(error).__name__}{place}: {error}',
      'fix the file or its argument',
    ) from None


def list_fields(recipe: config_dict.ConfigDict, prefix: str = '') -> dict[str, Any]:
  """Returns all fields and groups of a recipe by their names with dots."""
  fields: dict[str, Any] = {}
  for name, value in recipe.items():
    fields[prefix + name] = value
    if isinstance(value, config_dict.ConfigDict):
      fields |= list_fields(value, f'{prefix}{name}.')
  return fields


def find_field(fields: Mapping[str, Any], name: str) -> Any:
  """Returns the value of a field of `list_fields`.

  Raises:
    InputError: the recipe has no such field, or the name is that of a group of fields.
  """
  if name not in fields:
    raise InputError(
      f'the field {name}', 'no such field in this recipe', suggest_name(name, fields)
    )
  if isinstance(fields[name], config_dict.ConfigDict):
    raise InputError(f'the field {name}', 'a group of fields', 'give its fields one by one')
  return fields[name]


def override_fields(source: config_dict.ConfigDict, overrides: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a recipe as nested dicts, with the fields in `overrides` replaced.

  Args:
    source: the recipe.
    overrides: values by dotted field name, such as `{'optimizer.learning_rate': 1e-3}`.

  Raises:
    InputError: as `find_field`.
  """
  fields, tree = list_fields(source), source.to_dict()
  for name, value in overrides.items():
    find_field(fields, name)
    *groups, field = name.split('.')
    group = tree
    for part in groups:
      group = group[part]
    group[field] = value
  return tree


def resolve(recipe: config_dict.ConfigDict | Mapping[str, Any], kind: str) -> Any:
  """Returns the typed configuration of a recipe.

  Args:
    recipe: a ConfigDict or any nested mapping, such as a run's config.json.
    kind: the kind of recipe that the caller can use, a key of `KINDS`.

  Raises:
    InputError: the recipe is of another kind, or a field is unknown, missing, of the wrong type or
      out of range.
  """
  if isinstance(recipe, config_dict.ConfigDict):
    recipe = recipe.to_dict()
  recipe_kind = recipe['kind'] if 'kind' in recipe else None
  if recipe_kind != kind:
    is_known = isinstance(recipe_kind, str) and recipe_kind in KINDS
    raise InputError(
      f'a recipe of kind {kind!r}',
      f'one of kind {recipe_kind!r}',
      f'use minilm {recipe_kind}' if is_known else 'start the recipe from configs/base.py',
    )
  return build(KINDS[kind], recipe)


def build(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
  """Returns a dataclass filled from a mapping with the same fields; `where` is for errors."""
  hints = typing.get_type_hints(cls)
  names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
  for name in values:
    if name not in names:
      raise InputError(
        f'the field {where}{name}',
        f'no such field in {cls.__name__}',
        suggest_name(str(name), names),
      )
  missing = [where + name for name in names if name not in values]
  if missing:
    raise InputError(
      f'a complete {cls.__name__}',
      f'missing {", ".join(missing)}',
      'start the recipe from configs/base.py',
    )
  return cls(**{name: _convert(hints[name], values[name], where + name) for name in names})


def _convert(kind: Any, value: Any, where: str) -> Any:
  """Returns a value of a recipe or of the command line as its declared type."""
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise InputError(f'{where} as a group of fields', f'{value!r}', 'give its fields one by one')
    return build(typing.cast(type, kind), value, where + '.')
  if isinstance(kind, types.GenericAlias):  # tuple[X, ...], from a list or a string with commas
    if isinstance(value, str):
      value = [item.strip() for item in value.split(',') if item.strip()]
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_convert(typing.get_args(kind)[0], item, where) for item in items)
  if isinstance(value, str):
    if invalid := schema.NO_TEXT.search(value):
      raise InputError(
        where,
        f'U+{ord(invalid[0]):04X} at character {invalid.start()} is no text',
        'give text in UTF-8',
      )
    if kind in _NUMBERS and len(value) < _MAX_DIGITS and _NUMBERS[kind].fullmatch(value):
      value = kind(value)
  if isinstance(value, int) and value.bit_length() > _MAX_BITS:
    raise InputError(where, f'a whole number of more than {_MAX_BITS} bits', 'give a smaller one')
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
  """Returns a configuration as plain data, from which `resolve` makes it again."""
  return dataclasses.asdict(config)


def allow_modules(names: str) -> None:
  """Allows imports of `package.module` or `package.module:Class`, several with commas between."""
  _trusted.update(filter(None, (name.partition(':')[0].strip() for name in names.split(','))))


def allowed_modules() -> str:
  """Returns the allowed modules in the form of `allow_modules`, for a child process."""
  return ','.join(sorted(_trusted))


def import_class(name: str) -> Any:
  """Imports the class `package.module:Class` from the working directory or Python's path.

  Raises:
    InputError: the module is not allowed, does not exist, cannot be imported, or lacks the name.
  """
  module_name, _, attribute = name.partition(':')
  what = f'the encoder {name}'
  if module_name not in _trusted:
    raise InputError(
      f'{what}, which a stored recipe names',
      f'{module_name} is code, may do anything, and is not trusted',
      f'read it; if you would start it as a program, give --trust={module_name}, '
      f'in Python trust={module_name!r}',
    )
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # last, so that no file there replaces a library
  try:
    module = importlib.import_module(module_name)
  except RECIPE_ERRORS as error:
    if isinstance(error, ModuleNotFoundError) and f'{module_name}.'.startswith(f'{error.name}.'):
      raise _missing_module(what, module_name, str(error.name)) from None
    raise describe_import_error(what, f'import {module_name}', error) from None
  if attribute not in vars(module):
    classes = [
      key
      for key, value in vars(module).items()
      if isinstance(value, type) and value.__module__ == module_name
    ]
    raise InputError(what, f'no {attribute} in {module.__file__}', suggest_name(attribute, classes))
  return getattr(module, attribute)


def _missing_module(what: str, module: str, missing: str) -> InputError:
  package = sys.modules[missing.rpartition('.')[0]] if '.' in missing else None
  paths = ', '.join(getattr(package, '__path__', ()))
  return InputError(
    what,
    f'no module {missing} in {paths or f"{os.getcwd()} and on the path of Python"}',
    f'start in the folder that holds {module.partition(".")[0]}, or put that on PYTHONPATH',
  )


def describe_import_error(what: str, call: str, error: BaseException) -> InputError:
  """Returns an error of custom code as an InputError: the call, the message, file and line."""
  frames = traceback.extract_tb(error.__traceback__)
  frame = ([f for f in frames if not _LIBRARY.search(f.filename)] or frames)[-1]
  place = f'{os.path.basename(frame.filename)}, line {frame.lineno}'
  return InputError(
    what,
    f'{call} gives {type(error).__name__} ({place}): {" ".join(str(error).split())[:500]}',
    'fix the file',
  )
