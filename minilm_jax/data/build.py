"""Text to rows: what `minilm corpus` runs.

Three stages, keep, tokenizer, rows. What a stage makes is whole or absent; `.work/` remembers what
it was made from, so a build that was stopped goes on after the last whole stage. The same text and
settings give the same bytes, whatever the number of workers. `corpus.py` reads the folder.
"""

import dataclasses
import hashlib
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from minilm_jax.core import backend, files, lock, progress, recipe, run_dir
from minilm_jax.core.corpus_config import FORMAT, CorpusConfig, RowsConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filtering, filters, packing, tokenizer

TOKENIZER = run_dir.TOKENIZER

_TRAINING = 32 << 20  # bytes of text that a tokenizer is trained on, at most
_SPLIT_RATIO_TEXTS = 1 << 20  # bytes of text on which its word-split ratio is taken, at most


def build_corpus(config: CorpusConfig, workdir: epath.PathLike, beam: str = '') -> epath.Path:
  """Builds a corpus folder, or goes on with one; a finished one is left as it is.

  Args:
    config: what to read, keep and write.
    workdir: the folder.
    beam: pipeline options of Apache Beam, by which the text is filtered on many machines; '' is
      without.

  Returns:
    The folder.

  Raises:
    Held: another process builds there.
    InputError: the input cannot be used or nothing of it is kept; nothing but whole stages is left,
      in `.work/`.
  """
  workdir = epath.Path(workdir)
  # workers leave no trace in a corpus
  settings = recipe.as_dict(dataclasses.replace(config, workers=0))
  if (workdir / run_dir.MANIFEST).exists():
    run_dir.open_run(workdir, settings)
    progress.log(f'{workdir} holds the finished corpus of this recipe: nothing to do')
    _remove(workdir / '.work')
    return workdir
  with lock.hold_lock(workdir):
    _build(config, workdir, settings, _broadcast_corpus(beam, workdir))
  return workdir


def _broadcast_corpus(given: str, workdir: epath.Path) -> Any:
  """The stage by Beam, which is an extra; None without it."""
  if not given:
    return None
  try:
    with progress.silence():  # its import warns of what only Google Cloud needs
      from minilm_jax.data import beam
  except ImportError as error:
    raise InputError(
      f'--beam={given}',
      f'Apache Beam cannot be imported: {error}',
      "pip install 'minilm_jax[beam]', or leave --beam out",
    ) from None
  return beam.read_pipeline_options(given, workdir)


def _build(
  config: CorpusConfig, workdir: epath.Path, settings: dict[str, Any], spread: Any
) -> None:
  started, work = time.monotonic(), workdir / '.work'
  sources = documents.expand_sources(config.documents)
  words = (
    filters.load_word_list(config.vocabulary.word_list) if config.vocabulary.word_list else None
  )
  given = tokenizer.load_tokenizer(config.tokenizer.path) if config.tokenizer.path else None
  prints = (
    spread.fingerprints(sources)
    if spread
    else [documents.fingerprint_source(source) for source in sources]
  )
  run_dir.open_run(workdir, settings)
  try:
    origin = {
      'documents': settings['documents'],
      'vocabulary': settings['vocabulary'],
      'splits': settings['splits'],
      'sources': prints,
      'word_list': words and words.sha256,
    }
    kept = _stage(
      work, 'keep', origin, lambda: _filter_text(config, sources, prints, words, work, spread)
    )
    origin |= {'tokenizer': settings['tokenizer'], 'given': given and given.sha256}
    pieces = _stage(work, 'tokenizer', origin, lambda: _tokenizer(config, given, kept, work))
  except InputError:
    _remove_partial(workdir, work)
    raise
  (work / TOKENIZER).copy(workdir / TOKENIZER, overwrite=True)
  splits, written = packing.write_rows(
    config.rows, tokenizer.load_tokenizer(workdir / TOKENIZER), work / 'keep', workdir
  )
  manifest = _manifest(config.rows, pieces, splits, settings, prints) | {
    'word_list': kept['word_list'],
    'stages': {'keep': kept, 'tokenizer': pieces, 'rows': written},
  }
  files.write_json(workdir / run_dir.MANIFEST, manifest)
  _remove(work)
  _log_summary(manifest, time.monotonic() - started)


def _remove_partial(workdir: epath.Path, work: epath.Path) -> None:
  """Leaves whole stages alone, so that a corrected recipe may use the folder and what it shares
  with this one.
  """
  (workdir / run_dir.CONFIG).unlink()
  if work.exists() and not any(work.iterdir()):
    work.rmtree()


def _remove(folder: epath.Path) -> None:
  if folder.exists():
    folder.rmtree()


def _stage(
  work: epath.Path, name: str, origin: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """The numbers of a stage, made now, or before from the same origin."""
  path = work / f'{name}.json'
  origin = json.loads(json.dumps(origin))
  if path.exists():
    made = files.read_json(path, f'the {name} stage of an earlier start')
    if made['origin'] == origin:
      progress.log(f'{name}: made by an earlier start')
      return made['numbers']
    path.unlink()
  work.mkdir(parents=True, exist_ok=True)
  files.write_json(path, {'origin': origin, 'numbers': make()})
  return files.read_json(path, f'the {name} stage')['numbers']


def _filter_text(
  config: CorpusConfig,
  sources: tuple[documents.Source, ...],
  prints: list[dict[str, Any]],
  words: filters.WordList | None,
  work: epath.Path,
  spread: Any,
) -> dict[str, Any]:
  workers, sizes = config.workers or backend.cores(), [found['bytes'] for found in prints]
  if config.vocabulary.most_frequent:
    words = (
      spread.most_frequent(config, sources)
      if spread
      else filtering.find_most_frequent(config, sources, sizes, workers)
    )
  _remove(work / 'keep')
  summary = (
    spread.keep(config, sources, words, work / 'keep')
    if spread
    else filtering.filter_corpus(config, sources, sizes, words, work / 'keep', workers)
  )
  return summary | {
    'word_list': words and {'name': words.name, 'sha256': words.sha256, 'words': len(words.words)}
  }


def _tokenizer(
  config: CorpusConfig, given: tokenizer.Tokenizer | None, kept: Mapping[str, Any], work: epath.Path
) -> dict[str, Any]:
  """Trains on the training split alone, on an even sample where there is much of it."""
  started = time.monotonic()
  size = sum(kind['bytes'] for kind in kept['kept']['train'].values())

  def training_text() -> Iterator[str]:
    return itertools.chain.from_iterable(
      filtering.read_items(work / 'keep', 'train', kind) for kind in filtering.TEXT_KINDS
    )

  if given:
    made = given
    files.write_bytes(work / TOKENIZER, given.model)
  else:
    progress.log(
      f'tokenizer: training {config.tokenizer.size:,} pieces on {min(size, _TRAINING) / 1e6:,.1f} MB'
    )
    made = tokenizer.train_tokenizer(
      tokenizer.sample_evenly(training_text(), _TRAINING / size),
      config.tokenizer.model,
      config.tokenizer.size,
      work / TOKENIZER,
    )
  ratio = tokenizer.word_split_ratio(
    made, tokenizer.sample_evenly(training_text(), _SPLIT_RATIO_TEXTS / size)
  )
  sweep = []
  if config.tokenizer.extra_sizes:
    progress.log(
      f'tokenizer: trying {", ".join(f"{other:,}" for other in config.tokenizer.extra_sizes)} pieces'
    )
    sample = list(tokenizer.sample_evenly(training_text(), _TRAINING / size))
    sweep = tokenizer.measure_sizes(sample, config.tokenizer.model, config.tokenizer.extra_sizes)
  return {
    'size': made.size,
    'sha256': made.sha256,
    'word_split_ratio': ratio,
    'esms': tokenizer.esms(made),
    'sweep': sweep,
    'seconds': time.monotonic() - started,
  }


def _manifest(
  config: RowsConfig,
  pieces: Mapping[str, Any],
  splits: Mapping[str, Any],
  settings: dict[str, Any],
  prints: list[dict[str, Any]],
) -> dict[str, Any]:
  """What the folder holds."""
  return {
    'format': FORMAT,
    'length': config.length,
    'vocabulary': pieces['size'],
    'dtype': 'uint16' if pieces['size'] <= 0xFFFF else 'uint32',
    'tokenizer': {'file': TOKENIZER, 'sha256': pieces['sha256']},
    'splits': splits,
    'settings': {name: value for name, value in settings.items() if name != 'workers'},
    'sources': prints,
    'hash': corpus_hashes(pieces['sha256'], config.length, splits),
  }


def corpus_hashes(tokenizer_sha256: str, length: int, splits: Mapping[str, Any]) -> str:
  """The hash that makes a corpus this one: of its tokenizer, its shards and their length, not of
  times or settings.
  """
  shards = {
    split: [shard['sha256'] for shard in found['shards']] for split, found in splits.items()
  }
  made = {'tokenizer': tokenizer_sha256, 'length': length, 'shards': shards}
  return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _log_summary(manifest: Mapping[str, Any], seconds: float) -> None:
  kept, pieces, splits = (
    manifest['stages']['keep'],
    manifest['stages']['tokenizer'],
    manifest['splits'],
  )
  kinds = manifest['settings']['vocabulary']['filters']
  unit = 1 << 20 if sys.platform == 'darwin' else 1 << 10
  largest = [
    resource.getrusage(who).ru_maxrss / unit
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  children = kept['workers'] if kept['workers'] > 1 else 0
  progress.log(
    '\n'.join(
      (
        f'documents: {sum(kept["documents"].values()):,}, {kept["bytes"] / 1e6:,.1f} MB',
        'passes: '
        + ', '.join(f'{name.replace("_", " ")} {n:,}' for name, n in kept['passes'].items()),
        'kept: '
        + ', '.join(
          f'{split} ' + ' and '.join(f'{found[kind]["items"]:,} {kind}' for kind in kinds)
          for split, found in kept['kept'].items()
        ),
        'rows: '
        + ', '.join(
          f'{name} {found["rows"]:,} of {found["tokens"]:,} tokens'
          for name, found in splits.items()
        ),
        *(
          f'tokenizer: {row["size"]:,} pieces, {row["word_split_ratio"]:.3f} a word, ESMS {row["esms"]:.3f}'
          for row in (pieces, *pieces['sweep'])
        ),
        f'filtering: {kept["seconds"]:.1f} s, {kept["bytes"] / 1e6 / kept["processor_seconds"]:.1f} MB/s a core',
        f'all: {seconds:.1f} s, at most {largest[0] + children * largest[1]:,.0f} MiB of memory',
      )
    )
  )
