"""A run of one minute: a two-block encoder on the built-in microworld.

    minilm pretrain --config=configs/tiny.py --workdir=runs/tiny
    minilm finetune --config=configs/paper1_tasks.py:microworld/acceptability --checkpoint=runs/tiny --workdir=runs/tiny-task

The first command also builds the corpus, by the recipe `configs/tiny.py:corpus`. Small batches, a
masking rate of 0.3 and rotary positions leave the plateau of word frequencies (5.0 nats a token)
within 200 updates.

Expect a test loss of about 2.0 nats after twenty seconds on two cores.
"""

from configs import base


def corpus():
  """Returns the recipe of the corpus: sentences of the microworld, 512 pieces."""
  config = base.corpus()
  config.documents.sources = 'microworld:4000'
  config.vocabulary.update(word_rule='plain', filters='sentences', min_words_per_sentence=2)
  config.tokenizer.size = 512
  config.rows.update(length=64, packing='tokens')
  config.splits.update(validation=0.05, test=0.05)
  return config


def pretrain():
  """Returns the recipe of pre-training, with several evaluations and checkpoints."""
  config = base.pretrain()
  config.corpus = 'configs/tiny.py:corpus'
  config.batch_size = 16
  config.num_steps = 600
  config.model.update(
    vocab_size=512,
    embedding_size=64,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    flops_heads=4,
    num_layers=2,
    max_length=64,
    norm='pre',
    positions='rotary',
    dropout=0.0,
  )
  config.mask.rate = 0.3
  config.optimizer.update(learning_rate=3e-3, schedule='linear', beta2=0.98)
  config.eval.update(every=100, rows=200)
  config.checkpoint.every = 100
  config.log.every = 20
  return config


def get_config(part='pretrain'):
  """Returns the recipe of a part, `pretrain` or `corpus`."""
  return {'corpus': corpus, 'pretrain': pretrain}[part]()
