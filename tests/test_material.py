"""What a task gives: splits that share no example, rows as short as they may be, only the pieces that they hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import glue
from minilm_jax import recipe
from minilm_jax.config import FinetuneConfig
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.tasks import material
from minilm_jax.tasks.material import Material
from tests.fake_runs import write_examples

ADJECTIVES = ('bad', 'good')
NOUNS = 'dog fox pig seal cow hen duck swan tree pear bone wolf'.split()


def settings(task: str = 'microworld/sentiment', **changes: Any) -> FinetuneConfig:
  config = glue.get_config(task)
  config.update_from_flattened_dict({'task.max_train_examples': 48, **changes})
  return recipe.resolve(config, 'finetune')


def sentences(labels: tuple[int, ...] = (0, 1)) -> list[dict]:
  return [{'sentence': f'the {ADJECTIVES[label]} {noun} sleeps .', 'label': label} for label in labels for noun in NOUNS]


def pairs(count: int, label: int | None = None, first: int = 0) -> list[dict]:
  return [{'sentence1': f'the {NOUNS[i % 12]} sleeps .', 'sentence2': f'a {NOUNS[i // 12]} runs .', 'idx': first + i,
           'label': i % 2 if label is None else label} for i in range(count)]


def premises(count: int, label: int | None = None, first: int = 0) -> list[dict]:
  return [{'premise': row['sentence1'], 'hypothesis': row['sentence2'], 'idx': row['idx'],
           'label': i % 3 if label is None else label} for i, row in enumerate(pairs(count, first=first))]


@pytest.fixture(scope='module')
def tokenizer(tiny_corpus: Path) -> pieces.Tokenizer:
  return pieces.load(tiny_corpus / 'tokenizer.model')


def texts(ready: Material, split: str) -> list[tuple[int, ...]]:
  """The rows of a split with pieces as the tokenizer numbers them, and no pads."""
  tokens = ready.used[ready.rows[split].tokens]
  return [tuple(row[row != pieces.PAD].tolist()) for row in tokens]


def test_rows_are_as_short_as_they_may_be(tokenizer: pieces.Tokenizer):
  ready = material.prepare(settings(), 64, tokenizer)
  assert ready.rows.keys() == {'train', 'validation'} and ready.reported == ('validation',) and not ready.truncated
  length = ready.rows['train'].tokens.shape[1]
  assert all(part.tokens.shape[1] == length and length % 16 == 0 for part in ready.rows.values())
  assert max(part.lengths.max() for part in ready.rows.values()) > length - 16
  assert ready.lengths[-1] == length
  assert [len(part.labels) for part in ready.rows.values()] == [48, 1000]


def test_rows_use_no_pieces_but_those_of_the_task(tokenizer: pieces.Tokenizer, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=sentences(), validation=[{'sentence': 'a BAD Wolf sleeps !', 'label': 0}])
  ready = material.prepare(settings('sentiment', **{'task.folder': folder}), 64, tokenizer)
  (said,) = tokenizer.encode(['a bad wolf sleeps !'])  # in lower case, as every corpus is
  assert texts(ready, 'validation') == [(pieces.BEGIN, *said, pieces.END)]
  held = {piece for split in ready.rows for text in texts(ready, split) for piece in text}
  assert set(ready.used.tolist()) == held | set(range(len(pieces.SPECIAL)))
  assert len(ready.used) < tokenizer.size


@pytest.mark.parametrize('share', [0.1, 0.5])
def test_what_is_held_out_is_not_trained_on(tokenizer: pieces.Tokenizer, share: float):
  whole, parts = (material.prepare(settings(validation_fraction=held), 64, tokenizer) for held in (0.0, share))
  train, held = texts(parts, 'train'), texts(parts, 'held_out')
  assert sorted(train + held) == sorted(texts(whole, 'train')) and not set(train) & set(held)
  assert abs(len(held) - share * 48) <= 2 and 'held_out' not in whole.rows
  assert texts(parts, 'validation') == texts(whole, 'validation')  # what is reported stays what it is


def test_a_weight_a_position_keeps_every_position(tokenizer: pieces.Tokenizer):
  ready = material.prepare(settings(length=8, **{'head.pooling': 'positions'}), 64, tokenizer)
  assert ready.rows['train'].tokens.shape == (48, 64) and ready.lengths == (64,)
  assert ready.truncated and ready.rows['train'].lengths.max() == 8


def test_what_loses_its_end_is_counted_and_said(tokenizer: pieces.Tokenizer, tmp_path: Path, capsys):
  rows = [{'sentence1': 'the dog sleeps . ' * n, 'sentence2': 'a fox runs . ' * 9, 'label': n % 2} for n in range(1, 9)]
  config = settings('rte', **{'task.folder': write_examples(tmp_path / 'data', train=rows, validation=rows[:4])})
  ready = material.prepare(config, 64, tokenizer)  # the recipe says 128, the model reads 64
  long = [sum(map(len, tokenizer.encode([row['sentence1'], row['sentence2']]))) + 4 > 64 for row in rows]
  assert ready.truncated == sum(long) + sum(long[:4]) > 0
  assert ready.rows['train'].tokens.shape == (8, 64)
  assert f'rte: {ready.truncated} examples are longer than 64 tokens' in capsys.readouterr().err


@pytest.mark.parametrize('rows, said', [
    ([{'sentence': 'a dog .', 'label': -1}], 'no label'), ([], 'empty'), ([{'sentence': 'a dog .'}], "column 'label'"),
    ([{'sentence': 'a dog .', 'label': 'positiv'}], "did you mean 'positive'")])
def test_a_split_that_cannot_be_used_is_refused(tokenizer: pieces.Tokenizer, tmp_path: Path, rows: list, said: str):
  good = write_examples(tmp_path / 'good', train=sentences(), validation=rows)
  bad = write_examples(tmp_path / 'bad', train=[*rows, *sentences()] if rows else rows, validation=sentences())
  for folder in (good, bad):
    with pytest.raises(InputError, match=said):
      material.prepare(settings('sentiment', **{'task.folder': folder}), 64, tokenizer)


@pytest.mark.parametrize('train, said', [
    (sentences((0,)), "the label 'positive' of sentiment"),
    ([*sentences((0,)), *sentences((1,))[:1]], '1 training example\n')])
def test_a_label_that_cannot_be_learned_is_refused(tokenizer: pieces.Tokenizer, tmp_path: Path, train, said: str):
  folder = write_examples(tmp_path / 'data', train=train, validation=sentences())
  with pytest.raises(InputError, match=said):
    material.prepare(settings('sentiment', **{'task.folder': folder}), 64, tokenizer)


def test_test_splits_without_labels_are_there_to_be_predicted(tokenizer: pieces.Tokenizer, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=pairs(24), validation=pairs(6), test=pairs(9, -1, 70)[::-1])
  plain, full = (material.prepare(settings('rte', predictions=wanted, **{'task.folder': folder}), 64, tokenizer)
                 for wanted in (False, True))
  assert not plain.unlabelled and plain.rows.keys() == {'train', 'validation'}
  assert {split: task.name for split, task in full.unlabelled.items()} == {'test': 'rte'}
  assert full.numbers == {'test': tuple(range(78, 69, -1))} and full.reported == ('validation',)
  assert full.rows['test'].labels.tolist() == [-1] * 9


def test_a_missing_test_split_is_told_and_stops_nothing(tokenizer: pieces.Tokenizer, tmp_path: Path, capsys):
  folder = write_examples(tmp_path / 'data', train=pairs(24), validation=pairs(6))
  ready = material.prepare(settings('rte', predictions=True, **{'task.folder': folder}), 64, tokenizer)
  assert not ready.unlabelled and 'no predictions of rte test: there: ' in capsys.readouterr().err


def test_models_of_mnli_predict_both_its_parts_and_ax(tokenizer: pieces.Tokenizer, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=premises(24), validation_matched=premises(6),
                   validation_mismatched=premises(5), test_matched=premises(4, -1), test_mismatched=premises(3, -1),
                   test=premises(7, -1, 90))
  ready = material.prepare(settings('mnli', predictions=True, **{'task.folder': folder}), 64, tokenizer)
  assert ready.reported == ('validation_matched', 'validation_mismatched')
  assert {split: (task.name, len(ready.rows[split].labels)) for split, task in ready.unlabelled.items()} == {
      'test_matched': ('mnli', 4), 'test_mismatched': ('mnli', 3), 'ax test': ('ax', 7)}
  assert ready.numbers['ax test'] == tuple(range(90, 97))


def test_a_test_file_that_is_named_is_the_task_s_own(tokenizer: pieces.Tokenizer, tmp_path: Path):
  folder = Path(write_examples(tmp_path / 'data', train=premises(24), validation=premises(6), test=premises(4, -1)))
  files = {f'task.{split}': str(folder / f'{split}.jsonl') for split in ('train', 'validation', 'test')}
  ready = material.prepare(settings('mnli', predictions=True, **files), 64, tokenizer)
  assert {split: task.name for split, task in ready.unlabelled.items()} == {'test': 'mnli'}  # and not that of ax


def test_a_split_that_is_scored_is_not_predicted_for_the_server_too(tokenizer: pieces.Tokenizer, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=pairs(24), test=pairs(6))
  ready = material.prepare(settings('rte', predictions=True, **{'task.folder': folder, 'task.split': 'test'}), 64,
                           tokenizer)
  assert ready.reported == ('test',) and not ready.unlabelled
  assert np.array_equal(ready.rows['test'].labels, np.arange(6) % 2)
