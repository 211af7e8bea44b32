"""Another objective: three tokens side by side are predicted together, so that a hole has no near
neighbour to go by.

    minilm pretrain --config=configs/examples/spans.py --workdir=runs/spans

A minute on two cores. Expect a training loss that does not compare with that of configs/tiny.py,
whose holes have their neighbours to go by; the test loss is of single holes for both, and does.

An objective here is which positions are hidden and what stands there (`config.mask`); the loss is
always that of the tokens that stood there. One that needs a second model (ELECTRA's generator),
another loss or other rows (pairs of sentences) has no door yet: it would be a change to
minilm_jax/training/train_step.py.
"""

from configs import tiny


def get_config():
  """The run of configs/tiny.py with other masks; evaluation keeps its own, so that the losses
  compare.
  """
  config = tiny.pretrain()
  config.mask.span = 3
  return config
