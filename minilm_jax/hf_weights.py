"""Our models as Hugging Face's transformers has them: arrays by their names, and what `config.json` says of the shape.

What a RoBERTa can be becomes one, and needs nothing but transformers. Everything else reads the one file that is
exported beside it, `modeling_minilm.py`, whose parameters are named as ours. Only arrays and JSON come out, so neither
transformers nor torch is needed here. Left out: writing files, and tokenizers.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from minilm_jax import huggingface
from minilm_jax.config import EncoderConfig, HeadConfig
from minilm_jax.language import tokenizer as pieces
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.model.initialization import path_name

_SEGMENTS = 'roberta.embeddings.token_type_embeddings.weight'
_HF_NAMES = {'num_heads': 'num_attention_heads', 'num_layers': 'num_hidden_layers',
             'max_length': 'max_position_embeddings'}
_SHAPE = ('vocab_size', 'embedding_size', 'hidden_size', 'intermediate_size', 'num_heads', 'num_layers', 'max_length', 'convolutions', 'kernel',
          'channels', 'convolution', 'norm', 'positions', 'position_offset', 'segments', 'projection', 'tied',
          'activation', 'dropout', 'norm_epsilon', 'short_convolution')
_KINDS = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'running_variance': 'running_var'}
MODULE = 'modeling_minilm'
_CLASSES = {MaskedLanguageModel: 'MaskedLM', Classifier: 'SequenceClassification'}
Weights = dict[str, np.ndarray]


def unlike_roberta(config: EncoderConfig, head: HeadConfig | None) -> list[str]:
  """What keeps a model from being a RoBERTa, as `field=value`; nothing where it is one.

  Args:
    config: of the encoder.
    head: of a classifier; None for a masked language model, whose activation RoBERTa has fixed.
  """
  found = [f'model.{field}={getattr(config, field)!r}' for field in huggingface.differing(config)]
  if head is None:
    return found + ([f'model.activation={config.activation!r}'] if config.activation != 'gelu' else [])
  return found + [f'head.{field}={getattr(head, field)!r}' for field, value in (('pooling', 'first'), ('ensemble_size', 1))
                  if getattr(head, field) != value]


def exported(model: MaskedLanguageModel | Classifier, config: EncoderConfig, head: HeadConfig | None,
             labels: Sequence[str]) -> tuple[Weights, dict[str, Any]]:
  """Weights by their name, in float32, and `config.json`.

  Args:
    model: the model.
    config: of its encoder.
    head: of a classifier, else None.
    labels: of its classes in the order of the outputs; none of a regression.
  """
  plain = not unlike_roberta(config, head)
  kind = next(name for cls, name in _CLASSES.items() if isinstance(model, cls))
  found = _roberta_config(config, head) if plain else _own_config(config, head, kind)
  found |= {'architectures': [f'{"Roberta" if plain else "MiniLM"}For{kind}'], 'dtype': 'float32',
            'bos_token_id': pieces.BEGIN, 'pad_token_id': pieces.PAD, 'eos_token_id': pieces.END}
  if head is not None:
    names = labels or ['value']
    found |= {'id2label': {str(number): label for number, label in enumerate(names)},
              'label2id': {label: number for number, label in enumerate(names)},
              'problem_type': 'single_label_classification' if labels else 'regression'}
  return (_roberta(model, config) if plain else _own(model)), found


def _arrays(model: Any) -> Weights:
  """Our parameters by our names, matrices and kernels turned as PyTorch has them."""
  found = {}
  for path, leaf in jax.tree.leaves_with_path(model):
    name, array = path_name(path), np.asarray(leaf, np.float32)
    if name.endswith('.kernel'):
      array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    found[name] = np.ascontiguousarray(array)
  return found


def _roberta(model: MaskedLanguageModel | Classifier, config: EncoderConfig) -> Weights:
  names = huggingface.names(model)
  found = {names[name]: array for name, array in _arrays(model).items()}
  if not config.segments:  # theirs always adds one
    found[_SEGMENTS] = np.zeros((1, config.embedding_size), np.float32)
  if 'lm_head.decoder.bias' in found:  # untied; theirs keeps a second name of it
    found['lm_head.bias'] = found['lm_head.decoder.bias'].copy()
  return found


def _roberta_config(config: EncoderConfig, head: HeadConfig | None) -> dict[str, Any]:
  return {
      'model_type': 'roberta', 'vocab_size': config.vocab_size, 'hidden_size': config.hidden_size,
      'num_hidden_layers': config.num_layers, 'num_attention_heads': config.num_heads,
      'intermediate_size': config.intermediate_size, 'hidden_act': config.activation,
      'max_position_embeddings': config.max_length + config.position_offset, 'type_vocab_size': max(1, config.segments),
      'hidden_dropout_prob': config.dropout, 'attention_probs_dropout_prob': config.dropout,
      'layer_norm_eps': config.norm_epsilon, 'tie_word_embeddings': config.tied,
      'classifier_dropout': head.dropout if head else None}


def _own(model: MaskedLanguageModel | Classifier) -> Weights:
  found = {}
  for name, array in _arrays(model).items():
    module, dot, kind = name.rpartition('.')
    found[f'{_own_module(module) if isinstance(model, Classifier) else module}{dot}{_KINDS.get(kind, kind)}'] = array
    if kind == 'running_mean':
      found[f'{module}.num_batches_tracked'] = np.zeros((), np.int64)
  return found


def _own_module(module: str) -> str:
  """A module of a classifier there, where all heads stand in one list.

  >>> _own_module('dense'), _own_module('others.0.output'), _own_module('encoder.norm')
  ('heads.0.dense', 'heads.1.output', 'encoder.norm')
  """
  if module.startswith('encoder.'):
    return module
  other = re.fullmatch(r'others\.(\d+)\.(.+)', module)
  return f'heads.{int(other[1]) + 1}.{other[2]}' if other else f'heads.0.{module}'


def _own_config(config: EncoderConfig, head: HeadConfig | None, kind: str) -> dict[str, Any]:
  found = {_HF_NAMES[name] if name in _HF_NAMES else name: value for name, value in dataclasses.asdict(config).items() if name in _SHAPE}
  found |= {'model_type': 'minilm_jax', 'tie_word_embeddings': False, 'auto_map': {
      'AutoConfig': f'{MODULE}.MiniLMConfig', 'AutoModel': f'{MODULE}.MiniLMModel',
      f'AutoModelFor{kind}': f'{MODULE}.MiniLMFor{kind}'}}
  if head is not None:
    found |= {'pooling': head.pooling, 'head_dropout': head.dropout, 'ensemble_size': head.ensemble_size}
  return found
