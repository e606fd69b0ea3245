"""Latents that are read out of the top-down tower and given back to it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, random_noise, random_variables

from nvae_jax.model import NVAE

CONFIG = dataclasses.replace(SMALL, unroll=False)
MODEL = NVAE(CONFIG)
BATCH = 3
VARIABLES = random_variables(CONFIG)
RNG = np.random.default_rng(1)
IMAGES = np.float32(RNG.uniform(size=(BATCH, *CONFIG.image_shape)))

noise_of_a_batch = functools.partial(random_noise, CONFIG, BATCH, RNG)
encode = jax.jit(functools.partial(MODEL.apply, VARIABLES, method="encode"))
decode = jax.jit(functools.partial(MODEL.apply, VARIABLES, method="decode"))
run = jax.jit(lambda x, noise: MODEL.apply(VARIABLES, x, False, noise).logits)
sample = jax.jit(
    lambda noise: MODEL.apply(VARIABLES, BATCH, 1.0, noise, method="sample_prior"),
)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_latents_of_an_image_give_the_image_of_the_forward_pass():
    noise = noise_of_a_batch()
    latents, logits = encode(IMAGES, noise), run(IMAGES, noise)
    assert [z.shape[1:] for z in latents.values] == list(CONFIG.latent_shapes)
    close(decode(latents.values), logits)
    close(sample(latents.noise), logits)


@pytest.mark.parametrize("given", [[True, False, False, False], [True, True, False, True]])
def test_groups_that_are_not_given_are_the_priors(given):
    latents, noise = encode(IMAGES, noise_of_a_batch()), noise_of_a_batch()
    logits = decode(latents.values, jnp.asarray(given), 1.0, noise)
    # The same by the prior alone: the given groups' draws are those under the prior at the latents
    # above them, which a first pass finds where the latents above are not the image's.
    if given[3]:
        above = [latents.noise[0], latents.noise[1], noise[2], noise[3]]
        assert not np.allclose(logits, sample(above), atol=1e-3)
        redrawn = decode([*latents.values[:3], noise[3]], jnp.asarray(given), 1.0, noise)
        assert not np.allclose(logits, redrawn, atol=1e-3)
    else:
        close(logits, sample([latents.noise[0], *noise[1:]]))


def test_a_key_an_image_leaves_the_rest_of_the_batch_out():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(BATCH))
    latents = encode(IMAGES, keys)
    order = np.array([2, 0, 1])
    for z, permuted in zip(latents.values, encode(IMAGES[order], keys[order]).values, strict=True):
        close(permuted, z[order])
    # A group's draw is made with the group's part of the image's key.
    noise = [
        jnp.stack([jax.random.normal(jax.random.split(key, 4)[g], shape) for key in keys])
        for g, shape in enumerate(CONFIG.latent_shapes)
    ]
    close(encode(IMAGES, noise).values[3], latents.values[3])


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"latents has shapes .*; expected, top-down: \[\(3, 4, 2"):
        decode(noise_of_a_batch()[::-1])
    with pytest.raises(ValueError, match=r"noise has \(2,\) keys; expected: \(3,\)"):
        encode(IMAGES, jax.random.split(jax.random.key(0), 2))
