"""Filters, splits and deduplicates documents: the first stage of a corpus.

Worker processes filter batches of documents (`filters.py`) and return the results in order. A hash
of its text assigns each document to one split, so overlapping windows never cross splits.
Deduplication then keeps the first of equal items over all splits. It needs 8 bytes of memory for
each selected item; all other memory is constant.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt64

from minilm_jax.core import progress, signals
from minilm_jax.core.corpus_config import (
  SPLITS,
  TEXT_KINDS,
  CorpusConfig,
  DocumentsConfig,
  SplitConfig,
)
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filters

_CHARS_PER_BATCH = 1 << 20
_MAX_BYTES_PER_WORD = 24  # mean above that of languages with spaces between words
_MAX_ESTIMATED_SHARE = 0.99  # of a source, so that its estimated progress ends with the source
_NUM_BUCKETS = 256
_BUCKET_SHIFT = np.uint64(56)  # the top byte of a digest is its bucket
_LOWER, _SPACE = bytes(range(256)).lower(), b' \t\n\r\v\f'  # the hash ignores case and white space

_T = TypeVar('_T')
_ItemKey = tuple[str, str]  # split and kind of an item
_worker_function: Callable[[list[str]], Any]  # of a worker process, set once by _initialize_worker


def map_in_order(
  function: Callable[[list[str]], _T], batches: Iterable[list[str]], workers: int
) -> Iterator[_T]:
  """Yields `function(batch)` for each batch in order, computed in worker processes.

  Args:
    batches: Batches; at most `2 * workers + 1` are read ahead.
    workers: Number of processes; 1 computes in this process.

  Raises:
    InputError: A worker process was killed.
  """
  if workers == 1:
    yield from map(function, batches)
    return
  # A fork would copy the threads and devices of the caller.
  context = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(workers, context, _initialize_worker, (function,)) as pool:
    pending: collections.deque[futures.Future[_T]] = collections.deque()
    try:
      for batch in batches:
        with _hide_script():
          pending.append(pool.submit(_call_worker, batch))
        if len(pending) > 2 * workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    except process.BrokenProcessPool:
      raise InputError(
        f'workers={workers}',
        'a worker process was killed, perhaps for lack of memory',
        'run the command again, with fewer workers if memory is short',
      ) from None
    finally:
      pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _hide_script() -> Iterator[None]:
  """Keeps new worker processes from executing the script of the user, which they do not need.

  Without a test of `__name__`, the script would start again in each worker.
  """
  script = sys.modules['__main__']
  path, spec = vars(script).pop('__file__', None), getattr(script, '__spec__', None)
  script.__spec__ = None
  try:
    yield
  finally:
    script.__spec__ = spec
    if path is not None:
      script.__file__ = path


def _initialize_worker(function: Callable[[list[str]], Any]) -> None:
  global _worker_function
  _worker_function = function
  signals.ignore_in_worker()
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  # A killed parent does not close the pool, and its workers would wait forever.
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _call_worker(batch: list[str]) -> Any:
  return _worker_function(batch)


class Deduplicator:
  """Set of 64-bit digests, in sorted runs that are merged at similar sizes."""

  def __init__(self) -> None:
    self._runs: list[UInt64[np.ndarray, 'n']] = []

  def first_seen(self, digests: UInt64[np.ndarray, 'n']) -> Bool[np.ndarray, 'n']:
    """Adds digests, and returns whether each is the first of its value."""
    is_first = np.zeros(len(digests), bool)
    is_first[np.unique(digests, return_index=True)[1]] = True
    for run in self._runs:
      is_first &= run[np.searchsorted(run, digests).clip(max=len(run) - 1)] != digests
    if is_first.any():
      self._runs.append(np.sort(digests[is_first]))
    while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
      self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()])))
    return is_first


def split_into_buckets(
  shard: int, first: int, digests: UInt64[np.ndarray, 'n']
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
  """Yields (bucket, (shard, item numbers, digests)), the latter two as bytes of `<u8`.

  Equal digests are in one bucket.

  Args:
    first: Number of the first item within its shard.
  """
  buckets = digests >> _BUCKET_SHIFT
  order = np.argsort(buckets, kind='stable')
  bounds = np.searchsorted(buckets[order], np.arange(_NUM_BUCKETS + 1, dtype=np.uint64))
  for bucket in np.flatnonzero(np.diff(bounds)).tolist():
    members = order[bounds[bucket] : bounds[bucket + 1]]
    numbers = (first + members).astype('<u8')
    yield bucket, (shard, numbers.tobytes(), digests[members].astype('<u8').tobytes())


def find_repeated(entries: Iterable[tuple[int, bytes, bytes]]) -> Iterator[tuple[int, bytes]]:
  """Yields (shard, item numbers) of items that repeat an earlier item.

  Entries are (shard, item numbers, digests) of all items of a bucket, in any order.
  """
  shards, numbers, digests = zip(*entries, strict=True)
  shards = np.repeat(np.array(shards), [len(part) // 8 for part in numbers])
  numbers, digests = (np.frombuffer(b''.join(parts), '<u8') for parts in (numbers, digests))
  order = np.lexsort((numbers, shards, digests))
  repeated = order[1:][digests[order[1:]] == digests[order[:-1]]]
  repeated = repeated[np.lexsort((numbers[repeated], shards[repeated]))]
  owners, starts = np.unique(shards[repeated], return_index=True)
  for shard, part in zip(owners.tolist(), np.split(numbers[repeated], starts[1:]), strict=False):
    yield shard, part.tobytes()


def locate_items(folder: epath.Path, split: str, kind: str) -> epath.Path:
  """Returns the path of the selected items of a split, one item a line."""
  return folder / f'{split}-{kind}.txt'


def read_items(folder: epath.Path, split: str, kind: str) -> Iterator[str]:
  """Yields the selected items of a split in order."""
  with locate_items(folder, split, kind).open('rb') as file:
    for line in file:
      yield line.decode().removesuffix('\n')


def assign_split(text: str, splits: SplitConfig) -> str:
  """Returns the split of a document by a hash that ignores white space and the case of ASCII.

  >>> assign_split('The  Cat', SplitConfig(0.3, 0.3)) == assign_split('the cat\\n', SplitConfig(0.3, 0.3))
  True
  """
  share = int.from_bytes(_digest(text.encode().translate(_LOWER, _SPACE)), 'big') / 2**64
  if share < splits.test:
    return 'test'
  return 'validation' if share < splits.test + splits.validation else 'train'


def _digest(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=8).digest()


@dataclasses.dataclass
class FilteredBatch:
  """Selected items of a batch of documents, their digests, and counts for the manifest.

  Attributes:
    items: ((split, kind), text) of each item.
    counts: `FilterResult.counts`, the number of documents of each split, and their 'bytes'.
  """

  items: list[tuple[_ItemKey, bytes]]
  digests: UInt64[np.ndarray, 'n']
  counts: Counter[str]


def filter_documents(
  batch: Sequence[str], text_filter: filters.Filter, splits: SplitConfig
) -> FilteredBatch:
  """Filters and splits a batch of documents."""
  document_splits, result = [assign_split(text, splits) for text in batch], text_filter.apply(batch)
  items = [((document_splits[number], kind), item.encode()) for number, kind, item in result.items]
  digests = np.frombuffer(b''.join(_digest(item) for _, item in items), '<u8')
  result.counts.update(document_splits, bytes=sum(len(text.encode()) for text in batch))
  return FilteredBatch(items, digests, result.counts)


def count_document_words(batch: Sequence[str], rule: str) -> Counter[str]:
  """Returns the frequency of each word in a batch of documents."""
  total = Counter()
  for field, count in Counter(field for text in batch for field in text.split()).items():
    for word in filters.extract_words(field, rule):
      total[word] += count
  return total


@dataclasses.dataclass(frozen=True)
class LocalRunner:
  """Runs the stages that read all text in processes of this machine."""

  workers: int

  def fingerprint_sources(self, sources: Sequence[documents.Source]) -> list[dict[str, Any]]:
    """Returns the fingerprint of each source."""
    return [documents.fingerprint_source(source) for source in sources]

  def find_most_frequent_words(
    self, config: CorpusConfig, sources: Sequence[documents.Source]
  ) -> filters.WordList:
    """Returns the most frequent words of the sources."""
    count = functools.partial(count_document_words, rule=config.vocabulary.word_rule)
    texts, total = _read_documents(config.documents, sources, 'counting words'), Counter()
    for counts in map_in_order(count, split_into_batches(texts), self.workers):
      total.update(counts)
    return filters.select_frequent_words(total, config.vocabulary.most_frequent)

  def filter_corpus(
    self,
    config: CorpusConfig,
    sources: Sequence[documents.Source],
    words: filters.WordList | None,
    folder: epath.Path,
  ) -> dict[str, Any]:
    """Filters all documents into `folder` atomically; returns counts for the manifest.

    Without `words`, text is selected by length alone.

    Raises:
      InputError: A source is unreadable, or a split is empty but has a share.
    """
    started, processor_started = time.monotonic(), _measure_processor_seconds()
    text_filter, splits = filters.Filter(words, config.vocabulary), config.splits
    filter_batch = functools.partial(filter_documents, text_filter=text_filter, splits=splits)
    deduplicator, counts = Deduplicator(), Counter()

    def filter_items() -> Iterator[tuple[_ItemKey, bytes, bool]]:
      texts = _read_documents(config.documents, sources, 'filtering')
      for batch in map_in_order(filter_batch, split_into_batches(texts), self.workers):
        counts.update(batch.counts)
        is_first = deduplicator.first_seen(batch.digests).tolist()
        for (key, item), first in zip(batch.items, is_first, strict=True):
          yield key, item, first

    with create_atomic_folder(folder) as partial:
      summary = write_split_files(partial, splits, filter_items(), counts)
    return summary | {
      'seconds': time.monotonic() - started,
      'processor_seconds': _measure_processor_seconds() - processor_started,
      'workers': self.workers,
    }


def _measure_processor_seconds() -> float:
  return sum(os.times()[:4])  # includes workers that have ended


@contextlib.contextmanager
def create_atomic_folder(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields a partial folder that becomes `folder` at the end; an InputError removes it."""
  partial = folder.parent / f'{folder.name}.partial'
  partial.rmtree(missing_ok=True)
  partial.mkdir(parents=True)
  try:
    yield partial
  except InputError:
    partial.rmtree(missing_ok=True)  # in a bucket, a folder without files does not exist
    raise
  partial.rename(folder)


def write_split_files(
  folder: epath.Path,
  splits: SplitConfig,
  items: Iterable[tuple[_ItemKey, bytes, bool]],
  counts: Counter[str],
) -> dict[str, Any]:
  """Writes items to the file of their split and kind; returns counts for the manifest.

  Args:
    items: ((split, kind), text, whether the text is new) in the order of the text; repeated items
      are not written.
    counts: Sum of `FilteredBatch.counts`, complete after the last item; repetitions are added.

  Raises:
    InputError: A split is empty but has a share.
  """
  totals = {
    split: {kind: Counter(items=0, words=0, bytes=0) for kind in TEXT_KINDS} for split in SPLITS
  }
  with contextlib.ExitStack() as stack:
    streams = {
      (split, kind): stack.enter_context(locate_items(folder, split, kind).open('wb'))
      for split in SPLITS
      for kind in TEXT_KINDS
    }
    for (split, kind), item, is_first in items:
      if is_first:
        streams[split, kind].write(item + b'\n')
        totals[split][kind].update(items=1, words=item.count(b' ') + 1, bytes=len(item))
      else:
        counts[f'{kind}_repeated'] += 1
  summary = {
    'documents': {split: counts.pop(split, 0) for split in SPLITS},
    'bytes': counts.pop('bytes', 0),
    'passes': dict(counts),
    'kept': totals,
  }
  _refuse_empty(summary, splits)
  return summary


def _refuse_empty(summary: Mapping[str, Any], splits: SplitConfig) -> None:
  for split in SPLITS:
    is_required = split == 'train' or getattr(splits, split) > 0
    if is_required and not any(summary['kept'][split][kind]['items'] for kind in TEXT_KINDS):
      documents_read = ', '.join(f'{name} {n:,}' for name, n in summary['documents'].items())
      outcomes = '; '.join(
        f'{name.replace("_", " ")} {n:,}' for name, n in sorted(summary['passes'].items()) if n
      )
      remedy = 'give more text, a larger word list or lower minimum numbers of words'
      num_bytes, words = summary['bytes'], max(1, summary['passes'].get('words_read', 0))
      if num_bytes > _MAX_BYTES_PER_WORD * words:
        remedy = f'write spaces between words: a word has {num_bytes / words:.0f} bytes on average'
      elif split != 'train':
        remedy = f'give more text, raise splits.{split}, or set splits.{split}=0'
      raise InputError(
        f'the {split} split',
        f'no text after filtering the documents ({documents_read}): {outcomes or "no text"}',
        remedy,
      )


def _read_documents(
  config: DocumentsConfig, sources: Sequence[documents.Source], task: str
) -> Iterator[str]:
  """Yields the documents of all sources with a progress bar in stored bytes.

  The bytes read of a source are estimated from the compression ratio of earlier sources.
  """
  documents_read, chars_read, chars_reported = 0, 0, 0
  bytes_before, bytes_per_char = 0, 1.0
  total = sum(source.num_bytes for source in sources)
  with progress.track_progress(task, total / 1e6, 'MB') as update:
    for source in sources:
      source_start = chars_read
      for text in documents.read_documents(source, config):
        yield text
        documents_read, chars_read = documents_read + 1, chars_read + len(text)
        if chars_read - chars_reported >= _CHARS_PER_BATCH:
          chars_reported = chars_read
          position = (chars_read - source_start) * bytes_per_char
          position = min(position, _MAX_ESTIMATED_SHARE * source.num_bytes)
          note = f'{documents_read:,} documents, {source.name}'
          update((bytes_before + position) / 1e6, note)
      bytes_before += source.num_bytes
      bytes_per_char = min(1.0, bytes_before / max(chars_read, 1))
    update(bytes_before / 1e6, f'{documents_read:,} documents')


def split_into_batches(texts: Iterable[str]) -> Iterator[list[str]]:
  """Yields batches of about a million characters in order."""
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _CHARS_PER_BATCH:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
