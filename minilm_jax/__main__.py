"""The verbs: read flags and recipe, call one function, print what it returns.

    minilm VERB --config=configs/x.py[:argument] --workdir=runs/x [--config.a.b=value]

Results go to standard output, progress to standard error. Input that cannot be used ends with one error in three parts
and status 2. Nothing heavy is imported before the verb is known.
"""

import dataclasses
import json
import operator
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging as absl_logging

from minilm_jax import progress, recipe
from minilm_jax.errors import InputError, nearest

_USAGE = 2  # exit status of input that cannot be used
_STOPPED = 130  # and of a run that was interrupted from the keyboard

FLAGS: dict[str, tuple[type, Any, str]] = {
    'workdir': (str, '', 'directory that the verb writes to'),
    'checkpoint': (str, '', 'a pre-training run; its latest checkpoint'),
    'from_scratch': (bool, False, 'fresh weights of the shape of the checkpoint: the control of every comparison'),
    'json': (bool, False, 'print one JSON object'),
    'text': (str, '', 'text with <mask> in it'),
    'best': (int, 5, 'guesses a hole'),
    'split': (str, 'validation', 'split of the corpus'),
    'corpus': (str, '', 'corpus folder; the one of the run if not given'),
    'language': (str, 'reviews', 'reviews (film reviews, real English) or microworld (nothing to download)'),
    'steps': (int, 10, 'updates timed at once'),
    'repeats': (int, 5, 'times that they are timed'),
}


def _corpus(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax.language import build
  print(build.build(config, flags.workdir))


def _show(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax import show
  described = show.describe(config)
  _print(described if flags.json else show.tables(described))


def _pretrain(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax.training import trainer
  _print(trainer.pretrain(config, flags.workdir))


def _finetune(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis import report
  from minilm_jax.tasks import finetune
  lines = finetune.finetune(config, flags.checkpoint, flags.workdir, flags.from_scratch)
  report.print_table(report.score_table(lines))


def _evaluate(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import evaluate
  _print(evaluate.evaluate(flags.checkpoint, flags.corpus, flags.split))


def _fill_mask(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import fill_mask
  guesses = [dataclasses.asdict(guess) for guess in fill_mask.fill_mask(flags.checkpoint, flags.text, flags.best)]
  if flags.json:
    _print({'guesses': guesses})
  else:
    for guess in guesses:
      print(f'{guess["hole"]}  {guess["probability"]:.4f}  {guess["piece"]}')


def _report(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis import report
  if not paths:
    raise InputError('a report', 'no run directory', 'give one or more: minilm report runs --workdir=runs/report')
  for path in report.report(paths, flags.workdir).values():
    print(path)


def _bench(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax import bench
  _print(bench.bench(config, flags.steps, flags.repeats))


def _quickstart(config: Any, flags: Any, paths: Sequence[str]) -> None:
  from minilm_jax import quickstart
  quickstart.quickstart(flags.language, flags.workdir)


@dataclasses.dataclass(frozen=True)
class Verb:
  """One verb: what it does, the kinds of recipe it reads, its flags (those with a star must be given), an example."""

  run: Callable[[Any, Any, Sequence[str]], None]
  summary: str
  kinds: tuple[str, ...]
  flags: tuple[str, ...]
  example: str
  paths: bool = False  # does it take arguments that are no flags?


VERBS = {
    'corpus': Verb(_corpus, 'text to rows', ('corpus',), ('workdir*',),
                   "--config=configs/corpus.py --config.documents.sources='text/*.txt.xz' --workdir=corpora/honey"),
    'show': Verb(_show, 'what a recipe means: fields, parameters, FLOPs, memory; runs nothing',
                 ('pretrain', 'finetune', 'corpus'), ('json',), '--config=configs/honey.py:magic-bee-26 --json'),
    'pretrain': Verb(_pretrain, 'masked language modelling', ('pretrain',), ('workdir*',),
                     '--config=configs/tiny.py --workdir=runs/tiny'),
    'finetune': Verb(_finetune, 'a checkpoint on a task, several seeds', ('finetune',),
                     ('workdir*', 'checkpoint*', 'from_scratch'), '--config=configs/glue.py:cola '
                     '--config.task.data_dir=TFDS --checkpoint=runs/tiny --workdir=runs/cola'),
    'evaluate': Verb(_evaluate, 'the masked-token loss of a checkpoint', (), ('checkpoint*', 'corpus', 'split'),
                     '--checkpoint=runs/tiny --split=test'),
    'fill-mask': Verb(_fill_mask, 'guesses for each <mask> of a text', (), ('checkpoint*', 'text*', 'best', 'json'),
                      "--checkpoint=runs/tiny --text='the dog <mask> a bone .'"),
    'report': Verb(_report, 'tables, figures and an HTML page from run directories', (), ('workdir*',),
                   'runs --workdir=runs/report', paths=True),
    'bench': Verb(_bench, 'time the training step of a recipe on this machine', ('pretrain',), ('steps', 'repeats'),
                  '--config=configs/honey.py:magic-bee-26 --config.batch_size=64'),
    'quickstart': Verb(_quickstart, 'all of it, small', (), ('language', 'workdir*'),
                       '--language=microworld --workdir=runs/quickstart'),
}


def _print(result: Any) -> None:
  if isinstance(result, dict):
    print(json.dumps(result, indent=2))
    return
  from rich import console
  for table in result:
    console.Console().print(table)


def _usage(name: str | None = None) -> str:
  if name is None:
    verbs = [f'  {name:<11} {verb.summary}' for name, verb in VERBS.items()]
    return '\n'.join(['usage: minilm VERB [--flag=value ...]', '', *verbs, '', 'minilm VERB --help tells more.'])
  verb = VERBS[name]
  lines = [f'minilm {name}: {verb.summary}', '', f'  minilm {name} {verb.example}', '']
  if verb.kinds:
    lines.append(f'  --config        a recipe of kind {" or ".join(verb.kinds)}; --config.FIELD=VALUE changes a field')
  for flag in verb.flags:
    kind, default, help_text = FLAGS[flag.rstrip('*')]
    note = 'must be given' if flag.endswith('*') else repr(default)
    lines.append(f'  --{flag.rstrip("*"):<14}{help_text} ({note})')
  return '\n'.join(lines)


def _read(name: str, arguments: Sequence[str]) -> tuple[Any, Any, Sequence[str]]:
  """The configuration, the flags and the free arguments of a verb."""
  from absl import flags as absl_flags
  from ml_collections import config_flags
  verb, values = VERBS[name], absl_flags.FlagValues()
  for flag in (flag.rstrip('*') for flag in verb.flags):
    kind, default, help_text = FLAGS[flag]
    define = {str: absl_flags.DEFINE_string, bool: absl_flags.DEFINE_bool, int: absl_flags.DEFINE_integer}[kind]
    define(flag, default, help_text, flag_values=values)
  chosen, rest = _recipes(arguments) if verb.kinds else ([], list(arguments))
  source = None
  try:
    if verb.kinds:
      if not any(chosen):
        raise InputError(f'minilm {name}', 'no --config=RECIPE', f'for example: minilm {name} {verb.example}')
      source = recipe.load(chosen[-1])
      _check_overrides(rest, recipe.fields(source))
      config_flags.DEFINE_config_dict('config', source, flag_values=values, sys_argv=rest)
    free = values(['minilm', *rest])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    raise InputError(f'the flag --{error.flagname}', f'minilm {name} has no such flag',
                     nearest(error.flagname, values)) from None
  except absl_flags.IllegalFlagValueError as error:
    raise _ill_typed(str(error), source) from None
  except (absl_flags.Error, TypeError, ValueError) as error:
    raise InputError(f'the flags of minilm {name}', str(error), f'see minilm {name} --help') from None
  if free and not verb.paths:
    raise InputError(f'minilm {name} {" ".join(free)}', f'{free[0]!r} is no flag',
                     'give every value after its flag, as in --flag=value, and quote what has spaces or stars')
  for flag in verb.flags:
    if flag.endswith('*') and not values[flag[:-1]].value:
      raise InputError(f'minilm {name}', f'no --{flag[:-1]}', f'for example: minilm {name} {verb.example}')
  if source is None:
    return None, values, free
  kind = next((kind for kind in verb.kinds if 'kind' in source and source.kind == kind), verb.kinds[0])
  return recipe.resolve(values.config, kind), values, free


def _recipes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """What --config names, after '=' or a space, and the other arguments; `-config` is `--config`."""
  chosen, rest, words = [], [], (f'-{word}' if word.startswith('-config') else word for word in arguments)
  for word in words:
    if word == '--config' or word.startswith('--config='):
      chosen.append(word.partition('=')[2] if '=' in word else next(words, ''))
    else:
      rest.append(word)
  return chosen, rest


def _ill_typed(said: str, source: Any) -> InputError:
  """From absl's words, which begin 'flag --name=value: ', to ours."""
  flag = said.removeprefix('flag ').partition(': ')[0]
  group, _, path = flag.removeprefix('--').partition('=')[0].partition('.')
  kind = (type(operator.attrgetter(path)(source)) if path else FLAGS[group][0]).__name__
  if kind == 'ConfigDict':
    return InputError(flag, 'a group of fields', 'give its fields one by one')
  return InputError(flag, f'a value that is no {kind}', f'give a value of type {kind}')


def _check_overrides(arguments: Sequence[str], known: Sequence[str]) -> None:
  for argument in arguments:
    field = argument.partition('=')[0].removeprefix('--config.')
    if argument.startswith('--config.') and field not in known:
      raise InputError(f'the field {field}', 'no such field in this recipe', nearest(field, known))


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  name = arguments[0] if arguments else '--help'
  try:
    if name in ('--help', '-h', 'help'):
      print(_usage())
      return 0
    if name not in VERBS:
      raise InputError(f'minilm {name}', 'no such verb', nearest(name, VERBS))
    if '--help' in arguments or '-h' in arguments:
      print(_usage(name))
      return 0
    inputs = _read(name, arguments[1:])
    absl_logging.set_verbosity(absl_logging.ERROR)  # of libraries that tell each checkpoint's history
    VERBS[name].run(*inputs)
    sys.stdout.flush()
  except InputError as error:
    progress.say(str(error))
    return _USAGE
  except BrokenPipeError:  # who read our output, such as `head`, has left; Python would complain once more at its exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except OSError as error:
    found = f'{type(error).__name__}: {error}'
    progress.say(str(InputError(f'minilm {name}', found, 'make room, or give a path that can be used')))
    return _USAGE
  except KeyboardInterrupt:
    progress.say('stopped; the same command goes on from the last checkpoint')
    return _STOPPED
  return 0


if __name__ == '__main__':
  sys.exit(main())
