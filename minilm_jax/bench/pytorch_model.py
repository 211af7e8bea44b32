"""Implements the model and training step of paper 1 in PyTorch: as released, and optimized.

`competitors` runs this module in separate processes, because it imports torch. Modules have the
names of ours, so that weights can be copied by name. Both steps exclude reading and tokenizing
text, schedules, attention masks and logs, which favours PyTorch.
"""

import collections
import contextlib
import ctypes
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from minilm_jax.core.config import RunConfig
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer

_IGNORED_TARGET = -100
_LOGIT_BLOCK_BYTES = 6 << 20  # fastest size on a CPU, also for our step
# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def _make_sequential(**modules: nn.Module) -> nn.Sequential:
  return nn.Sequential(collections.OrderedDict(modules))


class Embedding(nn.Module):
  """Sum of token, position and segment vectors, with LayerNorm and dropout."""

  def __init__(self, config: EncoderConfig):
    super().__init__()
    self.tokens = nn.Embedding(config.vocab_size, config.embedding_size)
    self.positions = nn.Embedding(config.max_length + 2, config.embedding_size)
    self.segments = nn.Embedding(config.segments, config.embedding_size)
    self.norm = nn.LayerNorm(config.embedding_size, config.norm_epsilon)
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(2, tokens.shape[1] + 2, device=tokens.device)
    return self.dropout(
      self.norm(self.tokens(tokens) + self.positions(positions) + self.segments.weight[0])
    )


class Attention(nn.Module):
  """Scaled dot-product attention, in single operations or as the fused function of PyTorch."""

  def __init__(self, config: EncoderConfig, fused: bool):
    super().__init__()
    self.heads, self.fused = config.num_heads, fused
    self.query, self.key, self.value, self.output = (
      nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
    )
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    linears = (self.query, self.key, self.value)
    q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in linears)
    if self.fused:
      x = functional.scaled_dot_product_attention(
        q, k, v, dropout_p=self.dropout.p if self.training else 0.0
      )
    else:
      x = self.dropout((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)) @ v
    return self.output(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
  """Attention and feed-forward, each with dropout, a residual and a LayerNorm after the sum."""

  def __init__(self, config: EncoderConfig, fused: bool):
    super().__init__()
    self.attention = Attention(config, fused)
    self.feed_forward = _make_sequential(
      up=nn.Linear(config.hidden_size, config.intermediate_size),
      activation=nn.GELU(),
      down=nn.Linear(config.intermediate_size, config.hidden_size),
    )
    norms = (nn.LayerNorm(config.hidden_size, config.norm_epsilon) for _ in range(2))
    self.attention_norm, self.feed_forward_norm = norms
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.attention_norm(x + self.dropout(self.attention(x)))
    return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
  """Encoder: maps token ids `[B L]` to hidden states `[B L D]`."""

  def __init__(self, config: EncoderConfig, fused: bool):
    super().__init__()
    self.embedding = Embedding(config)
    self.projection = _make_sequential(
      linear=nn.Linear(config.embedding_size, config.hidden_size),
      norm=nn.LayerNorm(config.hidden_size, config.norm_epsilon),
    )
    self.blocks = nn.Sequential(*(Block(config, fused) for _ in range(config.num_layers)))

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    return self.blocks(self.projection(self.embedding(tokens)))


class MaskedLanguageModel(nn.Module):
  """Masked language model: logits `[B K V]` at `positions [B K]`, or `[B L V]` at all positions.

  `fused` selects the fused attention of PyTorch.
  """

  def __init__(self, config: EncoderConfig, fused: bool):
    super().__init__()
    self.encoder = Encoder(config, fused)
    self.transform = nn.Linear(config.hidden_size, config.hidden_size)
    self.norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
    self.output = nn.Linear(config.hidden_size, config.vocab_size)

  def features(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the input of the output projection."""
    x = self.encoder(tokens)
    if positions is not None:
      x = x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))
    return self.norm(functional.gelu(self.transform(x)))

  def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    return self.output(self.features(tokens, positions))


def time_pytorch_step(
  threads: int, config: RunConfig, rows: np.ndarray, device: str, **options: Any
) -> Callable[[int], float]:
  """Returns a function that makes a number of steps and returns their seconds.

  Args:
    threads: threads of an operation on a CPU.
    config: the recipe.
    rows: token ids `[N L]` to train on.
    device: name of the device in PyTorch.
    **options: options of `build_best_step`; without options, the step is `build_released_step`.
  """
  torch.set_num_threads(threads)
  if options:
    step = build_best_step(config, rows, device, **options)
  else:
    step = build_released_step(config, rows, device)

  def time_steps(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      step()
    if device != 'cpu':
      torch.cuda.synchronize()
    return time.perf_counter() - start

  return time_steps


def build_released_step(config: RunConfig, rows: np.ndarray, device: str) -> Callable[[], None]:
  """Returns the step of the released code of paper 1.

  NumPy draws masks on the host for each batch; the released code draws them by row in Python, which
  is slower. Logits exist at every position, attention consists of single operations, and AdamW is
  the default of PyTorch.
  """
  model = MaskedLanguageModel(config.model, fused=False).to(device).train()
  optimizer = _make_optimizer(config, model)
  random = np.random.default_rng(config.seed)

  def step() -> None:
    tokens = rows[random.integers(len(rows), size=config.batch_size)].astype(np.int64)
    masked = random.uniform(size=tokens.shape) <= config.mask.rate
    targets = torch.from_numpy(np.where(masked, tokens, _IGNORED_TARGET)).to(device)
    logits = model(torch.from_numpy(np.where(masked, tokenizer.MASK_ID, tokens)).to(device))
    loss = functional.cross_entropy(logits.permute(0, 2, 1), targets, ignore_index=_IGNORED_TARGET)
    loss.backward()
    _update(config, model, optimizer)

  return step


def build_best_step(
  config: RunConfig,
  rows: np.ndarray,
  device: str,
  micro_batch_rows: int,
  fused_loss: bool,
  compiled: bool,
) -> Callable[[], None]:
  """Returns an optimized step.

  Rows are on the device and are masked there, at a fixed number of positions a row. Logits exist at
  these positions only. Attention and AdamW are fused kernels of PyTorch, the allocator retains
  freed memory, and a GPU uses bfloat16.

  Args:
    config: the recipe.
    rows: token ids `[N L]` to train on.
    device: name of the device in PyTorch.
    micro_batch_rows: rows of a micro-batch; gradients are summed over micro-batches.
    fused_loss: whether `linear_cross_entropy` of PyTorch computes the logits in blocks.
    compiled: whether torch.compile compiles the loss, on a GPU into CUDA graphs.

  Raises:
    RuntimeError: PyTorch lacks an option.
  """
  is_gpu = device != 'cpu'
  if not is_gpu:
    _retain_memory()
  model = MaskedLanguageModel(config.model, fused=True).to(device).train()
  optimizer = _make_optimizer(config, model, fused=True)
  device_rows = torch.from_numpy(rows.astype(np.int64)).to(device)
  num_masked = config.mask.max_positions(config.model.max_length)
  sum_losses = (
    _make_fused_loss(config.model.vocab_size, is_gpu) if fused_loss else _sum_cross_entropy
  )

  def loss(tokens: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with torch.autocast('cuda', torch.bfloat16) if is_gpu else contextlib.nullcontext():
      x = model.features(tokens, positions).flatten(0, 1)
      return sum_losses(x, model.output.weight, targets.flatten(), linear_bias=model.output.bias)

  if compiled:
    loss = torch.compile(loss, dynamic=False, mode='reduce-overhead' if is_gpu else 'default')

  def step() -> None:
    tokens = device_rows[torch.randint(len(rows), (config.batch_size,), device=device)]
    positions = torch.rand(tokens.shape, device=device).topk(num_masked).indices
    targets = tokens.gather(1, positions)
    tokens = tokens.scatter(1, positions, tokenizer.MASK_ID)
    batch = (x.split(micro_batch_rows) for x in (tokens, positions, targets))
    for micro_batch in zip(*batch, strict=True):
      (loss(*micro_batch) / targets.numel()).backward()
    _update(config, model, optimizer)

  return step


def _sum_cross_entropy(
  x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, linear_bias: torch.Tensor
) -> torch.Tensor:
  return functional.cross_entropy(
    functional.linear(x, weight, linear_bias).float(), targets, reduction='sum'
  )


def _make_fused_loss(vocab_size: int, is_gpu: bool) -> Callable[..., torch.Tensor]:
  if not hasattr(functional, 'linear_cross_entropy'):
    raise RuntimeError(f'PyTorch {torch.__version__} has no linear_cross_entropy')
  block_rows = None if is_gpu else max(1, _LOGIT_BLOCK_BYTES // (4 * vocab_size))
  options = nn.LinearCrossEntropyOptions(batch_chunk_size=block_rows)
  return functools.partial(functional.linear_cross_entropy, reduction='sum', options=options)


def _make_optimizer(config: RunConfig, model: nn.Module, **options: bool) -> torch.optim.AdamW:
  c = config.optimizer
  return torch.optim.AdamW(
    model.parameters(), c.learning_rate, (c.beta1, c.beta2), weight_decay=c.weight_decay, **options
  )


def _update(config: RunConfig, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
  if config.optimizer.clip:
    nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
  optimizer.step()
  optimizer.zero_grad()


def _retain_memory() -> None:
  """Makes the C library retain freed memory, like the allocators that PyTorch's guide recommends.

  Otherwise the system maps and clears each large array again, which doubles the step time of a
  small model.
  """
  if sys.platform == 'linux':
    set_option = getattr(ctypes.CDLL(None), 'mallopt', lambda name, value: 0)
    set_option(_M_TRIM_THRESHOLD, 2**31 - 1)
    set_option(_M_TOP_PAD, 256 << 20)
    set_option(_M_MMAP_MAX, 0)
