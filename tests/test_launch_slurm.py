"""The launcher for SLURM, with commands that only pretend to be SLURM's."""

import pytest
from launchers import CONFIG, NOTE, ROOT, Stubs

# Runs the program on behalf of all tasks.
SRUN = r"""
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# As SLURM does it: in another folder, a copy of the script, with the job's identity.
SBATCH = r"""
while [[ $1 == --* ]]; do
  case $1 in --chdir=*) folder=${1#*=} ;; esac
  shift
done
cp "$folder/$1" "$STUBS/slurm_script" && shift
cd "$folder" && SLURM_JOB_ID=42 exec "$STUBS/slurm_script" "$@"
"""


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path)
    stubs.command("srun", NOTE + SRUN)
    stubs.command("sbatch", NOTE + SBATCH)
    return stubs


def test_dry_run(stubs):
    result = stubs.launch(
        "slurm.sh",
        *("--dry-run", "--nodes=3", "--gpus=8", "--cpus=6", "--time", "24:00:00"),
        *("--sbatch=--partition=gpu", "--sbatch", "--mail-user=a b", "--python=python"),
        *("--", *CONFIG, "--workdir", "runs/x"),
    )
    main = "--config configs/digits.py --workdir runs/x"
    assert result.stdout.splitlines() == [
        f"mkdir -p {ROOT}/runs/x",
        "sbatch --job-name=nvae --nodes=3 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=6 "
        f"--requeue --signal=TERM@300 --open-mode=append --chdir={ROOT} "
        f"--output={ROOT}/runs/x/slurm-%j.log --time=24:00:00 --partition=gpu '--mail-user=a b' "
        f"launch/slurm_job.sh --cpus=6 --max-restarts=5 --backoff=10 --python=python -- {main}",
        "# In the job:",
        "srun --label --kill-on-bad-exit=0 --wait=300 --cpus-per-task=6 "
        f"python -m nvae_jax.main {main} --distributed",
        "scontrol requeue incomplete JOB",
    ]
    assert stubs.calls == []


@pytest.mark.parametrize(
    ("plan", "restarts", "starts", "requeued", "code"),
    [
        (["done"], 0, 1, False, 0),
        (["0"], 0, 1, True, 0),
        (["1", "save 0"], 0, 2, True, 0),
        (["1", "1", "done"], 0, 3, False, 0),
        (["2"], 0, 1, False, 2),
        (["1"] * 9, 0, 3, False, 1),
        # Stopped time and again before it got anywhere; or after it got somewhere.
        (["0"], 1, 1, True, 0),
        (["0"], 2, 1, False, 1),
        (["save 0"], 2, 1, True, 0),
    ],
)
def test_job(stubs, plan, restarts, starts, requeued, code):
    stubs.write(plan=plan)
    options = ["--gpus=2", "--max-restarts=2", "--backoff=0", *stubs.program]
    result = stubs.launch("slurm.sh", *options, *stubs.flags, SLURM_RESTART_COUNT=str(restarts))
    assert (len(stubs.lines("starts")), result.returncode) == (starts, code)
    assert [call[0] for call in stubs.calls] == ["sbatch"] + ["srun"] * starts + [
        "scontrol"
    ] * requeued
    if requeued:
        assert stubs.calls[-1] == ["scontrol", "requeue", "incomplete", "42"]
    assert stubs.lines("starts")[0].endswith(f"--workdir {stubs.run_folder} --distributed")
