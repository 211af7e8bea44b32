"""Runs the filter stage in independent shards, possibly on several machines.

`beam.py` schedules these functions; this module is separate so that it runs without Apache Beam.

A shard is a file or a range of records of a data set. A worker writes the selected text of a shard
to a file and sends only digests (16 bytes an item) to other workers. The numbers of repeated items
come back as a second file. The merge then reads the shards in order. No text travels between
workers, and no process holds more than a batch.

    folder/0000007.items      selected items, one a line, each after a digit for its split and kind
    folder/0000007.repeated   sorted numbers of the repeated items, as `<u8`
    folder/0000007.json       counts, the fingerprint of a source, or word frequencies
    folder/0000007.error      the three parts of the InputError of an unreadable shard

Files are written atomically and deterministically, so a failed shard can be repeated.
"""

import contextlib
import dataclasses
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from etils import epath

from minilm_jax.core import files, paths
from minilm_jax.core.corpus_config import (
  SPLITS,
  TEXT_KINDS,
  CorpusConfig,
  DocumentsConfig,
  SplitConfig,
)
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filtering, filters, tfds

_RECORDS_PER_SHARD = 100_000
_DIGESTS_PER_MESSAGE = 1 << 20
_WORDS_PER_MESSAGE = 1 << 20  # distinct words
# Split and kind of an item, indexed by its digit.
_ITEM_KEYS = tuple((split, kind) for split in SPLITS for kind in TEXT_KINDS)


def plan_shards(
  sources: Sequence[documents.Source], config: DocumentsConfig
) -> list[documents.Source]:
  """Returns the shards of the sources in order; data sets are cut into ranges of records."""
  shards = []
  for source in sources:
    stops = [None]
    if source.format == 'tfds':
      count = tfds.count_examples(source.path, config.split)
      stops = [*range(_RECORDS_PER_SHARD, count, _RECORDS_PER_SHARD), count]
    for start, stop in zip([0, *stops], stops, strict=False):
      shards.append(dataclasses.replace(source, start=start, stop=stop))
  return shards


def locate_shard_file(folder: epath.Path, number: int, suffix: str) -> epath.Path:
  """Returns the path of a file of a shard; `suffix` is 'items', 'repeated', 'json' or 'error'."""
  return folder / f'{number:07d}.{suffix}'


def _open_atomic(path: epath.Path) -> contextlib.AbstractContextManager[IO[bytes]]:
  """Opens a file that appears when complete; workers on the same shard do not collide."""
  return files.open_atomic(path, f'{uuid.uuid4().hex}.partial')


def write_shard_json(folder: epath.Path, number: int, value: Any, suffix: str = 'json') -> None:
  """Writes a JSON file of a shard atomically."""
  with _open_atomic(locate_shard_file(folder, number, suffix)) as file:
    file.write(json.dumps(value).encode())


def read_shard_json(folder: epath.Path, number: int) -> Any:
  """Returns the JSON that a worker wrote for a shard.

  Raises:
    InputError: The file is missing.
  """
  try:
    with locate_shard_file(folder, number, 'json').open('rb') as file:
      return json.load(file)
  except FileNotFoundError:
    raise InputError(
      f'the results of workers in {folder}',
      f'no file of shard {number}',
      'give a --workdir, or a --temp_location in --beam, that all workers share, such as gs://',
    ) from None


@contextlib.contextmanager
def _record_refusal(folder: epath.Path, number: int) -> Iterator[None]:
  """Writes an InputError to a file, because runners report worker errors incompletely."""
  try:
    yield
  except InputError as error:
    write_shard_json(folder, number, [error.asked, error.found, error.remedy], 'error')
    raise


def read_refusal(folder: epath.Path) -> InputError | None:
  """Returns the InputError of the first unreadable shard, or None."""
  for path in paths.list_matches(folder, '*.error'):
    with path.open('rb') as file:
      return InputError(*json.load(file))
  return None


def fingerprint_shard(shard: tuple[int, documents.Source], folder: epath.Path) -> None:
  """Writes the fingerprint of a numbered source."""
  number, source = shard
  with _record_refusal(folder, number):
    write_shard_json(folder, number, documents.fingerprint_source(source))


def count_shard_words(
  shard: tuple[int, documents.Source], config: CorpusConfig, folder: epath.Path
) -> Iterator[tuple[str, int]]:
  """Yields words of a shard and their frequencies; frequent words may occur in several messages."""
  (number, source), total = shard, Counter()
  with _record_refusal(folder, number):
    texts = documents.read_documents(source, config.documents)
    for batch in filtering.split_into_batches(texts):
      total.update(filtering.count_document_words(batch, config.vocabulary.word_rule))
      if len(total) >= _WORDS_PER_MESSAGE:
        yield from total.items()
        total.clear()
  yield from total.items()


def filter_shard(
  shard: tuple[int, documents.Source],
  config: CorpusConfig,
  text_filter: filters.Filter,
  folder: epath.Path,
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
  """Writes the files of a shard; yields (bucket, (shard, item numbers, digests))."""
  (number, source), started, num_sent = shard, time.thread_time(), 0
  counts, digests = Counter(), np.zeros(0, '<u8')
  with (
    _record_refusal(folder, number),
    _open_atomic(locate_shard_file(folder, number, 'items')) as file,
  ):
    texts = documents.read_documents(source, config.documents)
    for batch in filtering.split_into_batches(texts):
      result = filtering.filter_documents(batch, text_filter, config.splits)
      counts.update(result.counts)
      file.writelines(b'%d%b\n' % (_ITEM_KEYS.index(key), item) for key, item in result.items)
      digests = np.append(digests, result.digests)
      if len(digests) >= _DIGESTS_PER_MESSAGE:
        yield from filtering.split_into_buckets(number, num_sent, digests)
        num_sent, digests = num_sent + len(digests), digests[:0]
  yield from filtering.split_into_buckets(number, num_sent, digests)
  result = {
    'counts': counts,
    'items': num_sent + len(digests),
    'processor_seconds': time.thread_time() - started,
  }
  write_shard_json(folder, number, result)


def save_repeats(shard: tuple[int, Iterable[bytes]], folder: epath.Path) -> None:
  """Writes the sorted numbers of the repeated items of a shard, from all buckets."""
  number, parts = shard
  with _open_atomic(locate_shard_file(folder, number, 'repeated')) as file:
    file.write(np.sort(np.frombuffer(b''.join(parts), '<u8')).tobytes())


def merge_shards(
  folder: epath.Path, count: int, target: epath.Path, splits: SplitConfig
) -> dict[str, Any]:
  """Merges the shards of `folder` into the files of the stage; returns counts for the manifest."""
  counts, seconds = Counter(), Counter()

  def read_items() -> Iterator[tuple[tuple[str, str], bytes, bool]]:
    for number in range(count):
      sums = read_shard_json(folder, number)
      counts.update(sums['counts'])
      seconds.update(processor_seconds=sums['processor_seconds'])
      is_first = np.ones(sums['items'], bool)
      repeated = locate_shard_file(folder, number, 'repeated')
      if repeated.exists():
        with repeated.open('rb') as file:
          is_first[np.frombuffer(file.read(), '<u8')] = False
      with locate_shard_file(folder, number, 'items').open('rb') as file:
        for line, first in zip(file, is_first.tolist(), strict=True):
          yield _ITEM_KEYS[line[0] - ord('0')], line[1:-1], first

  return filtering.write_split_files(target, splits, read_items(), counts) | seconds
