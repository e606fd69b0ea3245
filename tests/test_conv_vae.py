"""The plain convolutional VAE against numbers of its published definition in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import GRADIENTS, assert_close, load, nhwc, under

from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError
from nvae_jax.model.conv_vae import ConvVAE, ConvVAEConfig
from nvae_jax.model.distributions import reconstruction_error
from nvae_jax.model.families import variable_shapes
from nvae_jax.training.optimizer import make_optimizer

KL_WEIGHT = 2.5e-4
TINY = ConvVAEConfig(
    image_shape=(16, 16, 3), likelihood="squared_error", widths=(4, 8, 16), num_latents=8
)
FULL = ConvVAEConfig(image_shape=(64, 64, 3), likelihood="squared_error")
MODEL = ConvVAE(TINY)

# Our modules by the names of PyTorch's.
MODULES = {
    f"{tower}.{i}.{j}": (tower, f"{kind}_{i}")
    for tower in ("encoder", "decoder")
    for i in range(3)
    for j, kind in enumerate(("conv", "norm"))
} | {
    "mean_linear": ("encoder", "mean"),
    "var_linear": ("encoder", "log_variance"),
    "decoder_projection": ("decoder", "projection"),
    "decoder.2.3": ("decoder", "image"),
}
LEAVES = {"running_mean": "mean", "running_var": "var"}


def leaf_name(module, name):
    if name == "weight":
        return "scale" if module.startswith("norm") else "kernel"
    return LEAVES.get(name, name)


def ours(name, array):
    """An array of PyTorch's layout in ours."""
    if name.endswith("_linear.weight"):  # of features (C, H, W)
        return array.reshape(-1, 16, 2, 2).transpose(2, 3, 1, 0).reshape(64, -1)
    if name == "decoder_projection.weight":
        return array.reshape(16, 2, 2, -1).transpose(3, 1, 2, 0).reshape(-1, 64)
    if name == "decoder_projection.bias":
        return array.reshape(16, 2, 2).transpose(1, 2, 0).reshape(64)
    if array.ndim == 4:
        transposed = name.startswith("decoder") and not name.startswith("decoder.2.3")
        return (
            array.transpose(2, 3, 0, 1)[::-1, ::-1] if transposed else array.transpose(2, 3, 1, 0)
        )
    return array


def place(name):
    """The path of an array of PyTorch's, in our variables."""
    module, _, leaf = name.rpartition(".")
    tower, ours = MODULES[module]
    return tower, ours, leaf_name(ours, leaf)


@functools.cache
def variables():
    tree = {"params": {}, "batch_stats": {}}
    for name, array in under("conv_vae_tiny", "sd").items():
        if name.endswith("num_batches_tracked"):
            continue
        tower, module, leaf = place(name)
        part = tree["batch_stats" if leaf in ("mean", "var") else "params"]
        part.setdefault(tower, {}).setdefault(module, {})[leaf] = jnp.asarray(ours(name, array))
    return tree


def arrays(name):
    return load("conv_vae_tiny")[name]


def noise(name="eps"):
    return [arrays(name)[:, None, None]]


@pytest.fixture(scope="module")
def trained():
    """Loss, terms, gradient and running statistics of a pass in training mode."""

    def loss(params, x, noise):
        everything = {**variables(), "params": params}
        output, updated = MODEL.apply(everything, x, True, noise, mutable=["batch_stats"])
        error, kl = reconstruction_error(TINY, output, x).mean(), output.kl.sum(1).mean()
        return error + KL_WEIGHT * kl, (output.logits, error, kl, updated["batch_stats"])

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return compute(variables()["params"], nhwc(arrays("x")), noise())


def test_numbers_of_parameters():
    for config, expected in [(TINY, int(arrays("parameters"))), (FULL, 1_183_283)]:
        leaves = jax.tree.leaves(variable_shapes(config)["params"])
        assert sum(x.size for x in leaves) == expected
    assert jax.tree.map(lambda x: x.shape, variables()) == jax.tree.map(
        lambda x: x.shape, variable_shapes(TINY)
    )


def test_evaluation_is_pytorchs():
    x = nhwc(arrays("x"))
    output = MODEL.apply(variables(), x, False, noise())
    assert_close(output.logits, nhwc(arrays("eval/y")))
    features, _ = MODEL.apply(variables(), x, False, method="bottom_up")
    mean, log_variance = jnp.split(features, 2, -1)
    assert_close(mean, arrays("eval/mean"))
    assert_close(log_variance, arrays("eval/logvar"))
    latents = MODEL.apply(variables(), x, noise(), method="encode")
    assert_close(latents.values[0][:, 0, 0], arrays("eval/z"))
    assert_close(MODEL.apply(variables(), latents.values, method="decode"), nhwc(arrays("eval/y")))
    samples = MODEL.apply(variables(), 2, 1.0, noise("sample/eps"), method="sample_prior")
    assert_close(samples, nhwc(arrays("sample/y")))


def test_training_is_pytorchs(trained):
    (loss, (y, error, kl, statistics)), gradient = trained
    assert_close(y, nhwc(arrays("train/y")))
    assert_close(error, arrays("train/reconstruction"))
    assert_close(kl, arrays("train/kl"))
    assert_close(loss, arrays("train/loss"))
    for name, expected in under("conv_vae_tiny", "bn_after").items():
        tower, module, leaf = place(name)
        assert_close(statistics[tower][module][leaf], expected)
    for name, expected in under("conv_vae_tiny", "grad").items():
        tower, module, leaf = place(name)
        assert_close(gradient[tower][module][leaf], ours(name, expected), GRADIENTS)
    for name, expected in under("conv_vae_tiny", "grad_norm").items():
        tower, module, leaf = place(name)
        norm = np.linalg.norm(gradient[tower][module][leaf])
        # A bias before a batch norm has no effect.
        assert abs(norm - expected) <= GRADIENTS * expected + 1e-7, name


def test_a_step_of_adam_is_pytorchs(trained):
    _, gradient = trained
    config = TrainingConfig(
        epochs=1,
        batch_size=3,
        optimizer="adam",
        learning_rate=5e-3,
        min_learning_rate=5e-3,
        warmup_epochs=0,
        weight_decay=0.0,
        regularization=0.0,
    )
    optimizer, params = make_optimizer(config, 1), variables()["params"]
    updates, _ = optimizer.update(gradient, optimizer.init(params), params, regularization=0.0)
    after = optax.apply_updates(params, updates)
    for name, expected in under("conv_vae_tiny", "adam").items():
        tower, module, leaf = place(name)
        assert_close(after[tower][module][leaf], ours(name, expected), GRADIENTS)


def test_temperature_and_groups_that_are_not_given():
    keys = jax.vmap(jax.random.key)(np.arange(3))
    draw = functools.partial(MODEL.apply, variables(), method="sample_prior")
    z = [jax.vmap(lambda k: jax.random.normal(jax.random.split(k, 1)[0], (1, 1, 8)))(keys)]
    np.testing.assert_allclose(
        draw(3, 0.5, keys), MODEL.apply(variables(), [0.5 * z[0]], method="decode"), atol=1e-6
    )
    given = np.asarray([[True], [False], [True]])
    mixed = MODEL.apply(variables(), [2 * z[0]], given, np.full(1, 0.5), keys, method="decode")
    for i, scale in enumerate((2.0, 0.5, 2.0)):
        alone = MODEL.apply(variables(), [scale * z[0][i : i + 1]], method="decode")
        np.testing.assert_allclose(mixed[i], alone[0], atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_shape", (24, 16, 3), "a height and width divisible by 32"),
        ("widths", (), "1 to 16 numbers"),
        ("widths", (4, 0), "1 to 16 numbers"),
        ("num_latents", 0, "1 to 16384"),
        ("num_bits", 9, "1 to 8"),
        ("likelihood", "cauchy", "bernoulli, logistic_mixture, normal, squared_error"),
    ],
)
def test_impossible_values_are_refused(field, value, allowed):
    with pytest.raises(ConfigError, match=rf"^model\.{field} is .*; allowed: {allowed}"):
        ConvVAEConfig(**{"image_shape": (32, 32, 3)} | {field: value})
