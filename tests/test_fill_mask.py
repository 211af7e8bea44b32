"""Guesses for holes: the model's own probabilities, of pieces that are words, best first."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.model.heads import masked_language_model
from minilm_jax.tasks import fill_mask
from minilm_jax.training import checkpoint, pretrained


def test_the_best_pieces_come_first_for_each_hole(tiny_run: Path):
  guesses = fill_mask.fill_mask(tiny_run, 'the <mask> sleeps near the <mask> .', 4)
  assert [guess.hole for guess in guesses] == [1] * 4 + [2] * 4
  for hole in (guesses[:4], guesses[4:]):
    shares = [guess.probability for guess in hole]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
    assert not {guess.piece for guess in hole} & set(pieces.SPECIAL)


def test_probabilities_are_those_of_the_model(tiny_run: Path):
  tokenizer, config = pieces.load(tiny_run / 'tokenizer.model'), pretrained.load_config(tiny_run).model
  shapes = jax.eval_shape(lambda: masked_language_model(config, jax.random.key(0)))
  model = checkpoint.restore_part(tiny_run, shapes, 'model')
  before, after = tokenizer.encode(['a dog', 'near the tree .'])
  tokens = jnp.asarray([[pieces.BEGIN, *before, pieces.MASK, *after, pieces.END]])
  logits = model(tokens, jnp.ones_like(tokens, bool), jnp.asarray([[1 + len(before)]]))[0, 0]
  for guess in fill_mask.fill_mask(tiny_run, 'a dog <mask> near the tree .', 3):
    np.testing.assert_allclose(guess.probability, jax.nn.softmax(logits)[tokenizer.id(guess.piece)], rtol=1e-5)


def test_asking_for_everything_gives_every_piece_once(tiny_run: Path):
  tokenizer = pieces.load(tiny_run / 'tokenizer.model')
  assert pretrained.load_config(tiny_run).model.vocab_size > tokenizer.size  # ids past the tokenizer are no pieces
  guesses = fill_mask.fill_mask(tiny_run, '<mask>', 10_000)
  assert len({guess.piece for guess in guesses}) == len(guesses) == tokenizer.size - len(pieces.SPECIAL)


def test_case_does_not_matter(tiny_run: Path):
  assert fill_mask.fill_mask(tiny_run, 'The DOG <mask> .', 3) == fill_mask.fill_mask(tiny_run, 'the dog <mask> .', 3)


@pytest.mark.parametrize('text, best, said', [
    ('the dog sleeps .', 5, 'no <mask>'), ('', 5, 'no <mask>'), ('<mask> ' + 'dog ' * 70, 5, 'at most 64'),
    ('<mask>', 0, 'at least 1')])
def test_what_cannot_be_filled_is_refused(tiny_run: Path, text: str, best: int, said: str):
  with pytest.raises(InputError, match=said):
    fill_mask.fill_mask(tiny_run, text, best)
