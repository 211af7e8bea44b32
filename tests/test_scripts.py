"""Shell scripts: they can be read by bash, quote what they are given, and take the lowest versions
from setup.py.
"""

import ast
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = [
  *sorted((ROOT / 'launch').glob('*.sh')),
  ROOT / 'launch' / 'slurm.sbatch',
  ROOT / '.ci' / 'run',
]


def said(*command: str) -> str:
  """What a command says, and whether it is content."""
  if not shutil.which(command[0]):
    pytest.skip(f'{command[0]} is not installed')
  done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
  return f'{done.stdout}{done.stderr}'.strip() or (
    '' if done.returncode == 0 else f'status {done.returncode}'
  )


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: pathlib.Path):
  assert said('bash', '-n', str(script)) == ''


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: pathlib.Path):
  assert (
    said('shellcheck', '--shell=bash', '--external-sources', '--source-path=SCRIPTDIR', str(script))
    == ''
  )


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_what_is_given_is_quoted(script: pathlib.Path):
  """Where there is no shellcheck too: arguments stand in quotes, none is run, and an error or a
  missing name ends it.
  """
  code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith('#')]
  for line in code:
    assert not re.search(r'(?<!")\$[@*]|\beval\b', line), line
  assert script.name == 'environment.sh' or 'set -euo pipefail' in code


def test_the_lowest_versions_are_those_of_setup():
  """`launch/lowest.sh` keeps no list of its own: each requirement of setup.py with a lower bound is
  pinned to it.
  """
  program = re.search(
    r"<<'PYTHON'\n(.+?)\nPYTHON\n", (ROOT / 'launch' / 'lowest.sh').read_text(), re.S
  )[1]
  done = subprocess.run(
    [sys.executable, '-', str(ROOT / 'setup.py')],
    input=program,
    capture_output=True,
    text=True,
    check=True,
  )
  call = next(
    node
    for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'setup'
  )
  lists = {
    k.arg: ast.literal_eval(k.value)
    for k in call.keywords
    if k.arg in ('install_requires', 'extras_require')
  }
  needs = [
    one for some in (lists['install_requires'], *lists['extras_require'].values()) for one in some
  ]
  wanted = {
    re.sub(r'\[.*?\]', '', need.partition(';')[0]).replace('>=', '==')
    for need in needs
    if '>=' in need and '<' not in need
  }
  assert set(done.stdout.split()) == wanted and 'numpy==2.0' in wanted and len(wanted) > 20
  assert all('>=' in need for need in lists['install_requires']), (
    'a requirement without a lower bound'
  )
