# Sourced by the other scripts: install_minilm EXTRA puts the package, as it stands in this checkout, into a virtual
# environment of its own and leaves its folder in $venv; '' is no extra. MINILM_VENV names another folder than .venv of the
# checkout, MINILM_PYTHON another interpreter than the first Python 3.11 or newer that is found.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MINILM_VENV:-$root/.venv}

find_python() {
  local candidate
  for candidate in ${MINILM_PYTHON:+"$MINILM_PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "minilm_jax needs Python 3.11 or newer with venv, and none was found on PATH." >&2
  echo "Install one (Debian and Ubuntu: apt-get install python3 python3-venv) or name it in MINILM_PYTHON." >&2
  return 1
}

install_minilm() {
  local python started=$SECONDS
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "Making the environment $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
  fi
  echo "Installing minilm_jax and what it needs into $venv (some minutes the first time)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${1:+[$1]}" </dev/null
  echo "Installed in $((SECONDS - started)) seconds"
}
