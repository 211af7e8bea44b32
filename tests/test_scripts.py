"""Shell scripts are valid bash, quote arguments and take lowest versions from setup.py."""

import ast
import itertools
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


def run_checker(*command: str) -> str:
  """Returns the output of a command, or its status if it fails silently."""
  if not shutil.which(command[0]):
    pytest.skip(f'{command[0]} is not installed')
  result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
  output = f'{result.stdout}{result.stderr}'.strip()
  return output or ('' if result.returncode == 0 else f'status {result.returncode}')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_bash_parses_a_script(script: pathlib.Path):
  assert run_checker('bash', '-n', str(script)) == ''


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_reports_no_problem(script: pathlib.Path):
  options = ('--shell=bash', '--external-sources', '--source-path=SCRIPTDIR')
  assert run_checker('shellcheck', *options, str(script)) == ''


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_arguments_are_quoted_and_errors_end_a_script(script: pathlib.Path):
  code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith('#')]
  for line in code:
    assert not re.search(r'(?<!")\$[@*]|\beval\b', line), line
  assert script.name == 'environment.sh' or 'set -euo pipefail' in code


def test_lowest_versions_are_the_lower_bounds_of_setup():
  program = re.search(
    r"<<'PYTHON'\n(.+?)\nPYTHON\n", (ROOT / 'launch' / 'lowest.sh').read_text(), re.S
  )[1]
  result = subprocess.run(
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
  options = {
    k.arg: ast.literal_eval(k.value)
    for k in call.keywords
    if k.arg in ('install_requires', 'extras_require')
  }
  groups = (options['install_requires'], *options['extras_require'].values())
  expected = {
    re.sub(r'\[.*?\]', '', requirement.partition(';')[0]).replace('>=', '==')
    for requirement in itertools.chain(*groups)
    if '>=' in requirement and '<' not in requirement
  }
  assert set(result.stdout.split()) == expected
  assert 'numpy==2.0' in expected and len(expected) > 20
  assert all('>=' in requirement for requirement in options['install_requires'])
