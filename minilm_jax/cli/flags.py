"""Parses the command line of a command: recipes, recipe fields, flags and paths.

Flags are written `--name=value` or `--name value`, with one or two dashes; a boolean flag needs no
value. `--config=FILE[:argument]` names a recipe, and `--config.a.b=value` changes a field.
Abbreviated names are refused.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minilm_jax.core import recipe
from minilm_jax.core.corpus_config import SPLITS
from minilm_jax.core.errors import NO_TEXT, InputError, suggest_name
from minilm_jax.core.paths import expand_home, split_step


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag; the command itself checks the choice.

  Attributes:
    kind: type of the value.
    default: value without the flag.
    help: description, for the help.
    choices: accepted values; () accepts all values.
    is_path: whether the value names files or folders, so that a leading `~` is expanded.
    is_list: whether the value names several of them, so that a repeated flag adds to the value.
  """

  kind: type
  default: Any
  help: str
  choices: tuple[str, ...] = ()
  is_path: bool = False
  is_list: bool = False


FLAGS: Mapping[str, Flag] = types.MappingProxyType(
  {
    'workdir': Flag(str, '', 'directory for the output', is_path=True),
    'beam': Flag(
      str, '', 'options of Apache Beam, which then filters: --beam=--runner=DirectRunner'
    ),
    'checkpoint': Flag(
      str,
      '',
      'run directory of pre-training; its latest checkpoint is used',
      is_path=True,
      is_list=True,
    ),
    'from': Flag(
      str, '', 'folder: config.json, model.safetensors, tokenizer.json or vocab.txt', is_path=True
    ),
    'init_from': Flag(
      str,
      '',
      'run whose weights a new run starts with; RUN@STEP selects a checkpoint',
      is_path=True,
    ),
    'init_optimizer': Flag(bool, False, 'also start with the moments of the optimizer'),
    'from_scratch': Flag(bool, False, 'start from random weights instead, as a control'),
    'with_scratch': Flag(bool, False, 'also start from random weights, with the same seeds'),
    'json': Flag(bool, False, 'print the result as JSON'),
    'text': Flag(str, '', 'text in quotes'),
    'best': Flag(int, 5, 'number of pieces printed for each <mask>'),
    'split': Flag(str, 'validation', 'split of the corpus', SPLITS),
    'corpus': Flag(str, '', 'corpus folder, the output of minilm corpus', is_path=True),
    'rows': Flag(int, 0, 'number of training rows, in a fixed random order; 0 takes all'),
    'shuffle_seed': Flag(int, 0, 'seed of the random order of rows, 0 by default'),
    'select_by': Flag(
      str, 'overlap', 'score that orders the rows', ('overlap', 'likelihood', 'random')
    ),
    'num_parts': Flag(int, 3, 'number of subsets, from the lowest to the highest scores'),
    'size': Flag(int, 0, 'tokens of a subset; 0 takes the maximum'),
    'pairs': Flag(
      str,
      '',
      'minimal pairs: a table with sentence_good and sentence_bad, or a folder',
      is_path=True,
    ),
    'pll_variant': Flag(
      str,
      'within-word',
      'pseudo-log-likelihood: mask a token and the rest of its word, or the token alone',
      ('within-word', 'original'),
    ),
    'attention': Flag(bool, False, 'attention of each head; --checkpoint also takes RUN@all'),
    'population': Flag(str, '', 'also time populations of these sizes, such as 1,2,4,8'),
    'coordinator': Flag(
      str, '', 'HOST:PORT of process 0; auto detects SLURM, Open MPI and Cloud TPU'
    ),
    'processes': Flag(
      int, None, 'number of processes of the run; each uses the devices of its host'
    ),
    'process': Flag(int, None, 'index of this process, from 0'),
    'timeout': Flag(int, 300, 'seconds to wait for all processes; also the heartbeat time-out'),
    'member': Flag(int, 0, 'index of the member, from 0, the default'),
    'language': Flag(str, 'reviews', 'text to learn', ('microworld', 'reviews')),
    'steps': Flag(int, 10, 'updates in a timed block'),
    'repeats': Flag(int, 5, 'number of timed blocks'),
    'confusion': Flag(bool, False, 'draw confusion matrices from logged predictions'),
    'logged': Flag(
      str,
      '',
      'table of evaluations (.csv, .csv.gz) in place of runs; needs --workdir',
      is_path=True,
    ),
    'bootstrap_samples': Flag(
      int, 1000, 'bootstrap samples for intervals of laws and correlations'
    ),
    'unfinished': Flag(bool, False, 'include unfinished runs in the fits of power laws'),
    'base': Flag(
      str,
      '',
      'run directories of the base recipe, separated by commas',
      is_path=True,
      is_list=True,
    ),
    'preregistration': Flag(
      str, '', 'recipe file; the page quotes its docstring, with question and rules', is_path=True
    ),
    'plateau_loss': Flag(
      float, 0.0, 'loss of the plateau, nats; estimated from the runs by default'
    ),
    'reference_losses': Flag(
      str, '', 'losses drawn as lines, nats, such as unigram=5.9,bigram=4.2'
    ),
    'compare_with': Flag(
      str, '', 'also time PyTorch (torch) or the Hugging Face Trainer (hf)', ('torch', 'hf')
    ),
    'shard': Flag(str, '', 'K/N: train share K of N of the points, K from 1 to N'),
    'dry_run': Flag(bool, False, 'print parameters, FLOPs, memory and time of each point only'),
    'tokens': Flag(float, 0.0, 'training tokens of each model, in place of num_steps'),
    'flops': Flag(float, 0.0, 'training FLOPs of each model, in place of num_steps'),
    'seconds': Flag(float, 0.0, 'training seconds of each point, in place of num_steps'),
    'deterministic': Flag(bool, False, 'on a GPU, use deterministic kernels only (may be slower)'),
    'members': Flag(
      str,
      '',
      'saved classifiers, separated by commas; stars are expanded',
      is_path=True,
      is_list=True,
    ),
    'committee': Flag(str, '', 'output folder of minilm committee', is_path=True),
    'classifier': Flag(str, '', 'a saved classifier, in place of --committee', is_path=True),
    'text_pair': Flag(str, '', 'second text, for tasks on pairs of texts'),
    'file': Flag(
      str,
      '',
      'file of texts in place of --text: .jsonl, .csv, .tsv, .parquet; columns of the task',
      is_path=True,
    ),
    'num_calls': Flag(int, 100, 'number of timed predictions of each model'),
    'heads': Flag(int, 0, 'also time an encoder with this number of heads; 0 does not'),
    'profile': Flag(str, '', 'updates that the JAX profiler records, such as 100:110'),
    'follow': Flag(bool, False, 'redraw until all runs have ended'),
    'axis': Flag(str, 'step', 'horizontal axis', ('step', 'tokens', 'flops', 'seconds')),
    'format': Flag(
      str,
      '',
      'Hugging Face folder (hf), StableHLO program, or model card',
      ('hf', 'stablehlo', 'card'),
    ),
    'batch': Flag(int, 0, 'rows of a call of a StableHLO program; 0 allows any number if possible'),
    'trust': Flag(str, '', 'modules that a stored recipe may import, such as package.module'),
    'topology': Flag(
      str,
      '',
      'absent devices: a TPU such as v5e:2x4, a GPU such as h100 or h100x8, or a file',
      is_path=True,
    ),
    'program': Flag(str, 'train', 'program to compile: train, evaluate, finetune, predict'),
    'fit': Flag(bool, False, 'find the largest batch and the largest population that fit'),
  }
)
_MAX_DIGITS = 19  # shorter numbers fit in 64 bits
_BOOLEANS = {'true': True, 't': True, '1': True, 'false': False, 'f': False, '0': False}


class FlagValues(types.SimpleNamespace):
  """Values of the flags of a command by name, including defaults."""

  present: frozenset[str]  # flags on the command line


Handler = Callable[[Any, FlagValues, Sequence[str]], None]


@dataclasses.dataclass(frozen=True)
class Command:
  """A command: function, help texts and accepted arguments.

  Attributes:
    run: function of the configuration, the flags and the paths.
    summary: line of the overview.
    reads: input, for the help.
    writes: files and printed results, for the help.
    example: valid arguments, for the help.
    flags: names in `FLAGS`; a star marks a required flag.
    flag_help: help of flags whose meaning differs from that in `FLAGS`.
    kinds: accepted kinds of recipes; () for a command without a recipe.
    takes_paths: whether arguments that are not flags are accepted.
    takes_names: whether `--config=FILE:a,b` gives several recipes, and `FILE:all` all of them.
    all_by_default: whether FILE without names gives all recipes.
    alternative_flag: a flag that can replace the recipe.
  """

  run: Handler
  summary: str
  reads: str
  writes: str
  example: str
  flags: tuple[str, ...] = ()
  flag_help: Mapping[str, str] = dataclasses.field(default_factory=dict)
  kinds: tuple[str, ...] = ()
  takes_paths: bool = False
  takes_names: bool = False
  all_by_default: bool = False
  alternative_flag: str = ''


def parse_numbers(flag: str, text: str) -> list[int]:
  """Returns the comma-separated whole numbers in `text`; raises InputError for other text."""
  words = [word.strip() for word in text.split(',')]
  if not all(word.isdecimal() and len(word) < _MAX_DIGITS for word in words):
    raise InputError(
      f'--{flag}={text}',
      'not whole numbers separated by commas',
      f'give numbers such as --{flag}=1,2,4,8',
    )
  return [int(word) for word in words]


def check_latest(name: str, checkpoint: str) -> None:
  """Raises InputError if `--checkpoint` of a command for the latest checkpoint names a step."""
  folder, step = split_step(checkpoint)
  if step:
    raise InputError(
      f'minilm {name} --checkpoint={checkpoint}',
      f'the step {step}; the command reads the latest checkpoint only',
      f'give --checkpoint={folder}',
    )


def parse_arguments(
  name: str, command: Command, arguments: Sequence[str]
) -> tuple[Any, FlagValues, Sequence[str]]:
  """Returns the configuration, the flags and the paths of a command line.

  The configuration is None without a recipe, and a dict by name if the command takes names.

  Raises:
    InputError: a flag, field or recipe is missing or invalid.
  """
  for argument in arguments:
    if invalid := NO_TEXT.search(argument):
      raise InputError(
        f'the argument {argument!r} of minilm {name}',
        f'the character U+{ord(invalid[0]):04X}, which is not valid text',
        'give arguments in UTF-8, and set PYTHONUTF8=1 in a locale without UTF-8',
      )
  paths, words = _split_recipes(arguments) if command.kinds else ([], list(arguments))
  alternatives = tuple(f'{dashes}{command.alternative_flag}' for dashes in ('-', '--'))
  if not command.kinds or (
    command.alternative_flag and not paths and any(word.startswith(alternatives) for word in words)
  ):
    values, free_words, _ = _parse_words(name, command, words, {})
    if command.alternative_flag and not getattr(values, command.alternative_flag):
      raise _make_missing_error(name, command, f'--{command.alternative_flag}', 'an empty')
    return None, values, free_words
  if not any(paths):
    raise _make_missing_error(name, command, '--config=RECIPE')
  if command.takes_names:
    return _parse_each(name, command, paths[-1], words)
  return _parse_recipe(name, command, paths[-1], words)


def _make_missing_error(name: str, command: Command, flag: str, found: str = 'no') -> InputError:
  return InputError(
    f'minilm {name}', f'{found} {flag}', f'give it, as in: minilm {name} {command.example}'
  )


def _split_recipes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns the values of --config and the other arguments."""
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
  """Parses the words with each recipe of a path such as `FILE:a,b`."""
  file, argument = recipe.split_argument(path)
  if not argument and command.all_by_default:
    argument = 'all'
  names = recipe.expand_names(file, argument) if argument else []
  paths = {run: f'{file}:{run}' for run in names} or {file: path}
  configs, values, free_words = {}, FlagValues(), []
  for run, run_path in paths.items():
    try:
      configs[run], values, free_words = _parse_recipe(name, command, run_path, words)
    except InputError as error:
      if len(paths) == 1:
        raise
      raise InputError(f'{run}: {error.asked}', error.found, error.remedy) from None
  return configs, values, free_words


def _parse_recipe(
  name: str, command: Command, path: str, words: Sequence[str]
) -> tuple[Any, FlagValues, Sequence[str]]:
  source = recipe.load(path)
  fields = recipe.list_fields(source)
  values, free_words, changes = _parse_words(name, command, words, fields)
  tree = recipe.override_fields(source, changes)
  source_kind = fields.get('kind')
  kind = source_kind if source_kind in command.kinds else command.kinds[0]
  config = recipe.resolve(tree, kind)
  if kind == 'pretrain':
    recipe.allow_modules(config.model.encoder)  # the user runs the recipe, which is code too
  return config, values, free_words


def _parse_words(
  name: str, command: Command, words: Sequence[str], fields: Mapping[str, Any]
) -> tuple[FlagValues, list[str], dict[str, Any]]:
  """Returns the flags, the paths, and the changed fields of a recipe that has `fields`."""
  flags = {flag.rstrip('*'): FLAGS[flag.rstrip('*')] for flag in command.flags}
  values: dict[str, Any] = {}
  changes: dict[str, Any] = {}
  free_words: list[str] = []
  remaining = iter(words)
  for word in remaining:
    if not word.startswith('-'):
      free_words.append(expand_home(word))
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
        raise InputError(f'--{flag}', 'no value', f'give --{flag}=VALUE; see minilm {name} --help')
    if not field:
      value = _convert(f'--{flag}={text}', text, kind)
      value = expand_home(value) if flags[flag].is_path else value
      values[flag] = _add_name(values.get(flag), value) if flags[flag].is_list else value
    elif recipe.is_path_list(field):
      changes[field] = _add_name(changes.get(field), text)
    else:  # `recipe.resolve` converts numbers to the declared type
      changes[field] = _convert(f'--{flag}={text}', text, bool) if kind is bool else text
  _check_words(name, command, values, free_words)
  defaults = {flag: declared.default for flag, declared in flags.items()}
  options = FlagValues(**defaults | values, present=frozenset(values))
  if 'trust' in flags:
    recipe.allow_modules(options.trust)
  return options, free_words, changes


def _add_name(names: str | None, name: str) -> str:
  """Returns a comma-separated list with one more name, for a repeated flag."""
  return f'{names},{name}' if names else name


def _check_words(
  name: str, command: Command, values: Mapping[str, Any], free_words: Sequence[str]
) -> None:
  if free_words and not command.takes_paths:
    raise InputError(
      f'minilm {name} {" ".join(free_words)}',
      f'{free_words[0]!r} is not a flag',
      'write --flag=value, and quote values with spaces or stars',
    )
  for flag in command.flags:
    if flag.endswith('*') and not values.get(flag[:-1]):
      found = 'an empty' if flag[:-1] in values else 'no'
      raise _make_missing_error(name, command, f'--{flag[:-1]}', found)


def _convert(subject: str, text: str, kind: type) -> Any:
  """Returns the text of a flag as str, bool, int or float."""
  try:
    return _BOOLEANS[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    raise InputError(
      subject, f'{text!r} is not of type {kind.__name__}', f'give a value of type {kind.__name__}'
    ) from None
