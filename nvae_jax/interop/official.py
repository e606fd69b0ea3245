"""Official PyTorch checkpoints of NVAE: from their state dicts to our variables, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from nvae_jax.data.sources import DataConfig, data_config
from nvae_jax.errors import ConfigError, require
from nvae_jax.interop.layout import Entry, model_entries
from nvae_jax.model import ModelConfig, variable_shapes

# Official datasets as the section `data` of a configuration.
_DATASETS: dict[str, dict[str, Any]] = {
    "mnist": {"name": "mnist"},
    "omniglot": {"name": "omniglot"},
    "stacked_mnist": {"name": "stacked_mnist"},
    "cifar10": {"name": "cifar10"},
    "imagenet_32": {"name": "imagenet32"},
    "celeba_64": {"name": "celeba64"},
    "celeba_256": {"name": "celebahq256"},
    "ffhq": {"name": "ffhq256"},
    "lsun_bedroom_128": {"name": "lsun", "category": "bedroom", "size": 128},
    "lsun_bedroom_256": {"name": "lsun", "category": "bedroom", "size": 256},
    "lsun_church_64": {"name": "lsun", "category": "church_outdoor", "size": 64},
    "lsun_church_128": {"name": "lsun", "category": "church_outdoor", "size": 128},
}

# Arguments that old checkpoints lack.
_DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}


def data_from_args(args: Mapping[str, Any]) -> DataConfig:
    """The dataset that the official command-line arguments `args` name.

    Raises:
      ConfigError: there is none of that name, or the argument is missing.
    """
    dataset = args.get("dataset")
    require("the checkpoint's dataset", dataset, dataset in _DATASETS, ", ".join(_DATASETS))
    return data_config(**_DATASETS[str(dataset)])


def config_from_args(args: Mapping[str, Any]) -> ModelConfig:
    """The configuration that the official command-line arguments `args` describe.

    Raises:
      ConfigError: an argument is missing, or no model of ours has its value.
    """
    args = {**_DEFAULTS, **args}

    def read(name: str) -> Any:
        if name not in args:
            raise ConfigError(f"the checkpoint's arguments lack {name}")
        return args[name]

    image = data_from_args(args).image
    assert image is not None  # all of them know it
    if read("num_postprocess_blocks") != read("num_preprocess_blocks"):
        raise ConfigError(
            f"num_postprocess_blocks is {read('num_postprocess_blocks')}; allowed: "
            f"num_preprocess_blocks ({read('num_preprocess_blocks')})"
        )
    mixtures = read("num_mixture_dec")
    likelihood: Literal["bernoulli", "logistic_mixture", "normal"] = (
        "bernoulli" if image.binarize else "normal" if mixtures == 1 else "logistic_mixture"
    )
    return ModelConfig(
        image_shape=image.shape,
        likelihood=likelihood,
        num_bits=read("num_x_bits"),
        num_mixtures=mixtures,
        border=image.border,
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

    Raises:
      ConfigError: the message names every missing, surplus or misshapen tensor (of many the first
      few), or the argument that does not fit.
    """
    config = config_from_args(args)
    entries = list(model_entries(config))
    derived = {_derived(entry) for entry in entries}
    tensors = {name: x for name, x in state_dict.items() if name not in derived}
    variables = _zeros(_shapes(config))
    _fill(variables, entries, tensors, "the state dict does not fit its arguments")
    return config, variables


def import_optimizer_state(
    optimizer_state: Mapping[str, Any] | None,
    config: ModelConfig,
    state_dict: Mapping[str, np.ndarray],
) -> dict:
    """Brings Adamax's moments along, so that training can go on.

    Args:
      optimizer_state: the official optimiser's state dict: `state` by a parameter's position, with
        `step`, `exp_avg` and `exp_inf`, and `param_groups`. None: one before its first update.
      config: the model's configuration.
      state_dict: of the model; only the order of its names is used, which gives the positions.

    Returns: `count`, the updates so far, and `mu` and `nu`, trees like `params` of NumPy arrays.

    Raises:
      ConfigError: the message names what is missing, surplus, misshapen or contradictory.
    """
    entries = [entry for entry in model_entries(config) if entry.path[0] == "params"]
    official = {entry.official for entry in entries}
    states = {}
    if optimizer_state is not None:
        for name in ("state", "param_groups"):
            if name not in optimizer_state:
                raise ConfigError(f"the optimiser's state lacks {name}")
        names = [name for name in state_dict if name in official]
        positions = [i for group in optimizer_state["param_groups"] for i in group["params"]]
        if len(positions) != len(names):
            raise ConfigError(f"the optimiser has {len(positions)} parameters, not {len(names)}")
        held = optimizer_state["state"]
        states = {name: held[i] for name, i in zip(names, positions, strict=True) if i in held}
    counts = {int(state.get("step", 0)) for state in states.values()} or {0}
    if len(counts) > 1:
        raise ConfigError(f"the optimiser's parameters are at different steps: {sorted(counts)}")
    # What never had a gradient has no moments.
    if not states:
        entries = []
    elif config.one_group and "prior_ftr0" not in states:
        entries = [entry for entry in entries if entry.official != "prior_ftr0"]

    def moments(kind: str) -> Any:
        tree = _zeros({"params": _shapes(config)["params"]})
        tensors = {name: state[kind] for name, state in states.items() if kind in state}
        _fill(tree, entries, tensors, f"the optimiser's {kind} does not fit the model")
        return tree["params"]

    return {"count": counts.pop(), "mu": moments("exp_avg"), "nu": moments("exp_inf")}


def export_state_dict(config: ModelConfig, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict that the official implementation would load: the reverse of the import.

    Args:
      config: the model's configuration.
      variables: `params` and `batch_stats`.

    Returns: contiguous arrays by official name, channels first, with the buffers that follow from
      others (`weight_normalized` of convolutions without weight norm). Batch norm's counters
      `num_batches_tracked`, which nothing reads and an import drops, are 0.
    """
    state_dict = {}
    for entry in model_entries(config):
        tensor = entry.to_official(_lookup(variables, entry))
        state_dict[entry.official] = tensor
        if entry.kind == "plain_conv":
            state_dict[_derived(entry)] = tensor
        elif entry.path[-1] == "var":
            state_dict[_derived(entry)] = np.zeros((), np.int64)
    return state_dict


def _derived(entry: Entry) -> str:
    """The buffer that may stand beside a kernel or a variance: a copy, or what nothing reads."""
    if entry.path[-1] == "var":
        return entry.official.replace("running_var", "num_batches_tracked")
    return f"{entry.official}_normalized"


_shapes = functools.cache(variable_shapes)


def _zeros(shapes: Any) -> Any:
    """Arrays aligned as XLA has them, so that a CPU device takes them over without a copy."""

    def zeros(shape: Any) -> np.ndarray:
        size, alignment = shape.size * shape.dtype.itemsize, 64
        memory = np.zeros(size + alignment, np.uint8)
        start = -memory.ctypes.data % alignment
        return memory[start : start + size].view(shape.dtype).reshape(shape.shape)

    return jax.tree.map(zeros, shapes)


def _fill(
    tree: dict, entries: Iterable[Entry], tensors: Mapping[str, np.ndarray], complaint: str
) -> None:
    """Copies every tensor to its entry's place in `tree`, and sees that none is left over."""
    problems, left = [], dict(tensors)
    for entry in entries:
        place = _lookup(tree, entry)
        expected = entry.official_shape(place.shape)
        tensor = left.pop(entry.official, None)
        if tensor is None:
            problems.append(f"{entry.official} is missing")
        elif (shape := np.shape(tensor)) != expected:
            problems.append(f"{entry.official} has shape {shape}, not {expected}")
        else:
            place[...] = entry.to_ours(np.asarray(tensor))
    problems += [f"{name} is not a tensor of this model" for name in left]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ConfigError(f"{complaint}: {'; '.join(problems[:8])}{more}")


def _lookup(variables: Mapping[str, Any], entry: Entry) -> np.ndarray:
    """The array at an entry's place, as a view."""
    array: Any = variables
    for name in entry.path:
        array = array[name]
    array = np.asarray(array)
    return array if entry.index is None else array[entry.index, ...]
