"""Weights convert to transformers and back without change, with equal logits and losses."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minilm_jax.core import rng
from minilm_jax.core.config import OptimizerConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.interop import hf_weights
from minilm_jax.model import heads
from minilm_jax.model.initialization import path_name
from minilm_jax.tasks import finetune_step
from minilm_jax.training import optimizer
from tests.roberta_config import CLASSES, HEAD, SMALL, draw_rows, load_classifier

LABELS = ('a', 'b', 'c')


load_masked_language_model = functools.partial(
  hf_weights.load_masked_language_model, hf_weights.FAMILIES['roberta']
)


def leaves(model: Any) -> dict[str, np.ndarray]:
  return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(model)}


@pytest.mark.parametrize('tied', [False, True])
def test_an_exported_masked_language_model_imports_unchanged(tied: bool):
  config = dataclasses.replace(SMALL, tied=tied)
  model = heads.init_masked_language_model(config, jax.random.key(0))
  weights, config_json = hf_weights.export_weights(model, config, None, ())
  jax.tree.map(np.testing.assert_array_equal, load_masked_language_model(weights, config), model)
  assert config_json['architectures'] == ['RobertaForMaskedLM']
  assert config_json['tie_word_embeddings'] is tied and 'auto_map' not in config_json
  assert config_json['max_position_embeddings'] == SMALL.max_length + 2


def test_an_exported_classifier_imports_unchanged():
  model = heads.init_classifier(SMALL, HEAD, CLASSES, jax.random.key(0))
  weights, config_json = hf_weights.export_weights(model, SMALL, HEAD, LABELS)
  jax.tree.map(np.testing.assert_array_equal, load_classifier(weights), model)
  assert config_json['id2label'] == {'0': 'a', '1': 'b', '2': 'c'}
  assert config_json['label2id'] == {'a': 0, 'b': 1, 'c': 2}


def test_a_model_without_segments_exports_zeros():
  config = dataclasses.replace(SMALL, segments=0)
  weights, config_json = hf_weights.export_weights(
    heads.init_masked_language_model(config, jax.random.key(0)), config, None, ()
  )
  assert config_json['type_vocab_size'] == 1
  assert not weights['roberta.embeddings.token_type_embeddings.weight'].any()


@pytest.mark.parametrize(
  'changes, head, differences',
  [
    ({}, None, []),
    ({}, HEAD, []),
    ({'segments': 0}, None, []),
    ({'activation': 'relu'}, HEAD, []),
    ({'activation': 'relu'}, None, ["model.activation='relu'"]),
    ({'norm': 'pre'}, None, ["model.norm='pre'"]),
    (
      {'positions': 'rotary', 'position_offset': 0},
      HEAD,
      ["model.positions='rotary'", 'model.position_offset=0'],
    ),
    ({'convolutions': 1, 'kernel': (3, 3), 'channels': 2}, None, ['model.convolutions=1']),
    ({'projection': True}, HEAD, ['model.projection=True']),
    ({}, HeadConfig('mean', 0.0, 2), ["head.pooling='mean'", 'head.ensemble_size=2']),
  ],
)
def test_differences_from_roberta_select_the_format(
  changes: dict, head: HeadConfig | None, differences: list[str]
):
  config = dataclasses.replace(SMALL, **changes)
  assert hf_weights.roberta_differences(config, head) == differences
  model = (
    heads.init_masked_language_model(config, jax.random.key(0))
    if head is None
    else heads.init_classifier(config, head, CLASSES, jax.random.key(0))
  )
  weights, config_json = hf_weights.export_weights(model, config, head, LABELS if head else ())
  is_custom = config_json['model_type'] == 'minilm_jax'
  assert ('auto_map' in config_json) == bool(differences) == is_custom
  if differences:  # an export also has a counter for each BatchNorm
    sizes = (
      array.size for name, array in weights.items() if not name.endswith('num_batches_tracked')
    )
    assert sum(sizes) == sum(leaf.size for leaf in leaves(model).values())


def make_roberta(transformers: Any, kind: str, **changes: Any) -> Any:
  """Returns a small RoBERTa with noise: biases of zero and gains of one would hide mistakes."""
  import torch

  torch.manual_seed(0)
  config = transformers.RobertaConfig(
    **{
      'vocab_size': SMALL.vocab_size,
      'hidden_size': SMALL.hidden_size,
      'num_hidden_layers': SMALL.num_layers,
      'num_attention_heads': SMALL.num_heads,
      'intermediate_size': SMALL.intermediate_size,
      'hidden_act': SMALL.activation,
      'max_position_embeddings': SMALL.max_length + 2,
      'type_vocab_size': SMALL.segments,
      'num_labels': CLASSES,
      'layer_norm_eps': SMALL.norm_epsilon,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
      **changes,
    }
  )
  model = getattr(transformers, kind)(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  return model


def to_arrays(model: Any) -> dict[str, np.ndarray]:
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def compute_hf_logits(model: Any, rows: np.ndarray) -> np.ndarray:
  import torch

  with torch.no_grad():
    return model(
      torch.from_numpy(rows), torch.from_numpy(rows != tokenizer.PAD_ID).long()
    ).logits.numpy()


@pytest.mark.parametrize('padded', [False, True])
def test_an_imported_classifier_has_equal_logits(padded: bool, transformers):
  hf_model = make_roberta(transformers, 'RobertaForSequenceClassification')
  rows = draw_rows(6, padded)
  model = load_classifier(to_arrays(hf_model))
  result = jax.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(model, rows)
  np.testing.assert_allclose(result, compute_hf_logits(hf_model, rows), atol=1e-5)


def test_an_imported_regression_has_equal_values(transformers):
  hf_model = make_roberta(transformers, 'RobertaForSequenceClassification', num_labels=1)
  rows = draw_rows(4, padded=True)
  model = load_classifier(to_arrays(hf_model), classes=0)
  result = jax.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(model, rows)
  np.testing.assert_allclose(result, compute_hf_logits(hf_model, rows), atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('padded', [False, True])
def test_an_imported_masked_language_model_has_equal_logits(padded: bool, tied: bool, transformers):
  hf_model = make_roberta(transformers, 'RobertaForMaskedLM', tie_word_embeddings=tied)
  rows = draw_rows(4, padded)
  model = load_masked_language_model(to_arrays(hf_model), dataclasses.replace(SMALL, tied=tied))
  positions = jnp.broadcast_to(jnp.arange(SMALL.max_length), rows.shape)
  result = np.asarray(
    jax.jit(lambda model, x: model(x, x != tokenizer.PAD_ID, positions))(model, rows)
  )
  real = rows != tokenizer.PAD_ID
  np.testing.assert_allclose(result[real], compute_hf_logits(hf_model, rows)[real], atol=1e-5)


def test_fine_tuning_has_equal_losses(transformers):
  """Losses of 20 updates differ by less than 1e-5, and fall by more than 1e-3.

  Some gradients have a norm above 1, so clipping is part of the comparison.
  """
  import torch

  updates, batch, rate = 20, 8, 2e-4
  # Four epochs.
  rows = np.tile(
    draw_rows(batch * updates // 4, padded=True).reshape(updates // 4, batch, -1), (4, 1, 1)
  )
  labels = rows[:, :, 1] % CLASSES
  hf_model = make_roberta(transformers, 'RobertaForSequenceClassification')
  model = load_classifier(to_arrays(hf_model))

  expected, norms = [], []
  parameters = list(hf_model.train().parameters())
  adam = torch.optim.AdamW(parameters, rate, (0.9, 0.999), 1e-8, weight_decay=0.0)
  scheduler = transformers.get_linear_schedule_with_warmup(adam, 0, updates)
  for x, y in zip(torch.from_numpy(rows), torch.from_numpy(labels), strict=True):
    loss = hf_model(x, (x != tokenizer.PAD_ID).long(), labels=y).loss
    loss.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
    adam.step()
    scheduler.step()
    adam.zero_grad()
    expected.append(loss.item())

  config = OptimizerConfig(
    learning_rate=rate,
    schedule='linear',
    warmup_fraction=0.0,
    max_warmup_steps=0,
    decay_fraction=0.0,
    beta2=0.999,
    weight_decay=0.0,
    no_decay=(),
  )
  transform = optimizer.build_optimizer(config, updates, model)

  @jax.jit
  def step(model: Any, moments: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, Any]:
    sums = jax.value_and_grad(finetune_step.sum_losses)(
      model, x, x != tokenizer.PAD_ID, y, None, 'classification'
    )
    loss, gradient = jax.tree.map(lambda x: x / batch, sums)
    change, moments = transform.update(gradient, moments, model)
    return optax.apply_updates(model, change), moments, loss

  result, moments = [], transform.init(model)
  for x, y in zip(rows.astype(np.int32), labels.astype(np.int32), strict=True):
    model, moments, loss = step(model, moments, jnp.asarray(x), jnp.asarray(y))
    result.append(float(loss))
  np.testing.assert_allclose(result, expected, atol=1e-5)
  assert np.mean(expected[:5]) - np.mean(expected[-5:]) > 1e-3 and max(norms) > 1


def draw_weights(model: Any, modules: dict[str, str], seed: int = 0) -> dict[str, np.ndarray]:
  """Returns random weights for every parameter, with the names of transformers."""
  random = np.random.default_rng(seed)
  return {
    hf_weights.hf_parameter_name(path_name(path), modules): random.standard_normal(
      leaf.shape[::-1] if path_name(path).endswith('.kernel') else leaf.shape, np.float32
    )
    for path, leaf in jax.tree.leaves_with_path(model)
  }


@pytest.fixture(scope='module')
def weights() -> dict[str, np.ndarray]:
  model = jax.eval_shape(
    lambda: heads.init_classifier(SMALL, HEAD, CLASSES, rng.make_key(0, rng.Stream.HEAD))
  )
  return draw_weights(model, hf_weights.ROBERTA_CLASSIFIER_MODULES)


@pytest.fixture(scope='module')
def tied_weights() -> dict[str, np.ndarray]:
  model = jax.eval_shape(
    lambda: heads.init_masked_language_model(
      dataclasses.replace(SMALL, tied=True), rng.make_key(0, rng.Stream.INIT)
    )
  )
  return draw_weights(
    model, hf_weights.FAMILIES['roberta'].mlm_modules | {'output_bias': 'lm_head.bias'}
  )


def test_every_parameter_has_a_separate_weight(weights: dict[str, np.ndarray]):
  """Doubled weights give doubled parameters, and no two parameters share a weight."""
  once, twice = (load_classifier({name: f * w for name, w in weights.items()}) for f in (1, 2))
  leaves = jax.tree.leaves(once)
  assert len(leaves) == len(weights) and sum(map(jnp.size, leaves)) == sum(
    w.size for w in weights.values()
  )
  assert len({float(leaf.ravel()[0]) for leaf in leaves}) == len(leaves)
  for leaf, two in zip(leaves, jax.tree.leaves(twice), strict=True):
    np.testing.assert_array_equal(2 * leaf, two)


def test_parameters_are_copies_of_the_weights(weights: dict[str, np.ndarray]):
  copies = {name: w.copy() for name, w in weights.items()}
  model = load_classifier(copies)
  before = [np.array(leaf) for leaf in jax.tree.leaves(model)]
  for w in copies.values():
    w[:] = 0
  for leaf, expected in zip(jax.tree.leaves(model), before, strict=True):
    np.testing.assert_array_equal(leaf, expected)


def test_buffers_and_narrow_types_are_accepted(weights: dict[str, np.ndarray]):
  narrow = {name: w.astype(jnp.bfloat16) for name, w in weights.items()}
  narrow['roberta.embeddings.position_ids'] = np.arange(14)[None]
  model = load_classifier(narrow)
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  'changes, value',
  [
    ({'classifier.dense.bias': None}, r'classifier.dense.bias \(16,\)$'),
    ({'roberta.pooler.dense.bias': np.zeros(16)}, r'roberta.pooler.dense.bias \(16,\)$'),
    (
      {'roberta.embeddings.position_embeddings.weight': np.zeros((13, 16))},
      r'roberta.embeddings.position_embeddings.weight \(13, 16\), not \(14, 16\)$',
    ),
    (
      {'roberta.encoder.layer.1.intermediate.dense.weight': np.zeros((16, 24))},
      r'layer.1.intermediate.dense.weight \(16, 24\), not \(24, 16\)$',
    ),
    ({'classifier.out_proj.bias': np.zeros(3, int)}, r'classifier.out_proj.bias int64$'),
  ],
)
def test_weights_that_do_not_fit_are_named(
  changes: dict, value: str, weights: dict[str, np.ndarray]
):
  changed = {name: w for name, w in (weights | changes).items() if w is not None}
  with pytest.raises(InputError) as error:
    load_classifier(changed)
  assert re.search(value, error.value.found)


@pytest.mark.parametrize(
  'changes, value',
  [
    ({'num_layers': 1}, 'roberta.encoder.layer.1.* 12 '),
    ({'num_layers': 3}, 'roberta.encoder.layer.2.* 12 '),
    ({'segments': 0}, 'roberta.embeddings.token_type_embeddings.weight'),
    ({'max_length': 14}, 'max_position_embeddings - 2'),
    ({'vocab_size': 61}, r'word_embeddings.weight \(60, 16\), not \(61, 16\)'),
  ],
)
def test_another_configuration_is_refused(
  changes: dict, value: str, weights: dict[str, np.ndarray]
):
  with pytest.raises(InputError, match=value):
    load_classifier(weights, dataclasses.replace(SMALL, **changes))


def test_another_head_is_refused(weights: dict[str, np.ndarray]):
  with pytest.raises(InputError, match=r'classifier.out_proj.weight \(3, 16\), not \(2, 16\)'):
    load_classifier(weights, classes=2)
  with pytest.raises(InputError, match='classifier'):
    load_masked_language_model(weights, SMALL)


def test_tied_weights_may_have_one_or_two_names(tied_weights: dict[str, np.ndarray]):
  """Published files have one of two equal weights, under either name."""
  tied = dataclasses.replace(SMALL, tied=True)
  table = tied_weights['roberta.embeddings.word_embeddings.weight']
  bias = tied_weights['lm_head.bias']
  duplicates = {'lm_head.decoder.weight': table, 'lm_head.decoder.bias': bias}
  changed = {name: w for name, w in tied_weights.items() if name != 'lm_head.bias'} | {
    'lm_head.decoder.bias': bias
  }
  once, twice, renamed = (
    load_masked_language_model(w, tied) for w in (tied_weights, tied_weights | duplicates, changed)
  )
  jax.tree.map(np.testing.assert_array_equal, once, twice)
  jax.tree.map(np.testing.assert_array_equal, once, renamed)
  for name, value in duplicates.items():
    changed = tied_weights | duplicates | {name: value + 1}
    with pytest.raises(InputError, match=f'{name} .*\n.*tied=False'):
      load_masked_language_model(changed, tied)
  with pytest.raises(InputError, match='lm_head.decoder'):
    load_masked_language_model(tied_weights, SMALL)
