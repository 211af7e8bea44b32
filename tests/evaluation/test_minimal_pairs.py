"""Minimal pairs: 50 for whoever cannot tell, 100 for whoever knows, a mean over paradigms, and
nothing done twice.
"""

import csv
import json
import lzma
import math
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy import stats

from minilm_jax.cli import main
from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, tokenizer
from minilm_jax.evaluation import likelihood, minimal_pairs
from minilm_jax.evaluation.minimal_pairs import MinimalPair
from minilm_jax.training import pretrained

SIZES = {('agreement', 'a'): 6, ('agreement', 'b'): 2, ('islands', 'c'): 4}
PAIRS = [
  MinimalPair('good', 'bad', paradigm, phenomenon)
  for (phenomenon, paradigm), n in SIZES.items()
  for _ in range(n)
]
SENTENCES = [[10 + i] for i in range(len(PAIRS))] + [[50 + i] for i in range(len(PAIRS))]
TABLE = (
  'sentence_good,sentence_bad,UID,linguistics_term\n'
  'The dog sleeps .,The dog sleep .,verb,agreement\nthe dogs sleep .,the dogs sleeps .,verb,agreement\n'
  'this dog,this dogs,noun,agreement\nA cat sees it .,a cat sees it .,same,nothing\n'
)
FIELDS = {
  'task',
  'metric',
  'value',
  'low',
  'high',
  'headline',
  'split',
  'examples',
  'train_examples',
  'held_out',
  'pretrained',
  'checkpoint',
  'checkpoint_step',
  'filtered',
  'seed',
  'learning_rate',
  'member',
  'epoch',
  'epoch_choice',
  'validation_score',
  'majority',
  'frequency',
  'ties',
  'constant_prediction',
  'truncated',
}


def oracle(sentences: Sequence[Sequence[int]]) -> np.ndarray:
  return np.array([-1.0 if ids[0] < 50 else -2.0 for ids in sentences], np.float32)


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
  (tmp_path / 'mine.csv').write_text(TABLE)
  return tmp_path / 'mine.csv'


@pytest.mark.parametrize(
  'score, value, ties',
  [
    (oracle, 1.0, 0.0),
    (lambda sentences: -oracle(sentences), 0.0, 0.0),
    (lambda sentences: np.full(len(sentences), -7, np.float32), 0.5, 1.0),
  ],
)
def test_who_knows_and_who_cannot_tell(score, value: float, ties: float):
  result = minimal_pairs.compare_pairs(PAIRS, SENTENCES, score, None)
  for line in (result['all'], *result['phenomena'], *result['paradigms']):
    assert (line['value'], line['ties'], line['frequency']) == (value, ties, None)
    assert line['low'] <= value <= line['high'] and line['low'] < line['high']
  assert result['all']['pairs'] == 12 and result['all']['paradigms'] == 3
  assert result['tokens'] == 24 and result['unknown'] == 0 and result['identical'] == 0


def test_every_paradigm_counts_the_same():
  won = np.array([1] * 6 + [0] * 2 + [1, 1, 1, 0.5])
  result = minimal_pairs.summarize_pairs(PAIRS, won, 1 - won)
  assert [line['value'] for line in result['paradigms']] == [1, 0, 0.875]
  assert [(line['phenomenon'], line['value'], line['pairs']) for line in result['phenomena']] == [
    ('agreement', 0.5, 8),
    ('islands', 0.875, 4),
  ]
  assert result['all']['value'] == pytest.approx(1.875 / 3)
  assert result['all']['frequency'] == pytest.approx(1 - 1.875 / 3) and result['all'][
    'ties'
  ] == pytest.approx(1 / 12)


def test_a_tie_is_equal_in_float32():
  good, bad = np.array([1, 1, 1], np.float32), np.array([1 + 1e-9, 1 + 1e-6, 1 - 1e-6], np.float32)
  assert minimal_pairs.award_points(good, bad).tolist() == [0.5, 0, 1]


@pytest.mark.parametrize('right, n', [(0, 10), (7, 10), (530, 1000), (1000, 1000)])
def test_the_interval_is_wilsons(right: int, n: int):
  expected = stats.binomtest(right, n).proportion_ci(method='wilson')
  assert minimal_pairs.wilson_interval(right / n, n) == pytest.approx(
    (expected.low, expected.high), abs=1e-9
  )


def test_the_interval_holds_the_truth_as_often_as_it_says():
  draw, truths, sizes = np.random.RandomState(0), (0.3, 0.9), (40, 160)
  pairs = [MinimalPair('', '', str(p), 'x') for p, n in enumerate(sizes) for _ in range(n)]
  covered = 0
  for _ in range(400):
    won = np.concatenate(
      [draw.rand(n) < truth for truth, n in zip(truths, sizes, strict=True)]
    ).astype(float)
    line = minimal_pairs.summarize_pairs(pairs, won, None)['all']
    covered += line['low'] <= np.mean(truths) <= line['high']
  assert covered / 400 > 0.94


def test_word_frequencies_are_counted_with_one_added(
  tiny_corpus: pathlib.Path, tiny_run: pathlib.Path
):
  size = tokenizer.load_tokenizer(tiny_run / 'tokenizer.model').size
  result = np.exp(minimal_pairs.unigram_log_probabilities(tiny_corpus, size))
  tokens = np.asarray(corpus.load_split(tiny_corpus, 'train').tokens)
  counted = tokens[
    ~np.isin(tokens, (tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID, tokenizer.MASK_ID))
  ]
  scored = [
    i
    for i in range(size)
    if i not in (tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID, tokenizer.MASK_ID)
  ]
  assert math.fsum(result[scored]) == pytest.approx(1)
  for piece in (tokenizer.UNKNOWN_ID, scored[5], scored[100]):
    assert result[piece] == pytest.approx(
      (np.sum(counted == piece) + 1) / (counted.size + len(scored))
    )


def test_frequency_ties_where_the_words_are_the_same_in_another_order():
  draw = np.random.RandomState(0)
  pairs = [MinimalPair('', '', 'p', 'x')] * 50
  good = [draw.randint(5, 100, 12).tolist() for _ in pairs]
  result = minimal_pairs.compare_pairs(
    pairs,
    good + [sorted(ids) for ids in good],
    lambda s: np.zeros(len(s), np.float32),
    np.log(draw.rand(100)),
  )
  assert result['all']['frequency'] == 0.5


def test_the_verb_from_a_table_to_scores_and_nothing_a_second_time(
  tiny_run, table, tmp_path, capsys, monkeypatch
):
  command = [
    'evaluate',
    f'--checkpoint={tiny_run}',
    f'--pairs={table}',
    f'--workdir={tmp_path / "W"}',
  ]
  assert main.main([*command, '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result == json.loads((tmp_path / 'W' / 'result.json').read_text())
  assert result['identical'] == 1 and result['task'] == 'mine' and result['checkpoint_step'] == 8
  assert [line['paradigm'] for line in result['paradigms']] == ['verb', 'noun', 'same']
  nothing = result['phenomena'][1]
  assert [
    nothing[name] for name in ('phenomenon', 'value', 'pairs', 'paradigms', 'ties', 'frequency')
  ] == ['nothing', 0.5, 1, 1, 1, 0.5]
  lines = list(run_dir.read_lines(tmp_path / 'W' / 'scores.jsonl'))
  assert [line['split'] for line in lines] == ['agreement', 'nothing', 'all']
  assert all(line.keys() == FIELDS for line in lines)
  assert [line['headline'] for line in lines] == [False, False, True]
  assert [line['constant_prediction'] for line in lines] == [False, True, False]
  assert lines[-1]['value'] == result['all']['value'] and lines[-1]['checkpoint'] == tiny_run.name
  monkeypatch.setattr(likelihood, 'pseudo_log_likelihoods', lambda *_: 1 / 0)
  (tmp_path / 'W' / lock.LOCK_FILE).touch()
  os.utime(tmp_path / 'W' / lock.LOCK_FILE, (0, 0))  # of one that was killed just after its result
  assert main.main(command) == 0 and not (tmp_path / 'W' / lock.LOCK_FILE).exists()
  out, err = capsys.readouterr()
  assert (
    'nothing to do' in err
    and 'agreement' in out
    and '1 pairs whose halves are the same' in ' '.join(out.split())
  )
  assert (
    main.main([*command, '--pll_variant=original']) == 2
    and 'another recipe' in capsys.readouterr().err
  )


def test_the_scores_are_the_likelihoods(tiny_run, table):
  result = minimal_pairs.evaluate_pairs(tiny_run, table, 'original', '', '')
  run = pretrained.load(tiny_run)
  good, bad = (
    likelihood.pseudo_log_likelihoods(
      run.model, run.tokenizer.encode(texts), run.tokenizer.starts_word(), 'original'
    )
    for texts in (['this dog'], ['this dogs'])
  )
  assert result['paradigms'][1]['value'] == float(good[0] > bad[0])


def test_a_corpus_that_is_gone_is_said_and_left_out(tiny_run, tiny_corpus, table, tmp_path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  described = json.loads((tmp_path / 'run' / 'manifest.json').read_text())
  files.write_json(
    tmp_path / 'run' / 'manifest.json', described | {'corpus_folder': str(tmp_path / 'gone')}
  )
  result = minimal_pairs.evaluate_pairs(tmp_path / 'run', table, 'within-word', '', '')
  assert result['all']['frequency'] is None and '--corpus=FOLDER' in result['frequency_from']
  with_corpus = minimal_pairs.evaluate_pairs(
    tmp_path / 'run', table, 'within-word', str(tiny_corpus), ''
  )
  assert (
    with_corpus['all']['frequency'] is not None
    and with_corpus['all']['value'] == result['all']['value']
  )
  with pytest.raises(InputError, match='gone'):
    minimal_pairs.evaluate_pairs(tmp_path / 'run', table, 'within-word', str(tmp_path / 'gone'), '')


def test_a_sentence_too_long_leaves_nothing_behind(tiny_run, tmp_path):
  (tmp_path / 'long.csv').write_text(f'sentence_good,sentence_bad\na,{"the dog " * 60}\n')
  with pytest.raises(InputError, match=' 62 '):
    minimal_pairs.evaluate_pairs(
      tiny_run, tmp_path / 'long.csv', 'original', '', str(tmp_path / 'W')
    )
  assert not (tmp_path / 'W').exists()


ROWS = [
  {
    'sentence_good': f'The dog {i} sleeps.',
    'sentence_bad': f'The dog {i} sleep.',
    'UID': f'agree_{i % 2}',
    'linguistics_term': 'agreement',
    'pairID': str(i),
  }
  for i in range(4)
]
PAIR_SOURCES_PAIRS = [
  MinimalPair(f'The dog {i} sleeps.', f'The dog {i} sleep.', f'agree_{i % 2}', 'agreement')
  for i in range(4)
]


def jsonl(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.write_bytes(lzma.compress(text) if path.suffix == '.xz' else text)
  return path


def delimited(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(
      file, rows[0], dialect='excel-tab' if path.suffix == '.tsv' else 'excel'
    )
    writer.writeheader()
    writer.writerows(rows)
  return path


def test_every_form_gives_the_same_pairs(tmp_path: pathlib.Path):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / 'p.parquet')
  for path in (
    jsonl(tmp_path / 'a.jsonl', ROWS),
    jsonl(tmp_path / 'b.jsonl.xz', ROWS),
    delimited(tmp_path / 'c.csv', ROWS),
    delimited(tmp_path / 'd.tsv', ROWS),
    tmp_path / 'p.parquet',
  ):
    assert minimal_pairs.read_pairs(path) == PAIR_SOURCES_PAIRS
    assert minimal_pairs.name_pair_set(path) == path.name[0]
  assert (
    minimal_pairs.read_pairs(tmp_path) == PAIR_SOURCES_PAIRS * 5
    and minimal_pairs.name_pair_set(tmp_path) == tmp_path.name
  )


def test_names_that_are_missing_come_from_the_file_and_the_paradigm(tmp_path: pathlib.Path):
  bare = [{name: row[name] for name in ('sentence_good', 'sentence_bad')} for row in ROWS]
  path = jsonl(tmp_path / 'mine.jsonl', bare)
  assert {(pair.paradigm, pair.phenomenon) for pair in minimal_pairs.read_pairs(path)} == {
    ('mine', 'mine')
  }
  named = delimited(
    tmp_path / 'named.csv', [{**row, 'paradigm': 'one', 'phenomenon': ''} for row in bare]
  )
  assert {(pair.paradigm, pair.phenomenon) for pair in minimal_pairs.read_pairs(named)} == {
    ('one', 'one')
  }


def test_blimp_as_tfds_prepares_it(tmp_path: pathlib.Path):
  import tensorflow_datasets as tfds

  class Blimp(tfds.core.GeneratorBasedBuilder):
    """Two paradigms."""

    VERSION = tfds.core.Version('0.1.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ('agree_0', 'agree_1')]

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in ROWS[0]}),
      )

    def _split_generators(self, dl_manager):
      return {
        'train': ((row['pairID'], row) for row in ROWS if row['UID'] == self.builder_config.name)
      }

    def _generate_examples(self):
      raise NotImplementedError

  for name in ('agree_0', 'agree_1'):
    Blimp(config=name, data_dir=tmp_path, file_format='array_record').download_and_prepare()
  for place in (tmp_path, tmp_path / 'blimp'):
    assert (
      Counter(minimal_pairs.read_pairs(place)) == Counter(PAIR_SOURCES_PAIRS)
      and minimal_pairs.name_pair_set(place) == 'blimp'
    )


def test_the_published_set(data: pathlib.Path):
  pairs = minimal_pairs.read_pairs(data / 'blimp' / 'blimp.jsonl.xz')
  sizes = Counter(pair.paradigm for pair in pairs)
  assert (
    len(sizes) == 67
    and set(sizes.values()) == {1000}
    and minimal_pairs.name_pair_set(data / 'blimp') == 'blimp'
  )
  assert len({pair.phenomenon for pair in pairs}) == 13


@pytest.mark.parametrize(
  'change, message',
  [
    ({'sentence_good': 7}, 'row 2 of pairs'),
    ({'sentence_bad': ' '}, "in 'sentence_bad'"),
    ({'sentence_bad': '\ud800'}, 'give text'),
    ({'linguistics_term': 'all'}, 'name it otherwise'),
    ({'UID': '\ud800'}, 'which is no text'),
  ],
)
def test_a_row_that_is_no_pair_is_named(change: dict, message: str, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match=message):
    minimal_pairs.read_pairs(jsonl(tmp_path / 'pairs.jsonl', [ROWS[0], ROWS[1] | change]))


def test_what_is_no_set_is_refused(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='(?s)sentence_godo.*did you mean .sentence_godo.'):
    minimal_pairs.read_pairs(
      jsonl(tmp_path / 'typing.jsonl', [{'sentence_godo': 'a', 'sentence_bad': 'b'}])
    )
  with pytest.raises(InputError, match='sentence_good'):
    minimal_pairs.read_pairs(jsonl(tmp_path / 'none.jsonl', []))
  (tmp_path / 'empty').mkdir()
  for place, message in (
    (tmp_path / 'empty', 'there: nothing'),
    (tmp_path / 'nowhere', 'no such file or folder'),
    ('', 'no such file or folder'),
    (tmp_path / 'pairs.docx', 'not a table'),
  ):
    (tmp_path / 'pairs.docx').write_text('x')
    with pytest.raises(InputError, match=message):
      minimal_pairs.read_pairs(place)
