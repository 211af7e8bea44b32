"""What a model would put at each `<mask>` of a text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax.config import EncoderConfig
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import pretrained

_HOLE = '<mask>'


@dataclasses.dataclass(frozen=True)
class Guess:
  """A piece for one hole, and its probability."""

  hole: int
  piece: str
  probability: float


def fill_mask(source: epath.PathLike, text: str, best: int) -> list[Guess]:
  """The `best` most probable pieces for each `<mask>` of `text`, by the latest checkpoint of a run.

  Raises:
    InputError: no `<mask>` in the text, more tokens than the model reads, or no guess wanted.
  """
  _check(text, best)
  pretrained_run = pretrained.load(source)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  return guesses(config.model, tokenizer, model, text, best)


def _check(text: str, best: int) -> None:
  if _HOLE not in text:
    raise InputError(f'guesses for {text!r}', f'no {_HOLE} in it', f'write {_HOLE} where a word is missing')
  if best < 1:
    raise InputError(f'the best {best} guesses', 'a number below 1', 'give at least 1')


def guesses(config: EncoderConfig, tokenizer: Tokenizer, model: MaskedLanguageModel, text: str,
            best: int) -> list[Guess]:
  """The same by a model that is open.

  Raises:
    InputError: as above.
  """
  _check(text, best)
  ids = [pieces.BEGIN]
  for number, part in enumerate(tokenizer.fold(text).split(_HOLE)):
    ids += [pieces.MASK] * (number > 0) + tokenizer.encode([part.rstrip()])[0]  # a space before a hole is no piece
  ids.append(pieces.END)
  if len(ids) > config.max_length:
    raise InputError(f'guesses for a text of {len(ids)} tokens', f'the model reads at most {config.max_length}',
                     'give a shorter text')
  tokens = jnp.asarray([ids])
  holes = np.flatnonzero(np.asarray(ids) == pieces.MASK)
  shares = jax.nn.softmax(model(tokens, tokens != pieces.PAD, jnp.asarray(holes)[None]))[0]
  first, end = len(pieces.SPECIAL), tokenizer.size  # a special piece is no guess, nor is an id that is no piece at all
  return [Guess(hole, tokenizer.piece(first + i), float(row[i]))
          for hole, row in enumerate(np.asarray(shares)[:, first:end], 1) for i in np.argsort(-row)[:best].tolist()]
