"""Evaluates a checkpoint on a corpus split: masked-token loss, bits per word and bits per byte.

`make_table` serves all commands that show a measurement.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath
from rich import box
from rich import table as rich_table
from rich.text import Text

from minilm_jax.core import corpus_config, run_dir
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError, check_name
from minilm_jax.data.corpus import load_split, read_manifest
from minilm_jax.data.rows import Corpus
from minilm_jax.evaluation import likelihood
from minilm_jax.training import pretrained, program, sharding


def make_table(title: str | Text) -> rich_table.Table:
  """Returns an empty table with a title and a caption on the left."""
  return rich_table.Table(
    title=title,
    title_justify='left',
    caption_justify='left',
    box=box.SIMPLE_HEAD,
    pad_edge=False,
  )


def evaluate_loss(
  source: epath.PathLike, corpus_folder: str, split: str, bits_only: bool = False
) -> dict[str, Any]:
  """Returns loss, perplexity, padded loss, bits per word and bits per byte of a run.

  Bits are None if the split has too few complete words, see `likelihood.measure_bits`.

  Args:
    source: Pre-training run; the latest checkpoint is used.
    corpus_folder: Corpus with the tokenizer of the run; '' is the corpus of the run.
    split: 'train', 'validation' or 'test'; all rows are used.
    bits_only: Whether to leave out the losses and the sensitivity of bits to the masks, which take
      most of the time.

  Raises:
    InputError: As for `read_split`.
  """
  max_length = pretrained.load_mlm_config(source).model.max_length
  corpus = read_split(source, max_length, corpus_folder, split)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  run = pretrained.load(source, mesh=mesh)
  losses = {}
  if not bits_only:
    settings = dataclasses.replace(run.config.eval, rows=corpus.rows)
    on_device = jax.device_put(corpus, sharding.replicated(mesh))
    losses = program.build_evaluate(settings, mesh)(run.model, on_device)[0]
  return {
    'split': split,
    'rows': corpus.rows,
    'step': run.step,
    **losses,
    **likelihood.measure_bits(
      run.model, np.asarray(corpus.tokens), run.tokenizer, mesh, sensitivity=not bits_only
    ),
  }


def read_split(source: epath.PathLike, max_length: int, corpus_folder: str, split: str) -> Corpus:
  """Reads a split of a corpus with the tokenizer of a run.

  Rows are on the host. The `corpus_folder` '' is the corpus of the run.

  Raises:
    InputError: The split or corpus does not exist, rows exceed `max_length`, or the tokenizer
      differs.
  """
  check_name(f'the split {split!r}', 'split', split, corpus_config.SPLITS)
  hashes = run_dir.read_corpus_hashes(source)
  folder = epath.Path(corpus_folder or hashes['corpus_folder'])
  tokenizer_path = epath.Path(source) / run_dir.TOKENIZER
  if not corpus_folder and not hashes['corpus_folder']:
    raise InputError(
      f'the loss of {source}',
      'an imported run, which has no corpus',
      f'give --corpus=FOLDER, built with --config.tokenizer.path={tokenizer_path}',
    )
  if not corpus_folder and not folder.exists():
    raise InputError(
      f'the corpus of {source}', f'no folder {folder}', 'give the folder: --corpus=FOLDER'
    )
  manifest = read_manifest(folder)
  if manifest['length'] > max_length:
    raise InputError(
      f'the loss of {source} on {folder}',
      f'rows of {manifest["length"]} tokens; the model reads {max_length}',
      f'build it with --config.rows.length={max_length}',
    )
  if manifest['tokenizer']['sha256'] != hashes['tokenizer']:
    raise InputError(
      f'the loss of {source} on {folder}',
      'a corpus with another tokenizer',
      f'build it with --config.tokenizer.path={tokenizer_path}',
    )
  return load_split(folder, split)
