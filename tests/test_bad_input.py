"""Every input that can be bad, in every way that it can be: a sentence in three parts and status 2,
or what is named.

Each cell is an input of `tests/input_cases.py` and a way of `tests/corruptions.py`, mostly with
several examples. A reader gives an InputError, or reads what the table calls harmless; the verb
ends with status 2, says so in three parts, no traceback among them, and leaves no file behind but
those that the input names. Memory stays below half of what a file pretends to hold. The last thing
printed is the table.
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
from tests.corruptions import WAYS
from tests.input_cases import Input

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS = {one.name: one for one in input_cases.list_inputs()}
# Rows that a fixture makes, by its name.
LATER = {
  'weights': (
    'checkpoint, folder',
    'checkpoint, config.json',
    'checkpoint, manifest.json',
    'checkpoint, tokenizer',
    'checkpoint, weights',
    'checkpoint, _METADATA',
  ),
  'members': (
    'classifier, folder',
    'classifier, manifest.json',
    'classifier, classifier.json',
    'classifier, tokenizer',
    'classifier, outputs.npz',
    'committee, folder',
    'committee, config.json',
    'committee, manifest.json',
  ),
  'dataset': ('TFDS, folder', 'TFDS, dataset_info.json', 'TFDS, features.json', 'TFDS, records'),
}
# Rows whose reader is still to be mended.
PENDING: dict[str, str] = {}
MADE_BY = {name: maker for maker, names in LATER.items() for name in names}
REFUSED, READ, EITHER, IMPOSSIBLE = '✗', '✓', '±', '·'
LEGEND = f'{REFUSED} refused with a sentence, {READ} read without harm, {EITHER} one or the other, {IMPOSSIBLE} no such way'
_FOLDER = 'its files have rows of their own'
_EVERY = 4  # of many hostile examples so many-th is tried, all of them with --all

# by input and way: the mark, and why it is not a refusal
Marks = dict[tuple[str, str], tuple[str, str]]


@pytest.fixture(scope='module')
def weights(tiny_run: pathlib.Path) -> dict[str, Input]:
  return {one.name: one for one in input_cases.run_with_weights(tiny_run)}


@pytest.fixture(scope='module')
def members(
  tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Input]:
  from minilm_jax.data import tokenizer
  from minilm_jax.tasks import committee
  from tests import fake_classifiers

  home, reads = (
    tmp_path_factory.mktemp('members'),
    tokenizer.load_tokenizer(tiny_corpus / 'tokenizer.model'),
  )
  for seed in range(2):
    fake_classifiers.save_classifier(
      home / f'classifier-{seed}', fake_classifiers.make_classifier(reads, seed)
    )
  committee.make_committee(f'{home}/classifier-*', home / 'made')
  return {one.name: one for one in input_cases.members(home)}


@pytest.fixture(scope='module')
def dataset(prepared: pathlib.Path) -> dict[str, Input]:
  return {one.name: one for one in input_cases.dataset(prepared)}


@pytest.fixture(scope='module')
def marks(request: pytest.FixtureRequest) -> Iterator[Marks]:
  """What came of each cell; printed when all have been tried."""
  found: Marks = {}
  yield found
  text = table(found)
  with request.config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
    print(f'\n{text}')


def table(found: Marks) -> str:
  """A line an input, a column a way."""
  names = list(dict.fromkeys(name for name, _ in found))
  width = max(map(len, names))
  lines = [' ' * width + ' ' + ' '.join(f'{way:>10}' for way in WAYS)]
  lines += [
    f'{name:<{width}} ' + ' '.join(f'{found.get((name, way), ("",))[0]:>10}' for way in WAYS)
    for name in names
  ]
  why: dict[str, list[str]] = {}
  for (name, way), (mark, reason) in found.items():
    if reason:
      why.setdefault(f'{mark} {way}: {reason}', []).append(name)
  return '\n'.join(
    [LEGEND, *lines, *(f'{reason} ({"; ".join(where)})' for reason, where in why.items())]
  )


def memory() -> int | None:
  """The most memory that this process has held since `forget`; None where nobody says."""
  with contextlib.suppress(OSError):
    found = re.search(r'VmHWM:\s+(\d+) kB', pathlib.Path('/proc/self/status').read_text())
    return int(found[1]) << 10 if found else None
  return None


def forget() -> None:
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5')


def contents(one: Input, way: str, good: bytes, every: bool) -> list[bytes]:
  """What is written instead of the good bytes."""
  if way == 'hostile':
    found = one.hostile(input_cases.inner(one, good))
    every = every or one.most < len(found)  # which are thinned later
    return [
      input_cases.packed(one, content)
      for content in (found if every or len(found) < 30 else found[::_EVERY])
    ]
  if way in ('UTF-16', 'Latin-1'):
    return [input_cases.packed(one, input_cases.inner(one, good).decode().encode(way.lower()))]
  return {
    'empty': lambda: [b''],
    'other type': lambda: [some for some in corruptions.OTHERS if not _is_packed(one, some)],
    'truncated': lambda: corruptions.truncated(good),
    'flipped': lambda: corruptions.flipped(good),
  }[way]()


def _is_packed(one: Input, content: bytes) -> bool:
  return one.packing == '.gz' and content.startswith(b'\x1f\x8b')


def spoil(one: Input, way: str, path: pathlib.Path, every: bool) -> Iterator[None]:
  """Spoils what has been laid out, in one example after another."""
  if way == 'missing':
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    yield
  elif way == 'swapped':
    input_cases.swapped(path)
    yield
  elif path.is_dir():
    for inside in path.iterdir():
      shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    yield
  elif way == 'huge':
    if one.packing:
      path.write_bytes(corruptions.zeros(one.packing, corruptions.HUGE))
      yield
    else:
      corruptions.sparse(path, path.read_bytes()[:20])
      yield
  else:
    found = contents(one, way, path.read_bytes(), every)
    # evenly, where they are too many
    for content in found if every else found[:: max(1, -(-len(found) // one.most))]:
      (one.write if way == 'hostile' else pathlib.Path.write_bytes)(path, content)
      yield


def check_verb(
  one: Input, path: pathlib.Path, work: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
  """The verb is refused in three parts, and leaves nothing."""
  before = sorted(path.parent.rglob('*')) if path.parent.exists() else []
  capfd.readouterr()
  status = main.main(one.verb(path, work))
  out, err = capfd.readouterr()
  assert status == 2 and not out, (status, out)
  assert re.search(r'(^|\n)asked: .+\nfound: .+\nto do: .+\n$', err) and 'Traceback' not in err, err
  left = {inside.name for inside in work.iterdir()} if work.exists() else set()
  assert left <= set(one.leaves) and (left or not work.exists()), f'left behind: {left}'
  assert (sorted(path.parent.rglob('*')) if path.parent.exists() else []) == before, (
    'something came beside the input'
  )
  shutil.rmtree(work, ignore_errors=True)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', [*INPUTS, *MADE_BY])
def test_bad_input_is_refused(
  name: str,
  way: str,
  marks: Marks,
  tmp_path: pathlib.Path,
  capfd: pytest.CaptureFixture[str],
  monkeypatch: pytest.MonkeyPatch,
  request: pytest.FixtureRequest,
):
  monkeypatch.chdir(ROOT)
  if name in PENDING:
    request.node.add_marker(pytest.mark.xfail(reason=PENDING[name], strict=False))
  one = INPUTS[name] if name in INPUTS else request.getfixturevalue(MADE_BY[name])[name]
  cell(one, way, marks, tmp_path, capfd, request.config.getoption('--all'))


def cell(
  one: Input,
  way: str,
  marks: Marks,
  tmp_path: pathlib.Path,
  capfd: pytest.CaptureFixture[str],
  every: bool,
) -> None:
  """Tries one cell and marks it."""
  (tmp_path / 'in').mkdir()
  path, work, seen = one.lay(tmp_path / 'in'), tmp_path / 'work', set()
  if way in one.impossible or path.is_dir() and way not in ('missing', 'empty', 'swapped'):
    marks[one.name, way] = IMPOSSIBLE, one.impossible[way] if way in one.impossible else _FOLDER
    pytest.skip(marks[one.name, way][1])
  forget()
  before = memory()
  for number, _ in enumerate(spoil(one, way, path, every)):
    try:
      one.read(path)
      read = True
    except InputError as error:
      assert error.asked and error.found and error.remedy, error
      read = False
    if one.verb and (not read and REFUSED not in seen or read and way not in one.harmless):
      check_verb(one, path, work, capfd)
      read = False
    seen.add(READ if read else REFUSED)
    assert not read or way in one.harmless, (
      f'example {number} was read: {path.read_bytes()[:200] if path.is_file() else path}'
    )
  if way == 'huge' and before:
    assert memory() - before < corruptions.HUGE // 2
  marks[one.name, way] = (
    EITHER if len(seen) == 2 else min(seen),
    one.harmless[way] if READ in seen else '',
  )


ARGUMENTS = {
  'missing': [
    ['report', '--logged'],
    ['show', '--config'],
    ['corpus', '--workdir'],
    ['evaluate', '--checkpoint'],
  ],
  'empty': [
    ['show', '--config='],
    ['evaluate', '--checkpoint='],
    ['report', '', '--workdir=W'],
    [''],
  ],
  'swapped': [
    ['show', '--config=FOLDER'],
    ['report', 'FILE', '--workdir=W'],
    ['report', '--logged=FOLDER', '--workdir=W'],
    ['predict', '--classifier=FILE', '--text=a'],
    ['report', '--logged=FILE', '--workdir=FILE'],
  ],
  'other type': [
    ['report', 'FOLDER', '--bootstrap_samples=many'],
    ['report', 'FOLDER', '--bootstrap_samples=1.5'],
    ['report', 'FOLDER', '--confusion=7'],
    ['sweep', '--config=configs/paper1_grids.py', '--seconds=soon'],
  ],
  'truncated': [
    ['repor'],
    ['report', 'FOLDER', '--draw=5'],
    ['show', '--config=configs/tiny'],
    ['show', '-'],
  ],
  'flipped': [
    ['report', 'FOLDER', '--drbws=5'],
    ['sepcrt', 'FOLDER'],
    ['show', '--config=configs/tiny.qy'],
  ],
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


@pytest.mark.parametrize('way', WAYS)
def test_bad_flags_are_refused(
  way: str,
  marks: Marks,
  tmp_path: pathlib.Path,
  capfd: pytest.CaptureFixture[str],
  monkeypatch: pytest.MonkeyPatch,
):
  monkeypatch.chdir(ROOT)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_text('a file')
  for words in ARGUMENTS[way]:
    given = [
      word.replace('FOLDER', str(tmp_path / 'folder'))
      .replace('FILE', str(tmp_path / 'file'))
      .replace('=W', f'={tmp_path / "work"}')
      for word in words
    ]
    capfd.readouterr()
    status = main.main(given)
    out, err = capfd.readouterr()
    assert status == 2 and not out and re.fullmatch(r'asked: .+\nfound: .+\nto do: .+\n', err), (
      given,
      err,
    )
    assert len(err) < 10_000 and '\x1b' not in err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']
  marks['flags', way] = REFUSED, ''
