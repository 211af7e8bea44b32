"""Runs a command: `python -m minilm_jax COMMAND`."""

import sys

from minilm_jax.cli.main import main

if __name__ == '__main__':
  sys.exit(main())
