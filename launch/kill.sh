#!/usr/bin/env bash
# Kills commands at random moments, restarts them, and compares their final results:
#   bash launch/kill.sh [--minutes=20] [--seed=0] [--only=pretrain,sweep]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm test  # the campaign imports from tests/
cd "$root"
exec "$venv/bin/python" tests/campaigns/kill.py "$@" </dev/null
