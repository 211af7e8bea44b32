r"""Ablations of the plateau: which fields of paper 1's recipe keep tiny models at word frequencies.

    bash launch/plateau.sh corpora/honey TFDS

The script runs the whole study with four seeds; add `runs/plateau 1` for one seed. The main
comparison at the smallest size, with two seeds, takes about ten minutes on two cores:

    minilm sweep --config=configs/plateau_ablations.py:pair --config.corpus=corpora/honey --config.population.members=2 \
        --workdir=runs/pair
    minilm ngram-baselines --config=configs/plateau_ablations.py --config.corpus=corpora/honey --workdir=runs/pair/baselines
    minilm ablations --base=runs/pair/paper@e32-h32-f64-a8-l1 runs/pair --preregistration=configs/plateau_ablations.py \
        --workdir=runs/pair/compare

Expect a compute multiplier of about 8.2 [4.9, 13.7]. All single changes with one seed:

    minilm sweep --config=configs/plateau_ablations.py --config.corpus=corpora/honey --workdir=runs/plateau
    minilm ngram-baselines --config=configs/plateau_ablations.py --config.corpus=corpora/honey --workdir=runs/plateau/baselines
    minilm ablations --base=runs/plateau/paper runs/plateau --workdir=runs/plateau/compare
    minilm evaluate --checkpoint=runs/plateau/paper --attention

The loss of every run of paper 1 falls to a plateau, stays there, and then drops. Below 2.2e15
FLOPs, the frontier consists of runs on the plateau.

The argument is one or more points or sets (`SETS`), separated by commas. A point is a change of the
recipe of paper 1 (`CHANGES`), or several changes joined by `+`, as in `relative+pre`. `paper` has
no change, `together` has all changes of `TOGETHER`, and `without-rotary` has all but one of them.
The suffix `@` with a shape of `paper1_grids.py` sets the size: `together@e32-h32-f64-a8-l1`.

A point trains on 4.1 million tokens, including pads, in batches of 16 rows; paper 1 has 1.2 billion
tokens and batches of 256 rows. A point takes six to nine minutes on one busy core.
--config.population.members=4 trains four seeds in one program. Runs of another --config.seed in
another --workdir can be added to `minilm ablations`.

QUESTION AND RULES. The rules of the verdicts were written before any run. Later changes:

- This introduction and `TOGETHER` were written after the first runs: rotary positions replaced
  relative positions, then the short convolution and no dropout were added.
- The smallest shape with two heads of width 16 instead of 4 was added because `TOGETHER` without
  the convolution stayed on the plateau there.
- `FEW` was added because each of its omitted fields could be left out at the smallest shape.
- The rate 1e-3 at the largest size was added because only one of three seeds of `TOGETHER` left the
  plateau there.

Hypotheses. The plateau is caused by learned absolute positions, by the schedule and its warm-up, by
post-LN and the initialisation, by the large output vocabulary, or by the data. The changes test
them in this order: other positions and the short convolution; rates, schedules and warm-up; pre-LN
and initialisations; tied embeddings and vocabulary-4010; the same sweep on another corpus.

Statistic. The speed-up is the ratio of tokens to leave the plateau, base over change, with
Student's 95% interval of its logarithm over seeds (`analysis/ablation_results.py`). A run leaves
the plateau at its first evaluation 5.5% below the level (`analysis/frontier.py`). The level is the
loss of word frequencies from `minilm ngram-baselines` or --plateau_loss, and otherwise the level of
the runs. A run that never leaves gives a bound. A change of one field causes the plateau if the
interval lies above 2. The other hypotheses are refuted only if their intervals do not. One seed
gives an indication, not a verdict.

GLUE, with rules written before any score of these recipes. A change is no worse than the base if
the interval of the difference of averages lies above -1 point, the smallest relevant effect; it is
worse if the interval lies below -1 point. Otherwise, and with one seed of pre-training, it cannot
be told. The interval is Student's 95% interval over seeds of pre-training. The average has the
headline scores of all tasks, two or more, that these runs share (`analysis/ablation_glue.py`).

Frontier. `minilm report` computes the frontiers of `paper` and `together` over all sizes, seeds and
schedule lengths. The report compares two power laws with one, gives their break, and counts the
runs below the break on the plateau, in warm-up or at the end of their schedule. The points of
`shorter` have a sixteenth and a quarter of the tokens, so schedules end over more than two decades
of FLOPs. They were added after the first frontier, because no point below its break was the end of
a run. The largest size, with its own rate, was added last.

Exclusions. Runs on other rows or another corpus are excluded and listed; nothing else.
"""

from configs import paper1_grids

SIZES = [
  paper1_grids.format_point(*shape)
  for shape in ((32, 32, 64, 8, 1), (64, 64, 256, 8, 2), (64, 128, 512, 8, 4))
]
SHAPE, LARGE = SIZES[1], paper1_grids.format_point(256, 256, 1024, 8, 4)
CHANGES = {
  'paper': {},
  'relative': {'model.positions': 'relative'},
  'rotary': {'model.positions': 'rotary'},
  'sinusoidal': {'model.positions': 'sinusoidal'},
  'no-positions': {'model.positions': 'none'},
  'short-convolution': {'model.short_convolution': 3},
  'pre': {'model.norm': 'pre'},
  'standard-start': {'model.initialization': 'standard'},
  'bert-start': {'model.initialization': 'bert'},
  'rate-1e-3': {'optimizer.learning_rate': 1e-3},
  'rate-3e-3': {'optimizer.learning_rate': 3e-3},
  'rate-1e-2': {'optimizer.learning_rate': 1e-2},
  'warmup-1': {'optimizer.warmup_fraction': 0.01},
  'warmup-20': {'optimizer.warmup_fraction': 0.2},
  'linear': {'optimizer.schedule': 'linear'},
  'cosine': {'optimizer.schedule': 'cosine'},
  'stable': {'optimizer.schedule': 'warmup_stable_decay'},
  'clip': {'optimizer.clip': 1.0},
  'beta2-98': {'optimizer.beta2': 0.98},
  'decay-matrices': {'optimizer.no_decay': 'bias,norm,embedding'},
  'muon': {'optimizer.algorithm': 'muon'},
  'batch-4': {'batch_size': 4},
  'batch-32': {'batch_size': 32},
  'mask-30': {'mask.rate': 0.3},
  'mask-bert': {'mask.random_share': 0.1, 'mask.keep_share': 0.1},
  'no-dropout': {'model.dropout': 0.0},
  'tied': {'model.tied': True},
  'vocabulary-4010': {'model.vocab_size': 4010},
}
TOGETHER = (
  'rotary',
  'short-convolution',
  'no-dropout',
  'pre',
  'standard-start',
  'rate-3e-3',
  'linear',
  'clip',
  'beta2-98',
  'decay-matrices',
)
FEW = 'short-convolution+standard-start+rate-3e-3+linear'
SHORTER = {'updates-120': {'num_steps': 120}, 'updates-480': {'num_steps': 480}}
RUNS = list(CHANGES)
_WITHOUT = (
  'paper',
  'together',
  FEW,
  *(f'without-{change}' for change in TOGETHER),
  'without-rotary+relative',
  'without-rotary+sinusoidal',
  'without-rotary+no-positions',
  'together+muon',
)
SETS = {
  'pair': [f'{point}@{SIZES[0]}' for point in ('paper', 'together')],
  'without': _WITHOUT,
  'without-small': [f'{point}@{SIZES[0]}' for point in _WITHOUT],
  'small': [f'{change}@{SIZES[0]}' for change in CHANGES],
  'wide-heads': [
    f'{point}@e32-h32-f64-a2-l1' for point in ('paper', 'together', 'without-short-convolution')
  ],
  'sizes': [f'{point}@{size}' for size in SIZES for point in ('paper', 'together')],
  'large': [f'{point}@{LARGE}' for point in ('paper', 'together', 'together+rate-1e-3')],
  'shorter': [
    f'{point}+{part}@{size}'
    for part in SHORTER
    for size in SIZES
    for point in ('paper', 'together')
  ]
  + [f'{point}+{part}@{LARGE}' for part in SHORTER for point in ('paper', 'together+rate-1e-3')],
}
ROWS, BATCH, EVALUATIONS = 32_000, 16, 40


def expand_change(name):
  """Returns the single changes of a part of a point."""
  if name in ('together', *(f'without-{change}' for change in TOGETHER)):
    return tuple(change for change in TOGETHER if name != f'without-{change}')
  return (name,)


def get_config(point='paper'):
  """Returns the recipe of a point."""
  names, _, shape = point.partition('@')
  config = paper1_grids.get_config(shape or SHAPE)
  config.batch_size = BATCH
  known, fields = CHANGES | SHORTER, {}
  for change in [change for name in names.split('+') for change in expand_change(name)]:
    if change not in known:
      raise ValueError(
        f'no change {change!r}; give {", ".join(known)}, together, or without- and a change of together'
      )
    fields |= known[change]
  config.update_from_flattened_dict({'num_steps': ROWS // fields.get('batch_size', BATCH)} | fields)
  config.eval.update(every=config.num_steps // EVALUATIONS, rows=256)
  config.checkpoint.update(every=config.num_steps, keep_last=1)
  config.log.every = config.num_steps // EVALUATIONS
  return config
