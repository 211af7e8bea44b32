"""What leaves the house: models found by name, folders that appear whole or not at all."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.interop import export
from minilm_jax.training import pretrained
from tests import fake_classifiers


@pytest.fixture(scope='module')
def home(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder, reads = (
    tmp_path_factory.mktemp('release'),
    tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model'),
  )
  fake_classifiers.save_classifier(
    folder / 'tuned' / 'classifier-0', fake_classifiers.make_classifier(reads, 0)
  )
  files.write_json(folder / 'tuned' / run_dir.CONFIG, {'kind': 'finetune'})
  (folder / 'empty').mkdir()
  return folder


def test_a_run_is_its_latest_checkpoint_or_the_one_that_is_named(tiny_run: pathlib.Path):
  last, first = export.load_model(str(tiny_run)), export.load_model(f'{tiny_run}@4')
  assert (last.ref.step, first.ref.step, last.num_steps, last.card) == (8, 4, 8, None)
  assert last.identity != first.identity and last.length == last.config.max_length == 64
  model = pretrained.load(tiny_run).model
  jax.tree.map(np.testing.assert_array_equal, last.model, model)


def test_a_classifier_is_found(home: pathlib.Path):
  result = export.load_model(str(home / 'tuned' / 'classifier-0'))
  assert result.ref.step is None and result.card.task == 'own' and result.length == 24
  assert (
    result.describe_source()['weights'] == result.identity
    and 'step' not in result.describe_source()
  )


def test_what_was_trained_in_another_type_computes_in_float32(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  import dataclasses

  reads = tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model')
  card = fake_classifiers.make_card(reads, 0)
  narrow = fake_classifiers.make_classifier(
    reads, 0, model=dataclasses.replace(card.model, dtype='bfloat16')
  )
  result = export.load_model(str(fake_classifiers.save_classifier(tmp_path / 'narrow', narrow)))
  assert (
    result.config.dtype == result.model.encoder.config.dtype == 'float32' != narrow.card.model.dtype
  )
  for ours, theirs in zip(
    jax.tree.leaves(result.model), jax.tree.leaves(narrow.model), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_what_others_have_no_words_for_stays_here(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  import dataclasses

  reads = tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model')
  model = dataclasses.replace(
    fake_classifiers.make_card(reads, 0).model, segments=2, segment_embeddings_for_pairs=True
  )
  folder = fake_classifiers.save_classifier(
    tmp_path / 'bert', fake_classifiers.make_classifier(reads, 0, model=model)
  )
  with pytest.raises(InputError, match='model.segment_embeddings_for_pairs=True'):
    export.load_model(str(folder))


@pytest.mark.parametrize(
  'name, message',
  [
    ('nothing', 'no such folder'),
    ('empty', 'neither config.json'),
    ('tuned', 'give one inside it, such as .*classifier-0'),
    ('tuned/classifier-0@3', 'one checkpoint'),
    ('empty@3', 'neither config.json'),
    ('@3', 'neither config.json'),
    ('no@3', 'no such folder'),
  ],
)
def test_what_is_no_model_is_refused(name: str, message: str, home: pathlib.Path):
  with pytest.raises(InputError, match=message):
    export.load_model(f'{home}/{name}')


def test_a_run_without_a_whole_checkpoint_is_refused(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(tiny_run, tmp_path / 'run')
  with pytest.raises(InputError, match='4, 8'):
    export.resolve_model(f'{tmp_path}/run@5')
  files = (tmp_path / 'run' / 'checkpoints' / '8').rglob('*')
  largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-40])
  with pytest.raises(InputError, match='the checkpoint of step 8'):
    export.load_model(f'{tmp_path}/run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  with pytest.raises(InputError, match='checkpoint'):
    export.resolve_model(f'{tmp_path}/run')


def test_a_stored_recipe_that_lacks_a_field_names_its_run(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  result = json.loads((tiny_run / 'config.json').read_text())
  del result['seed']
  (tmp_path / 'config.json').write_text(json.dumps(result))
  with pytest.raises(
    InputError, match=f'in config.json of the pre-training run {tmp_path}\nfound: missing seed'
  ):
    pretrained.load_config(tmp_path)


def test_a_folder_appears_whole(tmp_path: pathlib.Path):
  with export.atomic_export_folder(str(tmp_path / 'a' / 'b')) as folder:
    (folder / 'x').write_text('x')
    assert not (tmp_path / 'a' / 'b').exists()
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b'] and (
    tmp_path / 'a' / 'b' / 'x'
  ).read_text() == 'x'
  assert (tmp_path / 'a' / 'b').stat().st_mode == (tmp_path / 'a').stat().st_mode


@pytest.mark.parametrize('error', [InputError('a', 'b', 'c'), KeyboardInterrupt(), OSError('full')])
def test_a_folder_that_fails_leaves_nothing(error: BaseException, tmp_path: pathlib.Path):
  with (
    pytest.raises((InputError, KeyboardInterrupt)),
    export.atomic_export_folder(str(tmp_path / 'a' / 'b')) as folder,
  ):
    (folder / 'x').write_text('x')
    raise error
  assert list(tmp_path.iterdir()) == []


def test_other_things_stay(tmp_path: pathlib.Path):
  (tmp_path / 'a').mkdir()
  assert export.existing_export(str(tmp_path / 'a'), {'to': 'hf'}) is None  # empty
  (tmp_path / 'a' / 'x').write_text('x')
  with pytest.raises(InputError, match='--workdir'):
    export.existing_export(str(tmp_path / 'a'), {'to': 'hf'})
  with (
    pytest.raises(InputError, match='--workdir'),
    export.atomic_export_folder(str(tmp_path / 'a')),
  ):
    pass
  files.write_json(tmp_path / 'a' / export.EXPORT_RECORD, {'to': 'hf', 'more': 1})
  assert export.existing_export(str(tmp_path / 'a'), {'to': 'hf'}) == {'to': 'hf', 'more': 1}
  with pytest.raises(InputError, match='--workdir'):
    export.existing_export(str(tmp_path / 'a'), {'to': 'card'})
  with pytest.raises(InputError, match='--workdir'):
    export.existing_export(str(tmp_path / 'a' / 'x'), {'to': 'hf'})
  with (
    pytest.raises(InputError, match='--workdir'),
    export.atomic_export_folder(str(tmp_path / 'a' / 'x' / 'y')),
  ):
    pass
  assert [path.name for path in tmp_path.iterdir()] == ['a']
