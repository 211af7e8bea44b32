"""Pseudo-log-likelihood: every token once, from all that is not hidden with it, whatever stands in
the same batch.
"""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.cli import main
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, tokenizer
from minilm_jax.data.tokenizer import MASK_ID, UNKNOWN_ID, Tokenizer
from minilm_jax.evaluation import likelihood
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import pretrained, sharding
from tests import fast_jit

TEXTS = (
  'the dog sleeps .',
  'Unreadablewords zzz , qqq',
  'dogs',
  'the big dog that sees the small cats sleeps near the tree .',
)


@pytest.fixture(scope='module')
def held(tiny_run: Path) -> tuple[Tokenizer, MaskedLanguageModel, list[list[int]]]:
  run = pretrained.load(tiny_run)
  return run.tokenizer, run.model, likelihood.encode_sentences(TEXTS, run.tokenizer, 64)


asked = jax.jit(
  lambda model, row, place: jax.nn.log_softmax(
    model(row, row != tokenizer.PAD_ID, place[None, None])[0, 0]
  )
)


def one_by_one(
  model: MaskedLanguageModel, ids: list[int], starts: tuple[bool, ...], kind: str
) -> float:
  total, spare = 0.0, model.config.max_length - len(ids) - 2
  for place, target in enumerate(ids):
    end = place + 1
    while kind == 'within-word' and end < len(ids) and not starts[ids[end]]:
      end += 1
    row = [
      tokenizer.BEGIN_ID,
      *ids[:place],
      *[tokenizer.MASK_ID] * (end - place),
      *ids[end:],
      tokenizer.END_ID,
      *[tokenizer.PAD_ID] * spare,
    ]
    total += float(asked(model, jnp.asarray([row]), jnp.asarray(place + 1))[target])
  return total


@pytest.mark.parametrize('kind', likelihood.PLL_VARIANTS)
def test_it_is_what_one_row_a_token_gives(held, kind: str):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  found = likelihood.pseudo_log_likelihoods(model, sentences, starts, kind)
  assert found.dtype == np.float32
  np.testing.assert_allclose(
    found, [one_by_one(model, ids, starts, kind) for ids in sentences], rtol=1e-5
  )


def test_the_kinds_differ_only_inside_words(held):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  whole = [i for i, begins in enumerate(starts) if begins][:6]
  original, within = (
    likelihood.pseudo_log_likelihoods(model, [whole, sentences[1]], starts, kind)
    for kind in ('original', 'within-word')
  )
  assert original[0] == within[0] and original[1] != within[1]


def test_what_else_is_scored_changes_nothing(held):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  together = likelihood.pseudo_log_likelihoods(model, sentences * 9, starts, 'within-word')
  alone = [
    likelihood.pseudo_log_likelihoods(model, [ids], starts, 'within-word')[0] for ids in sentences
  ]
  np.testing.assert_allclose(together, alone * 9, rtol=1e-5)
  backwards = likelihood.pseudo_log_likelihoods(model, sentences[::-1], starts, 'within-word')[::-1]
  np.testing.assert_allclose(together[: len(sentences)], backwards, rtol=1e-5)


def test_blocks_and_calls_change_nothing(held, monkeypatch):
  tokenizer, model, sentences = held
  starts = tokenizer.starts_word()
  whole = likelihood.pseudo_log_likelihoods(model, sentences, starts, 'within-word')
  monkeypatch.setattr(likelihood, '_LENGTH_STEP', 12)
  monkeypatch.setattr(likelihood, '_MIN_ROWS_PER_DEVICE', 1)
  monkeypatch.setattr(likelihood, '_MAX_ROWS_PER_DEVICE', 2)
  monkeypatch.setitem(likelihood._TOKENS_PER_BLOCK, jax.default_backend(), 1)
  monkeypatch.setitem(cross_entropy._MAX_LOGIT_BYTES, jax.default_backend(), 1)
  cut = likelihood.pseudo_log_likelihoods(model, sentences, starts, 'within-word')
  np.testing.assert_allclose(whole, cut, rtol=1e-5)


def test_each_token_of_each_distinct_sentence_is_scored_once(held):
  tokenizer, model, sentences = held
  told = []
  likelihood.pseudo_log_likelihoods(
    model, sentences * 3, tokenizer.starts_word(), 'original', told.append
  )
  assert told == sorted(told) and told[-1] == sum(map(len, sentences))


def test_the_second_call_compiles_nothing(held):
  tokenizer, model, sentences = held
  likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'original')
  programs = likelihood._score_sharded._cache_size()
  other = [[*ids[1:], ids[0]] for ids in sentences]
  likelihood.pseudo_log_likelihoods(model, other, tokenizer.starts_word(), 'within-word')
  assert likelihood._score_sharded._cache_size() == programs


def test_the_order_of_equal_scores_is_no_difference(held):
  tokenizer, model, sentences = held
  fixed = jax.tree.map(jnp.asarray, model)
  # each token has the same probability in any context
  fixed.norm.scale[...] = jnp.zeros_like(fixed.norm.scale[...])
  fixed.norm.bias[...] = jnp.linspace(-1, 1, fixed.norm.bias.shape[0])
  ids = sentences[3]
  found = likelihood.pseudo_log_likelihoods(
    fixed, [ids, ids[::-1], sorted(ids)], tokenizer.starts_word(), 'original'
  )
  assert len(set(found.tolist())) == 1


def test_special_pieces_and_nothing_at_all(held):
  tokenizer, model, _ = held
  starts = tokenizer.starts_word()
  assert likelihood.pseudo_log_likelihoods(model, [], starts, 'original').shape == (0,)
  empty, unknown = likelihood.pseudo_log_likelihoods(model, [[], [UNKNOWN_ID]], starts, 'original')
  assert empty == 0 and unknown < 0, '<unk> is a token like any other, <s> and </s> are none'
  assert likelihood.count_tokens([[UNKNOWN_ID, 7], [8]]) == (3, 1)


def test_logits_in_blocks_are_a_log_softmax(monkeypatch):
  draw = np.random.RandomState(0)
  x, kernel, bias = (
    jnp.asarray(draw.randn(*shape), jnp.float32) for shape in ((12, 4), (4, 50), (50,))
  )
  targets = jnp.asarray(draw.randint(0, 50, 12))
  expected = jax.nn.log_softmax(1e3 * x @ kernel + bias[None])[jnp.arange(12), targets]
  monkeypatch.setitem(cross_entropy._MAX_LOGIT_BYTES, jax.default_backend(), 4 * 50 * 3)
  found = likelihood.log_probabilities(1e3 * x, kernel, bias, targets)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_what_cannot_be_scored_is_refused(held, tiny_run: Path):
  tokenizer, model, sentences = held
  with pytest.raises(InputError, match="did you mean 'within-word'"):
    likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'within_word')
  with pytest.raises(InputError, match='(?s)longer longer longer.*the model reads 62'):
    likelihood.encode_sentences(['the dog .', 'the ' * 63, 'longer ' * 70], tokenizer, 64)
  assert len(likelihood.encode_sentences(['the ' * 61 + 'the'], tokenizer, 64)[0]) == 62
  broken = jax.tree.map(lambda x: x * jnp.nan, model)
  with pytest.raises(InputError, match='4 of 4 sentences have none'):
    likelihood.pseudo_log_likelihoods(broken, sentences, tokenizer.starts_word(), 'original')
  with pytest.raises(InputError, match='an empty one'):
    likelihood.pseudo_perplexity(tiny_run, ' \n', 'original')


def test_the_perplexity_of_a_text_is_that_of_its_lines(held, tiny_run: Path, capsys):
  tokenizer, model, sentences = held
  total = float(
    likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'original').sum()
  )
  assert (
    main.main(
      [
        'evaluate',
        f'--checkpoint={tiny_run}',
        '--pll_variant=original',
        '--text',
        '\n\n'.join(TEXTS),
      ]
    )
    == 0
  )
  found = json.loads(capsys.readouterr().out)
  assert found['tokens'] == sum(map(len, sentences)) and found['lines'] == len(TEXTS)
  assert found['log_likelihood'] == pytest.approx(total, rel=1e-6)
  assert found['pseudo_perplexity'] == pytest.approx(math.exp(-total / found['tokens']), rel=1e-6)


BEGIN, PAD, END = tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID
STARTS = np.array([False] * 5 + [True, True, False, False])  # ids 5 and 6 begin a word


@pytest.fixture(scope='module')
def held_words(
  tiny_run: Path, tiny_corpus: Path
) -> tuple[Tokenizer, MaskedLanguageModel, np.ndarray]:
  run = pretrained.load(tiny_run)
  return run.tokenizer, run.model, corpus.load_split(tiny_corpus, 'validation').tokens[:12]


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh(MeshConfig(population=1, data=0, model=1))


def test_words_are_numbered_from_where_they_begin():
  rows = np.array([[BEGIN, 5, 7, 6, 5, 8, END, PAD], [BEGIN, 5, 6, 7, 7, 5, 8, END]])
  found = likelihood.number_words(rows, STARTS)
  assert found[0].tolist() == [0, 1, 1, 2, 3, 3, 0, 0]
  assert found[1].tolist() == [0, 1, 2, 2, 2, 0, 0, 0]  # a full row may end inside its last word


def test_the_same_words_are_hidden_however_they_are_cut():
  whole = np.array([[BEGIN, *[5] * 30, END, *[PAD] * 40]] * 20)
  cut = np.array([[BEGIN, *[5, 7] * 30, END, *[PAD] * 10]] * 20)
  one, other = (
    likelihood.mask_words(likelihood.number_words(rows, STARTS), 0.3, 0) for rows in (whole, cut)
  )
  assert (one[:, 1:31] == other[:, 1:61:2]).all() and (other[:, 1:61:2] == other[:, 2:61:2]).all()
  assert 0.2 < one[:, 1:31].mean() < 0.4 and not one[:, 31:].any()
  assert (likelihood.mask_words(likelihood.number_words(whole, STARTS), 0.3, 1) != one).any()


def test_bits_are_what_the_model_gives_to_each_hidden_token(held_words, mesh):
  tokenizer, model, rows = held_words
  found = likelihood.measure_bits(
    jax.device_put(model, sharding.replicated(mesh)), rows, tokenizer, mesh
  )
  starts = np.asarray(tokenizer.starts_word())
  number = likelihood.number_words(rows, starts)
  chosen = likelihood.mask_words(number, 0.15, 0)
  hidden = jnp.where(chosen, MASK_ID, rows)
  everywhere = jnp.tile(jnp.arange(rows.shape[1]), (len(rows), 1))
  logits = fast_jit.jit(lambda model, tokens: model(tokens, tokens != PAD, everywhere))(
    model, hidden
  )
  logs = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), rows[..., None].astype(int), axis=2
  )[..., 0]
  count = len({(row, number[row, place]) for row, place in zip(*np.nonzero(chosen))})
  size = sum(len(tokenizer.piece(int(i)).replace('\u2581', ' ').encode()) for i in rows[chosen])
  bits = -logs[chosen].sum() / math.log(2)
  assert found['bits_per_word'] == pytest.approx(bits / count, rel=1e-5)
  assert found['bits_per_byte'] == pytest.approx(bits / size, rel=1e-5)
  assert found['word_masks'][0] == {
    'rate': 0.15,
    'seed': 0,
    'words': count,
    'bytes': size,
    'tokens': int(chosen.sum()),
    'bits_per_word': found['bits_per_word'],
    'bits_per_byte': found['bits_per_byte'],
  }
  assert {(one['rate'], one['seed']) for one in found['word_masks'][1:]} == {
    (0.05, 0),
    (0.3, 0),
    (0.15, 1),
    (0.15, 2),
  }


def test_more_rows_than_fit_at_once_change_nothing(
  held_words, mesh, monkeypatch: pytest.MonkeyPatch
):
  tokenizer, model, rows = held_words
  chosen = likelihood.mask_words(
    likelihood.number_words(rows, np.asarray(tokenizer.starts_word())), 0.3, 0
  )
  model = jax.device_put(model, sharding.replicated(mesh))
  expected = likelihood.word_log_probabilities(model, rows, chosen, mesh)
  assert expected.shape == (chosen.sum(),) and (expected < 0).all()
  monkeypatch.setattr(likelihood, '_WORD_ROWS_PER_DEVICE', 1)
  monkeypatch.setattr(likelihood, '_POSITIONS_PER_ROW', 3)  # fewer than a row has
  np.testing.assert_allclose(
    likelihood.word_log_probabilities(model, rows, chosen, mesh), expected, rtol=1e-5
  )


def test_rows_without_a_word_are_refused(held_words, mesh):
  tokenizer, model, rows = held_words
  empty = np.full_like(rows, PAD)
  empty[:, 0], empty[:, 1] = BEGIN, END
  with pytest.raises(InputError, match='no word to hide'):
    likelihood.measure_bits(model, empty, tokenizer, mesh)
