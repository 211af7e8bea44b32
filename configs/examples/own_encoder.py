"""Another model: the encoder of configs/examples/gated_rotary.py on the microworld.

    minilm show --config=configs/examples/own_encoder.py
    minilm pretrain --config=configs/examples/own_encoder.py --workdir=runs/own_encoder
    minilm finetune --config=configs/glue.py:microworld/acceptability --checkpoint=runs/own_encoder \
        --workdir=runs/own_encoder-task --trust=configs.examples.gated_rotary

To use your own: copy gated_rotary.py, change the class, and name it as `package.module:Class` here
or with --config.model.encoder. `minilm show` checks the class before anything is computed;
minilm_jax/model/custom.py describes its interface.

A minute on two cores. Expect a test loss of about 2.8 nats a token after its 600 updates, against
2.0 of the encoder of this package under the same recipe: it leaves the plateau of word frequencies
later. A stored run is data and the module that it names is code, so `finetune` needs --trust.
"""

from configs import tiny


def get_config():
  """The run of configs/tiny.py with another encoder.

  The gate has two matrices from D to F, so F is two thirds of that in configs/tiny.py.
  """
  config = tiny.pretrain()
  config.model.encoder = 'configs.examples.gated_rotary:Encoder'
  config.model.update(intermediate_size=84, tied=True)
  return config
