"""Predictions: files as the GLUE server takes them, one line an example, and what every member said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from configs import glue
from minilm_jax import recipe, run
from minilm_jax.language import tokenizer as pieces
from minilm_jax.tasks import finetune, material, protocol, server, table
from minilm_jax.tasks.material import Material
from minilm_jax.tasks.protocol import Entry, Scored
from tests.fake_runs import write_examples

NOUNS = 'dog fox pig seal cow hen duck swan tree pear bone wolf'.split()


def settings(task: str, **changes: Any):
  config = glue.get_config(task)
  config.update_from_flattened_dict({'seeds': '0,1', 'epochs': 1.0, 'batch_size': 16, 'predictions': True, **changes})
  return recipe.resolve(config, 'finetune')


def rows(task: str, count: int, numbers: list[int] | None = None) -> list[dict]:
  """Examples of a task of two texts; where numbers are given, of a test split: without labels."""
  first, second = table.find(task).fields
  classes = len(table.find(task).labels)
  made = [{first: f'the {NOUNS[i % 12]} sleeps .', second: f'a {NOUNS[i * 5 % 12]} runs .',
           'label': i % classes if classes else i % 6} for i in range(count)]
  return [row | ({} if numbers is None else {'label': -1, 'idx': numbers[i]}) for i, row in enumerate(made)]


def prepared(task: str, folder: str, tiny_run: Path, **changes: Any) -> Material:
  return material.prepare(settings(task, **{'task.folder': folder}, **changes), 64,
                          pieces.load(tiny_run / 'tokenizer.model'))


def outputs(ready: Material, number: int) -> dict[str, np.ndarray]:
  """As of a model: of the reported and the unlabelled splits."""
  draw = np.random.default_rng(number)
  width = len(ready.task.labels) or 1
  return {split: draw.normal(2, 3, (len(ready.rows[split].labels), width)).astype(np.float32)
          for split in (*ready.reported, *ready.unlabelled)}


def read(path: Path) -> list[list[str]]:
  return [line.split('\t') for line in path.read_text().splitlines()]


@pytest.mark.parametrize('task, said, expected', [
    ('cola', [1, 0, 1], ['1', '0', '1']), ('sst2', [1, 0, 0], ['1', '0', '0']), ('mrpc', [0, 1, 1], ['0', '1', '1']),
    ('qqp', [0, 1, 1], ['0', '1', '1']), ('wnli', [1, 1, 0], ['1', '1', '0']),
    ('rte', [0, 1, 0], ['entailment', 'not_entailment', 'entailment']),
    ('qnli', [1, 1, 0], ['not_entailment', 'not_entailment', 'entailment']),
    ('mnli', [2, 1, 0], ['contradiction', 'neutral', 'entailment']),
    ('ax', [0, 1, 2], ['entailment', 'neutral', 'contradiction']),
    ('stsb', [-0.3, 5.2, 3.14159], ['0.000', '5.000', '3.142'])])
def test_a_file_says_what_the_server_understands(task: str, said: list, expected: list[str]):
  found = server.table(table.find(task), np.array(said), (0, 1, 2)).decode()
  assert found == 'index\tprediction\n' + ''.join(f'{i}\t{text}\n' for i, text in enumerate(expected))


def test_lines_are_in_the_order_of_the_official_file():
  found = server.table(table.find('cola'), np.array([1, 0, 0, 1]), (10, 2, 0, 9)).decode()
  assert found == 'index\tprediction\n0\t0\n2\t0\n9\t1\n10\t1\n'


def test_each_split_has_a_file_of_its_own(tiny_run: Path, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=rows('mnli', 12), validation_matched=rows('mnli', 6),
                   validation_mismatched=rows('mnli', 5), test_matched=rows('mnli', 4, [3, 2, 1, 0]),
                   test_mismatched=rows('mnli', 3, [0, 1, 2]), test=rows('ax', 5, [4, 0, 1, 2, 3]))
  ready = prepared('mnli', folder, tiny_run)
  entry, said = Entry(0, 8, 0, 1e-3), outputs(ready, 0)
  kept = {'last': Scored(1.0, float('nan'), said)}
  server.keep(epath.Path(tmp_path), ready, entry, kept)
  line = {'member': 0, 'epoch_choice': 'last', 'headline': True, 'value': 0.5, 'validation_score': None, **entry.fields()}
  server.write(epath.Path(tmp_path), ready, [line], 'last')
  assert {path.name for path in (tmp_path / 'submission').iterdir()} == {'MNLI-m.tsv', 'MNLI-mm.tsv', 'AX.tsv'}
  for name, split, order in (('MNLI-m', 'test_matched', [3, 2, 1, 0]), ('MNLI-mm', 'test_mismatched', [0, 1, 2]),
                             ('AX', 'ax test', [1, 2, 3, 4, 0])):
    classes = said[split].argmax(-1)[order]
    assert read(tmp_path / 'submission' / f'{name}.tsv')[1:] == [
        [str(i), table.find('mnli').labels[number]] for i, number in enumerate(classes)]


def test_predictions_are_kept_beside_the_right_labels(tiny_run: Path, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=rows('stsb', 12), validation=rows('stsb', 6),
                   test=rows('stsb', 4, [0, 1, 2, 3]))
  ready = prepared('stsb', folder, tiny_run)
  kept = {which: Scored(1.0, 0.5, outputs(ready, number)) for number, which in enumerate(('best', 'last'))}
  server.keep(epath.Path(tmp_path), ready, Entry(5, None, 7, 1e-3), kept)
  found = list(run.read_lines(tmp_path / 'predictions.jsonl'))
  assert [(line['epoch_choice'], line['split']) for line in found] == [
      ('best', 'validation'), ('best', 'test'), ('last', 'validation'), ('last', 'test')]
  for line in found:
    assert line.items() >= {'task': 'stsb', 'member': 5, 'seed': 7, 'pretrained': False}.items()
    assert line['predictions'] == kept[line['epoch_choice']].outputs[line['split']][:, 0].tolist()  # as they are, not clipped
  assert found[0]['labels'] == [0, 1, 2, 3, 4, 5] and 'labels' not in found[1]


@pytest.mark.parametrize('selections, values, expected', [
    ([0.1, 0.3, 0.2, 0.9], [0.5] * 4, 1),  # the best on what is held out, and the fourth is from scratch
    ([0.1, 0.3, 0.3, 0.9], [0.5] * 4, 1), ([None] * 4, [0.1, 0.2, 0.3, 0.4], 0),  # what is reported never chooses
    ([0.1, 0.3, 0.2, 0.9], [0.5, None, 0.5, 0.5], 2), ([None, -0.2, -0.1, 0.9], [0.5] * 4, 0),
    ([0.1] * 4, [None, None, None, 0.5], 3), ([0.1] * 4, [None] * 4, None)])
def test_what_is_held_out_chooses_whose_predictions_they_are(selections: list, values: list, expected: int | None,
                                                             tiny_run: Path, tmp_path: Path):
  folder = write_examples(tmp_path / 'data', train=rows('rte', 12), validation=rows('rte', 6),
                   test=rows('rte', 9, list(range(9))))
  ready = prepared('rte', folder, tiny_run)
  entries = [Entry(number, 8 if number < 3 else None, number, 1e-3) for number in range(4)]
  for entry in entries:
    server.keep(epath.Path(tmp_path), ready, entry, {
        which: Scored(1.0, 0.5, outputs(ready, 2 * entry.member + (which == 'last'))) for which in ('best', 'last')})
  lines = [{'headline': headline, 'epoch_choice': which, 'value': value, 'validation_score': selection, **entry.fields()}
           for entry, value, selection in zip(entries, values, selections, strict=True)
           for which in ('last', 'best') for headline in (False, True)]
  server.write(epath.Path(tmp_path), ready, lines, 'best')
  if expected is None:
    assert not (tmp_path / 'submission').exists()
    return
  said = [row[1] for row in read(tmp_path / 'submission' / 'RTE.tsv')[1:]]
  assert said == [ready.task.labels[number] for number in outputs(ready, 2 * expected)['test'].argmax(-1)]


@pytest.mark.usefixtures('fast_compile')
def test_from_files_to_a_file(tiny_run: Path, tmp_path: Path):
  """Fine-tuning writes it, and once more where the run had been stopped before it could."""
  numbers = list(range(70))
  order = np.random.default_rng(0).permutation(70).tolist()  # more than one batch, in no order at all
  test = [rows('rte', 70, numbers)[i] for i in order]
  folder = write_examples(tmp_path / 'data', train=rows('rte', 32), validation=rows('rte', 9), test=test)
  config, workdir = settings('rte', **{'task.folder': folder}), tmp_path / 'run'
  scores = finetune.finetune(config, tiny_run, workdir, [8])
  found = list(run.read_lines(workdir / 'predictions.jsonl'))
  assert [(line['member'], line['split'], len(line['predictions'])) for line in found] == [
      (0, 'validation', 9), (0, 'test', 70), (1, 'validation', 9), (1, 'test', 70)]
  for line, score in zip(found[::2], scores, strict=True):  # what is kept is what was scored
    assert np.mean(np.equal(line['predictions'], line['labels'])) == pytest.approx(score['value'])
  lines = read(workdir / 'submission' / 'RTE.tsv')
  said = dict(zip(order, found[1]['predictions'], strict=True))
  assert lines == [['index', 'prediction'], *([str(i), table.find('rte').labels[said[i]]] for i in numbers)]

  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
  (workdir / 'submission' / 'RTE.tsv').unlink()
  finetune.finetune(config, tiny_run, workdir, [8])
  assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


def test_a_task_that_the_server_does_not_have_gets_no_file(tiny_run: Path, tmp_path: Path):
  ready = material.prepare(settings('microworld/sentiment', **{'task.max_train_examples': 24}), 64,
                           pieces.load(tiny_run / 'tokenizer.model'))
  server.write(epath.Path(tmp_path), ready, [], protocol.LAST)
  assert not ready.unlabelled and not list(tmp_path.iterdir())
