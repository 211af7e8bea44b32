"""Corpus of paper 1 (Honey, I Shrunk the Language): the reduced language in rows of 128 tokens.

    minilm corpus --config=configs/corpus.py --config.documents.sources='TEXT/*.txt.xz' \
        --config.vocabulary.word_list=AOChildes_word_frequency.csv --workdir=corpora/honey

The filters select sentences of more than five words and spans of 110 words inside the word list.
Rows are grouped by the paper's estimate of 1.2 tokens a word; the tokenizer has 19,000 BPE pieces.
Without a word list, all text is selected.

Expect 404,056 sentences of 5.04 million counted words and 4,540 spans from 372 MB of novels, tales,
speech and Wikipedia (91,000 documents, 61.4 million counted words): 57,189 training rows of 6.71
million tokens, 1.23 pieces a word. The command takes about 25 seconds on two CPU cores and half a
GiB of memory.

With --beam, Apache Beam filters larger text on many machines. docs/guide/beam.md has the options for
Dataflow, Flink and Spark, commands for `c4` and `wikipedia` of TFDS, and an estimate of the cost of
C4.
"""

from configs import base


def get_config():
  """Returns the recipe; the command line sets sources and word list."""
  config = base.corpus()
  config.vocabulary.update(word_rule='paper1', filters='sentences,spans')
  config.tokenizer.update(model='bpe', size=19_000)
  config.rows.update(length=128, packing='words')
  return config
