"""Writes the golden numbers: `python -m tests.golden`."""

import json

from tests import golden

if __name__ == '__main__':
  golden.FILE.write_text(json.dumps(golden.measure(), indent=2) + '\n')
