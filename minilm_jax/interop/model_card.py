"""Writes model cards in Markdown: source, architecture, training and quality of a model.

The content comes from the run directory and, if it still exists, from the corpus. Untrusted text
(names of tasks, labels, files) is escaped, so Markdown and HTML in such text stay text. The
publisher adds a licence; `hf_export` adds the section on use.
"""

import contextlib
import hashlib
import html
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax import __version__
from minilm_jax.core import files, run_dir
from minilm_jax.core.config import RunConfig, SubsetConfig
from minilm_jax.core.errors import COUNT, TEXT, InputError, find_schema_fault, sanitize
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import corpus, wrapped_tokenizer
from minilm_jax.interop import export
from minilm_jax.model import flops
from minilm_jax.tasks import classifier, committee_scores, metrics
from minilm_jax.tasks.classifier import Card
from minilm_jax.training import checkpoint, population, pretrained

CARD_FILE = 'README.md'
_MAX_ITEMS = 200  # files of a corpus, labels of a task or scores in a card
_MARKUP = re.compile(r'[\\`*_\[\]|~$#]')
_SOURCES_SCHEMA = {'sources': [{'name': TEXT, 'bytes': COUNT, 'sha256?': TEXT, 'dataset?': TEXT}]}
_SIZE_SCHEMA = {'training?': {'rows': COUNT, 'tokens': COUNT}}
_SHAPE_FIELDS = {
  'embedding_size': 'embedding size',
  'hidden_size': 'hidden size',
  'intermediate_size': 'intermediate size',
  'num_layers': 'layers',
  'num_heads': 'attention heads',
  'max_length': 'maximum length, tokens',
  'vocab_size': 'vocabulary size',
  'positions': 'positions',
  'norm': 'LayerNorm',
  'tied': 'tied output matrix',
  'projection': 'projection after the embedding',
  'activation': 'activation',
  'dropout': 'dropout',
  'short_convolution': 'width of the short convolution, tokens',
}
# Fields that are true for every custom encoder.
_CUSTOM_SHAPE_FIELDS = ('hidden_size', 'max_length', 'vocab_size', 'tied')
_OPTIMIZERS = {
  'adamw': 'AdamW',
  'muon': 'Muon for the matrices of the encoder, AdamW for all other parameters',
}
_SOFTWARE = """@software{{minilm_jax,
  title = {{minilm\\_jax: a laboratory for language models of 1-20 million parameters, in JAX and Flax}},
  version = {{{version}}}
}}"""
_PAPER1 = """@inproceedings{deshpande2023honey,
  title = {Honey, {I} Shrunk the Language: Language Model Behavior at Reduced Scale},
  author = {Deshpande, Vijeta and Pechi, Dan and Thatte, Shree and Lialin, Vladislav and Rumshisky, Anna},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2023},
  pages = {5298--5314},
  year = {2023},
  eprint = {2305.17266},
  archivePrefix = {arXiv}
}"""
_PAPER2 = """@misc{gross2025tiny,
  title = {Tiny language models},
  author = {Gross, Ronit D. and others},
  year = {2025},
  eprint = {2507.14871},
  archivePrefix = {arXiv}
}"""
_PROPERTY_COLUMNS = ('property', 'value')
_SCORE_COLUMNS = 'task split metric value seed learning_rate pretrained examples'.split()


def escape_markdown(value: Any) -> str:
  """Returns a line of Markdown that renders as the given text, without markup or links.

  >>> escape_markdown('<b>a|b</b> [x](http://y)')
  '&lt;b&gt;a\\\\|b&lt;/b&gt; \\\\[x\\\\](http&#58;//y)'
  """
  text = ' '.join(sanitize(str(value)).split())
  text = _MARKUP.sub(lambda sign: '\\' + sign[0], html.escape(text, quote=False))
  return text.replace('://', '&#58;//').replace('@', '&#64;').replace('www.', 'www&#46;')


def write_card(ref: str, workdir: str) -> dict[str, Any]:
  """Writes the model card of `--checkpoint` into a folder, as README.md.

  Returns:
    The content of `export.json`.

  Raises:
    InputError: See `build_card`; or the folder has other files.
  """
  folder, step = export.parse_ref(ref)
  card = build_card(folder, step).encode()
  record = {'to': 'card', 'checkpoint': str(folder), 'card': hashlib.sha256(card).hexdigest()}
  if export.existing_export(workdir, record) is None:
    with export.atomic_export_folder(workdir) as new_folder:
      files.write_bytes(new_folder / CARD_FILE, card)
      files.write_json(new_folder / export.EXPORT_RECORD, record)
  return {**record, 'file': CARD_FILE}


def build_card(
  folder: epath.PathLike, step: int | None = None, tags: Sequence[str] = (), use: str = ''
) -> str:
  """Returns the model card of a pre-training run, a fine-tuning run, or a classifier.

  Args:
    step: Step of the checkpoint of a pre-training run; the latest by default.
    tags: Further lines of the front matter, such as `pipeline_tag: fill-mask`.
    use: A section on the use of the model, in Markdown.

  Raises:
    InputError: The run or the checkpoint is missing, or a file is damaged. A folder of another kind
      has no steps.
  """
  folder = epath.Path(folder)
  kind = export.model_kind(folder)
  if step is not None and kind != 'pretrain':
    raise InputError(
      f'step {step} of {folder}', f'a folder of kind {kind!r}, which has no steps', f'give {folder}'
    )
  builders = {
    'pretrain': _build_pretrained,
    classifier.CLASSIFIER_KIND: _build_classifier,
    'finetune': _build_finetuned,
  }
  if kind not in builders:
    raise InputError(
      f'a model card of {folder}',
      f'kind={kind!r} in {run_dir.CONFIG}',
      f'give a folder of kind {", ".join(builders)}',
    )
  title, (summary, *sections) = builders[kind](folder, step)
  front = ['---', *tags, 'tags:', '- minilm_jax', '# license: to be added by the publisher', '---']
  parts = [
    '\n'.join(front),
    f'# {escape_markdown(title)}',
    summary,
    *([_format_section('Use', use)] if use else []),
    *sections,
    _format_section(
      'Licence',
      'The publisher of this model chooses the licence. The licence of the training text may restrict '
      'the choice.',
    ),
  ]
  return '\n\n'.join(parts) + '\n'


def _build_pretrained(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  """Returns the title, the summary and the sections of a pre-training run."""
  config = pretrained.load_config(folder)
  step = checkpoint.resolve_step(folder, step)
  checkpoint.verify(folder, step)
  members, record = config.population.members, run_dir.read_origin(folder)
  origin = _name_checkpoint(record['checkpoint'], record['checkpoint_step']) if record else ''
  parameters = flops.count_parameters_by_part(config.model)['total']
  models, suffix = 'A masked language model', ''
  if members > 1:
    models, suffix = f'A population of {members} masked language models', ' each'
  progress = 'The checkpoint is from the end of training.'
  if step != config.num_steps:
    progress = f'**Training is not finished: this is step {step:,} of {config.num_steps:,}.**'
  return folder.absolute().name, [
    f'{models} with {parameters:,} parameters{suffix}, trained with minilm_jax {__version__}. '
    f'{progress}',
    _describe_architecture(config.model),
    _describe_corpus(folder, config.subset),
    _describe_training(config, step, origin, _read_row_length(folder, config)),
    _describe_losses(folder, step, members),
    _cite_model(folder, config.model),
  ]


def _build_classifier(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  """Returns the title, the summary and the sections of a classifier."""
  manifest, card = classifier.read_manifest(folder), classifier.read_card(folder)
  origin = 'random weights, without pre-training'
  if card.step >= 0:
    origin = _name_checkpoint(card.checkpoint, card.step)
  task = escape_markdown(card.task)
  labels = ', '.join(map(escape_markdown, card.labels[:_MAX_ITEMS]))
  if len(card.labels) > _MAX_ITEMS:
    labels += f' and {len(card.labels) - _MAX_ITEMS:,} further labels'
  rows = [
    ('task', task),
    ('output', 'number' if card.is_regression else f'one of {len(card.labels)} labels'),
    ('input fields', ' and '.join(map(escape_markdown, card.fields))),
    ('labels', labels or 'none'),
    ('initial weights', origin),
    ('seed', card.seed),
    ('learning rate', card.learning_rate),
    ('epoch', f'{card.epoch:g} ({escape_markdown(card.epoch_choice)})'),
    ('pooling', card.head.pooling),
    ('heads', card.head.ensemble_size),
    ('maximum length, tokens', card.length),
  ]
  scores = _format_table(('split', 'metric', 'value', 'examples'), _compute_scores(folder, card))
  return f'{card.task}, {folder.absolute().name}', [
    f'A text classifier with {manifest["parameters"]:,} parameters for {task}, fine-tuned with '
    f'minilm_jax {__version__}.',
    _format_section('Task', _format_table(_PROPERTY_COLUMNS, rows)),
    _describe_architecture(card.model),
    _format_section('Scores', scores),
    _cite_model(folder, card.model),
  ]


def _build_finetuned(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  """Returns the title, the summary and the sections of a fine-tuning run."""
  lines = list(run_dir.read_lines(folder / run_dir.SCORES))
  rows = [
    [escape_markdown(line[name]) if name in line else '' for name in _SCORE_COLUMNS]
    for line in lines[:_MAX_ITEMS]
  ]
  table = _format_table([name.replace('_', ' ') for name in _SCORE_COLUMNS], rows)
  task = escape_markdown(lines[0]['task']) if lines and 'task' in lines[0] else 'a task'
  members = {line['member'] for line in lines if 'member' in line}
  return folder.absolute().name, [
    f'A run of {len(members)} fine-tuned models for {task}, trained with minilm_jax {__version__}.',
    _format_section('Scores', '\n\n'.join([table, *_note_omitted(len(lines), 'scores')])),
    _cite_source(folder),
  ]


def _compute_scores(folder: epath.Path, card: Card) -> list[tuple[Any, ...]]:
  rows = []
  for split, (outputs, labels) in committee_scores.read_outputs(folder).items():
    predictions = outputs.argmax(-1)
    if card.is_regression:
      predictions, labels = outputs[:, 0], labels.astype(outputs.dtype)
    score = metrics.compute_metric((card.headline,), predictions, labels)[card.headline]
    names = escape_markdown(split), escape_markdown(card.headline)
    rows.append((*names, f'{score:.4f}', f'{len(labels):,}'))
  return rows


def _describe_architecture(config: EncoderConfig) -> str:
  rows = [
    (description, escape_markdown(getattr(config, name)))
    for name, description in _SHAPE_FIELDS.items()
    if not config.encoder or name in _CUSTOM_SHAPE_FIELDS
  ]
  if config.encoder:
    rows.append(('Flax module, which defines the layers', escape_markdown(config.encoder)))
  if config.convolutions:
    kernel = ' x '.join(map(str, config.kernel))
    description = (
      f'{config.convolutions} with kernel {kernel} and {config.channels} channels, form '
      f'{escape_markdown(config.convolution)}, {flops.count_front_end_parameters(config):,} parameters'
    )
    rows.append(('convolutions', description))
  return _format_section('Architecture', _format_table(_PROPERTY_COLUMNS, rows))


def _describe_corpus(folder: epath.Path, subset: SubsetConfig) -> str:
  """Returns hashes and subset of the run, and the sources if the corpus still exists."""
  hashes = run_dir.read_corpus_hashes(folder)
  corpus_hash, tokenizer_hash = (_sanitize_digest(hashes[name]) for name in ('corpus', 'tokenizer'))
  parts = [f'Corpus `{corpus_hash}`, tokenizer `{tokenizer_hash}` (SHA-256).']
  if subset.rows or subset.tokens:
    parts.append(_describe_subset(folder, subset))
  manifest: dict[str, Any] = {'hash': ''}
  # The corpus may be in a bucket that cannot be reached.
  with contextlib.suppress(InputError, OSError, ImportError):
    manifest = corpus.read_manifest(hashes['corpus_folder'])
  if manifest['hash'] != hashes['corpus'] or find_schema_fault(manifest, _SOURCES_SCHEMA):
    parts.append('The sources are unknown, because the corpus was moved, changed or deleted.')
    return _format_section('Training text', '\n\n'.join(parts))
  splits = ', '.join(
    f'{name} {split["rows"]:,} rows, {split["tokens"]:,} tokens'
    for name, split in manifest['splits'].items()
  )
  parts.append(
    f'Rows of the corpus have {manifest["length"]} tokens, with a vocabulary of '
    f'{manifest["vocabulary"]:,}: {splits}.'
  )
  sources = manifest['sources']
  rows = [
    (
      '/'.join(map(escape_markdown, source['name'].replace('\\', '/').split('/')[-2:])),
      f'{source["bytes"]:,}',
      f'`{_sanitize_digest(source["sha256"])}`'
      if 'sha256' in source
      else escape_markdown(source.get('dataset', 'unknown')),
    )
    for source in sources[:_MAX_ITEMS]
  ]
  parts.append(_format_table(('source', 'bytes', 'SHA-256 or data set'), rows))
  parts += _note_omitted(len(sources), 'sources')
  return _format_section('Training text', '\n\n'.join(parts))


def _describe_subset(folder: epath.Path, subset: SubsetConfig) -> str:
  """Returns the size of a subset; the recipe has it for a run of an earlier version."""
  manifest = files.read_object(folder / run_dir.MANIFEST, f'the manifest of {folder}', _SIZE_SCHEMA)
  size = subset.format_fields('rows', 'tokens')
  if 'training' in manifest:
    size = f'{manifest["training"]["rows"]:,} rows, {manifest["training"]["tokens"]:,} tokens'
  return (
    f'The run used a random part of the training rows: {size} '
    f'(subset.shuffle\\_seed={subset.shuffle_seed}).'
  )


def _note_omitted(count: int, name: str) -> list[str]:
  """Returns a note below a table that is cut to `_MAX_ITEMS` rows."""
  return [f'The table omits {count - _MAX_ITEMS:,} further {name}.'] * (count > _MAX_ITEMS)


def _sanitize_digest(digest: str) -> str:
  return ''.join(letter for letter in digest if letter in '0123456789abcdef')[:64] or 'unknown'


def _read_row_length(folder: epath.Path, config: RunConfig) -> int:
  """Returns the tokens of a row, from the log of the run; `max_length` without a log."""
  log = run_dir.read_lines(folder / run_dir.METRICS, run_dir.RUN_LINE)
  lines = [line for line in log if line['step'] and line['tokens'] is not None]
  if not lines:
    return config.model.max_length
  return run_dir.compute_row_length(lines[-1], config.batch_size)


def _describe_training(config: RunConfig, step: int, origin: str, length: int) -> str:
  model, optimizer, mask = config.model, config.optimizer, config.largest_mask
  row_flops, parameters = flops.flops_per_row(model, mask), flops.count_parameters_by_part(model)
  members = population.member_configs(config)

  def join(field: str) -> str:
    """Returns the distinct values of the members."""
    values = map(operator.attrgetter(field), members)
    return ', '.join(dict.fromkeys(f'{value:g}' for value in values))

  rows = step * config.batch_size
  actual = flops.actual_flops(model, mask, length)
  honey = row_flops['honey'] * length / model.max_length
  cells = [
    ('updates', f'{step:,} of {config.num_steps:,}'),
    ('batch size, rows', f'{config.batch_size:,}'),
    ('maximum training tokens, pads included', f'{rows * length:,}'),
    ('FLOPs', f'{actual * rows:.3g}'),
    ('FLOPs by the formula of paper 1', f'{honey * rows:.3g}'),
    ('parameters', f'{parameters["total"]:,}'),
    ('parameters of the embedding', f'{parameters["embedding"]:,}'),
    ('mask rate', join('mask.rate')),
    ('share of random tokens', join('mask.random_share')),
    ('share of unchanged tokens', join('mask.keep_share')),
    ('optimizer', _OPTIMIZERS[optimizer.algorithm]),
    ('learning rate', join('optimizer.learning_rate')),
    ('schedule', escape_markdown(optimizer.schedule)),
    ('betas', f'{optimizer.beta1:g}, {optimizer.beta2:g}'),
    ('weight decay', join('optimizer.weight_decay')),
    ('gradient clipping', f'{optimizer.clip:g}'),
    ('initialization', escape_markdown(model.initialization)),
    ('type of computation', escape_markdown(model.dtype)),
    ('seed', ', '.join(str(member.seed) for member in members)),
  ]
  if origin:
    cells.append(('initial weights', f'{origin}, whose updates are not counted'))
  return _format_section('Training', _format_table(_PROPERTY_COLUMNS, cells))


def _describe_losses(folder: epath.Path, step: int, members: int) -> str:
  """Returns the last loss of each member on each split up to the checkpoint."""
  last: dict[tuple[str, int], Mapping[str, Any]] = {}
  for line in run_dir.read_lines(folder / run_dir.METRICS, run_dir.RUN_LINE):
    if line['loss'] is not None and line['step'] <= step:
      last[line['split'], line.get('member', 0)] = line
  if not last:
    return _format_section('Loss', 'The log of the run has no loss up to this step.')
  rows = [
    (
      escape_markdown(split),
      *[member] * (members > 1),
      f'{line["step"]:,}',
      f'{line["loss"]:.4f}',
      f'{math.exp(min(line["loss"], 99)):.2f}',
    )
    for (split, member), line in last.items()
  ]
  member = ['member'] * (members > 1)
  headings = 'split', *member, 'step', 'loss, nats per masked token', 'perplexity'
  return _format_section('Loss', _format_table(headings, rows))


def _name_checkpoint(checkpoint: str, step: int) -> str:
  """Returns a checkpoint in words; only `minilm import` writes a checkpoint of step 0."""
  name = escape_markdown(checkpoint.rpartition('/')[2])
  return f'step {step:,} of the pre-training run {name}' if step else f'the imported model {name}'


def _cite_source(folder: epath.Path) -> str:
  """Returns the citation of the checkpoint of a fine-tuning run, if the checkpoint still exists."""
  # The checkpoint may be in a bucket that cannot be reached.
  with contextlib.suppress(InputError, OSError, ImportError):
    stored = files.read_object(
      folder / run_dir.CONFIG, f'the recipe of {folder}', {'checkpoint': TEXT}
    )
    source = run_dir.find_source(folder, stored, stored['checkpoint'])
    return _cite_model(epath.Path(source), pretrained.load_config(source).model)
  return _format_citation()


def _cite_model(folder: epath.Path, config: EncoderConfig) -> str:
  """Returns the citation of a model with its tokenizer in a folder.

  The paper is paper 2 for a model with convolutions or initialization 'bert', otherwise paper 1.
  A model with the tokenizer of an imported model has no paper here.
  """
  path = folder / run_dir.TOKENIZER
  if wrapped_tokenizer.is_wrapped(files.read_bytes(path, f'the tokenizer {path}')):
    return _format_citation()
  is_paper2 = config.convolutions or config.initialization == 'bert'
  return _format_citation(_PAPER2 if is_paper2 else _PAPER1)


def _format_citation(*papers: str) -> str:
  entries = '\n\n'.join((_SOFTWARE.format(version=__version__), *papers))
  return _format_section('Citation', f'```bibtex\n{entries}\n```')


def _format_section(title: str, body: str) -> str:
  return f'## {title}\n\n{body}'


def _format_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  lines = [headings, ['---'] * len(headings), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
