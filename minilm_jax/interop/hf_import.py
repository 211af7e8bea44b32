"""Imports a model of Hugging Face as a run: `minilm import`.

    input     config.json, model.safetensors, tokenizer.json or vocab.txt of a RoBERTa, BERT or ELECTRA
    output    config.json, manifest.json, tokenizer.model, checkpoints/0, result.json

All files are read and checked before any file is written. The run has the token ids of minilm_jax
(`data/wrapped_tokenizer.py`): the import permutes tables and biases over pieces. config.json has
the kind 'imported'; manifest.json records the source, the hashes of its files and the omitted
weights. The import needs neither torch nor transformers, and unpickles nothing. Models in several
files and heads of tasks are refused.
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
from minilm_jax.data import wrapped_tokenizer
from minilm_jax.data.tokenizer import PAD_ID, SPECIAL_TOKENS, UNKNOWN_ID, Tokenizer
from minilm_jax.interop import hf_config, hf_weights
from minilm_jax.interop.hf_weights import Family
from minilm_jax.model import flops
from minilm_jax.model.initialization import count_parameters
from minilm_jax.training import checkpoint

WEIGHTS, TOKENIZER, WORDS = 'model.safetensors', 'tokenizer.json', 'vocab.txt'
_TOKENIZER_CONFIG, _SPECIAL_MAP = 'tokenizer_config.json', 'special_tokens_map.json'
_FILES = (run_dir.CONFIG, WEIGHTS, TOKENIZER, WORDS, _TOKENIZER_CONFIG, _SPECIAL_MAP)
# Roles of the special pieces in transformers, in the order of SPECIAL_TOKENS.
_ROLES = ('cls_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token')
# Settings of tokenizer_config.json, and their names in tokenizer.json.
_NORMALIZER_SETTINGS = {
  'do_lower_case': 'lowercase',
  'strip_accents': 'strip_accents',
  'tokenize_chinese_chars': 'handle_chinese_chars',
}
_OTHER_ENDINGS = ('.bin', '.h5', '.msgpack', '.index.json')  # weights in unsupported formats
MAX_WEIGHT_BYTES = 2 << 30  # RoBERTa-large in float32 has 1.4e9
# numpy has no bfloat16.
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
_ROW_MULTIPLE = 128  # a table may have unused rows up to a multiple of this number
_OTHER_TOKENIZER = 'give the tokenizer that the model was trained with'


def import_model(source: epath.PathLike, workdir: epath.PathLike) -> dict[str, Any]:
  """Imports the model of a folder into a run directory; does not repeat a finished import.

  Returns:
    The content of result.json: source, type, number of parameters, whether the model has a
    masked-LM head, and omitted weights.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: A file is missing or damaged; a weight or the tokenizer does not fit; the model is
      not supported; the work directory has other files. No file is written in these cases.
  """
  source, workdir = epath.Path(source), epath.Path(workdir)
  subject = f'the model in {source}'
  config_json = _read_config(source, subject)
  family = hf_config.detect_family(config_json, subject)
  tokenizer = _read_tokenizer(source, family)
  config, model, omitted = _read_model(source, config_json, family, tokenizer)
  origin = {
    'from': str(source),
    'model_type': config_json['model_type'],
    'head': not isinstance(model, dict),
    'left_out': omitted,
    'files': {name: files.hash_file(source / name) for name in _FILES if (source / name).is_file()},
  }
  with lock.hold_lock(workdir):
    _check_workdir(workdir, origin)
    for description in omitted:
      progress.log(f'not imported: {description}')
    return _write_run(workdir, config, model, tokenizer, origin)


def _read_config(source: epath.Path, subject: str) -> dict[str, Any]:
  """Returns the content of config.json; checks that the weights are in one file."""
  if not source.is_dir():
    raise InputError(
      subject, 'no such folder', 'download the model, and give the folder with its config.json'
    )
  config_json = files.read_object(source / run_dir.CONFIG, subject)
  if not (source / WEIGHTS).is_file():
    names = sorted(path.name for path in source.iterdir() if path.name.endswith(_OTHER_ENDINGS))
    raise InputError(
      subject,
      f'no {WEIGHTS}' + (f' but {", ".join(names[:3])}' if names else ''),
      f'convert the model to {WEIGHTS} with transformers: AutoModelForPreTraining'
      ".from_pretrained(FOLDER).save_pretrained(OTHER, max_shard_size='2GB')",
    )
  return config_json


def _read_model(
  source: epath.Path, config_json: Mapping[str, Any], family: Family, tokenizer: Tokenizer
) -> tuple[RunConfig, Any, list[str]]:
  """Returns the recipe, the model ({'encoder': ...} without a head), and omitted weights."""
  subject = f'the model in {source}'
  weights = hf_weights.rename_parameters(family, _read_weights(source / WEIGHTS))
  has_head = f'{family.transform}.weight' in weights
  shape = hf_config.read_shape(config_json, family, has_head, subject)
  unsupported, omitted = dict(family.unsupported), []
  if has_head and family.gelu_head and (shape.projection or shape.activation != 'gelu'):
    has_head = False
    unsupported[family.gelu_head] = (
      'the masked-LM head, which has another width or activation than the encoder'
    )
  for prefix, description in unsupported.items():
    matches = [name for name in weights if name.startswith(prefix)]
    if matches:
      omitted.append(f'{description} ({prefix}*)')
    for name in matches:
      del weights[name]
  special_ids = list(files.parse_json(tokenizer.model)['special'].values())
  pieces, vocab_size = tokenizer.size, shape.vocab_size
  if not pieces <= vocab_size <= -(-pieces // _ROW_MULTIPLE) * _ROW_MULTIPLE:
    raise InputError(
      subject,
      f'a tokenizer of {pieces:,} pieces, but vocab_size={vocab_size:,} in config.json',
      _OTHER_TOKENIZER,
    )
  pad, tokenizer_pad = config_json.get('pad_token_id'), special_ids[PAD_ID]
  if family.positions_from_pad and pad is not None and pad != tokenizer_pad:
    raise InputError(
      subject,
      f'pad_token_id={pad!r} in config.json, but {tokenizer_pad} in the tokenizer',
      _OTHER_TOKENIZER,
    )
  order = np.array(wrapped_tokenizer.order_ids(special_ids, vocab_size))
  for name in family.vocab_weights & weights.keys():
    if weights[name].shape[:1] == order.shape:
      weights[name] = weights[name][order]
  load = hf_weights.load_masked_language_model if has_head else hf_weights.load_encoder
  return RunConfig(model=shape), load(family, weights, shape), omitted


def _read_weights(path: epath.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file by name; the library checks header and sizes.

  Raises:
    InputError: The library safetensors is not installed; the file is missing, too large, damaged,
      or has an unsupported data type.
  """
  subject = f'the weights {path}'
  require_library('safetensors', 'hf', subject)
  import safetensors

  try:
    size = files.read_status(path).size
    if size > MAX_WEIGHT_BYTES:
      raise InputError(
        subject, f'{size:,} bytes', f'give an encoder of at most {MAX_WEIGHT_BYTES:,} bytes'
      )
    with path.open('rb') as file:
      entries = dict(safetensors.deserialize(file.read(size)))
    unknown = [
      f'{name} of the type {entry["dtype"]}'
      for name, entry in entries.items()
      if entry['dtype'] not in _DTYPES
    ]
    if unknown:
      raise InputError(
        subject, ', '.join(unknown[:4]), f'save the weights as one of {", ".join(_DTYPES)}'
      )
    return {
      name: np.frombuffer(entry['data'], _DTYPES[entry['dtype']]).reshape(entry['shape'])
      for name, entry in entries.items()
    }
  except OSError as error:
    raise InputError(subject, f'the file cannot be read: {error}', 'check the path') from None
  except (safetensors.SafetensorError, ValueError) as error:  # numpy refuses more than 64 axes
    raise InputError(
      subject, f'not a valid safetensors file: {error}', 'download or save the file again'
    ) from None


def _read_tokenizer(source: epath.Path, family: Family) -> Tokenizer:
  """Returns the tokenizer of the folder with the token ids of minilm_jax."""
  subject, settings = f'the tokenizer in {source}', {}
  for name in (_SPECIAL_MAP, _TOKENIZER_CONFIG):  # the newer file overrides the older file
    if (source / name).is_file():
      settings |= files.read_object(source / name, subject)
  names = [
    _read_piece_name(settings.get(role), default, role, subject)
    for role, default in zip(_ROLES, family.special_pieces, strict=True)
  ]
  if (source / TOKENIZER).is_file():
    content = files.read_object(source / TOKENIZER, subject)
  elif (source / WORDS).is_file():
    content = _convert_word_list(source / WORDS, names, subject)
  else:
    raise InputError(
      subject,
      f'neither {TOKENIZER} nor {WORDS}',
      f'create {TOKENIZER} with transformers: '
      'AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)',
    )
  normalizer = content['normalizer'] if 'normalizer' in content else None
  if isinstance(normalizer, dict) and normalizer.get('type') == 'BertNormalizer':
    normalizer |= {
      key: settings[name] for name, key in _NORMALIZER_SETTINGS.items() if name in settings
    }
  try:
    vocabulary = wrapped_tokenizer.build_wrapper(content).get_vocab(with_added_tokens=True)
    missing = [
      f'{role} {name!r}' for role, name in zip(_ROLES, names, strict=True) if name not in vocabulary
    ]
    if missing:
      raise ValueError(f'no {", ".join(missing)} in the vocabulary')
    ids = {piece: vocabulary[name] for piece, name in zip(SPECIAL_TOKENS, names, strict=True)}
    return Tokenizer(wrapped_tokenizer.pack_tokenizer(content, ids, family.num_separators))
  except ValueError as error:
    raise InputError(subject, str(error), 'download or save the tokenizer again') from None


def _read_piece_name(setting: Any, default: str, role: str, subject: str) -> str:
  """Returns the name of a special piece from a setting, a text or an object with `content`."""
  if isinstance(setting, dict) and 'content' in setting:
    setting = setting['content']
  if setting is not None and not isinstance(setting, str):
    raise InputError(subject, f'{role}={setting!r:.100}', f'restore {_TOKENIZER_CONFIG}')
  return setting or default


def _convert_word_list(path: epath.Path, names: list[str], subject: str) -> dict[str, Any]:
  """Returns a vocab.txt of BERT, with a piece a line, as a lower-case tokenizer.json."""
  try:
    lines = files.read_bytes(path, subject).decode().removesuffix('\n').split('\n')
  except UnicodeDecodeError as error:
    raise InputError(
      subject, f'{path.name} is not UTF-8: {error}', f'download {path.name} again'
    ) from None
  vocabulary = {line.rstrip('\r'): number for number, line in enumerate(lines)}
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  added = [
    {'id': vocabulary[name], 'content': name, **flags, 'special': True}
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
  """Refuses a work directory with files of another origin."""
  subject = f'a model imported into {workdir}'
  names = sorted(path.name for path in workdir.iterdir() if not path.name.startswith('.'))
  if not names:
    return
  record = run_dir.read_import_record(workdir)
  if not record:
    raise InputError(
      subject, f'other files in the folder: {", ".join(names[:4])}', 'give a new or empty --workdir'
    )
  if record['files'] != origin['files']:
    raise InputError(
      subject, f'a model from {record["from"]} with other files', 'give another --workdir'
    )


def _write_run(
  workdir: epath.Path, config: RunConfig, model: Any, tokenizer: Tokenizer, origin: dict[str, Any]
) -> dict[str, Any]:
  """Writes the run: first the manifest, which identifies the import, and last the result."""
  if (workdir / run_dir.RESULT).exists():
    progress.log(f'nothing to do: {workdir} has this model')
    return files.read_json(workdir / run_dir.RESULT, f'the result of {workdir}')
  embedding = flops.count_parameters_by_part(config.model)['embedding']
  total = count_parameters(model)
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
