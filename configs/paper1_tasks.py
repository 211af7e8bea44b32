"""Fine-tuning with the protocol of paper 1: 5 epochs, batches of 32, 2e-4 decayed to 0.

    minilm finetune --config=configs/paper1_tasks.py:cola,mrpc,rte --checkpoint=runs/magic-bee-26 --workdir=runs/glue \
        --config.task.data_dir=TFDS --with_scratch

The argument is one or more tasks, as in `configs/glue.py`, which chooses learning rate and epoch for
each model. Here all models have one rate, and the last epoch counts. The head reads the vector of
`<s>`, as the published one of RoBERTa; `--config.head.pooling=positions` has the head of the released
code, a learned weight for each position.

Compare pre-trained models with models from scratch by `configs/glue.py`, because their best rates
differ.
"""

from configs import base, paper2_tasks

# The tasks of GLUE: `configs/paper1_tasks.py:all`.
RUNS = ('cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'mnli', 'qnli', 'rte', 'wnli')


def get_config(task='cola'):
  """Returns the recipe of a task."""
  config = base.finetune()
  config.task.name = task
  if task in paper2_tasks.TASKS:
    config.task.split = 'test'  # topics have no validation split
  config.optimizer.update(
    learning_rate=2e-4, schedule='linear', warmup_fraction=0.0, weight_decay=0.0
  )
  config.update(epochs=5.0, batch_size=32, length=128)
  return config
