"""Saves and loads fine-tuned classifiers, and computes their logits.

The folder of a classifier contains:

    classifier.json   card: task, labels, shape, tokenizer, seed, learning rate, origin
    tokenizer.model   tokenizer
    checkpoints/0     Orbax checkpoint of encoder and head
    outputs.npz       outputs and correct labels of each reported split
    manifest.json     checksums of the files and weights; written last

Folders are written under a temporary name and renamed. They can be moved, and opened on any
devices.
"""

import collections
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from minilm_jax.core import files, old_names, recipe, run_dir
from minilm_jax.core.errors import COUNT, TEXT, Checked, InputError, PositiveInt, find_schema_fault
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data.tokenizer import PAD_ID, Tokenizer, load_tokenizer
from minilm_jax.model.heads import Classifier, init_classifier
from minilm_jax.model.initialization import count_parameters
from minilm_jax.tasks import task_data
from minilm_jax.tasks.committee_scores import OUTPUTS_FILE, Outputs
from minilm_jax.tasks.examples import Examples
from minilm_jax.training import checkpoint, population, pretrained

CLASSIFIER_KIND = 'classifier'
CARD_FILE = run_dir.CLASSIFIER
_MAX_BATCH_ROWS = 32
_FOLDER = re.compile(r'classifier-\d+')
_FILES = (CARD_FILE, run_dir.TOKENIZER, OUTPUTS_FILE)
_MANIFEST_SCHEMA = {
  'kind': TEXT,
  'files': dict.fromkeys(_FILES, TEXT),
  'weights': TEXT,
  'examples': {},
  'parameters': COUNT,
  'checkpoint_link?': TEXT,
}
_REMEDY = 'fine-tune again with --config.save_classifiers=True, or give another folder'
_COPY_REMEDY = 'copy the complete folder again'


@dataclasses.dataclass(frozen=True)
class Card(Checked):
  """Describes a classifier except for its weights.

  Attributes:
    labels: Names of the classes in the order of the outputs; empty for a regression.
    fields: Names of the text columns, one or two.
    concatenate_fields: Whether the fields are joined to one text.
    headline: Main metric of the task.
    length: Maximum number of tokens of an example.
    tokenizer: Checksum of the tokenizer file.
    checkpoint: Pre-training run of the encoder or, for a start from scratch, of its shape.
    step: Step of the checkpoint; -1 is a start from scratch.
    epoch_choice: 'best' on the validation part, or 'last'.
    epoch: Number of finished epochs.
  """

  kind: str
  task: str
  task_kind: str
  labels: tuple[str, ...]
  fields: tuple[str, ...]
  concatenate_fields: bool
  headline: str
  length: PositiveInt
  model: EncoderConfig
  head: HeadConfig
  tokenizer: str
  seed: int
  learning_rate: float
  checkpoint: str
  step: int
  epoch_choice: str
  epoch: float

  @property
  def reads_pairs(self) -> bool:
    """Whether an example is a pair of texts."""
    return len(self.fields) == 2 and not self.concatenate_fields

  @property
  def is_regression(self) -> bool:
    """Whether the output is a number."""
    return not self.labels

  @property
  def shape(self) -> tuple[Any, ...]:
    """Key of classifiers that can be stacked and read equal rows."""
    return self.model, self.head, len(self.labels), self.length


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
  """Stores a classifier with its weights on the host; `identity` is their checksum."""

  card: Card
  model: Classifier
  tokenizer: Tokenizer
  identity: str


def name_member_folder(member: int) -> str:
  """Returns the folder name of a member in the work directory of its run."""
  return f'classifier-{member}'


def is_incomplete(path: epath.PathLike) -> bool:
  """Returns whether a folder lacks a complete classifier."""
  return not (epath.Path(path) / run_dir.MANIFEST).exists()


def save_classifier(
  path: epath.PathLike,
  card: Card,
  model: Classifier,
  tokenizer: Tokenizer,
  outputs: Mapping[str, Outputs],
  digests: Mapping[str, str],
) -> None:
  """Writes a classifier into a folder atomically, and replaces an earlier classifier.

  Args:
    outputs: Outputs (logits, or numbers) and correct labels of each reported split.
    digests: Checksums of the examples of the reported splits.
  """
  path = epath.Path(path)
  temporary = path.parent / f'.{path.name}.partial'
  temporary.rmtree(missing_ok=True)
  path.rmtree(missing_ok=True)
  temporary.mkdir(parents=True)
  files.write_json(temporary / CARD_FILE, recipe.as_dict(card))
  files.write_bytes(temporary / run_dir.TOKENIZER, tokenizer.model)
  arrays: dict[str, Any] = {}
  for split, (split_outputs, labels) in outputs.items():
    arrays |= {f'{split} outputs': split_outputs, f'{split} labels': labels}
  data = io.BytesIO()
  np.savez(data, **arrays)
  files.write_bytes(temporary / OUTPUTS_FILE, data.getvalue())
  with checkpoint.open_writer(temporary, 1) as writer:
    writer.save({'model': model}, 0)
  files.write_json(
    temporary / run_dir.MANIFEST,
    {
      'kind': CLASSIFIER_KIND,
      'files': {name: files.hash_file(temporary / name) for name in _FILES},
      'weights': pretrained.hash_weights(model),
      'examples': dict(digests),
      'parameters': count_parameters(model),
      'jax': jax.__version__,
      **run_dir.link_source(card.checkpoint, path),
    },
  )
  temporary.rename(path)


def read_manifest(path: epath.PathLike) -> dict[str, Any]:
  """Returns the manifest of a classifier after verifying the checksums of its files.

  Raises:
    InputError: The folder is not a classifier, or a file is changed or missing.
  """
  path = epath.Path(path)
  subject = f'the fine-tuned classifier {path}'
  if not path.is_dir():
    raise InputError(subject, 'no such folder', _REMEDY)
  if is_incomplete(path):
    members = sorted(entry.name for entry in path.iterdir() if _FOLDER.fullmatch(entry.name))
    raise InputError(
      subject,
      f'no {run_dir.MANIFEST}, so the folder is incomplete',
      f'give a folder of a classifier, such as {path / members[0]}' if members else _REMEDY,
    )
  manifest = files.read_json(path / run_dir.MANIFEST, subject)
  if find_schema_fault(manifest, _MANIFEST_SCHEMA) or manifest['kind'] != CLASSIFIER_KIND:
    raise InputError(
      subject,
      f'a {run_dir.MANIFEST} of another kind',
      f'{_REMEDY}; use --committee for a committee',
    )
  for name, checksum in manifest['files'].items():
    file = files.resolve_inside(path, name, subject)
    if not file.is_file() or files.hash_file(file) != checksum:
      raise InputError(subject, f'a missing or changed {name}', _COPY_REMEDY)
  return manifest


def load_classifier(path: epath.PathLike, changes: Mapping[str, Any] = {}) -> SavedClassifier:
  """Loads a saved classifier onto the host.

  Args:
    changes: Fields of the encoder to replace, such as `dtype`.

  Raises:
    InputError: The folder is not a classifier, or a file or weight is changed.
  """
  path = epath.Path(path)
  manifest, card, subject = read_manifest(path), read_card(path), f'the weights of {path}'
  card = dataclasses.replace(card, model=dataclasses.replace(card.model, **changes))
  if checkpoint.latest_step(path) is None:
    raise InputError(subject, f'no checkpoint in {path / checkpoint.FOLDER}', _COPY_REMEDY)
  shapes = jax.eval_shape(
    lambda: init_classifier(card.model, card.head, len(card.labels), jax.random.key(0))
  )
  model = jax.tree.map(np.asarray, checkpoint.restore_part(path, shapes, 'model', 0))
  identity = pretrained.hash_weights(model)
  if identity != manifest['weights']:
    raise InputError(subject, 'weights with another checksum', _COPY_REMEDY)
  return SavedClassifier(card, model, load_tokenizer(path / run_dir.TOKENIZER), identity)


def read_card(path: epath.PathLike) -> Card:
  """Returns the card of the classifier in a folder.

  Raises:
    InputError: The card is missing or invalid.
  """
  stored = files.read_object(epath.Path(path) / CARD_FILE, f'the fine-tuned classifier {path}')
  return recipe.build(Card, old_names.complete_recipe(stored))


def compute_row_logits(model: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
  """Returns the logits of a single member for each row."""
  return model(tokens, tokens != PAD_ID)


@functools.lru_cache(maxsize=8)
def build_forward(
  members: int, strategy: str, devices: Sequence[jax.Device] = ()
) -> Callable[[Classifier, Int[Array, 'M B L']], Float[Array, 'P N C']]:
  """Returns a compiled function from stacked members and batches of tokens to logits.

  Args:
    strategy: Result of `population.choose_strategy`.
    devices: Devices that the members are divided among; all by default.
  """

  def member_logits(model: Classifier, tokens: Int[Array, 'M B L']) -> Float[Array, 'N C']:
    logits = jax.lax.map(functools.partial(compute_row_logits, model), tokens)
    return logits.reshape(-1, logits.shape[-1])

  mesh = population.make_even_mesh(members, devices)
  return jax.jit(
    population.map_over_members(member_logits, mesh, 'vmap' if strategy == 'vmap' else 'map')
  )


def stack_members(members: Sequence[SavedClassifier]) -> list[tuple[list[int], Classifier]]:
  """Returns the indices and the stack of each group of members of equal shape.

  A stack has a first axis `P`, which the devices share. Groups are ordered by their first member.
  """
  groups = collections.defaultdict(list)
  for index, member in enumerate(members):
    groups[member.card.shape].append(index)
  stacks = []
  for group in groups.values():
    models = [members[index].model for index in group]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *models)
    mesh = population.make_even_mesh(len(group))
    stacks.append((group, population.shard_members(stacked, mesh)))
  return stacks


def compute_logits(
  members: Sequence[SavedClassifier],
  examples: Examples,
  stacks: Sequence[tuple[list[int], Classifier]] = (),
) -> Float[np.ndarray, 'P N C']:
  """Returns the outputs of each member for each example: logits, or numbers in a regression.

  Longer examples than a member reads are truncated, and their number is logged.

  Args:
    members: Members of any shapes with the same tokenizer.
    examples: Texts; labels are ignored.
    stacks: Result of `stack_members`, for repeated calls.
  """
  logits: list[np.ndarray] = [np.zeros(0)] * len(members)
  truncated: dict[int, int] = {}  # by length, which several groups may share
  for group, stack in stacks or stack_members(members):
    card, tokenizer = members[group[0]].card, members[group[0]].tokenizer
    sequences, truncated[card.length] = task_data.encode_examples(examples, tokenizer, card.length)
    length = card.model.max_length
    if card.head.pooling != 'positions':  # a head with weights for each position needs full rows
      length = task_data.bucket_length(sequences, length)
    tokens, places = task_data.batch_sequences(sequences, _MAX_BATCH_ROWS, length)
    strategy = population.choose_strategy(len(group), 'auto', jax.devices()[0].platform)
    outputs = np.asarray(build_forward(len(group), strategy)(stack, jnp.asarray(tokens)))
    for index, member_outputs in zip(group, outputs, strict=True):
      logits[index] = member_outputs[places]
  for length, count in truncated.items():
    task_data.log_truncated(count, len(examples.first), length)
  return np.stack(logits)
