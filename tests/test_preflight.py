"""Ahead of time: what does not need the compiler for TPUs is tested everywhere, the rest where libtpu is installed."""

import importlib.util
import json
import pathlib
from typing import Any

import jax
import pytest
import rich.console

from configs import paper1, tiny
from minilm_jax import __main__ as door
from minilm_jax import hlo, preflight, recipe, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model import size

SMALLEST, LARGEST = 'magic-bee-26', 'grateful-yogurt-5'
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                                  reason="needs the compiler for TPUs: pip install 'minilm_jax[tpu]'")
LINES = tuple(pytest.param(*line, marks=pytest.mark.slow if line[0] == LARGEST else ()) for line in (
    (name, topology) for name in (SMALLEST, LARGEST) for topology in ('v5e:2x4', 'v4:2x2x2')))


def config(name: str = SMALLEST, **changes: Any) -> RunConfig:
  made = paper1.get_config(name)
  made.update_from_flattened_dict(changes)
  return recipe.resolve(made, 'pretrain')


def compiled(config: RunConfig, topology: str) -> dict[str, Any]:
  return preflight.preflight({'it': config}, topology)['recipes']['it']


@needs_libtpu
@pytest.mark.parametrize('name, topology', LINES)
def test_a_step_over_data_sends_the_gradient_once(name: str, topology: str):
  """Beside it go the loss, the count and, a turn, one flag of the search for rows: four bytes each."""
  found = compiled(config(name), topology)
  assert found['fits'] and found['mesh'] == {'population': 1, 'data': 8, 'model': 1} and found['chips'] == 8
  assert set(found['collectives']) == {'all-reduce'}
  gradient = 4 * size.parameters(config(name).model)['total']
  assert gradient <= found['collectives']['all-reduce']['bytes'] <= gradient + 64
  state = 3 * gradient + 2 * 128 * found['corpus_rows']  # weights, two moments, and the rows
  assert state <= found['bytes']['arguments'] < 1.5 * state
  assert found['bytes']['output'] < 1 << 20  # the state takes the place of the state
  assert found['bytes']['total'] < 0.2 * found['bytes']['chip']
  assert 0.3 < found['flops'] / found['flops_per_step'] < 1.5  # logits and activations in one piece, as a TPU has them
  assert found['tokens_per_second'] == pytest.approx(256 * 128 / found['milliseconds'] * 1e3)
  assert 0 < found['utilisation'] < 1


@needs_libtpu
@pytest.mark.parametrize('name, topology', LINES)
def test_a_step_over_data_and_model_holds_less_and_sends_more(name: str, topology: str):
  """Each chip has a part of the split matrices and sums the gradient over half as many."""
  made = config(name, **{'mesh.model': 2})
  found = compiled(made, topology)
  assert found['fits'] and found['mesh'] == {'population': 1, 'data': 4, 'model': 2}
  state = 12 * size.parameters(made.model)['total']
  assert state / 2 < found['bytes']['arguments'] - 2 * 128 * found['corpus_rows'] < state
  assert found['collectives']['all-reduce']['count'] > 2 and 'all-gather' in found['collectives']


@needs_libtpu
@pytest.mark.parametrize('name, topology', LINES)
def test_a_population_lies_beside_data_and_sends_nothing_more(name: str, topology: str):
  """Two members a chip, in each operation; every chip sums the gradients of its own members, and nothing else."""
  made = config(name, **{'population.members': 8, 'mesh.population': 4})
  found = compiled(made, topology)
  assert found['fits'] and found['mesh'] == {'population': 4, 'data': 2, 'model': 1} and found['members'] == 8
  gradients = 2 * 4 * size.parameters(made.model)['total']
  assert set(found['collectives']) == {'all-reduce'}
  assert gradients <= found['collectives']['all-reduce']['bytes'] <= gradients + 64


@needs_libtpu
def test_what_does_not_fit_is_printed_and_refused(capsys):
  """Sixteen thousand rows of activations a chip are more than it has; the compiler's own numbers say so."""
  arguments = [f'--config=configs/paper1.py:{SMALLEST}', '--topology=v5e:2x2', '--config.batch_size=65536']
  assert door.main(['preflight', *arguments, '--json']) == 2
  out, err = capsys.readouterr()
  found = json.loads(out)['recipes'][SMALLEST]
  assert not found['fits'] and 'memory' in found['refused'] and '15.75G' in found['refused']
  assert f'asked: {SMALLEST} on v5e:2x2' in err and 'lower batch_size' in err


@needs_libtpu
@pytest.mark.parametrize('topology, changes, said', [
    ('v5e:3x3', {}, '3x3'), ('v5e:2x2', {'mesh.data': 8}, '4 devices'), ('v5e:2x2', {'mesh.model': 3}, 'do not divide')])
def test_what_the_chips_cannot_be_laid_out_as_is_refused(topology: str, changes: dict[str, Any], said: str):
  with pytest.raises(InputError, match=said):
    compiled(config(**changes), topology)


def test_it_compiles_the_chunk_of_the_trainer(monkeypatch):
  """On devices that are here, too, except that their compiler knows no cycles: the gradient is sent once."""
  monkeypatch.setattr(hlo, 'cycles', lambda step: 3000)
  made = config(**{'model.vocab_size': 300})
  found = preflight.describe(made, preflight.CHIPS['v5e'], jax.devices())
  gradient = 4 * size.parameters(made.model)['total']
  assert gradient <= found['collectives']['all-reduce']['bytes'] <= gradient + 64
  flops = size.flops_per_row(made.model, made.mask)['actual'] * 256
  assert found['milliseconds'] == pytest.approx(2e-3) and found['utilisation'] == pytest.approx(flops / 8 / 2e-6 / 197e12)
  assert found['tokens_per_second'] == pytest.approx(256 * 128 / 2e-6) and found['corpus_rows'] == 60_000


@pytest.mark.parametrize('topology, said', [
    ('v9:2x2', "no chip 'v9' in v4, v5e, v5p, v6e"), ('2x4', 'no chip'), ('v5e', 'no arrangement'),
    ('v5e:0x4', 'no arrangement'), ('v5e:2x4x', 'no arrangement'), ('v5e:8', 'no arrangement')])
def test_an_unknown_topology_is_refused(topology: str, said: str):
  with pytest.raises(InputError, match=said) as error:
    preflight.preflight({'it': config()}, topology)
  assert 'v5e:2x4' in error.value.remedy


def test_without_its_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'minilm_jax\[tpu\]'):
    preflight.preflight({'it': config()}, 'v5e:2x4')


def test_the_table_of_chips_agrees_with_itself():
  """Peak and clock make a whole number of matrix units of 128 x 128; a TPU does hundreds of operations a byte."""
  for chip in preflight.CHIPS.values():
    units = chip.flops / chip.clock / (2 * 128**2)
    assert units == pytest.approx(round(units), rel=0.01)
    assert 150 < chip.flops / chip.bandwidth < 600 and 16 << 30 <= chip.memory < 128 << 30


def test_it_compiles_the_rows_of_the_corpus_that_is_there(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  made = tiny.get_config()
  manifest = run.read_json(tiny_corpus / run.MANIFEST, 'the corpus')
  for folder, rows in ((tiny_corpus, manifest['splits']['train']['rows']), (tmp_path, 60_000), ('', 60_000)):
    made.corpus = str(folder)
    corpus = preflight._corpus(recipe.resolve(made, 'pretrain'), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert corpus.tokens.shape == (rows, made.model.max_length) and corpus.tokens.dtype == 'uint16'
    assert corpus.vocabulary == (manifest['vocabulary'] if folder == tiny_corpus else made.model.vocab_size)


FOUND = {'topology': 'v5e:2x4', 'recipes': {
    'one': {'mesh': {'data': 8}, 'chips': 8, 'compile_seconds': 1.5, 'fits': True,
            'bytes': {'arguments': 3 << 20, 'temporaries': 4 << 20, 'output': 0, 'program': 1 << 20, 'total': 8 << 20,
                      'chip': 16 << 20},
            'collectives': {'all-reduce': {'count': 1, 'bytes': 1 << 20}, 'all-gather': {'count': 2, 'bytes': 1 << 19}},
            'milliseconds': 2.0, 'tokens_per_second': 16.4e6, 'utilisation': 0.021},
    'two': {'fits': False, 'refused': 'Ran out of memory.', 'chips': 8, 'compile_seconds': 0.5}}}


def test_a_reader_sees_a_line_a_recipe(capsys):
  for table in preflight.tables(FOUND):
    rich.console.Console(width=80).print(table)
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ['one', '3', '4', '8', '50.0%', '1.5', '2.00', '16.40', '2.1%'] in lines
  assert ['two', 'does', 'not', 'fit'] in lines
  single = {'topology': 'v5e:2x4', 'recipes': {'one': FOUND['recipes']['one']}}
  for table in preflight.tables(single):
    rich.console.Console(width=80).print(table)
  assert 'collectives all-gather' in capsys.readouterr().out
  preflight.check(single)
  with pytest.raises(InputError, match='two on v5e:2x4'):
    preflight.check(FOUND)
