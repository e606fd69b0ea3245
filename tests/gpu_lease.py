"""Everything that is worth measuring on a GPU, in twenty minutes of it.

    python tests/gpu_lease.py --output lease --configs   # writes configurations, on any machine
    python tests/gpu_lease.py --output lease             # measures, on the machine with the GPU
    python tests/gpu_lease.py --output lease --small     # a rehearsal with tiny models

The first command requires what a run requires; the second only JAX, Flax, optax and NumPy, as
parts that require more are left out. Each part is a process with a time limit of its own, so one
that fails or hangs costs the others nothing. After each, `results.json` and `results.md` hold all
figures so far; `PART.log` has what it printed.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ("cifar10_one_gpu", "celeba64_one_gpu", "ffhq256_one_gpu", "celebahq256", "cifar_bench")
TESTS = ("depthwise", "cells", "convolution", "normalization", "flows", "distributions", "step")
PAPERS_SAMPLES = 36  # images of 256×256 that the paper drew at once, at 56 ms each on a Titan V
# What is different in a rehearsal.
SMALL = {
    "model": {
        "num_scales": 1,
        "num_groups": 2,  # the race is for several
        "num_blocks": 1,
        "encoder_channels": 4,
        "decoder_channels": 4,
        "adaptive_groups": False,
        "min_groups": 1,
        "num_flows": 0,
        "num_latents": 2,
        "image_shape": [8, 8, 3],
    },
    "training": {"batch_size": 2, "accumulation_steps": 1},
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A command with a time limit in seconds; `needs` are modules beside the benchmark's own."""

    name: str
    limit: int
    command: list[str]
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def plan(folder, small):
    """The parts in their order, the most wanted first."""
    repeats = ["--repeats=1"] if small else []

    def benchmark(name, limit, config, what, *options, **environment):
        command = ["-m", "nvae_jax.tools.benchmark", "--config", configuration(folder, config)]
        command += [f"--what={what}", f"--json={results(folder, name)}", *repeats, *options]
        return Part(name, limit, command, environment=environment)

    bfloat16 = "--config.model.dtype=bfloat16"
    cifar10 = "cifar10_one_gpu", "update", bfloat16
    samples = f"--num_images={2 if small else PAPERS_SAMPLES}"
    files = [f"tests/test_{name}.py" for name in (TESTS[:1] if small else TESTS)]
    # Goldens are of float32, for which GPUs multiply in fewer bits unless told otherwise.
    exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    if not small:
        exact["JAX_PLATFORMS"] = "cuda"
    return [
        benchmark("cifar10", 180, "cifar10_one_gpu", "update,sample", bfloat16),
        benchmark("ffhq256", 180, "ffhq256_one_gpu", "update,sample", bfloat16, samples),
        Part("tests", 120, ["-m", "pytest", "-q", *files], ("pytest", "chex"), exact),
        benchmark("operations", 90, "cifar10_one_gpu", "operations", bfloat16),
        benchmark("celeba64", 120, "celeba64_one_gpu", "update,sample", bfloat16),
        benchmark("samples", 100, "celebahq256", "sample", bfloat16, samples),
        benchmark("cifar10_products", 80, *cifar10, NVAE_JAX_DEPTHWISE_ON_GPU="products"),
        benchmark("cifar10_cell", 80, *cifar10, "--config.model.remat=cell"),
        benchmark("cifar10_group", 80, *cifar10, "--config.model.remat=group"),
        Part(
            "race",
            120,
            ["tests/race.py", "--config", configuration(folder, "cifar_bench"), "--rounds=3"],
            ("torch",),
        ),
        benchmark("step", 100, "cifar10_one_gpu", "train", bfloat16),
    ]


def configuration(folder, name):
    return str(folder / "configs" / f"{name}.json")


def results(folder, part):
    return str(folder / f"{part}.json")


def write_configs(folder, small):
    """Writes the configurations as plain values, which need no ml-collections to be read."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    for name in CONFIGS:
        path = configuration(folder, name)
        command = ["-m", "nvae_jax.tools.benchmark", "--config", f"configs/{name}.py"]
        subprocess.run([sys.executable, *command, "--write_config", path], cwd=ROOT, check=True)
        if small:
            settings = json.loads(pathlib.Path(path).read_text())
            changed = {section: settings[section] | SMALL[section] for section in SMALL}
            pathlib.Path(path).write_text(json.dumps(changed))


def run(part, folder, left):
    """Runs a part in at most `left` seconds; returns what became of it, as plain values."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return {"part": part.name, "result": f"left out, without {', '.join(missing)}"}
    start = time.monotonic()
    log = folder / f"{part.name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | part.environment,
            start_new_session=True,
        )
        try:
            code = process.wait(max(min(part.limit, left), 1))
            result = "done" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            result = "took too long"
        finally:
            end(process)
    seconds = round(time.monotonic() - start, 1)
    lines = log.read_text(errors="replace").splitlines()
    found = {"part": part.name, "result": result, "seconds": seconds, "tail": lines[-40:]}
    variables = [f"{name}={value}" for name, value in part.environment.items()]
    return found | {"command": " ".join([*variables, "python", *part.command])}


def end(process):
    """Ends a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def figures(folder, name):
    """The rows of a table from the file that a benchmark has written; none without it."""
    try:
        benchmark = json.loads(pathlib.Path(results(folder, name)).read_text())
    except (OSError, ValueError):
        return []
    rows = []
    for row in benchmark["rows"]:
        share = row["share"]
        rows.append(
            {
                "part": name,
                "what": f"{row['what']}: {row['name']}",
                "ms": 1e3 * row["median"],
                "ms per image": 1e3 * row["median"] / row["images"] if row["images"] else None,
                "GiB, by the compiler": row["memory"] and row["memory"] / 2**30,
                "GiB, at the peak": row["peak"] and row["peak"] / 2**30,
                "of matrix rate": share["matrix"],
                "of memory rate": share["bandwidth"],
            }
        )
    return rows


def report(folder, done):
    """Writes what there is so far."""
    rows = [row for part in done for row in figures(folder, part["part"])]
    text = json.dumps({"parts": done, "figures": rows}, indent=1)
    (folder / "results.json").write_text(text + "\n")
    lines = ["| part | result | s |", "|---|---|---|"]
    lines += [f"| {p['part']} | {p['result']} | {p.get('seconds', '')} |" for p in done]
    if rows:
        lines += ["", f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
        lines += [f"| {' | '.join(map(cell, row.values()))} |" for row in rows]
    for part in done:
        if part["part"] in ("race", "tests") and "tail" in part:
            lines += ["", f"`{part['part']}`", "", "```", *part["tail"][-12:], "```"]
    (folder / "results.md").write_text("\n".join(lines) + "\n")


def cell(value):
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=20, help="of the lease")
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--configs", action="store_true", help="only write the configurations")
    parser.add_argument("--only", help="some parts, with commas")
    options = parser.parse_args()
    # As an exception, so that the part that is running ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start, folder = time.monotonic(), options.output.resolve()
    if options.configs or not all(map(os.path.exists, (configuration(folder, n) for n in CONFIGS))):
        write_configs(folder, options.small)
    if options.configs:
        return
    done = []
    for part in plan(folder, options.small):
        if options.only and part.name not in options.only.split(","):
            continue
        left = 60 * options.minutes - (time.monotonic() - start)
        if left < 10:
            done.append({"part": part.name, "result": "left out, for lack of time"})
        else:
            print(f"{part.name}, at most {min(part.limit, left):.0f} s", flush=True)
            done.append(run(part, folder, left))
            print(f"  {done[-1]['result']}", flush=True)
        report(folder, done)
    print((folder / "results.md").read_text())


if __name__ == "__main__":
    main()
