"""Finding the first operation whose result is not finite."""

import jax
import jax.numpy as jnp
import pytest

from nvae_jax.training.first_operation import first_not_finite

X = jnp.asarray([0.5, 2.0, -1.0])


def logarithm(x):
    with jax.named_scope("layer"):
        return jnp.log(x) * 0


def in_a_loop(x):
    """The third of four rounds divides by 0."""
    return jax.lax.scan(lambda c, y: (c + 1 / y, c), 0.0, jnp.asarray([1.0, 2.0, 0.0, 3.0]))


def backwards(x):
    return jax.grad(lambda x: jnp.sqrt(0 * x).sum())(x)


@jax.custom_vjp
def own(x):
    return x


own.defvjp(lambda x: (x, x), lambda x, g: (g / (x - x),))


@pytest.mark.parametrize(
    ("function", "primitive"),
    [
        (logarithm, "log in layer"),
        (jax.jit(logarithm), "log in layer"),
        (jax.checkpoint(logarithm), "log in layer"),
        (lambda x: jax.lax.cond(x[0] < 1, logarithm, jnp.exp, x), "log in layer"),
        (lambda x: jnp.exp(100 * x), "exp: 1 of 3 results are not finite; it was given -100 to 2"),
        (in_a_loop, "div: 1 of 1 results are not finite; it was given 1 to 1, 0 to 0"),
        (backwards, "div"),
        (jax.grad(lambda x: own(x).sum()), "div"),
    ],
)
def test_it_is_named(function, primitive):
    assert first_not_finite(function, X).startswith(primitive)


def test_what_is_finite_is_computed_as_ever():
    """Dividing by the difference from the true values is infinite in all places."""

    def function(x):
        total, parts = jax.lax.scan(
            lambda c, y: (c * y, c + y), x, jnp.stack([x, 2 * x, x - 1]), reverse=True
        )
        noise = jax.random.normal(jax.random.key(0), x.shape)
        return jax.grad(lambda x: (jax.nn.softmax(x) * noise).sum())(total), parts

    assert first_not_finite(function, X) is None
    with jax.disable_jit():
        gradient, parts = function(X)
    for index, true in ((0, gradient), (1, parts)):
        found = first_not_finite(lambda x, i=index, t=true: 1 / (function(x)[i] - t), X)
        assert found.startswith(f"div: {true.size} of {true.size} results")
