#!/usr/bin/env bash
# Checks the installed packages for known vulnerabilities with pip-audit:
#   bash launch/audit.sh [--install] [arguments of pip-audit]
# The script audits the environment of the other scripts (.venv, or MINILM_VENV). pip-audit needs a network: it sends
# the name and version of each package to pypi.org, and nothing else. --install first installs pip-audit into a separate
# environment, .venv-audit. Raise the lower bounds in setup.py to fixed versions, and test them with launch/lowest.sh.
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
  echo "pip-audit is not installed: run bash launch/audit.sh --install" >&2
  exit 2
fi
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
exec "$tool/bin/pip-audit" --path "$packages" "$@" </dev/null
