"""The Hugging Face Trainer: its model and loss equal ours, and padding changes nothing."""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.bench import competitors, trainer_task
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer
from minilm_jax.tasks import finetune_step
from tests.roberta_config import load_classifier

SHAPE = EncoderConfig(
  vocab_size=40,
  embedding_size=8,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  max_length=20,
  dropout=0.0,
  initialization='paper1',
  flops_heads=4,
)
N, BATCH = 40, 16
ROWS = np.full((N, 12), tokenizer.PAD_ID, np.int32)
for _row, _length in zip(ROWS, np.random.default_rng(0).integers(3, 13, N), strict=True):
  _row[:_length] = [
    tokenizer.BEGIN_ID,
    *np.random.default_rng(_length).integers(5, 40, _length - 2),
    tokenizer.END_ID,
  ]
LABELS = ROWS[:, 1] % 2
TASK = trainer_task.TrainerTask(ROWS, LABELS, SHAPE, 2, BATCH, 1e-2, 3, 'longest')
CALL = {'epochs': 2, 'threads': None}


@pytest.fixture
def hf_trainer(monkeypatch: pytest.MonkeyPatch):
  for name in ('torch', 'transformers', 'accelerate'):
    pytest.importorskip(name, reason=f'needs {name}, extra [hf]')
  from minilm_jax.bench import hf_trainer

  monkeypatch.setattr(hf_trainer, '_WARMUP_STEPS', 1)
  return hf_trainer


def train_and_measure(trainer: Any, updates: int, pad: str = 'longest', seed: int = 3) -> float:
  """Returns the final loss after a number of updates, in this process."""
  train = trainer.time_trainer(1, dataclasses.replace(TASK, seed=seed, pad=pad))
  return train(updates)['final_loss']


def test_padding_changes_nothing_and_the_seed_does(hf_trainer):
  dynamic, fixed, other_seed = (
    train_and_measure(hf_trainer, 6),
    train_and_measure(hf_trainer, 6, pad='max'),
    train_and_measure(hf_trainer, 6, seed=4),
  )
  assert dynamic == pytest.approx(fixed, abs=1e-5) and abs(dynamic - other_seed) > 1e-3


def test_training_lowers_the_loss(hf_trainer):
  assert train_and_measure(hf_trainer, 60) < 0.1 < 0.5 < train_and_measure(hf_trainer, 1)


@pytest.mark.parametrize('classes', [2, 0])
def test_model_and_loss_equal_ours(classes: int, hf_trainer):
  """The weights of the Trainer load into our classifier, for classification and regression."""
  model = hf_trainer.build_roberta(SHAPE, classes)
  labels = LABELS if classes else LABELS + 0.5
  loss = hf_trainer.compute_mean_loss(
    model, *hf_trainer.prepare_examples(ROWS, labels, classes, 'longest')
  )
  config = dataclasses.replace(SHAPE, embedding_size=SHAPE.hidden_size, projection=False)
  weights = {name: w.numpy() for name, w in model.state_dict().items()}
  ours = load_classifier(weights, config, classes)
  kind = 'classification' if classes else 'regression'
  rows, labels = jnp.asarray(ROWS), jnp.asarray(labels, jnp.int32 if classes else jnp.float32)
  expected = (
    jax.jit(
      lambda model: finetune_step.sum_losses(
        model, rows, rows != tokenizer.PAD_ID, labels, None, kind
      )
    )(ours)
    / N
  )
  assert loss == pytest.approx(float(expected), abs=1e-5)


def test_the_trainer_is_timed_in_a_worker_process(hf_trainer, capfd):
  result = competitors.time_hf_trainer(TASK, epochs=2, threads=1)
  assert set(result) == {'seconds', 'updates', 'final_loss'} and result['seconds'] > 0
  assert result['updates'] == 6  # 40 rows are three batches, the last with 8 rows
  assert result['final_loss'] == pytest.approx(train_and_measure(hf_trainer, 6), abs=1e-4)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
  'changes, part',
  [
    ({'pad': 'longer'}, "did you mean 'longest'"),
    ({'shape': dataclasses.replace(SHAPE, norm='pre')}, "model.norm='pre'"),
    ({'shape': dataclasses.replace(SHAPE, positions='rotary')}, "model.positions='rotary'"),
    ({'shape': dataclasses.replace(SHAPE, max_length=11)}, 'rows of at most 11 ids'),
    ({'shape': dataclasses.replace(SHAPE, vocab_size=30)}, 'ids below 30'),
    ({'labels': LABELS[1:]}, r'\(40, 12\) and \(39,\)'),
    ({'rows': ROWS[:0], 'labels': LABELS[:0]}, r'\(0, 12\)'),
    ({'labels': LABELS + 1}, 'labels from 1 to 2'),
    ({'classes': 1}, '1 classes'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'threads': 0}, 'threads=0'),
    ({'epochs': float('nan')}, 'epochs=nan'),
    ({'learning_rate': -1.0}, 'rate=-1'),
  ],
)
def test_invalid_tasks_are_refused_before_a_process_starts(
  changes: dict, part: str, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: 'installed')
  monkeypatch.setattr(
    competitors.timing, 'start_worker', lambda *arguments: pytest.fail('a process started')
  )
  with pytest.raises(InputError, match=part):
    competitors.time_hf_trainer(
      dataclasses.replace(TASK, **{k: v for k, v in changes.items() if k not in CALL}),
      **CALL | {k: v for k, v in changes.items() if k in CALL},
    )


@pytest.mark.parametrize('missing', ['torch', 'transformers', 'accelerate'])
def test_a_missing_library_is_refused(missing: str, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == missing else 'installed'
  )
  with pytest.raises(InputError, match=rf'{missing}(.|\n)*minilm_jax\[hf\]'):
    competitors.time_hf_trainer(TASK, **CALL)
