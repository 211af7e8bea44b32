#!/usr/bin/env bash
# Runs the study of paper 1 on two CPU cores: fourteen shapes with the recommended recipe and three with the recipe of
# the paper, each for the same time; fine-tuning on five tasks of GLUE, pre-trained and from scratch; and two reports.
# The first lines of a report answer the questions of the paper. A repeated call continues an interrupted study.
#   bash launch/paper1.sh CORPUS TFDS [FOLDER [HOURS]]
# CORPUS: a corpus of minilm corpus. TFDS: a data_dir with GLUE. FOLDER: results, default runs/paper1. HOURS: hours of
# training, default 8; compiling and evaluating come on top. An hour has 90 seconds of pre-training a model and
# 400 training examples a task, so fewer hours detect larger effects only. Reports have the intervals.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
fail() { refuse "the study of paper 1" "$1" "$2; see the comment in launch/paper1.sh"; }
(($# == 2 || $# == 3 || $# == 4)) || fail "$# arguments" "give CORPUS TFDS [FOLDER [HOURS]]"
corpus=$1 tfds=$2 out=${3:-runs/paper1} hours=${4:-8}
[[ $hours =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "'$hours' hours" "give a number such as 8"
read -r seconds examples < <(awk "BEGIN {printf \"%.0f %.0f\\n\", 90 * $hours, 400 * $hours}")
((examples >= 40)) || fail "$hours hours, which give $examples training examples a task" "give at least 0.1 hours"
install_minilm data

# No shape has a tied head, which needs equal widths of embedding and hidden state.
minilm sweep --config="$root/configs/recommended.py:cpu_grid" --config.model.tied=False --config.corpus="$corpus" \
  --seconds="$seconds" --workdir="$out/recommended"
minilm sweep --config="$root/configs/paper1_grids.py:e32-h32-f64-a8-l1,e64-h64-f256-a8-l2,e64-h128-f512-a8-l4" \
  --config.corpus="$corpus" --seconds="$seconds" --workdir="$out/paper"
minilm finetune --config="$root/configs/glue.py:cola,sst2,mrpc,stsb,rte" --config.task.data_dir="$tfds" \
  --config.task.max_train_examples="$examples" --config.seeds=0,1,2 --checkpoint="$out/recommended/*" --with_scratch \
  --workdir="$out/glue"
minilm report "$out/paper" --workdir="$out/report-paper"
minilm report "$out/recommended" "$out/glue" --workdir="$out/report"
