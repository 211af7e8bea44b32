"""A grid for two CPU cores: fourteen shapes of paper 1 with two seeds each.

    minilm sweep --config=configs/cpu_grid.py --config.corpus=corpora/honey --workdir=runs/grid
    minilm finetune --config=configs/paper1_tasks.py:cola,sst2 --config.task.data_dir=TFDS --config.task.max_train_examples=1000 \
        --config.epochs=3 --config.seeds=0,1 --checkpoint='runs/grid/*/member-0' --with_scratch --workdir=runs/grid-glue
    minilm finetune --config=configs/paper1_tasks.py:mrpc,stsb --config.task.data_dir=TFDS --config.task.max_train_examples=500 \
        --config.epochs=2 --config.seeds=0,1 --checkpoint='runs/grid/*/member-0' --with_scratch --workdir=runs/grid-glue
    minilm report runs/grid runs/grid-glue --workdir=runs/report

The shapes change one size at a time: upwards from (e, h, f, layers) = (32, 32, 64, 1) and downwards
from (64, 128, 512, 4), with 8 heads. They have 1.25 to 4.5 million parameters. The argument is one
or more shapes as in `paper1_grids.py`, separated by commas; the default is all shapes.

Under the training settings of the paper, the smallest model is near its plateau after 49 million
tokens, twelve times the tokens of a point here. These settings leave the plateau earlier: small
batches, pre-LN, rotary positions, and a six times higher learning rate that decays to 0.

Expect test losses of 6.12 to 6.15 nats at width 32, 5.3 to 5.5 at width 64 and 4.8 to 5.1 at width
128. The sweep took 1 h 53 min on two busy cores.
"""

from configs import paper1_grids

RUNS = [
  *paper1_grids.vary_sizes((32, 32, 64, 8, 1), e=(64,), h=(64, 128), f=(128,), l=(2, 4)),
  *paper1_grids.vary_sizes((64, 128, 512, 8, 4), e=(32,), h=(32, 64), f=(128,), l=(1, 2)),
]


def get_config(name=RUNS[0]):
  """Returns the recipe of a shape."""
  config = paper1_grids.get_config(name)
  config.batch_size = 16
  config.num_steps = 2000
  config.population.members = 2
  config.model.update(initialization='standard', norm='pre', positions='rotary')
  config.optimizer.update(learning_rate=3e-3, schedule='linear', beta2=0.98, clip=1.0)
  config.eval.update(every=200, rows=256)
  config.checkpoint.update(every=500, keep_last=1)
  return config
