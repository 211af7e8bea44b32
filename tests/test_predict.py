"""Predictions: of a text and of files, by a committee and by one classifier; what cannot be answered is refused."""

import json
import pathlib

import numpy as np
import pytest
import rich.console

from minilm_jax import __main__ as door
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.tasks import committee, predict, subsets
from tests import fake_classifiers


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def home(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Three classifiers, a committee of them, one on pairs and a regression."""
  folder, reads = tmp_path_factory.mktemp('predict'), pieces.load(tiny_corpus / 'tokenizer.model')
  for seed in range(3):
    fake_classifiers.save_classifier(folder / f'classifier-{seed}', fake_classifiers.make_classifier(reads, seed))
  committee.make(f'{folder}/classifier-*', folder / 'together')
  fake_classifiers.save_classifier(folder / 'pairs', fake_classifiers.make_classifier(reads, 4, fields=('sentence1', 'sentence2')))
  fake_classifiers.save_classifier(folder / 'number', fake_classifiers.make_classifier(reads, 5, task_kind='regression', labels=()))
  fake_classifiers.save_classifier(folder / 'joined', fake_classifiers.make_classifier(reads, 6, fields=('title', 'description'), joined=True))
  return folder


def ask(home: pathlib.Path, who: str, text: str = '', pair: str = '', file: str = '') -> list[dict]:
  folder = str(home / who)
  return predict.predict(*((folder, '') if who == 'together' else ('', folder)), text, pair, file)


def table(folder: pathlib.Path, *rows: dict) -> str:
  (folder / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(folder / 'x.jsonl')


def test_a_committee_answers_by_both_means(home: pathlib.Path):
  (found,) = ask(home, 'together', 'the dog sleeps .')
  logits = committee.load(home / 'together').logits(fake_classifiers.make_examples(('the dog sleeps .',)))
  for answer, how in ((found, subsets.PROBABILITY), (found['mean_logit'], subsets.LOGIT)):
    shares = subsets.combine(logits, how)[0]
    assert list(answer['probabilities']) == list(fake_classifiers.LABELS)
    np.testing.assert_allclose(list(answer['probabilities'].values()), shares)
    assert answer['label'] == fake_classifiers.LABELS[shares.argmax()] and answer['probability'] == shares.max()
    assert sum(answer['probabilities'].values()) == pytest.approx(1)
  assert sum(found['votes'].values()) == 3 and found['text'] == 'the dog sleeps .'


def test_a_row_of_a_file_is_answered_like_its_text(home: pathlib.Path, tmp_path: pathlib.Path):
  path = table(tmp_path, *({'text': text, 'other': 3} for text in fake_classifiers.TEXTS))
  found = ask(home, 'classifier-0', file=path)
  assert [one['text'] for one in found] == list(fake_classifiers.TEXTS) and 'votes' not in found[0]
  for one in found:
    (alone,) = ask(home, 'classifier-0', one['text'])
    assert alone['label'] == one['label'] and alone['probability'] == pytest.approx(one['probability'], abs=1e-4)


def test_pairs_joined_texts_and_numbers(home: pathlib.Path, tmp_path: pathlib.Path):
  (found,) = ask(home, 'pairs', 'a dog .', 'the fox .')
  assert (found['text'], found['pair']) == ('a dog .', 'the fox .')
  (again,) = ask(home, 'pairs', file=table(tmp_path, {'sentence1': 'a dog .', 'sentence2': 'the fox .'}))
  assert again == found
  assert set(ask(home, 'number', 'a dog .')[0]) == {'text', 'value'}
  (joined,) = ask(home, 'joined', file=table(tmp_path, {'title': 'a dog', 'description': 'the fox .'}))
  assert joined == ask(home, 'joined', 'a dog', 'the fox .')[0] == ask(home, 'joined', 'a dog the fox .')[0]


def test_a_reader_sees_a_table_and_a_program_lines(home: pathlib.Path, tmp_path: pathlib.Path, capsys):
  for who in ('together', 'classifier-0', 'number'):
    for made in predict.tables(ask(home, who, 'the dog ' * 20)):
      rich.console.Console(width=200).print(made)
  assert '...' in capsys.readouterr().out
  path = table(tmp_path, {'text': 'a dog .'}, {'text': 'the fox .'})
  assert door.main(['predict', f'--committee={home}/together', f'--file={path}', '--json']) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [one['text'] for one in lines] == ['a dog .', 'the fox .'] and lines == ask(home, 'together', file=path)


@pytest.mark.parametrize('arguments, said', [
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
    ('--committee=HOME/together --file=STRANGE', "row 1 has headline"),
    ('--classifier=HOME/pairs --file=STRANGE', "text in 'sentence1'"),
])
def test_what_cannot_be_answered_is_refused(arguments: str, said: str, home: pathlib.Path, tmp_path: pathlib.Path, capsys):
  (tmp_path / 'empty.jsonl').write_text('')
  arguments = arguments.replace('HOME', str(home)).replace('EMPTY', str(tmp_path / 'empty.jsonl'))
  if 'STRANGE' in arguments:
    arguments = arguments.replace('STRANGE', table(tmp_path, {'headline': 'a'}))
  assert door.main(['predict', *arguments.split()]) == 2
  err = capsys.readouterr().err
  assert said in err and err.startswith('asked: ') and 'to do: ' in err, err


def test_no_text_is_refused_before_anything_is_opened():
  with pytest.raises(InputError, match='no --text'):
    predict.predict('nowhere', '', ' ', '', '')
