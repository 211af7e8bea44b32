"""Prints the size and the import structure of the package in a checkout.

Usage: python tests/campaigns/structure.py [CHECKOUT]. Lines depend on the formatter; statements do
not, so they compare checkouts of different style.
"""

import ast
import collections
import functools
import pathlib
import sys

PACKAGE = 'minilm_jax'


def read_sources(folder: pathlib.Path, root: pathlib.Path) -> dict[str, str]:
  """Returns the source of each module by its dotted name; a package stands for its __init__."""
  return {
    '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix(
      '.__init__'
    ): path.read_text()
    for path in sorted(folder.rglob('*.py'))
  }


def find_imports(source: str, modules: set[str]) -> set[str]:
  """Returns the modules of the project that an import of this source executes at once."""
  nodes = []
  for node in ast.parse(source).body:
    nodes += ast.walk(node) if isinstance(node, (ast.If, ast.Try, ast.With)) else [node]
  names = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
  return names & modules


def find_reach(start: str, edges: dict[str, set[str]]) -> set[str]:
  """Returns the modules that importing `start` executes, itself included."""
  reached, waiting = set(), [start]
  while waiting:
    module = waiting.pop()
    if module not in reached:
      reached.add(module)
      waiting += edges[module]
  return reached


def count_statements(sources: dict[str, str]) -> int:
  """Returns the number of statements, docstrings left out."""
  nodes = [node for source in sources.values() for node in ast.walk(ast.parse(source))]
  docstrings = [n for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
  return sum(isinstance(node, ast.stmt) for node in nodes) - len(docstrings)


def main(root: pathlib.Path) -> None:
  sources = read_sources(root / PACKAGE, root)
  tests = read_sources(root / 'tests', root)
  lines = {module: source.count('\n') for module, source in sources.items()}
  edges = {m: find_imports(source, set(sources)) - {m, PACKAGE} for m, source in sources.items()}
  loop = next(m for m in sources if m.endswith(('training.pretrain', 'training.trainer')))
  reach = {module for module in find_reach(loop, edges) if lines[module] > 3}
  users = collections.Counter(module for imported in edges.values() for module in imported)
  entries = [p for p in (root / PACKAGE).iterdir() if p.name != '__pycache__']

  @functools.cache
  def level(module: str) -> int:
    return 1 + max((level(imported) for imported in edges[module]), default=0)

  total, test_lines = sum(lines.values()), sum(source.count('\n') for source in tests.values())
  print(f'entries at the root: {len(entries)}')
  print(f'modules: {len(sources)}; lines: {total:,}; statements: {count_statements(sources):,}')
  print(f'imported by one other module alone: {sum(n == 1 for n in users.values())}')
  print(f'levels of imports: {max(map(level, sources))}')
  print(f'reached from {loop}: {len(reach)} files, {sum(lines[m] for m in reach):,} lines')
  print(
    f'tests: {test_lines:,} lines, {test_lines / total:.2f} a source line; '
    f'statements: {count_statements(tests):,}'
  )


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else '.').resolve())
