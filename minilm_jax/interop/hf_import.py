"""A folder of Hugging Face's as a run of ours: `minilm import`.

    config.json, model.safetensors, tokenizer.json or vocab.txt      in, of a RoBERTa, BERT or ELECTRA
    config.json, manifest.json, tokenizer.model, checkpoints/0, result.json                        out

All of it is read and checked before anything is written. The run has the ids of ours
(`data/wrapped_tokenizer.py`): tables and biases over pieces are permuted once, here. config.json is
of the kind 'imported', so that nobody takes it for pre-training; the manifest says where the model
came from, with the hashes of the files, and what of it was left out. Neither torch nor transformers
is needed, and nothing is unpickled. Left out: models cut into several files, heads of tasks, and
the way back.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax.core import files, lock, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError, require_library
from minilm_jax.data import build, tokenizer, wrapped_tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.interop import hf_config, hf_weights
from minilm_jax.interop.hf_config import HfFamily
from minilm_jax.model import flops
from minilm_jax.model.initialization import count_parameters
from minilm_jax.training import checkpoint

WEIGHTS, TOKENIZER, WORDS = 'model.safetensors', 'tokenizer.json', 'vocab.txt'
_TOKENIZER_CONFIG, _SPECIAL_MAP = 'tokenizer_config.json', 'special_tokens_map.json'
_FILES = (run_dir.CONFIG, WEIGHTS, TOKENIZER, WORDS, _TOKENIZER_CONFIG, _SPECIAL_MAP)
# in the order of our special pieces
_ROLES = ('cls_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token')
# Of tokenizer_config.json, and what they are called in a tokenizer.json.
_NORMS = {
  'do_lower_case': 'lowercase',
  'strip_accents': 'strip_accents',
  'tokenize_chinese_chars': 'handle_chinese_chars',
}
_OTHER = ('.bin', '.h5', '.msgpack', '.index.json')  # endings of weights that are not read
MAX_WEIGHT_BYTES = 2 << 30  # RoBERTa-large in float32 has 1.4e9
# numpy has no bfloat16; that of jax.numpy is the one of ml_dtypes.
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
# a table may have rows up to a multiple of it that no piece has, for the sake of its shape
_MAX_EXTRA_ROWS = 128


def import_model(source: epath.PathLike, workdir: epath.PathLike) -> dict[str, Any]:
  """Imports the model of a folder into a run directory; one that holds it already is left as it is.

  Args:
    source: a local folder, as `save_pretrained` or a download leaves it.
    workdir: the run.

  Returns:
    What result.json holds: where from, of which type, its parameters, whether it guesses hidden
    tokens, what was left out.

  Raises:
    Held: another process is at work in the work directory.
    InputError: a file is missing, damaged or of something else, a weight or the tokenizer does not
      fit, the model has what ours has not, or the work directory holds something else. Nothing was
      written then.
  """
  source, workdir = epath.Path(source), epath.Path(workdir)
  what = f'the model in {source}'
  described = _describe_import(source, what)
  kind = hf_config.detect_family(described, what)
  read = _tokenizer(source, kind)
  config, model, left = _model(source, described, kind, read, what)
  head = not isinstance(model, dict)
  origin = {
    'from': str(source),
    'model_type': described['model_type'],
    'head': head,
    'left_out': left,
    'files': {name: files.hash_file(source / name) for name in _FILES if (source / name).is_file()},
  }
  with lock.hold_lock(workdir):
    _check(workdir, origin)
    for text in left:
      progress.log(f'left out: {text}')
    return _write(workdir, config, model, read, origin)


def _describe_import(source: epath.Path, what: str) -> dict[str, Any]:
  """Their config.json, where the folder has it and weights that can be read."""
  if not source.is_dir():
    raise InputError(
      what, 'no such folder', 'download it first, and give the folder with its config.json'
    )
  found = files.read_object(source / run_dir.CONFIG, what)
  if not (source / WEIGHTS).is_file():
    names = sorted(one.name for one in source.iterdir() if one.name.endswith(_OTHER))
    raise InputError(
      what,
      f'no {WEIGHTS}' + (f' but {", ".join(names[:3])}' if names else ''),
      'save it as one such file where transformers is: AutoModelForPreTraining.from_pretrained(FOLDER)'
      ".save_pretrained(OTHER, max_shard_size='2GB')",
    )
  return found


def _model(
  source: epath.Path, described: Mapping[str, Any], kind: HfFamily, read: Tokenizer, what: str
) -> tuple[RunConfig, Any, list[str]]:
  """The recipe, the model (a dict of the encoder alone where it has no head), and what of theirs
  was left out.
  """
  family = kind.family
  weights = hf_weights.rename_parameters(family, _read_weights(source / WEIGHTS))
  head = f'{family.transform}.weight' in weights
  shape = hf_config.read_shape(described, kind, head, what)
  dropped, left = dict(family.dropped), []
  if head and kind.gelu and (shape.projection or shape.activation != 'gelu'):
    head = False
    dropped[kind.gelu] = (
      'the masked-LM head, which ours has not: as wide as the table, or of another activation'
    )
  for begin, name in dropped.items():
    names = [weight for weight in weights if weight.startswith(begin)]
    left += [f'{name} ({begin}*)'] * bool(names)
    for weight in names:
      del weights[weight]
  _check_sizes(shape.vocab_size, read, described, kind, what)
  order = np.array(wrapped_tokenizer.order_ids(_hf_tensors(read), shape.vocab_size))
  for name in family.over_pieces:
    if name in weights and weights[name].shape[:1] == order.shape:
      weights[name] = weights[name][order]
  made = recipe.load('configs/base.py')
  made.model.update({**recipe.as_dict(shape), 'kernel': ''})
  model = (hf_weights.load_masked_language_model if head else hf_weights.load_encoder)(
    family, weights, shape
  )
  return recipe.resolve(made, 'pretrain'), model, left


def _read_weights(path: epath.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file by name; the library checks header, offsets and sizes.

  Raises:
    InputError: safetensors is not installed; the file is missing, too large, damaged, or of another
      data type.
  """
  asked = f'the weights {path}'
  require_library('safetensors', 'hf', asked)
  import safetensors

  try:
    size = path.stat().length
    if size > MAX_WEIGHT_BYTES:
      raise InputError(asked, f'{size:,} bytes', f'give an encoder of at most {MAX_WEIGHT_BYTES:,}')
    with path.open('rb') as file:
      entries = dict(safetensors.deserialize(file.read(size)))
    unknown = [
      f'{name} of the type {entry["dtype"]}'
      for name, entry in entries.items()
      if entry['dtype'] not in _DTYPES
    ]
    if unknown:
      raise InputError(asked, ', '.join(unknown[:4]), f'save it with one of {", ".join(_DTYPES)}')
    return {
      name: np.frombuffer(entry['data'], _DTYPES[entry['dtype']]).reshape(entry['shape'])
      for name, entry in entries.items()
    }
  except OSError as error:
    raise InputError(asked, f'the file cannot be read: {error}', 'check the path') from None
  except (safetensors.SafetensorError, ValueError) as error:  # numpy refuses more than 64 axes
    raise InputError(
      asked, f'no valid safetensors file: {error}', 'download or save it again'
    ) from None


def _hf_tensors(read: Tokenizer) -> list[int]:
  """Their ids of our special pieces."""
  return list(files.parse_json(read.model)['special'].values())


def _check_sizes(
  rows: int, read: Tokenizer, described: Mapping[str, Any], kind: HfFamily, what: str
) -> None:
  if not read.size <= rows <= -(-read.size // _MAX_EXTRA_ROWS) * _MAX_EXTRA_ROWS:
    raise InputError(
      what,
      f'a tokenizer of {read.size:,} pieces, and vocab_size={rows:,} in its config.json',
      'give the tokenizer that the model was trained with',
    )
  pad, theirs = described.get('pad_token_id'), _hf_tensors(read)[tokenizer.PAD_ID]
  if kind.from_pad and pad is not None and pad != theirs:
    raise InputError(
      what,
      f'pad_token_id={pad!r} in its config.json, and {theirs} in its tokenizer',
      'give the tokenizer that the model was trained with',
    )


def _tokenizer(source: epath.Path, kind: HfFamily) -> Tokenizer:
  """The tokenizer of the folder under our ids."""
  what, settings = f'the tokenizer in {source}', {}
  for name in (_SPECIAL_MAP, _TOKENIZER_CONFIG):  # the latter is the newer one, and wins
    if (source / name).is_file():
      settings |= files.read_object(source / name, what)
  names = [
    _name(settings.get(role), usual, role, what)
    for role, usual in zip(_ROLES, kind.special, strict=True)
  ]
  if (source / TOKENIZER).is_file():
    found = files.read_object(source / TOKENIZER, what)
  elif (source / WORDS).is_file():
    found = _word_pieces(source / WORDS, names, what)
  else:
    raise InputError(
      what,
      f'neither {TOKENIZER} nor {WORDS}',
      'make it where transformers is: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)',
    )
  norm = found['normalizer'] if 'normalizer' in found else None
  # theirs takes these from there
  if isinstance(norm, dict) and 'type' in norm and norm['type'] == 'BertNormalizer':
    norm.update({ours: settings[name] for name, ours in _NORMS.items() if name in settings})
  try:
    vocabulary = wrapped_tokenizer.build_wrapper(found).get_vocab(with_added_tokens=True)
    missing = [
      f'{role} {name!r}' for role, name in zip(_ROLES, names, strict=True) if name not in vocabulary
    ]
    if missing:
      raise ValueError(f'no {", ".join(missing)} in it')
    special = {
      ours: vocabulary[name] for ours, name in zip(tokenizer.SPECIAL_TOKENS, names, strict=True)
    }
    return Tokenizer(wrapped_tokenizer.pack_tokenizer(found, special, kind.between))
  except ValueError as error:
    raise InputError(what, str(error), 'download or save the tokenizer again') from None


def _name(given: Any, usual: str, role: str, what: str) -> str:
  """What a special piece is called: in a tokenizer's settings it is text, or an object with its
  text.
  """
  found = given['content'] if isinstance(given, dict) and 'content' in given else given
  if found is not None and not isinstance(found, str):
    raise InputError(what, f'{role}={found!r:.100}', 'restore its settings')
  return found or usual


def _word_pieces(path: epath.Path, names: list[str], what: str) -> dict[str, Any]:
  """A vocab.txt of BERT, a piece a line, as a tokenizer.json that lower-cases unless settings say
  else.
  """
  try:
    lines = files.read_bytes(path, what).decode().removesuffix('\n').split('\n')
  except UnicodeDecodeError as error:
    raise InputError(what, f'{path.name} is not UTF-8: {error}', 'download it again') from None
  vocabulary = {line.rstrip('\r'): number for number, line in enumerate(lines)}
  added = [
    {
      'id': vocabulary[name],
      'content': name,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': True,
    }
    for name in names
    if name in vocabulary
  ]
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': {
      'type': 'BertNormalizer',
      'clean_text': True,
      'handle_chinese_chars': True,
      'strip_accents': None,
      'lowercase': True,
    },
    'pre_tokenizer': {'type': 'BertPreTokenizer'},
    'post_processor': None,
    'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
    'model': {
      'type': 'WordPiece',
      'unk_token': names[tokenizer.UNKNOWN_ID],
      'continuing_subword_prefix': '##',
      'max_input_chars_per_word': 100,
      'vocab': vocabulary,
    },
  }


def _check(workdir: epath.Path, origin: Mapping[str, Any]) -> None:
  """Refuses a work directory with something else in it; that of the same import is gone on with."""
  what = f'a model imported into {workdir}'
  there = sorted(one.name for one in workdir.iterdir() if not one.name.startswith('.'))
  if not there:
    return
  found = run_dir.read_import_record(workdir)
  if not found:
    raise InputError(
      what, f'something else is there: {", ".join(there[:4])}', 'give a new or empty --workdir'
    )
  if found['files'] != origin['files']:
    raise InputError(
      what,
      f'it holds another model, of {found["from"]}, or an earlier state of this one',
      'give another --workdir',
    )


def _write(
  workdir: epath.Path, config: RunConfig, model: Any, read: Tokenizer, origin: dict[str, Any]
) -> dict[str, Any]:
  """The run; its manifest, by which the same import is known again, comes first and its result
  last.
  """
  if (workdir / run_dir.RESULT).exists():
    progress.log(f'nothing to do: {workdir} holds this model')
    return files.read_json(workdir / run_dir.RESULT, f'the result of {workdir}')
  embedding, total = flops.count_parameters(config.model)['embedding'], count_parameters(model)
  files.write_json(
    workdir / run_dir.MANIFEST,
    {
      'corpus': '',
      'corpus_folder': '',
      'tokenizer': read.sha256,
      run_dir.IMPORTED: origin,
      'parameters': {'embedding': embedding, 'other': total - embedding, 'total': total},
      'jax': jax.__version__,
      'devices': [d.device_kind for d in jax.devices()],
    },
  )
  files.write_json(
    workdir / run_dir.CONFIG, {**recipe.as_dict(config), 'kind': run_dir.IMPORTED}
  )
  files.write_bytes(workdir / build.TOKENIZER, read.model)
  with checkpoint.open_writer(workdir, 1) as saves:
    saves.save({'model': model}, 0)
  result = {
    run_dir.IMPORTED: True,
    'from': origin['from'],
    'model_type': origin['model_type'],
    'parameters': total,
    'head': origin['head'],
    'left_out': origin['left_out'],
  }
  files.write_json(workdir / run_dir.RESULT, result)
  return result
