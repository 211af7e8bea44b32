"""The break-even of populations: every way is timed, and the table says which is fastest."""

import json

import pytest
import rich.console

from configs import tiny
from minilm_jax import __main__ as door
from minilm_jax import break_even, recipe, stopwatch
from minilm_jax.config import RunConfig


def config() -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict({'batch_size': 4, 'model.hidden_size': 16, 'model.embedding_size': 16, 'model.num_layers': 1,
                                   'model.vocab_size': 100})
  return recipe.resolve(made, 'pretrain')


def test_each_way_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
  """Two members as a population, looped and in each operation, one after the other, and in two processes."""
  monkeypatch.setattr(stopwatch, '_ROWS', 64)
  found = break_even.break_even(config(), [1, 2], steps=1, repeats=2)
  one, two = found['populations']
  assert set(one['milliseconds']) == {'solo'} and one['auto'] == 'single' and one['members'] == 1
  assert set(two['milliseconds']) == set(break_even.WAYS) and two['auto'] == 'map'
  for way, times in two['milliseconds'].items():
    assert 0 < times['lowest'] <= times['median'] <= times['highest']
    assert two['tokens_per_second'][way] == pytest.approx(2 * 4 * 64 / times['median'] * 1e3)
  assert two['milliseconds'][two['fastest']]['median'] == min(t['median'] for t in two['milliseconds'].values())
  for table in break_even.tables(found):
    rich.console.Console(width=200).print(table)
  shown, said = capsys.readouterr()
  assert two['fastest'] in shown
  assert [line.partition(', in about')[0] for line in said.splitlines()] == [
      'compiling', 'population of 1: timing 2 rounds of 1 updates', 'population of 2: compiling',
      'population of 2: timing 2 rounds of 1 updates']
  json.dumps(found)


@pytest.mark.parametrize('given, said', [('0', 'no number of members'), ('1,x', 'not whole numbers'), (',', 'not whole')])
def test_nothing_to_compare_is_refused(given: str, said: str, capsys: pytest.CaptureFixture):
  assert door.main(['bench', '--config=configs/tiny.py', f'--population={given}']) == 2
  assert said in capsys.readouterr().err
