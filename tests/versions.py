"""Tests in the oldest environment that requirements.txt allows, and in the newest.

    python tests/versions.py --folder /tmp/environments

It requires uv (`pip install uv`), and Python 3.11 and 3.13, which uv fetches if it can. Prints what
was installed and how the tests ended, as the table of docs/installation.md.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENDS = {"oldest": ("3.11", "lowest-direct"), "newest": ("3.13", "highest")}
# Model, step, loader, work directory, parity.
TESTS = (
    *("test_nvae", "test_cells", "test_distributions", "test_parity"),
    *("test_step", "test_step_parts", "test_optimizer", "test_loader", "test_sources"),
    *("test_workdir", "test_checkpoints", "test_trained", "test_api"),
)
TOOLS = ("pytest", "hypothesis")  # that the tests need, always the newest


def build(folder: Path, python: str, resolution: str) -> Path:
    """Makes an environment of all that requirements.txt names; returns its Python."""
    executable = folder / "bin" / "python"
    if not executable.exists():
        run(["uv", "venv", "--quiet", "--python", python, str(folder)])
    install = ["uv", "pip", "install", "--quiet", "--python", str(executable)]
    run([*install, "--resolution", resolution, "-r", str(ROOT / "requirements.txt")])
    run([*install, *TOOLS])
    return executable


def run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def requirements() -> list[str]:
    """The names of the packages that are required on this machine, JAX and NumPy first."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [re.match(r"[\w-]+", line)[0] for line in lines if line and line[0] != "#"]
    first = ("jax", "flax", "numpy", "optax", "orbax-checkpoint", "grain")
    return sorted(names, key=lambda name: (name not in first, name))


def installed(python: Path) -> dict[str, str]:
    """The versions in an environment by name."""
    paths = [str(path) for path in python.parent.parent.glob("lib*/python*/site-packages")]
    found = importlib.metadata.distributions(path=paths)
    return {d.metadata["Name"].lower().replace("_", "-"): d.version for d in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the environments")
    parser.add_argument("--ends", nargs="+", default=list(ENDS), choices=ENDS)
    parser.add_argument("--only_build", action="store_true", help="run no tests")
    parser.add_argument("tests", nargs="*", help=f"by default {' '.join(TESTS)}")
    options = parser.parse_args()
    files = [f"tests/{name}.py" for name in options.tests or TESTS]
    columns, failed = [], False
    for end in options.ends:
        version, resolution = ENDS[end]
        python = build(options.folder / end, version, resolution)
        ended = "not run"
        if not options.only_build:
            command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            tests = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            print(tests.stdout, tests.stderr, file=sys.stderr)
            ended = tests.stdout.strip().splitlines()[-1].strip("= ")
            failed |= tests.returncode != 0
        columns.append((f"{end}, Python {version}", installed(python), ended))
    print("| |", " | ".join(head for head, _, _ in columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name in requirements():
        versions = [versions.get(name, "") for _, versions, _ in columns]
        if any(versions):
            print(f"| {name} |", " | ".join(versions), "|")
    print("| **tests** |", " | ".join(ended for _, _, ended in columns), "|")
    sys.exit(failed)


if __name__ == "__main__":
    main()
