#!/usr/bin/env bash
# The batch script that launch/slurm.sh submits: the run on all nodes of the job, until it needs no
# more. SLURM starts a copy of this file, in the repository.
set -euo pipefail
source launch/lib.sh

cpus=''
while (($#)); do
  case $1 in
    --cpus=*) cpus=${1#*=} ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --backoff=*) backoff=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --) shift && break ;;
    *) refuse "$1 is no option; launch/slurm.sh submits this script" ;;
  esac
  shift
done
read_program_flags "$@"

program=("$python" -m nvae_jax.main "$@" --distributed)

# The program notices by itself when one of its processes is gone, and says which; what has not ended
# 300 s later, SLURM ends.
start_run() {
  run srun --label --kill-on-bad-exit=0 --wait=300 "--cpus-per-task=$cpus" "${program[@]}"
}

before=$(latest_checkpoint)
keep_going
if ((dry_run)); then
  run scontrol requeue incomplete "${SLURM_JOB_ID:-JOB}"
elif ! is_done; then
  # It was stopped by SIGTERM: preempted, or near its time limit. A cancelled job is not "incomplete"
  # and stays away. One that is stopped again and again before it gets anywhere is left alone too.
  if [[ $(latest_checkpoint) == "$before" ]] && ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
    say "gives up: no new checkpoint, and back from the queue $SLURM_RESTART_COUNT times already"
    exit 1
  fi
  scontrol requeue incomplete "$SLURM_JOB_ID"
fi
