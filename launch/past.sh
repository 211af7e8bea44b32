#!/usr/bin/env bash
# Past the break as two cores can do it: the recipe of paper 1 and the best one at four sizes, each change of one field
# and the best recipe without each of its own at the smallest size, three seeds of all; what counts of neighbours reach,
# where heads look, GLUE, and the pages: changes of the paper's recipe, those of the best one, the frontier of both. By
# what single points took, some nine hours of one core with AVX-512, three times that without.
# Started again, it goes on where it stopped.
#   bash launch/past.sh CORPUS TFDS [FOLDER [FLAGS]]
# CORPUS: what minilm corpus made. TFDS: a data_dir with GLUE. FOLDER: runs/past where none is given. FLAGS: for all of
# pre-training; with these it is a rehearsal:
#   --config.updates=40 --config.log.every=10 --config.evaluation.every=10 --config.evaluation.rows=32
set -euo pipefail
if (($# < 2)); then
  printf '%s\n' "asked: the study of the plateau" "found: $# arguments" \
    "to do: give CORPUS TFDS [FOLDER [FLAGS]], as the head of launch/past.sh says" >&2
  exit 2
fi
corpus=$1 tfds=$2 out=${3:-runs/past} flags=("${@:4}")
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm data
past=$root/configs/past.py glue=$root/configs/glue.py

minilm() { "$venv/bin/minilm" "$@" </dev/null; }

runs_of() { # SET FOLDER: its points with three seeds
  local seed
  for seed in 0 1 2; do
    minilm sweep --config="$past:$1" --config.corpus="$corpus" --config.seed="$seed" --workdir="$2-$seed" \
      "${flags[@]}"
  done
}

for set in sizes wide-heads small without-small large; do
  runs_of "$set" "$out/seed"
done
runs_of shorter "$out/shorter"
minilm baselines --config="$past" --config.corpus="$corpus" --workdir="$out/baselines"
for point in paper together; do
  minilm evaluate --checkpoint="$out/seed-0/$point@e64-h64-f256-a8-l2" --attention
  minilm finetune --config="$glue:cola,sst2,mrpc,stsb" --config.task.data_dir="$tfds" --config.task.limit=1000 \
    --config.epochs=3 --config.seeds=0,1 --checkpoint="$out/seed-*/$point@e64-h64-f256-a8-l2" --workdir="$out/glue-$point"
done
minilm compare --base="$out/seed-0/paper@e64-h64-f256-a8-l2" "$out"/seed-* "$out"/glue-* "$out/baselines" \
  --workdir="$out/compare"
minilm compare --base="$out/seed-0/together@e32-h32-f64-a8-l1" "$out"/seed-*/*@e32-h32-f64-a8-l1 "$out/baselines" \
  --workdir="$out/compare-together"
for point in paper together; do
  minilm report "$out"/seed-*/"$point"@* "$out"/shorter-*/"$point"+* --workdir="$out/frontier-$point"
done
