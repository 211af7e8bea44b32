"""For tests of the study of a grid: tracks, and run directories of pre-training, whose losses follow a formula."""

import math
import pathlib
from typing import Any

from minilm_jax import run
from minilm_jax.analysis.tracks import Shape, Track

BATCH, LENGTH, VOCABULARY = 256, 128, 1000


def counts(shape: Shape) -> tuple[int, int, float]:
  """Embedding and other parameters of an untied model, and FLOPs a row (papers.md 1.1; three times the parameters)."""
  e, h, f, layers, v = shape.embedding, shape.hidden, shape.feed_forward, shape.layers, shape.vocabulary
  embedding = (v + 134) * e
  other = e * h + 3 * h + layers * (4 * h * h + 9 * h + 2 * h * f + f) + h * h + 3 * h + h * v + v
  return embedding, other, 6.0 * LENGTH * (embedding + other)


def loss(shape: Shape, updates: int, seed: int = 0) -> float:
  """It falls with the updates, and the lower the larger the model."""
  capacity = math.log(shape.hidden * shape.layers**0.5 * shape.embedding**0.25)
  return 1 + 9 / capacity + 4 / updates**0.4 + 0.01 * math.sin(7 * seed + shape.layers)


def track(name: str = 'a', last: float | None = None, evaluations: int = 8, every: int = 100, **changes: Any) -> Track:
  """A track of (32, 32, 64, 1, 1); a change is of its shape or of itself, `last` its last loss and that of the test."""
  shape = Shape(32, 32, 64, 1, 1, VOCABULARY)
  shape = Shape(**{field: changes.pop(field, getattr(shape, field)) for field in shape.__dataclass_fields__})
  embedding, other, flops = counts(shape)
  updates = tuple(range(every, every * evaluations + 1, every))
  losses = [loss(shape, step, changes.get('seed') or 0) for step in updates]
  if last is not None:
    losses = [one - losses[-1] + last for one in losses]
  made = {'name': name, 'shape': shape, 'embedding_parameters': embedding, 'other_parameters': other, 'seed': None,
          'learning_rate': None, 'warmup': None, 'tied': False, 'length': LENGTH,
          'flops_per_row': {'honey': flops, 'kaplan': 6.0 * other * LENGTH}, 'updates': updates,
          'rows': tuple(BATCH * step for step in updates), 'loss': tuple(losses), 'lost': 0, 'finished': True,
          'test_loss': losses[-1], 'bits_per_word': None, 'bits_per_byte': None}
  if changes.keys() - made.keys():
    raise TypeError(f'no such field of a track: {changes.keys() - made.keys()}')
  return Track(**made | changes)


def pretraining(folder: pathlib.Path, *, updates: int = 800, planned: int = 800, every: int = 100, members: int = 1,
                population: dict[str, Any] | None = None, seed: int = 0, finished: bool = True,
                **shape: int) -> pathlib.Path:
  """A run directory, or that of a population, with what a reader needs of it."""
  of = track(**shape).shape
  embedding, other, flops = counts(of)
  folder.mkdir(parents=True)
  run.write_json(folder / run.CONFIG, {
      'kind': 'pretrain', 'seed': seed, 'batch_size': BATCH, 'updates': planned, 'optimizer': {'learning_rate': 1e-3},
      'model': {'embedding': of.embedding, 'hidden': of.hidden, 'feed_forward': of.feed_forward, 'heads': 8,
                'nominal_heads': of.heads, 'layers': of.layers, 'vocabulary': of.vocabulary, 'length': LENGTH,
                'tied': False},
      'population': {'members': members, 'seeds': [], 'learning_rates': [], **(population or {})}})
  run.write_json(folder / run.MANIFEST, {
      'parameters': {'embedding': embedding, 'other': other, 'total': embedding + other}, 'warmup': 20,
      'flops_per_row': {'honey': flops, 'kaplan': 6.0 * other * LENGTH, 'actual': flops / 3}, 'devices': ['cpu']})
  steps = range(every, updates + 1, every)
  for step in steps:
    for number in range(members):
      whose = {'member': number} if members > 1 else {}
      for split in ('train', 'validation') + (('test',) if step == planned else ()):
        value = loss(of, step, seed + number) + (0.01 if split == 'test' else 0)
        run.append_line(folder / run.METRICS, {
            'step': step, 'split': split, **whose, 'loss': value, 'perplexity': math.exp(value), 'seconds': step * 0.1,
            'tokens': step * BATCH * LENGTH, 'flops': step * BATCH * flops / 3})
  if finished:
    run.write_json(folder / run.RESULT, {'updates': updates})
  return folder
