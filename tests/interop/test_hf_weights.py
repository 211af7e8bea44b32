"""Weights on their way out: what comes back in is what went out, each has one place, and who is a
RoBERTa is known.
"""

import dataclasses
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
from tests import fast_jit
from tests.roberta_config import CLASSES, HEAD, SMALL, draw_rows

LABELS = ('a', 'b', 'c')


def leaves(model: Any) -> dict[str, np.ndarray]:
  return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(model)}


@pytest.mark.parametrize('tied', [False, True])
def test_a_masked_language_model_comes_back(tied: bool):
  config = dataclasses.replace(SMALL, tied=tied)
  model = heads.init_masked_language_model(config, jax.random.key(0))
  weights, described = hf_weights.export_weights(model, config, None, ())
  jax.tree.map(
    np.testing.assert_array_equal,
    hf_weights.masked_language_model_from_roberta(weights, config),
    model,
  )
  assert (
    described['architectures'] == ['RobertaForMaskedLM']
    and described['tie_word_embeddings'] is tied
  )
  assert (
    described['max_position_embeddings'] == SMALL.max_length + 2 and 'auto_map' not in described
  )


def test_a_classifier_comes_back():
  model = heads.init_classifier(SMALL, HEAD, CLASSES, jax.random.key(0))
  weights, described = hf_weights.export_weights(model, SMALL, HEAD, LABELS)
  jax.tree.map(
    np.testing.assert_array_equal,
    hf_weights.classifier_from_roberta(weights, SMALL, HEAD, CLASSES),
    model,
  )
  assert described['id2label'] == {'0': 'a', '1': 'b', '2': 'c'} and described['label2id'] == {
    'a': 0,
    'b': 1,
    'c': 2,
  }


def test_without_segments_theirs_adds_nothing():
  config = dataclasses.replace(SMALL, segments=0)
  weights, described = hf_weights.export_weights(
    heads.init_masked_language_model(config, jax.random.key(0)), config, None, ()
  )
  assert (
    described['type_vocab_size'] == 1
    and not weights['roberta.embeddings.token_type_embeddings.weight'].any()
  )


@pytest.mark.parametrize(
  'changes, head, unlike',
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
def test_what_is_no_roberta_is_known(changes: dict, head: HeadConfig | None, unlike: list[str]):
  config = dataclasses.replace(SMALL, **changes)
  assert hf_weights.roberta_differences(config, head) == unlike
  model = (
    heads.init_masked_language_model(config, jax.random.key(0))
    if head is None
    else heads.init_classifier(config, head, CLASSES, jax.random.key(0))
  )
  weights, described = hf_weights.export_weights(model, config, head, LABELS if head else ())
  assert ('auto_map' in described) == bool(unlike) == (described['model_type'] == 'minilm_jax')
  size = sum(leaf.size for leaf in leaves(model).values())
  if unlike:  # and one counter for each BatchNorm
    assert (
      sum(array.size for name, array in weights.items() if not name.endswith('num_batches_tracked'))
      == size
    )


@pytest.fixture(scope='module')
def transformers():
  pytest.importorskip('torch', reason='needs PyTorch, which is of the extra [hf]').set_num_threads(
    1
  )
  return pytest.importorskip(
    'transformers', reason='needs transformers, which is of the extra [hf]'
  )


def roberta(transformers: Any, kind: str, **changes: Any) -> Any:
  """A RoBERTa of our small shape, every weight random: biases of zero and gains of one would hide
  mistakes.
  """
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


def arrays(model: Any) -> dict[str, np.ndarray]:
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def their_logits(model: Any, rows: np.ndarray) -> np.ndarray:
  import torch

  with torch.no_grad():
    return model(
      torch.from_numpy(rows), torch.from_numpy(rows != tokenizer.PAD_ID).long()
    ).logits.numpy()


@pytest.mark.parametrize('padded', [False, True])
def test_a_classifier_gives_their_logits(padded: bool, transformers):
  theirs, rows = roberta(transformers, 'RobertaForSequenceClassification'), draw_rows(6, padded)
  ours = hf_weights.classifier_from_roberta(arrays(theirs), SMALL, HEAD, CLASSES)
  result = fast_jit.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(ours, rows)
  np.testing.assert_allclose(result, their_logits(theirs, rows), atol=1e-5)


def test_a_regression_gives_their_number(transformers):
  theirs, rows = (
    roberta(transformers, 'RobertaForSequenceClassification', num_labels=1),
    draw_rows(4, padded=True),
  )
  ours = hf_weights.classifier_from_roberta(arrays(theirs), SMALL, HEAD, 0)
  assert isinstance(ours, heads.Regressor)
  result = fast_jit.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(ours, rows)
  np.testing.assert_allclose(result, their_logits(theirs, rows), atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('padded', [False, True])
def test_a_masked_language_model_gives_their_logits(padded: bool, tied: bool, transformers):
  theirs, rows = (
    roberta(transformers, 'RobertaForMaskedLM', tie_word_embeddings=tied),
    draw_rows(4, padded),
  )
  ours = hf_weights.masked_language_model_from_roberta(
    arrays(theirs), dataclasses.replace(SMALL, tied=tied)
  )
  everywhere = jnp.broadcast_to(jnp.arange(SMALL.max_length), rows.shape)
  result = np.asarray(
    fast_jit.jit(lambda model, x: model(x, x != tokenizer.PAD_ID, everywhere))(ours, rows)
  )
  real = rows != tokenizer.PAD_ID
  np.testing.assert_allclose(result[real], their_logits(theirs, rows)[real], atol=1e-5)


def test_fine_tuning_gives_their_losses(transformers):
  """The same weights, the same batches, 20 updates: losses differ by less than 1e-5, a hundredth of
  what they fall by.

  Of their gradients some are longer than 1, so that it matters how they are clipped.
  """
  import torch

  updates, batch, rate = 20, 8, 2e-4
  # four epochs
  rows = np.tile(
    draw_rows(batch * updates // 4, padded=True).reshape(updates // 4, batch, -1), (4, 1, 1)
  )
  labels = rows[:, :, 1] % CLASSES
  theirs = roberta(transformers, 'RobertaForSequenceClassification')
  ours = hf_weights.classifier_from_roberta(arrays(theirs), SMALL, HEAD, CLASSES)

  expected, norms = [], []
  adam = torch.optim.AdamW(theirs.train().parameters(), rate, (0.9, 0.999), 1e-8, weight_decay=0.0)
  falling = transformers.get_linear_schedule_with_warmup(adam, 0, updates)
  for x, y in zip(torch.from_numpy(rows), torch.from_numpy(labels), strict=True):
    loss = theirs(x, (x != tokenizer.PAD_ID).long(), labels=y).loss
    loss.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)))
    adam.step()
    falling.step()
    adam.zero_grad()
    expected.append(loss.item())

  config = OptimizerConfig(
    algorithm='adamw',
    learning_rate=rate,
    schedule='linear',
    warmup_fraction=0.0,
    max_warmup_steps=0,
    decay_fraction=0.0,
    epochs=0,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    weight_decay=0.0,
    no_decay=(),
    clip=1.0,
  )
  transform = optimizer.build_optimizer(config, updates, ours)

  @fast_jit.jit
  def step(model: Any, moments: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, Any]:
    sums = jax.value_and_grad(finetune_step.loss_sum)(
      model, x, x != tokenizer.PAD_ID, y, None, 'classification'
    )
    loss, gradient = jax.tree.map(lambda x: x / batch, sums)
    change, moments = transform.update(gradient, moments, model)
    return optax.apply_updates(model, change), moments, loss

  result, moments = [], transform.init(ours)
  for x, y in zip(rows.astype(np.int32), labels.astype(np.int32), strict=True):
    ours, moments, loss = step(ours, moments, jnp.asarray(x), jnp.asarray(y))
    result.append(float(loss))
  np.testing.assert_allclose(result, expected, atol=1e-5)
  assert np.mean(expected[:5]) - np.mean(expected[-5:]) > 1e-3 and max(norms) > 1


def named(model: Any, modules: dict[str, str], seed: int = 0) -> dict[str, np.ndarray]:
  """Weights such as theirs for every parameter of ours, drawn at random: these tests do without
  transformers.
  """
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
  return named(model, hf_weights._ROBERTA_CLASSIFIER)


@pytest.fixture(scope='module')
def tied_weights() -> dict[str, np.ndarray]:
  model = jax.eval_shape(
    lambda: heads.init_masked_language_model(
      dataclasses.replace(SMALL, tied=True), rng.make_key(0, rng.Stream.INIT)
    )
  )
  return named(model, hf_weights._ROBERTA.masked | {'output_bias': 'lm_head.bias'})


def test_every_parameter_has_a_weight_of_its_own(weights: dict[str, np.ndarray]):
  """Twice the weights are twice the parameters, and no two parameters share one."""
  once, twice = (
    hf_weights.classifier_from_roberta(
      {name: f * w for name, w in weights.items()}, SMALL, HEAD, CLASSES
    )
    for f in (1, 2)
  )
  leaves = jax.tree.leaves(once)
  assert len(leaves) == len(weights) and sum(map(jnp.size, leaves)) == sum(
    w.size for w in weights.values()
  )
  assert len({float(leaf.ravel()[0]) for leaf in leaves}) == len(leaves)
  for leaf, two in zip(leaves, jax.tree.leaves(twice), strict=True):
    np.testing.assert_array_equal(2 * leaf, two)


def test_what_torch_does_later_changes_nothing(weights: dict[str, np.ndarray]):
  mine = {name: w.copy() for name, w in weights.items()}
  model = hf_weights.classifier_from_roberta(mine, SMALL, HEAD, CLASSES)
  before = [np.array(leaf) for leaf in jax.tree.leaves(model)]
  for w in mine.values():
    w[:] = 0
  for leaf, was in zip(jax.tree.leaves(model), before, strict=True):
    np.testing.assert_array_equal(leaf, was)


def test_buffers_and_narrow_types_are_taken(weights: dict[str, np.ndarray]):
  narrow = {name: w.astype(jnp.bfloat16) for name, w in weights.items()}
  narrow['roberta.embeddings.position_ids'] = np.arange(14)[None]
  model = hf_weights.classifier_from_roberta(narrow, SMALL, HEAD, CLASSES)
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'classifier.dense.bias': None}, r'missing: classifier.dense.bias \(16,\)$'),
    ({'roberta.pooler.dense.bias': np.zeros(16)}, r'left over: roberta.pooler.dense.bias \(16,\)$'),
    (
      {'roberta.embeddings.position_embeddings.weight': np.zeros((13, 16))},
      r'another shape: roberta.embeddings.position_embeddings.weight \(13, 16\), not \(14, 16\)$',
    ),
    (
      {'roberta.encoder.layer.1.intermediate.dense.weight': np.zeros((16, 24))},
      r'another shape: .*layer.1.intermediate.dense.weight \(16, 24\), not \(24, 16\)$',
    ),
    (
      {'classifier.out_proj.bias': np.zeros(3, int)},
      r'not of floats: classifier.out_proj.bias int64$',
    ),
  ],
)
def test_what_does_not_fit_is_named(changes: dict, message: str, weights: dict[str, np.ndarray]):
  changed = {name: w for name, w in (weights | changes).items() if w is not None}
  with pytest.raises(InputError) as refused:
    hf_weights.classifier_from_roberta(changed, SMALL, HEAD, CLASSES)
  assert re.search(message, refused.value.found)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'norm': 'pre'}, "give 'post'"),
    ({'projection': True}, 'give False'),
    ({'positions': 'rotary'}, "give 'learned'"),
    ({'num_layers': 1}, 'left over: roberta.encoder.layer.1.* and 12 more'),
    ({'num_layers': 3}, 'missing: roberta.encoder.layer.2.* and 12 more'),
    ({'segments': 0}, 'left over: roberta.embeddings.token_type_embeddings.weight'),
    ({'max_length': 14}, 'length = max_position_embeddings - 2'),
  ],
)
def test_another_shape_is_refused(changes: dict, message: str, weights: dict[str, np.ndarray]):
  with pytest.raises(InputError, match=message):
    hf_weights.classifier_from_roberta(
      weights, dataclasses.replace(SMALL, **changes), HEAD, CLASSES
    )


def test_another_head_is_refused(weights: dict[str, np.ndarray]):
  with pytest.raises(InputError, match="head.pooling='mean'"):
    hf_weights.classifier_from_roberta(
      weights, SMALL, HeadConfig(pooling='mean', dropout=0.0, ensemble_size=1), CLASSES
    )
  with pytest.raises(InputError, match='head.ensemble_size=2'):
    hf_weights.classifier_from_roberta(
      weights, SMALL, HeadConfig(pooling='first', dropout=0.0, ensemble_size=2), CLASSES
    )
  with pytest.raises(InputError, match=r'classifier.out_proj.weight \(3, 16\), not \(2, 16\)'):
    hf_weights.classifier_from_roberta(weights, SMALL, HEAD, 2)
  with pytest.raises(InputError, match='left over: classifier'):
    hf_weights.masked_language_model_from_roberta(weights, SMALL)


def test_tied_weights_may_come_once_or_twice(tied_weights: dict[str, np.ndarray]):
  """Their files keep one of two equal names, and not always the same one."""
  tied = dataclasses.replace(SMALL, tied=True)
  table_, bias = (
    tied_weights['roberta.embeddings.word_embeddings.weight'],
    tied_weights['lm_head.bias'],
  )
  again = {'lm_head.decoder.weight': table_, 'lm_head.decoder.bias': bias}
  changed = {name: w for name, w in tied_weights.items() if name != 'lm_head.bias'} | {
    'lm_head.decoder.bias': bias
  }
  once, twice, renamed = (
    hf_weights.masked_language_model_from_roberta(w, tied)
    for w in (tied_weights, tied_weights | again, changed)
  )
  jax.tree.map(np.testing.assert_array_equal, once, twice)
  jax.tree.map(np.testing.assert_array_equal, once, renamed)
  for name, value in again.items():
    with pytest.raises(InputError, match=f'{name} is not equal to .*\n.*tied=False'):
      hf_weights.masked_language_model_from_roberta(tied_weights | again | {name: value + 1}, tied)
  with pytest.raises(InputError, match='missing: lm_head.decoder'):
    hf_weights.masked_language_model_from_roberta(tied_weights, SMALL)
