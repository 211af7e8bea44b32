"""The gain of pre-training against the size of the pre-training set (paper 2): nested article sets.

    minilm corpus --config=configs/paper2_data_sizes.py:corpus --config.documents.sources='wikipedia/*.txt.xz@line' \
        --workdir=corpora/articles
    minilm sweep --config=configs/paper2_data_sizes.py --config.corpus=corpora/articles --workdir=runs/sizes
    minilm finetune --config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS --with_scratch \
        --checkpoint='runs/sizes/*' --workdir=runs/sizes-ag_news
    minilm report runs --workdir=runs/report

A row is the first 128 pieces of an article. A point trains on the first n articles of a fixed
random order, so smaller sets lie inside larger sets. All points share the tokenizer and the
validation split.

Sets of points:

- without a suffix: all points make as many updates as 50 epochs of the smallest set, so they have
  the same compute;
- `epochs`: 50 epochs of each set, as in paper 2, so larger sets also have more updates. The paper has
  20,000, 40,000 and 90,000 articles, and 31 to 78 million parameters;
- `cpu`: 50 epochs of 625, 2,500 and 10,000 articles, with half the width, two layers and the settings
  of `recommended.py`; launch/paper2.sh runs the study with them.

A point may have any other number of articles, as in 200-cpu. Models have 8,000 pieces and 3.4 million
parameters, or 1.0 million for `cpu`.

PRE-REGISTERED before any of these runs, except for the rules that state otherwise: the verdicts on
the four claims of paper 2. The report computes them from run directories alone
(`analysis/paper2/claims.py`).

    1 gap        the same model scores higher pre-trained than from scratch
    2 size       the gap grows with the pre-training set
    3 overlap    the gap grows with the token overlap between pre-training set and task, at one set size
    4 committee  a soft committee of shallow convolutional models is as accurate as BERT-6, with lower latency

Statistics. Each statistic is one number for each fine-tuning seed: the mean over tasks and models
that share the seeds. Intervals are Student's 95% intervals over seeds. A score is the headline
metric of a task, accuracy for the tasks of paper 2.

    1  pre-trained minus scratch, for each model on its largest set that no task selected
    2  slope of the least-squares line of the gap against log2 of the tokens (an article is a row): points for a
       doubling. Runs have equal updates or, without such runs, equal epochs
    3  slope of the gap against the token-weighted overlap of words: points for 0.1. Runs are those of
       `minilm overlap-subsets` on the task of the overlap, with one size and equal updates
    4  mean probability of a committee minus the deepest run without convolutions, of the same seed and, if available,
       the same number of rows. The committee has two or more members, some with convolutions; the largest committees
       count. And the ratio of median latencies, committee over deep model, at batch 1 and 128 tokens, with members of
       one shape and the fastest strategy on the stated machine

Rules. The smallest relevant effect of every claim is one point of score.

    1-3  holds: the interval lies above 0. Does not hold: otherwise, if the interval lies below one point (for a
         doubling, or 0.1 of overlap)
    4    holds: the interval of the score lies above -1 point, and the interval of the latency ratio below 1. Does not
         hold: the interval of the score lies below -1 point, or the interval of the ratio above 1
    Otherwise, and with fewer than two seeds: undecided at this budget; the report lists the missing runs
    Added after the first runs: a claim is undecided, and does not fail by scores, if a compared run has fewer epochs
    than the 50 of the paper or is on the plateau of word frequencies, or a compared score is of constant predictions

    Added before the runs of `cpu` with 50 epochs: if each set of claims 1 to 3 has pre-training runs of the same
    two or more seeds, a statistic is also computed as one number for each of these seeds, the mean over seeds of
    fine-tuning. Of both intervals the wider one counts

    Added before the runs of claim 4 with the settings of `recommended.py`: of several deep runs, those with the most
    updates count

Intervals are not adjusted for four claims. Without several pre-training runs of each set, they do not
include the variance between pre-training runs.

Exclusions. Failed and unfinished runs, and committees that contain them, are excluded and listed.
Members with constant predictions are counted, listed and included. A score that is not a number
gives no pair. Nothing else is excluded.
"""

import math

from configs import base, recommended

SIZES = (2_500, 5_000, 10_000, 20_000, 40_000)  # articles
CPU_SIZES = (625, 2_500, 10_000)
RUNS = tuple(str(size) for size in SIZES)
SETS = {
  'epochs': tuple(f'{size}-epochs' for size in SIZES),
  'cpu': tuple(f'{size}-cpu' for size in CPU_SIZES),
}
BATCH, EPOCHS = 32, 50


def corpus():
  """Returns the recipe of the corpus: a row for each article, 8,000 BPE pieces."""
  config = base.corpus()
  config.vocabulary.update(word_rule='plain', filters='documents')
  config.tokenizer.size = 8_000
  config.rows.update(length=128, packing='articles')
  return config


def pretrain(size, variant):
  """Returns the recipe of a number of articles; `variant` is '', 'epochs' or 'cpu'."""
  width, heads, layers = (96, 6, 2) if variant == 'cpu' else (192, 3, 4)
  config = base.pretrain()
  config.subset.rows = size
  config.batch_size = BATCH
  config.num_steps = math.ceil(EPOCHS * (size if variant else SIZES[0]) / BATCH)
  config.model.update(
    vocab_size=8_000,
    embedding_size=width,
    hidden_size=width,
    intermediate_size=4 * width,
    num_heads=heads,
    flops_heads=heads,
    num_layers=layers,
    norm='pre',
    positions='rotary',
    tied=True,
    projection=False,
    segments=0,
  )
  config.optimizer.update(learning_rate=1e-3, schedule='linear', beta2=0.98)
  if variant == 'cpu':
    recommended.apply_settings(config)
  config.mask.update(random_share=0.1, keep_share=0.1)
  config.eval.update(every=500)
  config.checkpoint.every = 500
  return config


def get_config(run='10000'):
  """Returns the recipe of `corpus` or of a point, as in 5000, 5000-epochs or 5000-cpu."""
  if run == 'corpus':
    return corpus()
  size, _, variant = run.partition('-')
  if not size.isdecimal() or int(size) < BATCH or variant not in ('', *SETS):
    raise ValueError(
      f'no point {run!r}; give corpus, or a number of articles of at least {BATCH} with nothing, '
      '-epochs or -cpu'
    )
  return pretrain(int(size), variant)
