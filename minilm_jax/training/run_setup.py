"""Validates a recipe against corpus and machine, and opens or creates, and locks, its run."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from minilm_jax.core import distributed, files, lock, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from minilm_jax.model import flops
from minilm_jax.training import log_sinks, optimizer


def check_recipe(config: RunConfig, workdir: epath.PathLike) -> None:
  """Validates a recipe, and compares recipe, work directory and corpus of all processes.

  Writes nothing.

  Raises:
    InputError: the corpus does not fit the recipe, or a sink cannot be used.
    DistributedError: the processes differ.
  """
  distributed.check_processes()
  distributed.assert_equal('the recipe', json.dumps(recipe.as_dict(config)))
  distributed.assert_equal('the work directory', str(epath.Path(workdir).resolve()))
  with distributed.raise_together():
    log_sinks.check_sinks(config.log)
    corpus_hash = validate(config)
  distributed.assert_equal('the corpus', corpus_hash)


def validate(config: RunConfig) -> str:
  """Checks that the corpus of the recipe, built or described by a recipe, fits the model.

  Returns:
    The hash of the corpus, or '' if it is still to be built.

  Raises:
    InputError: the corpus does not fit, or is missing.
  """
  if not _is_recipe(config.corpus):
    return validate_corpus(config, epath.Path(config.corpus))['hash']
  # only a run that builds its corpus needs the text pipeline
  from minilm_jax.data import documents

  corpus_config = recipe.resolve(recipe.load(config.corpus), 'corpus')
  # an existing tokenizer determines its own size
  vocab_size = 0 if corpus_config.tokenizer.path else corpus_config.tokenizer.size
  _check_model_size(config, f'the corpus of {config.corpus}', vocab_size, corpus_config.rows.length)
  documents.expand_sources(corpus_config.documents)
  return ''


def _is_recipe(name: str) -> bool:
  return name.partition(':')[0].endswith('.py')


def _check_model_size(config: RunConfig, what: str, vocab_size: int, length: int) -> None:
  for name, model_size, corpus_size in (
    ('vocab_size', config.model.vocab_size, vocab_size),
    ('max_length', config.model.max_length, length),
  ):
    if model_size < corpus_size:
      raise InputError(
        f'model.{name}={model_size}',
        f'{what} has {name} {corpus_size}',
        f'give --config.model.{name}={corpus_size}',
      )


def validate_corpus(config: RunConfig, folder: epath.Path) -> dict[str, Any]:
  """Returns the manifest of a corpus that fits the recipe.

  Raises:
    InputError: no corpus is named or found, the model is too small for it, or it is smaller than
      `config.subset`.
  """
  if not config.corpus:
    raise InputError(
      'a corpus to train on', "corpus=''", 'give --config.corpus=FOLDER; minilm corpus makes one'
    )
  manifest = corpus.read_manifest(folder)
  _check_model_size(config, f'the corpus {folder}', manifest['vocabulary'], manifest['length'])
  if not manifest['splits'][corpus.TRAIN_SPLIT]['rows']:
    raise InputError(
      f'the training split of {folder}', 'no rows', 'build the corpus from more text'
    )
  corpus.check_subset(config.subset, manifest, folder)
  return manifest


def open_or_create_run(config: RunConfig, workdir: epath.PathLike) -> tuple[epath.Path, epath.Path]:
  """Creates or opens the work directory, and builds the corpus if it is given as a recipe.

  Returns:
    The work directory and the folder of the corpus.

  Raises:
    InputError: the directory belongs to another recipe, corpus or tokenizer, or to an imported
      model.
  """
  if record := run_dir.read_import_record(workdir):
    raise InputError(
      f'pre-training in {workdir}',
      f'it holds a model that was imported from {record["from"]}',
      'give another --workdir; fine-tune an imported model: minilm finetune --checkpoint',
    )
  is_recipe = _is_recipe(config.corpus)
  # the manifest has the hash of the corpus, so that its folder may have moved
  has_manifest = (epath.Path(workdir) / run_dir.MANIFEST).exists()
  free = ['corpus'] if has_manifest and not is_recipe else []
  workdir = run_dir.open_run(workdir, recipe.as_dict(config), free)
  folder = epath.Path(config.corpus)
  if is_recipe:
    # only a run that builds its corpus needs the text pipeline
    from minilm_jax.data import build

    folder = build.build_corpus(
      recipe.resolve(recipe.load(config.corpus), 'corpus'), workdir / 'corpus'
    )
  manifest = validate_corpus(config, folder)
  if has_manifest:
    _check_manifest(workdir, folder, manifest)
  else:
    _write_manifest(config, workdir, folder, manifest)
  return workdir, folder


def _corpus_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
  return {'corpus': manifest['hash'], 'tokenizer': manifest['tokenizer']['sha256']}


def _check_manifest(
  workdir: epath.Path, folder: epath.Path, corpus_manifest: Mapping[str, Any]
) -> None:
  """Checks that a run was started with this corpus; records a new folder of it."""
  stored = run_dir.read_corpus_hashes(workdir)
  for name, value in _corpus_hashes(corpus_manifest).items():
    if stored[name] != value:
      found = (
        f'it was trained on another {name}: {stored[name][:12]} there, {value[:12]} in {folder}'
      )
      raise InputError(
        f'the run in {workdir}', found, 'give the corpus it was started with, or another --workdir'
      )
  if stored['corpus_folder'] != str(folder):
    progress.log(f'the corpus of {workdir} was {stored["corpus_folder"]} and is {folder} now')
    manifest = files.read_object(workdir / run_dir.MANIFEST, f'the manifest of {workdir}')
    files.write_json(workdir / run_dir.MANIFEST, manifest | {'corpus_folder': str(folder)})


def _write_manifest(
  config: RunConfig, workdir: epath.Path, folder: epath.Path, corpus_manifest: Mapping[str, Any]
) -> None:
  """Writes the manifest of a run, and its tokenizer."""
  hashes = _corpus_hashes(corpus_manifest)
  path = files.resolve_inside(
    folder, corpus_manifest['tokenizer']['file'], f'the tokenizer of {folder}'
  )
  if not path.is_file() or files.hash_file(path) != hashes['tokenizer']:
    raise InputError(
      f'the tokenizer {path}',
      'not the file that the corpus was made with',
      'build the corpus again, or copy it again',
    )
  files.write_bytes(workdir / run_dir.TOKENIZER, files.read_bytes(path, f'the tokenizer {path}'))
  files.write_json(
    workdir / run_dir.MANIFEST,
    {
      **hashes,
      'corpus_folder': str(folder),
      'training': _training_size(config, folder, corpus_manifest),
      'parameters': flops.count_parameters(config.model),
      'flops_per_row': flops.flops_per_row(config.model, config.mask),
      'warmup': optimizer.warmup_steps(config.optimizer, config.num_steps),
      'jax': jax.__version__,
      'devices': [device.device_kind for device in jax.devices()],
    },
  )


def _training_size(
  config: RunConfig, folder: epath.Path, corpus_manifest: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns rows and tokens of a run and of its corpus, and the corpus's overlap with a task.

  A part of a corpus has no record of the overlap, because that belongs to the whole.
  """
  split = corpus_manifest['splits'][corpus.TRAIN_SPLIT]
  size = corpus.measure_subset(config.subset, folder, corpus_manifest)
  overlap = (
    corpus_manifest['subset']
    if 'subset' in corpus_manifest and size['rows'] == split['rows']
    else None
  )
  return size | {'of_rows': split['rows'], 'of_tokens': split['tokens'], 'subset': overlap}


@contextlib.contextmanager
def lock_run(workdir: epath.Path) -> Iterator[Callable[[], None]]:
  """Locks the run directory in the first process; yields a function that checks the lock.

  Raises:
    LockedError: another process uses the directory.
  """
  with contextlib.ExitStack() as stack:
    with distributed.raise_together():
      check = (
        stack.enter_context(lock.hold_lock(workdir)) if distributed.is_primary() else lambda: None
      )
    yield check


def read_result(config: RunConfig, workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the result of a finished run; None for other runs.

  Raises:
    InputError: the result is damaged.
  """
  if not (workdir / run_dir.RESULT).exists():
    return None
  if distributed.is_primary():
    # a process that was killed just after its result leaves its lock
    lock.remove_stale_lock(workdir)
  progress.log(f'nothing to do: {workdir} has run its {config.num_steps:,} updates')
  return files.read_json(workdir / run_dir.RESULT, 'the result of the run')
