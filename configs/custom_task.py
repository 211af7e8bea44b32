"""A task of one's own, from a file of examples: no code, only the names of its columns.

    minilm finetune --config=configs/custom_task.py --config.task.train=reviews.csv --config.task.fields=text \
        --config.task.label=stars --checkpoint=runs/tiny --workdir=runs/reviews
    minilm show --config=configs/custom_task.py --config.task.train=pairs.tsv --config.task.validation=held.tsv \
        --config.task.fields=first,second --config.task.label=similarity --config.task.kind=regression

Files are .csv, .tsv, .jsonl or .parquet, all but the last also .gz, .xz or .zst; or FewRel's .json.
One column of text or two make an example; the classes are what the label column of the training
file shows. Numbers are classes too, unless `task.kind=regression`. Without `task.validation`, a
fifth of the training file is kept from training, chosen by hash of the text, and is what the scores
are from. The settings are those of configs/glue.py.

What to expect depends on the file: compare with the majority class that every table shows, and with
`--from_scratch`.
"""

from configs import base


def get_config():
  """The recipe of one's own task; its files are named on the command line."""
  config = base.finetune()
  config.task.name = 'own'
  return config
