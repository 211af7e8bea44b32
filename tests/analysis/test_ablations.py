"""Who is compared with whom: what counts as a change, which runs are seeds of each other, and who
is left out.
"""

import doctest
import pathlib
import shutil

import pytest

from minilm_jax.analysis import ablation_results, ablations
from minilm_jax.analysis.report import compare_figures
from minilm_jax.cli import main
from minilm_jax.core import run_dir
from minilm_jax.core.errors import InputError
from tests.fake_runs import write_ngram_baselines, write_plateau_run
from tests.html_page import Page


def names(found: ablations.Comparison) -> dict[str, list[int]]:
  (part,) = found.shapes
  return {
    change.name: [one.curve.seed for one in change.runs] for change in (part.base, *part.changes)
  }


def test_examples_in_docstrings():
  assert doctest.testmod(ablations).failed == 0


def test_runs_of_one_change_are_seeds_of_each_other(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'past' / 'paper')
  write_plateau_run(tmp_path / 'past-1' / 'paper', seed=1)
  write_plateau_run(tmp_path / 'past' / 'relative', model__positions='relative')
  write_plateau_run(tmp_path / 'past-1' / 'relative', seed=1, model__positions='relative')
  write_plateau_run(
    tmp_path / 'past' / 'both', model__positions='relative', model__norm='pre', optimizer__clip=0.0
  )
  found = ablations.read_comparison([paper], [tmp_path / 'past', tmp_path / 'past-1'])
  assert names(found) == {
    'base': [0, 1],
    'positions=relative': [0, 1],
    'norm=pre, positions=relative, clip=0': [0],
  }
  assert not found.left_out and not found.under_way


def test_what_is_aside_is_no_change(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper')
  write_plateau_run(
    tmp_path / 'same',
    seed=1,
    updates=2000,
    planned=2000,
    log__every=10,
    checkpoint__every=10,
    eval__every=10,
    grad_accumulation_steps=4,
    logit_chunks=2,
    corpus_placement='host',
    model__flops_heads=2,
    model__remat=True,
    mesh__data=1,
  )
  write_plateau_run(tmp_path / 'other', optimizer__learning_rate=2e-3)
  assert names(ablations.read_comparison([paper], [tmp_path])) == {
    'base': [0, 1],
    'learning_rate=0.002': [0],
  }


def test_members_of_a_population_are_runs(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', [1000, 1000])
  write_plateau_run(
    tmp_path / 'rates',
    [1000, 500, 400],
    population__learning_rates=[5e-4, 1e-3, 1e-3],
    population__seeds=[7, 0, 1],
  )
  write_plateau_run(tmp_path / 'masks', [900, 800], population__mask_rates=[0.3, 0.15])
  found = names(ablations.read_comparison([paper], [tmp_path]))
  assert found == {'base': [0, 1, 7], 'learning_rate=0.001': [0, 1], 'mask.rate=0.3': [0]}


def test_a_field_of_a_later_version_that_is_not_used_is_no_change(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper')
  assert ablations.describe_differences({'a': 1, 'new': 0, 'more': []}, {'a': 1}) == []
  assert ablations.describe_differences({'a': 1, 'new': 'x'}, {'a': 1, 'old': True}) == [
    'new=x',
    'old=none',
  ]
  config = paper / 'config.json'
  config.write_text(
    config.read_text()
    .replace('"segment_embeddings_for_pairs": false,', '')
    .replace('"encoder": "",', '')
  )
  write_plateau_run(tmp_path / 'pre', model__norm='pre')
  assert list(names(ablations.read_comparison([paper], [tmp_path]))) == ['base', 'norm=pre']


def test_each_shape_has_its_own_base(tmp_path: pathlib.Path):
  wide = {'model__embedding_size': 64, 'model__hidden_size': 64}
  paper = write_plateau_run(tmp_path / 'paper')
  write_plateau_run(tmp_path / 'pre', model__norm='pre')
  write_plateau_run(tmp_path / 'wide', **wide)
  write_plateau_run(tmp_path / 'wide-pre', model__norm='pre', **wide)
  write_plateau_run(tmp_path / 'deep-pre', model__norm='pre', model__num_layers=3)
  found = ablations.read_comparison([paper], [tmp_path])
  assert [part.shape for part in found.shapes] == ['e32-h32-f64-a8-l1', 'e64-h64-f64-a8-l1']
  assert [part.changes[0].runs[0].home for part in found.shapes] == ['pre', 'wide-pre']
  (said,) = found.left_out
  assert said == 'deep-pre: no run of the base recipe has its shape, e32-h32-f64-a8-l3'


def test_many_fields_are_named_by_the_folder(tmp_path: pathlib.Path):
  many = {
    'model__norm': 'pre',
    'model__positions': 'rotary',
    'model__dropout': 0.0,
    'model__tied': True,
    'batch_size': 64,
  }
  paper = write_plateau_run(tmp_path / 'runs' / 'honey-x')
  modern = write_plateau_run(tmp_path / 'runs' / 'modern-x', **many)
  found = ablations.read_comparison([paper], [modern])
  assert list(names(found)) == ['base', 'modern-x']
  assert found.shapes[0].changes[0].fields == (
    'batch_size=64',
    'dropout=0',
    'norm=pre',
    'positions=rotary',
    'tied=True',
  )
  write_plateau_run(tmp_path / 'points' / 'modern-x', [1000, 900], **many)
  for member in (0, 1):
    write_plateau_run(tmp_path / 'points' / 'modern-x' / f'member-{member}', seed=member, **many)
  taken = ablations.read_comparison([paper], [tmp_path / 'points'])
  assert names(taken) == {'base': [0], 'modern-x': [0, 1]} and not taken.left_out
  write_plateau_run(tmp_path / 'again' / 'modern-x', **many | {'batch_size': 128})
  assert len(names(ablations.read_comparison([paper], [modern, tmp_path / 'again']))) == 3


def test_who_is_left_out_is_said(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper')
  write_plateau_run(tmp_path / 'pre', model__norm='pre')
  write_plateau_run(tmp_path / 'text', model__norm='pre', corpus='another-text')
  write_plateau_run(tmp_path / 'rows', model__norm='pre', eval__rows=100)
  write_plateau_run(
    tmp_path / 'pieces', model__vocab_size=4010, corpus='other-pieces', tokenizer='def'
  )
  write_plateau_run(tmp_path / 'unigram', corpus='pieces', tokenizer='0123456789')
  write_plateau_run(tmp_path / 'twice', updates=2000, planned=2000)
  write_plateau_run(tmp_path / 'going', model__norm='pre', seed=1, updates=1000)
  write_plateau_run(tmp_path / 'alone', model__tied=True, updates=1000)
  write_plateau_run(tmp_path / 'nothing', model__tied=True, seed=1, updates=0)
  write_plateau_run(tmp_path / 'torn')
  (tmp_path / 'torn' / 'manifest.json').write_text('{"warmup": 1}')
  (tmp_path / 'failed').mkdir()
  (tmp_path / 'failed' / 'failure.json').write_text('{"asked": "memory", "found": "none"}')
  found = ablations.read_comparison([paper], [tmp_path])
  assert list(names(found)) == [
    'base',
    'norm=pre',
    'tied=True',
    'tokenizer=01234567',
    'vocab_size=4010',
  ]
  assert [change.tokenizer for change in found.shapes[0].changes] == ['', '', '0123456789', 'def']
  assert found.under_way == ['alone, after 4,096,000 tokens']
  said = '\n'.join(found.left_out)
  for text in (
    'text: another corpus, another-',
    'rows: evaluated on 100 rows, the base on 2,000',
    'nothing: no validation',
    'twice: seed 0 of this recipe once more, beside paper',
    'failed: memory: none',
    'going: under way, and other seeds of this recipe have ended',
    "torn: no 'flops_per_row'",
  ):
    assert text in said, said
  assert len(found.left_out) == 7


def test_what_cannot_be_compared_is_refused(tmp_path: pathlib.Path):
  def refused(bases: list[pathlib.Path], folders: list[pathlib.Path], said: str) -> None:
    with pytest.raises(InputError, match=said):
      ablations.read_comparison(bases, folders)

  paper = write_plateau_run(tmp_path / 'paper')
  pre = write_plateau_run(tmp_path / 'pre', model__norm='pre')
  other = write_plateau_run(tmp_path / 'other' / 'text', model__norm='pre', corpus='other')
  population = write_plateau_run(
    tmp_path / 'rates', [1000, 900], population__learning_rates=[5e-4, 1e-3]
  )
  empty = write_plateau_run(tmp_path / 'empty', updates=0)
  refused([paper], [paper], 'no run that differs')
  refused([paper], [other], 'text: another corpus')
  refused([paper, pre], [tmp_path], 'pre is another recipe than paper: norm=pre')
  refused([population], [tmp_path], 'learning_rate=0.001')
  refused([empty], [tmp_path], 'empty: no validation loss yet')
  refused([tmp_path / 'nowhere'], [tmp_path], 'no such folder')
  (pre / 'config.json').write_text('{"kind": "pretrain", "model": [')
  refused([paper], [tmp_path], 'not JSON')


LOSSES = {
  'unigram': 6.1,
  'left': 5.2,
  'right': 5.25,
  'mixture': 4.7,
  'product': 4.3,
  'both': 4.2,
  'trigram': 5.0,
}


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
  write_plateau_run(tmp_path / 'runs' / 'paper', 9000)
  write_plateau_run(tmp_path / 'runs' / 'relative', 500, model__positions='relative')
  return tmp_path / 'runs'


def read(home: pathlib.Path) -> ablations.Comparison:
  return ablations.read_comparison([home / 'paper'], [home])


def test_word_frequencies_are_the_level_unless_one_is_given(home: pathlib.Path):
  # that of the run that leaves
  assert ablation_results.find_levels(read(home))[''] == pytest.approx(6.0, rel=0.01)
  write_ngram_baselines(home / 'baselines', LOSSES)
  found = read(home)
  assert found.ngram_losses == {
    'word frequencies': 6.1,
    'left neighbour': 5.2,
    'mean of both neighbours': 4.7,
    'both neighbours': 4.2,
  }
  assert (
    ablation_results.find_levels(found)[''] == 6.1
    and ablation_results.find_levels(found, 5.9)[''] == 5.9
    and not found.left_out
  )


@pytest.mark.parametrize(
  'changed, said',
  [
    ({'corpus': 'another-text'}, 'another corpus, another-, than that of the base, c0ffee'),
    ({'rows': 256}, 'on 256 rows, the base on 2,000'),
    ({'shuffle_seed': 1}, 'counted another part of the corpus'),
  ],
)
def test_others_are_left_out_by_name(home: pathlib.Path, changed: dict, said: str):
  write_ngram_baselines(home / 'counts', LOSSES, **changed)
  found = read(home)
  assert not found.ngram_losses and len(found.left_out) == 1
  assert found.left_out[0].startswith('counts: baselines') and said in found.left_out[0]


def test_what_is_not_there_is_not_used(home: pathlib.Path):
  write_ngram_baselines(home / 'test', LOSSES, split='test')
  going = write_ngram_baselines(home / 'going', LOSSES)
  (going / run_dir.RESULT).unlink()
  found = read(home)
  assert not found.ngram_losses and found.left_out == ['going: baselines under way']
  shutil.rmtree(going)
  write_ngram_baselines(home / 'torn', {'unigram': 'six'})
  with pytest.raises(InputError, match='torn'):
    read(home)


def test_each_is_a_line_of_its_own_in_the_figure(home: pathlib.Path):
  write_ngram_baselines(home / 'baselines', LOSSES)
  found = read(home)
  (part,) = found.shapes
  rows = ablation_results.make_rows(part, ablation_results.find_levels(found))
  drawn = dict(compare_figures.figures(part, rows, rows[0].level, found.ngram_losses))['curves']
  names = [text.get_text().strip() for text in drawn.figure.legends[0].get_texts()]
  assert names[2:] == [
    'word frequencies, 6.10 nats',
    'left neighbour, 5.20 nats',
    'mean of both neighbours, 4.70 nats',
    'both neighbours, 4.20 nats',
  ]
  looks = [line.get_linestyle() for line in drawn.figure.axes[0].lines[2:]]
  assert len({str(look) for look in looks}) >= 3


def test_the_page_names_them(home: pathlib.Path, capsys):
  write_ngram_baselines(home / 'baselines', LOSSES)
  out = home.parent / 'out'
  assert (
    main.main(
      [
        'ablations',
        f'--base={home}/paper',
        str(home),
        f'--workdir={out}',
        '--reference_losses=own=3.5',
      ]
    )
    == 0
  )
  text = Page((out / 'compare.html').read_text()).text
  assert (
    'left neighbour, 5.20 nats' in text and 'own, 3.50 nats' in text and 'plateau, 6.10' not in text
  )
  said = capsys.readouterr().out
  assert (
    'The plateau is at 6.100 nats' in said
    and 'Counts alone reach: word frequencies 6.100; left' in said
  )
