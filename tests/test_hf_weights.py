"""Weights on their way out: what comes back in is what went out, each has one place, and who is a RoBERTa is known."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax import hf_weights, huggingface
from minilm_jax.config import HeadConfig
from minilm_jax.model import heads
from minilm_jax.model.initialization import path_name
from tests.roberta_config import CLASSES, HEAD, SMALL

LABELS = ('a', 'b', 'c')


def leaves(model: Any) -> dict[str, np.ndarray]:
  return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(model)}


@pytest.mark.parametrize('tied', [False, True])
def test_a_masked_language_model_comes_back(tied: bool):
  config = dataclasses.replace(SMALL, tied=tied)
  model = heads.masked_language_model(config, jax.random.key(0))
  weights, described = hf_weights.exported(model, config, None, ())
  jax.tree.map(np.testing.assert_array_equal, huggingface.masked_language_model_from_roberta(weights, config), model)
  assert described['architectures'] == ['RobertaForMaskedLM'] and described['tie_word_embeddings'] is tied
  assert described['max_position_embeddings'] == SMALL.max_length + 2 and 'auto_map' not in described


def test_a_classifier_comes_back():
  model = heads.classifier(SMALL, HEAD, CLASSES, jax.random.key(0))
  weights, described = hf_weights.exported(model, SMALL, HEAD, LABELS)
  jax.tree.map(np.testing.assert_array_equal, huggingface.classifier_from_roberta(weights, SMALL, HEAD, CLASSES), model)
  assert described['id2label'] == {'0': 'a', '1': 'b', '2': 'c'} and described['label2id'] == {'a': 0, 'b': 1, 'c': 2}


def test_without_segments_theirs_adds_nothing():
  config = dataclasses.replace(SMALL, segments=0)
  weights, described = hf_weights.exported(heads.masked_language_model(config, jax.random.key(0)), config, None, ())
  assert described['type_vocab_size'] == 1 and not weights['roberta.embeddings.token_type_embeddings.weight'].any()


@pytest.mark.parametrize('changes, head, unlike', [
    ({}, None, []), ({}, HEAD, []), ({'segments': 0}, None, []), ({'activation': 'relu'}, HEAD, []),
    ({'activation': 'relu'}, None, ["model.activation='relu'"]), ({'norm': 'pre'}, None, ["model.norm='pre'"]),
    ({'positions': 'rotary', 'position_offset': 0}, HEAD, ["model.positions='rotary'", 'model.position_offset=0']),
    ({'convolutions': 1, 'kernel': (3, 3), 'channels': 2}, None, ['model.convolutions=1']),
    ({'projection': True}, HEAD, ['model.projection=True']),
    ({}, HeadConfig('mean', 0.0, 2), ["head.pooling='mean'", 'head.ensemble_size=2'])])
def test_what_is_no_roberta_is_known(changes: dict, head: HeadConfig | None, unlike: list[str]):
  config = dataclasses.replace(SMALL, **changes)
  assert hf_weights.unlike_roberta(config, head) == unlike
  model = (heads.masked_language_model(config, jax.random.key(0)) if head is None else
           heads.classifier(config, head, CLASSES, jax.random.key(0)))
  weights, described = hf_weights.exported(model, config, head, LABELS if head else ())
  assert ('auto_map' in described) == bool(unlike) == (described['model_type'] == 'minilm_jax')
  own = sum(leaf.size for leaf in leaves(model).values())
  if unlike:  # and one counter for each BatchNorm
    assert sum(array.size for name, array in weights.items() if not name.endswith('num_batches_tracked')) == own
