#!/usr/bin/env bash
# One training run on a Cloud TPU VM or a pod slice, from the request for it to its end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

usage() {
  cat <<'USAGE'
usage: launch/tpu.sh COMMAND --name NAME --zone ZONE [OPTION]... [-- FLAGS OF nvae_jax.main]

commands
  create     request the TPU, and wait until it is there: it costs money until `delete`
  install    copy the last commit of this repository to all its machines and install it
  run        start the run on all machines; it goes on when you log out
  watch      show its log until it has ended
  resume     start it again wherever it is: request and install a preempted TPU anew
  stop       let the run save and stop; the TPU stays
  delete     stop the run, and give the TPU back

options
  --name NAME              of the TPU and of its queued resource
  --zone ZONE              such as us-west4-a
  --project PROJECT        (gcloud's own)
  --type TYPE              accelerator type: v5litepod-8 is one machine, v5litepod-32 a slice of four
  --spot                   cheaper, and preempted at any time
  --runtime-version V      (what Google recommends for the type)
  --create OPTION          one more option for creating, such as --reserved; may be repeated
  --resume                 watch: resume the run when it was preempted
  --delete                 watch: delete the TPU when the run has ended, whichever way
  --poll S                 seconds between two looks (30)
  --max-restarts N         starts in a row without a new checkpoint before it gives up (5)
  --backoff S              seconds before the first of them, doubled each time up to 300 (10)
  --dry-run                print every command and run none; DRY_RUN=1 does the same

The work directory is in a bucket, gs://..., because the disk of a TPU goes with the TPU. Exit code
of watch: 0 done, 1 stopped or given up, 2 refused, 3 not finite.

  tpu=(--name nvae --zone us-west4-a --type v5litepod-8 --spot)
  run=(-- --config configs/ffhq256.py --workdir gs://BUCKET/ffhq256)
  launch/tpu.sh create "${tpu[@]}" && launch/tpu.sh install "${tpu[@]}"
  launch/tpu.sh run "${tpu[@]}" "${run[@]}"
  launch/tpu.sh watch --resume --delete "${tpu[@]}" "${run[@]}"
USAGE
}

name='' zone='' project='' type='' runtime='' poll=30 resume=0 delete=0 options=()
case ${1-} in
  --help | -h) usage && exit 0 ;;
  create | install | run | watch | resume | stop | delete) command=$1 && shift ;;
  *) refuse "'${1-}' is no command; allowed: create, install, run, watch, resume, stop, delete" ;;
esac
while (($#)); do
  case $1 in
    --) shift && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --spot) options+=(--spot) && shift && continue ;;
    --resume) resume=1 && shift && continue ;;
    --delete) delete=1 && shift && continue ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  (($# > 1)) || refuse "$1 has no value, or is no option"
  case $1 in
    --name) name=$2 ;;
    --zone) zone=$2 ;;
    --project) project=$2 ;;
    --type) type=$2 ;;
    --runtime-version) runtime=$2 ;;
    --create) options+=("$2") ;;
    --poll) poll=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    --backoff) backoff=$2 ;;
    *) refuse "$1 is no option" ;;
  esac
  shift 2
done
[[ $name ]] || refuse "--name is missing"
[[ $zone ]] || refuse "--zone is missing"
require_number --poll "$poll"
require_number --max-restarts "$max_restarts"
require_number --backoff "$backoff"
if [[ $command == create || $command == resume ]] || ((resume)); then
  [[ $type ]] || refuse "--type is missing"
fi
if [[ -z $runtime ]]; then
  case $type in
    '') ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) refuse "--type is '$type'; without --runtime-version: v2-, v3-, v4-, v5litepod-, v5p-, v6e-" ;;
  esac
fi
case $command in
  run | watch | resume)
    read_program_flags "$@"
    [[ $workdir == gs://* ]] || refuse "--workdir is '$workdir'; allowed: gs://BUCKET/FOLDER"
    ;;
esac
flags=("$@")
where=("--zone=$zone" ${project:+"--project=$project"})
# A dry run finds the TPU in this state.
state=ACTIVE

queue() { run gcloud compute tpus queued-resources "$@" "${where[@]}"; }

# remote WORKER COMMAND: on one machine of the TPU, or on `all`.
remote() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

# Sets `state` to the queued resource's, to ABSENT, or to UNKNOWN when nobody answers.
look() {
  local answer
  if ((dry_run)); then
    queue describe "$name" '--format=value(state.state)'
  elif answer=$(queue describe "$name" '--format=value(state.state)' 2>&1); then
    state=${answer##*$'\n'}
  else
    case $answer in
      *NOT_FOUND* | *'not found'*) state=ABSENT ;;
      *) state=UNKNOWN && say "$answer" ;;
    esac
  fi
}

# The functions below may be called in conditions, where `set -e` has no effect: hence the &&.
create() {
  if ((dry_run)); then state=ACTIVE; fi
  queue create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${options[@]+"${options[@]}"} && await
}

# Waits until the TPU is there and its machines answer.
await() {
  local seen='' tries
  while true; do
    look
    if [[ $state != "$seen" ]]; then say "$name is $state" && seen=$state; fi
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPENDED | ABSENT) return 1 ;;
    esac
    sleep "$poll"
  done
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    if remote all true; then return 0; fi
    say "no answer from $name yet ($tries of 10)"
    sleep "$poll"
  done
  return 1
}

install() {
  local archive=${TMPDIR:-/tmp}/nvae_jax-$name.tar.gz
  if [[ $(git status --porcelain) ]]; then say "changes that are not committed stay here"; fi
  run git archive --format=tar.gz "--output=$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:nvae_jax.tar.gz" "${where[@]}" \
      --worker=all &&
    remote all "$setup"
}

# uv, because the machines' own Python is older than what JAX needs.
setup='set -e
if systemctl --quiet is-active nvae; then echo "a run is going; stop it first" >&2; exit 1; fi
rm -rf nvae_jax && mkdir nvae_jax && tar -xzf nvae_jax.tar.gz -C nvae_jax
python3 -m pip install --user --quiet --upgrade uv
python3 -m uv venv --quiet --allow-existing --python 3.11 nvae_venv
python3 -m uv pip install --quiet --python nvae_venv/bin/python --editable "./nvae_jax[tpu]"'

# A systemd unit outlives the connection, and gets SIGTERM and time to save when a machine goes down;
# `mixed`: the launcher alone gets it, and passes it on. TPUs need locked memory and, to start quickly,
# huge pages.
# shellcheck disable=SC2016 # The machines expand $HOME and its like.
start() {
  local launcher
  launcher=$(quoted --python=../nvae_venv/bin/python "--max-restarts=$max_restarts" \
    "--backoff=$backoff" -- "${flags[@]}" --distributed)
  remote all 'echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null
sudo systemctl reset-failed nvae 2>/dev/null
sudo systemd-run --unit=nvae --uid="$(id -u)" --setenv=PATH="$PATH" \
  --property=KillMode=mixed --property=TimeoutStopSec=600 \
  --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
  "$HOME/nvae_jax/launch/local.sh" '"$launcher"
}

stop() { remote all '! systemctl --quiet is-active nvae || sudo systemctl stop nvae'; }

give_back() {
  look
  case $state in
    ABSENT) say "there is no $name" && return 0 ;;
    ACTIVE) stop || say "the run on $name could not be stopped" ;;
  esac
  queue delete "$name" --force --quiet
}

go_on() {
  look
  case $state in
    ACTIVE) stop && start ;;
    ABSENT) create && install && start ;;
    FAILED | SUSPENDED) queue delete "$name" --force --quiet && create && install && start ;;
    *) say "$name is $state; not resumed yet" && return 1 ;;
  esac
}

# What the unit did since the last look, and how it stands.
report='sudo journalctl --unit=nvae --cursor-file=/run/nvae.cursor --output=cat --no-pager
systemctl show nvae --property=ActiveState --property=ExecMainStatus'

# Sets `ended` to nothing while the run goes or starts, or else to how it ended.
inspect() {
  local text
  ended=''
  look
  case $state in
    ACTIVE)
      if ! text=$(remote 0 "$report"); then
        silent=$((silent + 1))
        say "no answer from $name ($silent of 10)"
        if ((silent == 10)); then ended=silent; fi
        return 0
      fi
      silent=0
      printf '%s\n' "$text" | sed -e '/^ActiveState=/d' -e '/^ExecMainStatus=/d'
      case $(printf '%s\n' "$text" | sed -n 's/^ActiveState=//p') in
        inactive | failed)
          case $(printf '%s\n' "$text" | sed -n 's/^ExecMainStatus=//p') in
            0) ended=stopped ;;
            2) ended=refused ;;
            3) ended=diverged ;;
            *) ended=failed ;;
          esac
          ;;
      esac
      ;;
    FAILED | SUSPENDED | ABSENT) ended=lost ;;
    *) say "$name is $state" ;;
  esac
}

watch() {
  local silent=0 ended
  if ((dry_run)); then
    run gcloud storage ls "$workdir/done.json"
    look
    remote 0 "$report"
    if ((resume)); then
      echo "# Preempted:"
      state=SUSPENDED
      go_on
    fi
    return 0
  fi
  last_checkpoint=$(latest_checkpoint)
  while true; do
    inspect
    if is_done; then
      say "the run is done: $workdir"
      return 0
    fi
    case $ended in
      '') ;;
      refused)
        say "the run was refused; its log says why"
        return 2
        ;;
      diverged)
        say "the run cannot go on as it is; its log names the report"
        return 3
        ;;
      failed)
        say "the run failed; its log says why"
        return 1
        ;;
      *)
        say "the run is $ended ($name is $state)"
        ((resume)) || return 1
        may_restart || return 1
        go_on || say "not resumed"
        silent=0
        ;;
    esac
    sleep "$poll"
  done
}

case $command in
  create | install | stop) "$command" ;;
  run) start ;;
  delete) give_back ;;
  resume)
    if ((dry_run)); then state=SUSPENDED; fi
    go_on
    ;;
  watch)
    result=0
    watch || result=$?
    if ((delete)); then give_back; fi
    exit "$result"
    ;;
esac
