"""Handlers of the commands that evaluate and use trained models, and that measure corpora.

A handler takes the configuration, the flags and the paths of a command line, calls one function and
prints the result. Handlers import JAX themselves, so that `minilm --help` is fast.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from minilm_jax.cli.flags import FlagValues, check_latest
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.progress import print_result

# Flags that each measure of `evaluate` accepts; '' is the loss on a corpus.
_MEASURE_FLAGS = {
  'pairs': ('corpus', 'pll_variant', 'workdir'),
  'text': ('pll_variant',),
  'attention': ('corpus', 'split', 'workdir'),
  '': ('corpus', 'split'),
}


def evaluate(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Evaluates a checkpoint on minimal pairs, a text or a corpus, or measures attention."""
  measure = _choose_measure(flags)
  if measure != 'attention':
    check_latest('evaluate', flags.checkpoint)
  if measure == 'pairs':
    from minilm_jax.evaluation import minimal_pairs

    result = minimal_pairs.evaluate_pairs(
      flags.checkpoint, flags.pairs, flags.pll_variant, flags.corpus, flags.workdir
    )
    print_result(result if flags.json else minimal_pairs.make_pair_tables(result))
  elif measure == 'text':
    from minilm_jax.evaluation import likelihood

    print_result(
      likelihood.measure_pseudo_perplexity(flags.checkpoint, flags.text, flags.pll_variant)
    )
  elif measure == 'attention':
    from minilm_jax.evaluation import attention

    result = attention.evaluate_attention(
      flags.checkpoint, flags.corpus, flags.split, flags.workdir
    )
    print_result(result if flags.json else attention.make_attention_tables(result))
  else:
    from minilm_jax.evaluation import evaluate

    print_result(evaluate.evaluate_loss(flags.checkpoint, flags.corpus, flags.split))


def _choose_measure(flags: FlagValues) -> str:
  """Returns a key of `_MEASURE_FLAGS`; raises InputError for flags of other measures."""
  measures = [
    name for name in _MEASURE_FLAGS if name in flags.present and getattr(flags, name) is not False
  ]
  measure = measures[0] if measures else ''
  accepted = _MEASURE_FLAGS[measure]
  for flag in ('text', 'attention', 'corpus', 'split', 'pll_variant', 'workdir'):
    if flag in flags.present and flag != measure and flag not in accepted:
      subject = f'--{measure}' if measure else 'the loss on a corpus'
      raise InputError(
        f'minilm evaluate --{flag}',
        f'{subject} does not use --{flag}',
        f'remove --{flag}; {subject} uses {", ".join(f"--{name}" for name in accepted)}',
      )
  return measure


def measure_overlap(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Measures the overlap of a task with a corpus."""
  from minilm_jax.evaluation import overlap

  subset = SubsetConfig(rows=flags.rows, shuffle_seed=flags.shuffle_seed)
  result = overlap.measure_overlap(flags.corpus, config, subset)
  print_result(result if flags.json else overlap.make_overlap_tables(result))


def write_overlap_subsets(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Writes subsets of a corpus, ordered by their overlap with a task."""
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
  print_result({'parts': parts} if flags.json else overlap_subsets.make_subset_tables(parts))


def measure_ngram_baselines(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Measures n-gram models on the masked tokens of an evaluation."""
  from minilm_jax.evaluation import ngram_baselines

  result = ngram_baselines.measure_baselines(config, flags.workdir)
  print_result(result if flags.json else ngram_baselines.make_baseline_tables(result))


def fill_mask(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Prints the most probable pieces for each <mask> of a text."""
  check_latest('fill-mask', flags.checkpoint)
  from minilm_jax.evaluation import inference

  inference.check_guesses(flags.text, flags.best)
  guesses = inference.LanguageModel(flags.checkpoint).fill_mask(flags.text, flags.best)
  if flags.json:
    print_result({'guesses': [dataclasses.asdict(guess) for guess in guesses]})
  else:
    for guess in guesses:
      print(f'{guess.hole}  {guess.probability:.4f}  {guess.piece}')


def make_committee(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Copies classifiers into a committee and scores its subsets."""
  from minilm_jax.tasks import committee

  result = committee.make_committee(flags.members, flags.workdir)
  print_result(result if flags.json else committee.make_committee_tables(result))


def predict(config: Any, flags: FlagValues, paths: Sequence[str]) -> None:
  """Prints the label of each text as predicted by a committee or a classifier."""
  if 'text' in flags.present and not flags.text.strip():
    raise InputError(
      'minilm predict --text', 'an empty text', 'give words, or --file without --text'
    )
  from minilm_jax.evaluation import inference

  predictions = inference.predict(
    flags.committee, flags.classifier, flags.text, flags.text_pair, flags.file
  )
  if flags.json:
    for prediction in predictions:
      print_result(prediction, indent=None)
  else:
    print_result(inference.make_prediction_tables(predictions))
