"""Folders for transformers: what a user opens says what ours says; what differs, or cannot be made,
leaves nothing.
"""

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


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def hf_export():
  for name in ('torch', 'transformers', 'safetensors'):
    pytest.importorskip(name, reason=f'needs {name}, which is of the extra [hf]')
  import torch

  torch.set_num_threads(1)
  from minilm_jax.interop import hf_export

  return hf_export


@pytest.fixture(scope='module')
def reads(tiny_corpus: pathlib.Path) -> tokenizer.Tokenizer:
  return tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model')


def tuned(
  folder: pathlib.Path, reads: tokenizer.Tokenizer, shape: dict[str, Any], **changes: Any
) -> str:
  """The folder of a classifier of another shape, its weights no longer at their start."""
  card = fake_classifiers.make_card(reads, 0)
  member = fake_classifiers.make_classifier(
    reads, 0, model=dataclasses.replace(card.model, **shape), **changes
  )
  # of a size at which float32 rounds to less than what may differ
  member = dataclasses.replace(member, model=jax.tree.map(lambda x: x / 2, member.model))
  return str(fake_classifiers.save_classifier(folder, member))


def opened(folder: pathlib.Path, task: str) -> Any:
  """As the model card says."""
  import transformers

  return transformers.pipeline(task, model=str(folder), trust_remote_code=True, device='cpu')


def test_a_run_fills_masks_there_as_here(
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
  answer = opened(tmp_path / 'out', 'fill-mask')
  theirs = {guess['token_str']: guess['score'] for guess in answer('the Dog <mask> .', top_k=520)}
  for guess in inference.fill_mask(tiny_run, 'the Dog <mask> .', 3):
    assert theirs[guess.piece.replace('\u2581', '')] == pytest.approx(guess.probability, abs=1e-4)
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: transformers\npipeline_tag: fill-mask\n')
  assert 'trust_remote_code=True' in card
  assert (
    hf_export.export_huggingface(str(tiny_run), str(tmp_path / 'out')) == record
  )  # nothing to do
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
def test_a_classifier_answers_there_as_here(
  form: str, reads: tokenizer.Tokenizer, hf_export, tmp_path: pathlib.Path
):
  shape, changes, name = FORMS[form]
  source = tuned(tmp_path / 'source', reads, shape, **changes)
  record = hf_export.export_huggingface(source, str(tmp_path / 'out'))
  assert record['class'] == name and (
    tmp_path / 'out' / 'modeling_minilm.py'
  ).exists() == name.startswith('MiniLM')
  assert max(record['differences']['logits'], record['differences']['answers']) < 1e-4
  answer, two = opened(tmp_path / 'out', 'text-classification'), 'fields' in changes
  close = 2e-2 if shape.get('dtype') == 'bfloat16' else 1e-4  # which `minilm predict` computes in
  for text in TEXTS:
    (ours,) = inference.predict('', source, text, text[::-1] if two else '', '')
    (theirs,) = answer(
      [{'text': text, **({'text_pair': text[::-1]} if two else {})}], top_k=None, truncation=True
    )
    expected = {'value': ours['value']} if 'value' in ours else ours['probabilities']
    assert {answer['label']: answer['score'] for answer in theirs} == pytest.approx(
      expected, abs=close
    )


@pytest.mark.parametrize('form', ['roberta of pairs', 'regression'])
def test_labels_are_compared_without_the_libraries_too(
  form: str, reads: tokenizer.Tokenizer, tmp_path: pathlib.Path
):
  from minilm_jax.interop import hf_export

  shape, changes, _ = FORMS[form]
  released = export.load_model(tuned(tmp_path / 'source', reads, shape, **changes))
  member = Committee((classifier.load_classifier(tmp_path / 'source'),))

  def pipeline(
    inputs: list[dict[str, str]], off: float = 0.0, **_: Any
  ) -> list[list[dict[str, Any]]]:
    (ours,) = inference.predict_rows(member, [tuple(inputs[0].values())], is_committee=False)
    message = {'LABEL_0': ours['value']} if 'value' in ours else ours['probabilities']
    return [[{'label': label, 'score': share + off} for label, share in message.items()]]

  assert hf_export._compare_labels(released, pipeline) < 1e-5
  assert hf_export._compare_labels(
    released, functools.partial(pipeline, off=0.25)
  ) == pytest.approx(0.25, abs=1e-5)


def test_pairs_of_an_odd_length_are_refused(
  reads: tokenizer.Tokenizer, hf_export, tmp_path: pathlib.Path
):
  source = tuned(tmp_path / 'source', reads, PLAIN, fields=('a', 'b'), length=23)
  with pytest.raises(InputError, match='--config'):
    hf_export.export_huggingface(source, str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'spoil, message',
  [
    ('weights', 'differ by 0.0001 at most'),
    ('numbers', 'found: nan'),
    ('shape', 'it cannot'),
    ('tokenizer', 'the same ids'),
  ],
)
def test_what_differs_leaves_nothing(
  spoil: str,
  message: str,
  reads: tokenizer.Tokenizer,
  hf_export,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
):
  source = tuned(tmp_path / 'source', reads, PLAIN)
  written, config = (
    hf_export.hf_weights.export_weights,
    hf_export.tokenizer_json.build_tokenizer_json,
  )

  def spoiled(*arguments: Any) -> tuple:
    weights, described = written(*arguments)
    bias = weights['classifier.out_proj.bias'] + np.float32([1e-3, 0, 0])
    if spoil in ('weights', 'numbers'):
      bias = bias if spoil == 'weights' else np.full_like(bias, np.nan)
      return weights | {'classifier.out_proj.bias': bias}, described
    return weights, described | ({'hidden_size': 24} if spoil == 'shape' else {})

  def without_lower_case(tokenizer: tokenizer.Tokenizer) -> dict:
    described = config(tokenizer)
    if spoil == 'tokenizer':
      del described['normalizer']['normalizers'][1]
    return described

  monkeypatch.setattr(hf_export.hf_weights, 'export_weights', spoiled)
  monkeypatch.setattr(hf_export.tokenizer_json, 'build_tokenizer_json', without_lower_case)
  with pytest.raises(InputError, match=message):
    hf_export.export_huggingface(source, str(tmp_path / 'out'))
  assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_its_libraries_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
  from minilm_jax.interop import hf_export

  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'safetensors' else 'there'
  )
  with pytest.raises(InputError, match=r'safetensors not installed\n.*minilm_jax\[hf\]'):
    hf_export.export_huggingface('nowhere', str(tmp_path / 'out'))
