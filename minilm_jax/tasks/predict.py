"""What a committee, or a single classifier, says of texts: a label and its probability, for a program or a reader."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from rich import table as rich_table

from minilm_jax.errors import InputError
from minilm_jax.language import documents
from minilm_jax.tasks import classifiers, committee, subsets
from minilm_jax.tasks.classifiers import Card
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.sources import Examples
from minilm_jax.tasks.table import REGRESSION

_SHOWN = 60  # characters of a text in a table


def predict(committee_folder: str, classifier_folder: str, text: str, pair: str, file: str) -> list[dict[str, Any]]:
  """Answers to a text or to every row of a file.

  Args:
    committee_folder, classifier_folder: one of both: a committee, or a single classifier.
    text: the first text, or the only one; `pair` is the second.
    file: instead, a table with the columns of the task (or, of one text, a column `text`); others are passed over.

  Returns:
    Of each text, in order: `text` (and `pair`), `label`, `probability`, and `probabilities` by label. Of a committee
    these are by the mean probability; `mean_logit` has label and probabilities by the mean logit, `votes` how many
    members have each label first. Of a regression only `value`.

  Raises:
    InputError: nobody or two are asked, about nothing or twice, or a file that lacks a column.
  """
  if bool(committee_folder) == bool(classifier_folder):
    raise InputError('minilm predict', 'both --committee and --classifier' if committee_folder else
                     'no --committee and no --classifier', 'give one of them')
  if bool(text.strip()) == bool(file) or file and pair:
    found = 'no --text and no --file' if not file else 'a text beside --file'
    raise InputError('minilm predict', found, 'give --text (of tasks on pairs also --text_pair), or --file')
  several = bool(committee_folder)
  members = committee.load(committee_folder) if several else Committee((classifiers.load(classifier_folder),))
  card = members.members[0].card
  rows = list(_read(file, card)) if file else [_given(text, pair, card)]
  return list(answers(members, rows, several))


def _given(text: str, pair: str, card: Card) -> tuple[str, ...]:
  two = len(card.fields) == 2 and not card.concatenate_fields
  if bool(pair.strip()) != two and not (card.concatenate_fields and pair):
    found = f'{card.task} is about pairs: {" and ".join(card.fields)}' if two else f'{card.task} is about one text'
    raise InputError('minilm predict', found, 'give --text and --text_pair' if two else 'leave --text_pair out')
  return (text, pair) if two else (' '.join(part for part in (text, pair) if part),)


def _read(path: str, card: Card) -> Iterator[tuple[str, ...]]:
  """The one or two texts of each row of a table."""
  if not epath.Path(path).expanduser().is_file():
    raise InputError(f'the texts of {path}', 'no such file', 'give a table: .jsonl, .csv, .tsv or .parquet')
  number = 0
  for number, row in enumerate(documents.table_rows(str(epath.Path(path).expanduser()), errors='strict'), 1):
    fields = card.fields
    if not set(fields) <= row.keys() and (card.concatenate_fields or len(fields) == 1) and 'text' in row:
      fields = ('text',)
    for field in fields:
      if field not in row or not isinstance(row[field], str):
        found = f'row {number:,} has {", ".join(map(str, row)) or "nothing"}'
        raise InputError(f'text in {field!r} of {path}', found, f'give {" and ".join(card.fields)}, as strings')
    texts = tuple(row[field] for field in fields)
    yield (' '.join(text for text in texts if text),) if card.concatenate_fields else texts
  if not number:
    raise InputError(f'the texts of {path}', 'no rows', 'give at least one')


def answers(members: Committee, rows: list[tuple[str, ...]], several: bool) -> Iterator[dict[str, Any]]:
  """Answers to at least one row, as `predict` gives them; without `several` those of the only member."""
  card = members.members[0].card
  first, *second = zip(*rows, strict=True)
  logits = members.logits(Examples(first, *second or ((),), np.zeros(len(rows), np.int32)))
  for number, texts in enumerate(rows):
    asked = dict(zip(('text', 'pair'), texts))
    if card.task_kind == REGRESSION:
      yield asked | {'value': float(logits[0, number, 0])}
      continue
    own = logits[:, number:number + 1]
    answer = asked | _answer(subsets.combine(own, subsets.PROBABILITY)[0], card)
    if several:
      votes = np.bincount(own[:, 0].argmax(-1), minlength=len(card.labels))
      answer |= {'mean_logit': _answer(subsets.combine(own, subsets.LOGIT)[0], card),
                 'votes': {card.labels[label]: int(votes[label]) for label in np.flatnonzero(votes)}}
    yield answer


def _answer(probabilities: np.ndarray, card: Card) -> dict[str, Any]:
  best = int(probabilities.argmax())
  return {'label': card.labels[best], 'probability': float(probabilities[best]),
          'probabilities': dict(zip(card.labels, probabilities.tolist(), strict=True))}


def tables(found: list[dict[str, Any]]) -> list[rich_table.Table]:
  """The same for a reader."""
  several, regression = 'votes' in found[0], 'value' in found[0]
  headings = ('value',) if regression else ('label', 'probability', *(('by mean logit', 'votes') if several else ()))
  table = rich_table.Table('text', *headings)
  for one in found:
    text = ' / '.join(one[name] for name in ('text', 'pair') if name in one)
    text = text if len(text) <= _SHOWN else f'{text[:_SHOWN - 3]}...'
    if regression:
      table.add_row(text, f'{one["value"]:.3f}')
      continue
    more = (f'{one["mean_logit"]["label"]}, {one["mean_logit"]["probability"]:.3f}',
            ', '.join(f'{count} {label}' for label, count in one['votes'].items())) if several else ()
    table.add_row(text, one['label'], f'{one["probability"]:.3f}', *more)
  return [table]
