"""Our models as Hugging Face's transformers has them: arrays by their names, and what `config.json`
says of the shape.

What a RoBERTa can be becomes one, and needs nothing but transformers. Everything else reads the one
file that is exported beside it, `modeling_minilm.py`, whose parameters are named as ours. Only
arrays and JSON come out, so neither transformers nor torch is needed here. Left out: writing files,
and tokenizers.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.model import heads
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.model.initialization import path_name

# What Hugging Face's transformers calls the weights of RoBERTa, BERT and ELECTRA, beside what we
# call them. Our modules and theirs, whose names begin with that of the family; `N` is the number of
# a block.
EMBEDDING, _BLOCK = 'embeddings', 'encoder.layer.N'
_BODY = {
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
_PARAMETER_KINDS = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}


@dataclasses.dataclass(frozen=True)
class Family:
  """How models of one kind name their weights.

  Attributes:
    name: of the kind, and of what all names of the encoder begin with.
    transform, norm, decoder: of the masked-LM head.
    bias: of its output, where the decoder has it under another name too; else that of the decoder.
    dropped: what the first words of other names belong to, of which we have nothing.
  """

  name: str
  transform: str
  norm: str
  decoder: str
  bias: str
  dropped: Mapping[str, str]

  @property
  def table(self) -> str:
    """The name of the embedding table."""
    return f'{self.name}.{EMBEDDING}.word_embeddings.weight'

  @property
  def encoder(self) -> dict[str, str]:
    """Our modules of an encoder, and theirs."""
    return {ours: f'{self.name}.{theirs}' for ours, theirs in _BODY.items()}

  @property
  def masked(self) -> dict[str, str]:
    """Our modules of a masked language model, and theirs."""
    return self.encoder | {'transform': self.transform, 'norm': self.norm, 'output': self.decoder}

  @property
  def over_pieces(self) -> set[str]:
    """The weights that have a row or a number for each piece."""
    return {self.table, f'{self.decoder}.weight', f'{self.decoder}.bias', self.bias}


_HEAD = 'cls.predictions'
FAMILIES = {
  'roberta': Family(
    'roberta',
    'lm_head.dense',
    'lm_head.layer_norm',
    'lm_head.decoder',
    'lm_head.bias',
    {'roberta.pooler.': 'the pooler'},
  ),
  'bert': Family(
    'bert',
    f'{_HEAD}.transform.dense',
    f'{_HEAD}.transform.LayerNorm',
    f'{_HEAD}.decoder',
    f'{_HEAD}.bias',
    {
      'bert.pooler.': 'the pooler',
      'cls.seq_relationship.': 'the head that guesses the next sentence',
    },
  ),
  'electra': Family(
    'electra',
    'generator_predictions.dense',
    'generator_predictions.LayerNorm',
    'generator_lm_head',
    'generator_lm_head.bias',
    {'discriminator_predictions.': 'the head that finds replaced tokens'},
  ),
}


def hf_parameter_name(name: str, modules: Mapping[str, str]) -> str:
  """Their name of one of our parameters.

  >>> hf_parameter_name('encoder.blocks.3.feed_forward_norm.scale', FAMILIES['roberta'].encoder)
  'roberta.encoder.layer.3.output.LayerNorm.weight'
  """
  if name in modules:
    return modules[name]
  module, _, kind = name.rpartition('.')
  number = re.search(r'\.\d+\.', module)
  stem = modules[re.sub(r'\.\d+\.', '.N.', module)]
  return f'{stem.replace(".N.", number[0]) if number else stem}.{_PARAMETER_KINDS[kind]}'


# Weights of RoBERTa, BERT and ELECTRA as Hugging Face's transformers names them, in our models.
M = TypeVar('M')
_ROBERTA = FAMILIES['roberta']
_ENCODER, _MASKED = _ROBERTA.encoder, _ROBERTA.masked
_CLASSIFIER = _ENCODER | {'dense': 'classifier.dense', 'output': 'classifier.out_proj'}
# of older versions
_BUFFERS = tuple(f'.{EMBEDDING}.{name}' for name in ('position_ids', 'token_type_ids'))
_HF_FIELDS = {
  'norm': 'post',
  'positions': 'learned',
  'projection': False,
  'position_offset': 2,
  'convolutions': 0,
  'encoder': '',
  'short_convolution': 0,
}
_OLD_SUFFIXES, _NEW_SUFFIXES = re.compile('gamma$|beta$'), {'gamma': 'weight', 'beta': 'bias'}
_SHOWN = 4  # names in an error


def classifier_from_roberta(
  weights: Mapping[str, np.ndarray], config: EncoderConfig, head: HeadConfig, classes: int
) -> Classifier:
  """Our classifier with the weights of a `RobertaForSequenceClassification`.

  Args:
    weights: theirs by name, of any floating type; matrices are `[out, in]`, the table of positions
      has `length + 2` rows.
    config: the same shape as theirs, with `segments` their `type_vocab_size` (1 in a RoBERTa; the
      first row is read).
    head: pooling 'first' and one copy, which is their head.
    classes: their `num_labels`; 0 is a regression, for which they have one.

  Raises:
    InputError: a configuration or head that RoBERTa has not; weights that are missing, left over or
      of another shape.
  """
  _check(config)
  for field, value, why in (
    ('pooling', 'first', 'theirs reads <s>'),
    ('ensemble_size', 1, 'theirs is one'),
  ):
    if getattr(head, field) != value:
      raise InputError(
        'the head of RoBERTa', f'head.{field}={getattr(head, field)!r}', f'give {value!r}: {why}'
      )
  shapes = jax.eval_shape(lambda: heads.init_classifier(config, head, classes, jax.random.key(0)))
  return _load_into(shapes, weights, _CLASSIFIER)


def masked_language_model_from_roberta(
  weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> MaskedLanguageModel:
  """Our masked language model with the weights of a `RobertaForMaskedLM`, its output tied or not.

  Where `config.tied`, `lm_head.decoder` is a second name of the table and of `lm_head.bias`; it may
  be absent, as in their files, and must else be equal. Untied, they compute with the bias of
  `lm_head.decoder`, and read no other.

  Args:
    weights: theirs by name, as in `classifier_from_roberta`.
    config: the same shape as theirs.

  Raises:
    InputError: as in `classifier_from_roberta`; or tied in name only.
  """
  _check(config)
  return load_masked_language_model(_ROBERTA, weights, config)


def load_masked_language_model(
  family: Family, weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> MaskedLanguageModel:
  """Our masked language model with the weights of one of a family; see
  `masked_language_model_from_roberta`.
  """
  shapes = jax.eval_shape(lambda: heads.init_masked_language_model(config, jax.random.key(0)))
  decoder, other = f'{family.decoder}.weight', f'{family.decoder}.bias'
  if not config.tied:
    unread = family.bias if other in weights and other != family.bias else ''
    bias = other if other in weights else family.bias
    return _load_into(
      shapes,
      {name: weight for name, weight in weights.items() if name != unread},
      family.masked | {'output.bias': bias},
    )
  bias = family.bias if family.bias in weights else other
  twice = {decoder: family.table, **({other: bias} if other != bias else {})}
  for name, first in twice.items():
    if name in weights and first in weights and not np.array_equal(weights[name], weights[first]):
      raise InputError(
        'a tied output (tied=True)', f'{name} is not equal to {first}', 'give tied=False'
      )
  once = {name: weight for name, weight in weights.items() if name not in twice}
  return _load_into(shapes, once, family.masked | {'output_bias': bias})


def load_encoder(
  family: Family, weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> dict[str, Any]:
  """Our encoder with the weights of one of a family, as the part 'encoder' of a model that has
  nothing else.

  Raises:
    InputError: as in `classifier_from_roberta`.
  """
  shapes = jax.eval_shape(
    lambda: heads.init_masked_language_model(config, jax.random.key(0)).encoder
  )
  return _load_into({'encoder': shapes}, weights, family.encoder)


def rename_parameters(family: Family, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The weights by the names of today's models with a head.

  A model that was saved alone lacks the name of its family, and those from TensorFlow have norms of
  gamma and beta.

  >>> list(rename_parameters(hf_weights.FAMILIES['bert'], {'embeddings.LayerNorm.gamma': np.ones(2)}))
  ['bert.embeddings.LayerNorm.weight']
  """
  alone = f'{EMBEDDING}.word_embeddings.weight' in weights or not any(
    name.startswith(f'{family.name}.') for name in weights
  )
  begin = f'{family.name}.' if alone else ''
  return {
    begin + _OLD_SUFFIXES.sub(lambda found: _NEW_SUFFIXES[found[0]], name): weight
    for name, weight in weights.items()
  }


def hf_names(model: Classifier | MaskedLanguageModel) -> dict[str, str]:
  """Their name of each of our parameters: the way out (`hf_weights`)."""
  modules = (
    _CLASSIFIER if isinstance(model, Classifier) else _MASKED | {'output_bias': _ROBERTA.bias}
  )
  ours = [path_name(path) for path, _ in jax.tree.leaves_with_path(model)]
  return {name: hf_parameter_name(name, modules) for name in ours}


def unsupported_fields(config: EncoderConfig) -> list[str]:
  """The fields in which an encoder is none that RoBERTa has."""
  return [field for field, value in _HF_FIELDS.items() if getattr(config, field) != value]


def _check(config: EncoderConfig) -> None:
  for field in unsupported_fields(config):
    raise InputError(
      'weights of a RoBERTa',
      f'model.{field}={getattr(config, field)!r}',
      f'give {_HF_FIELDS[field]!r}',
    )


def _load_into(shapes: M, weights: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> M:
  """The model with each parameter taken from its weight, each weight taken once."""
  named = {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes)}
  wanted = {
    hf_parameter_name(name, modules): shape[::-1] if name.endswith('.kernel') else shape
    for name, shape in named.items()
  }
  found = {name: weight for name, weight in weights.items() if not name.endswith(_BUFFERS)}
  wrong = {
    'missing': [f'{name} {shape}' for name, shape in wanted.items() if name not in found],
    'left over': [f'{name} {weight.shape}' for name, weight in found.items() if name not in wanted],
    'of another shape': [
      f'{name} {found[name].shape}, not {shape}'
      for name, shape in wanted.items()
      if name in found and found[name].shape != shape
    ],
    'not of floats': [
      f'{name} {weight.dtype}'
      for name, weight in found.items()
      if not jnp.issubdtype(weight.dtype, jnp.floating)
    ],
    'not finite': [name for name, weight in found.items() if not np.isfinite(weight).all()],
  }
  if any(wrong.values()):
    raise InputError(
      f'a model of {len(wanted)} parameters from weights of Hugging Face',
      '; '.join(f'{kind}: {_format_names(names)}' for kind, names in wrong.items() if names),
      'give the shape that its config.json states, for a RoBERTa length = max_position_embeddings - 2, '
      'and all weights of one model of that shape and kind, such as RobertaForMaskedLM',
    )

  def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = path_name(path)
    weight = np.asarray(found[hf_parameter_name(name, modules)], leaf.dtype)
    # a copy: theirs may change under torch
    return jnp.array(weight.T if name.endswith('.kernel') else weight)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _format_names(names: list[str]) -> str:
  """The first few, and how many more there are.

  >>> _format_names(['a', 'b', 'c', 'd', 'e'])
  'a, b, c, d and 1 more'
  """
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more


_SEGMENTS = 'roberta.embeddings.token_type_embeddings.weight'
_HF_NAMES = {
  'num_heads': 'num_attention_heads',
  'num_layers': 'num_hidden_layers',
  'max_length': 'max_position_embeddings',
}
_SHAPE = (
  'vocab_size',
  'embedding_size',
  'hidden_size',
  'intermediate_size',
  'num_heads',
  'num_layers',
  'max_length',
  'convolutions',
  'kernel',
  'channels',
  'convolution',
  'norm',
  'positions',
  'position_offset',
  'segments',
  'projection',
  'tied',
  'activation',
  'dropout',
  'norm_epsilon',
  'short_convolution',
)
_TENSOR_KINDS = {
  'kernel': 'weight',
  'scale': 'weight',
  'embedding': 'weight',
  'running_variance': 'running_var',
}
MODULE = 'modeling_minilm'
_CLASSES = {MaskedLanguageModel: 'MaskedLM', Classifier: 'SequenceClassification'}
Weights = dict[str, np.ndarray]


def roberta_differences(config: EncoderConfig, head: HeadConfig | None) -> list[str]:
  """What keeps a model from being a RoBERTa, as `field=value`; nothing where it is one.

  Args:
    config: of the encoder.
    head: of a classifier; None for a masked language model, whose activation RoBERTa has fixed.
  """
  found = [f'model.{field}={getattr(config, field)!r}' for field in unsupported_fields(config)]
  if head is None:
    return found + (
      [f'model.activation={config.activation!r}'] if config.activation != 'gelu' else []
    )
  return found + [
    f'head.{field}={getattr(head, field)!r}'
    for field, value in (('pooling', 'first'), ('ensemble_size', 1))
    if getattr(head, field) != value
  ]


def export_weights(
  model: MaskedLanguageModel | Classifier,
  config: EncoderConfig,
  head: HeadConfig | None,
  labels: Sequence[str],
) -> tuple[Weights, dict[str, Any]]:
  """Weights by their name, in float32, and `config.json`.

  Args:
    model: the model.
    config: of its encoder.
    head: of a classifier, else None.
    labels: of its classes in the order of the outputs; none of a regression.
  """
  plain = not roberta_differences(config, head)
  kind = next(name for cls, name in _CLASSES.items() if isinstance(model, cls))
  found = _roberta_config(config, head) if plain else _custom_config(config, head, kind)
  found |= {
    'architectures': [f'{"Roberta" if plain else "MiniLM"}For{kind}'],
    'dtype': 'float32',
    'bos_token_id': tokenizer.BEGIN_ID,
    'pad_token_id': tokenizer.PAD_ID,
    'eos_token_id': tokenizer.END_ID,
  }
  if head is not None:
    names = labels or ['value']
    found |= {
      'id2label': {str(number): label for number, label in enumerate(names)},
      'label2id': {label: number for number, label in enumerate(names)},
      'problem_type': 'single_label_classification' if labels else 'regression',
    }
  return (_roberta(model, config) if plain else _custom_weights(model)), found


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
  names = hf_names(model)
  found = {names[name]: array for name, array in _arrays(model).items()}
  if not config.segments:  # theirs always adds one
    found[_SEGMENTS] = np.zeros((1, config.embedding_size), np.float32)
  if 'lm_head.decoder.bias' in found:  # untied; theirs keeps a second name of it
    found['lm_head.bias'] = found['lm_head.decoder.bias'].copy()
  return found


def _roberta_config(config: EncoderConfig, head: HeadConfig | None) -> dict[str, Any]:
  return {
    'model_type': 'roberta',
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.intermediate_size,
    'hidden_act': config.activation,
    'max_position_embeddings': config.max_length + config.position_offset,
    'type_vocab_size': max(1, config.segments),
    'hidden_dropout_prob': config.dropout,
    'attention_probs_dropout_prob': config.dropout,
    'layer_norm_eps': config.norm_epsilon,
    'tie_word_embeddings': config.tied,
    'classifier_dropout': head.dropout if head else None,
  }


def _custom_weights(model: MaskedLanguageModel | Classifier) -> Weights:
  found = {}
  for name, array in _arrays(model).items():
    module, dot, kind = name.rpartition('.')
    found[
      f'{_custom_class(module) if isinstance(model, Classifier) else module}{dot}{_TENSOR_KINDS.get(kind, kind)}'
    ] = array
    if kind == 'running_mean':
      found[f'{module}.num_batches_tracked'] = np.zeros((), np.int64)
  return found


def _custom_class(module: str) -> str:
  """A module of a classifier there, where all heads stand in one list.

  >>> _custom_class('dense'), _custom_class('others.0.output'), _custom_class('encoder.norm')
  ('heads.0.dense', 'heads.1.output', 'encoder.norm')
  """
  if module.startswith('encoder.'):
    return module
  other = re.fullmatch(r'others\.(\d+)\.(.+)', module)
  return f'heads.{int(other[1]) + 1}.{other[2]}' if other else f'heads.0.{module}'


def _custom_config(config: EncoderConfig, head: HeadConfig | None, kind: str) -> dict[str, Any]:
  found = {
    _HF_NAMES[name] if name in _HF_NAMES else name: value
    for name, value in dataclasses.asdict(config).items()
    if name in _SHAPE
  }
  found |= {
    'model_type': 'minilm_jax',
    'tie_word_embeddings': False,
    'auto_map': {
      'AutoConfig': f'{MODULE}.MiniLMConfig',
      'AutoModel': f'{MODULE}.MiniLMModel',
      f'AutoModelFor{kind}': f'{MODULE}.MiniLMFor{kind}',
    },
  }
  if head is not None:
    found |= {
      'pooling': head.pooling,
      'head_dropout': head.dropout,
      'ensemble_size': head.ensemble_size,
    }
  return found
