"""Declares every field of a pre-training or fine-tuning recipe: type, range, default and reason.

The types are frozen, hashable and checked when they are made. `configs/base.py` makes recipes from
the defaults; `recipe.py` turns a recipe into these types and refuses missing fields.
"""

import dataclasses
from typing import Annotated

from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.core.schema import (
  AxisSize,
  Checked,
  Fraction,
  NonNegativeFloat,
  NonNegativeInt,
  OptionalAxisSize,
  PositiveInt,
  RowLength,
  at_least,
  at_most,
  check_seed,
  one_of,
)

MAX_MEMBERS, MAX_EPOCHS = 100_000, 1_000_000


@dataclasses.dataclass(frozen=True)
class MaskConfig(Checked):
  """The positions that are predicted, and the tokens that replace them."""

  where = 'mask.'
  rate: Fraction = 0.15  # Share of the tokens of a row that is predicted.
  random_share: Fraction = 0.0  # Share of the predicted positions that receive a random token.
  # Share of the predicted positions that keep their token; the others become <mask>.
  keep_share: Fraction = 0.0
  special: bool = False  # Lets <s> and </s> be predicted, as the released code of paper 1 does.
  # Length of a run of adjacent tokens predicted together; 0 draws each position by itself.
  span: OptionalAxisSize = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rate == 0:
      raise InputError('mask.rate=0', 'nothing to predict', 'give a rate above 0')
    if self.random_share + self.keep_share > 1:
      raise InputError(
        f'mask.random_share={self.random_share}, mask.keep_share={self.keep_share}',
        'shares that add up to more than 1',
        'lower one of them',
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
  """AdamW or Muon, the schedule and the parameters without weight decay."""

  where = 'optimizer.'
  # With muon, Muon updates the matrices of projection and blocks, and AdamW all other parameters;
  # both use one learning rate.
  algorithm: Annotated[str, one_of('adamw', 'muon')] = 'adamw'
  learning_rate: NonNegativeFloat = 5e-4  # At the top of the schedule.
  # All begin with a linear warm-up. per_epoch changes the rate once per epoch, down to rate / epochs;
  # per_epoch_from_zero is the same after a first epoch at rate 0, as paper 2 ran.
  schedule: Annotated[
    str,
    one_of(
      'inverse_sqrt',
      'linear',
      'cosine',
      'warmup_stable_decay',
      'constant',
      'per_epoch',
      'per_epoch_from_zero',
    ),
  ] = 'inverse_sqrt'
  warmup_fraction: Fraction = 0.05  # Share of all updates.
  # Upper limit of the warm-up in updates, whatever its share.
  max_warmup_steps: NonNegativeInt = 4000
  decay_fraction: Fraction = 0.2  # Share of all updates, for warmup_stable_decay.
  # Number of equal parts of the run, for per_epoch and per_epoch_from_zero.
  epochs: NonNegativeInt = 0
  beta1: Fraction = 0.9  # Of AdamW, as beta2 and epsilon are; the momentum of Muon is 0.95.
  beta2: Fraction = 0.95
  epsilon: NonNegativeFloat = 1e-8
  weight_decay: NonNegativeFloat = 0.01
  # Parameters whose path contains one of these words have no weight decay; none decays all
  # parameters.
  no_decay: tuple[str, ...] = ('bias', 'norm', 'embedding')
  clip: NonNegativeFloat = 1.0  # Limit of the global norm of the gradient; 0 does not clip.

  def __post_init__(self) -> None:
    super().__post_init__()
    min_epochs = {'per_epoch': 1, 'per_epoch_from_zero': 2}.get(self.schedule, 0)
    if self.epochs < min_epochs:
      raise InputError(
        f'optimizer.schedule={self.schedule}',
        f'optimizer.epochs={self.epochs}',
        f'give the number of parts with a constant rate, at least {min_epochs}',
      )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Checked):
  """Frequency and rows of the evaluation, whose masks are frozen."""

  where = 'eval.'
  # Updates between evaluations; one more evaluation follows the last update.
  every: PositiveInt = 1000
  # First evaluation, repeated at each doubling up to `every`; 0 leaves these out.
  first_at: NonNegativeInt = 0
  rows: PositiveInt = 2000  # Number of rows of the validation split, from its start.
  batch_size: AxisSize = 64


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Checked):
  """Frequency and retention of checkpoints."""

  where = 'checkpoint.'
  every: PositiveInt = 1000  # Updates between saves; one more save follows the last update.
  # Saves also at the end of a chunk this many minutes after the last save; 0 never does.
  every_minutes: NonNegativeFloat = 0.0
  keep_last: PositiveInt = 2  # Number of latest checkpoints that are kept.
  # Number of checkpoints with the lowest validation loss (mean over members) kept in addition.
  keep_best: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class LogConfig(Checked):
  """Updates of a line of metrics, and the log sinks."""

  where = 'log.'
  every: PositiveInt = 50  # Updates of a line of metrics, and of a chunk: one dispatch.
  # Sinks beside metrics.jsonl: tensorboard, wandb, json (lines on standard output).
  sinks: Annotated[tuple[str, ...], one_of('tensorboard', 'wandb', 'json')] = ('tensorboard',)
  project: str = 'minilm'  # Name of the project in W&B.
  name: str = ''  # Name of the run in W&B; '' takes the name of the work directory.

  def __post_init__(self) -> None:
    super().__post_init__()
    if 'wandb' in self.sinks and (not self.project or set(self.project) & set('/\\#?%:,')):
      raise InputError(
        f'log.project={self.project!r}',
        'no name that W&B takes',
        'give one without any of / \\ # ? % : ,',
      )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
  """Devices along each axis of the mesh."""

  where = 'mesh.'
  # Devices along the axis of members; 0 takes a number that divides the members.
  population: NonNegativeInt = 0
  # Devices along the axis of rows; 0 takes the remaining devices that divide the batch.
  data: NonNegativeInt = 0
  model: PositiveInt = 1  # Devices along the axis of features.


@dataclasses.dataclass(frozen=True)
class PopulationConfig(Checked):
  """Models that one program trains, and the values in which they differ."""

  where = 'population.'
  # Models that one program trains on the same corpus.
  members: Annotated[int, at_least(1), at_most(MAX_MEMBERS)] = 1
  # Mapping over the members of a device: one after another (map), at once (vmap), or the faster of
  # both (auto).
  strategy: Annotated[str, one_of('auto', 'map', 'vmap')] = 'auto'
  # One value a member; none counts up from `seed`.
  seeds: Annotated[tuple[int, ...], check_seed] = ()
  # One value a member in place of optimizer.learning_rate; the fields below work alike.
  learning_rates: tuple[float, ...] = ()
  weight_decays: tuple[float, ...] = ()
  mask_rates: tuple[float, ...] = ()
  mask_randoms: tuple[float, ...] = ()
  mask_keeps: tuple[float, ...] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, values in vars(self).items():
      if isinstance(values, tuple) and values and len(values) != self.members:
        raise InputError(
          f'population.{name}={",".join(map(str, values))}',
          f'{len(values)} for {self.members} members',
          f'give {self.members}, one a member, or none',
        )


@dataclasses.dataclass(frozen=True)
class SubsetConfig(Checked):
  """The part of the training split that is trained on."""

  where = 'subset.'
  rows: NonNegativeInt = 0  # First rows of a fixed random order of the split; 0 takes all.
  tokens: NonNegativeInt = 0  # Or as many rows as have this many tokens without pads; 0: no limit.
  # Seed of the order; with one seed, a smaller subset lies inside a larger one.
  shuffle_seed: Annotated[int, check_seed] = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rows and self.tokens:
      raise InputError(
        f'subset.rows={self.rows}, subset.tokens={self.tokens}', 'two sizes', 'give one of them'
      )


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
  """One pre-training run, of one model or of a population."""

  kind: str = 'pretrain'
  # A folder that `minilm corpus` made, or a corpus recipe, built into the work directory first.
  corpus: str = ''
  # device: all rows on each device; host: from files a chunk ahead; auto: device if the rows fit.
  corpus_placement: Annotated[str, one_of('auto', 'device', 'host')] = 'auto'
  subset: SubsetConfig = SubsetConfig()
  seed: Annotated[int, check_seed] = 0
  batch_size: AxisSize = 256  # Rows of an update.
  # Micro-batches of an update; 0 takes as many as keep a micro-batch in cache on a CPU, else 1.
  grad_accumulation_steps: NonNegativeInt = 0
  # Minimum number of parts in which logits of a micro-batch are computed; 0 keeps one in cache.
  logit_chunks: NonNegativeInt = 0
  num_steps: PositiveInt = 1000
  # Reaction to an update with NaN or infinity, which is never applied.
  nonfinite: Annotated[str, one_of('stop', 'skip', 'drop-member')] = 'stop'
  model: EncoderConfig = EncoderConfig()
  mask: MaskConfig = MaskConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  eval: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()
  population: PopulationConfig = PopulationConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.grad_accumulation_steps and self.batch_size % self.grad_accumulation_steps:
      raise InputError(
        f'grad_accumulation_steps={self.grad_accumulation_steps}',
        f'batch_size={self.batch_size} is not a multiple of it',
        'give a grad_accumulation_steps that divides the batch',
      )
    if self.num_steps * self.batch_size >= 2**32:
      raise InputError(
        f'{self.num_steps} updates of {self.batch_size} rows',
        'more than 2^32 rows in one run',
        'give fewer updates or a smaller batch',
      )
    for group in (self.eval, self.checkpoint):
      if group.every % self.log.every:
        raise InputError(
          f'{group.where}every={group.every}',
          f'not a multiple of log.every={self.log.every}',
          'give a multiple: a chunk of steps ends with each line of the log',
        )


@dataclasses.dataclass(frozen=True)
class TaskConfig(Checked):
  """One labelled task and the source of its examples."""

  where = 'task.'
  name: str = 'cola'  # A row of the table of tasks.
  data_dir: str = ''  # Data directory of TFDS.
  # Or a folder with train, validation and test, each .jsonl, .csv, .tsv, .parquet or the .json of
  # FewRel.
  folder: str = ''
  # Or one file a split; if the reported split has no file, a part of this file replaces it.
  train: str = ''
  validation: str = ''
  test: str = ''
  fields: tuple[str, ...] = ()  # One or two columns of text; none takes those of the task.
  label: str = 'label'  # The column of the label.
  # classification or regression; '' takes the kind of the task.
  kind: Annotated[str, one_of('', 'classification', 'regression')] = ''
  markers: bool = False  # Marks the two entities of an example of FewRel.
  filtered: bool = False  # Keeps only examples whose words are all in the word list.
  word_list: str = ''  # The word list of the filter.
  split: str = 'validation'  # The reported split; it never selects anything.
  max_train_examples: NonNegativeInt = 0  # Largest number of training examples; 0 takes all.
  # Or the number of training examples drawn of each label; 0 takes all.
  per_label: NonNegativeInt = 0
  # Number of examples of the reported split drawn of each label; 0 takes all.
  eval_per_label: NonNegativeInt = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    files = [f'task.{name}' for name in ('train', 'validation', 'test') if getattr(self, name)]
    sources = [f'task.{name}' for name in ('data_dir', 'folder') if getattr(self, name)] + files[:1]
    if len(sources) > 1:
      raise InputError(
        ' and '.join(sources), 'more than one place to read examples from', 'give one of them'
      )
    if (
      len(self.fields) > 2 or len(set(self.fields)) < len(self.fields) or self.label in self.fields
    ):
      raise InputError(
        f'task.fields={",".join(self.fields)}, task.label={self.label}',
        'not one or two columns of text, and another for the label',
        'name the columns of the files',
      )
    if not self.label:
      raise InputError("task.label=''", 'no column of labels', 'name one, as in label')
    if self.max_train_examples and self.per_label:
      raise InputError(
        f'task.max_train_examples={self.max_train_examples}, task.per_label={self.per_label}',
        'two numbers of training examples',
        'give one of them',
      )
    if self.filtered and not self.word_list:
      raise InputError(
        'task.filtered=True',
        'no task.word_list',
        'give the word list that examples must stay inside',
      )


def _finetune_optimizer() -> OptimizerConfig:
  return OptimizerConfig(
    learning_rate=2e-4, schedule='linear', warmup_fraction=0.0, beta2=0.999, weight_decay=0.0
  )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Checked):
  """One fine-tuning: a checkpoint on a task, with several seeds and learning rates."""

  kind: str = 'finetune'
  task: TaskConfig = TaskConfig()
  head: HeadConfig = HeadConfig()
  optimizer: OptimizerConfig = dataclasses.field(default_factory=_finetune_optimizer)
  # One start of the head and one order of examples each.
  seeds: Annotated[tuple[int, ...], check_seed] = (0, 1, 2, 3, 4)
  # Rates trained side by side; the validation part chooses one. None takes optimizer.learning_rate.
  learning_rates: tuple[float, ...] = ()
  batch_size: AxisSize = 32
  epochs: float = 5.0
  length: RowLength = 128
  # Share of the training examples that chooses rate and epoch; 0 reports the last epoch, as paper 1
  # does.
  validation_fraction: Fraction = 0.0
  # Epochs without a better score on that share before a member stops; 0 never stops.
  patience: NonNegativeInt = 0
  # Stores predictions of the reported split, and of the test split for the GLUE server.
  predictions: bool = False
  # Stores the classifier of each member for predict and committee, at a few MB each.
  save_classifiers: bool = False
  # Mapping over the members of a device, as population.strategy.
  strategy: Annotated[str, one_of('auto', 'map', 'vmap')] = 'auto'

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise InputError(
        f'seeds={self.seeds}', 'none, or one twice', 'give different numbers, as in 0,1,2'
      )
    if (
      len(set(self.learning_rates)) < len(self.learning_rates)
      or min(self.learning_rates, default=1) <= 0
    ):
      raise InputError(
        f'learning_rates={",".join(map(str, self.learning_rates))}',
        'one twice, or none above 0',
        'give different positive numbers, as in 1e-4,2e-4',
      )
    if not 0 < self.epochs <= MAX_EPOCHS:
      raise InputError(
        f'epochs={self.epochs}',
        'nothing to train, or no end of it',
        f'give more than 0, and at most {MAX_EPOCHS:,}',
      )
    for asked, needs_validation in (
      (f'{len(self.learning_rates)} learning_rates', len(self.learning_rates) > 1),
      (f'patience={self.patience}', self.patience > 0),
    ):
      if needs_validation and not self.validation_fraction:
        raise InputError(
          asked,
          'validation_fraction=0: nothing to choose by, for the reported split never chooses',
          'give --config.validation_fraction=0.1',
        )
    if self.validation_fraction == 1:
      raise InputError('validation_fraction=1', 'nothing left to train on', 'give a share below 1')
