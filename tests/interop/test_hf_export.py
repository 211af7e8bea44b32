"""Exports to transformers give equal answers; an export that differs leaves no folder."""

import ast
import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.interop import export
from minilm_jax.tasks import classifier
from minilm_jax.tasks.committee import Committee
from tests import fake_classifiers

TEXTS = ('The dog sleeps .', 'a <mask> and 😀 </s>', 'the bad pig eats the red hen and sleeps ' * 6)


@pytest.fixture(scope='module')
def hf_export():
  for name in ('torch', 'transformers', 'safetensors'):
    pytest.importorskip(name, reason=f'needs {name}, which is of the extra [hf]')
  import torch

  torch.set_num_threads(1)
  from minilm_jax.interop import hf_export

  return hf_export


def save_classifier(
  folder: pathlib.Path, tiny_tokenizer: tokenizer.Tokenizer, shape: dict[str, Any], **changes: Any
) -> str:
  """Saves a classifier with changed fields of its encoder; returns the folder."""
  card = fake_classifiers.make_card(tiny_tokenizer, 0)
  member = fake_classifiers.make_classifier(
    tiny_tokenizer, 0, model=dataclasses.replace(card.model, **shape), **changes
  )
  # With smaller weights, rounding errors of float32 stay below the tolerance.
  member = dataclasses.replace(member, model=jax.tree.map(lambda x: x / 2, member.model))
  return str(fake_classifiers.save_classifier(folder, member))


def open_pipeline(folder: pathlib.Path, task: str) -> Any:
  """Opens an export as in the model card."""
  import transformers

  return transformers.pipeline(task, model=str(folder), trust_remote_code=True, device='cpu')


def test_an_exported_run_fills_masks_equally(
  tiny_run: pathlib.Path, hf_export, tmp_path: pathlib.Path, capfd
):
  record = hf_export.export_huggingface(str(tiny_run), str(tmp_path / 'out'))
  assert record['class'] == 'MiniLMForMaskedLM' and record['remote_code']
  assert (record['step'], record['updates']) == (8, 8)
  assert (
    max(record['differences']['logits'], record['differences']['answers'])
    < 1e-5
    < record['tolerance']
  )
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
    'README.md',
    'config.json',
    'export.json',
    'model.safetensors',
    'modeling_minilm.py',
    'tokenizer.json',
    'tokenizer_config.json',
  ]
  pipeline = open_pipeline(tmp_path / 'out', 'fill-mask')
  scores = {guess['token_str']: guess['score'] for guess in pipeline('the Dog <mask> .', top_k=520)}
  for guess in inference.LanguageModel(tiny_run).fill_mask('the Dog <mask> .', 3):
    assert scores[guess.piece.replace('\u2581', '')] == pytest.approx(guess.probability, abs=1e-4)
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: transformers\npipeline_tag: fill-mask\n')
  assert 'trust_remote_code=True' in card
  assert hf_export.export_huggingface(str(tiny_run), str(tmp_path / 'out')) == record
  with pytest.raises(InputError, match='--workdir'):
    hf_export.export_huggingface(f'{tiny_run}@4', str(tmp_path / 'out'))
  capfd.readouterr()
  assert [path.name for path in tmp_path.iterdir()] == ['out']


PLAIN = {'norm': 'post', 'positions': 'learned', 'projection': False, 'segments': 1}
FORMS = {
  'roberta': (PLAIN, {}, 'RobertaForSequenceClassification'),
  'roberta of pairs': (PLAIN, {'fields': ('a', 'b')}, 'RobertaForSequenceClassification'),
  'regression': (
    PLAIN,
    {'task_kind': 'regression', 'labels': (), 'headline': 'pearson'},
    'RobertaForSequenceClassification',
  ),
  'hostile labels': (
    PLAIN,
    {'labels': ('<b>', '| a', '"\\\n')},
    'RobertaForSequenceClassification',
  ),
  'positions': ({}, {'head': HeadConfig('positions', 0.1, 1)}, 'MiniLMForSequenceClassification'),
  'two heads, bfloat16': (
    {'dtype': 'bfloat16'},
    {'head': HeadConfig('mean', 0.1, 2)},
    'MiniLMForSequenceClassification',
  ),
}


@pytest.mark.parametrize('form', FORMS)
def test_an_exported_classifier_answers_equally(
  form: str, tiny_tokenizer: tokenizer.Tokenizer, hf_export, tmp_path: pathlib.Path
):
  shape, changes, name = FORMS[form]
  source = save_classifier(tmp_path / 'source', tiny_tokenizer, shape, **changes)
  record = hf_export.export_huggingface(source, str(tmp_path / 'out'))
  assert record['class'] == name and (
    tmp_path / 'out' / 'modeling_minilm.py'
  ).exists() == name.startswith('MiniLM')
  assert max(record['differences']['logits'], record['differences']['answers']) < 1e-4
  pipeline, is_pair = open_pipeline(tmp_path / 'out', 'text-classification'), 'fields' in changes
  tolerance = 2e-2 if shape.get('dtype') == 'bfloat16' else 1e-4  # the type of `minilm predict`
  for text in TEXTS:
    (prediction,) = inference.predict('', source, text, text[::-1] if is_pair else '', '')
    (answers,) = pipeline(
      [{'text': text, **({'text_pair': text[::-1]} if is_pair else {})}],
      top_k=None,
      truncation=True,
    )
    expected = (
      {'value': prediction['value']} if 'value' in prediction else prediction['probabilities']
    )
    assert {answer['label']: answer['score'] for answer in answers} == pytest.approx(
      expected, abs=tolerance
    )


@pytest.mark.parametrize('form', ['roberta', 'roberta of pairs'])
def test_the_code_in_the_card_of_a_classifier_answers(
  form: str, tiny_tokenizer: tokenizer.Tokenizer, hf_export, tmp_path: pathlib.Path, capsys
):
  shape, changes, _ = FORMS[form]
  source = save_classifier(tmp_path / 'source', tiny_tokenizer, shape, **changes)
  hf_export.export_huggingface(source, str(tmp_path / 'out'))
  texts = ('the first text', 'the second text') if 'fields' in changes else ('the text', '')
  (prediction,) = inference.predict('', source, *texts, '')
  card = (tmp_path / 'out' / 'README.md').read_text()
  code = card.partition('```python\n')[2].partition('```')[0]
  capsys.readouterr()
  exec(code.replace('FOLDER', str(tmp_path / 'out')), {})
  answers = ast.literal_eval(capsys.readouterr().out)
  answers = answers[0] if isinstance(answers[0], list) else answers
  assert {answer['label']: answer['score'] for answer in answers} == pytest.approx(
    prediction['probabilities'], abs=1e-4
  )


@pytest.mark.parametrize('form', ['roberta of pairs', 'regression'])
def test_the_comparison_of_labels_detects_differences(
  form: str, tiny_tokenizer: tokenizer.Tokenizer, tmp_path: pathlib.Path
):
  from minilm_jax.interop import hf_export

  shape, changes, _ = FORMS[form]
  loaded = export.load_model(save_classifier(tmp_path / 'source', tiny_tokenizer, shape, **changes))
  member = Committee((classifier.load_classifier(tmp_path / 'source'),))

  def pipeline(
    inputs: list[dict[str, str]], offset: float = 0.0, **_: Any
  ) -> list[list[dict[str, Any]]]:
    (row,) = inference.predict_rows(member, [tuple(inputs[0].values())], is_committee=False)
    scores = {'LABEL_0': row['value']} if 'value' in row else row['probabilities']
    return [[{'label': label, 'score': score + offset} for label, score in scores.items()]]

  assert hf_export._compare_labels(loaded, pipeline) < 1e-5
  assert hf_export._compare_labels(
    loaded, functools.partial(pipeline, offset=0.25)
  ) == pytest.approx(0.25, abs=1e-5)


def test_pairs_of_an_odd_length_are_refused(
  tiny_tokenizer: tokenizer.Tokenizer, hf_export, tmp_path: pathlib.Path
):
  source = save_classifier(tmp_path / 'source', tiny_tokenizer, PLAIN, fields=('a', 'b'), length=23)
  with pytest.raises(InputError, match='--config'):
    hf_export.export_huggingface(source, str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'fault, value',
  [
    ('weights', 'logits .*0.0001'),
    ('numbers', 'nan'),
    ('shape', 'transformers .*\nfound: .*Error'),
    ('tokenizer', 'tokenizer.model=bpe'),
  ],
)
def test_an_export_that_differs_leaves_no_folder(
  fault: str,
  value: str,
  tiny_tokenizer: tokenizer.Tokenizer,
  hf_export,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
):
  source = save_classifier(tmp_path / 'source', tiny_tokenizer, PLAIN)
  export_weights = hf_export.hf_weights.export_weights
  build_tokenizer_json = hf_export.tokenizer_json.build_tokenizer_json

  def export_changed(*arguments: Any) -> tuple:
    weights, config_json = export_weights(*arguments)
    bias = weights['classifier.out_proj.bias'] + np.float32([1e-3, 0, 0])
    if fault in ('weights', 'numbers'):
      bias = bias if fault == 'weights' else np.full_like(bias, np.nan)
      return weights | {'classifier.out_proj.bias': bias}, config_json
    return weights, config_json | ({'hidden_size': 24} if fault == 'shape' else {})

  def build_changed(tokenizer: tokenizer.Tokenizer) -> dict:
    content = build_tokenizer_json(tokenizer)
    if fault == 'tokenizer':
      steps = content['normalizer']['normalizers']
      steps.remove({'type': 'Lowercase'})
    return content

  monkeypatch.setattr(hf_export.hf_weights, 'export_weights', export_changed)
  monkeypatch.setattr(hf_export.tokenizer_json, 'build_tokenizer_json', build_changed)
  with pytest.raises(InputError, match=value):
    hf_export.export_huggingface(source, str(tmp_path / 'out'))
  assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
  from minilm_jax.interop import hf_export

  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'safetensors' else 'installed'
  )
  with pytest.raises(InputError, match=r'safetensors.*\n.*minilm_jax\[hf\]'):
    hf_export.export_huggingface('nowhere', str(tmp_path / 'out'))
