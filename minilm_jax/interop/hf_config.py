"""Their config.json as the shape of a model of ours: RoBERTa, BERT and ELECTRA of Hugging Face, and
nothing near them.

What a switch of theirs would change and ours cannot is refused by its name; what only matters to
their training or their library is passed over. Left out: reading the file, weights, tokenizers
(`hf_import.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from minilm_jax.core import schema
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.core.schema import COUNT, NUMBER, TEXT
from minilm_jax.interop.hf_weights import FAMILIES, Family

_BERT_PIECES = ('[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]')
_ROBERTA_PIECES = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')


@dataclasses.dataclass(frozen=True)
class HfFamily:
  """What one `model_type` is.

  Attributes:
    family: of its weights.
    pad: its `pad_token_id`, where config.json does not say.
    from_pad: do positions count from the number after that of the pad? Else from 0.
    second: do two texts differ in their segment?
    special: its names of our special pieces, in our order.
    between: how many `</s>` stand between two texts.
    gelu: what the names of its masked-LM head begin with, where that is of GELU whatever the
      encoder has; else ''.
  """

  family: Family
  pad: int
  from_pad: bool
  second: bool
  special: tuple[str, ...]
  between: int
  gelu: str


_LIKE_ROBERTA = HfFamily(FAMILIES['roberta'], 1, True, False, _ROBERTA_PIECES, 2, 'lm_head.')
HF_FAMILIES = {
  # but for their tokenizers
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
_FORM = dict.fromkeys(_SIZES, COUNT) | {'hidden_dropout_prob?': NUMBER}
# What theirs takes where config.json does not say, and what it may be.
_ELSE = {
  'type_vocab_size': (2, COUNT),
  'hidden_act': ('gelu', TEXT),
  'layer_norm_eps': (1e-12, NUMBER),
  'hidden_dropout_prob': (0.1, NUMBER),
  'tie_word_embeddings': (True, schema.FLAG),
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
# Switches of theirs, and the one value that ours has; absent or null is that value.
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
_ENDINGS = ('ForMaskedLM', 'ForPreTraining', 'Model')


def detect_family(config: Mapping[str, Any], what: str) -> HfFamily:
  """What the model of a config.json is.

  Raises:
    InputError: of another `model_type` or class, or with a switch that ours has not.
  """
  found = config['model_type'] if 'model_type' in config else None
  if not isinstance(found, str) or found not in HF_FAMILIES:
    near = (
      suggest_name(found, HF_FAMILIES)
      if isinstance(found, str)
      else 'name it, where you know it, as in "model_type": "bert"'
    )
    raise InputError(
      what, f'model_type={found!r}', f'{near}; what can be imported is {", ".join(HF_FAMILIES)}'
    )
  for name, ours in _SWITCHES.items():
    value = config[name] if name in config else None
    if value is not None and value != ours:
      raise InputError(
        what, f'{name}={value!r}', f'give a model with {ours!r}: ours has nothing else'
      )
  classes = config['architectures'] if 'architectures' in config else None
  if fault := '' if classes is None else schema.find_schema_fault(classes, [TEXT], 'architectures'):
    raise InputError(what, fault, 'restore config.json')
  for name in classes or ():
    if not name.endswith(_ENDINGS):
      raise InputError(
        what,
        f'architectures={name}, a head that is no part of ours',
        'save what is below it alone, AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)',
      )
  return HF_FAMILIES[found]


def read_shape(config: Mapping[str, Any], kind: HfFamily, head: bool, what: str) -> EncoderConfig:
  """The shape of the model of a config.json.

  Args:
    config: what the file holds.
    kind: of `kind_of`.
    head: does it guess hidden tokens? Only then does it matter whether its output is tied.
    what: it is, for an error.

  Raises:
    InputError: a size is missing or no size, or an activation is not among ours.
  """
  given = {name: value for name, value in config.items() if value is not None}
  plain = (
    {name: default for name, (default, _) in _ELSE.items()} | {'pad_token_id': kind.pad} | given
  )
  if fault := schema.find_schema_fault(
    plain, _FORM | {name: form for name, (_, form) in _ELSE.items()} | {'pad_token_id': COUNT}
  ):
    raise InputError(what, f'config.json: {fault}', 'restore the file')
  if plain['hidden_act'] not in _ACTIVATIONS:
    raise InputError(
      what,
      f'hidden_act={plain["hidden_act"]!r}',
      f'give a model with one of {", ".join(_ACTIVATIONS)}: ours has nothing else',
    )
  hidden = plain['hidden_size']
  embedding = _embedding(plain, kind, what)
  first = plain['pad_token_id'] + 1 if kind.from_pad else 0
  length = plain['max_position_embeddings'] - first
  if length < 4 or not plain['type_vocab_size']:
    raise InputError(
      what,
      f'max_position_embeddings={plain["max_position_embeddings"]} and '
      f'type_vocab_size={plain["type_vocab_size"]}',
      'give a model of longer rows and some segments',
    )
  return EncoderConfig(
    vocab_size=plain['vocab_size'],
    embedding_size=embedding,
    hidden_size=hidden,
    intermediate_size=plain['intermediate_size'],
    num_heads=plain['num_attention_heads'],
    num_layers=plain['num_hidden_layers'],
    max_length=length,
    convolutions=0,
    kernel=(),
    channels=0,
    convolution='paper2',
    norm='post',
    positions='learned',
    position_offset=first,
    segments=plain['type_vocab_size'],
    projection=embedding != hidden,
    tied=head and embedding == hidden and plain['tie_word_embeddings'],
    activation=_ACTIVATIONS[plain['hidden_act']],
    dropout=float(plain['hidden_dropout_prob']),
    initialization='bert',
    norm_epsilon=float(plain['layer_norm_eps']),
    flops_heads=plain['num_attention_heads'],
    dtype='float32',
    remat=False,
    encoder='',
    projection_norm=embedding == hidden,
    segment_embeddings_for_pairs=kind.second and plain['type_vocab_size'] > 1,
    short_convolution=0,
  )


def _embedding(plain: Mapping[str, Any], kind: HfFamily, what: str) -> int:
  """Columns of the tables, which only an ELECTRA has of another number than hidden ones."""
  if kind.family is not FAMILIES['electra']:
    return plain['hidden_size']
  if fault := schema.find_schema_fault(plain, {'embedding_size?': COUNT}):
    raise InputError(what, f'config.json: {fault}', 'restore the file')
  return plain['embedding_size'] if 'embedding_size' in plain else 128
