"""The recommended recipe for tiny models, selected by `recipe_search.py`.

    minilm pretrain --config=configs/recommended.py --config.corpus=corpora/honey --workdir=runs/recommended
    minilm sweep --config=configs/recommended.py --config.corpus=corpora/honey --workdir=runs/sizes

The argument is one or more shapes as in `paper1_grids.py` or logged runs, separated by commas;
`cpu_grid` stands for the fourteen shapes of `cpu_grid.py`. The shapes of `RUNS` have about 1.25, 2.5
and 4.5 million parameters with 19,010 pieces, and heads of width 16. The output layer is tied if
embedding and hidden state have the same width; --config.model.tied=False compares such shapes with
others.

The 2,000 updates of 16 rows take 3, 7 and 13 minutes on two cores; increase --config.num_steps for
lower losses.

Evidence, with 4.1 million tokens (docs/results/recipe-search.md). Losses are nats on the validation
rows, means of three seeds with 95% intervals. Nothing was selected on Wikipedia.

    1.25M parameters                       reduced language      unfiltered Wikipedia
    this recipe, e64-h64-f128-a4-l1        4.322 [4.234, 4.409]  5.765 [5.728, 5.801]
    `together`, e32-h32-f64-a8-l1          5.180 [5.111, 5.249]  6.672 [6.636, 6.708]

An update of this recipe has 3.7 times the FLOPs of `together` at these shapes. With as many FLOPs,
`together` ends at 4.775 nats on the reduced language, one seed. `together` of `plateau_ablations.py`
is the recipe of paper 1 with ten changes that shorten its plateau. Most comments below were measured
with `together`, AdamW and 15% masked, at (32, 32, 64, 1): the loss without a field, and the compute
multiplier against `together`. Below 1, the field helps.
"""

from configs import cpu_grid, paper1_grids

RUNS = ['e64-h64-f128-a4-l1', 'e112-h112-f448-a7-l2', 'e192-h192-f768-a12-l2']
SETS = {'cpu_grid': cpu_grid.RUNS}


def apply_settings(config):
  """Sets the recommended fields on a pre-training recipe, whose sizes are set; returns it."""
  model = config.model
  model.update(
    # At 1.25M parameters: untied with half the width 4.739, tied 4.281.
    tied=model.embedding_size == model.hidden_size,
    # Without: 6.316 on the plateau, 0.15 [0.14, 0.17]. Alone in the recipe of paper 1: 6.465.
    short_convolution=3,
    dropout=0.0,  # 0.1: 5.126, 0.87 [0.68, 1.13]; at (64, 64, 256, 2), one seed, 5.038, not 4.857
    # Learned: 5.103, 0.94 [0.52, 1.70]; relative: 5.088, 0.95 [0.70, 1.29]; sinusoidal: 5.071,
    # 1.07 [0.71, 1.64]; none: 5.088, 0.96 [0.67, 1.36].
    positions='rotary',
    norm='pre',  # post: 5.113, 0.90 [0.68, 1.18]
    initialization='standard',  # paper 1: 5.446, 0.47 [0.27, 0.80]
  )
  # Below: e64-h64-f128-a4-l1, one seed, against 4.281; seeds have a standard deviation of 0.035.
  config.mask.rate = 0.3  # 0.15: 4.486; 0.4: 4.262, at more FLOPs
  config.optimizer.update(
    algorithm='muon',  # AdamW: 4.495
    learning_rate=5.6e-3,  # 3e-3: 4.420; 1e-2: 4.270; 1.8e-2: 4.312; at 2.5M 4.087, 1e-2: 4.121
    # Below: `together` at (32, 32, 64, 1).
    schedule='linear',  # paper 1: 5.204, 0.65 [0.57, 0.73]
    clip=1.0,  # none: 5.059, 1.09 [0.94, 1.26]
    beta2=0.98,  # 0.95: 5.130, 0.82 [0.67, 1.01]
    no_decay='bias,norm,embedding',  # none: 5.079, 1.02 [0.93, 1.13]
  )
  return config


def get_config(shape=RUNS[0]):
  """Returns the recipe of a shape or logged run."""
  config = apply_settings(paper1_grids.get_config(shape))
  config.batch_size = 16
  config.num_steps = 2_000
  config.eval.update(every=100, rows=256)
  config.checkpoint.update(every=500, keep_last=1)
  return config
