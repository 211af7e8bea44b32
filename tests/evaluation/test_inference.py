"""Inference: vectors and guesses are the model's own, predictions those of the command, and what a
model cannot do is refused.
"""

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
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, SPECIAL_TOKENS, load_tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.evaluation.inference import LanguageModel
from minilm_jax.interop import hf_import
from minilm_jax.model import custom
from minilm_jax.model.heads import init_masked_language_model
from minilm_jax.tasks import classifier, committee, committee_scores
from minilm_jax.training import checkpoint, pretrained
from tests import fake_classifiers, fake_hf_folders

pytestmark = pytest.mark.usefixtures('fast_compile')
TEXTS = [
  'the dog sleeps near the tree .',
  '',
  'a pie',
  'The DOG sleeps near the tree .',
  'the cats run . ' * 40,
]
# Folders of classifiers, and the changes of their cards.
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
def classifiers(
  fast_compile: None, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
  """A folder of the classifiers of CARDS, and `together`, a committee of the first three."""
  folder = tmp_path_factory.mktemp('inference')
  tokenizer = load_tokenizer(tiny_corpus / 'tokenizer.model')
  for seed, (name, changes) in enumerate(CARDS.items()):
    member = fake_classifiers.make_classifier(tokenizer, seed, **changes)
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


def test_the_best_pieces_come_first_for_each_hole(tiny_run: Path):
  guesses = inference.fill_mask(tiny_run, 'the <mask> sleeps near the <mask> .', 4)
  assert [guess.hole for guess in guesses] == [1] * 4 + [2] * 4
  for hole in (guesses[:4], guesses[4:]):
    shares = [guess.probability for guess in hole]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
    assert not {guess.piece for guess in hole} & set(tokenizer.SPECIAL_TOKENS)


def test_probabilities_are_those_of_the_model(tiny_run: Path):
  tokenizer, config = (
    load_tokenizer(tiny_run / 'tokenizer.model'),
    pretrained.load_config(tiny_run).model,
  )
  shapes = jax.eval_shape(lambda: init_masked_language_model(config, jax.random.key(0)))
  model = checkpoint.restore_part(tiny_run, shapes, 'model')
  before, after = tokenizer.encode(['a dog', 'near the tree .'])
  tokens = jnp.asarray([[BEGIN_ID, *before, MASK_ID, *after, END_ID]])
  logits = model(tokens, jnp.ones_like(tokens, bool), jnp.asarray([[1 + len(before)]]))[0, 0]
  for guess in inference.fill_mask(tiny_run, 'a dog <mask> near the tree .', 3):
    np.testing.assert_allclose(
      guess.probability, jax.nn.softmax(logits)[tokenizer.id(guess.piece)], rtol=1e-5
    )


def test_asking_for_everything_gives_every_piece_once(tiny_run: Path):
  tokenizer = load_tokenizer(tiny_run / 'tokenizer.model')
  # ids past the tokenizer are no pieces
  assert pretrained.load_config(tiny_run).model.vocab_size > tokenizer.size
  guesses = inference.fill_mask(tiny_run, '<mask>', 10_000)
  assert (
    len({guess.piece for guess in guesses}) == len(guesses) == tokenizer.size - len(SPECIAL_TOKENS)
  )


def test_case_does_not_matter(tiny_run: Path):
  assert inference.fill_mask(tiny_run, 'The DOG <mask> .', 3) == inference.fill_mask(
    tiny_run, 'the dog <mask> .', 3
  )


@pytest.mark.parametrize(
  'text, best, message',
  [
    ('the dog sleeps .', 5, 'no <mask>'),
    ('', 5, 'no <mask>'),
    ('<mask> ' + 'dog ' * 70, 5, 'at most 64'),
    ('<mask>', 0, 'at least 1'),
  ],
)
def test_what_cannot_be_filled_is_refused(tiny_run: Path, text: str, best: int, message: str):
  with pytest.raises(InputError, match=message):
    inference.fill_mask(tiny_run, text, best)


def test_a_vector_is_the_mean_over_the_tokens_of_its_text(model: LanguageModel):
  result = model.encode(TEXTS)
  assert result.shape == (5, 16) and result.dtype == np.float32 and np.isfinite(result).all()
  for place in (0, 1, 2):
    ids = [tokenizer.BEGIN_ID, *model.tokenizer.encode([TEXTS[place]])[0], tokenizer.END_ID]
    tokens = jnp.asarray([ids])
    expected = np.asarray(model.model.encoder(tokens, tokens != tokenizer.PAD_ID)[0]).mean(0)
    # whatever stood beside it
    np.testing.assert_allclose(result[place], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(result[3], result[0])


def test_texts_that_are_too_long_are_cut_and_counted(model: LanguageModel, capsys):
  long, cut = model.encode([TEXTS[4] + 'the pig rots .', TEXTS[4]])
  np.testing.assert_array_equal(long, cut)
  assert '2 of 2 texts are longer than 64 tokens' in capsys.readouterr().err


def test_any_number_of_texts_is_taken(model: LanguageModel):
  assert model.encode([]).shape == (0, 16)
  vector = model.encode(TEXTS[0])
  assert vector.shape == (1, 16)
  many = model.encode(text for text in TEXTS[:3] * 50)  # three batches
  np.testing.assert_allclose(many[::3], np.repeat(vector, 50, 0), rtol=1e-4, atol=1e-5)


def test_holes_are_filled_as_the_verb_does(model: LanguageModel, tiny_run: Path):
  text = 'the <mask> sleeps .'
  for prediction, other in zip(
    model.fill_mask(text, best=3), inference.fill_mask(tiny_run, text, 3), strict=True
  ):
    assert (prediction.hole, prediction.piece) == (
      other.hole,
      other.piece,
    ) and prediction.probability == pytest.approx(other.probability)


def test_labels_are_those_of_the_verb(classifiers: Path):
  texts = fake_classifiers.TEXTS[:2]
  for name, where in (
    ('classifier-0', ('', str(classifiers / 'classifier-0'))),
    ('together', (str(classifiers / 'together'), '')),
  ):
    answers = minilm_jax.load(classifiers / name)
    expected = [inference.predict(*where, text, '', '')[0] for text in texts]
    for prediction, other in zip(answers.predict(texts), expected, strict=True):
      assert (prediction['text'], prediction['label']) == (other['text'], other['label'])
      assert prediction['probability'] == pytest.approx(other['probability'], rel=1e-4)
    assert answers.predict([]) == [] and 'negative, positive, neutral' in repr(answers)
  (result,) = minilm_jax.load(classifiers / 'pairs').predict('a dog', 'a cat')
  assert (result['text'], result['pair']) == ('a dog', 'a cat')
  for call, message in (
    (lambda: answers.encode('a'), 'load the pre-training run'),
    (lambda: answers.fill_mask('a'), 'know no'),
    (lambda: answers.predict('a', 'b'), 'leave pairs out'),
    (lambda: minilm_jax.load(classifiers / 'pairs').predict('a'), 'give pairs too'),
  ):
    with pytest.raises(minilm_jax.InputError, match=message):
      call()


def test_weights_are_placed_once_and_loading_is_quiet(
  classifiers: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys
):
  placed, stack_members = [], classifier.stack_members
  monkeypatch.setattr(
    classifier,
    'stack_members',
    lambda members: placed.append(len(members)) or stack_members(members),
  )
  model = minilm_jax.load(classifiers / 'together')
  assert not caplog.records and capsys.readouterr() == ('', '')
  assert model.predict(fake_classifiers.TEXTS[0]) == model.predict(
    fake_classifiers.TEXTS[0]
  ) and placed == [3]


def test_what_cannot_be_used_is_refused(
  model: LanguageModel, tiny_run: Path, tiny_corpus: Path, tmp_path: Path
):
  for call, message in (
    (lambda: model.encode(['a', None]), 'number 1 is None'),
    (lambda: model.encode(7), 'number 0 is 7'),
    (lambda: model.fill_mask('no hole'), 'no <mask>'),
    (lambda: model.fill_mask(3), 'is 3'),
    (lambda: model.predict('a'), 'config.save_classifiers=True'),
    (lambda: minilm_jax.load(str(tmp_path / 'none')), 'no file'),
    (lambda: minilm_jax.load(str(tiny_corpus)), "kind 'corpus'"),
  ):
    with pytest.raises(minilm_jax.InputError, match=message):
      call()


def test_a_model_says_what_it_is(model: LanguageModel, tiny_run: Path):
  assert repr(model).startswith(
    f"LanguageModel('{tiny_run}', update 8: 1 layers, hidden 16, 520 pieces"
  )


def test_an_imported_run_opens(tmp_path: Path):
  pytest.importorskip('tokenizers', reason='needs tokenizers, which is of the extra [hf]')
  hf_import.import_model(fake_hf_folders.write_folder(tmp_path / 'theirs'), tmp_path / 'run')
  model = minilm_jax.load(tmp_path / 'run')
  assert model.encode(['the dog was good', '']).shape == (2, 16)
  assert len(model.fill_mask('The <mask> was good', best=2)) == 2
  with pytest.raises(minilm_jax.InputError, match='config.save_classifiers=True'):
    model.predict('the dog was good')


def test_code_that_a_run_names_waits_for_trust(
  tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
  module = 'configs.examples.gated_rotary'
  monkeypatch.setattr(recipe, '_trusted', set())
  custom.load_custom_encoder.cache_clear()
  shutil.copytree(tiny_run, tmp_path / 'run')
  config = json.loads((tiny_run / run_dir.CONFIG).read_text())
  config['model']['encoder'] = f'{module}:Encoder'
  (tmp_path / 'run' / run_dir.CONFIG).write_text(json.dumps(config))
  with pytest.raises(minilm_jax.InputError, match=f"in Python trust='{module}'"):
    minilm_jax.load(tmp_path / 'run')
  # another than the checkpoint's
  with pytest.raises(minilm_jax.InputError, match='is missing there'):
    minilm_jax.load(tmp_path / 'run', trust=module)


def test_the_package_imports_nothing_heavy():
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
  result = set(done.stdout.split())
  heavy = result - sys.stdlib_module_names - {'minilm_jax', '__main__'} | result & {
    'asyncio',
    'multiprocessing',
    'ssl',
  }
  assert not heavy, f'import minilm_jax imports {heavy}'


def test_a_committee_answers_by_both_means(classifiers: Path):
  (result,) = predict(classifiers, 'together', 'the dog sleeps .')
  logits = committee.load_committee(classifiers / 'together').logits(
    fake_classifiers.make_examples(('the dog sleeps .',))
  )
  for answer, combination in (
    (result, committee_scores.PROBABILITY),
    (result['mean_logit'], committee_scores.LOGIT),
  ):
    shares = committee_scores.combine_outputs(logits, combination)[0]
    assert list(answer['probabilities']) == list(fake_classifiers.LABELS)
    np.testing.assert_allclose(list(answer['probabilities'].values()), shares)
    assert (
      answer['label'] == fake_classifiers.LABELS[shares.argmax()]
      and answer['probability'] == shares.max()
    )
    assert sum(answer['probabilities'].values()) == pytest.approx(1)
  assert sum(result['votes'].values()) == 3 and result['text'] == 'the dog sleeps .'


def test_a_row_of_a_file_is_answered_like_its_text(classifiers: Path, tmp_path: Path):
  path = write_table(tmp_path, *({'text': text, 'other': 3} for text in fake_classifiers.TEXTS))
  result = predict(classifiers, 'classifier-0', file=path)
  assert [prediction['text'] for prediction in result] == list(
    fake_classifiers.TEXTS
  ) and 'votes' not in result[0]
  for prediction in result:
    (alone,) = predict(classifiers, 'classifier-0', prediction['text'])
    assert alone['label'] == prediction['label'] and alone['probability'] == pytest.approx(
      prediction['probability'], abs=1e-4
    )


def test_pairs_joined_texts_and_numbers(classifiers: Path, tmp_path: Path):
  (result,) = predict(classifiers, 'pairs', 'a dog .', 'the fox .')
  assert (result['text'], result['pair']) == ('a dog .', 'the fox .')
  (again,) = predict(
    classifiers,
    'pairs',
    file=write_table(tmp_path, {'sentence1': 'a dog .', 'sentence2': 'the fox .'}),
  )
  assert again == result
  assert set(predict(classifiers, 'number', 'a dog .')[0]) == {'text', 'value'}
  (joined,) = predict(
    classifiers,
    'joined',
    file=write_table(tmp_path, {'title': 'a dog', 'description': 'the fox .'}),
  )
  assert (
    joined
    == predict(classifiers, 'joined', 'a dog', 'the fox .')[0]
    == predict(classifiers, 'joined', 'a dog the fox .')[0]
  )


def test_a_reader_sees_a_table_and_a_program_lines(classifiers: Path, tmp_path: Path, capsys):
  for model_name in ('together', 'classifier-0', 'number'):
    for table in inference.prediction_tables(predict(classifiers, model_name, 'the dog ' * 20)):
      rich.console.Console(width=200).print(table)
  assert '...' in capsys.readouterr().out
  path = write_table(tmp_path, {'text': 'a dog .'}, {'text': 'the fox .'})
  assert (
    main.main(['predict', f'--committee={classifiers}/together', f'--file={path}', '--json']) == 0
  )
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [prediction['text'] for prediction in lines] == [
    'a dog .',
    'the fox .',
  ] and lines == predict(classifiers, 'together', file=path)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ('--text=a', 'no --committee and no --classifier'),
    ('--committee=HOME/together --classifier=HOME/pairs --text=a', 'both'),
    ('--committee=HOME/together', 'no --text and no --file'),
    ('--committee=HOME/together --text=', 'no --text and no --file'),
    ('--committee=HOME/together --text=a --file=HOME/x', 'a text beside --file'),
    ('--committee=HOME/together --file=HOME/x', 'no such file'),
    ('--committee=HOME/together --text=a --text_pair=b', 'about one text'),
    ('--classifier=HOME/pairs --text=a', 'sentence1 and sentence2'),
    ('--committee=HOME/pairs --text=a', 'no file'),
    ('--classifier=HOME/together --text=a', 'something else'),
    ('--classifier=HOME/nothing --text=a', 'no such folder'),
    ('--committee=HOME/together --file=EMPTY', 'no rows'),
    ('--committee=HOME/together --file=STRANGE', 'row 1 has headline'),
    ('--classifier=HOME/pairs --file=STRANGE', "text in 'sentence1'"),
  ],
)
def test_what_cannot_be_answered_is_refused(
  arguments: str, message: str, classifiers: Path, tmp_path: Path, capsys
):
  (tmp_path / 'empty.jsonl').write_text('')
  arguments = arguments.replace('HOME', str(classifiers)).replace(
    'EMPTY', str(tmp_path / 'empty.jsonl')
  )
  if 'STRANGE' in arguments:
    arguments = arguments.replace('STRANGE', write_table(tmp_path, {'headline': 'a'}))
  assert main.main(['predict', *arguments.split()]) == 2
  err = capsys.readouterr().err
  assert message in err and err.startswith('asked: ') and 'to do: ' in err, err


def test_no_text_is_refused_before_anything_is_opened():
  with pytest.raises(InputError, match='no --text'):
    inference.predict('nowhere', '', ' ', '', '')
