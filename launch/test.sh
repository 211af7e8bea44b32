#!/usr/bin/env bash
# Creates an environment and runs the test suite: bash launch/test.sh [--all] [arguments of pytest]
# --all adds tests marked as slow. Up to four processes run in parallel, because compilation takes half of the time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm test
cd "$root"
exec "$venv/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@" </dev/null
