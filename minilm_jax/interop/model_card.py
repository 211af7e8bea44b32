"""A model card: what a run made, from what, how, and how good it is, as Markdown that stands for
itself.

Everything is read from the run directory, and from its corpus where that is still there. Text from
outside (names of tasks, labels, files) is escaped, so that Markdown and HTML in it stay text. The
licence is left to who publishes. How an export is used is said by who exports (`hf_export`).
"""

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
from minilm_jax.model.flops import count_parameters, flops_per_row
from minilm_jax.tasks import classifier, metrics
from minilm_jax.tasks.task import REGRESSION
from minilm_jax.training import checkpoint, pretrained

CARD_FILE = 'README.md'
_MAX_ITEMS = 200  # files of a corpus, labels of a task or scores that a card lists
_MARKUP = re.compile(r'[\\`*_\[\]|~$#]')
_SOURCES = {'sources': [{'name': TEXT, 'bytes': COUNT, 'sha256': TEXT}]}
_SHAPE = {
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
_ALGORITHMS = {
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
_SCORE = ('task', 'split', 'metric', 'value', 'seed', 'learning_rate', 'pretrained', 'examples')
Rows = Iterable[Sequence[Any]]


def escape_markdown(given: Any) -> str:
  """Text of others as Markdown that shows it and does nothing else, in one line.

  >>> escape_markdown('<b>a|b</b> [x](http://y)')
  '&lt;b&gt;a\\\\|b&lt;/b&gt; \\\\[x\\\\](http&#58;//y)'
  """
  found = ' '.join(sanitize(str(given)).split())
  found = _MARKUP.sub(lambda sign: '\\' + sign[0], html.escape(found, quote=False))
  return found.replace('://', '&#58;//').replace('@', '&#64;').replace('www.', 'www&#46;')


def build_card(
  folder: epath.PathLike, step: int | None = None, tags: Sequence[str] = (), use: str = ''
) -> str:
  """The model card of a run: of pre-training, of fine-tuning, or of one fine-tuned classifier.

  Args:
    folder: the run directory.
    step: of the checkpoint of a pre-training run; the latest if not given.
    tags: lines of the card's front matter besides those that every card has, as in `pipeline_tag:
      fill-mask`.
    use: a paragraph on how the model is used, in Markdown.

  Raises:
    InputError: no run, one without a checkpoint, or a damaged one.
  """
  folder = epath.Path(folder)
  kind = export.model_kind(folder)
  if kind not in _KINDS:
    raise InputError(
      f'a model card of {folder}', f'a folder of kind {kind!r}', f'give one of {", ".join(_KINDS)}'
    )
  title, parts = _KINDS[kind](folder, step)
  front = ['---', *tags, 'tags:', '- minilm_jax', '# license: yours to choose', '---']
  parts = [
    f'# {escape_markdown(title)}',
    *parts[:1],
    *([_section('Use', use)] if use else []),
    *parts[1:],
    _section(
      'Licence', 'To be chosen by who publishes this model; that of the training text may bind it.'
    ),
  ]
  return '\n'.join(front) + '\n\n' + '\n\n'.join(part for part in parts if part) + '\n'


def _pretrained(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  config = pretrained.load_config(folder)
  steps = checkpoint.list_steps(folder)
  if not steps or step is not None and step not in steps:
    raise InputError(
      f'a model card of {folder}',
      f'no checkpoint of it{"" if step is None else f" at step {step}"}',
      f'there are {", ".join(map(str, steps))}' if steps else 'let the run reach its first one',
    )
  step = steps[-1] if step is None else step
  checkpoint.verify(folder, step)
  members = config.population.members
  what = (
    'A masked language model'
    if members == 1
    else f'{members} masked language models, trained side by side'
  )
  ended = (
    'the end of its training'
    if step == config.num_steps
    else f'**step {step:,} of {config.num_steps:,}: its training has not ended**'
  )
  return folder.absolute().name, [
    f'{what} of {flops.count_parameters(config.model)["total"]:,} parameters{" each" * (members > 1)}, trained with '
    f'minilm_jax {__version__}; the checkpoint is of {ended}.',
    _shape(config.model),
    _corpus(folder),
    _recipe(config, step),
    _losses(folder, config, step),
    _cited(config.model),
  ]


def _classifier(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  manifest, own = classifier.read_manifest(folder), classifier.read_card(folder)
  origin = (
    'weights of its own making, not pre-trained'
    if own.step < 0
    else f'step {own.step:,} of the pre-training run {escape_markdown(own.checkpoint.rpartition("/")[2])}'
  )
  kind = 'number' if own.task_kind == REGRESSION else f'one of {len(own.labels)} labels'
  rows = [
    ('task', escape_markdown(own.task)),
    ('says', kind),
    ('reads', ' and '.join(map(escape_markdown, own.fields))),
    ('labels', ', '.join(map(escape_markdown, own.labels[:_MAX_ITEMS])) or 'none'),
    ('started from', origin),
    ('seed', own.seed),
    ('learning rate', own.learning_rate),
    ('epoch', f'{own.epoch:g} ({escape_markdown(own.epoch_choice)})'),
    ('head', f'pooling {own.head.pooling}, {own.head.ensemble_size} of it'),
    ('tokens of a text at most', own.length),
  ]
  return f'{own.task}, {folder.absolute().name}', [
    f'A escape_markdown classifier of {manifest["parameters"]:,} parameters for {escape_markdown(own.task)}, fine-tuned with minilm_jax '
    f'{__version__}.',
    _section('Task', _table(('what', 'value'), rows)),
    _shape(own.model),
    _section(
      'Scores', _table(('split', 'metric', 'value', 'examples'), _classifier_scores(folder, own))
    ),
    _cited(own.model),
  ]


def _finetuned(folder: epath.Path, step: int | None) -> tuple[str, list[str]]:
  lines = list(run_dir.read_lines(folder / run_dir.SCORES))
  rows = [
    [escape_markdown(line[name]) if name in line else '' for name in _SCORE]
    for line in lines[:_MAX_ITEMS]
  ]
  task = escape_markdown(lines[0]['task']) if lines and 'task' in lines[0] else 'a task'
  return folder.absolute().name, [
    f'{len({line["member"] for line in lines if "member" in line})} fine-tuned models for {task}, trained with '
    f'minilm_jax {__version__}.',
    _section('Scores', _table([name.replace('_', ' ') for name in _SCORE], rows)),
    _section('Citation', _bibtex(_PAPER1)),
  ]


_KINDS = {'pretrain': _pretrained, classifier.CLASSIFIER_KIND: _classifier, 'finetune': _finetuned}


def _classifier_scores(folder: epath.Path, own: classifier.Card) -> list[tuple[Any, ...]]:
  found = []
  for split, (said, labels) in classifier.read_outputs(folder).items():
    both = (
      (said[:, 0], labels.astype(said.dtype))
      if own.task_kind == REGRESSION
      else (said.argmax(-1), labels)
    )
    value = metrics.compute_metric((own.headline,), *both)[own.headline]
    found.append(
      (escape_markdown(split), escape_markdown(own.headline), f'{value:.4f}', f'{len(labels):,}')
    )
  return found


def _shape(config: EncoderConfig) -> str:
  rows = [(words, escape_markdown(getattr(config, name))) for name, words in _SHAPE.items()]
  if config.convolutions:
    kernel = ' x '.join(map(str, config.kernel))
    rows.append(
      (
        'convolutions',
        f'{config.convolutions} of {kernel} and {config.channels} channels, '
        f'{escape_markdown(config.convolution)}; {flops.count_front_end_parameters(config):,} parameters',
      )
    )
  return _section('Shape', _table(('what', 'value'), rows))


def _corpus(folder: epath.Path) -> str:
  """What the run was trained on, by its own manifest; the sources where the corpus is still there."""
  known = run_dir.read_corpus_hashes(folder)
  lines = [f'Corpus `{_hex(known["corpus"])}`, tokenizer `{_hex(known["tokenizer"])}` (SHA-256).']
  try:
    found = corpus.read_manifest(known['corpus_folder'])
  except (
    InputError,
    OSError,
    ImportError,
  ):  # it may be in a bucket that cannot be reached from here
    found = {'hash': ''}
  if found['hash'] != known['corpus'] or schema.find_schema_fault(found, _SOURCES):
    return _section(
      'Training text', f'{lines[0]} Its sources are not known: the corpus is not where it was.'
    )
  splits = ', '.join(
    f'{name} {part["rows"]:,} rows, {part["tokens"]:,} tokens'
    for name, part in found['splits'].items()
  )
  lines.append(f'Rows of {found["length"]} tokens from {found["vocabulary"]:,} pieces: {splits}.')
  sources = found['sources']
  rows = [
    (
      '/'.join(map(escape_markdown, one['name'].replace('\\', '/').split('/')[-2:])),
      f'{one["bytes"]:,}',
      f'`{_hex(one["sha256"])}`',
    )
    for one in sources[:_MAX_ITEMS]
  ]
  more = f'\n\nand {len(sources) - _MAX_ITEMS:,} more.' if len(sources) > _MAX_ITEMS else ''
  return _section(
    'Training text', '\n\n'.join([*lines, _table(('source', 'bytes', 'SHA-256'), rows)]) + more
  )


def _hex(digest: str) -> str:
  return ''.join(letter for letter in digest if letter in '0123456789abcdef')[:64] or 'unknown'


def _recipe(config: RunConfig, step: int) -> str:
  flops = flops_per_row(config.model, config.mask)
  parameters, rows = count_parameters(config.model), step * config.batch_size
  best, mask = config.optimizer, config.mask
  return _section(
    'Training',
    _table(
      ('what', 'value'),
      [
        ('updates', f'{step:,} of {config.num_steps:,}, of {config.batch_size:,} rows'),
        ('tokens seen, pads included', f'{rows * config.model.max_length:,} at most'),
        ('FLOPs, as counted', f'{flops["actual"] * rows:.3g}'),
        ("FLOPs by paper 1's formula", f'{flops["honey"] * rows:.3g}'),
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
          f'{_ALGORITHMS[best.algorithm]}, {best.learning_rate:g}, {escape_markdown(best.schedule)}, '
          f'betas {best.beta1:g} and {best.beta2:g}, weight decay {best.weight_decay:g}, clip {best.clip:g}',
        ),
        ('initialization', escape_markdown(config.model.initialization)),
        ('computed in', escape_markdown(config.model.dtype)),
        ('seed', config.seed),
      ],
    ),
  )


def _losses(folder: epath.Path, config: RunConfig, step: int) -> str:
  """The last loss on each split up to the checkpoint."""
  last: dict[tuple[str, int], Mapping[str, Any]] = {}
  for line in run_dir.read_lines(folder / run_dir.METRICS):
    if (
      {'step', 'split', 'loss'} <= line.keys() and line['step'] <= step and line['loss'] is not None
    ):
      last[line['split'], line.get('member', 0)] = line
  rows = [
    (
      escape_markdown(split),
      *[member] * (config.population.members > 1),
      f'{line["step"]:,}',
      f'{line["loss"]:.4f}',
      f'{math.exp(min(line["loss"], 99)):.2f}',
    )
    for (split, member), line in last.items()
  ]
  whose = ['member'] if config.population.members > 1 else []
  names = ('split', *whose, 'step', 'loss, nats a masked token', 'perplexity')
  return _section('Loss', _table(names, rows) if rows else 'None was taken yet.')


def _cited(config: EncoderConfig) -> str:
  """The paper whose kind of model it is: the second where there are convolutions or its way to
  start.
  """
  return _section(
    'Citation',
    _bibtex(_PAPER2 if config.convolutions or config.initialization == 'bert' else _PAPER1),
  )


def _bibtex(paper: str) -> str:
  return f'```bibtex\n{_SOFTWARE.format(version=__version__)}\n\n{paper}\n```'


def _section(title: str, body: str) -> str:
  return f'## {title}\n\n{body}'


def _table(names: Sequence[str], rows: Rows) -> str:
  lines = [names, ['---'] * len(names), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def write_card(given: str, workdir: str) -> dict[str, Any]:
  """Writes the card of the run that `--checkpoint` names, `README.md`, into a folder of its own.

  Returns:
    What `export.json` holds.

  Raises:
    InputError: as `card`; or other things are in the folder.
  """
  folder, step = export.parse_ref(given)
  made = build_card(folder, step)
  record = {
    'to': 'card',
    'checkpoint': str(folder),
    'card': hashlib.sha256(made.encode()).hexdigest(),
  }
  if export.existing_export(workdir, record) is None:
    with export.atomic_export_folder(workdir) as new:
      files.write_bytes(new / CARD_FILE, made.encode())
      files.write_json(new / export.EXPORT_RECORD, record)
  return {**record, 'file': CARD_FILE}
