"""The door: which verb, its flags and recipe, and with which status it ends.

    minilm VERB --config=configs/x.py[:argument] --workdir=runs/x [--config.a.b=value]

Results go to standard output, progress to standard error. Input that cannot be used ends with one
error in three parts and status 2. SIGINT ends with 130 and SIGTERM with 143, a run that is being
trained after it was saved. Nothing heavy is imported before the verb is known.
"""

import os
import signal
import sys
from collections.abc import Sequence

from absl import logging as absl_logging

from minilm_jax import __version__
from minilm_jax.cli import commands, flags
from minilm_jax.cli.commands import COMMANDS
from minilm_jax.core import distributed, signals
from minilm_jax.core.errors import InputError, suggest_name

_USAGE = 2  # exit status of input that cannot be used


def _say(why: InputError | signals.Interrupted) -> None:
  """Why it ends: that each of several processes says for itself."""
  print(why, file=sys.stderr, flush=True)


def _run(name: str, arguments: Sequence[str]) -> None:
  if name in ('--help', '-h', 'help'):
    print(
      '\n\n'.join(
        commands.format_command(verb, COMMANDS[verb]) for verb in arguments if verb in COMMANDS
      )
      or commands.format_overview(COMMANDS)
    )
  elif name == '--version':
    print(f'minilm_jax {__version__}')
  elif name not in COMMANDS:
    raise InputError(f'minilm {name}', 'no such verb', suggest_name(name, COMMANDS))
  elif '--help' in arguments or '-h' in arguments:
    print(commands.format_command(name, COMMANDS[name]))
  else:
    inputs = flags.parse_arguments(name, COMMANDS[name], arguments)
    if name not in ('corpus', 'report', 'ablations', 'watch', 'completion'):  # they do without JAX
      from minilm_jax.core import backend

      backend.prepare('deterministic' in inputs[1] and inputs[1].deterministic)
    # libraries tell each checkpoint's history; what fails, we say
    absl_logging.set_verbosity(absl_logging.FATAL)
    COMMANDS[name].run(*inputs)
  sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status."""
  name, *rest = (sys.argv[1:] if arguments is None else arguments) or ['--help']
  try:
    with signals.raise_on_signals():
      _run(name, rest)
  except InputError as error:
    _say(error)
    return (
      _USAGE if isinstance(error, distributed.DistributedError) else distributed.exit_now(_USAGE)
    )
  except (
    BrokenPipeError
  ):  # who read our output, such as `head`, has left; Python would complain once more at its exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except OSError as error:
    found = f'{type(error).__name__}: {error}'
    _say(
      InputError(
        f'minilm {name}',
        found,
        'make room, or give a path that can be used; the same command goes on from what is on disk',
      )
    )
    return distributed.exit_now(_USAGE)
  except KeyboardInterrupt as error:
    ended = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signal.SIGINT)
    _say(ended)
    return (
      ended.status
      if isinstance(ended, signals.InterruptedAfterSave)
      else distributed.exit_now(ended.status)
    )
  return 0
