"""Sets up JAX for all tests and defines the marker `slow` and shared fixtures.

JAX gets eight CPU devices, so that all machines run the sharded tests without an accelerator. The
environment variables for that must be set before JAX is imported. Implicit rank promotion is an
error.
"""

import os
import pathlib
import signal
import sys
from collections.abc import Iterator

if 'jax' in sys.modules:
  raise RuntimeError(
    'jax was imported before tests/conftest.py could set its devices: '
    'disable the pytest plugin that imports jax'
  )
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip()
)

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


def pytest_addoption(parser: pytest.Parser) -> None:
  """Adds `--all`."""
  parser.addoption('--all', action='store_true', help='also run tests marked slow')


def pytest_configure(config: pytest.Config) -> None:
  """Declares the marker; --strict-markers refuses undeclared markers."""
  config.addinivalue_line('markers', 'slow: takes more than half a minute; runs only with --all')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Skips tests marked slow unless --all is set."""
  if config.getoption('--all'):
    return
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(pytest.mark.skip(reason='slow: add --all to run it'))


@pytest.fixture(scope='module')
def fast_compile() -> Iterator[None]:
  """Compiles with little optimization in the tests of a module, and clears cached programs.

  A module requests it with `pytestmark = pytest.mark.usefixtures('fast_compile')`.
  """
  from minilm_jax.tasks import classifier, finetune_step

  def clear() -> None:
    finetune_step.build_finetune_program.cache_clear()
    classifier.build_forward.cache_clear()

  clear()
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  clear()


@pytest.fixture(scope='session')
def data() -> pathlib.Path:
  """Returns the folder of real text and labelled sets; skips the test if it does not exist."""
  folder = pathlib.Path(os.environ.get('MINILM_DATA') or ROOT.parent / 'shared' / 'data')
  if not folder.is_dir():
    pytest.skip(f'needs the data folder; {folder} does not exist: set MINILM_DATA')
  return folder


@pytest.fixture(scope='session')
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a microworld corpus with rows of 64 tokens and 512 pieces; tests must not change it."""
  from configs import tiny
  from minilm_jax.core import recipe
  from minilm_jax.data import build

  config = tiny.get_config('corpus')
  config.documents.sources = 'microworld:800'
  config.workers = 1
  folder = tmp_path_factory.mktemp('tiny') / 'corpus'
  return pathlib.Path(build.build_corpus(recipe.resolve(config, 'corpus'), folder))


@pytest.fixture(scope='session')
def tiny_run(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a pre-training run of eight steps on `tiny_corpus`; tests must not change it.

  The vocabulary of the model is larger than that of the tokenizer. The weights are barely trained,
  but differ from fresh weights.
  """
  from configs import tiny
  from minilm_jax.core import recipe
  from minilm_jax.training import run

  config = tiny.get_config()
  config.corpus = str(tiny_corpus)
  config.update(num_steps=8, batch_size=8)
  config.model.update(
    vocab_size=520,
    embedding_size=16,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    flops_heads=2,
  )
  config.eval.update(every=4, rows=1_000_000)
  config.checkpoint.every, config.log.every, config.mesh.data = 4, 2, 1
  folder = tmp_path_factory.mktemp('runs') / 'tiny'
  run.pretrain(recipe.resolve(config, 'pretrain'), folder)
  return folder


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
