"""Fine-tuning on one task with the settings of the first paper: 5 epochs, batches of 32, 2e-4 down to 0, no decay.

    minilm finetune --config=configs/glue.py:cola --checkpoint=runs/magic-bee-26 --workdir=runs/cola \
        --config.task.data_dir=TFDS
    minilm finetune --config=configs/glue.py:microworld/sentiment --checkpoint=runs/tiny --workdir=runs/sentiment

The argument is a row of minilm_jax/tasks/table.py: cola, sst2, mrpc, rte, stsb, wnli, qnli, sentiment (from files of
one's own), microworld/acceptability, microworld/entailment or microworld/sentiment. `--config.task.filtered=True
--config.task.word_list=FILE` keeps the examples inside a word list; `--from_scratch` is the control.

Expect the majority class to score, on validation: cola 0 (Matthews), sst2 0.509, rte 0.527, wnli 0.563 (accuracy),
mrpc 0.748 (mean of accuracy and F1), stsb undefined (correlation), those of the microworld about 0.5. A model that does
not clear this floor has learned nothing; every table shows it.
"""

from configs import base


def get_config(task='cola'):
  """The recipe of one task."""
  config = base.finetune()
  config.task.name = task
  config.optimizer.update(learning_rate=2e-4, schedule='linear', warmup_share=0.0, weight_decay=0.0)
  config.update(epochs=5.0, batch_size=32, length=128)
  return config
