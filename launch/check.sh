#!/usr/bin/env bash
# Checks lint, format and types in the environment of launch/test.sh: bash launch/check.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm check
cd "$root"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/basedpyright" --pythonpath "$venv/bin/python" </dev/null
