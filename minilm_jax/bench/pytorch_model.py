"""The model and training step of paper 1 in PyTorch, two ways: as its released code runs them, and
as fast as they go.

The one room that imports torch; `peers` runs it in processes of its own. Modules are called as ours
are, so that weights can be carried over by name. Left out of both steps, which can only favour
PyTorch: reading and tokenizing text, schedules, attention masks of pads, logs.
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
from minilm_jax.model import flops

_IGNORED = -100
_LOGITS = 6 << 20  # bytes of a block of logits on a CPU: what is best for ours too


def _chain(**parts: nn.Module) -> nn.Sequential:
  return nn.Sequential(collections.OrderedDict(parts))


class Embedding(nn.Module):
  """Token, position and segment vectors, summed, normalised, dropped out."""

  def __init__(self, config: EncoderConfig):
    super().__init__()
    self.tokens = nn.Embedding(config.vocab_size, config.embedding_size)
    self.positions = nn.Embedding(config.max_length + 2, config.embedding_size)
    self.segments = nn.Embedding(config.segments, config.embedding_size)
    self.norm = nn.LayerNorm(config.embedding_size, config.norm_epsilon)
    self.dropout = nn.Dropout(config.dropout)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    places = torch.arange(2, tokens.shape[1] + 2, device=tokens.device)
    return self.dropout(
      self.norm(self.tokens(tokens) + self.positions(places) + self.segments.weight[0])
    )


class Attention(nn.Module):
  """Scaled dot-product attention, written out or by PyTorch's own function."""

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
    self.feed_forward = _chain(
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
  """Token ids to one vector a token."""

  def __init__(self, config: EncoderConfig, fused: bool):
    super().__init__()
    self.embedding = Embedding(config)
    self.projection = _chain(
      linear=nn.Linear(config.embedding_size, config.hidden_size),
      norm=nn.LayerNorm(config.hidden_size, config.norm_epsilon),
    )
    self.blocks = nn.Sequential(*(Block(config, fused) for _ in range(config.num_layers)))

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    return self.blocks(self.projection(self.embedding(tokens)))


class MaskedLanguageModel(nn.Module):
  """Logits `[B K V]` at `positions [B K]`, or `[B L V]` at all of them; `fused` chooses PyTorch's
  own attention.
  """

  def __init__(self, config: EncoderConfig, fused: bool):
    super().__init__()
    self.encoder = Encoder(config, fused)
    self.transform = nn.Linear(config.hidden_size, config.hidden_size)
    self.norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
    self.output = nn.Linear(config.hidden_size, config.vocab_size)

  def features(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """What the output projection reads."""
    x = self.encoder(tokens)
    if positions is not None:
      x = x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))
    return self.norm(functional.gelu(self.transform(x)))

  def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    return self.output(self.features(tokens, positions))


def time_pytorch_step(
  threads: int, config: RunConfig, rows: np.ndarray, device: str, **how: Any
) -> Callable[[int], float]:
  """A function from a number of steps to the seconds they take: `released` steps, or `best` ones
  where `how` says how.

  Args:
    threads: of one operation on a CPU.
    config: the recipe.
    rows: token ids `[N L]` to train on.
    device: as PyTorch calls it.
    **how: what `best` asks for besides.
  """
  torch.set_num_threads(threads)
  step = (
    build_best_step(config, rows, device, **how)
    if how
    else build_released_step(config, rows, device)
  )

  def seconds(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      step()
    if device != 'cpu':
      torch.cuda.synchronize()
    return time.perf_counter() - start

  return seconds


def build_released_step(config: RunConfig, rows: np.ndarray, device: str) -> Callable[[], None]:
  """A step as the released code of paper 1 takes it.

  Masks are drawn on the host batch by batch (here by arrays; there, more slowly, row by row in
  Python), logits exist at every position and are compared over their second axis, attention is
  written out, AdamW is PyTorch's default.
  """
  model = MaskedLanguageModel(config.model, fused=False).to(device).train()
  optimizer = _adam(config, model)
  random = np.random.default_rng(config.seed)

  def step() -> None:
    tokens = rows[random.integers(len(rows), size=config.batch_size)].astype(np.int64)
    hidden = random.uniform(size=tokens.shape) <= config.mask.rate
    targets = torch.from_numpy(np.where(hidden, tokens, _IGNORED)).to(device)
    logits = model(torch.from_numpy(np.where(hidden, tokenizer.MASK_ID, tokens)).to(device))
    functional.cross_entropy(logits.permute(0, 2, 1), targets, ignore_index=_IGNORED).backward()
    _update(config, model, optimizer)

  return step


def build_best_step(
  config: RunConfig, rows: np.ndarray, device: str, at_once: int, fused_loss: bool, compiled: bool
) -> Callable[[], None]:
  """The same step as well as PyTorch can be made to take it.

  Rows lie on the device and are masked there, a fixed number of positions a row; logits exist at
  those alone; PyTorch's own attention and AdamW as one kernel each; memory is kept, not handed
  back; bfloat16 where there is a GPU.

  Args:
    at_once: rows of a micro-batch, whose gradients are added up.
    fused_loss: whether logits are made and compared in blocks by PyTorch's own
      `linear_cross_entropy`.
    compiled: whether the loss goes through torch.compile, on a GPU into CUDA graphs.

  Raises:
    RuntimeError: PyTorch cannot do so.
  """
  gpu = device != 'cpu'
  if not gpu:
    _keep_memory()
  model = MaskedLanguageModel(config.model, fused=True).to(device).train()
  optimizer = _adam(config, model, fused=True)
  on_device = torch.from_numpy(rows.astype(np.int64)).to(device)
  k = flops.max_masked_positions(config.model.max_length, config.mask.rate)
  summed = _fused_loss(config.model.vocab_size, gpu) if fused_loss else _plain_loss

  def loss(tokens: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with torch.autocast('cuda', torch.bfloat16) if gpu else contextlib.nullcontext():
      x = model.features(tokens, positions).flatten(0, 1)
      return summed(x, model.output.weight, targets.flatten(), linear_bias=model.output.bias)

  if compiled:
    loss = torch.compile(loss, dynamic=False, mode='reduce-overhead' if gpu else 'default')

  def step() -> None:
    tokens = on_device[torch.randint(len(rows), (config.batch_size,), device=device)]
    positions = torch.rand(tokens.shape, device=device).topk(k).indices
    targets = tokens.gather(1, positions)
    tokens = tokens.scatter(1, positions, tokenizer.MASK_ID)
    for part in zip(*(x.split(at_once) for x in (tokens, positions, targets)), strict=True):
      (loss(*part) / targets.numel()).backward()
    _update(config, model, optimizer)

  return step


def _plain_loss(
  x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, linear_bias: torch.Tensor
) -> torch.Tensor:
  return functional.cross_entropy(
    functional.linear(x, weight, linear_bias).float(), targets, reduction='sum'
  )


def _fused_loss(vocabulary: int, gpu: bool) -> Callable[..., torch.Tensor]:
  if not hasattr(functional, 'linear_cross_entropy'):
    raise RuntimeError(f'PyTorch {torch.__version__} has no linear_cross_entropy')
  block = None if gpu else max(1, _LOGITS // (4 * vocabulary))
  options = nn.LinearCrossEntropyOptions(batch_chunk_size=block)
  return functools.partial(functional.linear_cross_entropy, reduction='sum', options=options)


def _adam(config: RunConfig, model: nn.Module, **how: bool) -> torch.optim.AdamW:
  c = config.optimizer
  return torch.optim.AdamW(
    model.parameters(), c.learning_rate, (c.beta1, c.beta2), weight_decay=c.weight_decay, **how
  )


def _update(config: RunConfig, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
  if config.optimizer.clip:
    nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
  optimizer.step()
  optimizer.zero_grad()


def _keep_memory() -> None:
  """Lets the C library keep what is freed, as the allocators that PyTorch's tuning guide recommends
  do.

  Else each large array is mapped and cleared anew by the system, which takes as long again as a
  small model's step.
  """
  if sys.platform == 'linux':
    # the names that mallopt(3) gives these numbers
    trim_threshold, top_pad, most_mapped = -1, -2, -4
    change = getattr(ctypes.CDLL(None), 'mallopt', lambda name, value: 0)
    for name, value in ((trim_threshold, 2**31 - 1), (top_pad, 256 << 20), (most_mapped, 0)):
      change(name, value)
