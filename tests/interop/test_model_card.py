"""Model cards: they say what the run says, at which step it is, and show text of others without
doing what it says.
"""

import json
import pathlib
import re
import shutil

import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.interop import model_card
from minilm_jax.model.flops import count_parameters, flops_per_row
from minilm_jax.training import pretrained
from tests import fake_classifiers

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


@pytest.fixture(scope='module')
def reads(tiny_corpus: pathlib.Path) -> tokenizer.Tokenizer:
  return tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model')


def test_a_run_says_what_it_is(tiny_run: pathlib.Path):
  card, config = model_card.build_card(tiny_run), pretrained.load_config(tiny_run)
  result = count_parameters(config.model)['total']
  known = run_dir.read_corpus_hashes(tiny_run)
  for message in (
    f'of {result:,} parameters',
    'the end of its training',
    known['corpus'],
    known['tokenizer'],
    '8 of 8, of 8 rows',
    '@software{minilm_jax',
    '2305.17266',
    '# license: yours to choose',
    'microworld:800',
    '| test | 8 |',
    '| validation | 8 |',
  ):
    assert message in card, message
  flops = flops_per_row(config.model, config.mask)['actual'] * 8 * 8
  assert f'| FLOPs, as counted | {flops:.3g} |' in card and str(tiny_run) not in card
  half = model_card.build_card(tiny_run, 4)
  assert '**step 4 of 8: its training has not ended**' in half
  assert '| validation | 4 |' in half and '| test |' not in half


def test_a_corpus_that_has_gone_is_not_needed(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  manifest = json.loads((tmp_path / 'run' / run_dir.MANIFEST).read_text())
  (tmp_path / 'run' / run_dir.MANIFEST).write_text(
    json.dumps(manifest | {'corpus_folder': '/nowhere'})
  )
  card = model_card.build_card(tmp_path / 'run')
  assert (
    'the corpus is not where it was' in card
    and manifest['corpus'] in card
    and 'nowhere' not in card
  )


def test_a_classifier_says_how_good_it_is(reads: tokenizer.Tokenizer, tmp_path: pathlib.Path):
  folder = fake_classifiers.save_classifier(
    tmp_path / 'one', fake_classifiers.make_classifier(reads, 0)
  )
  card = model_card.build_card(folder)
  assert (
    '| validation | accuracy | 0.' in card and '| labels | negative, positive, neutral |' in card
  )
  assert 'step 8 of the pre-training run tiny' in card
  scratch = model_card.build_card(
    fake_classifiers.save_classifier(
      tmp_path / 'two', fake_classifiers.make_classifier(reads, 0, step=-1)
    )
  )
  assert 'not pre-trained' in scratch


def test_a_fine_tuning_lists_its_scores(tmp_path: pathlib.Path):
  files.write_json(tmp_path / run_dir.CONFIG, {'kind': 'finetune'})
  run_dir.write_lines(
    tmp_path / run_dir.SCORES,
    [
      {'task': 'a|b', 'metric': 'accuracy', 'value': 0.5, 'member': member, 'seed': member}
      for member in range(3)
    ],
  )
  card = model_card.build_card(tmp_path)
  assert '3 fine-tuned models for a\\|b' in card and card.count('| accuracy | 0.5 |') == 3


@pytest.mark.parametrize('hostile', HOSTILE)
def test_text_of_others_stays_text(
  hostile: str, reads: tokenizer.Tokenizer, tmp_path: pathlib.Path
):
  """Rendered, the card has the tags of one with plain names, and shows the letters that were given."""
  markdown = pytest.importorskip('markdown_it', reason='comes with rich')
  html = []
  for name, text in (('plain', 'plain'), ('hostile', hostile)):
    labels = (text, 'b', 'c')
    member = fake_classifiers.make_classifier(
      reads,
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


def test_the_file_stands_alone(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  record = model_card.write_card(f'{tiny_run}@4', str(tmp_path / 'card'))
  assert sorted(path.name for path in (tmp_path / 'card').iterdir()) == ['README.md', 'export.json']
  assert (tmp_path / 'card' / 'README.md').read_text() == model_card.build_card(tiny_run, 4)
  assert model_card.write_card(f'{tiny_run}@4', str(tmp_path / 'card')) == record  # nothing to do
  with pytest.raises(InputError, match='--workdir'):
    model_card.write_card(str(tiny_run), str(tmp_path / 'card'))


def test_what_has_no_card_is_refused(tiny_run: pathlib.Path, tiny_corpus: pathlib.Path):
  with pytest.raises(InputError, match='4, 8'):
    model_card.build_card(tiny_run, 5)
  with pytest.raises(InputError, match="kind 'corpus'"):
    model_card.build_card(tiny_corpus)
