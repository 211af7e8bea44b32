"""Training sets of pre-training runs: their sizes, and their overlap with a task."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.loss_curves import RUN_ERRORS
from minilm_jax.core import model_config, old_names, run_dir
from minilm_jax.core.errors import InputError, sanitize

_TASK_SELECTIONS = ('overlap', 'likelihood')  # methods of `minilm overlap-subsets` that use a task


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """The training set of a pre-training run.

  Attributes:
    model: model fields of the recipe, with those that old runs lack.
    tokenizer: hash of the tokenizer.
    rows: rows of the corpus or its subset.
    tokens: tokens of these rows, without padding.
    split_rows: rows of the full training split.
    rows_seen: rows of all updates of the run.
    task: task of the overlap; '' if not measured.
    overlap: share of the running words of the task that the set contains; nan if not measured.
    selected: a task selected the rows.
    full_corpus: hash of the corpus that contains the subset.
    curves: number of models of the run, without members that were extracted to runs.
  """

  name: str
  shape: str
  model: Mapping[str, Any]
  tokenizer: str
  rows: int
  tokens: int
  split_rows: int
  rows_seen: int
  seed: int
  task: str
  overlap: float
  selected: bool
  corpus: str
  full_corpus: str
  curves: int = 1

  @property
  def key(self) -> str:
    """Model and tokenizer as JSON, which determine scores from scratch."""
    return json.dumps([self.model, self.tokenizer], sort_keys=True)

  @property
  def epochs(self) -> float:
    """Number of passes over the rows."""
    return self.rows_seen / self.rows


def read_training_sets(run_paths: Mapping[str, epath.Path]) -> dict[str, TrainingSet]:
  """Returns the training set of each pre-training run with a training set in the manifest.

  A run that started with the weights of another run has several training sets and is left out.

  Raises:
    InputError: a file of a run is damaged.
  """
  sets = {}
  for name, path in runs.select_kind(run_paths, 'pretrain').items():
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    if runs.explain_origin(path) or 'training' not in manifest:
      continue
    try:
      sets[name] = _make_training_set(name, config, manifest, len(runs.split_members(path)))
    except RUN_ERRORS as error:
      reason = f'no {error}' if isinstance(error, KeyError) else str(error)
      raise InputError(
        f'the training set of {path}',
        f'{reason} in {run_dir.CONFIG} or {run_dir.MANIFEST}',
        'restore both files, or leave the run out',
      ) from None
  return sets


def _make_training_set(
  name: str, config: Mapping[str, Any], manifest: Mapping[str, Any], curves: int
) -> TrainingSet:
  training, subset = manifest['training'], manifest['training']['subset']
  rows, tokens, split_rows = (int(training[field]) for field in ('rows', 'tokens', 'of_rows'))
  model = {**old_names.ADDED_FIELDS['model'], **config['model']}
  corpus = str(manifest['corpus'])
  if min(rows, tokens) < 1:
    raise ValueError(f'{rows} rows of {tokens} tokens')
  return TrainingSet(
    name=name,
    shape=model_config.format_shape(model),
    model=model,
    tokenizer=manifest['tokenizer'],
    rows=rows,
    tokens=tokens,
    split_rows=split_rows,
    rows_seen=int(config['num_steps']) * int(config['batch_size']),
    seed=int((config['population']['seeds'] or [config['seed']])[0]),
    task=str(subset['task']) if subset else '',
    overlap=float(subset['overlap']['value']) if subset else math.nan,
    selected=bool(subset) and subset['by'] in _TASK_SELECTIONS,
    corpus=corpus,
    full_corpus=str(subset['of']) if subset else corpus,
    curves=curves,
  )


def find_other_sets(sets: Mapping[str, TrainingSet]) -> dict[str, str]:
  """Returns the runs that a scaling study leaves out, with the reason.

  A scaling study compares models that are trained on one set. Of a corpus and its subsets, the
  largest training set stays. Of several corpora or tokenizers with one vocabulary size, the one
  with the most models stays. A study of the vocabulary encodes one text by several tokenizers, so
  corpora of different vocabulary sizes stay.
  """
  left_out: dict[str, str] = {}
  largest_sets: list[TrainingSet] = []
  for family in runs.group_by(
    sets.values(), lambda training_set: training_set.full_corpus
  ).values():
    by_set = runs.group_by(family, lambda training_set: (training_set.rows, training_set.corpus))
    largest_sets += by_set[max(by_set)]
    left_out |= _explain_other_sets(family, by_set[max(by_set)])
  for same_size in runs.group_by(largest_sets, lambda other: other.model['vocab_size']).values():
    by_text = runs.group_by(same_size, lambda other: (other.full_corpus, other.tokenizer))
    kept = max(
      by_text.values(),
      key=lambda group: (sum(each.curves for each in group), group[0].rows, group[0].key),
    )
    left_out |= _explain_other_sets(same_size, kept)
  return left_out


def _explain_other_sets(sets: Sequence[TrainingSet], kept: Sequence[TrainingSet]) -> dict[str, str]:
  return {
    other.name: (
      f'{other.name}: trained on {_describe_rows(other)}, but the scaling study compares models that '
      f'are trained on one set, here {_describe_rows(kept[0])}'
    )
    for other in sets
    if other not in kept
  }


def _describe_rows(training_set: TrainingSet) -> str:
  return f'{training_set.rows:,} rows of the corpus {sanitize(training_set.corpus[:8])}'
