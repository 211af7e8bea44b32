"""Scores soft committees of every size from the outputs of their members (paper 2).

A committee predicts by the mean logit or by the mean probability of its members. The module does
not import JAX, so that reports on committees start quickly.
"""

import dataclasses
import io
import itertools
import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Int, Shaped
from scipy import special

from minilm_jax.core import files
from minilm_jax.core.errors import LIBRARY_ERRORS, InputError
from minilm_jax.tasks import metrics

MAX_SUBSETS = 100  # of each size
# Values of SubsetScore.combined.
LOGIT, PROBABILITY, MEMBERS = 'mean logit', 'mean probability', 'members'
DISAGREEMENT = 'disagreement'
OUTPUTS_FILE = 'outputs.npz'  # in the folder of a classifier
_SUBSET_SEED = 0
_REMEDY = 'fine-tune again with --config.save_classifiers=True, and copy the complete folder'
# Errors of a damaged .npz file. NumPy evaluates the header of each array as a Python literal.
_DAMAGED_ARRAYS = (
  *LIBRARY_ERRORS,
  SyntaxError,
  zipfile.BadZipFile,
  zlib.error,
  tokenize.TokenError,
)
Outputs = tuple[Float[np.ndarray, 'N C'], Shaped[np.ndarray, 'N']]


@dataclasses.dataclass(frozen=True)
class SubsetScore:
  """Stores a metric of the committees of a size.

  Attributes:
    size: Number of members of a subset.
    combined: `LOGIT`, `PROBABILITY`, or `MEMBERS` for the mean over single members.
    headline: Whether the metric is the main metric of the task.
    mean: Mean over the subsets.
    low: 2.5th percentile over the subsets, `high` the 97.5th; nan for a single subset.
    every: Whether all subsets of the size are included.
  """

  split: str
  size: int
  combined: str
  metric: str
  headline: bool
  mean: float
  low: float
  high: float
  subsets: int
  every: bool


def read_outputs(path: epath.PathLike) -> dict[str, Outputs]:
  """Returns the outputs of a classifier and the correct labels of each reported split.

  Raises:
    InputError: The file is missing or damaged, or its packed or unpacked size is too large.
  """
  file, subject = epath.Path(path) / OUTPUTS_FILE, f'the outputs of the classifier {path}'
  try:
    data = io.BytesIO(files.read_bytes(file, subject, _REMEDY))
    size = sum(part.file_size for part in zipfile.ZipFile(data).infolist())
    if size > files.MAX_FILE_BYTES:
      raise InputError(subject, f'{size:,} unpacked bytes in {file}', _REMEDY)
    data.seek(0)
    with np.load(data, allow_pickle=False) as archive:
      arrays = dict(archive)
    splits = [name.removesuffix(' outputs') for name in arrays if name.endswith(' outputs')]
    if not splits:
      raise ValueError('no outputs')
    return {split: (arrays[f'{split} outputs'], arrays[f'{split} labels']) for split in splits}
  except _DAMAGED_ARRAYS as error:
    raise InputError(subject, f'unreadable {file}: {error}', _REMEDY) from None


def combine_outputs(logits: Float[np.ndarray, 'M N C'], combined: str) -> Float[np.ndarray, 'N C']:
  """Returns probabilities of a committee: softmax of the mean logit, or mean of the softmax."""
  logits = logits.astype(np.float64)
  if combined == LOGIT:
    return special.softmax(logits.mean(0), axis=-1)
  return special.softmax(logits, axis=-1).mean(0)


def draw_subsets(members: int, size: int) -> list[tuple[int, ...]]:
  """Returns all subsets of a size, or `MAX_SUBSETS` distinct subsets drawn with a fixed seed.

  >>> draw_subsets(3, 2)
  [(0, 1), (0, 2), (1, 2)]
  """
  if math.comb(members, size) <= MAX_SUBSETS:
    return list(itertools.combinations(range(members), size))
  random = np.random.default_rng([_SUBSET_SEED, members, size])
  subsets: dict[tuple[int, ...], None] = {}
  while len(subsets) < MAX_SUBSETS:
    subsets[tuple(sorted(random.choice(members, size, replace=False).tolist()))] = None
  return list(subsets)


def study_sizes(
  logits: Float[np.ndarray, 'M N C'], labels: Int[np.ndarray, 'N'], headline: str, split: str
) -> list[SubsetScore]:
  """Returns the scores of committees of every size up to M by the headline metric and accuracy.

  Raises:
    InputError: No member is given, or a logit is not finite.
  """
  if not len(logits) or not np.isfinite(logits).all():
    raise InputError(
      f'scores of a committee on {split}',
      'non-finite logits' if len(logits) else 'no members',
      'give members with finite losses',
    )
  names = tuple(dict.fromkeys((headline, 'accuracy')))
  member_scores = [
    _score(logits[[member]], PROBABILITY, labels, names) for member in range(len(logits))
  ]
  predictions = logits.argmax(-1)
  # The share of examples with different predictions, for each pair of members.
  disagreement = (predictions[:, None] != predictions[None]).mean(-1)

  def score_subset(subset: Sequence[int]) -> dict[tuple[str, str], float]:
    scores = {
      (combined, metric): value
      for combined in (LOGIT, PROBABILITY)
      for metric, value in _score(logits[list(subset)], combined, labels, names).items()
    }
    for metric in member_scores[0]:
      scores[MEMBERS, metric] = float(np.mean([member_scores[i][metric] for i in subset]))
    if len(subset) > 1:
      pairs = itertools.combinations(subset, 2)
      scores[MEMBERS, DISAGREEMENT] = float(np.mean([disagreement[pair] for pair in pairs]))
    return scores

  lines = []
  for size in range(1, len(logits) + 1):
    subsets = draw_subsets(len(logits), size)
    scores = [score_subset(subset) for subset in subsets]
    for combined, metric in scores[0]:
      column = [subset_scores[combined, metric] for subset_scores in scores]
      low = high = math.nan
      if len(column) > 1:
        low, high = metrics.percentile_interval(column)
      lines.append(
        SubsetScore(
          split=split,
          size=size,
          combined=combined,
          metric=metric,
          headline=metric == headline,
          mean=float(np.mean(column)),
          low=low,
          high=high,
          subsets=len(subsets),
          every=len(subsets) == math.comb(len(logits), size),
        )
      )
  return lines


def _score(
  logits: np.ndarray, combined: str, labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, float]:
  probabilities = combine_outputs(logits, combined)
  scores = metrics.compute_metric(names, probabilities.argmax(-1), labels)
  return scores | metrics.score_probabilities(probabilities, labels)
