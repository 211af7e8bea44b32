#!/usr/bin/env bash
# Runs the plateau study on two CPU cores (configs/plateau_ablations.py): the recipes of paper 1 and `together` at four
# sizes; at the smallest size, each single change and `together` without each change. Then n-gram baselines, attention,
# GLUE, and reports on both recipes and their frontiers. A repeated call continues an interrupted study.
#   bash launch/plateau.sh CORPUS TFDS [FOLDER [SEEDS [FLAGS]]]
# CORPUS: a corpus of minilm corpus. TFDS: a data_dir with GLUE. FOLDER: results, default runs/plateau. SEEDS: default
# 4, trained as one population; 1 gives no intervals. A seed took 4.3 hours on one EPYC core with AVX-512; slower cores
# take an estimated two to five times as long. FLAGS: flags for all pre-training runs. These flags give a short trial:
#   --config.num_steps=40 --config.log.every=10 --config.eval.every=10 --config.eval.rows=32
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
fail() { refuse "the study of the plateau" "$1" "$2; see the comment in launch/plateau.sh"; }
(($# >= 2)) || fail "$# arguments" "give CORPUS TFDS [FOLDER [SEEDS [FLAGS]]]"
corpus=$1 tfds=$2 out=${3:-runs/plateau} seeds=${4:-4} flags=("${@:5}")
[[ $seeds =~ ^[1-9][0-9]*$ ]] || fail "'$seeds' seeds" "give a number from 1 before the flags"
install_minilm data
ablations=$root/configs/plateau_ablations.py glue=$root/configs/paper1_tasks.py
small=e32-h32-f64-a8-l1 middle=e64-h64-f256-a8-l2
member= # path of a model in the folder of its point
if ((seeds > 1)); then member='/member-*'; fi

train_set() { # SET FOLDER
  minilm sweep --config="$ablations:$1" --config.corpus="$corpus" --config.population.members="$seeds" --workdir="$2" \
    ${flags[@]+"${flags[@]}"}
}

finetune_shape() { # SHAPE SEEDS FOLDER: fine-tunes all points of a shape on GLUE
  minilm finetune --config="$glue:cola,sst2,mrpc,stsb" --config.task.data_dir="$tfds" --config.task.max_train_examples=1000 \
    --config.epochs=3 --config.seeds="$2" --checkpoint="$out/points/*@$1$member" --workdir="$3"
}

for set in sizes wide-heads small without-small large; do
  train_set "$set" "$out/points"
done
train_set shorter "$out/shorter"
# Saves checkpoints before and after a run without convolution leaves the plateau, to compare its attention.
minilm pretrain --config="$ablations:without-short-convolution@e32-h32-f64-a2-l1" --config.corpus="$corpus" \
  --config.checkpoint.every=100 --config.checkpoint.keep_last=20 --workdir="$out/leaving" ${flags[@]+"${flags[@]}"}
minilm evaluate --checkpoint="$out/leaving@all" --attention
minilm ngram-baselines --config="$ablations" --config.corpus="$corpus" --workdir="$out/baselines"
for point in paper together; do
  minilm evaluate --checkpoint="$out/points/$point@$middle" --attention
done
finetune_shape 'e32-h32-f64-a?-l1' 0 "$out/glue/small"
finetune_shape "$middle" 0,1 "$out/glue/middle"
minilm ablations --base="$out/points/paper@$middle" "$out/points" "$out/glue" "$out/baselines" --workdir="$out/compare" \
  --preregistration="$ablations"
minilm ablations --base="$out/points/together@$small" "$out"/points/*@"$small" "$out/glue/small" "$out/baselines" \
  --workdir="$out/compare-together" --preregistration="$ablations"
minilm report "$out"/points/paper@*-a8-* "$out"/shorter/paper+* --workdir="$out/frontier-paper"
minilm report "$out"/points/together@e{32,64}-*-a8-* "$out"/points/together+rate-1e-3@* "$out"/shorter/together+* \
  --workdir="$out/frontier-best" # with the rate 1e-3 at the largest size
