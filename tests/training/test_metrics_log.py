"""The log has a line for each member and event; the result follows from the lines."""

import math
import pathlib

import pytest
from etils import epath

from minilm_jax.core import run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.model import flops
from minilm_jax.training import metrics_log
from tests.tiny_config import make_run_config


def test_flops_are_those_of_the_largest_mask_rate(tmp_path):
  """The program computes the positions of the largest rate for all members."""
  changes = {'population.members': 2, 'population.mask_rates': '0.15,0.4'}
  config = make_run_config(pathlib.Path('corpus'), **changes)
  largest = make_run_config(pathlib.Path('corpus'), **{'mask.rate': 0.4})
  folder = epath.Path(tmp_path)
  log = metrics_log.MetricsLog(config, folder, config.model.max_length, [])
  log.write('train', 1, {member: {'loss': 5.0} for member in (0, 1)})
  expected = flops.flops_per_row(largest.model, largest.mask)['actual'] * config.batch_size
  assert [line['flops'] for line in run_dir.read_lines(folder / run_dir.METRICS)] == [expected] * 2


def test_spikes_are_listed_and_reported(tmp_path, capsys):
  """Spikes follow from the lines alone, so a resumed run lists and reports the same."""
  config = make_run_config(pathlib.Path('corpus'), **{'population.members': 2})
  steady = [3.0, 3.02] * 6
  member_losses = [[*steady, 3.11, 9.0, 3.0, 3.02], [9.0, *steady, 3.0, 3.0, 3.16]]
  for first in (0, 13):
    folder = epath.Path(tmp_path / str(first))
    folder.mkdir()
    log = metrics_log.MetricsLog(config, folder, 64, [])
    for n, losses in enumerate(zip(*member_losses, strict=True)):
      if n == first:
        log = metrics_log.MetricsLog(
          config, folder, 64, list(run_dir.read_lines(folder / run_dir.METRICS))
        )
      log.write(
        'train',
        n + 1,
        {
          member: {'loss': loss, 'perplexity': math.exp(loss)} for member, loss in enumerate(losses)
        },
      )
    first_spike, second_spike = capsys.readouterr().err.splitlines()
    assert all(part in first_spike for part in ('update 14', 'member 0', '9.000'))
    assert all(part in second_spike for part in ('update 16', 'member 1', '3.160'))
    assert [
      member_result['spikes']
      for member_result in metrics_log.write_result(config, folder)['members']
    ] == [
      [14],
      [16],
    ]


@pytest.mark.parametrize('members, name', [(1, 'seconds'), (2, 'member')])
def test_a_result_needs_all_fields_of_the_log(members: int, name: str, tmp_path):
  config = make_run_config(pathlib.Path('corpus'), **{'population.members': members})
  line = dict.fromkeys(('step', 'tokens', 'flops', 'seconds'), 1)
  line |= {'split': 'train', 'loss': 3.0, 'perplexity': 20.0, 'member': 0}
  del line[name]
  run_dir.write_lines(tmp_path / run_dir.METRICS, [line])
  with pytest.raises(InputError, match=f'line 1 without {name}'):
    metrics_log.write_result(config, epath.Path(tmp_path))
