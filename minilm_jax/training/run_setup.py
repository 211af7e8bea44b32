"""Validates a recipe against its corpus; creates or opens the run directory, and locks it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from minilm_jax.core import distributed, files, lock, paths, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from minilm_jax.model import flops
from minilm_jax.training import log_sinks, optimizer


def check_recipe(
  config: RunConfig, workdir: epath.PathLike, origin: Mapping[str, Any] = {}
) -> None:
  """Validates a recipe, and checks that all processes have the same recipe, directory and corpus.

  Writes no file.

  Args:
    origin: The field `origin` of the manifest of a new run, as from `run_dir.read_origin`.

  Raises:
    InputError: The corpus does not fit the recipe or the tokenizer of the origin, or the library of
      a sink is missing.
    DistributedError: The processes differ.
  """
  distributed.check_processes()
  distributed.assert_equal('the recipe', json.dumps(recipe.as_dict(config)))
  distributed.assert_equal('the work directory', paths.resolve_links(workdir))
  distributed.assert_equal('the origin', json.dumps(origin))
  with distributed.raise_together():
    log_sinks.check_sinks(config.log)
    corpus_hash = validate(config, origin)
  distributed.assert_equal('the corpus', corpus_hash)


def validate(config: RunConfig, origin: Mapping[str, Any] = {}) -> str:
  """Checks that the corpus fits model and origin; `config.corpus` is a folder or a recipe file.

  Returns:
    The hash of the corpus, or '' for a recipe file.

  Raises:
    InputError: The corpus is missing or does not fit.
  """
  if not _is_recipe(config.corpus):
    return validate_corpus(config, epath.Path(config.corpus), origin)['hash']
  # Imported late, because only a run that builds its corpus needs the text pipeline.
  from minilm_jax.data import documents

  corpus_config = load_corpus_recipe(config.corpus)
  # The size of an existing tokenizer is in its file, not in the recipe.
  tokenizer_path = corpus_config.tokenizer.path
  if tokenizer_path and epath.Path(tokenizer_path).is_file():
    _check_tokenizer(origin, files.hash_file(tokenizer_path), config.corpus)
  vocab_size = 0 if tokenizer_path else corpus_config.tokenizer.size
  _check_model_size(config, f'the corpus of {config.corpus}', vocab_size, corpus_config.rows.length)
  documents.expand_sources(corpus_config.documents)
  return ''


def load_corpus_recipe(name: str) -> Any:
  """Returns the CorpusConfig of the recipe that `config.corpus` names.

  Raises:
    InputError: The file or its recipe is missing, or the recipe has another kind.
  """
  source = recipe.load(name)
  if 'kind' in source and source['kind'] in ('pretrain', 'finetune'):
    raise InputError(
      f'config.corpus={name}',
      f'a recipe of kind {source["kind"]!r}',
      "give a folder of minilm corpus, or the name of a file's corpus, as in "
      'configs/quickstart.py:corpus',
    )
  return recipe.resolve(source, 'corpus')


def _is_recipe(name: str) -> bool:
  return recipe.split_argument(name)[0].endswith('.py')


def _check_model_size(config: RunConfig, subject: str, vocab_size: int, length: int) -> None:
  for name, model_size, corpus_size in (
    ('vocab_size', config.model.vocab_size, vocab_size),
    ('max_length', config.model.max_length, length),
  ):
    if model_size < corpus_size:
      raise InputError(
        f'model.{name}={model_size}',
        f'{name} {corpus_size} in {subject}',
        f'give --config.model.{name}={corpus_size}',
      )


def _check_tokenizer(origin: Mapping[str, Any], tokenizer_hash: str, name: str) -> None:
  """Checks that a corpus, with a folder or recipe as its name, has the tokenizer of an origin."""
  folder = epath.Path(origin['checkpoint']) if origin else None
  if folder and tokenizer_hash != (stored := run_dir.read_corpus_hashes(folder)['tokenizer']):
    raise InputError(
      f'the weights of {folder} for the tokenizer {tokenizer_hash[:12]} of {name}',
      f'the tokenizer {stored[:12]} in {folder}',
      'give a corpus of this tokenizer: '
      f'minilm corpus --config.tokenizer.path={folder / run_dir.TOKENIZER}',
    )


def validate_corpus(
  config: RunConfig, folder: epath.Path, origin: Mapping[str, Any] = {}
) -> dict[str, Any]:
  """Returns the manifest of a corpus that fits the recipe and the origin of the run.

  Raises:
    InputError: `config.corpus` is empty or no corpus, the model is too small for the corpus, the
      corpus is smaller than `config.subset`, or the tokenizer is not that of the origin.
  """
  if not config.corpus:
    raise InputError(
      'a corpus for training', "corpus=''", 'give --config.corpus=FOLDER from minilm corpus'
    )
  manifest = corpus.read_manifest(folder)
  _check_tokenizer(origin, manifest['tokenizer']['sha256'], str(folder))
  _check_model_size(config, f'the corpus {folder}', manifest['vocabulary'], manifest['length'])
  if not manifest['splits'][corpus.TRAIN_SPLIT]['rows']:
    raise InputError(
      f'the training split of {folder}', 'no rows', 'build the corpus from more text'
    )
  corpus.check_subset(config.subset, manifest, folder)
  return manifest


def open_or_create_run(
  config: RunConfig, workdir: epath.PathLike, origin: Mapping[str, Any] = {}
) -> tuple[epath.Path, epath.Path, dict[str, Any]]:
  """Creates or opens the work directory, and builds the corpus if `config.corpus` is a recipe file.

  Args:
    origin: The field `origin` of the manifest of a new run, as from `run_dir.read_origin`.

  Returns:
    The work directory, the folder of the corpus, and the manifest of the corpus.

  Raises:
    InputError: The directory belongs to another recipe, corpus or tokenizer, or to an imported
      model. A corpus that was built has another tokenizer than the origin.
  """
  if record := run_dir.read_import_record(workdir):
    raise InputError(
      f'pre-training in {workdir}',
      f'a model imported from {record["from"]}',
      f'continue the training of the model with another --workdir and --init_from={workdir}; or '
      f'fine-tune the model: minilm finetune --checkpoint={workdir}',
    )
  is_recipe = _is_recipe(config.corpus)
  # The folder of the corpus may have moved: the manifest identifies the corpus by its hash.
  has_manifest = (epath.Path(workdir) / run_dir.MANIFEST).exists()
  free = ['corpus'] if has_manifest and not is_recipe else []
  workdir = run_dir.open_run(workdir, recipe.as_dict(config), free, origin)
  folder = epath.Path(config.corpus)
  if is_recipe:
    # Imported late, because only a run that builds its corpus needs the text pipeline.
    from minilm_jax.data import build

    folder = build.build_corpus(load_corpus_recipe(config.corpus), workdir / 'corpus')
  # The first start may have ended while it built the corpus.
  origin = origin if has_manifest else origin or run_dir.read_origin(workdir)
  manifest = validate_corpus(config, folder, origin)
  if has_manifest:
    _check_manifest(workdir, folder, manifest)
  else:
    _write_manifest(config, workdir, folder, manifest, origin)
    (workdir / run_dir.PENDING_ORIGIN).unlink(missing_ok=True)
  return workdir, folder, manifest


def _select_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
  return {'corpus': manifest['hash'], 'tokenizer': manifest['tokenizer']['sha256']}


def _check_manifest(
  workdir: epath.Path, folder: epath.Path, corpus_manifest: Mapping[str, Any]
) -> None:
  """Checks that a run was started with the corpus; stores a new folder of the corpus."""
  stored = run_dir.read_corpus_hashes(workdir)
  for name, value in _select_hashes(corpus_manifest).items():
    if stored[name] != value:
      raise InputError(
        f'the run in {workdir}',
        f'{name} {stored[name][:12]} in the run, {value[:12]} in {folder}',
        'give the corpus that the run started with, or another --workdir',
      )
  if not paths.is_same(stored['corpus_folder'], str(folder)):
    progress.log(f'the corpus of {workdir} moved from {stored["corpus_folder"]} to {folder}')
    manifest = files.read_object(workdir / run_dir.MANIFEST, f'the manifest of {workdir}')
    files.write_json(workdir / run_dir.MANIFEST, manifest | run_dir.name_corpus(workdir, folder))


def _write_manifest(
  config: RunConfig,
  workdir: epath.Path,
  folder: epath.Path,
  corpus_manifest: Mapping[str, Any],
  origin: Mapping[str, Any],
) -> None:
  """Writes the manifest and the tokenizer of a run."""
  hashes = _select_hashes(corpus_manifest)
  path = files.resolve_inside(
    folder, corpus_manifest['tokenizer']['file'], f'the tokenizer of {folder}'
  )
  if not path.is_file() or files.hash_file(path) != hashes['tokenizer']:
    raise InputError(
      f'the tokenizer {path}',
      'missing, or another sha256 than in the manifest of the corpus',
      'build or copy the corpus again',
    )
  files.write_bytes(workdir / run_dir.TOKENIZER, files.read_bytes(path, f'the tokenizer {path}'))
  files.write_json(
    workdir / run_dir.MANIFEST,
    {
      **hashes,
      **run_dir.name_corpus(workdir, folder),
      **({run_dir.ORIGIN: dict(origin)} if origin else {}),
      'training': _measure_training_data(config, folder, corpus_manifest),
      'parameters': flops.count_parameters_by_part(config.model),
      'flops_per_row': flops.flops_per_row(config.model, config.largest_mask),
      'warmup': optimizer.warmup_steps(config.optimizer, config.num_steps),
      'jax': jax.__version__,
      'devices': [device.device_kind for device in jax.devices()],
    },
  )


def _measure_training_data(
  config: RunConfig, folder: epath.Path, corpus_manifest: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns rows and tokens of a run and of its corpus, and the token overlap with a task.

  The overlap is known only for a run on all rows of the corpus.
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
def lock_run(config: RunConfig, workdir: epath.Path) -> Iterator[Callable[[], None]]:
  """Locks the run directory in the first process, and yields a function that checks the lock.

  Stores the fields for the machine of the recipe.

  Raises:
    LockedError: Another process uses the directory.
  """
  with contextlib.ExitStack() as stack:
    with distributed.raise_together():
      check = lambda: None
      if distributed.is_primary():
        check = stack.enter_context(lock.hold_lock(workdir))
        run_dir.store_machine_fields(workdir, recipe.as_dict(config))
    yield check


def read_result(config: RunConfig, workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the result of a finished run, or None for an unfinished run.

  Raises:
    InputError: The result is damaged.
  """
  if not (workdir / run_dir.RESULT).exists():
    return None
  if distributed.is_primary():
    # A process that was killed after it wrote the result leaves its lock.
    lock.remove_stale_lock(workdir)
  progress.log(f'nothing to do: {workdir} is finished, with {config.num_steps:,} updates')
  return files.read_json(workdir / run_dir.RESULT, 'the result of the run')
