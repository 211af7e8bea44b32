"""Declares every field of a pre-training or fine-tuning recipe: type, range, default and meaning.

The types are frozen, hashable and validated on construction. `configs/base.py` makes recipes from
the defaults; `recipe.py` converts a recipe to these types and refuses missing fields.
"""

import dataclasses
import math
from typing import Annotated

from minilm_jax.core.errors import (
  AxisSize,
  Checked,
  Fraction,
  InputError,
  NonNegativeFloat,
  NonNegativeInt,
  OptionalAxisSize,
  PathText,
  PositiveInt,
  RowLength,
  at_least,
  at_most,
  check_seed,
  one_of,
)
from minilm_jax.core.model_config import EncoderConfig, HeadConfig

MAX_MEMBERS, MAX_EPOCHS = 100_000, 1_000_000


@dataclasses.dataclass(frozen=True)
class MaskConfig(Checked):
  """Selection of the positions to predict, and replacement of their tokens."""

  prefix = 'mask.'
  rate: Fraction = 0.15  # Share of the tokens of a row that are predicted.
  random_share: Fraction = 0.0  # Share of the predicted positions that get a random token.
  # Share of the predicted positions that keep their token; all other positions become <mask>.
  keep_share: Fraction = 0.0
  special: bool = False  # Also predict <s> and </s>, as in the released code of paper 1.
  # Number of adjacent tokens that are masked together; 0 draws positions independently.
  span: OptionalAxisSize = 0

  def check_together(self) -> None:
    if self.rate == 0:
      raise InputError('mask.rate=0', 'no position to predict', 'give a rate above 0')
    if self.random_share + self.keep_share > 1:
      raise InputError(
        self.format_fields('random_share', 'keep_share'), 'a sum above 1', 'lower one of the shares'
      )

  def max_positions(self, length: int) -> int:
    """Returns K, the largest number of predicted positions in a row of `length` tokens."""
    return min(length, math.ceil(self.rate * length))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
  """Optimizer, learning-rate schedule and weight decay."""

  prefix = 'optimizer.'
  # muon: Muon updates the matrices of projection and blocks, AdamW all other parameters, with the
  # same learning rate.
  algorithm: Annotated[str, one_of('adamw', 'muon')] = 'adamw'
  learning_rate: NonNegativeFloat = 5e-4  # Peak of the schedule.
  # per_epoch lowers the rate once an epoch, in equal steps down to rate / epochs. per_epoch_from_zero
  # inserts a first epoch at rate 0, as in paper 2. All others begin with a linear warm-up.
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
  warmup_fraction: Fraction = 0.05  # Length of the warm-up as a share of num_steps.
  max_warmup_steps: NonNegativeInt = 4000  # Maximum length of the warm-up in updates.
  # Length of the final decay of warmup_stable_decay as a share of num_steps.
  decay_fraction: Fraction = 0.2
  # Number of epochs (equal parts of num_steps) of per_epoch and per_epoch_from_zero.
  epochs: Annotated[int, at_least(0), at_most(MAX_EPOCHS)] = 0
  beta1: Fraction = 0.9  # First-moment decay of AdamW; the momentum of Muon is 0.95.
  beta2: Fraction = 0.95  # Second-moment decay of AdamW.
  epsilon: NonNegativeFloat = 1e-8  # Denominator offset of AdamW.
  weight_decay: NonNegativeFloat = 0.01
  # Parameters whose path contains one of these words have no weight decay; '' decays all
  # parameters.
  no_decay: tuple[str, ...] = ('bias', 'norm', 'embedding')
  clip: NonNegativeFloat = 1.0  # Maximum global norm of the gradient; 0 disables clipping.

  def check_together(self) -> None:
    min_epochs = {'per_epoch': 1, 'per_epoch_from_zero': 2}.get(self.schedule, 0)
    if self.epochs < min_epochs:
      raise InputError(
        f'optimizer.schedule={self.schedule}',
        f'optimizer.epochs={self.epochs}',
        f'give the number of epochs, at least {min_epochs}',
      )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Checked):
  """Frequency and rows of the evaluation; its masks are the same in every run."""

  prefix = 'eval.'
  every: PositiveInt = 1000  # Updates between evaluations; the last update is always evaluated.
  # Update of an extra first evaluation, repeated at each doubling up to `every`; 0 disables them.
  first_at: NonNegativeInt = 0
  rows: PositiveInt = 2000  # Number of evaluated rows, from the start of validation and test split.
  batch_size: AxisSize = 64  # Rows of an evaluation batch.


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Checked):
  """Frequency and retention of checkpoints."""

  prefix = 'checkpoint.'
  every: PositiveInt = 1000  # Updates between checkpoints; the last update is always saved.
  # Also save after the first chunk that ends this many minutes after the last save; 0 disables it.
  every_minutes: NonNegativeFloat = 0.0
  keep_last: PositiveInt = 2  # Number of latest checkpoints to retain.
  # Number of further checkpoints to retain: those with the lowest mean validation loss of members.
  keep_best: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class LogConfig(Checked):
  """Frequency of log lines, and log sinks."""

  prefix = 'log.'
  every: PositiveInt = 50  # Updates between log lines; also the updates of one dispatch (chunk).
  # Log sinks besides metrics.jsonl; json prints the lines on standard output.
  sinks: Annotated[tuple[str, ...], one_of('tensorboard', 'wandb', 'json')] = ('tensorboard',)
  project: str = 'minilm'  # Project in W&B.
  name: str = ''  # Run name in W&B; '' takes the name of the work directory.

  def check_together(self) -> None:
    if 'wandb' in self.sinks and (not self.project or set(self.project) & set('/\\#?%:,')):
      raise InputError(
        f'log.project={self.project!r}',
        'a name that W&B refuses',
        'give a name without the characters / \\ # ? % : ,',
      )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
  """Number of devices along each axis of the mesh."""

  prefix = 'mesh.'
  population: NonNegativeInt = 0  # Devices for members; 0 takes a divisor of their number.
  data: NonNegativeInt = 0  # Devices for rows; 0 takes the remaining devices that divide the batch.
  model: PositiveInt = 1  # Devices for features (tensor parallelism).


@dataclasses.dataclass(frozen=True)
class PopulationConfig(Checked):
  """Models trained by one program on one corpus, and the values in which they differ."""

  prefix = 'population.'
  members: Annotated[int, at_least(1), at_most(MAX_MEMBERS)] = 1  # Number of models.
  # Computation of the members of a device: in sequence (map), vectorized (vmap), or map on a CPU
  # and vmap on other devices (auto).
  strategy: Annotated[str, one_of('auto', 'map', 'vmap')] = 'auto'
  # Seed of each member; '' takes seed, seed + 1, ...
  seeds: Annotated[tuple[int, ...], check_seed] = ()
  # Value of each member for the named field; '' takes the field of the recipe for all members.
  learning_rates: Annotated[tuple[float, ...], at_least(0)] = ()  # optimizer.learning_rate
  weight_decays: Annotated[tuple[float, ...], at_least(0)] = ()  # optimizer.weight_decay
  mask_rates: Annotated[tuple[float, ...], at_least(0), at_most(1)] = ()  # mask.rate
  mask_randoms: Annotated[tuple[float, ...], at_least(0), at_most(1)] = ()  # mask.random_share
  mask_keeps: Annotated[tuple[float, ...], at_least(0), at_most(1)] = ()  # mask.keep_share

  def check_together(self) -> None:
    for name, values in vars(self).items():
      if isinstance(values, tuple) and values and len(values) != self.members:
        raise InputError(
          self.format_fields(name),
          f'{len(values)} values for {self.members} members',
          f'give {self.members} values, or none',
        )


@dataclasses.dataclass(frozen=True)
class SubsetConfig(Checked):
  """Training rows that are used: the first rows of a fixed random order."""

  prefix = 'subset.'
  rows: NonNegativeInt = 0  # Number of rows; 0 takes all rows.
  tokens: NonNegativeInt = 0  # Alternative to rows: number of tokens without <pad>; 0 takes all.
  # Seed of the random order. With the same seed, a larger subset contains a smaller subset.
  shuffle_seed: Annotated[int, check_seed] = 0

  def check_together(self) -> None:
    self.refuse_both('rows', 'tokens', 'two sizes')


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
  """A pre-training run of one model or a population."""

  kind: str = 'pretrain'
  # Corpus folder of `minilm corpus`, or a corpus recipe that is built into the work directory.
  corpus: PathText = ''
  # device: rows in the memory of each device; host: rows in files, copied one chunk ahead; auto:
  # device if the rows fit.
  corpus_placement: Annotated[str, one_of('auto', 'device', 'host')] = 'auto'
  subset: SubsetConfig = SubsetConfig()
  seed: Annotated[int, check_seed] = 0  # Seed of initialization, row order, masks and dropout.
  batch_size: AxisSize = 256  # Rows of an update.
  # Micro-batches of an update. 0 takes 1, or on a CPU the number whose activations fit the cache.
  grad_accumulation_steps: NonNegativeInt = 0
  # Minimum number of blocks for the logits of a micro-batch; 0 takes blocks that fit the cache.
  logit_chunks: NonNegativeInt = 0
  num_steps: PositiveInt = 1000  # Number of updates.
  # Reaction to an update with NaN or infinity. Such an update is never applied. A skipped update
  # does not advance the schedule of the learning rate, so the run ends above its last rate.
  nonfinite: Annotated[str, one_of('stop', 'skip', 'drop-member')] = 'stop'
  model: EncoderConfig = EncoderConfig()
  mask: MaskConfig = MaskConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  eval: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()
  population: PopulationConfig = PopulationConfig()
  mesh: MeshConfig = MeshConfig()

  def check_together(self) -> None:
    if self.grad_accumulation_steps and self.batch_size % self.grad_accumulation_steps:
      raise InputError(
        f'grad_accumulation_steps={self.grad_accumulation_steps}',
        f'batch_size={self.batch_size}, which is not a multiple',
        'give a divisor of batch_size',
      )
    if self.num_steps * self.batch_size >= 2**32:
      raise InputError(
        self.format_fields('num_steps', 'batch_size'),
        'more than 2^32 rows in one run',
        'lower num_steps or batch_size',
      )
    for group in (self.eval, self.checkpoint):
      if group.every % self.log.every:
        raise InputError(
          f'{group.prefix}every={group.every}',
          f'not a multiple of log.every={self.log.every}',
          'give a multiple of log.every, the updates of one chunk',
        )

  @property
  def largest_mask(self) -> MaskConfig:
    """Mask with the largest rate of a member; the program computes as many positions for all."""
    rate = max(self.population.mask_rates, default=self.mask.rate)
    return dataclasses.replace(self.mask, rate=rate)


@dataclasses.dataclass(frozen=True)
class TaskConfig(Checked):
  """A labelled task and the source of its examples."""

  prefix = 'task.'
  name: str = 'cola'  # Name in the table of tasks (`tasks/task.py`).
  data_dir: PathText = ''  # Source 1: data directory of TFDS.
  # Source 2: folder with the files train, validation and test (.jsonl, .csv, .tsv, .parquet or the
  # .json of FewRel).
  folder: PathText = ''
  # Source 3: one file a split. Without a file of the reported split, a part of `train` is held out.
  train: PathText = ''
  validation: PathText = ''
  test: PathText = ''
  fields: tuple[str, ...] = ()  # One or two text columns; '' takes the columns of the task.
  label: str = 'label'  # Column of the label.
  kind: Annotated[str, one_of('', 'classification', 'regression')] = ''  # '' takes the task's kind.
  markers: bool = False  # Mark the two entities of a FewRel example.
  filtered: bool = False  # Use only examples whose words are all in word_list.
  word_list: PathText = ''  # Word list of the filter: one word a line, or a column `word`.
  split: str = 'validation'  # Reported split. It is never used to select a model.
  max_train_examples: NonNegativeInt = 0  # Maximum number of training examples; 0 takes all.
  per_label: NonNegativeInt = 0  # Alternative: number of training examples a label; 0 takes all.
  eval_per_label: NonNegativeInt = 0  # Number of reported examples a label; 0 takes all.

  def check_together(self) -> None:
    files = [f'task.{name}' for name in ('train', 'validation', 'test') if getattr(self, name)]
    sources = [f'task.{name}' for name in ('data_dir', 'folder') if getattr(self, name)] + files[:1]
    if len(sources) > 1:
      raise InputError(
        ' and '.join(sources), f'{len(sources)} sources of examples', 'give one source'
      )
    if (
      len(self.fields) > 2 or len(set(self.fields)) < len(self.fields) or self.label in self.fields
    ):
      raise InputError(
        self.format_fields('fields', 'label'),
        'columns that are not one or two texts and a different label',
        'give one or two columns in task.fields and another column in task.label',
      )
    if not self.label:
      raise InputError("task.label=''", 'no column of labels', 'give the column, such as label')
    self.refuse_both('max_train_examples', 'per_label', 'two limits of training examples')
    if self.filtered and not self.word_list:
      raise InputError(
        'task.filtered=True', "task.word_list=''", 'give the word list of the filter'
      )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Checked):
  """Fine-tuning of one checkpoint on one task, with several seeds and learning rates."""

  kind: str = 'finetune'
  task: TaskConfig = TaskConfig()
  head: HeadConfig = HeadConfig()
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=2e-4, schedule='linear', warmup_fraction=0.0, beta2=0.999, weight_decay=0.0
  )
  # Seeds of head initialization and order of examples; each seed is a member.
  seeds: Annotated[tuple[int, ...], check_seed] = (0, 1, 2, 3, 4)
  # Learning rates trained together; validation_fraction selects the reported rate. '' takes
  # optimizer.learning_rate.
  learning_rates: tuple[float, ...] = ()
  batch_size: AxisSize = 32  # Examples of an update.
  epochs: float = 5.0  # Passes over the training examples; fractions are allowed.
  length: RowLength = 128  # Maximum tokens of an example; longer examples are truncated.
  # Share of the training examples held out to select rate and epoch; 0 reports the last epoch, as
  # in paper 1.
  validation_fraction: Fraction = 0.0
  # Epochs without a better score on the held-out examples before a member stops; 0 never stops.
  patience: NonNegativeInt = 0
  # Store predictions on the reported split, and on the test split for the GLUE server.
  predictions: bool = False
  # Store the classifier of each member (a few MB) for `minilm predict` and `minilm committee`.
  save_classifiers: bool = False
  # Computation of the members of a device, as in population.strategy.
  strategy: Annotated[str, one_of('auto', 'map', 'vmap')] = 'auto'

  def check_together(self) -> None:
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise InputError(
        f'seeds={self.seeds}', 'no seed, or a duplicate', 'give distinct numbers, such as 0,1,2'
      )
    if (
      len(set(self.learning_rates)) < len(self.learning_rates)
      or min(self.learning_rates, default=1) <= 0
    ):
      raise InputError(
        self.format_fields('learning_rates'),
        'a duplicate, or a number that is not positive',
        'give distinct positive numbers, such as 1e-4,2e-4',
      )
    if not 0 < self.epochs <= MAX_EPOCHS:
      raise InputError(
        f'epochs={self.epochs}',
        f'not a number above 0 and up to {MAX_EPOCHS:,}',
        'give a number such as 5',
      )
    for setting, needs_validation in (
      (f'{len(self.learning_rates)} learning_rates', len(self.learning_rates) > 1),
      (f'patience={self.patience}', self.patience > 0),
    ):
      if needs_validation and not self.validation_fraction:
        raise InputError(
          setting,
          'validation_fraction=0, which holds out no examples for the selection',
          'give --config.validation_fraction=0.1',
        )
    if self.validation_fraction == 1:
      raise InputError('validation_fraction=1', 'no examples to train on', 'give a share below 1')
