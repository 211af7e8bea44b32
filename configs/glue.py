"""Fine-tuning with the settings of the first paper: 5 epochs, batches of 32, 2e-4 down to 0, no
decay.

    minilm finetune --config=configs/glue.py:cola,mrpc,rte --checkpoint=runs/magic-bee-26 --workdir=runs/glue \
        --config.task.data_dir=TFDS --with_scratch
    minilm finetune --config=configs/glue.py:microworld/sentiment --checkpoint=runs/tiny --workdir=runs/sentiment

The argument is a row of minilm_jax/tasks/task.py, some with commas between, or `all`: the nine
tasks of GLUE. They are cola, sst2, mrpc, qqp, stsb, mnli (matched, and mismatched beside it), qnli,
rte and wnli; there are also ax (a test split alone, which models of mnli predict), ag_news,
dbpedia_14 and fewrel, for which configs/paper2_tasks.py has settings; from files of one's own
sentiment, or own, for which configs/custom_task.py stands; microworld/acceptability,
microworld/entailment and microworld/sentiment. What is missing on a machine is told at the end; the
other tasks go on.

`--config.task.filtered=True --config.task.word_list=FILE` keeps the examples inside a word list.
`--with_scratch` trains the same from scratch beside it, seed by seed.
`--config.learning_rates=1e-4,2e-4,4e-4 --config.validation_fraction=0.1` chooses rate and epoch on
a tenth of the training examples. `--config.predictions=True` writes the files of the GLUE server.

Expect the majority class to score, on validation: cola 0 (Matthews), sst2 0.509, rte 0.527, wnli
0.563 (accuracy), mrpc 0.748 (mean of accuracy and F1), stsb undefined (correlation), those of the
microworld about 0.5. A model that does not clear this floor has learned nothing; every table shows
it.
"""

from configs import base

# what `configs/glue.py:all` is
RUNS = ('cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'mnli', 'qnli', 'rte', 'wnli')


def get_config(task='cola'):
  """The recipe of one task."""
  config = base.finetune()
  config.task.name = task
  config.optimizer.update(
    learning_rate=2e-4, schedule='linear', warmup_fraction=0.0, weight_decay=0.0
  )
  config.update(epochs=5.0, batch_size=32, length=128)
  return config
