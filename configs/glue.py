"""Fine-tuning with the settings of paper 1: 5 epochs, batches of 32, 2e-4 decayed to 0.

    minilm finetune --config=configs/glue.py:cola,mrpc,rte --checkpoint=runs/magic-bee-26 --workdir=runs/glue \
        --config.task.data_dir=TFDS --with_scratch
    minilm finetune --config=configs/glue.py:microworld/sentiment --checkpoint=runs/tiny --workdir=runs/sentiment

The argument is one or more tasks of minilm_jax/tasks/task.py, separated by commas, or `all` for the
nine tasks of GLUE:

- GLUE: cola, sst2, mrpc, qqp, stsb, mnli (matched and mismatched), qnli, rte, wnli; and ax, a test
  split that models of mnli predict;
- topics: ag_news, dbpedia_14 and fewrel; configs/paper2_tasks.py has the settings of paper 2;
- from files: sentiment, and own (configs/custom_task.py);
- without files: microworld/acceptability, microworld/entailment and microworld/sentiment.

Tasks with missing data are skipped and listed at the end. Useful flags:

- `--config.task.filtered=True --config.task.word_list=FILE` keeps examples inside a word list;
- `--with_scratch` also trains each seed without pre-training;
- `--config.learning_rates=1e-4,2e-4,4e-4 --config.validation_fraction=0.1` selects learning rate
  and epoch on a tenth of the training examples;
- `--config.predictions=True` writes submission files for the GLUE server.

Expect these scores of the majority class on validation, which every table shows: cola 0 (Matthews),
sst2 0.509, rte 0.527, wnli 0.563 (accuracy), mrpc 0.748 (mean of accuracy and F1), stsb undefined
(correlation), microworld about 0.5.
"""

from configs import base

# The tasks of `configs/glue.py:all`.
RUNS = ('cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'mnli', 'qnli', 'rte', 'wnli')


def get_config(task='cola'):
  """Returns the recipe of a task."""
  config = base.finetune()
  config.task.name = task
  config.optimizer.update(
    learning_rate=2e-4, schedule='linear', warmup_fraction=0.0, weight_decay=0.0
  )
  config.update(epochs=5.0, batch_size=32, length=128)
  return config
