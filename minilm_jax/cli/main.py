"""Entry point of `minilm`: chooses the command and turns its end into an exit status.

    minilm COMMAND --config=configs/x.py[:argument] --workdir=runs/x [--config.a.b=value]

Results go to standard output, progress to standard error. Invalid input ends with one error in
three parts and status 2. SIGINT ends with status 130 and SIGTERM with 143; a pre-training run is
saved before. Nothing heavy is imported before the command is known.
"""

import os
import signal
import sys
from collections.abc import Sequence

from absl import logging as absl_logging

from minilm_jax import __version__
from minilm_jax.cli import flags
from minilm_jax.cli.commands import COMMANDS, format_command, format_overview
from minilm_jax.core import distributed, signals
from minilm_jax.core.errors import InputError, suggest_name

_INPUT_ERROR_STATUS = 2
_WITHOUT_JAX = ('corpus', 'report', 'ablations', 'watch', 'completion')


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status."""
  name, *words = (sys.argv[1:] if arguments is None else arguments) or ['--help']
  try:
    with signals.raise_on_signals():
      _run(name, words)
  except InputError as error:
    _print_error(error)
    if isinstance(error, distributed.DistributedError):  # all processes end by themselves
      return _INPUT_ERROR_STATUS
    return distributed.exit_now(_INPUT_ERROR_STATUS)
  except BrokenPipeError:  # the reader of the output, such as `head`, has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
  except OSError as error:
    _print_error(
      InputError(
        f'minilm {name}',
        f'{type(error).__name__}: {error}',
        'free disk space, or give a usable path; the same command resumes from the files on disk',
      )
    )
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
    texts = [format_command(word) for word in words if word in COMMANDS]
    print('\n\n'.join(texts) or format_overview())
  elif name == '--version':
    print(f'minilm_jax {__version__}')
  elif name not in COMMANDS:
    raise InputError(f'minilm {name}', 'no such command', suggest_name(name, COMMANDS))
  elif '--help' in words or '-h' in words:
    print(format_command(name))
  else:
    config, options, paths = flags.parse_arguments(name, COMMANDS[name], words)
    if name not in _WITHOUT_JAX:
      from minilm_jax.core import backend

      backend.prepare(getattr(options, 'deterministic', False))
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs every checkpoint
    COMMANDS[name].run(config, options, paths)
  sys.stdout.flush()


def _print_error(error: InputError | signals.Interrupted) -> None:
  """Prints the end of a process; in a multi-process run each prints its own."""
  print(error, file=sys.stderr, flush=True)
