"""The law of form: floors, budgets and habits of the package, read from its source.

Every check is a function from the source of one module to the complaints about it, so that each is also tried on a
snippet that breaks it. A complaint names the place and says what to do.
"""

import ast
import builtins
import collections
import dataclasses
import dis
import importlib
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = 'minilm_jax'

FLOORS = (
    ('errors', 'shape', 'old_names', 'checks', 'model_config', 'config', 'corpus_config', 'recipe', 'trust', 'rng', 'signals',
     'hosts', 'untrusted', 'run', 'progress', 'claim', 'flags', 'usage', 'backend', 'hlo'),
    ('language.parquet', 'language.files', 'language.datasets', 'language.grammar', 'language.microworld',
     'language.documents', 'language.vocabulary', 'language.passes', 'language.pool', 'language.repetitions',
     'language.keep', 'language.parts', 'language.beam', 'language.imported', 'language.tokenizer', 'language.ngrams',
     'language.rows', 'language.corpus', 'language.build', 'language.subset'),
    ('model.num_layers', 'model.initialization', 'model.convolve', 'model.convolution', 'model.short_convolution', 'model.encoder',
     'model.looking', 'model.foreign', 'model.num_heads', 'model.cross_entropy', 'model.size'),
    ('training.masking', 'training.optimizer', 'training.sharding', 'training.train_step', 'training.population',
     'training.checkpoint', 'training.recovery', 'training.program', 'training.batches', 'training.log_sinks',
     'training.metrics_log', 'training.profiler', 'training.pretrained', 'training.pretrain'),
    ('tasks.table', 'tasks.fewrel', 'tasks.places', 'tasks.labels', 'tasks.sampling', 'tasks.sources', 'tasks.metrics',
     'tasks.encoding', 'tasks.protocol', 'tasks.material', 'tasks.tables', 'tasks.fitting', 'tasks.interim', 'tasks.server',
     'tasks.finetune', 'tasks.suite', 'tasks.fill_mask', 'tasks.evaluate', 'tasks.words', 'tasks.likelihood',
     'tasks.pair_sources', 'tasks.minimal_pairs', 'tasks.counts', 'tasks.overlap', 'tasks.selection',
     'tasks.classifiers', 'tasks.forward', 'tasks.calibration', 'tasks.subsets', 'tasks.committee', 'tasks.predict',
     'tasks.baselines', 'tasks.attention'),
    ('analysis.tracks', 'analysis.logged', 'analysis.grid', 'analysis.frontier', 'analysis.descent', 'analysis.laws',
     'analysis.breaks', 'analysis.surface', 'analysis.intervals', 'analysis.resample', 'analysis.plateau',
     'analysis.cost', 'analysis.correlation', 'analysis.grid_fits', 'analysis.study', 'analysis.runs', 'analysis.scores',
     'analysis.averages', 'analysis.lines', 'analysis.gap', 'analysis.curves', 'analysis.confusions',
     'analysis.figures', 'analysis.grid_figures', 'analysis.gap_figures', 'analysis.cells', 'analysis.committees',
     'analysis.latencies', 'analysis.contrasts', 'analysis.contests', 'analysis.matches',
     'analysis.verdicts',
     'analysis.grid_cells', 'analysis.grid_page', 'analysis.grid_report', 'analysis.page', 'analysis.sheets',
     'analysis.paper2_sections',
     'analysis.report', 'analysis.entrants', 'analysis.counted', 'analysis.changes', 'analysis.multiplier',
     'analysis.change_scores', 'analysis.outcomes',
     'analysis.change_figures', 'analysis.change_page', 'analysis.compare', 'hf_names', 'huggingface',
     'hf_config', 'hf_import', 'hf_weights',
     'hf_tokenizer', 'modeling_minilm', 'release', 'model_card', 'hf_export', 'serving', 'exports', 'machine',
     'stopwatch', 'pytorch', 'hf_trainer', 'peers', 'bench', 'finetune_bench', 'latency', 'break_even', 'preflight',
     'plan', 'sweep', 'show', 'watch'),
    ('quickstart', 'notebook'),
    ('verbs',),
    ('__main__',),
)
# Who may lean on a neighbour of the same floor; 'training' stands for every room in it.
NEIGHBOURS = {
    'checks': ('errors',),
    'model_config': ('checks', 'errors'),
    'config': ('checks', 'model_config', 'old_names', 'errors'),
    'corpus_config': ('checks', 'errors'),
    'recipe': ('config', 'corpus_config', 'progress', 'shape', 'errors'),
    'hosts': ('signals', 'errors'),
    'untrusted': ('errors',),
    'run': ('config', 'old_names', 'hosts', 'shape', 'untrusted', 'errors'),
    'claim': ('progress', 'errors'),
    'progress': ('hosts',),
    'flags': ('recipe', 'shape', 'trust', 'errors'),
    'trust': ('recipe', 'errors'),
    'usage': ('flags', 'errors'),
    'language.microworld': ('language.grammar',),
    'language.files': ('language.parquet',),
    'language.documents': ('language.files', 'language.datasets', 'language.microworld'),
    'language.vocabulary': ('language.files',),
    'language.passes': ('language.vocabulary',),
    'language.keep': ('language.documents', 'language.vocabulary', 'language.passes', 'language.pool',
                      'language.repetitions'),
    'language.parts': ('language.datasets', 'language.documents', 'language.keep', 'language.passes',
                       'language.repetitions'),
    'language.beam': ('language.documents', 'language.keep', 'language.parts', 'language.passes', 'language.vocabulary'),
    'language.rows': ('language.keep', 'language.tokenizer'),
    'language.tokenizer': ('language.imported',),
    'language.ngrams': ('language.tokenizer',),
    'language.build': ('language.documents', 'language.vocabulary', 'language.keep', 'language.tokenizer',
                       'language.rows', 'language.beam'),
    'language.subset': ('language.build', 'language.corpus', 'language.rows', 'language.tokenizer'),
    'model.convolution': ('model.convolve', 'model.num_layers'),
    'model.encoder': ('model.convolution', 'model.num_layers', 'model.short_convolution'),
    'model.looking': ('model.encoder',),
    'model.foreign': ('model.initialization',),
    'model.num_heads': ('model.encoder', 'model.foreign', 'model.initialization', 'model.num_layers'),
    'model.size': ('model.convolution', 'model.foreign', 'model.short_convolution'),
    'training': ('training',),
    'tasks': ('tasks',),
    'analysis': ('analysis',),
    'huggingface': ('hf_names',),
    'hf_weights': ('huggingface',),
    'model_card': ('release',),
    'hf_export': ('hf_tokenizer', 'hf_weights', 'model_card', 'release'),
    'serving': ('machine', 'release'),
    'exports': ('hf_export', 'serving', 'model_card'),
    'hf_config': ('hf_names',),
    'hf_import': ('hf_config', 'huggingface'),
    'peers': ('pytorch', 'hf_trainer', 'stopwatch'),
    'bench': ('machine', 'peers', 'stopwatch'),
    'finetune_bench': ('machine', 'peers'),
    'latency': ('machine',),
    'plan': ('show', 'stopwatch'),
    'sweep': ('plan',),
    'watch': ('analysis',),
    'break_even': ('machine', 'bench', 'stopwatch'),
}
LIBRARIES = frozenset((
    'absl', 'chex', 'etils', 'flax', 'google', 'jax', 'jaxtyping', 'matplotlib', 'ml_collections', 'numpy', 'optax', 'orbax',
    'plotext', 'pyarrow', 'rich', 'scipy', 'sentencepiece', 'tensorboardX', 'tensorflow_datasets', 'zstandard'))
# Extras, which most who use the package do without: what each room may import of them. Beam pickles functions from whoever
# starts a pipeline to its own workers; nothing that came as data is unpickled there either.
TORCH_ROOMS = {'pytorch': ('torch',), 'usage': ('shtab',), 'language.beam': ('apache_beam',), 'language.imported': ('tokenizers',),
               'hf_trainer': ('torch', 'tokenizers', 'transformers'),
               'training.log_sinks': ('wandb',), 'modeling_minilm': ('torch', 'transformers'),
               'hf_import': ('safetensors',), 'hf_export': ('safetensors', 'torch', 'transformers')}
FLAX_ROOMS = ('model.num_layers', 'model.encoder', 'model.convolution', 'model.short_convolution', 'model.foreign',
              'model.num_heads', 'training.train_step')
NNX_BANNED = frozenset(('jit', 'grad', 'value_and_grad', 'vmap', 'pmap', 'scan', 'remat', 'cond', 'switch', 'while_loop',
                        'fori_loop', 'shard_map', 'custom_vjp', 'Optimizer', 'ModelAndOptimizer'))
RECIPES = frozenset(('config', 'recipe', 'cfg', 'c'))
WHOLE = frozenset(('read_bytes', 'read_text'))  # rooms beside `untrusted` read so what the system itself writes
WHOLE_ROOMS = ('untrusted', 'backend', 'claim', 'machine')
# What would run code that came as data, and the rooms that may: a recipe given by path is code, and so is an encoder that
# it names; `trust` imports the one that a stored recipe names only where its reader has said so (tests/test_foreign.py).
RUNS_CODE = frozenset(('eval', 'exec', '__import__', 'import_module', 'exec_module', 'system', 'popen', 'run_path'))
CODE_ROOMS = ('recipe', 'trust')
LOADS = {'yaml': ('load', 'unsafe_load', 'full_load'), 'torch': ('load',)}  # calls that make objects of any kind
PICKLES = frozenset(('pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib'))
ATTICS = frozenset(('utils', 'util', 'common', 'helpers', 'misc'))
TOP_LEVEL = frozenset(('README.md', 'setup.py', 'pyproject.toml', 'LICENSE', '.ci', '.gitignore', 'configs', 'launch',
                       'tests', PACKAGE))
# A room whose tests stand in a file of another name, and files of tests that mirror no room.
TESTED_IN = {'checks': 'recipe', 'old_names': 'old_runs', 'parquet': 'files', 'model_config': 'recipe', 'config': 'recipe', 'corpus_config': 'recipe',
             '__main__': 'main', 'verbs': 'main', 'flags': 'main', 'runs': 'report', 'page': 'report', 'pytorch': 'peers', 'tracks': 'grid',
             'layers': 'encoder', 'gap_figures': 'gap', 'paper2_sections': 'matches', 'counts': 'overlap', 'grid_cells': 'report',
             'sheets': 'report', 'entrants': 'changes', 'contrasts': 'change_scores', 'outcomes': 'compare', 'change_figures': 'compare',
             'change_page': 'compare',
             'grid_page': 'report', 'grid_report': 'report', 'forward': 'committee', 'contests': 'verdicts',
             'convolve': 'convolution',
             'latencies': 'verdicts', 'descent': 'laws', 'surface': 'laws', 'grid_fits': 'study',
             'hf_config': 'hf_import', 'hf_names': 'huggingface', 'trust': 'foreign', 'tables': 'fitting'}
NO_ROOM = frozenset(('architecture', 'old_runs', 'end_to_end', 'configs', 'launch', 'scripts', 'bad_input', 'properties', 'fuzz',
                     'examples'))
# What starts as a worker process or reads tables must not wait for JAX.
WITHOUT_JAX = ('', 'errors', 'old_names', 'shape', 'model_config', 'config', 'corpus_config', 'recipe', 'trust', 'signals',
               'hosts', 'untrusted', 'run', 'progress', 'claim', 'flags', 'usage', 'language.microworld', 'language.documents',
               'language.vocabulary', 'language.passes', 'language.pool', 'language.files', 'language.parquet',
               'language.repetitions', 'language.keep', 'language.parts', 'language.imported', 'language.tokenizer',
               'language.rows', 'language.build', 'analysis.report', 'analysis.compare', 'watch')
FILE_LINES, FUNCTION_LINES, COLUMNS = 400, 60, 120
# One table, of every field of a run; one, of every verb with its call; one file, which is copied beside weights.
LONGER: dict[str, int] = {}


@dataclasses.dataclass(frozen=True)
class Module:
  """One file: its dotted name inside the package ('' for the package itself), its source, is it an __init__."""

  name: str
  source: str
  package: bool = False

  @property
  def tree(self) -> ast.Module:
    return ast.parse(self.source)


def modules() -> dict[str, Module]:
  found = {}
  for path in sorted((ROOT / PACKAGE).rglob('*.py')):
    parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
    package = parts[-1] == '__init__'
    name = '.'.join(parts[:-1] if package else parts)
    found[name] = Module(name, path.read_text(encoding='utf-8'), package)
  return found


MODULES = modules()
ROOMS = {name: module for name, module in MODULES.items() if not module.package}


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
  """(line, module, name) of every import, wherever it stands; the name is '' for `import module`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name, '') for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.lineno, '.' * node.level + (node.module or ''), alias.name) for alias in node.names)


def inside(module: str, name: str) -> str | None:
  """The room that an import reaches, or None outside the package."""
  if module.partition('.')[0] != PACKAGE:
    return None
  path = '.'.join(part for part in (module, name) if part).removeprefix(PACKAGE).removeprefix('.')
  while path and path not in MODULES:
    path = path.rpartition('.')[0]  # the last parts are names in a module
  return path


def floor(room: str) -> int | None:
  return next((n for n, rooms in enumerate(FLOORS) if room in rooms), None)


def leans_on(room: str) -> tuple[str, ...]:
  return NEIGHBOURS.get(room, ()) + NEIGHBOURS.get(room.partition('.')[0], ())


def check_floors(module: Module) -> Iterator[str]:
  """Imports only from below, or from a neighbour that the table names."""
  for line, source, name in imports(module.tree):
    reached = inside(source, name)
    if source.startswith('.'):
      yield f'line {line}: relative import: write the whole name'
    elif reached is None or not module.name:
      continue  # outside, or the public names of the package itself
    elif module.package:
      yield f'line {line}: the __init__ of a package imports {reached}: import from the room itself where it is used'
    elif not reached:
      if name != '__version__':
        yield f'line {line}: imports {name or source} from the package: import the room that holds it'
    elif MODULES[reached].package:
      yield f'line {line}: imports the package {reached}: import its rooms'
    elif floor(module.name) is None or floor(reached) is None:
      continue  # test_every_room_has_a_floor says so
    elif floor(reached) > floor(module.name):
      yield f'line {line}: floor {floor(module.name)} imports {reached} from floor {floor(reached)}: move what is needed down'
    elif floor(reached) == floor(module.name) and not any(
        reached == allowed or reached.startswith(f'{allowed}.') for allowed in leans_on(module.name)):
      yield f'line {line}: imports its neighbour {reached}: move what is needed down, or add the edge to NEIGHBOURS with thought'


def check_libraries(module: Module) -> Iterator[str]:
  """Only what the house stands on."""
  for line, source, _ in imports(module.tree):
    top = source.partition('.')[0]
    if top in PICKLES:
      yield f'line {line}: {top}: nothing is unpickled; store JSON or .npy'
    elif top in TORCH_ROOMS.get(module.name, ()):
      continue
    elif top not in LIBRARIES and top not in sys.stdlib_module_names and top not in ('', PACKAGE):
      yield f'line {line}: {top} is not among the libraries of the house: do without it, or add it to setup.py and LIBRARIES'
    elif top == 'flax' and module.name not in FLAX_ROOMS:
      yield f'line {line}: flax outside {", ".join(FLAX_ROOMS)}: modules are pytrees, plain JAX takes them as they are'


def check_habits(module: Module) -> Iterator[str]:
  """No nnx transform, no assert, no blanket except, no `.get(` on a recipe, no pickle, no key twice."""
  for node in ast.walk(module.tree):
    if isinstance(node, ast.Assert):
      yield f'line {node.lineno}: assert: raise InputError, or an ordinary error for what cannot happen'
    elif isinstance(node, ast.ExceptHandler):
      kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
      if any(kind is None or isinstance(kind, ast.Name) and kind.id in ('Exception', 'BaseException') for kind in kinds):
        yield f'line {node.lineno}: catches everything: name what can go wrong'
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id == 'nnx' and node.attr in NNX_BANNED:
        yield f'line {node.lineno}: nnx.{node.attr}: use the one of jax or optax'
    elif isinstance(node, ast.Dict):
      names = collections.Counter(key.value for key in node.keys if isinstance(key, ast.Constant))
      yield from (f'line {node.lineno}: {key!r} stands twice in it: the first is lost' for key, n in names.items() if n > 1)
    elif isinstance(node, ast.ImportFrom) and node.module == 'flax.nnx':
      yield f'line {node.lineno}: names from flax.nnx: write `from flax import nnx`, so that what is used of it can be seen'
    elif isinstance(node, ast.Call):
      if isinstance(node.func, ast.Attribute) and node.func.attr == 'get':
        owner = node.func.value
        if getattr(owner, 'id', getattr(owner, 'attr', '')) in RECIPES:
          yield f'line {node.lineno}: .get( on a recipe: every field is in configs/base.py, read it as it is'
      if isinstance(node.func, ast.Attribute) and module.name not in WHOLE_ROOMS and (
          node.func.attr in WHOLE and getattr(node.func.value, 'id', '') != 'untrusted'):
        yield f'line {node.lineno}: {node.func.attr}: a file may be of any size: take that of untrusted, or stream it'
      if any(k.arg == 'allow_pickle' and getattr(k.value, 'value', True) for k in node.keywords):
        yield f'line {node.lineno}: allow_pickle: nothing is unpickled'


def check_budgets(module: Module) -> Iterator[str]:
  """Lines of a file, of a function without its docstring, of columns."""
  lines = module.source.splitlines()
  budget = LONGER.get(module.name, FILE_LINES)
  if len(lines) > budget:
    yield f'{len(lines)} lines, the budget is {budget}: a file that outgrows it holds two ideas, so split it at the seam'
  for number, line in enumerate(lines, 1):
    if len(line) > COLUMNS:
      yield f'line {number}: {len(line)} columns, the budget is {COLUMNS}: break it'
  for node in ast.walk(module.tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      docstring = node.body[0] if ast.get_docstring(node) is not None else None
      size = node.end_lineno - node.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)
      if size > FUNCTION_LINES:
        yield f'line {node.lineno}: {node.name} has {size} lines, the budget is {FUNCTION_LINES}: name its parts'


def check_docstrings(module: Module) -> Iterator[str]:
  """The file and every public name at its top say what they are for."""
  tree = module.tree
  if tree.body and not ast.get_docstring(tree):
    yield 'no docstring: say what the file is for and what it leaves out'
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      if not node.name.startswith('_') and not ast.get_docstring(node):
        yield f'line {node.lineno}: {node.name} has no docstring: one sentence, and its shapes, units and errors'


def check_strangers(module: Module) -> Iterator[str]:
  """Nothing that comes as data is unpickled or run, and no command goes through a shell."""
  for node in ast.walk(module.tree):
    if not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    owner = getattr(getattr(node.func, 'value', None), 'id', '')
    given = {k.arg: getattr(k.value, 'value', None) for k in node.keywords}
    # A method of that name, such as a model's eval(), runs nothing of a stranger's.
    method = isinstance(node.func, ast.Attribute) and name in ('eval', 'exec', 'system') and owner not in ('builtins', 'os')
    if name in RUNS_CODE and not method and module.name not in CODE_ROOMS:
      yield f'line {node.lineno}: {name}: runs code: what comes as data stays data'
    if owner in LOADS and name in LOADS[owner]:
      yield f'line {node.lineno}: {owner}.{name}: makes objects of any kind: store JSON or .npy'
    if (owner in ('np', 'numpy') and name == 'load' or name == 'read_array') and (
        given.get('allow_pickle', True) is not False):
      yield f'line {node.lineno}: {name} without allow_pickle=False: nothing is unpickled'
    if given.get('shell'):
      yield f'line {node.lineno}: shell=True: give a list of words'


CHECKS = (check_floors, check_libraries, check_habits, check_strangers, check_budgets, check_docstrings)


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps(check: Callable[[Module], Iterator[str]]):
  complaints = [f'{PACKAGE}.{name or "__init__"}, {text}' for name, module in MODULES.items() for text in check(module)]
  assert not complaints, '\n' + '\n'.join(complaints)


@pytest.mark.parametrize('check, name, source, said', [
    (check_floors, 'rng', 'def f():\n  from minilm_jax.training import train_step', 'move what is needed down'),
    (check_floors, 'model.encoder', 'from minilm_jax.language import corpus', None),
    (check_floors, 'language.corpus', 'import minilm_jax.language.tokenizer', 'neighbour'),
    (check_floors, 'training.train_step', 'from minilm_jax.training.masking import mask', None),
    (check_floors, 'tasks', 'from minilm_jax.tasks import table', '__init__'),
    (check_floors, 'rng', 'from . import run', 'relative'),
    (check_libraries, 'bench', 'import pandas as pd', 'not among the libraries'),
    (check_libraries, 'bench', 'def f():\n  import torch', 'not among the libraries'),
    (check_libraries, 'pytorch', 'import torch', None),
    (check_libraries, 'pytorch', 'import transformers', 'not among the libraries'),
    (check_libraries, 'hf_trainer', 'import transformers', None),
    (check_libraries, 'huggingface', 'import transformers', 'not among the libraries'),
    (check_libraries, 'run', 'import pickle', 'unpickled'),
    (check_libraries, 'training.pretrain', 'from flax import nnx', 'flax outside'),
    (check_libraries, 'model.encoder', 'from flax import nnx', None),
    (check_habits, 'model.encoder', 'f = nnx.jit(g)', 'use the one of jax'),
    (check_habits, 'run', 'assert x', 'assert'),
    (check_habits, 'flags', 'x = {"size": 1, "wait": 2, "size": 3}', "'size' stands twice"),
    (check_habits, 'run', 'try:\n  f()\nexcept (OSError, Exception):\n  pass', 'catches everything'),
    (check_habits, 'run', 'try:\n  f()\nexcept OSError:\n  pass', None),
    (check_habits, 'bench', 'x = self.config.get("seed", 0)', '.get('),
    (check_habits, 'bench', 'path.read_text()', 'of any size'),
    (check_habits, 'bench', 'untrusted.read_bytes(path, what)', None),
    (check_habits, 'bench', 'np.load(f, allow_pickle=True)', 'unpickled'),
    (check_habits, 'bench', 'np.load(f, allow_pickle=False)', None),
    (check_strangers, 'bench', 'eval(text)', 'runs code'),
    (check_strangers, 'bench', 'model.eval()', None),
    (check_strangers, 'bench', 'builtins.exec(text)', 'runs code'),
    (check_strangers, 'bench', 'importlib.import_module(name)', 'runs code'),
    (check_strangers, 'trust', 'importlib.import_module(name)', None),
    (check_strangers, 'model.foreign', 'importlib.import_module(name)', 'runs code'),
    (check_strangers, 'recipe', 'spec.loader.exec_module(module)', None),
    (check_strangers, 'bench', 'os.system(text)', 'runs code'),
    (check_strangers, 'bench', 'yaml.load(file)', 'of any kind'),
    (check_strangers, 'bench', 'yaml.safe_load(file)', None),
    (check_strangers, 'bench', 'torch.load(file)', 'of any kind'),
    (check_strangers, 'bench', 'np.load(file)', 'unpickled'),
    (check_strangers, 'bench', 'np.load(file, allow_pickle=flag)', 'unpickled'),
    (check_strangers, 'bench', 'np.load(file, allow_pickle=False)', None),
    (check_strangers, 'bench', 'np.lib.format.read_array(file)', 'unpickled'),
    (check_strangers, 'bench', 'subprocess.run(text, shell=True)', 'shell'),
    (check_strangers, 'bench', 'subprocess.run([word])', None),
    (check_budgets, 'bench', 'x = 1\n' * 401, 'two ideas'),
    (check_budgets, 'bench', 'def f():\n' + '  x = 1\n' * 60, 'name its parts'),
    (check_budgets, 'bench', 'def f():\n  """\n' + '\n' * 60 + '  """', None),
    (check_budgets, 'bench', f'x = {"1" * 120}', 'break it'),
    (check_docstrings, 'bench', 'x = 1', 'no docstring'),
    (check_docstrings, 'bench', '"""Bench."""\ndef f():\n  pass', 'f has no docstring'),
])
def test_the_law_sees(check: Callable[[Module], Iterator[str]], name: str, source: str, said: str | None, monkeypatch):
  for rooms in FLOORS:
    for room in rooms:
      monkeypatch.setitem(MODULES, room, Module(room, ''))  # as if every room were built
  complaints = list(check(Module(name, source, package=name == 'tasks')))
  assert bool(complaints) == bool(said) and all(said in text for text in complaints), complaints


def test_every_room_has_a_floor():
  homeless = [name for name in ROOMS if floor(name) is None]
  assert not homeless, f'place in FLOORS and in the README: {", ".join(homeless)}'
  twice = [name for name, n in collections.Counter(room for rooms in FLOORS for room in rooms).items() if n > 1]
  assert not twice, f'on two floors: {", ".join(twice)}'


def test_no_attic():
  attics = [name for name in MODULES if name.rpartition('.')[2] in ATTICS]
  assert not attics, f'name what they hold and split them: {", ".join(attics)}'


@pytest.mark.parametrize('name', MODULES)
def test_imports(name: str):
  for library in TORCH_ROOMS.get(name, ()):
    pytest.importorskip(library, reason=f'{name} needs {library}, which is an extra')
  module = importlib.import_module('.'.join(part for part in (PACKAGE, name) if part))
  known = vars(module).keys() | vars(module).get('__annotations__', {}).keys() | vars(builtins).keys()
  unknown = set(names_read(compile(MODULES[name].source, name, 'exec'))) - known
  assert not unknown, f'{name} reads names that nobody has defined, maybe only where something goes wrong: {unknown}'


def names_read(code: types.CodeType) -> Iterator[str]:
  """The names that a module's functions look for in the module, in lines that no test reaches too."""
  yield from (line.argval for line in dis.get_instructions(code) if line.opname == 'LOAD_GLOBAL')
  for inner in code.co_consts:
    if isinstance(inner, types.CodeType):
      yield from names_read(inner)


def test_the_law_sees_names_that_nobody_has_defined():
  assert set(names_read(compile('def f(x):\n  if x:\n    raise Missing(len(x))', '', 'exec'))) == {'Missing', 'len'}


def test_workers_and_readers_start_without_jax():
  names = ['.'.join(part for part in (PACKAGE, name) if part) for name in WITHOUT_JAX if name in MODULES]
  program = ('import importlib, sys\n'
             f'for name in {names}:\n'
             '  importlib.import_module(name)\n'
             '  if "jax" in sys.modules: sys.exit(name)\n')
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, f'imports jax, which costs every start a second: {done.stderr.strip()}'


def test_tests_mirror_the_rooms():
  rooms = {TESTED_IN.get(last, last) for last in (name.rpartition('.')[2] for name in ROOMS)}
  tested = {path.stem.removeprefix('test_') for path in (ROOT / 'tests').rglob('test_*.py')}
  missing, strange = rooms - tested, tested - rooms - NO_ROOM
  assert not missing, f'write tests/test_<room>.py for {", ".join(sorted(missing))}'
  assert not strange, f'no room is called {", ".join(sorted(strange))}: name the file after what it tests'


def test_top_level():
  done = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip('not a git checkout')
  found = {line.partition('/')[0] for line in done.stdout.splitlines()}
  assert not found - TOP_LEVEL, f'move into a room: {", ".join(sorted(found - TOP_LEVEL))}'
  assert not TOP_LEVEL - found, f'the house names it and it is not there: {", ".join(sorted(TOP_LEVEL - found))}'


def test_recipes_are_data():
  for path in sorted((ROOT / 'configs').rglob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if path.parent.name == 'examples' and not any(getattr(node, 'name', '') == 'get_config' for node in tree.body):
      continue  # the encoder that a recipe there names
    for line, module, _ in imports(tree):
      if path.name == 'base.py' and module.startswith('minilm_jax.') and module.endswith('config'):
        continue  # base.py takes the fields and their defaults from the dataclasses
      if path.name == 'base.py' and module == 'dataclasses':
        continue
      assert module.partition('.')[0] in ('configs', 'math', 'pathlib', 'ml_collections'), (  # pathlib: a file beside it
          f'configs/{path.name}, line {line}: a recipe imports {module}: keep it data')
