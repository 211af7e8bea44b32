"""Recipes and their types: invalid fields are refused, valid values are converted."""

import copy
import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from configs import base
from minilm_jax.core import config, corpus_config, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.core.old_names import ADDED_FIELDS, complete_recipe
from minilm_jax.evaluation import inference
from minilm_jax.training import pretrained

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = {'pretrain': base.pretrain, 'corpus': base.corpus, 'finetune': base.finetune}


def list_paths(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  for name, value in tree.items():
    yield from list_paths(value, (*prefix, name)) if isinstance(value, dict) else [(*prefix, name)]


def change_field(kind: str, path: str, value: Any) -> dict[str, Any]:
  """Returns the base recipe with one field set, added or (value `...`) removed."""
  tree = KINDS[kind]().to_dict()
  *groups, last = path.split('.')
  group = tree
  for name in groups:
    group = group[name]
  if value is ...:
    del group[last]
  else:
    group[last] = value
  return tree


def test_recipes_of_earlier_versions_get_the_values_that_they_had():
  config = recipe.resolve(base.pretrain(), 'pretrain')
  stored = json.loads(json.dumps(recipe.as_dict(config)))
  for group, fields in ADDED_FIELDS.items():
    for name in fields if group in stored else ():
      del stored[group][name]
  resolved = recipe.resolve(complete_recipe(stored), 'pretrain')
  # earlier versions had no log sinks
  assert resolved == dataclasses.replace(config, log=dataclasses.replace(config.log, sinks=()))


@pytest.mark.parametrize('kind', KINDS)
def test_a_configuration_is_frozen(kind: str):
  config = recipe.resolve(KINDS[kind](), kind)
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.kind = 'other'


@pytest.mark.parametrize(
  'kind, path',
  [
    (kind, '.'.join(path))
    for kind in KINDS
    for path in list_paths(KINDS[kind]().to_dict())
    if path != ('kind',)
  ],
)
def test_every_field_is_required_and_has_its_type(kind: str, path: str):
  with pytest.raises(InputError, match=re.escape(path)):
    recipe.resolve(change_field(kind, path, ...), kind)
  with pytest.raises(InputError, match=re.escape(path)):
    recipe.resolve(change_field(kind, path, {'not': 'a value'}), kind)


@pytest.mark.parametrize(
  'kind, path, value, part',
  [
    ('pretrain', 'batchsize', 8, "did you mean 'batch_size'"),
    ('pretrain', 'optimizer.learnin_rate', 1e-3, "did you mean 'learning_rate'"),
    ('pretrain', 'optimizer.schedule', 'cosin', "did you mean 'cosine'"),
    ('pretrain', 'model.num_heads', 7, '2, 4, 8'),
    ('pretrain', 'model.num_heads', '8.5', 'as int'),
    ('pretrain', 'model.num_heads', True, 'as int'),
    ('pretrain', 'model.dropout', 1.5, 'model.dropout=1.5'),
    ('pretrain', 'model.dropout', float('nan'), 'model.dropout=nan\nfound: NaN or infinity'),
    ('pretrain', 'model.dropout', float('inf'), 'model.dropout=inf\nfound: NaN or infinity'),
    ('pretrain', 'optimizer.learning_rate', float('inf'), 'optimizer.learning_rate=inf'),
    ('pretrain', 'batch_size', 10**30, '53 bits'),
    ('pretrain', 'batch_size', 10**12, 'give at most'),
    ('pretrain', 'model.num_layers', 10**9, 'give at most'),
    ('pretrain', 'population.members', 10**9, 'give at most'),
    ('corpus', 'rows.length', 10**12, 'give at most'),
    ('corpus', 'tokenizer.extra_sizes', '-5', 'at least 16'),
    ('finetune', 'epochs', 1e300, 'epochs=1e+300'),
    ('pretrain', 'batch_size', '9' * 5000, 'as int'),
    ('pretrain', 'optimizer.clip', 10**400, 'more than 53 bits'),
    ('pretrain', 'corpus', 'a\0b', 'U+0000'),
    ('pretrain', 'corpus', '\udcff', 'U+DCFF'),
    ('pretrain', 'model.tied', 1, 'as bool'),
    ('pretrain', 'model.dtype', 'fp16', 'choices: float32, bfloat16'),
    ('pretrain', 'model', 'small', "model='small'"),
    ('pretrain', 'mask.rate', 0, 'mask.rate=0'),
    ('pretrain', 'batch_size', 0, 'at least 1'),
    ('pretrain', 'grad_accumulation_steps', 3, 'batch_size=256'),
    ('pretrain', 'eval.every', 77, 'log.every=50'),
    ('pretrain', 'num_steps', 2**31, '2^32'),
    ('corpus', 'vocabulary.filters', '', 'vocabulary.filters'),
    ('corpus', 'vocabulary.filters', 'sentence', "did you mean 'sentences'"),
    ('corpus', 'splits.validation', 0.99, '0.99'),
    ('corpus', 'tokenizer.model', 'wordpiece', 'bpe'),
    ('finetune', 'seeds', '', 'seeds=()'),
    ('finetune', 'seeds', '1,1', 'seeds=(1, 1)'),
    ('finetune', 'seeds', '0,one', 'as int'),
    ('finetune', 'task.filtered', True, 'task.word_list'),
    ('finetune', 'epochs', 0, 'epochs=0'),
    ('finetune', 'seeds', '-1', 'seeds=-1'),
    ('finetune', 'learning_rates', '1e-4,1e-3', 'validation_fraction=0.1'),
    ('finetune', 'patience', 2, 'validation_fraction=0.1'),
    ('finetune', 'validation_fraction', 1.0, 'validation_fraction'),
    ('pretrain', 'mask.span', -1, 'span'),
    ('pretrain', 'model.encoder', 'Encoder', 'encoder'),
    ('pretrain', 'seed', -1, 'seed=-1'),
    ('pretrain', 'seed', 2**32, '2^32'),
  ],
)
def test_invalid_fields_are_refused(kind: str, path: str, value: Any, part: str):
  with pytest.raises(InputError, match=re.escape(part)):
    recipe.resolve(change_field(kind, path, value), kind)


@pytest.mark.parametrize(
  'path, value, get, expected',
  [
    ('seeds', '3, 4,5', lambda c: c.seeds, (3, 4, 5)),  # comma-separated text
    ('seeds', [3, 4], lambda c: c.seeds, (3, 4)),
    ('seeds', 7, lambda c: c.seeds, (7,)),
    ('epochs', 3, lambda c: c.epochs, 3.0),
    ('optimizer.no_decay', '', lambda c: c.optimizer.no_decay, ()),
    ('task.train', pathlib.Path('a.csv'), lambda c: c.task.train, 'a.csv'),
  ],
)
def test_values_are_converted_like_those_of_the_command_line(
  path: str, value: Any, get: Callable[[Any], Any], expected: Any
):
  resolved = get(recipe.resolve(change_field('finetune', path, value), 'finetune'))
  assert resolved == expected and type(resolved) is type(expected)


def test_a_recipe_of_another_kind_is_refused():
  with pytest.raises(InputError, match='corpus'):
    recipe.resolve(base.corpus(), 'pretrain')
  with pytest.raises(InputError):
    recipe.resolve({}, 'pretrain')


def test_resolving_does_not_change_the_recipe():
  source = base.pretrain()
  original = copy.deepcopy(source.to_dict())
  recipe.resolve(source, 'pretrain')
  assert source.to_dict() == original


def test_an_installed_recipe_is_used_from_any_directory_and_logged_once(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  recipe._log_installed.cache_clear()
  for _ in range(2):
    assert recipe.load('configs/tiny.py').num_steps == 600
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and f'{ROOT}/configs/tiny.py' in lines[0]
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'tiny.py').write_text(
    'from configs import base\nget_config = base.corpus'
  )
  assert recipe.load('configs/tiny.py').kind == 'corpus' and not capsys.readouterr().err


def test_every_field_is_used():
  source = '\n'.join(
    path.read_text(encoding='utf-8')
    for path in (ROOT / 'minilm_jax').rglob('*.py')
    if path.name not in ('config.py', 'corpus_config.py')
  )
  kinds = [*vars(config).values(), *vars(corpus_config).values()]
  types = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
  unused = sorted(
    f'{kind.__name__}.{field.name}'
    for kind in types
    for field in dataclasses.fields(kind)
    # only `resolve` reads the kind
    if field.name != 'kind' and not re.search(rf'\.{field.name}\b', source)
  )
  assert not unused, (
    f'nothing reads {", ".join(unused)}: use the field, or take it out of config.py and configs/'
  )


HOSTILE = (
  '{0.__class__}',
  '%s%n',
  '${PATH}',
  "__import__('os').system('touch hacked')",
  'evil.py',
  'evil:Model',
  '../evil.py:x',
  '1' * 5000,
  '9' * 400,
  '1e999',
  10**400,
  -(10**30),
  2**62,
  math.nan,
  math.inf,
  [[[[]]]],
  {'a': {}},
  None,
  '\ud800',
  '\x1b[2J',
  'x' * 100_000,
  [1] * 10_000,
  True,
)


@pytest.mark.parametrize('kind', KINDS)
def test_a_stored_recipe_is_data(kind: str, tmp_path, monkeypatch):
  """Any content of a config.json gives a configuration or a short InputError, and runs no code."""
  (tmp_path / 'evil.py').write_text('raise SystemExit("the stored recipe was executed")')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  original = sorted(tmp_path.iterdir())
  base_recipe = KINDS[kind]().to_dict()
  refused = 0
  for path in [(), *list_paths(base_recipe)]:
    for value in HOSTILE:
      changed_recipe = copy.deepcopy(base_recipe)
      inner = changed_recipe
      for name in path[:-1]:
        inner = inner[name]
      inner.update({path[-1]: value} if path else {str(value): value})
      try:
        recipe.resolve(json.loads(json.dumps(changed_recipe)), kind)
      except InputError as error:
        assert len(str(error)) < 13_000, (path, str(error)[:300])
        refused += 1
  assert refused > 5 * len(HOSTILE) and sorted(tmp_path.iterdir()) == original


@pytest.mark.parametrize(
  'content, part',
  [
    ('{"a": ' * 5000 + '1' + '}' * 5000, 'not JSON'),
    ('{"a": ' * 70 + '1' + '}' * 70, '64 levels'),
    ('{"kind": NaN}', 'NaN'),
    ('{"kind": -Infinity}', 'Infinity'),
    ('{"kind": ' + '9' * 5000 + '}', 'not JSON'),
    ('\x00', 'not JSON'),
    ('{"kind": "\\ud800"}', 'kind'),
    ('[]', 'not an object'),
    ('7', 'not an object'),
    ('null', 'not an object'),
    ('{"kind": {"kind": "pretrain"}}', 'kind'),
    ('{"kind": ["pretrain"]}', 'kind'),
  ],
)
def test_an_invalid_config_json_is_refused(content: str, part: str, tmp_path):
  (tmp_path / run_dir.CONFIG).write_text(content)
  with pytest.raises(InputError, match=part):
    pretrained.load_config(tmp_path)


def test_a_stored_recipe_path_is_not_executed(tiny_run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'evil.py').write_text('raise SystemExit("the stored recipe was executed")')
  shutil.copytree(tiny_run, tmp_path / 'run')
  changed_recipe = json.loads((tiny_run / run_dir.CONFIG).read_text()) | {'corpus': 'evil.py'}
  (tmp_path / 'run' / run_dir.CONFIG).write_text(json.dumps(changed_recipe))
  assert pretrained.load_config(tmp_path / 'run').corpus == 'evil.py'
  assert inference.LanguageModel(tmp_path / 'run').fill_mask('the <mask>', 1)
  (tmp_path / 'run' / run_dir.CONFIG).write_text(
    json.dumps(
      changed_recipe
      | {
        'model': changed_recipe['model']
        | {
          'hidden_size': 2**40,
          'intermediate_size': 2**40,
          'embedding_size': 2**40,
          'projection': True,
        }
      }
    )
  )
  # refused by the shapes of the checkpoint, before an allocation of that size
  with pytest.raises(InputError):
    inference.LanguageModel(tmp_path / 'run').fill_mask('the <mask>', 1)


def test_a_missing_module_names_the_cause(tmp_path, monkeypatch):
  monkeypatch.setattr(
    recipe, '_trusted_modules', {'own_package.encodr', 'configs.mine', '__main__'}
  )
  monkeypatch.chdir(tmp_path)
  for folder in ('own_package', 'configs'):
    (tmp_path / folder).mkdir()
  monkeypatch.syspath_prepend(str(tmp_path / 'none'))
  with pytest.raises(InputError, match='run the command in the folder that contains own_package'):
    recipe.import_class('own_package.encodr:E')
  with pytest.raises(InputError, match='rename the folder configs'):
    recipe.import_class('configs.mine:E')
  with pytest.raises(InputError, match='no Encodr in'):
    recipe.import_class('__main__:Encodr')


@pytest.mark.parametrize('source', [{'documents.sources': 'x'}, {'kind': {'a.b': 1}}])
def test_nested_dicts_with_other_names_are_refused(source: dict):
  with pytest.raises(InputError, match='nested dicts'):
    recipe.override_fields(source, {})
