"""Model cards have the numbers of their run and step, and escape untrusted text."""

import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.config import PopulationConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.interop import hf_import, model_card
from minilm_jax.model.flops import actual_flops, count_parameters_by_part, flops_per_row
from minilm_jax.training import pretrained
from tests import fake_classifiers, fake_hf_folders, fake_runs, tiny_config

HOSTILE = (
  '<script>alert(1)</script>',
  '[x](http://evil.example)',
  '| a | b |',
  '**bold** `code` _em_',
  '![i](x)',
  '```\n# Title',
  '$x$ ~~y~~ www.evil.example a@b.example',
  '&lt;b&gt; &#60;',
  '\x1b[2J\u202eabc',
  '\'"\\',
)


def read_cells(card: str) -> dict[str, str]:
  """Returns the tables of two columns of a card."""
  rows = (line.strip('| ').split(' | ') for line in card.splitlines() if line.startswith('|'))
  return {row[0]: row[1] for row in rows if len(row) == 2}


def test_a_card_has_the_numbers_of_its_run(tiny_run: pathlib.Path):
  card, config = model_card.build_card(tiny_run), pretrained.load_config(tiny_run)
  counts, hashes = count_parameters_by_part(config.model), run_dir.read_corpus_hashes(tiny_run)
  for value in (
    hashes['corpus'],
    hashes['tokenizer'],
    '@software{minilm_jax',
    '2305.17266',
    '# license:',
    'microworld:800',
    '| test | 8 |',
    '| validation | 8 |',
  ):
    assert value in card, value
  flops = flops_per_row(config.model, config.mask)['actual'] * 8 * 8
  cells = read_cells(card)
  assert cells['parameters'] == f'{counts["total"]:,}' and cells['FLOPs'] == f'{flops:.3g}'
  assert cells['updates'] == '8 of 8' and str(tiny_run) not in card and '**' not in card
  half = model_card.build_card(tiny_run, 4)
  assert 'step 4 of 8.**' in half and read_cells(half)['updates'] == '4 of 8'
  assert '| validation | 4 |' in half and '| test |' not in half


def test_a_card_counts_the_tokens_of_the_rows_of_the_corpus(tiny_run, tmp_path: pathlib.Path):
  """The log of the copy is that of rows of 32 tokens, half of the length of the model."""
  copy = shutil.copytree(tiny_run, tmp_path / 'copy')
  log = copy / run_dir.METRICS
  records = [
    {**line, 'tokens': line['tokens'] // 2, 'flops': line['flops'] / 2}
    for line in run_dir.read_lines(log)
  ]
  run_dir.write_lines(log, records)
  config, cells = pretrained.load_config(copy), read_cells(model_card.build_card(copy))
  assert cells['maximum training tokens, pads included'] == f'{8 * 8 * 32:,}'
  assert cells['FLOPs'] == f'{actual_flops(config.model, config.mask, 32) * 8 * 8:.3g}'


@pytest.mark.parametrize('name', ['step', 'tokens', 'split', 'loss'])
def test_a_log_line_without_a_field_is_refused(name: str, tiny_run, tmp_path: pathlib.Path):
  copy = shutil.copytree(tiny_run, tmp_path / 'copy')
  records = list(run_dir.read_lines(copy / run_dir.METRICS))
  del records[1][name]
  run_dir.write_lines(copy / run_dir.METRICS, records)
  with pytest.raises(InputError, match=f'line 2 without {name}'):
    model_card.build_card(copy)


def test_a_log_line_without_a_number_of_tokens_is_left_out(tiny_run, tmp_path: pathlib.Path):
  copy = shutil.copytree(tiny_run, tmp_path / 'copy')
  records = list(run_dir.read_lines(copy / run_dir.METRICS))
  run_dir.write_lines(copy / run_dir.METRICS, [*records[:-1], records[-1] | {'tokens': None}])
  assert model_card.build_card(copy).replace('copy', 'tiny') == model_card.build_card(tiny_run)


def test_a_card_of_a_custom_encoder_names_its_module(monkeypatch: pytest.MonkeyPatch):
  module = 'configs.examples.gated_rotary'
  config = tiny_config.make_run_config(pathlib.Path(), **{'model.encoder': f'{module}:Encoder'})
  text = model_card._describe_architecture(config.model)
  assert module.replace('_', r'\_') in text and 'hidden size' in text
  assert 'LayerNorm' not in text and 'attention heads' not in text


def test_a_card_of_a_continued_run_names_its_origin(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  assert 'initial weights' not in read_cells(model_card.build_card(tiny_run))
  folder = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'run'))
  fake_runs.continue_run(folder, '/home/a/runs/b', 4)
  cell = read_cells(model_card.build_card(folder))['initial weights']
  assert cell.startswith('step 4 of the pre-training run b,')


def change_manifest(folder: pathlib.Path, **fields: Any) -> None:
  path = folder / run_dir.MANIFEST
  files.write_json(path, json.loads(path.read_text()) | fields)


def test_a_card_names_the_data_sets_of_tfds(tiny_run, tiny_corpus, tmp_path: pathlib.Path):
  run, corpus = (
    pathlib.Path(shutil.copytree(folder, tmp_path / name))
    for folder, name in ((tiny_run, 'run'), (tiny_corpus, 'corpus'))
  )
  sources = [
    {'name': 'a_b/c', 'bytes': 9000, 'dataset': 'a_b/c:2.0.0'},
    {'name': 'text/d.txt', 'bytes': 5, 'sha256': 'c0ffee'},
  ]
  change_manifest(corpus, sources=sources)
  change_manifest(run, corpus_folder=str(corpus), corpus_link='')
  card = model_card.build_card(run)
  assert '| a\\_b/c | 9,000 | a\\_b/c:2.0.0 |' in card and '| text/d.txt | 5 | `c0ffee` |' in card
  assert 'unknown' not in card


@pytest.mark.parametrize('has_corpus', [True, False])
def test_a_card_states_the_subset_of_the_run(has_corpus: bool, tiny_run, tmp_path: pathlib.Path):
  assert 'shuffle' not in model_card.build_card(tiny_run)
  run = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'run'))
  subset = {'rows': 0, 'tokens': 2000, 'shuffle_seed': 7}
  fake_runs.change_config(run, subset=subset)
  change_manifest(run, training={'rows': 16, 'tokens': 1978, 'of_rows': 1469, 'of_tokens': 186_649})
  if not has_corpus:
    change_manifest(run, corpus_folder='/nowhere', corpus_link='')
  card = model_card.build_card(run)
  assert '16 rows, 1,978 tokens' in card and 'seed=7' in card
  assert ('microworld:800' in card) == has_corpus


def test_a_card_does_not_need_the_corpus(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  manifest = json.loads((tmp_path / 'run' / run_dir.MANIFEST).read_text())
  (tmp_path / 'run' / run_dir.MANIFEST).write_text(
    json.dumps(manifest | {'corpus_folder': '/nowhere', 'corpus_link': ''})
  )
  card = model_card.build_card(tmp_path / 'run')
  assert manifest['corpus'] in card and 'microworld:800' not in card and 'nowhere' not in card


def test_a_card_of_a_classifier_has_its_scores(
  tiny_tokenizer: tokenizer.Tokenizer, tmp_path: pathlib.Path
):
  folder = fake_classifiers.save_classifier(
    tmp_path / 'one', fake_classifiers.make_classifier(tiny_tokenizer, 0)
  )
  card = model_card.build_card(folder)
  cells = read_cells(card)
  assert '| validation | accuracy | 0.' in card
  assert cells['labels'] == 'negative, positive, neutral'
  assert 'step 8 ' in cells['initial weights'] and 'tiny' in cells['initial weights']
  scratch = model_card.build_card(
    fake_classifiers.save_classifier(
      tmp_path / 'two', fake_classifiers.make_classifier(tiny_tokenizer, 0, step=-1)
    )
  )
  assert 'step' not in read_cells(scratch)['initial weights']


def test_a_card_of_a_fine_tuning_run_lists_its_scores(tmp_path: pathlib.Path):
  files.write_json(tmp_path / run_dir.CONFIG, {'kind': 'finetune'})
  run_dir.write_lines(
    tmp_path / run_dir.SCORES,
    [
      {'task': 'a|b', 'metric': 'accuracy', 'value': 0.5, 'member': member, 'seed': member}
      for member in range(3)
    ],
  )
  card = model_card.build_card(tmp_path)
  assert ' 3 ' in card and 'a\\|b' in card and card.count('| accuracy | 0.5 |') == 3


def write_finetuned(folder: pathlib.Path, checkpoint: pathlib.Path, count: int = 1) -> pathlib.Path:
  """Writes a fine-tuning run with scores of `count` members."""
  files.write_json(folder / run_dir.CONFIG, {'kind': 'finetune', 'checkpoint': str(checkpoint)})
  scores = [{'task': 'a', 'metric': 'accuracy', 'value': 0.5, 'member': n} for n in range(count)]
  run_dir.write_lines(folder / run_dir.SCORES, scores)
  return folder


def test_a_table_that_is_cut_has_a_note(
  tiny_tokenizer: Tokenizer, tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  (tmp_path / 'all').mkdir()
  (tmp_path / 'cut').mkdir()
  assert 'further' not in model_card.build_card(write_finetuned(tmp_path / 'all', tiny_run, 200))
  card = model_card.build_card(write_finetuned(tmp_path / 'cut', tiny_run, 203))
  assert card.count('| accuracy | 0.5 |') == 200 and 'omits 3 further scores' in card
  labels = tuple(f'label {number}' for number in range(201))
  member = fake_classifiers.make_classifier(tiny_tokenizer, 0, labels=labels)
  card = model_card.build_card(fake_classifiers.save_classifier(tmp_path / 'one', member))
  assert 'label 199 and 1 further labels' in card and 'label 200' not in card


def test_a_card_of_a_fine_tuning_run_cites_the_paper_of_its_checkpoint(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  (tmp_path / 'tuned').mkdir()
  papers = {}
  for initialization in ('standard', 'bert'):
    source = pathlib.Path(shutil.copytree(tiny_run, tmp_path / initialization))
    model = json.loads((source / run_dir.CONFIG).read_text())['model']
    fake_runs.change_config(source, model=model | {'initialization': initialization})
    card = model_card.build_card(write_finetuned(tmp_path / 'tuned', source))
    papers[initialization] = '2305.17266' in card, '2507.14871' in card
  assert papers == {'standard': (True, False), 'bert': (False, True)}
  card = model_card.build_card(write_finetuned(tmp_path / 'tuned', tmp_path / 'missing'))
  assert '@software' in card and 'arXiv' not in card


def test_a_card_of_an_imported_model_has_no_paper_and_no_pre_training_run(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  for library in ('tokenizers', 'safetensors'):
    pytest.importorskip(library, reason=f'needs {library}, which is of the extra [hf]')
  imported = tmp_path / 'ib'
  hf_import.import_model(fake_hf_folders.write_folder(tmp_path / 'hf'), imported)
  config, wrapped = pretrained.load_config(imported), pretrained.load_tokenizer(imported)
  assert config.model.initialization == 'bert'
  member = fake_classifiers.make_classifier(
    wrapped, 0, model=config.model, checkpoint=str(imported), step=0
  )
  classifier = fake_classifiers.save_classifier(tmp_path / 'classifier-0', member)
  continued = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'continued'))
  shutil.copy(imported / run_dir.TOKENIZER, continued)
  fake_runs.continue_run(continued, '../ib', 0)
  (tmp_path / 'tuned').mkdir()
  cards = [
    model_card.build_card(folder)
    for folder in (classifier, continued, write_finetuned(tmp_path / 'tuned', imported))
  ]
  for card in cards:
    assert '@software' in card and 'arXiv' not in card and 'step 0' not in card
  for card in cards[:2]:
    assert read_cells(card)['initial weights'].startswith('the imported model ib')


@pytest.mark.parametrize('hostile', HOSTILE)
def test_untrusted_text_adds_no_markup(
  hostile: str, tiny_tokenizer: tokenizer.Tokenizer, tmp_path: pathlib.Path
):
  """The rendered card has the tags of a card with plain names."""
  markdown = pytest.importorskip('markdown_it', reason='comes with rich')
  html = []
  for name, text in (('plain', 'plain'), ('hostile', hostile)):
    labels = (text, 'b', 'c')
    member = fake_classifiers.make_classifier(
      tiny_tokenizer,
      0,
      task=text,
      fields=(text,),
      labels=labels,
      checkpoint=f'runs/{text}',
      epoch_choice=text,
    )
    card = model_card.build_card(fake_classifiers.save_classifier(tmp_path / name, member))
    body = card.partition('---\n\n')[2]
    html.append(markdown.MarkdownIt('commonmark').enable(['table', 'strikethrough']).render(body))
  plain, result = (re.findall(r'<[^>]*>', text) for text in html)
  assert plain == result
  assert model_card.escape_markdown(
    hostile
  ).isprintable() and '://' not in model_card.escape_markdown(hostile)


def test_a_card_is_written_with_its_record(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  record = model_card.write_card(f'{tiny_run}@4', str(tmp_path / 'card'))
  assert sorted(path.name for path in (tmp_path / 'card').iterdir()) == ['README.md', 'export.json']
  assert (tmp_path / 'card' / 'README.md').read_text() == model_card.build_card(tiny_run, 4)
  assert model_card.write_card(f'{tiny_run}@4', str(tmp_path / 'card')) == record
  with pytest.raises(InputError, match='--workdir'):
    model_card.write_card(str(tiny_run), str(tmp_path / 'card'))


def test_a_card_of_a_population_has_the_values_of_its_members(tiny_run: pathlib.Path):
  source = pretrained.load_config(tiny_run)
  members = PopulationConfig(3, learning_rates=(1e-3, 3e-3, 1e-3), mask_rates=(0.1, 0.2, 0.4))
  config = dataclasses.replace(source, population=members, seed=5)
  cells = read_cells(model_card._describe_training(config, 8, '', 64))
  assert cells['learning rate'] == '0.001, 0.003' and cells['seed'] == '5, 6, 7'
  assert cells['mask rate'] == '0.1, 0.2, 0.4'
  assert cells['weight decay'] == f'{source.optimizer.weight_decay:g}'


def test_a_card_of_a_classifier_has_no_step(tiny_tokenizer: Tokenizer, tmp_path: pathlib.Path):
  classifier = fake_classifiers.make_classifier(tiny_tokenizer, 0)
  folder = fake_classifiers.save_classifier(tmp_path / 'classifier-0', classifier)
  with pytest.raises(InputError, match='step 3 of'):
    model_card.write_card(f'{folder}@3', str(tmp_path / 'card'))
  run_dir.open_run(tmp_path / 'tuned', {'kind': 'finetune'})
  with pytest.raises(InputError, match='step 3 of'):
    model_card.write_card(f'{tmp_path}/tuned@3', str(tmp_path / 'card'))


def test_other_folders_and_steps_are_refused(tiny_run: pathlib.Path, tiny_corpus: pathlib.Path):
  with pytest.raises(InputError, match='4, 8'):
    model_card.build_card(tiny_run, 5)
  with pytest.raises(InputError, match="kind='corpus'"):
    model_card.build_card(tiny_corpus)
