"""Fine-tuning on the topic tasks of paper 2: AdamW, 5e-5 decayed to 0, 50 epochs, batches of 32.

    minilm finetune --config=configs/paper2_tasks.py:ag_news --checkpoint=runs/tiny --workdir=runs/ag_news \
        --config.task.data_dir=TFDS
    minilm finetune --config=configs/paper2_tasks.py:dbpedia_14 --checkpoint=runs/tiny --workdir=runs/dbpedia \
        --config.task.folder=dbpedia_14
    minilm finetune --config=configs/paper2_tasks.py:fewrel --checkpoint=runs/tiny --workdir=runs/fewrel \
        --config.task.train=train_wiki.json

The argument is a task: ag_news (1,000 training and 1,000 test examples for each of 4 labels),
dbpedia_14 (100 and 100 for 14 labels) or fewrel (630 and 70 for 64 labels, from train_wiki.json).
As in the paper, Python's `random.sample` with seed 42 draws the examples label by label.
`--config.task.markers=True` marks the two entities of a FewRel sentence; the paper does not mention
markers. `--from_scratch` trains without pre-training.

The head is that of RoBERTa: dropout on the vector of `<s>` before the dense layer and after the
tanh. The paper's BERT pooler has no dropout before the dense layer; other settings are equal.

Expect 0.25, 0.071 and 0.016 for the majority class, because the labels are balanced. The paper
evaluates the test set after each epoch; here the last epoch counts. An epoch has 125 updates for
ag_news, 44 for dbpedia_14 and 1,260 for fewrel.
"""

from configs import base

# Training and test examples of each label.
TASKS = {'ag_news': (1000, 1000), 'dbpedia_14': (100, 100), 'fewrel': (630, 70)}


def get_config(task='ag_news'):
  """Returns the recipe of a task."""
  config = base.finetune()
  if task not in TASKS:
    raise ValueError(f'no topic task {task!r}; give one of {", ".join(TASKS)}')
  train_size, eval_size = TASKS[task]
  config.task.update(name=task, split='test', per_label=train_size, eval_per_label=eval_size)
  config.optimizer.update(
    learning_rate=5e-5,
    schedule='linear',
    warmup_fraction=0.0,
    beta1=0.9,
    beta2=0.999,
    weight_decay=0.01,
    no_decay='',
    clip=0.0,
  )
  config.update(epochs=50.0, batch_size=32, length=128)
  return config
