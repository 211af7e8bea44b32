"""Tests mirror the tree of the package.

pytest checks annotations of types and array shapes at run time with `check` (see pyproject.toml).
"""

import beartype

# Accepts int for float, as PEP 484 does.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
