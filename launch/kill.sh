#!/usr/bin/env bash
# Kills verbs at random moments, starts them again, and compares what they end with:
#   bash launch/kill.sh [--minutes=20] [--seed=0] [--only=pretrain,sweep]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm test  # the campaign is a module of the tests
cd "$root"
exec "$venv/bin/python" tests/campaigns/kill.py "$@" </dev/null
