"""The pre-training runs of the models of paper 2 (Tiny language models), by name.

    minilm pretrain --config=configs/paper2_models.py:conv2-k3-d64 --config.corpus=corpora/wiki --workdir=runs/conv2
    minilm show --config=configs/paper2_models.py:bert-6-90k
    minilm sweep --config=configs/paper2_models.py:published@96 --config.corpus=corpora/wiki --tokens=5e6 --workdir=runs/tlm --dry_run

A name gives the blocks or convolutions, kernel, channels and heads of a model. Optional suffixes:

- `-20k`, `-40k` (default) or `-90k`: number of articles;
- `@96`: width 96 instead of 768. Widths keep their ratio to BERT-6, and the feed-forward layer
  stays four times as wide. Depth, kernels and channels stay. The number of heads is the largest
  divisor of the width up to the published number. All ratios are exact at multiples of 96;
- `d8` after a width: 8 channels;
- `-recommended` at the end: the settings of `recommended.py`, for small budgets. With those below
  and a rate of 5e-4, bert-6@96 is still on the plateau of word frequencies after 1,000 updates.

Settings follow the release: post-LN BERT with a tied head, positions from 0, LayerNorm at 1e-12,
N(0, 0.02); 15% of ordinary tokens are masked, 80% of them as <mask>, 10% as a random token, 10%
unchanged; AdamW at 5e-5, weight decay 0.01 on every parameter, no clipping, batches of 32, 50
epochs. The rate changes once an epoch and is 0 in the first epoch;
`--config.optimizer.schedule=per_epoch` starts above 0.

Differences to the release:

- float32 replaces fp16;
- a fixed share of each row is masked, not an independent draw for each token;
- our SentencePiece tokenizers replace bert-base-uncased, with `<pad>` at 1;
- an epoch is a 50th of all updates. It equals an epoch of the corpus if the corpus has as many rows
  as the name has articles; otherwise set --config.num_steps.

`--config.model.convolution=fixed` replaces doubtful parts of the convolutional front-end. A CPU
does not split batches of models with BatchNorm into micro-batches. An update of conv2-k3-d64@96
takes about 5 seconds and 3 GiB on two busy cores. At full width, 4 rows take as long, and a batch
needs 18 GiB (3 GiB with `fixed`, in micro-batches). Published sizes therefore need an accelerator.
"""

import math

from configs import base, recommended

# Blocks, hidden size, heads, convolutions, kernel, channels.
MODELS = {
  'bert-6': (6, 768, 12, 0, '', 0),
  'bert-1': (1, 768, 12, 0, '', 0),  # not released
  'bert-1-conv0-h24': (1, 1536, 24, 0, '', 0),
  'conv2-k3-d64': (1, 768, 12, 2, '3,3', 64),
  'conv2-k16x3-d64': (1, 768, 12, 2, '16,3', 64),  # 16 tokens x 3 features
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
_RECOMMENDED = '-recommended'
# The eight released models, and the five models of one block, which form the soft committee.
SETS = {'published': RUNS, 'committee': RUNS[3:]}
SETS |= {
  f'{name}@{width}': tuple(f'{run}@{width}' for run in runs)
  for name, runs in SETS.items()
  for width in _SCALES
}


def scale_width(hidden, heads, width):
  """Returns hidden size and heads of a model, scaled as BERT-6 from width 768 to `width`."""
  if width < 8:
    raise ValueError(f'a width of {width} in place of 768; give at least 8')
  scaled = hidden * width / 768
  hidden = int(scaled) if scaled.is_integer() else max(8, round(scaled / 8) * 8)
  return hidden, next(n for n in range(min(heads, hidden), 0, -1) if hidden % n == 0)


def _parse_name(name):
  """Returns model, articles, width and channels (0 as published) of a name."""
  run, at, scale = name.partition('@')
  width, d, channels = scale.partition('d')
  model, _, articles = run.rpartition('-')
  if articles not in ARTICLES:
    model, articles = run, '40k'
  is_valid = (width.isdecimal() or not at) and (channels.isdecimal() or not d)
  if model not in MODELS or not is_valid:
    raise ValueError(
      f'no model {name!r}; give a set of {", ".join(SETS)}, or a model of {", ".join(MODELS)}, '
      'optionally with -20k, -40k or -90k, with a width and channels as in @96d8, and with '
      '-recommended'
    )
  if channels and not MODELS[model][3]:
    raise ValueError(f'{channels} channels of {model} without convolutions; remove d{channels}')
  return model, articles, int(width or 768), int(channels or 0)


def get_config(name='conv2-k3-d64'):
  """Returns the recipe of a model."""
  name, is_recommended = name.removesuffix(_RECOMMENDED), name.endswith(_RECOMMENDED)
  model, articles, width, scaled_channels = _parse_name(name)
  layers, hidden, heads, convolutions, kernel, channels = MODELS[model]
  hidden, heads = scale_width(hidden, heads, width)
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
    channels=scaled_channels or channels,
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
  if is_recommended:
    config.optimizer.update(base.pretrain().optimizer)  # warm-up and decay
    recommended.apply_settings(config)
  return config
