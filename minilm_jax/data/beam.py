"""Runs the filter stage by Apache Beam, for text that is too large for one machine.

The corpus has the same bytes as without Beam. The flag --beam takes pipeline options of Beam;
docs/guide/beam.md has those of a local runner, Dataflow, Flink and Spark, and an estimate of the cost.

Workers need this package and Beam, from a setup file or from the image. Workers fingerprint the
sources, count words and filter (`filter_shards.py`). They read the sources and write to the work
directory, or to --temp_location, so all machines must reach both. The tokenizer and the rows are made
on this machine. DirectRunner first looks for Prism, a Go program; its fallback FnApiRunner needs only
Python.

Beam pickles functions, the list of shards and counts between the processes of one job. Workers
write text and JSON only; no pickle is loaded from files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam import error as beam_error
from apache_beam.options import pipeline_options
from etils import epath

from minilm_jax.core import paths, progress
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.errors import LIBRARY_ERRORS, InputError, suggest_name
from minilm_jax.data import documents, filter_shards, filtering, filters

# Construction of a pipeline and failures of its workers raise these.
_PIPELINE_ERRORS = (*LIBRARY_ERRORS, beam_error.BeamError)
_MAX_MESSAGE_CHARS = 300  # messages of runners may have pages
_WORK_FOLDER = '.work'
_LOG_REMEDY = (
  'check that the runner can be reached, and see its log; the same command continues after the last '
  'completed stage'
)
_OPTIONS_REMEDY = 'see https://beam.apache.org/documentation/runners/capability-matrix for runners and their options'


@dataclasses.dataclass(frozen=True)
class BeamRunner:
  """Runs the stages that read all text as pipelines; has the methods of `filtering.LocalRunner`.

  Attributes:
    folder: Temporary folder, emptied by each pipeline.
  """

  options: pipeline_options.PipelineOptions
  folder: epath.Path

  def fingerprint_sources(self, sources: Sequence[documents.Source]) -> list[dict[str, Any]]:
    """Returns the fingerprint of each source."""
    with self._empty_folder() as folder:
      fingerprint = functools.partial(filter_shards.fingerprint_shard, folder=folder)
      shards = beam.Create(list(enumerate(sources)))
      self._run('fingerprints', lambda pipeline: pipeline | shards | beam.Map(fingerprint))
      return [filter_shards.read_shard_json(folder, number) for number in range(len(sources))]

  def find_most_frequent_words(
    self, config: CorpusConfig, sources: Sequence[documents.Source]
  ) -> filters.WordList:
    """Returns the most frequent words of the sources."""
    size = config.vocabulary.most_frequent
    shards = filter_shards.plan_shards(sources, config.documents)
    with self._empty_folder() as folder:
      count = functools.partial(filter_shards.count_shard_words, config=config, folder=folder)
      self._run(
        f'counting words of {len(shards):,} shards',
        lambda pipeline: (
          pipeline
          | beam.Create(list(enumerate(shards)))
          | beam.FlatMap(count)
          | beam.CombinePerKey(sum)
          | beam.combiners.Top.Smallest(size, key=lambda entry: (-entry[1], entry[0]))
          | beam.Map(functools.partial(filter_shards.write_shard_json, folder, 0))
        ),
      )
      return filters.select_frequent_words(dict(filter_shards.read_shard_json(folder, 0)), size)

  def filter_corpus(
    self,
    config: CorpusConfig,
    sources: Sequence[documents.Source],
    words: filters.WordList | None,
    folder: epath.Path,
  ) -> dict[str, Any]:
    """Filters all documents into `folder` atomically; returns counts for the manifest.

    Raises:
      InputError: A source is unreadable, a worker or the runner failed, or a split is empty but has
        a share.
    """
    started, shards = time.monotonic(), filter_shards.plan_shards(sources, config.documents)
    text_filter = filters.Filter(words, config.vocabulary)
    with filtering.create_atomic_folder(folder) as partial, self._empty_folder() as shared:
      filter_shard = functools.partial(
        filter_shards.filter_shard, config=config, text_filter=text_filter, folder=shared
      )
      self._run(
        f'filtering {len(shards):,} shards',
        lambda pipeline: (
          pipeline
          | beam.Create(list(enumerate(shards)))
          | 'filter' >> beam.FlatMap(filter_shard)
          | 'group by bucket' >> beam.GroupByKey()
          | beam.Values()
          | 'compare' >> beam.FlatMap(filtering.find_repeated)
          | 'group by shard' >> beam.GroupByKey()
          | beam.Map(functools.partial(filter_shards.save_repeats, folder=shared))
        ),
      )
      progress.log(f'merging {len(shards):,} shards')
      summary = filter_shards.merge_shards(shared, len(shards), partial, config.splits)
    return summary | {'seconds': time.monotonic() - started, 'workers': 1}

  @contextlib.contextmanager
  def _empty_folder(self) -> Iterator[epath.Path]:
    """Yields an empty temporary folder, and removes it afterwards."""
    try:
      self.folder.rmtree(missing_ok=True)
      self.folder.mkdir(parents=True)
    except OSError as error:
      raise InputError(
        f'the folder {self.folder}',
        f'creation failed: {error}',
        'give another --workdir, or another --temp_location in --beam',
      ) from None
    try:
      yield self.folder
    finally:
      # In a bucket, a folder without files does not exist.
      self.folder.rmtree(missing_ok=True)
      parent = self.folder.parent
      if parent.name == _WORK_FOLDER and parent.exists() and not any(parent.iterdir()):
        parent.rmtree()

  def _run(self, task: str, build: Callable[[beam.Pipeline], Any]) -> None:
    standard = self.options.view_as(pipeline_options.StandardOptions)
    task = f'{task} by {standard.runner or standard.DEFAULT_RUNNER}'
    progress.log(task)
    try:
      state = _run_pipeline(self.options, build)
      fault = '' if state == 'DONE' else f'the pipeline ended as {state}'
    except _get_failure_types() as error:
      if interruption := _find_interruption(error):
        raise interruption from None
      fault = _shorten(error)
    if fault:
      raise filter_shards.read_refusal(self.folder) or InputError(task, fault, _LOG_REMEDY)


def make_runner(value: str, workdir: epath.PathLike) -> BeamRunner:
  """Returns the runner for the value of --beam: pipeline options as on a command line.

  Raises:
    InputError: The runner or an option is unknown, or a required option is missing.
  """
  flag = f'--beam={value}'
  try:
    words = shlex.split(value)
  except ValueError as error:
    raise InputError(flag, f'not a command line: {error}', 'close the quotes') from None
  stderr, parsers = io.StringIO(), []
  try:
    with contextlib.redirect_stderr(stderr), progress.silence():
      options = pipeline_options.PipelineOptions(words)
      options.get_all_options(add_extra_args_fn=parsers.append)
      known, unknown = parsers[0].parse_known_args(words)
      if not unknown:
        beam.Pipeline(options=options)  # checks the runner and its required options
  except SystemExit:  # from argparse
    fault = stderr.getvalue().strip().rpartition('error: ')[2]
    raise InputError(flag, fault, _OPTIONS_REMEDY) from None
  except _PIPELINE_ERRORS as error:
    raise InputError(flag, _shorten(error), _OPTIONS_REMEDY) from None
  if unknown:
    name = unknown[0].partition('=')[0].lstrip('-')
    raise InputError(flag, f'no option {unknown[0]!r} of Beam', suggest_name(name, vars(known)))
  temp_location = options.view_as(pipeline_options.GoogleCloudOptions).temp_location
  if not temp_location:
    return BeamRunner(options, epath.Path(workdir) / _WORK_FOLDER / 'beam')
  # A deterministic name lets the next start find and empty the folder of a killed process.
  owner = f'{socket.gethostname()}:{paths.resolve_links(workdir)}'
  name = f'minilm-{hashlib.sha256(owner.encode()).hexdigest()[:16]}'
  return BeamRunner(options, epath.Path(temp_location) / name)


def _run_pipeline(
  options: pipeline_options.PipelineOptions, build: Callable[[beam.Pipeline], Any]
) -> str:
  """Runs a pipeline and returns its final state."""
  with progress.silence():
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    result = pipeline.run()
    try:
      return result.wait_until_finish()
    except KeyboardInterrupt:
      with contextlib.suppress(NotImplementedError, *_get_failure_types()):
        result.cancel()  # a remote job would continue and cost money
      raise


def _find_interruption(error: BaseException | None) -> KeyboardInterrupt | None:
  """Returns the signal behind an error; local runners report a signal as a failure of their work."""
  while error and not isinstance(error, KeyboardInterrupt):
    error = error.__cause__ or error.__context__
  return error


def _get_failure_types() -> tuple[type[Exception], ...]:
  """Returns the exceptions of a failed pipeline; some are of libraries that only some runners import."""
  types = _PIPELINE_ERRORS
  if dataflow := sys.modules.get('apache_beam.runners.dataflow.dataflow_runner'):
    types += (dataflow.DataflowRuntimeException,)
  if grpc := sys.modules.get('grpc'):  # an unreachable job server
    types += (grpc.RpcError, grpc.FutureTimeoutError)
  return types


def _shorten(error: Exception) -> str:
  """Returns the type and the last line of text of an error; runners prepend their own call stacks."""
  lines = [line for line in str(error).splitlines() if any(map(str.isalnum, line))]
  message = lines[-1].strip()[:_MAX_MESSAGE_CHARS] if lines else 'no message'
  return f'{type(error).__name__}: {message}'
