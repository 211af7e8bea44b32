"""Weights of RoBERTa, BERT and ELECTRA as Hugging Face's transformers names them, in our models.

RoBERTa is ours without the projection, with as many columns of embedding as of hidden width: post-LN, learned positions
that count from 2, token ids `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3 (theirs of `<mask>` is the last, ours is 4). BERT
counts from 0 and has a second segment; ELECTRA is a BERT whose narrower embedding goes through a projection without a
norm. Only arrays come in, so neither transformers nor torch is needed here: `{name: tensor.numpy() for name, tensor in
model.state_dict().items()}` is what they give. The way back is `hf_weights`. Left out: reading files, tokenizers
(`hf_import.py`).

What weights do not tell must be said by the configuration: the number of heads, the activation, and the epsilon of the
norms, which is 1e-5 in every RoBERTa that was released and 1e-12 where their `RobertaConfig` is left as it comes.

At pads the two differ, and nothing reads what is there: theirs of RoBERTa have position 1, ours go on counting.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from minilm_jax import hf_names
from minilm_jax.config import EncoderConfig, HeadConfig
from minilm_jax.errors import InputError
from minilm_jax.hf_names import EMBEDDING, Family
from minilm_jax.model import heads
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.model.initialization import path_name

M = TypeVar('M')
_ROBERTA = hf_names.FAMILIES['roberta']
_ENCODER, _MASKED = _ROBERTA.encoder, _ROBERTA.masked
_CLASSIFIER = _ENCODER | {'dense': 'classifier.dense', 'output': 'classifier.out_proj'}
_BUFFERS = tuple(f'.{EMBEDDING}.{name}' for name in ('position_ids', 'token_type_ids'))  # of older versions
_THEIRS = {'norm': 'post', 'positions': 'learned', 'projection': False, 'position_offset': 2, 'convolutions': 0,
           'encoder': '', 'short_convolution': 0}
_OLD, _TODAY = re.compile('gamma$|beta$'), {'gamma': 'weight', 'beta': 'bias'}
_SHOWN = 4  # names in an error


def classifier_from_roberta(weights: Mapping[str, np.ndarray], config: EncoderConfig, head: HeadConfig,
                            classes: int) -> Classifier:
  """Our classifier with the weights of a `RobertaForSequenceClassification`.

  Args:
    weights: theirs by name, of any floating type; matrices are `[out, in]`, the table of positions has `length + 2`
      rows.
    config: the same shape as theirs, with `segments` their `type_vocab_size` (1 in a RoBERTa; the first row is read).
    head: pooling 'first' and one copy, which is their head.
    classes: their `num_labels`; 0 is a regression, for which they have one.

  Raises:
    InputError: a configuration or head that RoBERTa has not; weights that are missing, left over or of another shape.
  """
  _check(config)
  for field, value, why in (('pooling', 'first', 'theirs reads <s>'), ('ensemble_size', 1, 'theirs is one')):
    if getattr(head, field) != value:
      raise InputError('the head of RoBERTa', f'head.{field}={getattr(head, field)!r}', f'give {value!r}: {why}')
  shapes = jax.eval_shape(lambda: heads.classifier(config, head, classes, jax.random.key(0)))
  return _filled(shapes, weights, _CLASSIFIER)


def masked_language_model_from_roberta(weights: Mapping[str, np.ndarray],
                                       config: EncoderConfig) -> MaskedLanguageModel:
  """Our masked language model with the weights of a `RobertaForMaskedLM`, its output tied or not.

  Where `config.tied`, `lm_head.decoder` is a second name of the table and of `lm_head.bias`; it may be absent, as in
  their files, and must else be equal. Untied, they compute with the bias of `lm_head.decoder`, and read no other.

  Args:
    weights: theirs by name, as in `classifier_from_roberta`.
    config: the same shape as theirs.

  Raises:
    InputError: as in `classifier_from_roberta`; or tied in name only.
  """
  _check(config)
  return masked_language_model(_ROBERTA, weights, config)


def masked_language_model(family: Family, weights: Mapping[str, np.ndarray],
                          config: EncoderConfig) -> MaskedLanguageModel:
  """Our masked language model with the weights of one of a family; see `masked_language_model_from_roberta`."""
  shapes = jax.eval_shape(lambda: heads.masked_language_model(config, jax.random.key(0)))
  decoder, other = f'{family.decoder}.weight', f'{family.decoder}.bias'
  if not config.tied:
    unread = family.bias if other in weights and other != family.bias else ''
    bias = other if other in weights else family.bias
    return _filled(shapes, {name: weight for name, weight in weights.items() if name != unread},
                   family.masked | {'output.bias': bias})
  bias = family.bias if family.bias in weights else other
  twice = {decoder: family.table, **({other: bias} if other != bias else {})}
  for name, first in twice.items():
    if name in weights and first in weights and not np.array_equal(weights[name], weights[first]):
      raise InputError('a tied output (tied=True)', f'{name} is not equal to {first}', 'give tied=False')
  once = {name: weight for name, weight in weights.items() if name not in twice}
  return _filled(shapes, once, family.masked | {'output_bias': bias})


def encoder(family: Family, weights: Mapping[str, np.ndarray], config: EncoderConfig) -> dict[str, Any]:
  """Our encoder with the weights of one of a family, as the part 'encoder' of a model that has nothing else.

  Raises:
    InputError: as in `classifier_from_roberta`.
  """
  shapes = jax.eval_shape(lambda: heads.masked_language_model(config, jax.random.key(0)).encoder)
  return _filled({'encoder': shapes}, weights, family.encoder)


def renamed(family: Family, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The weights by the names of today's models with a head.

  A model that was saved alone lacks the name of its family, and those from TensorFlow have norms of gamma and beta.

  >>> list(renamed(hf_names.FAMILIES['bert'], {'embeddings.LayerNorm.gamma': np.ones(2)}))
  ['bert.embeddings.LayerNorm.weight']
  """
  alone = f'{EMBEDDING}.word_embeddings.weight' in weights or not any(
      name.startswith(f'{family.name}.') for name in weights)
  begin = f'{family.name}.' if alone else ''
  return {begin + _OLD.sub(lambda found: _TODAY[found[0]], name): weight for name, weight in weights.items()}


def names(model: Classifier | MaskedLanguageModel) -> dict[str, str]:
  """Their name of each of our parameters: the way out (`hf_weights`)."""
  modules = _CLASSIFIER if isinstance(model, Classifier) else _MASKED | {'output_bias': _ROBERTA.bias}
  ours = [path_name(path) for path, _ in jax.tree.leaves_with_path(model)]
  return {name: hf_names.theirs(name, modules) for name in ours}


def differing(config: EncoderConfig) -> list[str]:
  """The fields in which an encoder is none that RoBERTa has."""
  return [field for field, value in _THEIRS.items() if getattr(config, field) != value]


def _check(config: EncoderConfig) -> None:
  for field in differing(config):
    raise InputError('weights of a RoBERTa', f'model.{field}={getattr(config, field)!r}', f'give {_THEIRS[field]!r}')


def _filled(shapes: M, weights: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> M:
  """The model with each parameter taken from its weight, each weight taken once."""
  named = {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes)}
  wanted = {hf_names.theirs(name, modules): shape[::-1] if name.endswith('.kernel') else shape
            for name, shape in named.items()}
  found = {name: weight for name, weight in weights.items() if not name.endswith(_BUFFERS)}
  wrong = {
      'missing': [f'{name} {shape}' for name, shape in wanted.items() if name not in found],
      'left over': [f'{name} {weight.shape}' for name, weight in found.items() if name not in wanted],
      'of another shape': [f'{name} {found[name].shape}, not {shape}' for name, shape in wanted.items()
                           if name in found and found[name].shape != shape],
      'not of floats': [f'{name} {weight.dtype}' for name, weight in found.items()
                        if not jnp.issubdtype(weight.dtype, jnp.floating)],
      'not finite': [name for name, weight in found.items() if not np.isfinite(weight).all()],
  }
  if any(wrong.values()):
    raise InputError(f'a model of {len(wanted)} parameters from weights of Hugging Face',
                     '; '.join(f'{kind}: {_listed(names)}' for kind, names in wrong.items() if names),
                     'give the shape that its config.json states, for a RoBERTa length = max_position_embeddings - 2, '
                     'and all weights of one model of that shape and kind, such as RobertaForMaskedLM')

  def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = path_name(path)
    weight = np.asarray(found[hf_names.theirs(name, modules)], leaf.dtype)
    return jnp.array(weight.T if name.endswith('.kernel') else weight)  # a copy: theirs may change under torch

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _listed(names: list[str]) -> str:
  """The first few, and how many more there are.

  >>> _listed(['a', 'b', 'c', 'd', 'e'])
  'a, b, c, d and 1 more'
  """
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more
