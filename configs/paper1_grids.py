"""The grids of paper 1 (Honey, I Shrunk the Language): points that differ in width, depth, heads
and vocabulary.

    minilm sweep --config=configs/paper1_grids.py --config.corpus=corpora/honey --workdir=runs/honey
    minilm sweep --config=configs/paper1_grids.py:iso_flops --config.corpus=corpora/honey --tokens=1e8 \
        --config.population.members=3 --workdir=runs/iso-flops --dry_run
    minilm sweep --config=configs/paper1_grids.py:e32-h32-f64-a8-l1,e32-h32-f64-a8-l2 --config.corpus=corpora/honey \
        --workdir=runs/two

The argument is the name of a set (`SETS`), of a logged run, or of a shape, some with commas
between; without one it is all of the 42 logged runs. `e32-h32-f64-a8-l1` is embedding, hidden,
feed-forward, heads and layers; `-v8010` at its end asks for a vocabulary of so many rows, ten of
them unused as in the paper, and the sweep makes tokenizer and corpus for it.

Each point is the recipe of `paper1.py` but for what its name says, evaluated at 16 updates, at each
doubling, and every 1,000. Heads are as the name has them, where the released code takes 8 whatever
it is told. One epoch of the paper is 35,475 updates of 256 rows: hours for the smallest point on
two CPU cores, days for the larger ones.
"""

import math

from configs import paper1

RUNS = paper1.RUNS
# embedding, hidden, feed-forward, heads, layers; a 'v' for the vocabulary may follow
_LETTERS = 'ehfal'


def point(*shape):
  return '-'.join(letter + str(size) for letter, size in zip(_LETTERS + 'v', shape))


def _shape(name):
  """The sizes that a name gives; None where it is no name of a shape."""
  parts = name.split('-')
  if [part[:1] for part in parts] not in (list(_LETTERS), list(_LETTERS + 'v')):
    return None
  return [int(part[1:]) for part in parts] if all(part[1:].isdecimal() for part in parts) else None


def walk(base, **values):
  """The base and, for each of its sizes, all other values of that one; no more heads than divide
  the hidden size.
  """
  points = {base}
  for letter, sizes in values.items():
    place = _LETTERS.index(letter)
    points |= {(*base[:place], size, *base[place + 1 :]) for size in sizes}
  return [point(e, h, f, math.gcd(a, h), l) for e, h, f, a, l in sorted(points)]


_SMALL = (4, 8, 16, 32)
SETS = {
  'logged': list(RUNS),
  'walk_a': walk(
    (256, 256, 1024, 8, 8),
    e=(32, 64, 128),
    h=(32, 64, 128),
    f=(64, 128, 256, 512),
    a=(1, 2, 4),
    l=(1, 2, 4),
  ),
  'walk_b': walk((32, 32, 128, 1, 1), h=(64, 128, 256), f=(64,)),
  'iso_pr': [
    'prime-smoke-1',
    'charmed-dew-2',
    'earthy-vortex-3',
    'laced-sun-4',
    'graceful-serenity-6',
    'colorful-donkey-7',
    'silvery-pyramid-8',
    'feasible-butterfly-9',
    'fresh-wildflower-10',
    'misty-lake-11',
    'lyric-plant-12',
  ],
  'iso_flops': [
    'proud-bee-2',
    'devoted-capybara-3',
    'sweet-dragon-4',
    'stellar-galaxy-5',
    'wise-dew-6',
    'chocolate-plasma-7',
  ],
  # what the scripts are released with, and the smaller bases that their history has
  'released': [point(32, 32, 128, 2, 1), point(32, 32, 128, 2, 2), point(64, 128, 128, 2, 8)],
  'small': sorted(
    {
      *walk((64, 64, 256, 8, 8), e=_SMALL, h=_SMALL),
      *walk((32, 32, 128, 4, 4), e=_SMALL, h=_SMALL),
      *walk((32, 32, 128, 2, 2), e=_SMALL, h=_SMALL),
    }
  ),
  # depth x width x vocabulary
  'cube': [
    point(32, h, 4 * h, 8, l, v)
    for v in (4010, 8010, 19010)
    for h in (32, 64, 128)
    for l in (1, 2, 4)
  ],
}


def get_config(name='magic-bee-26'):
  """The recipe of one point, by the name of a logged run or of a shape."""
  if name in RUNS:
    config = paper1.get_config(name)
  else:
    shape = _shape(name)
    if shape is None:
      raise ValueError(
        f'no point {name!r}; give a logged run, a shape such as {point(32, 32, 64, 8, 1)}, or a set: '
        f'{", ".join(SETS)}'
      )
    config = paper1.get_config()
    embedding, hidden, feed_forward, heads, layers, *vocabulary = shape
    config.model.update(
      embedding_size=embedding,
      hidden_size=hidden,
      intermediate_size=feed_forward,
      num_heads=heads,
      num_layers=layers,
      flops_heads=heads,
    )
    config.model.vocab_size = vocabulary[0] if vocabulary else config.model.vocab_size
  config.eval.first_at = 16
  return config
