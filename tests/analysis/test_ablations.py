"""Ablations are runs with changed recipe fields; seeds are grouped, incomparable runs left out."""

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


def list_seeds(comparison: ablations.Comparison) -> dict[str, list[int]]:
  (part,) = comparison.shapes
  return {
    ablation.name: [run.curve.seed for run in ablation.runs]
    for ablation in (part.base, *part.changes)
  }


def test_runs_with_equal_fields_are_seeds_of_one_ablation(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'past' / 'paper')
  write_plateau_run(tmp_path / 'past-1' / 'paper', seed=1)
  write_plateau_run(tmp_path / 'past' / 'relative', model__positions='relative')
  write_plateau_run(tmp_path / 'past-1' / 'relative', seed=1, model__positions='relative')
  write_plateau_run(
    tmp_path / 'past' / 'both', model__positions='relative', model__norm='pre', optimizer__clip=0.0
  )
  comparison = ablations.read_comparison([paper], [tmp_path / 'past', tmp_path / 'past-1'])
  assert list_seeds(comparison) == {
    'base': [0, 1],
    'positions=relative': [0, 1],
    'norm=pre, positions=relative, clip=0': [0],
  }
  assert not comparison.left_out and not comparison.under_way


def test_fields_that_do_not_change_the_training_make_no_ablation(tmp_path: pathlib.Path):
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
  assert list_seeds(ablations.read_comparison([paper], [tmp_path])) == {
    'base': [0, 1],
    'learning_rate=0.002': [0],
  }


def test_members_of_a_population_count_as_runs(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper', [1000, 1000])
  write_plateau_run(
    tmp_path / 'rates',
    [1000, 500, 400],
    population__learning_rates=[5e-4, 1e-3, 1e-3],
    population__seeds=[7, 0, 1],
  )
  write_plateau_run(tmp_path / 'masks', [900, 800], population__mask_rates=[0.3, 0.15])
  seeds = list_seeds(ablations.read_comparison([paper], [tmp_path]))
  assert seeds == {'base': [0, 1, 7], 'learning_rate=0.001': [0, 1], 'mask.rate=0.3': [0]}


def test_an_unused_field_of_a_later_version_makes_no_ablation(tmp_path: pathlib.Path):
  paper = write_plateau_run(tmp_path / 'paper')
  assert ablations.list_changes({'a': 1, 'new': 0, 'more': []}, {'a': 1}) == []
  assert ablations.list_changes({'a': 1, 'new': 'x'}, {'a': 1, 'old': True}) == [
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
  assert list(list_seeds(ablations.read_comparison([paper], [tmp_path]))) == ['base', 'norm=pre']


def test_each_shape_has_its_own_base(tmp_path: pathlib.Path):
  wide = {'model__embedding_size': 64, 'model__hidden_size': 64}
  paper = write_plateau_run(tmp_path / 'paper')
  write_plateau_run(tmp_path / 'pre', model__norm='pre')
  write_plateau_run(tmp_path / 'wide', **wide)
  write_plateau_run(tmp_path / 'wide-pre', model__norm='pre', **wide)
  write_plateau_run(tmp_path / 'deep-pre', model__norm='pre', model__num_layers=3)
  comparison = ablations.read_comparison([paper], [tmp_path])
  assert [part.shape for part in comparison.shapes] == ['e32-h32-f64-a8-l1', 'e64-h64-f64-a8-l1']
  assert [part.changes[0].runs[0].folder_name for part in comparison.shapes] == ['pre', 'wide-pre']
  (reason,) = comparison.left_out
  assert reason.startswith('deep-pre: ') and 'e32-h32-f64-a8-l3' in reason


def test_an_ablation_of_many_fields_has_the_name_of_the_folder(tmp_path: pathlib.Path):
  fields = {
    'model__norm': 'pre',
    'model__positions': 'rotary',
    'model__dropout': 0.0,
    'model__tied': True,
    'batch_size': 64,
  }
  paper = write_plateau_run(tmp_path / 'runs' / 'honey-x')
  modern = write_plateau_run(tmp_path / 'runs' / 'modern-x', **fields)
  comparison = ablations.read_comparison([paper], [modern])
  assert list(list_seeds(comparison)) == ['base', 'modern-x']
  assert comparison.shapes[0].changes[0].fields == (
    'batch_size=64',
    'dropout=0',
    'norm=pre',
    'positions=rotary',
    'tied=True',
  )
  write_plateau_run(tmp_path / 'points' / 'modern-x', [1000, 900], **fields)
  for member in (0, 1):
    write_plateau_run(tmp_path / 'points' / 'modern-x' / f'member-{member}', seed=member, **fields)
  member_comparison = ablations.read_comparison([paper], [tmp_path / 'points'])
  assert (
    list_seeds(member_comparison) == {'base': [0], 'modern-x': [0, 1]}
    and not member_comparison.left_out
  )
  write_plateau_run(tmp_path / 'again' / 'modern-x', **fields | {'batch_size': 128})
  assert len(list_seeds(ablations.read_comparison([paper], [modern, tmp_path / 'again']))) == 3


def test_left_out_runs_are_listed_with_the_reason(tmp_path: pathlib.Path):
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
  comparison = ablations.read_comparison([paper], [tmp_path])
  assert list(list_seeds(comparison)) == [
    'base',
    'norm=pre',
    'tied=True',
    'tokenizer=01234567',
    'vocab_size=4010',
  ]
  assert [change.tokenizer for change in comparison.shapes[0].changes] == [
    '',
    '',
    '0123456789',
    'def',
  ]
  assert comparison.under_way == ['alone, after 4,096,000 tokens']
  reasons = dict(text.split(': ', 1) for text in comparison.left_out)
  expected = {
    'text': 'another-',
    'rows': '100 rows',
    'nothing': 'validation',
    'twice': 'paper',
    'failed': 'memory: none',
    'going': 'unfinished',
    'torn': "'flops_per_row'",
  }
  assert reasons.keys() == expected.keys()
  assert all(text in reasons[name] for name, text in expected.items()), reasons


def test_comparisons_without_a_base_or_an_ablation_are_refused(tmp_path: pathlib.Path):
  def check_refusal(bases: list[pathlib.Path], folders: list[pathlib.Path], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
      ablations.read_comparison(bases, folders)

  paper = write_plateau_run(tmp_path / 'paper')
  pre = write_plateau_run(tmp_path / 'pre', model__norm='pre')
  other = write_plateau_run(tmp_path / 'other' / 'text', model__norm='pre', corpus='other')
  population = write_plateau_run(
    tmp_path / 'rates', [1000, 900], population__learning_rates=[5e-4, 1e-3]
  )
  empty = write_plateau_run(tmp_path / 'empty', updates=0)
  check_refusal([paper], [paper], 'paper')
  check_refusal([paper], [other], 'text: .*corpus other')
  check_refusal([paper, pre], [tmp_path], 'pre and paper .*norm=pre')
  check_refusal([population], [tmp_path], 'learning_rate=0.001')
  check_refusal([empty], [tmp_path], 'empty: .*validation loss')
  check_refusal([tmp_path / 'nowhere'], [tmp_path], 'no such folder')
  (pre / 'config.json').write_text('{"kind": "pretrain", "model": [')
  check_refusal([paper], [tmp_path], 'not JSON')


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
def runs_folder(tmp_path: pathlib.Path) -> pathlib.Path:
  write_plateau_run(tmp_path / 'runs' / 'paper', 9000)
  write_plateau_run(tmp_path / 'runs' / 'relative', 500, model__positions='relative')
  return tmp_path / 'runs'


def read_comparison(folder: pathlib.Path) -> ablations.Comparison:
  return ablations.read_comparison([folder / 'paper'], [folder])


def test_the_plateau_loss_is_that_of_word_frequencies_by_default(runs_folder: pathlib.Path):
  # The runs determine the plateau loss.
  assert ablation_results.find_levels(read_comparison(runs_folder))[''] == pytest.approx(
    6.0, rel=0.01
  )
  write_ngram_baselines(runs_folder / 'baselines', LOSSES)
  comparison = read_comparison(runs_folder)
  assert comparison.ngram_losses == {
    'word frequencies': 6.1,
    'left neighbour': 5.2,
    'mean of both neighbours': 4.7,
    'both neighbours': 4.2,
  }
  assert (
    ablation_results.find_levels(comparison)[''] == 6.1
    and ablation_results.find_levels(comparison, 5.9)[''] == 5.9
    and not comparison.left_out
  )


@pytest.mark.parametrize(
  'fields, text',
  [
    ({'corpus': 'another-text'}, 'another-'),
    ({'rows': 256}, '256 rows'),
    ({'shuffle_seed': 1}, 'subset'),
  ],
)
def test_baselines_of_other_data_are_left_out(runs_folder: pathlib.Path, fields: dict, text: str):
  write_ngram_baselines(runs_folder / 'counts', LOSSES, **fields)
  comparison = read_comparison(runs_folder)
  assert not comparison.ngram_losses and len(comparison.left_out) == 1
  assert comparison.left_out[0].startswith('counts: baselines') and text in comparison.left_out[0]


def test_unfinished_baselines_are_left_out(runs_folder: pathlib.Path):
  write_ngram_baselines(runs_folder / 'test', LOSSES, split='test')
  unfinished = write_ngram_baselines(runs_folder / 'unfinished', LOSSES)
  (unfinished / run_dir.RESULT).unlink()
  comparison = read_comparison(runs_folder)
  assert not comparison.ngram_losses and comparison.left_out[0].startswith('unfinished: ')
  shutil.rmtree(unfinished)
  write_ngram_baselines(runs_folder / 'torn', {'unigram': 'six'})
  with pytest.raises(InputError, match='torn'):
    read_comparison(runs_folder)


def test_each_baseline_is_a_line_of_the_figure(runs_folder: pathlib.Path):
  write_ngram_baselines(runs_folder / 'baselines', LOSSES)
  comparison = read_comparison(runs_folder)
  (part,) = comparison.shapes
  rows = ablation_results.make_rows(part, ablation_results.find_levels(comparison))
  sections = compare_figures.make_figure_sections(
    part, rows, rows[0].level, comparison.ngram_losses, ''
  )
  figure = next(sections).figures['curves'].figure
  labels = [text.get_text().strip() for text in figure.legends[0].get_texts()]
  assert labels[2:] == [
    'word frequencies, 6.10 nats',
    'left neighbour, 5.20 nats',
    'mean of both neighbours, 4.70 nats',
    'both neighbours, 4.20 nats',
  ]
  styles = [line.get_linestyle() for line in figure.axes[0].lines[2:]]
  assert len({str(style) for style in styles}) >= 3


def test_the_report_lists_the_baselines(runs_folder: pathlib.Path):
  write_ngram_baselines(runs_folder / 'baselines', LOSSES)
  out = runs_folder.parent / 'out'
  command = ['ablations', f'--base={runs_folder}/paper', str(runs_folder), f'--workdir={out}']
  assert main.main([*command, '--reference_losses=own=3.5']) == 0
  text = Page((out / 'compare.html').read_text()).text
  assert 'left neighbour, 5.20 nats' in text and 'own, 3.50 nats' in text
