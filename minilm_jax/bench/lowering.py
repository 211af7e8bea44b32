"""Lowers the programs of a recipe for described devices, from shapes alone."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minilm_jax.core import run_dir
from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.model_config import HeadConfig
from minilm_jax.data import corpus
from minilm_jax.data.rows import Corpus
from minilm_jax.model.heads import init_classifier
from minilm_jax.tasks import classifier, finetune_step
from minilm_jax.tasks.task_data import TaskRows
from minilm_jax.training import population, program, run_setup, sharding

ABSENT_CORPUS_ROWS = 60_000  # about the rows of a reduced corpus of five million words
_CLASSES, _EXAMPLES, _CALL_BATCHES, _CALL_ROWS = 2, 10_000, 16, 64
Devices = Sequence[jax.Device]


@dataclasses.dataclass(frozen=True)
class Lowered:
  """A lowered program, the devices that it runs on, and its corpus (None without one)."""

  stage: jax.stages.Lowered
  mesh: Mesh
  corpus: Corpus | None = None


def lower_training(config: RunConfig, devices: Devices) -> Lowered:
  """Lowers the training chunk."""
  built = program.build_program(config, devices)
  corpus = describe_corpus(config, sharding.replicated(built.mesh))
  stage = built.chunk.lower(built.shapes, corpus, _shape(built.mesh, (), jnp.int32))
  return Lowered(stage, built.mesh, corpus)


def lower_evaluation(config: RunConfig, devices: Devices) -> Lowered:
  """Lowers the evaluation of `eval.rows` rows."""
  built = program.build_program(config, devices)
  corpus = describe_corpus(config, sharding.replicated(built.mesh))
  total = program.build_evaluation_sums(config.eval, built.mesh, built.strategy)
  stage = total.lower(built.shapes.model, corpus, min(config.eval.rows, corpus.rows))
  return Lowered(stage, built.mesh, corpus)


def lower_finetuning(config: RunConfig, devices: Devices) -> Lowered:
  """Lowers the fine-tuning of the seeds of `FinetuneConfig` on 10,000 examples of two classes."""
  settings = FinetuneConfig(length=min(FinetuneConfig.length, config.model.max_length))
  members = len(settings.seeds)
  shape = finetune_step.StepShape('classification', _CLASSES, _EXAMPLES, (settings.length,))
  built = finetune_step.build_finetune_program(
    shape, settings, config.model, members, tuple(devices)
  )
  stacked = NamedSharding(built.mesh, PartitionSpec('population'))
  encoders = _place(
    jax.eval_shape(
      finetune_step.init_encoders(config.model, settings.head), jnp.zeros(1, jnp.uint32)
    ),
    sharding.replicated(built.mesh),
  )
  init = finetune_step.MemberInit(
    *(
      jax.ShapeDtypeStruct((built.group_size,), dtype, sharding=stacked)
      for dtype in ('uint32', 'float32', 'int32')
    )
  )
  state = _place(jax.eval_shape(built.start, init, encoders), stacked)
  rows = TaskRows(
    _shape(built.mesh, (_EXAMPLES, settings.length), jnp.int32),
    *[_shape(built.mesh, (_EXAMPLES,), jnp.int32)] * 2,
  )
  return Lowered(built.chunk.lower(state, rows, _shape(built.mesh, (), jnp.int32)), built.mesh)


def lower_prediction(config: RunConfig, devices: Devices) -> Lowered:
  """Lowers the prediction of a committee of `population.members` classifiers, 64 rows a batch."""
  members, platform = config.population.members, devices[0].platform
  strategy = population.choose_strategy(members, config.population.strategy, platform)
  forward = classifier.build_forward(members, strategy, tuple(devices))
  mesh = population.make_even_mesh(members, devices)
  init = jax.vmap(lambda seed: init_classifier(config.model, HeadConfig(), _CLASSES, seed))
  models = jax.eval_shape(init, jax.random.split(jax.random.key(0), members))
  stacked = NamedSharding(mesh, PartitionSpec('population'))
  tokens = _shape(mesh, (_CALL_BATCHES, _CALL_ROWS, config.model.max_length), jnp.int32)
  return Lowered(forward.lower(_place(models, stacked), tokens), mesh)


PROGRAMS: Mapping[str, Callable[[RunConfig, Devices], Lowered]] = MappingProxyType(
  {
    'train': lower_training,
    'evaluate': lower_evaluation,
    'finetune': lower_finetuning,
    'predict': lower_prediction,
  }
)


def _shape(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))


def _place(tree: Any, placement: jax.sharding.Sharding) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), tree)


def describe_corpus(config: RunConfig, placement: jax.sharding.Sharding) -> Corpus:
  """Returns the shape of the training rows, of the corpus of the recipe or of a typical corpus."""
  folder = epath.Path(config.corpus)
  if config.corpus and (folder / run_dir.MANIFEST).exists():
    manifest = run_setup.validate_corpus(config, folder)
    rows = corpus.measure_subset(config.subset, folder, manifest)['rows']
    length, dtype, vocab_size = (manifest[name] for name in ('length', 'dtype', 'vocabulary'))
  else:
    rows, length, vocab_size = ABSENT_CORPUS_ROWS, config.model.max_length, config.model.vocab_size
    dtype = 'uint16' if vocab_size <= 1 << 16 else 'uint32'
  tokens = jax.ShapeDtypeStruct((rows, length), dtype, sharding=placement)
  return Corpus(typing.cast(jax.Array, tokens), vocab_size, 'absent')
