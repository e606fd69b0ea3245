"""Sets, before JAX is imported, what every test relies on: eight simulated CPU devices."""

import os
import tempfile

from xla import THREADS, xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NPROC", str(THREADS))
os.environ["XLA_FLAGS"] = f"{xla_flags(8)} {os.environ.get('XLA_FLAGS', '')}".strip()

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
    "test_aot",
    "test_api",
    "test_benchmark",
    "test_cells",
    "test_checkpoint_files",
    "test_classes",
    "test_codes",
    "test_comparison",
    "test_codec",
    "test_compress",
    "test_compression",
    "test_header",
    "test_configs_on_data",
    "test_convolution",
    "test_costs",
    "test_damaged_runs",
    "test_decoder",
    "test_depthwise",
    "test_documented",
    "test_edit",
    "test_evaluate",
    "test_export",
    "test_families",
    "test_fid",
    "test_flows",
    "test_folding",
    "test_fuzz",
    "test_going_on",
    "test_gpu_compilation",
    "test_gpu_lease",
    "test_import_official",
    "test_inception",
    "test_interpolate",
    "test_latents",
    "test_launch",
    "test_launch_notebooks",
    "test_launch_slurm",
    "test_launch_tpu",
    "test_layout",
    "test_likelihood",
    "test_loading",
    "test_loop",
    "test_main",
    "test_memory_advice",
    "test_neighbors",
    "test_nvae",
    "test_operations",
    "test_pages",
    "test_paper",
    "test_parity",
    "test_phone_photos",
    "test_pictures",
    "test_prepare",
    "test_processes",
    "test_pytorch",
    "test_recalibration",
    "test_refusals",
    "test_regularizers",
    "test_sampling",
    "test_saving",
    "test_signals",
    "test_spectral",
    "test_step",
    "test_step_parts",
    "test_step_split",
    "test_steps",
    "test_tower",
    "test_trained",
    "test_trouble",
    "test_without_tensorflow",
    "test_viewer",
    "test_workloads",
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
