"""Converts weights and configurations between minilm_jax and Hugging Face's transformers.

Weights of RoBERTa, BERT and ELECTRA load into models of minilm_jax. An export is a RoBERTa if
RoBERTa has the same computation. For other models, the export includes `modeling_minilm.py`, which
uses the parameter names of minilm_jax. This module converts arrays and JSON, and needs neither
transformers nor torch.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import TRANSFORMERS_ACTIVATIONS, EncoderConfig, HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.model import heads
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.model.initialization import flatten, map_with_name

MODELING_MODULE = 'modeling_minilm'
EMBEDDING, _BLOCK = 'embeddings', 'encoder.layer.N'
# Modules of an encoder in minilm_jax, and in transformers below the name of the family; `N` is the
# number of a block.
_ENCODER_MODULES = {
  'encoder.embedding.tokens': f'{EMBEDDING}.word_embeddings',
  'encoder.embedding.positions': f'{EMBEDDING}.position_embeddings',
  'encoder.embedding.segments': f'{EMBEDDING}.token_type_embeddings',
  'encoder.embedding.norm': f'{EMBEDDING}.LayerNorm',
  'encoder.projection.linear': 'embeddings_project',
  'encoder.blocks.N.attention.query': f'{_BLOCK}.attention.self.query',
  'encoder.blocks.N.attention.key': f'{_BLOCK}.attention.self.key',
  'encoder.blocks.N.attention.value': f'{_BLOCK}.attention.self.value',
  'encoder.blocks.N.attention.output': f'{_BLOCK}.attention.output.dense',
  'encoder.blocks.N.attention_norm': f'{_BLOCK}.attention.output.LayerNorm',
  'encoder.blocks.N.feed_forward.up': f'{_BLOCK}.intermediate.dense',
  'encoder.blocks.N.feed_forward.down': f'{_BLOCK}.output.dense',
  'encoder.blocks.N.feed_forward_norm': f'{_BLOCK}.output.LayerNorm',
}
# Kinds of parameters with another name in PyTorch.
_PARAMETER_KINDS = {
  'kernel': 'weight',
  'scale': 'weight',
  'embedding': 'weight',
  'running_variance': 'running_var',
}
# Older versions of transformers saved these buffers.
_BUFFERS = tuple(f'.{EMBEDDING}.{name}' for name in ('position_ids', 'token_type_ids'))
_OLD_SUFFIXES = {'gamma': 'weight', 'beta': 'bias'}
# Values of RoBERTa for fields of the encoder and of the head of a classifier.
_ROBERTA_FIELDS = {
  'norm': 'post',
  'positions': 'learned',
  'projection': False,
  'position_offset': 2,
  'convolutions': 0,
  'encoder': '',
  'short_convolution': 0,
}
_ROBERTA_HEAD_FIELDS = {'pooling': 'first', 'ensemble_size': 1}
# Fields of EncoderConfig that an exported config.json omits or renames.
_INTERNAL_FIELDS = (
  'encoder',
  'initialization',
  'flops_heads',
  'dtype',
  'remat',
  'projection_norm',
  'segment_embeddings_for_pairs',
)
_HF_FIELD_NAMES = {
  'num_heads': 'num_attention_heads',
  'num_layers': 'num_hidden_layers',
  'max_length': 'max_position_embeddings',
}
_MAX_LISTED_NAMES = 4  # in an error
Weights = dict[str, np.ndarray]
M = TypeVar('M')


@dataclasses.dataclass(frozen=True)
class Family:
  """Names of the weights and conventions in a family of models; the defaults are those of BERT.

  Attributes:
    name: Name of the family, and prefix of all names of the encoder.
    bias: Bias of the output projection; may be a second name of the decoder's bias.
    unsupported: Prefixes of weights without a counterpart in minilm_jax, with a description.
    pad_id: `pad_token_id` if config.json lacks this field.
    positions_from_pad: Whether positions start at `pad_token_id + 1` instead of 0.
    pair_segments: Whether the two texts of a pair have different segments.
    special_pieces: Names of the special pieces, in the order of SPECIAL_TOKENS.
    num_separators: Number of `</s>` between two texts.
    gelu_head: Prefix of the masked-LM head if the head uses GELU for any activation of the encoder;
      otherwise ''.
  """

  name: str
  transform: str
  norm: str
  decoder: str
  bias: str
  unsupported: Mapping[str, str]
  pad_id: int = 0
  positions_from_pad: bool = False
  pair_segments: bool = True
  special_pieces: tuple[str, ...] = ('[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]')
  num_separators: int = 1
  gelu_head: str = ''

  @property
  def table(self) -> str:
    """Name of the embedding table."""
    return f'{self.name}.{EMBEDDING}.word_embeddings.weight'

  @property
  def encoder_modules(self) -> dict[str, str]:
    """Modules of an encoder in minilm_jax and in transformers."""
    return {name: f'{self.name}.{hf_name}' for name, hf_name in _ENCODER_MODULES.items()}

  @property
  def mlm_modules(self) -> dict[str, str]:
    """Modules of a masked language model in minilm_jax and in transformers."""
    head = {'transform': self.transform, 'norm': self.norm, 'output': self.decoder}
    return self.encoder_modules | head

  @property
  def vocab_weights(self) -> set[str]:
    """Names of the weights with a row or a number for each piece."""
    return {self.table, f'{self.decoder}.weight', f'{self.decoder}.bias', self.bias}


_BERT_HEAD = 'cls.predictions'
_ROBERTA = Family(
  'roberta',
  'lm_head.dense',
  'lm_head.layer_norm',
  'lm_head.decoder',
  'lm_head.bias',
  {'roberta.pooler.': 'the pooler'},
  pad_id=1,
  positions_from_pad=True,
  pair_segments=False,
  special_pieces=('<s>', '<pad>', '</s>', '<unk>', '<mask>'),
  num_separators=2,
  gelu_head='lm_head.',
)
# Families by `model_type`; the first three differ only in their tokenizers.
FAMILIES = {
  **dict.fromkeys(('roberta', 'xlm-roberta', 'camembert'), _ROBERTA),
  'bert': Family(
    'bert',
    f'{_BERT_HEAD}.transform.dense',
    f'{_BERT_HEAD}.transform.LayerNorm',
    f'{_BERT_HEAD}.decoder',
    f'{_BERT_HEAD}.bias',
    {
      'bert.pooler.': 'the pooler',
      'cls.seq_relationship.': 'the head for next-sentence prediction',
    },
  ),
  'electra': Family(
    'electra',
    'generator_predictions.dense',
    'generator_predictions.LayerNorm',
    'generator_lm_head',
    'generator_lm_head.bias',
    {'discriminator_predictions.': 'the head for replaced-token detection'},
    gelu_head='generator_',
  ),
}
ROBERTA_CLASSIFIER_MODULES = _ROBERTA.encoder_modules | {
  'dense': 'classifier.dense',
  'output': 'classifier.out_proj',
}


def hf_parameter_name(name: str, modules: Mapping[str, str]) -> str:
  """Returns the name of a parameter in transformers.

  >>> modules = FAMILIES['roberta'].encoder_modules
  >>> hf_parameter_name('encoder.blocks.3.feed_forward_norm.scale', modules)
  'roberta.encoder.layer.3.output.LayerNorm.weight'
  """
  if name in modules:
    return modules[name]
  module, _, kind = name.rpartition('.')
  number = re.search(r'\.\d+\.', module)
  stem = modules[re.sub(r'\.\d+\.', '.N.', module)]
  stem = stem.replace('.N.', number[0]) if number else stem
  return f'{stem}.{_PARAMETER_KINDS.get(kind, kind)}'


def rename_parameters(family: Family, weights: Mapping[str, np.ndarray]) -> Weights:
  """Returns weights by the names that current models with a head have.

  An encoder without a head lacks the prefix of the family. Models from TensorFlow name the
  parameters of norms gamma and beta.

  >>> list(rename_parameters(FAMILIES['bert'], {'embeddings.LayerNorm.gamma': np.ones(2)}))
  ['bert.embeddings.LayerNorm.weight']
  """
  has_prefix = any(name.startswith(f'{family.name}.') for name in weights)
  prefix = '' if has_prefix else f'{family.name}.'
  return {
    prefix + re.sub('gamma$|beta$', lambda match: _OLD_SUFFIXES[match[0]], name): weight
    for name, weight in weights.items()
  }


def load_masked_language_model(
  family: Family, weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> MaskedLanguageModel:
  """Returns a masked language model with the weights of a model of a family.

  With `config.tied`, weight and bias of the decoder are second names of the embedding table and the
  output bias. The second names may be missing, as in published files; otherwise they must be equal.
  Without `config.tied`, the function reads the bias of the decoder.

  Raises:
    InputError: Weights are missing, unexpected, of another shape, or tied but different.
  """
  shapes = heads.trace_masked_language_model(config)
  decoder, decoder_bias = f'{family.decoder}.weight', f'{family.decoder}.bias'
  if not config.tied:
    bias = decoder_bias if decoder_bias in weights else family.bias
    unread = {family.bias} - {bias}
    read = {name: weight for name, weight in weights.items() if name not in unread}
    return load_weights(shapes, read, family.mlm_modules | {'output.bias': bias})
  bias = family.bias if family.bias in weights else decoder_bias
  duplicates = {decoder: family.table, decoder_bias: bias}
  if decoder_bias == bias:
    del duplicates[decoder_bias]
  for name, first in duplicates.items():
    if name in weights and first in weights and not np.array_equal(weights[name], weights[first]):
      raise InputError(
        'a tied output (tied=True)', f'{name} is not equal to {first}', 'give tied=False'
      )
  read = {name: weight for name, weight in weights.items() if name not in duplicates}
  return load_weights(shapes, read, family.mlm_modules | {'output_bias': bias})


def load_encoder(
  family: Family, weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> dict[str, Any]:
  """Returns {'encoder': encoder} with the weights of an encoder of a family.

  Raises:
    InputError: Weights are missing, unexpected, or of another shape.
  """
  shapes = heads.trace_masked_language_model(config).encoder
  return load_weights({'encoder': shapes}, weights, family.encoder_modules)


def load_weights(shapes: M, weights: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> M:
  """Returns a model with the given weights; every weight must be used exactly once.

  Args:
    shapes: Model of `jax.ShapeDtypeStruct`, of which the parameters have other axes than PyTorch.
    weights: Weights of transformers by name, of any floating type. Matrices are `[out, in]`.
    modules: Modules of transformers by the modules of the model.

  Raises:
    InputError: Weights are missing, unexpected, of another shape, or not finite.
  """
  expected = {
    hf_parameter_name(name, modules): x.shape[::-1] if name.endswith('.kernel') else x.shape
    for name, x in flatten(shapes).items()
  }
  weights = {name: weight for name, weight in weights.items() if not name.endswith(_BUFFERS)}
  faults = {
    'missing': [f'{name} {shape}' for name, shape in expected.items() if name not in weights],
    'unexpected': [
      f'{name} {weight.shape}' for name, weight in weights.items() if name not in expected
    ],
    'of another shape': [
      f'{name} {weights[name].shape}, not {shape}'
      for name, shape in expected.items()
      if name in weights and weights[name].shape != shape
    ],
    'not of floats': [
      f'{name} {weight.dtype}'
      for name, weight in weights.items()
      if not jnp.issubdtype(weight.dtype, jnp.floating)
    ],
    'not finite': [name for name, weight in weights.items() if not np.isfinite(weight).all()],
  }
  if any(faults.values()):
    raise InputError(
      f'a model with {len(expected)} arrays from weights of Hugging Face',
      '; '.join(f'{fault}: {_format_names(names)}' for fault, names in faults.items() if names),
      'give the sizes in the config.json of the weights (max_length is max_position_embeddings - 2 '
      'for a RoBERTa), and all weights of a supported model, such as RobertaForMaskedLM',
    )

  def fill(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    weight = np.asarray(weights[hf_parameter_name(name, modules)], leaf.dtype)
    # A copy, because torch may change its array.
    return jnp.array(weight.T if name.endswith('.kernel') else weight)

  return map_with_name(fill, shapes)


def _format_names(names: list[str]) -> str:
  """Returns the first names, and the number of further names.

  >>> _format_names(['a', 'b', 'c', 'd', 'e'])
  'a, b, c, d and 1 more'
  """
  more = f' and {len(names) - _MAX_LISTED_NAMES} more' if len(names) > _MAX_LISTED_NAMES else ''
  return ', '.join(names[:_MAX_LISTED_NAMES]) + more


def roberta_differences(config: EncoderConfig, head: HeadConfig | None) -> list[str]:
  """Returns the fields in which a model differs from RoBERTa, as `field=value`.

  A masked language model has no `head`, and RoBERTa gives it a fixed activation.
  """
  fields = _ROBERTA_FIELDS if head else {**_ROBERTA_FIELDS, 'activation': 'gelu'}
  return [
    f'{group}.{field}={getattr(part, field)!r}'
    for group, part, expected in (('model', config, fields), ('head', head, _ROBERTA_HEAD_FIELDS))
    for field, value in expected.items()
    if part is not None and getattr(part, field) != value
  ]


def export_weights(
  model: MaskedLanguageModel | Classifier,
  config: EncoderConfig,
  head: HeadConfig | None,
  labels: Sequence[str],
) -> tuple[Weights, dict[str, Any]]:
  """Returns weights by name, in float32, and the content of config.json.

  Only classifiers have a `head`; `labels` are in the order of the outputs, empty for a regression.
  """
  kind = 'SequenceClassification' if isinstance(model, Classifier) else 'MaskedLM'
  if roberta_differences(config, head):
    weights, config_json = _build_custom_weights(model), _build_custom_config(config, head, kind)
    architecture = f'MiniLMFor{kind}'
  else:
    weights = _build_roberta_weights(model, config)
    config_json = _build_roberta_config(config, head)
    architecture = f'RobertaFor{kind}'
  config_json |= {
    'architectures': [architecture],
    'dtype': 'float32',
    'bos_token_id': tokenizer.BEGIN_ID,
    'pad_token_id': tokenizer.PAD_ID,
    'eos_token_id': tokenizer.END_ID,
  }
  if head is not None:
    names = labels or ['value']
    config_json |= {
      'id2label': {str(number): label for number, label in enumerate(names)},
      'label2id': {label: number for number, label in enumerate(names)},
      'problem_type': 'single_label_classification' if labels else 'regression',
    }
  return weights, config_json


def _transpose_parameters(model: Any) -> Weights:
  """Returns parameters by path, with the axes of PyTorch."""
  arrays = {}
  for name, leaf in flatten(model).items():
    array = np.asarray(leaf, np.float32)
    if name.endswith('.kernel'):
      array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    arrays[name] = np.ascontiguousarray(array)
  return arrays


def _build_roberta_weights(
  model: MaskedLanguageModel | Classifier, config: EncoderConfig
) -> Weights:
  modules = _ROBERTA.mlm_modules | {'output_bias': _ROBERTA.bias}
  if isinstance(model, Classifier):
    modules = ROBERTA_CLASSIFIER_MODULES
  parameters = _transpose_parameters(model)
  weights = {hf_parameter_name(name, modules): array for name, array in parameters.items()}
  if not config.segments:  # RoBERTa always adds a segment
    segments = f'{_ROBERTA.encoder_modules["encoder.embedding.segments"]}.weight'
    weights[segments] = np.zeros((1, config.embedding_size), np.float32)
  if f'{_ROBERTA.decoder}.bias' in weights:  # without tying, the bias has a second name
    weights[_ROBERTA.bias] = weights[f'{_ROBERTA.decoder}.bias'].copy()
  return weights


def _build_roberta_config(config: EncoderConfig, head: HeadConfig | None) -> dict[str, Any]:
  return {
    'model_type': 'roberta',
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.intermediate_size,
    'hidden_act': TRANSFORMERS_ACTIVATIONS[config.activation],
    'max_position_embeddings': config.max_length + config.position_offset,
    'type_vocab_size': max(1, config.segments),
    'hidden_dropout_prob': config.dropout,
    'attention_probs_dropout_prob': config.dropout,
    'layer_norm_eps': config.norm_epsilon,
    'tie_word_embeddings': config.tied,
    'classifier_dropout': head.dropout if head else None,
  }


def _build_custom_weights(model: MaskedLanguageModel | Classifier) -> Weights:
  weights = {}
  for name, array in _transpose_parameters(model).items():
    module, dot, kind = name.rpartition('.')
    if isinstance(model, Classifier):
      module = _rename_module(module)
    weights[f'{module}{dot}{_PARAMETER_KINDS.get(kind, kind)}'] = array
    if kind == 'running_mean':
      weights[f'{module}.num_batches_tracked'] = np.zeros((), np.int64)
  return weights


def _rename_module(module: str) -> str:
  """Returns the exported name of a module of a classifier; the export has all heads in a list.

  >>> _rename_module('dense'), _rename_module('others.0.output'), _rename_module('encoder.norm')
  ('heads.0.dense', 'heads.1.output', 'encoder.norm')
  """
  if module.startswith('encoder.'):
    return module
  other = re.fullmatch(r'others\.(\d+)\.(.+)', module)
  return f'heads.{int(other[1]) + 1}.{other[2]}' if other else f'heads.0.{module}'


def _build_custom_config(
  config: EncoderConfig, head: HeadConfig | None, kind: str
) -> dict[str, Any]:
  config_json = {
    _HF_FIELD_NAMES.get(field.name, field.name): getattr(config, field.name)
    for field in dataclasses.fields(config)
    if field.name not in _INTERNAL_FIELDS
  }
  config_json |= {
    'model_type': 'minilm_jax',
    'tie_word_embeddings': False,
    'auto_map': {
      'AutoConfig': f'{MODELING_MODULE}.MiniLMConfig',
      'AutoModel': f'{MODELING_MODULE}.MiniLMModel',
      f'AutoModelFor{kind}': f'{MODELING_MODULE}.MiniLMFor{kind}',
    },
  }
  if head is not None:
    config_json |= {
      'pooling': head.pooling,
      'head_dropout': head.dropout,
      'ensemble_size': head.ensemble_size,
    }
  return config_json
