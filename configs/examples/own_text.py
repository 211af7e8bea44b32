"""Another corpus: text of one's own, kept where it stays inside a word list of one's own, and a
model of it.

    minilm corpus --config=configs/examples/own_text.py:corpus --config.documents.sources='text/*.txt' \
        --config.vocabulary.word_list=words.txt --workdir=corpora/own
    minilm pretrain --config=configs/examples/own_text.py --config.corpus=corpora/own --workdir=runs/own

Some minutes each for a few megabytes of text. Expect to lose much of it to a small word list: the
first command says how much was kept, and a model of 0.3M parameters wants a million tokens or more.

The word list is a file with a word a line; leave it out for all text, or give
--config.vocabulary.most_frequent=5000 for the most frequent words of the text itself. A .txt has an
empty line between documents.
"""

from configs import base


def corpus():
  """Sentences inside the word list, in rows of 64 tokens, under a tokenizer of 2,000 pieces."""
  config = base.corpus()
  config.vocabulary.update(word_rule='plain', filters='sentences')
  config.tokenizer.size = 2000
  config.rows.update(length=64, packing='tokens')
  config.splits.update(validation=0.05, test=0.05)
  return config


def pretrain():
  """A model of 0.3M parameters that a laptop trains while one waits."""
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
  """The run, or its corpus."""
  return {'corpus': corpus, 'pretrain': pretrain}[part]()
