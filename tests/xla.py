"""What XLA is told by the tests and by the processes that they start."""

CPU_THREADS = 24  # see `nvae_jax.processes`, which may not be imported yet


def xla_flags(devices: int) -> str:
    """For so many simulated devices, and not to optimise: compilation takes nearly all the time."""
    return f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
