"""Paper 1 (Honey, I Shrunk the Language): text to the reduced language, its tokenizer and rows of
128 tokens.

    minilm corpus --config=configs/corpus.py --config.documents.sources='TEXT/*.txt.xz' \
        --config.vocabulary.word_list=AOChildes_word_frequency.csv --workdir=corpora/honey

Sentences with more than five words and spans of 110 words, every word of them in the list, in rows
grouped by the paper's estimate of 1.2 tokens a word, under 19,000 BPE pieces. Without a word list
all text is kept: another language.

About 25 seconds on two CPU cores for 372 MB of novels, tales, speech and Wikipedia (91,000
documents, 61.4 million counted words), in half a GiB of memory. Expect of these 405,552 sentences
of 5.05 million counted words and 4,540 spans, in 57,317 training rows of 6.73 million tokens, 1.23
pieces a word.

Text too big for one machine is filtered on many with --beam, by Apache Beam:
minilm_jax/data/beam.py has the commands for Dataflow, Flink and Spark, how `c4` and `wikipedia` of
TFDS become sources, and what all of C4 would cost.
"""

from configs import base


def get_config():
  """The recipe of the paper's reduced language; sources and word list are the user's to name."""
  config = base.corpus()
  config.vocabulary.update(word_rule='paper1', filters='sentences,spans')
  config.tokenizer.update(model='bpe', size=19_000)
  config.rows.update(length=128, packing='words')
  return config
