"""Code that a recipe names: who has said that it may run, and where it is found.

`config.model.encoder` names a class of somebody's file. A recipe that is given by its path is code already, so the
door trusts what it names. A recipe that a run has stored is data, maybe of a stranger: what it names is imported only
where its reader has said so, by `--trust=package.module` or `minilm_jax.load(run, trust='package.module')`. Modules are
trusted one by one, by their whole name; a module that was trusted stays so to the end of the process.
"""

import importlib
import os
import re
import sys
import traceback
from typing import Any

from minilm_jax import recipe
from minilm_jax.errors import InputError, nearest

_LIBRARY = re.compile(r'[\\/](site|dist)-packages[\\/]|^<')  # a line there tells nobody what to mend
_trusted: set[str] = set()


def allow(names: str) -> None:
  """Lets modules be imported: `package.module` or `package.module:Class`, several with commas between; '' is none."""
  _trusted.update(filter(None, (name.partition(':')[0].strip() for name in names.split(','))))


def allowed() -> str:
  """The modules that may be imported, as `allow` takes them: for a process that this one starts."""
  return ','.join(sorted(_trusted))


def find(name: str) -> Any:
  """What `package.module:Class` names, imported from the working directory or from Python's path.

  Raises:
    InputError: nobody has said that its code may run; there is no such module, or nothing of that name in it; or it
      cannot be imported.
  """
  module, _, attribute = name.partition(':')
  what = f'the encoder {name}'
  if module not in _trusted:
    raise InputError(f'{what}, which a stored recipe names', f'{module} is code, may do anything, and is not trusted',
                     f'read it; if you would start it as a program, give --trust={module}, in Python trust={module!r}')
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # last, so that nothing there takes the place of a library
  try:
    found = importlib.import_module(module)
  except recipe.FAULTS as error:
    absent = isinstance(error, ModuleNotFoundError) and f'{module}.'.startswith(f'{error.name}.')
    raise (_absent(what, module, error.name) if absent else broken(what, f'import {module}', error)) from None
  if attribute not in vars(found):
    there = [key for key, value in vars(found).items() if isinstance(value, type) and value.__module__ == module]
    raise InputError(what, f'no {attribute} in {found.__file__}', nearest(attribute, there))
  return getattr(found, attribute)


def _absent(what: str, module: str, missing: str) -> InputError:
  package = sys.modules[missing.rpartition('.')[0]] if '.' in missing else None
  looked = ', '.join(getattr(package, '__path__', ())) or f'{os.getcwd()} and on the path of Python'
  return InputError(what, f'no module {missing} in {looked}',
                    f'start in the folder that holds {module.partition(".")[0]}, or put that on PYTHONPATH')


def broken(what: str, call: str, error: BaseException) -> InputError:
  """What a stranger's code has raised, as an error of the input: which call, what, and where."""
  frames = traceback.extract_tb(error.__traceback__)
  theirs = [frame for frame in frames if not _LIBRARY.search(frame.filename)]
  frame = (theirs or frames)[-1]
  where = f'{os.path.basename(frame.filename)}, line {frame.lineno}'
  return InputError(what, f'{call} gives {type(error).__name__} ({where}): {" ".join(str(error).split())[:500]}',
                    'mend the file')
