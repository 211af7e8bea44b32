"""Applies every corruption to every input: refused with an error in three parts, or harmless.

A cell is an input of `tests/input_cases.py` with a corruption of `tests/corruptions.py`, mostly with
several examples. The reader must raise InputError, or read an example that the table lists as
harmless. The command must exit with status 2, print the three parts without a traceback, and leave
no files. Memory must stay below half of the apparent size of a huge file.
"""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterator

import pytest

from minilm_jax.cli import main
from minilm_jax.core.errors import InputError
from tests import corruptions, input_cases
from tests.corruptions import PACK, UNPACK, WAYS
from tests.input_cases import Input

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS = {case.name: case for case in input_cases.list_inputs()}
# The fixture of each input that needs one, by name.
FIXTURES = {
  f'{kind}, {part}': fixture
  for fixture, kind, parts in (
    (
      'checkpoint_inputs',
      'checkpoint',
      'folder config.json manifest.json tokenizer weights _METADATA',
    ),
    (
      'classifier_inputs',
      'classifier',
      'folder manifest.json classifier.json tokenizer outputs.npz',
    ),
    ('classifier_inputs', 'committee', 'folder config.json manifest.json'),
    ('dataset_inputs', 'TFDS', 'folder dataset_info.json features.json records'),
  )
  for part in parts.split()
}
pytestmark = pytest.mark.usefixtures('few_microworld_examples')
_HOSTILE_STRIDE = 4  # one of this many hostile examples is tried; --all tries all


@pytest.fixture(scope='module')
def checkpoint_inputs(tiny_run: pathlib.Path) -> dict[str, Input]:
  return {case.name: case for case in input_cases.list_checkpoint_inputs(tiny_run)}


@pytest.fixture(scope='module')
def classifier_inputs(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
  from minilm_jax.tasks import committee
  from tests import fake_classifiers

  root = tmp_path_factory.mktemp('members')
  for seed in range(2):
    fake_classifiers.save_classifier(
      root / f'classifier-{seed}', fake_classifiers.make_classifier(tiny_tokenizer, seed)
    )
  committee.make_committee(f'{root}/classifier-*', root / 'committee')
  return {case.name: case for case in input_cases.list_classifier_inputs(root)}


@pytest.fixture(scope='module')
def dataset_inputs(tfds_folder: pathlib.Path) -> dict[str, Input]:
  return {case.name: case for case in input_cases.list_dataset_inputs(tfds_folder)}


def read_peak_memory() -> int | None:
  """Returns the peak memory in bytes since `reset_peak_memory`, or None without /proc."""
  with contextlib.suppress(OSError):
    match = re.search(r'VmHWM:\s+(\d+) kB', pathlib.Path('/proc/self/status').read_text())
    return int(match[1]) << 10 if match else None
  return None


def reset_peak_memory() -> None:
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5')


def list_contents(case: Input, way: str, valid: bytes, try_all: bool) -> list[bytes]:
  """Returns the corrupted contents of a file."""
  if way == 'hostile':
    contents = case.hostile(UNPACK[case.packing](valid))
    # `corrupt` thins them further for slow readers.
    use_all = try_all or case.max_examples < len(contents) or len(contents) < 30
    selected = contents if use_all else contents[::_HOSTILE_STRIDE]
    return [PACK[case.packing](content) for content in selected]
  if way in ('UTF-16', 'Latin-1'):
    text = UNPACK[case.packing](valid).decode()
    return [PACK[case.packing](text.encode(way.lower()))]
  if way == 'other type':
    formats = corruptions.OTHER_FORMATS
    return [data for data in formats if case.packing != '.gz' or data[:2] != b'\x1f\x8b']
  return {'empty': lambda content: [b''], 'truncated': corruptions.truncate}.get(
    way, corruptions.flip_bits
  )(valid)


def corrupt(case: Input, way: str, path: pathlib.Path, try_all: bool) -> Iterator[None]:
  """Corrupts a valid input on disk; yields after each example."""
  if way == 'missing':
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    yield
  elif way == 'swapped':
    input_cases.swap_type(path)
    yield
  elif path.is_dir():
    for item in path.iterdir():
      shutil.rmtree(item) if item.is_dir() else item.unlink()
    yield
  elif way == 'huge':
    if case.packing:
      path.write_bytes(corruptions.make_zeros(case.packing, corruptions.HUGE))
    else:
      corruptions.write_sparse_file(path, path.read_bytes()[:20])
    yield
  else:
    contents = list_contents(case, way, path.read_bytes(), try_all)
    stride = 1 if try_all else max(1, -(-len(contents) // case.max_examples))
    for content in contents[::stride]:
      (case.write if way == 'hostile' else pathlib.Path.write_bytes)(path, content)
      yield


def check_command(
  case: Input, path: pathlib.Path, workdir: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
  """Checks that the command is refused in three parts and leaves no files."""
  old_files = sorted(path.parent.rglob('*')) if path.parent.exists() else []
  capfd.readouterr()
  status = main.main(case.command(path, workdir))
  out, err = capfd.readouterr()
  assert status == 2 and not out, (status, out)
  assert re.search(r'(^|\n)asked: .+\nfound: .+\nto do: .+\n$', err) and 'Traceback' not in err, err
  assert not workdir.exists(), f'the command left {list(workdir.iterdir())}'
  assert (sorted(path.parent.rglob('*')) if path.parent.exists() else []) == old_files, (
    'the command left files next to the input'
  )


@pytest.mark.parametrize(
  'name, way',
  [
    (name, way)
    for name in (*INPUTS, *FIXTURES)
    # The files of a folder are separate inputs.
    for way in (('missing', 'empty', 'swapped') if name.endswith(', folder') else WAYS)
  ],
)
def test_bad_input_is_refused(
  name: str,
  way: str,
  tmp_path: pathlib.Path,
  capfd: pytest.CaptureFixture[str],
  monkeypatch: pytest.MonkeyPatch,
  request: pytest.FixtureRequest,
):
  monkeypatch.chdir(ROOT)
  case = INPUTS[name] if name in INPUTS else request.getfixturevalue(FIXTURES[name])[name]
  if way in case.impossible:
    pytest.skip(case.impossible[way])
  (tmp_path / 'in').mkdir()
  path, workdir, is_refused = case.create(tmp_path / 'in'), tmp_path / 'work', False
  try_all = request.config.getoption('--all')
  reset_peak_memory()
  start_memory = read_peak_memory()
  for number, _ in enumerate(corrupt(case, way, path, try_all)):
    try:
      case.read(path)
      is_read = True
    except InputError as error:
      assert error.asked and error.found and error.remedy, error
      is_read = False
    needs_command = way not in case.harmless if is_read else not is_refused
    if case.command and needs_command:
      check_command(case, path, workdir, capfd)
      is_read = False
    is_refused |= not is_read
    assert not is_read or way in case.harmless, (
      f'example {number} was read: {path.read_bytes()[:200] if path.is_file() else path}'
    )
  if way == 'huge' and start_memory:
    assert read_peak_memory() - start_memory < corruptions.HUGE // 2


# tests/cli/test_main.py has missing and misspelt commands, flags, values and recipes.
ARGUMENTS = {
  'empty': [['report', '', '--workdir=W'], ['']],
  'swapped': [
    ['report', 'FILE', '--workdir=W'],
    ['report', '--logged=FILE', '--workdir=FILE'],
    ['predict', '--classifier=FILE', '--text=a'],
  ],
  'truncated': [['show', '-']],
  'UTF-16': [
    ['show', '--config=\udcff\udcfec'],
    ['fill-mask', '--checkpoint=FOLDER', '--text=\udcff\udcfe<mask>'],
  ],
  'Latin-1': [
    ['report', 'gr\udcf6sse', '--workdir=W'],
    ['corpus', '--config=configs/tiny.py:corpus', '--workdir=\udcf6'],
  ],
  'huge': [
    ['show', '--config=configs/tiny.py', '--config.model.hidden_size=1000000000000'],
    ['report', 'FOLDER', f'--bootstrap_samples={"9" * 5000}'],
    ['fill-mask', '--checkpoint=FOLDER', '--text=<mask>', f'--best={"9" * 30}'],
    ['report', 'a' * 100_000, '--workdir=W'],
    ['x' * 100_000],
    ['show', f'--config={"../" * 9999}x.py'],
    ['report', 'FOLDER', '--bootstrap_samples=1000000000', '--workdir=W'],
  ],
  'hostile': [
    ['report', 'a\0b', '--workdir=W'],
    ['report', '%s%n{0.__class__}', '--workdir=W'],
    ['show', '--config=/dev/zero'],
    ['report', 'FOLDER', '--bootstrap_samples=-1', '--workdir=W'],
    ['report', '--logged=/dev/zero', '--workdir=W'],
    ['show', '--config=configs/tiny.py:../../etc'],
    ['evaluate', '--checkpoint=../../../etc/passwd'],
    ['show', '--config=configs/tiny.py', '--config.seed=1e999'],
    ['\x1b[2J'],
    ['bench', '--config=configs/tiny.py', f'--population={"9" * 5000}'],
    [
      'corpus',
      '--config=configs/tiny.py:corpus',
      '--config.documents.sources=/dev/zero',
      '--workdir=W',
    ],
  ],
}


@pytest.mark.parametrize('way', ARGUMENTS)
def test_bad_flags_are_refused(
  way: str,
  tmp_path: pathlib.Path,
  capfd: pytest.CaptureFixture[str],
  monkeypatch: pytest.MonkeyPatch,
):
  monkeypatch.chdir(ROOT)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_text('a file')
  for words in ARGUMENTS[way]:
    arguments = [
      word.replace('FOLDER', str(tmp_path / 'folder'))
      .replace('FILE', str(tmp_path / 'file'))
      .replace('=W', f'={tmp_path / "work"}')
      for word in words
    ]
    capfd.readouterr()
    status = main.main(arguments)
    out, err = capfd.readouterr()
    assert status == 2 and not out and re.fullmatch(r'asked: .+\nfound: .+\nto do: .+\n', err), (
      arguments,
      err,
    )
    assert len(err) < 10_000 and '\x1b' not in err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']
