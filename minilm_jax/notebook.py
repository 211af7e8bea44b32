"""What `minilm_jax.load` gives: a trained model as a plain object for a notebook or a script.

A pre-training run encodes texts and fills holes, a saved classifier or a committee predicts labels; what a model cannot
do it says, and what could. Nothing here trains or writes: that is done by verbs, or by the functions that they call.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from minilm_jax import progress, run, trust
from minilm_jax.config import EncoderConfig
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model.initialization import count
from minilm_jax.tasks import classifiers, committee, encoding, fill_mask, predict
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.fill_mask import Guess
from minilm_jax.tasks.sources import Examples
from minilm_jax.training import pretrained

_BATCH = 64  # rows at one time
_TRAINED = 'fine-tune it with --config.save_classifiers=True, and load WORKDIR/classifier-0'
Texts = Any  # a string, or several; what is neither is refused by its place


class Model:
  """A loaded model; see `LanguageModel` and `Answerer`.

  Attributes:
    folder: where it was loaded from.
    tokenizer: what it reads by.
  """

  def __init__(self, folder: str, tokenizer: Tokenizer):
    self.folder, self.tokenizer = folder, tokenizer

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """One vector a text, of a pre-training run; InputError elsewhere."""
    raise InputError(f'vectors of {self.folder}', 'classifiers, of which each has an encoder of its own',
                     'load the pre-training run that they started from')

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """Guesses for holes, by a pre-training run; InputError elsewhere."""
    raise InputError(f'guesses of {self.folder}', 'classifiers, which know no <mask>',
                     'load the pre-training run that they started from')

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """Labels of texts, by a classifier or a committee; InputError elsewhere."""
    raise InputError(f'labels by {self.folder}', 'a pre-training run, which has learned no task', _TRAINED)


class LanguageModel(Model):
  """A pre-training run at its latest checkpoint: `encode` and `fill_mask`; `model` and `config` are there to use.

  Attributes:
    config: the recipe of the run.
    model: the Flax module, `model(tokens [B L], mask [B L], positions [B K]) -> [B K V]`.
    step: of the checkpoint.
  """

  def __init__(self, folder: str):
    pretrained_run = pretrained.load(folder)
    super().__init__(folder, pretrained_run.tokenizer)
    self.config, self.model, self.step = pretrained_run.config, pretrained_run.model, pretrained_run.step

  def __repr__(self) -> str:
    what = f'{_shape(self.config.model)}, {count(self.model):,} parameters'
    return f'LanguageModel({self.folder!r}, update {self.step:,}: {what})'

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """One vector a text: the mean of the encoder's vectors over its tokens, `<s>` and `</s>` among them, pads not.

    So an empty text has a vector too, and the mean is that of a classifier with pooling `mean`. Case does not matter.
    Of a text that is longer than the model reads the beginning counts; how many are is said on standard error.

    Args:
      texts: strings; a lone string is one text. None gives an array `[0 D]`.

    Returns:
      float32, in the order of the texts.

    Raises:
      InputError: what is given is no text.
    """
    texts = _checked(texts, 'vectors')
    found = np.zeros((len(texts), self.config.model.hidden_size), np.float32)
    if not texts:
      return found
    limit = self.config.model.max_length
    examples = Examples(tuple(texts), (), np.zeros(len(texts), np.int32))
    sequences, shortened = encoding.encode(examples, self.tokenizer, limit)
    if shortened:
      progress.say(f'{shortened:,} of {len(texts):,} texts are longer than {limit} tokens and lose their end')
    order = sorted(range(len(texts)), key=lambda place: len(sequences[place]))
    for first in range(0, len(texts), _BATCH):
      places = order[first:first + _BATCH]
      some = [sequences[place] for place in places]
      rows = min(_BATCH, 1 << (len(some) - 1).bit_length())  # few shapes are compiled
      filled = some + [[pieces.BEGIN, pieces.END]] * (rows - len(some))
      batch = encoding.task_rows(filled, np.zeros(rows, np.int32), encoding.bucket(filled, limit))
      found[places] = np.asarray(_means(self.model.encoder, batch.tokens))[:len(places)]
    return found

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """The `best` most probable pieces for each `<mask>` of a text: `hole` from 1, `piece`, `probability`.

    Raises:
      InputError: no `<mask>` in the text, more tokens than the model reads, or no guess wanted.
    """
    return fill_mask.guesses(self.config.model, self.tokenizer, self.model, _checked([text], 'guesses')[0], best)


class Answerer(Model):
  """A fine-tuned classifier, or a committee of several: `predict`.

  Attributes:
    members: the classifiers, each with its `card` (task, labels, shape, where it came from).
  """

  def __init__(self, folder: str, asked: Committee, several: bool):
    super().__init__(folder, asked.members[0].tokenizer)
    self.members, self._asked, self._several = asked.members, asked, several

  def __repr__(self) -> str:
    card = self.members[0].card
    who = f'{len(self.members)} classifiers' if self._several else 'a classifier'
    labels = ', '.join(card.labels) or 'a number'
    return f'Answerer({self.folder!r}: {who} of {card.task} ({labels}); {_shape(card.model)})'

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """What is said of each text: `text`, `label`, `probability` and `probabilities` by label; a regression's `value`.

    A committee answers by the mean of its members' probabilities and adds `mean_logit` and `votes`. Texts longer than
    what the classifier was trained on lose their end. `pandas.DataFrame(model.predict(texts))` is a table.

    Args:
      texts: strings; a lone string is one text. None gives an empty list.
      pairs: of a task on pairs, the second text of each.

    Raises:
      InputError: what is given is no text; or the task is on pairs and these are missing, or the other way round.
    """
    card, first = self.members[0].card, _checked(texts, 'labels')
    two = len(card.fields) == 2 and not card.concatenate_fields
    if two != (pairs is not None):
      found = f'{card.task} is about pairs: {" and ".join(card.fields)}' if two else f'{card.task} is about one text'
      raise InputError(f'labels by {self.folder}', found, 'give pairs too' if two else 'leave pairs out')
    second = _checked(pairs, 'labels') if two else first
    if len(second) != len(first):
      raise InputError(f'labels of {len(first)} texts', f'{len(second)} second texts', 'give one for each')
    rows = list(zip(first, second, strict=True)) if two else [(text,) for text in first]
    return list(predict.answers(self._asked, rows, self._several)) if rows else []


@jax.jit
def _means(encoder: Any, tokens: Int[Array, 'B L']) -> Float[Array, 'B D']:
  mask = tokens != pieces.PAD
  x = encoder(tokens, mask).astype('float32')
  return (x * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]


def _checked(texts: Texts, wanted: str) -> list[str]:
  texts = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else [texts]
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise InputError(f'{wanted} of {len(texts)} texts', f'number {number} is {text!r} ({type(text).__name__})',
                       'give strings')
  return texts


def _shape(model: EncoderConfig) -> str:
  kind = f' of {model.encoder}' if model.encoder else ''
  size = f'hidden {model.hidden_size}, {model.vocab_size:,} pieces, rows of {model.max_length} tokens'
  return f'{model.num_layers} layers{kind}, {size}'


def load(folder: epath.PathLike, trusted: str) -> Model:
  """What `minilm_jax.load` describes."""
  trust.allow(trusted)
  with progress.quiet():  # libraries tell each checkpoint's history
    return _opened(epath.Path(folder).expanduser())


def _opened(path: epath.Path) -> Model:
  openers: dict[str, Callable[[], Model]] = {
      'pretrain': lambda: LanguageModel(str(path)),
      pretrained.IMPORTED: lambda: LanguageModel(str(path)),
      committee.KIND: lambda: Answerer(str(path), committee.load(path), True),
  }
  if (path / classifiers.CARD).exists():
    return Answerer(str(path), Committee((classifiers.load(path),)), False)
  found = run.read_object(path / run.CONFIG, f'the model in {path}')
  kind = found['kind'] if 'kind' in found else None
  if not isinstance(kind, str) or kind not in openers:
    raise InputError(f'the model in {path}', f'a folder of kind {kind!r}', _TRAINED if kind == 'finetune' else
                     'give a pre-training run, a classifier-N of a fine-tuning, or a committee')
  return openers[kind]()
