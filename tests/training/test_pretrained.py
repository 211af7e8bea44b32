"""Runs are loaded in one call; a member of a population equals its solo run, and becomes one."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.core import lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.evaluation import evaluate, inference
from minilm_jax.training import batches, checkpoint, metrics_log, population, pretrain, pretrained
from minilm_jax.training.checkpoint import flatten
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


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def together(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Four members that differ in all they may differ in, two on a device."""
  folder = tmp_path_factory.mktemp('population')
  pretrain.pretrain(make_run_config(tiny_corpus, **DIFFERENT, **{'mesh.population': 2}), folder)
  return folder


def lines(folder: pathlib.Path, number: int | None = None) -> list[dict[str, Any]]:
  """The log of a solo run, or what it would be, without times."""
  found = run_dir.read_lines(folder / run_dir.METRICS)
  return [
    {
      key: value
      for key, value in line.items()
      if key not in ('seconds', 'tokens_per_second', 'member', 'flops')
    }
    for line in found
    if number is None or line['member'] == number
  ]


def same_lines(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
  """To a ten-thousandth."""
  assert [line.pop('split') for line in found] == [line.pop('split') for line in expected]
  for line, other in zip(found, expected, strict=True):
    assert line == pytest.approx(other, rel=1e-4)


def test_a_stream_of_metrics_names_its_members(together: pathlib.Path):
  found = list(run_dir.read_lines(together / run_dir.METRICS))
  assert [line['member'] for line in found[:5]] == [0, 1, 2, 3, 0]
  assert len({json.dumps(lines(together, number)) for number in range(4)}) == 4
  result = json.loads((together / run_dir.RESULT).read_text())
  assert [one['seed'] for one in result['members']] == [0, 1, 2, 3] and result['updates'] == UPDATES
  assert all(one['test_loss'] > 0 for one in result['members'])


@pytest.mark.parametrize('number', [1, 3])
def test_a_member_is_its_solo_run(
  number: int, together: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """To roundings: rows, masks and dropped units are the same, also where another member has more
  masked positions.
  """
  config = make_run_config(tiny_corpus, **DIFFERENT)
  alone = population.member_configs(config)[number]
  assert alone.population.members == 1 and alone.seed == number
  pretrain.pretrain(alone, tmp_path)
  same_lines(lines(tmp_path), lines(together, number))
  pretrained.extract_member(together, number, tmp_path / 'taken')
  shapes = build_program(alone).shapes
  found, expected = (
    flatten(checkpoint.restore(folder, shapes, UPDATES).model)
    for folder in (tmp_path / 'taken', tmp_path)
  )
  for name, leaf in expected.items():
    np.testing.assert_allclose(found[name], leaf, atol=1e-4, err_msg=name)


def test_how_members_share_a_device_changes_nothing_but_roundings(tiny_corpus: pathlib.Path):
  found = []
  for lift in ('map', 'vmap'):
    changes = {**DIFFERENT, **ALTERNATIVE_PARTS, 'population.strategy': lift, 'mesh.population': 1}
    program = build_program(make_run_config(tiny_corpus, **changes))
    rows = batches.load_resident(program, tiny_corpus, 'train')
    found.append(jax.device_get(program.chunk(program.init(), rows, step_count(program, 3))[:2]))
  (state, sums), (other, others) = found
  np.testing.assert_array_equal(sums['masked'], others['masked'])
  np.testing.assert_allclose(sums['loss'], others['loss'], rtol=1e-5)
  for name, leaf in flatten(state.model).items():
    np.testing.assert_allclose(flatten(other.model)[name], leaf, atol=5e-5, err_msg=name)


def test_a_member_has_the_running_statistics_of_its_solo_run(tiny_corpus: pathlib.Path):
  """Where both are in each operation of one device, and where each is spread over devices of its
  own."""
  changes, found = (
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
    found.append(jax.device_get(program.chunk(program.init(), rows, step_count(program, 3))[0]))
  *alone, vmap, spread = found
  for number, state in enumerate(alone):
    for together in (vmap, spread):
      member_state = flatten(population.select_member(together, number).model)
      for name, leaf in flatten(state.model).items():
        np.testing.assert_allclose(member_state[name], leaf, atol=5e-5, err_msg=name)
  means = [
    flatten(state.model)['encoder.convolution.layers.0.norm.running_mean'] for state in alone
  ]
  assert np.abs(means[0] - means[1]).max() > 1e-3


def test_a_member_that_was_taken_out_is_a_run(
  together: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """Finished like the population; every verb takes it, where the population itself is refused by
  name."""
  taken = pretrained.extract_member(together, 2, tmp_path)
  assert taken == {'workdir': str(tmp_path), 'member': 2, 'seed': 2, 'step': UPDATES}
  alone = population.member_configs(
    make_run_config(tiny_corpus, **DIFFERENT, **{'mesh.population': 2})
  )[2]
  assert pretrain.pretrain(alone, tmp_path)['updates'] == UPDATES  # nothing to do
  judged = evaluate.evaluate_loss(tmp_path, '', 'test')
  assert judged['loss'] == pytest.approx(
    json.loads((together / run_dir.RESULT).read_text())['members'][2]['test_loss'], rel=1e-4
  )
  assert inference.fill_mask(tmp_path, 'the dog <mask> .', 1)
  with pytest.raises(InputError, match='population of 4'):
    evaluate.evaluate_loss(together, '', 'test')


def test_a_member_that_was_taken_out_early_goes_on_alone(
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
  together: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
):
  """And ends where it would have ended among the others."""
  config = make_run_config(tiny_corpus, **DIFFERENT, **{'mesh.population': 2})

  def stop(*_: Any) -> None:
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(metrics_log, 'write_result', stop)
    with pytest.raises(KeyboardInterrupt):
      pretrain.pretrain(config, tmp_path / 'all')
  last = tmp_path / 'all' / checkpoint.FOLDER / str(UPDATES)
  last.rename(last.with_name('put-away'))
  with lock.hold_lock(tmp_path / 'one'), pytest.raises(lock.LockedError):
    pretrained.extract_member(tmp_path / 'all', 1, tmp_path / 'one')
  assert pretrained.extract_member(tmp_path / 'all', 1, tmp_path / 'one')['step'] == 8
  pretrain.pretrain(population.member_configs(config)[1], tmp_path / 'one')
  same_lines(lines(tmp_path / 'one'), lines(together, 1))


def test_a_run_is_loaded_in_one_call(tiny_run: pathlib.Path):
  """The model of the last checkpoint, or its encoder at any step, with other fields if asked."""
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


def test_a_population_is_loaded_where_it_is_allowed(together: pathlib.Path):
  """Every array has a leading axis of members, on the devices of a mesh."""
  with pytest.raises(InputError):
    pretrained.load(together, part='encoder')
  mesh = population.make_member_mesh(4)
  members = pretrained.load(together, part='encoder', mesh=mesh, allow_population=True)
  single = flatten(pretrained.load(together, part='encoder', allow_population=True).model)
  for name, leaf in flatten(members.model).items():
    assert leaf.shape[0] == 4 and leaf.sharding == population.member_sharding(mesh, 'map')
    np.testing.assert_array_equal(leaf, single[name])


@pytest.mark.parametrize('number', [-1, 4])
def test_a_member_that_is_not_there_is_refused(
  number: int, together: pathlib.Path, tmp_path: pathlib.Path
):
  with pytest.raises(InputError, match='give --member from 0 to 3'):
    pretrained.extract_member(together, number, tmp_path / 'none')
  assert not (tmp_path / 'none').exists()


def test_a_run_of_one_model_has_no_members(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='a run of one model'):
    pretrained.extract_member(tiny_run, 0, tmp_path / 'none')


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'population.members': 3, 'mesh.population': 2}, '3 members over mesh.population=2'),
    ({'population.members': 3, 'population.learning_rates': '1e-3,2e-3'}, '2 for 3 members'),
    ({'population.members': 2, 'population.mask_rates': '0.1,1.5'}, 'mask.rate=1.5'),
    ({'population.members': 16, 'mesh.population': 16}, '8 devices'),
  ],
)
def test_a_population_that_does_not_fit_is_refused(
  changes: dict[str, Any], said: str, tiny_corpus: pathlib.Path
):
  with pytest.raises(InputError) as refused:
    build_program(make_run_config(tiny_corpus, **changes))
  assert said in str(refused.value)
