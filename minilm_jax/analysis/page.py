"""How numbers look: cells of tables, the sentences of a report, and its HTML.

The page is one file that asks nothing of the network: no script, no font, no style from elsewhere. Every text that
comes from a run is escaped. Scores are shown times 100.
"""

import html
import math
from collections.abc import Sequence

from minilm_jax.analysis.runs import RunRow
from minilm_jax.analysis.scores import Difference, Group, ScoreRow
from minilm_jax.progress import duration

SCORE_HEADINGS = ('task', 'metric', 'checkpoint', 'pre-trained', 'from scratch', 'difference [95% interval]',
                  'majority', 'examples')
SCORE_WORDS = 3  # the first so many columns hold words
RUN_HEADINGS = ('run', 'kind', 'state', 'parameters', 'updates', 'tokens', 'FLOPs', 'time', 'validation loss',
                'perplexity', 'scores')
RUN_WORDS = 3
NONE = '–'

STYLE = '''
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #5f6670; --line: #d9dce1; --flag: #a33b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --faint: #9aa2ad; --line: #353a41; --flag: #ff9d66; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 44rem; } .faint { color: var(--faint); font-size: .9rem; } ul { padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th.word, td.word { text-align: left; } .flag { color: var(--flag); }
figure { margin: 0; } figure svg { width: 100%; max-width: 36rem; height: auto; }
'''


def render(scores: Sequence[ScoreRow], runs: Sequence[RunRow], figure: str) -> str:
  """The whole page; `figure` is an `<svg>` element, or empty."""
  devices = sorted({row.devices for row in runs if row.devices})
  unfinished = sum(row.state != 'finished' for row in runs)
  parts = [
      '<h1>Tiny language models: what these runs found</h1>', '<ul>',
      *(f'<li>{_escape(text)}</li>' for text in sentences(scores)), '</ul>',
      f'<p class="faint">{len(runs)} {"run" if len(runs) == 1 else "runs"}'
      + (f', of which <span class="flag">{unfinished} not finished</span>' if unfinished else '')
      + (f'. Run on {_escape("; ".join(devices))}' if devices else '') + '.</p>',
  ]
  if scores:
    parts += ['<h2>Scores</h2>', _table(
        SCORE_HEADINGS, SCORE_WORDS, [score_cells(row) for row in scores],
        'Times 100, mean ± sample standard deviation, n seeds, [95% interval of the mean]. Majority: what the most '
        'frequent answer alone would score. Collapsed: a model that gives one answer to everything.')]
  parts += ['<h2>Loss</h2>', f'<figure>{figure}</figure>' if figure else '<p>No run has logged a loss yet.</p>']
  parts += ['<h2>Runs</h2>', _table(
      RUN_HEADINGS, RUN_WORDS, [run_cells(row) for row in runs],
      'The loss is that of masked tokens at frozen masks, in nats, at the last evaluation.')]
  return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
          '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Report</title>\n'
          f'<style>{STYLE}</style>\n</head>\n<body>\n' + '\n'.join(parts) + '\n</body>\n</html>\n')


def sentences(scores: Sequence[ScoreRow]) -> list[str]:
  """What the headline scores say, one sentence a row."""
  return [_sentence(row) for row in scores if row.headline] or ['There are no scores yet.']


def _sentence(row: ScoreRow) -> str:
  where = f'On {row.task}{" (filtered)" if row.filtered else ""}, {row.examples:,} {row.split} examples'
  where += f', from {row.checkpoint}' if row.checkpoint else ''
  if not row.pretrained.n or not row.scratch.n:
    name, group = ('pre-trained', row.pretrained) if row.pretrained.n else ('from scratch', row.scratch)
    other = 'from scratch' if row.pretrained.n else 'pre-trained'
    return f'{where}: {row.metric} {points(group.mean)} {name} (n = {group.n}); nothing {other} to compare with.'
  n = f'n = {row.pretrained.n}' if row.difference.paired else f'n = {row.pretrained.n} and {row.scratch.n}'
  text = (f'{where}: {row.metric} {points(row.pretrained.mean)} pre-trained against {points(row.scratch.mean)} '
          'from scratch')
  if not math.isfinite(row.difference.low):
    return f'{text}, a difference of {points(row.difference.mean, "+")} ({n}: no interval).'
  text += (f', a difference of {points(row.difference.mean, "+")} (95% interval {points(row.difference.low, "+")} to '
           f'{points(row.difference.high, "+")}, {"paired by seed" if row.difference.paired else "Welch"}, {n})')
  return f'{text}; the interval contains zero.' if row.difference.low <= 0 <= row.difference.high else f'{text}.'


def points(share: float, sign: str = '') -> str:
  """A share times 100.

  >>> points(0.6789), points(0.02, '+'), points(float('nan'))
  ('67.9', '+2.0', 'undefined')
  """
  return f'{100 * share:{sign}.1f}' if math.isfinite(share) else 'undefined'


def score_cells(row: ScoreRow) -> list[str]:
  """The cells under `SCORE_HEADINGS`."""
  return [row.task + (' (filtered)' if row.filtered else ''), row.metric, row.checkpoint or NONE,
          _group(row.pretrained), _group(row.scratch), _difference(row.difference), points(row.majority),
          f'{row.examples:,} {row.split}']


def _group(group: Group) -> str:
  if not group.n + group.undefined:
    return NONE
  text = f'{points(group.mean)} ± {points(group.std)}' if group.n > 1 else points(group.mean)
  text += f' (n = {group.n})' + (f' [{points(group.low)}, {points(group.high)}]' if group.n > 1 else '')
  text += f'; {group.undefined} undefined' if group.undefined and group.n else ''
  return text + (f'; {group.collapsed} collapsed' if group.collapsed else '')


def _difference(difference: Difference) -> str:
  if not math.isfinite(difference.mean):
    return NONE
  text = points(difference.mean, '+')
  if not math.isfinite(difference.low):
    return text
  return f'{text} [{points(difference.low, "+")}, {points(difference.high, "+")}]'


def run_cells(row: RunRow) -> list[str]:
  """The cells under `RUN_HEADINGS`."""
  missing = 'undefined' if row.evaluated else NONE
  losses = [missing if value is None else f'{value:,.{digits}f}'
            for value, digits in ((row.validation_loss, 3), (row.validation_perplexity, 1))]
  return [row.name, row.kind, row.state, _count(row.parameters), _count(row.updates), _count(row.tokens),
          NONE if row.flops is None else f'{row.flops:.2e}', NONE if row.seconds is None else duration(row.seconds),
          *losses, str(row.scores) if row.scores else NONE]


def _count(value: float | None) -> str:
  return NONE if value is None else f'{value:,.0f}'


def _table(headings: Sequence[str], words: int, rows: Sequence[Sequence[str]], caption: str) -> str:
  def line(tag: str, cells: Sequence[str]) -> str:
    kinds = ('word' if number < words else 'number' for number in range(len(cells)))
    flags = (' flag' if cell in ('incomplete', 'empty') or 'collapsed' in cell else '' for cell in cells)
    return '<tr>' + ''.join(f'<{tag} class="{kind}{flag}">{_lines(cell)}</{tag}>'
                            for cell, kind, flag in zip(cells, kinds, flags)) + '</tr>'

  return (f'<p class="faint">{_escape(caption)}</p>\n<div class="wide"><table>\n<thead>{line("th", headings)}</thead>\n'
          '<tbody>' + '\n'.join(line('td', row) for row in rows) + '</tbody></table></div>')


def _lines(cell: str) -> str:
  """A long cell breaks before its interval and its remarks, so that tables stay narrow."""
  return '<br>'.join(map(_escape, cell.replace(' [', '; [').split('; ')))


def _escape(text: str) -> str:
  return html.escape(text)
