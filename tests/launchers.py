"""Commands that only pretend, for the tests of the launchers."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ["--config", "configs/digits.py"]

# Does what this start's line of the file `plan` says: `save` a checkpoint, note that the run is
# `done`, `wait` for SIGTERM, `hang` and ignore it, or end with an exit code.
PROGRAM = r"""
echo "$*" >> "$STUBS/starts"
start=$(wc -l < "$STUBS/starts")
for act in $(sed -n "${start}p" "$STUBS/plan" 2>/dev/null); do
  case $act in
    save) mkdir -p "$RUN/checkpoints/$start" ;;
    done) mkdir -p "$RUN" && touch "$RUN/done.json" ;;
    wait) trap 'echo saved; exit 0' TERM; echo ready; while true; do sleep 0.05; done ;;
    hang) trap '' TERM; sleep 60 & echo "ready $!"; wait; wait ;;
    *) exit "$act" ;;
  esac
done
"""
# Appends a command to the file `calls`: its words, each with a tab behind it.
NOTE = r"""{ printf '%s\t' "${0##*/}" "${@//$'\n'/ }"; echo; } >> "$STUBS/calls"
"""
# Answers with the next line of a file that is named after what it is asked.
GCLOUD = r"""
answer() {
  line=$(sed -n 1p "$STUBS/$1")
  if [[ $(wc -l < "$STUBS/$1") -gt 1 ]]; then sed -i 1d "$STUBS/$1"; fi
}
case $* in
  *describe*) answer states; [[ $line != ERROR* ]] || { echo "$line" >&2; exit 1; }; echo "$line" ;;
  *--worker=0*) answer units; [[ $line ]] || exit 255; printf '%b\n' "$line" ;;
  *done.json*) answer finished; [[ $line == yes ]] ;;
  *checkpoints*) answer steps; for step in $line; do echo "${*: -1}$step/"; done ;;
esac
"""


class Stubs:
    """Pretended commands in `path/stubs`, and launchers that are run with them."""

    def __init__(self, path):
        self.path, self.run_folder = path / "stubs", path / "run"
        self.path.mkdir()
        self.env = os.environ | {
            "PATH": f"{self.path}:{os.environ['PATH']}",
            "STUBS": str(self.path),
            "RUN": str(self.run_folder),
            "TMPDIR": str(path),
        }
        self.env.pop("XLA_FLAGS", None)
        self.command("program", PROGRAM)
        self.command("gcloud", NOTE + GCLOUD)
        for name in ("sbatch", "scontrol"):
            self.command(name, NOTE)

    def command(self, name, body):
        path = self.path / name
        path.write_text(f"#!/usr/bin/env bash\n{body}")
        path.chmod(0o755)
        return path

    def write(self, **files):
        for name, lines in files.items():
            (self.path / name).write_text("".join(f"{line}\n" for line in lines))

    def lines(self, name):
        path = self.path / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def calls(self):
        """The words of each command that was called."""
        return [line.rstrip("\t").split("\t") for line in self.lines("calls")]

    def launch(self, script, *args, **env):
        return subprocess.run(
            ["bash", ROOT / "launch" / script, *args],
            env=self.env | env,
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def program(self):
        return ["--python", str(self.path / "program")]

    @property
    def flags(self):
        return ["--", *CONFIG, "--workdir", str(self.run_folder)]
