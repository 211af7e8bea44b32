#!/usr/bin/env bash
# Checks the driver of an NVIDIA GPU, installs JAX with a suitable CUDA version, and runs a command:
#   bash launch/gpu.sh [--dry_run] [COMMAND ...]
#   bash launch/gpu.sh bench --config=configs/paper1.py:magic-bee-26 --config.model.dtype=bfloat16
#   bash launch/gpu.sh --check [FOLDER]
# --check measures the GPU and writes FOLDER/device-check.json and FOLDER/device-check.txt (default runs/device-check).
# CUDA 13 needs driver 580 or newer, CUDA 12 driver 525; JAX includes CUDA. --dry_run only prints the commands.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

dry_run=''
if [[ ${1:-} == --dry_run ]]; then dry_run=yes && shift; fi
peers=''
if [[ ${1:-} == --check ]]; then
  peers=,peers # PyTorch, to compare with
  set -- device-check --workdir="${2:-runs/device-check}" "${@:3}"
fi
command -v nvidia-smi >/dev/null ||
  refuse 'a GPU' 'no nvidia-smi on PATH' 'install the NVIDIA driver; without a GPU, use launch/test.sh'
gpu=$(nvidia-smi --query-gpu=driver_version,name --format=csv,noheader | head -n 1) ||
  refuse 'a GPU' "nvidia-smi failed: $gpu" 'reinstall the driver'
driver=${gpu%%.*}
[[ $driver =~ ^[0-9]+$ ]] || refuse 'the version of the driver' "$gpu" 'reinstall the driver'
if ((driver >= 580)); then
  extra=cuda13
elif ((driver >= 525)); then
  extra=cuda12
else
  refuse 'CUDA 12 or 13' "driver $gpu" 'install driver 525 or newer'
fi
echo "driver $gpu: extra [$extra]"
if [[ $dry_run ]]; then
  printf 'install_minilm %s\n' "$extra$peers"
  [[ $# -eq 0 ]] || { printf '%q ' "$venv/bin/minilm" "$@" && echo; }
  exit
fi
install_minilm "$extra$peers"
"$venv/bin/python" -c 'import jax; print(jax.devices("gpu"))' ||
  refuse 'JAX on the GPU' 'no GPU device (see the error above)' 'reinstall the driver'
[[ $# -eq 0 ]] || exec "$venv/bin/minilm" "$@"
