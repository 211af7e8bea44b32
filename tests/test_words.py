"""Bits a word: whole words, the same ones whatever the tokenizer, and the numbers that the model itself gives."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.config import MeshConfig
from minilm_jax.errors import InputError
from minilm_jax.language import corpus as corpora
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.tasks import likelihood, words
from minilm_jax.training import sharding
from tests import fast_jit

BEGIN, PAD, END = pieces.BEGIN, pieces.PAD, pieces.END
STARTS = np.array([False] * 5 + [True, True, False, False])  # ids 5 and 6 begin a word


@pytest.fixture(scope='module')
def held(tiny_run: Path, tiny_corpus: Path) -> tuple[Tokenizer, MaskedLanguageModel, np.ndarray]:
  _, tokenizer, model = likelihood.opened(tiny_run)
  return tokenizer, model, corpora.load(tiny_corpus, 'validation').tokens[:12]


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh(MeshConfig(population=1, data=0, model=1))


def test_words_are_numbered_from_where_they_begin():
  rows = np.array([[BEGIN, 5, 7, 6, 5, 8, END, PAD], [BEGIN, 5, 6, 7, 7, 5, 8, END]])
  found = words.words(rows, STARTS)
  assert found[0].tolist() == [0, 1, 1, 2, 3, 3, 0, 0]
  assert found[1].tolist() == [0, 1, 2, 2, 2, 0, 0, 0]  # a full row may end inside its last word


def test_the_same_words_are_hidden_however_they_are_cut():
  whole = np.array([[BEGIN, *[5] * 30, END, *[PAD] * 40]] * 20)
  cut = np.array([[BEGIN, *[5, 7] * 30, END, *[PAD] * 10]] * 20)
  one, other = (words.hidden(words.words(rows, STARTS), 0.3, 0) for rows in (whole, cut))
  assert (one[:, 1:31] == other[:, 1:61:2]).all() and (other[:, 1:61:2] == other[:, 2:61:2]).all()
  assert 0.2 < one[:, 1:31].mean() < 0.4 and not one[:, 31:].any()
  assert (words.hidden(words.words(whole, STARTS), 0.3, 1) != one).any()


def test_bits_are_what_the_model_gives_to_each_hidden_token(held, mesh):
  tokenizer, model, rows = held
  found = words.measure(jax.device_put(model, sharding.replicated(mesh)), rows, tokenizer, mesh)
  starts = np.asarray(tokenizer.starts_word())
  number = words.words(rows, starts)
  chosen = words.hidden(number, 0.15, 0)
  hidden = jnp.where(chosen, pieces.MASK, rows)
  everywhere = jnp.tile(jnp.arange(rows.shape[1]), (len(rows), 1))
  logits = fast_jit.jit(lambda model, tokens: model(tokens, tokens != PAD, everywhere))(model, hidden)
  logs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), rows[..., None].astype(int), axis=2)[..., 0]
  count = len({(row, number[row, place]) for row, place in zip(*np.nonzero(chosen))})
  size = sum(len(tokenizer.piece(int(i)).replace('\u2581', ' ').encode()) for i in rows[chosen])
  bits = -logs[chosen].sum() / math.log(2)
  assert found['bits_per_word'] == pytest.approx(bits / count, rel=1e-5)
  assert found['bits_per_byte'] == pytest.approx(bits / size, rel=1e-5)
  assert found['word_masks'][0] == {'rate': 0.15, 'seed': 0, 'words': count, 'bytes': size, 'tokens': int(chosen.sum()),
                                    'bits_per_word': found['bits_per_word'], 'bits_per_byte': found['bits_per_byte']}
  assert {(one['rate'], one['seed']) for one in found['word_masks'][1:]} == {(0.05, 0), (0.3, 0), (0.15, 1), (0.15, 2)}


def test_more_rows_than_fit_at_once_change_nothing(held, mesh, monkeypatch: pytest.MonkeyPatch):
  tokenizer, model, rows = held
  chosen = words.hidden(words.words(rows, np.asarray(tokenizer.starts_word())), 0.3, 0)
  model = jax.device_put(model, sharding.replicated(mesh))
  expected = words.log_probabilities(model, rows, chosen, mesh)
  assert expected.shape == (chosen.sum(),) and (expected < 0).all()
  monkeypatch.setattr(words, '_ROWS', 1)
  monkeypatch.setattr(words, '_PLACES', 3)  # fewer than a row has
  np.testing.assert_allclose(words.log_probabilities(model, rows, chosen, mesh), expected, rtol=1e-5)


def test_rows_without_a_word_are_refused(held, mesh):
  tokenizer, model, rows = held
  empty = np.full_like(rows, PAD)
  empty[:, 0], empty[:, 1] = BEGIN, END
  with pytest.raises(InputError, match='no word to hide'):
    words.measure(model, empty, tokenizer, mesh)
