"""Fine-tuning on a custom task from files of examples; only the column names are needed.

    minilm finetune --config=configs/custom_task.py --config.task.train=reviews.csv --config.task.fields=text \
        --config.task.label=stars --checkpoint=runs/tiny --workdir=runs/reviews
    minilm show --config=configs/custom_task.py --config.task.train=pairs.tsv --config.task.validation=held.tsv \
        --config.task.fields=first,second --config.task.label=similarity --config.task.kind=regression

Files are .csv, .tsv, .jsonl or .parquet, all but .parquet possibly compressed (.gz, .xz, .zst), or
.json: an array of objects, or relations in the format of FewRel. An example has one or two columns
of text. The classes are the values of the label column in the training file, also for numbers;
`task.kind=regression` predicts numbers.
Without `task.validation`, a hash of the text selects a fifth of the training file for validation.
Other settings are those of configs/glue.py: held-out training examples select one of five learning
rates. `--config.learning_rates=1e-3` trains one rate, in a fifth of the time.

Compare the scores with the majority class, which every table shows, and with `--from_scratch`.
"""

from configs import glue


def get_config():
  """Returns the recipe; the command line sets the files."""
  return glue.get_config('own')
