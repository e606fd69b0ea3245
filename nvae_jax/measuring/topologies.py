"""Devices to compile for that need not be at hand: TPU slices and GPUs.

JAX's compilers for both are in wheels and run on any machine. A TPU's is told the name of a slice;
a GPU's is told what the driver would report of the card, which is in `GPUS`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from nvae_jax.errors import ConfigError, require
from nvae_jax.training.fitting import GIB, device_memory

# Memory of a device as JAX counts devices, from the makers' documentation.
TPU_MEMORY = {"v2": 8, "v3": 16, "v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB

_TPU_COMPILER = "with libtpu (pip install libtpu)"
_GPU_COMPILER = (
    "with JAX's compiler for GPUs (pip install "
    f"jax-cuda12-plugin=={jax.__version__} nvidia-cuda-nvcc-cu12)"
)


@dataclasses.dataclass(frozen=True)
class Capability:
    """What cards of one compute capability have in common.

    Attributes:
      lanes: float32 units of a multiprocessor.
      threads: that a multiprocessor holds.
      shared: bytes of shared memory of a multiprocessor.
      block_shared: bytes of it that a block can ask for.
      extension: the instructions that only this capability has.
    """

    lanes: int
    threads: int
    shared: int
    block_shared: int
    extension: str = "NONE"


# CUDA C++ Programming Guide, technical specifications per compute capability.
CAPABILITIES = {
    (7, 0): Capability(64, 2048, 96 * 1024, 96 * 1024),
    (7, 5): Capability(64, 1024, 64 * 1024, 64 * 1024),
    (8, 0): Capability(64, 2048, 164 * 1024, 163 * 1024),
    (8, 6): Capability(128, 1536, 100 * 1024, 99 * 1024),
    (8, 9): Capability(128, 1536, 100 * 1024, 99 * 1024),
    (9, 0): Capability(128, 2048, 228 * 1024, 227 * 1024, "ACCELERATED_FEATURES"),
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card.

    Attributes:
      name: as the driver reports it.
      capability: compute capability, a key of `CAPABILITIES`.
      multiprocessors: how many it has.
      clock: GHz at most.
      cache: bytes of the second level.
      memory: bytes that the driver reports.
      bandwidth: bytes of memory per second.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    cache: int
    memory: int
    bandwidth: float


_MIB = 2**20
# By the name that `--topology` has for them. Sources: github.com/openxla/xla, the files v100,
# a100_sxm_40, a100_sxm_80, a6000, h100_sxm and h200 of xla/backends/gpu/target_config/specs;
# NVIDIA's datasheets of the T4 and the L4, and its whitepaper of the Ada architecture (L4, RTX
# 4090). Other sizes of memory are what nvidia-smi reports (CUDA's deviceQuery for the T4).
GPUS = {
    "t4": Gpu("Tesla T4", (7, 5), 40, 1.59, 4 * _MIB, 15843721216, 320e9),
    "v100": Gpu("Tesla V100-SXM2-16GB", (7, 0), 80, 1.53, 6 * _MIB, 16935682048, 898.048e9),
    "v100-32": Gpu("Tesla V100-SXM2-32GB", (7, 0), 80, 1.53, 6 * _MIB, 32510 * _MIB, 898.048e9),
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 40 * _MIB, 42331013120, 1555.2e9),
    "a100-80": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * _MIB, 85100068864, 2039.04e9),
    "a6000": Gpu("NVIDIA RTX A6000", (8, 6), 84, 1.8, 6 * _MIB, 51041271808, 768.096e9),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 2.04, 48 * _MIB, 23034 * _MIB, 300e9),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 72 * _MIB, 24564 * _MIB, 1008e9),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * _MIB, 84942979072, 3352.32e9),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", (9, 0), 132, 1.98, 50 * _MIB, 151397597184, 4800e9),
}


def make_devices(topology: str | None) -> tuple[list[Any], float | None]:
    """The devices to compile for, and the bytes of memory of each where they are known.

    Args:
      topology: a TPU slice, generation and chips, such as v5e:4x8; or GPUs, a key of `GPUS` and
        their number, such as h100:8, or h100:2x8 for two machines; None: the devices of this
        machine. Those of a CPU share its memory.

    Raises:
      ConfigError: there are no such devices, or no compiler for them is installed.
    """
    if topology is None:
        return jax.devices(), device_memory(jax.devices())
    name, _, count = topology.partition(":")
    # So that the compilers look neither for devices of theirs nor for processes that use them.
    if name in GPUS:
        require("--topology", topology, has_gpu_compiler(), _GPU_COMPILER)
        jax.config.update("jax_platforms", "cpu")
        return _gpus(topology, GPUS[name], count or "1")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology is {topology!r}; allowed: {_gpu_names()}, or, {_TPU_COMPILER}, TPU slices"
        )
    jax.config.update("jax_platforms", "cpu")
    return _slice(topology)


def has_gpu_compiler() -> bool:
    """Whether JAX's compiler for GPUs is installed."""
    modules = ("jax_plugins.xla_cuda12", "jax_cuda12_plugin", "nvidia.cuda_nvcc")
    try:
        return None not in map(importlib.util.find_spec, modules)
    except ModuleNotFoundError:  # the package around a module
        return False


def _gpus(topology: str, gpu: Gpu, count: str) -> tuple[list[Any], float]:
    from jax.experimental import topologies

    fits = re.fullmatch(r"([1-9]\d{0,4}x)?[1-9]\d{0,4}", count) is not None
    require("--topology", topology, fits, f"{topology.partition(':')[0]}:8, or :2x8 for 2 machines")
    machines, _, each = count.rpartition("x")
    devices = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(gpu), topology=f"1x{machines or 1}x{each}"
    ).devices
    # The part of a card's memory that JAX reserves.
    part = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return list(devices), part * gpu.memory


def target_config(gpu: Gpu) -> str:
    """XLA's description of a card, a `GpuTargetConfigProto` in text form."""
    capability = CAPABILITIES[gpu.capability]
    major, minor = gpu.capability
    limits = {
        "name": f'"{gpu.name}"',
        "core_count": gpu.multiprocessors,
        "fpus_per_core": capability.lanes,
        "clock_rate_ghz": gpu.clock,
        "l2_cache_size": gpu.cache,
        "device_memory_size": gpu.memory,
        "memory_bandwidth": round(gpu.bandwidth),
        "shared_memory_per_core": capability.shared,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": capability.block_shared,
        "threads_per_core_limit": capability.threads,
        # The same on all cards.
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        # Versions of the software, about those of JAX's wheels.
        "driver_version": '"12.9.0"',
        "runtime_version": '"12.9.0"',
        "compile_time_toolkit_version": '"12.9.0"',
        "dnn_version": '"9.10.0"',
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in limits.items())
    return f"""platform_name: "CUDA"
device_description_str: "{gpu.name}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {capability.extension}
  }}
{lines}
}}
"""


def _gpu_names() -> str:
    return f"GPUs such as h100:8 ({', '.join(GPUS)})"


def _slice(topology: str) -> tuple[list[Any], float | None]:
    from jax.experimental import topologies

    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology is {topology!r}; allowed: a TPU slice such as v5e:2x4, or {_gpu_names()} "
            f"({error})"
        ) from error
    gib = TPU_MEMORY.get(topology.partition(":")[0])
    return list(slice_.devices), None if gib is None else gib * GIB
