r"""Past the break: why tiny models stand still, and what makes them go.

    bash launch/plateau.sh corpora/honey TFDS

is all of it, with four seeds of each point; add `runs/plateau 1` for one. The main answer at the
smallest size takes some ten minutes on two cores, with two seeds:

    minilm sweep --config=configs/plateau_ablations.py:pair --config.corpus=corpora/honey --config.population.members=2 \
        --workdir=runs/pair
    minilm ngram-baselines --config=configs/plateau_ablations.py --config.corpus=corpora/honey --workdir=runs/pair/baselines
    minilm ablations --base=runs/pair/paper@e32-h32-f64-a8-l1 runs/pair --preregistration=configs/plateau_ablations.py \
        --workdir=runs/pair/compare

Expect a compute multiplier of about 8.2 [4.9, 13.7]. All single changes, by hand and with one seed:

    minilm sweep --config=configs/plateau_ablations.py --config.corpus=corpora/honey --workdir=runs/plateau
    minilm ngram-baselines --config=configs/plateau_ablations.py --config.corpus=corpora/honey --workdir=runs/plateau/baselines
    minilm ablations --base=runs/plateau/paper runs/plateau --workdir=runs/plateau/compare
    minilm evaluate --checkpoint=runs/plateau/paper --attention

Every run of paper 1 falls to a plateau, stands there, and drops; below 2.2e15 FLOPs its frontier is
of runs that stand. The argument is a change of the paper's recipe, some with `+` between
(`relative+pre`); `together` is all of `TOGETHER`, and `without-rotary` all but that one; several
points have commas between, and `SETS` has sets of them. `@` and a shape of `paper1_grids.py` behind
a point is that point at another size: `together@e32-h32-f64-a8-l1`. `paper` is no change.

Points are for two CPU cores: 4.1 million tokens, pads included, in batches of 16 rows, where the
paper has 256 and 1.2 billion. Six to nine minutes each on one busy core. More seeds:
--config.population.members=4 trains four of each point in one program; or the same command with
--config.seed=1 and another --workdir, which `minilm ablations` takes too.

THE QUESTION, AND ITS RULES. Those of the verdicts were written before any run; this head, and what
is in `TOGETHER` (rotary positions in the place of relative ones, then the short convolution and no
dropout), after the first; the smallest shape with two heads, 16 wide instead of 4, was added when
`TOGETHER` without the convolution stood still there, `FEW` when all but four fields of `TOGETHER`
could each be left out there, and the rate 1e-3 at the largest size when `TOGETHER` left in one seed
of three there.

Hypotheses: the plateau comes from learned absolute positions / the schedule and its warm-up /
post-LN and the start of the weights / the head as large as the vocabulary / the data. Each is a
change: relative, rotary, sinusoidal or no positions and the short convolution; rates, schedules,
warm-up; pre and the starts; tied and vocabulary-4010; for the data the same sweep on another
corpus.

Statistic: how many times fewer tokens a run takes to leave the plateau than the run without the
change, over seeds, with Student's 95% interval of its logarithm (`analysis/ablation_results.py`). A
run has left at its first evaluation 5.5% below the level (`analysis/frontier.py`): the loss of word
frequencies alone, of `minilm ngram-baselines` or as --plateau_loss; without either that of the
runs. One that never leaves gives a bound. The verdict on a change of one field is by
`analysis/ablation_results.py`: it causes the plateau where that interval lies above 2, which
refutes the others only if theirs do not. One seed gives an indication and no verdict.

GLUE, by a rule that was written before any score of these recipes: a change is no worse than the
base where Student's 95% interval, over seeds of pre-training, of its average less the base's lies
above minus one point, which is the least that matters; it is worse where it lies below that; else,
and from one seed of pre-training, it cannot be told. The average is of the headline scores of the
tasks that all these runs were fine-tuned on (`analysis/ablation_results.py`), two or more.

The frontier: of the paper's recipe and of `together`, each over all its sizes, seeds and lengths of
schedule, by `minilm report`, whose page says whether two power laws fit much better than one, where
they part, and what the runs below that do: stand on the plateau, warm up, or end their schedule.
`shorter` are the same points with a sixteenth and a quarter of the tokens, so that schedules end
over more than two decades of FLOPs; they came after the first frontier, none of whose points below
its break was of a run at its end. The largest size, which has its own rate, came last.

Exclusions: runs on other rows or of another corpus, by name; nothing else.
"""

from configs import paper1_grids, recommended

SIZES = recommended.RUNS
SHAPE, LARGE = SIZES[1], paper1_grids.point(256, 256, 1024, 8, 4)
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


def changes(name):
  """The single changes that a point is made of."""
  if name in ('together', *(f'without-{change}' for change in TOGETHER)):
    return tuple(change for change in TOGETHER if name != f'without-{change}')
  return (name,)


def get_config(point='paper'):
  """The recipe of one point."""
  names, _, shape = point.partition('@')
  config = paper1_grids.get_config(shape or SHAPE)
  config.batch_size = BATCH
  known, fields = CHANGES | SHORTER, {}
  for change in [one for name in names.split('+') for one in changes(name)]:
    if change not in known:
      raise ValueError(
        f'no change {change!r}; there are {", ".join(known)}, together, and without- one of these'
      )
    fields |= known[change]
  config.update_from_flattened_dict({'num_steps': ROWS // fields.get('batch_size', BATCH)} | fields)
  config.eval.update(every=config.num_steps // EVALUATIONS, rows=256)
  config.checkpoint.update(every=config.num_steps, keep_last=1)
  config.log.every = config.num_steps // EVALUATIONS
  return config
