"""A custom encoder is checked before compilation, needs trust, and trains like the built-in one."""

import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.cli import main
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.model import custom, flops, heads
from minilm_jax.model.initialization import flatten
from minilm_jax.tasks import classifier, finetune
from minilm_jax.training import checkpoint, pretrained, run, sharding, train_step
from tests import tiny_config
from tests.docstring_commands import parse

GATED = 'configs.examples.gated_rotary:Encoder'
START = """
import jax, jax.numpy as jnp
from flax import nnx
class Encoder(nnx.Module):
  def __init__(self, config, rngs):
    self.embedding = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
    self.config = config
  def __call__(self, tokens, mask, *, key=None):
    return self.embedding(tokens)
"""
KEEP, CALL = 'self.config = config', 'self.embedding(tokens)'
INVALID = [  # a file, changes of the recipe, and a pattern of the error
  ('', {}, 'Encoder in'),
  (START.replace('Encoder', 'Encodr'), {}, "'Encodr'"),
  ('1 / 0', {}, 'import own raises ZeroDivisionError'),
  ('import nowhere', {}, 'import own raises ModuleNotFoundError'),
  ('raise SystemExit(0)', {}, 'import own raises SystemExit'),
  ('class Encoder:\n  pass', {}, r'class Encoder\(nnx.Module\)'),
  ('from flax import linen\nclass Encoder(linen.Module):\n  pass', {}, r'Encoder\(nnx.Module\)'),
  (START.replace('config, rngs)', 'config)'), {}, r'Encoder\(config, rngs\) raises TypeError'),
  (START.replace(', *, key=None', ''), {}, 'key=None.* raises TypeError'),
  (START.replace('(tokens)', '(tokens[:, :1])'), {}, r'float32 \(2, 1, 16\)'),
  (START.replace('(tokens)', '(tokens)[:, :, 0]'), {}, r'\(2, 64, 16\)'),
  (
    START.replace('(tokens)\n', '(tokens) + jnp.ones((1, 64, 16))\n'),
    {},
    r'\(3, 63\) raises \w+ \(own.py, line 9\)',
  ),
  (START.replace(CALL, 'tokens[:, :, None] * jnp.ones((1, 1, 16), int)'), {}, 'int32'),
  (START.replace(CALL, '{}'), {}, 'dict'),
  (START.replace(KEEP, 'self.drop = nnx.Dropout(0.1, rngs=rngs)'), {}, 'drop.rngs'),
  (START.replace(KEEP, 'self.norm = nnx.BatchNorm(16, rngs=rngs)'), {}, 'BatchStat'),
  (START.replace(KEEP, 'self.ones = nnx.data(jnp.ones(3))'), {}, 'ones '),
  (START.replace(KEEP, 'self.call = lambda x: x'), {}, '__init__'),
  (START.replace(KEEP, 'self.twin = self.embedding'), {}, 'twin.embedding is the same parameter'),
  (START.replace(KEEP, 'self.pair = nnx.Param({"a": jnp.ones(3)})'), {}, 'pair is a Param'),
  (START.replace('_size, rngs', '_size, param_dtype="bfloat16", rngs'), {}, r'Param \(bfloat16\)'),
  (START, {'model.tied': True}, 'encoder.table raises AttributeError'),
]


@pytest.fixture
def empty_folder(tmp_path: pathlib.Path, monkeypatch) -> Iterator[pathlib.Path]:
  """An empty working directory for the modules `own` and `evil`; no module is trusted."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(recipe, '_trusted_modules', set())
  yield tmp_path
  for name in ('own', 'evil'):
    sys.modules.pop(name, None)


def make_config(name: str, **changes: Any) -> EncoderConfig:
  return tiny_config.make_run_config(pathlib.Path(), **{'model.encoder': name} | changes).model


@pytest.mark.parametrize('source, changes, pattern', INVALID, ids=[case[2] for case in INVALID])
def test_invalid_class_is_refused(
  source: str, changes: dict, pattern: str, empty_folder: pathlib.Path
):
  (empty_folder / 'own.py').write_text(source)
  recipe.allow_modules('own')
  with pytest.raises(InputError, match=pattern) as error:
    custom.load_custom_encoder(make_config('own:Encoder', **changes))
  assert 'own:Encoder' in error.value.asked


def test_invalid_names_are_refused(empty_folder: pathlib.Path):
  recipe.allow_modules('nowhere.at_all, configs.nothing')
  for name, value in (
    ('nowhere.at_all:X', f'nowhere in {empty_folder}'),
    ('configs.nothing:X', 'configs.nothing'),
  ):
    with pytest.raises(InputError, match=value):
      custom.load_custom_encoder(make_config(name))
  for name in ('Encoder', 'a.b', 'a:', ':b', 'a b:C', '../evil:C', 'a:b.c'):
    with pytest.raises(InputError, match=f'model.encoder={name!r}'):
      make_config(name)
  with pytest.raises(InputError, match='model.convolutions=1'):
    make_config(GATED, **tiny_config.CONVOLUTION)
  with pytest.raises(InputError, match='model.short_convolution=3'):
    make_config(GATED, **{'model.short_convolution': 3})


def test_class_of_a_stored_recipe_is_imported_only_with_trust(
  tiny_run: pathlib.Path, empty_folder: pathlib.Path, capsys
):
  (empty_folder / 'evil.py').write_text('open("ran", "w").close()\n' + START)
  shutil.copytree(tiny_run, empty_folder / 'run')
  fields = json.loads((tiny_run / run_dir.CONFIG).read_text())
  fields['model']['encoder'] = 'evil:Encoder'
  (empty_folder / 'run' / run_dir.CONFIG).write_text(json.dumps(fields))
  command = ['fill-mask', '--checkpoint=run', '--text=the <mask>']
  assert main.main(command) == 2
  error = capsys.readouterr().err
  assert 'evil:Encoder' in error and '--trust=evil' in error
  assert not (empty_folder / 'ran').exists() and 'evil' not in sys.modules
  for modules in ('', 'evi', 'evil.py', 'own,evil.Encoder'):
    assert main.main([*command, f'--trust={modules}']) == 2 and not (empty_folder / 'ran').exists()
  # The class runs; the checkpoint has other parameters.
  assert main.main([*command, '--trust=evil']) == 2 and (empty_folder / 'ran').exists()


def test_class_of_a_recipe_on_the_command_line_is_trusted(empty_folder: pathlib.Path):
  (empty_folder / 'own.py').write_text(START)
  config, _, _ = parse(
    'show',
    ['--config=configs/tiny.py', '--config.model.encoder=own:Encoder'],
  )
  assert isinstance(custom.load_custom_encoder(config.model), type)
  assert flops.count_parameters_by_part(config.model)['embedding'] == 512 * 64


def test_a_reloaded_class_replaces_the_earlier_one(empty_folder: pathlib.Path):
  source = empty_folder / 'own.py'
  source.write_text(START)
  recipe.allow_modules('own')
  config = make_config('own:Encoder')
  before = flops.count_parameters_by_part(config)['total']
  source.write_text(START.replace(KEEP, 'self.up = nnx.Linear(5, 7, rngs=rngs)'))
  os.utime(source, ns=(0, 0))  # another time of change, for the cache of bytecode
  importlib.reload(sys.modules['own'])
  assert flops.count_parameters_by_part(config)['total'] == before + 5 * 7 + 7


@pytest.mark.parametrize('changes', [{}, {'model.positions': 'relative', 'model.num_layers': 3}])
def test_traced_products_of_the_builtin_encoder_equal_the_formula(changes: dict):
  config = make_config('', **changes)
  init = lambda: heads.init_masked_language_model(config, jax.random.key(0)).encoder  # noqa: E731
  row = [jax.ShapeDtypeStruct((1, 40), kind) for kind in (jnp.int32, jnp.bool_)]
  trace = jax.make_jaxpr(lambda model, *row: model(*row))(jax.eval_shape(init), *row)
  assert flops.count_product_flops(trace.jaxpr) == flops.encoder_flops(config, 40)


def test_products_of_a_scan_count_for_each_iteration():
  square = jnp.ones((4, 4))
  loop = lambda x: jax.lax.scan(lambda x, _: (x @ square, None), x, length=5)[0]  # noqa: E731
  assert flops.count_product_flops(jax.make_jaxpr(loop)(square).jaxpr) == 5 * 2 * 4**3


@pytest.fixture(scope='module')
def gated() -> EncoderConfig:
  recipe.allow_modules(GATED)
  return dataclasses.replace(make_config(GATED), dropout=0.0)


def test_parameters_and_flops_follow_from_arrays_and_trace(gated: EncoderConfig):
  # A block of 2,592, a last norm of 16, a head of 816 and, if it is not tied, its matrix.
  for config, head in ((gated, 816 + 512 * 16), (dataclasses.replace(gated, tied=True), 816)):
    counts = flops.count_parameters_by_part(config)
    assert counts['embedding'] == 512 * 16 and counts['other'] == 2592 + 16 + head
  length, d, f = 64, 16, 32
  assert (
    flops.encoder_flops(gated, length)
    == 2 * length * (4 * d * d + 3 * d * f) + 4 * length * length * d
  )


def test_pads_and_other_rows_change_nothing_and_every_parameter_learns(gated: EncoderConfig):
  model = jax.jit(lambda: heads.init_masked_language_model(gated, jax.random.key(3)))()
  tokens = jax.random.randint(jax.random.key(0), (3, 20), 5, 500).at[0, 12:].set(tokenizer.PAD_ID)
  encode = jax.jit(lambda model, tokens: model.encoder(tokens, tokens != tokenizer.PAD_ID))
  batch, single_row = encode(model, tokens), encode(model, tokens[:1, :12])
  np.testing.assert_allclose(batch[:1, :12], single_row, rtol=1e-5, atol=1e-5)
  gradient = jax.jit(
    jax.grad(
      lambda model: jnp.sum(
        model(tokens, tokens != tokenizer.PAD_ID, tokens[:, :4] % 12)[..., 7] ** 2
      )
    )
  )
  for name, leaf in flatten(gradient(model)).items():
    assert np.abs(np.asarray(leaf)).max() > 0, name


def test_the_encoder_initializes_its_parameters(gated: EncoderConfig):
  """The rule of the recipe, with biases of 0.01, applies only to the head."""
  config = dataclasses.replace(gated, initialization='paper1')
  first, again, other = (
    flatten(jax.jit(lambda s: heads.init_masked_language_model(config, jax.random.key(s)))(seed))
    for seed in (0, 0, 1)
  )
  assert float(first['transform.bias'][0]) == pytest.approx(0.01)
  table = first['encoder.embedding.embedding']
  assert float(table.std()) == pytest.approx(0.02, rel=0.05)
  np.testing.assert_array_equal(table, again['encoder.embedding.embedding'])
  assert not np.array_equal(table, other['encoder.embedding.embedding'])


def test_its_arrays_are_replicated_and_the_head_is_split(gated: EncoderConfig):
  config = dataclasses.replace(
    tiny_config.make_run_config(pathlib.Path()), model=dataclasses.replace(gated, vocab_size=19_010)
  )
  shardings = sharding.state_sharding(
    jax.eval_shape(lambda: train_step.init_state(0, config)),
    sharding.make_mesh(MeshConfig(1, 0, 2)),
  )
  is_split = {name: any(leaf.spec) for name, leaf in flatten(shardings).items()}
  assert is_split['model.output.kernel']
  assert not any(split for name, split in is_split.items() if 'encoder.' in name)


@pytest.fixture(scope='module')
def population(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run of two members of the example in bfloat16, with all checkpoints of 12 updates."""
  recipe.allow_modules(GATED)
  changes = {
    'model.encoder': GATED,
    'model.tied': True,
    'model.dtype': 'bfloat16',
    'population.members': 2,
    'checkpoint.keep_last': 9,
  }
  folder = tmp_path_factory.mktemp('custom') / 'run'
  run.pretrain(tiny_config.make_run_config(tiny_corpus, **changes), folder)
  return folder


def test_a_population_trains_in_bfloat16_and_resumes(population: pathlib.Path, tmp_path):
  losses = [
    line['loss']
    for line in run_dir.read_lines(population / run_dir.METRICS)
    if line['split'] == 'train'
  ]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
  resumed = tmp_path / 'run'
  shutil.copytree(population, resumed)
  (resumed / run_dir.RESULT).unlink()
  for step in (8, 12):
    shutil.rmtree(resumed / checkpoint.FOLDER / str(step))
  run.pretrain(
    recipe.resolve(files.read_json(population / run_dir.CONFIG, ''), 'pretrain'), resumed
  )
  states = [flatten(restore(folder)) for folder in (population, resumed)]
  jax.tree.map(np.testing.assert_array_equal, *states)


def restore(folder: pathlib.Path) -> Any:
  config = recipe.resolve(files.read_json(folder / run_dir.CONFIG, ''), 'pretrain')
  like = jax.eval_shape(jax.vmap(lambda seed: train_step.init_state(seed, config)), jnp.arange(2))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpoint.restore(
    folder,
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like),
    12,
  )


def test_a_member_is_extracted_fine_tuned_and_saved(
  population: pathlib.Path, tmp_path: pathlib.Path
):
  pretrained.extract_member(population, 1, tmp_path / 'one')
  assert inference.LanguageModel(tmp_path / 'one').fill_mask('the <mask> sleeps .', 2)
  config = recipe.load('configs/glue.py:microworld/sentiment')
  config.task.update(max_train_examples=24, eval_per_label=8)
  config.update(seeds='0', epochs=1.0, batch_size=8, length=32, save_classifiers=True)
  lines = finetune.finetune(
    recipe.resolve(config, 'finetune'), tmp_path / 'one', tmp_path / 'task', [12]
  )
  assert lines and all(np.isfinite(line['value']) for line in lines)
  saved = classifier.load_classifier(tmp_path / 'task' / 'classifier-0')
  assert saved.card.model.encoder == GATED and flatten(saved.model)[
    'encoder.embedding.embedding'
  ].shape == (512, 16)
