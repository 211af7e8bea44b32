#!/usr/bin/env bash
# Past the break as two cores can do it: the recipe of paper 1 and the best one at four sizes, each change of one field
# and the best recipe without each of its own at the smallest size, the seeds of each as one population; what counts of
# neighbours reach, where heads look, GLUE, and the pages: changes of the paper's recipe, those of the best one, the
# frontier of both. Started again, it goes on where it stopped.
#   bash launch/plateau.sh CORPUS TFDS [FOLDER [SEEDS [FLAGS]]]
# CORPUS: what minilm corpus made. TFDS: a data_dir with GLUE. FOLDER: runs/plateau where none is given. SEEDS: 4 where none
# is given; one took 4.3 hours of one core of an EPYC with AVX-512, slower ones, by estimate, two to five times that;
# 1 is a first answer, without intervals. FLAGS: for all of pre-training; with these it is a rehearsal:
#   --config.num_steps=40 --config.log.every=10 --config.eval.every=10 --config.eval.rows=32
set -euo pipefail
if (($# < 2)); then
  printf '%s\n' "asked: the study of the plateau" "found: $# arguments" \
    "to do: give CORPUS TFDS [FOLDER [SEEDS [FLAGS]]], as the head of launch/plateau.sh says" >&2
  exit 2
fi
corpus=$1 tfds=$2 out=${3:-runs/plateau} seeds=${4:-4} flags=("${@:5}")
if [[ ! $seeds =~ ^[1-9][0-9]*$ ]]; then
  printf '%s\n' "asked: the study of the plateau" "found: '$seeds' seeds" \
    "to do: give a number from 1, before the flags, as the head of launch/plateau.sh says" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm data
past=$root/configs/plateau_ablations.py glue=$root/configs/glue.py
small=e32-h32-f64-a8-l1 middle=e64-h64-f256-a8-l2
each= # of the models of a point: in its folder, or one in it for each seed
if ((seeds > 1)); then each=/member-*; fi

minilm() { "$venv/bin/minilm" "$@" </dev/null; }

runs_of() { # SET FOLDER: its points, each a population of all seeds
  minilm sweep --config="$past:$1" --config.corpus="$corpus" --config.population.members="$seeds" --workdir="$2" \
    "${flags[@]}"
}

scores_of() { # SHAPE SEEDS FOLDER: GLUE of all points of a shape; seeds of the fine-tuning of each model
  minilm finetune --config="$glue:cola,sst2,mrpc,stsb" --config.task.data_dir="$tfds" --config.task.max_train_examples=1000 \
    --config.epochs=3 --config.seeds="$2" --checkpoint="$out/points/*@$1$each" --workdir="$3"
}

for set in sizes wide-heads small without-small large; do
  runs_of "$set" "$out/points"
done
runs_of shorter "$out/shorter"
# Saved every 100 updates: a run that has to find the neighbours by attention, before and after it leaves the plateau.
minilm pretrain --config="$past:without-short-convolution@e32-h32-f64-a2-l1" --config.corpus="$corpus" \
  --config.checkpoint.every=100 --config.checkpoint.keep_last=20 --workdir="$out/leaving" "${flags[@]}"
minilm evaluate --checkpoint="$out/leaving@all" --attention
minilm ngram-baselines --config="$past" --config.corpus="$corpus" --workdir="$out/baselines"
for point in paper together; do
  minilm evaluate --checkpoint="$out/points/$point@$middle" --attention
done
scores_of 'e32-h32-f64-a?-l1' 0 "$out/glue/small" # of every change, and with wide heads
scores_of "$middle" 0,1 "$out/glue/middle"
minilm ablations --base="$out/points/paper@$middle" "$out/points" "$out/glue" "$out/baselines" --workdir="$out/compare" \
  --preregistration="$past"
minilm ablations --base="$out/points/together@$small" "$out"/points/*@"$small" "$out/glue/small" "$out/baselines" \
  --workdir="$out/compare-together" --preregistration="$past"
minilm report "$out"/points/paper@*-a8-* "$out"/shorter/paper+* --workdir="$out/frontier-paper"
minilm report "$out"/points/together@e{32,64}-*-a8-* "$out"/points/together+rate-1e-3@* "$out"/shorter/together+* \
  --workdir="$out/frontier-best" # at the largest size with the rate that recommended.py has there
