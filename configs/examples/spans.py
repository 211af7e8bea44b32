"""A custom objective: prediction of masked spans of three adjacent tokens.

    minilm pretrain --config=configs/examples/spans.py --workdir=runs/spans

The fields of `config.mask` define the masked positions and their replacement; the loss is the
cross-entropy of the original tokens. Objectives with a second model (ELECTRA), another loss or
pairs of sentences need a change of minilm_jax/training/train_step.py.

Expect a training loss that is not comparable with configs/tiny.py, because spans hide the adjacent
tokens. The test loss masks single tokens in both runs. The run takes a minute on two cores.
"""

from configs import tiny


def get_config():
  """Returns the recipe of configs/tiny.py with masked spans; evaluation masks single tokens."""
  config = tiny.pretrain()
  config.mask.span = 3
  return config
