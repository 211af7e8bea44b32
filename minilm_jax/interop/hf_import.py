"""Imports a model of Hugging Face as a run: `minilm import`.

    config.json, model.safetensors, tokenizer.json or vocab.txt      in, of a RoBERTa, BERT or ELECTRA
    config.json, manifest.json, tokenizer.model, checkpoints/0, result.json                        out

Everything is read and checked before anything is written. The run has our token ids
(`data/wrapped_tokenizer.py`): tables and biases over pieces are permuted once, here. config.json has
the kind 'imported', which is not pre-training; the manifest records the origin, the hashes of the
files, and what was left out. Neither torch nor transformers is needed, and nothing is unpickled.
Models in several files and heads of tasks are refused.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax.core import files, lock, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.corpus_config import PAD_ID, SPECIAL_TOKENS, UNKNOWN_ID
from minilm_jax.core.errors import InputError, require_library
from minilm_jax.data import wrapped_tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.interop import hf_config, hf_weights
from minilm_jax.interop.hf_config import HfFamily
from minilm_jax.model import flops
from minilm_jax.model.initialization import count_parameters
from minilm_jax.training import checkpoint

WEIGHTS, TOKENIZER, WORDS = 'model.safetensors', 'tokenizer.json', 'vocab.txt'
_TOKENIZER_CONFIG, _SPECIAL_MAP = 'tokenizer_config.json', 'special_tokens_map.json'
_FILES = (run_dir.CONFIG, WEIGHTS, TOKENIZER, WORDS, _TOKENIZER_CONFIG, _SPECIAL_MAP)
# Roles of our special pieces, in our order.
_ROLES = ('cls_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token')
# Settings of tokenizer_config.json, and their names in a tokenizer.json.
_NORMALIZER_SETTINGS = {
  'do_lower_case': 'lowercase',
  'strip_accents': 'strip_accents',
  'tokenize_chinese_chars': 'handle_chinese_chars',
}
_OTHER_ENDINGS = ('.bin', '.h5', '.msgpack', '.index.json')  # of weights that are not read
MAX_WEIGHT_BYTES = 2 << 30  # RoBERTa-large in float32 has 1.4e9
# The bfloat16 of jax.numpy is that of ml_dtypes; numpy has none.
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
# A table may have rows without a piece, up to a multiple of this, to have a convenient shape.
_ROW_MULTIPLE = 128
_OTHER_TOKENIZER = 'give the tokenizer that the model was trained with'


def import_model(source: epath.PathLike, workdir: epath.PathLike) -> dict[str, Any]:
  """Imports the model of a folder into a run directory, or leaves one that holds it as it is.

  Args:
    source: a local folder, as `save_pretrained` or a download leaves it.
    workdir: the run.

  Returns:
    The contents of result.json: origin, type, number of parameters, whether there is a masked-LM
    head, and what was left out.

  Raises:
    LockedError: another process uses the work directory.
    InputError: a file is missing, damaged or of something else, a weight or the tokenizer does not
      fit, the model is not supported, or the work directory holds something else. Nothing is
      written then.
  """
  source, workdir = epath.Path(source), epath.Path(workdir)
  what = f'the model in {source}'
  described = _read_config(source, what)
  family = hf_config.detect_family(described, what)
  tokenizer = _read_tokenizer(source, family)
  config, model, left_out = _read_model(source, described, family, tokenizer)
  origin = {
    'from': str(source),
    'model_type': described['model_type'],
    'head': not isinstance(model, dict),
    'left_out': left_out,
    'files': {name: files.hash_file(source / name) for name in _FILES if (source / name).is_file()},
  }
  with lock.hold_lock(workdir):
    _check_workdir(workdir, origin)
    for text in left_out:
      progress.log(f'left out: {text}')
    return _write_run(workdir, config, model, tokenizer, origin)


def _read_config(source: epath.Path, what: str) -> dict[str, Any]:
  """Returns the contents of config.json, of a folder that has weights in one file."""
  if not source.is_dir():
    raise InputError(
      what, 'no such folder', 'download it first, and give the folder with its config.json'
    )
  described = files.read_object(source / run_dir.CONFIG, what)
  if not (source / WEIGHTS).is_file():
    names = sorted(path.name for path in source.iterdir() if path.name.endswith(_OTHER_ENDINGS))
    raise InputError(
      what,
      f'no {WEIGHTS}' + (f' but {", ".join(names[:3])}' if names else ''),
      'save it as one such file where transformers is: AutoModelForPreTraining.from_pretrained(FOLDER)'
      ".save_pretrained(OTHER, max_shard_size='2GB')",
    )
  return described


def _read_model(
  source: epath.Path, described: Mapping[str, Any], family: HfFamily, tokenizer: Tokenizer
) -> tuple[RunConfig, Any, list[str]]:
  """Returns the recipe, the model ({'encoder': ...} without a head), and what was left out."""
  what, names = f'the model in {source}', family.family
  weights = hf_weights.rename_parameters(names, _read_weights(source / WEIGHTS))
  has_head = f'{names.transform}.weight' in weights
  shape = hf_config.read_shape(described, family, has_head, what)
  dropped, left_out = dict(names.dropped), []
  if has_head and family.gelu_head and (shape.projection or shape.activation != 'gelu'):
    has_head = False
    dropped[family.gelu_head] = (
      'the masked-LM head, which ours has not: as wide as the table, or of another activation'
    )
  for prefix, description in dropped.items():
    matches = [name for name in weights if name.startswith(prefix)]
    if matches:
      left_out.append(f'{description} ({prefix}*)')
    for name in matches:
      del weights[name]
  special_ids = list(files.parse_json(tokenizer.model)['special'].values())
  _check_sizes(tokenizer.size, shape.vocab_size, what)
  pad, tokenizer_pad = described.get('pad_token_id'), special_ids[PAD_ID]
  if family.positions_from_pad and pad is not None and pad != tokenizer_pad:
    raise InputError(
      what,
      f'pad_token_id={pad!r} in its config.json, and {tokenizer_pad} in its tokenizer',
      _OTHER_TOKENIZER,
    )
  order = np.array(wrapped_tokenizer.order_ids(special_ids, shape.vocab_size))
  for name in names.over_pieces & weights.keys():
    if weights[name].shape[:1] == order.shape:
      weights[name] = weights[name][order]
  load = hf_weights.load_masked_language_model if has_head else hf_weights.load_encoder
  return RunConfig(model=shape), load(names, weights, shape), left_out


def _read_weights(path: epath.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file by name; its library checks header and sizes.

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


def _check_sizes(pieces: int, vocab_size: int, what: str) -> None:
  if not pieces <= vocab_size <= -(-pieces // _ROW_MULTIPLE) * _ROW_MULTIPLE:
    raise InputError(
      what,
      f'a tokenizer of {pieces:,} pieces, and vocab_size={vocab_size:,} in its config.json',
      _OTHER_TOKENIZER,
    )


def _read_tokenizer(source: epath.Path, family: HfFamily) -> Tokenizer:
  """Returns the tokenizer of the folder with our token ids."""
  what, settings = f'the tokenizer in {source}', {}
  for name in (_SPECIAL_MAP, _TOKENIZER_CONFIG):  # the newer one overrides the other
    if (source / name).is_file():
      settings |= files.read_object(source / name, what)
  names = [
    _piece_name(settings.get(role), default, role, what)
    for role, default in zip(_ROLES, family.special, strict=True)
  ]
  if (source / TOKENIZER).is_file():
    described = files.read_object(source / TOKENIZER, what)
  elif (source / WORDS).is_file():
    described = _describe_word_pieces(source / WORDS, names, what)
  else:
    raise InputError(
      what,
      f'neither {TOKENIZER} nor {WORDS}',
      'make it where transformers is: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)',
    )
  normalizer = described['normalizer'] if 'normalizer' in described else None
  if isinstance(normalizer, dict) and normalizer.get('type') == 'BertNormalizer':
    normalizer |= {
      ours: settings[name] for name, ours in _NORMALIZER_SETTINGS.items() if name in settings
    }
  try:
    vocabulary = wrapped_tokenizer.build_wrapper(described).get_vocab(with_added_tokens=True)
    missing = [
      f'{role} {name!r}' for role, name in zip(_ROLES, names, strict=True) if name not in vocabulary
    ]
    if missing:
      raise ValueError(f'no {", ".join(missing)} in it')
    ids = {piece: vocabulary[name] for piece, name in zip(SPECIAL_TOKENS, names, strict=True)}
    return Tokenizer(wrapped_tokenizer.pack_tokenizer(described, ids, family.between))
  except ValueError as error:
    raise InputError(what, str(error), 'download or save the tokenizer again') from None


def _piece_name(setting: Any, default: str, role: str, what: str) -> str:
  """Returns the name of a special piece, which is text or an object with `content`."""
  if isinstance(setting, dict) and 'content' in setting:
    setting = setting['content']
  if setting is not None and not isinstance(setting, str):
    raise InputError(what, f'{role}={setting!r:.100}', 'restore its settings')
  return setting or default


def _describe_word_pieces(path: epath.Path, names: list[str], what: str) -> dict[str, Any]:
  """Returns a vocab.txt of BERT, a piece a line, as a tokenizer.json that lower-cases."""
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
      'unk_token': names[UNKNOWN_ID],
      'continuing_subword_prefix': '##',
      'max_input_chars_per_word': 100,
      'vocab': vocabulary,
    },
  }


def _check_workdir(workdir: epath.Path, origin: Mapping[str, Any]) -> None:
  """Refuses a work directory that holds something else than the same import, begun or finished."""
  what = f'a model imported into {workdir}'
  names = sorted(path.name for path in workdir.iterdir() if not path.name.startswith('.'))
  if not names:
    return
  record = run_dir.read_import_record(workdir)
  if not record:
    raise InputError(
      what, f'something else is there: {", ".join(names[:4])}', 'give a new or empty --workdir'
    )
  if record['files'] != origin['files']:
    raise InputError(
      what,
      f'it holds another model, of {record["from"]}, or an earlier state of this one',
      'give another --workdir',
    )


def _write_run(
  workdir: epath.Path,
  config: RunConfig,
  model: Any,
  tokenizer: Tokenizer,
  origin: dict[str, Any],
) -> dict[str, Any]:
  """Writes the run: first its manifest, which identifies the import, and last its result."""
  if (workdir / run_dir.RESULT).exists():
    progress.log(f'nothing to do: {workdir} holds this model')
    return files.read_json(workdir / run_dir.RESULT, f'the result of {workdir}')
  embedding, total = flops.count_parameters(config.model)['embedding'], count_parameters(model)
  manifest = {
    'corpus': '',
    'corpus_folder': '',
    'tokenizer': tokenizer.sha256,
    run_dir.IMPORTED: origin,
    'parameters': {'embedding': embedding, 'other': total - embedding, 'total': total},
    'jax': jax.__version__,
    'devices': [device.device_kind for device in jax.devices()],
  }
  files.write_json(workdir / run_dir.MANIFEST, manifest)
  files.write_json(workdir / run_dir.CONFIG, {**recipe.as_dict(config), 'kind': run_dir.IMPORTED})
  files.write_bytes(workdir / run_dir.TOKENIZER, tokenizer.model)
  with checkpoint.open_writer(workdir, 1) as writer:
    writer.save({'model': model}, 0)
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
