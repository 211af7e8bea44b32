"""One row a task: what its examples hold and what it is judged by. Another task is another row.

Names, fields and labels are those of TFDS (`glue`, 2.0.0), in its order. How examples are read is the matter of
`sources.py`, how predictions are scored that of `metrics.py`.
"""

import dataclasses

from minilm_jax.errors import InputError, nearest

CLASSIFICATION, REGRESSION = 'classification', 'regression'


@dataclasses.dataclass(frozen=True)
class Task:
  """A labelled task.

  Attributes:
    name: what `task.name` in a recipe says.
    kind: 'classification' or 'regression'.
    fields: the one or two fields of text.
    labels: names of the classes, in the order of their indices; none for a regression.
    metrics: names in `metrics.METRICS`.
    headline: the metric that the task is judged by, one of `metrics`.
    filter_fields: the fields that the word list filter looks at (paper 1).
    tfds: the name in TFDS; '' where it is not there.
    microworld: the name among the tasks of the microworld; '' for all others.
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


_ONE, _TWO = ('sentence',), ('sentence1', 'sentence2')
_SENTIMENT, _ENTAILMENT = ('negative', 'positive'), ('entailment', 'not_entailment')


def _accuracy(name: str, fields: tuple[str, ...], labels: tuple[str, ...], **more: str) -> Task:
  return Task(name, CLASSIFICATION, fields, labels, ('accuracy',), 'accuracy', fields, **more)


TASKS: dict[str, Task] = {task.name: task for task in (
    # Classes are uneven, so that accuracy flatters: Matthews is 0 for one class throughout (paper 1, GLUE).
    Task('cola', CLASSIFICATION, _ONE, ('unacceptable', 'acceptable'), ('matthews', 'accuracy'), 'matthews', _ONE,
         tfds='glue/cola'),
    _accuracy('sst2', _ONE, _SENTIMENT, tfds='glue/sst2'),
    # The mean, as GLUE and paper 1 report it: F1 alone is above 0.8 for 'equivalent' throughout.
    Task('mrpc', CLASSIFICATION, _TWO, ('not_equivalent', 'equivalent'), ('accuracy', 'f1', 'accuracy_f1'),
         'accuracy_f1', _TWO, tfds='glue/mrpc'),
    Task('stsb', REGRESSION, _TWO, (), ('pearson', 'spearman', 'pearson_spearman'), 'pearson_spearman', _TWO,
         tfds='glue/stsb'),
    _accuracy('rte', _TWO, _ENTAILMENT, tfds='glue/rte'),
    _accuracy('wnli', _TWO, ('not_entailment', 'entailment'), tfds='glue/wnli'),
    # Paper 1 never looks at the question when it filters.
    Task('qnli', CLASSIFICATION, ('question', 'sentence'), _ENTAILMENT, ('accuracy',), 'accuracy', _ONE,
         tfds='glue/qnli'),
    _accuracy('sentiment', _ONE, _SENTIMENT),  # sentences of one's own, read from files
    _accuracy('microworld/acceptability', _ONE, ('unacceptable', 'acceptable'), microworld='acceptability'),
    _accuracy('microworld/entailment', _TWO, _ENTAILMENT, microworld='entailment'),
    _accuracy('microworld/sentiment', _ONE, _SENTIMENT, microworld='sentiment'),
)}


def find(name: str) -> Task:
  """The row of a task.

  Raises:
    InputError: there is none; says what was probably meant.

  >>> find('cola').headline
  'matthews'
  """
  if name not in TASKS:
    raise InputError(f'the task {name!r}', 'no such row in tasks/table.py', nearest(name, TASKS))
  return TASKS[name]
