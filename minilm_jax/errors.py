"""The one error a user sees: what was asked, what was found, what to do.

Every room raises `InputError` for input it cannot use; the door (`__main__`) prints it and exits with status 2.
Errors in the program itself keep their ordinary Python types and their traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(Exception):
  """Input that cannot be used.

  >>> print(InputError('a batch of 0 rows', 'batch_size=0', 'give a positive batch_size'))
  asked: a batch of 0 rows
  found: batch_size=0
  to do: give a positive batch_size
  """

  def __init__(self, asked: str, found: str, remedy: str):
    super().__init__(f'asked: {asked}\nfound: {found}\nto do: {remedy}')
    self.asked, self.found, self.remedy = asked, found, remedy


def nearest(name: str, known: Iterable[str]) -> str:
  """A clause that names what was probably meant, or everything there is when nothing comes near.

  >>> nearest('batchsize', ['batch_size', 'seed'])
  "did you mean 'batch_size'?"
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f'did you mean {close[0]!r}?'
  return 'known names are ' + (', '.join(known) or '(none)')
