#!/usr/bin/env bash
# Runs the study of paper 2 on two CPU cores: data sizes, overlap with a task, committees against the deep model,
# latency, and the report with its verdicts. A repeated call continues an interrupted study.
#   bash launch/paper2.sh TEXT AG_NEWS DBPEDIA FEWREL [FOLDER]
# TEXT: files with an article a line, as in 'wikipedia/*.txt.xz@line'. AG_NEWS and DBPEDIA: folders with train and test
# files. FEWREL: a JSON file of FewRel, from which both splits are drawn. FOLDER: results, default runs/paper2.
set -euo pipefail
if (($# < 4)); then
  printf '%s\n' "asked: the study of paper 2" "found: $# arguments" \
    "to do: give TEXT AG_NEWS DBPEDIA FEWREL [FOLDER]; see the comment in launch/paper2.sh" >&2
  exit 2
fi
text=$1 ag_news=$2 dbpedia=$3 fewrel=$4 out=${5:-runs/paper2}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_minilm ''
sizes=$root/configs/paper2_data_sizes.py models=$root/configs/paper2_models.py tasks=$root/configs/paper2_tasks.py

minilm() { "$venv/bin/minilm" "$@" </dev/null; }
# A thousand labelled examples of each task. Of three learning rates, 1e-3 was best on a validation tenth of AG News,
# both pre-trained and from scratch.
tune() {
  minilm finetune --config="$tasks:$1" --config.task.per_label="$2" --config.task.eval_per_label="$3" \
    --config.epochs=6 --config.length=64 --config.optimizer.learning_rate=1e-3 "${@:4}"
}
on_ag_news() { tune ag_news 250 250 --config.task.folder="$ag_news" "$@"; }
on_dbpedia() { tune dbpedia_14 70 50 --config.task.folder="$dbpedia" "$@"; }
on_fewrel() { tune fewrel 60 40 --config.task.train="$fewrel" "$@"; }

minilm corpus --config="$sizes:corpus" --config.documents.sources="$text" --workdir="$out/articles"

# Claims 1 and 2: three sizes, three tasks.
minilm sweep --config="$sizes:cpu" --config.corpus="$out/articles" --workdir="$out/sizes"
seeds=--config.seeds=0,1,2,3,4
on_ag_news "$seeds" --with_scratch --checkpoint="$out/sizes/*" --workdir="$out/sizes-ag_news"
on_dbpedia "$seeds" --with_scratch --checkpoint="$out/sizes/*" --workdir="$out/sizes-dbpedia"
on_fewrel "$seeds" --with_scratch --checkpoint="$out/sizes/*" --workdir="$out/sizes-fewrel"

# Claim 3: three subsets of one size and different overlap with a task. Scores from scratch are those of claims 1 and 2.
minilm overlap-subsets --config="$tasks:ag_news" --config.task.folder="$ag_news" --config.task.per_label=250 \
  --corpus="$out/articles" --workdir="$out/parts"
for part in 1 2 3; do
  minilm pretrain --config="$sizes:40000-cpu" --config.subset.rows=0 --config.corpus="$out/parts/part-$part" \
    --workdir="$out/overlap/part-$part"
done
on_ag_news "$seeds" --checkpoint="$out/overlap/*" --workdir="$out/overlap-ag_news"

# Claim 4: a committee of five convolutional models of one block against a model of six blocks. Widths and channels are
# an eighth of the published ones, and the deep model trains with the FLOPs of all members. Further comparisons: a
# committee of two deep models with the FLOPs and parameters of the members; a member with five heads; the fine-tuning
# seeds of the deep model as a committee; and three members with the fixed front-end.
small=(--config.model.vocab_size=8000 --config.corpus="$out/articles" --config.optimizer.learning_rate=5e-4
       --config.optimizer.schedule=linear --config.optimizer.warmup_fraction=0.1)
shallow=$models:conv2-k3-d64-h8@96d8 deep=$models:bert-6@96
population() { minilm sweep --config="$1" "${small[@]}" --config.population.members="$2" --config.num_steps="$3" "${@:4}"; }
population "$shallow" 5 1000 --workdir="$out/members"
population "$shallow" 3 1000 --config.model.convolution=fixed --workdir="$out/fixed"
population "$deep" 2 500 --workdir="$out/pair"
minilm pretrain --config="$deep" "${small[@]}" --config.num_steps=1000 --workdir="$out/deep"
saved=("--config.seeds=0,1,2" --config.save_classifiers=True)
for group in members fixed pair; do
  on_ag_news "${saved[@]}" --checkpoint="$out/$group/*/member-*" --workdir="$out/$group-ag_news"
done
on_ag_news "${saved[@]}" --checkpoint="$out/deep" --workdir="$out/deep-ag_news"
on_ag_news "${saved[@]}" --checkpoint="$out/members/*/member-0" --config.head.ensemble_size=5 --workdir="$out/heads-ag_news"
for group in members pair; do
  minilm committee --members="$out/$group-ag_news/*/classifier-*" --workdir="$out/$group-committee"
done
minilm committee --members="$out/deep-ag_news/classifier-*" --workdir="$out/deep-committee"
for size in 2 3 4 5; do
  minilm latency --config="$shallow,${deep##*:}" --config.model.vocab_size=8000 --size="$size" --heads="$size" \
    --workdir="$out/latency/$size"
done
minilm latency --config="$deep" --config.model.vocab_size=8000 --size=2 --workdir="$out/latency/deep"

minilm report "$out" --workdir="$out/report"
