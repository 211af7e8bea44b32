"""Applies trained models: vectors of texts, guesses for `<mask>`, labels of texts.

`load_model` opens a pre-training run, a saved classifier or a committee for a notebook or script
(`minilm_jax.load`). `predict` implements the command of the same name.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from rich import table as rich_table

from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import documents
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, PAD_ID, SPECIAL_TOKENS, Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier, committee, task_data
from minilm_jax.tasks.classifier import Card
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.committee_scores import LOGIT, PROBABILITY, combine_outputs
from minilm_jax.tasks.examples import Examples, require_text
from minilm_jax.training import pretrained

_MASK_MARKER = '<mask>'
_SURROGATE = re.compile('[\ud800-\udfff]')
_ROWS_PER_BATCH = 64
_MAX_TEXT_CHARS = 60  # in a table
_USE_RUN = 'load the pre-training run of the classifiers'
_SAVE_CLASSIFIERS = (
  'fine-tune the run with --config.save_classifiers=True, and load WORKDIR/classifier-0'
)
Texts = Any  # a string or an iterable of strings; `_check_texts` validates values


@dataclasses.dataclass(frozen=True)
class Guess:
  """Stores a piece, its probability, and the number of its `<mask>` in the text, from 1."""

  hole: int
  piece: str
  probability: float


class Model:
  """Base class of loaded models; see `LanguageModel` and `ClassifierModel`."""

  def __init__(self, folder: epath.PathLike, tokenizer: Tokenizer):
    self.folder, self.tokenizer = os.fspath(folder), tokenizer

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """Returns one vector per text; classifiers raise InputError."""
    raise InputError(f'vectors of {self.folder}', 'a classifier or committee', _USE_RUN)

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """Returns guesses for each `<mask>`; classifiers raise InputError."""
    raise InputError(
      f'guesses for {_MASK_MARKER} of {self.folder}', 'a classifier or committee', _USE_RUN
    )

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """Returns labels of texts; a pre-training run raises InputError."""
    raise InputError(
      f'labels by {self.folder}', 'a pre-training run, which has no labels', _SAVE_CLASSIFIERS
    )


class LanguageModel(Model):
  """Loads the latest checkpoint of a pre-training run.

  Attributes:
    model: Flax module, `model(tokens [B L], mask [B L], positions [B K]) -> [B K V]`.
  """

  def __init__(self, folder: epath.PathLike):
    run = pretrained.load(folder)
    super().__init__(folder, run.tokenizer)
    self.config, self.model, self.step = run.config, run.model, run.step

  def __repr__(self) -> str:
    shape = f'{_describe_shape(self.config.model)}, {count_parameters(self.model):,} parameters'
    return f'LanguageModel({self.folder!r}, update {self.step:,}: {shape})'

  def encode(self, texts: Texts) -> Float[np.ndarray, 'N D']:
    """Returns one vector per text: the mean of the encoder's vectors over its tokens.

    The mean includes `<s>` and `</s>`, as in a classifier with pooling `mean`, so an empty text has
    a vector. The tokenizer folds the case. Longer texts than the model reads are truncated, and
    their number is logged.

    Args:
      texts: A string or several. An empty list gives an array `[0 D]`.

    Returns:
      Vectors in float32, in the order of the texts.

    Raises:
      InputError: A value is not a string.
    """
    texts = _check_texts(texts, 'vectors')
    if not texts:
      return np.zeros((0, self.config.model.hidden_size), np.float32)
    max_length = self.config.model.max_length
    examples = Examples(tuple(texts), (), np.zeros(len(texts), np.int32))
    sequences, truncated = task_data.encode_examples(examples, self.tokenizer, max_length)
    task_data.log_truncated(truncated, len(texts), max_length)
    batches, places = task_data.batch_sequences(sequences, _ROWS_PER_BATCH, max_length)
    vectors = []
    for tokens in batches:
      # Rows are sorted by length, so the last row is the longest of a batch.
      length = task_data.bucket_length([tokens[-1][tokens[-1] != PAD_ID]], max_length)
      vectors.append(np.asarray(_mean_vectors(self.model.encoder, tokens[:, :length])))
    return np.concatenate(vectors)[places]

  def fill_mask(self, text: Any, best: int = 5) -> list[Guess]:
    """Returns the `best` most probable pieces for each `<mask>` of a text.

    Raises:
      InputError: As for `guess_pieces`.
    """
    return guess_pieces(self.model, self.tokenizer, _check_texts([text], 'guesses')[0], best)


@jax.jit
def _mean_vectors(encoder: Any, tokens: Int[Array, 'B L']) -> Float[Array, 'B D']:
  mask = tokens != PAD_ID
  x = encoder(tokens, mask).astype('float32')
  return (x * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]


def guess_pieces(
  model: MaskedLanguageModel, tokenizer: Tokenizer, text: str, best: int
) -> list[Guess]:
  """Returns the `best` most probable pieces for each `<mask>` of a text.

  Raises:
    InputError: The text has no `<mask>` or too many tokens, or `best` is below 1.
  """
  check_guesses(text, best)
  ids = encode_masked(tokenizer, text)
  if len(ids) > model.config.max_length:
    raise InputError(
      f'guesses for a text of {len(ids)} tokens',
      f'the model reads at most {model.config.max_length}',
      'give a shorter text',
    )
  tokens = jnp.asarray([ids])
  positions = jnp.asarray(np.flatnonzero(np.asarray(ids) == MASK_ID))[None]
  probabilities = np.asarray(jax.nn.softmax(model(tokens, tokens != PAD_ID, positions))[0])
  # Guesses exclude special tokens and ids beyond the tokenizer.
  first = len(SPECIAL_TOKENS)
  return [
    Guess(hole, tokenizer.piece(first + i), float(row[i]))
    for hole, row in enumerate(probabilities[:, first : tokenizer.size], 1)
    for i in np.argsort(-row)[:best].tolist()
  ]


def check_guesses(text: str, best: int) -> None:
  """Raises InputError for a text without `<mask>`, and for `best` below 1."""
  if _MASK_MARKER not in text:
    raise InputError(
      f'guesses for {text!r}',
      f'no {_MASK_MARKER}',
      f'write {_MASK_MARKER} in place of a word',
    )
  if best < 1:
    raise InputError(f'the best {best} guesses', f'a number below 1: {best}', 'give at least 1')


def encode_masked(tokenizer: Tokenizer, text: str) -> list[int]:
  """Returns the ids of a text with `<mask>`, between `<s>` and `</s>`."""
  # White space before a mask is not a piece.
  parts = [tokenizer.fold(part.rstrip()) for part in text.split(_MASK_MARKER)]
  ids = [BEGIN_ID]
  for number, part_ids in enumerate(tokenizer.encode_parts(parts)):
    ids += [MASK_ID] * (number > 0) + part_ids
  return [*ids, END_ID]


class ClassifierModel(Model):
  """Predicts with a fine-tuned classifier or a committee.

  Attributes:
    members: Classifiers; the `card` of each has its task, labels, shape and origin.
  """

  def __init__(self, folder: epath.PathLike, members: Committee, is_committee: bool):
    super().__init__(folder, members.members[0].tokenizer)
    self.members, self._committee, self._is_committee = members.members, members, is_committee

  def __repr__(self) -> str:
    card = self.members[0].card
    number = f'{len(self.members)} classifiers' if self._is_committee else 'a classifier'
    labels = ', '.join(card.labels) or 'a number'
    shape = _describe_shape(card.model)
    return f'ClassifierModel({self.folder!r}: {number} of {card.task} ({labels}); {shape})'

  def predict(self, texts: Texts, pairs: Texts | None = None) -> list[dict[str, Any]]:
    """Returns predictions as from `predict_rows`; `pandas.DataFrame` makes a table of the list.

    Texts are truncated to the maximum length of the fine-tuning, and the number of truncated texts
    is logged.

    Args:
      texts: A string or several. An empty list gives an empty list.
      pairs: Second text of each example, for a task on pairs.

    Raises:
      InputError: A value is not a string, or pairs are missing or unexpected.
    """
    card, first = self.members[0].card, _check_texts(texts, 'labels')
    if card.reads_pairs != (pairs is not None):
      raise InputError(
        f'labels by {self.folder}',
        _describe_fields(card),
        'give pairs' if card.reads_pairs else 'remove pairs',
      )
    rows: list[tuple[str, ...]] = [(text,) for text in first]
    if pairs is not None:
      second = _check_texts(pairs, 'labels')
      if len(second) != len(first):
        raise InputError(
          f'labels of {len(first)} texts',
          f'{len(second)} pairs',
          'give a second text for each text',
        )
      rows = list(zip(first, second, strict=True))
    return list(predict_rows(self._committee, rows, self._is_committee)) if rows else []


def predict(
  committee_folder: str, classifier_folder: str, text: str, text_pair: str, file: str
) -> list[dict[str, Any]]:
  """Returns predictions as from `predict_rows`, for a text or for every row of a file.

  Exactly one model and one source of text must be given.

  Args:
    file: Table with the columns of the task or, for single texts, the column `text`; or ''.

  Raises:
    InputError: The arguments do not name one model and one source of text, or the file lacks a
      column.
  """
  if bool(committee_folder) == bool(classifier_folder):
    fault = 'both flags' if committee_folder else 'neither --committee nor --classifier'
    raise InputError('minilm predict', fault, 'give either --committee or --classifier')
  if bool(text.strip()) == bool(file) or file and text_pair:
    raise InputError(
      'minilm predict',
      'a text and --file' if file else 'neither --text nor --file',
      'give --text, with --text_pair for a task on pairs, or --file',
    )
  if committee_folder:
    members = committee.load_committee(committee_folder)
  else:
    members = Committee((classifier.load_classifier(classifier_folder),))
  card = members.members[0].card
  rows = list(_read_rows(file, card)) if file else [_parse_row(text, text_pair, card)]
  return list(predict_rows(members, rows, bool(committee_folder)))


def _parse_row(text: str, text_pair: str, card: Card) -> tuple[str, ...]:
  if bool(text_pair.strip()) != card.reads_pairs and not card.concatenate_fields:
    raise InputError(
      'minilm predict',
      _describe_fields(card),
      'give --text and --text_pair' if card.reads_pairs else 'remove --text_pair',
    )
  if card.reads_pairs:
    return text, text_pair
  return (f'{text} {text_pair}' if text_pair else text,)


def _describe_fields(card: Card) -> str:
  return f'{card.task}, a task on {"pairs" if card.reads_pairs else "single texts"}'


def _read_rows(file: str, card: Card) -> Iterator[tuple[str, ...]]:
  """Yields the texts of each row of a table."""
  if not epath.Path(file).is_file():
    raise InputError(
      f'the texts of {file}', 'no such file', 'give a table: .jsonl, .csv, .tsv or .parquet'
    )
  number = 0
  for number, row in enumerate(documents.read_table_rows(file), 1):
    fields = card.fields
    if not set(fields) <= row.keys() and not card.reads_pairs and 'text' in row:
      fields = ('text',)
    for field in fields:
      if field not in row:
        raise InputError(
          f'text in {field!r} of {file}',
          f'row {number:,} has {", ".join(map(str, row)) or "nothing"}',
          f'give {" and ".join(card.fields)}, as strings',
        )
      require_text(row[field], f'text in {field!r} of {file}', f'row {number:,}')
    texts = tuple(row[field] for field in fields)
    yield (' '.join(text for text in texts if text),) if card.concatenate_fields else texts
  if not number:
    raise InputError(f'the texts of {file}', 'no rows', 'give at least one')


def predict_rows(
  members: Committee, rows: Sequence[tuple[str, ...]], is_committee: bool
) -> Iterator[dict[str, Any]]:
  """Yields a prediction for each row of one or two texts; `rows` must not be empty.

  A prediction has `text` (and `pair`), `label`, `probability`, and `probabilities` by label; a
  regression has `value` instead. A committee combines members by the mean probability. The field
  `mean_logit` has label and probabilities by the mean logit, and `votes` counts members by label.
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
      _describe_output(combine_outputs(row_logits, combined)[0], card)
      for combined in (PROBABILITY, LOGIT)
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


def make_prediction_tables(predictions: list[dict[str, Any]]) -> list[rich_table.Table]:
  """Returns a table with one row per text."""
  headings = ['value'] if 'value' in predictions[0] else ['label', 'probability']
  if 'votes' in predictions[0]:
    headings += ['by mean logit', 'votes']
  table = rich_table.Table('text', *headings)
  for row in predictions:
    text = ' / '.join(row[name] for name in ('text', 'pair') if name in row)
    if len(text) > _MAX_TEXT_CHARS:
      text = f'{text[: _MAX_TEXT_CHARS - 3]}...'
    cells = (
      [f'{row["value"]:.3f}'] if 'value' in row else [row['label'], f'{row["probability"]:.3f}']
    )
    if 'votes' in row:
      other = row['mean_logit']
      votes = ', '.join(f'{count} {label}' for label, count in row['votes'].items())
      cells += [f'{other["label"]}, {other["probability"]:.3f}', votes]
    table.add_row(text, *cells)
  return [table]


def _check_texts(texts: Any, purpose: str) -> list[str]:
  if isinstance(texts, str) or not isinstance(texts, Iterable):
    texts = [texts]
  texts = list(texts)
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise InputError(
        f'{purpose} of {len(texts)} texts',
        f'{text!r} ({type(text).__name__}) at index {number}',
        'give strings',
      )
    if match := _SURROGATE.search(text):
      raise InputError(
        f'{purpose} of {len(texts)} texts',
        f'U+{ord(match[0]):04X} at character {match.start()} of the text at index {number}',
        'remove the lone surrogate, which is half of a character',
      )
  return texts


def _describe_shape(config: EncoderConfig) -> str:
  encoder = f' of {config.encoder}' if config.encoder else ''
  return (
    f'{config.num_layers} layers{encoder}, hidden {config.hidden_size}, '
    f'{config.vocab_size:,} pieces, rows of {config.max_length} tokens'
  )


def load_model(folder: epath.PathLike, trusted: str | Sequence[str]) -> Model:
  """Opens a model; see `minilm_jax.load`."""
  recipe.allow_modules(trusted)
  path = epath.Path(folder)
  if (path / classifier.CARD_FILE).exists():
    members = Committee((classifier.load_classifier(path),))
    return ClassifierModel(path, members, is_committee=False)
  stored = files.read_object(path / run_dir.CONFIG, f'the model in {path}')
  kind = stored['kind'] if 'kind' in stored else None
  if kind == 'pretrain' or kind == run_dir.IMPORTED:
    return LanguageModel(path)
  if kind == committee.COMMITTEE_KIND:
    return ClassifierModel(path, committee.load_committee(path), is_committee=True)
  raise InputError(
    f'the model in {path}',
    f'a folder of kind {kind!r}',
    _SAVE_CLASSIFIERS
    if kind == 'finetune'
    else 'give a pre-training run, a classifier-N of a fine-tuning, or a committee',
  )
