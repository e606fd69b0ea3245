"""The whole model: shapes, terms of the ELBO, randomness, and what depends on what."""

import dataclasses
import functools

import chex
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from nvae_jax.model import NVAE, ModelConfig, variable_shapes
from nvae_jax.model.distributions import num_image_parameters
from nvae_jax.model.flows import kernel_mask
from nvae_jax.model.nvae import effective_kernels

tiny = functools.partial(
    ModelConfig,
    encoder_channels=4,
    decoder_channels=4,
    num_latents=2,
    encoder_cells=1,
    decoder_cells=1,
    preprocess_cells=1,
    postprocess_cells=1,
    num_mixtures=2,
    unroll=False,
)
PLAIN = tiny(
    image_shape=(4, 8, 1),
    likelihood="bernoulli",
    num_scales=2,
    num_groups=2,
    num_blocks=0,
    architecture="res_bnswish",
    squeeze_excite=False,
    residual_posterior=False,
)
GREY = tiny(image_shape=(8, 8, 1), num_bits=5, num_groups=2, border=1)
ONE_GROUP = tiny(image_shape=(2, 4, 3), num_blocks=0, num_flows=1, flow="mixture_logistic")
LOOP = tiny(image_shape=(4, 4, 1), likelihood="bernoulli", num_blocks=0, num_groups=3)
FLOW = dataclasses.replace(LOOP, likelihood="normal", num_flows=1, flow="mixture_logistic")
SHAPES = {
    "plain": PLAIN,
    "grey": GREY,
    "bfloat16": dataclasses.replace(GREY, dtype="bfloat16"),
    "one_group": ONE_GROUP,
    "data-initialised": tiny(image_shape=(8, 8, 3), num_groups=2, architecture="res_elu"),
    "three scales": tiny(
        image_shape=(8, 16, 3),
        likelihood="normal",
        num_scales=3,
        num_groups=3,
        adaptive_groups=True,
        encoder_channels=6,
        num_flows=2,
        flow="mixture_logistic",
    ),
}
BATCH = 3


def random_noise(config, seed=2):
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.normal(size=(BATCH, *shape))) for shape in config.latent_shapes]


@functools.cache
def random_inputs(config):
    """Variables in no special state, with groups and channels that all differ; images; noise."""
    rng = np.random.default_rng(0)
    centres = {"scale": 1.0, "var": 1.0, "log_gain": -0.5}

    def draw(path, shape):
        centre = centres.get(path[-1].key, 0.0)
        return jnp.float32(rng.uniform(centre - 0.5, centre + 0.5, shape.shape))

    variables = jax.tree_util.tree_map_with_path(draw, variable_shapes(config))
    images = rng.uniform(size=(BATCH, *config.image_shape))
    return variables, jnp.float32(images), random_noise(config)


@functools.cache
def encode(config):
    """A compiled evaluation pass: variables, images, noise → output."""
    return jax.jit(lambda variables, x, noise: NVAE(config).apply(variables, x, False, noise))


def with_params(variables, change):
    """Variables with some parameters replaced: `change` is called with the path and the array."""
    params = {path: change(path, x) for path, x in flatten_dict(variables["params"]).items()}
    return {**variables, "params": unflatten_dict(params)}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_shapes(config):
    model, groups = NVAE(config), config.total_groups
    rngs = {"params": jax.random.key(0), "sample": jax.random.key(1)}

    def run():
        x = jnp.zeros((BATCH, *config.image_shape))
        output, variables = model.init_with_output(rngs, x, True)
        draw = model.apply(variables, BATCH, 0.7, method="sample_prior", rngs=rngs)
        return output, draw, variables

    output, draw, variables = jax.eval_shape(run)
    logits = (BATCH, *config.image_shape[:2], num_image_parameters(config))
    chex.assert_shape([output.logits, draw], logits)
    chex.assert_shape([output.log_q, output.log_p], (BATCH,))
    chex.assert_shape(output.kl, (BATCH, groups))
    chex.assert_shape(output.kl_per_channel, (groups, config.num_latents))
    # Whatever the activations are, results and variables are float32.
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((output, draw, variables))}
    assert dtypes == {np.dtype(np.float32)}


def test_with_flows_the_kl_is_its_estimate_from_one_draw():
    output = encode(FLOW)(*random_inputs(FLOW))
    chex.assert_tree_all_finite(output)
    goldens.assert_close(output.kl.sum(1), output.log_q - output.log_p, 1e-4)
    goldens.assert_close(output.kl_per_channel.sum(1), output.kl.mean(0))


def test_importance_weights_average_to_one():
    # E_q[p(z) / q(z)] = 1, if log q follows the latents through the flows.
    number = 20_000
    variables = with_params(
        random_inputs(ONE_GROUP)[0],
        # A posterior near the prior, and flows that change it little: the weights vary little.
        lambda path, x: 0.3 * x if "posterior" in path or "head" in path else x,
    )
    noise = jnp.float32(np.random.default_rng(0).normal(size=(number, 2, 4, 2)))
    output = encode(ONE_GROUP)(variables, jnp.zeros((number, 2, 4, 3)), [noise])
    weights = np.exp(np.float64(output.log_p - output.log_q))
    assert 0.1 < weights.std() < 10
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(number)


def test_without_flows_the_kl_is_the_mean_of_that_estimate():
    variables, images, _ = random_inputs(PLAIN)
    run = functools.partial(encode(PLAIN), variables, images)
    outputs = [run(random_noise(PLAIN, seed)) for seed in range(100)]
    output = jax.tree.map(lambda *x: np.stack(x), *outputs)
    goldens.assert_close(output.kl_per_channel.sum(-1), output.kl.mean(1))
    error = (output.log_q - output.log_p) - output.kl.sum(-1)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
    assert error.std() > 0.1
    # The first group's does not depend on the draws at all.
    np.testing.assert_array_equal(output.kl[:, :, 0], np.broadcast_to(output.kl[0, :, 0], (100, 3)))


@pytest.mark.parametrize("config", [LOOP, PLAIN], ids=["residual", "plain"])
def test_a_posterior_of_raw_zeros(config):
    variables, images, noise = random_inputs(config)
    zero = with_params(variables, lambda path, x: 0.0 * x if path[-2] == "posterior" else x)
    kl = encode(config)(zero, images, noise).kl
    # Relative to the prior that is the prior. Else it is the prior of the first group alone.
    np.testing.assert_allclose(kl[:, 0], 0.0, atol=1e-4)
    if config.residual_posterior:
        np.testing.assert_allclose(kl, 0.0, atol=1e-4)
    else:
        assert np.all(kl[:, 1:] > 0.1)


def test_groups_see_the_features_of_the_encoder_in_reverse():
    # Without `combine` the decoder's features are constant: only a group's tap tells it the image.
    variables, images, noise = random_inputs(LOOP)
    variables = with_params(variables, lambda path, x: x * (path[-2] != "combine"))
    expected = encode(LOOP)(variables, images, noise).kl
    for group in range(3):
        changed = with_params(
            variables,
            lambda path, x: x.at[group].add(0.1) if path[:2] == ("encoder", "scale_0") else x,  # noqa: B023
        )
        # The encoder's group `group` reaches its own tap and the later ones, so the earlier draws.
        differs = np.any(encode(LOOP)(changed, images, noise).kl != expected, axis=0)
        np.testing.assert_array_equal(differs, np.arange(3) <= 2 - group)


def test_grey_images_enter_as_zeros():
    variables, images, noise = random_inputs(LOOP)
    other = with_params(variables, lambda path, x: x + 1 if path[1:] == ("stem", "kernel") else x)
    expected, grey = encode(LOOP)(variables, 0 * images + 0.5, noise), 0 * images + 0.5
    chex.assert_trees_all_close(encode(LOOP)(other, grey, noise), expected, rtol=1e-5)
    assert np.all(encode(LOOP)(other, images, noise).kl[:, 0] != expected.kl[:, 0])


def test_images_of_a_batch_do_not_meet_in_evaluation():
    run, (variables, images, noise) = encode(PLAIN), random_inputs(PLAIN)
    expected = run(variables, images, noise)
    output = run(variables, images.at[1:].set(0.5), [x.at[1:].set(0.0) for x in noise])
    for name in ("logits", "log_q", "log_p", "kl"):
        np.testing.assert_allclose(getattr(output, name)[0], getattr(expected, name)[0], rtol=1e-5)
        assert np.any(getattr(output, name)[1] != getattr(expected, name)[1])


@pytest.mark.parametrize("group", range(4))
def test_a_draw_reaches_the_groups_after_it_and_the_image(group):
    run, (variables, images, noise) = encode(PLAIN), random_inputs(PLAIN)
    expected = run(variables, images, noise)
    output = run(variables, images, [x + (i == group) for i, x in enumerate(noise)])
    np.testing.assert_array_equal(output.kl[:, : group + 1], expected.kl[:, : group + 1])
    assert np.all(output.kl[:, group + 1 :] != expected.kl[:, group + 1 :])
    assert not np.allclose(output.logits, expected.logits)


def test_noise_comes_from_the_sample_stream():
    variables, images, noise = random_inputs(LOOP)

    @jax.jit
    def draw(key):
        rngs = {"sample": key}
        stream = NVAE(LOOP).apply({}, rngs=rngs, method=lambda model: model.make_rng("sample"))
        return NVAE(LOOP).apply(variables, images, False, rngs=rngs), stream

    output, stream = draw(jax.random.key(3))
    keys = jax.random.split(stream, LOOP.total_groups)
    given = [jax.random.normal(key, x.shape) for key, x in zip(keys, noise, strict=True)]
    chex.assert_trees_all_close(output, encode(LOOP)(variables, images, given), rtol=1e-4)
    chex.assert_trees_all_equal(output, draw(jax.random.key(3))[0])
    assert not np.allclose(output.logits, draw(jax.random.key(4))[0].logits)


def test_temperature_multiplies_the_spread_of_the_prior():
    model, (variables, _, noise) = NVAE(PLAIN), random_inputs(PLAIN)

    @jax.jit
    def draw(temperature, noise):
        return model.apply(variables, BATCH, temperature, noise, method="sample_prior")

    ones, temperatures = np.ones(4, np.float32), np.float32([0.7, 0.0, 1.0, 2.0])
    scaled = [t * x for t, x in zip(temperatures, noise, strict=True)]
    goldens.assert_close(draw(temperatures, noise), draw(ones, scaled))
    assert not np.allclose(draw(ones, noise), draw(ones, scaled))
    np.testing.assert_array_equal(draw(ones, noise), draw(ones, noise))
    # Without spread all images are one, whatever the noise.
    frozen = draw(0 * ones, noise)
    np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[:1], frozen.shape))
    np.testing.assert_array_equal(frozen, draw(0 * ones, scaled))


def test_images_of_another_shape_are_refused():
    for shape in [(BATCH, 4, 8, 1), (8, 8, 1), (BATCH, 8, 8, 3)]:
        with pytest.raises(ValueError, match=r"images have shape .*, not \(B, \(8, 8, 1\)\)"):
            NVAE(GREY).init(jax.random.key(0), jnp.zeros(shape), False)


def test_noise_of_another_shape_is_refused():
    apply = functools.partial(NVAE(GREY).apply, train=False)
    variables, images, noise = random_inputs(GREY)
    message = r"noise has shapes .*; expected, top-down: \[\(3, 4, 4, 2\), \(3, 4, 4, 2\)\]"
    for wrong in (noise[:1], [x[:1] for x in noise], [x[..., :1] for x in noise]):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda v, noise: apply(v, images, noise=noise), variables, wrong)
        with pytest.raises(ValueError, match=message):
            apply(variables, BATCH, noise=wrong, method="sample_prior")


def test_a_model_of_one_group_does_not_use_its_prior_features():
    variables, images, noise = random_inputs(ONE_GROUP)
    chex.assert_shape(variables["params"]["decoder"]["first"]["combine"]["kernel"], (1, 1, 2, 4))
    other = with_params(variables, lambda path, x: x + 1.0 if path[-1] == "prior_features" else x)
    output = encode(ONE_GROUP)(variables, images, noise)
    chex.assert_trees_all_equal(encode(ONE_GROUP)(other, images, noise), output)


def test_bfloat16_is_close_to_float32():
    half = dataclasses.replace(LOOP, dtype="bfloat16")
    output, expected = encode(half)(*random_inputs(LOOP)), encode(LOOP)(*random_inputs(LOOP))
    jax.tree.map(functools.partial(goldens.assert_close, tolerance=0.05), output, expected)
    assert not np.array_equal(output.logits, expected.logits)


def test_effective_kernels_are_what_the_model_applies():
    # A model with its effective kernels for kernels, and their norms for gains, is the same model.
    variables, images, noise = random_inputs(FLOW)
    params = flatten_dict(variables["params"])
    kernels = flatten_dict(jax.jit(effective_kernels)(variables["params"]))
    assert {(*path, "kernel") for path in kernels} == {
        path for path, leaf in params.items() if path[-1] == "kernel" and leaf.ndim >= 4
    }
    for path, kernel in kernels.items():
        if (mask := kernel_mask(path, kernel.shape)) is not None:
            np.testing.assert_array_equal(kernel * (1 - mask), 0.0)

    def replace(path, x):
        if path[-1] == "log_gain":
            norm = np.sqrt(np.square(kernels[path[:-1]]).sum((-4, -3, -2)))
            return np.log(norm + 1e-5)
        return kernels.get(path[:-1], x) if path[-1] == "kernel" else x

    same = with_params(variables, replace)
    output, expected = (encode(FLOW)(v, images, noise) for v in (same, variables))
    jax.tree.map(functools.partial(goldens.assert_close, tolerance=1e-4), output, expected)
