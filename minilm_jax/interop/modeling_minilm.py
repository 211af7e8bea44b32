"""Models of minilm_jax in PyTorch, for Hugging Face's transformers: this file lies beside the
weights that it reads.

`minilm export --format=hf` copies it into a folder whose shape no class of transformers has: a
narrow embedding and a projection, blocks that normalise first, other positions than learned ones,
convolutions before the blocks. It stands alone, so it imports nothing of minilm_jax. Parameters are
named as there. Batch axes: `B` rows, `L` tokens, `D` hidden width, `V` vocabulary, `C` classes.

Pads are told by `attention_mask` or, without one, by their id. Left out: decoding, caches, and
attention weights.
"""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

_FAR = -1e30
_BASE, _SINUSOID = 10_000.0, 0.02
_ACTIVATIONS = {'gelu': functional.gelu, 'relu': functional.relu, 'silu': functional.silu}


class MiniLMConfig(PretrainedConfig):
  """Shape of a model; sizes have the names of Hugging Face, other fields those of minilm_jax's
  `EncoderConfig`.
  """

  model_type = 'minilm_jax'

  def __init__(
    self,
    vocab_size=512,
    embedding_size=32,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_hidden_layers=1,
    max_position_embeddings=64,
    convolutions=0,
    kernel=(),
    channels=0,
    convolution='paper2',
    norm='post',
    positions='learned',
    position_offset=2,
    segments=0,
    projection=True,
    tied=False,
    activation='gelu',
    dropout=0.0,
    norm_epsilon=1e-5,
    short_convolution=0,
    pooling='first',
    head_dropout=0.0,
    ensemble_size=1,
    pad_token_id=1,
    **others,
  ):
    self.vocab_size, self.embedding_size, self.hidden_size, self.intermediate_size = (
      vocab_size,
      embedding_size,
      hidden_size,
      intermediate_size,
    )
    self.num_attention_heads, self.num_hidden_layers, self.max_position_embeddings = (
      num_attention_heads,
      num_hidden_layers,
      max_position_embeddings,
    )
    self.convolutions, self.kernel, self.channels, self.convolution = (
      convolutions,
      kernel,
      channels,
      convolution,
    )
    self.norm, self.positions, self.position_offset, self.segments = (
      norm,
      positions,
      position_offset,
      segments,
    )
    self.projection, self.tied, self.activation, self.dropout = (
      projection,
      tied,
      activation,
      dropout,
    )
    self.norm_epsilon, self.short_convolution = norm_epsilon, short_convolution
    self.pooling, self.head_dropout, self.ensemble_size = pooling, head_dropout, ensemble_size
    self.pad_token_id = pad_token_id
    super().__init__(pad_token_id=pad_token_id, **others | {'tie_word_embeddings': False})


def _norm(config: MiniLMConfig, size: int) -> nn.LayerNorm:
  return nn.LayerNorm(size, config.norm_epsilon)


def _angles(length: int, half: int, device: torch.device) -> torch.Tensor:
  """Position times frequency `[L half]`."""
  powers = _BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
  return torch.arange(length, device=device, dtype=torch.float32)[:, None] * powers[None]


def _rotate(x: torch.Tensor) -> torch.Tensor:
  """Each pair of features of `x [B H L d]` turned by an angle that grows with the position."""
  half = x.shape[3] // 2
  angles = _angles(x.shape[2], half, x.device)
  first, second = x[..., :half], x[..., half:]
  cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
  return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Embedding(nn.Module):
  """Token, position and segment vectors, summed, normalised, dropped out."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.first, learned = config.position_offset, config.positions == 'learned'
    self.sinusoidal = config.positions == 'sinusoidal'
    self.tokens = nn.Embedding(config.vocab_size, config.embedding_size)
    self.positions = (
      nn.Embedding(config.max_position_embeddings + self.first, config.embedding_size)
      if learned
      else None
    )
    self.segments = (
      nn.Embedding(config.segments, config.embedding_size) if config.segments else None
    )
    self.norm, self.dropout = _norm(config, config.embedding_size), nn.Dropout(config.dropout)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    x = self.tokens(tokens)
    if self.positions is not None:
      x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device) + self.first)
    if self.sinusoidal:
      angles = _angles(x.shape[1], x.shape[2] // 2, x.device)
      x = x + _SINUSOID * torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(x.dtype)
    if self.segments is not None:
      x = x + self.segments.weight[0]
    return self.dropout(self.norm(x))


class Projection(nn.Module):
  """From the embedding's width to the hidden width."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.linear, self.norm = (
      nn.Linear(config.embedding_size, config.hidden_size),
      _norm(config, config.hidden_size),
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.norm(self.linear(x))


class ShortConvolution(nn.Module):
  """The row and its depthwise convolution, added; pads are zeros."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.short_convolution))
    self.bias = nn.Parameter(torch.zeros(config.hidden_size))

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows, width = (x * mask[:, :, None].to(x.dtype)).transpose(1, 2), self.weight.shape[1]
    made = functional.conv1d(
      rows, self.weight[:, None], self.bias, padding=width // 2, groups=rows.shape[1]
    )
    return x + made.transpose(1, 2)


class Convolution(nn.Conv2d):
  """As large out as in: k - 1 pixels of zeros, the odd one of them after the image."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    (rows, columns) = (((size - 1) // 2, size // 2) for size in self.kernel_size)
    return super().forward(functional.pad(x, (*columns, *rows)))


class Layer(nn.Module):
  """Convolution, normalisation, activation of an image `[B I L D]`; `mended`, with its pads zeroed
  first.
  """

  def __init__(self, kernel: tuple[int, int], inputs: int, outputs: int, config: MiniLMConfig):
    super().__init__()
    self.paper, self.activation = config.convolution == 'paper2', _ACTIVATIONS[config.activation]
    self.convolution = Convolution(inputs, outputs, kernel)
    self.norm = nn.BatchNorm2d(outputs) if self.paper else _norm(config, outputs)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if self.paper:
      return self.activation(self.norm(self.convolution(x)))
    x = self.convolution(x * mask[:, None, :, None].to(x.dtype))
    return self.activation(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class FrontEnd(nn.Module):
  """The row of vectors as an image of one channel, through convolutions, and one channel again."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.paper, self.first = config.convolution == 'paper2', config.norm == 'pre'
    sizes, kernel = [1] + [config.channels] * config.convolutions, tuple(config.kernel)
    self.layers = nn.ModuleList(
      [Layer(kernel, *pair, config) for pair in itertools.pairwise(sizes)]
    )
    if self.paper:
      self.last = Layer((1, 1), config.channels, 1, config)
    else:
      self.last, self.norm = (
        Convolution(config.channels, 1, (1, 1)),
        _norm(config, config.hidden_size),
      )
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if self.paper:
      return self.last(self.stack(x, mask), mask)[:, 0]
    if self.first:
      return x + self.dropout(self.last(self.stack(self.norm(x), mask))[:, 0])
    return self.norm(x + self.dropout(self.last(self.stack(x, mask))[:, 0]))

  def stack(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """All layers but the last."""
    x = x[:, None]
    for layer in self.layers:
      x = layer(x, mask)
    return x


class Attention(nn.Module):
  """Scaled dot-product attention over the tokens that are not pads."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.heads, self.length, self.rotary = (
      config.num_attention_heads,
      config.max_position_embeddings,
      config.positions == 'rotary',
    )
    self.query, self.key, self.value, self.output = (
      nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
    )
    relative = config.positions == 'relative'
    self.distance_bias = (
      nn.Parameter(torch.zeros(config.num_attention_heads, 2 * config.max_position_embeddings - 1))
      if relative
      else None
    )
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    linears = self.query, self.key, self.value
    q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in linears)
    if self.rotary:
      q, k = _rotate(q), _rotate(k)
    scores = (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)).float()
    if self.distance_bias is not None:
      places = torch.arange(x.shape[1], device=x.device)
      scores = scores + self.distance_bias[:, places[None] - places[:, None] + self.length - 1]
    shares = scores.masked_fill(~mask[:, None, None], _FAR).softmax(-1).to(v.dtype)
    return self.output((self.dropout(shares) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
  """Linear(D, F), activation, Linear(F, D)."""

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.activation = _ACTIVATIONS[config.activation]
    self.up, self.down = (
      nn.Linear(config.hidden_size, config.intermediate_size),
      nn.Linear(config.intermediate_size, config.hidden_size),
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.down(self.activation(self.up(x)))


class Block(nn.Module):
  """Attention and feed-forward, each with dropout, a residual, and a LayerNorm after the sum (post)
  or first (pre).
  """

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.first = config.norm == 'pre'
    self.attention, self.attention_norm = Attention(config), _norm(config, config.hidden_size)
    self.feed_forward, self.feed_forward_norm = (
      FeedForward(config),
      _norm(config, config.hidden_size),
    )
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if self.first:
      x = x + self.dropout(self.attention(self.attention_norm(x), mask))
      return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
    x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
    return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
  """Token ids `[B L]` to one vector a token `[B L D]`; what normalises over the batch is always
  shown whole rows.
  """

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.pad, self.length = config.pad_token_id, config.max_position_embeddings
    self.whole = config.convolutions > 0 and config.convolution == 'paper2'
    self.embedding = Embedding(config)
    self.projection = Projection(config) if config.projection else None
    self.short_convolution = ShortConvolution(config) if config.short_convolution else None
    self.convolution = FrontEnd(config) if config.convolutions else None
    self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
    self.norm = _norm(config, config.hidden_size) if config.norm == 'pre' else None

  def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    given = tokens.shape[1]
    if self.whole:
      tokens = functional.pad(tokens, (0, self.length - given), value=self.pad)
      mask = functional.pad(mask, (0, self.length - given))
    x = self.embedding(tokens)
    x = x if self.projection is None else self.projection(x)
    x = x if self.short_convolution is None else self.short_convolution(x, mask)
    x = x if self.convolution is None else self.convolution(x, mask)
    for block in self.blocks:
      x = block(x, mask)
    return (x if self.norm is None else self.norm(x))[:, :given]


class MiniLMPreTrained(PreTrainedModel):
  """What all models have: an encoder, and the mask of their input.

  There is no `base_model_prefix`: transformers tries names with and without it, and a `norm` stands
  in either place.
  """

  config_class = MiniLMConfig

  def mask(self, tokens: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """True where there is a token `[B L]`."""
    return tokens != self.config.pad_token_id if given is None else given.bool()


class MiniLMModel(MiniLMPreTrained):
  """The encoder alone: `last_hidden_state [B L D]`."""

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
  """Logits `[B L V]` of each token; tied, the output matrix is the embedding table.

  Labels of -100 count nothing.
  """

  def __init__(self, config: MiniLMConfig):
    super().__init__(config)
    self.encoder = Encoder(config)
    self.transform, self.norm = (
      nn.Linear(config.hidden_size, config.hidden_size),
      _norm(config, config.hidden_size),
    )
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
    logits = (
      functional.linear(x, self.encoder.embedding.tokens.weight, self.output_bias)
      if self.config.tied
      else self.output(x)
    )
    loss = (
      None if labels is None else functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    )
    return MaskedLMOutput(loss=loss, logits=logits)


class Head(nn.Module):
  """From the vectors of a row to its logits `[B C]`: the first token's, the mean's, or one weight a
  position.
  """

  def __init__(self, config: MiniLMConfig):
    super().__init__()
    self.pooling, self.length = config.pooling, config.max_position_embeddings
    if self.pooling == 'positions':
      self.pool = nn.Linear(config.max_position_embeddings, 1)
    else:
      self.dense = nn.Linear(config.hidden_size, config.hidden_size)
    self.dropout, self.output = (
      nn.Dropout(config.head_dropout),
      nn.Linear(config.hidden_size, config.num_labels),
    )

  def logits(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of each row."""
    if self.pooling == 'positions':
      return self.output(self.pool(x.transpose(1, 2))[..., 0])
    if self.pooling == 'mean':
      x = (x * mask[:, :, None].to(x.dtype)).sum(1) / mask.sum(1).clamp(min=1)[:, None].to(x.dtype)
    else:
      x = x[:, 0]
    return self.output(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


class MiniLMForSequenceClassification(MiniLMPreTrained):
  """Logits `[B C]` of each row, the mean of those of all heads; one label is a regression."""

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
    if self.config.pooling == 'positions':  # pads have weights of their own, so rows are whole
      fill = 0, self.config.max_position_embeddings - input_ids.shape[1]
      input_ids, mask = (
        functional.pad(input_ids, fill, value=self.config.pad_token_id),
        functional.pad(mask, fill),
      )
    x = self.encoder(input_ids, mask)
    logits = sum(head.logits(x, mask) for head in self.heads) / len(self.heads)
    if labels is None:
      return SequenceClassifierOutput(logits=logits)
    loss = (
      functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
      if self.num_labels == 1
      else functional.cross_entropy(logits, labels)
    )
    return SequenceClassifierOutput(loss=loss, logits=logits)
