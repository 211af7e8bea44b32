"""Pre-training runs as the tracks that the study of a grid is made from.

Only what the study needs is read, from plain JSON, so that the runs of other versions can be read too. A run that lacks
some of it is left out, with the reason. Nothing here trains, and nothing imports JAX.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax import old_names, run
from minilm_jax.analysis import runs
from minilm_jax.analysis.tracks import ACTUAL, ModelShape, LossCurve
from minilm_jax.shape import NUMBER

_SHAPE_FIELDS = {
  'embedding': 'embedding_size',
  'hidden': 'hidden_size',
  'feed_forward': 'intermediate_size',
  'heads': 'flops_heads',
  'layers': 'num_layers',
  'vocabulary': 'vocab_size',
}

_WORDS = {'bits_per_word?': NUMBER, 'bits_per_byte?': NUMBER}
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LossCurves:
  """The tracks of some runs, and why some pre-training runs have none."""

  tracks: list[LossCurve]
  left_out: list[str]


def tracks(found: Mapping[str, epath.Path]) -> list[LossCurve]:
  """The tracks of the pre-training runs among those that `runs.find` found; see `read`."""
  return read_runs(found).tracks


def read_runs(found: Mapping[str, epath.Path]) -> LossCurves:
  """A track for each pre-training run, or for each member of a population, as `<run> member N`.

  A member that was taken out into `<run>/member-N` is the track of that run and no other. The seed and the learning
  rate of a member are its own. FLOPs a row are those of the manifest. Where the rows of the corpus are shorter than the
  model could read, they are in proportion, which for the paper's count is somewhat too much, and the true ones are
  those that the log has.

  Args:
    found: runs by name.

  Raises:
    InputError: a file of a run is damaged.
  """
  grid = LossCurves([], [])
  for name, path in found.items():
    if runs.kind(path) != 'pretrain':
      continue
    config, manifest = runs.config(path), runs.manifest(path)
    words = (
      run.read_object(old_names.find_file(path / run.WORDS), f'what words cost {path}', _WORDS)
      if old_names.find_file(path / run.WORDS).exists()
      else {}
    )
    for member, lines in runs.members(path).items():
      try:
        track = _curve_of_run(
          name + member, config, manifest, lines, int(member.split()[-1]) if member else 0
        )
      except (
        KeyError,
        TypeError,
        IndexError,
        ArithmeticError,
        ValueError,
        AttributeError,
      ) as error:
        grid.left_out.append(f'{name}{member}: {missing(error)}')
        continue
      if not track.loss:
        grid.left_out.append(f'{track.name}: no validation loss yet')
        continue
      track = dataclasses.replace(
        track,
        finished=(path / run.RESULT).exists()
        and max(line['step'] for line in lines) >= config['num_steps'],
      )
      bits = {
        name: words[name] if name in words else None for name in ('bits_per_word', 'bits_per_byte')
      }
      grid.tracks.append(dataclasses.replace(track, **bits))
  return grid


def missing(error: Exception) -> str:
  """What a run lacks, in words."""
  if isinstance(error, KeyError):
    return f'no {error.args[0]!r} in its {run.CONFIG}, {run.MANIFEST} or {run.METRICS}: written by another version?'
  return f'its {run.CONFIG}, {run.MANIFEST} or {run.METRICS} is of another form ({error})'


def _curve_of_run(
  name: str, config: Record, manifest: Record, lines: Sequence[Record], member: int
) -> LossCurve:
  model, population = config['model'], config['population']
  validation = {
    line['step']: line
    for line in lines
    if line['split'] == 'validation' and 'loss' in line and line['step'] > 0
  }  # before any training there is no compute
  kept = {
    step: line
    for step, line in sorted(validation.items())
    if math.isfinite(runs.number(line['loss']))
  }
  test = [runs.number(line['loss']) for line in lines if line['split'] == 'test' and 'loss' in line]
  batch = config['batch_size']
  last = kept[max(kept)] if kept else None
  length = round(last['tokens'] / (last['step'] * batch)) if last else model['max_length']
  flops = {
    count: float(value) * length / model['max_length']
    for count, value in manifest['flops_per_row'].items()
  }
  if last and 'flops' in last and ACTUAL in flops and length != model['max_length']:
    flops[ACTUAL] = last['flops'] / (last['step'] * batch)
  return LossCurve(
    name=name,
    shape=ModelShape(**{ours: int(model[theirs]) for ours, theirs in _SHAPE_FIELDS.items()}),
    embedding_parameters=int(manifest['parameters']['embedding']),
    other_parameters=int(manifest['parameters']['other']),
    seed=int(_own(population['seeds'], member, config['seed'] + member)),
    learning_rate=float(
      _own(population['learning_rates'], member, config['optimizer']['learning_rate'])
    ),
    warmup=int(manifest['warmup']),
    tied=bool(model['tied']),
    length=length,
    flops_per_row=flops,
    updates=tuple(kept),
    rows=tuple(step * batch for step in kept),
    loss=tuple(float(line['loss']) for line in kept.values()),
    lost=len(validation) - len(kept),
    finished=False,
    test_loss=test[-1] if test and math.isfinite(test[-1]) else None,
    bits_per_word=None,
    bits_per_byte=None,
  )


def _own(values: Sequence[Any], member: int, otherwise: Any) -> Any:
  """What a member has of its own, or else the recipe's."""
  return values[member] if values else otherwise
