"""Reads the config.json of a RoBERTa, BERT or ELECTRA of Hugging Face as the shape of a model here.

Switches that would change their computation and do not exist here are refused by name; settings of
training or of their library are ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from minilm_jax.core import schema
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.core.schema import COUNT, FLAG, NUMBER, TEXT
from minilm_jax.interop.hf_weights import FAMILIES, Family

_BERT_PIECES = ('[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]')
_ROBERTA_PIECES = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')


@dataclasses.dataclass(frozen=True)
class HfFamily:
  """Properties of one `model_type`.

  Attributes:
    family: names of its weights.
    pad_id: its `pad_token_id` where config.json has none.
    positions_from_pad: positions count from the id after that of the pad, instead of from 0.
    segments_of_pairs: two texts differ in their segment.
    special: its names of our special pieces, in our order.
    between: number of `</s>` between two texts.
    gelu_head: the beginning of the names of its masked-LM head, where that has GELU whatever the
      activation of the encoder; else ''.
  """

  family: Family
  pad_id: int
  positions_from_pad: bool
  segments_of_pairs: bool
  special: tuple[str, ...]
  between: int
  gelu_head: str


_LIKE_ROBERTA = HfFamily(FAMILIES['roberta'], 1, True, False, _ROBERTA_PIECES, 2, 'lm_head.')
HF_FAMILIES = {
  # These differ in their tokenizers only.
  'roberta': _LIKE_ROBERTA,
  'xlm-roberta': _LIKE_ROBERTA,
  'camembert': _LIKE_ROBERTA,
  'bert': HfFamily(FAMILIES['bert'], 0, False, True, _BERT_PIECES, 1, ''),
  'electra': HfFamily(FAMILIES['electra'], 0, False, True, _BERT_PIECES, 1, 'generator_'),
}
_SIZES = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
  'max_position_embeddings',
)
# Default and type of each field that config.json may leave out.
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
# Switches, and their one value here; absent or null means that value.
_SWITCHES = {
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


def detect_family(config: Mapping[str, Any], what: str) -> HfFamily:
  """Returns the family of the model of a config.json.

  Raises:
    InputError: the `model_type` or class is another one, or a switch does not exist here.
  """
  model_type = config['model_type'] if 'model_type' in config else None
  if not isinstance(model_type, str) or model_type not in HF_FAMILIES:
    remedy = 'name it, where you know it, as in "model_type": "bert"'
    if isinstance(model_type, str):
      remedy = suggest_name(model_type, HF_FAMILIES)
    raise InputError(
      what,
      f'model_type={model_type!r}',
      f'{remedy}; what can be imported is {", ".join(HF_FAMILIES)}',
    )
  for name, value_here in _SWITCHES.items():
    value = config[name] if name in config else None
    if value is not None and value != value_here:
      raise InputError(
        what, f'{name}={value!r}', f'give a model with {value_here!r}: ours has nothing else'
      )
  architectures = config['architectures'] if 'architectures' in config else None
  if architectures is not None:
    if fault := schema.find_schema_fault(architectures, [TEXT], 'architectures'):
      raise InputError(what, fault, 'restore config.json')
  for name in architectures or ():
    if not name.endswith(_ARCHITECTURE_ENDINGS):
      raise InputError(
        what,
        f'architectures={name}, a head that is no part of ours',
        'save what is below it alone, AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)',
      )
  return HF_FAMILIES[model_type]


def read_shape(
  config: Mapping[str, Any], family: HfFamily, has_head: bool, what: str
) -> EncoderConfig:
  """Returns the shape of the model of a config.json.

  Args:
    config: the content of the file.
    family: by `detect_family`.
    has_head: it has a masked-LM head; only then does `tie_word_embeddings` matter.
    what: description of the model, for an error.

  Raises:
    InputError: a size is missing or invalid, or the activation does not exist here.
  """
  fields = _read_fields(config, family, what)
  if fields['hidden_act'] not in _ACTIVATIONS:
    raise InputError(
      what,
      f'hidden_act={fields["hidden_act"]!r}',
      f'give a model with one of {", ".join(_ACTIVATIONS)}: ours has nothing else',
    )
  offset = fields['pad_token_id'] + 1 if family.positions_from_pad else 0
  max_length = fields['max_position_embeddings'] - offset
  if max_length < 4 or not fields['type_vocab_size']:
    raise InputError(
      what,
      f'max_position_embeddings={fields["max_position_embeddings"]} and '
      f'type_vocab_size={fields["type_vocab_size"]}',
      'give a model of longer rows and some segments',
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
    segment_embeddings_for_pairs=family.segments_of_pairs and fields['type_vocab_size'] > 1,
    # The same in all of them.
    convolutions=0,
    kernel=(),
    channels=0,
    convolution='paper2',
    norm='post',
    positions='learned',
    dtype='float32',
    remat=False,
    encoder='',
    short_convolution=0,
  )


def _read_fields(config: Mapping[str, Any], family: HfFamily, what: str) -> dict[str, Any]:
  """Returns the checked fields of a config.json, with defaults for those that it leaves out."""
  defaults: dict[str, Any] = {name: default for name, (default, _) in _OPTIONAL_FIELDS.items()}
  defaults |= {'pad_token_id': family.pad_id, 'embedding_size': 128}  # of an ELECTRA
  fields = defaults | {name: value for name, value in config.items() if value is not None}
  if family.family is not FAMILIES['electra']:  # the tables of others have the hidden size
    fields |= {'embedding_size': fields.get('hidden_size')}
  types = {name: kind for name, (_, kind) in _OPTIONAL_FIELDS.items()}
  sizes = dict.fromkeys((*_SIZES, 'pad_token_id', 'embedding_size'), COUNT)
  if fault := schema.find_schema_fault(fields, sizes | types):
    raise InputError(what, f'config.json: {fault}', 'restore the file')
  return fields
