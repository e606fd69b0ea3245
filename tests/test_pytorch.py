"""The network in PyTorch that speeds are compared with computes what ours computes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nvae_jax.model import ModelConfig
from nvae_jax.model.nvae import NVAE, effective_kernels
from nvae_jax.objectives.elbo import balance_targets, elbo_terms
from nvae_jax.training.regularizers import batch_norm_penalty

torch = pytest.importorskip("torch")

from pytorch_network import Network, from_ours  # noqa: E402

BETA = 0.5
BINARY = ModelConfig(
    image_shape=(16, 16, 1),
    likelihood="bernoulli",
    border=2,
    num_scales=2,
    num_groups=2,
    num_latents=2,
    encoder_channels=4,
    decoder_channels=4,
    encoder_cells=1,
    decoder_cells=1,
)
COLOUR = dataclasses.replace(
    BINARY,
    image_shape=(8, 8, 3),
    likelihood="logistic_mixture",
    border=0,
    num_scales=1,
    num_flows=1,
    residual_posterior=False,
)


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def flat(tree, path=()):
    """Tensors by path; groups have numbers."""
    if torch.is_tensor(tree):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {p: x for name, value in items for p, x in flat(value, (*path, name)).items()}


@pytest.fixture(scope="module", params=[BINARY, COLOUR], ids=["binary", "colour"])
def case(request):
    config, rng = request.param, np.random.default_rng(0)
    x = rng.integers(0, 256, (3, *config.image_shape)).astype(np.float32) / 255
    x = np.round(x) if config.likelihood == "bernoulli" else x
    noise = [rng.normal(size=(3, *s)).astype(np.float32) for s in config.latent_shapes]
    variables = jax.jit(NVAE(config).init, static_argnums=2)(
        {"params": jax.random.key(0), "sample": jax.random.key(1)}, x, True
    )
    # Fresh scales of 1 would hide one that is missing.
    variables = jax.tree.map(lambda v: v + 0.1 * rng.normal(size=v.shape), variables)
    return config, jax.tree.map(lambda v: np.asarray(v, np.float32), variables), x, noise


def test_loss_gradients_and_statistics_agree(case):
    config, variables, x, noise = case
    targets = balance_targets(config, "square")
    network = Network(config, variables)
    theirs = network.loss(nchw(x), [nchw(n) for n in noise], BETA, torch.tensor(targets))
    theirs.backward()

    def ours(params):
        output, updated = NVAE(config).apply(
            {**variables, "params": params}, x, True, noise, mutable=["batch_stats"]
        )
        return elbo_terms(config, output, x, BETA, targets).loss, updated["batch_stats"]

    (loss, stats), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    np.testing.assert_allclose(theirs.item(), loss, rtol=1e-5)
    expected = flat(from_ours(jax.tree.map(np.array, gradient)))
    largest = max(float(g.abs().max()) for g in expected.values())
    for path, parameter in flat(network.params).items():
        np.testing.assert_allclose(
            parameter.grad, expected[path], rtol=2e-3, atol=2e-5 * largest, err_msg=str(path)
        )
    for path, value in flat(from_ours(jax.tree.map(np.array, stats))).items():
        np.testing.assert_allclose(flat(network.stats)[path], value, rtol=1e-4, atol=1e-5)


def test_samples_agree(case):
    config, variables, _, noise = case
    with torch.no_grad():
        theirs, _ = Network(config, variables).decode(None, [nchw(n) for n in noise], False)
    sample = functools.partial(NVAE(config).apply, method="sample_prior", num_images=3)
    ours = jax.jit(lambda noise: sample(variables, noise=noise))(noise)
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), ours, rtol=1e-3, atol=1e-4)


def test_penalty_agrees_with_singular_values(case):
    config, variables, x, noise = case
    network = Network(config, variables)
    network.loss(nchw(x), [nchw(n) for n in noise], BETA, torch.ones(config.total_groups))
    for _ in range(100):
        penalty = network.penalty()
    expected = batch_norm_penalty(variables["params"])
    for kernel in flatten_dict(effective_kernels(variables["params"])).values():
        matrices = kernel.reshape(-1, np.prod(kernel.shape[-4:-1]), kernel.shape[-1])
        expected += jnp.linalg.norm(matrices, 2, (1, 2)).sum()
    np.testing.assert_allclose(penalty.item(), expected, rtol=1e-4)
