r"""Search of the recommended recipe: batch, rate, masks, optimizer, shape and budget.

    minilm sweep --config=configs/recipe_search.py --config.corpus=corpora/honey --workdir=runs/search
    minilm sweep --config=configs/recipe_search.py:batch-32+rate-1e-2@small --config.corpus=corpora/honey --workdir=runs/search

A point is `@` and a shape (`SHAPES`, or a shape of `paper1_grids.py`), after values joined by `+`.
A value is a name of `FIELDS`, a hyphen and a number or a word, or a name of `SWITCHES`. Values that
are not given are those of `together` in `plateau_ablations.py`, the recommended recipe before the
search, with heads of width 16.
`tokens` is the length of the run in millions of tokens, including pads. The argument is one or more
points or sets (`SETS`), separated by commas; the default is `RUNS`, the points measured so far.

RULES, written before the first run.

- Loss: mean nats on all validation rows with the fixed mask of evaluation, at the last update.
- Order: batch and rate together; then masks, optimizer, decay, schedule and initialization, each
  with its own curve of rates; then shapes of equal parameter counts, each with its own curve of
  rates; then the same at 30 and 100 million tokens.
- Rates lie on a grid of factors of about 1.8 (1, 1.8, 3, 5.6, 10). A curve is extended until its
  lowest loss is inside the grid.
- A change is adopted if its best point is at least 0.02 nats below the best point without it, about
  the standard deviation over seeds in `plateau_ablations.py`. Adopted changes are confirmed with three seeds.
- Selection is made twice: at equal FLOPs, and at equal seconds on two cores. Seconds are the median
  step of `minilm bench` on an otherwise idle machine, times the number of updates. A shape or batch
  that wins by one measure only is reported as such.
- Confirmation: three seeds, and unfiltered Wikipedia, on which nothing is selected.
"""

from configs import plateau_ablations

SHAPES = {
  # About 1.25 million parameters with 19,010 pieces.
  'small': 'e32-h32-f64-a2-l1',
  'small-tied': 'e64-h64-f128-a4-l1',
  # About 2.5 million parameters.
  'middle': 'e64-h64-f256-a4-l2',
  'middle-tied': 'e112-h112-f448-a7-l2',
  # About 4.5 million parameters.
  'large': 'e64-h128-f512-a8-l4',
  'large-tied': 'e192-h192-f768-a12-l2',
}
FIELDS = {
  'seed': 'seed',
  'batch': 'batch_size',
  'rate': 'optimizer.learning_rate',
  'mask': 'mask.rate',
  'random': 'mask.random_share',
  'keep': 'mask.keep_share',
  'span': 'mask.span',
  'decay': 'optimizer.weight_decay',
  'beta2': 'optimizer.beta2',
  'clip': 'optimizer.clip',
  'warmup': 'optimizer.warmup_fraction',
  'schedule': 'optimizer.schedule',
  'init': 'model.initialization',
  'convolution': 'model.short_convolution',
  'dropout': 'model.dropout',
  'activation': 'model.activation',
}
SWITCHES = {
  'muon': {'optimizer.algorithm': 'muon'},
  'bert-mask': {'mask.random_share': 0.1, 'mask.keep_share': 0.1},
  'tied': {'model.tied': True},
  'decay-all': {'optimizer.no_decay': ''},
}
LENGTH, EVALUATIONS = 128, 16
BEFORE = 'batch-16+rate-3e-3@e32-h32-f64-a8-l1'  # the recommended recipe before the search
SELECTED = 'batch-16+rate-5.6e-3+mask-0.3+muon@small-tied'
RUNS = [
  # The recommended recipe before the search, another learning rate and batch, and fewer heads.
  BEFORE,
  'batch-32+rate-1e-2@e32-h32-f64-a8-l1',
  'batch-32+rate-1e-2@small',
  'batch-16+rate-1e-2@small',
  'batch-16+rate-5.6e-3@small',
  'batch-16+rate-5.6e-3+mask-0.3+muon@small',
  # A tied head of twice the width at the same number of parameters.
  *(f'batch-{batch}+rate-5.6e-3@small-tied' for batch in (8, 16, 32)),
  *(f'batch-32+rate-{rate}@small-tied' for rate in ('1e-2', '1.8e-2', '1e-2+init-bert')),
  'batch-16+rate-3e-3@small-tied',
  'batch-32+rate-1e-2+mask-0.3@small-tied',
  *(
    f'batch-16+rate-5.6e-3+{change}@small-tied'
    for change in (
      'warmup-0.15',
      'decay-0.1',
      'mask-0.3',
      'muon',
      'mask-0.3+muon',
      'mask-0.3+muon+warmup-0.15',
      'mask-0.4+muon',
    )
  ),
  *(f'batch-16+rate-{rate}+mask-0.3+muon@small-tied' for rate in ('3e-3', '1e-2', '1.8e-2')),
  # Other sizes.
  *(f'batch-16+rate-{rate}+mask-0.3+muon@middle-tied' for rate in ('5.6e-3', '1e-2')),
  'batch-16+rate-5.6e-3+mask-0.3+muon@large-tied',
  # The recipe before the search, with the FLOPs of the selected one.
  'batch-16+rate-3e-3+tokens-15.4@e32-h32-f64-a8-l1',
  # About 300 seconds on two idle cores each.
  'batch-64+rate-1e-2+muon+tokens-30@small',
  'batch-64+rate-1e-2+mask-0.3+muon+tokens-19@small',
  'batch-32+rate-5.6e-3+mask-0.3+muon+tokens-9@small-tied',
  # 55 minutes.
  'batch-32+rate-5.6e-3+mask-0.3+muon+tokens-100@small-tied',
]
SETS = {
  'confirm': [f'seed-{seed}+{point}' for seed in range(3) for point in (BEFORE, SELECTED)],
} | {
  f'batch-rate-{shape}': [
    f'batch-{batch}+rate-{rate}@{shape}'
    for batch in (8, 16, 32, 64, 128, 256)
    for rate in ('1.8e-3', '3e-3', '5.6e-3', '1e-2', '1.8e-2', '3e-2')
  ]
  for shape in SHAPES
}


def get_config(point=RUNS[0]):
  """Returns the recipe of a point."""
  changes, _, shape = point.partition('@')
  config = plateau_ablations.get_config(f'together@{SHAPES.get(shape, shape or SHAPES["small"])}')
  values, millions = {}, 4.096
  changes += '+tied' if shape.endswith('-tied') else ''
  for change in filter(None, changes.split('+')):
    name, _, text = change.partition('-')
    if change in SWITCHES:
      values |= SWITCHES[change]
    elif name in FIELDS:
      group, _, field = FIELDS[name].rpartition('.')
      kind = type((config[group] if group else config)[field])
      values[FIELDS[name]] = text if kind is str else kind(float(text))
    elif name == 'tokens':
      millions = float(text)
    else:
      known = ', '.join([*FIELDS, 'tokens'])
      raise ValueError(f'no change {change!r}; give {known} with a value, or {", ".join(SWITCHES)}')
  config.update_from_flattened_dict(values)
  config.num_steps = round(millions * 1e6 / LENGTH / config.batch_size)
  period = max(1, config.num_steps // EVALUATIONS)
  config.eval.update(every=period, rows=2000)
  config.log.every = period
  config.checkpoint.update(every=4 * period, keep_last=1)
  return config
