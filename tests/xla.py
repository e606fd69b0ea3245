"""What XLA is told by the tests and by the processes that they start."""

from importlib.metadata import version

# Of XLA. A device that waits in two sums over the devices holds two threads, and if there are no
# more threads than devices, the last device may never get one.
THREADS = 24
# The emitters of fusions take half of what is left of compilation. Later versions of XLA know no
# such flag, and end at one that they do not know.
_EMITTERS = version("jaxlib").startswith(("0.8.", "0.9.", "0.10."))


def xla_flags(devices: int) -> str:
    """For so many simulated devices, and not to optimise: compilation takes nearly all the time."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    return f"{flags} --xla_cpu_use_fusion_emitters=false" if _EMITTERS else flags
