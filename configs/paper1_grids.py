"""The grids of paper 1 (Honey, I Shrunk the Language) over width, depth, heads and vocabulary.

    minilm sweep --config=configs/paper1_grids.py --config.corpus=corpora/honey --workdir=runs/honey
    minilm sweep --config=configs/paper1_grids.py:iso_flops --config.corpus=corpora/honey --tokens=1e8 \
        --config.population.members=3 --workdir=runs/iso-flops --dry_run
    minilm sweep --config=configs/paper1_grids.py:e32-h32-f64-a8-l1,e32-h32-f64-a8-l2 --config.corpus=corpora/honey \
        --workdir=runs/two

The argument is one or more sets (`SETS`), logged runs or shapes, separated by commas; the default
is the 42 logged runs. The shape `e32-h32-f64-a8-l1` has the sizes of embedding, hidden state and
feed-forward layer, and the numbers of heads and layers. The suffix `-v8010` sets the vocabulary
size, ten ids of which are unused as in the paper; the sweep then builds its tokenizer and corpus.

A point has the recipe of `paper1.py` with the sizes of its name. It is evaluated at 16 updates, at
each doubling, and every 1,000 updates. All heads are used, while the released code always has 8.
The smallest point takes hours on two CPU cores and larger points take days: one epoch of the paper
is 35,475 updates of 256 rows.
"""

import math

from configs import paper1

RUNS = paper1.RUNS
_LETTERS = 'ehfal'  # embedding, hidden, feed-forward, heads, layers; optionally 'v', vocabulary


def format_point(*shape):
  """Returns the name of a shape."""
  return '-'.join(letter + str(size) for letter, size in zip(_LETTERS + 'v', shape))


def _parse_shape(name):
  """Returns the sizes of a name, or None if the name is not a shape."""
  parts = name.split('-')
  if [part[:1] for part in parts] not in (list(_LETTERS), list(_LETTERS + 'v')):
    return None
  return [int(part[1:]) for part in parts] if all(part[1:].isdecimal() for part in parts) else None


def vary_sizes(base, **values):
  """Returns the base and shapes that differ in one size; heads are reduced to divide the width."""
  points = {base}
  for letter, sizes in values.items():
    i = _LETTERS.index(letter)
    points |= {(*base[:i], size, *base[i + 1 :]) for size in sizes}
  return [format_point(e, h, f, math.gcd(a, h), l) for e, h, f, a, l in sorted(points)]


_SMALL = (4, 8, 16, 32)
SETS = {
  'logged': list(RUNS),
  'walk_a': vary_sizes(
    (256, 256, 1024, 8, 8),
    e=(32, 64, 128),
    h=(32, 64, 128),
    f=(64, 128, 256, 512),
    a=(1, 2, 4),
    l=(1, 2, 4),
  ),
  'walk_b': vary_sizes((32, 32, 128, 1, 1), h=(64, 128, 256), f=(64,)),
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
  # The base of the released scripts, and smaller bases from their history.
  'released': [
    format_point(*shape)
    for shape in ((32, 32, 128, 2, 1), (32, 32, 128, 2, 2), (64, 128, 128, 2, 8))
  ],
  'small': sorted(
    {
      *vary_sizes((64, 64, 256, 8, 8), e=_SMALL, h=_SMALL),
      *vary_sizes((32, 32, 128, 4, 4), e=_SMALL, h=_SMALL),
      *vary_sizes((32, 32, 128, 2, 2), e=_SMALL, h=_SMALL),
    }
  ),
  # Depth x width x vocabulary.
  'cube': [
    format_point(32, h, 4 * h, 8, l, v)
    for v in (4010, 8010, 19010)
    for h in (32, 64, 128)
    for l in (1, 2, 4)
  ],
}


def get_config(name='magic-bee-26'):
  """Returns the recipe of a logged run or a shape."""
  if name in RUNS:
    config = paper1.get_config(name)
  else:
    shape = _parse_shape(name)
    if shape is None:
      raise ValueError(
        f'no point {name!r}; give a logged run, a shape such as {format_point(32, 32, 64, 8, 1)}, or '
        f'a set of {", ".join(SETS)}'
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
