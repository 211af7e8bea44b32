"""Maps the names of fields, columns and files of earlier versions to current names.

No old name of a group is also a new name, so that renaming twice changes nothing.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

# Recipe fields by group; '' is the top level of a recipe, and of classifier.json.
OLD_FIELD_NAMES: Mapping[str, Mapping[str, str]] = {
  '': {
    'corpus_on': 'corpus_placement',
    'accumulation': 'grad_accumulation_steps',
    'head_blocks': 'logit_chunks',
    'updates': 'num_steps',
    'evaluation': 'eval',
    'held_out': 'validation_fraction',
    'keep': 'save_classifiers',
    'lift': 'strategy',
    'joined': 'concatenate_fields',
    'which': 'epoch_choice',
  },
  'model': {
    'vocabulary': 'vocab_size',
    'embedding': 'embedding_size',
    'hidden': 'hidden_size',
    'feed_forward': 'intermediate_size',
    'heads': 'num_heads',
    'layers': 'num_layers',
    'length': 'max_length',
    'first_position': 'position_offset',
    'nominal_heads': 'flops_heads',
    'compute': 'dtype',
    'bare_projection': 'projection_norm',
    'second_segment': 'segment_embeddings_for_pairs',
  },
  'head': {'copies': 'ensemble_size'},
  'mask': {'random': 'random_share', 'keep': 'keep_share'},
  'optimizer': {
    'undecayed': 'no_decay',
    'warmup_share': 'warmup_fraction',
    'warmup_most': 'max_warmup_steps',
    'decay_share': 'decay_fraction',
  },
  'eval': {'first': 'first_at'},
  'checkpoint': {'minutes': 'every_minutes', 'keep': 'keep_last', 'best': 'keep_best'},
  'log': {'to': 'sinks'},
  'population': {'lift': 'strategy'},
  'subset': {'order': 'shuffle_seed'},
  'task': {'limit': 'max_train_examples', 'per_label_reported': 'eval_per_label'},
  'documents': {'unit': 'document_unit', 'errors': 'on_invalid_utf8', 'longest': 'max_chars'},
  'vocabulary': {
    'counting': 'word_rule',
    'passes': 'filters',
    'sentence_words': 'min_words_per_sentence',
    'span_counted': 'min_words_per_span',
  },
  'tokenizer': {'sweep': 'extra_sizes'},
  'rows': {'grouping': 'packing'},
}
_STRATEGIES = {'loop': 'map', 'alone': 'single'}
# Old and new values by group and new field name.
_OLD_VALUES: Mapping[str, Mapping[str, Mapping[Any, Any]]] = {
  '': {'strategy': _STRATEGIES},
  'population': {'strategy': _STRATEGIES},
  'model': {
    'initialization': {'honey': 'paper1'},
    'convolution': {'paper': 'paper2', 'mended': 'fixed'},
  },
  'optimizer': {
    'schedule': {
      'honey': 'inverse_sqrt',
      'epochs': 'per_epoch',
      'epochs_from_zero': 'per_epoch_from_zero',
    },
  },
  'vocabulary': {'word_rule': {'honey': 'paper1'}},
}
_INVERTED = ('bare_projection',)  # the new field is the negation
# Fields that earlier versions lacked, with the value that reproduces their results, by group. Fields
# outside a group stand under the kind of their recipe, such as `pretrain`.
ADDED_FIELDS: Mapping[str, Mapping[str, Any]] = {
  'checkpoint': {'every_minutes': 0.0, 'keep_best': 0},
  'log': {'sinks': '', 'project': 'minilm', 'name': ''},
  'model': {
    'projection_norm': True,
    'segment_embeddings_for_pairs': False,
    'encoder': '',
    'short_convolution': 0,
  },
  'mask': {'span': 0},
  'head': {'ensemble_size': 1},
  'optimizer': {'algorithm': 'adamw'},
}
# Columns of scores.jsonl and predictions.jsonl.
OLD_COLUMN_NAMES: Mapping[str, str] = {
  'selection': 'validation_score',
  'which': 'epoch_choice',
  'collapsed': 'constant_prediction',
}
# Files of a run directory by their new name.
OLD_FILE_NAMES: Mapping[str, str] = {
  'checksums.json': 'digests.json',
  'bits_per_word.json': 'words.json',
  '.finetune_state.npz': '.fitting.npz',
}
# Fields of manifests and results that contain recipes.
_RECIPE_FIELDS = ('settings', 'training', 'recipe')


def complete_recipe(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a stored recipe or classifier.json with current names and all current fields."""
  completed = {**ADDED_FIELDS.get(stored.get('kind', ''), {}), **rename_fields(stored)}
  for group, added in ADDED_FIELDS.items():
    if isinstance(fields := completed.get(group), dict):
      completed[group] = {**added, **fields}
  return completed


def rename_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a stored recipe or classifier.json with current field names.

  >>> rename_fields({'updates': 9, 'model': {'bare_projection': True}, 'population': {'lift': 'loop'}})
  {'num_steps': 9, 'model': {'projection_norm': False}, 'population': {'strategy': 'map'}}
  """
  return rename_groups(_rename_group('', stored))


def rename_groups(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record, such as a manifest, with current field names in its recipe groups."""
  renamed = {}
  for name, value in record.items():
    if isinstance(value, dict):
      if name in _RECIPE_FIELDS:
        value = rename_fields(value)
      elif name == 'models':  # a latency result: encoder fields by recipe name
        value = {
          model: _rename_group('model', fields) if isinstance(fields, dict) else fields
          for model, fields in value.items()
        }
      elif name and name in OLD_FIELD_NAMES:
        value = _rename_group(name, value)
    renamed[name] = value
  return renamed


def rename_columns(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a log line with current column names."""
  return {OLD_COLUMN_NAMES.get(name, name): value for name, value in record.items()}


def _rename_group(group: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  names, values = OLD_FIELD_NAMES[group], _OLD_VALUES.get(group, {})
  renamed = {}
  for name, value in fields.items():
    new_name = names.get(name, name)
    if name in _INVERTED and isinstance(value, bool):
      value = not value
    elif isinstance(value, str):
      value = values.get(new_name, {}).get(value, value)
    renamed[new_name] = value
  return renamed


def rename_record(file: str, value: Any) -> Any:
  """Returns the JSON of a file of a run directory with current names; other JSON is unchanged."""
  if not isinstance(value, dict) or 'model_type' in value:  # a config.json of Hugging Face
    return value
  if file in ('config.json', 'classifier.json'):
    return rename_fields(value)
  return rename_groups(value) if file == 'manifest.json' else value


def find_file(path: epath.Path) -> epath.Path:
  """Returns a path, or the path with the old file name if only that file exists."""
  old = path.with_name(OLD_FILE_NAMES.get(path.name, path.name))
  return old if old.exists() and not path.exists() else path
