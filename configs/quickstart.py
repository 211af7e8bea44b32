"""The quickstart: a reduced language of film reviews, a model of 1.25M parameters, sentence sentiment.

    bash launch/quickstart.sh

Parts: `corpus`, `pretrain` (the default) and `finetune`; `minilm quickstart` fills in where the text and the sentences are.
"""

from configs import base


def corpus():
  """Sentences made of the 8,000 most frequent words of the reviews."""
  config = base.corpus()
  config.vocabulary.update(most_frequent=8000, counting='plain', passes='sentences')
  config.tokenizer.size = 4000
  config.rows.update(length=64, grouping='tokens')
  config.splits.update(validation=0.02, test=0.0)
  return config


def pretrain():
  """Relative positions and pre-LN, which leave the unigram plateau within a few million tokens."""
  config = base.pretrain()
  config.batch_size = 64
  config.updates = 1500
  config.model.update(vocabulary=4000, embedding=128, hidden=128, feed_forward=256, heads=8, layers=2, length=64, norm='pre',
                      positions='relative', dropout=0.0, segments=0, tied=True)
  config.optimizer.update(learning_rate=4e-3, schedule='linear', beta2=0.98)
  config.evaluation.update(every=250, rows=500)
  config.checkpoint.every = 500
  config.log.every = 25
  return config


def finetune():
  """Five seeds on sentences of positive or negative judgement; the test split takes no part in any choice."""
  config = base.finetune()
  config.task.update(name='sentiment', split='test')
  config.head.pooling = 'mean'
  config.optimizer.update(learning_rate=1e-3)
  config.seeds = '0,1,2,3,4'
  config.epochs = 3.0
  config.length = 64
  return config


def get_config(part='pretrain'):
  """One part of the quickstart."""
  return {'corpus': corpus, 'pretrain': pretrain, 'finetune': finetune}[part]()
