"""The table of commands, their help, and completion in a shell."""

import argparse
import types
from collections.abc import Mapping, Sequence
from typing import Any

from minilm_jax.cli import analysis_commands, evaluation_commands, training_commands
from minilm_jax.cli.flags import FLAGS, Command, FlagValues
from minilm_jax.core.errors import InputError, require_library

SHELLS = ('bash', 'zsh', 'fish', 'tcsh')
_FLAG_COLUMNS = 17


def _print_completion(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  print(complete_shell(' '.join(paths)))


COMMANDS: Mapping[str, Command] = {
  'corpus': Command(
    training_commands.build_corpus,
    'text to rows',
    'text: files, globs, TFDS names or the microworld, as documents.sources of the recipe names',
    '--workdir: rows of token ids, tokenizer.model and manifest.json; prints the folder',
    "--config=configs/corpus.py --config.documents.sources='text/*.txt.xz' --workdir=corpora/small",
    ('workdir*', 'beam'),
    kinds=('corpus',),
  ),
  'overlap': Command(
    evaluation_commands.measure_overlap,
    'overlap of the text of a task with a corpus',
    'a corpus folder, and the examples of a task',
    'prints shares of their words and texts that the corpus holds',
    '--corpus=corpora/small --config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS',
    ('corpus*', 'rows', 'shuffle_seed', 'json'),
    kinds=('finetune',),
  ),
  'overlap-subsets': Command(
    evaluation_commands.write_overlap_subsets,
    'parts of a corpus, of one size, that overlap less and more with a task',
    'a corpus folder, and the examples of a task',
    '--workdir: a corpus folder a part; prints their overlap and sizes',
    '--corpus=corpora/small --num_parts=3 --config=configs/paper2_tasks.py:ag_news '
    '--config.task.data_dir=TFDS --workdir=corpora/ag_news',
    ('corpus*', 'workdir*', 'select_by', 'num_parts', 'size', 'shuffle_seed', 'json'),
    kinds=('finetune',),
  ),
  'show': Command(
    analysis_commands.show,
    'meaning of a recipe: fields, parameters, FLOPs, memory; runs nothing',
    'a recipe',
    'prints its fields and, of pre-training, every array with its sharding, FLOPs and memory',
    '--config=configs/paper1.py:magic-bee-26 --json',
    ('checkpoint', 'json'),
    kinds=('pretrain', 'finetune', 'corpus'),
    alternative_flag='checkpoint',
  ),
  'pretrain': Command(
    training_commands.pretrain,
    'masked language modelling',
    'a recipe, and the corpus that its field corpus names: a folder, or a recipe that makes one',
    '--workdir: config.json, metrics.jsonl, checkpoints, result.json; prints the last losses',
    '--config=configs/tiny.py --workdir=runs/tiny',
    ('workdir*', 'coordinator', 'processes', 'process', 'timeout', 'deterministic', 'profile'),
    kinds=('pretrain',),
  ),
  'sweep': Command(
    training_commands.sweep,
    'a grid of points, each a run; shares of it on several machines',
    'a recipe with a table RUNS, one run a name',
    '--workdir: a run directory a point; prints the losses of each',
    '--config=configs/cpu_grid.py --config.corpus=corpora/small --workdir=runs/grid --shard=1/2',
    ('workdir*', 'shard', 'tokens', 'flops', 'seconds', 'dry_run', 'deterministic', 'json'),
    kinds=('pretrain',),
    takes_names=True,
    all_by_default=True,
  ),
  'extract-member': Command(
    training_commands.extract_member,
    'one member of a population as a run of its own',
    'the run of a population',
    '--workdir: a run directory like any other; prints its seed and step',
    '--checkpoint=runs/population --member=3 --workdir=runs/member-3',
    ('checkpoint*', 'member', 'workdir*', 'trust'),
  ),
  'import': Command(
    training_commands.import_model,
    'a RoBERTa, BERT or ELECTRA of Hugging Face as a run, to fine-tune',
    'a folder of Hugging Face: config.json, model.safetensors and the tokenizer',
    '--workdir: a run to fine-tune; prints its source and sizes',
    '--from=downloads/bert-tiny --workdir=runs/bert-tiny',
    ('from*', 'workdir*'),
  ),
  'finetune': Command(
    training_commands.finetune,
    'checkpoints on tasks, several seeds and learning rates',
    'pre-training runs (commas, stars, RUN@STEP), and the examples of each task',
    '--workdir: scores.jsonl and result.json a task; prints a table of scores with intervals',
    '--config=configs/glue.py:cola,mrpc --config.task.data_dir=TFDS --checkpoint=runs/tiny '
    '--workdir=runs/glue',
    ('workdir*', 'checkpoint*', 'from_scratch', 'with_scratch', 'trust', 'deterministic'),
    kinds=('finetune',),
    takes_names=True,
  ),
  'committee': Command(
    evaluation_commands.make_committee,
    'fine-tuned classifiers that answer together: a folder to use, copy and score',
    'classifiers that finetune saved with --config.save_classifiers=True',
    '--workdir: copies of them, and scores of their subsets; prints these',
    "--members='runs/glue/*/classifier-*' --workdir=runs/committee",
    ('members*', 'workdir*', 'trust', 'json'),
  ),
  'predict': Command(
    evaluation_commands.predict,
    'the label of a text, or of each of a file, by a committee or one classifier',
    'a committee or a classifier, and text',
    'prints a label and its probability for each text',
    "--committee=runs/committee --text='a film to forget .'",
    ('committee', 'classifier', 'text', 'text_pair', 'file', 'trust', 'json'),
  ),
  'evaluate': Command(
    evaluation_commands.evaluate,
    'loss of a checkpoint, minimal pairs, perplexity of a text, or attention',
    'a pre-training run; and a split of a corpus, minimal pairs or a text',
    'prints the measures; with --workdir, --pairs writes scores.jsonl, --attention result.json',
    '--checkpoint=runs/magic-bee-26 --pairs=blimp.jsonl.xz --workdir=runs/blimp',
    (
      *('checkpoint*', 'corpus', 'split', 'pairs', 'pll_variant', 'text', 'attention', 'workdir'),
      *('trust', 'json'),
    ),
  ),
  'ngram-baselines': Command(
    evaluation_commands.measure_ngram_baselines,
    'losses of n-gram predictors on the masked tokens of an evaluation',
    'a recipe, and the folder that its field corpus names',
    '--workdir: config.json and result.json; prints validation and test loss of each predictor',
    '--config=configs/paper1.py:magic-bee-26 --config.corpus=corpora/small '
    '--workdir=runs/baselines',
    ('workdir*', 'json'),
    kinds=('pretrain',),
  ),
  'fill-mask': Command(
    evaluation_commands.fill_mask,
    'guesses for each <mask> of a text',
    'a pre-training run, and a text',
    'prints the most probable pieces for each <mask>, best first',
    "--checkpoint=runs/tiny --text='the dog <mask> a bone .'",
    ('checkpoint*', 'text*', 'best', 'trust', 'json'),
  ),
  'watch': Command(
    analysis_commands.watch,
    'loss curves of runs in the terminal, once or as they grow',
    'run directories of pre-training',
    'prints curves of the loss and a table of the state of each run',
    'runs/tiny --follow',
    ('follow', 'axis', 'split'),
    takes_paths=True,
  ),
  'export': Command(
    training_commands.export_model,
    'a model for others: Hugging Face, a StableHLO program of a classifier, or its card',
    'a pre-training run, or a classifier of --config.save_classifiers=True',
    '--workdir: weights, tokenizer and card, compared with this model; or a program, or the card',
    '--checkpoint=runs/tiny --format=hf --workdir=exports/tiny',
    ('checkpoint*', 'format*', 'workdir*', 'batch', 'trust'),
  ),
  'report': Command(
    analysis_commands.report,
    'tables, figures and an HTML page from run directories or a logged table',
    'run directories, or folders that hold them',
    '--workdir: report.html with tables and figures; prints their paths',
    'runs --workdir=runs/report',
    ('workdir', 'confusion', 'logged', 'bootstrap_samples', 'unfinished'),
    takes_paths=True,
  ),
  'ablations': Command(
    analysis_commands.compare_ablations,
    'effect of a changed recipe: tokens to leave the plateau, FLOPs to a loss',
    'run directories of pre-training, and of the base recipe',
    '--workdir: compare.html, changes.csv and figures; prints a table and its conclusions',
    '--base=runs/plateau/paper runs/plateau runs/plateau-1 --workdir=runs/plateau-compare',
    ('base*', 'workdir*', 'plateau_loss', 'reference_losses', 'preregistration'),
    takes_paths=True,
  ),
  'bench': Command(
    analysis_commands.bench,
    'time a recipe on this machine: the training step, or fine-tuning',
    'a recipe; of fine-tuning, a pre-training run too',
    'prints medians, their spread, the machine and versions',
    '--config=configs/paper1.py:magic-bee-26 --config.batch_size=64 --compare_with=torch',
    ('steps', 'repeats', 'compare_with', 'population', 'checkpoint', 'trust', 'json'),
    kinds=('pretrain', 'finetune'),
    takes_names=True,
  ),
  'latency': Command(
    analysis_commands.measure_latency,
    'time of an answer: one classifier, a committee of it, other recipes',
    'recipes, of which the first is the member of the committee',
    'prints milliseconds an answer, and its FLOPs',
    '--config=configs/paper2_models.py:conv2-k3-d64@96,bert-6@96 --size=5 --heads=5',
    ('size', 'heads', 'num_calls', 'workdir', 'json'),
    kinds=('pretrain',),
    takes_names=True,
  ),
  'preflight': Command(
    analysis_commands.preflight,
    'compile a recipe for an absent TPU: memory, collectives, time',
    'a recipe, and no TPU',
    'prints bytes a chip, collectives and an estimate of the time',
    '--config=configs/paper1.py:all --topology=v5e:2x4',
    ('topology*', 'json'),
    kinds=('pretrain',),
    takes_names=True,
  ),
  'quickstart': Command(
    analysis_commands.run_quickstart,
    'all stages at a small size',
    'nothing, or film reviews from TFDS',
    '--workdir: a corpus, a run, scores and report.html',
    '--language=microworld --workdir=runs/quickstart',
    ('language', 'workdir*'),
  ),
  'completion': Command(
    _print_completion,
    'a script that completes commands, flags and files in a shell',
    'the name of a shell: bash, zsh, fish or tcsh',
    'prints a script for it: eval "$(minilm completion bash)" in ~/.bashrc',
    'bash',
    takes_paths=True,
  ),
}


def format_overview() -> str:
  """Returns the text of `minilm --help`."""
  commands = '\n'.join(f'  {name:<16}{command.summary}' for name, command in COMMANDS.items())
  return f"""usage: minilm COMMAND [--flag=value ...]

{commands}

minilm COMMAND --help prints its input, its output, its flags and an example.

First:          minilm quickstart --language=microworld --workdir=runs/quickstart
Another recipe: --config.FIELD=VALUE, or a file of changed numbers that starts from configs/base.py
Another task:   configs/examples/own_task.py          Another corpus: configs/examples/own_text.py
Another model:  configs/examples/own_encoder.py       In a notebook:  model = minilm_jax.load(run)"""


def format_command(name: str) -> str:
  """Returns the text of `minilm COMMAND --help`."""
  command = COMMANDS[name]
  lines = [
    f'minilm {name}: {command.summary}',
    '',
    f'  minilm {name} {command.example}',
    '',
    f'reads   {command.reads}',
    f'writes  {command.writes}',
    '',
  ]
  if command.kinds:
    lines += [
      f'  --{"config":<{_FLAG_COLUMNS}}a recipe of kind {" or ".join(command.kinds)}; '
      '--config.FIELD=VALUE changes a field',
      ' ' * (_FLAG_COLUMNS + 4)
      + 'it is a Python file, which runs: give none that you would not start as a program',
    ]
  for word in sorted(command.flags, key=lambda word: not word.endswith('*')):
    flag = FLAGS[word.rstrip('*')]
    note = 'required' if word.endswith('*') else repr(flag.default)
    choices = f': {", ".join(flag.choices)}' if flag.choices else ''
    lines.append(f'  --{word.rstrip("*"):<{_FLAG_COLUMNS}}{flag.help}{choices} ({note})')
  return '\n'.join(lines)


def complete_shell(shell: str) -> str:
  """Returns the script by which a shell completes commands, flags, recipes and file names.

  Raises:
    InputError: shtab is not installed, or the shell is not one of `SHELLS`.
  """
  asked = f'minilm completion {shell}'.strip()
  require_library('shtab', 'completion', asked)
  import shtab

  if shell not in SHELLS:
    raise InputError(asked, 'no shell that is known', f'give one of {", ".join(SHELLS)}')
  return shtab.complete(_argument_parser(shtab), shell)


def _argument_parser(shtab: types.ModuleType) -> argparse.ArgumentParser:
  """Returns the commands and flags as the parser that shtab completes from."""
  parser = argparse.ArgumentParser('minilm')
  subparsers = parser.add_subparsers()
  subparsers.add_parser('help', help='input and output of a command').add_argument(
    'command', nargs='?', choices=list(COMMANDS)
  )
  for name, command in COMMANDS.items():
    subparser = subparsers.add_parser(name, help=command.summary)
    if command.kinds:
      _complete(subparser.add_argument('--config', help='a recipe'), shtab.glob('*.py'))
    for word in command.flags:
      flag, option = FLAGS[word.rstrip('*')], f'--{word.rstrip("*")}'
      if flag.kind is bool:
        subparser.add_argument(option, action='store_true', help=flag.help)
      elif flag.choices:
        subparser.add_argument(option, choices=flag.choices, help=flag.help)
      else:
        _complete(subparser.add_argument(option, help=flag.help), shtab.FILE)
    if command.takes_paths and command.flags:
      _complete(subparser.add_argument('path', nargs='*'), shtab.FILE)
    elif command.takes_paths:
      subparser.add_argument('shell', nargs='?', choices=SHELLS)
  return parser


def _complete(argument: Any, completer: Any) -> None:
  argument.complete = completer  # shtab reads this attribute of an argparse action
