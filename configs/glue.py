"""Fine-tuning on GLUE and other tasks, with a learning rate and an epoch chosen for each model.

    minilm finetune --config=configs/glue.py:cola,mrpc,rte --checkpoint=runs/magic-bee-26 --workdir=runs/glue \
        --config.task.data_dir=TFDS --with_scratch
    minilm finetune --config=configs/glue.py:microworld/sentiment --checkpoint=runs/tiny --workdir=runs/sentiment

The argument is one or more tasks of minilm_jax/tasks/task.py, separated by commas, or `all` for the
nine tasks of GLUE:

- GLUE: cola, sst2, mrpc, qqp, stsb, mnli (matched and mismatched), qnli, rte, wnli; and ax, a test
  split that models of mnli predict;
- topics: ag_news, dbpedia_14 and fewrel; configs/paper2_tasks.py has the settings of paper 2;
- from files: sentiment, word_order (`--config.task.label=order`), and own (configs/custom_task.py);
- without files: microworld/acceptability, microworld/entailment and microworld/sentiment.

A tenth of the training examples is held out. The mean score of the seeds on it selects one of five
learning rates, separately for pre-trained models and models from scratch, and the score of a seed
selects its epoch. Both arms have the same budget. One rate for both arms is not a fair comparison:
in one run of 100 million tokens the norm of the parameters grew tenfold, and steps of Adam do not
depend on it.

`configs/paper1_tasks.py` has the same tasks with the protocol of paper 1: one rate and the last epoch.

Tasks with missing data are skipped and listed at the end. Useful flags:

- `--config.task.filtered=True --config.task.word_list=FILE` keeps examples inside a word list;
- `--with_scratch` also trains each seed without pre-training;
- `--config.learning_rates=1e-3` trains one rate, in a fifth of the time;
- `--config.predictions=True` writes submission files for the GLUE server.

Expect these scores of the majority class on validation, which every table shows: cola 0 (Matthews),
sst2 0.509, rte 0.527, wnli 0.563 (accuracy), mrpc 0.748 (mean of accuracy and F1), stsb undefined
(correlation), microworld about 0.5.
"""

from configs import paper1_tasks

RUNS = paper1_tasks.RUNS


def get_config(task='cola'):
  """Returns the recipe of a task."""
  config = paper1_tasks.get_config(task)
  config.update(learning_rates='1e-4,3e-4,1e-3,3e-3,1e-2', validation_fraction=0.1)
  config.head.pooling = 'mean'
  return config
