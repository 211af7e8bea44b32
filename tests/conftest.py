"""Sets up JAX for all tests and defines the marker `slow` and shared fixtures.

JAX gets eight CPU devices, so that all machines run the sharded tests without an accelerator. The
environment variables for that must be set before JAX is imported. Implicit rank promotion is an
error.
"""

import fcntl
import gc
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

if 'jax' in sys.modules:
  raise RuntimeError(
    'jax was imported before tests/conftest.py could set its devices: '
    'disable the pytest plugin that imports jax'
  )
os.environ['JAX_PLATFORMS'] = 'cpu'
# Most tests compile a program and run it once. These flags divide the time of compilation by ten:
# LLVM does not optimize, XLA writes the older form of fused loops, and a program is one module.
# tests/golden also compiles with the defaults of users.
XLA_FLAGS = (
  '--xla_force_host_platform_device_count=8',
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)
os.environ['XLA_FLAGS'] = ' '.join((os.environ.get('XLA_FLAGS', ''), *XLA_FLAGS)).strip()

# A shell starts background processes with SIGINT ignored, and nohup ignores SIGHUP. Tests of signals
# need the defaults.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
  signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
ROOT = pathlib.Path(__file__).resolve().parent.parent
# Tests and later runs share compiled programs, and the cache of the user stays as it is.
jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'compiled'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
# Files with the longest tests.
LONG_FILES = (
  'test_distributed.py',
  'test_pretrain.py',
  'test_docs.py',
  'test_sweep.py',
  'test_limits.py',
  'test_end_to_end.py',
  'test_examples.py',
  'test_python_api.py',
  'test_quickstart.py',
  'test_program.py',
  'test_pretrained.py',
  'test_encoder.py',
  'test_finetune.py',
  'test_train_step.py',
)


def pytest_addoption(parser: pytest.Parser) -> None:
  """Adds `--all`."""
  parser.addoption('--all', action='store_true', help='also run tests marked slow')


def pytest_configure(config: pytest.Config) -> None:
  """Declares the marker; --strict-markers refuses undeclared markers."""
  config.addinivalue_line('markers', 'slow: takes more than half a minute; runs only with --all')


def pytest_collection_finish() -> None:
  """Collects garbage less often, and never visits modules and tests again.

  Tracing allocates many objects. Without this, two files of tests took 1.1 times the CPU time.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Starts with the longest files, and skips tests marked slow unless --all is set.

  pytest-xdist gives whole files to processes, so a long file at the end would occupy one of them.
  """
  items.sort(key=lambda item: item.path.name not in LONG_FILES)
  if config.getoption('--all'):
    return
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(pytest.mark.skip(reason='slow: add --all to run it'))


@pytest.fixture(scope='session')
def data() -> pathlib.Path:
  """Returns the folder of real text and labelled sets; skips the test if it does not exist."""
  folder = pathlib.Path(os.environ.get('MINILM_DATA') or ROOT.parent / 'shared' / 'data')
  if not folder.is_dir():
    pytest.skip(f'needs the data folder; {folder} does not exist: set MINILM_DATA')
  return folder


@pytest.fixture(scope='module')
def without_compilation_cache() -> Iterator[None]:
  """Compiles without the cache, as `minilm preflight` does for absent devices."""
  from minilm_jax.bench import timing

  with timing.disable_compilation_cache():
    yield


@pytest.fixture(scope='module')
def share_programs() -> Iterator[None]:
  """Lets pre-training runs of one program share what is compiled."""
  from minilm_jax.training import pretrain, run
  from tests.shared_programs import cache_programs

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'build_program', cache_programs())
    patch.setattr(pretrain, 'compile_chunk', lambda config, program, rows: program.chunk)
    yield


@pytest.fixture(scope='module')
def few_microworld_examples() -> Iterator[None]:
  """Gives each task of the microworld a tenth of its examples."""
  from minilm_jax.tasks import loading

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loading, 'MICROWORLD_SIZES', {'train': 400, 'validation': 100, 'test': 100})
    yield


@pytest.fixture(scope='session')
def transformers() -> Any:
  """Returns the library on one thread; skips the test without PyTorch or the library."""
  torch = pytest.importorskip('torch', reason='needs PyTorch, which is of the extra [hf]')
  torch.set_num_threads(1)
  return pytest.importorskip(
    'transformers', reason='needs transformers, which is of the extra [hf]'
  )


BuildOnce = Callable[[str, Callable[[pathlib.Path], object]], pathlib.Path]


@pytest.fixture(scope='session')
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
  """Returns a function that builds a folder once for all processes of pytest-xdist."""
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent

  def build(name: str, create: Callable[[pathlib.Path], object]) -> pathlib.Path:
    with (folder / f'{name}.lock').open('a+') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      lock.seek(0)
      if not lock.read():
        create(folder / name)
        lock.write('built')
    return folder / name

  return build


@pytest.fixture(scope='session')
def tiny_corpus(build_once: BuildOnce) -> pathlib.Path:
  """Returns a microworld corpus with rows of 64 tokens and 512 pieces; tests must not change it."""
  from configs import tiny
  from minilm_jax.core import recipe
  from minilm_jax.data import build

  config = tiny.get_config('corpus')
  config.documents.sources = 'microworld:800'
  config.workers = 1
  resolved = recipe.resolve(config, 'corpus')
  return build_once('corpus', lambda folder: build.build_corpus(resolved, folder))


@pytest.fixture(scope='session')
def tiny_tokenizer(tiny_corpus: pathlib.Path) -> Any:
  """Returns the tokenizer of `tiny_corpus` and `tiny_run`."""
  from minilm_jax.data import tokenizer

  return tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model')


@pytest.fixture(scope='session')
def tiny_run(
  tiny_corpus: pathlib.Path, build_once: BuildOnce, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """Returns a pre-training run of eight steps on `tiny_corpus`; tests must not change it.

  The vocabulary of the model is larger than that of the tokenizer. The weights are barely trained,
  but differ from fresh weights.
  """
  from minilm_jax.training import run
  from tests.tiny_config import make_run_config

  changes = {
    'num_steps': 8,
    'batch_size': 8,
    'model.vocab_size': 520,
    'model.flops_heads': 2,
    'model.dropout': 0.0,
    'optimizer.epsilon': 1e-8,
    'eval.rows': 1_000_000,
  }
  config = make_run_config(tiny_corpus, **changes)
  # Each process has a copy, because commands lock the run.
  run_folder = build_once('tiny', lambda folder: run.pretrain(config, folder))
  return shutil.copytree(run_folder, tmp_path_factory.mktemp('runs') / 'tiny')


@pytest.fixture(scope='session')
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a TFDS folder with two versions of the data set `tiny`.

  Version 10.0.0 has array records; version 9.0.0 claims TFRecords, which need TensorFlow.
  """
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder):
    """Has three examples."""

    VERSION = tfds.core.Version('10.0.0')

    def _info(self):
      features = tfds.features.FeaturesDict(
        {
          'text': tfds.features.Text(),
          'label': tfds.features.ClassLabel(names=['no', 'yes']),
          'words': tfds.features.Sequence(tfds.features.Text()),
        }
      )
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {
        'train': (
          (i, {'text': f'größe {i}', 'label': i % 2, 'words': ['a', 'b']}) for i in range(3)
        )
      }

    def _generate_examples(self):
      raise NotImplementedError

  folder = tmp_path_factory.mktemp('tfds')
  builder = Tiny(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  old = folder / 'tiny' / '9.0.0'
  old.mkdir()
  for path in (folder / 'tiny' / '10.0.0').glob('*.json'):
    (old / path.name).write_text(
      path.read_text().replace('10.0.0', '9.0.0').replace('array_record', 'tfrecord')
    )
  return folder
