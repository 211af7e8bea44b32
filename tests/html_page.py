"""Parses a report page and a CSV file of a report, and checks the rules of pages."""

import csv
import html.parser
import re
from typing import Any

MAX_SENTENCES, MAX_OPEN_ROWS = 3, 12


class Page(html.parser.HTMLParser):
  """Tags, addresses and text of a page; an open tag at the end is an error.

  Attributes:
    tags, attributes: names.
    addresses: values of src, href and action.
    text: all text.
    headings: text of the h2 elements.
    answers: question, verdict and number of each answer.
  """

  VOID = ('meta', 'br')  # of HTML; empty elements of an SVG close themselves

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.addresses, self.open, self.text = set[str](), list[str](), list[str](), ''
    self.headings, self.attributes = list[str](), set[str]()
    self.answers = [
      tuple(_strip_tags(part) for part in re.split(r'</?strong>', line))
      for answers in re.findall(r'<ul class="answers">(.*?)</ul>', text, re.DOTALL)
      for line in re.findall(r'<li>(.*?)</li>', answers, re.DOTALL)
    ]
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
    self.tags.add(tag)
    self.attributes |= {name for name, _ in attributes}
    self.addresses += [
      value or '' for name, value in attributes if name in ('src', 'href', 'xlink:href', 'action')
    ]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag: str) -> None:
    assert self.open.pop() == tag

  def handle_data(self, text: str) -> None:
    self.text += text
    if self.open and self.open[-1] == 'h2':
      self.headings.append(text)


def _strip_tags(text: str) -> str:
  """Returns text without footnote marks and tags."""
  text = re.sub(r'<sup>.*?</sup>', '', text, flags=re.DOTALL)
  return html.unescape(re.sub(r'<[^>]+>', '', text)).strip()


def check_rules(text: str) -> list[tuple[str, ...]]:
  """Returns the answers of a page that keeps the rules of pages; fails for any other page.

  A page starts with a verdict for each question. Figures precede tables. Outside tables, captions
  and footnotes, a section has at most three sentences. Tables of more than 12 rows are folded.
  """
  body = text[text.index('<body>') :]
  assert re.match(r'<body>\s*<h1>[^<]+</h1>\s*<ul class="answers">\s*<li>', body), body[:300]
  page = Page(text)
  for question, verdict, number in page.answers:
    assert question.endswith(('?', '.')) and verdict, (question, verdict, number)
  sections = re.findall(r'<section[^>]*>(.*?)</section>', body, re.DOTALL)
  assert len(sections) == len(page.headings) - page.headings.count('Notes')
  has_figures = ['<figure>' in section for section in sections]
  assert has_figures == sorted(has_figures, reverse=True)
  for section in sections:
    without = r'<(table|h2|svg|summary)\b.*?</\1>|<p class="caption">.*?</p>'
    prose = _strip_tags(re.sub(without, '', section, flags=re.DOTALL))
    assert len(re.findall(r'[.!?](?=\s|$)', prose)) <= MAX_SENTENCES, prose
    for table in re.findall(r'<table>.*?</table>', section, re.DOTALL):
      rows = table[table.index('<tbody>') :].count('<tr>')
      assert ('<details>' in section) == (rows > MAX_OPEN_ROWS), section[:200]
  marks = re.findall(r'<sup><a href="#(note-\d+)"', body)
  assert set(marks) == set(re.findall(r'<li id="(note-\d+)"', body))
  return page.answers


def read_csv(path: Any) -> list[dict[str, str]]:
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))
