"""What one run brings to a comparison: its evaluations, its shape, and the fields of its recipe that count.

Aside, because they are no change: the seed, which pairs runs; how long a run is (`updates`); how often it evaluates,
saves and logs; how a machine carries it out (mesh, lift, accumulation, logit_chunks, corpus_placement, remat, nonfinite); where
its corpus lies, whose hash counts instead; and `flops_heads`, which only a count of FLOPs is given. A member of a
population is a run, with its own seed, learning rate, decay and mask rates for fields.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from minilm_jax import model_config, run
from minilm_jax.analysis import grid, runs
from minilm_jax.analysis.tracks import ACTUAL, LossCurve
from minilm_jax.config import completed
from minilm_jax.errors import shown

_ASIDE = (
  'kind',
  'seed',
  'num_steps',
  'eval',
  'checkpoint',
  'log',
  'mesh',
  'population',
  'grad_accumulation_steps',
  'corpus',
  'logit_chunks',
  'corpus_placement',
  'nonfinite',
  'model.remat',
  'model.flops_heads',
  *(f'model.{one}' for one in model_config.SHAPE_FIELDS.values()),
)
_OF_MEMBERS = {
  'optimizer.learning_rate': 'learning_rates',
  'optimizer.weight_decay': 'weight_decays',
  'mask.rate': 'mask_rates',
  'mask.random_share': 'mask_randoms',
  'mask.keep_share': 'mask_keeps',
}


@dataclasses.dataclass(frozen=True)
class AblationRun:
  """One run, or one member of a population.

  Attributes:
    track: its evaluations.
    folder: the directory of the run; `home` its name.
    shape: as in e64-h64-f256-a8-l2.
    fields: of its recipe, those that are compared, by their names with dots.
    corpus, tokenizer: hashes.
    evaluated: rows that its loss is taken on.
    planned: FLOPs of the whole run, as its recipe has it.
  """

  track: LossCurve
  folder: epath.Path
  shape: str
  fields: Mapping[str, Any]
  corpus: str
  tokenizer: str
  evaluated: int
  planned: float

  @property
  def home(self) -> str:
    """The name of its folder; of a member that a sweep took out, that of the folder of its population."""
    folder = self.folder.resolve()
    return shown((folder.parent if (folder.parent / run.CONFIG).exists() else folder).name)


def differing(fields: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
  """What differs from the base, as `field=value`; a field that one lacks and the other does not use is no difference.

  >>> differing({'model.norm': 'pre', 'mask.rate': 0.3, 'model.gate': False}, {'model.norm': 'post', 'mask.rate': 0.3})
  ['norm=pre']
  """

  def used(of: Mapping[str, Any], name: str) -> Any:
    return of[name] if name in of and of[name] else None  # 0, False, '' and () are not used

  return [
    f'{shown(name.removeprefix("model.").removeprefix("optimizer."))}={_written(fields, name)}'
    for name in sorted({*base, *fields})
    if used(fields, name) != used(base, name)
  ]


def _written(fields: Mapping[str, Any], name: str) -> str:
  value = fields[name] if name in fields else ''
  if isinstance(value, list):
    value = ','.join(map(str, value))
  return shown(f'{value:g}' if isinstance(value, float) else str(value)) or 'none'


def read_ablation_runs(found: Mapping[str, epath.Path]) -> tuple[list[AblationRun], list[str]]:
  """Every run that was evaluated, from runs by name, and what the others lack.

  Raises:
    InputError: a file of a run is damaged.
  """
  tracks = grid.read_runs(found)
  there, left_out = [], list(tracks.left_out)
  for track in tracks.tracks:
    name, _, member = track.name.partition(' member ')
    try:
      there.append(_entrant(track, found[name], int(member or 0)))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
      left_out.append(f'{track.name}: {grid.missing(error)}')
  return there, left_out


def _entrant(track: LossCurve, folder: epath.Path, member: int) -> AblationRun:
  config, manifest = runs.config(folder), runs.manifest(folder)
  flops = track.flops(ACTUAL)
  if min(track.loss) <= 0 or flops[0] <= 0 or not np.isfinite(flops[-1]) or not track.tokens[0] > 0:
    raise ValueError('losses, tokens and FLOPs must be positive')
  fields = run.flatten(completed(config))
  of = config['population']
  fields |= {
    name: of[values][member] for name, values in _OF_MEMBERS.items() if values in of and of[values]
  }
  kept = {
    name: value
    for name, value in fields.items()
    if name not in _ASIDE and name.partition('.')[0] not in _ASIDE
  }
  shape = model_config.short_shape(config['model'])
  planned = float(int(config['num_steps']) * int(config['batch_size']) * track.flops_per_row[ACTUAL])
  return AblationRun(
    track,
    folder,
    shape,
    kept,
    str(manifest['corpus']),
    str(manifest['tokenizer']),
    int(config['eval']['rows']),
    planned,
  )
