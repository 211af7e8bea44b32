"""Makes small classifiers with random weights and saves them as fine-tuning does."""

import pathlib
from typing import Any

import jax
import numpy as np

from configs import tiny
from minilm_jax.core import recipe
from minilm_jax.core.model_config import HeadConfig
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.model.heads import init_classifier
from minilm_jax.tasks import classifier
from minilm_jax.tasks.classifier import Card, SavedClassifier
from minilm_jax.tasks.examples import Examples
from minilm_jax.training import pretrained

LABELS = ('negative', 'positive', 'neutral')
TEXTS = ('the dog sleeps .', 'a good fox', 'the bad pig eats the red hen and sleeps', 'a', 'cow .')


def make_examples(texts: tuple[str, ...] = TEXTS) -> Examples:
  return Examples(texts, (), np.zeros(len(texts), np.int32))


def make_card(tokenizer: Tokenizer, seed: int, /, hidden: int = 16, **changes: Any) -> Card:
  config = tiny.get_config()
  config.model.update(
    vocab_size=520,
    embedding_size=16,
    hidden_size=hidden,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    max_length=32,
  )
  model = recipe.resolve(config, 'pretrain').model
  fields: dict[str, Any] = {
    'kind': classifier.CLASSIFIER_KIND,
    'task': 'own',
    'task_kind': 'classification',
    'labels': LABELS,
    'fields': ('text',),
    'concatenate_fields': False,
    'headline': 'accuracy',
    'length': 24,
    'model': model,
    'head': HeadConfig('first', 0.1, 1),
    'tokenizer': tokenizer.sha256,
    'seed': seed,
    'learning_rate': 1e-3,
    'checkpoint': 'runs/tiny',
    'step': 8,
    'epoch_choice': 'last',
    'epoch': 2.0,
  }
  return Card(**fields | changes)


def make_classifier(
  tokenizer: Tokenizer, seed: int, /, hidden: int = 16, **changes: Any
) -> SavedClassifier:
  """Returns a classifier with random weights, large enough that members predict differently."""
  card = make_card(tokenizer, seed, hidden, **changes)
  model = init_classifier(card.model, card.head, len(card.labels), jax.random.key(seed))
  model = jax.tree.map(lambda x: np.asarray(4 * x), model)
  return SavedClassifier(card, model, tokenizer, pretrained.hash_weights(model))


def save_classifier(
  folder: pathlib.Path, member: SavedClassifier, digest: str = 'same examples'
) -> pathlib.Path:
  """Saves a classifier with random outputs and returns the folder.

  The outputs are of 40 examples, whose labels all members share.
  """
  generator = np.random.default_rng(member.card.seed)
  classes = max(1, len(member.card.labels))
  outputs = (
    generator.normal(size=(40, classes)).astype(np.float32),
    np.random.default_rng(9).integers(0, classes, 40),
  )
  classifier.save_classifier(
    folder,
    member.card,
    member.model,
    member.tokenizer,
    {'validation': outputs},
    {'validation': digest},
  )
  return folder
