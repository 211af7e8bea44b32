#!/usr/bin/env bash
# Runs the test suite with the lowest versions that setup.py allows, in a separate environment:
#   bash launch/lowest.sh [arguments of pytest]
# The script reads the versions from setup.py; pip chooses the versions of indirect requirements. The environment is
# .venv-lowest in the checkout, or MINILM_VENV. Raise a bound in setup.py if its version fails here.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MINILM_VENV=${MINILM_VENV:-$here/../.venv-lowest}
source "$here/environment.sh"
lowest=$(mktemp)
trap 'rm -f "$lowest"' EXIT
"$(find_python)" - "$root/setup.py" >"$lowest" <<'PYTHON'
import pathlib, re, sys
bounds = re.findall(r"'([\w-]+)(?:\[[\w,-]+\])?>=([\w.]+)[;']", pathlib.Path(sys.argv[1]).read_text(encoding='utf-8'))
print('\n'.join(sorted({f'{name}=={version}' for name, version in bounds})))
PYTHON
PIP_CONSTRAINT=$lowest install_minilm test
"$venv/bin/python" -m pip freeze --disable-pip-version-check --exclude-editable
cd "$root"
"$venv/bin/python" -m pytest "$@" </dev/null
