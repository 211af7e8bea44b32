"""What `minilm_jax.load` gives: a trained model as a plain object for a notebook or a script.

A pre-training run encodes texts and fills holes, a saved classifier or a committee predicts labels;
what a model cannot do it says, and what could. Nothing here trains or writes: that is done by
verbs, or by the functions that they call.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from rich import table as rich_table

from minilm_jax.core import files, progress, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import documents, tokenizer
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, PAD_ID, SPECIAL_TOKENS, Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier, committee, task_data
from minilm_jax.tasks.classifier import Card
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.examples import Examples
from minilm_jax.tasks.task import REGRESSION
from minilm_jax.training import pretrained

# What a model would put at each `<mask>` of a text.
_MASK_MARKER = '<mask>'


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
  _check_texts(text, best)
  pretrained_run = pretrained.load(source)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  return guess_table(config.model, tokenizer, model, text, best)


def _check_texts(text: str, best: int) -> None:
  if _MASK_MARKER not in text:
    raise InputError(
      f'guesses for {text!r}',
      f'no {_MASK_MARKER} in it',
      f'write {_MASK_MARKER} where a word is missing',
    )
  if best < 1:
    raise InputError(f'the best {best} guesses', 'a number below 1', 'give at least 1')


def guess_table(
  config: EncoderConfig, tokenizer: Tokenizer, model: MaskedLanguageModel, text: str, best: int
) -> list[Guess]:
  """The same by a model that is open.

  Raises:
    InputError: as above.
  """
  _check_texts(text, best)
  ids = [BEGIN_ID]
  for number, part in enumerate(tokenizer.fold(text).split(_MASK_MARKER)):
    # a space before a hole is no piece
    ids += [MASK_ID] * (number > 0) + tokenizer.encode([part.rstrip()])[0]
  ids.append(END_ID)
  if len(ids) > config.max_length:
    raise InputError(
      f'guesses for a text of {len(ids)} tokens',
      f'the model reads at most {config.max_length}',
      'give a shorter text',
    )
  tokens = jnp.asarray([ids])
  holes = np.flatnonzero(np.asarray(ids) == MASK_ID)
  shares = jax.nn.softmax(model(tokens, tokens != PAD_ID, jnp.asarray(holes)[None]))[0]
  # a special piece is no guess, nor is an id that is no piece at all
  first, end = len(SPECIAL_TOKENS), tokenizer.size
  return [
    Guess(hole, tokenizer.piece(first + i), float(row[i]))
    for hole, row in enumerate(np.asarray(shares)[:, first:end], 1)
    for i in np.argsort(-row)[:best].tolist()
  ]


# What a committee, or a single classifier, says of texts: a label and its probability, for a
# program or a reader.
_MAX_SHOWN_ROWS = 60  # characters of a text in a table


def write_predictions(
  committee_folder: str, classifier_folder: str, text: str, pair: str, file: str
) -> list[dict[str, Any]]:
  """Answers to a text or to every row of a file.

  Args:
    committee_folder, classifier_folder: one of both: a committee, or a single classifier.
    text: the first text, or the only one; `pair` is the second.
    file: instead, a table with the columns of the task (or, of one text, a column `text`); others
      are passed over.

  Returns:
    Of each text, in order: `text` (and `pair`), `label`, `probability`, and `probabilities` by
    label. Of a committee these are by the mean probability; `mean_logit` has label and
    probabilities by the mean logit, `votes` how many members have each label first. Of a regression
    only `value`.

  Raises:
    InputError: nobody or two are asked, about nothing or twice, or a file that lacks a column.
  """
  if bool(committee_folder) == bool(classifier_folder):
    raise InputError(
      'minilm predict',
      'both --committee and --classifier'
      if committee_folder
      else 'no --committee and no --classifier',
      'give one of them',
    )
  if bool(text.strip()) == bool(file) or file and pair:
    found = 'no --text and no --file' if not file else 'a text beside --file'
    raise InputError(
      'minilm predict', found, 'give --text (of tasks on pairs also --text_pair), or --file'
    )
  several = bool(committee_folder)
  members = (
    committee.load_committee(committee_folder)
    if several
    else Committee((classifier.load_classifier(classifier_folder),))
  )
  card = members.members[0].card
  rows = list(_read_texts(file, card)) if file else [_parse_texts(text, pair, card)]
  return list(answer_examples(members, rows, several))


def _parse_texts(text: str, pair: str, card: Card) -> tuple[str, ...]:
  two = len(card.fields) == 2 and not card.concatenate_fields
  if bool(pair.strip()) != two and not (card.concatenate_fields and pair):
    found = (
      f'{card.task} is about pairs: {" and ".join(card.fields)}'
      if two
      else f'{card.task} is about one text'
    )
    raise InputError(
      'minilm predict', found, 'give --text and --text_pair' if two else 'leave --text_pair out'
    )
  return (text, pair) if two else (' '.join(part for part in (text, pair) if part),)


def _read_texts(path: str, card: Card) -> Iterator[tuple[str, ...]]:
  """The one or two texts of each row of a table."""
  if not epath.Path(path).expanduser().is_file():
    raise InputError(
      f'the texts of {path}', 'no such file', 'give a table: .jsonl, .csv, .tsv or .parquet'
    )
  number = 0
  for number, row in enumerate(
    documents.read_table_rows(str(epath.Path(path).expanduser()), errors='strict'), 1
  ):
    fields = card.fields
    if (
      not set(fields) <= row.keys()
      and (card.concatenate_fields or len(fields) == 1)
      and 'text' in row
    ):
      fields = ('text',)
    for field in fields:
      if field not in row or not isinstance(row[field], str):
        found = f'row {number:,} has {", ".join(map(str, row)) or "nothing"}'
        raise InputError(
          f'text in {field!r} of {path}', found, f'give {" and ".join(card.fields)}, as strings'
        )
    texts = tuple(row[field] for field in fields)
    yield (' '.join(text for text in texts if text),) if card.concatenate_fields else texts
  if not number:
    raise InputError(f'the texts of {path}', 'no rows', 'give at least one')


def answer_examples(
  members: Committee, rows: list[tuple[str, ...]], several: bool
) -> Iterator[dict[str, Any]]:
  """Answers to at least one row, as `predict` gives them; without `several` those of the only
  member.
  """
  card = members.members[0].card
  first, *second = zip(*rows, strict=True)
  logits = members.logits(Examples(first, *second or ((),), np.zeros(len(rows), np.int32)))
  for number, texts in enumerate(rows):
    asked = dict(zip(('text', 'pair'), texts))
    if card.task_kind == REGRESSION:
      yield asked | {'value': float(logits[0, number, 0])}
      continue
    own = logits[:, number : number + 1]
    answer = asked | _format_answer(committee.combine_outputs(own, committee.PROBABILITY)[0], card)
    if several:
      votes = np.bincount(own[:, 0].argmax(-1), minlength=len(card.labels))
      answer |= {
        'mean_logit': _format_answer(committee.combine_outputs(own, committee.LOGIT)[0], card),
        'votes': {card.labels[label]: int(votes[label]) for label in np.flatnonzero(votes)},
      }
    yield answer


def _format_answer(probabilities: np.ndarray, card: Card) -> dict[str, Any]:
  best = int(probabilities.argmax())
  return {
    'label': card.labels[best],
    'probability': float(probabilities[best]),
    'probabilities': dict(zip(card.labels, probabilities.tolist(), strict=True)),
  }


def prediction_tables(found: list[dict[str, Any]]) -> list[rich_table.Table]:
  """The same for a reader."""
  several, regression = 'votes' in found[0], 'value' in found[0]
  headings = (
    ('value',)
    if regression
    else ('label', 'probability', *(('by mean logit', 'votes') if several else ()))
  )
  table = rich_table.Table('text', *headings)
  for one in found:
    text = ' / '.join(one[name] for name in ('text', 'pair') if name in one)
    text = text if len(text) <= _MAX_SHOWN_ROWS else f'{text[: _MAX_SHOWN_ROWS - 3]}...'
    if regression:
      table.add_row(text, f'{one["value"]:.3f}')
      continue
    more = (
      (
        f'{one["mean_logit"]["label"]}, {one["mean_logit"]["probability"]:.3f}',
        ', '.join(f'{count} {label}' for label, count in one['votes'].items()),
      )
      if several
      else ()
    )
    table.add_row(text, one['label'], f'{one["probability"]:.3f}', *more)
  return [table]


_BATCH_ROWS = 64  # rows at one time
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
    raise InputError(
      f'vectors of {self.folder}',
      'classifiers, of which each has an encoder of its own',
      'load the pre-training run that they started from',
    )

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """Guesses for holes, by a pre-training run; InputError elsewhere."""
    raise InputError(
      f'guesses of {self.folder}',
      'classifiers, which know no <mask>',
      'load the pre-training run that they started from',
    )

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """Labels of texts, by a classifier or a committee; InputError elsewhere."""
    raise InputError(
      f'labels by {self.folder}', 'a pre-training run, which has learned no task', _TRAINED
    )


class LanguageModel(Model):
  """A pre-training run at its latest checkpoint: `encode` and `fill_mask`; `model` and `config` are
  there to use.

  Attributes:
    config: the recipe of the run.
    model: the Flax module, `model(tokens [B L], mask [B L], positions [B K]) -> [B K V]`.
    step: of the checkpoint.
  """

  def __init__(self, folder: str):
    pretrained_run = pretrained.load(folder)
    super().__init__(folder, pretrained_run.tokenizer)
    self.config, self.model, self.step = (
      pretrained_run.config,
      pretrained_run.model,
      pretrained_run.step,
    )

  def __repr__(self) -> str:
    what = f'{_shape(self.config.model)}, {count_parameters(self.model):,} parameters'
    return f'LanguageModel({self.folder!r}, update {self.step:,}: {what})'

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """One vector a text: the mean of the encoder's vectors over its tokens, `<s>` and `</s>` among
    them, pads not.

    So an empty text has a vector too, and the mean is that of a classifier with pooling `mean`.
    Case does not matter. Of a text that is longer than the model reads the beginning counts; how
    many are is said on standard error.

    Args:
      texts: strings; a lone string is one text. None gives an array `[0 D]`.

    Returns:
      float32, in the order of the texts.

    Raises:
      InputError: what is given is no text.
    """
    texts = _check_encodable(texts, 'vectors')
    found = np.zeros((len(texts), self.config.model.hidden_size), np.float32)
    if not texts:
      return found
    limit = self.config.model.max_length
    examples = Examples(tuple(texts), (), np.zeros(len(texts), np.int32))
    sequences, shortened = task_data.encode_examples(examples, self.tokenizer, limit)
    if shortened:
      progress.log(
        f'{shortened:,} of {len(texts):,} texts are longer than {limit} tokens and lose their end'
      )
    order = sorted(range(len(texts)), key=lambda place: len(sequences[place]))
    for first in range(0, len(texts), _BATCH_ROWS):
      places = order[first : first + _BATCH_ROWS]
      some = [sequences[place] for place in places]
      rows = min(_BATCH_ROWS, 1 << (len(some) - 1).bit_length())  # few shapes are compiled
      filled = some + [[tokenizer.BEGIN_ID, tokenizer.END_ID]] * (rows - len(some))
      batch = task_data.build_task_rows(
        filled, np.zeros(rows, np.int32), task_data.bucket_length(filled, limit)
      )
      found[places] = np.asarray(_mean_vectors(self.model.encoder, batch.tokens))[: len(places)]
    return found

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """The `best` most probable pieces for each `<mask>` of a text: `hole` from 1, `piece`,
    `probability`.

    Raises:
      InputError: no `<mask>` in the text, more tokens than the model reads, or no guess wanted.
    """
    return guess_table(
      self.config.model, self.tokenizer, self.model, _check_encodable([text], 'guesses')[0], best
    )


class ClassifierModel(Model):
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
    """What is said of each text: `text`, `label`, `probability` and `probabilities` by label; a
    regression's `value`.

    A committee answers by the mean of its members' probabilities and adds `mean_logit` and `votes`.
    Texts longer than what the classifier was trained on lose their end.
    `pandas.DataFrame(model.predict(texts))` is a table.

    Args:
      texts: strings; a lone string is one text. None gives an empty list.
      pairs: of a task on pairs, the second text of each.

    Raises:
      InputError: what is given is no text; or the task is on pairs and these are missing, or the
        other way round.
    """
    card, first = self.members[0].card, _check_encodable(texts, 'labels')
    two = len(card.fields) == 2 and not card.concatenate_fields
    if two != (pairs is not None):
      found = (
        f'{card.task} is about pairs: {" and ".join(card.fields)}'
        if two
        else f'{card.task} is about one text'
      )
      raise InputError(
        f'labels by {self.folder}', found, 'give pairs too' if two else 'leave pairs out'
      )
    second = _check_encodable(pairs, 'labels') if two else first
    if len(second) != len(first):
      raise InputError(
        f'labels of {len(first)} texts', f'{len(second)} second texts', 'give one for each'
      )
    rows = list(zip(first, second, strict=True)) if two else [(text,) for text in first]
    return list(answer_examples(self._asked, rows, self._several)) if rows else []


@jax.jit
def _mean_vectors(encoder: Any, tokens: Int[Array, 'B L']) -> Float[Array, 'B D']:
  mask = tokens != tokenizer.PAD_ID
  x = encoder(tokens, mask).astype('float32')
  return (x * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]


def _check_encodable(texts: Texts, wanted: str) -> list[str]:
  texts = (
    [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else [texts]
  )
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise InputError(
        f'{wanted} of {len(texts)} texts',
        f'number {number} is {text!r} ({type(text).__name__})',
        'give strings',
      )
  return texts


def _shape(model: EncoderConfig) -> str:
  kind = f' of {model.encoder}' if model.encoder else ''
  size = (
    f'hidden {model.hidden_size}, {model.vocab_size:,} pieces, rows of {model.max_length} tokens'
  )
  return f'{model.num_layers} layers{kind}, {size}'


def load_model(folder: epath.PathLike, trusted: str) -> Model:
  """What `minilm_jax.load` describes."""
  recipe.allow_modules(trusted)
  with progress.silence():  # libraries tell each checkpoint's history
    return _open_classifier(epath.Path(folder).expanduser())


def _open_classifier(path: epath.Path) -> Model:
  openers: dict[str, Callable[[], Model]] = {
    'pretrain': lambda: LanguageModel(str(path)),
    pretrained.IMPORTED: lambda: LanguageModel(str(path)),
    committee.COMMITTEE_KIND: lambda: ClassifierModel(
      str(path), committee.load_committee(path), True
    ),
  }
  if (path / classifier.CARD_FILE).exists():
    return ClassifierModel(str(path), Committee((classifier.load_classifier(path),)), False)
  found = files.read_object(path / run_dir.CONFIG, f'the model in {path}')
  kind = found['kind'] if 'kind' in found else None
  if not isinstance(kind, str) or kind not in openers:
    raise InputError(
      f'the model in {path}',
      f'a folder of kind {kind!r}',
      _TRAINED
      if kind == 'finetune'
      else 'give a pre-training run, a classifier-N of a fine-tuning, or a committee',
    )
  return openers[kind]()
