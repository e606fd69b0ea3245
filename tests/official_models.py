"""Official arguments and state dicts of small models of every form."""

import functools

import jax
import numpy as np

from nvae_jax.interop.official import config_from_args, export_state_dict
from nvae_jax.model import variable_shapes

ARGS = {
    "dataset": "cifar10",
    "arch_instance": "res_mbconv",
    "num_nf": 0,
    "num_x_bits": 8,
    "num_latent_scales": 1,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 2,
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_channels_enc": 4,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_channels_dec": 4,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_dec": 1,
    "num_mixture_dec": 10,
    "use_se": True,
    "res_dist": True,
}
THREE_SCALES = ARGS | {
    "dataset": "celeba_64",
    "num_latent_scales": 3,
    "num_groups_per_scale": 4,
    "ada_groups": True,
    "num_cell_per_cond_dec": 2,
}
VARIANTS = {
    "three scales": THREE_SCALES,
    "two flow pairs, 5 bits": ARGS | {"num_nf": 2, "num_x_bits": 5, "dataset": "ffhq"},
    "Normal decoder": ARGS | {"num_mixture_dec": 1},
    "no squeeze-excite": ARGS | {"use_se": False},
    "no residual posterior": ARGS | {"res_dist": False},
    "one group": ARGS | {"num_groups_per_scale": 1, "num_nf": 1},
    "one group, two blocks": ARGS
    | {"num_groups_per_scale": 1, "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
    "two blocks of three and one": ARGS
    | {
        "num_preprocess_blocks": 2,
        "num_postprocess_blocks": 2,
        "num_preprocess_cells": 3,
        "num_postprocess_cells": 1,
        "num_channels_dec": 8,
    },
    "other cells": ARGS
    | {"arch_instance": "mbconv_den", "num_channels_enc": 8, "num_channels_dec": 8},
    "batch-norm and ELU": ARGS | {"arch_instance": "res_bnelu"},
    "no batch norm": ARGS | {"arch_instance": "res_elu"},
    "binary": ARGS | {"dataset": "omniglot"},
}


def random_variables(config):
    rng = np.random.default_rng(0)
    shapes = {"batch_stats": {}} | variable_shapes(config)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@functools.cache
def exported(name="three scales"):
    """A configuration's state dict, of random numbers."""
    config = config_from_args(VARIANTS[name])
    return export_state_dict(config, random_variables(config))
