"""InputError: three parts, safe to print."""

import pytest

from minilm_jax.core.errors import InputError, sanitize, suggest_name


def test_an_error_has_three_parts():
  error = InputError('a run in runs/x', 'a file is there', 'give another --workdir')
  assert (error.asked, error.found, error.remedy) == (
    'a run in runs/x',
    'a file is there',
    'give another --workdir',
  )
  assert [line.split(':')[0] for line in str(error).splitlines()] == ['asked', 'found', 'to do']


def test_parts_are_escaped_and_truncated():
  error = InputError('the column \x1b[2J', 'größer\nasked: a second line', 'x' * 100_000)
  assert error.asked == r'the column \x1b[2J' and error.found == r'größer\nasked: a second line'
  assert len(str(error)) < 3000 and len(str(error).splitlines()) == 3


def test_the_nearest_name_is_suggested_or_all_names_are_listed():
  assert 'learning_rate' in suggest_name('learnin_rate', ['learning_rate', 'clip'])
  assert 'clip' not in suggest_name('learnin_rate', ['learning_rate', 'clip'])
  assert suggest_name('xyz', ['learning_rate', 'clip']) == 'known names are clip, learning_rate'
  assert suggest_name('xyz', []) == 'known names are (none)'


@pytest.mark.parametrize('text', ['\x1b[2J', '\r', '\x9b', '\u202e', '\u2066', '\ud800', '\0'])
def test_control_characters_are_replaced(text: str):
  assert sanitize(f'a{text}b').startswith('a\ufffd') and text not in str(InputError('', text, text))


def test_other_text_is_unchanged():
  assert sanitize('größe 𝄞 שלום\tα\n') == 'größe 𝄞 שלום\tα\n'
