"""The one error a user sees."""

from minilm_jax.errors import InputError, nearest


def test_an_error_holds_its_three_parts_apart_and_together():
  error = InputError('a run in runs/x', 'a file is there', 'give another --workdir')
  assert (error.asked, error.found, error.remedy) == ('a run in runs/x', 'a file is there', 'give another --workdir')
  assert [line.split(':')[0] for line in str(error).splitlines()] == ['asked', 'found', 'to do']


def test_nearest_names_what_was_meant_and_everything_when_nothing_is_near():
  assert 'learning_rate' in nearest('learnin_rate', ['learning_rate', 'clip'])
  assert 'clip' not in nearest('learnin_rate', ['learning_rate', 'clip'])
  assert nearest('xyz', ['learning_rate', 'clip']) == 'known names are clip, learning_rate'
  assert nearest('xyz', []) == 'known names are (none)'
