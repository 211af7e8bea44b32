#!/usr/bin/env bash
# Builds the documentation into build/site, with broken links as errors: bash launch/docs.sh [--serve]
# --serve shows the pages at a local address and rebuilds them after each change.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm docs
cd "$root"
export NO_MKDOCS_2_WARNING=1
if [[ ${1:-} == --serve ]]; then
  exec "$venv/bin/mkdocs" serve
fi
"$venv/bin/mkdocs" build --strict --quiet </dev/null
echo "$root/build/site/index.html"
