"""Weights of RoBERTa as Hugging Face's transformers names them, in our models.

Theirs is ours without the projection, with as many columns of embedding as of hidden width: post-LN, learned positions
that count from 2, token ids `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3 (theirs of `<mask>` is the last, ours is 4). Only
arrays come in, so neither transformers nor torch is needed here: `{name: tensor.numpy() for name, tensor in
model.state_dict().items()}` is what they give. Left out: reading files, tokenizers, and the way back.

What weights do not tell must be said by the configuration: the number of heads, the activation, and the epsilon of the
norms, which is 1e-5 in every RoBERTa that was released and 1e-12 where their `RobertaConfig` is left as it comes.

At pads the two differ, and nothing reads what is there: theirs have position 1, ours go on counting.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from minilm_jax.config import EncoderConfig, HeadConfig
from minilm_jax.errors import InputError
from minilm_jax.model import heads
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.model.initialization import path_name

M = TypeVar('M')
# Our modules and theirs; `N` is the number of a block.
_EMBEDDING, _BLOCK = 'roberta.embeddings', 'roberta.encoder.layer.N'
_ENCODER = {
    'encoder.embedding.tokens': f'{_EMBEDDING}.word_embeddings',
    'encoder.embedding.positions': f'{_EMBEDDING}.position_embeddings',
    'encoder.embedding.segments': f'{_EMBEDDING}.token_type_embeddings',
    'encoder.embedding.norm': f'{_EMBEDDING}.LayerNorm',
    'encoder.blocks.N.attention.query': f'{_BLOCK}.attention.self.query',
    'encoder.blocks.N.attention.key': f'{_BLOCK}.attention.self.key',
    'encoder.blocks.N.attention.value': f'{_BLOCK}.attention.self.value',
    'encoder.blocks.N.attention.output': f'{_BLOCK}.attention.output.dense',
    'encoder.blocks.N.attention_norm': f'{_BLOCK}.attention.output.LayerNorm',
    'encoder.blocks.N.feed_forward.up': f'{_BLOCK}.intermediate.dense',
    'encoder.blocks.N.feed_forward.down': f'{_BLOCK}.output.dense',
    'encoder.blocks.N.feed_forward_norm': f'{_BLOCK}.output.LayerNorm',
}
_CLASSIFIER = _ENCODER | {'dense': 'classifier.dense', 'output': 'classifier.out_proj'}
_MASKED = _ENCODER | {'transform': 'lm_head.dense', 'norm': 'lm_head.layer_norm', 'output': 'lm_head.decoder'}
_KINDS = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}
_TABLE, _DECODER = f'{_EMBEDDING}.word_embeddings.weight', 'lm_head.decoder.weight'
_BIAS, _DECODER_BIAS = 'lm_head.bias', 'lm_head.decoder.bias'
_BUFFERS = (f'{_EMBEDDING}.position_ids', f'{_EMBEDDING}.token_type_ids')  # counted and zero; older versions keep them
_THEIRS = {'norm': 'post', 'positions': 'learned', 'projection': False, 'first_position': 2, 'convolutions': 0}
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
  for field, value, why in (('pooling', 'first', 'theirs reads <s>'), ('copies', 1, 'theirs is one')):
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
  shapes = jax.eval_shape(lambda: heads.masked_language_model(config, jax.random.key(0)))
  if not config.tied:
    unread = _BIAS if _DECODER_BIAS in weights else ''
    return _filled(shapes, {name: weight for name, weight in weights.items() if name != unread}, _MASKED)
  bias = _BIAS if _BIAS in weights else _DECODER_BIAS
  twice = {_DECODER: _TABLE, **({_DECODER_BIAS: _BIAS} if bias == _BIAS else {})}
  for name, first in twice.items():
    if name in weights and first in weights and not np.array_equal(weights[name], weights[first]):
      raise InputError('a tied output (tied=True)', f'{name} is not equal to {first}', 'give tied=False')
  once = {name: weight for name, weight in weights.items() if name not in twice}
  return _filled(shapes, once, _MASKED | {'output_bias': bias})


def _check(config: EncoderConfig) -> None:
  for field, value in _THEIRS.items():
    if getattr(config, field) != value:
      raise InputError('weights of a RoBERTa', f'model.{field}={getattr(config, field)!r}', f'give {value!r}')


def _filled(shapes: M, weights: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> M:
  """The model with each parameter taken from its weight, each weight taken once."""
  named = {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes)}
  wanted = {_theirs(name, modules): shape[::-1] if name.endswith('.kernel') else shape for name, shape in named.items()}
  found = {name: weight for name, weight in weights.items() if name not in _BUFFERS}
  wrong = {
      'missing': [f'{name} {shape}' for name, shape in wanted.items() if name not in found],
      'left over': [f'{name} {weight.shape}' for name, weight in found.items() if name not in wanted],
      'of another shape': [f'{name} {found[name].shape}, not {shape}' for name, shape in wanted.items()
                           if name in found and found[name].shape != shape],
      'not of floats': [f'{name} {weight.dtype}' for name, weight in found.items()
                        if not jnp.issubdtype(weight.dtype, jnp.floating)],
  }
  if any(wrong.values()):
    raise InputError(f'a model of {len(wanted)} parameters from the weights of a RoBERTa',
                     '; '.join(f'{kind}: {_listed(names)}' for kind, names in wrong.items() if names),
                     'give the shape that its config.json states, length = max_position_embeddings - 2, and the '
                     'state_dict of RobertaForSequenceClassification or RobertaForMaskedLM, whichever is asked for')

  def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = path_name(path)
    weight = np.asarray(found[_theirs(name, modules)], leaf.dtype)
    return jnp.array(weight.T if name.endswith('.kernel') else weight)  # a copy: theirs may change under torch

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _theirs(name: str, modules: Mapping[str, str]) -> str:
  """Their name of one of our parameters.

  >>> _theirs('encoder.blocks.3.feed_forward_norm.scale', _ENCODER)
  'roberta.encoder.layer.3.output.LayerNorm.weight'
  """
  if name in modules:
    return modules[name]
  module, _, kind = name.rpartition('.')
  number = re.search(r'\.\d+\.', module)
  stem = modules[re.sub(r'\.\d+\.', '.N.', module)]
  return f'{stem.replace(".N.", number[0]) if number else stem}.{_KINDS[kind]}'


def _listed(names: list[str]) -> str:
  """The first few, and how many more there are.

  >>> _listed(['a', 'b', 'c', 'd', 'e'])
  'a, b, c, d and 1 more'
  """
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more
