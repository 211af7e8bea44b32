#!/usr/bin/env bash
# Fuzzes every reader with coverage guidance: bash launch/fuzz.sh [seconds] [--seed=N] [--only=NAME]
# Exits with status 1 if a reader raises anything but InputError; fuzz-findings/ has the files, and the output a command
# for each of them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm test
cd "$root"
exec env JAX_PLATFORMS=cpu "$venv/bin/python" tests/campaigns/fuzz.py "$@" </dev/null
