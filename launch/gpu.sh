#!/usr/bin/env bash
# On a machine with one NVIDIA GPU: checks the driver, installs JAX with the CUDA that fits it, then runs a verb:
#   bash launch/gpu.sh [--dry_run] [VERB ...]
#   bash launch/gpu.sh bench --config=configs/paper1.py:magic-bee-26 --config.model.dtype=bfloat16
# CUDA 13 wants a driver of 580 or newer, CUDA 12 one of 525; JAX brings CUDA itself. --dry_run prints and runs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

refuse() {
  printf 'asked: %s\nfound: %s\nto do: %s\n' "$1" "$2" "$3" >&2
  exit 2
}

dry=''
if [[ ${1:-} == --dry_run ]]; then dry=yes && shift; fi
command -v nvidia-smi >/dev/null ||
  refuse 'a GPU' 'no nvidia-smi on PATH' 'install the NVIDIA driver; without a GPU there is launch/test.sh'
found=$(nvidia-smi --query-gpu=driver_version,name --format=csv,noheader | head -n 1) ||
  refuse 'a GPU' "nvidia-smi says: $found" 'mend the driver'
driver=${found%%.*}
[[ $driver =~ ^[0-9]+$ ]] || refuse 'the version of the driver' "$found" 'mend the driver'
if ((driver >= 580)); then
  extra=cuda13
elif ((driver >= 525)); then
  extra=cuda12
else
  refuse 'CUDA 12 or 13' "driver $found" 'install driver 525 or newer'
fi
echo "driver ${found/, /, }: extra [$extra]"
if [[ $dry ]]; then
  printf 'install_minilm %q\n' "$extra"
  [[ $# -eq 0 ]] || { printf '%q ' "$venv/bin/minilm" "$@" && echo; }
  exit
fi
install_minilm "$extra"
"$venv/bin/python" -c 'import jax; print(jax.devices("gpu"))' ||
  refuse 'JAX on the GPU' 'it sees none (above)' 'mend the driver'
[[ $# -eq 0 ]] || exec "$venv/bin/minilm" "$@"
