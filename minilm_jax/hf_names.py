"""What Hugging Face's transformers calls the weights of RoBERTa, BERT and ELECTRA, beside what we call them."""

import dataclasses
import re
from collections.abc import Mapping

# Our modules and theirs, whose names begin with that of the family; `N` is the number of a block.
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
_KINDS = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}


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
    'roberta': Family('roberta', 'lm_head.dense', 'lm_head.layer_norm', 'lm_head.decoder', 'lm_head.bias',
                      {'roberta.pooler.': 'the pooler'}),
    'bert': Family('bert', f'{_HEAD}.transform.dense', f'{_HEAD}.transform.LayerNorm', f'{_HEAD}.decoder',
                   f'{_HEAD}.bias', {'bert.pooler.': 'the pooler',
                                     'cls.seq_relationship.': 'the head that guesses the next sentence'}),
    'electra': Family('electra', 'generator_predictions.dense', 'generator_predictions.LayerNorm', 'generator_lm_head',
                      'generator_lm_head.bias',
                      {'discriminator_predictions.': 'the head that finds replaced tokens'}),
}


def theirs(name: str, modules: Mapping[str, str]) -> str:
  """Their name of one of our parameters.

  >>> theirs('encoder.blocks.3.feed_forward_norm.scale', FAMILIES['roberta'].encoder)
  'roberta.encoder.layer.3.output.LayerNorm.weight'
  """
  if name in modules:
    return modules[name]
  module, _, kind = name.rpartition('.')
  number = re.search(r'\.\d+\.', module)
  stem = modules[re.sub(r'\.\d+\.', '.N.', module)]
  return f'{stem.replace(".N.", number[0]) if number else stem}.{_KINDS[kind]}'
