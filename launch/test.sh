#!/usr/bin/env bash
# Runs the test suite in an environment that it makes: bash launch/test.sh [--all] [arguments of pytest]
# --all adds the tests that are marked slow. A process a core, up to four: half of the time is compiling, on one core.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm test
cd "$root"
exec "$venv/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@" </dev/null
