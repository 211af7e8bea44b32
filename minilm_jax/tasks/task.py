"""Defines the labelled tasks: a table with fields, labels and metrics. To add a task, add a row.

Names, fields and labels are those of TFDS (`glue`, 2.0.0, and `ag_news_subset`), in the same order.
A recipe may change the fields, label column and kind of a row: see `examples.complete_task`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from minilm_jax.core.errors import check_name

CLASSIFICATION, REGRESSION = 'classification', 'regression'


@dataclasses.dataclass(frozen=True)
class Task:
  """Describes a labelled task.

  Attributes:
    kind: 'classification' or 'regression'.
    fields: Names of the text columns, one or two.
    labels: Names of the classes in the order of their indices; empty for a regression. A
      classification without labels takes the labels of its training file.
    metrics: Keys of `metrics.METRICS`.
    headline: The main metric of the task, one of `metrics`.
    filter_fields: Columns that the word list filter reads (paper 1).
    tfds: Name in TFDS; '' if TFDS lacks the task.
    microworld: Name of the microworld task; '' for all other tasks.
    concatenate_fields: Joins the fields to one text, without empty fields, instead of a pair.
    parts: Suffixes of the validation and test splits, such as 'matched' for validation_matched.
      Headline scores are of the first part.
    submission_name: Name of the file for the GLUE server, without .tsv; MNLI-m and MNLI-mm for the
      parts of MNLI. '' if GLUE expects no file.
    predicted_by: Task whose models predict this task, which has no training examples.
    labels_from_data: Labels come from a training file, and values match by name, also numbers.
  """

  name: str
  kind: str
  fields: tuple[str, ...]
  labels: tuple[str, ...]
  metrics: tuple[str, ...]
  headline: str
  filter_fields: tuple[str, ...]
  tfds: str = ''
  microworld: str = ''
  concatenate_fields: bool = False
  parts: tuple[str, ...] = ()
  submission_name: str = ''
  predicted_by: str = ''
  label: str = 'label'
  labels_from_data: bool = False


_SENTENCE, _TWO_SENTENCES = ('sentence',), ('sentence1', 'sentence2')
_PREMISE, _QUESTIONS = ('premise', 'hypothesis'), ('question1', 'question2')
_SENTIMENT, _ENTAILMENT = ('negative', 'positive'), ('entailment', 'not_entailment')
_NLI = ('entailment', 'neutral', 'contradiction')
_ACCEPTABILITY = ('unacceptable', 'acceptable')
_ACCURACY = {'metrics': ('accuracy',), 'headline': 'accuracy'}
# The classes of CoLA are uneven; the Matthews correlation of a constant prediction is 0.
_MATTHEWS = {'metrics': ('matthews', 'accuracy'), 'headline': 'matthews'}
# GLUE and paper 2 report the mean; F1 alone exceeds 0.8 if every prediction is 'equivalent'.
_ACCURACY_F1 = {'metrics': ('accuracy', 'f1', 'accuracy_f1'), 'headline': 'accuracy_f1'}
_CORRELATION = {
  'metrics': ('pearson', 'spearman', 'pearson_spearman'),
  'headline': 'pearson_spearman',
}


def _make_task(
  name: str,
  fields: tuple[str, ...],
  labels: tuple[str, ...] = (),
  scores: Mapping[str, Any] = _ACCURACY,
  **options: Any,
) -> Task:
  kind = REGRESSION if scores is _CORRELATION else CLASSIFICATION
  options = {'filter_fields': fields, **options}
  return Task(name, kind, fields, labels, **scores, **options)


def _make_glue_task(name: str, submission_name: str, *args: Any, **options: Any) -> Task:
  return _make_task(name, *args, tfds=f'glue/{name}', submission_name=submission_name, **options)


TASKS: dict[str, Task] = {
  task.name: task
  for task in (
    _make_glue_task('cola', 'CoLA', _SENTENCE, _ACCEPTABILITY, _MATTHEWS),
    _make_glue_task('sst2', 'SST-2', _SENTENCE, _SENTIMENT),
    _make_glue_task('mrpc', 'MRPC', _TWO_SENTENCES, ('not_equivalent', 'equivalent'), _ACCURACY_F1),
    _make_glue_task('qqp', 'QQP', _QUESTIONS, ('not_duplicate', 'duplicate'), _ACCURACY_F1),
    _make_glue_task('stsb', 'STS-B', _TWO_SENTENCES, (), _CORRELATION),
    _make_glue_task('mnli', 'MNLI', _PREMISE, _NLI, parts=('matched', 'mismatched')),
    # Paper 1 filters by the sentence alone.
    _make_glue_task('qnli', 'QNLI', ('question', 'sentence'), _ENTAILMENT, filter_fields=_SENTENCE),
    _make_glue_task('rte', 'RTE', _TWO_SENTENCES, _ENTAILMENT),
    _make_glue_task('wnli', 'WNLI', _TWO_SENTENCES, ('not_entailment', 'entailment')),
    # AX has only a test split.
    _make_glue_task('ax', 'AX', _PREMISE, _NLI, predicted_by='mnli'),
    # Topic classification (paper 2).
    _make_task(
      'ag_news',
      ('title', 'description'),
      ('World', 'Sports', 'Business', 'Sci/Tech'),
      tfds='ag_news_subset',
      concatenate_fields=True,
    ),
    _make_task('dbpedia_14', ('content',)),
    _make_task('fewrel', ('text',)),
    # Custom tasks, read from files.
    _make_task('own', ('text',)),
    _make_task('sentiment', _SENTENCE, _SENTIMENT),
    _make_task('word_order', ('text',), ('original', 'swapped')),
    _make_task('microworld/acceptability', _SENTENCE, _ACCEPTABILITY, microworld='acceptability'),
    _make_task('microworld/entailment', _TWO_SENTENCES, _ENTAILMENT, microworld='entailment'),
    _make_task('microworld/sentiment', _SENTENCE, _SENTIMENT, microworld='sentiment'),
  )
}


def find_task(name: str) -> Task:
  """Returns a task by name.

  Raises:
    InputError: No task has the name; the error suggests the nearest name.

  >>> find_task('cola').headline
  'matthews'
  """
  check_name(f'the task {name!r}', 'task; tasks/task.py lists them', name, TASKS)
  return TASKS[name]


def convert_task(task: Task, kind: str) -> Task:
  """Returns a task as a regression or as a classification without labels; '' keeps the kind.

  >>> convert_task(find_task('own'), 'regression').headline
  'pearson_spearman'
  """
  if kind in ('', task.kind):
    return task
  return dataclasses.replace(
    task, kind=kind, labels=(), **(_CORRELATION if kind == REGRESSION else _ACCURACY)
  )
