#!/usr/bin/env bash
# Trains for many updates and checks memory, files and threads for growth:
#   bash launch/endurance.sh [--updates=10000] [--folder=runs/endurance]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm ''
cd "$root"
exec "$venv/bin/python" tests/campaigns/endurance.py "$@" </dev/null
