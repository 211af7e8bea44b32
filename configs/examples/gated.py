"""Another model: the encoder of configs/examples/gated_rotary.py in the place of ours, on the
microworld.

    minilm show --config=configs/examples/gated.py
    minilm pretrain --config=configs/examples/gated.py --workdir=runs/gated
    minilm finetune --config=configs/glue.py:microworld/acceptability --checkpoint=runs/gated \
        --workdir=runs/gated-task --trust=configs.examples.gated_rotary

A minute on two cores. Expect a test loss of about 2.8 nats a token after its 600 updates, against
2.0 of ours under the same recipe: it leaves the plateau of word frequencies later. The trust is
asked for because a stored run is data, and the module that it names is code.
"""

from configs import tiny


def get_config():
  """The run of configs/tiny.py with another encoder; a gate has two matrices upward, so F is two
  thirds of ours.
  """
  config = tiny.pretrain()
  config.model.encoder = 'configs.examples.gated_rotary:Encoder'
  config.model.update(intermediate_size=84, tied=True)
  return config
