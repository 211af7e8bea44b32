#!/usr/bin/env bash
# Tries bad input on every reader, guided by the lines it reaches: bash launch/fuzz.sh [seconds] [--seed=N] [--only=NAME]
# Status 1, files in fuzz-findings/ and a command for each where anything but a sentence came of it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm test
cd "$root"
exec env JAX_PLATFORMS=cpu "$venv/bin/python" tests/campaigns/fuzz.py "$@" </dev/null
