"""The table of tasks: fields, labels and metrics, one row a task. Another task is another row.

Names, fields and labels are those of TFDS (`glue`, 2.0.0, and `ag_news_subset`), in its order. A
recipe may change the fields, label column and kind of a row; `examples.complete_task` returns the
resulting row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from minilm_jax.core.errors import InputError, suggest_name

CLASSIFICATION, REGRESSION = 'classification', 'regression'


@dataclasses.dataclass(frozen=True)
class Task:
  """A labelled task.

  Attributes:
    name: value of `task.name` in a recipe.
    kind: 'classification' or 'regression'.
    fields: the one or two text columns.
    labels: names of the classes, in the order of their indices; none for a regression. A
      classification without labels takes those of its training file.
    metrics: names in `metrics.METRICS`.
    headline: the metric that judges the task, one of `metrics`.
    filter_fields: the columns that the word list filter reads (paper 1).
    tfds: name in TFDS; '' where TFDS lacks it.
    microworld: name among the tasks of the microworld; '' for all others.
    concatenate_fields: the two fields are one text, without the empty ones, instead of a pair.
    parts: parts of a split other than train: 'validation' is validation_matched and
      validation_mismatched. The headline is of the first.
    submission_name: name of its predictions on the GLUE server, without .tsv (MNLI-m and MNLI-mm
      where it has those parts); '' where GLUE does not ask for any.
    predicted_by: the task whose models predict this one, which has no training examples.
    label: the label column.
    labels_from_data: the labels are from a training file and known by name alone, numbers too.
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
# Classes of CoLA are uneven; Matthews is 0 for one class throughout (paper 1, GLUE).
_MATTHEWS = {'metrics': ('matthews', 'accuracy'), 'headline': 'matthews'}
# The mean, as GLUE and paper 2 report it: F1 alone is above 0.8 for 'equivalent' throughout.
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
    # Paper 1 filters without the question.
    _make_glue_task('qnli', 'QNLI', ('question', 'sentence'), _ENTAILMENT, filter_fields=_SENTENCE),
    _make_glue_task('rte', 'RTE', _TWO_SENTENCES, _ENTAILMENT),
    _make_glue_task('wnli', 'WNLI', _TWO_SENTENCES, ('not_entailment', 'entailment')),
    # A test split alone.
    _make_glue_task('ax', 'AX', _PREMISE, _NLI, predicted_by='mnli'),
    # The topics of paper 2.
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
    _make_task('microworld/acceptability', _SENTENCE, _ACCEPTABILITY, microworld='acceptability'),
    _make_task('microworld/entailment', _TWO_SENTENCES, _ENTAILMENT, microworld='entailment'),
    _make_task('microworld/sentiment', _SENTENCE, _SENTIMENT, microworld='sentiment'),
  )
}


def find_task(name: str) -> Task:
  """Returns a task by name.

  Raises:
    InputError: there is none; suggests the nearest name.

  >>> find_task('cola').headline
  'matthews'
  """
  if name not in TASKS:
    raise InputError(
      f'the task {name!r}', 'no such row in tasks/task.py', suggest_name(name, TASKS)
    )
  return TASKS[name]


def convert_task(task: Task, kind: str) -> Task:
  """Returns a task as a regression, or as a classification without labels; '' changes nothing.

  >>> convert_task(find_task('own'), 'regression').headline
  'pearson_spearman'
  """
  if kind in ('', task.kind):
    return task
  return dataclasses.replace(
    task, kind=kind, labels=(), **(_CORRELATION if kind == REGRESSION else _ACCURACY)
  )
