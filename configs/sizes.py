"""How the gap between pre-trained and not grows with the pre-training set, as in paper 2: articles, nested sizes.

    minilm corpus --config=configs/sizes.py:corpus --config.documents.sources='wikipedia/*.txt.xz@line' \
        --workdir=corpora/articles
    minilm sweep --config=configs/sizes.py --config.corpus=corpora/articles --workdir=runs/sizes
    minilm finetune --config=configs/topics.py:ag_news --config.task.data_dir=TFDS --control \
        --checkpoint='runs/sizes/*' --workdir=runs/sizes-ag_news
    minilm report runs --workdir=runs/report

A row is an article, its first 128 pieces; a point is the first so many articles of a fixed random order, so that each
smaller set is inside each larger one, with one tokenizer and one validation split. All points make the updates of 50
epochs of the smallest: a larger set is seen less often, and no point has more compute than another.
`configs/sizes.py:epochs` is the other comparison, 20 epochs of each set, as in the paper (which has 50): there, more
articles are also more updates. The paper has 20,000, 40,000 and 90,000 articles, and 31 to 78 million parameters.

For a tokenizer of 8,000 pieces and 3.4 million parameters. Nothing is known yet of what to expect.
"""

from configs import base

SIZES = (2_500, 5_000, 10_000, 20_000, 40_000)  # articles
RUNS = tuple(str(size) for size in SIZES)
SETS = {'epochs': tuple(f'{size}-epochs' for size in SIZES)}
BATCH, EPOCHS = 32, 20
UPDATES = 50 * SIZES[0] // BATCH


def corpus():
  """Whole articles under 8,000 BPE pieces."""
  config = base.corpus()
  config.vocabulary.update(counting='plain', passes='documents')
  config.tokenizer.size = 8_000
  config.rows.update(length=128, grouping='articles')
  return config


def pretrain(size, epochs=False):
  """One point."""
  config = base.pretrain()
  config.subset.rows = size
  config.batch_size = BATCH
  config.updates = EPOCHS * size // BATCH if epochs else UPDATES
  config.model.update(vocabulary=8_000, embedding=192, hidden=192, feed_forward=768, heads=3, nominal_heads=3, layers=4,
                      norm='pre', positions='rotary', tied=True, projection=False, segments=0)
  config.mask.update(random=0.1, keep=0.1)
  config.optimizer.update(learning_rate=1e-3, schedule='linear', beta2=0.98)
  config.evaluation.update(every=500)
  config.checkpoint.every = 500
  return config


def get_config(run='10000'):
  """The corpus, or a point: so many articles, as in 5000, or 5000-epochs."""
  if run == 'corpus':
    return corpus()
  size, _, how = run.partition('-')
  if run not in RUNS and run not in SETS['epochs']:
    raise ValueError(f'no point {run!r}; there are {", ".join((*RUNS, *SETS["epochs"]))} and corpus')
  return pretrain(int(size), how == 'epochs')
