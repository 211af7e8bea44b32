"""Pseudo-log-likelihood: every token once, from all that is not hidden with it, whatever stands in the same batch."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax import __main__ as door
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.tasks import likelihood
from minilm_jax.training import pretrained

TEXTS = ('the dog sleeps .', 'Unreadablewords zzz , qqq', 'dogs',
         'the big dog that sees the small cats sleeps near the tree .')


@pytest.fixture(scope='module')
def held(tiny_run: Path) -> tuple[Tokenizer, MaskedLanguageModel, list[list[int]]]:
  pretrained_run = pretrained.load(tiny_run)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  return tokenizer, model, likelihood.encode(TEXTS, tokenizer, config.model.max_length)


asked = jax.jit(lambda model, row, place: jax.nn.log_softmax(
    model(row, row != pieces.PAD, place[None, None])[0, 0]))


def one_by_one(model: MaskedLanguageModel, ids: list[int], starts: tuple[bool, ...], kind: str) -> float:
  total, spare = 0.0, model.config.max_length - len(ids) - 2
  for place, target in enumerate(ids):
    end = place + 1
    while kind == 'within-word' and end < len(ids) and not starts[ids[end]]:
      end += 1
    row = [pieces.BEGIN, *ids[:place], *[pieces.MASK] * (end - place), *ids[end:], pieces.END, *[pieces.PAD] * spare]
    total += float(asked(model, jnp.asarray([row]), jnp.asarray(place + 1))[target])
  return total


@pytest.mark.parametrize('kind', likelihood.LIKELIHOODS)
def test_it_is_what_one_row_a_token_gives(held, kind: str):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  found = likelihood.pseudo_log_likelihoods(model, sentences, starts, kind)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [one_by_one(model, ids, starts, kind) for ids in sentences], rtol=1e-5)


def test_the_kinds_differ_only_inside_words(held):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  whole = [i for i, begins in enumerate(starts) if begins][:6]
  original, within = (likelihood.pseudo_log_likelihoods(model, [whole, sentences[1]], starts, kind)
                      for kind in ('original', 'within-word'))
  assert original[0] == within[0] and original[1] != within[1]


def test_what_else_is_scored_changes_nothing(held):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  together = likelihood.pseudo_log_likelihoods(model, sentences * 9, starts, 'within-word')
  alone = [likelihood.pseudo_log_likelihoods(model, [ids], starts, 'within-word')[0] for ids in sentences]
  np.testing.assert_allclose(together, alone * 9, rtol=1e-5)
  backwards = likelihood.pseudo_log_likelihoods(model, sentences[::-1], starts, 'within-word')[::-1]
  np.testing.assert_allclose(together[:len(sentences)], backwards, rtol=1e-5)


def test_blocks_and_calls_change_nothing(held, monkeypatch):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  whole = likelihood.pseudo_log_likelihoods(model, sentences, starts, 'within-word')
  monkeypatch.setattr(likelihood, '_BUCKET', 12)
  monkeypatch.setattr(likelihood, '_LEAST', 1)
  monkeypatch.setattr(likelihood, '_MOST', 2)
  monkeypatch.setitem(likelihood._TOKENS, jax.default_backend(), 1)
  monkeypatch.setitem(likelihood.cross_entropy._AT_ONCE, jax.default_backend(), 1)
  cut = likelihood.pseudo_log_likelihoods(model, sentences, starts, 'within-word')
  np.testing.assert_allclose(whole, cut, rtol=1e-5)


def test_each_token_of_each_distinct_sentence_is_scored_once(held):
  tokenizer, model, sentences = held
  told = []
  likelihood.pseudo_log_likelihoods(model, sentences * 3, tokenizer.starts_word(), 'original', told.append)
  assert told == sorted(told) and told[-1] == sum(map(len, sentences))


def test_the_second_call_compiles_nothing(held):
  tokenizer, model, sentences = held
  likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'original')
  programs = likelihood._score._cache_size()
  other = [[*ids[1:], ids[0]] for ids in sentences]
  likelihood.pseudo_log_likelihoods(model, other, tokenizer.starts_word(), 'within-word')
  assert likelihood._score._cache_size() == programs


def test_the_order_of_equal_scores_is_no_difference(held):
  tokenizer, model, sentences = held
  fixed = jax.tree.map(jnp.asarray, model)
  fixed.norm.scale[...] = jnp.zeros_like(fixed.norm.scale[...])  # each token has the same probability in any context
  fixed.norm.bias[...] = jnp.linspace(-1, 1, fixed.norm.bias.shape[0])
  ids = sentences[3]
  found = likelihood.pseudo_log_likelihoods(fixed, [ids, ids[::-1], sorted(ids)], tokenizer.starts_word(), 'original')
  assert len(set(found.tolist())) == 1


def test_special_pieces_and_nothing_at_all(held):
  tokenizer, model, _ = held
  starts = tokenizer.starts_word()
  assert likelihood.pseudo_log_likelihoods(model, [], starts, 'original').shape == (0,)
  empty, unknown = likelihood.pseudo_log_likelihoods(model, [[], [pieces.UNKNOWN]], starts, 'original')
  assert empty == 0 and unknown < 0, '<unk> is a token like any other, <s> and </s> are none'
  assert likelihood.count([[pieces.UNKNOWN, 7], [8]]) == (3, 1)


def test_logits_in_blocks_are_a_log_softmax(monkeypatch):
  draw = np.random.RandomState(0)
  x, kernel, bias = (jnp.asarray(draw.randn(*shape), jnp.float32) for shape in ((12, 4), (4, 50), (50,)))
  targets = jnp.asarray(draw.randint(0, 50, 12))
  expected = jax.nn.log_softmax(1e3 * x @ kernel + bias[None])[jnp.arange(12), targets]
  monkeypatch.setitem(likelihood.cross_entropy._AT_ONCE, jax.default_backend(), 4 * 50 * 3)
  found = likelihood.log_probabilities(1e3 * x, kernel, bias, targets)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_what_cannot_be_scored_is_refused(held, tiny_run: Path):
  tokenizer, model, sentences = held
  with pytest.raises(InputError, match="did you mean 'within-word'"):
    likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'within_word')
  with pytest.raises(InputError, match='(?s)longer longer longer.*the model reads 62'):
    likelihood.encode(['the dog .', 'the ' * 63, 'longer ' * 70], tokenizer, 64)
  assert len(likelihood.encode(['the ' * 61 + 'the'], tokenizer, 64)[0]) == 62
  broken = jax.tree.map(lambda x: x * jnp.nan, model)
  with pytest.raises(InputError, match='4 of 4 sentences have none'):
    likelihood.pseudo_log_likelihoods(broken, sentences, tokenizer.starts_word(), 'original')
  with pytest.raises(InputError, match='an empty one'):
    likelihood.pseudo_perplexity(tiny_run, ' \n', 'original')


def test_the_perplexity_of_a_text_is_that_of_its_lines(held, tiny_run: Path, capsys):
  tokenizer, model, sentences = held
  total = float(likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'original').sum())
  assert door.main(['evaluate', f'--checkpoint={tiny_run}', '--pll_variant=original', '--text', '\n\n'.join(TEXTS)]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['tokens'] == sum(map(len, sentences)) and found['lines'] == len(TEXTS)
  assert found['log_likelihood'] == pytest.approx(total, rel=1e-6)
  assert found['pseudo_perplexity'] == pytest.approx(math.exp(-total / found['tokens']), rel=1e-6)
