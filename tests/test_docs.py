"""The README, the guide and the findings: commands parse, quick commands and the notebook run."""

import os
import pathlib
import re
import shlex
import shutil

import pytest

from minilm_jax.cli import commands, main
from tests.docstring_commands import parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
BLOCK = re.compile(r'^(<!-- quick -->\n)?```sh\n(.*?)^```$', re.M | re.S)
BRACKETS = re.compile(r'\[.+?\]\((?!https?:)([^)#]+)')
NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}


def find_commands(page: pathlib.Path, quick: bool = False) -> list[list[str]]:
  """Returns the words of each command in the `sh` blocks of a page, or in its quick blocks."""
  text = page.read_text(encoding='utf-8')
  blocks = [code for mark, code in BLOCK.findall(text) if mark or not quick]
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  return [words for line in lines if (words := shlex.split(line, comments=True))]


def shorten(text: str, *changes: tuple[str, str]) -> str:
  """Replaces settings, each of which must occur."""
  for setting, shorter in changes:
    assert setting in text
    text = text.replace(setting, shorter)
  return text


def run_commands(page: pathlib.Path, done: set[tuple[str, ...]]) -> None:
  """Runs the quick commands of a page with fewer updates, except commands that are done."""
  for program, *words in find_commands(page, quick=True):
    assert program == 'minilm'
    words = [word.replace('num_steps=100', 'num_steps=4') for word in words]
    key = tuple(sorted(words))
    if key not in done:
      assert main.main(words) == 0, words
      done.add(key)


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, set]:
  """A folder in which the quick commands of the README have run, and these commands.

  The corpus has a fifth of the documents. Pre-training has one block, one device and a fiftieth of
  the updates; fine-tuning has two seeds and one epoch.
  """
  folder = tmp_path_factory.mktemp('docs')
  shutil.copytree(ROOT / 'configs', folder / 'configs')
  recipes = {
    'tiny.py': (
      ('microworld:4000', 'microworld:800'),
      ("packing='tokens')", "packing='tokens')\n  config.workers = 1"),
      ('config.num_steps = 600', 'config.num_steps = 12\n  config.mesh.data = 1'),
      ('num_layers=2', 'num_layers=1'),
      ('every = 100', 'every = 4'),
      ('every=100', 'every=4'),
      ('every = 20', 'every = 4'),
    ),
    'examples/own_task.py': (('epochs = 10.0', "epochs = 1.0\n  config.seeds = '0,1'"),),
  }
  for name, changes in recipes.items():
    recipe = folder / 'configs' / name
    text = shorten(recipe.read_text(encoding='utf-8'), *changes)
    recipe.write_text(text, encoding='utf-8')
  done = set()
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    run_commands(ROOT / 'README.md', done)
  assert (folder / 'runs' / 'report' / 'report.html').exists()
  return folder, done


@pytest.mark.parametrize('page', PAGES, ids=NAMES.get)
def test_commands_parse(page: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.chdir(ROOT)
  for program, *words in find_commands(page):
    if program == 'minilm':
      parse(words[0], words[1:])
    elif program == 'bash':
      assert (ROOT / words[0]).is_file(), words
    else:
      assert program in ('pip', 'eval', 'tensorboard', 'kubectl', 'sbatch'), program


@pytest.mark.parametrize('page', PAGES, ids=NAMES.get)
def test_relative_links_name_files(page: pathlib.Path):
  for target in BRACKETS.findall(page.read_text(encoding='utf-8')):
    assert (page.parent / target).exists(), target


def test_the_guide_covers_every_command_and_the_readme_is_short():
  words = {words[1] for page in PAGES for words in find_commands(page) if words[0] == 'minilm'}
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert all(f'`{name}`' in readme for name in commands.COMMANDS)
  assert set(commands.COMMANDS) - words == {'completion', 'overlap-subsets'}
  assert len(readme.splitlines()) <= 120


@pytest.mark.parametrize(
  'page', [page for page in PAGES[1:] if find_commands(page, quick=True)], ids=NAMES.get
)
def test_quick_commands_run(
  page: pathlib.Path, workspace: tuple[pathlib.Path, set], monkeypatch: pytest.MonkeyPatch
):
  folder, done = workspace
  monkeypatch.chdir(folder)
  run_commands(page, done)


def test_the_notebook_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  nbformat = pytest.importorskip('nbformat', reason='needs nbclient, which is of the extra [test]')
  nbclient = pytest.importorskip('nbclient', reason='needs nbclient, which is of the extra [test]')
  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  monkeypatch.setenv('XLA_FLAGS', flags)
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  notebook = nbformat.read(ROOT / 'docs' / 'guide' / 'notebook.ipynb', as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  for setting, shorter in (
    ('microworld:4000', 'microworld:800'),
    ("'num_steps': 1000", "'num_steps': 50"),
    ("{'seeds': '0,1'}", "{'seeds': '0,1', 'epochs': 1, 'task.max_train_examples': 64}"),
  ):
    (cell,) = (cell for cell in code if setting in cell.source)
    cell.source = cell.source.replace(setting, shorter)
  nbclient.NotebookClient(
    notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
  ).execute()
  assert (tmp_path / 'runs' / 'notebook' / 'report' / 'report.html').exists()
