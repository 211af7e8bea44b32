"""The keep stage in parts that know nothing of each other, so that each may run on another machine.

A part is a file or, of a data set, a range of records. Who filters one writes what is kept, in the
order of the text, to a file of its own, and hands on where equal items meet: 16 bytes an item. What
repeats comes back as one more file a part. Who joins the parts reads them one after another. So
text is written twice and never travels between workers, and nobody holds more of it than a batch.

    folder/0000007.items      kept items, one a line, before each a digit that stands for its split and kind
    folder/0000007.repeated   numbers of the items that came before, in order, as `<u8`
    folder/0000007.json       sums; the fingerprint of a source; or the words that were counted
    folder/0000007.error      why the part cannot be read

Each appears whole, and a part that is done twice gives the same bytes, so that a worker may fail
and another go on. Which machines work, and how they are told to, is for `beam.py`.
"""

import contextlib
import dataclasses
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from minilm_jax.core import corpus_config
from minilm_jax.core.corpus_config import CorpusConfig, DocumentsConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filtering, filters, tfds

_RECORDS = 100_000  # of a data set in a part
_ITEMS = 1 << 20  # of which digests are held before they are handed on
_WORDS = 1 << 20  # distinct ones that are counted before they are handed on
# of an item, by its digit
_PLACES = tuple((split, kind) for split in corpus_config.SPLITS for kind in filtering.TEXT_KINDS)


def plan_shards(
  sources: Sequence[documents.Source], config: DocumentsConfig
) -> list[documents.Source]:
  """Sources in the order of the text, data sets in ranges of records."""
  found = []
  for source in sources:
    stops = [None]
    if source.form == 'tfds':
      count = tfds.count_examples(source.path, config.split)
      stops = [*range(_RECORDS, count, _RECORDS), count]
    for start, stop in zip([0, *stops], stops, strict=False):
      found.append(dataclasses.replace(source, start=start, stop=stop))
  return found


def shard_path(folder: epath.Path, number: int, what: str) -> epath.Path:
  """The file of a part: of 'items', 'repeated', 'json' or 'error'."""
  return folder / f'{number:07d}.{what}'


@contextlib.contextmanager
def _appearing(place: epath.Path) -> Iterator[BinaryIO]:
  """A file that appears when it is whole; of two workers at the same part each writes its own."""
  temporary, whole = place.parent / f'.{place.name}.{uuid.uuid4().hex}.partial', False
  try:
    with temporary.open('wb') as file:
      yield file
    temporary.replace(place)
    whole = True
  finally:
    if not whole:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def save_shard(place: epath.Path, value: Any) -> None:
  """Writes JSON for who started the work."""
  with _appearing(place) as file:
    file.write(json.dumps(value).encode())


@contextlib.contextmanager
def _told(folder: epath.Path, number: int) -> Iterator[None]:
  """Writes down why input cannot be used: whoever runs workers tells little of what they raise."""
  try:
    yield
  except InputError as error:
    save_shard(shard_path(folder, number, 'error'), [error.asked, error.found, error.remedy])
    raise


def fingerprint_shard(part: tuple[int, documents.Source], folder: epath.Path) -> None:
  """Writes what identifies the content of a source: number and source, and where to."""
  with _told(folder, part[0]):
    save_shard(shard_path(folder, part[0], 'json'), documents.fingerprint_source(part[1]))


def count_shard_words(
  part: tuple[int, documents.Source], config: CorpusConfig, folder: epath.Path
) -> Iterator[tuple[str, int]]:
  """Words of a part and how often they came; a word may come again where there are many."""
  total = Counter()
  with _told(folder, part[0]):
    for batch in filtering.split_into_batches(documents.read_documents(part[1], config.documents)):
      total.update(filtering.count_document_words(batch, config.vocabulary.word_rule))
      if len(total) >= _WORDS:
        yield from total.items()
        total.clear()
  yield from total.items()


def filter_shard(
  part: tuple[int, documents.Source],
  config: CorpusConfig,
  words: filters.Filter,
  folder: epath.Path,
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
  """Filters a part into its files; gives, by bucket, the part with numbers and digests of its
  items.
  """
  (number, source), started, items = part, time.thread_time(), 0
  read, counts, held = Counter(), Counter(), []
  with _told(folder, number), _appearing(shard_path(folder, number, 'items')) as file:
    for batch in filtering.split_into_batches(documents.read_documents(source, config.documents)):
      result = filtering.filter_documents(batch, words, config.splits)
      read.update(result.documents)
      counts.update(result.counts)
      file.writelines(b'%d%b\n' % (_PLACES.index(place), item) for place, item in result.items)
      held.append(result.digests)
      if sum(map(len, held)) >= _ITEMS:
        yield from _met(number, items, held)
        items, held = items + sum(map(len, held)), []
  yield from _met(number, items, held)
  save_shard(
    shard_path(folder, number, 'json'),
    {
      'read': read,
      'counts': counts,
      'items': items + sum(map(len, held)),
      'processor_seconds': time.thread_time() - started,
    },
  )


def _met(
  number: int, first: int, held: list[np.ndarray]
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
  for bucket, numbers, digests in filtering.split_into_buckets(
    first, np.concatenate([np.zeros(0, '<u8'), *held])
  ):
    yield bucket, (number, numbers, digests)


def find_shard_repeats(
  bucket: tuple[int, Iterable[tuple[int, bytes, bytes]]],
) -> Iterator[tuple[int, bytes]]:
  """Of what met in a bucket, the parts that repeat and the numbers of what comes again."""
  yield from filtering.find_repeated(bucket[1])


def save_repeats(part: tuple[int, Iterable[bytes]], folder: epath.Path) -> None:
  """Writes the numbers, from all buckets, of the items of a part that came before."""
  with _appearing(shard_path(folder, part[0], 'repeated')) as file:
    file.write(np.sort(np.frombuffer(b''.join(part[1]), '<u8')).tobytes())


def merge_shards(folder: epath.Path, count: int, to: epath.Path) -> dict[str, Any]:
  """Joins the parts, in their order, into the files of the stage; numbers for the manifest."""
  read, counts, spent = Counter(), Counter(), Counter()

  def items() -> Iterator[tuple[tuple[str, str], bytes, bool]]:
    for number in range(count):
      sums = load_shard_input(folder, number)
      read.update(sums['read'])
      counts.update(sums['counts'])
      spent.update(processor_seconds=sums['processor_seconds'])
      fresh = np.ones(sums['items'], bool)
      if shard_path(folder, number, 'repeated').exists():
        with shard_path(folder, number, 'repeated').open('rb') as file:
          fresh[np.frombuffer(file.read(), '<u8')] = False
      with shard_path(folder, number, 'items').open('rb') as file:
        for line, new in zip(file, fresh.tolist(), strict=True):
          yield _PLACES[line[0] - ord('0')], line[1:-1], new

  return filtering.write_split_files(to, items(), read, counts) | spent


def load_shard_input(folder: epath.Path, number: int) -> Any:
  """What a worker saved of a part.

  Raises:
    InputError: it is not there.
  """
  try:
    with shard_path(folder, number, 'json').open('rb') as file:
      return json.load(file)
  except FileNotFoundError:
    raise InputError(
      f'what a worker wrote to {folder}',
      f'nothing of part {number} is there',
      'give a --workdir, or a --temp_location in --beam, that all workers share, as gs:// is',
    ) from None


def refusal_of(folder: epath.Path) -> InputError | None:
  """The reason why a part could not be read, of several the first in the order of the text."""
  for found in sorted(folder.glob('*.error')):
    with found.open('rb') as file:
      return InputError(*json.load(file))
  return None
