"""Tests of `html`: order, folding, footnotes and escaping of pages."""

import pytest
from matplotlib.figure import Figure

from minilm_jax.analysis.report import html
from minilm_jax.analysis.report.figures import Drawing
from minilm_jax.analysis.report.sections import Answer, Section, Table, list_section
from tests.html_page import Page, check_rules

ANSWER = Answer('Is it?', 'yes', '+1.0 [+0.5, +1.5]', ['A note.'])
FIGURES = {'loss': Drawing(Figure())}


def make_section(rows: int, **fields: object) -> Section:
  cells = [[f'run {row}', f'{row}'] for row in range(rows)]
  return Section('Runs', **{'table': Table(['run', 'loss'], 1, cells), **fields})


def test_answers_precede_figures_and_figures_precede_tables():
  figure = Section('Loss', 'A sentence.', figures=FIGURES, caption='A caption.', notes=['B note.'])
  text = html.render('Title', [ANSWER], [make_section(2), figure])
  assert check_rules(text) == [('Is it?', 'yes', '+1.0 [+0.5, +1.5]')]
  assert Page(text).headings == ['Loss', 'Runs', 'Notes']


@pytest.mark.parametrize('rows, is_folded', [(12, False), (13, True)])
def test_long_tables_and_lists_of_answers_are_folded(rows: int, is_folded: bool):
  text = html.render('Title', [ANSWER], [make_section(rows)])
  assert check_rules(text) and ('<details>' in text) == is_folded
  text = html.render('Title', [ANSWER] * rows, [])
  assert len(check_rules(text)) == rows and ('<details>' in text) == is_folded


def test_equal_footnotes_share_a_number():
  table = Table(['a'], 1, [['b']], 'Caption.', ['A note.', 'B note.'])
  text = html.render('Title', [ANSWER, ANSWER], [Section('A', table=table)])
  assert check_rules(text) and text.count('A note.') == text.count('B note.') == 1
  assert text.count('href="#note-1"') == 3 and text.count('id="mark-1"') == 1


def test_the_preregistration_is_a_folded_quotation():
  text = html.render('Title', [ANSWER], [], 'Why <b>?\n\n  minilm x \\\n    --y')
  page = Page(text)
  assert (
    check_rules(text) and {'details', 'blockquote', 'pre'} <= page.tags and 'b' not in page.tags
  )
  assert 'Why <b>?' in page.text and '  minilm x \\\n    --y' in page.text


def test_all_text_is_escaped():
  hostile = '<script>"\x1b[2J'
  answer = Answer(f'{hostile}?', hostile, f'[{hostile}]', [hostile])
  table = Table([hostile], 1, [[hostile]], hostile, [hostile])
  sections = [
    Section(hostile, hostile, table=table),
    Section(hostile, figures=FIGURES, caption=hostile, notes=[hostile]),
    *list_section(hostile, hostile, [hostile]),
  ]
  text = html.render(hostile, [answer], sections, hostile)
  page = Page(text)
  assert 'script' not in page.tags and '\x1b' not in text
  assert page.text.count('<script>"\ufffd[2J') >= 15
