#!/usr/bin/env bash
# One training run in one or several processes on this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

usage() {
  cat <<'USAGE'
usage: launch/local.sh [OPTION]... -- FLAGS OF nvae_jax.main

Trains on this machine, and starts again from the last checkpoint if the run dies. Ctrl-C or SIGTERM
lets it save and stop; a second one kills it. Paths are relative to the repository.

  --processes N      processes that train together (1)
  --gpus K           GPUs for each process: the first K, the next K, ...
  --cpu-devices K    CPU devices for each process, in place of GPUs
  --port P           of the coordinator, on 127.0.0.1 (one that is free)
  --grace S          seconds that the others have to end when one has failed (120)
  --max-restarts N   starts in a row without a new checkpoint before it gives up (5)
  --backoff S        seconds before the first of them, doubled each time up to 300 (10)
  --python PATH      the interpreter (.venv/bin/python, or else python3)
  --dry-run          print every command and run none; DRY_RUN=1 does the same

Exit code: 0 done or stopped on request, 1 given up, 2 refused, 3 not finite.

  launch/local.sh --processes 2 --cpu-devices 2 -- --config configs/digits.py --workdir runs/digits
  launch/local.sh --processes 8 --gpus 1 -- --config configs/cifar10.py --workdir runs/cifar10
USAGE
}

processes=1 gpus='' cpu_devices='' port='' grace=120
while (($#)); do
  case $1 in
    --) shift && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  (($# > 1)) || refuse "$1 has no value, or is no option"
  case $1 in
    --processes) processes=$2 ;;
    --gpus) gpus=$2 ;;
    --cpu-devices) cpu_devices=$2 ;;
    --port) port=$2 ;;
    --grace) grace=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    --backoff) backoff=$2 ;;
    --python) python=$2 ;;
    *) refuse "$1 is no option" ;;
  esac
  shift 2
done
read_program_flags "$@"
require_number --processes "$processes"
require_number --gpus "${gpus:-1}"
require_number --cpu-devices "${cpu_devices:-1}"
require_number --port "${port:-1}"
require_number --grace "$grace"
require_number --max-restarts "$max_restarts"
require_number --backoff "$backoff"
((processes > 0)) || refuse "--processes is 0; allowed: 1 or more"
[[ -z $gpus || -z $cpu_devices ]] || refuse "--gpus and --cpu-devices exclude each other"
if ((processes > 1)) && [[ -z $gpus$cpu_devices ]]; then
  refuse "$processes processes would share the same devices; --gpus or --cpu-devices divides them"
fi
program=("$python" -m nvae_jax.main "$@")

# Two runs on one port would mix, so a port is taken only if nobody answers there. It lies below the
# range from which systems take the ports of outgoing connections.
free_port() {
  local candidate
  while true; do
    candidate=$((20000 + RANDOM % 10000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
}

# command_of I PORT: sets `words` to the command of process I.
command_of() {
  local i=$1 device devices=''
  words=()
  if [[ $gpus ]]; then
    for ((device = i * gpus; device < (i + 1) * gpus; device++)); do
      devices+=${devices:+,}$device
    done
    words=(env "CUDA_VISIBLE_DEVICES=$devices")
  elif [[ $cpu_devices ]]; then
    words=(env JAX_PLATFORMS=cpu
      "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$cpu_devices")
  fi
  words+=("${program[@]}")
  if ((processes > 1)); then
    words+=("--coordinator=127.0.0.1:$2" "--num_processes=$processes" "--process_id=$i")
  fi
}

# Marks lines with their process; ends when the process has closed its output, not before.
prefix() {
  trap '' INT TERM
  local line
  while IFS= read -r line || [[ $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

pids=()
forward() {
  if ((stopping)); then
    say "kills the run"
    kill_all
  else
    stopping=1
    say "lets the run save and stop; once more kills it"
    ask_all
  fi
}
ask_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
}
# A process's group, because its data loader's workers would outlive it.
kill_group() { kill -KILL -- "-$1" 2>/dev/null || true; }
kill_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill_group "$pid"; done
}

# Starts every process, and waits for all. Returns the exit code of the first that failed, or 0.
start_run() {
  local i status result=0 deadline='' at=${port:-$(free_port)}
  set -m # a group of its own for each process, so that Ctrl-C reaches this script alone
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$at"
    if ((dry_run && processes > 1)); then
      printf '%s &\n' "$(quoted "${words[@]}")"
    elif ((dry_run)); then
      quoted "${words[@]}"
    elif ((processes > 1)); then
      # Opened here, so that `prefix` is not of the process's group.
      exec 3> >(prefix "$i")
      "${words[@]}" >&3 2>&1 3>&- &
      pids[i]=$!
      exec 3>&-
    else
      "${words[@]}" &
      pids[i]=$!
    fi
  done
  set +m
  if ((stopping)); then ask_all; fi # the signal came before all were there
  if ((dry_run && processes > 1)); then echo wait; fi
  while ((${#pids[@]})); do
    for i in "${!pids[@]}"; do
      if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
      status=0
      wait "${pids[i]}" || status=$?
      kill_group "${pids[i]}"
      unset "pids[i]"
      if ((status && !result)); then
        result=$status
        deadline=$((SECONDS + grace))
        if ((${#pids[@]})); then
          say "process $i ended with code $status; the others have $grace s to end"
        fi
      fi
    done
    if [[ $deadline ]] && ((SECONDS >= deadline)); then kill_all; fi
    if ((${#pids[@]})); then sleep 0.2 || true; fi
  done
  return "$result"
}

trap forward INT TERM
keep_going
