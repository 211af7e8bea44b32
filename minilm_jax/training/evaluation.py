"""The masked-token loss of a model on a split, at frozen masks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from minilm_jax.config import EvaluationConfig
from minilm_jax.language.corpus import Corpus
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import steps


def evaluator(config: EvaluationConfig) -> Callable[[MaskedLanguageModel, Corpus], dict[str, float]]:
  """A compiled `(model, corpus) -> loss, perplexity, padded_loss` over the first `config.rows` rows of a split."""

  @functools.partial(jax.jit, static_argnums=2)
  def total(model: MaskedLanguageModel, corpus: Corpus, count: int) -> steps.Sums:
    def add(batch: Int[Array, ''], sums: steps.Sums) -> steps.Sums:
      more = steps.eval_step(model, corpus, batch * config.batch_size, config.batch_size, count)
      return jax.tree.map(jnp.add, sums, more)

    zero = {name: jnp.zeros(()) for name in ('loss', 'masked', 'padding')}
    return jax.lax.fori_loop(0, -(-count // config.batch_size), add, zero)

  def evaluate(model: Any, corpus: Corpus) -> dict[str, float]:
    return steps.means(jax.device_get(total(model, corpus, min(config.rows, corpus.rows))))

  return evaluate
