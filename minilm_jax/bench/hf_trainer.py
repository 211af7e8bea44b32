"""Fine-tunes a `RobertaForSequenceClassification` of random weights with the `Trainer`.

`competitors` runs this module in a separate process, because it imports torch and transformers. The
measurement excludes reading and tokenizing text, logs, evaluation and checkpoints, which favours
the `Trainer` of Hugging Face.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.model_config import TRANSFORMERS_ACTIVATIONS, EncoderConfig
from minilm_jax.data import tokenizer

_WARMUP_STEPS = 3  # steps of a first Trainer, which is not timed
TrainerExamples = list[dict[str, Any]]


def time_trainer(
  threads: int,
  config: FinetuneConfig,
  shape: EncoderConfig,
  rows: np.ndarray,
  labels: np.ndarray,
  classes: int,
) -> Callable[[int], dict[str, float]]:
  """Returns a function that trains a new model for a number of updates, after a warm-up.

  The function returns `seconds` and `updates`. Arguments are those of `competitors.time_hf_trainer`.
  """
  torch.set_num_threads(threads)
  transformers.logging.set_verbosity_error()
  examples, collate = prepare_examples(rows, labels, classes)

  def train(updates: int) -> dict[str, float]:
    transformers.set_seed(config.seeds[0])
    model = build_roberta(shape, classes)
    with tempfile.TemporaryDirectory() as folder:  # required by Trainer, even without checkpoints
      trainer = transformers.Trainer(
        model,
        data_collator=collate,
        train_dataset=examples,
        args=transformers.TrainingArguments(
          folder,
          max_steps=updates,
          per_device_train_batch_size=config.batch_size,
          learning_rate=config.optimizer.learning_rate,
          seed=config.seeds[0],
          weight_decay=0.0,
          max_grad_norm=1.0,
          lr_scheduler_type='linear',
          warmup_steps=0,
          use_cpu=not torch.cuda.is_available(),
          logging_strategy='no',
          save_strategy='no',
          report_to='none',
          disable_tqdm=True,
          dataloader_pin_memory=False,
        ),
      )
      trainer.remove_callback(transformers.PrinterCallback)
      start = time.perf_counter()
      trainer.train()
      seconds = time.perf_counter() - start
    return {'seconds': seconds, 'updates': trainer.state.global_step}

  train(_WARMUP_STEPS)
  return train


def build_roberta(
  shape: EncoderConfig, classes: int
) -> transformers.RobertaForSequenceClassification:
  """Returns a RoBERTa of these sizes, with its own initialization.

  The model is the nearest RoBERTa. RoBERTa has no projection, so the embedding tables have
  `hidden_size` columns. The head pools the first token and uses the dropout of the encoder.
  """
  return transformers.RobertaForSequenceClassification(
    transformers.RobertaConfig(
      vocab_size=shape.vocab_size,
      hidden_size=shape.hidden_size,
      intermediate_size=shape.intermediate_size,
      num_attention_heads=shape.num_heads,
      num_hidden_layers=shape.num_layers,
      max_position_embeddings=shape.max_length + 2,
      type_vocab_size=max(1, shape.segments),
      hidden_act=TRANSFORMERS_ACTIVATIONS[shape.activation],
      hidden_dropout_prob=shape.dropout,
      attention_probs_dropout_prob=shape.dropout,
      layer_norm_eps=shape.norm_epsilon,
      num_labels=classes or 1,
      bos_token_id=tokenizer.BEGIN_ID,
      pad_token_id=tokenizer.PAD_ID,
      eos_token_id=tokenizer.END_ID,
    )
  )


def prepare_examples(
  rows: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[TrainerExamples, Callable[[Sequence[Any]], dict[str, torch.Tensor]]]:
  """Returns examples, and the function that pads a batch to its longest row."""
  targets = [(int if classes else float)(label) for label in labels]
  token_ids = [row[row != tokenizer.PAD_ID].tolist() for row in rows]
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {name: n for n, name in enumerate(tokenizer.SPECIAL_TOKENS)}, '<unk>'
    )
  )
  padder = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token=tokenizer.SPECIAL_TOKENS[tokenizer.PAD_ID]
  )
  return [
    {'input_ids': ids, 'attention_mask': [1] * len(ids), 'labels': label}
    for ids, label in zip(token_ids, targets, strict=True)
  ], transformers.DataCollatorWithPadding(padder)
