"""Trains a small model under one fault after another, and writes down what became of each run.

    python tests/faults.py --output=FOLDER

What goes wrong is in `fault_kinds.py`, and how in `faulty.py`. `faults.md` and `faults.json` in
FOLDER have the table; the same command goes on where it was interrupted.
"""

import argparse
import contextlib
import json
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from fault_kinds import AT, FAULTS, SEEDS, Fault
from faulty import Bench
from scipy import stats

from nvae_jax.compilation import keep_compiled_programs

CLEAN = range(10)  # seeds of runs without a fault, by whose spread the others are judged


def bound(clean):
    """The NELBO that a run as good as the clean ones is above in one of a hundred cases.

    That of one more draw from the normal distribution that the clean ones are drawn from.
    """
    deviation = statistics.stdev(clean) * (1 + 1 / len(clean)) ** 0.5
    return statistics.mean(clean) + stats.t.ppf(0.99, len(clean) - 1) * deviation


def verdict(rows, clean):
    """What became of the runs of a fault, and whether that is as it should be."""
    words, sound = [], True
    for row in rows:
        broken = row["not finite"] or not np.isfinite(row["done NELBO"])
        if row["outcome"] == "done":
            recovered = row["nelbo"] <= bound(clean)
            words.append("recovered" if recovered else "done, but worse")
            sound &= recovered and not broken
        elif row["outcome"] == "refused":
            words.append("refused, code 2")
        elif row["outcome"] == "report":
            words.append("report, code 3")
            sound &= row["report"] and not row["called done"] and not broken
        else:
            words.append(row["outcome"])
            sound = False
    return ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words)), sound


def table(results):
    """The table in Markdown: a row per fault."""
    clean = [row["nelbo"] for row in results["none"]]
    lines = [
        "| fault | what became of the runs | left out | gone back | NELBO, nats per image |",
        "|---|---|---|---|---|",
    ]

    def spread(values):
        low, high = min(values), max(values)
        return str(low) if low == high else f"{low} to {high}"

    for name, rows in results.items():
        found = [row["nelbo"] for row in rows if row["outcome"] == "done"]
        nelbo = ""
        if found:
            nelbo = f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"
        words, sound = verdict(rows, clean)
        lines.append(
            f"| {name} | {words}{'' if sound else ' **(!)**'} | "
            f"{spread([row['skipped'] for row in rows])} | "
            f"{spread([row['rollbacks'] for row in rows])} | {nelbo} |"
        )
    return "\n".join(lines) + "\n"


def main():
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder of the table")
    parser.add_argument("--keep", action="store_true", help="keep the runs, beside the table")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    keep_compiled_programs()
    record = options.output / "faults.json"
    results: dict[str, list[dict[str, Any]]] = {}
    if record.exists():
        results = json.loads(record.read_text())
    with contextlib.ExitStack() as stack:
        runs = options.output / "runs"
        if not options.keep:
            runs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs.mkdir(exist_ok=True)
        bench = Bench(runs)
        stack.enter_context(bench.installed())

        def study(title, cases):
            if title in results:
                return
            rows = []
            for fault, seed in cases:
                path = runs / f"{re.sub(r'[^a-zA-Z0-9]+', '_', fault.name)}_{seed}"
                shutil.rmtree(path, ignore_errors=True)
                rows.append(bench.run(fault, seed, path))
                print(json.dumps(rows[-1]), flush=True)
            results[title] = rows
            record.write_text(json.dumps(results, indent=1))
            (options.output / "faults.md").write_text(table(results))

        clean, *faults = FAULTS
        study(clean.name, [(clean, seed) for seed in CLEAN])
        for fault in faults:
            study(fault.name, [(fault, seed) for seed in SEEDS])
        for section, arrays in (("params", "parameters"), ("batch_stats", "batch-norm statistics")):
            names = bench.leaves(section)
            title = f"infinity in each of {len(names)} arrays of {arrays} in turn"
            study(title, [(Fault(n, leaf=n, steps=[AT]), SEEDS[0]) for n in names])
    print(table(results))


if __name__ == "__main__":
    main()
