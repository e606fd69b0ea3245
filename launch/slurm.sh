#!/usr/bin/env bash
# Submits one training run on the GPUs of several nodes to SLURM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

usage() {
  cat <<'USAGE'
usage: launch/slurm.sh --gpus K [OPTION]... -- FLAGS OF nvae_jax.main

Submits a run of nodes x K processes, one for each GPU. The repository, its .venv and the work
directory lie on a file system that all nodes share; paths are relative to the repository. Preempted,
at its time limit or on a lost node, the run saves, goes back to the queue and goes on from there.

  --gpus K           GPUs of each node
  --nodes N          nodes (1)
  --cpus C           CPU cores for each GPU (4)
  --time LIMIT       of one stay in the queue's machines, as sbatch reads it (the partition's)
  --notice S         seconds before the limit at which the run saves and stops (300)
  --sbatch OPTION    one more option of sbatch, such as --partition=gpu; may be repeated
  --max-restarts N   starts in a row without a new checkpoint before it gives up (5)
  --backoff S        seconds before the first of them, doubled each time up to 300 (10)
  --python PATH      the interpreter (.venv/bin/python, or else python3)
  --dry-run          print every command, those inside the job too, and run none; so does DRY_RUN=1

  launch/slurm.sh --nodes 3 --gpus 8 --time 24:00:00 --sbatch --partition=gpu -- \
    --config configs/ffhq256.py --workdir runs/ffhq256

scancel JOB ends it for good; scancel --signal=TERM JOB has it save and go back to the queue.
USAGE
}

nodes=1 gpus='' cpus=4 notice=300 options=()
while (($#)); do
  case $1 in
    --) shift && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  (($# > 1)) || refuse "$1 has no value, or is no option"
  case $1 in
    --gpus) gpus=$2 ;;
    --nodes) nodes=$2 ;;
    --cpus) cpus=$2 ;;
    --time) options+=("--time=$2") ;;
    --notice) notice=$2 ;;
    --sbatch) options+=("$2") ;;
    --max-restarts) max_restarts=$2 ;;
    --backoff) backoff=$2 ;;
    --python) python=$2 ;;
    *) refuse "$1 is no option" ;;
  esac
  shift 2
done
read_program_flags "$@"
[[ $gpus ]] || refuse "--gpus is missing"
require_number --gpus "$gpus"
require_number --nodes "$nodes"
require_number --cpus "$cpus"
require_number --notice "$notice"
require_number --max-restarts "$max_restarts"
require_number --backoff "$backoff"
case $workdir in
  *://*) refuse "--workdir is '$workdir'; allowed: folders of a file system that all nodes share" ;;
  /*) folder=$workdir ;;
  *) folder=$PWD/$workdir ;;
esac

job=(launch/slurm_job.sh "--cpus=$cpus" "--max-restarts=$max_restarts" "--backoff=$backoff"
  "--python=$python" -- "$@")
run mkdir -p "$folder"
# --gres and not --gpus-per-task, because JAX wants every process to see all GPUs of its node and
# takes the one of its rank there. --signal without B: goes to the processes, not to the script.
run sbatch --job-name=nvae "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gres=gpu:$gpus" \
  "--cpus-per-task=$cpus" --requeue "--signal=TERM@$notice" --open-mode=append \
  "--chdir=$PWD" "--output=$folder/slurm-%j.log" ${options[@]+"${options[@]}"} "${job[@]}"
if ((dry_run)); then
  echo "# In the job:"
  DRY_RUN=1 "${job[@]}"
fi
