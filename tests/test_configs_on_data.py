"""Every configuration for two steps at reduced width, on data in its true form on disk."""

import functools
import importlib

import jax
import numpy as np
import pytest
import stored
from ml_collections import ConfigDict
from PIL import Image

from nvae_jax.config.run import read_run
from nvae_jax.data.loader import steps_per_epoch, train_batches
from nvae_jax.parallel import make_mesh, shard_batch
from nvae_jax.training.program import make_program

# With equal shapes and likelihoods these leave equal models, which are compiled once.
SMALL = {
    "num_scales": 1,
    "num_groups": 1,
    "adaptive_groups": False,
    "min_groups": 1,
    "num_blocks": 1,
    "num_latents": 2,
    "encoder_channels": 4,
    "decoder_channels": 4,
    "architecture": "res_bnswish",
    "preprocess_cells": 1,
    "postprocess_cells": 1,
    "encoder_cells": 1,
    "decoder_cells": 1,
    "num_mixtures": 1,
    "num_flows": 0,
    "dtype": "float32",
    "remat": "none",
}
TRAINING = {"epochs": 2, "warmup_epochs": 1, "batch_size": 2}

FROM_TFDS = (
    "mnist",
    "mnist_bench",
    "omniglot",
    "stacked_mnist",
    "cifar10",
    "cifar_bench",
    "cifar10_multiscale",
    "cifar10_one_gpu",
    "imagenet32",
    "imagenet64",
    "celeba64",
    "celeba64_conv_vae",
    "celeba64_one_gpu",
    "celebahq256",
    "ffhq256",
    "ffhq256_24ch",
    "ffhq256_one_gpu",
    "lsun_bedroom128",
    "lsun_bedroom256",
    "lsun_church64",
    "lsun_church128",
    "lsun_tower",
)


@functools.cache
def compiled(model, training, flip):
    """(a function that makes a state, the update) of a run on one device."""
    mesh = make_mesh(jax.devices()[:1])
    program = make_program(model, training, 10, mesh, flip=flip)
    update = program.update.lower(program.state, program.batch).compile()
    rng = np.random.default_rng(0)

    def draw(leaf):
        # To compile the initialisation takes half as long as the update; any small numbers do.
        numbers = np.abs(rng.normal(size=leaf.shape)) / 10
        return jax.device_put(numbers.astype(leaf.dtype), leaf.sharding)

    return mesh, lambda: jax.tree.map(draw, program.state), update


def take_two_steps(config):
    config.model.update({name: x for name, x in SMALL.items() if name in config.model})
    # The rest of the training is the same for all, as are the optimiser's shapes.
    config.training = ConfigDict(TRAINING)
    run = read_run(config)
    dataset, training = run.open_data(), run.training
    assert steps_per_epoch(dataset, training.batch_size) > 0
    mesh, make_state, update = compiled(run.model, training, dataset.flip)
    batches = train_batches(dataset, training.batch_size, 0)
    state, losses = make_state(), []
    for _ in range(2):
        state, metrics = update(state, shard_batch(mesh, next(batches)))
        losses.append(float(metrics["loss"]))
    batches.close()
    assert int(state.step) == 2
    assert np.isfinite(losses).all()
    assert min(losses) > 0
    return dataset


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", FROM_TFDS)
def test_two_steps_from_a_prepared_folder(prepared, name):
    config = load(name)
    config.data.data_dir = str(prepared[0])
    take_two_steps(config)


@pytest.mark.parametrize(
    ("name", "size"), [("celeba64", 64), ("imagenet32", 32), ("celebahq256", 256), ("ffhq256", 256)]
)
def test_two_steps_from_the_official_files(tmp_path, name, size):
    images = stored.photos(6, 218, 178) if name == "celeba64" else stored.photos(6, size, size)
    values = [stored.encode(x, "jpeg") if name == "celeba64" else x.tobytes() for x in images]
    stored.write_official_lmdb(tmp_path, {"train": values[:4], "validation": values[4:]})
    config = load(name)
    config.data.lmdb = str(tmp_path)
    take_two_steps(config)


def test_two_steps_from_a_folder_of_photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(40):
        height, width = rng.integers(50, 120, 2)
        image = Image.fromarray(stored.photos(1, int(height), int(width), seed=i)[0])
        image.save(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
    config = load("image_folder")
    config.data.path = str(tmp_path)
    dataset = take_two_steps(config)
    assert len(dataset.train) + len(dataset.test) == 40


def test_every_configuration_is_among_these():
    from test_configs import NAMES

    bundled = {"default", "photos32"}
    bundled |= {"digits", "digits_conv_vae", "digits_large", "digits_one_group"}
    assert {*FROM_TFDS, "image_folder"} == set(NAMES) - bundled
