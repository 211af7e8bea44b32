"""Filters, deduplicates and splits documents: the first stage of a corpus.

Documents stream through a pool of processes that filter them, and come back in order. A document
goes to one split, by a hash of its text, so that overlapping windows never cross splits. Of equal
items, in whatever split, the first in the order of the text stays. Memory does not grow with the
text but for 8 bytes a kept item, for deduplication. `filters.py` defines what text is kept.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
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

from minilm_jax.core import progress
from minilm_jax.core.corpus_config import SPLITS, CorpusConfig, DocumentsConfig, SplitConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filters

TEXT_KINDS = ('sentences', 'spans', 'documents')
_CHARS_PER_BATCH = 1 << 20  # that go to a worker at once
_NUM_BUCKETS = 256
_BUCKET_SHIFT = np.uint64(56)  # the top byte of a digest is its bucket
_LOWER, _SPACE = bytes(range(256)).lower(), b' \t\n\r\v\f'  # ignored by the hash of a document

_T = TypeVar('_T')
_ItemKey = tuple[str, str]  # split and kind of an item
_worker_function: Callable[[list[str]], Any]  # of a worker process, set once by _initialize_worker


def ordered_map(
  function: Callable[[list[str]], _T], batches: Iterable[list[str]], workers: int
) -> Iterator[_T]:
  """Yields `map(function, batches)`, computed in `workers` processes, in order.

  At most twice as many batches as workers are in flight. One worker is this process. `function` can
  be pickled; it travels once to each worker.

  Raises:
    InputError: a process was ended from outside.
  """
  if workers == 1:
    yield from map(function, batches)
    return
  # a fork would copy the threads and devices of the caller
  context = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(workers, context, _initialize_worker, (function,)) as pool:
    pending: collections.deque[futures.Future[_T]] = collections.deque()
    try:
      for batch in batches:
        pending.append(pool.submit(_call_worker, batch))
        if len(pending) > 2 * workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    except process.BrokenProcessPool:
      raise InputError(
        f'work in {workers} processes',
        'one of them was ended from outside, as where memory runs out',
        'run it again, with fewer workers where memory is short',
      ) from None
    finally:
      pool.shutdown(cancel_futures=True)


def _initialize_worker(function: Callable[[list[str]], Any]) -> None:
  global _worker_function
  _worker_function = function
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the pool
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  # a killed parent closes no pool: its workers would wait for ever
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _call_worker(batch: list[str]) -> Any:
  return _worker_function(batch)


class Deduplicator:
  """Digests so far, in sorted runs that merge when they are of like size.

  An item takes 8 bytes, and 16 during a merge.
  """

  def __init__(self) -> None:
    self._runs: list[UInt64[np.ndarray, 'n']] = []

  def first_seen(self, digests: UInt64[np.ndarray, 'n']) -> Bool[np.ndarray, 'n']:
    """Adds digests, and returns for each whether it is the first of its value."""
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
  first: int, digests: UInt64[np.ndarray, 'n']
) -> Iterator[tuple[int, bytes, bytes]]:
  """Yields bucket, numbers and digests of consecutive items of a shard, as arrays of `<u8`.

  The numbers count from `first`. Equal digests share a bucket.
  """
  buckets = digests >> _BUCKET_SHIFT
  order = np.argsort(buckets, kind='stable')
  bounds = np.searchsorted(buckets[order], np.arange(_NUM_BUCKETS + 1, dtype=np.uint64))
  for bucket in np.flatnonzero(np.diff(bounds)).tolist():
    members = order[bounds[bucket] : bounds[bucket + 1]]
    yield (
      bucket,
      (first + members).astype('<u8').tobytes(),
      digests[members].astype('<u8').tobytes(),
    )


def find_repeated(entries: Iterable[tuple[int, bytes, bytes]]) -> Iterator[tuple[int, bytes]]:
  """Yields the shards with repeated items, and the numbers of these items.

  `entries` are shard, numbers and digests of all items of a bucket, in any order of shards.
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


def text_path(folder: epath.Path, split: str, kind: str) -> epath.Path:
  """Returns the file with the kept items of a split, one a line."""
  return folder / f'{split}-{kind}.txt'


def read_items(folder: epath.Path, split: str, kind: str) -> Iterator[str]:
  """Yields kept items in order."""
  with text_path(folder, split, kind).open('rb') as file:
    for line in file:
      yield line.decode().removesuffix('\n')


def assign_split(text: str, splits: SplitConfig) -> str:
  """Returns the split of a document, by a hash that ignores case (of ASCII) and white space.

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
  """The kept items of one batch of documents, their digests, and sums for the manifest."""

  items: list[tuple[_ItemKey, bytes]]
  digests: UInt64[np.ndarray, 'n']
  counts: Counter[str]  # of the filters
  read: Counter[str]  # documents of each split, and bytes


def filter_documents(
  batch: Sequence[str], text_filter: filters.Filter, splits: SplitConfig
) -> FilteredBatch:
  """Filters a batch of documents, each with the same result in whatever batch it comes."""
  document_splits, result = [assign_split(text, splits) for text in batch], text_filter.apply(batch)
  items = [((document_splits[number], kind), item.encode()) for number, kind, item in result.items]
  digests = np.frombuffer(b''.join(_digest(item) for _, item in items), '<u8')
  read = Counter(document_splits) + Counter(bytes=sum(len(text.encode()) for text in batch))
  return FilteredBatch(items, digests, result.counts, read)


def count_document_words(batch: Sequence[str], rule: str) -> Counter[str]:
  """Returns the frequency of each word in a batch of documents."""
  total = Counter()
  for field, count in Counter(field for text in batch for field in text.split()).items():
    for word in filters.extract_words(field, rule):
      total[word] += count
  return total


@dataclasses.dataclass(frozen=True)
class LocalRunner:
  """The stages that read all text, in processes of this machine; any number gives the same."""

  workers: int

  def fingerprint_sources(self, sources: Sequence[documents.Source]) -> list[dict[str, Any]]:
    """Returns the fingerprint of each source."""
    return [documents.fingerprint_source(source) for source in sources]

  def find_most_frequent_words(
    self, config: CorpusConfig, sources: Sequence[documents.Source]
  ) -> filters.WordList:
    """Returns the most frequent words of the sources, after one pass over all text."""
    count = functools.partial(count_document_words, rule=config.vocabulary.word_rule)
    batches = _read_batches(config.documents, sources, 'counting words')
    total = Counter()
    for counts in ordered_map(count, batches, self.workers):
      total.update(counts)
    return filters.most_frequent_words(total, config.vocabulary.most_frequent)

  def filter_corpus(
    self,
    config: CorpusConfig,
    sources: Sequence[documents.Source],
    words: filters.WordList | None,
    folder: epath.Path,
  ) -> dict[str, Any]:
    """Filters all documents into `folder`, which appears whole or not at all.

    Without `words` only the lengths decide. Returns numbers for the manifest: text read, kept and
    dropped, and the reasons.

    Raises:
      InputError: nothing is left of a split that should hold something.
    """
    started, processor = time.monotonic(), _processor_seconds()
    text_filter, splits = filters.Filter(words, config.vocabulary), config.splits
    work = functools.partial(filter_documents, text_filter=text_filter, splits=splits)
    deduplicator, read, counts = Deduplicator(), Counter(), Counter()

    def filter_items() -> Iterator[tuple[_ItemKey, bytes, bool]]:
      batches = _read_batches(config.documents, sources, 'filtering')
      for batch in ordered_map(work, batches, self.workers):
        read.update(batch.read)
        counts.update(batch.counts)
        is_first = deduplicator.first_seen(batch.digests).tolist()
        for (key, item), first in zip(batch.items, is_first, strict=True):
          yield key, item, first

    summary = atomic_folder(
      folder, splits, lambda partial: write_split_files(partial, filter_items(), read, counts)
    )
    return summary | {
      'seconds': time.monotonic() - started,
      'processor_seconds': _processor_seconds() - processor,
      'workers': self.workers,
    }


def _processor_seconds() -> float:
  return sum(os.times()[:4])  # of this process and of the workers that have ended


def atomic_folder(
  folder: epath.Path, splits: SplitConfig, fill: Callable[[epath.Path], dict[str, Any]]
) -> dict[str, Any]:
  """Fills a folder that appears whole or not at all, and returns the summary that `fill` returns.

  Raises:
    InputError: `fill` does, or nothing is left of a split that should hold something.
  """
  partial = folder.parent / f'{folder.name}.partial'
  if partial.exists():
    partial.rmtree()
  partial.mkdir(parents=True)
  try:
    summary = fill(partial)
    _refuse_empty(summary, splits)
  except InputError:
    partial.rmtree()
    raise
  partial.rename(folder)
  return summary


def write_split_files(
  folder: epath.Path,
  items: Iterable[tuple[_ItemKey, bytes, bool]],
  read: Mapping[str, int],
  counts: Counter[str],
) -> dict[str, Any]:
  """Writes items, one a line of the file of their split and kind; returns numbers for the manifest.

  Args:
    folder: of the files.
    items: in the order of the text: split and kind, the item, and whether no equal one precedes it,
      else the item is not written.
    read: documents of each split, and bytes; complete when the items end.
    counts: sums of the filters, complete then too; repetitions are added.
  """
  totals = {
    split: {kind: Counter(items=0, words=0, bytes=0) for kind in TEXT_KINDS} for split in SPLITS
  }
  with contextlib.ExitStack() as stack:
    files = {
      (split, kind): stack.enter_context(text_path(folder, split, kind).open('wb'))
      for split in SPLITS
      for kind in TEXT_KINDS
    }
    for (split, kind), item, is_first in items:
      if is_first:
        files[split, kind].write(item + b'\n')
        totals[split][kind].update(items=1, words=item.count(b' ') + 1, bytes=len(item))
      else:
        counts[f'{kind}_repeated'] += 1
  return {
    'documents': {split: read[split] for split in SPLITS},
    'bytes': read['bytes'],
    'passes': dict(counts),
    'kept': totals,
  }


def _refuse_empty(summary: Mapping[str, Any], splits: SplitConfig) -> None:
  for split in SPLITS:
    is_wanted = split == 'train' or getattr(splits, split) > 0
    if is_wanted and not any(summary['kept'][split][kind]['items'] for kind in TEXT_KINDS):
      read = ', '.join(f'{name} {n:,}' for name, n in summary['documents'].items())
      dropped = '; '.join(
        f'{name.replace("_", " ")} {n:,}' for name, n in sorted(summary['passes'].items()) if n
      )
      remedy = 'give more text, a larger word list or milder vocabulary rules'
      if split != 'train':
        remedy = f'give more text, raise splits.{split}, or set it to 0 to do without'
      raise InputError(
        f'text for the {split} split',
        f'none is left of the documents ({read}): {dropped or "no text at all"}',
        remedy,
      )


def _read_batches(
  config: DocumentsConfig, sources: Sequence[documents.Source], what: str
) -> Iterator[list[str]]:
  """Yields batches of the documents of all sources in order, and reports the progress."""
  total = sum(source.num_bytes for source in sources)
  with progress.track_progress(what, total / 1e6, 'MB') as update:
    yield from split_into_batches(_read_with_progress(config, sources, update))


def _read_with_progress(
  config: DocumentsConfig, sources: Sequence[documents.Source], update: Callable[..., None]
) -> Iterator[str]:
  """Yields documents; the position in a compressed source is estimated by the sources before it."""
  documents_read, chars_read, chars_reported = 0, 0, 0
  bytes_before, bytes_per_char = 0, 1.0
  for source in sources:
    source_start = chars_read
    for text in documents.read_documents(source, config):
      yield text
      documents_read, chars_read = documents_read + 1, chars_read + len(text)
      if chars_read - chars_reported >= _CHARS_PER_BATCH:
        chars_reported = chars_read
        position = min((chars_read - source_start) * bytes_per_char, source.num_bytes)
        note = f'{documents_read:,} documents, {source.name}'
        update((bytes_before + position) / 1e6, note)
    bytes_before += source.num_bytes
    bytes_per_char = min(1.0, bytes_before / max(chars_read, 1))
  update(bytes_before / 1e6, f'{documents_read:,} documents')


def split_into_batches(texts: Iterable[str]) -> Iterator[list[str]]:
  """Yields documents in order, about a million characters at a time."""
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _CHARS_PER_BATCH:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
