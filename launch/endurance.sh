#!/usr/bin/env bash
# Ten thousand updates, watched for what grows: bash launch/endurance.sh [--updates=10000] [--folder=runs/endurance]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm ''
cd "$root"
exec "$venv/bin/python" tests/campaigns/endurance.py "$@" </dev/null
