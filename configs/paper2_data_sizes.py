"""How the gap between pre-trained and not grows with the pre-training set, as in paper 2: articles,
nested sizes.

    minilm corpus --config=configs/paper2_data_sizes.py:corpus --config.documents.sources='wikipedia/*.txt.xz@line' \
        --workdir=corpora/articles
    minilm sweep --config=configs/paper2_data_sizes.py --config.corpus=corpora/articles --workdir=runs/sizes
    minilm finetune --config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS --with_scratch \
        --checkpoint='runs/sizes/*' --workdir=runs/sizes-ag_news
    minilm report runs --workdir=runs/report

A row is an article, its first 128 pieces; a point is the first so many articles of a fixed random
order, so that each smaller set is inside each larger one, with one tokenizer and one validation
split. All points make the updates of 50 epochs of the smallest: a larger set is seen less often,
and no point has more compute than another. `configs/paper2_data_sizes.py:epochs` is the other
comparison, 20 epochs of each set, as in the paper (which has 50): there, more articles are also
more updates. The paper has 20,000, 40,000 and 90,000 articles, and 31 to 78 million parameters.
`configs/paper2_data_sizes.py:cpu` is what two cores can do, with launch/paper2.sh around it: half
the width, two layers, 2,000 updates, three of the sizes.

For a tokenizer of 8,000 pieces and 3.4 million parameters; 1.0 million of `cpu`.

PRE-REGISTERED, before any of these runs: what is said of the four claims of paper 2, by
`analysis/claims.py` in the report, from run directories alone.

    1 gap        H: the same model scores higher pre-trained than from scratch
    2 size       H: that gap grows with the pre-training set
    3 overlap    H: it grows with the token overlap between pre-training set and task, at one size of the set
    4 committee  H: a soft committee of shallow convolutional models is as accurate as BERT-6, and answers sooner

Statistics. Each is one number a seed of fine-tuning, the mean of that seed over tasks and models
(of the seeds that all of them have), with Student's 95% interval over seeds. Scores are the
headline of a task, accuracy for the paper's.

    1  pre-trained less from scratch; of each model the runs on its largest set, which no task chose
    2  slope of the least-squares line of the gap against log2 of the tokens of the set (an article is a row): points
       for twice as much. Runs of the same updates or, where there are none, of the same epochs
    3  slope of the gap against the token-weighted overlap of words: points for 0.1. Runs of `minilm overlap-subsets`, on the
       task whose overlap it is, of one size and the same updates
    4  the committee of the members of one seed, two or more and some with convolutions, by their mean probability, less
       the deepest run without any of the same seed, on as many rows where there is one; the largest committees. And the
       median latency of that committee, by its fastest way on the machine that is named, over the deep model's: batch
       1, 128 tokens, members of one shape

Rules. One point of score is the least that matters, for every claim.

    1-3  holds: the interval lies above 0. Does not hold: else, and it lies below one point (a doubling, 0.1 of overlap)
    4    holds: the interval of the score lies above minus one point, that of the latency's ratio below 1. Does not
         hold: that of the score lies below minus one point, or that of the ratio above 1
    else, and with fewer than two seeds: cannot be told at this size, with what is missing

Intervals are not widened for there being four claims, nor do they hold what another pre-training
run would change.

Exclusions. Runs that failed or did not come to their end, and committees of them, are excluded and
named. Members that collapsed to one answer are counted, shown and kept. A score that is not a
number is no pair. Nothing else is left out.
"""

from configs import base

SIZES = (2_500, 5_000, 10_000, 20_000, 40_000)  # articles
RUNS = tuple(str(size) for size in SIZES)
SETS = {
  'epochs': tuple(f'{size}-epochs' for size in SIZES),
  'cpu': tuple(f'{size}-cpu' for size in SIZES[::2]),
}
BATCH, EPOCHS = 32, 20
UPDATES = {'': 50 * SIZES[0] // BATCH, 'cpu': 2_000}


def corpus():
  """Whole articles under 8,000 BPE pieces."""
  config = base.corpus()
  config.vocabulary.update(word_rule='plain', filters='documents')
  config.tokenizer.size = 8_000
  config.rows.update(length=128, packing='articles')
  return config


def pretrain(size, how):
  """One point: the same updates whatever its size, or the same epochs."""
  width, layers = (96, 2) if how == 'cpu' else (192, 4)
  config = base.pretrain()
  config.subset.rows = size
  config.batch_size = BATCH
  config.num_steps = EPOCHS * size // BATCH if how == 'epochs' else UPDATES[how]
  config.model.update(
    vocab_size=8_000,
    embedding_size=width,
    hidden_size=width,
    intermediate_size=4 * width,
    num_heads=3,
    flops_heads=3,
    num_layers=layers,
    norm='pre',
    positions='rotary',
    tied=True,
    projection=False,
    segments=0,
  )
  config.mask.update(random_share=0.1, keep_share=0.1)
  config.optimizer.update(learning_rate=1e-3, schedule='linear', beta2=0.98)
  config.eval.update(every=500)
  config.checkpoint.every = 500
  return config


def get_config(run='10000'):
  """The corpus, or a point: so many articles, as in 5000, 5000-epochs or 5000-cpu."""
  if run == 'corpus':
    return corpus()
  points = (*RUNS, *(point for some in SETS.values() for point in some))
  if run not in points:
    raise ValueError(f'no point {run!r}; there are {", ".join(points)} and corpus')
  size, _, how = run.partition('-')
  return pretrain(int(size), how)
