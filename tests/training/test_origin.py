"""A run starts with the weights of another run, which must fit and stay unchanged."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import flatten
from minilm_jax.training import checkpoint, pretrained, program, run, run_setup
from minilm_jax.training.origin import Origin, check_origin, parse_origin, resolve_origin
from tests.tiny_config import CONVOLUTION, make_run_config

LARGEST_SEED = 2**32 - 1
FITTING = {'model.vocab_size': 520}  # as in `tiny_run`


@pytest.mark.parametrize(
  'changes, has_optimizer',
  [
    ({'model.dropout': 0.3, 'model.dtype': 'bfloat16', 'model.remat': True}, True),
    ({'model.max_length': 128, 'population.members': 3}, True),  # rotary positions have no table
    ({'optimizer.algorithm': 'muon', 'optimizer.clip': 0.0}, False),
  ],
)
def test_a_model_with_other_training_fits_its_origin(
  changes: dict[str, Any], has_optimizer: bool, tiny_run, tiny_corpus
):
  config = make_run_config(tiny_corpus, **{**FITTING, **changes})
  origin = Origin(str(tiny_run), None, has_optimizer)
  assert check_origin(config, origin) == 8


@pytest.mark.parametrize(
  'changes, step, found, remedy',
  [
    ({'model.vocab_size': 640}, 8, 'model.vocab_size=520 ', '--config.model.vocab_size=520'),
    (
      {'model.embedding_size': 32, 'model.hidden_size': 32},
      8,
      'model.embedding_size=16 ',
      '--config.model.embedding_size=16 --config.model.hidden_size=16',
    ),
    ({'model.num_heads': 4}, None, 'model.num_heads=2 ', '--config.model.num_heads=2'),
    ({'model.norm': 'post'}, None, 'model.norm=pre ', '--config.model.norm=pre'),
    (
      {**CONVOLUTION},
      None,
      'model.convolutions=0 ',
      '--config.model.convolutions=0 --config.model.kernel= --config.model.channels=0',
    ),
    ({'optimizer.algorithm': 'muon'}, 8, 'optimizer.algorithm=adamw', '--init_optimizer'),
    ({}, 6, 'steps 4, 8', '@8'),
  ],
)
def test_a_model_that_does_not_fit_its_origin_is_refused(
  changes: dict[str, Any],
  step: int | None,
  found: str,
  remedy: str,
  tiny_run,
  tiny_corpus,
  tmp_path,
):
  """The error names the first field and lists all of them; nothing is written."""
  config = make_run_config(tiny_corpus, **{**FITTING, **changes})
  name = str(tiny_run) if step is None else f'{tiny_run}@{step}'
  with pytest.raises(InputError) as refused:
    run.pretrain(config, tmp_path / 'run', init_from=name, init_optimizer=True)
  assert found in refused.value.found and remedy in refused.value.remedy
  assert not (tmp_path / 'run').exists()


def test_rows_longer_than_a_table_of_positions_are_refused(tiny_run, tiny_corpus, tmp_path):
  folder = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'learned'))
  stored = json.loads((folder / run_dir.CONFIG).read_text())
  stored['model']['positions'] = 'learned'
  (folder / run_dir.CONFIG).write_text(json.dumps(stored))
  changes = {**FITTING, 'model.positions': 'learned'}
  origin = Origin(str(folder))
  assert check_origin(make_run_config(tiny_corpus, **changes), origin) == 8
  with pytest.raises(InputError, match='model.max_length=64 '):
    check_origin(make_run_config(tiny_corpus, **changes, **{'model.max_length': 128}), origin)


def test_an_origin_is_intact_and_of_one_model(tiny_run, tiny_corpus, tmp_path):
  config = make_run_config(tiny_corpus, **FITTING)
  together = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'together'))
  stored = json.loads((together / run_dir.CONFIG).read_text())
  stored['population']['members'] = 2
  (together / run_dir.CONFIG).write_text(json.dumps(stored))
  with pytest.raises(InputError, match=f'extract-member --checkpoint={together}'):
    check_origin(config, Origin(str(together)))
  with pytest.raises(InputError, match=str(tmp_path / 'none')):
    check_origin(config, Origin(str(tmp_path / 'none')))
  folder = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'damaged'))
  next(checkpoint.step_folder(folder, 8).glob('default/d/*')).write_bytes(b'')
  with pytest.raises(InputError, match='0 bytes'):
    check_origin(config, Origin(str(folder)))
  assert check_origin(config, Origin(str(folder), 4)) == 4


def test_a_name_of_an_origin_has_one_step(tmp_path):
  assert parse_origin('') is None
  assert parse_origin('runs/a@40', True) == Origin('runs/a', 40, True)
  assert parse_origin('runs/a') == Origin('runs/a')
  (tmp_path / 'a@40').mkdir()
  assert parse_origin(f'{tmp_path}/a@40') == Origin(f'{tmp_path}/a@40')
  for name, has_optimizer in (('', True), ('runs/a@all', False)):
    with pytest.raises(InputError):
      parse_origin(name, has_optimizer)


@pytest.fixture(scope='module')
def started_run(tiny_run, tiny_corpus, tmp_path_factory) -> pathlib.Path:
  """A run from step 8 of `tiny_run` with its optimizer, before its first step."""
  folder = tmp_path_factory.mktemp('started') / 'run'
  config = make_run_config(tiny_corpus, seed=LARGEST_SEED, **{'model.vocab_size': 520})
  record = resolve_origin(config, folder, Origin(str(tiny_run), None, True))
  run_setup.open_or_create_run(config, folder, record)
  return folder


def test_moments_come_from_the_origin(started_run, tiny_run, tiny_corpus, monkeypatch):
  """Counts of updates belong to moments, apart from that of the schedule."""
  config = make_run_config(tiny_corpus, seed=LARGEST_SEED, **{'model.vocab_size': 520})
  state, _ = run.restore_or_init(config, epath.Path(started_run), program.build_program(config))
  shapes = program.build_program(pretrained.load_config(tiny_run)).shapes
  saved = checkpoint.restore(tiny_run, shapes, 8)
  expected, counts = flatten(saved.optimizer), []
  for name, leaf in flatten(state.optimizer).items():
    if name.endswith('count'):
      counts.append((int(leaf), int(expected[name])))
    else:
      np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
  assert sorted(counts) == [(0, 8), (8, 8)] and int(state.step) == 0


@pytest.mark.parametrize(
  'make',
  [
    lambda run: Origin(f'{run}/../{run.name}', None, True),
    lambda run: Origin(str(run), 8, True),
  ],
)
def test_the_origin_of_a_resumed_run_may_have_other_names(
  make: Any, started_run, tiny_run, tiny_corpus
):
  config = make_run_config(tiny_corpus)  # fits neither origin nor run, and is not compared
  assert resolve_origin(config, started_run, make(tiny_run)) == {}
  assert resolve_origin(config, started_run, None) == {}


@pytest.mark.parametrize(
  'make, value',
  [
    (lambda run: Origin(str(run), 4, True), '@8 with its optimizer'),
    (lambda run: Origin(str(run), 8), '@8 with its optimizer'),
    (lambda run: Origin(str(run.parent), 8, True), 'with its optimizer'),
  ],
)
def test_another_origin_is_refused(make: Any, value: str, started_run, tiny_run, tiny_corpus):
  config = make_run_config(tiny_corpus, **{'model.vocab_size': 520})
  with pytest.raises(InputError) as refused:
    resolve_origin(config, started_run, make(tiny_run))
  assert value in refused.value.found and str(started_run) in refused.value.asked
  with pytest.raises(InputError, match='random weights'):
    resolve_origin(config, tiny_run, make(tiny_run))


def test_changed_weights_of_an_origin_are_refused(started_run, tiny_corpus, tmp_path):
  folder = pathlib.Path(shutil.copytree(started_run, tmp_path / 'run'))
  manifest = files.read_json(folder / run_dir.MANIFEST, 'manifest')
  files.write_json(
    folder / run_dir.MANIFEST,
    manifest | {'origin': manifest['origin'] | {'weights': '0' * 64, 'checkpoint_link': ''}},
  )
  config = make_run_config(tiny_corpus, **{'model.vocab_size': 520})
  with pytest.raises(InputError, match='0' * 12):
    run.restore_or_init(config, epath.Path(folder), program.build_program(config))
