"""Training sets of pre-training runs: their sizes, and their overlap with a task."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.loss_curves import RUN_ERRORS
from minilm_jax.core import model_config, old_names, run_dir
from minilm_jax.core.errors import InputError

_TASK_SELECTIONS = ('overlap', 'likelihood')  # methods of `minilm overlap-subsets` that use a task


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """The training set of a pre-training run.

  Attributes:
    key: model and tokenizer as JSON, which determine scores from scratch.
    rows: rows of the corpus or its subset.
    tokens: tokens of these rows, without padding.
    split_rows: rows of the full training split.
    rows_seen: rows of all updates of the run.
    seed: seed of the run.
    task: task of the overlap; '' if not measured.
    overlap: share of the running words of the task that the set contains; nan if not measured.
    selected: a task selected the rows.
    full_corpus: hash of the corpus that contains the subset.
  """

  name: str
  shape: str
  key: str
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

  @property
  def model(self) -> dict[str, Any]:
    """Model fields of the recipe."""
    return json.loads(self.key)[0]

  @property
  def tokenizer(self) -> str:
    """Hash of the tokenizer."""
    return json.loads(self.key)[1]

  @property
  def has_convolutions(self) -> bool:
    """True if the model has convolutions."""
    return bool(self.model.get('convolutions'))  # recipes of old runs lack the field

  @property
  def epochs(self) -> float:
    """Number of passes over the rows."""
    return self.rows_seen / self.rows


def read_training_sets(run_paths: Mapping[str, epath.Path]) -> Iterator[TrainingSet]:
  """Yields the training set of each pre-training run with a training set in the manifest.

  A run that started with the weights of another run has several training sets and is left out.

  Raises:
    InputError: a file of a run is damaged.
  """
  for name, path in run_paths.items():
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    is_pretraining = runs.read_kind(path) == 'pretrain' and not runs.explain_origin(path)
    if not is_pretraining or 'training' not in manifest:
      continue
    try:
      yield _make_training_set(name, config, manifest)
    except RUN_ERRORS as error:
      reason = f'no {error}' if isinstance(error, KeyError) else str(error)
      raise InputError(
        f'the training set of {path}',
        f'{reason} in {run_dir.CONFIG} or {run_dir.MANIFEST}',
        'restore both files, or leave the run out',
      ) from None


def _make_training_set(
  name: str, config: Mapping[str, Any], manifest: Mapping[str, Any]
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
    key=json.dumps([model, manifest['tokenizer']], sort_keys=True),
    rows=rows,
    tokens=tokens,
    split_rows=split_rows,
    rows_seen=int(config['num_steps']) * int(config['batch_size']),
    seed=int(config['seed']),
    task=str(subset['task']) if subset else '',
    overlap=float(subset['overlap']['value']) if subset else math.nan,
    selected=bool(subset) and subset['by'] in _TASK_SELECTIONS,
    corpus=corpus,
    full_corpus=str(subset['of']) if subset else corpus,
  )


def find_other_sets(sets: Iterable[TrainingSet]) -> dict[str, str]:
  """Returns the runs that a scaling study leaves out, with the reason.

  A scaling study compares models that are trained on one set. Of a corpus and its subsets, the
  largest training set stays.
  """
  left_out = {}
  for family in runs.group_by(sets, lambda training_set: training_set.full_corpus).values():
    largest = max((other.rows, other.corpus) for other in family)
    for other in family:
      if (other.rows, other.corpus) != largest:
        left_out[other.name] = (
          f'{other.name}: trained on {other.rows:,} rows, but the scaling study compares models that '
          f'are trained on one set, here {largest[0]:,} rows'
        )
  return left_out
