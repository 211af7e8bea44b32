"""Exports resolve references to models, and write complete folders or nothing."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.interop import export
from minilm_jax.training import pretrained
from tests import fake_classifiers


@pytest.fixture(scope='module')
def models(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder with a fine-tuning run of one classifier, and an empty folder."""
  folder = tmp_path_factory.mktemp('models')
  fake_classifiers.save_classifier(
    folder / 'tuned' / 'classifier-0', fake_classifiers.make_classifier(tiny_tokenizer, 0)
  )
  files.write_json(folder / 'tuned' / run_dir.CONFIG, {'kind': 'finetune'})
  (folder / 'empty').mkdir()
  return folder


def test_a_reference_to_a_run_is_the_latest_checkpoint_or_a_given_step(tiny_run: pathlib.Path):
  last, first = export.load_model(str(tiny_run)), export.load_model(f'{tiny_run}@4')
  assert (last.step, first.step, last.num_steps, last.card) == (8, 4, 8, None)
  assert last.identity != first.identity and last.length == last.config.max_length == 64
  model = pretrained.load(tiny_run).model
  jax.tree.map(np.testing.assert_array_equal, last.model, model)


def test_a_classifier_is_loaded(models: pathlib.Path):
  result = export.load_model(str(models / 'tuned' / 'classifier-0'))
  assert result.step is None and result.card.task == 'own' and result.length == 24
  assert (
    result.describe_source()['weights'] == result.identity
    and 'step' not in result.describe_source()
  )


def test_a_model_of_another_type_computes_in_float32(
  tiny_tokenizer: Tokenizer, tmp_path: pathlib.Path
):
  card = fake_classifiers.make_card(tiny_tokenizer, 0)
  narrow = fake_classifiers.make_classifier(
    tiny_tokenizer, 0, model=dataclasses.replace(card.model, dtype='bfloat16')
  )
  result = export.load_model(str(fake_classifiers.save_classifier(tmp_path / 'narrow', narrow)))
  assert (
    result.config.dtype == result.model.encoder.config.dtype == 'float32' != narrow.card.model.dtype
  )
  for leaf, other in zip(jax.tree.leaves(result.model), jax.tree.leaves(narrow.model), strict=True):
    np.testing.assert_array_equal(leaf, other)


def test_fields_without_a_counterpart_are_not_exported(
  tiny_tokenizer: Tokenizer, tmp_path: pathlib.Path
):
  card = fake_classifiers.make_card(tiny_tokenizer, 0)
  model = dataclasses.replace(card.model, segments=2, segment_embeddings_for_pairs=True)
  folder = fake_classifiers.save_classifier(
    tmp_path / 'bert', fake_classifiers.make_classifier(tiny_tokenizer, 0, model=model)
  )
  with pytest.raises(InputError, match='model.segment_embeddings_for_pairs=True'):
    export.load_model(str(folder))


@pytest.mark.parametrize(
  'name, value',
  [
    ('nothing', '/nothing'),
    ('empty', 'config.json'),
    ('tuned', '/tuned/classifier-0'),
    ('tuned/classifier-0@3', 'step 3 of .*/tuned/classifier-0'),
    ('empty@3', 'config.json'),
    ('@3', 'config.json'),
    ('no@3', '/no\n'),
  ],
)
def test_other_references_are_refused(name: str, value: str, models: pathlib.Path):
  with pytest.raises(InputError, match=value):
    export.load_model(f'{models}/{name}')


def test_a_run_without_an_intact_checkpoint_is_refused(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(tiny_run, tmp_path / 'run')
  with pytest.raises(InputError, match='4, 8'):
    export.resolve_model(f'{tmp_path}/run@5')
  files = (tmp_path / 'run' / 'checkpoints' / '8').rglob('*')
  largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-40])
  with pytest.raises(InputError, match=f'step 8 in {tmp_path}/run'):
    export.load_model(f'{tmp_path}/run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  with pytest.raises(InputError, match='checkpoint'):
    export.resolve_model(f'{tmp_path}/run')


def test_a_folder_appears_when_it_is_complete(tmp_path: pathlib.Path):
  with export.atomic_export_folder(str(tmp_path / 'a' / 'b')) as folder:
    (folder / 'x').write_text('x')
    assert not (tmp_path / 'a' / 'b').exists()
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b'] and (
    tmp_path / 'a' / 'b' / 'x'
  ).read_text() == 'x'
  assert (tmp_path / 'a' / 'b').stat().st_mode == (tmp_path / 'a').stat().st_mode


def test_a_link_to_an_empty_folder_becomes_the_export(tmp_path: pathlib.Path):
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'link').symlink_to('disk')
  with export.atomic_export_folder(str(tmp_path / 'link')) as folder:
    (folder / 'x').write_text('x')
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'disk' / 'x').read_text() == 'x'


@pytest.mark.parametrize(
  'as_program, encoder, is_imported, advice',
  [
    (False, 'own:Encoder', False, '--format=stablehlo'),
    (False, 'own:Encoder', True, 'of minilm pretrain'),
    (True, 'own:Encoder', True, 'of minilm pretrain'),
    (True, '', True, 'of minilm pretrain'),
  ],
)
def test_the_advice_for_an_export_fits_the_fault(
  tiny_tokenizer: Tokenizer, monkeypatch, as_program, encoder: str, is_imported: bool, advice: str
):
  monkeypatch.setattr(export.wrapped_tokenizer, 'is_wrapped', lambda model: is_imported)
  config = dataclasses.replace(fake_classifiers.make_card(tiny_tokenizer, 0).model, encoder=encoder)
  with pytest.raises(InputError) as refusal:
    export._check_exportable('run', tiny_tokenizer, config, as_program)
  assert advice in refusal.value.remedy
  assert ('stablehlo' in refusal.value.remedy) == (advice == '--format=stablehlo')


@pytest.mark.parametrize('error', [InputError('a', 'b', 'c'), KeyboardInterrupt(), OSError('full')])
def test_a_failure_leaves_no_folder(error: BaseException, tmp_path: pathlib.Path):
  with (
    pytest.raises((InputError, KeyboardInterrupt)),
    export.atomic_export_folder(str(tmp_path / 'a' / 'b')) as folder,
  ):
    (folder / 'x').write_text('x')
    raise error
  assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_changed(tmp_path: pathlib.Path):
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
  with pytest.raises(InputError, match='another export: to is hf, card is absent(.|\n)*--workdir'):
    export.existing_export(str(tmp_path / 'a'), {'to': 'card', 'card': 'f' * 64})
  record = {'to': 'hf', 'checkpoint': 'runs/../runs/tiny'}
  files.write_json(tmp_path / 'a' / export.EXPORT_RECORD, record)
  identity = {'to': 'hf', 'checkpoint': str(pathlib.Path('runs/tiny').absolute())}
  assert export.existing_export(str(tmp_path / 'a'), identity) == record
  with pytest.raises(InputError, match='--workdir'):
    export.existing_export(str(tmp_path / 'a'), identity | {'checkpoint': 'runs/other'})
  with pytest.raises(InputError, match='--workdir'):
    export.existing_export(str(tmp_path / 'a' / 'x'), {'to': 'hf'})
  with (
    pytest.raises(InputError, match='--workdir'),
    export.atomic_export_folder(str(tmp_path / 'a' / 'x' / 'y')),
  ):
    pass
  assert [path.name for path in tmp_path.iterdir()] == ['a']
