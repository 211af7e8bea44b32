"""Builds a corpus folder from text: the command `minilm corpus`.

The stages are filter, tokenizer and rows. `.work/` stores the result of each stage with its origin,
so an interrupted build continues after the last completed stage. The same text and settings give
the same bytes for any number of workers. `corpus.py` reads the folder.
"""

import dataclasses
import hashlib
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import backend, files, lock, progress, recipe, run_dir
from minilm_jax.core.corpus_config import FORMAT, TEXT_KINDS, CorpusConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filtering, filters, packing, tokenizer
from minilm_jax.data.normalization import NORMALIZATION

_WORK_FOLDER, _FILTER_STAGE = '.work', 'keep'  # stored names
_MAX_TRAINING_BYTES = 32 << 20  # text for training a tokenizer
_MAX_SPLIT_RATIO_BYTES = 1 << 20  # text for the word-split ratio


def build_corpus(config: CorpusConfig, workdir: epath.PathLike, beam: str = '') -> epath.Path:
  """Builds a corpus folder, or continues an interrupted build; returns the folder.

  Args:
    workdir: Folder of the corpus; a finished corpus of the same recipe is unchanged.
    beam: Pipeline options of Apache Beam, which filters the text; '' filters on this machine.

  Raises:
    LockedError: Another process writes to the folder.
    InputError: The input is invalid, or a split is empty; only completed stages remain in `.work/`.
  """
  workdir = epath.Path(workdir)
  # The number of workers does not change the corpus.
  settings = recipe.as_dict(dataclasses.replace(config, workers=0))
  if (workdir / run_dir.MANIFEST).exists():
    if not (workdir / run_dir.CONFIG).exists():  # a copy without the file
      manifest = files.read_object(
        workdir / run_dir.MANIFEST, f'the corpus {workdir}', {'settings': {}}
      )
      files.write_json(workdir / run_dir.CONFIG, manifest['settings'])
    run_dir.open_run(workdir, settings)
    progress.log(f'{workdir} has the finished corpus of this recipe: nothing to do')
    (workdir / _WORK_FOLDER).rmtree(missing_ok=True)
    return workdir
  with lock.hold_lock(workdir):
    local_runner = filtering.LocalRunner(config.workers or backend.count_cores())
    runner = _make_beam_runner(beam, workdir) if beam else local_runner
    _build(config, workdir, settings, runner)
  return workdir


def _make_beam_runner(value: str, workdir: epath.Path) -> Any:
  """Returns a runner with the methods of LocalRunner; imports the extra [beam]."""
  try:
    with progress.silence():  # the import warns of packages for Google Cloud
      from minilm_jax.data import beam
  except ImportError as error:
    raise InputError(
      f'--beam={value}',
      f'the import of Apache Beam failed: {error}',
      "pip install 'minilm_jax[beam]', or omit --beam",
    ) from None
  return beam.make_runner(value, workdir)


def _build(
  config: CorpusConfig, workdir: epath.Path, settings: dict[str, Any], runner: Any
) -> None:
  started, work = time.monotonic(), workdir / _WORK_FOLDER
  sources = documents.expand_sources(config.documents)
  list_path, tokenizer_path = config.vocabulary.word_list, config.tokenizer.path
  words = filters.load_word_list(list_path) if list_path else None
  if words and (unmatched := sum(word != word.lower() for word in words.words)):
    progress.log(
      f'word list: {unmatched:,} of {len(words.words):,} words have capitals and match no text'
    )
  existing = tokenizer.load_tokenizer(tokenizer_path) if tokenizer_path else None
  fingerprints = runner.fingerprint_sources(sources)
  sources = [
    dataclasses.replace(source, num_bytes=fingerprint['bytes'])
    for source, fingerprint in zip(sources, fingerprints, strict=True)
  ]
  run_dir.open_run(workdir, settings)
  try:
    origin = {name: settings[name] for name in ('documents', 'vocabulary', 'splits')}
    origin |= {'sources': fingerprints, 'word_list': words and words.sha256}
    origin |= {'normalization': NORMALIZATION}
    filtered = _run_stage(
      work, _FILTER_STAGE, origin, lambda: _filter_text(config, sources, words, work, runner)
    )
    origin |= {'tokenizer': settings['tokenizer'], 'given': existing and existing.sha256}
    pieces = _run_stage(
      work, 'tokenizer', origin, lambda: _make_tokenizer(config, existing, filtered, work)
    )
  except InputError:  # keep completed stages for a corrected recipe
    (workdir / run_dir.CONFIG).unlink()
    if work.exists() and not any(work.iterdir()):
      work.rmtree()
    raise
  (work / run_dir.TOKENIZER).copy(workdir / run_dir.TOKENIZER, overwrite=True)
  splits, row_counts = packing.write_rows(
    config.rows,
    tokenizer.load_tokenizer(workdir / run_dir.TOKENIZER),
    work / _FILTER_STAGE,
    workdir,
  )
  stages = {_FILTER_STAGE: filtered, 'tokenizer': pieces, 'rows': row_counts}
  manifest = _make_manifest(settings, fingerprints, splits, stages)
  files.write_json(workdir / run_dir.MANIFEST, manifest)
  work.rmtree(missing_ok=True)
  _log_summary(manifest, time.monotonic() - started)


def _run_stage(
  work: epath.Path, name: str, origin: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """Returns the summary of a stage; reuses an earlier result of the same origin."""
  path = work / f'{name}.json'
  origin = json.loads(json.dumps(origin))
  if path.exists():
    stage = files.read_json(path, f'the {name} stage of an earlier start')
    if stage['origin'] == origin:
      progress.log(f'{name}: reused from an earlier start')
      return stage['numbers']
    path.unlink()
  work.mkdir(parents=True, exist_ok=True)
  files.write_json(path, {'origin': origin, 'numbers': make()})
  return files.read_json(path, f'the {name} stage')['numbers']


def _filter_text(
  config: CorpusConfig,
  sources: Sequence[documents.Source],
  words: filters.WordList | None,
  work: epath.Path,
  runner: Any,
) -> dict[str, Any]:
  if config.vocabulary.most_frequent:
    words = runner.find_most_frequent_words(config, sources)
  (work / _FILTER_STAGE).rmtree(missing_ok=True)
  summary = runner.filter_corpus(config, sources, words, work / _FILTER_STAGE)
  word_list = words and {'name': words.name, 'sha256': words.sha256, 'words': len(words.words)}
  return summary | {'word_list': word_list}


def _make_tokenizer(
  config: CorpusConfig,
  existing: tokenizer.Tokenizer | None,
  filtered: Mapping[str, Any],
  work: epath.Path,
) -> dict[str, Any]:
  """Trains a tokenizer on the training split, or copies an existing one; returns its measures."""
  started, settings = time.monotonic(), config.tokenizer
  text_bytes = sum(kind['bytes'] for kind in filtered['kept']['train'].values())

  def sample_text(max_bytes: int) -> Iterator[str]:
    kinds = (filtering.read_items(work / _FILTER_STAGE, 'train', kind) for kind in TEXT_KINDS)
    return tokenizer.sample_evenly(itertools.chain.from_iterable(kinds), max_bytes / text_bytes)

  if existing:
    trained = existing
  else:
    megabytes = min(text_bytes, _MAX_TRAINING_BYTES) / 1e6
    progress.log(f'tokenizer: training {settings.size:,} pieces on {megabytes:,.1f} MB')
    trained = tokenizer.train_tokenizer(
      sample_text(_MAX_TRAINING_BYTES), settings.model, settings.size
    )
  files.write_bytes(work / run_dir.TOKENIZER, trained.model)
  sweep = []
  if settings.extra_sizes:
    sizes = ', '.join(f'{size:,}' for size in settings.extra_sizes)
    progress.log(f'tokenizer: measuring {sizes} pieces')
    sample = list(sample_text(_MAX_TRAINING_BYTES))
    sweep = tokenizer.measure_sizes(sample, settings.model, settings.extra_sizes)
  return {
    'size': trained.size,
    'sha256': trained.sha256,
    'word_split_ratio': tokenizer.measure_word_split_ratio(
      trained, sample_text(_MAX_SPLIT_RATIO_BYTES)
    ),
    'esms': tokenizer.measure_esms(trained),
    'sweep': sweep,
    'seconds': time.monotonic() - started,
  }


def _make_manifest(
  settings: Mapping[str, Any],
  fingerprints: list[dict[str, Any]],
  splits: Mapping[str, Any],
  stages: Mapping[str, Any],
) -> dict[str, Any]:
  length, size = settings['rows']['length'], stages['tokenizer']['size']
  checksum = stages['tokenizer']['sha256']
  return {
    'format': FORMAT,
    'length': length,
    'vocabulary': size,
    'dtype': packing.choose_dtype(size).name,
    'normalization': NORMALIZATION,
    'tokenizer': {'file': run_dir.TOKENIZER, 'sha256': checksum},
    'splits': splits,
    'settings': {name: value for name, value in settings.items() if name != 'workers'},
    'sources': fingerprints,
    'hash': hash_corpus(checksum, length, splits),
    'word_list': stages[_FILTER_STAGE]['word_list'],
    'stages': stages,
  }


def hash_corpus(tokenizer_sha256: str, length: int, splits: Mapping[str, Any]) -> str:
  """Returns the identity of a corpus: the hash of its tokenizer and shards, without settings."""
  shards = {
    split: [shard['sha256'] for shard in entry['shards']] for split, entry in splits.items()
  }
  identity = {'tokenizer': tokenizer_sha256, 'length': length, 'shards': shards}
  return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _log_summary(manifest: Mapping[str, Any], seconds: float) -> None:
  filtered, pieces = manifest['stages'][_FILTER_STAGE], manifest['stages']['tokenizer']
  kinds, megabytes = manifest['settings']['vocabulary']['filters'], filtered['bytes'] / 1e6
  counts = ', '.join(f'{name.replace("_", " ")} {n:,}' for name, n in filtered['passes'].items())
  items = ', '.join(
    f'{split} ' + ' and '.join(f'{numbers[kind]["items"]:,} {kind}' for kind in kinds)
    for split, numbers in filtered['kept'].items()
  )
  rows = ', '.join(
    f'{split} {entry["rows"]:,} of {entry["tokens"]:,} tokens'
    for split, entry in manifest['splits'].items()
  )
  lines = [
    f'documents: {sum(filtered["documents"].values()):,}, {megabytes:,.1f} MB',
    f'filters: {counts}',
    f'selected: {items}',
    f'rows: {rows}',
  ]
  row_counts = manifest['stages']['rows']
  if row_counts['tokens_truncated']:
    lines.append(
      f'cut: {row_counts["tokens_truncated"]:,} tokens of {row_counts["rows_truncated"]:,} rows; '
      'rows.packing=tokens keeps them'
    )
  for row in (pieces, *pieces['sweep']):
    ratio, score = (
      'unknown' if row[name] is None else f'{row[name]:.3f}'
      for name in ('word_split_ratio', 'esms')
    )
    lines.append(f'tokenizer: {row["size"]:,} pieces, {ratio} pieces a word, ESMS {score}')
  speed = megabytes / max(filtered['processor_seconds'], 0.01)  # the resolution of os.times
  lines.append(f'filtering: {filtered["seconds"]:.1f} s, {speed:.1f} MB/s per core')
  memory = _measure_peak_memory(filtered['workers'])
  lines.append(f'total: {seconds:.1f} s, at most {memory:,.0f} MiB of memory')
  progress.log('\n'.join(lines))


def _measure_peak_memory(workers: int) -> float:
  """Returns an upper bound of the memory of this process and its workers in MiB."""
  unit = 1 << 20 if sys.platform == 'darwin' else 1 << 10
  parent, child = (
    resource.getrusage(who).ru_maxrss / unit
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return parent + (workers if workers > 1 else 0) * child
