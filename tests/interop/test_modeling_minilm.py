"""The exported modelling file gives equal logits in PyTorch for each architecture."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.interop import hf_weights
from minilm_jax.model import heads
from minilm_jax.model.initialization import is_statistic, path_name
from tests.roberta_config import HEAD, SMALL, draw_rows

BASE = dataclasses.replace(SMALL, embedding_size=8, projection=True, segments=2)
CONVOLVED = {'convolutions': 2, 'kernel': (3, 4), 'channels': 3}
SHAPES: dict[str, dict[str, Any]] = {
  'paper 1': {},
  'pre, rotary': {'norm': 'pre', 'positions': 'rotary', 'segments': 0},
  'relative, relu': {'positions': 'relative', 'activation': 'relu'},
  'sinusoidal': {'positions': 'sinusoidal'},
  'none, pre': {'positions': 'none', 'norm': 'pre', 'activation': 'gelu_tanh'},
  'tied, from 0, silu': {
    'embedding_size': 16,
    'tied': True,
    'position_offset': 0,
    'activation': 'silu',
  },
  'paper 2': {
    **CONVOLVED,
    'embedding_size': 16,
    'projection': False,
    'tied': True,
    'position_offset': 0,
  },
  'fixed, post': {**CONVOLVED, 'convolution': 'fixed'},
  'fixed, pre': {**CONVOLVED, 'convolution': 'fixed', 'norm': 'pre', 'positions': 'relative'},
  'short': {'short_convolution': 3},
}
HEADS = {
  'mean': HeadConfig('mean', 0.1, 1),
  'positions': HeadConfig('positions', 0.1, 1),
  'three': HeadConfig('first', 0.1, 3),
}


@pytest.fixture(scope='module')
def modeling():
  for name in ('torch', 'transformers'):
    pytest.importorskip(name, reason=f'needs {name}, which is of the extra [hf]')
  from minilm_jax.interop import modeling_minilm

  return modeling_minilm


def perturb(model: Any) -> Any:
  """Returns the model with noise: biases of zero and gains of one would hide mistakes."""
  generator = np.random.default_rng(0)

  def add_noise(path: tuple, leaf: jax.Array) -> np.ndarray:
    noise = generator.normal(size=leaf.shape).astype(np.float32)
    return leaf + np.abs(noise) if is_statistic(path_name(path)) else leaf + 0.1 * noise

  return jax.tree_util.tree_map_with_path(add_noise, model)


def open_exported(
  modeling: Any, model: Any, config: EncoderConfig, head: HeadConfig | None, labels: tuple[str, ...]
) -> Any:
  """Returns the PyTorch model with all weights of a model."""
  import torch

  weights, fields = hf_weights.export_weights(model, config, head, labels)
  result = getattr(modeling, fields['architectures'][0])(modeling.MiniLMConfig(**fields)).eval()
  result.load_state_dict(
    {name: torch.tensor(array) for name, array in weights.items()}, strict=True
  )
  return result


def logits(model: Any, rows: np.ndarray, mask: bool = True) -> np.ndarray:
  import torch

  masks = {'attention_mask': torch.from_numpy(rows != tokenizer.PAD_ID).long()} if mask else {}
  with torch.no_grad():
    return model(torch.from_numpy(rows), **masks).logits.numpy()


@pytest.mark.parametrize('shape', SHAPES)
def test_a_masked_language_model_gives_equal_logits(shape: str, modeling):
  config = dataclasses.replace(BASE, **SHAPES[shape])
  model = perturb(heads.init_masked_language_model(config, jax.random.key(0)))
  exported = open_exported(modeling, model, config, None, ())
  rows = draw_rows(4, padded=True)[:, :-1]
  positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
  result = np.asarray(
    jax.jit(lambda model, x: model(x, x != tokenizer.PAD_ID, positions))(model, rows)
  )
  real = rows != tokenizer.PAD_ID
  np.testing.assert_allclose(logits(exported, rows)[real], result[real], atol=2e-5)
  np.testing.assert_array_equal(logits(exported, rows, mask=False), logits(exported, rows))
  shorter = rows[:1, : int(real[0].sum())]
  np.testing.assert_allclose(logits(exported, shorter)[0], result[0, : shorter.shape[1]], atol=2e-5)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('labels', [('a', 'b', 'c'), ()])
def test_a_classifier_gives_equal_logits(labels: tuple[str, ...], head: str, modeling):
  config = dataclasses.replace(BASE, **SHAPES['pre, rotary'])
  model = perturb(heads.init_classifier(config, HEADS[head], len(labels), jax.random.key(0)))
  exported = open_exported(modeling, model, config, HEADS[head], labels)
  rows = draw_rows(4, padded=True)
  result = jax.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(model, rows)
  np.testing.assert_allclose(logits(exported, rows), result, atol=2e-5)


def test_an_exported_model_trains(modeling):
  """The loss falls on a few rows, and every parameter has a gradient."""
  import torch

  config = dataclasses.replace(BASE, **SHAPES['fixed, pre'])
  rows = torch.from_numpy(draw_rows(6, padded=True))
  for head, model, labels in (
    (None, heads.init_masked_language_model(config, jax.random.key(0)), rows),
    (HEAD, heads.init_classifier(config, HEAD, 3, jax.random.key(0)), rows[:, 1] % 3),
  ):
    exported = open_exported(
      modeling, perturb(model), config, head, ('a', 'b', 'c')[: 3 if head else 0]
    ).train()
    adam = torch.optim.Adam(exported.parameters(), 1e-2)
    losses = []
    for _ in range(30):
      loss = exported(rows, labels=labels).loss
      adam.zero_grad()
      loss.backward()
      adam.step()
      losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(
      p.grad is not None for name, p in exported.named_parameters() if 'segments' not in name
    )
