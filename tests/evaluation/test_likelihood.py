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
def scored(tiny_run: Path) -> tuple[Tokenizer, MaskedLanguageModel, list[list[int]]]:
  run = pretrained.load(tiny_run)
  return run.tokenizer, run.model, likelihood.encode_sentences(TEXTS, run.tokenizer, 64)


log_shares = jax.jit(
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
    total += float(log_shares(model, jnp.asarray([row]), jnp.asarray(place + 1))[target])
  return total


@pytest.mark.parametrize('kind', likelihood.PLL_VARIANTS)
def test_it_is_what_one_row_a_token_gives(scored, kind: str):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  result = likelihood.pseudo_log_likelihoods(model, sentences, starts, kind)
  assert result.dtype == np.float32
  np.testing.assert_allclose(
    result, [one_by_one(model, ids, starts, kind) for ids in sentences], rtol=1e-5
  )


def test_the_kinds_differ_only_inside_words(scored):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  full = [i for i, begins in enumerate(starts) if begins][:6]
  original, within = (
    likelihood.pseudo_log_likelihoods(model, [full, sentences[1]], starts, kind)
    for kind in ('original', 'within-word')
  )
  assert original[0] == within[0] and original[1] != within[1]


def test_what_else_is_scored_changes_nothing(scored):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  together = likelihood.pseudo_log_likelihoods(model, sentences * 9, starts, 'within-word')
  alone = [
    likelihood.pseudo_log_likelihoods(model, [ids], starts, 'within-word')[0] for ids in sentences
  ]
  np.testing.assert_allclose(together, alone * 9, rtol=1e-5)
  backwards = likelihood.pseudo_log_likelihoods(model, sentences[::-1], starts, 'within-word')[::-1]
  np.testing.assert_allclose(together[: len(sentences)], backwards, rtol=1e-5)


def test_blocks_and_calls_change_nothing(scored, monkeypatch):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  full = likelihood.pseudo_log_likelihoods(model, sentences, starts, 'within-word')
  monkeypatch.setattr(likelihood, '_LENGTH_STEP', 12)
  monkeypatch.setattr(likelihood, '_MIN_ROWS_PER_DEVICE', 1)
  monkeypatch.setattr(likelihood, '_MAX_ROWS_PER_DEVICE', 2)
  monkeypatch.setitem(likelihood._TOKENS_PER_BLOCK, jax.default_backend(), 1)
  monkeypatch.setitem(cross_entropy._MAX_LOGIT_BYTES, jax.default_backend(), 1)
  cut = likelihood.pseudo_log_likelihoods(model, sentences, starts, 'within-word')
  np.testing.assert_allclose(full, cut, rtol=1e-5)


def test_each_token_of_each_distinct_sentence_is_scored_once(scored):
  tokenizer, model, sentences = scored
  progress = []
  likelihood.pseudo_log_likelihoods(
    model, sentences * 3, tokenizer.starts_word(), 'original', progress.append
  )
  assert progress == sorted(progress) and progress[-1] == sum(map(len, sentences))


def test_the_second_call_compiles_nothing(scored):
  tokenizer, model, sentences = scored
  likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'original')
  programs = likelihood._score_sharded._cache_size()
  second = [[*ids[1:], ids[0]] for ids in sentences]
  likelihood.pseudo_log_likelihoods(model, second, tokenizer.starts_word(), 'within-word')
  assert likelihood._score_sharded._cache_size() == programs


def test_the_order_of_equal_scores_is_no_difference(scored):
  tokenizer, model, sentences = scored
  fixed = jax.tree.map(jnp.asarray, model)
  # each token has the same probability in any context
  fixed.norm.scale[...] = jnp.zeros_like(fixed.norm.scale[...])
  fixed.norm.bias[...] = jnp.linspace(-1, 1, fixed.norm.bias.shape[0])
  ids = sentences[3]
  result = likelihood.pseudo_log_likelihoods(
    fixed, [ids, ids[::-1], sorted(ids)], tokenizer.starts_word(), 'original'
  )
  assert len(set(result.tolist())) == 1


def test_special_pieces_and_nothing_at_all(scored):
  tokenizer, model, _ = scored
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
  result = likelihood.log_probabilities(1e3 * x, kernel, bias, targets)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-3)


def test_what_cannot_be_scored_is_refused(scored, tiny_run: Path):
  tokenizer, model, sentences = scored
  with pytest.raises(InputError, match="did you mean 'within-word'"):
    likelihood.pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'within_word')
  with pytest.raises(InputError, match='(?s)longer longer longer.* 62 '):
    likelihood.encode_sentences(['the dog .', 'the ' * 63, 'longer ' * 70], tokenizer, 64)
  assert len(likelihood.encode_sentences(['the ' * 61 + 'the'], tokenizer, 64)[0]) == 62
  broken = jax.tree.map(lambda x: x * jnp.nan, model)
  with pytest.raises(InputError, match='4 of 4'):
    likelihood.pseudo_log_likelihoods(broken, sentences, tokenizer.starts_word(), 'original')
  with pytest.raises(InputError, match='--text'):
    likelihood.pseudo_perplexity(tiny_run, ' \n', 'original')


def test_the_perplexity_of_a_text_is_that_of_its_lines(scored, tiny_run: Path, capsys):
  tokenizer, model, sentences = scored
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
  result = json.loads(capsys.readouterr().out)
  assert result['tokens'] == sum(map(len, sentences)) and result['lines'] == len(TEXTS)
  assert result['log_likelihood'] == pytest.approx(total, rel=1e-6)
  assert result['pseudo_perplexity'] == pytest.approx(math.exp(-total / result['tokens']), rel=1e-6)


BEGIN, PAD, END = tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID
STARTS = np.array([False] * 5 + [True, True, False, False])  # ids 5 and 6 begin a word


@pytest.fixture(scope='module')
def scored_rows(
  tiny_run: Path, tiny_corpus: Path
) -> tuple[Tokenizer, MaskedLanguageModel, np.ndarray]:
  run = pretrained.load(tiny_run)
  return run.tokenizer, run.model, corpus.load_split(tiny_corpus, 'validation').tokens[:12]


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh(MeshConfig(population=1, data=0, model=1))


def test_words_are_numbered_from_where_they_begin():
  rows = np.array([[BEGIN, 5, 7, 6, 5, 8, END, PAD], [BEGIN, 5, 6, 7, 7, 5, 8, END]])
  result = likelihood.number_words(rows, STARTS)
  assert result[0].tolist() == [0, 1, 1, 2, 3, 3, 0, 0]
  assert result[1].tolist() == [0, 1, 2, 2, 2, 0, 0, 0]  # a full row may end inside its last word


def test_the_same_words_are_hidden_however_they_are_cut():
  full = np.array([[BEGIN, *[5] * 30, END, *[PAD] * 40]] * 20)
  cut = np.array([[BEGIN, *[5, 7] * 30, END, *[PAD] * 10]] * 20)
  first, second = (
    likelihood.mask_words(likelihood.number_words(rows, STARTS), 0.3, 0) for rows in (full, cut)
  )
  assert (first[:, 1:31] == second[:, 1:61:2]).all() and (
    second[:, 1:61:2] == second[:, 2:61:2]
  ).all()
  assert 0.2 < first[:, 1:31].mean() < 0.4 and not first[:, 31:].any()
  assert (likelihood.mask_words(likelihood.number_words(full, STARTS), 0.3, 1) != first).any()


def test_bits_are_what_the_model_gives_to_each_hidden_token(scored_rows, mesh):
  tokenizer, model, rows = scored_rows
  result = likelihood.measure_bits(
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
  assert result['bits_per_word'] == pytest.approx(bits / count, rel=1e-5)
  assert result['bits_per_byte'] == pytest.approx(bits / size, rel=1e-5)
  assert result['word_masks'][0] == {
    'rate': 0.15,
    'seed': 0,
    'words': count,
    'bytes': size,
    'tokens': int(chosen.sum()),
    'bits_per_word': result['bits_per_word'],
    'bits_per_byte': result['bits_per_byte'],
  }
  assert {(first['rate'], first['seed']) for first in result['word_masks'][1:]} == {
    (0.05, 0),
    (0.3, 0),
    (0.15, 1),
    (0.15, 2),
  }


def test_more_rows_than_fit_at_once_change_nothing(
  scored_rows, mesh, monkeypatch: pytest.MonkeyPatch
):
  tokenizer, model, rows = scored_rows
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


def test_rows_without_a_word_are_refused(scored_rows, mesh):
  tokenizer, model, rows = scored_rows
  empty = np.full_like(rows, PAD)
  empty[:, 0], empty[:, 1] = BEGIN, END
  with pytest.raises(InputError, match='12 rows'):
    likelihood.measure_bits(model, empty, tokenizer, mesh)
