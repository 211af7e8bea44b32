"""Word lists in every form, the rules of counting, and the filter of GLUE, as in the paper."""

import gzip
import json

import pytest

from minilm_jax.errors import InputError
from minilm_jax.language import documents, vocabulary
from tests.word_lists import PAPER_LIST, draw_text, split_honey_words



@pytest.mark.parametrize('seed', range(20))
def test_fields_one_by_one_count_as_the_rule_on_the_whole_text(seed):
  text = draw_text(seed, 200)
  found = [word for field in text.split() for word in vocabulary.counted_words(field, 'paper1')]
  assert found == split_honey_words(text)


def test_most_frequent_does_not_depend_on_order():
  counts = {'the': 5, 'cat': 2, 'dog': 2, 'ant': 1}
  first = vocabulary.most_frequent(counts, 2)
  assert first == vocabulary.most_frequent(dict(reversed(counts.items())), 2) and first.words == {'the', 'cat'}


def test_a_list_is_the_same_in_every_form(tmp_path):
  words = ['nan', 'dog', 'TRUE', 'größe']
  (tmp_path / 'a.txt').write_text('\n'.join(words) + '\n\n')
  (tmp_path / 'b.csv.gz').write_bytes(gzip.compress('\n'.join(f'1,{word}' for word in ['word', *words]).encode()))
  (tmp_path / 'c.jsonl').write_text(''.join(json.dumps({'word': word}) + '\n' for word in reversed(words)))
  lists = [vocabulary.load(tmp_path / name) for name in ('a.txt', 'b.csv.gz', 'c.jsonl')]
  assert all(one.words == set(words) and one.sha256 == lists[0].sha256 for one in lists)
  assert [one.name for one in lists] == ['a.txt', 'b.csv.gz', 'c.jsonl']


@pytest.mark.parametrize('name, text, said', [
    ('a.txt', '\n', 'no word in it'), ('a.txt', 'dog\nbig cat\n', 'line 2 is more than a word'),
    ('a.csv', 'term\ndog\n', 'row 1 has no word: term'), ('a.txt', 'd\0g', 'NUL'), ('none', None, 'no such file')])
def test_what_is_no_list_is_refused(tmp_path, name, text, said):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=said):
    vocabulary.load(tmp_path / name)


def test_the_list_of_the_paper(data):
  words = vocabulary.load(data / PAPER_LIST).words
  assert len(words) == 21_037
  assert {'nan', 'TRUE', 'FALSE', 'okay', 'gonna', 'youre', 'im', 'wanna', 'number'} <= words
  assert not words & {'children', 'women', 'mom', 'cookie', 'john', 'true', 'false'}


GLUE = {  # train, validation, test (paper 1, the filter's own counts)
    'cola': (5259, 653, 681), 'sst2': (21493, 113, 271), 'stsb': (2122, 611, 731), 'rte': (150, 14, 202),
    'wnli': (277, 39, 40), 'mrpc': (392, 39, 159), 'qnli': (None, 510, 504)}


@pytest.mark.parametrize('task', GLUE)
def test_the_filter_of_glue_keeps_what_the_paper_kept(data, task):
  words = vocabulary.load(data / PAPER_LIST).words
  for split, there in zip(('train', 'validation', 'test'), GLUE[task], strict=True):
    if there is not None:
      rows = documents.table_rows(str(data / 'glue' / task / f'{split}.jsonl.gz'), 'strict')
      asked = (row['sentence'] if 'sentence' in row else f'{row["sentence1"]} {row["sentence2"]}' for row in rows)
      assert sum(vocabulary.glue_inside(text, words) for text in asked) == there, split
