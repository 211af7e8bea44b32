"""Tests encoded tasks: disjoint splits, short rows, and only the token ids in use."""

import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import (
  BEGIN_ID,
  END_ID,
  MASK_ID,
  PAD_ID,
  SPECIAL_TOKENS,
  UNKNOWN_ID,
  Tokenizer,
)
from minilm_jax.tasks import task_data
from minilm_jax.tasks.examples import Examples
from minilm_jax.tasks.task_data import TaskData, TaskRows
from tests.fake_runs import write_examples
from tests.tiny_config import make_finetune_config

WORDS = 'the dogs near a tree sleep and many foxes find these pears .'.split()


@pytest.fixture(scope='module')
def rows() -> TaskRows:
  """Returns rows of geometric lengths; the longest fills its row."""
  draw = np.random.default_rng(0)
  counts = np.append(np.minimum(draw.geometric(0.06, 149) + 2, 77), 77)
  sequences = [[BEGIN_ID, *draw.integers(20, 400, n).tolist(), END_ID] for n in counts]
  return task_data.build_task_rows(sequences, np.arange(150, dtype=np.int32), 80)


def examples(first: list[str], second: list[str] | None = None) -> Examples:
  return Examples(tuple(first), tuple(second or ()), np.zeros(len(first), np.int32))


def test_rows_have_special_tokens_around_the_texts(tiny_tokenizer: Tokenizer):
  a, b = tiny_tokenizer.encode(['the dog', 'a fox'])
  single = [BEGIN_ID, *a, END_ID]
  assert task_data.encode_examples(examples(['the dog']), tiny_tokenizer, 64) == ([single], 0)
  pair = [BEGIN_ID, *a, END_ID, END_ID, *b, END_ID]
  assert task_data.encode_examples(examples(['the dog'], ['a fox']), tiny_tokenizer, 64) == (
    [pair],
    0,
  )


def test_case_is_folded(tiny_tokenizer: Tokenizer):
  texts = examples(['The DOG sleeps .', 'the dog sleeps .'])
  (upper, lower), _ = task_data.encode_examples(texts, tiny_tokenizer, 64)
  assert upper == lower and UNKNOWN_ID not in upper


@pytest.mark.parametrize('text', ['<mask> <pad> </s> <s>', '', '   '])
def test_texts_are_not_encoded_as_special_ids(tiny_tokenizer: Tokenizer, text: str):
  (ids,), _ = task_data.encode_examples(examples([text]), tiny_tokenizer, 64)
  assert (ids[0], ids[-1]) == (BEGIN_ID, END_ID)
  assert not {BEGIN_ID, END_ID, PAD_ID, MASK_ID} & set(ids[1:-1])


def test_truncation_shortens_the_end_of_the_longer_text(tiny_tokenizer: Tokenizer):
  rng = random.Random(0)
  sides = [
    [' '.join(rng.choices(WORDS, k=rng.randrange(30))) for _ in range(200)] for _ in range(2)
  ]
  full, num_full = task_data.encode_examples(examples(*sides), tiny_tokenizer, 1000)
  truncated, num_truncated = task_data.encode_examples(examples(*sides), tiny_tokenizer, 24)
  assert num_full == 0 and num_truncated == sum(len(ids) > 24 for ids in full) > 20
  for before, after in zip(full, truncated, strict=True):
    assert len(after) == min(24, len(before))
    (a, b), (c, d) = split_pair(before), split_pair(after)
    assert c == a[: len(c)] and d == b[: len(d)]
    if before != after:
      assert abs(len(c) - len(d)) <= 1 or min(len(c), len(d)) == min(len(a), len(b))
  (ids,), num_truncated = task_data.encode_examples(examples(['the dog ' * 40]), tiny_tokenizer, 16)
  assert len(ids) == 16 and ids[-1] == END_ID and num_truncated == 1


def split_pair(ids: list[int]) -> tuple[list[int], list[int]]:
  middle = next(i for i in range(len(ids)) if ids[i] == ids[i + 1] == END_ID)
  return ids[1:middle], ids[middle + 2 : -1]


@pytest.mark.parametrize(
  'lengths, longest, expected',
  [([3], 128, 16), ([16], 128, 16), ([17, 2], 128, 32), ([100], 100, 100)],
)
def test_bucket_lengths_are_multiples_of_16_or_the_maximum(
  lengths: list[int], longest: int, expected: int
):
  assert task_data.bucket_length([[0] * n for n in lengths], longest) == expected


@pytest.mark.parametrize('labels', [np.array([1, 0], np.int32), np.array([2.5, 0.1], np.float32)])
def test_rows_are_padded_at_the_end(labels: np.ndarray):
  rows = task_data.build_task_rows([[0, 7, 2], [0, 7, 8, 9, 2]], labels, 6)
  assert rows.tokens.tolist() == [[0, 7, 2, 1, 1, 1], [0, 7, 8, 9, 2, 1]]
  assert rows.lengths.tolist() == [3, 5]
  assert rows.labels.dtype == labels.dtype and np.array_equal(rows.labels, labels)


def test_batch_lengths_fit_increasing_shares_of_the_rows(rows: TaskRows):
  lengths = task_data.choose_lengths(rows)
  assert len(lengths) in (3, 4) and list(lengths) == sorted(set(lengths)) and lengths[-1] == 80
  assert all(length % 16 == 0 for length in lengths)
  shares = [np.mean(rows.lengths <= length) for length in lengths]
  assert shares[0] >= 0.4 and shares[-2] >= 0.95 and shares[-1] == 1
  for length in lengths[:-1]:  # no length is longer than necessary
    assert np.any((length - 16 < rows.lengths) & (rows.lengths <= length))


@pytest.mark.parametrize(
  'counts, length, expected',
  [
    ([5] * 9, 16, (16,)),
    ([5] * 9, 64, (16, 64)),
    ([40], 64, (48, 64)),
    ([21, 21], 21, (21,)),
    ([1] * 5 + [70] * 5, 70, (16, 70)),
  ],
)
def test_the_last_batch_length_is_the_row_length(counts: list, length: int, expected: tuple):
  sequences, labels = [[7] * count for count in counts], np.zeros(len(counts), np.int32)
  rows = task_data.build_task_rows(sequences, labels, length)
  assert task_data.choose_lengths(rows) == expected


def test_narrow_ids_are_indices_into_the_used_ids(rows: TaskRows):
  other = task_data.build_task_rows([[BEGIN_ID, 450, 9, END_ID]], np.zeros(1, np.int32), 16)
  used = task_data.list_used_ids((rows, other))
  assert {9, 450} < set(used.tolist()) and len(used) < 400
  assert np.array_equal(used, np.unique(used))
  for part in (rows, other):
    narrow = task_data.narrow_ids(part, used)
    assert np.array_equal(used[narrow.tokens], part.tokens) and narrow.tokens.max() < len(used)
    assert narrow.lengths is part.lengths and narrow.labels is part.labels
    special = part.tokens < len(SPECIAL_TOKENS)
    assert np.array_equal(narrow.tokens[special], part.tokens[special])
    assert np.array_equal((narrow.tokens != PAD_ID).sum(1), part.lengths)
  short = task_data.build_task_rows([[BEGIN_ID, 300, END_ID]], np.zeros(1, np.int32), 3)
  assert task_data.list_used_ids((short,)).tolist() == [*range(len(SPECIAL_TOKENS)), 300]


@pytest.mark.parametrize('size', [1, 7, 64, 150, 400])
def test_batches_have_each_row_once_sorted_by_length(rows: TaskRows, size: int):
  parts = [jax.tree.map(lambda x: x[:9], rows), jax.tree.map(lambda x: x[9:], rows)]
  tokens, places = task_data.batch_rows(parts, size)
  assert list(map(len, places)) == [9, 141]
  place = np.concatenate(places)
  assert tokens.shape == (-(-150 // size), size, 80)
  assert np.array_equal(tokens.reshape(-1, 80)[place], rows.tokens)
  assert len(set(place.tolist())) == 150
  longest = (tokens != PAD_ID).sum(-1)
  assert np.all(longest.max(1)[:-1] <= longest.min(1)[1:])


ADJECTIVES = ('bad', 'good')
NOUNS = 'dog fox pig seal cow hen duck swan tree pear bone wolf'.split()


def make_config(task: str = 'microworld/sentiment', **changes: Any) -> FinetuneConfig:
  return make_finetune_config(task, **{'task.max_train_examples': 48, **changes})


def sentences(labels: tuple[int, ...] = (0, 1)) -> list[dict]:
  return [
    {'sentence': f'the {ADJECTIVES[label]} {noun} sleeps .', 'label': label}
    for label in labels
    for noun in NOUNS
  ]


def pairs(count: int, label: int | None = None, first: int = 0) -> list[dict]:
  return [
    {
      'sentence1': f'the {NOUNS[i % 12]} sleeps .',
      'sentence2': f'a {NOUNS[i // 12]} runs .',
      'idx': first + i,
      'label': i % 2 if label is None else label,
    }
    for i in range(count)
  ]


def premises(count: int, label: int | None = None, first: int = 0) -> list[dict]:
  return [
    {
      'premise': row['sentence1'],
      'hypothesis': row['sentence2'],
      'idx': row['idx'],
      'label': i % 3 if label is None else label,
    }
    for i, row in enumerate(pairs(count, first=first))
  ]


def list_rows(data: TaskData, split: str) -> list[tuple[int, ...]]:
  """Returns the rows of a split in ids of the tokenizer, without pads."""
  tokens = data.used_ids[data.rows[split].tokens]
  return [tuple(row[row != PAD_ID].tolist()) for row in tokens]


def prepare(tokenizer: Tokenizer, task: str = 'microworld/sentiment', **changes: Any) -> TaskData:
  return task_data.prepare_task_data(make_config(task, **changes), 64, tokenizer)


def prepare_folder(tokenizer: Tokenizer, task: str, folder: str, **changes: Any) -> TaskData:
  return prepare(tokenizer, task, **{'task.folder': folder}, **changes)


def test_rows_have_the_shortest_possible_length(tiny_tokenizer: Tokenizer):
  data = prepare(tiny_tokenizer)
  assert data.rows.keys() == {'train', 'validation'} and data.reported == ('validation',)
  assert not data.truncated
  length = data.rows['train'].tokens.shape[1]
  assert all(part.tokens.shape[1] == length and length % 16 == 0 for part in data.rows.values())
  assert max(part.lengths.max() for part in data.rows.values()) > length - 16
  assert data.lengths[-1] == length
  assert [len(part.labels) for part in data.rows.values()] == [48, 1000]


def test_used_ids_are_the_ids_of_all_rows(tiny_tokenizer: Tokenizer, tmp_path: Path):
  folder = write_examples(
    tmp_path / 'data',
    train=sentences(),
    validation=[{'sentence': 'a BAD Wolf sleeps !', 'label': 0}],
  )
  data = prepare_folder(tiny_tokenizer, 'sentiment', folder)
  (ids,) = tiny_tokenizer.encode(['a bad wolf sleeps !'])
  assert list_rows(data, 'validation') == [(BEGIN_ID, *ids, END_ID)]
  ids = {piece for split in data.rows for text in list_rows(data, split) for piece in text}
  assert set(data.used_ids.tolist()) == ids | set(range(len(SPECIAL_TOKENS)))
  assert len(data.used_ids) < tiny_tokenizer.size


@pytest.mark.parametrize('fraction', [0.1, 0.5])
def test_the_validation_part_is_not_trained_on(tiny_tokenizer: Tokenizer, fraction: float):
  full, split = (prepare(tiny_tokenizer, validation_fraction=value) for value in (0.0, fraction))
  train, validation = list_rows(split, 'train'), list_rows(split, 'held_out')
  assert sorted(train + validation) == sorted(list_rows(full, 'train'))
  assert not set(train) & set(validation)
  assert abs(len(validation) - fraction * 48) <= 2 and 'held_out' not in full.rows
  assert list_rows(split, 'validation') == list_rows(full, 'validation')


def test_a_head_with_weights_for_positions_has_full_rows(tiny_tokenizer: Tokenizer):
  data = prepare(tiny_tokenizer, length=8, **{'head.pooling': 'positions'})
  assert data.rows['train'].tokens.shape == (48, 64) and data.lengths == (64,)
  assert data.truncated and data.rows['train'].lengths.max() == 8


def test_truncated_examples_are_counted_and_logged(
  tiny_tokenizer: Tokenizer, tmp_path: Path, capsys
):
  rows = [
    {'sentence1': 'the dog sleeps . ' * n, 'sentence2': 'a fox runs . ' * 9, 'label': n % 2}
    for n in range(1, 9)
  ]
  folder = write_examples(tmp_path / 'data', train=rows, validation=rows[:4])
  data = prepare_folder(tiny_tokenizer, 'rte', folder)
  long = [
    sum(map(len, tiny_tokenizer.encode([row['sentence1'], row['sentence2']]))) + 4 > 64
    for row in rows
  ]
  assert data.truncated == sum(long) + sum(long[:4]) > 0
  assert data.rows['train'].tokens.shape == (8, 64)
  log = capsys.readouterr().err
  assert f'rte: truncated {data.truncated} ' in log and '64 tokens' in log


@pytest.mark.parametrize('split', ['train', 'validation'])
@pytest.mark.parametrize(
  'rows, match',
  [
    ([*sentences(), {'sentence': 'a dog .', 'label': None}], '1 of '),
    ([], 'split of sentiment'),
    ([{'sentence': 'a dog .'}], "'label'"),
    ([{'sentence': 'a dog .', 'label': 'positiv'}], "'positive'"),
  ],
)
def test_an_invalid_split_is_refused(
  tiny_tokenizer: Tokenizer, tmp_path: Path, split: str, rows: list, match: str
):
  splits = {'train': sentences(), 'validation': sentences(), split: rows}
  with pytest.raises(InputError, match=match):
    prepare_folder(tiny_tokenizer, 'sentiment', write_examples(tmp_path / 'data', **splits))


@pytest.mark.parametrize('fraction', [0.0, 0.25])
def test_the_training_split_is_not_reported(
  tiny_tokenizer: Tokenizer, tmp_path: Path, fraction: float
):
  folder = write_examples(tmp_path / 'data', train=sentences(), validation=sentences())
  fields = {'validation_fraction': fraction, 'task.split': 'train'}
  with pytest.raises(InputError, match='task.split=train'):
    prepare_folder(tiny_tokenizer, 'sentiment', folder, **fields)


@pytest.mark.parametrize('count', [0, 1])
def test_a_label_with_too_few_examples_is_refused(
  tiny_tokenizer: Tokenizer, tmp_path: Path, count: int
):
  train = [*sentences((0,)), *sentences((1,))[:count]]
  folder = write_examples(tmp_path / 'data', train=train, validation=sentences())
  with pytest.raises(InputError, match="the label 'positive' of sentiment"):
    prepare_folder(tiny_tokenizer, 'sentiment', folder)


def test_unlabelled_test_splits_are_encoded_for_predictions(
  tiny_tokenizer: Tokenizer, tmp_path: Path
):
  folder = write_examples(
    tmp_path / 'data', train=pairs(24), validation=pairs(6), test=pairs(9, -1, 70)[::-1]
  )
  plain, full = (
    prepare_folder(tiny_tokenizer, 'rte', folder, predictions=value) for value in (False, True)
  )
  assert not plain.unlabelled and plain.rows.keys() == {'train', 'validation'}
  assert {split: task.name for split, task in full.unlabelled.items()} == {'test': 'rte'}
  assert full.numbers == {'test': tuple(range(78, 69, -1))} and full.reported == ('validation',)
  assert full.rows['test'].labels.tolist() == [-1] * 9


def test_a_missing_test_split_is_logged(tiny_tokenizer: Tokenizer, tmp_path: Path, capsys):
  folder = write_examples(tmp_path / 'data', train=pairs(24), validation=pairs(6))
  data = prepare_folder(tiny_tokenizer, 'rte', folder, predictions=True)
  assert not data.unlabelled and 'rte test' in capsys.readouterr().err


@pytest.mark.parametrize('change', [{'idx': 'x'}, {'sentence1': None}, {'label': 'z'}])
def test_an_invalid_test_split_is_refused(tiny_tokenizer: Tokenizer, tmp_path: Path, change: dict):
  test = [row | change for row in pairs(2, -1, 70)]
  folder = write_examples(tmp_path / 'data', train=pairs(24), validation=pairs(6), test=test)
  with pytest.raises(InputError, match='row 1 of the test split of rte'):
    prepare_folder(tiny_tokenizer, 'rte', folder, predictions=True)


def test_models_of_mnli_predict_all_parts_and_ax(tiny_tokenizer: Tokenizer, tmp_path: Path):
  folder = write_examples(
    tmp_path / 'data',
    train=premises(24),
    validation_matched=premises(6),
    validation_mismatched=premises(5),
    test_matched=premises(4, -1),
    test_mismatched=premises(3, -1),
    test=premises(7, -1, 90),
  )
  data = prepare_folder(tiny_tokenizer, 'mnli', folder, predictions=True)
  assert data.reported == ('validation_matched', 'validation_mismatched')
  assert {
    split: (task.name, len(data.rows[split].labels)) for split, task in data.unlabelled.items()
  } == {'test_matched': ('mnli', 4), 'test_mismatched': ('mnli', 3), 'ax test': ('ax', 7)}
  assert data.numbers['ax test'] == tuple(range(90, 97))


def test_a_named_test_file_is_not_used_for_ax(tiny_tokenizer: Tokenizer, tmp_path: Path):
  folder = Path(
    write_examples(
      tmp_path / 'data', train=premises(24), validation=premises(6), test=premises(4, -1)
    )
  )
  files = {
    f'task.{split}': str(folder / f'{split}.jsonl') for split in ('train', 'validation', 'test')
  }
  data = prepare(tiny_tokenizer, 'mnli', predictions=True, **files)
  assert {split: task.name for split, task in data.unlabelled.items()} == {'test': 'mnli'}


def test_a_reported_test_split_is_not_unlabelled(tiny_tokenizer: Tokenizer, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=pairs(24), test=pairs(6))
  data = prepare_folder(tiny_tokenizer, 'rte', folder, predictions=True, **{'task.split': 'test'})
  assert data.reported == ('test',) and not data.unlabelled
  assert np.array_equal(data.rows['test'].labels, np.arange(6) % 2)
