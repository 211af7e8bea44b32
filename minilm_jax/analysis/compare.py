"""Recipes against a base recipe, from run directories to a page, a table and figures.

Who is compared with whom stands in `changes.py`, the numbers in `multiplier.py` and, of GLUE, in `change_scores.py`,
the rules of the verdicts in `outcomes.py`, how it looks in `change_page.py` and `change_figures.py`.
"""

import math
from collections.abc import Mapping, Sequence

import rich.table
from etils import epath

from minilm_jax import claim, recipe, run
from minilm_jax.analysis import (
  change_figures,
  change_page,
  change_scores,
  changes,
  figures,
  outcomes,
  runs,
  sheets,
)
from minilm_jax.analysis.change_scores import GlueRow
from minilm_jax.analysis.changes import Comparison
from minilm_jax.analysis.outcomes import AblationRow
from minilm_jax.analysis.scores import score_table, select_main
from minilm_jax.errors import InputError

Tables = Mapping[str, Sequence[AblationRow]]


def compare(
  bases: Sequence[epath.PathLike],
  folders: Sequence[epath.PathLike],
  workdir: epath.PathLike,
  level: float | None = None,
  lines: Mapping[str, float] | None = None,
  question: str = '',
) -> tuple[Comparison, Tables]:
  """Writes compare.html, changes.csv and, as .svg and .png, the figures curves, dots and multiplier.

  Where runs of both sides were fine-tuned on GLUE, each task stands in glue.csv. Of several shapes each has figures of
  its own, curves-e64-h64-f256-a8-l2 and so on.

  Args:
    bases: run directories of the base recipe.
    folders: run directories, or folders that hold them at any depth; the bases may be among them.
    workdir: where the files go; it is made.
    level: of the plateau, nats; without one the loss of word frequencies, of a `minilm ngram-baselines` in the folders, or
      that of the runs, where they show it.
    lines: other losses to draw, nats by name, beside those of these baselines.
    question: a recipe at whose head stands what is asked and by which rules; the page begins with that.

  Returns:
    Who was compared with whom, and the rows of each shape, the base first.

  Raises:
    Held: another process writes there.
    InputError: no base, nothing that differs from it, a level or a line that is no loss, a damaged file, or no head.
  """
  for name, loss in {**(lines or {}), **({} if level is None else {'level': level})}.items():
    if not (math.isfinite(loss) and loss > 0):
      raise InputError(
        f'a loss {name} of {loss:g}', 'not a positive number of nats', 'give one, as in 5.9'
      )
  asked = recipe.head(question) if question else ''
  compared = changes.read_comparison(bases, folders)
  levels = outcomes.levels(compared, level)
  scores = select_main(score_table(runs.scores(compared.found)))
  glue = {part.shape: change_scores.find_glue_rows(part, scores) for part in compared.shapes}
  tables = {part.shape: outcomes.rows(part, levels, glue[part.shape]) for part in compared.shapes}
  lines = {**compared.ngram_losses, **(lines or {})}
  drawn = {
    part.shape: dict(change_figures.figures(part, tables[part.shape], levels[''], lines))
    for part in compared.shapes
  }
  pictures = {shape: {name: one.svg() for name, one in of.items()} for shape, of in drawn.items()}
  files = {
    'changes.csv': sheets.as_csv(AblationRow, [row for rows in tables.values() for row in rows])
  }
  if any(glue.values()):
    files['glue.csv'] = sheets.as_csv(GlueRow, [row for rows in glue.values() for row in rows])
  for shape, of in drawn.items():
    end = f'-{shape}' if len(drawn) > 1 else ''
    files |= {f'{name}{end}.svg': pictures[shape][name].encode() for name in of}
    files |= {f'{name}{end}.png': figures.png(one.figure) for name, one in of.items()}
  files['compare.html'] = change_page.render(compared, tables, glue, pictures, asked).encode()
  workdir = epath.Path(workdir)
  with claim.held(workdir):
    for name, content in files.items():
      run.write_bytes(workdir / name, content)
  return compared, tables


def shown(compared: Comparison, tables: Tables) -> list[rich.table.Table | str]:
  """Returns the table of each shape and its sentences, for a terminal."""
  parts: list[rich.table.Table | str] = []
  for shape, rows in tables.items():
    parts += [*sheets.to_terminal(change_page.shape_section(shape, rows, {})), '']
  return [*parts, *change_page.around(compared)]


def named_losses(given: str) -> dict[str, float]:
  """The lines of `--reference_losses`, as in unigram=5.9,bigram=4.2.

  Raises:
    InputError: something else.
  """
  found = {}
  for word in filter(None, map(str.strip, given.split(','))):
    name, _, loss = word.partition('=')
    try:
      found[name.strip()] = float(loss)
    except ValueError:
      raise InputError(
        f'--reference_losses={given}',
        f'{word!r} is no name with a loss in nats',
        'give some with commas between, as in --reference_losses=unigram=5.9,bigram=4.2',
      ) from None
  return found
