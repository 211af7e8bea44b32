"""Baselines of counts beside runs: which are used, what they are drawn as, and the level that they give."""

import pathlib
import shutil

import pytest

from minilm_jax import __main__ as door
from minilm_jax import run
from minilm_jax.analysis import change_figures, changes, outcomes
from minilm_jax.errors import InputError
from tests.fake_runs import write_ngram_baselines, write_plateau_run
from tests.html_page import Page

LOSSES = {'unigram': 6.1, 'left': 5.2, 'right': 5.25, 'mixture': 4.7, 'product': 4.3, 'both': 4.2, 'trigram': 5.0}


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
  write_plateau_run(tmp_path / 'runs' / 'paper', 9000)
  write_plateau_run(tmp_path / 'runs' / 'relative', 500, model__positions='relative')
  return tmp_path / 'runs'


def read(home: pathlib.Path) -> changes.Comparison:
  return changes.read_comparison([home / 'paper'], [home])


def test_word_frequencies_are_the_level_unless_one_is_given(home: pathlib.Path):
  assert outcomes.levels(read(home))[''] == pytest.approx(6.0, rel=0.01)  # that of the run that leaves
  write_ngram_baselines(home / 'baselines', LOSSES)
  found = read(home)
  assert found.ngram_losses == {'word frequencies': 6.1, 'left neighbour': 5.2, 'mean of both neighbours': 4.7,
                           'both neighbours': 4.2}
  assert outcomes.levels(found)[''] == 6.1 and outcomes.levels(found, 5.9)[''] == 5.9 and not found.left_out


@pytest.mark.parametrize('changed, said', [
    ({'corpus': 'another-text'}, 'another corpus, another-, than that of the base, c0ffee'),
    ({'rows': 256}, 'on 256 rows, the base on 2,000'), ({'shuffle_seed': 1}, 'counted another part of the corpus')])
def test_others_are_left_out_by_name(home: pathlib.Path, changed: dict, said: str):
  write_ngram_baselines(home / 'counts', LOSSES, **changed)
  found = read(home)
  assert not found.ngram_losses and len(found.left_out) == 1
  assert found.left_out[0].startswith('counts: baselines') and said in found.left_out[0]


def test_what_is_not_there_is_not_used(home: pathlib.Path):
  write_ngram_baselines(home / 'test', LOSSES, split='test')
  going = write_ngram_baselines(home / 'going', LOSSES)
  (going / run.RESULT).unlink()
  found = read(home)
  assert not found.ngram_losses and found.left_out == ['going: baselines under way']
  shutil.rmtree(going)
  write_ngram_baselines(home / 'torn', {'unigram': 'six'})
  with pytest.raises(InputError, match='torn'):
    read(home)


def test_each_is_a_line_of_its_own_in_the_figure(home: pathlib.Path):
  write_ngram_baselines(home / 'baselines', LOSSES)
  found = read(home)
  part, = found.shapes
  rows = outcomes.rows(part, outcomes.levels(found))
  drawn = dict(change_figures.figures(part, rows, rows[0].level, found.ngram_losses))['curves']
  names = [text.get_text().strip() for text in drawn.figure.legends[0].get_texts()]
  assert names[2:] == ['word frequencies, 6.10 nats', 'left neighbour, 5.20 nats', 'mean of both neighbours, 4.70 nats',
                       'both neighbours, 4.20 nats']
  looks = [line.get_linestyle() for line in drawn.figure.axes[0].lines[2:]]
  assert len({str(look) for look in looks}) >= 3


def test_the_page_names_them(home: pathlib.Path, capsys):
  write_ngram_baselines(home / 'baselines', LOSSES)
  out = home.parent / 'out'
  assert door.main(['ablations', f'--base={home}/paper', str(home), f'--workdir={out}', '--reference_losses=own=3.5']) == 0
  text = Page((out / 'compare.html').read_text()).text
  assert 'left neighbour, 5.20 nats' in text and 'own, 3.50 nats' in text and 'plateau, 6.10' not in text
  said = capsys.readouterr().out
  assert 'The plateau is at 6.100 nats' in said and 'Counts alone reach: word frequencies 6.100; left' in said
