#!/usr/bin/env bash
# One run on a Cloud TPU VM or a slice of several, from asking for it to giving it back:
#   bash launch/tpu_vm.sh [--dry_run] --name=NAME --zone=ZONE ACTION [arguments]
#     create          asks for the slice by a queued resource and waits until it is there
#     install         copies this checkout to every worker and installs it there
#     start VERB ...  starts minilm VERB ... on every worker, in the background; --workdir must be gs://, for all to share
#                     (pretrain gets --coordinator=auto, so that JAX asks the VM who the others are, unless one is given)
#     logs            follows what worker 0 says; --worker=N another one
#     fetch FROM TO   copies a folder from worker 0 (a gs:// folder needs no TPU: gcloud storage cp -r FROM TO)
#     stop            sends SIGTERM to the run: it saves and ends; the same start goes on
#     delete          gives the slice back
#     keep VERB ...   all of it for a spot slice: create, install, start; again when it was taken away; delete at the end
#   --type=v5litepod-8  --runtime=v2-alpha-tpuv5-lite  --project=P  --spot  --worker=0
# --dry_run prints the commands, quoted as a shell reads them, and runs none of them. It needs gcloud, logged in.
set -euo pipefail

name='' zone='' type=v5litepod-8 runtime=v2-alpha-tpuv5-lite worker=0 dry='' project=() spot=()
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry_run) dry=yes ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --project=*) project=("$1") ;;
    --worker=*) worker=${1#*=} ;;
    --spot) spot=(--spot) ;;
    *) break ;;
  esac
  shift
done
action=${1:-}
[[ $# -eq 0 ]] || shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=(--zone="$zone" ${project[@]+"${project[@]}"})
readonly folder=minilm_jax log=minilm.log ended=minilm.status

refuse() {
  printf 'asked: %s\nfound: %s\nto do: %s\n' "$1" "$2" "$3" >&2
  exit 2
}

run() {
  if [[ $dry ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

# A command on some workers; what it says comes back.
on() {
  local which=$1
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$which" --command="$*"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
}

create() {
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" --accelerator-type="$type" \
    --runtime-version="$runtime" ${spot[@]+"${spot[@]}"} ||
    refuse "the slice $name" 'gcloud did not take the request (above)' \
      'if the name is taken, delete it or give another --name'
  [[ $dry ]] && return
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED) refuse "$type in $zone" "the request is $now" 'delete it, and try another zone or type' ;;
    esac
    echo "waiting for $type in $zone: $now"
    sleep 30
  done
}

install() {
  local archive status=0
  archive=$(mktemp --suffix=.tar.gz)
  run tar -czf "$archive" -C "$root" --exclude=.git --exclude=.venv --exclude=runs --exclude=corpora .
  run gcloud compute tpus tpu-vm scp "$archive" "$name:$folder.tar.gz" "${where[@]}" --worker=all &&
    on all "rm -rf $folder && mkdir $folder && tar -xzf $folder.tar.gz -C $folder && cd $folder &&" \
      'source launch/environment.sh && install_minilm tpu' || status=$?
  rm -f "$archive"
  [[ $status -eq 0 ]] || refuse "the workers of $name" 'one of them did not answer or could not install (above)' \
    'run install again, or delete and create it'
}

start() {
  local argument workdir='' coordinator='' line
  for argument in "$@"; do
    case $argument in
      --workdir=*) workdir=${argument#*=} ;;
      --coordinator | --coordinator=*) coordinator=given ;;
    esac
  done
  [[ $workdir == gs://* ]] || refuse "start ${*}" "--workdir=$workdir" \
    'give a folder that all workers share and that stays: --workdir=gs://BUCKET/FOLDER'
  # Without it, where the shells of a pod do not name its workers, each would train a model of its own.
  if [[ $1 == pretrain && ! $coordinator ]]; then set -- "$@" --coordinator=auto; fi
  line="$(printf '%q ' .venv/bin/minilm "$@"); echo \$? > $ended"
  on all "cd $folder && rm -f $ended && (nohup bash -c $(printf %q "$line") >> $log 2>&1 < /dev/null &) && echo started"
}

keep() {
  local now
  while true; do
    create
    install
    start "$@"
    [[ $dry ]] && break
    while now=$(state) && [[ $now == ACTIVE ]]; do
      if [[ $(on 0 "cat $folder/$ended 2>/dev/null || echo running") == 0 ]]; then break 2; fi
      sleep 60
    done
    echo "the slice is ${now:-gone}: asking for another; the run goes on from its last checkpoint"
    delete
  done
  delete
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

case $action in
  create | install | start | logs | fetch | stop | delete | keep) ;;
  *) refuse "tpu_vm.sh ${action:-without an action}" 'no such action' \
    'give create, install, start, logs, fetch, stop, delete or keep' ;;
esac
[[ $name && $zone ]] ||
  refuse "tpu_vm.sh $action" "--name=$name --zone=$zone" 'give both, as in --name=tiny --zone=us-west4-a'
[[ $dry ]] || command -v gcloud >/dev/null ||
  refuse "tpu_vm.sh $action" 'no gcloud on PATH' 'install the Google Cloud CLI'
case $action in
  start | keep) [[ $# -gt 0 ]] || refuse "$action" 'no verb' "give one, as in $action pretrain --config=configs/tiny.py" ;;
  fetch) [[ $# -eq 2 ]] || refuse "fetch ${*}" "$# folders" 'give two: there and here' ;;
esac
case $action in
  logs) on "$worker" "tail -n 100 -F $folder/$log" ;;
  fetch) run gcloud compute tpus tpu-vm scp --recurse "$name:$1" "$2" "${where[@]}" --worker=0 ;;
  stop) on all "pkill -TERM -f 'python.*bin/[m]inilm'" ;;
  *) "$action" "$@" ;;
esac
