"""Sweeps for the tests of their study: the logged one of the first paper, and made ones whose law is known."""

import csv
import gzip
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from minilm_jax.analysis.tracks import Shape, Track


def logged(data: pathlib.Path) -> list[Track]:
  """The 42 logged runs; skips where they are not there."""
  path = data / 'honey_logs' / 'eval_results.csv.gz'
  if not path.is_file():
    pytest.skip(f'needs the logged table, and there is none at {path}')
  lines: dict[str, list[dict[str, str]]] = {}
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    for line in csv.DictReader(file):
      lines.setdefault(line['run_name'], []).append(line)
  found = []
  for name, own in lines.items():
    own.sort(key=lambda line: float(line['eval/updates']))
    shape = Shape(*(int(float(own[0][key])) for key in (
        'embedding_size', 'hidden_size', 'intermediate_size', 'num_attention_heads', 'num_hidden_layers')), 19010)
    sizes = [int(float(own[0][f'{kind} parameters'])) for kind in ('Embedding', 'Non-embedding')]
    flops = {'honey': float(own[0]['FLOPS Hoffman per sequence']), 'kaplan': float(own[0]['FLOPS Kaplan per sequence'])}
    updates = tuple(int(float(line['eval/updates'])) for line in own)
    found.append(Track(name, shape, *sizes, None, None, None, None, 128, flops, updates,
                       tuple(256 * one for one in updates), tuple(float(line['eval/loss']) for line in own), 0, True,
                       float(own[0]['test/loss']), None, None))
  return found


def made(name: str, updates: Sequence[int], loss: Sequence[float], per_row: float = 1e9, finished: bool = True,
         warmup: int | None = None, parameters: int = 1_000_000, counts: Sequence[str] = ('honey',)) -> Track:
  """A run of 256 rows an update."""
  return Track(name, Shape(32, 32, 64, 1, 1, 19010), parameters // 2, parameters - parameters // 2, 0, 5e-4, warmup, False,
               128, {count: per_row for count in counts}, tuple(updates), tuple(256 * one for one in updates),
               tuple(float(one) for one in loss), 0, finished, None, None, None)


def scattered(law, noise: float, seed: int | tuple[int, ...], points: int = 40) -> tuple[np.ndarray, np.ndarray]:
  """Ends of runs, each of its own compute between 1e14 and 1e18 FLOPs, with log-normal errors of the loss."""
  random = np.random.default_rng(seed)
  compute = np.exp(random.uniform(np.log(1e14), np.log(1e18), points))
  return compute, law(compute) * np.exp(noise * random.normal(size=points))
