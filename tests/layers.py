"""Parameters of layers for the tests of the regularisers, and what these tests share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax.training.regularizers import kernel_matrices

LAMBDA = 0.3


def make_params():
    """One convolution of every kind that a model has, and layers that are none."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def flow_cell(groups):
        shapes = {"strict_conv": (3, 3, 2, 12), "depthwise_conv": (5, 5, 1, 12)}
        shapes["head"] = (1, 1, 12, 2)
        return {
            name: {"kernel": normal(groups, *shape), "log_gain": normal(groups, shape[-1])}
            for name, shape in shapes.items()
        }

    return {
        "encoder": {
            "stem": {"kernel": normal(3, 3, 3, 8), "log_gain": normal(8), "bias": normal(8)},
            "cell": {
                "norm_in": {"scale": normal(8), "bias": normal(8)},
                "expand": {"kernel": normal(1, 1, 8, 24)},
                "spatial": {"kernel": normal(5, 5, 1, 24)},
                "squeeze": {"kernel": normal(8, 4), "bias": normal(4)},
                "norm_out": {"scale": normal(8), "bias": normal(8)},
            },
        },
        "decoder": {
            "prior_features": normal(2, 2, 8),
            "scale_0": {
                "combine": {"kernel": normal(3, 1, 1, 10, 8), "log_gain": normal(3, 8)},
                "norm": {"scale": normal(3, 8), "bias": normal(3, 8)},
                "flow_0": {"forward": flow_cell(3), "mirrored": flow_cell(3)},
            },
        },
    }


def products(params):
    """The transposes of the matrices themselves: {"RxO": (N, R, O)}."""
    return {name: m.kernel * m.factor for name, m in kernel_matrices(params).items()}


def is_near(tree, other, tolerance=1e-6):
    chex.assert_trees_all_close(tree, other, rtol=tolerance, atol=tolerance)


def zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)
