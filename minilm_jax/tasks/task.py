"""One row a task: what its examples hold and what it is judged by. Another task is another row.

Names, fields and labels are those of TFDS (`glue`, 2.0.0, and `ag_news_subset`), in its order. How
examples are read is the matter of `sources.py`, how predictions are scored that of `metrics.py`. A
recipe may change a row's fields, label column and kind: `sources.complete` gives the row as it is
used.
"""

import dataclasses
from typing import Any

from minilm_jax.core.errors import InputError, suggest_name

CLASSIFICATION, REGRESSION = 'classification', 'regression'


@dataclasses.dataclass(frozen=True)
class Task:
  """A labelled task.

  Attributes:
    name: what `task.name` in a recipe says.
    kind: 'classification' or 'regression'.
    fields: the one or two fields of text.
    labels: names of the classes, in the order of their indices; none for a regression. A
      classification without any takes those of its training file.
    metrics: names in `metrics.METRICS`.
    headline: the metric that the task is judged by, one of `metrics`.
    filter_fields: the fields that the word list filter looks at (paper 1).
    tfds: the name in TFDS; '' where it is not there.
    microworld: the name among the tasks of the microworld; '' for all others.
    joined: are the two fields one text, the empty ones left out, rather than a pair?
    parts: what a split other than train consists of: 'validation' is validation_matched and
      validation_mismatched. The headline is judged on the first.
    server: the name of its predictions on the GLUE server, without .tsv (MNLI-m and MNLI-mm where
      it has those parts); '' where GLUE does not ask for any.
    through: the task whose models predict this one, which has no training examples; '' for all
      others.
    label: the column of the label.
    found: were the labels found in a training file? They are then known by name alone, numbers too.
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


_ONE_SENTENCE, _TWO_SENTENCES, _PREMISE = (
  ('sentence',),
  ('sentence1', 'sentence2'),
  ('premise', 'hypothesis'),
)
_SENTIMENT, _ENTAILMENT = ('negative', 'positive'), ('entailment', 'not_entailment')
_THREE_WAYS = ('entailment', 'neutral', 'contradiction')
# The mean, as GLUE and paper 1 report it: F1 alone is above 0.8 for 'equivalent' throughout.
_SAME = {'metrics': ('accuracy', 'f1', 'accuracy_f1'), 'headline': 'accuracy_f1'}
_CORRELATION = {
  'metrics': ('pearson', 'spearman', 'pearson_spearman'),
  'headline': 'pearson_spearman',
}
_ACCURACY = {'metrics': ('accuracy',), 'headline': 'accuracy'}


def _accuracy_metric(
  name: str, fields: tuple[str, ...], labels: tuple[str, ...], **more: Any
) -> Task:
  return Task(name, CLASSIFICATION, fields, labels, filter_fields=fields, **_ACCURACY, **more)


TASKS: dict[str, Task] = {
  task.name: task
  for task in (
    # Classes are uneven, so that accuracy flatters: Matthews is 0 for one class throughout (paper
    # 1, GLUE).
    Task(
      'cola',
      CLASSIFICATION,
      _ONE_SENTENCE,
      ('unacceptable', 'acceptable'),
      ('matthews', 'accuracy'),
      'matthews',
      _ONE_SENTENCE,
      tfds='glue/cola',
      submission_name='CoLA',
    ),
    _accuracy_metric('sst2', _ONE_SENTENCE, _SENTIMENT, tfds='glue/sst2', submission_name='SST-2'),
    Task(
      'mrpc',
      CLASSIFICATION,
      _TWO_SENTENCES,
      ('not_equivalent', 'equivalent'),
      filter_fields=_TWO_SENTENCES,
      tfds='glue/mrpc',
      submission_name='MRPC',
      **_SAME,
    ),
    Task(
      'qqp',
      CLASSIFICATION,
      ('question1', 'question2'),
      ('not_duplicate', 'duplicate'),
      filter_fields=('question1', 'question2'),
      tfds='glue/qqp',
      submission_name='QQP',
      **_SAME,
    ),
    Task(
      'stsb',
      REGRESSION,
      _TWO_SENTENCES,
      (),
      filter_fields=_TWO_SENTENCES,
      tfds='glue/stsb',
      submission_name='STS-B',
      **_CORRELATION,
    ),
    _accuracy_metric(
      'mnli',
      _PREMISE,
      _THREE_WAYS,
      tfds='glue/mnli',
      submission_name='MNLI',
      parts=('matched', 'mismatched'),
    ),
    # Paper 1 never looks at the question when it filters.
    Task(
      'qnli',
      CLASSIFICATION,
      ('question', 'sentence'),
      _ENTAILMENT,
      filter_fields=_ONE_SENTENCE,
      tfds='glue/qnli',
      submission_name='QNLI',
      **_ACCURACY,
    ),
    _accuracy_metric('rte', _TWO_SENTENCES, _ENTAILMENT, tfds='glue/rte', submission_name='RTE'),
    _accuracy_metric(
      'wnli',
      _TWO_SENTENCES,
      ('not_entailment', 'entailment'),
      tfds='glue/wnli',
      submission_name='WNLI',
    ),
    # a test split, nothing else
    _accuracy_metric(
      'ax', _PREMISE, _THREE_WAYS, tfds='glue/ax', submission_name='AX', predicted_by='mnli'
    ),
    # The topics of paper 2.
    _accuracy_metric(
      'ag_news',
      ('title', 'description'),
      ('World', 'Sports', 'Business', 'Sci/Tech'),
      tfds='ag_news_subset',
      concatenate_fields=True,
    ),
    _accuracy_metric('dbpedia_14', ('content',), ()),
    _accuracy_metric('fewrel', ('text',), ()),
    # Of one's own, read from files.
    _accuracy_metric('own', ('text',), ()),
    _accuracy_metric('sentiment', _ONE_SENTENCE, _SENTIMENT),
    _accuracy_metric(
      'microworld/acceptability',
      _ONE_SENTENCE,
      ('unacceptable', 'acceptable'),
      microworld='acceptability',
    ),
    _accuracy_metric('microworld/entailment', _TWO_SENTENCES, _ENTAILMENT, microworld='entailment'),
    _accuracy_metric('microworld/sentiment', _ONE_SENTENCE, _SENTIMENT, microworld='sentiment'),
  )
}


def find_task(name: str) -> Task:
  """The row of a task.

  Raises:
    InputError: there is none; says what was probably meant.

  >>> find_task('cola').headline
  'matthews'
  """
  if name not in TASKS:
    raise InputError(
      f'the task {name!r}', 'no such row in tasks/task.py', suggest_name(name, TASKS)
    )
  return TASKS[name]


def tasks_of_kind(task: Task, kind: str) -> Task:
  """The row as a classification whose labels are still to be found, or a regression; '' changes
  nothing.

  >>> tasks_of_kind(find_task('own'), 'regression').headline
  'pearson_spearman'
  """
  if kind in ('', task.kind):
    return task
  return dataclasses.replace(
    task, kind=kind, labels=(), **(_CORRELATION if kind == REGRESSION else _ACCURACY)
  )
