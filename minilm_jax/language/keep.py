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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt64

from minilm_jax import progress
from minilm_jax.corpus_config import SPLITS, CorpusConfig, SplitConfig
from minilm_jax.errors import InputError
from minilm_jax.language import documents, passes, pool, repetitions, vocabulary

KINDS = ('sentences', 'spans', 'documents')

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
class Result:
  """What one batch of documents leaves: items with their place (split, kind), their digests, sums for the manifest."""

  items: list[tuple[tuple[str, str], bytes]]
  digests: UInt64[np.ndarray, 'n']
  counts: Counter[str]
  documents: Counter[str]


def filtered(batch: Sequence[str], words: passes.Filter, splits: SplitConfig) -> Result:
  """What is kept of a batch of documents; of each the same in whatever batch it comes."""
  places, kept = [split_of(text, splits) for text in batch], words.kept(batch)
  items = [((places[number], kind), item.encode()) for number, kind, item in kept.items]
  digests = np.frombuffer(b''.join(_digest(item) for _, item in items), '<u8')
  seen = Counter(places) + Counter(bytes=sum(len(text.encode()) for text in batch))
  return Result(items, digests, kept.counts, seen)


def counted(batch: Sequence[str], counting: str) -> Counter[str]:
  """How often each word comes in a batch of documents."""
  found = Counter()
  for field, times in Counter(field for text in batch for field in text.split()).items():
    for word in vocabulary.counted_words(field, counting):
      found[word] += times
  return found


def most_frequent(config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
                  workers: int) -> vocabulary.WordList:
  """The most frequent words of the sources: one more pass over all text, before the one that filters."""
  work = functools.partial(counted, counting=config.vocabulary.word_rule)
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
  summary = whole(folder, config.splits, lambda partial: _keep_in(partial, config, sources, sizes, words, workers))
  return summary | {'seconds': time.monotonic() - started, 'processor_seconds': _processor_seconds() - processor,
                    'workers': workers}


def whole(folder: epath.Path, splits: SplitConfig, fill: Callable[[epath.Path], dict[str, Any]]) -> dict[str, Any]:
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


def _keep_in(folder: epath.Path, config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
             words: vocabulary.WordList | None, workers: int) -> dict[str, Any]:
  work = functools.partial(filtered, words=passes.Filter(words, config.vocabulary), splits=config.splits)
  seen, read, counts = repetitions.Seen(), Counter(), Counter()

  def items() -> Iterator[tuple[tuple[str, str], bytes, bool]]:
    for result in pool.in_order(work, _batches(config, sources, sizes, 'filtering'), workers):
      read.update(result.documents)
      counts.update(result.counts)
      for (place, item), fresh in zip(result.items, seen.fresh(result.digests).tolist(), strict=True):
        yield place, item, fresh

  return write(folder, items(), read, counts)


def write(folder: epath.Path, items: Iterable[tuple[tuple[str, str], bytes, bool]], read: Mapping[str, int],
          counts: Counter[str]) -> dict[str, Any]:
  """Writes the items that are fresh, one a line of the file of their split and kind.

  Args:
    folder: where the files go.
    items: in the order of the text: split and kind, the item, and was it never kept before?
    read: documents of each split, and bytes, that the items come from; complete when these end.
    counts: sums of the passes, complete then too; what is repeated is added.

  Returns:
    Numbers for the manifest.
  """
  kept = {split: {kind: Counter(items=0, words=0, bytes=0) for kind in KINDS} for split in SPLITS}
  with contextlib.ExitStack() as stack:
    files = {(split, kind): stack.enter_context(text_file(folder, split, kind).open('wb'))
             for split in SPLITS for kind in KINDS}
    for (split, kind), item, fresh in items:
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
  """Batches of the documents of all sources in order, with a word on how far they have come.

  How far a compressed source has been read is not known; it is taken from how far the sources before it shrank.
  """
  with progress.track(what, sum(sizes) / 1e6, 'MB') as tick:
    yield from batched(_followed(config, sources, sizes, tick))


def _followed(config: CorpusConfig, sources: Sequence[documents.Source], sizes: Sequence[int],
              tick: Callable[..., None]) -> Iterator[str]:
  texts, read, told, ratio = 0, 0, 0, 1.0
  for number, source in enumerate(sources):
    before, start = sum(sizes[:number]), read
    for text in documents.read(source, config.documents):
      yield text
      read, texts = read + len(text), texts + 1
      if read - told >= _BATCH:
        told = read
        tick((before + min((read - start) * ratio, sizes[number])) / 1e6, f'{texts:,} documents, {source.name}')
    ratio = min(1.0, (before + sizes[number]) / max(read, 1))
  tick(sum(sizes) / 1e6, f'{texts:,} documents')


def batched(texts: Iterable[str]) -> Iterator[list[str]]:
  """Documents in order, about a million characters at a time."""
  batch, held = [], 0
  for text in texts:
    batch.append(text)
    held += len(text)
    if held >= _BATCH:
      yield batch
      batch, held = [], 0
  if batch:
    yield batch
