"""A laboratory for language models of 1-20 million parameters, in JAX and Flax.

The functions of this module do the work of the commands of `minilm`:

    import minilm_jax

    minilm_jax.build_corpus('configs/tiny.py:corpus', 'runs/corpus')
    minilm_jax.pretrain('configs/tiny.py', 'runs/lm', {'corpus': 'runs/corpus'})
    minilm_jax.finetune('configs/examples/own_task.py', 'runs/lm', 'runs/task')
    minilm_jax.report(['runs/lm', 'runs/task'], 'runs/report')
    model = minilm_jax.load('runs/lm')

Each function that writes a directory can be called again: it resumes there, or returns the stored
result. A recipe is a file, `configs/x.py` or `configs/x.py:argument`, a ConfigDict or nested dicts;
`overrides` replaces fields of the recipe by dotted name, such as `{'optimizer.learning_rate': 1e-3}`.
A run with a custom encoder names its module. For a stored run, only modules in `trust` are imported: a
list of names, or text with commas between them. Invalid input raises `InputError`. Importing the
package does not import JAX.
"""

import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from minilm_jax.core.errors import InputError as InputError

if typing.TYPE_CHECKING:
  from etils import epath
  from ml_collections import config_dict

  from minilm_jax.evaluation.inference import Model

__version__ = '0.1.0'

Recipe: typing.TypeAlias = 'str | os.PathLike | config_dict.ConfigDict | Mapping[str, Any]'
Overrides: typing.TypeAlias = Mapping[str, Any]


def _expand_home(path: str | os.PathLike) -> str:
  from minilm_jax.core import paths

  return paths.expand_home(path)


def _resolve(recipe: Recipe, overrides: Overrides | None, kind: str) -> Any:
  """Returns the typed configuration of a recipe, and prepares JAX for it."""
  from minilm_jax.core import recipe as recipes

  is_file = isinstance(recipe, (str, os.PathLike))
  source = recipes.load(os.fspath(recipe)) if is_file else recipe
  config = recipes.resolve(recipes.override_fields(source, overrides or {}), kind)
  if kind == 'corpus':
    return config
  from minilm_jax.core import backend

  backend.prepare()
  if kind == 'pretrain':
    recipes.allow_modules(config.model.encoder)  # the caller's own recipe names the module
  return config


def build_corpus(
  recipe: Recipe, workdir: str | os.PathLike, overrides: Overrides | None = None
) -> 'epath.Path':
  """Builds a corpus: filters text, trains a tokenizer and packs rows of token ids.

  Args:
    recipe: a recipe of kind corpus.
    workdir: the corpus folder.
    overrides: fields to replace, such as `{'documents.sources': 'text/*.txt'}`.

  Returns:
    The corpus folder, for the field `corpus` of a pre-training recipe.
  """
  from minilm_jax.data import build

  return build.build_corpus(_resolve(recipe, overrides, 'corpus'), _expand_home(workdir))


def pretrain(
  recipe: Recipe,
  workdir: str | os.PathLike,
  overrides: Overrides | None = None,
  *,
  init_from: str | os.PathLike = '',
  init_optimizer: bool = False,
) -> dict[str, Any]:
  """Pre-trains an encoder, or a population of encoders, with masked language modelling.

  Args:
    recipe: a recipe of kind pretrain.
    workdir: the run directory.
    overrides: fields to replace, such as `{'corpus': 'corpora/small', 'num_steps': 2000}`.
    init_from: a run whose weights a new run starts with; `RUN@STEP` chooses a checkpoint.
    init_optimizer: also starts with the moments of the optimizer of that run.

  Returns:
    The content of `result.json`: losses in nats a token, tokens, FLOPs and seconds.
  """
  config = _resolve(recipe, overrides, 'pretrain')
  from minilm_jax.training import run

  start = {'init_from': os.fspath(init_from), 'init_optimizer': init_optimizer}
  return run.pretrain(config, _expand_home(workdir), **start)


def finetune(
  recipe: Recipe,
  checkpoint: str | os.PathLike,
  workdir: str | os.PathLike,
  overrides: Overrides | None = None,
  *,
  with_scratch: bool = False,
  trust: str | Sequence[str] = '',
) -> list[dict[str, Any]]:
  """Fine-tunes the encoder of a pre-training run on a task, once for each seed and learning rate.

  Args:
    recipe: a recipe of kind finetune, such as `configs/glue.py:cola`.
    checkpoint: the pre-training run; `RUN@STEP` chooses a checkpoint other than the latest.
    workdir: the run directory of the fine-tuning.
    overrides: fields to replace, such as `{'task.data_dir': 'TFDS', 'seeds': '0,1,2'}`.
    with_scratch: also fine-tunes encoders with fresh weights, the control without pre-training.
    trust: modules that may be imported for a custom encoder.

  Returns:
    One dict of scores for each member, epoch and split, as in `scores.jsonl`.
  """
  config = _resolve(recipe, overrides, 'finetune')
  from minilm_jax.core import recipe as recipes
  from minilm_jax.tasks import suite

  recipes.allow_modules(trust)
  lines, errors = suite.finetune_all(
    {config.task.name: config}, os.fspath(checkpoint), _expand_home(workdir), False, with_scratch
  )
  if errors:  # some of several checkpoints failed; the scores of the others are in `workdir`
    raise errors[0]
  return lines


def evaluate(
  checkpoint: str | os.PathLike,
  corpus: str | os.PathLike = '',
  split: str = 'validation',
  *,
  trust: str | Sequence[str] = '',
) -> dict[str, Any]:
  """Measures the masked-language-modelling loss of a pre-training run.

  Args:
    checkpoint: the pre-training run; its latest checkpoint is measured.
    corpus: a corpus folder with the tokenizer of the run; by default the corpus of the run.
    split: train, validation or test.
    trust: modules that may be imported for a custom encoder.

  Returns:
    Loss in nats a token, perplexity, and bits a word and a byte.
  """
  from minilm_jax.core import backend
  from minilm_jax.core import recipe as recipes

  backend.prepare()
  recipes.allow_modules(trust)
  from minilm_jax.evaluation import evaluate

  return evaluate.evaluate_loss(_expand_home(checkpoint), _expand_home(corpus), split)


def report(
  runs: str | os.PathLike | Sequence[str | os.PathLike], workdir: str | os.PathLike
) -> 'dict[str, epath.Path]':
  """Writes a page with tables and figures of runs.

  Args:
    runs: one or several run directories, or folders that hold run directories at any depth.
    workdir: the folder of the page.

  Returns:
    The path of each file by name; the page is `report.html`.
  """
  from minilm_jax.analysis.report import report

  runs = [runs] if isinstance(runs, (str, os.PathLike)) else runs
  return report.report([_expand_home(run) for run in runs], _expand_home(workdir))


def load(folder: str | os.PathLike, trust: str | Sequence[str] = '') -> 'Model':
  """Opens a trained model: a pre-training run, a classifier, or a committee of classifiers.

  Args:
    folder: the run directory, or the folder of a classifier or a committee; local or, with the
      extra gcs, gs://.
    trust: modules that may be imported for a custom encoder.

  Raises:
    InputError: the folder holds no model, a file is damaged, or the run needs code that is not
      trusted.

  Example:
    >>> model = minilm_jax.load('runs/tiny')  # doctest: +SKIP
    >>> model  # doctest: +SKIP
    LanguageModel('runs/tiny', update 600: 2 layers, hidden 64, 512 pieces, rows of 64 tokens, 141,952
    parameters)
    >>> model.encode(['the dog sleeps .', 'a pie rots .']).shape  # doctest: +SKIP
    (2, 64)
    >>> model.fill_mask('the dog <mask> near the tree .', best=1)  # doctest: +SKIP
    [Guess(hole=1, piece='▁sleeps', probability=0.11)]
    >>> minilm_jax.load('runs/about/classifier-0').predict('the dog sleeps .')[0]['label']  # doctest: +SKIP
    'animal'
  """
  from minilm_jax.core import backend

  backend.prepare()
  from minilm_jax.evaluation import inference

  return inference.load_model(_expand_home(folder), trust)
