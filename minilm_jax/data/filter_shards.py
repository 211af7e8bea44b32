"""The filter stage in independent shards, so that each may run on another machine.

This module is separate from `beam.py` because it must be testable without Apache Beam.

A shard is a file or, of a data set, a range of records. A worker writes the kept text of a shard,
in order, to a file of its own, and hands on the digests of the items: 16 bytes each. The numbers of
the repeated items come back as one more file a shard. The join reads the shards one after another.
So text is written twice and never travels between workers, and no process holds more than a batch.

    folder/0000007.items      kept items, one a line, before each a digit for its split and kind
    folder/0000007.repeated   numbers of the repeated items, in order, as `<u8`
    folder/0000007.json       sums; the fingerprint of a source; or the words that were counted
    folder/0000007.error      the reason why the shard cannot be read

Each appears whole, and a shard that is done twice gives the same bytes, so that a worker may fail
and another continue.
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

from minilm_jax.core.corpus_config import SPLITS, CorpusConfig, DocumentsConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filtering, filters, tfds

_RECORDS_PER_SHARD = 100_000  # of a data set
_DIGESTS_PER_MESSAGE = 1 << 20
_WORDS_PER_MESSAGE = 1 << 20  # distinct ones
# split and kind of an item, by its digit
_ITEM_KEYS = tuple((split, kind) for split in SPLITS for kind in filtering.TEXT_KINDS)


def plan_shards(
  sources: Sequence[documents.Source], config: DocumentsConfig
) -> list[documents.Source]:
  """Returns sources in the order of the text, data sets in ranges of records."""
  shards = []
  for source in sources:
    stops = [None]
    if source.format == 'tfds':
      count = tfds.count_examples(source.path, config.split)
      stops = [*range(_RECORDS_PER_SHARD, count, _RECORDS_PER_SHARD), count]
    for start, stop in zip([0, *stops], stops, strict=False):
      shards.append(dataclasses.replace(source, start=start, stop=stop))
  return shards


def shard_path(folder: epath.Path, number: int, suffix: str) -> epath.Path:
  """Returns a file of a shard: 'items', 'repeated', 'json' or 'error'."""
  return folder / f'{number:07d}.{suffix}'


@contextlib.contextmanager
def _open_atomic(path: epath.Path) -> Iterator[IO[bytes]]:
  """Yields a file that appears when it is whole; two workers at one shard do not collide."""
  temporary, is_whole = path.parent / f'.{path.name}.{uuid.uuid4().hex}.partial', False
  try:
    with temporary.open('wb') as file:
      yield file
    temporary.replace(path)
    is_whole = True
  finally:
    if not is_whole:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def write_shard_json(path: epath.Path, value: Any) -> None:
  """Writes JSON for the process that started the work."""
  with _open_atomic(path) as file:
    file.write(json.dumps(value).encode())


def read_shard_json(folder: epath.Path, number: int) -> Any:
  """Returns the JSON that a worker wrote for a shard.

  Raises:
    InputError: it is not there.
  """
  try:
    with shard_path(folder, number, 'json').open('rb') as file:
      return json.load(file)
  except FileNotFoundError:
    raise InputError(
      f'the files that workers wrote to {folder}',
      f'nothing of part {number} is there',
      'give a --workdir, or a --temp_location in --beam, that all workers share, as gs:// is',
    ) from None


@contextlib.contextmanager
def _record_refusal(folder: epath.Path, number: int) -> Iterator[None]:
  """Writes an InputError to a file: a runner reports little of the errors of its workers."""
  try:
    yield
  except InputError as error:
    parts = [error.asked, error.found, error.remedy]
    write_shard_json(shard_path(folder, number, 'error'), parts)
    raise


def read_refusal(folder: epath.Path) -> InputError | None:
  """Returns the reason why a shard could not be read, the first in the order of the text."""
  for path in sorted(folder.glob('*.error')):
    with path.open('rb') as file:
      return InputError(*json.load(file))
  return None


def fingerprint_shard(shard: tuple[int, documents.Source], folder: epath.Path) -> None:
  """Writes the fingerprint of a source, given with its number."""
  number, source = shard
  with _record_refusal(folder, number):
    fingerprint = documents.fingerprint_source(source)
    write_shard_json(shard_path(folder, number, 'json'), fingerprint)


def count_shard_words(
  shard: tuple[int, documents.Source], config: CorpusConfig, folder: epath.Path
) -> Iterator[tuple[str, int]]:
  """Yields words of a shard and their frequencies; a word may recur if there are many."""
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
  """Filters a shard into its files; yields bucket, and shard, numbers and digests of its items."""
  (number, source), started, num_sent = shard, time.thread_time(), 0
  read, counts, digests = Counter(), Counter(), np.zeros(0, '<u8')
  with _record_refusal(folder, number), _open_atomic(shard_path(folder, number, 'items')) as file:
    texts = documents.read_documents(source, config.documents)
    for batch in filtering.split_into_batches(texts):
      result = filtering.filter_documents(batch, text_filter, config.splits)
      read.update(result.read)
      counts.update(result.counts)
      file.writelines(b'%d%b\n' % (_ITEM_KEYS.index(key), item) for key, item in result.items)
      digests = np.append(digests, result.digests)
      if len(digests) >= _DIGESTS_PER_MESSAGE:
        yield from _address_digests(number, num_sent, digests)
        num_sent, digests = num_sent + len(digests), digests[:0]
  yield from _address_digests(number, num_sent, digests)
  write_shard_json(
    shard_path(folder, number, 'json'),
    {
      'read': read,
      'counts': counts,
      'items': num_sent + len(digests),
      'processor_seconds': time.thread_time() - started,
    },
  )


def _address_digests(
  number: int, first: int, digests: np.ndarray
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
  for bucket, numbers, members in filtering.split_into_buckets(first, digests):
    yield bucket, (number, numbers, members)


def save_repeats(shard: tuple[int, Iterable[bytes]], folder: epath.Path) -> None:
  """Writes the numbers, from all buckets, of the repeated items of a shard."""
  number, parts = shard
  with _open_atomic(shard_path(folder, number, 'repeated')) as file:
    file.write(np.sort(np.frombuffer(b''.join(parts), '<u8')).tobytes())


def merge_shards(folder: epath.Path, count: int, target: epath.Path) -> dict[str, Any]:
  """Joins the shards, in order, into the files of the stage; returns numbers for the manifest."""
  read, counts, seconds = Counter(), Counter(), Counter()

  def read_items() -> Iterator[tuple[tuple[str, str], bytes, bool]]:
    for number in range(count):
      sums = read_shard_json(folder, number)
      read.update(sums['read'])
      counts.update(sums['counts'])
      seconds.update(processor_seconds=sums['processor_seconds'])
      is_first = np.ones(sums['items'], bool)
      repeated = shard_path(folder, number, 'repeated')
      if repeated.exists():
        with repeated.open('rb') as file:
          is_first[np.frombuffer(file.read(), '<u8')] = False
      with shard_path(folder, number, 'items').open('rb') as file:
        for line, first in zip(file, is_first.tolist(), strict=True):
          yield _ITEM_KEYS[line[0] - ord('0')], line[1:-1], first

  return filtering.write_split_files(target, read_items(), read, counts) | seconds
