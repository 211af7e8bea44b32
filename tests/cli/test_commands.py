"""The commands: exports that are refused, and completion in a shell."""

import pathlib
import re
import shutil
import subprocess

import pytest

from minilm_jax.cli import commands, flags, main
from minilm_jax.cli.commands import COMMANDS
from minilm_jax.core.errors import InputError

REFUSED = [
  ('--checkpoint=RUN --format=hff --workdir=W', "did you mean 'hf'"),
  ('--checkpoint=RUN --workdir=W', 'no --format'),
  ('--format=card --workdir=W', 'no --checkpoint'),
  ('--checkpoint=RUN --format=card', 'no --workdir'),
  ('--checkpoint=RUN --format=card --workdir=W --batch=3', '--batch'),
  ('--checkpoint=RUN --format=stablehlo --workdir=W', 'RUN'),
  ('--checkpoint=RUN@5 --format=card --workdir=W', 'there are 4, 8'),
  ('--checkpoint=RUN@5 --format=stablehlo --workdir=W', 'there are 4, 8'),
  ('--checkpoint=EMPTY --format=card --workdir=W', 'config.json'),
  ('--checkpoint=NOTHING --format=stablehlo --workdir=W', 'NOTHING'),
  ('--checkpoint=CORPUS --format=stablehlo --workdir=W', "kind 'corpus'"),
  ('--checkpoint=YOUNG --format=card --workdir=W', 'YOUNG'),
  ('--checkpoint=YOUNG --format=stablehlo --workdir=W', 'YOUNG'),
  ('--checkpoint=DAMAGED --format=card --workdir=W', 'step 8'),
  ('--checkpoint=RUN --format=card --workdir=FULL', 'FULL'),
  ('--checkpoint=RUN --format=card --workdir=gs://bucket/x', 'gs://bucket/x'),
]


@pytest.fixture(scope='module')
def places(
  tiny_run: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
  home = tmp_path_factory.mktemp('exports')
  folders = {
    name: home / name.lower() for name in ('EMPTY', 'NOTHING', 'YOUNG', 'DAMAGED', 'FULL', 'W')
  }
  for name in ('EMPTY', 'FULL'):
    folders[name].mkdir()
  (folders['FULL'] / 'x').write_text('x')
  for name in ('YOUNG', 'DAMAGED'):
    shutil.copytree(tiny_run, folders[name])
  shutil.rmtree(folders['YOUNG'] / 'checkpoints')
  files = (folders['DAMAGED'] / 'checkpoints' / '8').rglob('*')
  largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-40])
  return {**folders, 'RUN': tiny_run, 'CORPUS': tiny_corpus}


@pytest.mark.parametrize('command, part', REFUSED, ids=[command for command, _ in REFUSED])
def test_an_invalid_export_is_refused(command: str, part: str, places: dict[str, pathlib.Path]):
  home = places['EMPTY'].parent
  files = sorted(home.rglob('*'))
  for name, place in places.items():
    command = command.replace(f'={name}', f'={place}')
    part = part.replace(name, str(place))
  export = COMMANDS['export']
  with pytest.raises(InputError, match=re.escape(part)):
    export.run(*flags.parse_arguments('export', export, command.split()))
  assert sorted(home.rglob('*')) == files


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
  """The script for bash, and a few files."""
  if not shutil.which('bash'):
    pytest.skip('bash is not installed')
  home = tmp_path_factory.mktemp('completion')
  (home / 'minilm.bash').write_text(commands.complete_shell('bash'))
  (home / 'configs').mkdir()
  for name in ('configs/mine.py', 'configs/notes.txt', 'mine.py', 'minutes.txt'):
    (home / name).touch()
  return home


def completed(folder: pathlib.Path, *words: str) -> list[str]:
  """What bash offers after these words, of which the last is being typed."""
  program = (
    '. ./minilm.bash\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
    'completer=$(complete -p minilm | grep -o "_[a-z_]*minilm")\n'
    '$completer minilm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"\n'
    '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"'
  )
  done = subprocess.run(
    ['bash', '--norc', '-c', program, 'bash', *words],
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.stderr
  return sorted(done.stdout.splitlines())


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
  assert completed(folder, 'minilm', *words) == offers


@pytest.mark.parametrize('shell', commands.SHELLS)
def test_every_shell_gets_every_verb_and_reads_its_script(shell: str, tmp_path: pathlib.Path):
  script = commands.complete_shell(shell)
  assert all(name in script for name in COMMANDS)
  assert all(flag.rstrip('*') in script for verb in COMMANDS.values() for flag in verb.flags)
  if shutil.which(shell):
    (tmp_path / 'script').write_text(script)
    done = subprocess.run(
      [shell, '-n', 'script'], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not done.returncode and not done.stderr, done.stderr


@pytest.mark.parametrize('shell', ['', 'powershell', 'bash zsh'])
def test_another_shell_is_refused(shell: str):
  with pytest.raises(InputError) as refusal:
    commands.complete_shell(shell)
  assert all(name in refusal.value.remedy for name in commands.SHELLS)


def test_without_shtab_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError) as refusal:
    commands.complete_shell('bash')
  assert 'shtab' in refusal.value.found and 'minilm_jax[completion]' in refusal.value.remedy
