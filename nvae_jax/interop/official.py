"""Official PyTorch checkpoints of NVAE: their state dicts to our variables and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nvae_jax.interop.layout import Entry, model_entries
from nvae_jax.model import ModelConfig, variable_shapes

# Channels, side of the square image as the model sees it, and the border that is not scored.
_DATASETS: dict[str, tuple[int, int, int]] = {
    "mnist": (1, 32, 2),
    "omniglot": (1, 32, 2),
    "stacked_mnist": (3, 32, 2),
    "cifar10": (3, 32, 0),
    "imagenet_32": (3, 32, 0),
    "celeba_64": (3, 64, 0),
    "celeba_256": (3, 256, 0),
    "ffhq": (3, 256, 0),
    "lsun_bedroom_128": (3, 128, 0),
    "lsun_bedroom_256": (3, 256, 0),
    "lsun_church_64": (3, 64, 0),
    "lsun_church_128": (3, 128, 0),
}
_BINARY = ("mnist", "omniglot")

# Arguments that old checkpoints lack.
_DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}

# Buffers that follow from others, or that nothing reads.
_DERIVED = ("weight_normalized", "num_batches_tracked")


def config_from_args(args: Mapping[str, Any]) -> ModelConfig:
    """The configuration that the official command-line arguments `args` describe.

    Raises: ValueError naming the argument that is missing or that no model of ours has.
    """
    args = {**_DEFAULTS, **args}

    def read(name: str) -> Any:
        if name not in args:
            raise ValueError(f"the checkpoint's arguments lack {name}")
        return args[name]

    dataset = read("dataset")
    if dataset not in _DATASETS:
        raise ValueError(f"dataset is {dataset!r}; allowed: {', '.join(_DATASETS)}")
    channels, side, border = _DATASETS[dataset]
    if read("num_postprocess_blocks") != read("num_preprocess_blocks"):
        raise ValueError(
            f"num_postprocess_blocks is {read('num_postprocess_blocks')}; allowed: "
            f"num_preprocess_blocks ({read('num_preprocess_blocks')})"
        )
    mixtures = read("num_mixture_dec")
    colour = "normal" if mixtures == 1 else "logistic_mixture"
    return ModelConfig(
        image_shape=(side, side, channels),
        likelihood="bernoulli" if dataset in _BINARY else colour,
        num_bits=read("num_x_bits"),
        num_mixtures=mixtures,
        border=border,
        num_scales=read("num_latent_scales"),
        num_groups=read("num_groups_per_scale"),
        adaptive_groups=bool(read("ada_groups")),
        min_groups=read("min_groups_per_scale"),
        num_latents=read("num_latent_per_group"),
        architecture=read("arch_instance"),
        encoder_channels=read("num_channels_enc"),
        decoder_channels=read("num_channels_dec"),
        num_blocks=read("num_preprocess_blocks"),
        preprocess_cells=read("num_preprocess_cells"),
        postprocess_cells=read("num_postprocess_cells"),
        encoder_cells=read("num_cell_per_cond_enc"),
        decoder_cells=read("num_cell_per_cond_dec"),
        squeeze_excite=bool(read("use_se")),
        residual_posterior=bool(read("res_dist")),
        num_flows=read("num_nf"),
    )


def import_state_dict(
    state_dict: Mapping[str, np.ndarray], args: Mapping[str, Any]
) -> tuple[ModelConfig, dict]:
    """Brings official weights along.

    Args:
      state_dict: arrays by official name, channels first.
      args: the official command-line arguments by name, as saved in a checkpoint.

    Returns: the configuration, and `variables` with `params` and `batch_stats` as NumPy arrays.

    Raises: ValueError that names every missing, surplus or misshapen tensor (the first few of many),
      or the argument that does not fit.
    """
    config = config_from_args(args)
    variables = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), variable_shapes(config))
    wanted = {}
    problems = []
    for entry in model_entries(config):
        wanted[entry.official] = entry
        place = _lookup(variables, entry)
        if entry.official not in state_dict:
            problems.append(f"{entry.official} is missing")
            continue
        tensor = np.asarray(state_dict[entry.official])
        expected = entry.official_shape(place.shape)
        if tensor.shape != expected:
            problems.append(f"{entry.official} has shape {tensor.shape}, not {expected}")
            continue
        place[...] = entry.to_ours(tensor)
    surplus = [name for name in state_dict if name not in wanted and not name.endswith(_DERIVED)]
    problems += [f"{name} is not a tensor of this model" for name in surplus]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"the state dict does not fit its arguments: {'; '.join(problems[:8])}{more}"
        )
    return config, variables


def export_state_dict(config: ModelConfig, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict that the official implementation would load: the reverse of the import.

    Args:
      config: of the model.
      variables: `params` and `batch_stats`.

    Returns: contiguous arrays by official name, channels first, with the buffers that follow from
      others (`weight_normalized` of convolutions without weight norm) and zero batch counters.
    """
    state_dict = {}
    for entry in model_entries(config):
        tensor = entry.to_official(_lookup(variables, entry))
        state_dict[entry.official] = tensor
        if entry.kind == "conv" and not entry.weight_norm:
            state_dict[f"{entry.official}_normalized"] = tensor
        if entry.path[-1] == "var":
            counter = entry.official.replace("running_var", "num_batches_tracked")
            state_dict[counter] = np.zeros((), np.int64)
    return state_dict


def _lookup(variables: Mapping[str, Any], entry: Entry) -> np.ndarray:
    """The array at an entry's place, as a view."""
    array: Any = variables
    for name in entry.path:
        array = array[name]
    array = np.asarray(array)
    return array if entry.index is None else array[entry.index, ...]
