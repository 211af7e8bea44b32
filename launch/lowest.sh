#!/usr/bin/env bash
# Runs the test suite with the lowest versions that setup.py allows, in an environment of its own:
#   bash launch/lowest.sh [arguments of pytest]
# The versions are read from setup.py, so there is no second list to keep; what a lowest version needs itself, pip
# chooses. The environment is .venv-lowest of the checkout, or the folder that MINILM_VENV names. A bound that fails here
# is raised in setup.py.
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
