"""The paper's convolutional front-end against the mended one: what the four changes of `model/convolution.py` do.

Two pre-training runs are a pair where their recipes differ in `model.convolution` alone, apart from how often they
evaluate, save and log and on which devices; corpus, tokenizer and seed are the same, and both were evaluated last at
the same update. Their differences and intervals are those of `contrasts.py`.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax import run
from minilm_jax.analysis import cells, contrasts, page
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.analysis.tracks import Track
from minilm_jax.config import completed

PAPER, MENDED = 'paper', 'mended'
LOSS = 'validation loss, nats'
HEADINGS = ('runs', 'what', 'the paper’s', 'mended', 'mended less the paper’s [95% interval]', 'n')
WORDS = 2
CAPTION = ('Runs that differ in the form of the convolutional front-end alone, paired by seed: of pre-training where '
           'there are several pairs, else of fine-tuning. Scores times 100.')
# What a pair may differ in, beside the form and the seed, which pairs them.
_FREE = ('seed', 'population', 'evaluation', 'checkpoint', 'log', 'mesh', 'corpus', 'corpus_on')


@dataclasses.dataclass(frozen=True)
class FormRow:
  """One number of both forms: a loss in nats, or a score as a share.

  Attributes:
    runs: of the paper's form and of the mended one.
    what: LOSS, or task, metric and split.
    paper, mended: means over the pairs.
    difference, low, high: mended less the paper's, with its 95% interval; nan of one pair.
    n, of: how many numbers it is the mean of, and what each is of.
  """

  runs: str
  what: str
  paper: float
  mended: float
  difference: float
  low: float
  high: float
  n: int
  of: str


def find(found: Mapping[str, epath.Path], tracks: Sequence[Track], rows: Sequence[ScoreRow]) -> list[FormRow]:
  """Loss and scores of every shape of which there are both forms with a seed in common.

  Args:
    found: runs by name.
    tracks: of `grid.read`, on the same runs.
    rows: of `cells.main`.

  Raises:
    InputError: a file of a run is damaged.
  """
  shapes: dict[str, dict[str, dict[int | None, Track]]] = {}
  for track in tracks:
    path = found[track.name.partition(' member ')[0]]
    config = run.read_json(path / run.CONFIG, f'the recipe of {path}')
    if 'convolution' in config['model'] and config['model']['convolutions']:
      manifest = run.read_json(path / run.MANIFEST, f'the manifest of {path}')
      key = _key(config, manifest, track.learning_rate)
      shapes.setdefault(key, {}).setdefault(config['model']['convolution'], {})[track.seed] = track
  made = []
  for forms in shapes.values():
    if PAPER in forms and MENDED in forms:
      pairs = [(forms[PAPER][seed], forms[MENDED][seed]) for seed in forms[PAPER] if seed in forms[MENDED]
               and forms[PAPER][seed].updates[-1] == forms[MENDED][seed].updates[-1]]
      made += _of_pairs(pairs, rows) if pairs else []
  return made


def _key(config: Mapping[str, Any], manifest: Mapping[str, Any], rate: float | None) -> str:
  own = {name: value for name, value in completed(config).items() if name not in _FREE}
  own['rows'] = config['evaluation']['rows']  # that the loss is of
  own['model'] = {name: value for name, value in own['model'].items() if name != 'convolution'}
  return json.dumps([own, manifest['corpus'], manifest['tokenizer'], rate], sort_keys=True)


def _of_pairs(pairs: Sequence[tuple[Track, Track]], rows: Sequence[ScoreRow]) -> Iterator[FormRow]:
  names = ' and '.join(', '.join(track.name for track in own) for own in zip(*pairs, strict=True))
  losses = contrasts.contrast([(one.loss[-1], other.loss[-1]) for one, other in pairs], contrasts.TRAININGS)
  yield FormRow(names, LOSS, *dataclasses.astuple(losses))
  for place, both in contrasts.scored([(one.name, other.name) for one, other in pairs], rows).items():
    what = f'{place.task}, {place.metric}, {place.split}'
    yield FormRow(names, what, *dataclasses.astuple(contrasts.over_tasks([both])))


def table_cells(row: FormRow) -> list[str]:
  """The cells under `HEADINGS`."""
  def show(value: float, sign: str = '') -> str:
    return f'{value:{sign}.3f}' if row.what == LOSS else cells.points(value, sign)

  ends = f' [{show(row.low, "+")}, {show(row.high, "+")}]' if math.isfinite(row.low) else ''
  return [row.runs, row.what, show(row.paper), show(row.mended), show(row.difference, '+') + ends,
          f'{row.n} {row.of}' if row.n > 1 else '1']


def sections(rows: Sequence[FormRow]) -> Iterator[str]:
  """HTML of the page; nothing without both forms."""
  if rows:
    yield '<h2>The convolutional front-end, mended</h2>'
    yield page.table(HEADINGS, WORDS, [table_cells(row) for row in rows], CAPTION)
