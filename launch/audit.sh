#!/usr/bin/env bash
# Compares what is installed with the published lists of known faults (pip-audit):
#   bash launch/audit.sh [--install] [arguments of pip-audit]
# It looks at the environment that the other scripts made (.venv, or MINILM_VENV). It needs a network: pip-audit asks
# pypi.org about each package and version, and nothing else leaves the machine. With --install it first puts pip-audit
# into an environment of its own, .venv-audit, so that its needs change nothing of what is audited. Versions that a
# finding asks for become lower bounds in setup.py; launch/lowest.sh says whether they work.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/environment.sh"
tool=$root/.venv-audit
if [[ ${1:-} == --install ]]; then
  shift
  [[ -x $tool/bin/python ]] || "$(find_python)" -m venv "$tool"
  "$tool/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit </dev/null
fi
if [[ ! -x $tool/bin/pip-audit ]]; then
  echo "pip-audit is not installed: bash launch/audit.sh --install" >&2
  exit 2
fi
found=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
exec "$tool/bin/pip-audit" --path "$found" "$@" </dev/null
