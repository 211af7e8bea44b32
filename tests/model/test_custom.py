"""An encoder of the user's own: what it must offer is asked for before anything is compiled; a
stored name runs nothing.
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.cli import commands, flags, main
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.model import custom, flops, heads
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import classifier, finetune
from minilm_jax.training import checkpoint, pretrain, pretrained, sharding, train_step
from tests import fast_jit, tiny_config

GATED = 'configs.examples.gated_rotary:Encoder'
START = """
import jax, jax.numpy as jnp
from flax import nnx
class Encoder(nnx.Module):
  def __init__(self, config, rngs):
    self.embedding = nnx.Embed(config.vocabulary, config.hidden, rngs=rngs)
    self.config = config
  def __call__(self, tokens, mask, *, key=None):
    return self.embedding(tokens)
"""
BAD = [  # a file, changes of the recipe, and what the error must say
  ('', {}, 'no Encoder in'),
  (START.replace('Encoder', 'Encodr'), {}, "did you mean 'Encodr'"),
  ('1 / 0', {}, 'import own gives ZeroDivisionError'),
  ('import nowhere', {}, 'import own gives ModuleNotFoundError'),
  ('raise SystemExit(0)', {}, 'import own gives SystemExit'),
  ('class Encoder:\n  pass', {}, 'no class of Flax NNX'),
  ('from flax import linen\nclass Encoder(linen.Module):\n  pass', {}, 'no class of Flax NNX'),
  (START.replace('config, rngs)', 'config)'), {}, r'Encoder\(config, rngs\) gives TypeError'),
  (START.replace(', *, key=None', ''), {}, 'key=None.* gives TypeError'),
  (START.replace('(tokens)', '(tokens[:, :1])'), {}, r'gives float32 \(2, 1, 16\)'),
  (START.replace('(tokens)', '(tokens)[:, :, 0]'), {}, r'give one array of floats \(2, 64, 16\)'),
  (
    START.replace('(tokens)\n', '(tokens) + jnp.ones((1, 64, 16))\n'),
    {},
    r'\(3, 63\) gives \w+ \(custom_task.py, line 9\)',
  ),
  (
    START.replace('self.embedding(tokens)', 'tokens[:, :, None] * jnp.ones((1, 1, 16), int)'),
    {},
    'gives int32',
  ),
  (START.replace('self.embedding(tokens)', '{}'), {}, 'a dict'),
  (
    START.replace('self.config = config', 'self.drop = nnx.Dropout(0.1, rngs=rngs)'),
    {},
    'take keys from its key',
  ),
  (
    START.replace('self.config = config', 'self.norm = nnx.BatchNorm(16, rngs=rngs)'),
    {},
    'is a BatchStat',
  ),
  (
    START.replace('self.config = config', 'self.ones = nnx.data(jnp.ones(3))'),
    {},
    'ones is a bare array',
  ),
  (START.replace('self.config = config', 'self.call = lambda x: x'), {}, 'not alike'),
  (
    START.replace('hidden, rngs', 'hidden, param_dtype="bfloat16", rngs'),
    {},
    r'is a Param \(bfloat16\)',
  ),
  (START, {'model.tied': True}, 'encoder.table gives AttributeError'),
]


@pytest.fixture
def own(tmp_path: pathlib.Path, monkeypatch) -> Iterator[pathlib.Path]:
  """An empty folder to start in, where `own` and `evil` are looked for anew; nothing is trusted."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(recipe, '_trusted', set())
  custom._tried.cache_clear()
  yield tmp_path
  for name in ('own', 'evil'):
    sys.modules.pop(name, None)


def shape(name: str, **changes: Any) -> EncoderConfig:
  return tiny_config.run_config(pathlib.Path(), **{'model.encoder': name} | changes).model


@pytest.mark.parametrize('source, changes, said', BAD, ids=[said for _, _, said in BAD])
def test_what_a_class_lacks_is_said_in_one_error(
  source: str, changes: dict, said: str, own: pathlib.Path
):
  (own / 'custom_task.py').write_text(source)
  recipe.allow_modules('own')
  with pytest.raises(InputError, match=said) as raised:
    jax.eval_shape(
      lambda: heads.init_masked_language_model(shape('own:Encoder', **changes), jax.random.key(0))
    )
  assert 'own:Encoder' in raised.value.asked


def test_names_that_lead_nowhere(own: pathlib.Path):
  recipe.allow_modules('nowhere.at_all, configs.nothing')
  for name, said in (
    ('nowhere.at_all:X', f'no module nowhere in {own}'),
    ('configs.nothing:X', 'no module configs.nothing in'),
  ):
    with pytest.raises(InputError, match=said):
      custom.build_encoder(shape(name))
  for name in ('Encoder', 'a.b', 'a:', ':b', 'a b:C', '../evil:C', 'a:b.c'):
    with pytest.raises(InputError, match='no name of a class'):
      shape(name)
  with pytest.raises(InputError, match='convolutions=1, which is of ours'):
    shape(GATED, **tiny_config.CONVOLVED)
  with pytest.raises(InputError, match='short_convolution=3, which is of ours'):
    shape(GATED, **{'model.short_convolution': 3})


def test_what_a_stored_recipe_names_is_imported_only_where_its_reader_says_so(
  tiny_run: pathlib.Path, own: pathlib.Path, capsys
):
  (own / 'evil.py').write_text('open("ran", "w").close()\n' + START)
  shutil.copytree(tiny_run, own / 'run')
  made = json.loads((tiny_run / run_dir.CONFIG).read_text())
  made['model']['encoder'] = 'evil:Encoder'
  (own / 'run' / run_dir.CONFIG).write_text(json.dumps(made))
  ask = ['fill-mask', '--checkpoint=run', '--text=the <mask>']
  assert main.main(ask) == 2
  said = capsys.readouterr().err
  assert (
    'evil:Encoder' in said
    and '--trust=evil' in said
    and not (own / 'ran').exists()
    and 'evil' not in sys.modules
  )
  for others in ('', 'evi', 'evil.py', 'own,evil.Encoder'):
    assert main.main([*ask, f'--trust={others}']) == 2 and not (own / 'ran').exists()
  # another model than the checkpoint's
  assert main.main([*ask, '--trust=evil']) == 2 and (own / 'ran').exists()
  assert 'is not part of this model' in capsys.readouterr().err


def test_what_a_recipe_that_is_given_names_is_trusted(own: pathlib.Path):
  (own / 'custom_task.py').write_text(START)
  config, _, _ = flags.parse_arguments(
    'show',
    commands.COMMANDS['show'],
    ['--config=configs/tiny.py', '--config.model.encoder=own:Encoder'],
  )
  assert (
    custom.build_encoder(config.model).__name__ == 'Encoder'
    and flops.count_parameters(config.model)['embedding'] == 512 * 64
  )


def test_products_are_counted_as_ours_are():
  """Of our own encoder, traced, they are those of the formula; a scan counts as often as it runs.
  """
  for changes in ({}, {'model.positions': 'relative', 'model.num_layers': 3}):
    config = shape('', **changes)
    model = jax.eval_shape(
      lambda c=config: heads.init_masked_language_model(c, jax.random.key(0))
    ).encoder
    row = [jax.ShapeDtypeStruct((1, 40), kind) for kind in (jnp.int32, jnp.bool_)]
    assert custom.count_product_flops(
      jax.make_jaxpr(lambda m, *row: m(*row))(model, *row).jaxpr
    ) == flops.encoder_flops(config, 40)
  square = jnp.ones((4, 4))
  looped = jax.make_jaxpr(lambda x: jax.lax.scan(lambda x, _: (x @ square, None), x, length=5)[0])(
    square
  )
  assert custom.count_product_flops(looped.jaxpr) == 5 * 2 * 4**3


@pytest.fixture(scope='module')
def gated() -> EncoderConfig:
  recipe.allow_modules(GATED)
  return dataclasses.replace(shape(GATED), dropout=0.0)


def test_parameters_and_work_are_those_of_its_arrays(gated: EncoderConfig):
  for config in (gated, dataclasses.replace(gated, tied=True)):
    model = jax.eval_shape(lambda c=config: heads.init_masked_language_model(c, jax.random.key(0)))
    assert (
      flops.count_parameters(config)['total'] == count_parameters(model)
      and flops.count_parameters(config)['embedding'] == 512 * 16
    )
  length, d, f = 64, 16, 32
  assert (
    flops.encoder_flops(gated, length)
    == 2 * length * (4 * d * d + 3 * d * f) + 4 * length * length * d
  )


def test_pads_and_neighbours_change_nothing_and_every_parameter_learns(gated: EncoderConfig):
  model = fast_jit.jit(lambda: heads.init_masked_language_model(gated, jax.random.key(3)))()
  tokens = jax.random.randint(jax.random.key(0), (3, 20), 5, 500).at[0, 12:].set(tokenizer.PAD_ID)
  encode = fast_jit.jit(lambda model, tokens: model.encoder(tokens, tokens != tokenizer.PAD_ID))
  whole, alone = encode(model, tokens), encode(model, tokens[:1, :12])
  np.testing.assert_allclose(whole[:1, :12], alone, rtol=1e-5, atol=1e-5)
  gradient = fast_jit.jit(
    jax.grad(
      lambda model: jnp.sum(
        model(tokens, tokens != tokenizer.PAD_ID, tokens[:, :4] % 12)[..., 7] ** 2
      )
    )
  )
  for name, leaf in checkpoint.flatten(gradient(model)).items():
    assert np.abs(np.asarray(leaf)).max() > 0, name


def test_it_starts_as_it_was_made_from_the_seed(gated: EncoderConfig):
  """So the rule of the recipe, with which biases start at 0.01, is of the head alone."""
  config = dataclasses.replace(gated, initialization='paper1')
  one, again, other = (
    checkpoint.flatten(
      fast_jit.jit(lambda s: heads.init_masked_language_model(config, jax.random.key(s)))(seed)
    )
    for seed in (0, 0, 1)
  )
  assert float(one['transform.bias'][0]) == pytest.approx(0.01)
  table = one['encoder.embedding.embedding']
  assert float(table.std()) == pytest.approx(0.02, rel=0.05)
  np.testing.assert_array_equal(table, again['encoder.embedding.embedding'])
  assert not np.array_equal(table, other['encoder.embedding.embedding'])


def test_its_arrays_lie_whole_and_the_head_is_split(gated: EncoderConfig):
  config = dataclasses.replace(
    tiny_config.run_config(pathlib.Path()), model=dataclasses.replace(gated, vocab_size=19_010)
  )
  placed = sharding.state_sharding(
    jax.eval_shape(lambda: train_step.init_state(0, config)),
    sharding.make_mesh(MeshConfig(1, 0, 2)),
  )
  found = {name: any(place.spec) for name, place in checkpoint.flatten(placed).items()}
  assert (
    not any(split for name, split in found.items() if 'encoder.' in name)
    and found['model.output.kernel']
  )


@pytest.fixture(scope='module')
def population(
  tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pathlib.Path]:
  """Two members of the example, in bfloat16, 12 updates; every checkpoint stays."""
  recipe.allow_modules(GATED)
  changes = {
    'model.encoder': GATED,
    'model.tied': True,
    'model.dtype': 'bfloat16',
    'population.members': 2,
    'checkpoint.keep_last': 9,
  }
  folder = tmp_path_factory.mktemp('foreign') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'jit', fast_jit.jit)
    pretrain.pretrain(tiny_config.run_config(tiny_corpus, **changes), folder)
    yield folder


def test_a_population_of_it_trains_in_bfloat16_and_goes_on_where_it_stopped(
  population: pathlib.Path, tmp_path
):
  losses = [
    line['loss']
    for line in run_dir.read_lines(population / run_dir.METRICS)
    if line['split'] == 'train'
  ]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
  again = tmp_path / 'run'
  shutil.copytree(population, again)
  (again / run_dir.RESULT).unlink()
  for step in (8, 12):
    shutil.rmtree(again / checkpoint.FOLDER / str(step))
  pretrain.pretrain(
    recipe.resolve(files.read_json(population / run_dir.CONFIG, ''), 'pretrain'), again
  )
  one, other = (
    {name: np.asarray(leaf) for name, leaf in checkpoint.flatten(restored(folder)).items()}
    for folder in (population, again)
  )
  assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def restored(folder: pathlib.Path) -> Any:
  config = recipe.resolve(files.read_json(folder / run_dir.CONFIG, ''), 'pretrain')
  like = jax.eval_shape(jax.vmap(lambda seed: train_step.init_state(seed, config)), jnp.arange(2))
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpoint.restore(
    folder, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like), 12
  )


def test_a_member_is_taken_out_fine_tuned_and_kept(
  population: pathlib.Path, tmp_path: pathlib.Path
):
  pretrained.extract_member(population, 1, tmp_path / 'one')
  assert inference.fill_mask(tmp_path / 'one', 'the <mask> sleeps .', 2)
  made = recipe.load('configs/glue.py:microworld/sentiment')
  made.task.update(max_train_examples=24, eval_per_label=8)
  made.update(seeds='0', epochs=1.0, batch_size=8, length=32, save_classifiers=True)
  lines = finetune.finetune(
    recipe.resolve(made, 'finetune'), tmp_path / 'one', tmp_path / 'task', [12]
  )
  assert lines and all(np.isfinite(line['value']) for line in lines)
  kept = classifier.load_classifier(tmp_path / 'task' / 'classifier-0')
  assert kept.card.model.encoder == GATED and checkpoint.flatten(kept.model)[
    'encoder.embedding.embedding'
  ].shape == (512, 16)
