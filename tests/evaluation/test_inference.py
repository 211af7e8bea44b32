"""Tests inference: vectors, guesses and predictions equal the model's; invalid calls are refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import minilm_jax
from minilm_jax.cli import main
from minilm_jax.core import recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import (
  BEGIN_ID,
  END_ID,
  MASK_ID,
  SPECIAL_TOKENS,
  UNKNOWN_ID,
  Tokenizer,
)
from minilm_jax.evaluation import inference
from minilm_jax.evaluation.inference import LanguageModel
from minilm_jax.interop import hf_import
from minilm_jax.model.heads import init_masked_language_model
from minilm_jax.tasks import classifier, committee, committee_scores
from minilm_jax.training import checkpoint, pretrained
from tests import fake_classifiers, fake_hf_folders

TEXTS = [
  'the dog sleeps near the tree .',
  '',
  'a pie',
  'The DOG sleeps near the tree .',
  'the cats run . ' * 40,
]
# Changes of the card of each classifier, by folder.
CARDS = {
  'classifier-0': {},
  'classifier-1': {},
  'classifier-2': {},
  'pairs': {'fields': ('sentence1', 'sentence2')},
  'number': {'task_kind': 'regression', 'labels': ()},
  'joined': {'fields': ('title', 'description'), 'concatenate_fields': True},
}


@pytest.fixture(scope='module')
def model(tiny_run: Path) -> LanguageModel:
  return minilm_jax.load(str(tiny_run))


@pytest.fixture(scope='module')
def classifiers(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Returns a folder with the classifiers of CARDS, and `together`, a committee of three."""
  folder = tmp_path_factory.mktemp('inference')
  for seed, (name, changes) in enumerate(CARDS.items()):
    member = fake_classifiers.make_classifier(tiny_tokenizer, seed, **changes)
    fake_classifiers.save_classifier(folder / name, member)
  committee.make_committee(f'{folder}/classifier-*', folder / 'together')
  return folder


def predict(
  classifiers: Path, name: str, text: str = '', text_pair: str = '', file: str = ''
) -> list[dict]:
  folder = str(classifiers / name)
  folders = (folder, '') if name == 'together' else ('', folder)
  return inference.predict(*folders, text, text_pair, file)


def write_table(folder: Path, *rows: dict) -> str:
  (folder / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(folder / 'x.jsonl')


def test_guesses_are_sorted_by_probability_for_each_mask(model: LanguageModel, tiny_run: Path):
  text = 'the <mask> sleeps near the <mask> .'
  guesses = inference.LanguageModel(tiny_run).fill_mask(text, 4)
  assert [guess.hole for guess in guesses] == [1] * 4 + [2] * 4
  for mask_guesses in (guesses[:4], guesses[4:]):
    probabilities = [guess.probability for guess in mask_guesses]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1
    assert not {guess.piece for guess in mask_guesses} & set(tokenizer.SPECIAL_TOKENS)
  assert inference.LanguageModel(tiny_run).fill_mask(text.replace('the', 'THE'), 4) == guesses
  for guess, expected in zip(model.fill_mask(text, best=4), guesses, strict=True):
    assert (guess.hole, guess.piece) == (expected.hole, expected.piece)
    assert guess.probability == pytest.approx(expected.probability)


@pytest.mark.parametrize(
  'after, after_pieces', [(' near .', ['\u2581near', '\u2581.']), ('.', ['.'])]
)
def test_probabilities_equal_the_softmax_of_the_model(
  tiny_run: Path, tiny_tokenizer: Tokenizer, after: str, after_pieces: list[str]
):
  config = pretrained.load_config(tiny_run).model
  shapes = jax.eval_shape(lambda: init_masked_language_model(config, jax.random.key(0)))
  model = checkpoint.restore_part(tiny_run, shapes, 'model')
  before, after_ids = (
    tiny_tokenizer.encode(['a dog'])[0],
    [tiny_tokenizer.id(piece) for piece in after_pieces],
  )
  assert UNKNOWN_ID not in after_ids
  tokens = jnp.asarray([[BEGIN_ID, *before, MASK_ID, *after_ids, END_ID]])
  logits = model(tokens, jnp.ones_like(tokens, bool), jnp.asarray([[1 + len(before)]]))[0, 0]
  for guess in inference.LanguageModel(tiny_run).fill_mask(f'a dog <mask>{after}', 3):
    expected = jax.nn.softmax(logits)[tiny_tokenizer.id(guess.piece)]
    np.testing.assert_allclose(guess.probability, expected, rtol=1e-5)


def test_every_piece_of_the_tokenizer_is_a_guess(tiny_run: Path, tiny_tokenizer: Tokenizer):
  size = tiny_tokenizer.size
  assert pretrained.load_config(tiny_run).model.vocab_size > size  # with ids that are no pieces
  guesses = inference.LanguageModel(tiny_run).fill_mask('<mask>', 10_000)
  assert len({guess.piece for guess in guesses}) == len(guesses) == size - len(SPECIAL_TOKENS)


@pytest.mark.parametrize(
  'text, best, match',
  [
    ('the dog sleeps .', 5, 'no <mask>'),
    ('', 5, 'no <mask>'),
    ('<mask> ' + 'dog ' * 70, 5, '64'),
    ('<mask>', 0, 'the best 0'),
  ],
)
def test_an_invalid_text_or_number_of_guesses_is_refused(
  tiny_run: Path, text: str, best: int, match: str
):
  with pytest.raises(InputError, match=match):
    inference.LanguageModel(tiny_run).fill_mask(text, best)


def test_a_vector_is_the_mean_over_the_tokens_of_its_text(model: LanguageModel):
  vectors = model.encode(TEXTS)
  assert vectors.shape == (5, 16) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
  for text, vector in zip(TEXTS[:3], vectors):
    tokens = jnp.asarray([[BEGIN_ID, *model.tokenizer.encode([text])[0], END_ID]])
    expected = np.asarray(model.model.encoder(tokens, tokens != tokenizer.PAD_ID)[0]).mean(0)
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(vectors[3], vectors[0])


def test_truncated_texts_are_counted(model: LanguageModel, capsys):
  long, truncated = model.encode([TEXTS[4] + 'the pig rots .', TEXTS[4]])
  np.testing.assert_array_equal(long, truncated)
  log = capsys.readouterr().err
  assert '2 of 2 texts' in log and '64 tokens' in log


def test_any_number_of_texts_is_encoded(model: LanguageModel):
  assert model.encode([]).shape == (0, 16)
  vector = model.encode(TEXTS[0])
  assert vector.shape == (1, 16)
  many = model.encode(text for text in TEXTS[:3] * 50)  # three batches
  np.testing.assert_allclose(many[::3], np.repeat(vector, 50, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['classifier-0', 'together'])
def test_a_loaded_model_predicts_as_the_command(name: str, classifiers: Path):
  model, texts = minilm_jax.load(classifiers / name), fake_classifiers.TEXTS[:2]
  for prediction, text in zip(model.predict(texts), texts, strict=True):
    (expected,) = predict(classifiers, name, text)
    assert (prediction['text'], prediction['label']) == (text, expected['label'])
    assert prediction['probability'] == pytest.approx(expected['probability'], rel=1e-4)
  assert model.predict([]) == [] and 'negative, positive, neutral' in repr(model)


def test_weights_are_stacked_once_and_loading_logs_nothing(
  classifiers: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys
):
  sizes, stack_members = [], classifier.stack_members
  monkeypatch.setattr(
    classifier,
    'stack_members',
    lambda members: sizes.append(len(members)) or stack_members(members),
  )
  model, text = minilm_jax.load(classifiers / 'together'), fake_classifiers.TEXTS[0]
  assert not caplog.records and capsys.readouterr() == ('', '')
  assert model.predict(text) == model.predict(text) and sizes == [3]


def test_invalid_calls_are_refused(
  model: LanguageModel, classifiers: Path, tiny_corpus: Path, tmp_path: Path
):
  soft_committee = minilm_jax.load(classifiers / 'together')
  pairs = minilm_jax.load(classifiers / 'pairs')
  for call, match in (
    (lambda: model.encode(['a', None]), 'None .* at index 1'),
    (lambda: model.encode(7), '7 .* at index 0'),
    (lambda: model.encode(['a', 'b \ud83d']), r'U\+D83D at character 2 .* index 1'),
    (lambda: model.fill_mask('<mask> \udcff'), r'U\+DCFF at character 7 .* index 0'),
    (lambda: soft_committee.predict('\udcff'), r'U\+DCFF at character 0 .* index 0'),
    (lambda: model.fill_mask('no mask'), 'no <mask>'),
    (lambda: model.fill_mask(3), '3 .* at index 0'),
    (lambda: model.predict('a'), 'config.save_classifiers=True'),
    (lambda: soft_committee.encode('a'), f'vectors of {classifiers}'),
    (lambda: soft_committee.fill_mask('a'), f'<mask> of {classifiers}'),
    (lambda: soft_committee.predict('a', 'b'), 'remove pairs'),
    (lambda: pairs.predict('a'), 'give pairs'),
    (lambda: minilm_jax.load(str(tmp_path / 'none')), 'none'),
    (lambda: minilm_jax.load(str(tiny_corpus)), "kind 'corpus'"),
  ):
    with pytest.raises(minilm_jax.InputError, match=match):
      call()


def test_repr_has_the_shape_of_the_model(model: LanguageModel, tiny_run: Path):
  assert repr(model).startswith(
    f"LanguageModel('{tiny_run}', update 8: 1 layers, hidden 16, 520 pieces"
  )


def test_an_imported_run_is_loaded(tmp_path: Path):
  pytest.importorskip('tokenizers', reason='needs tokenizers, which is of the extra [hf]')
  hf_import.import_model(fake_hf_folders.write_folder(tmp_path / 'theirs'), tmp_path / 'run')
  model = minilm_jax.load(tmp_path / 'run')
  assert model.encode(['the dog was good', '']).shape == (2, 16)
  assert len(model.fill_mask('The <mask> was good', best=2)) == 2
  with pytest.raises(minilm_jax.InputError, match='config.save_classifiers=True'):
    model.predict('the dog was good')


def test_a_custom_encoder_is_imported_only_with_trust(
  tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
  module = 'configs.examples.gated_rotary'
  monkeypatch.setattr(recipe, '_trusted_modules', set())
  shutil.copytree(tiny_run, tmp_path / 'run')
  config = json.loads((tiny_run / run_dir.CONFIG).read_text())
  config['model']['encoder'] = f'{module}:Encoder'
  (tmp_path / 'run' / run_dir.CONFIG).write_text(json.dumps(config))
  with pytest.raises(minilm_jax.InputError, match=f"trust='{module}'"):
    minilm_jax.load(tmp_path / 'run')
  # The weights of the checkpoint are of another encoder.
  with pytest.raises(minilm_jax.InputError, match='encoder'):
    minilm_jax.load(tmp_path / 'run', trust=module)


def test_importing_the_package_imports_no_library():
  program = (
    'import sys, minilm_jax; print(*sorted({name.partition(".")[0] for name in sys.modules}))'
  )
  done = subprocess.run(
    [sys.executable, '-S', '-c', program],
    capture_output=True,
    text=True,
    check=True,
    cwd=Path(__file__).parents[2],
  )
  modules = set(done.stdout.split())
  slow = {'asyncio', 'multiprocessing', 'ssl'}
  assert modules - sys.stdlib_module_names <= {'minilm_jax', '__main__'} and not modules & slow


def test_a_committee_combines_members_by_both_means(classifiers: Path):
  (result,) = predict(classifiers, 'together', 'the dog sleeps .')
  logits = committee.load_committee(classifiers / 'together').logits(
    fake_classifiers.make_examples(('the dog sleeps .',))
  )
  for prediction, combination in (
    (result, committee_scores.PROBABILITY),
    (result['mean_logit'], committee_scores.LOGIT),
  ):
    probabilities = committee_scores.combine_outputs(logits, combination)[0]
    assert list(prediction['probabilities']) == list(fake_classifiers.LABELS)
    np.testing.assert_allclose(list(prediction['probabilities'].values()), probabilities)
    assert prediction['label'] == fake_classifiers.LABELS[probabilities.argmax()]
    assert prediction['probability'] == probabilities.max()
    assert sum(prediction['probabilities'].values()) == pytest.approx(1)
  assert sum(result['votes'].values()) == 3 and result['text'] == 'the dog sleeps .'


def test_rows_of_a_file_are_predicted_as_single_texts(classifiers: Path, tmp_path: Path):
  path = write_table(tmp_path, *({'text': text, 'other': 3} for text in fake_classifiers.TEXTS))
  predictions = predict(classifiers, 'classifier-0', file=path)
  assert [row['text'] for row in predictions] == list(fake_classifiers.TEXTS)
  assert 'votes' not in predictions[0]
  for row in predictions:
    (alone,) = predict(classifiers, 'classifier-0', row['text'])
    assert alone['label'] == row['label']
    assert alone['probability'] == pytest.approx(row['probability'], abs=1e-4)


def test_pairs_joined_texts_and_regressions_are_predicted(classifiers: Path, tmp_path: Path):
  (result,) = minilm_jax.load(classifiers / 'pairs').predict('a dog .', 'the fox .')
  assert (result['text'], result['pair']) == ('a dog .', 'the fox .')
  path = write_table(tmp_path, {'sentence1': 'a dog .', 'sentence2': 'the fox .'})
  assert predict(classifiers, 'pairs', 'a dog .', 'the fox .') == [result]
  assert predict(classifiers, 'pairs', file=path) == [result]
  assert set(predict(classifiers, 'number', 'a dog .')[0]) == {'text', 'value'}
  path = write_table(tmp_path, {'title': 'a dog', 'description': 'the fox .'})
  joined = predict(classifiers, 'joined', file=path)
  assert joined == predict(classifiers, 'joined', 'a dog', 'the fox .')
  assert joined == predict(classifiers, 'joined', 'a dog the fox .')


def test_predictions_that_are_not_finite_are_null_in_json(capsys, monkeypatch):
  monkeypatch.setattr(inference, 'predict', lambda *arguments: [{'text': 'é', 'value': np.nan}] * 2)
  assert main.main(['predict', '--classifier=c', '--text=é', '--json']) == 0
  out = capsys.readouterr().out
  lines = out.splitlines()
  assert out.isascii()  # escapes of an output that is not UTF-8 are not those of JSON
  assert [json.loads(line) for line in lines] == [{'text': 'é', 'value': None}] * 2


def test_the_command_prints_a_table_or_json_lines(classifiers: Path, tmp_path: Path, capsys):
  for name in ('together', 'classifier-0', 'number'):
    (table,) = inference.make_prediction_tables(predict(classifiers, name, 'the dog ' * 20))
    rich.console.Console(width=200).print(table)
  assert '...' in capsys.readouterr().out
  path = write_table(tmp_path, {'text': 'a dog .'}, {'text': 'the fox .'})
  command = ['predict', f'--committee={classifiers}/together', f'--file={path}', '--json']
  assert main.main(command) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row['text'] for row in lines] == ['a dog .', 'the fox .']
  assert lines == predict(classifiers, 'together', file=path)


@pytest.mark.parametrize(
  'arguments, match',
  [
    ('--text=a', 'neither --committee nor --classifier'),
    ('--committee=HOME/together --classifier=HOME/pairs --text=a', 'both flags'),
    ('--committee=HOME/together', 'neither --text nor --file'),
    ('--committee=HOME/together --text=', 'an empty text'),
    ('--committee=HOME/together --text= --file=WORK/x.jsonl', 'an empty text'),
    ('--committee=HOME/together --text=a --file=HOME/x', 'a text and --file'),
    ('--committee=HOME/together --file=HOME/x', 'HOME/x'),
    ('--committee=HOME/together --text=a --text_pair=b', 'remove --text_pair'),
    ('--classifier=HOME/pairs --text=a', 'give --text and --text_pair'),
    ('--committee=HOME/pairs --text=a', 'HOME/pairs'),
    ('--classifier=HOME/together --text=a', '--committee'),
    ('--classifier=HOME/nothing --text=a', 'HOME/nothing'),
    ('--committee=HOME/together --file=WORK/empty.jsonl', 'WORK/empty.jsonl'),
    ('--committee=HOME/together --file=WORK/x.jsonl', 'row 1 has headline'),
    ('--classifier=HOME/pairs --file=WORK/x.jsonl', "text in 'sentence1'"),
    ('--classifier=HOME/classifier-0 --file=WORK/half.jsonl', r"'the dog \ud83d' in row 2"),
    ('--classifier=HOME/classifier-0 --file=WORK/null.jsonl', 'None in row 2'),
  ],
)
def test_invalid_arguments_are_refused(
  arguments: str, match: str, classifiers: Path, tmp_path: Path, capsys
):
  (tmp_path / 'empty.jsonl').write_text('')
  for name, value in (('half', 'the dog \ud83d'), ('null', None)):
    lines = [json.dumps({'text': text}) for text in ('the dog .', value)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  write_table(tmp_path, {'headline': 'a'})
  arguments, match = (
    text.replace('HOME', str(classifiers)).replace('WORK', str(tmp_path))
    for text in (arguments, match)
  )
  assert main.main(['predict', *arguments.split()]) == 2
  assert match in capsys.readouterr().err


def test_a_missing_text_is_refused_before_loading():
  with pytest.raises(InputError, match='--text'):
    inference.predict('nowhere', '', ' ', '', '')
