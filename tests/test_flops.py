import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nvae_jax.measuring.flops import count_flops
from nvae_jax.parallel import batch_sharding, make_mesh

X = jax.ShapeDtypeStruct((2, 8, 8, 12), jnp.float32)


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*shapes))


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_is_a_product_for_every_output_pixel(groups):
    kernel = jax.ShapeDtypeStruct((3, 5, 12 // groups, 20), jnp.float32)

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    assert flops(convolve, X, kernel) == 2 * (2 * 4 * 4 * 20) * (3 * 5 * 12 // groups)


def test_products_loops_branches_and_what_is_computed_again():
    a, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 7), (3, 7, 7)))
    product = 2 * 5 * 7 * 7
    assert flops(lambda a, w: a @ w[0], a, w) == product

    def loop(a, w):
        return lax.scan(lambda a, w: (jnp.sin(a @ w), None), a, w)[0]

    assert flops(loop, a, w) == 3 * product
    # The gradient of a round takes two products more, and with checkpoint its own once again.
    assert flops(jax.grad(lambda a, w: loop(a, w).sum(), (0, 1)), a, w) == 9 * product

    def again(a, w):
        return lax.scan(jax.checkpoint(lambda a, w: (jnp.sin(a @ w), None)), a, w)[0].sum()

    assert flops(jax.grad(again, (0, 1)), a, w) == 12 * product

    def branch(a, w):
        return lax.cond(a[0, 0] > 0, lambda: a @ w[0], lambda: a @ w[1] @ w[2])

    assert flops(branch, a, w) == 2 * product


def test_devices_that_share_work_add_up():
    mesh = make_mesh()
    spec = batch_sharding(mesh).spec
    product = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops(product, jax.ShapeDtypeStruct((16, 4), jnp.float32)) == 8 * 2 * 2 * 2 * 4
