"""Entry point of `minilm`: runs a command and returns its exit status.

    minilm COMMAND --config=configs/x.py[:argument] --workdir=runs/x [--config.a.b=value]

Results go to standard output, progress and errors to standard error.

| status | reason |
|---|---|
| 0 | the command finished |
| 2 | the input is invalid, a file cannot be written, or a process of the run was lost |
| 129, 130, 138, 143 | SIGHUP, SIGINT, SIGUSR1 or SIGTERM; training saves first |

JAX is imported after the command line is checked, so that `--help` and refusals are fast.
"""

import os
import signal
import sys
from collections.abc import Sequence

from absl import logging as absl_logging

from minilm_jax import __version__
from minilm_jax.cli import flags, streams
from minilm_jax.cli.commands import COMMANDS, format_command, format_overview
from minilm_jax.core import distributed, signals
from minilm_jax.core.errors import InputError, check_name

_INPUT_ERROR_STATUS = 2
# The parts of device-check need the accelerator, so that its own process leaves it alone.
_COMMANDS_WITHOUT_JAX = ('corpus', 'report', 'ablations', 'watch', 'completion', 'device-check')


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command and returns the exit status; `arguments` defaults to those of the process."""
  name, *words = (sys.argv[1:] if arguments is None else arguments) or ['--help']
  with streams.prepare_streams():
    return _run_safely(name, words)


def _run_safely(name: str, words: Sequence[str]) -> int:
  """Runs a command, and returns the exit status of its result or error."""
  try:
    with signals.raise_on_signals():
      _run(name, words)
  except InputError as error:
    _print_error(error)
    if isinstance(error, distributed.DistributedError):  # all processes raise it and exit normally
      return _INPUT_ERROR_STATUS
    return distributed.exit_now(_INPUT_ERROR_STATUS)
  except BrokenPipeError:  # the reader of standard output, such as `head`, has exited
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
  except (OSError, ImportError, RuntimeError, AssertionError) as error:
    fault = _explain_error(name, error)
    if fault is None:
      raise
    _print_error(fault)
    return distributed.exit_now(_INPUT_ERROR_STATUS)
  except KeyboardInterrupt as error:
    interrupt = (
      error if isinstance(error, signals.Interrupted) else signals.Interrupted(signal.SIGINT)
    )
    _print_error(interrupt)
    if isinstance(interrupt, signals.InterruptedAfterSave):
      return interrupt.status
    return distributed.exit_now(interrupt.status)
  return 0


def _run(name: str, words: Sequence[str]) -> None:
  if name in ('--help', '-h', 'help'):
    names = [word for word in words if not word.startswith('-')]
    for word in names:
      check_name(f'minilm {word}', 'command', word, COMMANDS)
    print('\n\n'.join(map(format_command, names)) or format_overview())
  elif name == '--version':
    print(f'minilm_jax {__version__}')
  else:
    check_name(f'minilm {name}', 'command', name, COMMANDS)
    if '--help' in words or '-h' in words:
      print(format_command(name))
    else:
      _run_command(name, words)
  sys.stdout.flush()


def _run_command(name: str, words: Sequence[str]) -> None:
  config, options, paths = flags.parse_arguments(name, COMMANDS[name], words)
  if name not in _COMMANDS_WITHOUT_JAX:
    from minilm_jax.core import backend

    backend.prepare(getattr(options, 'deterministic', False))
  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs every checkpoint
  COMMANDS[name].run(config, options, paths)


def _explain_error(name: str, error: Exception) -> InputError | None:
  """Returns the fault of the system behind an exception; None for an error of the program."""
  if isinstance(error, OSError):
    return InputError(
      f'minilm {name}',
      f'{type(error).__name__}: {error}',
      'free disk space or fix the path, then repeat the command to resume',
    )
  if isinstance(error, ImportError):
    is_google = 'gcsfs' in str(error)
    if not is_google and ' to access ' not in str(error):  # fsspec names the library of a bucket
      return None
    remedy = "run pip install 'minilm_jax[gcs]'" if is_google else 'give a local or gs:// path'
    return InputError(f'minilm {name} with the path of a bucket', str(error), remedy)
  if 'jax' not in sys.modules:
    return None
  from minilm_jax.core import backend

  return backend.find_device_fault()


def _print_error(error: InputError | signals.Interrupted) -> None:
  """Prints an error on standard error, in every process of a multi-process run."""
  print(error, file=sys.stderr, flush=True)
