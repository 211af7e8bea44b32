"""The verbs: what each reads, the one function that it calls, and how what comes back is printed.

Results go to standard output. Nothing heavy is imported before a verb is called; how a call ends is
left to `__main__`.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from minilm_jax.cli import flags
from minilm_jax.cli.flags import FLAGS, Command
from minilm_jax.core import distributed, progress
from minilm_jax.core.errors import InputError, require_library, suggest_name

# A model for others, in one of several forms: which room makes it. Rooms are imported when they are
# called.
EXPORT_FORMATS = ('hf', 'stablehlo', 'card')


def export_model(given: str, to: str, workdir: str, batch: int | None = None) -> dict[str, Any]:
  """Writes the model that `--checkpoint` names into a folder of its own.

  Args:
    given: a pre-training run, `run@step`, or a classifier.
    to: one of `FORMS`.
    workdir: the folder, not there or empty.
    batch: of a StableHLO program; None leaves it free.

  Returns:
    What was written, where, and how far it was from the model.

  Raises:
    InputError: no such form, a batch where none is taken, or as `hf_export`, `serving` and
      `model_card` say.
  """
  if to not in EXPORT_FORMATS:
    raise InputError(f'--format={to}', 'no such form', suggest_name(to, EXPORT_FORMATS))
  if batch is not None and to != 'stablehlo':
    raise InputError('minilm export --batch', f'--format={to} does not take it', 'leave it out')
  if to == 'hf':
    from minilm_jax.interop import hf_export

    found = hf_export.export_huggingface(given, workdir)
  elif to == 'stablehlo':
    from minilm_jax.interop import stablehlo

    found = stablehlo.export_stablehlo(given, workdir, batch or 0)
  else:
    from minilm_jax.interop import model_card

    found = model_card.write_card(given, workdir)
  return {'workdir': workdir, **found}


# What `minilm --help` and `minilm VERB --help` say: what a verb does, what it reads, what it gives,
# an example. Of each verb: what it reads beside its flags, and what it writes and prints.
TOLD: Mapping[str, tuple[str, str]] = {
  'corpus': (
    'text: files, globs, TFDS names or the built-in microworld, as documents.sources of the recipe names',
    '--workdir: rows of token ids, tokenizer.model and manifest.json; prints the folder',
  ),
  'overlap': (
    'a corpus folder, and the examples of a task',
    'prints shares of their words and texts that the corpus holds',
  ),
  'overlap-subsets': (
    'a corpus folder, and the examples of a task',
    '--workdir: a corpus folder a part; prints what tells them apart',
  ),
  'show': (
    'a recipe',
    'prints its fields and, of pre-training, every array with its sharding, FLOPs and memory',
  ),
  'pretrain': (
    'a recipe, and the corpus that its field corpus names: a folder, or a recipe that makes one',
    '--workdir: config.json, metrics.jsonl, checkpoints, result.json; prints the last losses',
  ),
  'sweep': (
    'a recipe with a table RUNS, one run a name',
    '--workdir: a run directory a point; prints what each has reached',
  ),
  'watch': (
    'run directories of pre-training',
    'prints curves of the loss and a table of where each run stands',
  ),
  'export': (
    'a pre-training run, or a classifier that finetune saved with --config.save_classifiers=True',
    '--workdir: weights, tokenizer and card, after a check that they answer as here; or a program, or the card',
  ),
  'import': (
    'a folder of Hugging Face: config.json, model.safetensors and the tokenizer',
    '--workdir: a run to fine-tune; prints what it is',
  ),
  'extract-member': (
    'the run of a population',
    '--workdir: a run directory like any other; prints its seed and step',
  ),
  'finetune': (
    'pre-training runs (commas, stars, RUN@STEP), and the examples of each task',
    '--workdir: scores.jsonl and result.json a task; prints a table of scores with intervals',
  ),
  'committee': (
    'classifiers that finetune saved with --config.save_classifiers=True',
    '--workdir: copies of them, and scores of their subsets; prints these',
  ),
  'predict': (
    'a committee or a classifier, and text',
    'prints a label and its probability for each text',
  ),
  'evaluate': (
    'a pre-training run; and a split of a corpus, minimal pairs or a text',
    'prints what it measures; with --workdir, --pairs also writes scores.jsonl, --attention result.json',
  ),
  'ngram-baselines': (
    'a recipe, and the folder that its field corpus names',
    '--workdir: config.json and result.json; prints the loss of each predictor on validation and test',
  ),
  'fill-mask': (
    'a pre-training run, and a text',
    'prints the most probable pieces for each <mask>, best first',
  ),
  'report': (
    'run directories, or folders that hold them',
    '--workdir: report.html with tables and figures; prints their paths',
  ),
  'ablations': (
    'run directories of pre-training, and of the base recipe',
    '--workdir: compare.html, changes.csv and figures; prints a table and what it says',
  ),
  'bench': (
    'a recipe; of fine-tuning, a pre-training run too',
    'prints medians, their spread, the machine and versions',
  ),
  'latency': (
    'recipes, of which the first is the member of the committee',
    'prints milliseconds an answer, and its FLOPs',
  ),
  'preflight': (
    'a recipe, and no TPU',
    'prints bytes a chip, collectives and an estimate of the time',
  ),
  'quickstart': (
    'nothing, or film reviews from TFDS',
    '--workdir: a corpus, a run, scores and report.html',
  ),
  'completion': (
    'the name of a shell: bash, zsh, fish or tcsh',
    'prints a script for it: eval "$(minilm completion bash)" in ~/.bashrc',
  ),
}
_WIDTH = 14  # of a flag
SHELLS = ('bash', 'zsh', 'fish', 'tcsh')
# Values that completion offers for a flag; other flags complete file names.
_CHOICES: Mapping[str, tuple[str, ...]] = {
  'compare_with': ('hf', 'torch'),
  'axis': ('step', 'tokens', 'flops', 'seconds'),
  'select_by': ('overlap', 'likelihood', 'random'),
  'language': ('microworld', 'reviews'),
  'pll_variant': ('within-word', 'original'),
  'split': ('train', 'validation', 'test'),
  'format': ('hf', 'stablehlo', 'card'),
}


def format_overview(verbs: Mapping[str, Command]) -> str:
  """What `minilm --help` says."""
  lines = [f'  {name:<11} {verb.summary}' for name, verb in verbs.items()]
  return '\n'.join(
    [
      'usage: minilm VERB [--flag=value ...]',
      '',
      *lines,
      '',
      'minilm VERB --help tells more: what it reads, what it gives, its flags, an example.',
      '',
      'First:          minilm quickstart --language=microworld --workdir=runs/quickstart',
      'Another recipe: --config.FIELD=VALUE, or a file of changed numbers that starts from configs/base.py',
      'Another task:   configs/examples/own_task.py          Another corpus: configs/examples/own_text.py',
      'Another model:  configs/examples/gated.py             In a notebook:  model = minilm_jax.load(run)',
    ]
  )


def format_command(name: str, verb: Command) -> str:
  """What `minilm VERB --help` says."""
  reads, gives = TOLD[name]
  lines = [
    f'minilm {name}: {verb.summary}',
    '',
    f'  minilm {name} {verb.example}',
    '',
    f'reads   {reads}',
    f'gives   {gives}',
    '',
  ]
  if verb.kinds:
    kinds = ' or '.join(verb.kinds)
    lines += [
      f'  --{"config":<{_WIDTH}}a recipe of kind {kinds}; --config.FIELD=VALUE changes a field',
      ' ' * (_WIDTH + 4)
      + 'it is a Python file, which runs: give none that you would not start as a program',
    ]
  for flag in sorted(verb.flags, key=lambda flag: not flag.endswith('*')):
    _, default, text = FLAGS[flag.rstrip('*')]
    note = 'must be given' if flag.endswith('*') else repr(default)
    lines.append(f'  --{flag.rstrip("*"):<{_WIDTH}}{text} ({note})')
  return '\n'.join(lines)


def completion(shell: str, verbs: Mapping[str, Command]) -> str:
  """Returns the script by which a shell completes verbs, their flags, recipes and file names.

  Raises:
    InputError: shtab is not installed, or the shell is none of `SHELLS`.
  """
  asked = f'minilm completion {shell}'.strip()
  require_library('shtab', 'completion', asked)
  import shtab

  if shell not in SHELLS:
    raise InputError(asked, 'no shell that is known', f'give one of {", ".join(SHELLS)}')
  parser = argparse.ArgumentParser('minilm')
  commands = parser.add_subparsers()
  commands.add_parser('help', help='what a verb reads and gives').add_argument(
    'verb', nargs='?', choices=list(verbs)
  )
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


def _print(result: Any) -> None:
  if not distributed.is_primary():
    return
  if isinstance(result, dict):
    print(json.dumps(result, indent=2))
    return
  progress.print_table(result)


def _corpus(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.data import build

  print(build.build_corpus(config, given.workdir, given.beam))


def _show(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.cli import show

  if given.checkpoint and config:
    raise InputError('minilm show --config --checkpoint', 'a recipe and a run', 'give one of them')
  described = (
    show.describe_run(given.checkpoint) if given.checkpoint else show.describe_recipe(config)
  )
  _print(described if given.json else show.show_tables(described))


def _pretrain(config: Any, given: Any, paths: Sequence[str]) -> None:
  with distributed.initialized(given.coordinator, given.processes, given.process, given.timeout):
    from minilm_jax.training import pretrain

    result = pretrain.pretrain(config, given.workdir, given.profile)
    if 'json' not in config.log.sinks:
      _print(result)
    elif distributed.is_primary():
      print(json.dumps(result))  # a line like those of the log before it


def _extract_member(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.training import pretrained

  _print(pretrained.extract_member(given.checkpoint, given.member, given.workdir))


def _import(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.interop import hf_import

  _print(hf_import.import_model(given['from'].value, given.workdir))


def _sweep(configs: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.cli import sweep

  found = sweep.run_sweep(
    configs, given.workdir, given.shard, given.tokens, given.flops, given.seconds, given.dry_run
  )
  _print({'points': found} if given.json else sweep.sweep_tables(found))
  failed = [row for row in found if 'reason' in row]
  if failed:
    said = '; '.join(f'{row["point"]} failed: {row["reason"]}' for row in failed)
    raise InputError(
      f'a sweep of {len(found)} points', said, 'mend it and run it again: what is done stays'
    )


def _finetune(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis.report import report
  from minilm_jax.tasks import finetune

  lines, failed = finetune.finetune_all(
    config, given.checkpoint, given.workdir, given.from_scratch, given.with_scratch
  )
  report.print_tables(lines)
  if failed:
    raise InputError(
      f'scores on {len(config)} tasks',
      '; '.join(f'{error.asked}: {error.found}' for error in failed),
      'give what is missing and run it again: what is done stays',
    )


def _overlap(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.core.config import SubsetConfig
  from minilm_jax.evaluation import overlap

  found = overlap.measure_overlap(
    given.corpus, config, SubsetConfig(given.rows, 0, given.shuffle_seed)
  )
  _print(found if given.json else overlap.overlap_tables(found))


def _overlap_subsets(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.evaluation import overlap_subsets

  found = overlap_subsets.write_overlap_subsets(
    given.corpus,
    config,
    given.workdir,
    given.select_by,
    given.num_parts,
    given.size,
    given.shuffle_seed,
  )
  _print({'parts': found} if given.json else overlap_subsets.subset_tables(found))


_JUDGED_BY = {
  'pairs': ('corpus', 'pll_variant', 'workdir'),
  'text': ('pll_variant',),
  'attention': ('corpus', 'split', 'workdir'),
  '': ('corpus', 'split'),
}


def _evaluate(config: Any, given: Any, paths: Sequence[str]) -> None:
  by = next(
    (
      flag
      for flag in ('pairs', 'text', 'attention')
      if given[flag].present and given[flag].value is not False
    ),
    '',
  )
  for flag in ('text', 'attention', 'corpus', 'split', 'pll_variant', 'workdir'):
    if given[flag].present and flag != by and flag not in _JUDGED_BY[by]:
      there = f'--{by}' if by else 'the loss on a corpus'
      fitting = ' and '.join(f'--{name}' for name in _JUDGED_BY[by])
      raise InputError(
        f'minilm evaluate --{flag}',
        f'{there} does not take it',
        f'leave it out; it takes {fitting}',
      )
  if by == 'pairs':
    from minilm_jax.evaluation import minimal_pairs

    found = minimal_pairs.evaluate_pairs(
      given.checkpoint, given.pairs, given.pll_variant, given.corpus, given.workdir
    )
    _print(found if given.json else minimal_pairs.pair_tables(found))
  elif by == 'text':
    from minilm_jax.evaluation import likelihood

    _print(likelihood.pseudo_perplexity(given.checkpoint, given.text, given.pll_variant))
  elif by == 'attention':
    from minilm_jax.evaluation import evaluate

    found = evaluate.evaluate_attention(given.checkpoint, given.corpus, given.split, given.workdir)
    _print(found if given.json else evaluate.attention_tables(found))
  else:
    from minilm_jax.evaluation import evaluate

    _print(evaluate.evaluate_loss(given.checkpoint, given.corpus, given.split))


def _ngram_baselines(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.evaluation import ngram_baselines

  found = ngram_baselines.measure_baselines(config, given.workdir)
  _print(found if given.json else ngram_baselines.baseline_tables(found))


def _fill_mask(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.evaluation import inference

  guesses = [
    dataclasses.asdict(guess)
    for guess in inference.fill_mask(given.checkpoint, given.text, given.best)
  ]
  if given.json:
    _print({'guesses': guesses})
  else:
    for guess in guesses:
      print(f'{guess["hole"]}  {guess["probability"]:.4f}  {guess["piece"]}')


def _report(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis.report import report

  if not paths and not given.logged:
    raise InputError(
      'a report', 'no run directory', 'give one or more: minilm report runs --workdir=runs/report'
    )
  written = report.report(
    paths, given.workdir, given.confusion, given.logged, given.bootstrap_samples, given.unfinished
  )
  for path in written.values():
    print(path)


def _ablations(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis.report import compare

  if not paths:
    raise InputError(
      'minilm ablations',
      'no folder with runs beside the base',
      'give one or more: minilm ablations --base=runs/past/paper runs/past --workdir=runs/past-compare',
    )
  bases = [base for base in map(str.strip, given.base.split(',')) if base]
  level = given.plateau_loss if given['plateau_loss'].present else None
  lines = compare.named_losses(given.reference_losses)
  _print(
    compare.shown(
      *compare.compare(bases, paths, given.workdir, level, lines, given.preregistration)
    )
  )


def _watch(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.cli import watch

  watch.watch_runs(
    paths, given.axis, given.split if given['split'].present else 'train', given.follow
  )


def _bench(configs: Any, given: Any, paths: Sequence[str]) -> None:
  config, *others = configs.values()
  tuning = config.kind == 'finetune'
  for flag in ('steps', 'repeats', 'population') if tuning else ('checkpoint',):
    if given[flag].present:
      raise InputError(
        f'minilm bench --{flag}',
        f'a recipe of kind {config.kind!r} does not take it',
        'leave it out',
      )
  if tuning:
    _bench_finetune(configs, given)
    return
  if others:
    raise InputError(
      f'bench of {", ".join(configs)}', 'several recipes of pre-training', 'give one'
    )
  if given.population:
    from minilm_jax.bench import pretrain_bench

    found = pretrain_bench.bench_population(
      config, flags.parse_numbers('population', given.population), given.steps, given.repeats
    )
  else:
    from minilm_jax.bench import pretrain_bench

    found = pretrain_bench.bench_pretraining(config, given.steps, given.repeats, given.compare_with)
  _print(found if given.json else pretrain_bench.bench_tables(found))


def _bench_finetune(configs: Any, given: Any) -> None:
  from minilm_jax.bench import finetune_bench

  if not given.checkpoint:
    raise InputError(
      'bench of a fine-tuning recipe', 'no --checkpoint', 'give the pre-training run to start from'
    )
  found = finetune_bench.bench_finetuning(configs, given.checkpoint, given.compare_with)
  _print(found if given.json else finetune_bench.finetune_bench_tables(found))


def _latency(configs: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.bench import latency

  size = given.size if given['size'].present else latency.COMMITTEE_SIZE
  found = latency.measure_latency(configs, size, given.num_calls, given.heads, given.workdir)
  _print(found if given.json else latency.latency_tables(found))


def _committee(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import committee

  found = committee.make_committee(given.members, given.workdir)
  _print(found if given.json else committee.list_tables(found))


def _predict(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.evaluation import inference

  found = inference.write_predictions(
    given.committee, given.classifier, given.text, given.text_pair, given.file
  )
  if given.json:
    print('\n'.join(json.dumps(one, ensure_ascii=False) for one in found))
  else:
    _print(inference.prediction_tables(found))


def _export(config: Any, given: Any, paths: Sequence[str]) -> None:
  pass
  _print(
    export_model(
      given.checkpoint, given.format, given.workdir, given.batch if given['batch'].present else None
    )
  )


def _preflight(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.bench import preflight

  found = preflight.compile_for_topology(config, given.topology)
  _print(found if given.json else preflight.preflight_tables(found))
  preflight.check_topology(found)


def _completion(config: Any, given: Any, paths: Sequence[str]) -> None:
  pass
  print(completion(' '.join(paths), COMMANDS))


def _quickstart(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.cli import quickstart

  quickstart.run_quickstart(given.language, given.workdir)


COMMANDS = {
  'corpus': Command(
    _corpus,
    'text to rows',
    ('corpus',),
    ('workdir*', 'beam'),
    "--config=configs/corpus.py --config.documents.sources='text/*.txt.xz' --workdir=corpora/honey",
  ),
  'overlap': Command(
    _overlap,
    'how much of the text of a task a corpus has seen',
    ('finetune',),
    ('corpus*', 'rows', 'shuffle_seed', 'json'),
    '--corpus=corpora/honey --config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS',
  ),
  'overlap-subsets': Command(
    _overlap_subsets,
    'parts of a corpus, of one size, that overlap less and more with a task',
    ('finetune',),
    ('corpus*', 'workdir*', 'select_by', 'num_parts', 'size', 'shuffle_seed', 'json'),
    '--corpus=corpora/honey --num_parts=3 '
    '--config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS --workdir=corpora/ag_news',
  ),
  'show': Command(
    _show,
    'what a recipe means: fields, parameters, FLOPs, memory; runs nothing',
    ('pretrain', 'finetune', 'corpus'),
    ('checkpoint', 'json'),
    '--config=configs/paper1.py:magic-bee-26 --json',
    instead='checkpoint',
  ),
  'pretrain': Command(
    _pretrain,
    'masked language modelling',
    ('pretrain',),
    ('workdir*', 'coordinator', 'processes', 'process', 'timeout', 'deterministic', 'profile'),
    '--config=configs/tiny.py --workdir=runs/tiny',
  ),
  'sweep': Command(
    _sweep,
    'a grid of points, each a run; shares of it on several machines',
    ('pretrain',),
    ('workdir*', 'shard', 'tokens', 'flops', 'seconds', 'dry_run', 'deterministic', 'json'),
    '--config=configs/cpu_grid.py --config.corpus=corpora/honey --workdir=runs/grid --shard=1/2',
    each=True,
    whole=True,
  ),
  'extract-member': Command(
    _extract_member,
    'one member of a population as a run of its own',
    (),
    ('checkpoint*', 'member', 'workdir*', 'trust'),
    '--checkpoint=runs/population --member=3 --workdir=runs/member-3',
  ),
  'import': Command(
    _import,
    'a RoBERTa, BERT or ELECTRA of Hugging Face as a run, to fine-tune',
    (),
    ('from*', 'workdir*'),
    '--from=downloads/bert-tiny --workdir=runs/bert-tiny',
  ),
  'finetune': Command(
    _finetune,
    'checkpoints on tasks, several seeds and learning rates',
    ('finetune',),
    ('workdir*', 'checkpoint*', 'from_scratch', 'with_scratch', 'trust', 'deterministic'),
    '--config=configs/glue.py:cola,mrpc --config.task.data_dir=TFDS --checkpoint=runs/tiny '
    '--workdir=runs/glue',
    each=True,
  ),
  'committee': Command(
    _committee,
    'fine-tuned classifiers that answer together: a folder to use, copy and score',
    (),
    ('members*', 'workdir*', 'trust', 'json'),
    "--members='runs/glue/*/classifier-*' --workdir=runs/committee",
  ),
  'predict': Command(
    _predict,
    'the label of a text, or of each of a file, by a committee or one classifier',
    (),
    ('committee', 'classifier', 'text', 'text_pair', 'file', 'trust', 'json'),
    "--committee=runs/committee --text='a film to forget .'",
  ),
  'evaluate': Command(
    _evaluate,
    'a checkpoint as it is: loss, minimal pairs, perplexity of a text, attention',
    (),
    (
      'checkpoint*',
      'corpus',
      'split',
      'pairs',
      'pll_variant',
      'text',
      'attention',
      'workdir',
      'trust',
      'json',
    ),
    '--checkpoint=runs/magic-bee-26 --pairs=blimp.jsonl.xz --workdir=runs/blimp',
  ),
  'ngram-baselines': Command(
    _ngram_baselines,
    'what counts of neighbours alone reach on the hidden tokens of an evaluation',
    ('pretrain',),
    ('workdir*', 'json'),
    '--config=configs/paper1.py:magic-bee-26 '
    '--config.corpus=corpora/honey --workdir=runs/baselines',
  ),
  'fill-mask': Command(
    _fill_mask,
    'guesses for each <mask> of a text',
    (),
    ('checkpoint*', 'text*', 'best', 'trust', 'json'),
    "--checkpoint=runs/tiny --text='the dog <mask> a bone .'",
  ),
  'watch': Command(
    _watch,
    'curves of runs in the terminal, once or as they grow',
    (),
    ('follow', 'axis', 'split'),
    'runs/tiny --follow',
    paths=True,
  ),
  'export': Command(
    _export,
    'a model for others: Hugging Face, a StableHLO program of a classifier, or its card',
    (),
    ('checkpoint*', 'format*', 'workdir*', 'batch', 'trust'),
    '--checkpoint=runs/tiny --format=hf --workdir=exports/tiny',
  ),
  'report': Command(
    _report,
    'tables, figures and an HTML page from run directories or a logged table',
    (),
    ('workdir', 'confusion', 'logged', 'bootstrap_samples', 'unfinished'),
    'runs --workdir=runs/report',
    paths=True,
  ),
  'ablations': Command(
    _ablations,
    'what a change of a recipe brings: tokens to leave the plateau, FLOPs to a loss',
    (),
    ('base*', 'workdir*', 'plateau_loss', 'reference_losses', 'preregistration'),
    '--base=runs/past/paper runs/past runs/past-1 --workdir=runs/past-compare',
    paths=True,
  ),
  'bench': Command(
    _bench,
    'time a recipe on this machine: the training step, or fine-tuning',
    ('pretrain', 'finetune'),
    ('steps', 'repeats', 'compare_with', 'population', 'checkpoint', 'trust', 'json'),
    '--config=configs/paper1.py:magic-bee-26 --config.batch_size=64 --compare_with=torch',
    each=True,
  ),
  'latency': Command(
    _latency,
    'how long an answer takes: one classifier, a committee of it, other recipes',
    ('pretrain',),
    ('size', 'heads', 'num_calls', 'workdir', 'json'),
    '--config=configs/paper2_models.py:conv2-k3-d64@96,bert-6@96 --size=5 --heads=5',
    each=True,
  ),
  'preflight': Command(
    _preflight,
    'compile a recipe for a TPU that is not there: memory, collectives, time',
    ('pretrain',),
    ('topology*', 'json'),
    '--config=configs/paper1.py:all --topology=v5e:2x4',
    each=True,
  ),
  'quickstart': Command(
    _quickstart,
    'all of it, small',
    (),
    ('language', 'workdir*'),
    '--language=microworld --workdir=runs/quickstart',
  ),
  'completion': Command(
    _completion,
    'a script that completes verbs, flags and files in a shell',
    (),
    (),
    'bash',
    paths=True,
  ),
}
