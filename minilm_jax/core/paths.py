"""Reads names of files and folders on the command line and in recipes.

- A leading `~` is the home folder; `./~` is literal.
- A path that exists is literal, whatever characters it has. Other paths are patterns: `*`, `?` and
  `[...]` match within a name, and a part `**` matches any number of subfolders.
- A list has commas between names. A name with commas is a single name if its path exists.
- `RUN@STEP` names a step of a run, unless a folder has that name.

Links are followed. A folder that several links reach counts once.
"""

import glob
import os
import pathlib
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from etils import epath

_PATTERN_CHARS = re.compile(r'[*?\[]')
_SUBFOLDERS = '**'
_NAME_AT_STEP = re.compile(r'(.+)@(\d{1,18}|all)', re.DOTALL)
_Path: Any = type(epath.Path())  # a class of `epath` for this platform
_SUFFIX = re.compile(r'@\w+$')  # a step, or a unit of a source
_HOME = re.compile(r'~(?=$|[/\\])')
_BUCKET = re.compile(r'(\w+://[^/]+)(.*)', re.DOTALL)  # of a remote path, as in gs://bucket/folder


def expand_home(path: epath.PathLike) -> str:
  """Returns a path with the home folder in place of a leading `~`; `./~` is literal."""
  text = os.fspath(path)
  return os.path.expanduser(text) if _HOME.match(text) else text


def resolve_links(path: epath.PathLike) -> str:
  """Returns the absolute path without links, `.`, `..` and a final slash; a bucket has no links.

  >>> resolve_links('gs://bucket/runs/./tiny/')
  'gs://bucket/runs/tiny'
  """
  text = expand_home(path)
  try:
    return _join_bucket(text) if _split_bucket(text)[0] else os.path.realpath(text)
  except ValueError:  # a text that is no path, such as one with a NUL
    return text


def _split_bucket(path: str) -> tuple[str, str]:
  """Returns scheme and bucket of a remote path, or '' for a local path, and the path inside."""
  match = _BUCKET.fullmatch(path)
  return (match[1], match[2]) if match else ('', path)


def _join_bucket(path: str, link: str = '') -> str:
  """Returns a remote path followed by a relative path, without `.`, `..` and double slashes."""
  bucket, inner = _split_bucket(path)
  return bucket + posixpath.normpath('/' + f'{inner}/{link}'.lstrip('/'))


def link_to(target: epath.PathLike, folder: epath.PathLike) -> str:
  """Returns the path of a target relative to a folder.

  A folder stores it beside the name of the target, for `follow_reference`. The result is '' for an
  empty target, and if the two are in different buckets or one of them is local.
  """
  if not os.fspath(target):
    return ''
  (bucket, path), (start_bucket, start) = (
    _split_bucket(resolve_links(end)) for end in (target, folder)
  )
  return os.path.relpath(path, start) if bucket == start_bucket else ''


def follow_reference(name: str, folder: epath.PathLike, link: str = '') -> str:
  """Returns the path of a run or corpus that is named in the files of a folder.

  Folders that were moved together stay connected, and the working directory does not matter.

  Args:
    name: the name at the time of writing, perhaps relative to an unknown directory.
    link: the path of `link_to`; '' in folders of earlier versions.

  Returns:
    The target of the link if it exists; else the first path that exists with the name relative to
    a parent of the folder; else the name.
  """
  if not name:
    return name
  root = resolve_links(folder)
  is_remote = bool(_split_bucket(root)[0])
  if link:
    path = _join_bucket(root, link) if is_remote else os.path.normpath(os.path.join(root, link))
    if _exists(path):
      return path
  # A relative name in a bucket is that of a local folder.
  if not is_remote and not os.path.isabs(name) and '://' not in name:
    for parent in pathlib.Path(root).parents:
      if (parent / name).exists():
        return str(parent / name)
  return name


def is_same(first: Any, second: Any) -> bool:
  """Returns whether two recipe values are equal, or are names of the same files or folders."""
  if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
    return all(map(is_same, first, second))
  if first != second and isinstance(first, str) and isinstance(second, str):
    return bool(first and second) and resolve_links(first) == resolve_links(second)
  return first == second


class LiteralPath(_Path):
  """A path for libraries that call its `glob`.

  The `glob` of `epath.Path` takes `*`, `?` and brackets in the path itself for a pattern. Orbax
  then writes checkpoints that cannot be read.
  """

  def glob(self, pattern: str) -> Iterator[Any]:
    """Yields the paths in this folder that match a pattern."""
    for match in epath.Path(glob.escape(str(self))).glob(pattern):
      yield type(self)(match)


def list_matches(folder: epath.PathLike, pattern: str) -> list[epath.Path]:
  """Returns the sorted paths in a literal folder that match a pattern without `**`.

  The result is empty if the folder is missing.
  """
  return sorted(map(epath.Path, LiteralPath(folder).glob(pattern)), key=str)


def list_folders(folder: epath.PathLike, skipped: Collection[str] = ()) -> list[epath.Path]:
  """Returns a folder and its subfolders at any depth, in the order of their parts.

  A folder that links reach is listed once, by the path without links if there is one. A link to a
  parent adds nothing.

  Args:
    skipped: names of subfolders to leave out, in addition to names that begin with a dot.
  """
  visited: dict[str, epath.Path] = {}
  remaining, links = [epath.Path(folder)], []
  while remaining or links:
    path = remaining.pop() if remaining else links.pop(0)
    identity = resolve_links(path)
    if identity in visited:
      continue
    visited[identity] = path
    for inner in sorted(path.iterdir()):
      if inner.name in skipped or inner.name.startswith('.') or not inner.is_dir():
        continue
      (links if os.path.islink(inner) else remaining).append(inner)
  return sorted(visited.values(), key=lambda path: path.parts)


def expand_pattern(path: epath.PathLike) -> list[str]:
  """Returns the paths that a name stands for.

  Returns:
    The path itself if it exists or has no pattern; else the sorted matches, perhaps none. A match
    of `**` that links reach in several ways is returned once.
  """
  text = expand_home(path)
  if not is_pattern(text) or _exists(text):
    return [text]
  folder, parts = split_pattern(text)
  matches = _match_parts(epath.Path(folder or '.'), parts)
  names = sorted(set(map(str, matches)))
  return drop_links(names) if _SUBFOLDERS in parts else names


def drop_links(names: Sequence[str]) -> list[str]:
  """Returns paths without links to other paths in the list or to an earlier target."""
  by_target: dict[str, str] = {}
  for name in sorted(names, key=os.path.islink):
    by_target.setdefault(resolve_links(name), name)
  return [name for name in names if by_target[resolve_links(name)] == name]


def is_pattern(path: str) -> bool:
  """Returns whether a path that does not exist is a pattern."""
  return bool(_PATTERN_CHARS.search(path))


def split_pattern(pattern: str) -> tuple[str, list[str]]:
  """Returns the longest folder at the start of a pattern that exists, and the parts after it.

  >>> split_pattern('/*.txt')
  ('/', ['*.txt'])
  """
  parts = pattern.split('/')
  first = next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts))
  while first < len(parts) - 1 and _exists('/'.join(parts[: first + 1])):
    first += 1
  return '/'.join(parts[:first]) or ('/' if pattern.startswith('/') else ''), parts[first:]


def _match_parts(folder: epath.Path, parts: Sequence[str]) -> list[epath.Path]:
  """Returns the paths in a folder that match the parts of a pattern."""
  if _SUBFOLDERS not in parts:
    return list_matches(folder, '/'.join(parts).replace(_SUBFOLDERS, '*'))
  index = parts.index(_SUBFOLDERS)
  folders = _match_parts(folder, parts[:index]) if index else [folder]
  later_parts = list(parts[index + 1 :]) or ['*']
  return [
    match
    for start in folders
    if start.is_dir()
    for inner in list_folders(start)
    for match in _match_parts(inner, later_parts)
  ]


def _exists(path: str) -> bool:
  try:
    return bool(path) and epath.Path(path).exists()
  except (OSError, ImportError, ValueError):  # ImportError: no library for gs://
    return False


def _names_path(name: str) -> bool:
  """Returns whether a name, perhaps before `@` and a step or unit, exists or has matches."""
  candidates = {name, _SUFFIX.sub('', name)}
  return any(
    _exists(path) or is_pattern(path) and bool(expand_pattern(path))
    for path in map(expand_home, candidates)
  )


def split_names(text: str) -> list[str]:
  """Returns the names in a comma-separated list, without spaces around them.

  A comma is part of a name if the name with the comma exists and the names around it do not.
  """
  words = [word for word in map(str.strip, text.split(',')) if word]
  if len(words) > 1 and (_names_path(text.strip()) or not all(map(_names_path, words))):
    words = list(_join_names(text.split(',')))
  return [expand_home(word) for word in words]


def _join_names(words: Sequence[str]) -> Iterator[str]:
  """Yields the longest names that exist, from the left; a word without a name stays alone."""
  start = 0
  while start < len(words):
    ends = range(len(words), start + 1, -1)
    candidates = ((end, ','.join(words[start:end]).strip()) for end in ends)
    end, name = next(
      ((end, name) for end, name in candidates if _names_path(name)),
      (start + 1, words[start].strip()),
    )
    if name:
      yield name
    start = end


def split_step(name: str) -> tuple[str, str]:
  """Returns folder and step of `RUN`, `RUN@STEP` or `RUN@all`; the step is '' for `RUN`.

  A folder whose name is the whole text has priority.

  >>> split_step('runs/tiny@400')
  ('runs/tiny', '400')
  """
  match = None if _exists(expand_home(name)) else _NAME_AT_STEP.fullmatch(name)
  return (expand_home(match[1]), match[2]) if match else (expand_home(name), '')
