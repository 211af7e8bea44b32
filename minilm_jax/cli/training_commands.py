"""Handlers of the commands that build corpora, train models and export them.

A handler takes the configuration, the flags and the paths of a command line, calls one function and
prints the result. Handlers import JAX themselves, so that `minilm --help` is fast.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from minilm_jax.cli.flags import FlagValues, check_latest
from minilm_jax.core import distributed
from minilm_jax.core.errors import InputError
from minilm_jax.core.progress import print_result


def build_corpus(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Builds a corpus and prints its folder."""
  from minilm_jax.data import build

  print(build.build_corpus(config, flags.workdir, flags.beam))


def pretrain(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Pre-trains one run, in one process or several."""
  with distributed.initialized(flags.coordinator, flags.processes, flags.process, flags.timeout):
    from minilm_jax.cli import profiler
    from minilm_jax.training import run

    with profiler.open_recorder(flags.profile, config.num_steps, flags.workdir) as recorder:
      result = run.pretrain(
        config, flags.workdir, recorder.record, flags.init_from, flags.init_optimizer
      )
    # A single line follows the log lines of the sink `json`.
    print_result(result, indent=None if 'json' in config.log.sinks else 2)


def sweep(configs: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Trains the points of a sweep; raises InputError at the end if points failed."""
  from minilm_jax.cli import sweep

  budget = sweep.Budget(flags.tokens, flags.flops, flags.seconds)
  points = sweep.run_sweep(configs, flags.workdir, flags.shard, budget, flags.dry_run)
  print_result({'points': points} if flags.json else sweep.make_sweep_tables(points))
  failures = [f'{row["point"]} failed: {row["reason"]}' for row in points if 'reason' in row]
  if failures:
    raise InputError(
      f'a sweep of {len(points)} points',
      '; '.join(failures),
      'fix the cause and repeat the command: finished points are skipped',
    )


def extract_member(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Writes one member of a population as a run."""
  check_latest('extract-member', flags.checkpoint)
  from minilm_jax.training import pretrained

  print_result(pretrained.extract_member(flags.checkpoint, flags.member, flags.workdir))


def import_model(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Converts a Hugging Face model to a run."""
  from minilm_jax.interop import hf_import

  print_result(hf_import.import_model(getattr(flags, 'from'), flags.workdir))


def finetune(configs: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Fine-tunes checkpoints on tasks; raises InputError at the end if tasks failed."""
  from minilm_jax.analysis.report import tables
  from minilm_jax.tasks import suite

  lines, errors = suite.finetune_all(
    configs, flags.checkpoint, flags.workdir, flags.from_scratch, flags.with_scratch
  )
  tables.print_scores(lines)
  if errors:
    raise InputError(
      f'scores on {len(configs)} tasks',
      '; '.join(f'{error.asked}: {error.found}' for error in errors),
      'fix the cause and repeat the command: finished tasks are skipped',
    )


def export_model(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Exports a model in one of the formats of `--format`."""
  if 'batch' in flags.present and flags.format != 'stablehlo':
    raise InputError(
      'minilm export --batch',
      f'--format={flags.format}, which does not use --batch',
      'remove --batch, or give --format=stablehlo',
    )
  result: Mapping[str, Any]
  if flags.format == 'hf':
    from minilm_jax.interop import hf_export

    result = hf_export.export_huggingface(flags.checkpoint, flags.workdir)
  elif flags.format == 'stablehlo':
    from minilm_jax.interop import stablehlo

    result = stablehlo.export_stablehlo(flags.checkpoint, flags.workdir, flags.batch)
  else:
    from minilm_jax.interop import model_card

    result = model_card.write_card(flags.checkpoint, flags.workdir)
  print_result({'workdir': flags.workdir, **result})
