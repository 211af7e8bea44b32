"""Checks the architecture of docs/design.md: layers of packages, no import cycles, banned calls.

Each check maps the source of a module to its violations. Snippets that break a rule test the check
of that rule. A violation names the line and the fix.
"""

import ast
import builtins
import collections
import dataclasses
import dis
import functools
import graphlib
import importlib
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = 'minilm_jax'

# A package imports only from packages of a lower layer. The root holds __init__ and __main__.
LAYERS = {
  'core': 1,
  'data': 2,
  'model': 3,
  'training': 4,
  'tasks': 5,
  'evaluation': 6,
  'bench': 6,
  'analysis.laws': 5,
  'analysis': 6,
  'analysis.paper2': 7,
  'analysis.report': 8,
  'interop': 7,
  'cli': 9,
  '': 10,
}
LIBRARIES = frozenset(
  'absl chex etils flax google jax jaxtyping matplotlib ml_collections numpy optax orbax plotext '
  'pyarrow rich scipy sentencepiece tensorboardX tensorflow_datasets zstandard'.split()
)
# Libraries of extras, by the package that may import them.
EXTRAS = {
  'data': ('apache_beam', 'tokenizers'),
  'training': ('wandb',),
  'bench': ('tokenizers', 'torch', 'transformers'),
  'interop': ('safetensors', 'tokenizers', 'torch', 'transformers'),
  'cli': ('shtab',),
}
FLAX_PACKAGES = ('model', 'training')
BANNED_NNX = frozenset(
  'jit grad value_and_grad vmap pmap scan remat cond switch while_loop fori_loop shard_map '
  'custom_vjp Optimizer ModelAndOptimizer'.split()
)
RECIPES = frozenset(('config', 'recipe', 'cfg', 'c'))
UNBOUNDED_READS = frozenset(('read_bytes', 'read_text'))
# Recipe files and custom encoders are code; core/recipe checks and runs both.
RUNS_CODE = frozenset(
  'eval exec __import__ import_module exec_module system popen run_path'.split()
)
CODE_MODULE = 'core.recipe'
UNSAFE_LOADS = {'yaml': ('load', 'unsafe_load', 'full_load'), 'torch': ('load',)}
PICKLES = frozenset('pickle cloudpickle dill marshal shelve joblib'.split())
VAGUE_NAMES = frozenset('utils util common helpers misc'.split())
TOP_LEVEL = frozenset(
  (
    'README.md CONTRIBUTING.md CITATION.cff LICENSE setup.py pyproject.toml mkdocs.yml .ci '
    '.gitignore configs docs launch tests'
  ).split()
  + [PACKAGE]
)
# Modules of commands and worker processes that must start without the import time of JAX.
WITHOUT_JAX = (
  'cli.main',
  'cli.watch',
  'data.build',
  'analysis.report.report',
  'analysis.report.compare',
)
MAX_MODULES, MAX_MODULE_IMPORTS, MAX_FUNCTION_LINES, MAX_PARAMETERS = 15, 15, 60, 7


@dataclasses.dataclass(frozen=True)
class Module:
  """A source file.

  Attributes:
    name: dotted name inside the package; a package has the name of its folder.
    source: text of the file.
    is_init: True for __init__.py.
  """

  name: str
  source: str
  is_init: bool = False

  @functools.cached_property
  def tree(self) -> ast.Module:
    return ast.parse(self.source)

  @property
  def package(self) -> str:
    return self.name if self.is_init else self.name.rpartition('.')[0]


def read_modules() -> dict[str, Module]:
  modules = {}
  for path in sorted((ROOT / PACKAGE).rglob('*.py')):
    parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
    is_init = parts[-1] == '__init__'
    name = '.'.join(parts[:-1] if is_init else parts)
    modules[name] = Module(name, path.read_text(encoding='utf-8'), is_init)
  return modules


MODULES = read_modules()


def list_imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
  """Yields line, module and name of every import; the name is '' for `import module`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name, '') for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      source = '.' * node.level + (node.module or '')
      yield from ((node.lineno, source, alias.name) for alias in node.names)


def resolve(source: str, name: str) -> str | None:
  """Returns the module of the package that an import reaches, or None outside the package."""
  if source.partition('.')[0] != PACKAGE:
    return None
  path = '.'.join(part for part in (source, name) if part).removeprefix(PACKAGE).removeprefix('.')
  while path and path not in MODULES and path not in LAYERS:
    path = path.rpartition('.')[0]
  return path


def get_package(name: str) -> str:
  return name if name in LAYERS else name.rpartition('.')[0]


def check_layers(module: Module) -> Iterator[str]:
  """Checks that imports reach lower layers or the same package."""
  for line, source, name in list_imports(module.tree):
    imported = resolve(source, name)
    if source.startswith('.'):
      yield f'line {line}: relative import: write the full name'
    elif imported is None or module.package == '' or name == '__version__':
      continue
    elif module.is_init:
      yield f'line {line}: an __init__ imports {imported}: import from its module where it is used'
    elif imported in LAYERS:
      yield f'line {line}: imports the package {imported}: import its modules'
    else:
      upper, lower = get_package(module.name), get_package(imported)
      if upper != lower and LAYERS[lower] >= LAYERS[upper]:
        layers = f'layer {LAYERS[upper]} imports {imported} of layer {LAYERS[lower]}'
        yield f'line {line}: {layers}: move the code down'


def check_libraries(module: Module) -> Iterator[str]:
  """Checks that imported libraries are requirements of setup.py."""
  for line, source, _ in list_imports(module.tree):
    top = source.partition('.')[0]
    if top in PICKLES:
      yield f'line {line}: {top}: nothing is unpickled; store JSON or .npy'
    elif top in EXTRAS.get(module.package, ()):
      continue
    elif top not in LIBRARIES | sys.stdlib_module_names | {'', PACKAGE}:
      yield f'line {line}: {top} is not among the libraries: add {top} to setup.py and LIBRARIES'
    elif top == 'flax' and module.package not in FLAX_PACKAGES:
      yield f'line {line}: flax outside {FLAX_PACKAGES}: modules are pytrees, use plain JAX'


def check_habits(module: Module) -> Iterator[str]:
  """Checks for nnx transforms, asserts, blanket excepts, `.get(` on recipes and repeated keys."""
  for node in ast.walk(module.tree):
    line = f'line {getattr(node, "lineno", 0)}'
    if isinstance(node, ast.Assert):
      yield f'{line}: assert: raise InputError, or another exception for an internal fault'
    elif isinstance(node, ast.ExceptHandler):
      kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
      # Names and calls that give a tuple of errors are not resolved.
      if any(k is None or getattr(k, 'id', '') in ('Exception', 'BaseException') for k in kinds):
        yield f'{line}: catches everything: name the expected errors'
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id == 'nnx' and node.attr in BANNED_NNX:
        yield f'{line}: nnx.{node.attr}: use the function of jax or optax'
    elif isinstance(node, ast.Dict):
      keys = collections.Counter(key.value for key in node.keys if isinstance(key, ast.Constant))
      yield from (
        f'{line}: {key!r} is repeated: the first value is lost' for key, n in keys.items() if n > 1
      )
    elif isinstance(node, ast.ImportFrom) and node.module == 'flax.nnx':
      yield f'{line}: names from flax.nnx: write `from flax import nnx`'
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      owner = getattr(node.func.value, 'id', getattr(node.func.value, 'attr', ''))
      if node.func.attr == 'get' and owner in RECIPES:
        yield f'{line}: .get( on a recipe: every field exists, read the attribute'
      if node.func.attr in UNBOUNDED_READS and module.package != 'core' and owner != 'files':
        yield f'{line}: {node.func.attr}: a file may have any size: call core/files, or stream it'


def check_safety(module: Module) -> Iterator[str]:
  """Checks that no data is unpickled or run as code, and that no command uses a shell."""
  for node in ast.walk(module.tree):
    if not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    owner = getattr(getattr(node.func, 'value', None), 'id', '')
    keywords = {k.arg: getattr(k.value, 'value', None) for k in node.keywords}
    # Methods of the same name, such as eval() of a PyTorch model, are allowed.
    is_method = (
      isinstance(node.func, ast.Attribute)
      and name in ('eval', 'exec', 'system')
      and owner not in ('builtins', 'os')
    )
    if name in RUNS_CODE and not is_method and module.name != CODE_MODULE:
      yield f'line {node.lineno}: {name}: runs code: parse data instead'
    if name in UNSAFE_LOADS.get(owner, ()):
      yield f'line {node.lineno}: {owner}.{name}: creates objects of any type: store JSON or .npy'
    if (owner in ('np', 'numpy') and name == 'load' or name == 'read_array') and (
      keywords.get('allow_pickle', True) is not False
    ):
      yield f'line {node.lineno}: {name} without allow_pickle=False: nothing is unpickled'
    if keywords.get('shell'):
      yield f'line {node.lineno}: shell=True: pass a list of words'


def check_functions(module: Module) -> Iterator[str]:
  """Checks that functions have at most 60 lines and 7 parameters, modules at most 15 imports."""
  imported = {resolve(source, name) for _, source, name in list_imports(module.tree)} - {None, ''}
  if len(imported) > MAX_MODULE_IMPORTS:
    yield f'imports {len(imported)} modules of the project, more than {MAX_MODULE_IMPORTS}'
  for node in ast.walk(module.tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      docstring = node.body[0] if ast.get_docstring(node) is not None else None
      size = node.end_lineno - node.lineno + 1
      size -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
      if size > MAX_FUNCTION_LINES:
        yield f'line {node.lineno}: {node.name} has {size} lines, more than {MAX_FUNCTION_LINES}'
      count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
      if count > MAX_PARAMETERS:
        yield f'line {node.lineno}: {node.name} has {count} parameters, more than {MAX_PARAMETERS}'


def check_docstrings(module: Module) -> Iterator[str]:
  """Checks that modules and their public functions and classes have docstrings."""
  if module.tree.body and not ast.get_docstring(module.tree):
    yield 'no docstring: add a summary of the module'
  for node in module.tree.body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      if not node.name.startswith('_') and not ast.get_docstring(node):
        yield f'line {node.lineno}: {node.name} has no docstring: add a summary, shapes and units'


CHECKS = (
  check_layers,
  check_libraries,
  check_habits,
  check_safety,
  check_functions,
  check_docstrings,
)


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
def test_the_package_has_no_violations(check: Callable[[Module], Iterator[str]]):
  violations = [
    f'{PACKAGE}.{name or "__init__"}, {text}'
    for name, module in MODULES.items()
    for text in check(module)
  ]
  assert not violations, '\n' + '\n'.join(violations)


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
  """Returns the modules of one import cycle, or an empty list."""
  try:
    graphlib.TopologicalSorter(edges).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def test_imports_have_no_cycles():
  edges = {
    name: {resolve(source, imported) for _, source, imported in list_imports(module.tree)}
    - {None, ''}
    for name, module in MODULES.items()
    if name
  }
  assert not find_cycle(edges), ' <- '.join(find_cycle(edges))


def test_cycles_are_found():
  assert find_cycle({'a': {'b'}, 'b': {'c'}, 'c': {'a'}}) and not find_cycle(
    {'a': {'b'}, 'b': {'c'}}
  )


def test_the_tree_has_the_packages_of_the_design():
  packages = {name for name, module in MODULES.items() if module.is_init}
  assert packages == set(LAYERS)
  entries = {path.name for path in (ROOT / PACKAGE).iterdir() if path.name != '__pycache__'}
  assert entries == {name for name in LAYERS if name and '.' not in name} | {
    '__init__.py',
    '__main__.py',
  }
  sizes = collections.Counter(
    get_package(name) for name, module in MODULES.items() if not module.is_init
  )
  assert max(sizes.values()) <= MAX_MODULES, sizes.most_common(3)


@pytest.mark.parametrize(
  'check, name, source, violation',
  [
    (
      check_layers,
      'core.rng',
      'def f():\n  from minilm_jax.training import pretrain',
      'move the code down',
    ),
    (check_layers, 'bench.timing', 'from minilm_jax.analysis import runs', 'move the code down'),
    (
      check_layers,
      'analysis.scores',
      'from minilm_jax.analysis.report import html',
      'move the code down',
    ),
    (check_layers, 'model.encoder', 'from minilm_jax.data import corpus', None),
    (check_layers, 'training.pretrain', 'from minilm_jax.training.masking import mask', None),
    (check_layers, 'tasks', 'from minilm_jax.tasks import task', '__init__'),
    (check_layers, 'cli.main', 'from minilm_jax import core', 'import its modules'),
    (check_layers, 'core.rng', 'from . import files', 'relative'),
    (check_libraries, 'bench.timing', 'import pandas as pd', 'not among the libraries'),
    (check_libraries, 'core.rng', 'def f():\n  import torch', 'not among the libraries'),
    (check_libraries, 'bench.timing', 'import torch', None),
    (check_libraries, 'core.files', 'import pickle', 'unpickled'),
    (check_libraries, 'tasks.finetune', 'from flax import nnx', 'flax outside'),
    (check_libraries, 'model.encoder', 'from flax import nnx', None),
    (check_habits, 'model.encoder', 'f = nnx.jit(g)', 'of jax'),
    (check_habits, 'core.files', 'assert x', 'assert'),
    (check_habits, 'cli.flags', 'x = {"size": 1, "wait": 2, "size": 3}', "'size' is repeated"),
    (
      check_habits,
      'core.files',
      'try:\n  f()\nexcept (OSError, Exception):\n  pass',
      'catches everything',
    ),
    (check_habits, 'core.files', 'try:\n  f()\nexcept:\n  pass', 'catches everything'),
    (check_habits, 'core.files', 'try:\n  f()\nexcept OSError:\n  pass', None),
    (check_habits, 'bench.timing', 'x = self.config.get("seed", 0)', '.get('),
    (check_habits, 'bench.timing', 'path.read_text()', 'any size'),
    (check_habits, 'bench.timing', 'files.read_bytes(path, description)', None),
    (check_safety, 'bench.timing', 'eval(text)', 'runs code'),
    (check_safety, 'bench.timing', 'model.eval()', None),
    (check_safety, 'bench.timing', 'builtins.exec(text)', 'runs code'),
    (check_safety, 'model.custom', 'importlib.import_module(name)', 'runs code'),
    (check_safety, 'core.recipe', 'spec.loader.exec_module(module)', None),
    (check_safety, 'bench.timing', 'os.system(text)', 'runs code'),
    (check_safety, 'bench.timing', 'yaml.load(file)', 'any type'),
    (check_safety, 'bench.timing', 'yaml.safe_load(file)', None),
    (check_safety, 'bench.timing', 'torch.load(file)', 'any type'),
    (check_safety, 'bench.timing', 'np.load(file)', 'unpickled'),
    (check_safety, 'bench.timing', 'np.load(file, allow_pickle=flag)', 'unpickled'),
    (check_safety, 'bench.timing', 'np.load(file, allow_pickle=False)', None),
    (check_safety, 'bench.timing', 'np.lib.format.read_array(file)', 'unpickled'),
    (check_safety, 'bench.timing', 'subprocess.run(text, shell=True)', 'shell'),
    (check_safety, 'bench.timing', 'subprocess.run([word])', None),
    (check_functions, 'bench.timing', 'def f():\n' + '  x = 1\n' * 60, '61 lines'),
    (check_functions, 'bench.timing', 'def f():\n  """\n' + '\n' * 60 + '  """', None),
    (check_functions, 'bench.timing', 'def f(a, b, c, d, e, f, g, h):\n  pass', '8 parameters'),
    (check_docstrings, 'bench.timing', 'x = 1', 'no docstring'),
    (check_docstrings, 'bench.timing', '"""Bench."""\ndef f():\n  pass', 'f has no docstring'),
  ],
)
def test_violations_are_found(
  check: Callable[[Module], Iterator[str]], name: str, source: str, violation: str | None
):
  violations = list(check(Module(name, source, is_init=name == 'tasks')))
  assert bool(violations) == bool(violation) and all(violation in text for text in violations), (
    violations
  )


def test_no_vague_names():
  assert not [name for name in MODULES if name.rpartition('.')[2] in VAGUE_NAMES]


@pytest.mark.parametrize('name', MODULES)
def test_a_module_imports_and_reads_no_undefined_name(name: str):
  libraries = {source.partition('.')[0] for _, source, _ in list_imports(MODULES[name].tree)}
  for library in libraries & set(EXTRAS.get(MODULES[name].package, ())):
    pytest.importorskip(library, reason=f'{name} needs {library}, which is an extra')
  module = importlib.import_module('.'.join(part for part in (PACKAGE, name) if part))
  known = (
    vars(module).keys() | vars(module).get('__annotations__', {}).keys() | vars(builtins).keys()
  )
  unknown = set(read_globals(compile(MODULES[name].source, name, 'exec'))) - known
  assert not unknown, f'{name} reads undefined names: {unknown}'


def read_globals(code: types.CodeType) -> Iterator[str]:
  """Yields global names that functions read; ruff ignores F821 because shapes are strings."""
  yield from (line.argval for line in dis.get_instructions(code) if line.opname == 'LOAD_GLOBAL')
  for inner in code.co_consts:
    if isinstance(inner, types.CodeType):
      yield from read_globals(inner)


def list_bound_names(code: types.CodeType) -> set[str]:
  """Returns the names that a module binds when it runs."""
  return {line.argval for line in dis.get_instructions(code) if line.opname == 'STORE_NAME'}


@pytest.mark.parametrize('folder', ['configs', 'tests'])
def test_tests_and_recipes_read_no_undefined_name(folder: str):
  known = vars(builtins).keys() | {'__file__'}
  for path in sorted((ROOT / folder).rglob('*.py')):
    code = compile(path.read_text(encoding='utf-8'), str(path), 'exec')
    unknown = set(read_globals(code)) - list_bound_names(code) - known
    assert not unknown, f'{path} reads undefined names: {unknown}'


def test_globals_of_functions_are_read():
  code = compile('def f(x):\n  if x:\n    raise Missing(len(x))', '', 'exec')
  assert set(read_globals(code)) == {'Missing', 'len'} and list_bound_names(code) == {'f'}


def test_commands_start_without_jax():
  names = [f'{PACKAGE}.{name}' for name in WITHOUT_JAX]
  program = (
    'import importlib, sys\n'
    f'for name in {names}:\n'
    '  importlib.import_module(name)\n'
    '  if "jax" in sys.modules: sys.exit(name)\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, f'imports jax, which delays every start: {result.stderr.strip()}'


def test_tests_mirror_the_package():
  for path in (ROOT / 'tests').rglob('test_*.py'):
    folder = path.parent.relative_to(ROOT / 'tests')
    if folder.parts and folder.parts[0] in LAYERS:
      module = ROOT / PACKAGE / folder / f'{path.stem.removeprefix("test_")}.py'
      assert module.exists(), (
        f'{path.relative_to(ROOT)} tests no module: name the file after a module'
      )


def test_no_test_imports_another():
  for path in (ROOT / 'tests').rglob('*.py'):
    for line, source, name in list_imports(ast.parse(path.read_text(encoding='utf-8'))):
      test_modules = [part for part in (*source.split('.'), name) if part.startswith('test_')]
      assert source.partition('.')[0] != 'tests' or not test_modules, (
        f'{path}, line {line}: move shared code to a helper module'
      )


def test_the_checkout_has_the_entries_of_the_design():
  result = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
  if result.returncode:
    pytest.skip('not a git checkout')
  assert {line.partition('/')[0] for line in result.stdout.splitlines()} == TOP_LEVEL


def test_recipes_are_data():
  for path in sorted((ROOT / 'configs').rglob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if path.parent.name == 'examples' and not any(
      getattr(node, 'name', '') == 'get_config' for node in tree.body
    ):
      continue  # a custom encoder
    allowed = {'configs', 'math', 'pathlib', 'ml_collections'} | (
      {PACKAGE, 'dataclasses'} if path.name == 'base.py' else set()
    )
    for line, module, _ in list_imports(tree):
      assert module.partition('.')[0] in allowed, (
        f'{path}, line {line}: imports {module}: a recipe is data'
      )
