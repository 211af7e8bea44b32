"""Loads recipes and converts them to the frozen types of `config.py`.

A recipe file is a Python program and is executed, so load only trusted files. `resolve` converts
its ConfigDict; it refuses unknown, missing and ill-typed fields and suggests the nearest name.

A recipe stored with a run is data. It fills fields of known types, and nothing in it is imported,
executed or formatted. The only exception is a custom encoder in a module that the user trusts
(`allow_modules`).
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import config_dict

from minilm_jax.core import paths, progress
from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.errors import (
  LIBRARY_ERRORS,
  NO_TEXT,
  PATH,
  InputError,
  PathText,
  check_name,
  suggest_name,
)

T = TypeVar('T')
KINDS: dict[str, type] = {'pretrain': RunConfig, 'corpus': CorpusConfig, 'finetune': FinetuneConfig}
# Exceptions of the code of a recipe or custom encoder; RecursionError is a RuntimeError.
RECIPE_ERRORS = (*LIBRARY_ERRORS, SyntaxError, NameError, StopIteration, SystemExit)
_NUMBERS = {int: re.compile(r'-?\d+'), float: re.compile(r'-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')}
_MAX_RECIPE_BYTES = 1 << 20  # recipes of this package have a few KB
_MAX_DIGITS = 100  # length of a number in text
_MAX_BITS = 53  # size of a whole number that JSON and float64 represent exactly
# Stack frames of libraries, which are not reported as the place of an error.
_LIBRARY_FRAME = re.compile(r'[\\/](site|dist)-packages[\\/]|^<')
_trusted_modules: set[str] = set()


def split_argument(path: str) -> tuple[str, str | None]:
  """Returns file and argument of `configs/x.py[:argument]`; None without an argument.

  A colon in the name of an existing file is part of the name.
  """
  path = paths.expand_home(path)
  colons = [i for i, character in enumerate(path) if character == ':']
  ends = (i for i in [len(path), *reversed(colons)] if pathlib.Path(path[:i]).is_file())
  end = next(ends, colons[0] if colons else len(path))
  return path[:end], path[end + 1 :] if end < len(path) else None


def is_path_list(field: str) -> bool:
  """Returns whether a field of any recipe holds several paths, such as `documents.sources`."""
  return field in {
    prefix + name for kind in KINDS.values() for prefix, name in _list_path_fields(kind)
  }


def _list_path_fields(cls: type, prefix: str = '') -> Iterator[tuple[str, str]]:
  for name, hint in typing.get_type_hints(cls, include_extras=True).items():
    if dataclasses.is_dataclass(hint):
      yield from _list_path_fields(typing.cast(type, hint), f'{prefix}{name}.')
    elif isinstance(hint, types.GenericAlias) and typing.get_args(hint)[0] == PathText:
      yield prefix, name


def find_file(path: str) -> str:
  """Returns the existing file of `configs/x.py[:argument]`.

  The working directory is searched first, then the installed package. The parent of the installed
  `configs` is added to `sys.path`, because recipes import `configs.base`.

  Raises:
    InputError: the file does not exist, or is larger than 1 MiB.
  """
  name, _ = split_argument(path)
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
      f'a file of more than {_MAX_RECIPE_BYTES:,} bytes',
      'give a recipe such as configs/tiny.py',
    )
  if not pathlib.Path(name).is_file():
    _log_installed(name, str(file))
  if str(installed) not in sys.path:
    sys.path.insert(0, str(installed))
  return str(file)


@functools.cache  # logs once
def _log_installed(name: str, file: str) -> None:
  progress.log(f'using the installed recipe {file}: no {name} in the working directory')


def load(path: str) -> config_dict.ConfigDict:
  """Executes the recipe `configs/x.py[:argument]` and returns its ConfigDict.

  Raises:
    InputError: the file does not exist, raises an exception, or returns another type.
  """
  _, argument = split_argument(path)
  recipe = _exec_recipe(
    path, lambda module: module.get_config() if argument is None else module.get_config(argument)
  )
  if not isinstance(recipe, config_dict.ConfigDict):
    raise InputError(
      f'the recipe {path}',
      f'get_config returns {type(recipe).__name__}',
      'return a ConfigDict, such as those of configs/base.py',
    )
  return recipe


def expand_names(path: str, argument: str) -> list[str]:
  """Returns the names of runs in a comma-separated argument of a recipe.

  Args:
    argument: names separated by commas. 'all' stands for every name in the table `RUNS` of the
      file. A key of the table `SETS` stands for the names in that set.

  Raises:
    InputError: the file does not exist, has no table `RUNS` for 'all', or a name is repeated.
  """
  runs, sets = _exec_recipe(
    path, lambda module: (list(getattr(module, 'RUNS', ())), dict(getattr(module, 'SETS', {})))
  )
  if argument == 'all':
    if not runs:
      raise InputError(
        f'--config={path}:all',
        f'no table RUNS in {path}',
        'give names as in --config=FILE:NAME,NAME, or add the table; minilm pretrain runs one recipe',
      )
    return runs
  words = filter(None, map(str.strip, argument.split(',')))
  names = [name for word in words for name in sets.get(word, [word])]
  repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if repeated:
    raise InputError(
      f'--config={path}:{argument}', f'{", ".join(repeated)} twice', 'give each name once'
    )
  return names


def read_docstring(path: str) -> str:
  """Returns the docstring of a recipe; raises InputError for a missing file or docstring."""
  text = inspect.cleandoc(_exec_recipe(path, lambda module: module.__doc__ or ''))
  if not text:
    raise InputError(
      f'the docstring of {path}', 'no docstring', 'begin the file with a text in """'
    )
  return text


def _exec_recipe(path: str, call: Callable[[Any], Any]) -> Any:
  """Executes a recipe and returns `call(module)`; reports its exceptions as InputError."""
  file = find_file(path)
  spec = importlib.util.spec_from_file_location('recipe_' + pathlib.Path(file).stem, file)
  if spec is None or spec.loader is None:
    raise InputError(f'the recipe {path}', 'not a Python file', 'give a file that ends with .py')
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
      'fix the recipe, or the argument after the colon',
    ) from None


def list_fields(recipe: config_dict.ConfigDict, prefix: str = '') -> dict[str, Any]:
  """Returns all fields and groups of a recipe by dotted name."""
  fields: dict[str, Any] = {}
  for name, value in recipe.items():
    fields[prefix + name] = value
    if isinstance(value, config_dict.ConfigDict):
      fields |= list_fields(value, f'{prefix}{name}.')
  return fields


def find_field(fields: Mapping[str, Any], name: str) -> Any:
  """Returns the value of a field of `list_fields`.

  Raises:
    InputError: the recipe has no such field, or the name is a group of fields.
  """
  check_name(f'the field {name}', 'field in this recipe', name, fields)
  if isinstance(fields[name], config_dict.ConfigDict):
    raise InputError(f'the field {name}', 'a group of fields', f'set a field, as in {name}.FIELD')
  return fields[name]


def override_fields(
  source: config_dict.ConfigDict | Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a recipe as nested dicts, with the fields in `overrides` replaced.

  Args:
    overrides: values by dotted field name, such as `{'optimizer.learning_rate': 1e-3}`.

  Raises:
    InputError: a name is unknown, or is a group of fields.
  """
  if not isinstance(source, config_dict.ConfigDict):
    source = config_dict.ConfigDict(_copy_fields(source))
  fields, tree = list_fields(source), source.to_dict()
  for name, value in overrides.items():
    find_field(fields, name)
    *groups, field = name.split('.')
    group = tree
    for part in groups:
      group = group[part]
    group[field] = value
  return tree


def _copy_fields(source: Mapping[Any, Any]) -> dict[str, Any]:
  """Returns a recipe of nested mappings as dicts.

  Raises:
    InputError: the name of a field is not text, or contains a dot.
  """
  for name in source:
    if not isinstance(name, str) or '.' in name:
      raise InputError(
        f'the field {name!r} of a recipe',
        'not the name of a field',
        'give nested dicts, or dotted names in `overrides`',
      )
  return {
    name: _copy_fields(value) if isinstance(value, Mapping) else value
    for name, value in source.items()
  }


def resolve(recipe: config_dict.ConfigDict | Mapping[str, Any], kind: str) -> Any:
  """Returns the typed configuration of a recipe.

  Raises:
    InputError: the recipe has another kind, or a field is unknown, missing, of the wrong type or
      out of range.
  """
  if isinstance(recipe, config_dict.ConfigDict):
    recipe = recipe.to_dict()
  recipe_kind = recipe['kind'] if 'kind' in recipe else None
  if recipe_kind != kind:
    is_known = isinstance(recipe_kind, str) and recipe_kind in KINDS
    raise InputError(
      f'a recipe of kind {kind!r}',
      f'a recipe of kind {recipe_kind!r}',
      f'use minilm {recipe_kind}' if is_known else 'start the recipe from configs/base.py',
    )
  return build(KINDS[kind], recipe)


def build(cls: type[T], values: Mapping[str, Any], prefix: str = '') -> T:
  """Returns a dataclass built from a mapping of its fields.

  Raises:
    InputError: a field is unknown, missing, of the wrong type or out of range.
  """
  hints = typing.get_type_hints(cls, include_extras=True)
  names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
  for name in values:
    check_name(f'the field {prefix}{name}', f'field in {cls.__name__}', str(name), names)
  missing = [prefix + name for name in names if name not in values]
  if missing:
    raise InputError(
      f'a complete {cls.__name__}',
      f'missing {", ".join(missing)}',
      'start the recipe from configs/base.py',
    )
  return cls(**{name: _convert(hints[name], values[name], prefix + name) for name in names})


def _convert(kind: Any, value: Any, field: str) -> Any:
  """Returns the value of a recipe or the command line as the declared type of a field."""
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise InputError(
        f'{field}={value!r}', f'{field} is a group of fields', f'set a field, as in {field}.FIELD'
      )
    return build(typing.cast(type, kind), value, field + '.')
  rules = getattr(kind, '__metadata__', ())
  kind = typing.get_args(kind)[0] if rules else kind
  if isinstance(kind, types.GenericAlias):  # tuple[X, ...], from a list or comma-separated text
    item_kind = typing.get_args(kind)[0]
    if isinstance(value, str) and item_kind == PathText:
      value = paths.split_names(value)
    elif isinstance(value, str):
      value = [item.strip() for item in value.split(',') if item.strip()]
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_convert(item_kind, item, field) for item in items)
  if isinstance(value, os.PathLike) and PATH in rules:
    value = os.fspath(value)
  if isinstance(value, str):
    if PATH in rules:
      value = paths.expand_home(value)
    if invalid := NO_TEXT.search(value):
      raise InputError(
        field,
        f'the invalid character U+{ord(invalid[0]):04X} at index {invalid.start()}',
        'give text in UTF-8',
      )
    if kind in _NUMBERS and len(value) < _MAX_DIGITS and _NUMBERS[kind].fullmatch(value):
      value = kind(value)
  if isinstance(value, int) and value.bit_length() > _MAX_BITS:
    raise InputError(
      field, f'a whole number of more than {_MAX_BITS} bits', 'give a smaller number'
    )
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
    raise InputError(
      f'{field} as {kind.__name__}',
      f'{value!r} ({type(value).__name__})',
      f'give a value of type {kind.__name__}',
    )
  return value


def as_dict(config: Any) -> dict[str, Any]:
  """Returns a configuration as plain data; `resolve` is the inverse."""
  return dataclasses.asdict(config)


def allow_modules(names: str | Sequence[str]) -> None:
  """Allows `import_class` to import modules: a list, or text with commas.

  A class, as in `package.module:Class`, is ignored.
  """
  names = names if isinstance(names, str) else ','.join(names)
  modules = (name.partition(':')[0].strip() for name in names.split(','))
  _trusted_modules.update(filter(None, modules))


def list_allowed_modules() -> str:
  """Returns the allowed modules separated by commas, to pass them to a child process."""
  return ','.join(sorted(_trusted_modules))


def import_class(name: str) -> Any:
  """Imports the class `package.module:Class` from `sys.path` or the working directory.

  Raises:
    InputError: the module is not allowed, does not exist, cannot be imported, or lacks the class.
  """
  module_name, _, attribute = name.partition(':')
  subject = f'the encoder {name}'
  if module_name not in _trusted_modules:
    raise InputError(
      f'{subject} of a stored recipe',
      f'{module_name} is a program that is not trusted',
      f'read {module_name}; if it is safe to run, give --trust={module_name}, '
      f'or trust={module_name!r} in Python',
    )
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # last, so that files there do not shadow libraries
  try:
    module = importlib.import_module(module_name)
  except RECIPE_ERRORS as error:
    if isinstance(error, ModuleNotFoundError) and f'{module_name}.'.startswith(f'{error.name}.'):
      raise _describe_missing_module(subject, module_name, str(error.name)) from None
    raise describe_import_error(subject, f'import {module_name}', error) from None
  if attribute not in vars(module):
    classes = [
      key
      for key, value in vars(module).items()
      if isinstance(value, type) and value.__module__ == module_name
    ]
    raise InputError(
      subject,
      # A notebook has no file.
      f'no {attribute} in {getattr(module, "__file__", None) or module_name}',
      suggest_name(attribute, classes),
    )
  return getattr(module, attribute)


def _describe_missing_module(subject: str, module: str, missing: str) -> InputError:
  package = sys.modules[missing.rpartition('.')[0]] if '.' in missing else None
  paths = ', '.join(getattr(package, '__path__', ()))
  root = module.partition('.')[0]
  folder = pathlib.Path.cwd() / root
  if paths and folder.is_dir() and not _is_package_folder(root, folder):
    remedy = f'rename the folder {root}, because another package has this name'
  else:
    remedy = f'run the command in the folder that contains {root}, or add that folder to PYTHONPATH'
  return InputError(
    subject, f'no module {missing} in {paths or f"{os.getcwd()} or on PYTHONPATH"}', remedy
  )


def _is_package_folder(root: str, folder: pathlib.Path) -> bool:
  """Returns whether the imported package `root` is this folder."""
  places = getattr(sys.modules.get(root), '__path__', ())
  return any(os.path.samefile(place, folder) for place in places if os.path.isdir(place))


def describe_import_error(subject: str, call: str, error: BaseException) -> InputError:
  """Returns an exception of custom code as an InputError with the call, the file and the line."""
  frames = traceback.extract_tb(error.__traceback__)
  frame = ([f for f in frames if not _LIBRARY_FRAME.search(f.filename)] or frames)[-1]
  place = f'{os.path.basename(frame.filename)}, line {frame.lineno}'
  return InputError(
    subject,
    f'{call} raises {type(error).__name__} ({place}): {" ".join(str(error).split())[:500]}',
    f'fix {os.path.basename(frame.filename)}',
  )
