"""The Hugging Face Trainer: its model and loss equal ours."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.bench import competitors
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer
from minilm_jax.tasks import finetune_step
from tests.roberta_config import load_classifier
from tests.tiny_config import make_finetune_config

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
N = 40
ROWS = np.full((N, 12), tokenizer.PAD_ID, np.int32)
for _row, _length in zip(ROWS, np.random.default_rng(0).integers(3, 13, N), strict=True):
  _row[:_length] = [
    tokenizer.BEGIN_ID,
    *np.random.default_rng(_length).integers(5, 40, _length - 2),
    tokenizer.END_ID,
  ]
LABELS = ROWS[:, 1] % 2
CONFIG = make_finetune_config(
  batch_size=16, seeds='3', epochs=2.0, **{'optimizer.learning_rate': 1e-2}
)


@pytest.fixture
def hf_trainer(monkeypatch: pytest.MonkeyPatch):
  for name in ('torch', 'transformers', 'accelerate'):
    pytest.importorskip(name, reason=f'needs {name}, extra [hf]')
  from minilm_jax.bench import hf_trainer

  monkeypatch.setattr(hf_trainer, '_WARMUP_STEPS', 1)
  return hf_trainer


def compute_mean_loss(trainer: Any, model: Any, labels: np.ndarray, classes: int) -> float:
  """Returns the mean loss over all rows, without dropout."""
  examples, collate = trainer.prepare_examples(ROWS, labels, classes)
  with trainer.torch.no_grad():
    return model.eval()(**collate(examples)).loss.item()


def train_and_measure(trainer: Any, monkeypatch, updates: int, seed: int = 3) -> float:
  """Returns the final loss after a number of updates, in this process."""
  models, build = [], trainer.build_roberta
  with monkeypatch.context() as patch:
    patch.setattr(trainer, 'build_roberta', lambda *args: models.append(build(*args)) or models[-1])
    config = dataclasses.replace(CONFIG, seeds=(seed,))
    trainer.time_trainer(1, config, SHAPE, ROWS, LABELS, 2)(updates)
  return compute_mean_loss(trainer, models[-1].cpu(), LABELS, 2)


def test_the_seed_decides_on_the_result(hf_trainer, monkeypatch):
  first, again, other = (train_and_measure(hf_trainer, monkeypatch, 6, seed) for seed in (3, 3, 4))
  assert first == pytest.approx(again, abs=1e-5) and abs(first - other) > 1e-3


def test_a_batch_is_padded_to_its_longest_row(hf_trainer):
  examples, collate = hf_trainer.prepare_examples(ROWS, LABELS, 2)
  lengths = (ROWS != tokenizer.PAD_ID).sum(1)
  for rows in (slice(0, 4), slice(7, 9)):
    batch = collate(examples[rows])
    longest = lengths[rows].max()
    np.testing.assert_array_equal(batch['input_ids'], ROWS[rows, :longest])
    np.testing.assert_array_equal(batch['attention_mask'].sum(1), lengths[rows])


def test_training_lowers_the_loss(hf_trainer, monkeypatch):
  long, short = (train_and_measure(hf_trainer, monkeypatch, updates) for updates in (60, 1))
  assert long < 0.1 < 0.5 < short


@pytest.mark.parametrize('classes', [2, 0])
def test_model_and_loss_equal_ours(classes: int, hf_trainer):
  """The weights of the Trainer load into our classifier, for classification and regression."""
  model = hf_trainer.build_roberta(SHAPE, classes)
  labels = LABELS if classes else LABELS + 0.5
  loss = compute_mean_loss(hf_trainer, model, labels, classes)
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
  result = competitors.time_hf_trainer(CONFIG, SHAPE, ROWS, LABELS, 2, threads=1)
  assert set(result) == {'seconds', 'updates'} and result['seconds'] > 0
  assert result['updates'] == 6  # 40 rows are three batches, the last with 8 rows
  assert capfd.readouterr() == ('', '')
