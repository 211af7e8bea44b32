"""Competitors: PyTorch has the same parameters and logits; other recipes are refused."""

import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import paper1, tiny
from minilm_jax.bench import competitors, machine, pretrain_bench
from minilm_jax.core import recipe, rng
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model import flops, heads
from minilm_jax.model.initialization import path_name

TINY = {
  'batch_size': 4,
  'model.hidden_size': 16,
  'model.embedding_size': 8,
  'model.num_heads': 2,
  'model.intermediate_size': 24,
  'model.num_layers': 2,
  'model.vocab_size': 60,
  'model.max_length': 20,
  'mesh.data': 1,
}


def make_config(**changes: object) -> RunConfig:
  source = paper1.get_config()
  source.update_from_flattened_dict(TINY | changes)
  return recipe.resolve(source, 'pretrain')


@pytest.fixture
def pytorch():
  torch = pytest.importorskip('torch', reason='needs PyTorch, extra [peers]')
  from minilm_jax.bench import pytorch_model

  torch.set_num_threads(1)
  return pytorch_model


def make_rows(count: int = 16) -> np.ndarray:
  return np.random.default_rng(0).integers(5, 60, (count, 20), np.uint16)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('name', ['magic-bee-26', 'feasible-butterfly-9'])
def test_parameter_counts_are_equal(name: str, fused: bool, pytorch):
  model_config = recipe.resolve(paper1.get_config(name), 'pretrain').model
  model = pytorch.MaskedLanguageModel(model_config, fused)
  assert (
    sum(p.numel() for p in model.parameters())
    == flops.count_parameters_by_part(model_config)['total']
  )


@pytest.mark.parametrize('fused', [False, True])
def test_logits_of_equal_weights_are_equal(fused: bool, pytorch):
  import torch

  ours = heads.init_masked_language_model(make_config().model, rng.make_key(0, rng.Stream.INIT))
  model = pytorch.MaskedLanguageModel(make_config().model, fused).eval()
  names = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}
  state = {}
  for path, leaf in jax.tree.leaves_with_path(ours):
    stem, _, last = path_name(path).rpartition('.')
    state[f'{stem}.{names[last]}'] = torch.from_numpy(
      np.array(leaf.T if last == 'kernel' else leaf)
    )
  model.load_state_dict(state)
  tokens = make_rows(3).astype(np.int64)
  positions = np.random.default_rng(1).integers(0, 20, (3, 4))
  expected = jax.jit(lambda *inputs: ours(*inputs))(tokens, jnp.ones(tokens.shape, bool), positions)
  with torch.no_grad():
    everywhere = model(torch.from_numpy(tokens))
    logits = model(torch.from_numpy(tokens), torch.from_numpy(positions))
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  np.testing.assert_allclose(everywhere[np.arange(3)[:, None], positions], expected, atol=1e-4)


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'micro_batch_rows': 4, 'fused_loss': False},
    {'micro_batch_rows': 3, 'fused_loss': True},
  ],
)
@pytest.mark.parametrize('clip', [0.0, 1.0])
def test_steps_train_the_model(options: dict, clip: float, pytorch, monkeypatch):
  """All parameters change, and the model learns the only token."""
  config = make_config(
    **{'optimizer.clip': clip, 'optimizer.learning_rate': 1e-2, 'model.dropout': 0.0}
  )
  models = []
  build = pytorch.MaskedLanguageModel
  monkeypatch.setattr(
    pytorch,
    'MaskedLanguageModel',
    lambda *args, **kw: models.append(build(*args, **kw)) or models[0],
  )
  if options.get('fused_loss') and not hasattr(pytorch.functional, 'linear_cross_entropy'):
    pytest.skip('this PyTorch has no linear_cross_entropy')
  repeated = np.repeat(make_rows(1) * 0 + 9, 4, axis=0)  # every masked token is 9
  step = (
    pytorch.build_best_step(config, repeated, 'cpu', **options, compiled=False)
    if options
    else pytorch.build_released_step(config, repeated, 'cpu')
  )
  before = {name: p.detach().clone() for name, p in models[0].named_parameters()}
  for _ in range(30):
    step()
  unchanged = [name for name, p in models[0].named_parameters() if bool((p == before[name]).all())]
  assert not unchanged
  logits = models[0](pytorch.torch.full((1, 20), 4))
  assert logits.argmax(-1).unique().tolist() == [9]


def make_step_without_compiler(*arguments: Any, **options: Any) -> Any:
  """Returns a step that fails if it is compiled; runs in the worker process."""
  from minilm_jax.bench import pytorch_model

  return pytorch_model.time_pytorch_step(
    1, *arguments, **options | ({'micro_batch_rows': 0} if options and options['compiled'] else {})
  )


def test_pytorch_is_timed_in_worker_processes(pytorch, monkeypatch, capfd):
  monkeypatch.setattr(competitors, '_MICRO_BATCH_ROWS', ())
  monkeypatch.setattr(competitors, '_TRIALS', 1)
  monkeypatch.setattr(competitors, '_make_pytorch_step', make_step_without_compiler)
  monkeypatch.setattr(machine, 'measure_peak_flops', lambda dtype, side: 2e11)
  monkeypatch.setattr(machine, 'measure_bandwidth', lambda: 3e10)
  result = pretrain_bench.bench_pretraining(make_config(), steps=1, repeats=2, competitor='torch')
  err = capfd.readouterr().err
  assert (
    result['best_torch_way'].startswith('eager, 4 rows at once')
    and result['released_way'] == 'as released'
  )
  assert 'PyTorch, compiled' in err and 'Traceback' not in err
  for name in ('released', 'best_torch'):
    assert result[f'{name}_tokens_per_second'] > 0
    ratio = result['tokens_per_second'] / result[f'{name}_tokens_per_second']
    assert result[f'ours_over_{name}'] == pytest.approx(ratio)
  assert (
    result['versions']['torch'].partition('+')[0] == pytorch.torch.__version__.partition('+')[0]
  )


@pytest.mark.slow
def test_the_compiled_step_runs(pytorch):
  with competitors.start_competitors(make_config(), 'torch', 'cpu', make_rows()) as workers:
    assert set(workers) == {'released', 'best_torch'}
    assert all(0 < worker(2) < math.inf for worker in workers.values())


def test_a_missing_gpu_is_refused(pytorch):
  if pytorch.torch.cuda.is_available():
    pytest.skip('a GPU exists')
  with pytest.raises(InputError, match='CUDA|NVIDIA'):
    with competitors.start_competitors(make_config(), 'torch', 'gpu', make_rows()):
      pass


@pytest.mark.parametrize(
  'changes, competitor, platform, part',
  [
    ({}, 'troch', 'cpu', "did you mean 'torch'"),
    ({}, 'torch', 'tpu', 'tpu'),
    ({'model.norm': 'pre'}, 'torch', 'cpu', "model.norm='pre'"),
    ({'model.positions': 'rotary'}, 'torch', 'cpu', 'model.positions'),
    ({'model.activation': 'relu'}, 'torch', 'cpu', 'model.activation'),
    ({'population.members': 3}, 'torch', 'cpu', 'population.members=3'),
    ({'model.tied': True, 'model.embedding_size': 16}, 'torch', 'cpu', 'model.tied'),
  ],
)
def test_unsupported_recipes_are_refused(
  changes: dict, competitor: str, platform: str, part: str, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: 'installed')
  with pytest.raises(InputError, match=part):
    competitors.check_competitor(make_config(**changes), competitor, platform)
  competitors.check_competitor(make_config(), 'torch', 'cpu')


def test_a_missing_pytorch_is_refused(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'minilm_jax\[peers\]'):
    pretrain_bench.bench_pretraining(make_config(), 1, 1, competitor='torch')


def test_no_competitor_starts_no_worker():
  competitors.check_competitor(recipe.resolve(tiny.get_config(), 'pretrain'), '', 'tpu')
  with competitors.start_competitors(make_config(), '', 'tpu', make_rows()) as workers:
    assert workers == {}
