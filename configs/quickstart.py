"""The quickstart: a reduced language of film reviews, a model of 0.3M parameters, word order.

    bash launch/quickstart.sh

The argument is a part: `corpus`, `pretrain` (default) or `finetune`. The command `minilm
quickstart` sets the paths of text and sentences. The task is word order: two adjacent words of half
of the sentences are swapped, which is the probing task "bigram shift" of Conneau et al. (2018).

Expect a validation loss of about 3.8 nats, and a test accuracy of 63% against 50% from scratch; the
majority class has 50%. The quickstart takes about three minutes on two slow CPU cores after
installation.
"""

from configs import base, recommended


def corpus():
  """Returns the recipe of the corpus: sentences of the 12,000 most frequent words, 4,000 pieces."""
  config = base.corpus()
  config.vocabulary.update(most_frequent=12_000, word_rule='plain', filters='sentences')
  config.tokenizer.size = 4000
  config.rows.update(length=64, packing='tokens')
  config.splits.update(validation=0.02, test=0.0)
  return config


def pretrain():
  """Returns the recipe of pre-training: `recommended.py` with a small vocabulary and short rows.

  A small vocabulary keeps the head cheap and its pieces frequent.
  """
  config = base.pretrain()
  config.batch_size = 32
  config.num_steps = 3000
  config.model.update(
    vocab_size=4000,
    embedding_size=64,
    hidden_size=64,
    intermediate_size=256,
    num_heads=4,
    flops_heads=4,
    num_layers=1,
    max_length=64,
    segments=0,
  )
  recommended.apply_settings(config)
  config.mask.update(random_share=0.1, keep_share=0.1)
  config.eval.update(every=500, rows=500)
  config.checkpoint.every = 1000
  config.log.every = 100
  return config


def finetune():
  """Returns the recipe of fine-tuning: five seeds on 5,000 sentences with or without a swap."""
  config = base.finetune()
  config.task.update(name='word_order', label='order', split='test')
  config.head.pooling = 'mean'
  config.optimizer.learning_rate = 2e-3
  config.seeds = '0,1,2,3,4'
  config.epochs = 3.0
  config.length = 48
  return config


def get_config(part='pretrain'):
  """Returns the recipe of a part."""
  return {'corpus': corpus, 'pretrain': pretrain, 'finetune': finetune}[part]()
