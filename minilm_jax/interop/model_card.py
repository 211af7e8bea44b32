"""Writes a model card: origin, shape, training, and quality of a model, as self-contained Markdown.

Everything is read from the run directory, and from its corpus if that still exists. Foreign text
(names of tasks, labels, files) is escaped, so that Markdown and HTML in it stay text. The licence is
left to the publisher, the section on use to the export (`hf_export`).
"""

import contextlib
import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax import __version__
from minilm_jax.core import files, run_dir, schema
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.core.schema import COUNT, TEXT
from minilm_jax.data import corpus
from minilm_jax.interop import export
from minilm_jax.model import flops
from minilm_jax.tasks import classifier, metrics
from minilm_jax.tasks.classifier import Card
from minilm_jax.training import checkpoint, pretrained

CARD_FILE = 'README.md'
_MAX_ITEMS = 200  # files of a corpus, labels of a task or scores that a card lists
_MARKUP = re.compile(r'[\\`*_\[\]|~$#]')
_SOURCES_SCHEMA = {'sources': [{'name': TEXT, 'bytes': COUNT, 'sha256': TEXT}]}
_SHAPE_FIELDS = {
  'embedding_size': 'width of the embedding',
  'hidden_size': 'hidden width',
  'intermediate_size': 'feed-forward width',
  'num_layers': 'blocks',
  'num_heads': 'attention heads',
  'max_length': 'tokens of a row at most',
  'vocab_size': 'rows of the embedding table',
  'positions': 'positions',
  'norm': 'LayerNorm',
  'tied': 'output tied',
  'projection': 'projection after the embedding',
  'activation': 'activation',
  'dropout': 'dropout',
  'short_convolution': 'tokens that a short convolution sees',
}
_OPTIMIZERS = {
  'adamw': 'AdamW',
  'muon': 'Muon for the matrices of the encoder and AdamW for the rest',
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
_SCORE_COLUMNS = (
  'task',
  'split',
  'metric',
  'value',
  'seed',
  'learning_rate',
  'pretrained',
  'examples',
)


def escape_markdown(value: Any) -> str:
  """Returns Markdown of one line that shows a text and does nothing else.

  >>> escape_markdown('<b>a|b</b> [x](http://y)')
  '&lt;b&gt;a\\\\|b&lt;/b&gt; \\\\[x\\\\](http&#58;//y)'
  """
  text = ' '.join(sanitize(str(value)).split())
  text = _MARKUP.sub(lambda sign: '\\' + sign[0], html.escape(text, quote=False))
  return text.replace('://', '&#58;//').replace('@', '&#64;').replace('www.', 'www&#46;')


def write_card(ref: str, workdir: str) -> dict[str, Any]:
  """Writes the card of the run that `--checkpoint` names into a folder, as `README.md`.

  Returns:
    The contents of `export.json`.

  Raises:
    InputError: as `build_card`; or the folder holds something else.
  """
  folder, step = export.parse_ref(ref)
  card = build_card(folder, step).encode()
  record = {
    'to': 'card',
    'checkpoint': str(folder),
    'card': hashlib.sha256(card).hexdigest(),
  }
  if export.existing_export(workdir, record) is None:
    with export.atomic_export_folder(workdir) as new_folder:
      files.write_bytes(new_folder / CARD_FILE, card)
      files.write_json(new_folder / export.EXPORT_RECORD, record)
  return {**record, 'file': CARD_FILE}


def build_card(
  folder: epath.PathLike, step: int | None = None, tags: Sequence[str] = (), use: str = ''
) -> str:
  """Returns the model card of a pre-training run, a fine-tuning, or one fine-tuned classifier.

  Args:
    folder: the run directory.
    step: of the checkpoint of a pre-training run, by default the latest.
    tags: further lines of the front matter, such as `pipeline_tag: fill-mask`.
    use: a paragraph on the use of the model, in Markdown.

  Raises:
    InputError: there is no run, no such checkpoint, or a file is damaged.
  """
  folder = epath.Path(folder)
  kind = export.model_kind(folder)
  builders = {
    'pretrain': _build_pretrained,
    classifier.CLASSIFIER_KIND: _build_classifier,
    'finetune': _build_finetuned,
  }
  if kind not in builders:
    raise InputError(
      f'a model card of {folder}',
      f'a folder of kind {kind!r}',
      f'give one of {", ".join(builders)}',
    )
  title, (summary, *sections) = builders[kind](folder, step)
  front = ['---', *tags, 'tags:', '- minilm_jax', '# license: yours to choose', '---']
  parts = [
    '\n'.join(front),
    f'# {escape_markdown(title)}',
    summary,
    *([_section('Use', use)] if use else []),
    *sections,
    _section(
      'Licence', 'To be chosen by who publishes this model; that of the training text may bind it.'
    ),
  ]
  return '\n\n'.join(parts) + '\n'


def _build_pretrained(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  """Returns the title, the summary and the sections of a pre-training run."""
  config = pretrained.load_config(folder)
  step = export.resolve_checkpoint(folder, step)
  checkpoint.verify(folder, step)
  models, each = 'A masked language model', ''
  if config.population.members > 1:
    models = f'{config.population.members} masked language models, trained side by side'
    each = ' each'
  progress = 'the end of its training'
  if step != config.num_steps:
    progress = f'**step {step:,} of {config.num_steps:,}: its training has not ended**'
  return folder.absolute().name, [
    f'{models} of {flops.count_parameters(config.model)["total"]:,} parameters{each}, trained with '
    f'minilm_jax {__version__}; the checkpoint is of {progress}.',
    _shape_section(config.model),
    _corpus_section(folder),
    _training_section(config, step),
    _loss_section(folder, step, config.population.members),
    _citation_section(config.model),
  ]


def _build_classifier(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  """Returns the title, the summary and the sections of a classifier."""
  manifest, card = classifier.read_manifest(folder), classifier.read_card(folder)
  origin = 'weights of its own making, not pre-trained'
  if card.step >= 0:
    run = escape_markdown(card.checkpoint.rpartition('/')[2])
    origin = f'step {card.step:,} of the pre-training run {run}'
  task = escape_markdown(card.task)
  rows = [
    ('task', task),
    ('says', 'number' if card.is_regression else f'one of {len(card.labels)} labels'),
    ('reads', ' and '.join(map(escape_markdown, card.fields))),
    ('labels', ', '.join(map(escape_markdown, card.labels[:_MAX_ITEMS])) or 'none'),
    ('started from', origin),
    ('seed', card.seed),
    ('learning rate', card.learning_rate),
    ('epoch', f'{card.epoch:g} ({escape_markdown(card.epoch_choice)})'),
    ('head', f'pooling {card.head.pooling}, {card.head.ensemble_size} of it'),
    ('tokens of a text at most', card.length),
  ]
  scores = _table(('split', 'metric', 'value', 'examples'), _classifier_scores(folder, card))
  return f'{card.task}, {folder.absolute().name}', [
    f'A text classifier of {manifest["parameters"]:,} parameters for {task}, fine-tuned with '
    f'minilm_jax {__version__}.',
    _section('Task', _table(('what', 'value'), rows)),
    _shape_section(card.model),
    _section('Scores', scores),
    _citation_section(card.model),
  ]


def _build_finetuned(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  """Returns the title, the summary and the sections of a fine-tuning."""
  lines = list(run_dir.read_lines(folder / run_dir.SCORES))
  rows = [
    [escape_markdown(line[name]) if name in line else '' for name in _SCORE_COLUMNS]
    for line in lines[:_MAX_ITEMS]
  ]
  task = escape_markdown(lines[0]['task']) if lines and 'task' in lines[0] else 'a task'
  members = {line['member'] for line in lines if 'member' in line}
  return folder.absolute().name, [
    f'{len(members)} fine-tuned models for {task}, trained with minilm_jax {__version__}.',
    _section('Scores', _table([name.replace('_', ' ') for name in _SCORE_COLUMNS], rows)),
    _section('Citation', _bibtex(_PAPER1)),
  ]


def _classifier_scores(folder: epath.Path, card: Card) -> list[tuple[Any, ...]]:
  rows = []
  for split, (outputs, labels) in classifier.read_outputs(folder).items():
    predictions = outputs.argmax(-1)
    if card.is_regression:
      predictions, labels = outputs[:, 0], labels.astype(outputs.dtype)
    score = metrics.compute_metric((card.headline,), predictions, labels)[card.headline]
    names = escape_markdown(split), escape_markdown(card.headline)
    rows.append((*names, f'{score:.4f}', f'{len(labels):,}'))
  return rows


def _shape_section(config: EncoderConfig) -> str:
  rows = [
    (description, escape_markdown(getattr(config, name)))
    for name, description in _SHAPE_FIELDS.items()
  ]
  if config.convolutions:
    kernel = ' x '.join(map(str, config.kernel))
    description = (
      f'{config.convolutions} of {kernel} and {config.channels} channels, '
      f'{escape_markdown(config.convolution)}; {flops.count_front_end_parameters(config):,} parameters'
    )
    rows.append(('convolutions', description))
  return _section('Shape', _table(('what', 'value'), rows))


def _corpus_section(folder: epath.Path) -> str:
  """Returns the hashes in the run's manifest, and the sources if the corpus still exists."""
  hashes = run_dir.read_corpus_hashes(folder)
  corpus_hash, tokenizer_hash = (_hex(hashes[name]) for name in ('corpus', 'tokenizer'))
  parts = [f'Corpus `{corpus_hash}`, tokenizer `{tokenizer_hash}` (SHA-256).']
  manifest: dict[str, Any] = {'hash': ''}
  # It may be in a bucket that cannot be reached.
  with contextlib.suppress(InputError, OSError, ImportError):
    manifest = corpus.read_manifest(hashes['corpus_folder'])
  if manifest['hash'] != hashes['corpus'] or schema.find_schema_fault(manifest, _SOURCES_SCHEMA):
    return _section(
      'Training text', f'{parts[0]} Its sources are not known: the corpus is not where it was.'
    )
  splits = ', '.join(
    f'{name} {split["rows"]:,} rows, {split["tokens"]:,} tokens'
    for name, split in manifest['splits'].items()
  )
  parts.append(
    f'Rows of {manifest["length"]} tokens from {manifest["vocabulary"]:,} pieces: {splits}.'
  )
  sources = manifest['sources']
  rows = [
    (
      '/'.join(map(escape_markdown, source['name'].replace('\\', '/').split('/')[-2:])),
      f'{source["bytes"]:,}',
      f'`{_hex(source["sha256"])}`',
    )
    for source in sources[:_MAX_ITEMS]
  ]
  parts.append(_table(('source', 'bytes', 'SHA-256'), rows))
  if len(sources) > _MAX_ITEMS:
    parts.append(f'and {len(sources) - _MAX_ITEMS:,} more.')
  return _section('Training text', '\n\n'.join(parts))


def _hex(digest: str) -> str:
  return ''.join(letter for letter in digest if letter in '0123456789abcdef')[:64] or 'unknown'


def _training_section(config: RunConfig, step: int) -> str:
  model, optimizer, mask = config.model, config.optimizer, config.mask
  row_flops, parameters = flops.flops_per_row(model, mask), flops.count_parameters(model)
  rows = step * config.batch_size
  cells = [
    ('updates', f'{step:,} of {config.num_steps:,}, of {config.batch_size:,} rows'),
    ('tokens seen, pads included', f'{rows * model.max_length:,} at most'),
    ('FLOPs, as counted', f'{row_flops["actual"] * rows:.3g}'),
    ("FLOPs by paper 1's formula", f'{row_flops["honey"] * rows:.3g}'),
    (
      'parameters',
      f'{parameters["total"]:,}, of them {parameters["embedding"]:,} of the embedding',
    ),
    (
      'masked',
      f'{mask.rate:g} of the tokens; of these {mask.random_share:g} random, {mask.keep_share:g} kept',
    ),
    (
      'optimizer',
      f'{_OPTIMIZERS[optimizer.algorithm]}, {optimizer.learning_rate:g}, '
      f'{escape_markdown(optimizer.schedule)}, betas {optimizer.beta1:g} and {optimizer.beta2:g}, '
      f'weight decay {optimizer.weight_decay:g}, clip {optimizer.clip:g}',
    ),
    ('initialization', escape_markdown(model.initialization)),
    ('computed in', escape_markdown(model.dtype)),
    ('seed', config.seed),
  ]
  return _section('Training', _table(('what', 'value'), cells))


def _loss_section(folder: epath.Path, step: int, members: int) -> str:
  """Returns the last loss of each member on each split up to the checkpoint."""
  last: dict[tuple[str, int], Mapping[str, Any]] = {}
  for line in run_dir.read_lines(folder / run_dir.METRICS):
    has_loss = {'step', 'split', 'loss'} <= line.keys() and line['loss'] is not None
    if has_loss and line['step'] <= step:
      last[line['split'], line.get('member', 0)] = line
  if not last:
    return _section('Loss', 'None was taken yet.')
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
  headings = 'split', *member, 'step', 'loss, nats a masked token', 'perplexity'
  return _section('Loss', _table(headings, rows))


def _citation_section(config: EncoderConfig) -> str:
  """Returns paper 2 for a model with convolutions or BERT's initialization, else paper 1."""
  is_paper2 = config.convolutions or config.initialization == 'bert'
  return _section('Citation', _bibtex(_PAPER2 if is_paper2 else _PAPER1))


def _bibtex(paper: str) -> str:
  return f'```bibtex\n{_SOFTWARE.format(version=__version__)}\n\n{paper}\n```'


def _section(title: str, body: str) -> str:
  return f'## {title}\n\n{body}'


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  lines = [headings, ['---'] * len(headings), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
