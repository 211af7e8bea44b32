"""The configuration of a run as frozen, hashable types, checked when they are made; corpus and model have own rooms.

What each field is for is said once, in `configs/base.py`; here is what it may be. `recipe.py` is the door through which
a recipe becomes one of these; behind it nothing has defaults and nothing changes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from minilm_jax import model_config
from minilm_jax.checks import MOST_SIZE, Amount, Checked, Count, Positive, Share, Size, at_least, at_most, one_of, seed
from minilm_jax.errors import InputError
from minilm_jax.model_config import EncoderConfig, HeadConfig

MOST_MEMBERS, MOST_EPOCHS = 100_000, 1_000_000
# Fields by their group that what an earlier version stored may lack: what that version did.
_LATER = {'checkpoint': {'minutes': 0.0, 'best': 0}, 'log': {'to': '', 'project': 'minilm', 'name': ''},
          'model': model_config.LATER, 'mask': {'span': 0}, 'head': {'copies': 1}, 'optimizer': {'algorithm': 'adamw'}}


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
  """A stored recipe, or card of a classifier, with what it lacks if an earlier version stored it."""
  return {group: _LATER[group] | fields if group in _LATER and isinstance(fields, dict) else fields
          for group, fields in stored.items()}


@dataclasses.dataclass(frozen=True)
class MaskConfig(Checked):
  """Which positions are predicted and what stands there instead."""

  where = 'mask.'
  rate: Share
  random: Share
  keep: Share
  special: bool
  span: Annotated[int, at_least(0), at_most(MOST_SIZE)]

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rate == 0:
      raise InputError('mask.rate=0', 'nothing to predict', 'give a rate above 0')
    if self.random + self.keep > 1:
      raise InputError(f'mask.random={self.random}, mask.keep={self.keep}', 'shares that add up to more than 1',
                       'lower one of them')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
  """AdamW or Muon, the schedule and what is left undecayed."""

  where = 'optimizer.'
  algorithm: Annotated[str, one_of('adamw', 'muon')]
  learning_rate: Amount
  schedule: Annotated[str, one_of('honey', 'linear', 'cosine', 'warmup_stable_decay', 'constant', 'epochs',
                                  'epochs_from_zero')]
  warmup_share: Share
  warmup_most: Count
  decay_share: Share
  epochs: Count
  beta1: Share
  beta2: Share
  epsilon: Amount
  weight_decay: Amount
  undecayed: tuple[str, ...]
  clip: Amount

  def __post_init__(self) -> None:
    super().__post_init__()
    least = {'epochs': 1, 'epochs_from_zero': 2}
    if self.schedule in least and self.epochs < least[self.schedule]:
      raise InputError(f'optimizer.schedule={self.schedule}', f'optimizer.epochs={self.epochs}',
                       f'give the parts of the run in which the rate stands still, at least {least[self.schedule]}')


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Checked):
  """How often, and on how many rows, the frozen-mask loss is taken."""

  where = 'evaluation.'
  every: Positive
  first: Count
  rows: Positive
  batch_size: Size


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Checked):
  """How often a run is saved and which saves it keeps."""

  where = 'checkpoint.'
  every: Positive
  minutes: Amount
  keep: Positive
  best: Count


@dataclasses.dataclass(frozen=True)
class LogConfig(Checked):
  """How many steps a line of metrics covers, which is also the chunk that one dispatch runs; who is told of it."""

  where = 'log.'
  every: Positive
  to: Annotated[tuple[str, ...], one_of('tensorboard', 'wandb', 'json')]
  project: str
  name: str

  def __post_init__(self) -> None:
    super().__post_init__()
    if 'wandb' in self.to and (not self.project or set(self.project) & set('/\\#?%:,')):
      raise InputError(f'log.project={self.project!r}', 'no name that W&B takes',
                       'give one without any of / \\ # ? % : ,')


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
  """Devices along each axis; 0 for `population` takes what divides the members, for `data` what is left."""

  where = 'mesh.'
  population: Count
  data: Count
  model: Positive


@dataclasses.dataclass(frozen=True)
class PopulationConfig(Checked):
  """Models that one program trains, and what they differ in: a value a member, or none where all have the recipe's."""

  where = 'population.'
  members: Annotated[int, at_least(1), at_most(MOST_MEMBERS)]
  lift: Annotated[str, one_of('auto', 'loop', 'vmap')]
  seeds: Annotated[tuple[int, ...], seed]
  learning_rates: tuple[float, ...]
  weight_decays: tuple[float, ...]
  mask_rates: tuple[float, ...]
  mask_randoms: tuple[float, ...]
  mask_keeps: tuple[float, ...]

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ('seeds', 'learning_rates', 'weight_decays', 'mask_rates', 'mask_randoms', 'mask_keeps'):
      values = getattr(self, name)
      if values and len(values) != self.members:
        raise InputError(f'population.{name}={",".join(map(str, values))}', f'{len(values)} for {self.members} members',
                         f'give {self.members}, one a member, or none')


@dataclasses.dataclass(frozen=True)
class SubsetConfig(Checked):
  """The part of the training split that is trained on."""

  where = 'subset.'
  rows: Count
  tokens: Count
  order: Annotated[int, seed]

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rows and self.tokens:
      raise InputError(f'subset.rows={self.rows}, subset.tokens={self.tokens}', 'two sizes', 'give one of them')


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
  """One pre-training run, of one model or of a population."""

  kind: str
  corpus: str
  corpus_on: Annotated[str, one_of('auto', 'device', 'host')]
  subset: SubsetConfig
  seed: Annotated[int, seed]
  batch_size: Size
  accumulation: Count
  head_blocks: Count
  updates: Positive
  nonfinite: Annotated[str, one_of('stop', 'skip', 'drop-member')]
  model: EncoderConfig
  mask: MaskConfig
  optimizer: OptimizerConfig
  evaluation: EvaluationConfig
  checkpoint: CheckpointConfig
  log: LogConfig
  population: PopulationConfig
  mesh: MeshConfig

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.accumulation and self.batch_size % self.accumulation:
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
class TaskConfig(Checked):
  """One labelled task and where its examples are."""

  where = 'task.'
  name: str
  data_dir: str
  folder: str
  train: str
  validation: str
  test: str
  fields: tuple[str, ...]
  label: str
  kind: Annotated[str, one_of('', 'classification', 'regression')]
  markers: bool
  filtered: bool
  word_list: str
  split: str
  limit: Count
  per_label: Count
  per_label_reported: Count

  def __post_init__(self) -> None:
    super().__post_init__()
    files = [f'task.{name}' for name in ('train', 'validation', 'test') if getattr(self, name)]
    places = [f'task.{name}' for name in ('data_dir', 'folder') if getattr(self, name)] + files[:1]
    if len(places) > 1:
      raise InputError(' and '.join(places), 'more than one place to read examples from', 'give one of them')
    if len(self.fields) > 2 or len(set(self.fields)) < len(self.fields) or self.label in self.fields:
      raise InputError(f'task.fields={",".join(self.fields)}, task.label={self.label}',
                       'not one or two columns of text, and another for the label', 'name the columns of the files')
    if not self.label:
      raise InputError("task.label=''", 'no column of labels', 'name one, as in label')
    if self.limit and self.per_label:
      raise InputError(f'task.limit={self.limit}, task.per_label={self.per_label}', 'two numbers of training examples',
                       'give one of them')
    if self.filtered and not self.word_list:
      raise InputError('task.filtered=True', 'no task.word_list', 'give the word list that examples must stay inside')


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Checked):
  """A checkpoint, a task, several seeds."""

  kind: str
  task: TaskConfig
  head: HeadConfig
  optimizer: OptimizerConfig
  seeds: Annotated[tuple[int, ...], seed]
  learning_rates: tuple[float, ...]
  batch_size: Size
  epochs: float
  length: Annotated[int, at_least(4), at_most(MOST_SIZE)]
  held_out: Share
  patience: Count
  predictions: bool
  keep: bool
  lift: Annotated[str, one_of('auto', 'loop', 'vmap')]

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise InputError(f'seeds={self.seeds}', 'none, or one twice', 'give different numbers, as in 0,1,2')
    if len(set(self.learning_rates)) < len(self.learning_rates) or min(self.learning_rates, default=1) <= 0:
      raise InputError(f'learning_rates={",".join(map(str, self.learning_rates))}', 'one twice, or none above 0',
                       'give different positive numbers, as in 1e-4,2e-4')
    if not 0 < self.epochs <= MOST_EPOCHS:
      raise InputError(f'epochs={self.epochs}', 'nothing to train, or no end of it',
                       f'give more than 0, and at most {MOST_EPOCHS:,}')
    for asked, choice in ((f'{len(self.learning_rates)} learning_rates', len(self.learning_rates) > 1),
                          (f'patience={self.patience}', self.patience)):
      if choice and not self.held_out:
        raise InputError(asked, 'held_out=0: nothing to choose by, for the reported split never chooses',
                         'give --config.held_out=0.1')
    if self.held_out == 1:
      raise InputError('held_out=1', 'nothing left to train on', 'give a share below 1')
