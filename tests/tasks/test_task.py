"""Tests the table of tasks: rows are complete and agree with TFDS."""

import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.data import microworld
from minilm_jax.tasks import metrics, task
from minilm_jax.tasks.task import CLASSIFICATION, REGRESSION, TASKS, convert_task, find_task


@pytest.mark.parametrize('task', task.TASKS.values(), ids=lambda task: task.name)
def test_a_row_is_complete(task: task.Task):
  assert find_task(task.name) is task
  assert task.kind in (CLASSIFICATION, REGRESSION)
  assert (
    not task.labels if task.kind == REGRESSION else len(set(task.labels)) == len(task.labels) != 1
  )
  assert 1 <= len(task.fields) <= 2 and set(task.filter_fields) <= set(task.fields)
  assert task.headline in task.metrics and set(task.metrics) <= set(metrics.METRICS)
  assert not (task.tfds and task.microworld)
  assert not task.concatenate_fields or len(task.fields) == 2
  assert not task.predicted_by or find_task(task.predicted_by).labels == task.labels
  assert task.microworld in ('', *microworld.MICROWORLD_TASKS)


@pytest.mark.parametrize(
  'task', [task for task in task.TASKS.values() if task.tfds], ids=lambda task: task.name
)
def test_rows_agree_with_tfds(task: task.Task, tmp_path):
  import tensorflow_datasets as tfds
  import tensorflow_datasets.datasets.ag_news_subset.ag_news_subset_dataset_builder
  import tensorflow_datasets.text.glue  # noqa: F401 - registers the builders

  features = tfds.builder(task.tfds, data_dir=tmp_path).info.features
  assert {*task.fields, task.label} == set(features) - {'idx'}
  assert task.labels == tuple(getattr(features['label'], 'names', ()))


def test_every_task_of_glue_has_a_submission_name():
  names = {task.submission_name for task in TASKS.values() if task.submission_name}
  assert names == {'CoLA', 'SST-2', 'MRPC', 'QQP', 'STS-B', 'MNLI', 'QNLI', 'RTE', 'WNLI', 'AX'}
  assert all(bool(task.submission_name) == task.tfds.startswith('glue/') for task in TASKS.values())


@pytest.mark.parametrize('task', task.TASKS.values(), ids=lambda task: task.name)
def test_a_converted_task_has_the_metrics_of_its_kind(task: task.Task):
  assert convert_task(task, '') is task is convert_task(task, task.kind)
  regression, classification = convert_task(task, REGRESSION), convert_task(task, CLASSIFICATION)
  assert regression.metrics == find_task('stsb').metrics and regression.labels == ()
  assert classification.headline == (task.headline if task.kind == CLASSIFICATION else 'accuracy')


def test_an_unknown_task_is_refused_with_the_nearest_name():
  with pytest.raises(InputError, match="'cola'"):
    task.find_task('cla')
