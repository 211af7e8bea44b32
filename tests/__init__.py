"""Tests mirror the tree of the package.

`check` is what its annotations meet under pytest (see pyproject.toml).
"""

import beartype

# an int may stand where a float is asked
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
