"""Runs are loaded in one call; a member of a population equals its solo run, and can become one."""

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.core import lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.evaluation import evaluate, inference
from minilm_jax.model.initialization import flatten
from minilm_jax.training import batches, checkpoint, population, pretrained, run
from minilm_jax.training.program import build_program, step_count
from tests.tiny_config import ALTERNATIVE_PARTS, CONVOLUTION, UPDATES, make_run_config

DIFFERENT = {
  'population.members': 4,
  'population.learning_rates': '1e-3,2e-3,1e-3,1e-3',
  'population.weight_decays': '0.01,0.01,0.1,0.01',
  'population.mask_rates': '0.15,0.15,0.15,0.3',
  'population.mask_randoms': '0,0,0,0.1',
  'population.mask_keeps': '0,0,0,0.2',
  'eval.rows': 1000,
}


@pytest.fixture(scope='module')
def together(tiny_corpus, tmp_path_factory) -> pathlib.Path:
  """A run of four members that differ in all settings, two on a device."""
  folder = tmp_path_factory.mktemp('population')
  run.pretrain(make_run_config(tiny_corpus, **DIFFERENT, **{'mesh.population': 2}), folder)
  return folder


def lines(folder: pathlib.Path, number: int | None = None) -> list[dict[str, Any]]:
  """Returns the log of a solo run, or of a member as if alone, without times."""
  log_lines = run_dir.read_lines(folder / run_dir.METRICS)
  return [
    {
      key: value
      for key, value in line.items()
      if key not in ('seconds', 'tokens_per_second', 'member', 'flops')
    }
    for line in log_lines
    if number is None or line['member'] == number
  ]


def check_equal_lines(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
  assert [line.pop('split') for line in lines] == [line.pop('split') for line in expected]
  for line, other in zip(lines, expected, strict=True):
    assert line == pytest.approx(other, rel=1e-4)


def test_log_and_result_have_the_members(together):
  all_lines = list(run_dir.read_lines(together / run_dir.METRICS))
  assert [line['member'] for line in all_lines[:5]] == [0, 1, 2, 3, 0]
  assert len({json.dumps(lines(together, number)) for number in range(4)}) == 4
  result = json.loads((together / run_dir.RESULT).read_text())
  assert [member['seed'] for member in result['members']] == [0, 1, 2, 3] and result[
    'updates'
  ] == UPDATES
  assert all(member['test_loss'] > 0 for member in result['members'])
  # The count of the manifest is that of the log, for the largest mask rate of a member.
  manifest = json.loads((together / run_dir.MANIFEST).read_text())
  rows = all_lines[-1]['step'] * make_run_config(pathlib.Path('corpus')).batch_size
  assert all_lines[-1]['flops'] == manifest['flops_per_row']['actual'] * rows


@pytest.mark.parametrize('number', [1, 3])
def test_a_member_is_its_solo_run(number: int, together, tiny_corpus, tmp_path):
  """Rows, masks and dropped units are equal, also if another member has more masked positions."""
  config = make_run_config(tiny_corpus, **DIFFERENT)
  solo_config = population.member_configs(config)[number]
  assert solo_config.population.members == 1 and solo_config.seed == number
  run.pretrain(solo_config, tmp_path)
  check_equal_lines(lines(tmp_path), lines(together, number))
  pretrained.extract_member(together, number, tmp_path / 'extracted')
  shapes = build_program(solo_config).shapes
  state, expected = (
    flatten(checkpoint.restore(folder, shapes, UPDATES).model)
    for folder in (tmp_path / 'extracted', tmp_path)
  )
  for name, leaf in expected.items():
    np.testing.assert_allclose(state[name], leaf, atol=1e-4, err_msg=name)


def test_strategies_differ_only_by_roundings(tiny_corpus):
  states = []
  for strategy in ('map', 'vmap'):
    changes = {
      **DIFFERENT,
      **ALTERNATIVE_PARTS,
      'population.strategy': strategy,
      'mesh.population': 1,
    }
    program = build_program(make_run_config(tiny_corpus, **changes))
    rows = batches.load_resident(program, tiny_corpus, 'train')
    states.append(jax.device_get(program.chunk(program.init(), rows, step_count(program, 3))[:2]))
  (state, sums), (other, others) = states
  np.testing.assert_array_equal(sums['masked'], others['masked'])
  np.testing.assert_allclose(sums['loss'], others['loss'], rtol=1e-5)
  for name, leaf in flatten(state.model).items():
    np.testing.assert_allclose(flatten(other.model)[name], leaf, atol=5e-5, err_msg=name)


def test_a_member_has_the_running_statistics_of_its_solo_run(tiny_corpus):
  """Two members share a device with `vmap`, or have four devices each."""
  changes, trained = (
    {**CONVOLUTION, 'population.members': 2, 'population.learning_rates': '1e-3,3e-3'},
    [],
  )
  solo = population.member_configs(make_run_config(tiny_corpus, **changes))
  for config in (
    *solo,
    *(
      make_run_config(tiny_corpus, **changes, **mesh)
      for mesh in (
        {'population.strategy': 'vmap', 'mesh.population': 1},
        {'mesh.population': 2, 'mesh.data': 4},
      )
    ),
  ):
    program = build_program(config)
    rows = batches.load_resident(program, tiny_corpus, 'train')
    trained.append(jax.device_get(program.chunk(program.init(), rows, step_count(program, 3))[0]))
  *solo_states, vmap, spread = trained
  for number, state in enumerate(solo_states):
    for members in (vmap, spread):
      member_state = flatten(population.select_member(members, number).model)
      for name, leaf in flatten(state.model).items():
        np.testing.assert_allclose(member_state[name], leaf, atol=5e-5, err_msg=name)
  means = [
    flatten(state.model)['encoder.convolution.layers.0.norm.running_mean'] for state in solo_states
  ]
  assert np.abs(means[0] - means[1]).max() > 1e-3


def test_an_extracted_member_is_a_finished_run(together, tiny_corpus, tmp_path):
  """Commands accept the extracted run and refuse the population."""
  extracted = pretrained.extract_member(together, 2, tmp_path)
  assert extracted == {'workdir': str(tmp_path), 'member': 2, 'seed': 2, 'step': UPDATES}
  config = make_run_config(tiny_corpus, **DIFFERENT, **{'mesh.population': 2})
  solo_config = population.member_configs(config)[2]
  assert run.pretrain(solo_config, tmp_path)['updates'] == UPDATES
  metrics = evaluate.evaluate_loss(tmp_path, '', 'test')
  assert metrics['loss'] == pytest.approx(
    json.loads((together / run_dir.RESULT).read_text())['members'][2]['test_loss'], rel=1e-4
  )
  assert inference.LanguageModel(tmp_path).fill_mask('the dog <mask> .', 1)
  with pytest.raises(InputError, match=f'extract-member --checkpoint={together}'):
    evaluate.evaluate_loss(together, '', 'test')


def test_a_member_that_was_extracted_early_continues(tiny_corpus, tmp_path, together):
  """The extracted run ends like the member, although another member has more masked positions."""
  config = make_run_config(tiny_corpus, **DIFFERENT, **{'mesh.population': 2})
  shutil.copytree(together, tmp_path / 'all')
  (tmp_path / 'all' / run_dir.RESULT).unlink()  # as if interrupted before the result
  last = tmp_path / 'all' / checkpoint.FOLDER / str(UPDATES)
  last.rename(last.with_name('renamed'))
  folder = tmp_path / 'extracted'
  with lock.hold_lock(folder), pytest.raises(lock.LockedError):
    pretrained.extract_member(tmp_path / 'all', 1, folder)
  assert pretrained.extract_member(tmp_path / 'all', 1, folder)['step'] == 8
  run.pretrain(population.member_configs(config)[1], folder)
  check_equal_lines(lines(folder), lines(together, 1))
  with pytest.raises(InputError, match=f'the checkpoint of update {UPDATES}'):
    pretrained.extract_member(tmp_path / 'all', 1, folder)
  check_equal_lines(lines(folder), lines(together, 1))


def test_a_run_is_loaded_in_one_call(tiny_run):
  """`load` returns the model or the encoder of a step, with changed fields."""
  model_run = pretrained.load(tiny_run)
  assert model_run.step == 8 and model_run.config == pretrained.load_config(tiny_run)
  assert model_run.tokenizer.sha256 == run_dir.read_corpus_hashes(tiny_run)['tokenizer']
  encoder_run = pretrained.load(tiny_run, 8, 'encoder', changes={'dropout': 0.5})
  assert encoder_run.config.model.dropout == 0.5 != model_run.config.model.dropout
  model = flatten(model_run.model)
  for name, leaf in flatten(encoder_run.model).items():
    np.testing.assert_array_equal(leaf, model[f'encoder.{name}'])
  earlier = flatten(pretrained.load(tiny_run, 4, 'encoder').model)
  assert any((leaf != model[f'encoder.{name}']).any() for name, leaf in earlier.items())


def test_a_population_is_loaded_if_allowed(together):
  """Every array has a leading axis of members on the devices of the mesh."""
  with pytest.raises(InputError):
    pretrained.load(together, part='encoder')
  mesh = population.make_member_mesh(4)
  members = pretrained.load(together, part='encoder', mesh=mesh, allow_population=True)
  single = flatten(pretrained.load(together, part='encoder', allow_population=True).model)
  for name, leaf in flatten(members.model).items():
    assert leaf.shape[0] == 4 and leaf.sharding == population.member_sharding(mesh, 'map')
    np.testing.assert_array_equal(leaf, single[name])


@pytest.mark.parametrize('number', [-1, 4])
def test_a_missing_member_is_refused(number: int, together, tmp_path):
  with pytest.raises(InputError, match='--member from 0 to 3'):
    pretrained.extract_member(together, number, tmp_path / 'none')
  assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('name', ['member', 'step', 'tokens'])
def test_a_log_line_without_a_field_is_refused(name: str, together, tmp_path):
  source = shutil.copytree(together, tmp_path / 'all')
  records = list(run_dir.read_lines(source / run_dir.METRICS))
  del records[1][name]
  run_dir.write_lines(source / run_dir.METRICS, records)
  with pytest.raises(InputError, match=f'line 2 without {name}'):
    pretrained.extract_member(source, 1, tmp_path / 'one')


def test_a_run_of_one_model_has_no_members(tiny_run, tmp_path):
  with pytest.raises(InputError, match='population.members=1'):
    pretrained.extract_member(tiny_run, 0, tmp_path / 'none')


@pytest.mark.parametrize(
  'changes, expected_value',
  [
    ({'population.members': 3, 'mesh.population': 2}, 'mesh.population=2'),
    ({'population.members': 3, 'population.learning_rates': '1e-3,2e-3'}, 'learning_rates'),
    ({'population.members': 2, 'population.mask_rates': '0.1,1.5'}, 'population.mask_rates=1.5'),
    ({'population.members': 16, 'mesh.population': 16}, '8 devices'),
  ],
)
def test_a_population_that_does_not_fit_is_refused(
  changes: dict[str, Any], expected_value: str, tiny_corpus
):
  with pytest.raises(InputError) as refused:
    build_program(make_run_config(tiny_corpus, **changes))
  assert expected_value in str(refused.value)
