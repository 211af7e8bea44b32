"""Fine-tuning on a custom task: a table of sentences with labels.

    minilm pretrain --config=configs/tiny.py --workdir=runs/tiny
    minilm finetune --config=configs/examples/own_task.py --checkpoint=runs/tiny --workdir=runs/about-scratch --with_scratch

The table configs/examples/own_task.csv has 240 sentences with the label animal, person or thing.
Set --config.task.train, --config.task.fields and --config.task.label for another table;
configs/custom_task.py describes all fields.

Expect wide intervals, about 0.2 of accuracy, from 50 validation sentences; chance is 0.33. The rows
from scratch show the gain of pre-training. Each command takes about a minute on two cores.
"""

import pathlib

from configs import base


def get_config():
  """Returns the recipe: five seeds, and a fifth of the sentences for validation by their hash."""
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
