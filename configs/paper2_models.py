"""Paper 2 (Tiny language models): the pre-training runs of the released models, by name.

    minilm pretrain --config=configs/paper2_models.py:conv2-k3-d64 --config.corpus=corpora/wiki --workdir=runs/conv2
    minilm show --config=configs/paper2_models.py:bert-6-90k
    minilm sweep --config=configs/paper2_models.py:published@96 --config.corpus=corpora/wiki --tokens=5e6 --workdir=runs/tlm --dry_run

A name says blocks, convolutions before them, kernel, channels, heads. `-20k`, `-40k` or `-90k`
after it is how many articles one sees, 40k where nothing is said; `@96` after that scales it down,
here to the width of 96 in place of 768. The scaled width is behind an @ because most verbs take
several names with commas between. Widths keep their ratio to that of BERT-6 (the model of 24 heads
stays twice as wide, that of 8 two thirds), the feed-forward layer stays four times as wide, depth,
kernels and channels stay; heads are as many as published where that divides the width, else the
most below that do. At multiples of 96 every ratio is exact: there `conv2-k3-d64-h8@96` is 64 wide
and has 8 heads. `@96d8` has 8 channels in place of those of the name.

Faithful to the release: post-LN BERT with a tied head, positions from 0, LayerNorm at 1e-12, N(0,
0.02); 15% of ordinary tokens, 80% of them <mask>, 10% another token, 10% as they are; AdamW at
5e-5, decay 0.01 on everything, no clipping, batches of 32; 50 epochs, the rate changed once an
epoch, 0 in the first: `--config.optimizer.schedule=per_epoch` wastes none. Not as released: float32
for fp16; a share of each row is masked where theirs is drawn token by token; our SentencePiece
tokenizers in place of bert-base-uncased, with `<pad>` at 1; an epoch is a 50th of all updates, so
it is one where the corpus has as many rows as the name says articles, and else give
--config.num_steps.

`--config.model.convolution=fixed` leaves out what is doubtful in the front-end. A model with
BatchNorm is not cut into micro-batches on a CPU. There an update of conv2-k3-d64@96 takes about 5
seconds and 3 GiB on two busy cores. At full width 4 rows take as long, and the whole batch 18 GiB
(mended, in micro-batches, 3), which `--config.model.remat=True` does not lower on a CPU: the
published runs are for an accelerator.
"""

import math

from configs import base

# name: blocks, hidden, heads, convolutions, kernel, channels
MODELS = {
  'bert-6': (6, 768, 12, 0, '', 0),
  'bert-1': (1, 768, 12, 0, '', 0),  # not released
  'bert-1-conv0-h24': (1, 1536, 24, 0, '', 0),
  'conv2-k3-d64': (1, 768, 12, 2, '3,3', 64),
  'conv2-k16x3-d64': (1, 768, 12, 2, '16,3', 64),  # 16 tokens x 3 features, in both layers
  'conv2-k3-d64-h8': (1, 512, 8, 2, '3,3', 64),
  'conv3-k3-d32': (1, 768, 12, 3, '3,3', 32),
}
ARTICLES = {'20k': 20_000, '40k': 40_000, '90k': 90_000}
RUNS = (
  'bert-6-20k',
  'bert-6-40k',
  'bert-6-90k',
  *(name for name in MODELS if name not in ('bert-6', 'bert-1')),
)
_SCALES = (48, 96, 192, 384)
# The eight released models, and the five of one block among them, the natural members of the soft
# committee.
SETS = {'published': RUNS, 'committee': RUNS[3:]}
SETS |= {
  f'{name}@{width}': tuple(f'{run}@{width}' for run in runs)
  for name, runs in SETS.items()
  for width in _SCALES
}


def scaled(hidden, heads, width):
  """Width and heads of a model whose published width is `hidden`, where `width` stands for the 768
  of BERT-6.
  """
  if width < 8:
    raise ValueError(f'a width of {width} in place of 768; give at least 8')
  hidden = (
    hidden * width // 768
    if hidden * width % 768 == 0
    else max(8, round(hidden * width / 768 / 8) * 8)
  )
  return hidden, next(n for n in range(min(heads, hidden), 0, -1) if hidden % n == 0)


def _parsed(name):
  """The model, the number of articles, the width and the channels (0: as published) that a name
  gives.
  """
  whole, _, scale = name.partition('@')
  width, _, channels = scale.partition('d')
  model, _, articles = whole.rpartition('-')
  if articles not in ARTICLES:
    model, articles = whole, '40k'
  if (
    model not in MODELS
    or '@' in name
    and not width.isdecimal()
    or 'd' in scale
    and not channels.isdecimal()
  ):
    raise ValueError(
      f'no model {name!r}; there are {", ".join(MODELS)}, each also with -20k, -40k or -90k, with @ '
      f'and a width, and with d and channels after that; and the sets {", ".join(SETS)}'
    )
  if channels and not MODELS[model][3]:
    raise ValueError(f'{channels} channels of {model}, which has no convolutions')
  return model, articles, int(width or 768), int(channels or 0)


def get_config(name='conv2-k3-d64'):
  """The recipe of one model."""
  model, articles, width, fewer = _parsed(name)
  layers, hidden, heads, convolutions, kernel, channels = MODELS[model]
  hidden, heads = scaled(hidden, heads, width)
  config = base.pretrain()
  config.batch_size = 32
  config.num_steps = 50 * math.ceil(ARTICLES[articles] / config.batch_size)
  config.model.update(
    vocab_size=30_522,
    embedding_size=hidden,
    hidden_size=hidden,
    intermediate_size=4 * hidden,
    num_heads=heads,
    flops_heads=heads,
    num_layers=layers,
    convolutions=convolutions,
    kernel=kernel,
    channels=fewer or channels,
    position_offset=0,
    projection=False,
    tied=True,
    initialization='bert',
    norm_epsilon=1e-12,
  )
  config.mask.update(random_share=0.1, keep_share=0.1)
  config.optimizer.update(
    learning_rate=5e-5,
    schedule='per_epoch_from_zero',
    epochs=50,
    warmup_fraction=0.0,
    beta2=0.999,
    no_decay='',
    clip=0.0,
  )
  return config
