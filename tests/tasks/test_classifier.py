"""Tests saved classifiers: equal outputs after loading, on any devices and in copies."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.tasks import classifier, committee_scores, examples, finetune, finetune_step
from minilm_jax.tasks.classifier import SavedClassifier
from minilm_jax.training import pretrained
from tests import fake_classifiers, tiny_config
from tests.run_files import edit_json

ROOT = pathlib.Path(__file__).resolve().parents[2]
STARTS = [8, None]
pytestmark = pytest.mark.usefixtures('few_microworld_examples')


def make_config(**changes: Any):
  fields = {
    'task.max_train_examples': 48,
    'seeds': '0,1',
    'epochs': 2.0,
    'batch_size': 16,
    'validation_fraction': 0.25,
    'optimizer.learning_rate': 2e-2,
    'save_classifiers': True,
    'head.ensemble_size': 2,
  }
  return tiny_config.make_finetune_config(**(fields | changes))


@pytest.fixture(scope='module', autouse=True)
def share_programs() -> Any:
  """Shares one program among recipes that differ only in `save_classifiers`."""
  build = finetune_step.build_finetune_program
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      finetune_step,
      'build_finetune_program',
      lambda shape, config, *args: build(
        shape, dataclasses.replace(config, save_classifiers=True), *args
      ),
    )
    yield


@pytest.fixture(scope='module')
def tuned(tiny_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a run of two seeds from a checkpoint and two from scratch; copy it before changes."""
  workdir = tmp_path_factory.mktemp('tuned') / 'run'
  finetune.finetune(make_config(), tiny_run, workdir, STARTS)
  return workdir


def list_names(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_each_member_has_a_folder_with_a_card(tuned: pathlib.Path, tiny_run: pathlib.Path):
  assert [name for name in list_names(tuned) if 'classifier' in name] == [
    f'classifier-{n}' for n in range(4)
  ]
  for number, (step, seed) in enumerate([(8, 0), (8, 1), (-1, 0), (-1, 1)]):
    card = classifier.read_card(tuned / f'classifier-{number}')
    assert (card.step, card.seed, card.labels) == (step, seed, ('negative', 'positive'))
    assert (card.task, card.checkpoint) == ('microworld/sentiment', str(tiny_run))
    assert (card.epoch_choice, card.head.ensemble_size) == ('best', 2)
    (line,) = [
      line
      for line in run_dir.read_lines(tuned / run_dir.SCORES)
      if line['member'] == number and line['epoch_choice'] == 'best'
    ]
    assert card.epoch == line['epoch'] and card.learning_rate == line['learning_rate']
    outputs, labels = committee_scores.read_outputs(tuned / f'classifier-{number}')['validation']
    assert np.mean(outputs.argmax(-1) == labels) == pytest.approx(line['value'])


def test_loaded_classifiers_compute_the_stored_outputs(tuned: pathlib.Path):
  task = make_config().task
  validation = examples.read_examples(examples.complete_task(task), task, 'validation')
  folders = [tuned / f'classifier-{number}' for number in range(4)]
  members = [classifier.load_classifier(folder) for folder in folders]
  for folder, logits in zip(folders, classifier.compute_logits(members, validation), strict=True):
    stored, _ = committee_scores.read_outputs(folder)['validation']
    np.testing.assert_allclose(logits, stored, atol=2e-5)
  assert len({member.identity for member in members}) == 4


def test_embeddings_of_unused_token_ids_are_unchanged(tuned: pathlib.Path, tiny_run: pathlib.Path):
  model = pretrained.load_single_config(tiny_run).model
  before = finetune.load_encoder(tiny_run, model, 8).embedding.tokens.embedding[...]
  tuned_model = classifier.load_classifier(tuned / 'classifier-0').model
  after = tuned_model.encoder.embedding.tokens.embedding[...]
  same = (before == after).all(-1)
  assert before.shape == after.shape and 0 < same.sum() < len(same)
  assert same[512:].all()  # padding of the table


def test_saving_classifiers_changes_no_score(
  tuned: pathlib.Path, tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  finetune.finetune(make_config(save_classifiers=False), tiny_run, tmp_path / 'run', STARTS)
  assert list(run_dir.read_lines(tmp_path / 'run' / run_dir.SCORES)) == list(
    run_dir.read_lines(tuned / run_dir.SCORES)
  )
  assert not [name for name in list_names(tmp_path / 'run') if 'classifier' in name]


def test_a_missing_classifier_is_trained_again(
  tuned: pathlib.Path, tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(tuned, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'classifier-1')
  time = (tmp_path / 'run' / 'classifier-0' / run_dir.MANIFEST).stat().st_mtime_ns
  finetune.finetune(make_config(), tiny_run, tmp_path / 'run', STARTS)
  assert (
    classifier.load_classifier(tmp_path / 'run' / 'classifier-1').identity
    == classifier.load_classifier(tuned / 'classifier-1').identity
  )
  assert (tmp_path / 'run' / 'classifier-0' / run_dir.MANIFEST).stat().st_mtime_ns == time
  assert sorted(map(json.dumps, run_dir.read_lines(tmp_path / 'run' / run_dir.SCORES))) == sorted(
    map(json.dumps, run_dir.read_lines(tuned / run_dir.SCORES))
  )


@pytest.fixture(scope='module')
def saved(
  tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, SavedClassifier]:
  """Returns the folder of a classifier with random weights, and the classifier."""
  member = fake_classifiers.make_classifier(tiny_tokenizer, 0)
  folder = tmp_path_factory.mktemp('saved') / 'classifier-0'
  return fake_classifiers.save_classifier(folder, member), member


def test_saving_and_copying_changes_no_bit(saved: tuple, tmp_path: pathlib.Path):
  folder, member = saved
  shutil.copytree(folder, tmp_path / 'copy')
  for path in (folder, tmp_path / 'copy'):
    loaded = classifier.load_classifier(path)
    assert loaded.card == member.card
    assert loaded.identity == member.identity == pretrained.hash_weights(loaded.model)
    jax.tree.map(np.testing.assert_array_equal, loaded.model, member.model)
  assert list_names(folder.parent) == ['classifier-0']


def test_a_classifier_saved_on_eight_devices_loads_on_one(saved: tuple):
  program = (
    'import sys, jax\nfrom minilm_jax.tasks import classifier\n'
    'print(jax.device_count(), classifier.load_classifier(sys.argv[1]).identity)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(saved[0])],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['1', saved[1].identity] and jax.device_count() == 8


def test_an_old_card_without_ensemble_size_loads(saved: tuple, tmp_path: pathlib.Path):
  shutil.copytree(saved[0], tmp_path / 'old')
  edit_card(tmp_path / 'old', lambda card: card['head'].pop('ensemble_size'))
  assert classifier.load_classifier(tmp_path / 'old').card == saved[1].card


def test_saving_replaces_a_classifier_and_an_interrupted_save_is_incomplete(
  saved: tuple, tmp_path: pathlib.Path
):
  _, member = saved
  folder = fake_classifiers.save_classifier(tmp_path / 'classifier-0', member)
  other = jax.tree.map(lambda x: x + 1, member.model)
  fake_classifiers.save_classifier(folder, dataclasses.replace(member, model=other))
  identity = classifier.load_classifier(folder).identity
  assert identity == pretrained.hash_weights(other) != member.identity
  (folder / run_dir.MANIFEST).unlink()
  assert classifier.is_incomplete(folder)


def edit_manifest(folder: pathlib.Path, change) -> None:
  edit_json(folder / run_dir.MANIFEST, change)


def edit_card(folder: pathlib.Path, change) -> None:
  """Changes the card and its checksum in the manifest."""
  edit_json(folder / classifier.CARD_FILE, change)
  digest = files.hash_file(folder / classifier.CARD_FILE)
  edit_manifest(folder, lambda content: content['files'].update({classifier.CARD_FILE: digest}))


@pytest.mark.parametrize(
  'damage, name',
  [
    (lambda folder: shutil.rmtree(folder), 'damaged'),
    (lambda folder: (folder / run_dir.MANIFEST).unlink(), run_dir.MANIFEST),
    (lambda folder: (folder / run_dir.MANIFEST).write_text('{}'), run_dir.MANIFEST),
    (lambda folder: (folder / run_dir.MANIFEST).write_text('nonsense'), run_dir.MANIFEST),
    (lambda folder: (folder / 'tokenizer.model').write_bytes(b'x'), 'tokenizer.model'),
    (lambda folder: (folder / committee_scores.OUTPUTS_FILE).unlink(), 'outputs.npz'),
    (
      lambda folder: edit_json(folder / classifier.CARD_FILE, lambda card: card.update(seed=7)),
      'classifier.json',
    ),
    (lambda folder: shutil.rmtree(folder / 'checkpoints'), 'checkpoints'),
    (lambda folder: edit_manifest(folder, lambda c: c['files'].update({'../x': '0'})), r'\.\./x'),
    (
      lambda folder: edit_manifest(folder, lambda c: c['files'].update({'/etc/passwd': '0'})),
      '/etc/passwd',
    ),
    (lambda folder: edit_manifest(folder, lambda c: c.update(weights='0')), 'the weights of'),
    (
      lambda folder: edit_card(folder, lambda card: card['model'].update(hidden_size=32)),
      r'\(16, 16\).*\(32, 32\)',
    ),
    (lambda folder: edit_card(folder, lambda card: card.pop('labels')), 'labels'),
    (lambda folder: edit_card(folder, lambda card: card.update(step='x')), 'step'),
  ],
)
def test_a_damaged_classifier_is_refused(damage, name: str, saved: tuple, tmp_path: pathlib.Path):
  shutil.copytree(saved[0], tmp_path / 'damaged')
  damage(tmp_path / 'damaged')
  with pytest.raises(InputError, match=name):
    classifier.load_classifier(tmp_path / 'damaged')


def zip_files(compression: int, **contents: bytes) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return file.getvalue()


def save_array(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, array, allow_pickle=True)
  return file.getvalue()


@pytest.mark.parametrize(
  'content, match',
  [
    (b'', ''),
    (b'PK\x05\x06' + bytes(10), ''),
    (zip_files(zipfile.ZIP_DEFLATED, **{'x outputs.npy': bytes(2 << 20)}), '2,097,152'),
    (zip_files(0, **{'x outputs.npy': save_array(np.array([{}], object))}), 'allow_pickle=False'),
    (
      zip_files(
        0, **{'x outputs.npy': save_array(np.zeros(3)).replace(b'(3,)', b'(9' + b'0' * 15 + b',)')}
      ),
      '',
    ),
    (zip_files(0, **{'x outputs.npy': save_array(np.zeros(3))}), 'x labels'),
  ],
  ids=['empty', 'cut', 'bomb', 'pickle', 'wrong shape', 'no labels'],
)
def test_damaged_outputs_are_refused(
  content: bytes, match: str, tmp_path: pathlib.Path, monkeypatch
):
  monkeypatch.setattr(files, 'MAX_FILE_BYTES', 1 << 20)
  (tmp_path / committee_scores.OUTPUTS_FILE).write_bytes(content)
  with pytest.raises(InputError) as error:
    committee_scores.read_outputs(tmp_path)
  assert 'outputs.npz' in error.value.found and match in error.value.found
