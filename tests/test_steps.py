"""A model in steps, against its passes as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, random_noise, random_variables

from nvae_jax.model import NVAE, steps
from nvae_jax.model.convolution import Conv
from nvae_jax.model.distributions import image_distribution
from nvae_jax.model.folding import fold

CONFIG = dataclasses.replace(
    SMALL,
    num_blocks=1,
    preprocess_cells=1,
    postprocess_cells=1,
    architecture="res_mbconv",
    squeeze_excite=True,
    num_flows=0,
)
CONFIGS = {
    "flows": {"num_flows": 1, "adaptive_groups": True},
    "absolute": {"residual_posterior": False, "architecture": "res_bnswish"},
    "one group": {"num_scales": 1, "num_groups": 1},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_steps_are_the_passes_of_the_whole_model(changes):
    config = dataclasses.replace(CONFIG, **changes)
    variables = random_variables(config)
    rng = np.random.default_rng(1)
    x = jnp.float32(rng.uniform(size=(2, *config.image_shape)))
    noise = random_noise(config, 2, rng)

    @jax.jit
    def whole(x):
        latents = NVAE(config).apply(variables, x, noise, method="encode")
        return latents, NVAE(config).apply(variables, x, False, noise).logits

    @jax.jit
    def in_steps(x):
        folded = fold(config, variables)
        decoder = steps.decoder_variables(folded)
        taps = steps.taps(config, folded, x)
        h, prior = steps.start(config, decoder, 2)
        drawn, relative = [], []
        for g in range(config.total_groups):
            mine = steps.group_variables(config, folded, g)
            module = steps.group_module(config, g)
            if g:
                s = steps.scale_of_group(config, g)
                crossing = s if s != steps.scale_of_group(config, g - 1) else -1
                h, prior = steps.prior(config, module, mine, h, decoder, crossing)
            posterior = steps.posterior(config, module, mine, h, taps[g], prior)
            z = posterior.mean + posterior.sigma * noise[g]
            for i in range(config.num_flows):
                for name, mirrored in (("forward", False), ("mirrored", True)):
                    flow = {"params": mine["params"][f"flow_{i}"][name]}
                    z -= steps.flow_shift(config, flow, z, mirrored)
            drawn.append(z)
            relative.append((z - prior.mean) / prior.sigma)
            h = steps.combine(module, mine, h, z)
        return drawn, relative, steps.image(config, decoder, h).logits

    latents, logits = whole(x)
    drawn, relative, stepped = in_steps(x)
    for actual, expected in zip(drawn + relative, latents.values + latents.noise, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(stepped, logits, rtol=1e-3, atol=2e-3)
    assert image_distribution(config, logits).logits.shape == stepped.shape


def test_long_products_are_sums_of_short_ones():
    rng = np.random.default_rng(0)
    conv = Conv(8)
    kernel, bias = rng.normal(size=(1, 1, 130, 8)), rng.normal(size=8)
    variables = {"params": {"kernel": np.float32(kernel), "bias": np.float32(bias)}}
    x = rng.normal(size=(1, 2, 2, 130)).astype(np.float32)

    def apply(x):
        with steps._in_short_sums():
            return conv.apply(variables, x)

    assert str(jax.make_jaxpr(apply)(x)).count("dot_general[") == 3
    np.testing.assert_allclose(apply(x), x @ kernel[0, 0] + bias, rtol=1e-4, atol=1e-4)
