"""Inference with trained models: vectors of texts, guesses for `<mask>`, labels of texts.

`load_model` opens a pre-training run, a saved classifier or a committee as an object for a notebook
or a script (`minilm_jax.load`). `fill_mask` and `predict` are the commands of these names. Nothing
here trains or writes.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
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
from minilm_jax.data import documents
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, PAD_ID, SPECIAL_TOKENS, Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier, committee, task_data
from minilm_jax.tasks.classifier import Card
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.examples import Examples
from minilm_jax.training import pretrained

_MASK_MARKER = '<mask>'
_ROWS_PER_BATCH = 64
_MAX_SHOWN_CHARACTERS = 60  # of a text in a table
_USE_RUN = 'load the pre-training run that they started from'
_SAVE_CLASSIFIERS = (
  'fine-tune it with --config.save_classifiers=True, and load WORKDIR/classifier-0'
)
Texts = Any  # a string or several; `_check_texts` names what is no text


@dataclasses.dataclass(frozen=True)
class Guess:
  """A piece for one `<mask>`, the `hole`-th from 1, and its probability."""

  hole: int
  piece: str
  probability: float


class Model:
  """A loaded model; see `LanguageModel` and `ClassifierModel`.

  Attributes:
    folder: its path.
    tokenizer: its tokenizer.
  """

  def __init__(self, folder: str, tokenizer: Tokenizer):
    self.folder, self.tokenizer = folder, tokenizer

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """Returns one vector per text; classifiers raise InputError."""
    raise InputError(
      f'vectors of {self.folder}',
      'classifiers, of which each has an encoder of its own',
      _USE_RUN,
    )

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """Returns guesses for each `<mask>`; classifiers raise InputError."""
    raise InputError(
      f'guesses of {self.folder}', f'classifiers, which know no {_MASK_MARKER}', _USE_RUN
    )

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """Returns labels of texts; a pre-training run raises InputError."""
    raise InputError(
      f'labels by {self.folder}',
      'a pre-training run, which has learned no task',
      _SAVE_CLASSIFIERS,
    )


class LanguageModel(Model):
  """The latest checkpoint of a pre-training run.

  Attributes:
    config: the recipe of the run.
    model: the Flax module, `model(tokens [B L], mask [B L], positions [B K]) -> [B K V]`.
    step: of the checkpoint.
  """

  def __init__(self, folder: str):
    run = pretrained.load(folder)
    super().__init__(folder, run.tokenizer)
    self.config, self.model, self.step = run.config, run.model, run.step

  def __repr__(self) -> str:
    shape = f'{_describe_shape(self.config.model)}, {count_parameters(self.model):,} parameters'
    return f'LanguageModel({self.folder!r}, update {self.step:,}: {shape})'

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """Returns one vector per text: the mean of the encoder's vectors over its tokens.

    `<s>` and `</s>` count, so that an empty text has a vector and the mean is that of a classifier
    with pooling `mean`. Case does not matter. A text that is longer than the model reads loses its
    end; standard error has the number of such texts.

    Args:
      texts: strings, or a single string. No text gives an array `[0 D]`.

    Returns:
      float32, in the order of the texts.

    Raises:
      InputError: an argument is no text.
    """
    texts = _check_texts(texts, 'vectors')
    vectors = np.zeros((len(texts), self.config.model.hidden_size), np.float32)
    if not texts:
      return vectors
    max_length = self.config.model.max_length
    examples = Examples(tuple(texts), (), np.zeros(len(texts), np.int32))
    sequences, truncated = task_data.encode_examples(examples, self.tokenizer, max_length)
    if truncated:
      progress.log(
        f'{truncated:,} of {len(texts):,} texts are longer than {max_length} tokens and lose their '
        'end'
      )
    order = sorted(range(len(texts)), key=lambda i: len(sequences[i]))
    for first in range(0, len(texts), _ROWS_PER_BATCH):
      indices = order[first : first + _ROWS_PER_BATCH]
      # A power of two, so that few shapes are compiled.
      num_rows = min(_ROWS_PER_BATCH, 1 << (len(indices) - 1).bit_length())
      padding = [[BEGIN_ID, END_ID]] * (num_rows - len(indices))
      batch = [sequences[i] for i in indices] + padding
      length = task_data.bucket_length(batch, max_length)
      rows = task_data.build_task_rows(batch, np.zeros(num_rows, np.int32), length)
      means = _mean_vectors(self.model.encoder, rows.tokens)
      vectors[indices] = np.asarray(means)[: len(indices)]
    return vectors

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """Returns the `best` most probable pieces for each `<mask>` of a text.

    Raises:
      InputError: as `guess_pieces`.
    """
    return guess_pieces(self.model, self.tokenizer, _check_texts([text], 'guesses')[0], best)


@jax.jit
def _mean_vectors(encoder: Any, tokens: Int[Array, 'B L']) -> Float[Array, 'B D']:
  mask = tokens != PAD_ID
  x = encoder(tokens, mask).astype('float32')
  return (x * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]


def fill_mask(source: epath.PathLike, text: str, best: int) -> list[Guess]:
  """Returns the `best` most probable pieces for each `<mask>`, by the latest checkpoint of a run.

  Raises:
    InputError: as `guess_pieces`.
  """
  _check_guesses(text, best)
  run = pretrained.load(source)
  return guess_pieces(run.model, run.tokenizer, text, best)


def guess_pieces(
  model: MaskedLanguageModel, tokenizer: Tokenizer, text: str, best: int
) -> list[Guess]:
  """Returns the `best` most probable pieces for each `<mask>` of a text.

  Raises:
    InputError: the text has no `<mask>` or more tokens than the model reads, or `best` is below 1.
  """
  _check_guesses(text, best)
  ids = [BEGIN_ID]
  for number, part in enumerate(tokenizer.fold(text).split(_MASK_MARKER)):
    # A space before a mask is no piece.
    ids += [MASK_ID] * (number > 0) + tokenizer.encode([part.rstrip()])[0]
  ids.append(END_ID)
  if len(ids) > model.config.max_length:
    raise InputError(
      f'guesses for a text of {len(ids)} tokens',
      f'the model reads at most {model.config.max_length}',
      'give a shorter text',
    )
  tokens = jnp.asarray([ids])
  positions = jnp.asarray(np.flatnonzero(np.asarray(ids) == MASK_ID))[None]
  shares = np.asarray(jax.nn.softmax(model(tokens, tokens != PAD_ID, positions))[0])
  # Neither a special piece nor an id past the tokenizer is a guess.
  first = len(SPECIAL_TOKENS)
  return [
    Guess(hole, tokenizer.piece(first + i), float(row[i]))
    for hole, row in enumerate(shares[:, first : tokenizer.size], 1)
    for i in np.argsort(-row)[:best].tolist()
  ]


def _check_guesses(text: str, best: int) -> None:
  if _MASK_MARKER not in text:
    raise InputError(
      f'guesses for {text!r}',
      f'no {_MASK_MARKER} in it',
      f'write {_MASK_MARKER} where a word is missing',
    )
  if best < 1:
    raise InputError(f'the best {best} guesses', 'a number below 1', 'give at least 1')


class ClassifierModel(Model):
  """A fine-tuned classifier, or a committee of several.

  Attributes:
    members: the classifiers, each with its `card` (task, labels, shape, origin).
  """

  def __init__(self, folder: str, members: Committee, is_committee: bool):
    super().__init__(folder, members.members[0].tokenizer)
    self.members, self._committee, self._is_committee = members.members, members, is_committee

  def __repr__(self) -> str:
    card = self.members[0].card
    number = f'{len(self.members)} classifiers' if self._is_committee else 'a classifier'
    labels = ', '.join(card.labels) or 'a number'
    shape = _describe_shape(card.model)
    return f'ClassifierModel({self.folder!r}: {number} of {card.task} ({labels}); {shape})'

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """Returns predictions as `predict_rows`; `pandas.DataFrame(model.predict(texts))` is a table.

    A text longer than those of the fine-tuning loses its end.

    Args:
      texts: strings, or a single string. No text gives an empty list.
      pairs: for a task on pairs, the second text of each.

    Raises:
      InputError: an argument is no text, or pairs are missing or unexpected.
    """
    card, first = self.members[0].card, _check_texts(texts, 'labels')
    if card.reads_pairs != (pairs is not None):
      raise InputError(
        f'labels by {self.folder}',
        _describe_fields(card),
        'give pairs too' if card.reads_pairs else 'leave pairs out',
      )
    rows: list[tuple[str, ...]] = [(text,) for text in first]
    if pairs is not None:
      second = _check_texts(pairs, 'labels')
      if len(second) != len(first):
        raise InputError(
          f'labels of {len(first)} texts', f'{len(second)} second texts', 'give one for each'
        )
      rows = list(zip(first, second, strict=True))
    return list(predict_rows(self._committee, rows, self._is_committee)) if rows else []


def predict(
  committee_folder: str, classifier_folder: str, text: str, text_pair: str, file: str
) -> list[dict[str, Any]]:
  """Returns predictions, as `predict_rows`, for one text or for every row of a file.

  Args:
    committee_folder, classifier_folder: one of the two.
    text: the first or only text; `text_pair` is the second.
    file: instead of them, a table with the columns of the task (or, for one text, a column `text`);
      other columns are ignored.

  Raises:
    InputError: not exactly one model or one source of text is given, or the file lacks a column.
  """
  if bool(committee_folder) == bool(classifier_folder):
    both, neither = 'both --committee and --classifier', 'no --committee and no --classifier'
    raise InputError('minilm predict', both if committee_folder else neither, 'give one of them')
  if bool(text.strip()) == bool(file) or file and text_pair:
    raise InputError(
      'minilm predict',
      'a text beside --file' if file else 'no --text and no --file',
      'give --text (of tasks on pairs also --text_pair), or --file',
    )
  if committee_folder:
    members = committee.load_committee(committee_folder)
  else:
    members = Committee((classifier.load_classifier(classifier_folder),))
  card = members.members[0].card
  rows = list(_read_rows(file, card)) if file else [_parse_row(text, text_pair, card)]
  return list(predict_rows(members, rows, bool(committee_folder)))


def _parse_row(text: str, text_pair: str, card: Card) -> tuple[str, ...]:
  if card.concatenate_fields and text_pair:
    return (' '.join(part for part in (text, text_pair) if part),)
  if bool(text_pair.strip()) != card.reads_pairs:
    raise InputError(
      'minilm predict',
      _describe_fields(card),
      'give --text and --text_pair' if card.reads_pairs else 'leave --text_pair out',
    )
  return (text, text_pair) if card.reads_pairs else (f'{text} {text_pair}' if text_pair else text,)


def _describe_fields(card: Card) -> str:
  fields = f'pairs: {" and ".join(card.fields)}' if card.reads_pairs else 'one text'
  return f'{card.task} is about {fields}'


def _read_rows(file: str, card: Card) -> Iterator[tuple[str, ...]]:
  """Yields the one or two texts of each row of a table."""
  path = epath.Path(file).expanduser()
  if not path.is_file():
    raise InputError(
      f'the texts of {file}', 'no such file', 'give a table: .jsonl, .csv, .tsv or .parquet'
    )
  number = 0
  for number, row in enumerate(documents.read_table_rows(str(path), errors='strict'), 1):
    fields = card.fields
    if not set(fields) <= row.keys() and not card.reads_pairs and 'text' in row:
      fields = ('text',)
    for field in fields:
      if field not in row or not isinstance(row[field], str):
        raise InputError(
          f'text in {field!r} of {file}',
          f'row {number:,} has {", ".join(map(str, row)) or "nothing"}',
          f'give {" and ".join(card.fields)}, as strings',
        )
    texts = tuple(row[field] for field in fields)
    yield (' '.join(text for text in texts if text),) if card.concatenate_fields else texts
  if not number:
    raise InputError(f'the texts of {file}', 'no rows', 'give at least one')


def predict_rows(
  members: Committee, rows: Sequence[tuple[str, ...]], is_committee: bool
) -> Iterator[dict[str, Any]]:
  """Yields a prediction for each row of one or two texts; there must be one.

  Each has `text` (and `pair`), `label`, `probability`, and `probabilities` by label. Those of a
  committee are by the mean probability; `mean_logit` has label and probabilities by the mean logit,
  and `votes` the number of members for each label. A regression has only `value`.
  """
  card = members.members[0].card
  first, *second = zip(*rows, strict=True)
  labels = np.zeros(len(rows), np.int32)
  logits = members.logits(Examples(first, second[0] if second else (), labels))
  for number, texts in enumerate(rows):
    row = dict(zip(('text', 'pair'), texts))
    if card.is_regression:
      yield row | {'value': float(logits[0, number, 0])}
      continue
    row_logits = logits[:, number : number + 1]
    mean_probability, mean_logit = (
      _describe_output(probabilities[0], card)
      for probabilities in committee.combine_both_ways(row_logits)
    )
    row |= mean_probability
    if is_committee:
      votes = np.bincount(row_logits[:, 0].argmax(-1), minlength=len(card.labels))
      counts = {card.labels[label]: int(votes[label]) for label in np.flatnonzero(votes)}
      row |= {'mean_logit': mean_logit, 'votes': counts}
    yield row


def _describe_output(probabilities: Float[np.ndarray, 'C'], card: Card) -> dict[str, Any]:
  best = int(probabilities.argmax())
  return {
    'label': card.labels[best],
    'probability': float(probabilities[best]),
    'probabilities': dict(zip(card.labels, probabilities.tolist(), strict=True)),
  }


def prediction_tables(predictions: list[dict[str, Any]]) -> list[rich_table.Table]:
  """Returns a table with one row per text."""
  headings = ['value'] if 'value' in predictions[0] else ['label', 'probability']
  if 'votes' in predictions[0]:
    headings += ['by mean logit', 'votes']
  table = rich_table.Table('text', *headings)
  for row in predictions:
    text = ' / '.join(row[name] for name in ('text', 'pair') if name in row)
    if len(text) > _MAX_SHOWN_CHARACTERS:
      text = f'{text[: _MAX_SHOWN_CHARACTERS - 3]}...'
    cells = (
      [f'{row["value"]:.3f}'] if 'value' in row else [row['label'], f'{row["probability"]:.3f}']
    )
    if 'votes' in row:
      other = row['mean_logit']
      votes = ', '.join(f'{count} {label}' for label, count in row['votes'].items())
      cells += [f'{other["label"]}, {other["probability"]:.3f}', votes]
    table.add_row(text, *cells)
  return [table]


def _check_texts(texts: Any, wanted: str) -> list[str]:
  if isinstance(texts, str) or not isinstance(texts, Iterable):
    texts = [texts]
  texts = list(texts)
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise InputError(
        f'{wanted} of {len(texts)} texts',
        f'number {number} is {text!r} ({type(text).__name__})',
        'give strings',
      )
  return texts


def _describe_shape(config: EncoderConfig) -> str:
  encoder = f' of {config.encoder}' if config.encoder else ''
  return (
    f'{config.num_layers} layers{encoder}, hidden {config.hidden_size}, '
    f'{config.vocab_size:,} pieces, rows of {config.max_length} tokens'
  )


def load_model(folder: epath.PathLike, trusted: str) -> Model:
  """Opens a model as `minilm_jax.load` describes."""
  recipe.allow_modules(trusted)
  path = epath.Path(folder).expanduser()
  if (path / classifier.CARD_FILE).exists():
    members = Committee((classifier.load_classifier(path),))
    return ClassifierModel(str(path), members, is_committee=False)
  stored = files.read_object(path / run_dir.CONFIG, f'the model in {path}')
  kind = stored['kind'] if 'kind' in stored else None
  if kind == 'pretrain' or kind == run_dir.IMPORTED:
    return LanguageModel(str(path))
  if kind == committee.COMMITTEE_KIND:
    return ClassifierModel(str(path), committee.load_committee(path), is_committee=True)
  raise InputError(
    f'the model in {path}',
    f'a folder of kind {kind!r}',
    _SAVE_CLASSIFIERS
    if kind == 'finetune'
    else 'give a pre-training run, a classifier-N of a fine-tuning, or a committee',
  )
