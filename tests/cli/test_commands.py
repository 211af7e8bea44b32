"""Commands: invalid exports and shell completion."""

import pathlib
import re
import shutil
import subprocess

import pytest

from minilm_jax.cli import commands, main
from minilm_jax.cli.commands import COMMANDS
from minilm_jax.core.errors import InputError
from tests.docstring_commands import parse

REFUSED = [
  ('--checkpoint=RUN --format=hff --workdir=W', "did you mean 'hf'"),
  ('--checkpoint=RUN --workdir=W', 'no --format'),
  ('--format=card --workdir=W', 'no --checkpoint'),
  ('--checkpoint=RUN --format=card', 'no --workdir'),
  ('--checkpoint=RUN --format=card --workdir=', 'an empty --workdir'),
  ('--checkpoint=RUN --format=card --workdir=W --batch=3', '--batch'),
  ('--checkpoint=RUN --format=stablehlo --workdir=W', 'RUN'),
  ('--checkpoint=RUN@5 --format=card --workdir=W', '4, 8'),
  ('--checkpoint=RUN@5 --format=stablehlo --workdir=W', '4, 8'),
  ('--checkpoint=EMPTY --format=card --workdir=W', 'config.json'),
  ('--checkpoint=NOTHING --format=stablehlo --workdir=W', 'NOTHING'),
  ('--checkpoint=CORPUS --format=stablehlo --workdir=W', "'corpus'"),
  ('--checkpoint=UNTRAINED --format=card --workdir=W', 'UNTRAINED'),
  ('--checkpoint=UNTRAINED --format=stablehlo --workdir=W', 'UNTRAINED'),
  ('--checkpoint=DAMAGED --format=card --workdir=W', 'step 8'),
  ('--checkpoint=RUN --format=card --workdir=FULL', 'FULL'),
  ('--checkpoint=RUN --format=card --workdir=gs://bucket/x', 'gs://bucket/x'),
]


@pytest.fixture(scope='module')
def folders(
  tiny_run: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
  root = tmp_path_factory.mktemp('exports')
  folders = {
    name: root / name.lower() for name in ('EMPTY', 'NOTHING', 'UNTRAINED', 'DAMAGED', 'FULL', 'W')
  }
  for name in ('EMPTY', 'FULL'):
    folders[name].mkdir()
  (folders['FULL'] / 'x').write_text('x')
  for name in ('UNTRAINED', 'DAMAGED'):
    shutil.copytree(tiny_run, folders[name])
  shutil.rmtree(folders['UNTRAINED'] / 'checkpoints')
  files = (folders['DAMAGED'] / 'checkpoints' / '8').rglob('*')
  largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-40])
  return {**folders, 'RUN': tiny_run, 'CORPUS': tiny_corpus}


@pytest.mark.parametrize('command, part', REFUSED, ids=[command for command, _ in REFUSED])
def test_an_invalid_export_is_refused_before_it_writes(
  command: str, part: str, folders: dict[str, pathlib.Path]
):
  root = folders['EMPTY'].parent
  files = sorted(root.rglob('*'))
  for name, path in folders.items():
    command = command.replace(f'={name}', f'={path}')
    part = part.replace(name, str(path))
  with pytest.raises(InputError, match=re.escape(part)):
    COMMANDS['export'].run(*parse('export', command.split()))
  assert sorted(root.rglob('*')) == files


def test_a_card_is_written(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  assert (
    main.main(
      ['export', f'--checkpoint={tiny_run}@4', '--format=card', f'--workdir={tmp_path}/card']
    )
    == 0
  )
  out, err = capsys.readouterr()
  assert (
    '"to": "card"' in out
    and not err
    and 'step 4 of 8' in (tmp_path / 'card' / 'README.md').read_text()
  )


pytest.importorskip('shtab', reason='needs shtab, which is of the extra [completion]')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a folder with the bash script and files to complete."""
  if not shutil.which('bash'):
    pytest.skip('bash is not installed')
  root = tmp_path_factory.mktemp('completion')
  (root / 'minilm.bash').write_text(commands.complete_shell('bash'))
  (root / 'configs').mkdir()
  for name in ('configs/mine.py', 'configs/notes.txt', 'mine.py', 'minutes.txt'):
    (root / name).touch()
  return root


def complete_in_bash(folder: pathlib.Path, *words: str) -> list[str]:
  """Returns the completions of bash for the last word."""
  program = (
    '. ./minilm.bash\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
    'completer=$(complete -p minilm | grep -o "_[a-z_]*minilm")\n'
    '$completer minilm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"\n'
    '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"'
  )
  process = subprocess.run(
    ['bash', '--norc', '-c', program, 'bash', *words],
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not process.stderr
  return sorted(process.stdout.splitlines())


@pytest.mark.parametrize(
  'words, offers',
  [
    (('',), sorted([*COMMANDS, 'help'])),
    (('pre',), ['predict', 'preflight', 'pretrain']),
    (('extract-member', '--'), ['--checkpoint', '--help', '--member', '--trust', '--workdir']),
    (('show', '--config', 'x', '--j'), ['--json']),
    (('completion', ''), sorted(commands.SHELLS)),
    (('help', 'qui'), ['quickstart']),
    (('pretrain', '--config', 'mi'), ['mine.py']),
    (('pretrain', '--config', 'configs/'), ['configs/mine.py']),
    (('pretrain', '--workdir', 'minu'), ['minutes.txt']),
    (('quickstart', '--language', 'm'), ['microworld']),
    (('report', 'conf'), ['configs']),
  ],
)
def test_bash_completes(words: tuple[str, ...], offers: list[str], folder: pathlib.Path):
  assert complete_in_bash(folder, 'minilm', *words) == offers


@pytest.mark.parametrize('shell', commands.SHELLS)
def test_the_script_of_a_shell_is_valid_and_complete(shell: str, tmp_path: pathlib.Path):
  script = commands.complete_shell(shell)
  assert all(name in script for name in COMMANDS)
  assert all(flag.rstrip('*') in script for command in COMMANDS.values() for flag in command.flags)
  if shutil.which(shell):
    (tmp_path / 'script').write_text(script)
    process = subprocess.run(
      [shell, '-n', 'script'], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not process.returncode and not process.stderr, process.stderr


@pytest.mark.parametrize('shell', ['', 'powershell', 'bash zsh'])
def test_an_unknown_shell_is_refused(shell: str):
  with pytest.raises(InputError) as refusal:
    commands.complete_shell(shell)
  assert all(name in refusal.value.remedy for name in commands.SHELLS)


def test_a_missing_shtab_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError) as refusal:
    commands.complete_shell('bash')
  assert 'shtab' in refusal.value.found and 'minilm_jax[completion]' in refusal.value.remedy


def test_helps_have_a_space_after_each_flag_and_name_the_default():
  text = commands.format_command('watch')
  assert '--split' in text and 'train, the default, or validation\n' in f'{text}\n'
  for name in COMMANDS:
    for line in commands.format_command(name).splitlines():
      if line.startswith('  --'):
        assert re.match(r'  --[a-z_]+ +[a-zA-Z"-]', line), line
