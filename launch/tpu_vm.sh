#!/usr/bin/env bash
# Runs a command on a Cloud TPU VM or a slice of several hosts; needs gcloud with a login:
#   bash launch/tpu_vm.sh [--dry_run] --name=NAME --zone=ZONE ACTION [arguments]
#     create             requests the slice as a queued resource and waits until it is active
#     install            copies this checkout to every worker and installs it
#     start COMMAND ...  starts `minilm COMMAND ...` on every worker in the background; --workdir must be on gs://. The
#                        command pretrain gets --coordinator=auto, which finds the other workers, unless it is set
#     logs               follows the log of worker 0, or of --worker=N
#     fetch FROM TO      copies a folder from worker 0; gs:// folders need no TPU (gcloud storage cp -r FROM TO)
#     stop               sends SIGTERM to the run, which saves a checkpoint; the same start continues
#     delete             deletes the slice
#     keep COMMAND ...   creates a spot slice, installs, starts, repeats after each preemption, and deletes the slice when
#                        the command ends, fails or does not start, or ten minutes after stop
#   --type=v5litepod-8  --runtime=v2-alpha-tpuv5-lite  --project=P  --spot  --worker=0
# --dry_run prints the quoted commands without running them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

name='' zone='' type=v5litepod-8 runtime=v2-alpha-tpuv5-lite worker=0 dry_run='' project=() spot=()
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry_run) dry_run=yes ;;
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
location=(--zone="$zone" ${project[@]+"${project[@]}"})
readonly folder=minilm_jax log=minilm.log status_file=minilm.status

run() {
  if [[ $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

# Runs a shell command on the workers $1 and prints its output.
run_on() {
  local workers=$1
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker="$workers" --command="$*"
}

# Prints the state of the request, or NOT_FOUND after its deletion. An error of gcloud is no state: the slice may exist.
state() {
  local now errors
  errors=$(mktemp)
  until now=$(gcloud compute tpus queued-resources describe "$name" "${location[@]}" --format='value(state.state)' \
    2>"$errors"); do
    if grep -q NOT_FOUND "$errors"; then
      now=NOT_FOUND
      break
    fi
    echo "the state of $name is unknown; gcloud is asked again: $(<"$errors")" >&2
    sleep 30
  done
  rm -f "$errors"
  echo "$now"
}

create() {
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${location[@]}" --accelerator-type="$type" \
    --runtime-version="$runtime" ${spot[@]+"${spot[@]}"} ||
    refuse "the slice $name" 'gcloud rejected the request (see above)' \
      'if the name is in use, delete it or give another --name'
  [[ $dry_run ]] && return
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | NOT_FOUND)
        refuse "$type in $zone" "the request is $now" 'delete it and try another zone or type' ;;
    esac
    echo "waiting for $type in $zone: $now"
    sleep 30
  done
}

install() {
  local archive status=0
  archive=$(mktemp)
  # Ignored files are large, and others may change while tar reads them.
  local pattern ignored=()
  while read -r pattern; do ignored+=("--exclude=${pattern%/}"); done <"$root/.gitignore"
  run tar -czf "$archive" -C "$root" --exclude=.git "${ignored[@]}" . &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:$folder.tar.gz" "${location[@]}" --worker=all &&
    run_on all "rm -rf $folder && mkdir $folder && tar -xzf $folder.tar.gz -C $folder && cd $folder &&" \
      'source launch/environment.sh && install_minilm tpu' || status=$?
  rm -f "$archive"
  [[ $status -eq 0 ]] || refuse "the workers of $name" 'a worker did not answer or did not install (see above)' \
    'run install again, or delete and create the slice'
}

start() {
  local argument coordinator='' line
  for argument in "$@"; do
    case $argument in
      --coordinator | --coordinator=*) coordinator=yes ;;
    esac
  done
  # Without a coordinator, each worker would train a separate model.
  if [[ $1 == pretrain && ! $coordinator ]]; then set -- "$@" --coordinator=auto; fi
  line="$(printf '%q ' .venv/bin/minilm "$@"); echo \$? > $status_file"
  run_on all "cd $folder && rm -f $status_file &&" \
    "(nohup bash -c $(printf %q "$line") >> $log 2>&1 < /dev/null &) && echo started"
}

check_workdir() {
  local argument workdir=''
  for argument in "$@"; do
    if [[ $argument == --workdir=* ]]; then workdir=${argument#*=}; fi
  done
  [[ $workdir == gs://* ]] || refuse "$action ${*}" "--workdir=$workdir" \
    'give a persistent folder that all workers share: --workdir=gs://BUCKET/FOLDER'
}

keep() {
  local now status=0 polls
  while true; do
    create
    # The subshell contains the exit of a refusal, so that the slice is deleted.
    if (install && start "$@"); then
      [[ $dry_run ]] && break
      polls=0
      while now=$(state) && [[ $now == ACTIVE ]]; do
        status=$(run_on 0 "cat $folder/$status_file 2>/dev/null || echo running") || status=running
        case $status in
          running | '') ;; # the file is empty while it is written
          # A preemption sends SIGTERM to the run before the slice becomes inactive.
          143) if ((++polls == 10)); then break 2; fi ;;
          *) break 2 ;;
        esac
        sleep 60
      done
    else
      now=$(state)
      if [[ $now == ACTIVE ]]; then
        delete
        refuse "keep ${*}" 'the command did not start (see above)' 'fix the cause and repeat keep'
      fi
    fi
    [[ $now != NOT_FOUND ]] ||
      refuse "keep ${*}" "$name was deleted by another command" 'repeat keep: the run continues from its last checkpoint'
    echo "the slice is $now: requesting another slice; the run continues from its last checkpoint"
    delete
  done
  # The log is deleted with the slice.
  [[ $status == 0 ]] || run_on 0 "tail -n 20 $folder/$log" || true
  delete
  if [[ $status != 0 ]]; then
    refuse "keep ${*}" "status $status, after the output above" \
      'repeat keep: the run continues from its last checkpoint'
  fi
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet ||
    refuse "the deletion of $name" 'gcloud failed (see above), and the slice may still exist' 'repeat delete'
}

case $action in
  create | install | start | logs | fetch | stop | delete | keep) ;;
  *) refuse "tpu_vm.sh ${action:-without an action}" 'no such action' \
    'give create, install, start, logs, fetch, stop, delete or keep' ;;
esac
[[ $name && $zone ]] ||
  refuse "tpu_vm.sh $action" "--name=$name --zone=$zone" 'give both, as in --name=tiny --zone=us-west4-a'
[[ $dry_run ]] || command -v gcloud >/dev/null ||
  refuse "tpu_vm.sh $action" 'no gcloud on PATH' 'install the Google Cloud CLI'
case $action in
  start | keep)
    [[ $# -gt 0 ]] || refuse "$action" 'no command' "give a command, as in $action pretrain --config=configs/tiny.py"
    check_workdir "$@"
    ;;
  fetch) [[ $# -eq 2 ]] || refuse "fetch ${*}" "$# folders" 'give the remote and the local folder' ;;
  *) [[ $# -eq 0 ]] || refuse "tpu_vm.sh $action ${*}" "${*} after $action" "give flags before $action" ;;
esac
case $action in
  logs) run_on "$worker" "tail -n 100 -F $folder/$log" ;;
  fetch) run gcloud compute tpus tpu-vm scp --recurse "$name:$1" "$2" "${location[@]}" --worker=0 ;;
  stop) run_on all "pkill -TERM -f 'python.*bin/[m]inilm'" ;;
  *) "$action" "$@" ;;
esac
