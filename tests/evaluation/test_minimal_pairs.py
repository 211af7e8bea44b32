"""Tests minimal pairs: accuracies, intervals, the frequency baseline, stored results and sources."""

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
from tests.run_files import edit_json

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
FIELDS = set(
  'task metric value low high headline split examples train_examples held_out pretrained checkpoint '
  'checkpoint_step filtered seed learning_rate member epoch epoch_choice validation_score majority '
  'frequency ties constant_prediction truncated'.split()
)


def score_correctly(sentences: Sequence[Sequence[int]]) -> np.ndarray:
  return np.array([-1.0 if ids[0] < 50 else -2.0 for ids in sentences], np.float32)


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
  (tmp_path / 'mine.csv').write_text(TABLE)
  return tmp_path / 'mine.csv'


@pytest.mark.parametrize(
  'score, value, ties',
  [
    (score_correctly, 1.0, 0.0),
    (lambda sentences: -score_correctly(sentences), 0.0, 0.0),
    (lambda sentences: np.full(len(sentences), -7, np.float32), 0.5, 1.0),
  ],
)
def test_accuracies_of_correct_inverted_and_constant_scores(score, value: float, ties: float):
  result = minimal_pairs.compare_pairs(PAIRS, SENTENCES, score, None)
  for line in (result['all'], *result['phenomena'], *result['paradigms']):
    assert (line['value'], line['ties'], line['frequency']) == (value, ties, None)
    assert line['low'] <= value <= line['high'] and line['low'] < line['high']
  assert result['all']['pairs'] == 12 and result['all']['paradigms'] == 3
  assert result['tokens'] == 24 and result['unknown'] == 0 and result['identical'] == 0


def test_accuracies_are_means_over_paradigms():
  points = np.array([1] * 6 + [0] * 2 + [1, 1, 1, 0.5])
  result = minimal_pairs.summarize_pairs(PAIRS, points, 1 - points)
  assert [line['value'] for line in result['paradigms']] == [1, 0, 0.875]
  assert [(line['phenomenon'], line['value'], line['pairs']) for line in result['phenomena']] == [
    ('agreement', 0.5, 8),
    ('islands', 0.875, 4),
  ]
  assert result['all']['value'] == pytest.approx(1.875 / 3)
  assert result['all']['frequency'] == pytest.approx(1 - 1.875 / 3)
  assert result['all']['ties'] == pytest.approx(1 / 12)


def test_ties_are_equal_in_float32():
  good, bad = np.array([1, 1, 1], np.float32), np.array([1 + 1e-9, 1 + 1e-6, 1 - 1e-6], np.float32)
  pairs = [MinimalPair('', '', str(number), 'x') for number in range(3)]
  result = minimal_pairs.compare_pairs(
    pairs, [[5]] * 6, lambda sentences: np.concatenate([good, bad]), None
  )
  assert [line['value'] for line in result['paradigms']] == [0.5, 0, 1]


@pytest.mark.parametrize('correct, n', [(0, 10), (7, 10), (530, 1000), (1000, 1000)])
def test_wilson_intervals_equal_scipy(correct: int, n: int):
  expected = stats.binomtest(correct, n).proportion_ci(method='wilson')
  interval = minimal_pairs.wilson_interval(correct / n, n)
  assert interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_cover_the_true_accuracy():
  draw, truths, sizes = np.random.RandomState(0), (0.3, 0.9), (40, 160)
  pairs = [MinimalPair('', '', str(p), 'x') for p, n in enumerate(sizes) for _ in range(n)]
  covered = 0
  for _ in range(400):
    outcomes = [draw.rand(n) < truth for truth, n in zip(truths, sizes, strict=True)]
    points = np.concatenate(outcomes).astype(float)
    line = minimal_pairs.summarize_pairs(pairs, points, None)['all']
    covered += line['low'] <= np.mean(truths) <= line['high']
  assert covered / 400 > 0.94


def test_unigram_probabilities_are_smoothed_shares(
  tiny_corpus: pathlib.Path, tiny_tokenizer: tokenizer.Tokenizer
):
  size = tiny_tokenizer.size
  probabilities = np.exp(minimal_pairs.compute_unigram_log_probabilities(tiny_corpus, size))
  ignored = tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID, tokenizer.MASK_ID
  tokens = np.asarray(corpus.load_split(tiny_corpus, 'train').tokens)
  tokens, pieces = tokens[~np.isin(tokens, ignored)], np.setdiff1d(np.arange(size), ignored)
  assert math.fsum(probabilities[pieces]) == pytest.approx(1)
  for piece in (tokenizer.UNKNOWN_ID, pieces[5], pieces[100]):
    expected = (np.sum(tokens == piece) + 1) / (tokens.size + len(pieces))
    assert probabilities[piece] == pytest.approx(expected)


def test_permuted_words_have_equal_frequency_scores():
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


def test_the_command_scores_a_table_once(tiny_run, table, tmp_path, capsys, monkeypatch):
  flags = [f'--checkpoint={tiny_run}', f'--pairs={table}', f'--workdir={tmp_path / "W"}']
  command = ['evaluate', *flags]
  assert main.main([*command, '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result == json.loads((tmp_path / 'W' / 'result.json').read_text())
  assert result['identical'] == 1 and result['task'] == 'mine' and result['checkpoint_step'] == 8
  assert [line['paradigm'] for line in result['paradigms']] == ['verb', 'noun', 'same']
  expected = {'phenomenon': 'nothing', 'value': 0.5, 'pairs': 1, 'paradigms': 1, 'ties': 1}
  assert result['phenomena'][1].items() >= {**expected, 'frequency': 0.5}.items()
  lines = list(run_dir.read_lines(tmp_path / 'W' / 'scores.jsonl'))
  assert [line['split'] for line in lines] == ['agreement', 'nothing', 'all']
  assert all(line.keys() == FIELDS for line in lines)
  assert [line['headline'] for line in lines] == [False, False, True]
  assert [line['constant_prediction'] for line in lines] == [False, True, False]
  assert lines[-1]['value'] == result['all']['value'] and lines[-1]['checkpoint'] == tiny_run.name
  monkeypatch.setattr(likelihood, 'compute_pseudo_log_likelihoods', lambda *_: 1 / 0)
  (tmp_path / 'W' / lock.LOCK_FILE).touch()
  os.utime(tmp_path / 'W' / lock.LOCK_FILE, (0, 0))  # of a killed process
  assert main.main(command) == 0 and not (tmp_path / 'W' / lock.LOCK_FILE).exists()
  assert 'agreement' in capsys.readouterr().out
  assert main.main([*command, '--pll_variant=original']) == 2
  assert 'likelihood' in capsys.readouterr().err


def test_scores_of_other_weights_at_the_same_path_are_refused(tiny_run, table, tmp_path):
  run, workdir = shutil.copytree(tiny_run, tmp_path / 'run'), tmp_path / 'W'
  result = minimal_pairs.evaluate_pairs(run, table, 'original', '', str(workdir))
  assert minimal_pairs.evaluate_pairs(run, table, 'original', '', str(workdir)) == result
  shutil.rmtree(run / 'checkpoints' / '8')
  shutil.copytree(run / 'checkpoints' / '4', run / 'checkpoints' / '8')
  with pytest.raises(InputError, match='weights is'):
    minimal_pairs.evaluate_pairs(run, table, 'original', '', str(workdir))
  edit_json(workdir / 'config.json', lambda stored: stored.pop('weights'))  # an earlier version
  assert minimal_pairs.evaluate_pairs(run, table, 'original', '', str(workdir)) == result


def test_pairs_are_compared_by_likelihood(tiny_run, table):
  result = minimal_pairs.evaluate_pairs(tiny_run, table, 'original', '', '')
  run = pretrained.load(tiny_run)
  good, bad = (
    likelihood.compute_pseudo_log_likelihoods(
      run.model, run.tokenizer.encode(texts), run.tokenizer.starts_word(), 'original'
    )
    for texts in (['this dog'], ['this dogs'])
  )
  assert result['paradigms'][1]['value'] == float(good[0] > bad[0])


def test_the_frequency_baseline_is_omitted_without_a_corpus(tiny_run, tiny_corpus, table, tmp_path):
  shutil.copytree(tiny_run, tmp_path / 'run')
  manifest = json.loads((tmp_path / 'run' / 'manifest.json').read_text())
  manifest |= {'corpus_folder': str(tmp_path / 'gone'), 'corpus_link': ''}
  files.write_json(tmp_path / 'run' / 'manifest.json', manifest)

  def evaluate(corpus_folder: str) -> dict:
    return minimal_pairs.evaluate_pairs(tmp_path / 'run', table, 'within-word', corpus_folder, '')

  without, with_corpus = evaluate(''), evaluate(str(tiny_corpus))
  assert without['all']['frequency'] is None and '--corpus=FOLDER' in without['frequency_from']
  assert with_corpus['all']['frequency'] is not None
  assert with_corpus['all']['value'] == without['all']['value']
  with pytest.raises(InputError, match='gone'):
    evaluate(str(tmp_path / 'gone'))


def test_a_sentence_that_is_too_long_writes_no_directory(tiny_run, tmp_path):
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
ROW_PAIRS = [
  MinimalPair(row['sentence_good'], row['sentence_bad'], row['UID'], 'agreement') for row in ROWS
]


def write_jsonl(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.write_bytes(lzma.compress(text) if path.suffix == '.xz' else text)
  return path


def write_delimited(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(
      file, rows[0], dialect='excel-tab' if path.suffix == '.tsv' else 'excel'
    )
    writer.writeheader()
    writer.writerows(rows)
  return path


def test_all_formats_give_equal_pairs(tmp_path: pathlib.Path):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / 'p.parquet')
  for path in (
    write_jsonl(tmp_path / 'a.jsonl', ROWS),
    write_jsonl(tmp_path / 'b.jsonl.xz', ROWS),
    write_delimited(tmp_path / 'c.csv', ROWS),
    write_delimited(tmp_path / 'd.tsv', ROWS),
    tmp_path / 'p.parquet',
  ):
    assert minimal_pairs.read_pairs(path) == (path.name[0], ROW_PAIRS)
  for name in ('._a.jsonl', '.DS_Store', 'Thumbs.db', 'desktop.ini'):
    (tmp_path / name).write_bytes(b'\0\5\26\7\0\2\0\0Mac OS X')
  assert minimal_pairs.read_pairs(tmp_path) == (tmp_path.name, ROW_PAIRS * 5)


def test_missing_names_are_those_of_the_file_and_the_paradigm(tmp_path: pathlib.Path):
  rows = [{name: row[name] for name in ('sentence_good', 'sentence_bad')} for row in ROWS]
  without_names = write_jsonl(tmp_path / 'mine.jsonl', rows)
  rows = [{**row, 'paradigm': 'first', 'phenomenon': ''} for row in rows]
  with_paradigm = write_delimited(tmp_path / 'named.csv', rows)
  for path, name in ((without_names, 'mine'), (with_paradigm, 'first')):
    _, pairs = minimal_pairs.read_pairs(path)
    assert {(pair.paradigm, pair.phenomenon) for pair in pairs} == {(name, name)}


def test_dots_of_a_file_name_are_part_of_its_name(tmp_path: pathlib.Path):
  rows = [{name: row[name] for name in ('sentence_good', 'sentence_bad')} for row in ROWS]
  for name in ('v1.2.jsonl', 'v1.3.jsonl.xz', 'v1.JSONL'):
    write_jsonl(tmp_path / name, rows)
  assert minimal_pairs.read_pairs(tmp_path / 'v1.3.jsonl.xz')[0] == 'v1.3'
  _, pairs = minimal_pairs.read_pairs(tmp_path)
  assert Counter(pair.phenomenon for pair in pairs) == dict.fromkeys(
    ('v1', 'v1.2', 'v1.3'), len(rows)
  )


def test_json_files_of_a_folder_are_tables_if_there_are_no_others(tmp_path: pathlib.Path):
  rows = [{name: row[name] for name in ('sentence_good', 'sentence_bad')} for row in ROWS]
  for name in ('first', 'second'):
    (tmp_path / f'{name}.json').write_text(json.dumps(rows))
  _, pairs = minimal_pairs.read_pairs(tmp_path)
  assert {pair.phenomenon for pair in pairs} == {'first', 'second'}
  write_jsonl(tmp_path / 'third.jsonl', rows)
  (tmp_path / 'dataset_info.json').write_text('[{"pairs": 2}]')
  _, pairs = minimal_pairs.read_pairs(tmp_path)
  assert {pair.phenomenon for pair in pairs} == {'third'}


def test_blimp_of_tfds_is_read(tmp_path: pathlib.Path):
  import tensorflow_datasets as tfds

  class Blimp(tfds.core.GeneratorBasedBuilder):
    """Prepares two paradigms."""

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
  copied = shutil.copytree(tmp_path / 'blimp', tmp_path / 'data [1]' / 'blimp').parent
  for folder in (tmp_path, tmp_path / 'blimp', copied):
    name, pairs = minimal_pairs.read_pairs(folder)
    assert name == 'blimp' and Counter(pairs) == Counter(ROW_PAIRS)


def test_published_blimp_has_known_counts(data: pathlib.Path):
  name, pairs = minimal_pairs.read_pairs(data / 'blimp')
  sizes = Counter(pair.paradigm for pair in pairs)
  assert len(sizes) == 67 and set(sizes.values()) == {1000}
  assert len({pair.phenomenon for pair in pairs}) == 13
  assert name == 'blimp'


@pytest.mark.parametrize(
  'change, match',
  [
    ({'sentence_good': 7}, "'sentence_good'"),
    ({'sentence_bad': ' '}, "'sentence_bad'"),
    ({'sentence_bad': '\ud800'}, "'sentence_bad'"),
    ({'linguistics_term': 'all'}, "'all'"),
    ({'UID': '\ud800'}, r'U\+D800'),
  ],
)
def test_an_invalid_row_is_named(change: dict, match: str, tmp_path: pathlib.Path):
  path = write_jsonl(tmp_path / 'pairs.jsonl', [ROWS[0], ROWS[1] | change])
  with pytest.raises(InputError, match=match) as error:
    minimal_pairs.read_pairs(path)
  assert 'row 2 of pairs' in str(error.value)


def test_a_reserved_name_of_a_file_is_refused(tmp_path: pathlib.Path):
  rows = [{name: row[name] for name in ('sentence_good', 'sentence_bad')} for row in ROWS]
  with pytest.raises(InputError, match="rename the file, or add the column 'phenomenon'"):
    minimal_pairs.read_pairs(write_jsonl(tmp_path / 'all.jsonl', rows))
  rows = [{**row, 'phenomenon': 'all'} for row in rows]
  with pytest.raises(InputError, match='change the name of the phenomenon'):
    minimal_pairs.read_pairs(write_jsonl(tmp_path / 'all.jsonl', rows))


def test_an_invalid_source_is_refused(tmp_path: pathlib.Path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'pairs.docx').write_text('x')
  misspelt = [{'sentence_godo': 'a', 'sentence_bad': 'b'}]
  for source, match in (
    (write_jsonl(tmp_path / 'misspelt.jsonl', misspelt), "(?s)'sentence_good'.*'sentence_godo'"),
    (write_jsonl(tmp_path / 'none.jsonl', []), 'sentence_good'),
    (tmp_path / 'empty', 'blimp'),
    (tmp_path / 'nowhere', 'nowhere'),
    ('', 'sentence_good'),
    (tmp_path / 'pairs.docx', 'pairs.docx'),
  ):
    with pytest.raises(InputError, match=match):
      minimal_pairs.read_pairs(source)
