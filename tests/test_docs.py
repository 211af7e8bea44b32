"""The README, the guide and the findings: commands parse, quick commands and the notebook run."""

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


def run_commands(page: pathlib.Path) -> None:
  """Runs the quick commands of a page with fewer updates."""
  for program, *words in find_commands(page, quick=True):
    assert program == 'minilm'
    words = [word.replace('num_steps=100', 'num_steps=20') for word in words]
    assert main.main(words) == 0, words


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder in which the quick commands of the README have run.

  The corpus has a fifth of the documents; pre-training has a tenth of the updates and one device.
  """
  folder = tmp_path_factory.mktemp('docs')
  shutil.copytree(ROOT / 'configs', folder / 'configs')
  tiny = folder / 'configs' / 'tiny.py'
  recipe = tiny.read_text(encoding='utf-8')
  for setting, shorter in (
    ('microworld:4000', 'microworld:800'),
    ('config.num_steps = 600', 'config.num_steps = 60\n  config.mesh.data = 1'),
    ('every = 100', 'every = 20'),
  ):
    assert setting in recipe
    recipe = recipe.replace(setting, shorter)
  tiny.write_text(recipe, encoding='utf-8')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    run_commands(ROOT / 'README.md')
  assert (folder / 'runs' / 'report' / 'report.html').exists()
  return folder


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
  page: pathlib.Path, workspace: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.chdir(workspace)
  run_commands(page)


def test_the_notebook_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  nbformat = pytest.importorskip('nbformat', reason='needs nbclient, which is of the extra [test]')
  nbclient = pytest.importorskip('nbclient', reason='needs nbclient, which is of the extra [test]')
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  notebook = nbformat.read(ROOT / 'docs' / 'guide' / 'notebook.ipynb', as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
  ).execute()
  assert (tmp_path / 'runs' / 'notebook' / 'report' / 'report.html').exists()
