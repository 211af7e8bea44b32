"""Writes model folders in the format of Hugging Face, without torch and transformers."""

import json
import pathlib
import struct
from typing import Any

import numpy as np

from minilm_jax.interop import hf_weights

WORDS = (
  '[PAD]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  '[MASK]',
  *'abcdefghijklmnopqrstuvwxyz.,!?',
  *(f'##{letter}' for letter in 'abcdefghijklmnopqrstuvwxyz'),
  'the',
  'dog',
  'cat',
  'good',
  'bad',
  'film',
  'was',
)
BERT = {
  'model_type': 'bert',
  'architectures': ['BertForMaskedLM'],
  'vocab_size': len(WORDS),
  'hidden_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 32,
  'type_vocab_size': 2,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'pad_token_id': 0,
  'hidden_dropout_prob': 0.1,
}


def pack_tensors(arrays: dict[str, np.ndarray], **header: Any) -> bytes:
  """Returns a .safetensors file of float32 arrays; `header` replaces entries of the header."""
  start, entries, data = 0, {'__metadata__': {'format': 'pt'}}, b''
  for name, array in arrays.items():
    data += np.asarray(array, np.float32).tobytes()
    entries[name] = {'dtype': 'F32', 'shape': list(array.shape), 'data_offsets': [start, len(data)]}
    start = len(data)
  text = json.dumps(entries | header).encode()
  return struct.pack('<Q', len(text)) + text + data


def draw_bert_weights(seed: int = 0) -> dict[str, np.ndarray]:
  """Returns random weights of the configuration `BERT`, with a tied output projection."""
  generator = np.random.default_rng(seed)
  d, f = BERT['hidden_size'], BERT['intermediate_size']
  # The shape of each weight matrix; None for a layer normalization.
  shapes = {
    'embeddings.word_embeddings': (len(WORDS), d),
    'embeddings.position_embeddings': (32, d),
    'embeddings.token_type_embeddings': (2, d),
    'embeddings.LayerNorm': None,
    'pooler.dense': (d, d),
  }
  block = {
    'attention.self.query': (d, d),
    'attention.self.key': (d, d),
    'attention.self.value': (d, d),
    'attention.output.dense': (d, d),
    'attention.output.LayerNorm': None,
    'intermediate.dense': (f, d),
    'output.dense': (d, f),
    'output.LayerNorm': None,
  }
  shapes |= {f'encoder.layer.0.{name}': shape for name, shape in block.items()}
  head = hf_weights.FAMILIES['bert']
  shapes = {f'bert.{name}': shape for name, shape in shapes.items()}
  shapes |= {head.transform: (d, d), head.norm: None}
  parameters = {head.bias: (len(WORDS),)}
  for name, shape in shapes.items():
    parameters[f'{name}.weight'] = shape or (d,)
    if 'embeddings.' not in name or shape is None:
      parameters[f'{name}.bias'] = (shape or (d,))[:1]
  return {
    name: generator.standard_normal(shape, np.float32) * 0.2 + ('LayerNorm.weight' in name)
    for name, shape in parameters.items()
  }


def write_folder(
  path: pathlib.Path, weights: dict[str, np.ndarray] | None = None, **changes: Any
) -> pathlib.Path:
  """Writes a small BERT with vocab.txt and returns the folder.

  Args:
    path: the folder to create.
    weights: arrays by name; random by default.
    **changes: changed fields of config.json; None removes a field.
  """
  path.mkdir(parents=True)
  config = {name: value for name, value in (BERT | changes).items() if value is not None}
  (path / 'config.json').write_text(json.dumps(config))
  (path / 'model.safetensors').write_bytes(
    pack_tensors(draw_bert_weights() if weights is None else weights)
  )
  (path / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
  return path
