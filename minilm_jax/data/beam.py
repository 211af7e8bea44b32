"""The filter stage by Apache Beam, for text that is too big for one machine.

The result has the same bytes as without Beam. The value of --beam is Beam's own pipeline options,
here of a runner on this machine, Dataflow, Flink and Spark:

    minilm corpus --config=configs/corpus.py --config.documents.sources='gs://B/c4/*.jsonl.gz' --workdir=gs://B/rows \\
      --beam='--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=8'
      --beam='--runner=DataflowRunner --project=P --region=R --temp_location=gs://B/temp --setup_file=./setup.py'
      --beam='--runner=FlinkRunner --flink_master=HOST:8081 --environment_config=IMAGE'
      --beam='--runner=SparkRunner --spark_master_url=spark://HOST:7077 --environment_config=IMAGE'

Workers need this package and Beam: a setup file installs them, or they are in the image. Workers
fingerprint the sources, count words for a list of the most frequent, and filter
(`filter_shards.py`). They read the sources and write to a folder in the work directory or, if it is
given, in --temp_location, so that all machines must see both. Pipelines follow one another, and a
stage is kept when it is whole, as without Beam. Of Wikipedia 3 parts in 100 are inside the word
list of paper 1: little is left for the tokenizer and the rows, which stay on this machine.

Dataflow wants apache-beam[gcp]. For Flink and Spark Beam downloads and starts a program in Java,
and DirectRunner first looks for Prism, one in Go; FnApiRunner, its fallback, is Python alone.

Of a data set that TFDS makes with Beam, `c4/en` or `wikipedia/20230601.en`, the source is its name,
once it is prepared. The extras of TFDS, which workers need (FILE says tensorflow_datasets[c4]),
want a Beam that is older than ours, and so an environment of their own:

    tfds build c4/en --data_dir=gs://B/tfds --file_format=array_record --beam_pipeline_options=\\
      runner=DataflowRunner,project=P,region=R,temp_location=gs://B/temp,requirements_file=FILE
      runner=FlinkRunner,flink_master=HOST:8081,environment_config=IMAGE
      runner=SparkRunner,spark_master_url=spark://HOST:7077,environment_config=IMAGE

An estimate for all of C4/en, which is 829 GB of JSON and 305 GB compressed (card of allenai/c4): on
two cores of an EPYC under other load, a second of a core filtered 4.8 MB of Wikipedia as .jsonl.gz
by DirectRunner and 5.6 MB without Beam (40 MB, medians of 3, apache-beam 2.77). 829,000 MB / 4.8
MB/s are 48 core-hours: 3.4 dollars at 7 cents a core-hour, half an hour on 100 cores. Starting
machines, fingerprints, shuffling 16 bytes an item and storage are not included.

Beam pickles functions, the list of shards and some sums, from here and between the workers of one
job. Workers leave text and JSON, and nothing that was pickled elsewhere is ever loaded.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
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

from minilm_jax.core import progress
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.errors import LIBRARY_ERRORS, InputError, suggest_name
from minilm_jax.data import documents, filter_shards, filtering, filters

# A pipeline raises these if it cannot be made or a worker fails, in this process whatever the
# worker did.
_PIPELINE_ERRORS = (*LIBRARY_ERRORS, beam_error.BeamError)
_MAX_MESSAGE_CHARS = 300  # of the message of a runner, which may have pages
_WORK_FOLDER = '.work'  # of a corpus that is being built
_LOG_REMEDY = 'see what the runner logged; the same command goes on after the last whole stage'
_OPTIONS_REMEDY = 'see https://beam.apache.org/documentation/runners/capability-matrix for runners and their options'


@dataclasses.dataclass(frozen=True)
class BeamRunner:
  """The stages that read all text as pipelines, with the methods of `filtering.LocalRunner`."""

  options: pipeline_options.PipelineOptions
  folder: epath.Path  # of these pipelines alone

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
      result = filter_shards.shard_path(folder, 0, 'json')
      self._run(
        f'counting words of {len(shards):,} parts',
        lambda pipeline: (
          pipeline
          | beam.Create(list(enumerate(shards)))
          | beam.FlatMap(count)
          | beam.CombinePerKey(sum)
          | beam.combiners.Top.Smallest(size, key=_rank_word)
          | beam.Map(functools.partial(filter_shards.write_shard_json, result))
        ),
      )
      return filters.most_frequent_words(dict(filter_shards.read_shard_json(folder, 0)), size)

  def filter_corpus(
    self,
    config: CorpusConfig,
    sources: Sequence[documents.Source],
    words: filters.WordList | None,
    folder: epath.Path,
  ) -> dict[str, Any]:
    """Filters all documents into `folder`, which appears whole or not at all.

    Raises:
      InputError: a shard cannot be read, a worker or the runner failed, or nothing is left of a
        split.
    """
    started, shards = time.monotonic(), filter_shards.plan_shards(sources, config.documents)
    text_filter = filters.Filter(words, config.vocabulary)

    def fill(partial: epath.Path) -> dict[str, Any]:
      with self._empty_folder() as shared:
        filter_shard = functools.partial(
          filter_shards.filter_shard, config=config, text_filter=text_filter, folder=shared
        )
        self._run(
          f'filtering {len(shards):,} parts',
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
        progress.log(f'joining {len(shards):,} parts')
        return filter_shards.merge_shards(shared, len(shards), partial)

    summary = filtering.atomic_folder(folder, config.splits, fill)
    return summary | {'seconds': time.monotonic() - started, 'workers': 1}

  @contextlib.contextmanager
  def _empty_folder(self) -> Iterator[epath.Path]:
    """Yields the folder for one pipeline, emptied before, and removed afterwards."""
    try:
      if self.folder.exists():
        self.folder.rmtree()
      self.folder.mkdir(parents=True)
    except (OSError, ImportError) as error:  # ImportError: no library for gs://
      raise InputError(
        f'the folder {self.folder}',
        f'it cannot be made: {error}',
        'give another --workdir, or another --temp_location in --beam',
      ) from None
    try:
      yield self.folder
    finally:
      self.folder.rmtree()
      parent = self.folder.parent
      if parent.name == _WORK_FOLDER and not any(parent.iterdir()):
        parent.rmtree()

  def _run(self, what: str, build: Callable[[beam.Pipeline], Any]) -> None:
    standard = self.options.view_as(pipeline_options.StandardOptions)
    what = f'{what}, by {standard.runner or standard.DEFAULT_RUNNER}'
    progress.log(what)
    try:
      state = _run_pipeline(self.options, build)
      fault = '' if state == 'DONE' else f'the pipeline ended as {state}'
    except _failure_types() as error:
      if interruption := _find_interruption(error):
        raise interruption from None
      fault = _shorten(error)
    if fault:
      raise filter_shards.read_refusal(self.folder) or InputError(what, fault, _LOG_REMEDY)


def make_runner(value: str, workdir: epath.PathLike) -> BeamRunner:
  """Returns the runner of the value of --beam, Beam's pipeline options as on a command line.

  Raises:
    InputError: there is no such runner or option, or the runner lacks one.
  """
  asked = f'--beam={value}'
  try:
    words = shlex.split(value)
  except ValueError as error:
    raise InputError(asked, f'it cannot be split into words: {error}', 'close the quotes') from None
  stderr, parsers = io.StringIO(), []
  try:
    with contextlib.redirect_stderr(stderr), progress.silence():
      options = pipeline_options.PipelineOptions(words)
      options.get_all_options(add_extra_args_fn=parsers.append)
      known, unknown = parsers[0].parse_known_args(words)
      if not unknown:
        # finds the runner, and demands the options that it needs
        beam.Pipeline(options=options)
  except SystemExit:  # of argparse
    fault = stderr.getvalue().strip().rpartition('error: ')[2]
    raise InputError(asked, fault, _OPTIONS_REMEDY) from None
  except _PIPELINE_ERRORS as error:
    raise InputError(asked, _shorten(error), _OPTIONS_REMEDY) from None
  if unknown:
    name = unknown[0].partition('=')[0].lstrip('-')
    raise InputError(asked, f'Beam has no option {unknown[0]!r}', suggest_name(name, vars(known)))
  temp_location = options.view_as(pipeline_options.GoogleCloudOptions).temp_location
  if not temp_location:
    return BeamRunner(options, epath.Path(workdir) / _WORK_FOLDER / 'beam')
  # the same name on every start, so that another start finds the folder of a killed one
  owner = f'{socket.gethostname()}:{os.path.abspath(workdir)}'
  name = f'minilm-{hashlib.sha256(owner.encode()).hexdigest()[:16]}'
  return BeamRunner(options, epath.Path(temp_location) / name)


def _rank_word(entry: tuple[str, int]) -> tuple[int, str]:
  return -entry[1], entry[0]


def _run_pipeline(
  options: pipeline_options.PipelineOptions, build: Callable[[beam.Pipeline], Any]
) -> str:
  """Runs a pipeline, and returns its final state."""
  with progress.silence():
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    result = pipeline.run()
    try:
      return result.wait_until_finish()
    except KeyboardInterrupt:
      with contextlib.suppress(NotImplementedError, *_failure_types()):
        result.cancel()  # else it would go on elsewhere, and cost
      raise


def _find_interruption(error: BaseException | None) -> KeyboardInterrupt | None:
  """Returns the signal behind an error.

  A runner in this process takes a signal in the main thread for a failure of its work.
  """
  while error and not isinstance(error, KeyboardInterrupt):
    error = error.__cause__ or error.__context__
  return error


def _failure_types() -> tuple[type[Exception], ...]:
  dataflow = sys.modules.get('apache_beam.runners.dataflow.dataflow_runner')
  return (*_PIPELINE_ERRORS, dataflow.DataflowRuntimeException) if dataflow else _PIPELINE_ERRORS


def _shorten(error: Exception) -> str:
  """Returns the last line of a runner's message: those before it are of its own calls."""
  lines = [line for line in str(error).splitlines() if line.strip()] or ['']
  return f'{type(error).__name__}: {lines[-1].strip()[:_MAX_MESSAGE_CHARS]}'
