"""What XLA is told by the tests and by the processes that they start."""

# Of XLA. A device that waits in two sums over the devices holds two threads, and if there are no
# more threads than devices, the last device may never get one.
THREADS = 24


def xla_flags(devices: int) -> str:
    """For so many simulated devices, and not to optimise: compilation takes nearly all the time."""
    return f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
