"""For tests of scores: a line of scores.jsonl, and files of examples."""

import json
import pathlib
from typing import Any


def line(value: float | None, seed: int = 0, pretrained: bool = True, **fields: Any) -> dict[str, Any]:
  """CoLA's headline after three epochs, nothing held out, with the fields given instead."""
  made = {
      'task': 'cola', 'metric': 'matthews', 'value': value, 'low': None, 'high': None, 'headline': True,
      'split': 'validation', 'examples': 1043, 'train_examples': 8551, 'held_out': 0, 'pretrained': pretrained,
      'checkpoint': 'tiny', 'checkpoint_step': 100 if pretrained else None, 'filtered': False, 'seed': seed,
      'learning_rate': 1e-4, 'member': 0, 'epoch': 3.0, 'which': 'last', 'selection': None, 'majority': 0.0,
      'frequency': 0.0, 'collapsed': False, 'truncated': 0}
  if fields.keys() - made.keys():
    raise TypeError(f'no such field of a line of scores: {fields.keys() - made.keys()}')
  return made | fields


def written(folder: pathlib.Path, **splits: list[dict[str, Any]]) -> str:
  """A folder with a file of examples a split."""
  folder.mkdir(exist_ok=True)
  for split, rows in splits.items():
    (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(folder)
