"""A model of ours as a folder that Hugging Face's transformers opens, proved before it is there.

    config.json, model.safetensors           shape and weights: a RoBERTa where the model is one
    modeling_minilm.py                       of every other shape, what reads them (`trust_remote_code=True`)
    tokenizer.json, tokenizer_config.json    the same ids for the same text
    README.md, export.json                   the model card; what it is an export of, and what was compared

Every export ends with a comparison, in this process, of ours with what transformers makes of the
written folder: ids of strange and of ordinary texts, logits of a batch with pads, and answers of
the pipelines beside those of `minilm fill-mask` and `minilm predict`. Where they differ there is no
folder. All of it in float32, also of a model that was trained in another type.
"""

import atexit
import contextlib
import dataclasses
import functools
import importlib.util
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

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.interop import export, hf_weights, model_card, tokenizer_json
from minilm_jax.interop.export import LoadedModel
from minilm_jax.model.heads import Classifier, MaskedLanguageModel
from minilm_jax.tasks.classifier import Card, SavedClassifier
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.task import REGRESSION

TOLERANCE = 1e-4  # between logits, and between probabilities
_NEEDS = ('torch', 'transformers', 'safetensors', 'tokenizers')
_MAX_LINES = (
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
_HOLES = ('the dog <mask> a bone .', 'she <mask> to the <mask> and saw him .', '<mask>')
_MAX_ROWS = 8  # of the corpus, that are read beside `_LINES`
_BEST, _BATCH = 5, 8
# What transformers raises where it cannot read a folder, or is of a version that does so otherwise.
_UNREAD = (OSError, ValueError, RuntimeError, ImportError, LookupError, AttributeError, TypeError)
_REPORT = 'report it, with the shape of the model; what was written is removed'


def export_huggingface(given: str, workdir: str) -> dict[str, Any]:
  """Writes the model that `--checkpoint` names into a folder for transformers, and compares the
  two.

  Args:
    given: a pre-training run, `run@step`, or a classifier.
    workdir: the folder, not there or empty; one that holds this very export is left as it is.

  Returns:
    What `export.json` holds: source, class, `differences` (the largest of logits and of answers),
    texts, versions.

  Raises:
    InputError: a library is missing, there is no such model, the folder holds something else, or
      the two differ.
  """
  _check_libraries()
  released = export.load_model(given)
  identity = {'to': 'hf', **released.facts()}
  found = export.existing_export(workdir, identity)
  if found is not None:
    return found
  if released.card and len(released.card.fields) == 2 and not released.card.concatenate_fields:
    tokenizer_json.check_pairs(released.length)
  task = 'text-classification' if released.card else 'fill-mask'
  with export.atomic_export_folder(workdir) as folder, _quiet_transformers() as transformers:
    described = _write(released, folder, task)
    try:
      differences = _compare(released, folder, task, transformers)
    except _UNREAD as error:
      raise InputError(
        f'{given} as transformers {transformers.__version__} reads it',
        f'it cannot: {type(error).__name__}: {error}',
        _REPORT,
      ) from error
    record = {
      **identity,
      'class': described['architectures'][0],
      'remote_code': 'auto_map' in described,
      'unlike_roberta': hf_weights.roberta_differences(released.config, released.head),
      'differences': differences,
      'tolerance': TOLERANCE,
      'versions': {name: sys.modules[name].__version__ for name in _NEEDS},
    }
    files.write_json(folder / export.EXPORT_RECORD, record)
  return record


def _check_libraries() -> None:
  absent = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
  if absent:
    raise InputError(
      'an export to Hugging Face',
      f'{", ".join(absent)} not installed',
      "pip install 'minilm_jax[hf]'",
    )


@functools.cache
def _cache() -> str:
  """A folder for the code that transformers copies before it runs it, until this process ends."""
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
  """The library, without a network, bars or warnings."""
  if 'transformers' not in sys.modules:  # it reads these once
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('HF_MODULES_CACHE', _cache())
  import transformers

  before = transformers.logging.get_verbosity()
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  try:
    yield transformers
  finally:
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()


def _write(released: LoadedModel, folder: pathlib.Path, task: str) -> dict[str, Any]:
  """All files but the record; gives what `config.json` says."""
  import safetensors.numpy

  card = released.card
  weights, described = hf_weights.export_weights(
    released.model, released.config, released.head, card.labels if card else ()
  )
  files.write_bytes(folder / 'model.safetensors', safetensors.numpy.save(weights, {'format': 'pt'}))
  files.write_json(folder / run_dir.CONFIG, described)
  files.write_json(
    folder / tokenizer_json.TOKENIZER_FILE, tokenizer_json.build_tokenizer_json(released.tokenizer)
  )
  files.write_json(
    folder / tokenizer_json.TOKENIZER_CONFIG,
    tokenizer_json.build_tokenizer_config(released.length, card is not None),
  )
  remote = 'auto_map' in described
  if remote:
    source = pathlib.Path(__file__).with_name(f'{hf_weights.MODULE}.py')
    files.write_bytes(folder / source.name, files.read_bytes(source, 'the modelling file'))
  made = model_card.build_card(
    released.place.folder,
    released.place.step,
    ('library_name: transformers', f'pipeline_tag: {task}'),
    _use(task, remote),
  )
  files.write_bytes(folder / model_card.CARD_FILE, made.encode())
  return described


def _use(task: str, remote: bool) -> str:
  more = ', trust_remote_code=True' if remote else ''
  asked = (
    "'the dog <mask> a bone .'"
    if task == 'fill-mask'
    else "'the text', top_k=None, truncation=True"
  )
  said = (
    'Its shape is no class of transformers: `modeling_minilm.py`, in this folder, reads it. '
    if remote
    else ''
  )
  return (
    f'{said}Text is lower-cased by the tokenizer.\n\n```python\nfrom transformers import pipeline\n\n'
    f"answer = pipeline('{task}', model='FOLDER'{more})\nprint(answer({asked}))\n```\n\n"
    'FOLDER is where this file is. '
    + (
      'The guesses of `minilm fill-mask` leave out special pieces and rows that are no piece.'
      if task == 'fill-mask'
      else 'Special pieces in a text are plain letters.'
    )
  )


def _compare(
  released: LoadedModel, folder: pathlib.Path, task: str, transformers: Any
) -> dict[str, float]:
  """The largest differences; what is too large is refused."""
  answer = transformers.pipeline(task, model=str(folder), trust_remote_code=True, device='cpu')
  texts = [*tokenizer_json.PROBE_TEXTS, *_MAX_LINES, *_corpus_lines(released)]
  other = tokenizer_json.find_differences(
    released.tokenizer, answer.tokenizer.backend_tokenizer, texts
  )
  if other:
    raise InputError(
      'the same ids for the same text',
      f'others for {other[0]!r} and {len(other) - 1} more',
      'train a tokenizer with tokenizer.model=bpe',
    )
  with jax.default_matmul_precision('highest'):
    found = {
      'logits': _logits(released, answer.model, answer.tokenizer, texts),
      'answers': (_predicted if released.card else _fill_masks)(released, answer),
    }
  for name, difference in found.items():
    if not difference <= TOLERANCE:
      raise InputError(f'{name} that differ by {TOLERANCE} at most', f'{difference:.2g}', _REPORT)
  return {**found, 'texts': len(texts)}


def _corpus_lines(released: LoadedModel) -> list[str]:
  """Text of the run's corpus, where that is still there."""
  if released.card:
    return []
  known = run_dir.read_corpus_hashes(released.place.folder)
  # in a bucket that cannot be reached, say
  with contextlib.suppress(InputError, OSError, ImportError):
    if corpus.read_manifest(known['corpus_folder'])['hash'] == known['corpus']:
      rows = corpus.CorpusFiles(known['corpus_folder'], 'validation')
      count = min(_MAX_ROWS, int(rows.ends[-1]))
      return [released.tokenizer.decode(row) for row in rows[np.arange(count)].tolist()]
  return []


def _logits(released: LoadedModel, model: Any, reads: Any, texts: Sequence[str]) -> float:
  """The largest difference of logits of batches that their tokenizer has padded; of masked language
  models not at pads.

  Batches are small: of each there are logits of every piece at every token.
  """
  import torch

  ours, worst = jax.jit(functools.partial(_jax_logits, released.card)), []
  for first in range(0, len(texts), _BATCH):
    some = list(texts[first : first + _BATCH])
    some += [''] * (_BATCH - len(some))
    batch = reads(
      some, truncation=True, padding='max_length', max_length=released.length, return_tensors='pt'
    )
    tokens = batch['input_ids'].numpy()
    with torch.no_grad():
      theirs = model(**batch).logits.float().numpy()
    compared = np.ones(len(tokens), bool) if released.card else tokens != tokenizer.PAD_ID
    worst.append(np.abs(np.asarray(ours(released.model, tokens)) - theirs)[compared].max())
  return float(np.max(worst))  # NaN where one is


def _jax_logits(card: Card | None, model: MaskedLanguageModel | Classifier, tokens: Any) -> Any:
  if card is None:
    return model(
      tokens,
      tokens != tokenizer.PAD_ID,
      jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    )
  if card.head.pooling == 'positions':  # a weight a position, pads included
    tokens = jnp.pad(
      tokens,
      ((0, 0), (0, card.model.max_length - tokens.shape[1])),
      constant_values=tokenizer.PAD_ID,
    )
  return model(tokens, tokens != tokenizer.PAD_ID)


def _fill_masks(released: LoadedModel, pipeline: Any) -> float:
  """The largest difference of the probabilities of our best guesses, and of theirs that are
  ordinary pieces.
  """
  worst, first, end = [], len(tokenizer.SPECIAL_TOKENS), released.tokenizer.size
  model = jax.tree.map(jnp.asarray, released.model)
  for text in _HOLES:
    ours = inference.guess_table(released.config, released.tokenizer, model, text, _BEST)
    theirs = pipeline(
      text, top_k=min(released.config.vocab_size, first + _BEST + released.config.vocab_size - end)
    )
    for hole, row in enumerate([theirs] if isinstance(theirs[0], dict) else theirs, 1):
      shares = {one['token']: one['score'] for one in row if first <= one['token'] < end}
      own = [guess for guess in ours if guess.hole == hole]
      best = sorted(shares.values(), reverse=True)[:_BEST]
      for guess, share in zip(own, best, strict=True):
        # of two that are equally probable one may be cut
        there = shares.get(released.tokenizer.id(guess.piece), share)
        worst += [abs(guess.probability - there), abs(guess.probability - share)]
  return float(np.max(worst))


def _predicted(released: LoadedModel, pipeline: Any) -> float:
  """The largest difference of the probabilities of every label, or of the numbers of a regression."""
  card = released.card
  two = len(card.fields) == 2 and not card.concatenate_fields
  long = ' '.join(_MAX_LINES * 4)
  firsts = [*_MAX_LINES, long, 'a <mask> and </s>']
  rows = (
    list(zip(firsts, [*firsts[1:], firsts[0]], strict=True))
    if two
    else [(text,) for text in firsts]
  )
  # ours in float32, which the model there may not compute in
  wide = dataclasses.replace(card, model=released.config)
  fitted = SavedClassifier(wide, released.model, released.tokenizer, released.identity)
  ours = inference.answer_examples(Committee((fitted,)), rows, several=False)
  worst = []
  for texts, own in zip(rows, ours, strict=True):
    asked = dict(zip(('text', 'text_pair'), texts))
    theirs = pipeline([asked], top_k=None, truncation=True)[0]
    if card.task_kind == REGRESSION:
      worst.append(abs(own['value'] - theirs[0]['score']))
    else:
      said = {one['label']: one['score'] for one in theirs}
      worst += [abs(share - said[label]) for label, share in own['probabilities'].items()]
  return float(np.max(worst))
