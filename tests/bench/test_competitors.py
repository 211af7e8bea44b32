"""The peers: the same model in PyTorch, to the parameter and the logit; what cannot be compared is
refused.
"""

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
from tests import fast_jit

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


def config(**changes: object) -> RunConfig:
  made = paper1.get_config()
  made.update_from_flattened_dict(TINY | changes)
  return recipe.resolve(made, 'pretrain')


@pytest.fixture
def pytorch():
  torch = pytest.importorskip('torch', reason='needs PyTorch, which is the extra [peers]')
  from minilm_jax.bench import pytorch_model

  torch.set_num_threads(1)
  return pytorch_model


def rows(count: int = 16) -> np.ndarray:
  return np.random.default_rng(0).integers(5, 60, (count, 20), np.uint16)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('name', ['magic-bee-26', 'feasible-butterfly-9'])
def test_as_many_parameters(name: str, fused: bool, pytorch):
  made = recipe.resolve(paper1.get_config(name), 'pretrain').model
  model = pytorch.MaskedLanguageModel(made, fused)
  assert sum(p.numel() for p in model.parameters()) == flops.count_parameters(made)['total']


@pytest.mark.parametrize('fused', [False, True])
def test_the_same_logits_from_our_weights(fused: bool, pytorch):
  import torch

  ours = heads.init_masked_language_model(config().model, rng.make_key(0, rng.Stream.INIT))
  model = pytorch.MaskedLanguageModel(config().model, fused).eval()
  names = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}
  carried = {}
  for path, leaf in jax.tree.leaves_with_path(ours):
    stem, _, last = path_name(path).rpartition('.')
    carried[f'{stem}.{names[last]}'] = torch.from_numpy(
      np.array(leaf.T if last == 'kernel' else leaf)
    )
  model.load_state_dict(carried)
  tokens = rows(3).astype(np.int64)
  positions = np.random.default_rng(1).integers(0, 20, (3, 4))
  expected = fast_jit.jit(lambda *inputs: ours(*inputs))(
    tokens, jnp.ones(tokens.shape, bool), positions
  )
  with torch.no_grad():
    everywhere = model(torch.from_numpy(tokens))
    found = model(torch.from_numpy(tokens), torch.from_numpy(positions))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(everywhere[np.arange(3)[:, None], positions], expected, atol=1e-4)


@pytest.mark.parametrize(
  'how', [{}, {'at_once': 4, 'fused_loss': False}, {'at_once': 3, 'fused_loss': True}]
)
@pytest.mark.parametrize('clip', [0.0, 1.0])
def test_a_step_trains(how: dict, clip: float, pytorch, monkeypatch):
  """Every parameter moves, and the loss of one batch falls when it is taken again and again."""
  made = config(**{'optimizer.clip': clip, 'optimizer.learning_rate': 1e-2, 'model.dropout': 0.0})
  models = []
  build = pytorch.MaskedLanguageModel
  monkeypatch.setattr(
    pytorch,
    'MaskedLanguageModel',
    lambda *args, **kw: models.append(build(*args, **kw)) or models[0],
  )
  if how.get('fused_loss') and not hasattr(pytorch.functional, 'linear_cross_entropy'):
    pytest.skip('this PyTorch has no linear_cross_entropy')
  same = np.repeat(rows(1) * 0 + 9, 4, axis=0)  # whatever is masked is a 9
  step = (
    pytorch.build_best_step(made, same, 'cpu', **how, compiled=False)
    if how
    else pytorch.build_released_step(made, same, 'cpu')
  )
  before = {name: p.detach().clone() for name, p in models[0].named_parameters()}
  for _ in range(30):
    step()
  still = [name for name, p in models[0].named_parameters() if bool((p == before[name]).all())]
  assert not still
  logits = models[0](pytorch.torch.full((1, 20), 4))
  assert logits.argmax(-1).unique().tolist() == [9]


def without_compiler(*arguments: Any, **how: Any) -> Any:
  """In a process of its own: what is to be compiled fails at its first step."""
  from minilm_jax.bench import pytorch_model

  return pytorch_model.time_pytorch_step(
    1, *arguments, **how | ({'at_once': 0} if how and how['compiled'] else {})
  )


def test_it_is_timed_in_a_process_of_its_own(pytorch, monkeypatch, capfd):
  monkeypatch.setattr(competitors, '_MICRO_BATCH_ROWS', ())
  monkeypatch.setattr(competitors, '_TRIALS', 1)
  monkeypatch.setattr(competitors, '_pytorch', without_compiler)
  monkeypatch.setattr(machine, 'measure_peak_flops', lambda kind, side: 2e11)
  monkeypatch.setattr(machine, 'measure_bandwidth', lambda: 3e10)
  found = pretrain_bench.bench_pretraining(config(), steps=1, repeats=2, against='torch')
  err = capfd.readouterr().err
  assert (
    found['best_torch_way'].startswith('eager, 4 rows at once')
    and found['released_way'] == 'as released'
  )
  assert err.count('going on without') >= 1 and 'Traceback' not in err
  for name in ('released', 'best_torch'):
    assert found[f'{name}_tokens_per_second'] > 0
    ratio = found['tokens_per_second'] / found[f'{name}_tokens_per_second']
    assert found[f'ours_over_{name}'] == pytest.approx(ratio)
  assert found['versions']['torch'].partition('+')[0] == pytorch.torch.__version__.partition('+')[0]


@pytest.mark.slow
def test_it_compiles(pytorch):
  with competitors.start_competitors(config(), 'torch', 'cpu', rows()) as others:
    assert set(others) == {'released', 'best_torch'}
    assert all(0 < peer(2) < math.inf for peer in others.values())


def test_what_its_device_refuses_is_said(pytorch):
  if pytorch.torch.cuda.is_available():
    pytest.skip('there is a GPU')
  with pytest.raises(InputError, match='CUDA|NVIDIA'):
    with competitors.start_competitors(config(), 'torch', 'gpu', rows()):
      pass


@pytest.mark.parametrize(
  'changes, against, platform, said',
  [
    ({}, 'troch', 'cpu', "did you mean 'torch'"),
    ({}, 'torch', 'tpu', 'JAX computes on a tpu'),
    ({'model.norm': 'pre'}, 'torch', 'cpu', "model.norm='pre'"),
    ({'model.positions': 'rotary'}, 'torch', 'cpu', 'model.positions'),
    ({'model.activation': 'relu'}, 'torch', 'cpu', 'model.activation'),
    ({'model.tied': True, 'model.embedding_size': 16}, 'torch', 'cpu', 'model.tied'),
  ],
)
def test_what_has_no_peer_is_refused(
  changes: dict, against: str, platform: str, said: str, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: 'there')
  with pytest.raises(InputError, match=said):
    competitors.check_competitor(config(**changes), against, platform)
  competitors.check_competitor(config(), 'torch', 'cpu')


def test_pytorch_must_be_there(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'minilm_jax\[peers\]'):
    pretrain_bench.bench_pretraining(config(), 1, 1, against='torch')


def test_nobody_is_nobody():
  competitors.check_competitor(recipe.resolve(tiny.get_config(), 'pretrain'), '', 'tpu')
  with competitors.start_competitors(config(), '', 'tpu', rows()) as others:
    assert others == {}
