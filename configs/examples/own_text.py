"""A custom corpus: text inside a word list, and a model of it.

    minilm corpus --config=configs/examples/own_text.py:corpus --config.documents.sources='text/*.txt' \
        --config.vocabulary.word_list=words.txt --workdir=corpora/own
    minilm pretrain --config=configs/examples/own_text.py --config.corpus=corpora/own --workdir=runs/own

The word list has one word a line. Omit it to select all text, or set
--config.vocabulary.most_frequent=5000 for the most frequent words of the text. Documents of a .txt
file are separated by empty lines.

Expect a small word list to exclude much of the text; the first command reports how much. A model of
0.3M parameters needs at least a million tokens. Each command takes a few minutes for a few
megabytes of text.
"""

from configs import base


def corpus():
  """Returns the recipe of the corpus: sentences in rows of 64 tokens, 2,000 pieces."""
  config = base.corpus()
  config.vocabulary.update(word_rule='plain', filters='sentences')
  config.tokenizer.size = 2000
  config.rows.update(length=64, packing='tokens')
  config.splits.update(validation=0.05, test=0.05)
  return config


def pretrain():
  """Returns the recipe of pre-training: a model of 0.3M parameters for a laptop."""
  config = base.pretrain()
  config.batch_size = 32
  config.num_steps = 2000
  config.model.update(
    vocab_size=2000,
    embedding_size=64,
    hidden_size=64,
    intermediate_size=256,
    num_heads=4,
    flops_heads=4,
    num_layers=3,
    max_length=64,
    norm='pre',
    positions='rotary',
    dropout=0.0,
    tied=True,
    projection=False,
    segments=0,
  )
  config.mask.rate = 0.3
  config.optimizer.update(learning_rate=3e-3, schedule='linear', beta2=0.98)
  config.eval.every = config.checkpoint.every = 200
  return config


def get_config(part='pretrain'):
  """Returns the recipe of a part, `pretrain` or `corpus`."""
  return {'corpus': corpus, 'pretrain': pretrain}[part]()
