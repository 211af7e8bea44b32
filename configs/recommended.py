"""The recommended recipe for tiny models: that of paper 1, with fields that shorten its plateau.

    minilm sweep --config=configs/recommended.py --config.corpus=corpora/honey --workdir=runs/recommended
    minilm pretrain --config=configs/recommended.py:e64-h128-f512-a8-l4 --config.corpus=corpora/honey --workdir=runs/larger

The argument is one or more shapes as in `paper1_grids.py` or logged runs, separated by commas;
`cpu_grid` stands for the fourteen shapes of `cpu_grid.py`. The 2,000 updates of 16 rows take three
to nine minutes on one core at the first two sizes; increase --config.num_steps for lower losses.

Evidence: `configs/plateau_ablations.py`, with 4.1 million tokens of paper 1's reduced language and
three seeds. Losses are nats on the validation rows. Word frequencies alone have a loss of 6.446
(6.476 in the first row), and a run has left the plateau 5.5% below it. The compute multiplier is
FLOPs(paper 1) / FLOPs(this recipe) to reach a loss that both reach.

    (embedding, hidden, feed-forward, layers)  paper 1, on the plateau  this recipe           multiplier
    (256, 256, 1024, 4)                        6.427 [6.423, 6.431]     4.655 [4.524, 4.786]  7.3 [6.6, 8.2]
    (64, 128, 512, 4)                          6.402 [6.386, 6.417]     4.923 [4.491, 5.356]  5.9 [3.7, 9.3]
    (64, 64, 256, 2)                           6.412 [6.386, 6.439]     4.864 [4.846, 4.883]  6.7 [4.6, 9.8]
    (32, 32, 64, 1)                            6.472 [6.444, 6.500]     5.081 [5.017, 5.145]  7.3 [3.3, 15.9]
    (32, 32, 64, 1), unfiltered Wikipedia      7.248 [7.241, 7.254]     5.998 [5.917, 6.078]  6.7 [4.5, 9.9]

Runs leave the plateau after 0.6 to 1.3 million tokens. One later seed on another build of the
corpus has multipliers of 8.0, 6.2, 7.1 and 8.2 in the first four rows. The learning rate is lower
above a width of 128, so set the size by the argument, not by --config.model.hidden_size.

Comments at each field give the loss without it at (32, 32, 64, 1), and the compute multiplier
against this recipe; a multiplier below 1 means that the field helps.
"""

from configs import cpu_grid, paper1_grids

RUNS = [
  paper1_grids.format_point(*shape)
  for shape in ((32, 32, 64, 8, 1), (64, 64, 256, 8, 2), (64, 128, 512, 8, 4))
]
SETS = {'cpu_grid': cpu_grid.RUNS}


def apply_settings(config):
  """Sets the recommended fields on a pre-training recipe, whose hidden size is set; returns it."""
  config.model.update(
    # Without: 6.316 on the plateau, 0.15 [0.14, 0.17]. Alone in the recipe of paper 1: 6.465.
    short_convolution=3,
    dropout=0.0,  # 0.1: 5.126, 0.87 [0.68, 1.13]; at (64, 64, 256, 2), one seed, 5.038, not 4.857
    # Learned: 5.103, 0.94 [0.52, 1.70]; relative: 5.088, 0.95 [0.70, 1.29]; sinusoidal: 5.071,
    # 1.07 [0.71, 1.64]; none: 5.088, 0.96 [0.67, 1.36].
    positions='rotary',
    norm='pre',  # post: 5.113, 0.90 [0.68, 1.18]
    initialization='standard',  # paper 1: 5.446, 0.47 [0.27, 0.80]
  )
  config.optimizer.update(
    # 5e-4: 6.068, 0.23 [0.18, 0.30]. With one seed each, 1e-2 has 4.846 and 3e-2 has 5.016 at width
    # 32; at (64, 64, 256, 2), 5e-3 has 4.922 and 1e-2 has 5.027, not 4.857. At (256, 256, 1024, 4),
    # 3e-3 has 6.153 [5.821, 6.484], because two of three seeds stay on the plateau.
    learning_rate=3e-3 if config.model.hidden_size <= 128 else 1e-3,
    schedule='linear',  # paper 1: 5.204, 0.65 [0.57, 0.73]
    clip=1.0,  # none: 5.059, 1.09 [0.94, 1.26]
    beta2=0.98,  # 0.95: 5.130, 0.82 [0.67, 1.01]
    no_decay='bias,norm,embedding',  # none: 5.079, 1.02 [0.93, 1.13]
  )
  return config


def get_config(shape=RUNS[1]):
  """Returns the recipe of a shape or logged run."""
  config = apply_settings(paper1_grids.get_config(shape))
  config.batch_size = 16
  config.num_steps = 2_000
  config.eval.update(every=100, rows=256)
  config.checkpoint.update(every=500, keep_last=1)
  return config
