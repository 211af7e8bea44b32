"""Exports a model as a folder for transformers, and verifies the export before publishing it.

    config.json, model.safetensors           configuration and weights, as a RoBERTa if possible
    modeling_minilm.py                       code of all other models (`trust_remote_code=True`)
    tokenizer.json, tokenizer_config.json    the tokenizer, with the same token ids
    README.md, export.json                   the model card; source and comparison

Every export ends with a comparison: transformers loads the written folder in this process. Token
ids of unusual and ordinary texts and logits of batches with pads must be equal. The answers of
pipelines must equal the answers of `minilm fill-mask` and `minilm predict`. A difference removes
the folder. All computations are in float32, also for a model that was trained in another type.
"""

import atexit
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from minilm_jax.core import files, run_dir
from minilm_jax.core.corpus_config import PAD_ID, SPECIAL_TOKENS
from minilm_jax.core.errors import LIBRARY_ERRORS, InputError, require_library
from minilm_jax.data import corpus
from minilm_jax.evaluation import inference
from minilm_jax.interop import export, hf_weights, model_card, tokenizer_json
from minilm_jax.interop.export import LoadedModel
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.tasks.committee import Committee

MAX_DIFFERENCE = 1e-4  # between logits, and between probabilities
_LIBRARIES = ('torch', 'transformers', 'safetensors', 'tokenizers')
_SENTENCES = (
  'the dog sleeps .',
  'she went to the house and saw a little red bird .',
  'no .',
  'what do you want to eat today ?',
  'it was a dark night , and nobody in the town knew what had happened to the old man who lived by the river .',
  'The children played until it was late',
  'he said nothing',
  "I don't think that this is a good film at all !",
  'a',
  'there is a book on the table',
  'one two three four five six seven eight nine ten',
  'so be it',
)
_MASKED_TEXTS = (
  'the dog <mask> a bone .',
  'she <mask> to the <mask> and saw him .',
  'the dog <mask>.',
  '<mask>',
)
_MAX_CORPUS_ROWS = 8  # rows of the corpus in the comparison
_NUM_GUESSES, _BATCH_SIZE = 5, 8
_REPORT = 'report the error with the config.json of the run; the written folder was removed'


def export_huggingface(ref: str, workdir: str) -> dict[str, Any]:
  """Writes a model into a folder for transformers, and compares the export with the model.

  `workdir` is missing or empty; a folder with the same export is not changed.

  Returns:
    The content of `export.json`: source, class, largest `differences` of logits and answers, number
    of texts, versions.

  Raises:
    InputError: A library or the model is missing, the folder has other files, or export and model
      differ.
  """
  for library in _LIBRARIES:
    require_library(library, 'hf', 'an export to Hugging Face')
  loaded = export.load_model(ref)
  identity = {'to': 'hf', **loaded.describe_source()}
  record = export.existing_export(workdir, identity)
  if record is not None:
    return record
  if loaded.card and loaded.card.reads_pairs:
    tokenizer_json.check_pairs(loaded.length)
  task = 'text-classification' if loaded.card else 'fill-mask'
  with export.atomic_export_folder(workdir) as folder, _quiet_transformers() as transformers:
    config_json = _write_files(loaded, folder, task)
    try:
      differences = _compare(loaded, folder, task, transformers)
    except LIBRARY_ERRORS as error:
      raise InputError(
        f'{ref} in transformers {transformers.__version__}',
        f'{type(error).__name__}: {error}',
        _REPORT,
      ) from error
    record = {
      **identity,
      'class': config_json['architectures'][0],
      'remote_code': 'auto_map' in config_json,
      'unlike_roberta': hf_weights.roberta_differences(loaded.config, loaded.head),
      'differences': differences,
      'tolerance': MAX_DIFFERENCE,
      'versions': {name: sys.modules[name].__version__ for name in _LIBRARIES},
    }
    files.write_json(folder / export.EXPORT_RECORD, record)
  return record


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
  """Yields transformers, without a network, progress bars or warnings."""
  if 'transformers' not in sys.modules:  # reads these variables at import
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    code_folder = tempfile.mkdtemp()  # for code that transformers copies and runs
    atexit.register(shutil.rmtree, code_folder, ignore_errors=True)
    os.environ.setdefault('HF_MODULES_CACHE', code_folder)
  import transformers

  verbosity = transformers.logging.get_verbosity()
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  try:
    yield transformers
  finally:
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


def _write_files(loaded: LoadedModel, folder: pathlib.Path, task: str) -> dict[str, Any]:
  """Writes all files but export.json, and returns the content of config.json."""
  import safetensors.numpy

  card = loaded.card
  weights, config_json = hf_weights.export_weights(
    loaded.model, loaded.config, loaded.head, card.labels if card else ()
  )
  tokenizer = tokenizer_json.build_tokenizer_json(loaded.tokenizer)
  settings = tokenizer_json.build_tokenizer_config(loaded.length, card is not None)
  files.write_bytes(folder / 'model.safetensors', safetensors.numpy.save(weights, {'format': 'pt'}))
  files.write_json(folder / run_dir.CONFIG, config_json)
  files.write_json(folder / tokenizer_json.TOKENIZER_FILE, tokenizer)
  files.write_json(folder / tokenizer_json.TOKENIZER_CONFIG, settings)
  needs_code = 'auto_map' in config_json
  if needs_code:
    source = pathlib.Path(__file__).with_name(f'{hf_weights.MODELING_MODULE}.py')
    files.write_bytes(folder / source.name, files.read_bytes(source, 'the modelling file'))
  text = model_card.build_card(
    loaded.folder,
    loaded.step,
    ('library_name: transformers', f'pipeline_tag: {task}'),
    _describe_use(task, needs_code, card is not None and card.reads_pairs),
  )
  files.write_bytes(folder / model_card.CARD_FILE, text.encode())
  return config_json


def _describe_use(task: str, needs_code: bool, reads_pairs: bool) -> str:
  arguments = f"'{task}', model='FOLDER'" + ', trust_remote_code=True' * needs_code
  if task == 'fill-mask':
    inputs = "'the dog <mask> a bone .'"
    remark = 'Unlike this pipeline, `minilm fill-mask` never returns special tokens or unused ids.'
  else:
    text = (
      "{'text': 'the first text', 'text_pair': 'the second text'}" if reads_pairs else "'the text'"
    )
    inputs = f'{text}, top_k=None, truncation=True'
    remark = 'The tokenizer treats special tokens in a text as plain letters.'
  code = (
    'transformers has no class for this model; `modeling_minilm.py` in this folder defines it. '
    if needs_code
    else ''
  )
  return (
    f'{code}The tokenizer converts text to lower case.\n\n```python\n'
    f'from transformers import pipeline\n\nanswer = pipeline({arguments})\nprint(answer({inputs}))\n'
    f'```\n\nReplace FOLDER by the path of the folder with this file. {remark}'
  )


def _compare(
  loaded: LoadedModel, folder: pathlib.Path, task: str, transformers: Any
) -> dict[str, float]:
  """Returns the largest differences; raises InputError if a difference exceeds MAX_DIFFERENCE."""
  pipeline = transformers.pipeline(task, model=str(folder), trust_remote_code=True, device='cpu')
  texts = [*tokenizer_json.PROBE_TEXTS, *_SENTENCES, *_read_corpus_texts(loaded)]
  different = tokenizer_json.find_differences(
    loaded.tokenizer, pipeline.tokenizer.backend_tokenizer, texts
  )
  if different:
    raise InputError(
      'equal token ids in transformers',
      f'different ids for {different[0]!r} and {len(different) - 1} more texts',
      'train a tokenizer with tokenizer.model=bpe',
    )
  compare_answers = _compare_labels if loaded.card else _compare_guesses
  with jax.default_matmul_precision('highest'):
    differences = {
      'logits': _compare_logits(loaded, pipeline.model, pipeline.tokenizer, texts),
      'answers': compare_answers(loaded, pipeline),
    }
  for name, difference in differences.items():
    if not difference <= MAX_DIFFERENCE:
      raise InputError(
        f'{name} that differ by at most {MAX_DIFFERENCE}',
        f'a difference of {difference:.2g}',
        _REPORT,
      )
  return {**differences, 'texts': len(texts)}


def _read_corpus_texts(loaded: LoadedModel) -> list[str]:
  """Returns validation texts of the corpus of a run, or no text if the corpus is missing."""
  if loaded.card:
    return []
  hashes = run_dir.read_corpus_hashes(loaded.folder)
  folder = hashes['corpus_folder']
  # The corpus may be in a bucket that cannot be reached.
  with contextlib.suppress(InputError, OSError, ImportError):
    if corpus.read_manifest(folder)['hash'] == hashes['corpus']:
      rows = corpus.CorpusFiles(folder, 'validation')
      count = min(_MAX_CORPUS_ROWS, int(rows.ends[-1]))
      return [loaded.tokenizer.decode(row) for row in rows[np.arange(count)].tolist()]
  return []


def _compare_logits(loaded: LoadedModel, model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
  """Returns the largest difference of logits of padded batches, without pads for a masked LM.

  Batches are small, because a masked LM has logits of every piece at every token.
  """
  import torch

  # The head 'positions' has a weight for each position, pads included.
  has_full_rows = loaded.head is not None and loaded.head.pooling == 'positions'
  num_pads = loaded.config.max_length - loaded.length if has_full_rows else 0
  differences = []
  for first in range(0, len(texts), _BATCH_SIZE):
    batch_texts = list(texts[first : first + _BATCH_SIZE])
    batch = tokenizer(
      batch_texts + [''] * (_BATCH_SIZE - len(batch_texts)),
      truncation=True,
      padding='max_length',
      max_length=loaded.length,
      return_tensors='pt',
    )
    tokens = batch['input_ids'].numpy()
    with torch.no_grad():
      expected = model(**batch).logits.float().numpy()
    compared = np.ones(len(tokens), bool) if loaded.card else tokens != PAD_ID
    padded = np.pad(tokens, ((0, 0), (0, num_pads)), constant_values=PAD_ID)
    logits = np.asarray(_compute_logits(loaded.model, padded))
    differences.append(np.abs(logits - expected)[compared].max())
  return float(np.max(differences))  # NaN if any difference is NaN


@jax.jit
def _compute_logits(model: MaskedLanguageModel | Classifier, tokens: Int[Any, 'B L']) -> Any:
  """Returns the logits of each token by a masked LM, or of each row by a classifier."""
  if isinstance(model, MaskedLanguageModel):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model(tokens, tokens != PAD_ID, positions)
  return model(tokens, tokens != PAD_ID)


def _compare_guesses(loaded: LoadedModel, pipeline: Any) -> float:
  """Returns the largest difference between the probabilities of the best guesses of both."""
  tokenizer, vocab_size = loaded.tokenizer, loaded.config.vocab_size
  first, end = len(SPECIAL_TOKENS), tokenizer.size
  # The guesses of transformers may include special pieces and unused ids.
  top_k = min(vocab_size, _NUM_GUESSES + first + vocab_size - end)
  model, differences = jax.tree.map(jnp.asarray, loaded.model), []
  texts = [
    text
    for text in _MASKED_TEXTS
    if len(inference.encode_masked(tokenizer, text)) <= loaded.config.max_length
  ]
  for text in texts:
    guesses = inference.guess_pieces(model, tokenizer, text, _NUM_GUESSES)
    rows = pipeline(text, top_k=top_k)
    rows = [rows] if isinstance(rows[0], dict) else rows
    for hole, row in enumerate(rows, 1):
      shares = {guess['token']: guess['score'] for guess in row if first <= guess['token'] < end}
      best = sorted(shares.values(), reverse=True)[:_NUM_GUESSES]
      hole_guesses = [guess for guess in guesses if guess.hole == hole]
      for guess, share in zip(hole_guesses, best, strict=True):
        # Equally probable pieces may have another order, so a piece may be missing.
        same_piece = shares.get(tokenizer.id(guess.piece), share)
        differences += [abs(guess.probability - same_piece), abs(guess.probability - share)]
  return float(np.max(differences))


def _compare_labels(loaded: LoadedModel, pipeline: Any) -> float:
  """Returns the largest difference between probabilities of labels, or numbers of a regression."""
  classifier = loaded.classifier()
  texts = [*_SENTENCES, ' '.join(_SENTENCES * 4), 'a <mask> and </s>']
  rows: list[tuple[str, ...]] = [(text,) for text in texts]
  if classifier.card.reads_pairs:
    rows = list(zip(texts, [*texts[1:], texts[0]], strict=True))
  predictions = inference.predict_rows(Committee((classifier,)), rows, is_committee=False)
  differences = []
  for row, prediction in zip(rows, predictions, strict=True):
    inputs = dict(zip(('text', 'text_pair'), row))
    answers = pipeline([inputs], top_k=None, truncation=True)[0]
    if classifier.card.is_regression:
      differences.append(abs(prediction['value'] - answers[0]['score']))
    else:
      shares = {answer['label']: answer['score'] for answer in answers}
      differences += [
        abs(share - shares[label]) for label, share in prediction['probabilities'].items()
      ]
  return float(np.max(differences))
