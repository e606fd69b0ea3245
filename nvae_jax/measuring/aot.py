"""Whether a run fits, and what its update moves: the real train step, compiled for any devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
from jax.sharding import Mesh

from nvae_jax.config.training import TrainingConfig
from nvae_jax.measuring.compiled import compile_for
from nvae_jax.measuring.hlo import Traffic
from nvae_jax.measuring.workloads import STEPS_PER_EPOCH
from nvae_jax.model.architecture import ModelConfig, Remat
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Objective
from nvae_jax.objectives.table import ELBO
from nvae_jax.training.fitting import GIB, recomputes, required_memory
from nvae_jax.training.program import make_program


@dataclasses.dataclass(frozen=True)
class Report:
    """One compilation; all figures are of one update, per device.

    Attributes:
      devices: how many share the update.
      remat: what the backward pass recomputes, `model.remat`.
      accumulation_steps: parts of the batch, `training.accumulation_steps`.
      batch_per_device: images.
      arguments: bytes of parameters, optimiser state and batch.
      temporaries: bytes.
      peak: bytes that the program requires all together, itself included.
      flops: in convolutions and matrix products, recomputation included; the mean over devices.
      traffic: bytes of main memory, and collectives.
      seconds: duration of the compilation.
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
            f"remat {self.remat}, {self.batch_per_device} image(s) per device in "
            f"{self.accumulation_steps} part(s)\n"
            f"  memory       {self.peak / GIB:.2f} GiB: arguments {self.arguments / GIB:.2f}, "
            f"temporaries {self.temporaries / GIB:.2f}\n"
            f"  work         {self.flops / 1e12:.2f} TFLOP, {self.traffic.bytes / 1e9:.1f} GB of "
            "memory traffic\n"
            f"  collectives  {', '.join(collectives) or 'none'}\n"
            f"  compiled in  {self.seconds:.0f} s"
        )


def compile_step(
    config: VAEConfig, training: TrainingConfig, mesh: Mesh, objective: Objective = ELBO
) -> Report:
    """Compiles the update that `training.loop` runs, for the devices of `mesh`."""
    program = make_program(config, training, STEPS_PER_EPOCH, mesh, flip=True, objective=objective)
    compiled = compile_for(program.update, program.state, program.batch, devices=mesh.size)
    return Report(
        devices=mesh.size,
        remat=config.remat,
        accumulation_steps=training.accumulation_steps,
        batch_per_device=training.batch_size // mesh.size,
        arguments=compiled.arguments,
        temporaries=compiled.temporaries,
        peak=compiled.memory,
        flops=compiled.flops,
        traffic=compiled.traffic,
        seconds=compiled.seconds,
    )


def candidates(
    config: VAEConfig, training: TrainingConfig, mesh: Mesh
) -> Iterator[tuple[VAEConfig, TrainingConfig]]:
    """Settings that may fit, cheapest first: more recomputation, then more parts of the batch."""
    images = training.batch_size // mesh.size
    numbers = [number for number in range(2, images + 1) if images % number == 0]
    # On CPU, recomputation would save nothing.
    saves = recomputes(config) and mesh.devices.flat[0].platform != "cpu"
    remats: tuple[Remat, ...] = ("none", "cell", "group", "offload") if saves else ("none",)
    ways = [(remat, 1) for remat in remats]
    ways += [("group" if saves else "none", number) for number in numbers]
    for remat, parts in ways:
        model = config
        if isinstance(config, ModelConfig):
            model = dataclasses.replace(config, remat=remat)
        yield model, dataclasses.replace(training, accumulation_steps=parts)


def search(
    tried: Iterable[tuple[VAEConfig, TrainingConfig]],
    mesh: Mesh,
    limit: float | None,
    objective: Objective = ELBO,
) -> tuple[list[Report], bool]:
    """Compiles one setting after another, until one fits `limit` bytes; prints every result.

    Returns: the reports, and whether the last one fits; without a limit the first one does.
    """
    reports = []
    for config, training in tried:
        try:
            report = compile_step(config, training, mesh, objective)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # The TPU compiler refuses a program that does not fit, and says by how much.
            reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            parts = training.accumulation_steps
            print(f"remat {config.remat}, {parts} part(s)\n  does not fit: {reason}", flush=True)
            continue
        reports.append(report)
        print(report, flush=True)
        required = required_memory(report.peak, mesh.devices.flat[0].platform, mesh.size)
        print(f"  a run needs  {required / GIB:.2f} GiB", flush=True)
        if limit is None or required <= limit:
            says = "the memory of the device is unknown" if limit is None else "fits"
            remat = f"--config.model.remat={report.remat} " if recomputes(config) else ""
            print(
                f"  {says:11}  {remat}"
                f"--config.training.accumulation_steps={report.accumulation_steps}"
            )
            return reports, True
        print("  does not fit", flush=True)
    return reports, False
