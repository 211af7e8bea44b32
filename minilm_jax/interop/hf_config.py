"""Converts the config.json of a RoBERTa, BERT or ELECTRA of transformers to an EncoderConfig.

Fields that change the computation in a way that minilm_jax does not support are refused. Fields of
training and of transformers itself are ignored.
"""

from collections.abc import Mapping
from typing import Any

from minilm_jax.core.errors import (
  COUNT,
  FLAG,
  NUMBER,
  TEXT,
  InputError,
  find_schema_fault,
  suggest_name,
)
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.interop.hf_weights import FAMILIES, Family

_SIZES = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
  'max_position_embeddings',
)
# Default and type of each optional field of config.json.
_OPTIONAL_FIELDS = {
  'type_vocab_size': (2, COUNT),
  'hidden_act': ('gelu', TEXT),
  'layer_norm_eps': (1e-12, NUMBER),
  'hidden_dropout_prob': (0.1, NUMBER),
  'tie_word_embeddings': (True, FLAG),
}
_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}
# The supported value of further fields; a missing or null field has this value.
_SUPPORTED_VALUES = {
  'position_embedding_type': 'absolute',
  'is_decoder': False,
  'is_encoder_decoder': False,
  'add_cross_attention': False,
  'cross_attention_hidden_size': None,
  'tie_encoder_decoder': False,
  'chunk_size_feed_forward': 0,
  'pruned_heads': {},
  'quantization_config': None,
  'auto_map': None,
}
_ARCHITECTURE_ENDINGS = ('ForMaskedLM', 'ForPreTraining', 'Model')


def detect_family(config: Mapping[str, Any], subject: str) -> Family:
  """Returns the family of the model of a config.json.

  Raises:
    InputError: `model_type`, `architectures` or another field has an unsupported value.
  """
  model_type = config['model_type'] if 'model_type' in config else None
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    remedy = 'add the type of the model to config.json, as in "model_type": "bert"'
    if isinstance(model_type, str):
      remedy = suggest_name(model_type, FAMILIES)
    raise InputError(
      subject,
      f'model_type={model_type!r}',
      f'{remedy}; supported types are {", ".join(FAMILIES)}',
    )
  for name, supported_value in _SUPPORTED_VALUES.items():
    value = config[name] if name in config else None
    if value is not None and value != supported_value:
      raise InputError(
        subject, f'{name}={value!r}', f'give a model with {name}={supported_value!r}'
      )
  architectures = config['architectures'] if 'architectures' in config else None
  if architectures is not None:
    if fault := find_schema_fault(architectures, [TEXT], 'architectures'):
      raise InputError(subject, fault, 'restore config.json')
  for name in architectures or ():
    if not name.endswith(_ARCHITECTURE_ENDINGS):
      raise InputError(
        subject,
        f'architectures={name}, whose head is not supported',
        'save the model without its head: AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)',
      )
  return FAMILIES[model_type]


def read_shape(
  config: Mapping[str, Any], family: Family, has_head: bool, subject: str
) -> EncoderConfig:
  """Returns the configuration of the model of a config.json.

  `tie_word_embeddings` matters only for a model with a masked-LM head (`has_head`). Fields that no
  family has, such as `short_convolution`, keep the defaults of EncoderConfig.

  Raises:
    InputError: A size is missing or invalid, or the activation is not supported.
  """
  fields = _read_fields(config, family, subject)
  if fields['hidden_act'] not in _ACTIVATIONS:
    raise InputError(
      subject,
      f'hidden_act={fields["hidden_act"]!r}',
      f'give a model with one of the activations {", ".join(_ACTIVATIONS)}',
    )
  offset = fields['pad_token_id'] + 1 if family.positions_from_pad else 0
  max_length = fields['max_position_embeddings'] - offset
  if max_length < 4 or not fields['type_vocab_size']:
    raise InputError(
      subject,
      f'max_position_embeddings={fields["max_position_embeddings"]} and '
      f'type_vocab_size={fields["type_vocab_size"]}',
      'give a model with at least 4 positions and 1 segment',
    )
  is_square = fields['embedding_size'] == fields['hidden_size']
  return EncoderConfig(
    vocab_size=fields['vocab_size'],
    embedding_size=fields['embedding_size'],
    hidden_size=fields['hidden_size'],
    intermediate_size=fields['intermediate_size'],
    num_heads=fields['num_attention_heads'],
    num_layers=fields['num_hidden_layers'],
    max_length=max_length,
    position_offset=offset,
    segments=fields['type_vocab_size'],
    projection=not is_square,
    tied=bool(has_head and is_square and fields['tie_word_embeddings']),
    activation=_ACTIVATIONS[fields['hidden_act']],
    dropout=float(fields['hidden_dropout_prob']),
    initialization='bert',
    norm_epsilon=float(fields['layer_norm_eps']),
    flops_heads=fields['num_attention_heads'],
    projection_norm=is_square,
    segment_embeddings_for_pairs=family.pair_segments and fields['type_vocab_size'] > 1,
    # Facts of all families, also if a default of ours changes.
    norm='post',
    positions='learned',
    convolutions=0,
    dtype='float32',
  )


def _read_fields(config: Mapping[str, Any], family: Family, subject: str) -> dict[str, Any]:
  """Returns the checked fields of a config.json, with defaults for missing fields."""
  defaults: dict[str, Any] = {name: default for name, (default, _) in _OPTIONAL_FIELDS.items()}
  defaults |= {'pad_token_id': family.pad_id, 'embedding_size': 128}  # the default of ELECTRA
  fields = defaults | {name: value for name, value in config.items() if value is not None}
  if family.name != 'electra':  # other embedding tables have the hidden size
    fields |= {'embedding_size': fields.get('hidden_size')}
  types = {name: kind for name, (_, kind) in _OPTIONAL_FIELDS.items()}
  sizes = dict.fromkeys((*_SIZES, 'pad_token_id', 'embedding_size'), COUNT)
  if fault := find_schema_fault(fields, sizes | types):
    raise InputError(subject, f'config.json: {fault}', 'restore the file')
  return fields
