"""Documents in, kept text out: the first stage of a corpus.

Documents stream through a pool of processes that filter them, and come back in order. A document
goes to one split, by a hash of its text, so that overlapping windows never cross splits; an item
that was kept before, in whatever split, is dropped. Memory does not grow with the text but for 8
bytes a kept item, by which repetitions are known. What text is kept is for `vocabulary.py` to say;
tokens and rows come later.
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
from minilm_jax.core.corpus_config import SPLITS, CorpusConfig, SplitConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filters

# One function over many batches of text, in processes of their own, results in order.
_T = TypeVar('_T')


def ordered_map(
  work: Callable[[list[str]], _T], batches: Iterable[list[str]], workers: int
) -> Iterator[_T]:
  """`map(work, batches)` in `workers` processes, with few batches under way; in this process where
  workers is 1.

  Args:
    work: a function that can be pickled; it travels once to each worker.
    batches: its arguments.
    workers: processes.

  Raises:
    InputError: a process was ended from outside.
  """
  if workers == 1:
    yield from map(work, batches)
    return
  # a fork would copy whatever threads and devices the caller has
  context = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(workers, context, _initialize_worker, (work,)) as pool:
    under_way: collections.deque[futures.Future[_T]] = collections.deque()
    try:
      for batch in batches:
        under_way.append(pool.submit(_call_worker, batch))
        if len(under_way) > 2 * workers:
          yield under_way.popleft().result()
      while under_way:
        yield under_way.popleft().result()
    except process.BrokenProcessPool:
      raise InputError(
        f'work in {workers} processes',
        'one of them was ended from outside, as where memory runs out',
        'run it again, with fewer workers where memory is short',
      ) from None
    finally:
      pool.shutdown(cancel_futures=True)


_work: Callable[[list[str]], Any]  # of a worker process, set once by _arm


def _initialize_worker(work: Callable[[list[str]], Any]) -> None:
  global _work
  _work = work
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the pool
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  # one that is killed closes no pool: its workers would wait for ever
  multiprocessing.parent_process().join()
  os._exit(1)


def _call_worker(batch: list[str]) -> Any:
  return _work(batch)


# Which items were kept before: of equal ones the first in the order of the text stays.
_NUM_BUCKETS = 256
_BITS = np.uint64(56)  # below those that name the bucket


class Deduplicator:
  """Digests met so far, in sorted runs that merge when they are of like size: 8 bytes an item, 16
  during a merge.
  """

  def __init__(self) -> None:
    self._runs: list[UInt64[np.ndarray, 'n']] = []

  def fresh(self, digests: UInt64[np.ndarray, 'n']) -> Bool[np.ndarray, 'n']:
    """Which were never met, the first of several equal ones among them; all are met from now on."""
    new = np.zeros(len(digests), bool)
    new[np.unique(digests, return_index=True)[1]] = True
    for run in self._runs:
      new &= run[np.searchsorted(run, digests).clip(max=len(run) - 1)] != digests
    if new.any():
      self._runs.append(np.sort(digests[new]))
    while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
      self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()])))
    return new


def split_into_buckets(
  first: int, digests: UInt64[np.ndarray, 'n']
) -> Iterator[tuple[int, bytes, bytes]]:
  """Bucket, numbers and digests of some items of a part, whose numbers count on from `first`;
  arrays of `<u8`.
  """
  order = np.argsort(digests >> _BITS, kind='stable')
  bounds = np.searchsorted((digests >> _BITS)[order], np.arange(_NUM_BUCKETS + 1, dtype=np.uint64))
  for bucket in np.flatnonzero(np.diff(bounds)).tolist():
    of = order[bounds[bucket] : bounds[bucket + 1]]
    yield bucket, (first + of).astype('<u8').tobytes(), digests[of].astype('<u8').tobytes()


def find_repeated(met: Iterable[tuple[int, bytes, bytes]]) -> Iterator[tuple[int, bytes]]:
  """Of parts, numbers and digests that meet in a bucket: the parts that repeat, and the numbers of
  what comes again.
  """
  parts, numbers, digests = zip(*met, strict=True)
  parts = np.repeat(np.array(parts), [len(some) // 8 for some in numbers])
  numbers, digests = (np.frombuffer(b''.join(some), '<u8') for some in (numbers, digests))
  order = np.lexsort((numbers, parts, digests))
  again = order[1:][digests[order[1:]] == digests[order[:-1]]]
  again = again[np.lexsort((numbers[again], parts[again]))]
  found, starts = np.unique(parts[again], return_index=True)
  for part, some in zip(found.tolist(), np.split(numbers[again], starts[1:]), strict=False):
    yield part, some.tobytes()


TEXT_KINDS = ('sentences', 'spans', 'documents')
_BATCH_CHARS = 1 << 20  # characters that go to a worker at once
_LOWER, _SPACE = bytes(range(256)).lower(), b' \t\n\r\v\f'  # what a hash of text passes over


def text_path(folder: epath.Path, split: str, kind: str) -> epath.Path:
  """Where the items that a pass kept of a split lie, one a line."""
  return folder / f'{split}-{kind}.txt'


def read_items(folder: epath.Path, split: str, kind: str) -> Iterator[str]:
  """Kept items in order."""
  with text_path(folder, split, kind).open('rb') as file:
    for line in file:
      yield line.decode().removesuffix('\n')


def assign_split(text: str, splits: SplitConfig) -> str:
  """The split of a document, by a hash of its text; neither case (of ASCII) nor white space
  matters.

  >>> assign_split('The  Cat', SplitConfig(0.3, 0.3)) == assign_split('the cat\\n', SplitConfig(0.3, 0.3))
  True
  """
  place = int.from_bytes(_digest(text.encode().translate(_LOWER, _SPACE)), 'big') / 2**64
  if place < splits.test:
    return 'test'
  return 'validation' if place < splits.test + splits.validation else 'train'


def _digest(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=8).digest()


@dataclasses.dataclass
class FilterCounts:
  """What one batch of documents leaves: items with their place (split, kind), their digests, sums
  for the manifest.
  """

  items: list[tuple[tuple[str, str], bytes]]
  digests: UInt64[np.ndarray, 'n']
  counts: Counter[str]
  documents: Counter[str]


def filter_documents(
  batch: Sequence[str], words: filters.Filter, splits: SplitConfig
) -> FilterCounts:
  """What is kept of a batch of documents; of each the same in whatever batch it comes."""
  places, kept = [assign_split(text, splits) for text in batch], words.kept(batch)
  items = [((places[number], kind), item.encode()) for number, kind, item in kept.items]
  digests = np.frombuffer(b''.join(_digest(item) for _, item in items), '<u8')
  seen = Counter(places) + Counter(bytes=sum(len(text.encode()) for text in batch))
  return FilterCounts(items, digests, kept.counts, seen)


def count_document_words(batch: Sequence[str], counting: str) -> Counter[str]:
  """How often each word comes in a batch of documents."""
  found = Counter()
  for field, times in Counter(field for text in batch for field in text.split()).items():
    for word in filters.count_words(field, counting):
      found[word] += times
  return found


def find_most_frequent(
  config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int], workers: int
) -> filters.WordList:
  """The most frequent words of the sources: one more pass over all text, before the one that
  filters.
  """
  work = functools.partial(count_document_words, counting=config.vocabulary.word_rule)
  total = Counter()
  for counts in ordered_map(work, _make_batches(config, sources, sizes, 'counting words'), workers):
    total.update(counts)
  return filters.most_frequent_words(total, config.vocabulary.most_frequent)


def filter_corpus(
  config: CorpusConfig,
  sources: Sequence[documents.Source],
  sizes: Sequence[int],
  words: filters.WordList | None,
  folder: epath.Path,
  workers: int,
) -> dict[str, Any]:
  """Filters all documents into `folder`, which appears whole or not at all.

  Args:
    config: of the corpus.
    sources: what to read.
    sizes: bytes of each source, for the progress.
    words: the word list, or None to keep all.
    folder: where the kept text goes, one file a split and pass.
    workers: processes; the result is the same for any number.

  Returns:
    Numbers for the manifest: what was read, kept and dropped, and why.

  Raises:
    InputError: nothing is left of a split that should hold something.
  """
  started, processor = time.monotonic(), _processor_seconds()
  summary = atomic_folder(
    folder,
    config.splits,
    lambda partial: _filter_into(partial, config, sources, sizes, words, workers),
  )
  return summary | {
    'seconds': time.monotonic() - started,
    'processor_seconds': _processor_seconds() - processor,
    'workers': workers,
  }


def atomic_folder(
  folder: epath.Path, splits: SplitConfig, fill: Callable[[epath.Path], dict[str, Any]]
) -> dict[str, Any]:
  """What `fill` tells of the text that it kept in a folder, which appears whole or not at all.

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


def _processor_seconds() -> float:
  return sum(os.times()[:4])  # of this process and of the workers that have ended


def _filter_into(
  folder: epath.Path,
  config: CorpusConfig,
  sources: Sequence[documents.Source],
  sizes: Sequence[int],
  words: filters.WordList | None,
  workers: int,
) -> dict[str, Any]:
  work = functools.partial(
    filter_documents, words=filters.Filter(words, config.vocabulary), splits=config.splits
  )
  seen, read, counts = Deduplicator(), Counter(), Counter()

  def items() -> Iterator[tuple[tuple[str, str], bytes, bool]]:
    for result in ordered_map(work, _make_batches(config, sources, sizes, 'filtering'), workers):
      read.update(result.documents)
      counts.update(result.counts)
      for (place, item), fresh in zip(
        result.items, seen.fresh(result.digests).tolist(), strict=True
      ):
        yield place, item, fresh

  return write_split_files(folder, items(), read, counts)


def write_split_files(
  folder: epath.Path,
  items: Iterable[tuple[tuple[str, str], bytes, bool]],
  read: Mapping[str, int],
  counts: Counter[str],
) -> dict[str, Any]:
  """Writes the items that are fresh, one a line of the file of their split and kind.

  Args:
    folder: where the files go.
    items: in the order of the text: split and kind, the item, and was it never kept before?
    read: documents of each split, and bytes, that the items come from; complete when these end.
    counts: sums of the passes, complete then too; what is repeated is added.

  Returns:
    Numbers for the manifest.
  """
  kept = {
    split: {kind: Counter(items=0, words=0, bytes=0) for kind in TEXT_KINDS} for split in SPLITS
  }
  with contextlib.ExitStack() as stack:
    files = {
      (split, kind): stack.enter_context(text_path(folder, split, kind).open('wb'))
      for split in SPLITS
      for kind in TEXT_KINDS
    }
    for (split, kind), item, fresh in items:
      if fresh:
        files[split, kind].write(item + b'\n')
        kept[split][kind].update(items=1, words=item.count(b' ') + 1, bytes=len(item))
      else:
        counts[f'{kind}_repeated'] += 1
  return {
    'documents': {split: read[split] for split in SPLITS},
    'bytes': read['bytes'],
    'passes': dict(counts),
    'kept': kept,
  }


def _refuse_empty(summary: Mapping[str, Any], splits: SplitConfig) -> None:
  for split in SPLITS:
    wanted = split == 'train' or getattr(splits, split) > 0
    if wanted and not any(summary['kept'][split][kind]['items'] for kind in TEXT_KINDS):
      read = ', '.join(f'{name} {n:,}' for name, n in summary['documents'].items())
      passes = '; '.join(
        f'{name.replace("_", " ")} {n:,}' for name, n in sorted(summary['passes'].items()) if n
      )
      remedy = 'give more text, a larger word list or milder vocabulary rules'
      if split != 'train':
        remedy = f'give more text, raise splits.{split}, or set it to 0 to do without'
      raise InputError(
        f'text for the {split} split',
        f'none is left of the documents ({read}): {passes or "no text at all"}',
        remedy,
      )


def _make_batches(
  config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int], what: str
) -> Iterator[list[str]]:
  """Batches of the documents of all sources in order, with a word on how far they have come.

  How far a compressed source has been read is not known; it is taken from how far the sources
  before it shrank.
  """
  with progress.track_progress(what, sum(sizes) / 1e6, 'MB') as tick:
    yield from split_into_batches(_with_progress(config, sources, sizes, tick))


def _with_progress(
  config: CorpusConfig,
  sources: Sequence[documents.Source],
  sizes: Sequence[int],
  tick: Callable[..., None],
) -> Iterator[str]:
  texts, read, told, ratio = 0, 0, 0, 1.0
  for number, source in enumerate(sources):
    before, start = sum(sizes[:number]), read
    for text in documents.read_documents(source, config.documents):
      yield text
      read, texts = read + len(text), texts + 1
      if read - told >= _BATCH_CHARS:
        told = read
        tick(
          (before + min((read - start) * ratio, sizes[number])) / 1e6,
          f'{texts:,} documents, {source.name}',
        )
    ratio = min(1.0, (before + sizes[number]) / max(read, 1))
  tick(sum(sizes) / 1e6, f'{texts:,} documents')


def split_into_batches(texts: Iterable[str]) -> Iterator[list[str]]:
  """Documents in order, about a million characters at a time."""
  batch, held = [], 0
  for text in texts:
    batch.append(text)
    held += len(text)
    if held >= _BATCH_CHARS:
      yield batch
      batch, held = [], 0
  if batch:
    yield batch
