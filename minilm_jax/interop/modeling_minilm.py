"""Defines models of minilm_jax in PyTorch for Hugging Face's transformers.

`minilm export --format=hf` copies this file into the exported folder if transformers has no class
for the model: a factorised embedding, pre-norm blocks, positions that are not learned, or
convolutions before the blocks. The file does not import minilm_jax, and uses its parameter names.
Axes: `B` batch, `L` length, `D` hidden size, `F` feed-forward, `V` vocabulary, `C` classes.

`attention_mask` marks the pads; without it, the id of the pad does. The models have no decoding, no
cache, and no output of attention weights.
"""

import functools
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

_MASKED_SCORE = -1e30
_ROTARY_BASE, _SINUSOID_SCALE = 10_000.0, 0.02
_ACTIVATIONS = {
  'gelu': F.gelu,
  'gelu_tanh': functools.partial(F.gelu, approximate='tanh'),
  'relu': F.relu,
  'silu': F.silu,
}


class MiniLMConfig(PretrainedConfig):
  """Configuration of a model: sizes as in transformers, other fields as in `EncoderConfig`."""

  model_type = 'minilm_jax'
  defaults = {
    'vocab_size': 512,
    'embedding_size': 32,
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_attention_heads': 4,
    'num_hidden_layers': 1,
    'max_position_embeddings': 64,
    'convolutions': 0,
    'kernel': (),
    'channels': 0,
    'convolution': 'paper2',
    'norm': 'post',
    'positions': 'learned',
    'position_offset': 2,
    'segments': 0,
    'projection': True,
    'tied': False,
    'activation': 'gelu',
    'dropout': 0.0,
    'norm_epsilon': 1e-5,
    'short_convolution': 0,
    'pooling': 'first',
    'head_dropout': 0.0,
    'ensemble_size': 1,
    'pad_token_id': 1,
  }

  def __init__(self, **fields):
    for name, default in self.defaults.items():
      setattr(self, name, fields.pop(name, default))
    fields['tie_word_embeddings'] = False
    super().__init__(pad_token_id=self.pad_token_id, **fields)


def _build_norm(config: MiniLMConfig, size: int) -> nn.LayerNorm:
  return nn.LayerNorm(size, config.norm_epsilon)


def _compute_angles(length: int, half: int, device: torch.device) -> torch.Tensor:
  """Returns position times frequency `[L half]`."""
  powers = _ROTARY_BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
  return torch.arange(length, device=device, dtype=torch.float32)[:, None] * powers[None]


def _rotate(x: torch.Tensor) -> torch.Tensor:
  """Rotates each pair of features of `x [B H L d]` by an angle that grows with the position."""
  half = x.shape[3] // 2
  angles = _compute_angles(x.shape[2], half, x.device)
  first, second = x[..., :half], x[..., half:]
  cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
  return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Embedding(nn.Module):
  """Sums token, position and segment vectors; applies LayerNorm and dropout."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    size, self.offset = config.embedding_size, config.position_offset
    self.sinusoidal = config.positions == 'sinusoidal'
    self.tokens = nn.Embedding(config.vocab_size, size)
    num_positions = config.max_position_embeddings + self.offset
    self.positions = nn.Embedding(num_positions, size) if config.positions == 'learned' else None
    self.segments = nn.Embedding(config.segments, size) if config.segments else None
    self.norm, self.dropout = _build_norm(config, size), nn.Dropout(config.dropout)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    x = self.tokens(tokens)
    if self.positions is not None:
      x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device) + self.offset)
    if self.sinusoidal:
      angles = _compute_angles(x.shape[1], x.shape[2] // 2, x.device)
      x = x + _SINUSOID_SCALE * torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(x.dtype)
    if self.segments is not None:
      x = x + self.segments.weight[0]
    return self.dropout(self.norm(x))


class Projection(nn.Module):
  """Applies Linear(E, D) and LayerNorm."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.linear = nn.Linear(config.embedding_size, config.hidden_size)
    self.norm = _build_norm(config, config.hidden_size)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.norm(self.linear(x))


class ShortConvolution(nn.Module):
  """Adds the depthwise convolution of a row to the row; pads are zeros."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.short_convolution))
    self.bias = nn.Parameter(torch.zeros(config.hidden_size))

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    channels, width = self.weight.shape
    rows = (x * mask[:, :, None].to(x.dtype)).transpose(1, 2)
    y = F.conv1d(rows, self.weight[:, None], self.bias, padding=width // 2, groups=channels)
    return x + y.transpose(1, 2)


class Convolution(nn.Conv2d):
  """Conv2d with (k - 1) // 2 zeros before and k // 2 zeros after the image."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    rows, columns = (((size - 1) // 2, size // 2) for size in self.kernel_size)
    return super().forward(F.pad(x, (*columns, *rows)))


class Layer(nn.Module):
  """Applies convolution, normalization, activation to `[B I L D]`; `fixed` zeroes pads first."""

  def __init__(self, kernel: tuple[int, int], inputs: int, outputs: int, config: MiniLMConfig):
    super().__init__()
    self.is_paper2 = config.convolution == 'paper2'
    self.activation = _ACTIVATIONS[config.activation]
    self.convolution = Convolution(inputs, outputs, kernel)
    self.norm = nn.BatchNorm2d(outputs) if self.is_paper2 else _build_norm(config, outputs)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if self.is_paper2:
      return self.activation(self.norm(self.convolution(x)))
    x = self.convolution(x * mask[:, None, :, None].to(x.dtype))
    return self.activation(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class FrontEnd(nn.Module):
  """Applies convolutions to the vectors of a row as an image, from one channel to one channel."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.is_paper2 = config.convolution == 'paper2'
    self.pre_norm = config.norm == 'pre'
    sizes, kernel = [1] + [config.channels] * config.convolutions, tuple(config.kernel)
    self.layers = nn.ModuleList(
      [Layer(kernel, *pair, config) for pair in itertools.pairwise(sizes)]
    )
    if self.is_paper2:
      self.last = Layer((1, 1), config.channels, 1, config)
    else:
      self.last = Convolution(config.channels, 1, (1, 1))
      self.norm = _build_norm(config, config.hidden_size)
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if self.is_paper2:
      return self.last(self.stack(x, mask), mask)[:, 0]
    if self.pre_norm:
      return x + self.dropout(self.last(self.stack(self.norm(x), mask))[:, 0])
    return self.norm(x + self.dropout(self.last(self.stack(x, mask))[:, 0]))

  def stack(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Applies all layers but the last."""
    x = x[:, None]
    for layer in self.layers:
      x = layer(x, mask)
    return x


class Attention(nn.Module):
  """Applies scaled dot-product attention over the tokens without pads."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    size, self.heads = config.hidden_size, config.num_attention_heads
    self.length, self.rotary = config.max_position_embeddings, config.positions == 'rotary'
    self.query, self.key, self.value, self.output = (nn.Linear(size, size) for _ in range(4))
    self.distance_bias = None
    if config.positions == 'relative':
      self.distance_bias = nn.Parameter(torch.zeros(self.heads, 2 * self.length - 1))
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    linears = self.query, self.key, self.value
    q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in linears)
    if self.rotary:
      q, k = _rotate(q), _rotate(k)
    scores = (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)).float()
    if self.distance_bias is not None:
      position = torch.arange(x.shape[1], device=x.device)
      distance = position[None] - position[:, None]
      scores = scores + self.distance_bias[:, distance + self.length - 1]
    shares = scores.masked_fill(~mask[:, None, None], _MASKED_SCORE).softmax(-1).to(v.dtype)
    return self.output((self.dropout(shares) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
  """Applies Linear(D, F), activation, Linear(F, D)."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.activation = _ACTIVATIONS[config.activation]
    self.up = nn.Linear(config.hidden_size, config.intermediate_size)
    self.down = nn.Linear(config.intermediate_size, config.hidden_size)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.down(self.activation(self.up(x)))


class Block(nn.Module):
  """Applies attention and feed-forward, each with dropout, a residual, and LayerNorm."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.pre_norm = config.norm == 'pre'
    self.attention, self.feed_forward = Attention(config), FeedForward(config)
    self.attention_norm, self.feed_forward_norm = (
      _build_norm(config, config.hidden_size) for _ in range(2)
    )
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if self.pre_norm:
      x = x + self.dropout(self.attention(self.attention_norm(x), mask))
      return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
    x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
    return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
  """Encodes token ids `[B L]` as vectors `[B L D]`; BatchNorm needs rows of the full length."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.pad, self.length = config.pad_token_id, config.max_position_embeddings
    self.reads_full_rows = config.convolutions > 0 and config.convolution == 'paper2'
    self.embedding = Embedding(config)
    self.projection = Projection(config) if config.projection else None
    self.short_convolution = ShortConvolution(config) if config.short_convolution else None
    self.convolution = FrontEnd(config) if config.convolutions else None
    self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
    self.norm = _build_norm(config, config.hidden_size) if config.norm == 'pre' else None

  def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    length = tokens.shape[1]
    if self.reads_full_rows:
      tokens = F.pad(tokens, (0, self.length - length), value=self.pad)
      mask = F.pad(mask, (0, self.length - length))
    x = self.embedding(tokens)
    x = x if self.projection is None else self.projection(x)
    x = x if self.short_convolution is None else self.short_convolution(x, mask)
    x = x if self.convolution is None else self.convolution(x, mask)
    for block in self.blocks:
      x = block(x, mask)
    return (x if self.norm is None else self.norm(x))[:, :length]


class MiniLMPreTrained(PreTrainedModel):
  """Base class of all models.

  The class has no `base_model_prefix`: transformers tries names with and without the prefix, and
  `norm` exists in both modules.
  """

  config_class = MiniLMConfig

  def mask(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Returns True at tokens and False at pads `[B L]`."""
    return tokens != self.config.pad_token_id if attention_mask is None else attention_mask.bool()


class MiniLMModel(MiniLMPreTrained):
  """The encoder without a head: `last_hidden_state [B L D]`."""

  def __init__(self, config: MiniLMConfig):
    super().__init__(config)
    self.encoder = Encoder(config)
    self.post_init()

  def forward(
    self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others
  ) -> BaseModelOutput:
    return BaseModelOutput(
      last_hidden_state=self.encoder(input_ids, self.mask(input_ids, attention_mask))
    )


class MiniLMForMaskedLM(MiniLMPreTrained):
  """Computes logits `[B L V]` of each token; `tied` uses the embedding table as output matrix.

  The loss ignores labels of -100.
  """

  def __init__(self, config: MiniLMConfig):
    super().__init__(config)
    self.encoder = Encoder(config)
    self.transform = nn.Linear(config.hidden_size, config.hidden_size)
    self.norm = _build_norm(config, config.hidden_size)
    if config.tied:
      self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
    else:
      self.output = nn.Linear(config.hidden_size, config.vocab_size)
    self.post_init()

  def forward(
    self,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    **others,
  ) -> MaskedLMOutput:
    x = self.encoder(input_ids, self.mask(input_ids, attention_mask))
    x = self.norm(_ACTIVATIONS[self.config.activation](self.transform(x)))
    if self.config.tied:
      logits = F.linear(x, self.encoder.embedding.tokens.weight, self.output_bias)
    else:
      logits = self.output(x)
    if labels is None:
      return MaskedLMOutput(logits=logits)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return MaskedLMOutput(loss=loss, logits=logits)


class Head(nn.Module):
  """Computes logits `[B C]` from the first vector, the mean, or a weighted sum over positions."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.pooling = config.pooling
    if self.pooling == 'positions':
      self.pool = nn.Linear(config.max_position_embeddings, 1)
    else:
      self.dense = nn.Linear(config.hidden_size, config.hidden_size)
    self.dropout = nn.Dropout(config.head_dropout)
    self.output = nn.Linear(config.hidden_size, config.num_labels)

  def logits(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns logits of each row."""
    if self.pooling == 'positions':
      return self.output(self.pool(x.transpose(1, 2))[..., 0])
    if self.pooling == 'mean':
      x = (x * mask[:, :, None].to(x.dtype)).sum(1) / mask.sum(1).clamp(min=1)[:, None].to(x.dtype)
    else:
      x = x[:, 0]
    return self.output(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


class MiniLMForSequenceClassification(MiniLMPreTrained):
  """Computes logits `[B C]` of each row, the mean over all heads; one label is a regression."""

  def __init__(self, config: MiniLMConfig):
    super().__init__(config)
    self.num_labels, self.encoder = config.num_labels, Encoder(config)
    self.heads = nn.ModuleList([Head(config) for _ in range(config.ensemble_size)])
    self.post_init()

  def forward(
    self,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    **others,
  ) -> SequenceClassifierOutput:
    mask = self.mask(input_ids, attention_mask)
    if self.config.pooling == 'positions':  # pads have weights, so rows need the full length
      fill = 0, self.config.max_position_embeddings - input_ids.shape[1]
      input_ids = F.pad(input_ids, fill, value=self.config.pad_token_id)
      mask = F.pad(mask, fill)
    x = self.encoder(input_ids, mask)
    logits = functools.reduce(torch.add, (head.logits(x, mask) for head in self.heads))
    logits = logits / len(self.heads)
    if labels is None:
      return SequenceClassifierOutput(logits=logits)
    if self.num_labels == 1:
      loss = F.mse_loss(logits[:, 0], labels.to(logits.dtype))
    else:
      loss = F.cross_entropy(logits, labels)
    return SequenceClassifierOutput(loss=loss, logits=logits)
