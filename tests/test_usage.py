"""Completion: bash completes verbs, the flags of a verb, their values and files; every shell gets every verb."""

import pathlib
import shutil
import subprocess

import pytest

from minilm_jax import usage
from minilm_jax.errors import InputError
from minilm_jax.verbs import VERBS

pytest.importorskip('shtab', reason='needs shtab, which is of the extra [completion]')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The script for bash, and a few files."""
  if not shutil.which('bash'):
    pytest.skip('bash is not installed')
  home = tmp_path_factory.mktemp('completion')
  (home / 'minilm.bash').write_text(usage.completion('bash', VERBS))
  (home / 'configs').mkdir()
  for name in ('configs/mine.py', 'configs/notes.txt', 'mine.py', 'minutes.txt'):
    (home / name).touch()
  return home


def completed(folder: pathlib.Path, *words: str) -> list[str]:
  """What bash offers after these words, of which the last is being typed."""
  program = ('. ./minilm.bash\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
             'completer=$(complete -p minilm | grep -o "_[a-z_]*minilm")\n'
             '$completer minilm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"\n'
             '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"')
  done = subprocess.run(['bash', '--norc', '-c', program, 'bash', *words], cwd=folder, capture_output=True, text=True,
                        check=False)
  assert not done.stderr
  return sorted(done.stdout.splitlines())


@pytest.mark.parametrize('words, offers', [
    (('',), sorted([*VERBS, 'help'])), (('pre',), ['predict', 'preflight', 'pretrain']),
    (('take', '--'), ['--checkpoint', '--help', '--member', '--trust', '--workdir']),
    (('show', '--config', 'x', '--j'), ['--json']), (('completion', ''), sorted(usage.SHELLS)),
    (('help', 'qui'), ['quickstart']), (('pretrain', '--config', 'mi'), ['mine.py']),
    (('pretrain', '--config', 'configs/'), ['configs/mine.py']), (('pretrain', '--workdir', 'minu'), ['minutes.txt']),
    (('quickstart', '--language', 'm'), ['microworld']), (('report', 'conf'), ['configs'])])
def test_bash_completes(words: tuple[str, ...], offers: list[str], folder: pathlib.Path):
  assert completed(folder, 'minilm', *words) == offers


@pytest.mark.parametrize('shell', usage.SHELLS)
def test_every_shell_gets_every_verb_and_reads_its_script(shell: str, tmp_path: pathlib.Path):
  script = usage.completion(shell, VERBS)
  assert all(name in script for name in VERBS)
  assert all(flag.rstrip('*') in script for verb in VERBS.values() for flag in verb.flags)
  if shutil.which(shell):
    (tmp_path / 'script').write_text(script)
    done = subprocess.run([shell, '-n', 'script'], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not done.returncode and not done.stderr, done.stderr


def test_choices_belong_to_flags():
  assert set(usage._CHOICES) <= set(usage.FLAGS)


@pytest.mark.parametrize('shell', ['', 'powershell', 'bash zsh'])
def test_another_shell_is_refused(shell: str):
  with pytest.raises(InputError) as refusal:
    usage.completion(shell, VERBS)
  assert all(name in refusal.value.remedy for name in usage.SHELLS)


def test_without_shtab_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError) as refusal:
    usage.completion('bash', VERBS)
  assert 'shtab' in refusal.value.found and 'minilm_jax[completion]' in refusal.value.remedy
