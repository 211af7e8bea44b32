#!/usr/bin/env bash
# Ten thousand updates, watched for what grows: bash launch/soak.sh [--updates=10000] [--folder=runs/soak]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm ''
cd "$root"
exec "$venv/bin/python" tests/soak.py "$@" </dev/null
