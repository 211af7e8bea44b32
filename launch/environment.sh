# Functions for the other scripts. `refuse REQUEST FAULT REMEDY` prints an error and exits with status 2.
# `install_minilm EXTRA` installs this checkout with an extra ('' for none) into a virtual environment, and sets $venv to
# its folder. MINILM_VENV sets the folder (default .venv in the checkout), and MINILM_PYTHON sets the interpreter
# (default: the first Python 3.11 or newer on PATH). `minilm ARGUMENTS` then runs a command.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MINILM_VENV:-$root/.venv}

refuse() {
  printf 'asked: %s\nfound: %s\nto do: %s\n' "$1" "$2" "$3" >&2
  exit 2
}

minilm() { "$venv/bin/minilm" "$@" </dev/null; }

find_python() {
  local candidate
  for candidate in ${MINILM_PYTHON:+"$MINILM_PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "minilm_jax needs Python 3.11 or newer with venv, but PATH has no such Python." >&2
  echo "Install it (Debian and Ubuntu: apt-get install python3 python3-venv) or set MINILM_PYTHON." >&2
  return 1
}

# Returns the status of the first step that fails, also to callers without `set -e`.
install_minilm() {
  local python started=$SECONDS
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if [[ -d $venv && ! -e $venv/pyvenv.cfg && $(ls -A "$venv") ]]; then
      refuse "an environment in $venv" 'a folder with other files' 'set MINILM_VENV to an empty or new folder'
    fi
    if "$venv/bin/python" -c '' >/dev/null 2>&1; then
      "$venv/bin/python" -m ensurepip >/dev/null || return
    else
      python=$(find_python) || return
      echo "Creating the environment $venv with $("$python" --version)"
      "$python" -m venv --clear "$venv" || return
    fi
  fi
  echo "Installing minilm_jax and its requirements into $venv (some minutes the first time)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${1:+[$1]}" </dev/null || return
  echo "Installed in $((SECONDS - started)) seconds"
}
