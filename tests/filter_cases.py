"""Source files with repeated sentences, and a corpus recipe that filters the sentences."""

import csv
import gzip
import json
import pathlib
import random
from typing import Any

from configs import base
from minilm_jax.core import recipe
from minilm_jax.core.corpus_config import CorpusConfig

WORDS = 'the king queen cat dog saw and liked old house because was tired again'.split()


def write_sources(folder: pathlib.Path, seed: int = 0) -> list[str]:
  """Files of all kinds, whose sentences come again in one document, in one file and in others."""
  dice = random.Random(seed)
  words = [*5 * WORDS, 'zygote', 'zygote']
  sentences = [
    ' '.join(dice.choices(words, k=dice.randint(4, 14))).capitalize() + '.' for _ in range(60)
  ]

  def text() -> str:
    return ' '.join(dice.choices(sentences, k=dice.randint(1, 9)))

  (folder / 'empty.txt').write_text('')
  (folder / 'a.txt').write_text('\n\n'.join(text() for _ in range(40)))
  (folder / 'c.txt').write_text('\n'.join(text() for _ in range(9)))
  with gzip.open(folder / 'b.jsonl.gz', 'wt') as file:
    file.writelines(json.dumps({'text': text()}) + '\n' for _ in range(40))
  with open(folder / 'd.csv', 'w', newline='') as file:
    csv.writer(file).writerows([['text'], *([text()] for _ in range(20))])
  return [f'{folder}/{name}' for name in ('a.txt', 'b.jsonl.gz', 'empty.txt', 'c.txt', 'd.csv')]


def make_corpus_config(sources: list[str], **changes: Any) -> CorpusConfig:
  made = base.corpus()
  made.documents.sources = ','.join(sources)
  made.vocabulary.update(
    filters='spans,sentences',
    span_words=8,
    span_stride=3,
    min_words_per_span=4,
    min_words_per_sentence=3,
  )
  made.splits.update(validation=0.2, test=0.2)
  made.workers, made.tokenizer.size = 1, 60
  made.update_from_flattened_dict(changes)
  return recipe.resolve(made, 'corpus')


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
