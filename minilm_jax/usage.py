"""What `minilm --help` and `minilm VERB --help` say: what a verb does, what it reads, what it gives, an example.

`completion` writes the script by which a shell completes the same verbs and flags.
"""

import argparse
from collections.abc import Mapping

from minilm_jax.errors import InputError, needs
from minilm_jax.flags import FLAGS, Verb

# Of each verb: what it reads beside its flags, and what it writes and prints.
TOLD: Mapping[str, tuple[str, str]] = {
    'corpus': (
        'text: files, globs, TFDS names or the built-in microworld, as documents.sources of the recipe names',
        '--workdir: rows of token ids, tokenizer.model and manifest.json; prints the folder'),
    'overlap': (
        'a corpus folder, and the examples of a task',
        'prints shares of their words and texts that the corpus holds'),
    'overlap-subsets': (
        'a corpus folder, and the examples of a task',
        '--workdir: a corpus folder a part; prints what tells them apart'),
    'show': (
        'a recipe',
        'prints its fields and, of pre-training, every array with its sharding, FLOPs and memory'),
    'pretrain': (
        'a recipe, and the corpus that its field corpus names: a folder, or a recipe that makes one',
        '--workdir: config.json, metrics.jsonl, checkpoints, result.json; prints the last losses'),
    'sweep': (
        'a recipe with a table RUNS, one run a name',
        '--workdir: a run directory a point; prints what each has reached'),
    'watch': (
        'run directories of pre-training',
        'prints curves of the loss and a table of where each run stands'),
    'export': (
        'a pre-training run, or a classifier that finetune saved with --config.save_classifiers=True',
        '--workdir: weights, tokenizer and card, after a check that they answer as here; or a program, or the card'),
    'import': (
        'a folder of Hugging Face: config.json, model.safetensors and the tokenizer',
        '--workdir: a run to fine-tune; prints what it is'),
    'extract-member': (
        'the run of a population',
        '--workdir: a run directory like any other; prints its seed and step'),
    'finetune': (
        'pre-training runs (commas, stars, RUN@STEP), and the examples of each task',
        '--workdir: scores.jsonl and result.json a task; prints a table of scores with intervals'),
    'committee': (
        'classifiers that finetune saved with --config.save_classifiers=True',
        '--workdir: copies of them, and scores of their subsets; prints these'),
    'predict': (
        'a committee or a classifier, and text',
        'prints a label and its probability for each text'),
    'evaluate': (
        'a pre-training run; and a split of a corpus, minimal pairs or a text',
        'prints what it measures; with --workdir, --pairs also writes scores.jsonl, --attention result.json'),
    'ngram-baselines': (
        'a recipe, and the folder that its field corpus names',
        '--workdir: config.json and result.json; prints the loss of each predictor on validation and test'),
    'fill-mask': (
        'a pre-training run, and a text',
        'prints the most probable pieces for each <mask>, best first'),
    'report': (
        'run directories, or folders that hold them',
        '--workdir: report.html with tables and figures; prints their paths'),
    'ablations': (
        'run directories of pre-training, and of the base recipe',
        '--workdir: compare.html, changes.csv and figures; prints a table and what it says'),
    'bench': (
        'a recipe; of fine-tuning, a pre-training run too',
        'prints medians, their spread, the machine and versions'),
    'latency': (
        'recipes, of which the first is the member of the committee',
        'prints milliseconds an answer, and its FLOPs'),
    'preflight': (
        'a recipe, and no TPU',
        'prints bytes a chip, collectives and an estimate of the time'),
    'quickstart': (
        'nothing, or film reviews from TFDS',
        '--workdir: a corpus, a run, scores and report.html'),
    'completion': (
        'the name of a shell: bash, zsh, fish or tcsh',
        'prints a script for it: eval "$(minilm completion bash)" in ~/.bashrc'),
}
_WIDTH = 14  # of a flag
SHELLS = ('bash', 'zsh', 'fish', 'tcsh')
# Values that completion offers for a flag; other flags complete file names.
_CHOICES: Mapping[str, tuple[str, ...]] = {
    'compare_with': ('hf', 'torch'), 'axis': ('step', 'tokens', 'flops', 'seconds'),
    'select_by': ('overlap', 'likelihood', 'random'),
    'language': ('microworld', 'reviews'), 'pll_variant': ('within-word', 'original'),
    'split': ('train', 'validation', 'test'), 'format': ('hf', 'stablehlo', 'card')}


def overview(verbs: Mapping[str, Verb]) -> str:
  """What `minilm --help` says."""
  lines = [f'  {name:<11} {verb.summary}' for name, verb in verbs.items()]
  return '\n'.join([
      'usage: minilm VERB [--flag=value ...]', '', *lines, '',
      'minilm VERB --help tells more: what it reads, what it gives, its flags, an example.', '',
      'First:          minilm quickstart --language=microworld --workdir=runs/quickstart',
      'Another recipe: --config.FIELD=VALUE, or a file of changed numbers that starts from configs/base.py',
      'Another task:   configs/examples/own_task.py          Another corpus: configs/examples/own_text.py',
      'Another model:  configs/examples/gated.py             In a notebook:  model = minilm_jax.load(run)'])


def of_verb(name: str, verb: Verb) -> str:
  """What `minilm VERB --help` says."""
  reads, gives = TOLD[name]
  lines = [f'minilm {name}: {verb.summary}', '', f'  minilm {name} {verb.example}', '',
           f'reads   {reads}', f'gives   {gives}', '']
  if verb.kinds:
    kinds = ' or '.join(verb.kinds)
    lines += [f'  --{"config":<{_WIDTH}}a recipe of kind {kinds}; --config.FIELD=VALUE changes a field',
              ' ' * (_WIDTH + 4) + 'it is a Python file, which runs: give none that you would not start as a program']
  for flag in sorted(verb.flags, key=lambda flag: not flag.endswith('*')):
    _, default, text = FLAGS[flag.rstrip('*')]
    note = 'must be given' if flag.endswith('*') else repr(default)
    lines.append(f'  --{flag.rstrip("*"):<{_WIDTH}}{text} ({note})')
  return '\n'.join(lines)


def completion(shell: str, verbs: Mapping[str, Verb]) -> str:
  """Returns the script by which a shell completes verbs, their flags, recipes and file names.

  Raises:
    InputError: shtab is not installed, or the shell is none of `SHELLS`.
  """
  asked = f'minilm completion {shell}'.strip()
  needs('shtab', 'completion', asked)
  import shtab
  if shell not in SHELLS:
    raise InputError(asked, 'no shell that is known', f'give one of {", ".join(SHELLS)}')
  parser = argparse.ArgumentParser('minilm')
  commands = parser.add_subparsers()
  commands.add_parser('help', help='what a verb reads and gives').add_argument('verb', nargs='?', choices=list(verbs))
  for name, verb in verbs.items():
    command = commands.add_parser(name, help=verb.summary)
    if verb.kinds:
      command.add_argument('--config', help='a recipe').complete = shtab.glob('*.py')
    for flag in (flag.rstrip('*') for flag in verb.flags):
      kind, _, text = FLAGS[flag]
      if kind is bool:
        command.add_argument(f'--{flag}', action='store_true', help=text)
      elif flag in _CHOICES:
        command.add_argument(f'--{flag}', choices=_CHOICES[flag], help=text)
      else:
        command.add_argument(f'--{flag}', help=text).complete = shtab.FILE
    if verb.paths and verb.flags:
      command.add_argument('path', nargs='*').complete = shtab.FILE
    elif verb.paths:
      command.add_argument('shell', nargs='?', choices=SHELLS)
  return shtab.complete(parser, shell)
