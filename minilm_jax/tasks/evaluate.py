"""A checkpoint judged without training: the masked-token loss on a split of a corpus, and bits a word and a byte."""

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from minilm_jax.config import MeshConfig, RunConfig
from minilm_jax.errors import InputError, nearest
from minilm_jax.language import build
from minilm_jax.language import corpus as corpora
from minilm_jax.language.corpus import Corpus
from minilm_jax.tasks import words
from minilm_jax.training import pretrained, program, sharding
from minilm_jax.training.pretrained import Pretrained


def evaluate(source: epath.PathLike, corpus: str, split: str) -> dict[str, Any]:
  """Loss, perplexity, the paper's padded loss, bits a word and a byte of the latest checkpoint on all rows of a split.

  Args:
    source: the pre-training run.
    corpus: a corpus folder with the run's tokenizer; '' is the one it was trained on.
    split: train, validation or test.

  Raises:
    InputError: no such split or corpus, rows longer than the model reads, or a corpus that another tokenizer made.
  """
  pretrained_run, mesh, rows = _load(source, corpus, split)
  evaluate_model = program.build_evaluate(dataclasses.replace(pretrained_run.config.eval, rows=rows.rows), mesh)
  losses = evaluate_model(pretrained_run.model, jax.device_put(rows, sharding.replicated(mesh)))[0]
  return {'split': split, 'rows': rows.rows, 'step': pretrained_run.step, **losses,
          **words.measure(pretrained_run.model, rows.tokens, pretrained_run.tokenizer, mesh)}


def word_bits(source: epath.PathLike, split: str) -> dict[str, Any]:
  """Bits a word and a byte alone, of the latest checkpoint on all rows of a split of its corpus.

  Raises:
    InputError: as `evaluate`.
  """
  pretrained_run, mesh, rows = _load(source, '', split)
  return {'split': split, 'rows': rows.rows, 'step': pretrained_run.step,
          **words.measure(pretrained_run.model, rows.tokens, pretrained_run.tokenizer, mesh)}


def _load(source: epath.PathLike, corpus: str, split: str) -> tuple[Pretrained, Mesh, Corpus]:
  """Returns a run with its model on every device of a mesh, the mesh, and a split on the host."""
  rows = read_split(source, pretrained.load_mlm_config(source), corpus, split)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  return pretrained.load(source, mesh=mesh), mesh, rows


def read_split(source: epath.PathLike, config: RunConfig, corpus: str, split: str) -> Corpus:
  """A split of the corpus of a run, or of another one of its tokenizer, on the host.

  Raises:
    InputError: as `evaluate`.
  """
  if split not in corpora.SPLITS:
    raise InputError(f'the split {split!r}', 'no such split', nearest(split, corpora.SPLITS))
  described = pretrained.corpus_hashes(source)
  folder = epath.Path(corpus or described['corpus_folder'])
  if not corpus and not described['corpus_folder']:
    raise InputError(f'the loss of {source}', 'it was imported, and has no corpus of its own',
                     'give --corpus=FOLDER, built with --config.tokenizer.path='
                     f'{epath.Path(source) / build.TOKENIZER}')
  if not corpus and not folder.exists():
    raise InputError(f'the corpus of {source}', f'no folder {folder}', 'say where it is now: --corpus=FOLDER')
  found = corpora.manifest(folder)
  if found['length'] > config.model.max_length:
    raise InputError(f'the loss of {source} on {folder}',
                     f'rows of {found["length"]} tokens, and the model reads {config.model.max_length}',
                     f'build it with --config.rows.length={config.model.max_length}')
  if found['tokenizer']['sha256'] != described['tokenizer']:
    raise InputError(f'the loss of {source} on {folder}', 'the corpus was made with another tokenizer',
                     f'build it with --config.tokenizer.path={epath.Path(source) / build.TOKENIZER}')
  return corpora.load(folder, split)
