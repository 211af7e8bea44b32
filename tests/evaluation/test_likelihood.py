"""Tests pseudo-log-likelihoods and bits per word against one row a token, in any batches."""

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

BEGIN, PAD, END = tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID
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


compute_log_shares = jax.jit(
  lambda model, row, position: jax.nn.log_softmax(
    model(row, row != PAD, position[None, None])[0, 0]
  )
)


def score_by_rows(
  model: MaskedLanguageModel, ids: list[int], starts: tuple[bool, ...], variant: str
) -> float:
  """Returns a pseudo-log-likelihood from one row for each token."""
  total, num_pads = 0.0, model.config.max_length - len(ids) - 2
  for position, target in enumerate(ids):
    end = position + 1
    while variant == 'within-word' and end < len(ids) and not starts[ids[end]]:
      end += 1
    masked = [*ids[:position], *[MASK_ID] * (end - position), *ids[end:]]
    row = jnp.asarray([[BEGIN, *masked, END, *[PAD] * num_pads]])
    total += float(compute_log_shares(model, row, jnp.asarray(position + 1))[target])
  return total


@pytest.mark.parametrize('variant', likelihood.PLL_VARIANTS)
def test_likelihoods_equal_one_row_a_token(scored, variant: str):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  scores = likelihood.compute_pseudo_log_likelihoods(model, sentences, starts, variant)
  assert scores.dtype == np.float32
  expected = [score_by_rows(model, ids, starts, variant) for ids in sentences]
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_variants_differ_only_inside_words(scored):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  words = [i for i, begins in enumerate(starts) if begins][:6]
  original, within = (
    likelihood.compute_pseudo_log_likelihoods(model, [words, sentences[1]], starts, variant)
    for variant in ('original', 'within-word')
  )
  assert original[0] == within[0] and original[1] != within[1]


def test_scores_do_not_depend_on_other_sentences_or_block_sizes(scored, monkeypatch):
  tokenizer, model, sentences = scored

  def score(sentences: list[list[int]]) -> np.ndarray:
    starts = tokenizer.starts_word()
    return likelihood.compute_pseudo_log_likelihoods(model, sentences, starts, 'within-word')

  scores = score(sentences)
  np.testing.assert_allclose(score(sentences * 9), np.tile(scores, 9), rtol=1e-5)
  np.testing.assert_allclose([score([ids])[0] for ids in sentences], scores, rtol=1e-5)
  np.testing.assert_allclose(score(sentences[::-1])[::-1], scores, rtol=1e-5)
  monkeypatch.setattr(likelihood, '_LENGTH_MULTIPLE', 12)
  monkeypatch.setattr(likelihood, '_MIN_ROWS_PER_DEVICE', 1)
  monkeypatch.setattr(likelihood, '_MAX_ROWS_PER_DEVICE', 2)
  monkeypatch.setitem(likelihood._TOKENS_PER_BLOCK, jax.default_backend(), 1)
  monkeypatch.setitem(cross_entropy._MAX_LOGIT_BYTES, jax.default_backend(), 1)
  np.testing.assert_allclose(score(sentences), scores, rtol=1e-5)


def test_each_token_of_each_distinct_sentence_is_scored_once(scored):
  tokenizer, model, sentences = scored
  progress = []
  likelihood.compute_pseudo_log_likelihoods(
    model, sentences * 3, tokenizer.starts_word(), 'original', progress.append
  )
  assert progress == sorted(progress) and progress[-1] == sum(map(len, sentences))


def test_a_second_call_compiles_nothing(scored):
  tokenizer, model, sentences = scored
  likelihood.compute_pseudo_log_likelihoods(model, sentences, tokenizer.starts_word(), 'original')
  programs = likelihood._score_sharded._cache_size()
  second = [[*ids[1:], ids[0]] for ids in sentences]
  likelihood.compute_pseudo_log_likelihoods(model, second, tokenizer.starts_word(), 'within-word')
  assert likelihood._score_sharded._cache_size() == programs


def test_permuted_token_scores_have_an_equal_sum(scored):
  tokenizer, model, sentences = scored
  fixed = jax.tree.map(jnp.asarray, model)
  # The probability of a token is equal in all contexts.
  fixed.norm.scale[...] = jnp.zeros_like(fixed.norm.scale[...])
  fixed.norm.bias[...] = jnp.linspace(-1, 1, fixed.norm.bias.shape[0])
  ids = sentences[3]
  result = likelihood.compute_pseudo_log_likelihoods(
    fixed, [ids, ids[::-1], sorted(ids)], tokenizer.starts_word(), 'original'
  )
  assert len(set(result.tolist())) == 1


def test_special_tokens_and_empty_sentences_are_not_scored(scored):
  tokenizer, model, _ = scored
  starts = tokenizer.starts_word()
  assert likelihood.compute_pseudo_log_likelihoods(model, [], starts, 'original').shape == (0,)
  empty, unknown = likelihood.compute_pseudo_log_likelihoods(
    model, [[], [UNKNOWN_ID]], starts, 'original'
  )
  assert empty == 0 and unknown < 0  # <unk> is scored
  assert likelihood.count_tokens([[UNKNOWN_ID, 7], [8]]) == (3, 1)


def test_log_probabilities_in_blocks_equal_log_softmax(monkeypatch):
  draw = np.random.RandomState(0)
  x, kernel, bias = (
    jnp.asarray(draw.randn(*shape), jnp.float32) for shape in ((12, 4), (4, 50), (50,))
  )
  targets = jnp.asarray(draw.randint(0, 50, 12))
  expected = jax.nn.log_softmax(1e3 * x @ kernel + bias[None])[jnp.arange(12), targets]
  monkeypatch.setitem(cross_entropy._MAX_LOGIT_BYTES, jax.default_backend(), 4 * 50 * 3)
  result = likelihood.compute_log_probabilities(1e3 * x, kernel, bias, targets)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-3)


def test_invalid_variants_texts_and_models_are_refused(scored, tiny_run: Path):
  tokenizer, model, sentences = scored
  with pytest.raises(InputError, match="'within-word'"):
    likelihood.compute_pseudo_log_likelihoods(
      model, sentences, tokenizer.starts_word(), 'within_word'
    )
  with pytest.raises(InputError, match='(?s)longer longer longer.* 62 '):
    likelihood.encode_sentences(['the dog .', 'the ' * 63, 'longer ' * 70], tokenizer, 64)
  with pytest.raises(InputError, match='no tokens'):
    likelihood.encode_sentences(['the dog .', ''], tokenizer, 64)
  assert len(likelihood.encode_sentences(['the ' * 61 + 'the'], tokenizer, 64)[0]) == 62
  broken = jax.tree.map(lambda x: x * jnp.nan, model)
  with pytest.raises(InputError, match='4 of 4'):
    likelihood.compute_pseudo_log_likelihoods(
      broken, sentences, tokenizer.starts_word(), 'original'
    )
  with pytest.raises(InputError, match='--text'):
    likelihood.measure_pseudo_perplexity(tiny_run, ' \n', 'original')


def test_the_command_adds_the_likelihoods_of_lines(scored, tiny_run: Path, capsys):
  tokenizer, model, sentences = scored
  starts = tokenizer.starts_word()
  scores = likelihood.compute_pseudo_log_likelihoods(model, sentences, starts, 'original')
  total = float(scores.sum())
  flags = [f'--checkpoint={tiny_run}', '--pll_variant=original', '--text', '\n\n'.join(TEXTS)]
  assert main.main(['evaluate', *flags]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['tokens'] == sum(map(len, sentences)) and result['lines'] == len(TEXTS)
  assert result['log_likelihood'] == pytest.approx(total, rel=1e-6)
  assert result['pseudo_perplexity'] == pytest.approx(math.exp(-total / result['tokens']), rel=1e-6)


@pytest.mark.parametrize('mark', ['\x0b', '\x0c', '\x1e', '\x85', '\u2028', '\u2029'])
def test_only_line_feeds_and_carriage_returns_end_a_line(tiny_run: Path, mark: str):
  text = f'the dog{mark}sleeps .\r\nthe cat sleeps .\r\rthe fox .'
  assert likelihood.measure_pseudo_perplexity(tiny_run, text, 'original')['lines'] == 3


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


def test_words_are_numbered_except_for_the_last_word_of_a_full_row():
  rows = np.array([[BEGIN, 5, 7, 6, 5, 8, END, PAD], [BEGIN, 5, 6, 7, 7, 5, 8, END]])
  numbers = likelihood.number_words(rows, STARTS)
  assert numbers.tolist() == [[0, 1, 1, 2, 3, 3, 0, 0], [0, 1, 2, 2, 2, 0, 0, 0]]


def test_words_with_an_unknown_piece_are_not_masked():
  rows = np.array(
    [[BEGIN, 5, 7, 6, UNKNOWN_ID, 5, 8, END, PAD], [BEGIN, 6, 5, 7, 5, END, PAD, PAD, PAD]]
  )
  numbers = likelihood.number_words(rows, STARTS)
  assert numbers.tolist() == [[0, 1, 1, 0, 0, 3, 3, 0, 0], [0, 1, 2, 2, 3, 0, 0, 0, 0]]


def test_masked_words_do_not_depend_on_the_tokenization():
  single = np.array([[BEGIN, *[5] * 30, END, *[PAD] * 40]] * 20)
  double = np.array([[BEGIN, *[5, 7] * 30, END, *[PAD] * 10]] * 20)
  first, second = (
    likelihood.mask_words(likelihood.number_words(rows, STARTS), 0.3, 0)
    for rows in (single, double)
  )
  np.testing.assert_array_equal(first[:, 1:31], second[:, 1:61:2])
  np.testing.assert_array_equal(second[:, 1:61:2], second[:, 2:61:2])
  assert 0.2 < first[:, 1:31].mean() < 0.4 and not first[:, 31:].any()
  assert (likelihood.mask_words(likelihood.number_words(single, STARTS), 0.3, 1) != first).any()


def test_bits_equal_the_log_softmax_of_masked_tokens(scored_rows, mesh):
  tokenizer, model, rows = scored_rows
  on_mesh = jax.device_put(model, sharding.replicated(mesh))
  result = likelihood.measure_bits(on_mesh, rows, tokenizer, mesh)
  starts = np.asarray(tokenizer.starts_word())
  numbers = likelihood.number_words(rows, starts)
  masked = likelihood.mask_words(numbers, 0.15, 0)
  positions = jnp.tile(jnp.arange(rows.shape[1]), (len(rows), 1))
  logits = jax.jit(lambda model, tokens: model(tokens, tokens != PAD, positions))(
    model, jnp.where(masked, MASK_ID, rows)
  )
  logs = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), rows[..., None].astype(int), axis=2
  )[..., 0]
  num_words = len({(row, numbers[row, column]) for row, column in zip(*np.nonzero(masked))})
  pieces = [tokenizer.piece(int(i)).replace('\u2581', ' ') for i in rows[masked]]
  num_bytes = sum(len(piece.encode()) for piece in pieces)
  bits = -logs[masked].sum() / math.log(2)
  assert result['bits_per_word'] == pytest.approx(bits / num_words, rel=1e-5)
  assert result['bits_per_byte'] == pytest.approx(bits / num_bytes, rel=1e-5)
  first, *others = result['word_masks']
  expected = {'rate': 0.15, 'seed': 0, 'words': num_words, 'bytes': num_bytes}
  assert first.items() >= {**expected, 'tokens': int(masked.sum())}.items()
  assert all(first[name] == result[name] for name in ('bits_per_word', 'bits_per_byte'))
  settings = [(line['rate'], line['seed']) for line in others]
  assert settings == [(0.05, 0), (0.3, 0), (0.15, 1), (0.15, 2)]
  alone = likelihood.measure_bits(on_mesh, rows, tokenizer, mesh, sensitivity=False)
  assert alone == {**result, 'word_masks': [first]}


def test_word_log_probabilities_do_not_depend_on_block_sizes(
  scored_rows, mesh, monkeypatch: pytest.MonkeyPatch
):
  tokenizer, model, rows = scored_rows
  numbers = likelihood.number_words(rows, np.asarray(tokenizer.starts_word()))
  masked = likelihood.mask_words(numbers, 0.3, 0)
  model = jax.device_put(model, sharding.replicated(mesh))
  expected = likelihood.compute_word_log_probabilities(model, rows, masked, mesh)
  assert expected.shape == (masked.sum(),) and (expected < 0).all()
  monkeypatch.setattr(likelihood, '_WORD_ROWS_PER_DEVICE', 1)
  monkeypatch.setattr(likelihood, '_POSITIONS_PER_ROW', 3)  # less than the masked tokens of a row
  scores = likelihood.compute_word_log_probabilities(model, rows, masked, mesh)
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_rows_with_too_few_complete_words_have_no_bits(scored_rows, mesh, capsys):
  tokenizer, model, rows = scored_rows
  (word,) = tokenizer.encode(['dog'])
  empty, full = np.full_like(rows, PAD), np.full_like(rows, tokenizer.starts_word().index(False, 5))
  empty[:, 0], empty[:, 1] = BEGIN, END
  full[:, 0], full[:, 1], full[:, -1] = BEGIN, word[0], END
  single = empty.copy()
  single[0, 1 : len(word) + 2] = *word, END
  model = jax.device_put(model, sharding.replicated(mesh))
  # The generator for row 0 and seed 0 selects a single word at a rate of 0.3, but not of 0.15.
  for tokens, rates in ((empty, []), (full, []), (single, [0.3])):
    result = likelihood.measure_bits(model, tokens, tokenizer, mesh)
    assert result['bits_per_word'] is None and result['bits_per_byte'] is None
    assert [line['rate'] for line in result['word_masks']] == rates
    assert all(line['words'] == 1 and line['bits_per_word'] > 0 for line in result['word_masks'])
    assert '12 rows' in capsys.readouterr().err
