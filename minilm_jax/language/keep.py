"""Documents in, kept text out: the first stage of a corpus.

Documents stream through a pool of processes that filter them, and come back in order. A document goes to one split, by
a hash of its text, so that overlapping windows never cross splits; an item that was kept before, in whatever split, is
dropped. Memory does not grow with the text but for 8 bytes a kept item, by which repetitions are known. What text is
kept is for `vocabulary.py` to say; tokens and rows come later.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt64

from minilm_jax import progress
from minilm_jax.corpus_config import CorpusConfig, SplitConfig
from minilm_jax.errors import InputError
from minilm_jax.language import documents, passes, pool, vocabulary

SPLITS, KINDS = ('train', 'validation', 'test'), ('sentences', 'spans', 'documents')

_BATCH = 1 << 20  # characters that go to a worker at once
_LOWER, _SPACE = bytes(range(256)).lower(), b' \t\n\r\v\f'  # what a hash of text passes over


def text_file(folder: epath.Path, split: str, kind: str) -> epath.Path:
  """Where the items that a pass kept of a split lie, one a line."""
  return folder / f'{split}-{kind}.txt'


def read_items(folder: epath.Path, split: str, kind: str) -> Iterator[str]:
  """Kept items in order."""
  with text_file(folder, split, kind).open('rb') as file:
    for line in file:
      yield line.decode().removesuffix('\n')


def split_of(text: str, splits: SplitConfig) -> str:
  """The split of a document, by a hash of its text; neither case (of ASCII) nor white space matters.

  >>> split_of('The  Cat', SplitConfig(0.3, 0.3)) == split_of('the cat\\n', SplitConfig(0.3, 0.3))
  True
  """
  place = int.from_bytes(_digest(text.encode().translate(_LOWER, _SPACE)), 'big') / 2**64
  if place < splits.test:
    return 'test'
  return 'validation' if place < splits.test + splits.validation else 'train'


def _digest(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=8).digest()


@dataclasses.dataclass
class _Result:
  """What one batch of documents leaves: items with their place (split, kind), their digests, sums for the manifest."""

  items: list[tuple[tuple[str, str], bytes]]
  digests: UInt64[np.ndarray, 'n']
  counts: Counter[str]
  documents: Counter[str]


def _filtered(batch: Sequence[str], words: passes.Filter, splits: SplitConfig) -> _Result:
  places, kept = [split_of(text, splits) for text in batch], words.kept(batch)
  items = [((places[number], kind), item.encode()) for number, kind, item in kept.items]
  digests = np.frombuffer(b''.join(_digest(item) for _, item in items), '<u8')
  seen = Counter(places) + Counter(bytes=sum(len(text.encode()) for text in batch))
  return _Result(items, digests, kept.counts, seen)


def _counted(batch: Sequence[str], counting: str) -> Counter[str]:
  found = Counter()
  for field, times in Counter(field for text in batch for field in text.split()).items():
    for word in vocabulary.counted_words(field, counting):
      found[word] += times
  return found


class _Seen:
  """Digests met so far, in sorted runs that merge when they are of like size: 8 bytes an item, 16 during a merge."""

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


def most_frequent(config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
                  workers: int) -> vocabulary.WordList:
  """The most frequent words of the sources: one more pass over all text, before the one that filters."""
  work = functools.partial(_counted, counting=config.vocabulary.counting)
  total = Counter()
  for counts in pool.in_order(work, _batches(config, sources, sizes, 'counting words'), workers):
    total.update(counts)
  return vocabulary.most_frequent(total, config.vocabulary.most_frequent)


def keep(config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
         words: vocabulary.WordList | None, folder: epath.Path, workers: int) -> dict[str, Any]:
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
  partial = folder.parent / f'{folder.name}.partial'
  if partial.exists():
    partial.rmtree()
  partial.mkdir(parents=True)
  try:
    summary = _keep_in(partial, config, sources, sizes, words, workers)
    _refuse_empty(summary, config.splits)
  except InputError:
    partial.rmtree()
    raise
  partial.rename(folder)
  return summary | {'seconds': time.monotonic() - started, 'processor_seconds': _processor_seconds() - processor,
                    'workers': workers}


def _processor_seconds() -> float:
  return sum(os.times()[:4])  # of this process and of the workers that have ended


def _keep_in(folder: epath.Path, config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
             words: vocabulary.WordList | None, workers: int) -> dict[str, Any]:
  work = functools.partial(_filtered, words=passes.Filter(words, config.vocabulary), splits=config.splits)
  seen, read, counts = _Seen(), Counter(), Counter()
  kept = {split: {kind: Counter(items=0, words=0, bytes=0) for kind in KINDS} for split in SPLITS}
  with contextlib.ExitStack() as stack:
    files = {(split, kind): stack.enter_context(text_file(folder, split, kind).open('wb'))
             for split in SPLITS for kind in KINDS}
    for result in pool.in_order(work, _batches(config, sources, sizes, 'filtering'), workers):
      read += result.documents
      counts.update(result.counts)
      for ((split, kind), item), fresh in zip(result.items, seen.fresh(result.digests).tolist(), strict=True):
        if fresh:
          files[split, kind].write(item + b'\n')
          kept[split][kind].update(items=1, words=item.count(b' ') + 1, bytes=len(item))
        else:
          counts[f'{kind}_repeated'] += 1
  return {'documents': {split: read[split] for split in SPLITS}, 'bytes': read['bytes'], 'passes': dict(counts),
          'kept': kept}


def _refuse_empty(summary: Mapping[str, Any], splits: SplitConfig) -> None:
  for split in SPLITS:
    wanted = split == 'train' or getattr(splits, split) > 0
    if wanted and not any(summary['kept'][split][kind]['items'] for kind in KINDS):
      read = ', '.join(f'{name} {n:,}' for name, n in summary['documents'].items())
      passes = '; '.join(f'{name.replace("_", " ")} {n:,}' for name, n in sorted(summary['passes'].items()) if n)
      remedy = 'give more text, a larger word list or milder vocabulary rules'
      if split != 'train':
        remedy = f'give more text, raise splits.{split}, or set it to 0 to do without'
      raise InputError(f'text for the {split} split',
                       f'none is left of the documents ({read}): {passes or "no text at all"}', remedy)


def _batches(config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
             what: str) -> Iterator[list[str]]:
  """Documents of all sources in order, about a million characters at a time.

  How far a compressed source has been read is not known; it is taken from how far the sources before it shrank.
  """
  batch, held, texts, read, ratio = [], 0, 0, 0, 1.0
  with progress.track(what, sum(sizes) / 1e6, 'MB') as tick:
    for number, source in enumerate(sources):
      before, start = sum(sizes[:number]), read
      for text in documents.read(source, config.documents):
        batch.append(text)
        held, read, texts = held + len(text), read + len(text), texts + 1
        if held >= _BATCH:
          tick((before + min((read - start) * ratio, sizes[number])) / 1e6, f'{texts:,} documents, {source.name}')
          yield batch
          batch, held = [], 0
      ratio = min(1.0, (before + sizes[number]) / max(read, 1))
    if batch:
      yield batch
    tick(sum(sizes) / 1e6, f'{texts:,} documents')
