"""Completion: bash completes verbs, the flags of the verb, recipes and other files; every shell gets every verb."""

import pathlib
import shutil
import subprocess

import pytest

from minilm_jax import completion
from minilm_jax.errors import InputError
from minilm_jax.verbs import VERBS


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The script, and some files."""
  if not shutil.which('bash'):
    pytest.skip('bash is not installed')
  made = tmp_path_factory.mktemp('completion')
  (made / 'minilm.bash').write_text(completion.script('bash', VERBS))
  (made / 'configs').mkdir()
  for name in ('configs/mine.py', 'configs/notes.txt', 'mine.py', 'minutes.txt'):
    (made / name).touch()
  return made


def completed(folder: pathlib.Path, *words: str) -> list[str]:
  """What bash offers after these words, of which the last is being typed."""
  program = ('. ./minilm.bash\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n_minilm\n'
             '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"; complete -p minilm')
  done = subprocess.run(['bash', '--norc', '-uc', program, 'bash', *words], cwd=folder, capture_output=True, text=True,
                        check=True)
  *found, last = done.stdout.splitlines()
  assert not done.stderr and last == 'complete -F _minilm minilm'
  return sorted(found)


def test_bash_completes_verbs_and_their_flags(folder: pathlib.Path):
  assert completed(folder, 'minilm', '') == sorted([*VERBS, 'help'])
  assert completed(folder, 'minilm', 'pre') == ['predict', 'preflight', 'pretrain']
  assert completed(folder, 'minilm', 'take', '--') == [
      '--checkpoint=', '--help', '--member=', '--trust=', '--workdir=']
  assert completed(folder, 'minilm', 'show', '--config=x', '--j') == ['--json']
  assert completed(folder, 'minilm', 'completion', '') == ['--help', 'bash', 'fish', 'zsh']
  assert completed(folder, 'minilm', 'help', 'qui') == ['quickstart']


def test_bash_completes_values(folder: pathlib.Path):
  """After = too, at which bash breaks words."""
  for words in (('--config', '=', 'mi'), ('--config', 'mi')):
    assert completed(folder, 'minilm', 'pretrain', *words) == ['mine.py']
  assert completed(folder, 'minilm', 'pretrain', '--config', '=') == ['configs/', 'mine.py']
  assert completed(folder, 'minilm', 'pretrain', '--config', '=', 'configs/') == ['configs/mine.py']
  assert completed(folder, 'minilm', 'pretrain', '--workdir', '=', 'minu') == ['minutes.txt']
  assert completed(folder, 'minilm', 'quickstart', '--language', '=', 'm') == ['microworld']
  assert completed(folder, 'minilm', 'report', 'conf') == ['configs']


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_every_shell_gets_every_verb_and_flag(shell: str):
  found = completion.script(shell, VERBS)
  assert all(name in found and all(flag.rstrip('*') in found for flag in verb.flags) for name, verb in VERBS.items())
  assert found.count("'") % 2 == 0  # no help text breaks the quotes


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_every_shell_reads_its_script(shell: str, tmp_path: pathlib.Path):
  if not shutil.which(shell):
    pytest.skip(f'{shell} is not installed')
  (tmp_path / 'script').write_text(completion.script(shell, VERBS))
  done = subprocess.run([shell, '-n', 'script'], cwd=tmp_path, capture_output=True, text=True, check=False)
  assert not done.returncode and not done.stderr, done.stderr


@pytest.mark.parametrize('shell', ['', 'tcsh', 'bash zsh'])
def test_another_shell_is_refused(shell: str):
  with pytest.raises(InputError, match='bash|did you mean'):
    completion.script(shell, VERBS)
