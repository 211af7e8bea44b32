"""The keep stage by Apache Beam, for text that is too big for one machine: the same bytes as
`build.py` makes alone.

The value of --beam is Beam's own pipeline options, here of a runner on this machine, Dataflow,
Flink and Spark:

    minilm corpus --config=configs/corpus.py --config.documents.sources='gs://B/c4/*.jsonl.gz' --workdir=gs://B/rows \\
      --beam='--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=8'
      --beam='--runner=DataflowRunner --project=P --region=R --temp_location=gs://B/temp --setup_file=./setup.py'
      --beam='--runner=FlinkRunner --flink_master=HOST:8081 --environment_config=IMAGE'
      --beam='--runner=SparkRunner --spark_master_url=spark://HOST:7077 --environment_config=IMAGE'

Workers need this package: a setup file installs it, or it is in the image, as Beam is. They
fingerprint the sources, count words where the recipe asks for the most frequent, and filter
(`parts.py`); they read what the recipe names and write to a folder in the work directory or, where
it is given, in --temp_location, so that all machines must see both. Pipelines follow one another,
and what was done is kept when the stage is whole, as without Beam. Of Wikipedia 3 parts in 100 are
inside the word list of paper 1: there is little left to do for the tokenizer and the rows, which
stay with who started it.

Dataflow wants apache-beam[gcp]. For Flink and Spark Beam downloads and starts a program in Java,
and DirectRunner first looks for Prism, one in Go; FnApiRunner, which it comes to without, is Python
alone.

Of a data set that TFDS makes with Beam, `c4/en` or `wikipedia/20230601.en`, the source is its name,
once it is prepared. The extras of TFDS, which workers need (FILE says tensorflow_datasets[c4]),
want a Beam that is older than ours, and so an environment of their own:

    tfds build c4/en --data_dir=gs://B/tfds --file_format=array_record --beam_pipeline_options=\\
      runner=DataflowRunner,project=P,region=R,temp_location=gs://B/temp,requirements_file=FILE
      runner=FlinkRunner,flink_master=HOST:8081,environment_config=IMAGE
      runner=SparkRunner,spark_master_url=spark://HOST:7077,environment_config=IMAGE

An estimate for all of C4/en, which is 829 GB of JSON and 305 GB compressed (card of allenai/c4): on
two cores of an EPYC that other work kept busy, a second of a core filtered 4.8 MB of Wikipedia as
.jsonl.gz by DirectRunner and 5.6 MB without Beam (40 MB, medians of 3, apache-beam 2.77). 829,000
MB / 4.8 MB/s are 48 core-hours: 3.4 dollars at 7 cents a core-hour, half an hour on 100 cores.
Starting machines, fingerprints, shuffling 16 bytes an item and storage are not in it.

Beam pickles functions, the list of parts and some sums, from here and between the workers of one
job. What they leave is text and JSON, and nothing that was pickled elsewhere is ever loaded.
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
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import documents, filter_shards, filtering, filters

# What a pipeline raises where it cannot be made or a worker fails: in this process whatever the
# worker did.
_FAILED = (
  RuntimeError,
  OSError,
  ValueError,
  TypeError,
  LookupError,
  AttributeError,
  AssertionError,
  ArithmeticError,
  ImportError,
  EOFError,
  MemoryError,
  beam_error.BeamError,
)
_TOLD = 300  # characters of what a runner says of its failure; it may say pages
_WORK = '.work'  # of a corpus that is being built
_LOGGED = 'see what the runner logged; the same command goes on after the last whole stage'
_HELP = 'see https://beam.apache.org/documentation/runners/capability-matrix for runners and their options'


@dataclasses.dataclass(frozen=True)
class BeamRunner:
  """The heavy stage of a corpus as pipelines: their options, and the folder that is theirs."""

  options: pipeline_options.PipelineOptions
  folder: epath.Path

  def fingerprints(self, sources: Sequence[documents.Source]) -> list[dict[str, Any]]:
    """What `documents.fingerprint` gives of each source."""
    with self._emptied() as folder:
      self._run(
        'fingerprints',
        lambda pipeline: (
          pipeline
          | beam.Create(list(enumerate(sources)))
          | beam.Map(functools.partial(filter_shards.fingerprint_shard, folder=folder))
        ),
      )
      return [filter_shards.load_shard_input(folder, number) for number in range(len(sources))]

  def most_frequent(
    self, config: CorpusConfig, sources: Sequence[documents.Source]
  ) -> filters.WordList:
    """The most frequent words, as `keep.most_frequent` finds them."""
    n, some = config.vocabulary.most_frequent, filter_shards.plan_shards(sources, config.documents)
    with self._emptied() as folder:
      self._run(
        f'counting words of {len(some):,} parts',
        lambda pipeline: (
          pipeline
          | beam.Create(list(enumerate(some)))
          | beam.FlatMap(
            functools.partial(filter_shards.count_shard_words, config=config, folder=folder)
          )
          | beam.CombinePerKey(sum)
          | beam.combiners.Top.Smallest(n, key=_rank)
          | beam.Map(
            functools.partial(filter_shards.save_shard, filter_shards.shard_path(folder, 0, 'json'))
          )
        ),
      )
      return filters.most_frequent_words(dict(filter_shards.load_shard_input(folder, 0)), n)

  def keep(
    self,
    config: CorpusConfig,
    sources: Sequence[documents.Source],
    words: filters.WordList | None,
    to: epath.Path,
  ) -> dict[str, Any]:
    """Filters all documents into the folder `to`, as `keep.keep` does.

    Raises:
      InputError: a part cannot be read, a worker or the runner failed, or nothing is left of a
        split.
    """
    started, some = time.monotonic(), filter_shards.plan_shards(sources, config.documents)

    def fill(partial: epath.Path) -> dict[str, Any]:
      with self._emptied() as folder:
        kept = functools.partial(
          filter_shards.filter_shard,
          config=config,
          words=filters.Filter(words, config.vocabulary),
          folder=folder,
        )
        self._run(
          f'filtering {len(some):,} parts',
          lambda pipeline: (
            pipeline
            | beam.Create(list(enumerate(some)))
            | 'filter' >> beam.FlatMap(kept)
            | 'meet' >> beam.GroupByKey()
            | 'compare' >> beam.FlatMap(filter_shards.find_shard_repeats)
            | 'return' >> beam.GroupByKey()
            | beam.Map(functools.partial(filter_shards.save_repeats, folder=folder))
          ),
        )
        progress.log(f'joining {len(some):,} parts')
        return filter_shards.merge_shards(folder, len(some), partial)

    return filtering.atomic_folder(to, config.splits, fill) | {
      'seconds': time.monotonic() - started,
      'workers': 1,
    }

  @contextlib.contextmanager
  def _emptied(self) -> Iterator[epath.Path]:
    """The folder for one pipeline: what a killed one left goes before, all goes afterwards."""
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
      if self.folder.parent.name == _WORK and not any(self.folder.parent.iterdir()):
        self.folder.parent.rmtree()

  def _run(self, what: str, build: Callable[[beam.Pipeline], Any]) -> None:
    standard = self.options.view_as(pipeline_options.StandardOptions)
    what = f'{what}, by {standard.runner or standard.DEFAULT_RUNNER}'
    progress.log(what)
    try:
      state = _state(self.options, build)
    except _failed() as error:
      if stopped := _interruption(error):
        raise stopped from None
      raise filter_shards.refusal_of(self.folder) or InputError(
        what, _shortened(error), _LOGGED
      ) from None
    if state != 'DONE':
      raise filter_shards.refusal_of(self.folder) or InputError(
        what, f'the pipeline ended as {state}', _LOGGED
      )


def read_pipeline_options(given: str, workdir: epath.PathLike) -> BeamRunner:
  """What --beam means.

  Args:
    given: Beam's pipeline options as one would type them.
    workdir: of the corpus.

  Raises:
    InputError: there is no such runner or option, or the runner lacks one.
  """
  asked = f'--beam={given}'
  try:
    words = shlex.split(given)
  except ValueError as error:
    raise InputError(asked, f'it cannot be split into words: {error}', 'close the quotes') from None
  said, parsers = io.StringIO(), []
  try:
    with contextlib.redirect_stderr(said), progress.silence():
      options = pipeline_options.PipelineOptions(words)
      options.get_all_options(add_extra_args_fn=parsers.append)
      known, unknown = parsers[0].parse_known_args(words)
      if not unknown:
        # which finds the runner, and asks for the options that it cannot do without
        beam.Pipeline(options=options)
  except SystemExit:  # of argparse
    raise InputError(asked, said.getvalue().strip().rpartition('error: ')[2], _HELP) from None
  except _FAILED as error:
    raise InputError(asked, _shortened(error), _HELP) from None
  if unknown:
    name = unknown[0].partition('=')[0].lstrip('-')
    raise InputError(asked, f'Beam has no option {unknown[0]!r}', suggest_name(name, vars(known)))
  place = options.view_as(pipeline_options.GoogleCloudOptions).temp_location
  if not place:
    return BeamRunner(options, epath.Path(workdir) / _WORK / 'beam')
  # so that another start finds what a killed one left
  mine = f'{socket.gethostname()}:{os.path.abspath(workdir)}'
  return BeamRunner(
    options, epath.Path(place) / f'minilm-{hashlib.sha256(mine.encode()).hexdigest()[:16]}'
  )


def _rank(word: tuple[str, int]) -> tuple[int, str]:
  return -word[1], word[0]


def _state(options: pipeline_options.PipelineOptions, build: Callable[[beam.Pipeline], Any]) -> str:
  """Runs a pipeline; how it ended."""
  with progress.silence():
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    result = pipeline.run()
    try:
      return result.wait_until_finish()
    except KeyboardInterrupt:
      with contextlib.suppress(NotImplementedError, *_failed()):
        result.cancel()  # else it would go on elsewhere, and cost
      raise


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
  """A runner in this process takes a signal, which comes wherever the main thread is, for a failure
  of its work.
  """
  while error and not isinstance(error, KeyboardInterrupt):
    error = error.__cause__ or error.__context__
  return error


def _failed() -> tuple[type[Exception], ...]:
  dataflow = sys.modules.get('apache_beam.runners.dataflow.dataflow_runner')
  return (*_FAILED, dataflow.DataflowRuntimeException) if dataflow else _FAILED


def _shortened(error: Exception) -> str:
  """The last line that a runner says: those before it are of its own calls."""
  lines = [line for line in str(error).splitlines() if line.strip()] or ['']
  return f'{type(error).__name__}: {lines[-1].strip()[:_TOLD]}'
