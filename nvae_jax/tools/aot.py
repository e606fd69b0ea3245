"""Does a run fit, and what will it move? Compiles the real train step for devices not at hand.

Command: python -m nvae_jax.tools.aot --config configs/ffhq256.py --topology v5e:4x8 [--fit]

`--topology` names a TPU slice, generation and chips; it takes `pip install libtpu`, not a TPU.
Without it the step is compiled for the devices of this machine. `--fit` looks for the first way to
fit the memory: with ever more computed again in the backward pass, then with the batch in ever more
parts. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from nvae_jax.command_line import door, parse_flags
from nvae_jax.config.run import read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError, writing
from nvae_jax.measuring.flops import count_flops
from nvae_jax.measuring.hlo import Traffic, peak_memory, traffic
from nvae_jax.model.architecture import ModelConfig, Remat
from nvae_jax.parallel import make_mesh
from nvae_jax.training.program import make_program

GIB = 2**30
# Memory of a device as JAX counts devices, from the makers' documentation.
TPU_MEMORY = {"v2": 8, "v3": 16, "v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB


@dataclasses.dataclass(frozen=True)
class Report:
    """One compilation; all figures are of one device and one update.

    arguments, temporaries, peak: bytes. `peak` is of everything together: parameters, optimiser
    state, batch, temporaries and what the program itself takes. flops: of convolutions and matrix
    products, recomputation included, on average over devices. seconds: it took to compile.
    """

    devices: int
    remat: str
    accumulation_steps: int
    batch_per_device: int
    arguments: int
    temporaries: int
    peak: int
    flops: float
    traffic: Traffic
    seconds: float

    def __str__(self) -> str:
        moved = self.traffic.collective_bytes
        collectives = (
            f"{count} {name} ({moved[name] / 1e6:.1f} MB)"
            for name, count in sorted(self.traffic.collectives.items())
        )
        return (
            f"remat {self.remat}, {self.batch_per_device} image(s) a device in "
            f"{self.accumulation_steps} part(s)\n"
            f"  memory       {self.peak / GIB:.2f} GiB: arguments {self.arguments / GIB:.2f}, "
            f"temporaries {self.temporaries / GIB:.2f}\n"
            f"  work         {self.flops / 1e12:.2f} TFLOP, {self.traffic.bytes / 1e9:.1f} GB of "
            "memory traffic\n"
            f"  collectives  {', '.join(collectives) or 'none'}\n"
            f"  compiled in  {self.seconds:.0f} s"
        )


def compile_step(config: ModelConfig, training: TrainingConfig, mesh: Mesh) -> Report:
    """Compiles the update that `training.loop` runs, for the devices of `mesh`."""
    start = time.monotonic()
    program = make_program(
        config,
        training,
        steps_per_epoch=1000,  # a number in the schedule, nothing else
        mesh=mesh,
        flip=True,
    )
    traced = program.update.trace(program.state, program.batch)
    compiled = traced.lower().compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    return Report(
        devices=mesh.size,
        remat=config.remat,
        accumulation_steps=training.accumulation_steps,
        batch_per_device=training.batch_size // mesh.size,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak_memory(compiled),
        flops=count_flops(traced.jaxpr) / mesh.size,
        traffic=traffic(compiled.as_text()),
        seconds=seconds,
    )


def candidates(
    config: ModelConfig, training: TrainingConfig, mesh: Mesh
) -> Iterator[tuple[ModelConfig, TrainingConfig]]:
    """What may fit, cheapest first: more computed again, then ever more parts of the batch."""
    ways: list[tuple[Remat, int]] = [("none", 1), ("cell", 1), ("group", 1)]
    if mesh.devices.flat[0].platform != "cpu":
        ways.append(("offload", 1))
    images = training.batch_size // mesh.size
    ways += [("group", parts) for parts in range(2, images + 1) if images % parts == 0]
    for remat, parts in ways:
        yield (
            dataclasses.replace(config, remat=remat),
            dataclasses.replace(training, accumulation_steps=parts),
        )


def make_devices(topology: str | None) -> tuple[list[Any], float | None]:
    """The devices of a slice, or of this machine, and the bytes of memory of each, if known.

    Devices of a CPU share the machine's memory.

    Raises: ValueError for a slice that there is not, with what the compiler says.
    """
    if topology is None:
        devices = jax.devices()
        if devices[0].platform == "cpu":
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            return devices, memory / len(devices)
        return devices, (devices[0].memory_stats() or {}).get("bytes_limit")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"topology is {topology!r}, which requires libtpu: pip install libtpu")
    from jax.experimental import topologies

    # There is no TPU to ask for anything, and none that two processes could disagree about.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        raise ConfigError(
            f"topology is {topology!r}; allowed: a TPU slice such as v5e:2x4 or v4:2x2x4 ({error})"
        ) from error
    gib = TPU_MEMORY.get(topology.partition(":")[0])
    return list(slice_.devices), None if gib is None else gib * GIB


def search(
    tried: Iterable[tuple[ModelConfig, TrainingConfig]], mesh: Mesh, limit: float | None
) -> tuple[list[Report], bool]:
    """Compiles one after the other and prints what it takes, until one fits `limit` bytes.

    Returns: the reports, and whether the last one fits; without a limit the first one does.
    """
    reports = []
    for config, training in tried:
        try:
            report = compile_step(config, training, mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # The TPU compiler refuses what does not fit, and says by how much.
            reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            parts = training.accumulation_steps
            print(f"remat {config.remat}, {parts} part(s)\n  does not fit: {reason}", flush=True)
            continue
        reports.append(report)
        print(report, flush=True)
        if limit is None or report.peak <= limit:
            says = "memory of the device unknown" if limit is None else "fits"
            print(
                f"  {says:11}  --config.model.remat={report.remat} "
                f"--config.training.accumulation_steps={report.accumulation_steps}"
            )
            return reports, True
        print("  does not fit", flush=True)
    return reports, False


def main(argv: list[str]) -> None:
    """Compiles what the flags say and prints what it takes."""
    del argv
    logging.set_verbosity(logging.ERROR)
    options = flags.FLAGS
    with door():
        run = read_run(options.config)
        config, training = run.model, run.training
        devices, limit = make_devices(options.topology)
        mesh = make_mesh(devices, training.parameter_shards)
        where = options.topology or devices[0].device_kind
        known = "" if limit is None else f" of {limit / GIB:.1f} GiB"
        print(
            f"{where}: {mesh.size} device(s){known}, {training.batch_size} images, {config.dtype}"
        )
        tried = candidates(config, training, mesh) if options.fit else [(config, training)]
        reports, fits = search(tried, mesh, limit)
        if options.json:
            with writing(options.json), open(options.json, "w") as file:
                json.dump([dataclasses.asdict(report) for report in reports], file, indent=2)
    if not fits:
        way = "" if options.fit else "--fit, "
        raise SystemExit(f"aot: it takes {way}more devices, or training.parameter_shards")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What to train.", lock_config=True)
    flags.DEFINE_string("topology", None, "TPU slice such as v5e:4x8, not this machine.")
    flags.DEFINE_bool("fit", False, "Find the first remat and batch division that fit.")
    flags.DEFINE_string("json", None, "File for the figures.")
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parse_flags)
