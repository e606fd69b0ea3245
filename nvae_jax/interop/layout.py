"""Where each tensor of an official state dict lives in our variables, and in which layout.

Written from the published naming of the checkpoints alone. Group g of the official lists counts
from the top; ours are stacked per scale.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from nvae_jax.model.architecture import ModelConfig

# Official axes → ours, for tensors that differ by more than their shape.
_TRANSPOSE = {
    "conv": (2, 3, 1, 0),
    "plain_conv": (2, 3, 1, 0),
    "dense": (1, 0),
    "image": (1, 2, 0),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor and its place in our variables.

    official: its name in the state dict.
    path: collection and names in our variables.
    index: position on the leading axis of a stack; None: not stacked.
    kind: conv or plain_conv, with and without weight norm (OIHW there, HWIO here), gain (O, 1, 1, 1
      there), dense, image (CHW there) or vector.
    """

    official: str
    path: tuple[str, ...]
    index: int | None
    kind: str

    def official_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The official shape of a tensor whose shape here is `shape`."""
        if self.kind == "gain":
            return (*shape, 1, 1, 1)
        return tuple(shape[i] for i in self._axes(shape))

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        transpose = _TRANSPOSE.get(self.kind, range(len(shape)))
        return tuple(int(i) for i in np.argsort(transpose))

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The official tensor in our layout, as a view."""
        if self.kind == "gain":
            return tensor.reshape(-1)
        return tensor.transpose(_TRANSPOSE[self.kind]) if self.kind in _TRANSPOSE else tensor

    def to_official(self, array: np.ndarray) -> np.ndarray:
        """Our array (without its stack's axis) in the official layout, contiguous."""
        if self.kind == "gain":
            return array.reshape(-1, 1, 1, 1)
        return np.ascontiguousarray(array.transpose(self._axes(array.shape)))


@dataclasses.dataclass(frozen=True)
class _Place:
    """A module of ours: its path, and its position in a stack."""

    path: tuple[str, ...]
    index: int | None = None

    def __truediv__(self, name: str) -> _Place:
        return _Place((*self.path, name), self.index)

    def entry(self, official: str, collection: str, name: str, kind: str) -> Entry:
        return Entry(official, (collection, *self.path, name), self.index, kind)


def _conv(name: str, place: _Place, weight_norm: bool = True, bias: bool = True) -> Iterator[Entry]:
    kind = "conv" if weight_norm else "plain_conv"
    yield place.entry(f"{name}.weight", "params", "kernel", kind)
    if weight_norm:
        yield place.entry(f"{name}.log_weight_norm", "params", "log_gain", "gain")
    if bias:
        yield place.entry(f"{name}.bias", "params", "bias", "vector")


def _norm(name: str, place: _Place) -> Iterator[Entry]:
    yield place.entry(f"{name}.weight", "params", "scale", "vector")
    yield place.entry(f"{name}.bias", "params", "bias", "vector")
    yield place.entry(f"{name}.running_mean", "batch_stats", "mean", "vector")
    yield place.entry(f"{name}.running_var", "batch_stats", "var", "vector")


def _dense(name: str, place: _Place) -> Iterator[Entry]:
    yield place.entry(f"{name}.weight", "params", "kernel", "dense")
    yield place.entry(f"{name}.bias", "params", "bias", "vector")


def _operation(name: str, place: _Place, operation: str, up: bool) -> Iterator[Entry]:
    if operation.startswith("mconv"):
        first = 1 if up else 0
        yield from _norm(f"{name}.conv.{first}.bn", place / "norm_in")
        for i, part in enumerate(("expand", "spatial"), start=first + 1):
            yield from _conv(f"{name}.conv.{i}.conv.0", place / part, False, False)
            yield from _norm(f"{name}.conv.{i}.conv.1", place / f"norm_{part}")
        yield from _conv(f"{name}.conv.{first + 3}", place / "project", False, False)
        yield from _norm(f"{name}.conv.{first + 4}.bn", place / "norm_out")
        return
    if operation != "res_elu":
        norm = "bn.bn" if operation == "res_bnelu" else "bn_act"
        yield from _norm(f"{name}.{norm}", place / "norm")
    yield from _conv(f"{name}.conv_0", place / "conv")


def cell_entries(
    name: str, path: tuple[str, ...], index: int | None, operations: tuple[str, ...], **form: bool
) -> Iterator[Entry]:
    """Entries of one residual cell; `form` has `down`, `up` and `squeeze_excite`."""
    place = _Place(path, index)
    for j, operation in enumerate(operations):
        up = form.get("up", False) and j == 0
        yield from _operation(f"{name}._ops.{j}", place / f"op_{j}", operation, up)
    if form.get("squeeze_excite", True):
        yield from _dense(f"{name}.se.se.0", place / "squeeze_excite" / "squeeze")
        yield from _dense(f"{name}.se.se.2", place / "squeeze_excite" / "excite")
    if form.get("down", False):
        for i in range(4):
            yield from _conv(f"{name}.skip.conv_{i + 1}", place / "skip" / f"conv_{i}")
    if form.get("up", False):
        yield from _conv(f"{name}.skip.1", place / "skip" / "conv", bias=False)


def flow_cell_entries(name: str, path: tuple[str, ...], index: int | None) -> Iterator[Entry]:
    """Entries of one autoregressive cell."""
    place = _Place(path, index)
    yield from _conv(f"{name}.conv.convz.0", place / "strict_conv", bias=False)
    yield from _conv(f"{name}.conv.convz.2", place / "depthwise_conv", bias=False)
    yield from _conv(f"{name}.mu.conv_0", place / "head")


def model_entries(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a model, in no particular order."""
    encoder, decoder = _Place(("encoder",)), _Place(("decoder",))
    yield from _conv("stem", encoder / "stem")
    yield from _conv("enc0.1", encoder / "top")
    yield from _conv("image_conditional.1", decoder / "image")
    yield Entry("prior_ftr0", ("params", "decoder", "prior_features"), None, "image")
    cells, se = config.cells, {"squeeze_excite": config.squeeze_excite}
    pre, post = config.preprocess_cells, config.postprocess_cells
    for block in range(config.num_blocks):
        for i in range(pre):
            name, place = f"pre_process.{block * pre + i}", encoder / f"preprocess_{block}_{i}"
            yield from cell_entries(
                name, place.path, None, cells.preprocess, down=i == pre - 1, **se
            )
        for i in range(post):
            name, place = f"post_process.{block * post + i}", decoder / f"postprocess_{block}_{i}"
            yield from cell_entries(name, place.path, None, cells.postprocess, up=i == 0, **se)
    yield from _encoder_tower(config)
    yield from _decoder_tower(config)


def _encoder_tower(config: ModelConfig) -> Iterator[Entry]:
    if config.one_group:
        return
    cells, se = config.cells.encoder, {"squeeze_excite": config.squeeze_excite}
    names = (f"enc_tower.{i}" for i in itertools.count())
    for s, scale in enumerate(config.scales):
        if s > 0:
            path = ("encoder", f"down_{s}")
            yield from cell_entries(next(names), path, None, cells, down=True, **se)
        last_scale = s == config.num_scales - 1
        combined = scale.groups - last_scale  # groups with a combiner; the very last has none
        for group in range(scale.groups):
            for i in range(config.encoder_cells):
                cell = ("encoder", f"scale_{s}", f"cell_{i}")
                yield from cell_entries(next(names), cell, group, cells, **se)
            if group < combined:
                # Ours belongs to the decoder's group, and those are stacked top-down.
                place = _Place(("decoder", f"scale_{s}"), combined - 1 - group)
                yield from _conv(f"{next(names)}.conv", place / "combine_encoder")


def _decoder_tower(config: ModelConfig) -> Iterator[Entry]:
    cells, se = config.cells.decoder, {"squeeze_excite": config.squeeze_excite}
    names = (f"dec_tower.{i}" for i in itertools.count())
    first = _Place(("decoder", "first"))
    yield from _conv(
        "stem_decoder" if config.one_group else f"{next(names)}.conv", first / "combine"
    )
    yield from _group(config, 0, first)
    group = 1
    for s, scale in reversed(list(enumerate(config.scales))):
        top = s == config.num_scales - 1
        if not top:
            path = ("decoder", f"up_{s}")
            yield from cell_entries(next(names), path, None, cells, up=True, **se)
        for index in range(scale.groups - top):
            place = _Place(("decoder", f"scale_{s}"), index)
            for i in range(config.decoder_cells):
                cell = (place / f"cell_{i}").path
                yield from cell_entries(next(names), cell, index, cells, **se)
            yield from _conv(f"{next(names)}.conv", place / "combine")
            yield from _conv(f"dec_sampler.{group - 1}.1", place / "prior")
            yield from _group(config, group, place)
            group += 1


def _group(config: ModelConfig, group: int, place: _Place) -> Iterator[Entry]:
    """What every group has: the posterior's convolution and the flows."""
    yield from _conv(f"enc_sampler.{group}", place / "posterior")
    for n in range(config.num_flows):
        pair = place / f"flow_{n}"
        for official, ours in (("cell1", "forward"), ("cell2", "mirrored")):
            name = f"nf_cells.{group * config.num_flows + n}.{official}"
            yield from flow_cell_entries(name, (*pair.path, ours), place.index)
