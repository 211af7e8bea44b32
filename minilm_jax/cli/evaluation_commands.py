"""Handlers of the commands that measure and use trained models, and that measure corpora.

A handler takes the configuration, the flags and the free arguments, calls one function and prints
its result. Heavy modules are imported inside, because `minilm --help` must not wait for JAX.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from minilm_jax.cli.flags import FlagValues
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.progress import print_result

# Flags of evaluate that each of its measures takes; '' is the loss on a corpus.
_MEASURE_FLAGS = {
  'pairs': ('corpus', 'pll_variant', 'workdir'),
  'text': ('pll_variant',),
  'attention': ('corpus', 'split', 'workdir'),
  '': ('corpus', 'split'),
}


def evaluate(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Measures a checkpoint: minimal pairs, a text, its attention, or the loss on a corpus."""
  measure = _choose_measure(flags)
  if measure == 'pairs':
    from minilm_jax.evaluation import minimal_pairs

    result = minimal_pairs.evaluate_pairs(
      flags.checkpoint, flags.pairs, flags.pll_variant, flags.corpus, flags.workdir
    )
    print_result(result if flags.json else minimal_pairs.pair_tables(result))
  elif measure == 'text':
    from minilm_jax.evaluation import likelihood

    print_result(likelihood.pseudo_perplexity(flags.checkpoint, flags.text, flags.pll_variant))
  elif measure == 'attention':
    from minilm_jax.evaluation import attention

    result = attention.evaluate_attention(
      flags.checkpoint, flags.corpus, flags.split, flags.workdir
    )
    print_result(result if flags.json else attention.attention_tables(result))
  else:
    from minilm_jax.evaluation import evaluate

    print_result(evaluate.evaluate_loss(flags.checkpoint, flags.corpus, flags.split))


def _choose_measure(flags: FlagValues) -> str:
  """Returns a key of `_MEASURE_FLAGS`; raises InputError for a flag of another measure."""
  chosen = [
    name for name in _MEASURE_FLAGS if name in flags.present and getattr(flags, name) is not False
  ]
  measure = chosen[0] if chosen else ''
  taken = _MEASURE_FLAGS[measure]
  for flag in ('text', 'attention', 'corpus', 'split', 'pll_variant', 'workdir'):
    if flag in flags.present and flag != measure and flag not in taken:
      subject = f'--{measure}' if measure else 'the loss on a corpus'
      raise InputError(
        f'minilm evaluate --{flag}',
        f'{subject} does not take it',
        f'leave it out; it takes {" and ".join(f"--{name}" for name in taken)}',
      )
  return measure


def measure_overlap(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Measures the overlap of a task with a corpus."""
  from minilm_jax.evaluation import overlap

  subset = SubsetConfig(rows=flags.rows, shuffle_seed=flags.shuffle_seed)
  result = overlap.measure_overlap(flags.corpus, config, subset)
  print_result(result if flags.json else overlap.overlap_tables(result))


def write_overlap_subsets(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Writes parts of a corpus of less and more overlap with a task."""
  from minilm_jax.evaluation import overlap_subsets

  parts = overlap_subsets.write_overlap_subsets(
    flags.corpus,
    config,
    flags.workdir,
    flags.select_by,
    flags.num_parts,
    flags.size,
    flags.shuffle_seed,
  )
  print_result({'parts': parts} if flags.json else overlap_subsets.subset_tables(parts))


def measure_ngram_baselines(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Measures n-gram predictors on the masked tokens of an evaluation."""
  from minilm_jax.evaluation import ngram_baselines

  result = ngram_baselines.measure_baselines(config, flags.workdir)
  print_result(result if flags.json else ngram_baselines.baseline_tables(result))


def fill_mask(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Prints the most probable pieces for each <mask> of a text."""
  from minilm_jax.evaluation import inference

  guesses = inference.fill_mask(flags.checkpoint, flags.text, flags.best)
  if flags.json:
    print_result({'guesses': [dataclasses.asdict(guess) for guess in guesses]})
  else:
    for guess in guesses:
      print(f'{guess.hole}  {guess.probability:.4f}  {guess.piece}')


def make_committee(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Copies classifiers into a committee and scores its subsets."""
  from minilm_jax.tasks import committee

  result = committee.make_committee(flags.members, flags.workdir)
  print_result(result if flags.json else committee.list_tables(result))


def predict(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Prints the label of each text by a committee or a classifier."""
  from minilm_jax.evaluation import inference

  predictions = inference.predict(
    flags.committee, flags.classifier, flags.text, flags.text_pair, flags.file
  )
  if flags.json:
    print('\n'.join(json.dumps(prediction, ensure_ascii=False) for prediction in predictions))
  else:
    print_result(inference.prediction_tables(predictions))
