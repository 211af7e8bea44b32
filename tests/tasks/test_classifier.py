"""Saved classifiers: what fine-tuning keeps says again what it was scored by, on any devices,
wherever it is copied to.
"""

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

from configs import glue
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.tasks import classifier, examples, finetune, finetune_step
from minilm_jax.training import pretrained
from tests import fake_classifiers

ROOT = pathlib.Path(__file__).resolve().parents[2]
STARTS = [8, None]


def settings(**changes: Any):
  made = glue.get_config('microworld/sentiment')
  made.update_from_flattened_dict(
    {
      'task.max_train_examples': 48,
      'seeds': '0,1',
      'epochs': 2.0,
      'batch_size': 16,
      'validation_fraction': 0.25,
      'optimizer.learning_rate': 2e-2,
      'save_classifiers': True,
      'head.ensemble_size': 2,
      **changes,
    }
  )
  return recipe.resolve(made, 'finetune')


@pytest.fixture(scope='module', autouse=True)
def share_programs(fast_compile: None) -> Any:
  """Lets settings that differ only in `keep` share one program."""
  make = finetune_step.build_finetune_program
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      finetune_step,
      'build_finetune_program',
      lambda shape, config, *more: make(shape, dataclasses.replace(config, keep=True), *more),
    )
    yield


@pytest.fixture(scope='module')
def tuned(tiny_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Two seeds from a checkpoint and two from scratch, with two heads; copy it before changing
  anything in it.
  """
  workdir = tmp_path_factory.mktemp('tuned') / 'run'
  finetune.finetune(settings(), tiny_run, workdir, STARTS)
  return workdir


def names(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_each_member_is_a_folder_that_says_what_it_is(tuned: pathlib.Path, tiny_run: pathlib.Path):
  assert [name for name in names(tuned) if 'classifier' in name] == [
    f'classifier-{n}' for n in range(4)
  ]
  for number, (step, seed) in enumerate([(8, 0), (8, 1), (-1, 0), (-1, 1)]):
    card = classifier.read_card(tuned / f'classifier-{number}')
    assert (card.step, card.seed, card.labels) == (step, seed, ('negative', 'positive'))
    assert (card.task, card.checkpoint, card.epoch_choice) == (
      'microworld/sentiment',
      str(tiny_run),
      'best',
    )
    assert card.head.ensemble_size == 2
    (line,) = [
      line
      for line in run_dir.read_lines(tuned / run_dir.SCORES)
      if line['member'] == number and line['epoch_choice'] == 'best'
    ]
    assert card.epoch == line['epoch'] and card.learning_rate == line['learning_rate']
    outputs, labels = classifier.read_outputs(tuned / f'classifier-{number}')['validation']
    assert np.mean(outputs.argmax(-1) == labels) == pytest.approx(line['value'])


def test_it_says_again_what_it_was_scored_by(tuned: pathlib.Path):
  task = settings().task
  found = examples.read_examples(examples.complete_task(task), task, 'validation')
  members = [classifier.load_classifier(tuned / f'classifier-{number}') for number in range(4)]
  said = classifier.compute_logits(members, found)
  for number, own in enumerate(said):
    np.testing.assert_allclose(
      own, classifier.read_outputs(tuned / f'classifier-{number}')['validation'][0], atol=2e-5
    )
  assert len({member.identity for member in members}) == 4


def test_pieces_that_the_task_never_uses_keep_their_vectors(
  tuned: pathlib.Path, tiny_run: pathlib.Path
):
  model = pretrained.load_single_config(tiny_run).model
  before = finetune.load_encoder(tiny_run, model, 8).embedding.tokens.embedding[...]
  after = classifier.load_classifier(
    tuned / 'classifier-0'
  ).model.encoder.embedding.tokens.embedding[...]
  same = (before == after).all(-1)
  assert before.shape == after.shape and 0 < same.sum() < len(same)
  assert same[512:].all()  # rows that no piece has


def test_what_is_kept_changes_no_score(
  tuned: pathlib.Path, tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  finetune.finetune(settings(save_classifiers=False), tiny_run, tmp_path / 'run', STARTS)
  assert list(run_dir.read_lines(tmp_path / 'run' / run_dir.SCORES)) == list(
    run_dir.read_lines(tuned / run_dir.SCORES)
  )
  assert not [name for name in names(tmp_path / 'run') if 'classifier' in name]


def test_a_classifier_that_is_lost_is_made_again_and_the_others_stay(
  tuned: pathlib.Path, tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(tuned, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'classifier-1')
  stays = (tmp_path / 'run' / 'classifier-0' / run_dir.MANIFEST).stat().st_mtime_ns
  finetune.finetune(settings(), tiny_run, tmp_path / 'run', STARTS)
  assert (
    classifier.load_classifier(tmp_path / 'run' / 'classifier-1').identity
    == classifier.load_classifier(tuned / 'classifier-1').identity
  )
  assert (tmp_path / 'run' / 'classifier-0' / run_dir.MANIFEST).stat().st_mtime_ns == stays
  assert sorted(map(json.dumps, run_dir.read_lines(tmp_path / 'run' / run_dir.SCORES))) == sorted(
    map(json.dumps, run_dir.read_lines(tuned / run_dir.SCORES))
  )


@pytest.fixture(scope='module')
def one(
  tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, Any]:
  member = fake_classifiers.make_classifier(
    tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model'), 0
  )
  return fake_classifiers.save_classifier(
    tmp_path_factory.mktemp('one') / 'classifier-0', member
  ), member


def test_what_was_saved_comes_back_bit_for_bit_and_so_does_a_copy(
  one: tuple, tmp_path: pathlib.Path
):
  folder, member = one
  shutil.copytree(folder, tmp_path / 'copy')
  for place in (folder, tmp_path / 'copy'):
    found = classifier.load_classifier(place)
    assert (
      found.card == member.card
      and found.identity == member.identity == classifier.hash_classifier(found.model)
    )
    for there, here in zip(
      jax.tree.leaves(found.model), jax.tree.leaves(member.model), strict=True
    ):
      np.testing.assert_array_equal(there, here)
  assert names(folder.parent) == ['classifier-0']


def test_a_process_with_one_device_opens_what_eight_saved(one: tuple):
  program = (
    'import sys, jax\nfrom minilm_jax.tasks import classifier\n'
    'print(jax.device_count(), classifier.load_classifier(sys.argv[1]).identity)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(one[0])],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['1', one[1].identity] and jax.device_count() == 8


def test_a_card_from_before_there_could_be_several_heads_has_one(
  one: tuple, tmp_path: pathlib.Path
):
  shutil.copytree(one[0], tmp_path / 'old')
  edit(tmp_path / 'old' / classifier.CARD_FILE, lambda card: card['head'].pop('copies'))
  with_hash(tmp_path / 'old')
  assert classifier.load_classifier(tmp_path / 'old').card == one[1].card


def test_saving_again_replaces_and_a_save_cut_short_is_none(one: tuple, tmp_path: pathlib.Path):
  _, member = one
  folder = fake_classifiers.save_classifier(tmp_path / 'classifier-0', member)
  other = jax.tree.map(lambda x: x + 1, member.model)
  fake_classifiers.save_classifier(folder, dataclasses.replace(member, model=other))
  assert (
    classifier.load_classifier(folder).identity
    == classifier.hash_classifier(other)
    != member.identity
  )
  (folder / run_dir.MANIFEST).unlink()
  assert classifier.missing_files(folder)


def edit(path: pathlib.Path, change) -> None:
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def with_hash(folder: pathlib.Path) -> None:
  """The manifest of a card that someone has changed with care."""
  edit(
    folder / run_dir.MANIFEST,
    lambda content: content['files'].update(
      {classifier.CARD_FILE: files.hash_file(folder / classifier.CARD_FILE)}
    ),
  )


@pytest.mark.parametrize(
  'spoil, said',
  [
    (lambda folder: shutil.rmtree(folder), 'no such folder'),
    (lambda folder: (folder / run_dir.MANIFEST).unlink(), 'nothing was saved whole'),
    (lambda folder: (folder / run_dir.MANIFEST).write_text('{}'), 'of something else'),
    (lambda folder: (folder / run_dir.MANIFEST).write_text('nonsense'), 'not JSON'),
    (
      lambda folder: (folder / 'tokenizer.model').write_bytes(b'x'),
      'tokenizer.model is not the file',
    ),
    (lambda folder: (folder / classifier.OUTPUTS_FILE).unlink(), 'outputs.npz is not the file'),
    (
      lambda folder: edit(folder / classifier.CARD_FILE, lambda card: card.update(seed=7)),
      'classifier.json is not the file',
    ),
    (lambda folder: shutil.rmtree(folder / 'checkpoints'), 'no checkpoint'),
    (
      lambda folder: edit(
        folder / run_dir.MANIFEST, lambda content: content['files'].update({'../x': '0'})
      ),
      'leads elsewhere',
    ),
    (
      lambda folder: edit(
        folder / run_dir.MANIFEST, lambda content: content['files'].update({'/etc/passwd': '0'})
      ),
      'leads elsewhere',
    ),
    (
      lambda folder: edit(folder / run_dir.MANIFEST, lambda content: content.update(weights='0')),
      'not those that were saved',
    ),
    (
      lambda folder: (
        edit(folder / classifier.CARD_FILE, lambda card: card['model'].update(hidden_size=32)),
        with_hash(folder),
      ),
      r'is \(.*\) there and \(',
    ),
    (
      lambda folder: (
        edit(folder / classifier.CARD_FILE, lambda card: card.pop('labels')),
        with_hash(folder),
      ),
      'missing labels',
    ),
    (
      lambda folder: (
        edit(folder / classifier.CARD_FILE, lambda card: card.update(step='x')),
        with_hash(folder),
      ),
      'step as int',
    ),
  ],
)
def test_what_is_damaged_is_refused(spoil, said: str, one: tuple, tmp_path: pathlib.Path):
  shutil.copytree(one[0], tmp_path / 'one')
  spoil(tmp_path / 'one')
  with pytest.raises(InputError, match=said):
    classifier.load_classifier(tmp_path / 'one')


def zipped(compression: int, **parts: bytes) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as made:
    for name, content in parts.items():
      made.writestr(name, content)
  return file.getvalue()


def saved(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, array, allow_pickle=True)
  return file.getvalue()


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'cannot be read'),
    (b'PK\x05\x06' + bytes(10), 'cannot be read'),
    (
      zipped(zipfile.ZIP_DEFLATED, **{'validation outputs.npy': bytes(2 << 20)}),
      'unpacks to 2,097,152 bytes',
    ),
    (zipped(0, **{'x outputs.npy': saved(np.array([{}], object))}), 'allow_pickle=False'),
    (
      zipped(
        0, **{'x outputs.npy': saved(np.zeros(3)).replace(b'(3,)', b'(9' + b'0' * 15 + b',)')}
      ),
      'cannot be read',
    ),
    (zipped(0, **{'x outputs.npy': saved(np.zeros(3))}), 'cannot be read'),
  ],
  ids=['empty', 'cut', 'bomb', 'pickle', 'lie', 'no labels'],
)
def test_outputs_that_are_none_are_refused(
  content: bytes, said: str, tmp_path: pathlib.Path, monkeypatch
):
  monkeypatch.setattr(files, 'MAX_FILE_BYTES', 1 << 20)
  (tmp_path / classifier.OUTPUTS_FILE).write_bytes(content)
  with pytest.raises(InputError, match=said):
    classifier.read_outputs(tmp_path)
