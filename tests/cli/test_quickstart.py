"""The quickstart: no scored sentence in pre-training, all stages run, and a repeat changes nothing."""

import json
import pathlib
import re
from typing import Any

import pytest

from configs import microworld
from minilm_jax.cli import quickstart
from minilm_jax.core.errors import InputError

SPLITS = ('train', 'validation', 'test')
REVIEWS = [
  {
    'source': 'imdb',
    'text': 'A film with a dog.<br /><br />It is dull, dull, dull! See it?',
    'label': '0',
  },
  {'source': 'imdb', 'text': 'the best film of the year. so it goes', 'label': '1'},
  {'source': 'sst2', 'text': 'It is dull , dull , dull', 'label': '0'},  # also in a review
  # also in a review, which ends without a full stop
  {'source': 'sst2', 'text': 'so it goes', 'label': '1'},
  *(
    {
      'source': 'sst2',
      'text': f'a dog number {"abcdefgh"[i // 8]} {"abcdefgh"[i % 8]} barks',
      'label': str(i % 2),
    }
    for i in range(64)
  ),
  # a duplicate with other case and punctuation
  {'source': 'sst2', 'text': 'A dog , number b c , barks', 'label': '1'},
]


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def words(text: str) -> str:
  return ' '.join(re.findall('[a-z]+', text.lower()))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
  monkeypatch.setattr(quickstart, '_read_reviews', lambda: iter(REVIEWS))
  quickstart.prepare_reviews(quickstart.epath.Path(tmp_path / 'data'))
  return tmp_path / 'data'


def test_no_scored_sentence_is_in_the_documents(folder: pathlib.Path):
  texts = ' . '.join(
    words(re.sub(r'[.!?\n]', ' . ', row['text'])) for row in rows(folder / 'documents.jsonl')
  )
  assert 'dull dull dull' in texts
  splits = {
    split: [words(row['sentence']) for row in rows(folder / f'{split}.jsonl')] for split in SPLITS
  }
  sentences = sum(splits.values(), [])
  assert len(set(sentences)) == len(sentences) == 64 and all(splits.values())
  assert not {'it is dull dull dull', 'so it goes'} & set(sentences)


def test_swapped_sentences_differ_by_two_adjacent_words(folder: pathlib.Path):
  examples = sum((rows(folder / f'{split}.jsonl') for split in SPLITS), [])
  assert {row['order'] for row in examples} == {0, 1}
  for row in examples:
    before, after = row['sentence'].split(' '), row['text'].split(' ')
    changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    if row['order'] == 0:
      assert not changed
      continue
    first, second = changed
    assert second == first + 1 and before[first : second + 1] == after[first : second + 1][::-1]
    assert before[first].isalpha() and before[second].isalpha()


@pytest.mark.parametrize('sentence', ['dogs', 'very very very', "don't stop, now!", ''])
def test_a_sentence_without_two_words_to_swap_is_left_out(sentence: str):
  assert [quickstart.make_word_order_example(sentence, number) for number in range(4)] == [None] * 4


def test_documents_have_no_label_and_no_markup(folder: pathlib.Path):
  documents = rows(folder / 'documents.jsonl')
  assert [set(row) for row in documents] == [{'text'}] * 2 and '<br' not in documents[0]['text']


def test_a_sentence_stays_in_its_split(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.setattr(quickstart, '_read_reviews', lambda: iter(REVIEWS[:10]))
  quickstart.prepare_reviews(quickstart.epath.Path(tmp_path / 'smaller'))
  for split in SPLITS:
    smaller, larger = (
      {words(row['sentence']) for row in rows(source / f'{split}.jsonl')}
      for source in (tmp_path / 'smaller', folder)
    )
    assert smaller <= larger


def test_existing_files_are_not_written_again(folder: pathlib.Path, monkeypatch):
  def fail():
    raise AssertionError('the reviews were read again')

  monkeypatch.setattr(quickstart, '_read_reviews', fail)
  quickstart.prepare_reviews(quickstart.epath.Path(folder))


def test_a_missing_package_is_refused_with_an_alternative(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.setattr(quickstart, '_CSV', ('no_such_reviews', 'data.csv'))
  with pytest.raises(InputError, match='--language=microworld'):
    quickstart.run_quickstart('reviews', tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def small_recipes() -> dict[str, Any]:
  recipes = {part: microworld.get_config(part) for part in ('corpus', 'pretrain', 'finetune')}
  recipes['corpus'].documents.sources = 'microworld:300'
  recipes['corpus'].workers = 1
  recipes['pretrain'].update(num_steps=6, batch_size=4)
  recipes['pretrain'].model.update(
    embedding_size=16, hidden_size=16, intermediate_size=16, num_heads=2, num_layers=1
  )
  recipes['pretrain'].log.every, recipes['pretrain'].mesh.data = 2, 1
  recipes['finetune'].update(seeds='0,1', epochs=1.0)
  recipes['finetune'].task.max_train_examples = 32
  return recipes


def test_all_stages_run_once(tmp_path: pathlib.Path, capsys):
  workdir = quickstart.epath.Path(tmp_path)
  paths = quickstart.run_stages(small_recipes(), workdir)
  out = capsys.readouterr().out
  assert 'microworld/acceptability' in out and all(str(path) in out for path in paths.values())
  assert {'report.html', 'scores.csv', 'averages.csv', 'runs.csv', 'loss.svg', 'scores.png'} < set(
    paths
  )
  lines = (tmp_path / 'report' / 'scores.csv').read_text().splitlines()
  assert len(lines) == 2 and lines[1].startswith('microworld/acceptability,accuracy')
  logs = {path: path.read_bytes() for path in tmp_path.rglob('*.jsonl')}
  assert sorted(str(path.relative_to(tmp_path)) for path in logs) == [
    'pretrain/metrics.jsonl',
    'task/metrics.jsonl',
    'task/scores.jsonl',
  ]
  scores = rows(tmp_path / 'task' / 'scores.jsonl')  # both arms for each seed
  assert [(line['pretrained'], line['seed']) for line in scores] == [
    (True, 0),
    (True, 1),
    (False, 0),
    (False, 1),
  ]
  quickstart.run_stages(small_recipes(), workdir)
  assert capsys.readouterr().out == out
  assert {path: path.read_bytes() for path in tmp_path.rglob('*.jsonl')} == logs


@pytest.mark.slow
def test_pretraining_wins_on_the_microworld(tmp_path: pathlib.Path):
  """Five seeds, and the interval of the difference is above zero."""
  quickstart.run_quickstart('microworld', tmp_path)
  header, line = (tmp_path / 'report' / 'scores.csv').read_text().splitlines()
  row = dict(zip(header.split(','), line.split(','), strict=True))
  assert (row['pretrained_n'], row['scratch_n']) == ('5', '5')
  assert float(row['difference_low']) > 0.05
  assert float(row['pretrained_low']) > float(row['majority']) > float(row['scratch_mean']) - 0.1
