"""Handlers of the commands that show, compare and time recipes and runs, and of the quickstart.

A handler takes the configuration, the flags and the paths of a command line, calls one function and
prints the result. Handlers import JAX themselves, so that `minilm --help` is fast.
"""

from collections.abc import Sequence
from typing import Any

from minilm_jax.cli.flags import FlagValues, check_latest
from minilm_jax.core.errors import InputError
from minilm_jax.core.paths import split_names
from minilm_jax.core.progress import print_result

_MAX_DIGITS = 19  # shorter numbers fit in 64 bits


def show(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Prints the facts of a recipe or a run, without training."""
  check_latest('show', flags.checkpoint)
  from minilm_jax.cli import show

  if flags.checkpoint and config:
    raise InputError(
      'minilm show --config --checkpoint', 'both a recipe and a run', 'give only one of the flags'
    )
  facts = show.describe_run(flags.checkpoint) if flags.checkpoint else show.describe_recipe(config)
  print_result(facts if flags.json else show.make_show_tables(facts))


def watch(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Plots loss curves of runs in the terminal."""
  from minilm_jax.cli import watch

  watch.watch_runs(
    paths, flags.axis, flags.split if 'split' in flags.present else 'train', flags.follow
  )


def report(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Writes the report on runs and prints the paths of its files."""
  from minilm_jax.analysis.report import report

  if not paths and not flags.logged:
    raise InputError(
      'minilm report',
      'no run directory and no --logged',
      'give run directories, as in: minilm report runs --workdir=runs/report',
    )
  files = report.report(
    paths, flags.workdir, flags.confusion, flags.logged, flags.bootstrap_samples, flags.unfinished
  )
  for path in files.values():
    print(path)


def compare_ablations(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Compares runs of changed recipes with runs of the base recipe."""
  from minilm_jax.analysis.report import compare

  if not paths:
    raise InputError(
      'minilm ablations',
      'no run directory of a changed recipe',
      'give directories: minilm ablations --base=runs/plateau/paper runs/plateau --workdir=W',
    )
  comparison = compare.compare(
    split_names(flags.base),
    paths,
    flags.workdir,
    flags.plateau_loss if 'plateau_loss' in flags.present else None,
    compare.parse_losses(flags.reference_losses),
    flags.preregistration,
  )
  print_result(compare.list_terminal_parts(*comparison))


def bench(configs: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Times pre-training, a population, or fine-tuning."""
  config, *others = configs.values()
  is_finetuning = config.kind == 'finetune'
  for flag in ('steps', 'repeats', 'population') if is_finetuning else ('checkpoint',):
    if flag in flags.present:
      raise InputError(
        f'minilm bench --{flag}',
        f'a recipe of kind {config.kind!r}, which does not use --{flag}',
        f'remove --{flag}',
      )
  if is_finetuning:
    from minilm_jax.bench import finetune_bench

    if not flags.checkpoint:
      raise InputError(
        'minilm bench with a fine-tuning recipe',
        'no --checkpoint',
        'give --checkpoint=RUN, the pre-training run to start from',
      )
    result = finetune_bench.bench_finetuning(configs, flags.checkpoint, flags.compare_with)
    print_result(result if flags.json else finetune_bench.make_finetune_bench_tables(result))
    return
  if others:
    raise InputError(
      f'minilm bench with {", ".join(configs)}',
      f'{len(configs)} pre-training recipes',
      'give one recipe',
    )
  from minilm_jax.bench import pretrain_bench

  if flags.population:
    if flags.compare_with:
      raise InputError(
        f'minilm bench --population --compare_with={flags.compare_with}',
        'competitors train a single model',
        'remove one of the flags',
      )
    sizes = _parse_sizes(flags.population)
    result = pretrain_bench.bench_population(config, sizes, flags.steps, flags.repeats)
    print_result(result if flags.json else pretrain_bench.make_population_tables(result))
  else:
    result = pretrain_bench.bench_pretraining(
      config, flags.steps, flags.repeats, flags.compare_with
    )
    print_result(result if flags.json else pretrain_bench.make_bench_tables(result))


def _parse_sizes(text: str) -> list[int]:
  """Returns the comma-separated sizes of populations; raises InputError for other text."""
  words = [word.strip() for word in text.split(',')]
  if not all(word.isdecimal() and len(word) < _MAX_DIGITS and int(word) for word in words):
    raise InputError(
      f'--population={text}',
      'not positive whole numbers separated by commas',
      'give sizes such as --population=1,2,4,8',
    )
  return [int(word) for word in words]


def measure_latency(configs: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Measures the latency of a classifier, a committee and other encoders."""
  from minilm_jax.bench import latency

  size = flags.size if 'size' in flags.present else latency.COMMITTEE_SIZE
  result = latency.measure_latency(configs, size, flags.num_calls, flags.heads, flags.workdir)
  print_result(result if flags.json else latency.make_latency_tables(result))


def check_device(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Runs the benchmarks of this machine, each in a process of its own."""
  from minilm_jax.bench import device_check

  result = device_check.check_device(flags.workdir)
  print_result(result if flags.json else device_check.make_check_tables(result))


def preflight(configs: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Compiles recipes for absent devices; raises InputError if a recipe does not fit."""
  from minilm_jax.bench import preflight

  if flags.fit and flags.program != 'train':
    raise InputError(
      f'minilm preflight --fit --program={flags.program}',
      '--fit searches the largest sizes of training',
      'remove --fit or --program',
    )
  target = preflight.describe_target(flags.topology, flags.deterministic)
  if flags.fit:
    sizes = preflight.find_largest_sizes(configs, target)
    print_result(sizes if flags.json else preflight.make_size_tables(sizes))
    return
  result = preflight.compile_for_topology(configs, target, flags.program)
  print_result(result if flags.json else preflight.make_preflight_tables(result))
  preflight.check_topology(result)


def run_quickstart(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Runs every stage at a small size."""
  from minilm_jax.cli import quickstart

  quickstart.run_quickstart(flags.language, flags.workdir)
