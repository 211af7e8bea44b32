"""The quickstart: a reduced language of film reviews, a model of 1.24M parameters, sentiment.

    bash launch/quickstart.sh

The argument is a part: `corpus`, `pretrain` (default) or `finetune`. The command `minilm
quickstart` sets the paths of text and sentences.

Expect a validation loss of about 3.8 nats, and a test accuracy of 66% against 64% from scratch; the
majority class has 50%. The quickstart takes about seven minutes on two slow CPU cores after
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
  """Returns the recipe of pre-training: the settings of `recommended.py` with AdamW, in small batches.

  A small vocabulary keeps the head cheap and its pieces frequent. Most parameters are in the wide
  embedding, which costs only memory. A fifth of the predicted tokens is not replaced by <mask>,
  which also trains the vectors of ordinary tokens; fine-tuning classifies a sentence by their mean.
  """
  config = base.pretrain()
  config.batch_size = 16
  config.num_steps = 12_000
  config.model.update(
    vocab_size=4000,
    embedding_size=224,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    flops_heads=4,
    num_layers=2,
    max_length=64,
    segments=0,
  )
  recommended.apply_settings(config)
  # With Muon and half of the tokens, the gain on the validation split was 1.1 [-1.0, 3.3] points.
  config.optimizer.update(algorithm='adamw', learning_rate=3e-3)
  config.mask.update(rate=0.3, random_share=0.1, keep_share=0.1)
  config.eval.update(every=1000, rows=500)
  config.checkpoint.every = 2000
  config.log.every = 100
  return config


def finetune():
  """Returns the recipe of fine-tuning: five seeds on 1,000 labelled sentences.

  The settings were selected on the validation split after 16,000 updates of pre-training without
  the short convolution. The gain of pre-training was 2.2 points at a rate of 1e-3, 2.3 at 2e-3, 1.9
  at 4e-3 and 2.9 at 8e-3. It was 0.7 points with all 5,136 sentences; 300 sentences gave no gain.
  """
  config = base.finetune()
  config.task.update(name='sentiment', split='test', max_train_examples=1000)
  config.head.pooling = 'mean'
  config.optimizer.learning_rate = 2e-3
  config.seeds = '0,1,2,3,4'
  config.epochs = 6.0
  config.length = 48
  return config


def get_config(part='pretrain'):
  """Returns the recipe of a part."""
  return {'corpus': corpus, 'pretrain': pretrain, 'finetune': finetune}[part]()
