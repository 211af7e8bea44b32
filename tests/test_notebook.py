"""Trained models in a notebook: vectors that are the model's own, answers of the verbs, refusals with a way out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import minilm_jax
from minilm_jax import hf_import, run, trust
from minilm_jax.language import tokenizer as pieces
from minilm_jax.model import foreign
from minilm_jax.notebook import LanguageModel
from minilm_jax.tasks import committee, fill_mask, forward, predict
from tests import fake_classifiers, fake_hf_folders

TEXTS = ['the dog sleeps near the tree .', '', 'a pie', 'The DOG sleeps near the tree .', 'the cats run . ' * 40]


@pytest.fixture(scope='module')
def model(tiny_run: Path) -> LanguageModel:
  return minilm_jax.load(str(tiny_run))


def test_a_vector_is_the_mean_over_the_tokens_of_its_text(model: LanguageModel):
  found = model.encode(TEXTS)
  assert found.shape == (5, 16) and found.dtype == np.float32 and np.isfinite(found).all()
  for place in (0, 1, 2):
    ids = [pieces.BEGIN, *model.tokenizer.encode([TEXTS[place]])[0], pieces.END]
    tokens = jnp.asarray([ids])
    expected = np.asarray(model.model.encoder(tokens, tokens != pieces.PAD)[0]).mean(0)
    np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-5)  # whatever stood beside it
  np.testing.assert_array_equal(found[3], found[0])


def test_texts_that_are_too_long_are_cut_and_counted(model: LanguageModel, capsys):
  long, one = model.encode([TEXTS[4] + 'the pig rots .', TEXTS[4]])
  np.testing.assert_array_equal(long, one)
  assert '2 of 2 texts are longer than 64 tokens' in capsys.readouterr().err


def test_any_number_of_texts_is_taken(model: LanguageModel):
  assert model.encode([]).shape == (0, 16)
  one = model.encode(TEXTS[0])
  assert one.shape == (1, 16)
  many = model.encode(text for text in TEXTS[:3] * 50)  # three batches
  np.testing.assert_allclose(many[::3], np.repeat(one, 50, 0), rtol=1e-4, atol=1e-5)


def test_holes_are_filled_as_the_verb_does(model: LanguageModel, tiny_run: Path):
  text = 'the <mask> sleeps .'
  for one, other in zip(model.fill_mask(text, best=3), fill_mask.fill_mask(tiny_run, text, 3), strict=True):
    assert (one.hole, one.piece) == (other.hole, other.piece) and one.probability == pytest.approx(other.probability)


@pytest.fixture(scope='module')
def home(fast_compile: None, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Two classifiers, a committee of them, and a classifier of pairs."""
  folder, reads = tmp_path_factory.mktemp('notebook'), pieces.load(tiny_corpus / 'tokenizer.model')
  for seed in range(2):
    fake_classifiers.save_classifier(folder / f'classifier-{seed}', fake_classifiers.make_classifier(reads, seed))
  committee.make(f'{folder}/classifier-*', folder / 'together')
  fake_classifiers.save_classifier(folder / 'pairs', fake_classifiers.make_classifier(reads, 4, fields=('sentence1', 'sentence2')))
  return folder


def test_labels_are_those_of_the_verb(home: Path):
  texts = fake_classifiers.TEXTS[:2]
  for name, where in (('classifier-0', ('', str(home / 'classifier-0'))), ('together', (str(home / 'together'), ''))):
    answers = minilm_jax.load(home / name)
    expected = [predict.predict(*where, text, '', '')[0] for text in texts]
    for one, other in zip(answers.predict(texts), expected, strict=True):
      assert (one['text'], one['label']) == (other['text'], other['label'])
      assert one['probability'] == pytest.approx(other['probability'], rel=1e-4)
    assert answers.predict([]) == [] and 'negative, positive, neutral' in repr(answers)
  (found,) = minilm_jax.load(home / 'pairs').predict('a dog', 'a cat')
  assert (found['text'], found['pair']) == ('a dog', 'a cat')
  for call, said in ((lambda: answers.encode('a'), 'load the pre-training run'),
                     (lambda: answers.fill_mask('a'), 'know no'),
                     (lambda: answers.predict('a', 'b'), 'leave pairs out'),
                     (lambda: minilm_jax.load(home / 'pairs').predict('a'), 'give pairs too')):
    with pytest.raises(minilm_jax.InputError, match=said):
      call()


def test_weights_are_placed_once_and_loading_is_quiet(home: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys):
  placed, whole = [], forward.stacks
  monkeypatch.setattr(forward, 'stacks', lambda members: placed.append(len(members)) or whole(members))
  model = minilm_jax.load(home / 'together')
  assert not caplog.records and capsys.readouterr() == ('', '')
  assert model.predict(fake_classifiers.TEXTS[0]) == model.predict(fake_classifiers.TEXTS[0]) and placed == [2]


def test_what_cannot_be_used_is_refused(model: LanguageModel, tiny_run: Path, tiny_corpus: Path, tmp_path: Path):
  for call, said in (
      (lambda: model.encode(['a', None]), 'number 1 is None'), (lambda: model.encode(7), 'number 0 is 7'),
      (lambda: model.fill_mask('no hole'), 'no <mask>'), (lambda: model.fill_mask(3), 'is 3'),
      (lambda: model.predict('a'), 'config.save_classifiers=True'), (lambda: minilm_jax.load(str(tmp_path / 'none')), 'no file'),
      (lambda: minilm_jax.load(str(tiny_corpus)), "kind 'corpus'")):
    with pytest.raises(minilm_jax.InputError, match=said):
      call()


def test_a_model_says_what_it_is(model: LanguageModel, tiny_run: Path):
  assert repr(model).startswith(f"LanguageModel('{tiny_run}', update 8: 1 layers, hidden 16, 520 pieces")


def test_an_imported_run_opens(tmp_path: Path):
  pytest.importorskip('tokenizers', reason='needs tokenizers, which is of the extra [hf]')
  hf_import.load(fake_hf_folders.write_folder(tmp_path / 'theirs'), tmp_path / 'run')
  model = minilm_jax.load(tmp_path / 'run')
  assert model.encode(['the dog was good', '']).shape == (2, 16)
  assert len(model.fill_mask('The <mask> was good', best=2)) == 2
  with pytest.raises(minilm_jax.InputError, match='config.save_classifiers=True'):
    model.predict('the dog was good')


def test_code_that_a_run_names_waits_for_trust(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  module = 'configs.examples.gated_rotary'
  monkeypatch.setattr(trust, '_trusted', set())
  foreign._tried.cache_clear()
  shutil.copytree(tiny_run, tmp_path / 'run')
  made = json.loads((tiny_run / run.CONFIG).read_text())
  made['model']['encoder'] = f'{module}:Encoder'
  (tmp_path / 'run' / run.CONFIG).write_text(json.dumps(made))
  with pytest.raises(minilm_jax.InputError, match=f"in Python trust='{module}'"):
    minilm_jax.load(tmp_path / 'run')
  with pytest.raises(minilm_jax.InputError, match='is missing there'):  # another than the checkpoint's
    minilm_jax.load(tmp_path / 'run', trust=module)


def test_the_package_imports_nothing_heavy():
  program = 'import sys, minilm_jax; print(*sorted({name.partition(".")[0] for name in sys.modules}))'
  done = subprocess.run([sys.executable, '-S', '-c', program], capture_output=True, text=True, check=True,
                        cwd=Path(__file__).parent.parent)
  found = set(done.stdout.split())
  heavy = found - sys.stdlib_module_names - {'minilm_jax', '__main__'} | found & {'asyncio', 'multiprocessing', 'ssl'}
  assert not heavy, f'import minilm_jax imports {heavy}'
