"""Source files with repeated sentences, a corpus recipe that filters them, and the built corpus."""

import csv
import gzip
import json
import pathlib
import random
from typing import Any

from configs import base
from minilm_jax.core import recipe, run_dir
from minilm_jax.core.corpus_config import CorpusConfig
from tests.run_files import read_files

WORDS = 'the king queen cat dog saw and liked old house because was tired again'.split()


def write_sources(folder: pathlib.Path, seed: int = 0) -> list[str]:
  """Writes files of several formats and returns their paths.

  Sentences recur in a document, in other documents of a file and in other files.
  """
  generator = random.Random(seed)
  words = [*5 * WORDS, 'zygote', 'zygote']
  sentences = [
    ' '.join(generator.choices(words, k=generator.randint(4, 14))).capitalize() + '.'
    for _ in range(60)
  ]

  def texts(count: int) -> list[str]:
    return [' '.join(generator.choices(sentences, k=generator.randint(1, 9))) for _ in range(count)]

  (folder / 'empty.txt').write_text('')
  (folder / 'a.txt').write_text('\n\n'.join(texts(40)))
  (folder / 'c.txt').write_text('\n'.join(texts(9)))
  with gzip.open(folder / 'b.jsonl.gz', 'wt') as file:
    file.writelines(json.dumps({'text': text}) + '\n' for text in texts(40))
  with open(folder / 'd.csv', 'w', newline='') as file:
    csv.writer(file).writerows([['text'], *([text] for text in texts(20))])
  return [f'{folder}/{name}' for name in ('a.txt', 'b.jsonl.gz', 'empty.txt', 'c.txt', 'd.csv')]


def make_corpus_config(sources: list[str], **changes: Any) -> CorpusConfig:
  config = base.corpus()
  config.documents.sources = ','.join(sources)
  config.vocabulary.update(
    filters='spans,sentences',
    span_words=8,
    span_stride=3,
    min_words_per_span=4,
    min_words_per_sentence=3,
  )
  config.splits.update(validation=0.2, test=0.2)
  config.workers, config.tokenizer.size = 1, 60
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'corpus')


def read_corpus(folder: pathlib.Path) -> tuple[dict[pathlib.Path, bytes], dict[str, Any]]:
  """Returns the bytes of all other files, and the manifest without times and workers."""
  contents = read_files(pathlib.Path(folder))
  manifest = json.loads(contents.pop(pathlib.Path(run_dir.MANIFEST)))
  for stage in manifest['stages'].values():
    for name in ('seconds', 'processor_seconds', 'workers'):
      stage.pop(name, None)
  return contents, manifest
