"""The whole model, its training step and its sampling against the official implementation.

Two small models, with the official weights and noise: `mnist_tiny` (binary, two scales) and
`cifar_tiny` (logistic mixture, flows). docs/parity.md says how far each number is off.
"""

import collections
import dataclasses
import functools

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import nhwc

from nvae_jax.config.training import TrainingConfig
from nvae_jax.interop.layout import model_entries
from nvae_jax.interop.official import import_state_dict
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.model.folding import FoldedNVAE, fold
from nvae_jax.model.nvae import NVAE, effective_kernels
from nvae_jax.objectives.elbo import balance_targets, elbo_terms
from nvae_jax.training.optimizer import make_optimizer

OUTPUTS, GRADIENTS = 1e-4, 1e-3  # relative to the largest true value


@dataclasses.dataclass
class Golden:
    """One golden configuration, imported."""

    name: str
    arrays: dict
    meta: dict
    config: object
    variables: dict
    entries: dict  # of the layout, by official name

    def list(self, prefix, count):
        """`prefix/0` … as noise, NHWC."""
        return [nhwc(self.arrays[f"{prefix}/{i}"]) for i in range(count)]

    def official(self, tree, name):
        """Our value of the official parameter or statistic `name`, in the official layout."""
        entry = self.entries[name]
        value = functools.reduce(lambda node, key: node[key], entry.path, tree)
        return entry.to_official(np.asarray(value if entry.index is None else value[entry.index]))


@pytest.fixture(scope="module", params=["mnist_tiny", "cifar_tiny"])
def golden(request):
    arrays = goldens.load(request.param)
    args = goldens.from_json(arrays["args"])
    config, variables = import_state_dict(goldens.under(request.param, "sd"), args)
    config = dataclasses.replace(config, bins="official")
    entries = {entry.official: entry for entry in model_entries(config)}
    meta = goldens.from_json(arrays["meta"])
    return Golden(request.param, arrays, meta, config, variables, entries)


def eval_pass(golden, mode):
    """Outputs in evaluate mode, and the reconstruction's negative log-likelihood."""
    network, variables = NVAE(golden.config), golden.variables
    if mode == "folded":
        network, variables = FoldedNVAE(golden.config), fold(golden.config, variables)
    x, noise = nhwc(golden.arrays["x"]), golden.list("eps", golden.config.total_groups)

    @jax.jit
    def run(variables, x, noise):
        output = network.apply(variables, x, train=False, noise=noise)
        return output, -log_likelihood(golden.config, output.logits, x)

    return run(variables, x, noise)


@pytest.fixture(scope="module")
def train_pass(golden):
    """Outputs in train mode, the loss's terms, its gradient and the new running statistics."""
    x, noise = nhwc(golden.arrays["x"]), golden.list("eps", golden.config.total_groups)
    beta, targets = jnp.float32(golden.meta["kl_coeff"]), balance_targets(golden.config, "square")

    def loss(params, batch_stats, x, noise):
        variables = {"params": params, "batch_stats": batch_stats}
        output, updated = NVAE(golden.config).apply(
            variables, x, train=True, noise=noise, mutable=["batch_stats"]
        )
        terms = elbo_terms(golden.config, output, x, beta, targets)
        return terms.loss, (output, terms, updated["batch_stats"])

    (value, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        golden.variables["params"], golden.variables["batch_stats"], x, noise
    )
    return value, *aux, gradient


@pytest.fixture(scope="module")
def updates(golden, train_pass):
    """Adamax's first step, and the optimiser's states after it and after a second one."""
    adamax = golden.meta["adamax"]
    training = TrainingConfig(
        epochs=10,
        batch_size=4,
        warmup_epochs=0,
        learning_rate=adamax["lr"],
        weight_decay=adamax["wd"],
        regularization=golden.meta["wdn"],
    )
    optimizer = make_optimizer(training, steps_per_epoch=1)
    params = golden.variables["params"]
    shapes = jax.eval_shape(optimizer.init, params)
    before = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    spectral = before["spectral"]
    before["spectral"] = spectral._replace(u=place_vectors(golden, spectral.u, "u0"))

    @jax.jit
    def update(gradient, state, params):
        updates, state = optimizer.update(
            gradient, state, params, regularization=training.regularization
        )
        return optax.apply_updates(params, updates), state

    after, first = update(train_pass[-1], before, params)
    _, second = update(train_pass[-1], first, params)
    return after, first, second


def place_vectors(golden, u, which):
    """The singular vectors `u` with the official ones in place of every single one."""
    u = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), u)
    for vectors, place in paired_vectors(golden, u, which):
        place[...] = vectors
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(u))
    return u


def paired_vectors(golden, u, which):
    """Yields (official vector, our vector) of every convolution."""
    kernels = jax.eval_shape(effective_kernels, golden.variables["params"])
    places, used = {}, collections.Counter()
    for path, kernel in jax.tree_util.tree_leaves_with_path(kernels):
        stack = f"{np.prod(kernel.shape[-4:-1])}x{kernel.shape[-1]}"
        places[tuple(key.key for key in path)] = stack, used[stack]
        used[stack] += int(np.prod(kernel.shape[:-4]))
    assert used == {name: len(vectors) for name, vectors in u.items()}
    for k, group in enumerate(golden.meta["sr_groups"]):
        for name, vector in zip(group["layers"], golden.arrays[f"sr/{k}/{which}"], strict=True):
            entry = golden.entries[f"{name}.weight"]
            stack, first = places[entry.path[1:-1]]
            yield vector, u[stack][first + (entry.index or 0)]


def assert_close(actual, expected, tolerance=OUTPUTS):
    goldens.assert_close(actual, expected, tolerance)


def assert_logits_close(golden, actual, expected):
    if golden.config.likelihood == "logistic_mixture":
        actual = actual[:, ::4, ::4]  # of which the golden file keeps every fourth
    assert_close(actual, nhwc(expected))


@pytest.mark.parametrize("mode", ["eval", "folded", "train"])
def test_outputs(golden, mode, request):
    expected = goldens.under(golden.name, "train" if mode == "train" else "eval")
    if mode != "train":
        output, reconstruction = eval_pass(golden, mode)
        log_weight = -reconstruction + output.log_p - output.log_q
        assert_close(reconstruction + output.kl.sum(1), expected["nelbo"])
        assert_close(log_weight, expected["log_iw"])
    else:
        _, output, terms, _, _ = request.getfixturevalue("train_pass")
        reconstruction = terms.reconstruction
    assert_logits_close(golden, output.logits, expected["logits"])
    assert_close(output.log_q, expected["log_q"])
    assert_close(output.log_p, expected["log_p"])
    assert_close(output.kl, expected["kl"])
    assert_close(output.kl_per_channel, expected["kl_diag"])
    assert_close(reconstruction, expected["recon"])


def test_objective(golden, train_pass, updates):
    value, output, terms, _, _ = train_pass
    expected = goldens.under(golden.name, "train")
    assert_close(balance_targets(golden.config, "square"), golden.arrays["alpha"])
    assert_close(terms.weighted_kl, expected["balanced_kl"])
    assert_close(terms.balance, expected["kl_coeffs"])
    assert_close(output.kl.mean(0), expected["kl_vals"])
    assert_close(value, expected["nelbo"])
    _, first, second = updates
    assert_close(first["spectral"].penalty, expected["norm_loss"])
    assert_close(second["spectral"].penalty, expected["norm_loss_second_call"])
    assert_close(first["batch_norm"].penalty, expected["bn_loss"])
    penalties = first["spectral"].penalty + first["batch_norm"].penalty
    assert_close(value + golden.meta["wdn"] * penalties, expected["loss"])


@pytest.mark.parametrize("which", ["u1", "u2"])
def test_singular_vectors(golden, updates, which):
    state = updates[int(which[1])]["spectral"]
    for expected, ours in paired_vectors(golden, state.u, which):
        assert_close(ours, expected, GRADIENTS)


def test_running_statistics(golden, train_pass):
    ours = {"batch_stats": train_pass[3]}
    expected = goldens.under(golden.name, "bn_after")
    assert set(expected) == {
        n for n in golden.entries if n.endswith(("running_mean", "running_var"))
    }
    for name, value in expected.items():
        assert_close(golden.official(ours, name), value)


def full_gradient(golden, updates):
    """The loss's gradient with both regularisers, from Adamax's first moment."""
    adamax = updates[1]["adamax"]
    decay, params = golden.meta["adamax"]["wd"], golden.variables["params"]
    return {"params": jax.tree.map(lambda m, p: np.asarray(m) / 0.1 - decay * p, adamax.mu, params)}


def test_gradients(golden, updates):
    ours = full_gradient(golden, updates)
    for name, expected in goldens.under(golden.name, "grad").items():
        assert_close(golden.official(ours, name), expected, GRADIENTS)


def test_gradient_statistics_of_every_parameter(golden, updates):
    ours = full_gradient(golden, updates)
    names = golden.meta["param_names"]
    assert len(names) == len(golden.arrays["gradstats"])
    for name, expected in zip(names, golden.arrays["gradstats"], strict=True):
        gradient = golden.official(ours, name).ravel().astype(np.float64)
        if name in golden.meta["zero_grad_params"]:
            np.testing.assert_allclose(gradient, 0, atol=1e-5)
            continue
        probe = np.cos(0.7 * np.arange(gradient.size) + 0.1)
        norm = np.linalg.norm(gradient)
        stats = [norm, gradient.sum(), gradient @ probe, np.abs(gradient).max()]
        np.testing.assert_allclose(stats, expected, rtol=0, atol=GRADIENTS * norm, err_msg=name)


def test_adamax_step(golden, updates):
    params, state, _ = updates
    adamax = state["adamax"]
    for kind, tree in (("param", params), ("exp_avg", adamax.mu), ("exp_inf", adamax.nu)):
        for name, expected in goldens.under(golden.name, f"adamax/{kind}").items():
            assert_close(golden.official({"params": tree}, name), expected, GRADIENTS)
    stats = golden.arrays["adamax/paramstats"]
    for name, (norm, change) in zip(golden.meta["param_names"], stats, strict=True):
        after = golden.official({"params": params}, name)
        before = golden.official(golden.variables, name)
        np.testing.assert_allclose(np.linalg.norm(after), norm, rtol=GRADIENTS)
        if name not in golden.meta["zero_grad_params"]:
            np.testing.assert_allclose(np.linalg.norm(after - before), change, rtol=GRADIENTS)


def test_prior_samples_and_recalibration(golden):
    groups = golden.config.total_groups

    @functools.partial(jax.jit, static_argnums=2)
    def sample(variables, noise, train):
        return NVAE(golden.config).apply(
            variables,
            2,
            temperature=0.7,
            noise=noise,
            train=train,
            mutable=["batch_stats"],
            method=NVAE.sample_prior,
        )

    noise = golden.list("sample_eps", groups)
    logits, _ = sample(golden.variables, noise, False)
    assert_logits_close(golden, logits, golden.arrays["sample/logits"])
    folded = fold(golden.config, golden.variables)
    logits = FoldedNVAE(golden.config).apply(folded, 2, 0.7, noise, method="sample_prior")
    assert_logits_close(golden, logits, golden.arrays["sample/logits"])

    noise = golden.list("readjust/eps", 2 * groups)
    variables = golden.variables
    for start in (0, groups):
        logits, updated = sample(variables, noise[start : start + groups], True)
        variables = variables | updated
    stats = np.array([logits.mean(), logits.std(), logits.min(), logits.max()])
    assert_close(stats, golden.arrays["readjust/last_logits_stats"])
    changed = goldens.under(golden.name, "readjust/bn")
    for name in golden.entries:
        if not name.endswith(("running_mean", "running_var")):
            continue
        ours, before = golden.official(variables, name), golden.official(golden.variables, name)
        if name in changed:
            assert_close(ours, changed[name])
        else:  # the encoder's
            np.testing.assert_array_equal(ours, before)
