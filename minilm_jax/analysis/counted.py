"""What counts alone reach on the hidden tokens of a comparison, from run directories of `minilm ngram-baselines`."""

import math
from collections.abc import Mapping

from etils import epath

from minilm_jax import run
from minilm_jax.analysis import runs
from minilm_jax.analysis.entrants import AblationRun
from minilm_jax.errors import shown
from minilm_jax.shape import ANY, COUNT, NUMBER, TEXT

WORDS = 'word frequencies'
# Those that are drawn; the right neighbour tells as much as the left one, and the others lie close to these.
NAMES = {
  'unigram': WORDS,
  'left': 'left neighbour',
  'mixture': 'mean of both neighbours',
  'both': 'both neighbours',
}
_RECIPE = {'corpus': TEXT, 'rows': COUNT, 'subset': {'rows': ANY, 'tokens': ANY, 'shuffle_seed': ANY}}
_RESULT = {'rows': [{'predictor': TEXT, 'split': TEXT, 'loss': NUMBER}]}


def read_ngram_baselines(
  found: Mapping[str, epath.Path], base: AblationRun
) -> tuple[dict[str, float], list[str]]:
  """Losses on the validation split by the `NAMES` of predictors, nats, and why some baselines are not used.

  Args:
    found: runs of any kind, by name.
    base: on whose corpus and rows they must be, and on whose subset they must have counted.

  Raises:
    InputError: a file is damaged.
  """
  losses: dict[str, float] = {}
  left_out = []
  for name, path in found.items():
    if runs.kind(path) != 'baselines':
      continue
    if reason := _unlike_base(path, base):
      left_out.append(f'{name}: {reason}')
      continue
    for row in run.read_object(path / run.RESULT, f'the baselines in {path}', _RESULT)['rows']:
      loss = runs.number(row['loss'])
      if (
        row['split'] == 'validation'
        and row['predictor'] in NAMES
        and math.isfinite(loss)
        and loss > 0
      ):
        losses[NAMES[row['predictor']]] = loss
  return {name: losses[name] for name in NAMES.values() if name in losses}, left_out


def _unlike_base(path: epath.Path, base: AblationRun) -> str:
  """Why these baselines say nothing beside the base; '' where they do."""
  recipe = run.read_object(path / run.CONFIG, f'the recipe of the baselines in {path}', _RECIPE)
  if recipe['corpus'] != base.corpus:
    corpora = (shown(corpus[:8]) for corpus in (recipe['corpus'], base.corpus))
    return 'baselines on another corpus, {}, than that of the base, {}'.format(*corpora)
  if recipe['rows'] != base.evaluated:
    return f'baselines on {recipe["rows"]:,} rows, the base on {base.evaluated:,}'
  if any(base.fields[f'subset.{field}'] != value for field, value in recipe['subset'].items()):
    return 'baselines that counted another part of the corpus than the base was trained on'
  return '' if (path / run.RESULT).exists() else 'baselines under way'
