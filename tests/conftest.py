"""Sets, before JAX is imported, what every test relies on: eight simulated CPU devices."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """One cache of compiled programs for all processes of a session, which share small models."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="nvae_jax_programs_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        config.add_cleanup(folder.cleanup)


# Files of tests that compile models, start processes or convert datasets. All others are marked
# `quick`, for daily work.
SLOW = {
    f"test_{name}"
    for name in ["aot", "benchmark", "cells", "configs_on_data", "convolution", "costs", "decoder", "depthwise", "edit", "evaluate", "fid", "flows", "import_official", "inception", "interpolate", "latents", "launch", "launch_slurm", "launch_tpu", "likelihood", "loading", "loop", "neighbors", "nvae", "operations", "paper", "parity", "prepare", "processes", "pytorch", "recalibration", "refusals", "regularizers", "sampling", "step", "step_split", "tower", "trained", "workloads"]
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem not in SLOW:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder of prepared datasets and, by name, what they were made of; see tests/stored.py."""
    import stored

    folder = tmp_path_factory.mktemp("prepared")
    made = {
        "mnist": stored.write_mnist(folder),
        "omniglot": stored.prepare_omniglot(folder),
        "cifar10": stored.write_cifar10(folder),
        "imagenet32": stored.write_imagenet(folder, 32),
        "imagenet64": stored.write_imagenet(folder, 64),
        "celeba64": stored.write_celeba(folder),
        "celebahq256": stored.prepare_celebahq(folder),
        "ffhq256": stored.prepare_ffhq(folder),
        "bedroom": stored.prepare_lsun(folder, "bedroom"),
        "church_outdoor": stored.prepare_lsun(folder, "church_outdoor"),
        "tower": stored.prepare_lsun(folder, "tower"),
    }
    return folder, made
