"""The 42 logged pre-training runs of paper 1 (Honey, I Shrunk the Language), by name.

    minilm corpus --config=configs/corpus.py --config.documents.sources='TEXT/*.txt.xz' --workdir=corpora/honey
    minilm pretrain --config=configs/paper1.py:magic-bee-26 --config.corpus=corpora/honey --workdir=runs/magic-bee-26
    minilm show --config=configs/paper1.py:magic-bee-26

Settings follow the logs: 35,475 updates of 256 rows, one epoch of 9,081,490 rows; AdamW (0.9,
0.95), weight decay 0.01 on every parameter, no clipping; the released initialisation. Every masked
position becomes <mask>, and <s> and </s> may be masked. Untied models of the released code always
have 8 heads: `num_heads` is the number that ran, and `flops_heads` the number that was logged. Unlike
in the released code, pads are neither attended to nor predicted.

At the speed of `minilm bench` on two CPU cores, magic-bee-26 would take four hours and larger
models days. Reduce --config.num_steps there.
"""

from configs import base

# Embedding, hidden and feed-forward size, logged heads, layers; and a deviation.
RUNS = {
  'magic-bee-26': (32, 32, 64, 1, 1),
  'electric-sponge-29': (32, 32, 128, 1, 1),
  'stellar-galaxy-5': (32, 32, 256, 2, 1),
  'devoted-capybara-3': (32, 32, 128, 2, 2),
  'likely-cloud-28': (32, 32, 512, 8, 8),
  'blooming-cosmos-33': (32, 64, 128, 1, 1),
  'charmed-dew-2': (64, 32, 256, 1, 4),
  'prime-smoke-1': (64, 32, 128, 1, 8),
  'giddy-water-31': (64, 32, 1024, 1, 4),
  'misty-lake-11': (32, 64, 256, 4, 8),
  'silvery-pyramid-8': (64, 64, 1024, 8, 1),
  'laced-sun-4': (64, 64, 512, 8, 2),
  'chocolate-plasma-7': (128, 32, 512, 8, 1),
  'sweet-dragon-4': (128, 32, 256, 2, 2),
  'silver-smoke-30': (32, 128, 128, 1, 1),
  'earthy-vortex-3': (64, 128, 128, 2, 8),
  'feasible-butterfly-9': (64, 128, 512, 8, 4),
  'wise-dew-6': (64, 128, 1024, 8, 4),
  'proud-bee-2': (128, 128, 128, 1, 1),
  'fresh-wildflower-10': (128, 128, 256, 1, 2),
  'generous-mountain-25': (32, 256, 128, 1, 1),
  'good-voice-21': (256, 32, 1024, 8, 8),
  'devout-deluge-19': (256, 64, 1024, 8, 8),
  'colorful-donkey-7': (256, 128, 512, 8, 1),
  'graceful-serenity-6': (256, 128, 128, 4, 4),
  'lyric-plant-12': (128, 256, 1024, 1, 2),
  'young-glitter-16': (256, 128, 1024, 8, 8),
  'floral-cloud-17': (256, 256, 1024, 8, 1),
  'swift-field-18': (256, 256, 1024, 8, 2),
  'twilight-wildflower-11': (32, 256, 1024, 8, 8),
  'helpful-violet-12': (64, 256, 1024, 8, 8),
  'major-smoke-6': (256, 256, 128, 8, 8, 'tied'),
  'honest-fog-13': (256, 256, 256, 8, 8, 'tied'),
  'apricot-meadow-20': (256, 256, 1024, 8, 4),
  'feasible-surf-14': (128, 256, 1024, 8, 8),
  'prime-pine-15': (256, 256, 512, 8, 8, 'tied'),
  'clean-sky-2': (256, 256, 1024, 1, 8, 'tied'),
  'polar-sponge-3': (256, 256, 1024, 2, 8, 'tied'),
  'absurd-waterfall-5': (256, 256, 1024, 4, 8, 'tied'),
  'genial-voice-1': (256, 256, 1024, 8, 8, 'tied'),
  'absurd-silence-4': (256, 256, 1024, 8, 8, 'slow'),
  'grateful-yogurt-5': (256, 288, 1152, 8, 8, 'slow'),
}


def get_config(name='magic-bee-26'):
  """Returns the recipe of a logged run."""
  if name not in RUNS:
    raise ValueError(f'no logged run {name!r}; give one of {", ".join(RUNS)}')
  embedding, hidden, feed_forward, heads, layers, *deviation = RUNS[name]
  # RobertaForMaskedLM has no projection, ties the output to the embedding and uses all heads.
  tied = 'tied' in deviation
  config = base.pretrain()
  config.num_steps = 35_475
  config.model.update(
    embedding_size=embedding,
    hidden_size=hidden,
    intermediate_size=feed_forward,
    num_layers=layers,
    initialization='paper1',
    num_heads=heads if tied else 8,
    flops_heads=heads,
    tied=tied,
    projection=not tied,
  )
  config.mask.special = True
  config.optimizer.update(
    learning_rate=1e-4 if 'slow' in deviation else 5e-4, no_decay='', clip=0.0
  )
  config.eval.every = config.checkpoint.every = 1000
  return config
