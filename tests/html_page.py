"""Parses a report page and a CSV file of a report."""

import csv
import html.parser
from typing import Any


class Page(html.parser.HTMLParser):
  """Tags, addresses and text of a page; a tag that is not closed is an error."""

  VOID = ('meta', 'br')  # of HTML; what is empty in an SVG closes itself

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.addresses, self.open, self.text = set[str](), list[str](), list[str](), ''
    self.headings, self.attributes = list[str](), set[str]()
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


def read_csv(path: Any) -> list[dict[str, str]]:
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))
