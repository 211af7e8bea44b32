"""The command line of one verb: which recipe and flags it takes, and what they were given.

The flags are those of absl and ml_collections, with `=` or a space between name and value; what is
wrong with them is said in our own words. What the verbs are and what they do is left to `verbs`,
what help says to `usage`.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

from minilm_jax.core import recipe, schema
from minilm_jax.core.errors import InputError, suggest_name

FLAGS: dict[str, tuple[type, Any, str]] = {
  'workdir': (str, '', 'directory that the verb writes to'),
  'beam': (
    str,
    '',
    'filter the text by Apache Beam: its pipeline options, as in --runner=DirectRunner',
  ),
  'checkpoint': (str, '', 'a pre-training run; its latest checkpoint'),
  'from': (
    str,
    '',
    'a local folder with config.json, model.safetensors, and tokenizer.json or vocab.txt',
  ),
  'from_scratch': (
    bool,
    False,
    'fresh weights of the shape of the checkpoint: the control of every comparison',
  ),
  'with_scratch': (
    bool,
    False,
    'beside the checkpoints, fresh weights too, paired with them seed by seed',
  ),
  'json': (bool, False, 'print one JSON object'),
  'text': (
    str,
    '',
    'fill-mask: with <mask> in it; evaluate: of which pseudo-perplexity is wanted; predict: any',
  ),
  'best': (int, 5, 'guesses a hole'),
  'split': (
    str,
    'validation',
    'split of the corpus; watch: train or validation, train if not given',
  ),
  'corpus': (str, '', 'corpus folder; the one of the run if not given'),
  'rows': (int, 0, 'of the training split, the first so many of its fixed random order; 0: all'),
  'shuffle_seed': (int, 0, 'number of the fixed random order, as subset.shuffle_seed in a recipe'),
  'select_by': (
    str,
    'overlap',
    'what rows are told apart by: overlap or likelihood under the task, or random, the control',
  ),
  'num_parts': (int, 3, 'of equal tokens, from the lowest scores to the highest'),
  'size': (
    int,
    0,
    'subset: tokens of each part, 0: as many as all can have; latency: members, 5 if not given',
  ),
  'pairs': (
    str,
    '',
    'minimal pairs: a table with sentence_good and sentence_bad, a folder of these or of TFDS',
  ),
  'pll_variant': (
    str,
    'within-word',
    'hidden with a token: the rest of its word (within-word) or nothing (original)',
  ),
  'attention': (
    bool,
    False,
    'where each head looks; --checkpoint may then be RUN@STEP, RUN@all or a population',
  ),
  'population': (
    str,
    '',
    'instead, compare populations of these sizes with solo runs, as in 1,2,4,8',
  ),
  'coordinator': (
    str,
    '',
    'host:port of process 0 of several that train together; auto asks SLURM or Cloud TPU',
  ),
  'processes': (int, None, 'how many train together, each with the devices of its host'),
  'process': (int, None, 'number of this one, from 0'),
  'timeout': (
    int,
    300,
    'seconds until all processes must have arrived; also the heartbeat time-out',
  ),
  'member': (int, 0, 'member of a population, from 0'),
  'language': (
    str,
    'reviews',
    'reviews (film reviews, real English) or microworld (nothing to download)',
  ),
  'steps': (int, 10, 'updates timed at once'),
  'repeats': (int, 5, 'times that they are timed'),
  'confusion': (bool, False, 'draw confusion matrices from logged predictions too'),
  'logged': (
    str,
    '',
    'instead of run directories, a table of evaluations, .csv or .csv.gz; needs --workdir',
  ),
  'bootstrap_samples': (int, 1000, 'resamples for each interval'),
  'unfinished': (
    bool,
    False,
    'laws count runs too that have not reached the end of their schedule',
  ),
  'base': (str, '', 'runs of the recipe that others are compared with, with commas between'),
  'preregistration': (
    str,
    '',
    'a recipe at whose head stands what is asked and by which rules: the page begins with it',
  ),
  'plateau_loss': (float, 0.0, 'nats of the plateau; without it, that which the runs show'),
  'reference_losses': (str, '', 'other losses to draw, in nats, as in unigram=5.9,bigram=4.2'),
  'compare_with': (
    str,
    '',
    'torch: the same model in PyTorch is timed too; hf: the same fine-tuning by a Trainer',
  ),
  'shard': (
    str,
    '',
    'k/n: of n shares of the points this one, from 1; each of several machines takes its own',
  ),
  'dry_run': (
    bool,
    False,
    'print the points, their size, work, memory and time, and train nothing',
  ),
  'tokens': (
    float,
    0.0,
    'of each member: train as many updates as that takes, whatever the recipe says',
  ),
  'flops': (float, 0.0, 'of each member, as this program counts them: the same'),
  'deterministic': (
    bool,
    False,
    'on a GPU kernels that give the same bits each time, at a price not measured yet; '
    'on a CPU or TPU nothing changes',
  ),
  'seconds': (float, 0.0, 'of each point, by a short measurement on this machine: the same'),
  'members': (
    str,
    '',
    'fine-tuned classifiers that config.save_classifiers saved, with commas and stars',
  ),
  'committee': (str, '', 'a folder that minilm committee made'),
  'classifier': (str, '', 'instead, one fine-tuned classifier that config.save_classifiers saved'),
  'text_pair': (str, '', 'the second text, of tasks on pairs'),
  'file': (
    str,
    '',
    'instead of --text, a table, .jsonl, .csv, .tsv or .parquet, with the columns of the task',
  ),
  'num_calls': (int, 100, 'times that each contestant answers, timed'),
  'heads': (int, 0, 'also one body with so many heads, the cheap control of a committee'),
  'profile': (
    str,
    '',
    'updates of which JAX records a profile into the work directory, as in 100:110',
  ),
  'follow': (bool, False, 'draw again as the runs grow, until all have ended'),
  'axis': (str, 'step', 'from left to right: step, tokens, flops or seconds'),
  'format': (
    str,
    '',
    'form of an export: hf (transformers and a model card), stablehlo (a classifier), or card alone',
  ),
  'batch': (
    int,
    0,
    'rows of every call of a stablehlo program; 0: any number where that can be lowered',
  ),
  'trust': (
    str,
    '',
    'modules whose code may run where a stored recipe names an encoder of it, as in package.module',
  ),
  'topology': (str, '', 'chip and arrangement, as in v5e:2x4'),
}
_MAX_DIGITS = 19  # fewer than a number of 64 bits may have


@dataclasses.dataclass(frozen=True)
class Command:
  """One verb: what it does, the kinds of recipe it reads, its flags (those with a star must be
  given), an example.
  """

  run: Callable[[Any, Any, Sequence[str]], None]
  summary: str
  kinds: tuple[str, ...]
  flags: tuple[str, ...]
  example: str
  paths: bool = False  # does it take arguments that are no flags?
  # does it take recipes by name, `--config=FILE:one,other` or `FILE:all` for every run of a recipe?
  each: bool = False
  whole: bool = False  # and is FILE alone every run, not the one that it gives without an argument?
  instead: str = ''  # a flag that may be given instead of a recipe


def parse_numbers(flag: str, given: str) -> list[int]:
  """The whole numbers of a flag that takes several, with commas between.

  Raises:
    InputError: something else is among them.
  """
  words = [word.strip() for word in given.split(',')]
  if not all(word.isdecimal() and len(word) < _MAX_DIGITS for word in words):
    raise InputError(
      f'--{flag}={given}',
      'not whole numbers with commas between',
      f'give some, as in --{flag}=1,2,4,8',
    )
  return [int(word) for word in words]


def parse_arguments(
  name: str, verb: Command, arguments: Sequence[str]
) -> tuple[Any, Any, Sequence[str]]:
  """The configuration (None where the verb reads no recipe, by name for `each`), the flags, the
  free arguments.

  Raises:
    InputError: a flag, a field or a recipe that cannot be used, or one that is missing.
  """
  for argument in arguments:
    if found := schema.NO_TEXT.search(argument):
      raise InputError(
        f'the argument {argument!r} of minilm {name}',
        f'U+{ord(found[0]):04X}, which is no text',
        'give text in UTF-8, and paths that are',
      )
  if verb.each:
    return _read_each(name, dataclasses.replace(verb, each=False), arguments)
  from absl import flags as absl_flags
  from ml_collections import config_flags

  values = absl_flags.FlagValues()
  for flag in (flag.rstrip('*') for flag in verb.flags):
    kind, default, help_text = FLAGS[flag]
    define = {
      str: absl_flags.DEFINE_string,
      bool: absl_flags.DEFINE_bool,
      int: absl_flags.DEFINE_integer,
      float: absl_flags.DEFINE_float,
    }[kind]
    define(flag, default, help_text, flag_values=values)
  chosen, rest = _recipes(arguments) if verb.kinds else ([], list(arguments))
  source, other = None, verb.instead and any(word.startswith(f'--{verb.instead}') for word in rest)
  try:
    if verb.kinds and (chosen or not other):
      if not any(chosen):
        raise InputError(
          f'minilm {name}', 'no --config=RECIPE', f'for example: minilm {name} {verb.example}'
        )
      source = recipe.load(chosen[-1])
      _check_overrides(rest, recipe.list_fields(source))
      config_flags.DEFINE_config_dict('config', source, flag_values=values, sys_argv=rest)
    free = values(['minilm', *rest])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    raise InputError(
      f'the flag --{error.flagname}',
      f'minilm {name} has no such flag',
      suggest_name(error.flagname, values),
    ) from None
  except absl_flags.IllegalFlagValueError as error:
    raise _type_error(str(error), source) from None
  except (absl_flags.Error, TypeError, ValueError) as error:
    raise InputError(
      f'the flags of minilm {name}', str(error), f'see minilm {name} --help'
    ) from None
  if free and not verb.paths:
    raise InputError(
      f'minilm {name} {" ".join(free)}',
      f'{free[0]!r} is no flag',
      'give every value after its flag, as in --flag=value, and quote what has spaces or stars',
    )
  for flag in verb.flags:
    if flag.endswith('*') and not values[flag[:-1]].value:
      raise InputError(
        f'minilm {name}', f'no --{flag[:-1]}', f'for example: minilm {name} {verb.example}'
      )
  if 'trust' in values:
    recipe.allow_modules(values.trust)
  if source is None:
    return None, values, free
  kind = next(
    (kind for kind in verb.kinds if 'kind' in source and source.kind == kind), verb.kinds[0]
  )
  config = recipe.resolve(values.config, kind)
  if kind == 'pretrain':
    # the recipe is code that its user has started, and so is what it names
    recipe.allow_modules(config.model.encoder)
  return config, values, free


def _read_each(
  name: str, verb: Command, arguments: Sequence[str]
) -> tuple[dict[str, Any], Any, Sequence[str]]:
  chosen, rest = _recipes(arguments)
  path = chosen[-1] if chosen else ''
  file, _, argument = path.partition(':')
  if path and not argument and verb.whole:
    argument = 'all'
  names = recipe.expand_names(file, argument) if argument else []
  paths = {run: f'{file}:{run}' for run in names} or {file: path}
  found = {}
  for run, path in paths.items():
    try:
      found[run] = parse_arguments(name, verb, [f'--config={path}', *rest])
    except InputError as error:
      if len(paths) == 1:
        raise
      raise InputError(f'{run}: {error.asked}', error.found, error.remedy) from None
  _, values, free = next(iter(found.values()))
  return {run: config for run, (config, *_) in found.items()}, values, free


def _recipes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """What --config names, after '=' or a space, and the other arguments; `-config` is `--config`."""
  chosen, rest, words = (
    [],
    [],
    (f'-{word}' if word.startswith('-config') else word for word in arguments),
  )
  for word in words:
    if word == '--config' or word.startswith('--config='):
      chosen.append(word.partition('=')[2] if '=' in word else next(words, ''))
    else:
      rest.append(word)
  return chosen, rest


def _type_error(said: str, source: Any) -> InputError:
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
      raise InputError(
        f'the field {field}', 'no such field in this recipe', suggest_name(field, known)
      )
