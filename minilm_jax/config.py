"""The configuration of a run as frozen, hashable types, checked when they are made.

What each field is for is said once, in `configs/base.py`; here is what it may be. `recipe.py` is the door through which
a recipe becomes one of these; behind it nothing has defaults and nothing changes.
"""

import dataclasses

from minilm_jax.errors import InputError, nearest


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise InputError(f'{field}={value!r}', 'no such choice', f'{nearest(value, known)} (choices: {", ".join(known)})')


def _at_least(field: str, value: float, least: float) -> None:
  if not value >= least:
    raise InputError(f'{field}={value}', f'a value below {least}', f'give at least {least}')


def _share(field: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise InputError(f'{field}={value}', 'not a share between 0 and 1', 'give a number from 0 to 1')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Shape and switches of an encoder (paper 1, `LanModel`)."""

  vocabulary: int
  embedding: int
  hidden: int
  feed_forward: int
  heads: int
  layers: int
  length: int
  norm: str
  positions: str
  segments: int
  projection: bool
  tied: bool
  activation: str
  dropout: float
  initialization: str
  norm_epsilon: float
  nominal_heads: int

  def __post_init__(self) -> None:
    for name in ('vocabulary', 'embedding', 'hidden', 'feed_forward', 'heads', 'layers', 'nominal_heads'):
      _at_least(f'model.{name}', getattr(self, name), 1)
    _at_least('model.length', self.length, 4)
    _at_least('model.segments', self.segments, 0)
    _one_of('model.norm', self.norm, ('post', 'pre'))
    _one_of('model.positions', self.positions, ('learned', 'relative', 'rotary'))
    _one_of('model.activation', self.activation, ('gelu', 'relu', 'silu'))
    _one_of('model.initialization', self.initialization, ('standard', 'honey'))
    _share('model.dropout', self.dropout)
    if self.hidden % self.heads:
      fitting = [n for n in range(1, self.hidden + 1) if self.hidden % n == 0]
      close = sorted(fitting, key=lambda n: abs(n - self.heads))[:3]
      raise InputError(f'model.heads={self.heads}', f'model.hidden={self.hidden} is not a multiple of it',
                       f'give one of the nearest that divide it: {", ".join(map(str, sorted(close)))}')
    if self.positions == 'rotary' and self.hidden // self.heads % 2:
      raise InputError('rotary positions', f'an odd head size of {self.hidden // self.heads}', 'give fewer heads')
    if not self.projection and self.embedding != self.hidden:
      raise InputError('model.projection=False', f'embedding {self.embedding} differs from hidden {self.hidden}',
                       'make them equal, or turn the projection on')
    if self.tied and self.embedding != self.hidden:
      raise InputError('model.tied=True', f'embedding {self.embedding} differs from hidden {self.hidden}',
                       'make them equal, or untie the head')


@dataclasses.dataclass(frozen=True)
class MaskConfig:
  """Which positions are predicted and what stands there instead."""

  rate: float
  random: float
  keep: float
  special: bool

  def __post_init__(self) -> None:
    for name in ('rate', 'random', 'keep'):
      _share(f'mask.{name}', getattr(self, name))
    if self.rate == 0:
      raise InputError('mask.rate=0', 'nothing to predict', 'give a rate above 0')
    if self.random + self.keep > 1:
      raise InputError(f'mask.random={self.random}, mask.keep={self.keep}', 'shares that add up to more than 1',
                       'lower one of them')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW, its schedule and what it leaves undecayed."""

  learning_rate: float
  schedule: str
  warmup_share: float
  warmup_most: int
  decay_share: float
  beta1: float
  beta2: float
  epsilon: float
  weight_decay: float
  undecayed: tuple[str, ...]
  clip: float

  def __post_init__(self) -> None:
    _one_of('optimizer.schedule', self.schedule, ('honey', 'linear', 'cosine', 'warmup_stable_decay', 'constant'))
    for name in ('warmup_share', 'decay_share', 'beta1', 'beta2'):
      _share(f'optimizer.{name}', getattr(self, name))
    for name in ('learning_rate', 'warmup_most', 'weight_decay', 'clip', 'epsilon'):
      _at_least(f'optimizer.{name}', getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How often, and on how many rows, the frozen-mask loss is taken."""

  every: int
  rows: int
  batch_size: int

  def __post_init__(self) -> None:
    for name in ('every', 'rows', 'batch_size'):
      _at_least(f'evaluation.{name}', getattr(self, name), 1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """How often a run is saved and how many saves it keeps."""

  every: int
  keep: int

  def __post_init__(self) -> None:
    _at_least('checkpoint.every', self.every, 1)
    _at_least('checkpoint.keep', self.keep, 1)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """How many steps a line of metrics covers; also the chunk that one dispatch runs."""

  every: int

  def __post_init__(self) -> None:
    _at_least('log.every', self.every, 1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; 0 for `data` takes what is left."""

  population: int
  data: int
  model: int

  def __post_init__(self) -> None:
    for name, least in (('population', 1), ('data', 0), ('model', 1)):
      _at_least(f'mesh.{name}', getattr(self, name), least)


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """One pre-training run."""

  kind: str
  corpus: str
  seed: int
  batch_size: int
  accumulation: int
  updates: int
  model: EncoderConfig
  mask: MaskConfig
  optimizer: OptimizerConfig
  evaluation: EvaluationConfig
  checkpoint: CheckpointConfig
  log: LogConfig
  mesh: MeshConfig

  def __post_init__(self) -> None:
    for name in ('batch_size', 'accumulation', 'updates'):
      _at_least(name, getattr(self, name), 1)
    _at_least('seed', self.seed, 0)
    if self.batch_size % self.accumulation:
      raise InputError(f'accumulation={self.accumulation}', f'batch_size={self.batch_size} is not a multiple of it',
                       'give an accumulation that divides the batch')
    if self.updates * self.batch_size >= 2**32:
      raise InputError(f'{self.updates} updates of {self.batch_size} rows', 'more than 2^32 rows in one run',
                       'give fewer updates or a smaller batch')
    for name, every in (('evaluation', self.evaluation.every), ('checkpoint', self.checkpoint.every)):
      if every % self.log.every:
        raise InputError(f'{name}.every={every}', f'not a multiple of log.every={self.log.every}',
                         'give a multiple: a chunk of steps ends with each line of the log')


@dataclasses.dataclass(frozen=True)
class DocumentsConfig:
  """What text is read, and from where."""

  sources: tuple[str, ...]
  field: str
  split: str
  data_dir: str
  unit: str
  errors: str
  longest: int

  def __post_init__(self) -> None:
    _one_of('documents.unit', self.unit, ('paragraphs', 'line', 'file'))
    _one_of('documents.errors', self.errors, ('strict', 'replace'))
    _at_least('documents.longest', self.longest, 1)


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
  """The reduced language: the word list, how words are counted, and which passes keep text."""

  word_list: str
  most_frequent: int
  counting: str
  passes: tuple[str, ...]
  sentence_words: int
  span_words: int
  span_stride: int
  span_counted: int

  def __post_init__(self) -> None:
    _one_of('vocabulary.counting', self.counting, ('honey', 'plain'))
    for name in self.passes:
      _one_of('vocabulary.passes', name, ('sentences', 'spans'))
    if not self.passes:
      raise InputError('vocabulary.passes', 'no pass at all', 'give sentences, spans, or sentences,spans')
    if self.word_list and self.most_frequent:
      raise InputError('vocabulary.word_list and vocabulary.most_frequent', 'both are set', 'give one of them')
    for name, least in (('most_frequent', 0), ('sentence_words', 0), ('span_words', 1), ('span_stride', 1), ('span_counted', 0)):
      _at_least(f'vocabulary.{name}', getattr(self, name), least)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Which SentencePiece model is trained, or which file is used instead."""

  path: str
  model: str
  size: int

  def __post_init__(self) -> None:
    _one_of('tokenizer.model', self.model, ('bpe', 'unigram'))
    _at_least('tokenizer.size', self.size, 16)


@dataclasses.dataclass(frozen=True)
class RowsConfig:
  """How kept text becomes rows."""

  length: int
  grouping: str

  def __post_init__(self) -> None:
    _at_least('rows.length', self.length, 4)
    _one_of('rows.grouping', self.grouping, ('words', 'tokens'))


@dataclasses.dataclass(frozen=True)
class SplitConfig:
  """Shares of documents, by hash, that validation and test take."""

  validation: float
  test: float

  def __post_init__(self) -> None:
    for name in ('validation', 'test'):
      _share(f'splits.{name}', getattr(self, name))
    if self.validation + self.test >= 1:
      raise InputError('splits', f'validation {self.validation} and test {self.test} leave no training text', 'lower them')


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """Text to rows."""

  kind: str
  documents: DocumentsConfig
  vocabulary: VocabularyConfig
  tokenizer: TokenizerConfig
  rows: RowsConfig
  splits: SplitConfig
  workers: int

  def __post_init__(self) -> None:
    _at_least('workers', self.workers, 0)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """One labelled task and where its examples are."""

  name: str
  data_dir: str
  folder: str
  filtered: bool
  word_list: str
  split: str
  limit: int

  def __post_init__(self) -> None:
    _at_least('task.limit', self.limit, 0)
    if self.data_dir and self.folder:
      raise InputError('task.data_dir and task.folder', 'both are set', 'give one of them')
    if self.filtered and not self.word_list:
      raise InputError('task.filtered=True', 'no task.word_list', 'give the word list that examples must stay inside')


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """How a sentence becomes one vector."""

  pooling: str
  dropout: float

  def __post_init__(self) -> None:
    _one_of('head.pooling', self.pooling, ('first', 'mean', 'positions'))
    _share('head.dropout', self.dropout)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
  """A checkpoint, a task, several seeds."""

  kind: str
  task: TaskConfig
  head: HeadConfig
  optimizer: OptimizerConfig
  seeds: tuple[int, ...]
  batch_size: int
  epochs: float
  length: int

  def __post_init__(self) -> None:
    if not self.seeds:
      raise InputError('seeds', 'none', 'give at least one, as in 0,1,2')
    for name, least in (('batch_size', 1), ('length', 4)):
      _at_least(name, getattr(self, name), least)
    if not self.epochs > 0:
      raise InputError(f'epochs={self.epochs}', 'nothing to train', 'give a positive number')
