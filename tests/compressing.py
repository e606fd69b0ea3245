"""Small models that compress images, and images that they compress well."""

import dataclasses
import json
import struct
import types
import zlib

import jax
import numpy as np
from tiny import ONE_DEVICE, SMALL, make_run, random_variables

from nvae_jax.evaluation.trained import TrainedModel, open_run
from nvae_jax.model import NVAE
from nvae_jax.model.distributions import image_distribution

COLOUR = dataclasses.replace(
    SMALL,
    image_shape=(8, 4, 3),
    likelihood="logistic_mixture",
    num_bits=5,
    num_mixtures=2,
    adaptive_groups=True,
)


def forged(content, change):
    """A file whose header says something else, with right checksums all the same.

    Args:
      content: of a file.
      change: of its header, an object as JSON has it; returns another object or, as they are, the
        header's bytes.
    """
    (length,) = struct.unpack_from("<I", content, 10)
    header = change(json.loads(zlib.decompress(content[22 : 22 + length])))
    if not isinstance(header, bytes):
        header = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    start = content[:10] + struct.pack("<II", len(header), zlib.crc32(header))
    return start + struct.pack("<I", zlib.crc32(start)) + header + content[22 + length :]


def tamed(config, variables):
    """Parameters with which latents and pixels are worth something, unlike at random.

    Posteriors are near their priors, and pixels have little noise.
    """
    mixtures = config.num_mixtures

    def change(path, x):
        x = np.array(x)
        names = [key.key for key in path]
        if "posterior" in names:
            x = x - 3 if names[-1] == "log_gain" else 0 * x if names[-1] == "bias" else x
        binary = config.likelihood == "bernoulli"
        if names[-2:] == ["image", "bias" if binary else "log_gain"]:
            x = x - 3
        elif names[-2:] == ["image", "bias"]:
            x[mixtures:].reshape(config.image_shape[-1], -1, mixtures)[:, 1] = -3.5
        return np.float32(x)

    return jax.tree_util.tree_map_with_path(change, variables)


def model_of(config, seed=0):
    """A model as `open_run` returns it; without a run, which compression does not need."""
    variables = tamed(config, random_variables(config))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: np.float32(x + 0.01 * rng.normal(size=x.shape)), variables)
    run = types.SimpleNamespace(model=config)
    return TrainedModel(None, run, ONE_DEVICE, variables, step=7, log=print)


def model_of_digits(path):
    """A model with a run, which it makes at a path."""
    model = open_run(make_run(path), ONE_DEVICE)
    return dataclasses.replace(model, variables=tamed(model.config, model.variables))


def samples(model, number):
    """Images of a model's own, (h, w, C) uint8 each, which it codes as well as is possible."""
    config = model.config

    def draw(variables, key):
        logits = NVAE(config).apply(
            variables, number, method="sample_prior", rngs={"sample": jax.random.fold_in(key, 0)}
        )
        return image_distribution(config, logits).sample(jax.random.fold_in(key, 1))

    x = np.asarray(model.compile(draw)(model.variables, jax.random.key(0)))
    bits = 1 if config.image.binarize else config.num_bits
    levels = np.rint(x * (2**bits - 1)).astype(np.uint8)
    levels = levels * 255 if bits == 1 else levels << (8 - bits)
    return list(config.image.without_border(levels))
