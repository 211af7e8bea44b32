"""An exported program gives the probabilities of the model, for one row and for several."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest
from jax import export as jax_export

from minilm_jax.cli import main
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.interop import export, stablehlo
from minilm_jax.tasks import task_data
from tests import fake_classifiers

TEXTS = ['the dog sleeps .', 'a good fox', 'The bad pig ' * 20]


def test_a_missing_library_is_named(
  tiny_tokenizer: tokenizer.Tokenizer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  source = fake_classifiers.save_classifier(
    tmp_path / 'source', fake_classifiers.make_classifier(tiny_tokenizer, 0)
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='flatbuffers'):
    stablehlo.export_stablehlo(str(source), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(stablehlo, '_NUM_CALLS', 3)
  monkeypatch.setattr(stablehlo, '_WARMUP_CALLS', 1)


def run_example(folder: pathlib.Path, texts: list[str]) -> tuple[np.ndarray, dict]:
  """Returns the output of the program for texts, and the content of call.json."""
  call = json.loads((folder / 'call.json').read_text())
  program = jax_export.deserialize(bytearray((folder / call['program']).read_bytes()))
  run_tokenizer = tokenizer.load_tokenizer(folder / call['tokenizer']['file'])
  sequences, _ = task_data.encode_examples(
    fake_classifiers.make_examples(tuple(texts)), run_tokenizer, call['tokenizer']['longest']
  )
  length = call['input']['shape'][1]
  rows = task_data.build_task_rows(sequences, np.zeros(len(texts), np.int32), length)
  return np.asarray(program.call(rows.tokens)), call


@pytest.mark.parametrize(
  'changes, batch',
  [
    ({}, 0),
    ({'head': HeadConfig('positions', 0.1, 1)}, 0),
    ({'task_kind': 'regression', 'labels': ()}, 2),
  ],
  ids=['free batch', 'positions', 'regression, two rows'],
)
def test_the_program_equals_the_model(
  changes: dict, batch: int, tiny_tokenizer: tokenizer.Tokenizer, tmp_path: pathlib.Path
):
  source = fake_classifiers.save_classifier(
    tmp_path / 'source', fake_classifiers.make_classifier(tiny_tokenizer, 0, **changes)
  )
  record = stablehlo.export_stablehlo(str(source), str(tmp_path / 'out'), batch)
  assert record['batch'] == (batch or None) and record['difference'] <= 1e-5
  assert 0 < record['milliseconds']['median'] <= record['milliseconds']['p95']
  for texts in [TEXTS[:2]] if batch else [TEXTS[:1], TEXTS]:
    result, call = run_example(tmp_path / 'out', texts)
    predictions = [inference.predict('', str(source), text, '', '')[0] for text in texts]
    expected = [
      [prediction['value']] if 'value' in prediction else list(prediction['probabilities'].values())
      for prediction in predictions
    ]
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert call['labels'] == list(changes.get('labels', fake_classifiers.LABELS))
    assert result.shape[1] == call['output']['shape'][1]
  assert stablehlo.export_stablehlo(str(source), str(tmp_path / 'out'), batch) == record
  with pytest.raises(InputError, match='--workdir'):
    stablehlo.export_stablehlo(str(source), str(tmp_path / 'out'), 7)


@pytest.mark.parametrize(
  'changes, texts, batch',
  [
    ({}, ('a text',), 0),
    ({}, ('THE cafe\u0301\t\u2581\n',), 0),
    ({'fields': ('first', 'second')}, ('a text', 'another'), 3),
  ],
  ids=['text', 'letters that the tokenizer changes', 'pair in three rows'],
)
def test_the_example_code_runs_in_the_folder(
  changes: dict,
  texts: tuple,
  batch: int,
  tiny_tokenizer: tokenizer.Tokenizer,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
):
  source = fake_classifiers.save_classifier(
    tmp_path / 'source', fake_classifiers.make_classifier(tiny_tokenizer, 0, **changes)
  )
  stablehlo.export_stablehlo(str(source), str(tmp_path / 'out'), batch)
  monkeypatch.chdir(tmp_path / 'out')
  result: dict = {}
  code = '\n'.join(json.loads(pathlib.Path('call.json').read_text())['python'])
  exec(code.replace("'a text'", repr(texts[0])), result)
  (prediction,) = inference.predict('', str(source), *texts, *[''] * (3 - len(texts)))
  expected = list(prediction['probabilities'].values())
  np.testing.assert_allclose(result['answer'], expected, atol=1e-5)


def test_a_program_that_differs_leaves_no_folder(
  tiny_tokenizer: tokenizer.Tokenizer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  source = fake_classifiers.save_classifier(
    tmp_path / 'source', fake_classifiers.make_classifier(tiny_tokenizer, 0)
  )
  original = stablehlo.open_program
  monkeypatch.setattr(
    stablehlo, 'open_program', lambda folder: lambda tokens: original(folder)(tokens) + 1e-3
  )
  with pytest.raises(InputError, match='1e-05'):
    stablehlo.export_stablehlo(str(source), str(tmp_path / 'out'))
  assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_a_pretraining_run_is_refused(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='save_classifiers'):
    stablehlo.export_stablehlo(str(tiny_run), str(tmp_path / 'out'))
  with pytest.raises(InputError, match='--batch=-1'):
    stablehlo.export_stablehlo(str(tiny_run), str(tmp_path / 'out'), -1)
  assert not (tmp_path / 'out').exists()


def test_a_custom_encoder_is_exported_only_as_a_program(
  tiny_tokenizer: tokenizer.Tokenizer,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys,
):
  """The export needs trust; other formats refuse the encoder without running its code."""
  module = 'configs.examples.gated_rotary'
  monkeypatch.setattr(recipe, '_trusted_modules', {module})
  model = dataclasses.replace(
    fake_classifiers.make_card(tiny_tokenizer, 0).model, encoder=f'{module}:Encoder'
  )
  source = fake_classifiers.save_classifier(
    tmp_path / 'source', fake_classifiers.make_classifier(tiny_tokenizer, 0, model=model)
  )
  monkeypatch.setattr(recipe, '_trusted_modules', set())
  with pytest.raises(InputError, match='--format=stablehlo'):
    export.load_model(str(source))
  command = [
    'export',
    f'--checkpoint={source}',
    '--format=stablehlo',
    f'--workdir={tmp_path / "out"}',
  ]
  assert main.main(command) == 2 and f'--trust={module}' in capsys.readouterr().err
  assert main.main([*command, f'--trust={module}']) == 0
  result, _ = run_example(tmp_path / 'out', TEXTS)
  predictions = [inference.predict('', str(source), text, '', '')[0] for text in TEXTS]
  np.testing.assert_allclose(
    result, [list(prediction['probabilities'].values()) for prediction in predictions], atol=1e-5
  )
