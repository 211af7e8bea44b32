"""Another task: sentences of one's own in a table, and what they are about. No code, only the names
of its columns.

    minilm pretrain --config=configs/tiny.py --workdir=runs/tiny
    minilm finetune --config=configs/examples/own_task.py --checkpoint=runs/tiny --workdir=runs/about --with_scratch

A minute each on two cores. Expect no sharp answer from some 50 sentences to judge by: an interval
of an accuracy is about 0.2 wide. Whether pre-training helps is what the second row, from scratch,
is for; chance is 0.33.

The table is configs/examples/own_task.csv, 240 sentences with the label animal, person or thing;
put your own in its place by --config.task.train=FILE, --config.task.fields and --config.task.label
(configs/custom_task.py has all of them).
"""

import pathlib

from configs import base


def get_config():
  """Five seeds; every fifth sentence is kept from training, by its hash, and is what scores are
  from.
  """
  config = base.finetune()
  config.task.update(
    name='own',
    train=str(pathlib.Path(__file__).with_name('own_task.csv')),
    fields='sentence',
    label='about',
  )
  config.head.pooling = 'mean'
  config.optimizer.learning_rate = 2e-3
  config.epochs = 10.0
  config.length = 32
  return config
