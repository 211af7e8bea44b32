"""The quickstart without downloads: a model of 0.1M parameters on the built-in microworld.

    minilm quickstart --language=microworld --workdir=runs/microworld

The argument is a part, which the command of the same name also runs: `corpus`, `pretrain` (default)
or `finetune`. Corpus and model start from `tiny.py`: more pieces, shorter rows and more updates.

Expect a validation loss of 1.8 nats a token. The task is acceptability, and its test accuracy is
0.665 ± 0.016 pre-trained against 0.510 ± 0.004 from scratch (5 seeds; the majority class has 0.49).
Other pre-training runs gave 0.65, 0.67 and 0.69. The tasks `sentiment` and `entailment` stay at
chance after so short a run. The quickstart takes about a minute on two CPU cores.
"""

from configs import base, tiny


def corpus():
  """Returns the recipe of the corpus; the tokenizer has a piece for nearly every word."""
  config = tiny.corpus()
  config.tokenizer.size = 590
  config.rows.length = 32
  config.splits.update(validation=0.03, test=0.0)
  return config


def pretrain():
  """Returns the recipe of pre-training, which leaves the unigram plateau within 100 updates."""
  config = tiny.pretrain()
  config.update(corpus='', num_steps=2000)
  config.model.update(vocab_size=590, max_length=32, segments=0, projection=False, tied=True)
  config.mask.rate = 0.25
  config.optimizer.learning_rate = 4e-3
  config.eval.every, config.checkpoint.every, config.log.every = 200, 1000, 50
  return config


def finetune():
  """Returns the recipe of fine-tuning: five seeds on 1,000 sentences."""
  config = base.finetune()
  config.task.update(name='microworld/acceptability', split='test', max_train_examples=1000)
  config.head.pooling = 'mean'
  config.optimizer.learning_rate = 2e-3
  config.seeds = '0,1,2,3,4'
  config.epochs = 5.0
  config.length = 32
  return config


def get_config(part='pretrain'):
  """Returns the recipe of a part."""
  return {'corpus': corpus, 'pretrain': pretrain, 'finetune': finetune}[part]()
