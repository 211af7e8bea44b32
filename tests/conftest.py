"""What every test shares: eight devices on the CPU, strict shapes, the data folder, the marker
`slow`.

The environment is set before anything imports JAX, so that every machine runs the sharded tests and
none of them needs an accelerator.
"""

import os
import pathlib
import signal
import sys
from collections.abc import Iterator

if 'jax' in sys.modules:
  raise RuntimeError(
    'jax was imported before tests/conftest.py could set its devices: look for a pytest plugin that does'
  )
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip()
)

# a shell lets what it runs in the background ignore it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
  """Adds `--all`."""
  parser.addoption('--all', action='store_true', help='also run what is marked slow')


def pytest_configure(config: pytest.Config) -> None:
  """Names the marker, so that a misspelt one is an error."""
  config.addinivalue_line('markers', 'slow: takes more than half a minute; runs with --all')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Skips what is slow unless asked."""
  if config.getoption('--all'):
    return
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(pytest.mark.skip(reason='slow: add --all to run it'))


@pytest.fixture(scope='module')
def fast_compile() -> Iterator[None]:
  """Compiles with little optimization while the tests of a module run; the compiled programs are
  not kept.

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
  """The folder of real text and labelled sets; skips where there is none."""
  folder = pathlib.Path(os.environ.get('MINILM_DATA') or ROOT.parent / 'shared' / 'data')
  if not folder.is_dir():
    pytest.skip(f'needs the data folder, and there is none at {folder}: name one in MINILM_DATA')
  return folder


@pytest.fixture(scope='session')
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A corpus of the microworld, rows of 64 tokens in a vocabulary of 512; copy it before changing
  anything in it.
  """
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
  """A pre-training run of a few updates on `tiny_corpus`; copy it before changing anything in it.

  Its vocabulary is a little larger than the tokenizer's, its rows are as long as the corpus's, and
  what it has seen is too little for any purpose but to tell its weights from fresh ones.
  """
  from configs import tiny
  from minilm_jax.core import recipe
  from minilm_jax.training import pretrain

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
  pretrain.pretrain(recipe.resolve(config, 'pretrain'), folder)
  return folder


@pytest.fixture(scope='session')
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder with the data set `tiny` in two versions, the older one with records that need
  TensorFlow to read.
  """
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder):
    """Three rows."""

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
