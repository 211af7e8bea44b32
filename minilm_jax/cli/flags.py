"""The command line of one command: its recipes, changed fields, flags and free arguments.

A flag is written `--name=value` or `--name value`, with one dash or two; a flag without a value is
true. `--config=FILE[:argument]` names a recipe, and `--config.a.b=value` changes a field of it.
Names are never abbreviated.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minilm_jax.core import recipe, schema
from minilm_jax.core.corpus_config import SPLITS
from minilm_jax.core.errors import InputError, suggest_name


@dataclasses.dataclass(frozen=True)
class Flag:
  """Type, default and help of a flag; `choices` are for completion, its command checks them."""

  kind: type
  default: Any
  help: str
  choices: tuple[str, ...] = ()


FLAGS: Mapping[str, Flag] = types.MappingProxyType(
  {
    'workdir': Flag(str, '', 'directory that the command writes to'),
    'beam': Flag(str, '', 'filter by Apache Beam: its options, as in --runner=DirectRunner'),
    'checkpoint': Flag(str, '', 'a pre-training run; its latest checkpoint'),
    'from': Flag(str, '', 'folder: config.json, model.safetensors, tokenizer.json or vocab.txt'),
    'from_scratch': Flag(bool, False, 'fresh weights of the shape of the checkpoint, a control'),
    'with_scratch': Flag(bool, False, 'also fresh weights, paired with checkpoints by seed'),
    'json': Flag(bool, False, 'print one JSON object'),
    'text': Flag(str, '', 'the text; of fill-mask with <mask> in it'),
    'best': Flag(int, 5, 'guesses for each <mask>'),
    'split': Flag(str, 'validation', 'split of the corpus', SPLITS),
    'corpus': Flag(str, '', 'corpus folder; that of the run if not given'),
    'rows': Flag(int, 0, 'first rows of the training split in a random order; 0: all'),
    'shuffle_seed': Flag(int, 0, 'seed of the random order, as subset.shuffle_seed'),
    'select_by': Flag(str, 'overlap', 'order of the rows', ('overlap', 'likelihood', 'random')),
    'num_parts': Flag(int, 3, 'parts of equal tokens, from the lowest scores to the highest'),
    'size': Flag(int, 0, 'tokens of a part, 0: as many as fit; latency: members, 5 if not given'),
    'pairs': Flag(str, '', 'minimal pairs: table with sentence_good and sentence_bad, or a folder'),
    'pll_variant': Flag(
      str,
      'within-word',
      'within-word also masks the rest of the word; original masks one token',
      ('within-word', 'original'),
    ),
    'attention': Flag(bool, False, 'attention of each head, also of RUN@STEP and RUN@all'),
    'population': Flag(str, '', 'time populations of these sizes and solo runs, as in 1,2,4,8'),
    'coordinator': Flag(str, '', 'host:port of process 0; auto asks SLURM, Open MPI or Cloud TPU'),
    'processes': Flag(int, None, 'number of processes, each with the devices of its host'),
    'process': Flag(int, None, 'index of this process, from 0'),
    'timeout': Flag(int, 300, 'seconds until all processes must arrive; heartbeat time-out too'),
    'member': Flag(int, 0, 'member of a population, from 0'),
    'language': Flag(str, 'reviews', 'film reviews, or a made language', ('microworld', 'reviews')),
    'steps': Flag(int, 10, 'updates of a measurement'),
    'repeats': Flag(int, 5, 'number of measurements'),
    'confusion': Flag(bool, False, 'also draw confusion matrices from logged predictions'),
    'logged': Flag(str, '', 'a table of evaluations, .csv or .csv.gz, instead; needs --workdir'),
    'bootstrap_samples': Flag(int, 1000, 'bootstrap samples of each interval'),
    'unfinished': Flag(bool, False, 'fit laws also to runs before the end of their schedule'),
    'base': Flag(str, '', 'runs of the base recipe, with commas between'),
    'preregistration': Flag(
      str, '', 'a recipe whose docstring, question and rules, opens the page'
    ),
    'plateau_loss': Flag(float, 0.0, 'nats of the plateau; estimated from the runs if not given'),
    'reference_losses': Flag(str, '', 'losses to draw, in nats, as in unigram=5.9,bigram=4.2'),
    'compare_with': Flag(
      str, '', 'also time the model in PyTorch, or fine-tuning by a Trainer', ('torch', 'hf')
    ),
    'shard': Flag(str, '', 'k/n: share k of n of the points, from 1, one a machine'),
    'dry_run': Flag(bool, False, 'print size, work, memory and time of the points; train nothing'),
    'tokens': Flag(float, 0.0, 'budget of a member in tokens, in place of num_steps'),
    'flops': Flag(float, 0.0, 'budget of a member in FLOPs, in place of num_steps'),
    'seconds': Flag(float, 0.0, 'budget of a point in seconds, by a short measurement'),
    'deterministic': Flag(bool, False, 'same bits each time on a GPU too, at an unknown cost'),
    'members': Flag(str, '', 'classifiers of --config.save_classifiers, with commas and stars'),
    'committee': Flag(str, '', 'a folder that minilm committee made'),
    'classifier': Flag(str, '', 'one classifier of --config.save_classifiers instead'),
    'text_pair': Flag(str, '', 'the second text, of tasks on pairs'),
    'file': Flag(str, '', '.jsonl, .csv, .tsv or .parquet with the columns of the task instead'),
    'num_calls': Flag(int, 100, 'timed answers of each model'),
    'heads': Flag(int, 0, 'also one encoder with so many heads, the cheap control of a committee'),
    'profile': Flag(str, '', 'updates that the JAX profiler records, as in 100:110'),
    'follow': Flag(bool, False, 'draw again as the runs grow, until all have ended'),
    'axis': Flag(str, 'step', 'horizontal axis', ('step', 'tokens', 'flops', 'seconds')),
    'format': Flag(
      str, '', 'a folder for transformers, a program, or a card', ('hf', 'stablehlo', 'card')
    ),
    'batch': Flag(int, 0, 'rows of every call of a stablehlo program; 0: any number if possible'),
    'trust': Flag(str, '', 'modules that a stored recipe may import, as in package.module'),
    'topology': Flag(str, '', 'chip and arrangement, as in v5e:2x4'),
  }
)
_MAX_DIGITS = 19  # fewer than a number of 64 bits may have
_BOOLEANS = {'true': True, 't': True, '1': True, 'false': False, 'f': False, '0': False}


class FlagValues(types.SimpleNamespace):
  """The values of the flags of a command by name, defaults included."""

  present: frozenset[str]  # names of the flags on the command line


Handler = Callable[[Any, FlagValues, Sequence[str]], None]


@dataclasses.dataclass(frozen=True)
class Command:
  """One command: its function, its help, and its arguments.

  Attributes:
    run: called with the configuration, the flags and the free arguments.
    summary: one line for the overview.
    reads: what the command reads, for its help.
    writes: what it writes and prints, for its help.
    example: arguments that are understood.
    flags: names in `FLAGS`; those with a star are required.
    kinds: kinds of recipe that it reads; () reads none.
    takes_paths: it takes arguments that are no flags.
    takes_names: `--config=FILE:one,other` gives several recipes by name, `FILE:all` every run.
    all_by_default: FILE alone is every run.
    alternative_flag: a flag that replaces the recipe.
  """

  run: Handler
  summary: str
  reads: str
  writes: str
  example: str
  flags: tuple[str, ...] = ()
  kinds: tuple[str, ...] = ()
  takes_paths: bool = False
  takes_names: bool = False
  all_by_default: bool = False
  alternative_flag: str = ''


def parse_numbers(flag: str, text: str) -> list[int]:
  """Returns the whole numbers of a flag with commas between; raises InputError for anything else."""
  words = [word.strip() for word in text.split(',')]
  if not all(word.isdecimal() and len(word) < _MAX_DIGITS for word in words):
    raise InputError(
      f'--{flag}={text}',
      'not whole numbers with commas between',
      f'give some, as in --{flag}=1,2,4,8',
    )
  return [int(word) for word in words]


def parse_arguments(
  name: str, command: Command, arguments: Sequence[str]
) -> tuple[Any, FlagValues, Sequence[str]]:
  """Returns the configuration, the flags and the free arguments of a command line.

  The configuration is None without a recipe, and a dict by name if the command takes names.

  Raises:
    InputError: a flag, field or recipe is missing or invalid.
  """
  for argument in arguments:
    if invalid := schema.NO_TEXT.search(argument):
      raise InputError(
        f'the argument {argument!r} of minilm {name}',
        f'U+{ord(invalid[0]):04X}, which is no text',
        'give text in UTF-8, and paths that are',
      )
  paths, words = _take_recipes(arguments) if command.kinds else ([], list(arguments))
  alternative = f'--{command.alternative_flag}'
  if not command.kinds or (
    command.alternative_flag and not paths and any(word.startswith(alternative) for word in words)
  ):
    values, free, _ = _parse_words(name, command, words, {})
    return None, values, free
  if not any(paths):
    raise _missing(name, command, '--config=RECIPE')
  if command.takes_names:
    return _parse_each(name, command, paths[-1], words)
  return _parse_recipe(name, command, paths[-1], words)


def _missing(name: str, command: Command, flag: str) -> InputError:
  return InputError(f'minilm {name}', f'no {flag}', f'for example: minilm {name} {command.example}')


def _take_recipes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns what --config names, and the other arguments."""
  paths, others, words = [], [], iter(arguments)
  for word in words:
    flag, has_value, path = word.partition('=')
    if flag in ('--config', '-config'):
      paths.append(path if has_value else next(words, ''))
    else:
      others.append(word)
  return paths, others


def _parse_each(
  name: str, command: Command, path: str, words: Sequence[str]
) -> tuple[dict[str, Any], FlagValues, Sequence[str]]:
  """Parses the same words with each recipe that a path such as `FILE:one,other` names."""
  file, _, argument = path.partition(':')
  if not argument and command.all_by_default:
    argument = 'all'
  names = recipe.expand_names(file, argument) if argument else []
  paths = {run: f'{file}:{run}' for run in names} or {file: path}
  configs, values, free = {}, FlagValues(), []
  for run, run_path in paths.items():
    try:
      configs[run], values, free = _parse_recipe(name, command, run_path, words)
    except InputError as error:
      if len(paths) == 1:
        raise
      raise InputError(f'{run}: {error.asked}', error.found, error.remedy) from None
  return configs, values, free


def _parse_recipe(
  name: str, command: Command, path: str, words: Sequence[str]
) -> tuple[Any, FlagValues, Sequence[str]]:
  source = recipe.load(path)
  fields = recipe.list_fields(source)
  values, free, changes = _parse_words(name, command, words, fields)
  tree = recipe.override_fields(source, changes)
  source_kind = fields.get('kind')
  kind = source_kind if source_kind in command.kinds else command.kinds[0]
  config = recipe.resolve(tree, kind)
  if kind == 'pretrain':
    recipe.allow_modules(config.model.encoder)  # the user started the recipe, which is code too
  return config, values, free


def _parse_words(
  name: str, command: Command, words: Sequence[str], fields: Mapping[str, Any]
) -> tuple[FlagValues, list[str], dict[str, Any]]:
  """Returns the flags, the free arguments, and the changed fields of a recipe with these fields."""
  flags = {flag.rstrip('*'): FLAGS[flag.rstrip('*')] for flag in command.flags}
  values: dict[str, Any] = {}
  changes: dict[str, Any] = {}
  free: list[str] = []
  remaining = iter(words)
  for word in remaining:
    if not word.startswith('-'):
      free.append(word)
      continue
    flag, has_value, text = word.removeprefix('-').removeprefix('-').partition('=')
    field = flag.removeprefix('config.') if fields and flag.startswith('config.') else ''
    if field:
      kind = type(recipe.find_field(fields, field))
    elif flag in flags:
      kind = flags[flag].kind
    else:
      raise InputError(
        f'the flag --{flag}', f'minilm {name} has no such flag', suggest_name(flag, flags)
      )
    if not has_value:
      text = 'true' if kind is bool else next(remaining, '')
      if not text:
        raise InputError(f'--{flag}', 'no value after it', f'see minilm {name} --help')
    if not field:
      values[flag] = _convert(f'--{flag}={text}', text, kind)
    else:  # `recipe.resolve` converts numbers by the declared type
      changes[field] = _convert(f'--{flag}={text}', text, bool) if kind is bool else text
  _check_words(name, command, values, free)
  defaults = {flag: declared.default for flag, declared in flags.items()}
  options = FlagValues(**defaults | values, present=frozenset(values))
  if 'trust' in flags:
    recipe.allow_modules(options.trust)
  return options, free, changes


def _check_words(
  name: str, command: Command, values: Mapping[str, Any], free: Sequence[str]
) -> None:
  if free and not command.takes_paths:
    raise InputError(
      f'minilm {name} {" ".join(free)}',
      f'{free[0]!r} is no flag',
      'give every value after its flag, as in --flag=value, and quote what has spaces or stars',
    )
  for flag in command.flags:
    if flag.endswith('*') and not values.get(flag[:-1]):
      raise _missing(name, command, f'--{flag[:-1]}')


def _convert(asked: str, text: str, kind: type) -> Any:
  """Returns the value of a flag of type str, bool, int or float."""
  try:
    return _BOOLEANS[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    raise InputError(
      asked, f'a value that is no {kind.__name__}', f'give a value of type {kind.__name__}'
    ) from None
