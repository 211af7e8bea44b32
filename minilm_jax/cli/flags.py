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
  """A flag.

  Attributes:
    help: description, for the help.
    default: value without the flag; its type is that of the value, and None is an absent whole number.
    choices: accepted values besides the default; () accepts all values.
    is_path: whether the value names files or folders, so that a leading `~` is expanded.
    is_list: whether the value names several of them, so that a repeated flag adds to the value.
  """

  help: str
  default: Any = ''
  choices: tuple[str, ...] = ()
  is_path: bool = False
  is_list: bool = False

  @property
  def kind(self) -> type:
    """Type of the value."""
    return int if self.default is None else type(self.default)


FLAGS: Mapping[str, Flag] = {
  'workdir': Flag('directory for the output', is_path=True),
  'beam': Flag('options of Apache Beam, which then filters: --beam=--runner=DirectRunner'),
  'checkpoint': Flag(
    'run directory of pre-training; its latest checkpoint is used', is_path=True, is_list=True
  ),
  'from': Flag('folder: config.json, model.safetensors, tokenizer.json or vocab.txt', is_path=True),
  'init_from': Flag(
    'run whose weights a new run starts with; RUN@STEP selects a checkpoint', is_path=True
  ),
  'init_optimizer': Flag('also start with the moments of the optimizer', False),
  'from_scratch': Flag('start from random weights instead, as a control', False),
  'with_scratch': Flag('also start from random weights, with the same seeds', False),
  'json': Flag('print the result as JSON', False),
  'text': Flag('text in quotes'),
  'best': Flag('number of pieces printed for each <mask>', 5),
  'split': Flag('split of the corpus', 'validation', SPLITS),
  'corpus': Flag('corpus folder, the output of minilm corpus', is_path=True),
  'rows': Flag('number of training rows, in a fixed random order; 0 takes all', 0),
  'shuffle_seed': Flag('seed of the random order of rows, 0 by default', 0),
  'select_by': Flag('score that orders the rows', 'overlap', ('overlap', 'likelihood', 'random')),
  'num_parts': Flag('number of subsets, from the lowest to the highest scores', 3),
  'size': Flag('tokens of a subset; 0 takes the maximum', 0),
  'pairs': Flag(
    'minimal pairs: a table with sentence_good and sentence_bad, or a folder', is_path=True
  ),
  'pll_variant': Flag(
    'pseudo-log-likelihood: mask a token and the rest of its word, or the token alone',
    'within-word',
    ('within-word', 'original'),
  ),
  'attention': Flag('attention of each head; --checkpoint also takes RUN@all', False),
  'population': Flag('also time populations of these sizes, such as 1,2,4,8'),
  'coordinator': Flag('HOST:PORT of process 0; auto detects SLURM, Open MPI and Cloud TPU'),
  'processes': Flag('number of processes of the run; each uses the devices of its host', None),
  'process': Flag('index of this process, from 0', None),
  'timeout': Flag('seconds to wait for all processes; also the heartbeat time-out', 300),
  'member': Flag('index of the member, from 0, the default', 0),
  'language': Flag('text to learn', 'reviews', ('microworld', 'reviews')),
  'steps': Flag('updates in a timed block', 10),
  'repeats': Flag('number of timed blocks', 5),
  'confusion': Flag('draw confusion matrices from logged predictions', False),
  'logged': Flag(
    'table of evaluations (.csv, .csv.gz) in place of runs; needs --workdir', is_path=True
  ),
  'bootstrap_samples': Flag('bootstrap samples for intervals of laws and correlations', 1000),
  'unfinished': Flag('include unfinished runs in the fits of power laws', False),
  'base': Flag(
    'run directories of the base recipe, separated by commas', is_path=True, is_list=True
  ),
  'preregistration': Flag(
    'recipe file; the page quotes its docstring, with question and rules', is_path=True
  ),
  'plateau_loss': Flag('loss of the plateau, nats; estimated from the runs by default', 0.0),
  'reference_losses': Flag('losses drawn as lines, nats, such as unigram=5.9,bigram=4.2'),
  'compare_with': Flag(
    'also time PyTorch (torch) or the Hugging Face Trainer (hf)', choices=('torch', 'hf')
  ),
  'shard': Flag('K/N: train share K of N of the points, K from 1 to N'),
  'dry_run': Flag('print parameters, FLOPs, memory and time of each point only', False),
  'tokens': Flag('training tokens of each model, in place of num_steps', 0.0),
  'flops': Flag('training FLOPs of each model, in place of num_steps', 0.0),
  'seconds': Flag('training seconds of each point, in place of num_steps', 0.0),
  'deterministic': Flag('on a GPU, use deterministic kernels only (may be slower)', False),
  'members': Flag(
    'saved classifiers, separated by commas; stars are expanded', is_path=True, is_list=True
  ),
  'committee': Flag('output folder of minilm committee', is_path=True),
  'classifier': Flag('a saved classifier, in place of --committee', is_path=True),
  'text_pair': Flag('second text, for tasks on pairs of texts'),
  'file': Flag(
    'file of texts in place of --text: .jsonl, .csv, .tsv, .parquet; columns of the task',
    is_path=True,
  ),
  'num_calls': Flag('number of timed predictions of each model', 100),
  'heads': Flag('also time an encoder with this number of heads; 0 does not', 0),
  'profile': Flag('updates that the JAX profiler records, such as 100:110'),
  'follow': Flag('redraw until all runs have ended', False),
  'axis': Flag('horizontal axis', 'step', ('step', 'tokens', 'flops', 'seconds')),
  'format': Flag(
    'Hugging Face folder (hf), StableHLO program, or model card',
    choices=('hf', 'stablehlo', 'card'),
  ),
  'batch': Flag('rows of a call of a StableHLO program; 0 allows any number if possible', 0),
  'trust': Flag('modules that a stored recipe may import, such as package.module'),
  'topology': Flag(
    'absent devices: a TPU such as v5e:2x4, a GPU such as h100 or h100x8, or a file', is_path=True
  ),
  'program': Flag('program to compile', 'train', ('train', 'evaluate', 'finetune', 'predict')),
  'fit': Flag('find the largest batch and the largest population that fit', False),
}
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
      choices = flags[flag].choices
      if choices and value not in (*choices, flags[flag].default):
        raise InputError(f'--{flag}={text}', 'no such choice', suggest_name(text, choices))
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
