"""The language of docstrings, comments, errors and pages: the rules that a program can check."""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = [
  ROOT / 'setup.py',
  *sorted(
    path for name in ('minilm_jax', 'configs', 'tests') for path in (ROOT / name).rglob('*.py')
  ),
]
SCRIPTS = [
  *sorted((ROOT / 'launch').iterdir()),
  *(ROOT / name for name in ('.ci/run', 'pyproject.toml', 'mkdocs.yml')),
]
PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md'))]
# A sentence that starts with one of these words names no subject; a colon follows an argument.
HEADS = re.compile(r'(who|whom|whose|what|where|which|how)\b(?!:)', re.I)
METAPHORS = re.compile(r'\b(rooms?|houses?|doors?|floors?|strangers?|mend(s|ed|ing)?)\b', re.I)


def split_sentences(text: str) -> list[str]:
  return [part for part in re.split(r'(?<=[.!?])\s+|\n\s*\n', text) if part]


def find_code_texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields line and text of each docstring and of each comment; adjacent comments are joined."""
  source = path.read_text(encoding='utf-8')
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
      text = ast.get_docstring(node)
      if text:
        yield getattr(node, 'lineno', 1), text
  comments = [
    (token.start[0], token.string.lstrip('#').strip())
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  ]
  yield from join_lines(comments)


def join_lines(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
  first = last = -1
  text = ''
  for line, part in lines:
    if text and line == last + 1:
      text, last = f'{text} {part}', line
      continue
    if text:
      yield first, text
    first = last = line
    text = part
  if text:
    yield first, text


def find_script_texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  lines = path.read_text(encoding='utf-8').splitlines()
  comments = [(i, line.lstrip('# ')) for i, line in enumerate(lines, 1) if re.match(r'\s*# ', line)]
  yield from join_lines(comments)


def find_page_texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields the paragraphs, list items and table cells of a page, without code."""
  text = re.sub(r'^```.*?^```$', '', path.read_text(encoding='utf-8'), flags=re.M | re.S)
  for block in re.split(r'\n\s*\n|\n(?=[-|#])', text):
    for cell in block.split(' | '):
      yield 0, re.sub(r'[*#|]+|^- |^\d+\. ', ' ', cell).strip()


def find_texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  if path.suffix == '.py':
    return find_code_texts(path)
  return find_page_texts(path) if path.suffix == '.md' else find_script_texts(path)


@pytest.mark.parametrize('folder', ['minilm_jax', 'configs', 'tests', 'launch', 'docs'])
def test_sentences_name_their_subject_and_use_no_metaphor(folder: str):
  files = [path for path in [*CODE, *SCRIPTS, *PAGES] if folder in path.relative_to(ROOT).parts]
  assert len(files) > 10
  faults = [
    f'{path.relative_to(ROOT)}:{line}: {sentence[:80]}'
    for path in files
    for line, text in find_texts(path)
    for sentence in split_sentences(text)
    if HEADS.match(sentence) or METAPHORS.search(sentence)
  ]
  assert not faults, '\n'.join(faults)


@pytest.mark.parametrize(
  'path',
  [path for path in [*CODE, *SCRIPTS, *PAGES] if path.parent in (ROOT, ROOT / '.ci')],
  ids=lambda path: path.name,
)
def test_files_at_the_root_name_their_subjects(path: pathlib.Path):
  texts = [sentence for _, text in find_texts(path) for sentence in split_sentences(text)]
  assert not [text for text in texts if HEADS.match(text) or METAPHORS.search(text)]


def test_errors_use_no_metaphor():
  faults = []
  for path in (path for path in CODE if 'minilm_jax' in path.relative_to(ROOT).parts):
    for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'InputError':
        texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
        faults += [f'{path}:{call.lineno}: {text}' for text in texts if METAPHORS.search(str(text))]
  assert not faults, '\n'.join(faults)


@pytest.mark.parametrize(
  ('text', 'is_fault'),
  [
    ('What a run holds.', True),
    ('Returns a run. Which run is chosen by its step.', True),
    ('Returns the run whose step is given.', False),
    ('Keeps strangers out.', True),
    ('Recommends a rate.', False),
  ],
)
def test_the_checks_find_faults(text: str, is_fault: bool):
  sentences = split_sentences(text)
  assert any(HEADS.match(s) or METAPHORS.search(s) for s in sentences) == is_fault
