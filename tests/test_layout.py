"""The names and shapes of official state dicts, and where each tensor goes."""

import functools

import jax
import numpy as np
from official_models import ARGS, VARIANTS, exported, random_variables

from nvae_jax.interop.layout import model_entries
from nvae_jax.interop.official import config_from_args, export_state_dict, import_state_dict
from nvae_jax.model import variable_shapes


def wn(name, outputs, inputs, kernel=1, bias=True):
    """A weight-normalised convolution's tensors."""
    shapes = {f"{name}.weight": (outputs, inputs, kernel, kernel)}
    shapes[f"{name}.log_weight_norm"] = (outputs, 1, 1, 1)
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def plain(name, outputs, inputs, kernel=1):
    shape = (outputs, inputs, kernel, kernel)
    return {f"{name}.weight": shape, f"{name}.weight_normalized": shape}


def norm(name, channels):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (channels,) for v in vectors} | {f"{name}.num_batches_tracked": ()}


def se(name, channels):
    first = {f"{name}.se.se.0.weight": (4, channels), f"{name}.se.se.0.bias": (4,)}
    return first | {f"{name}.se.se.2.weight": (channels, 4), f"{name}.se.se.2.bias": (channels,)}


def residual(name, inputs, outputs):
    """A cell of two BN-swish-conv operations; it halves the size if it doubles the channels."""
    shapes = norm(f"{name}._ops.0.bn_act", inputs) | wn(f"{name}._ops.0.conv_0", outputs, inputs, 3)
    shapes |= norm(f"{name}._ops.1.bn_act", outputs)
    shapes |= wn(f"{name}._ops.1.conv_0", outputs, outputs, 3) | se(name, outputs)
    if outputs != inputs:
        for i in range(1, 5):
            shapes |= wn(f"{name}.skip.conv_{i}", outputs // 4, inputs)
    return shapes


def inverted(name, inputs, outputs, expansion):
    """A cell of an inverted residual; it doubles the size if it halves the channels."""
    up, hidden, conv = int(outputs != inputs), expansion * inputs, f"{name}._ops.0.conv"
    shapes = norm(f"{conv}.{up}.bn", inputs)
    shapes |= plain(f"{conv}.{up + 1}.conv.0", hidden, inputs)
    shapes |= norm(f"{conv}.{up + 1}.conv.1", hidden)
    shapes |= plain(f"{conv}.{up + 2}.conv.0", hidden, 1, 5)
    shapes |= norm(f"{conv}.{up + 2}.conv.1", hidden)
    shapes |= plain(f"{conv}.{up + 3}", outputs, hidden) | norm(f"{conv}.{up + 4}.bn", outputs)
    if up:
        shapes |= wn(f"{name}.skip.1", outputs, inputs, bias=False)
    return shapes | se(name, outputs)


def flow(name, latents):
    hidden = 6 * latents
    shapes = wn(f"{name}.conv.convz.0", hidden, latents, 3, bias=False)
    shapes |= wn(f"{name}.conv.convz.2", hidden, 1, 5, bias=False)
    return shapes | wn(f"{name}.mu.conv_0", latents, hidden)


def test_names_and_shapes_of_a_small_model_by_hand():
    """Two scales of 2 and 1 groups, one flow pair; every module in the order it is executed."""
    args = ARGS | {"num_latent_scales": 2, "ada_groups": True, "num_nf": 1, "num_channels_dec": 8}
    # Widths: 4 and 8 at full resolution, then 8 and 16 at the finest scale, 16 and 32 above it.
    expected = {"prior_ftr0": (32, 8, 8)} | wn("stem", 4, 3, 3)
    expected |= residual("pre_process.0", 4, 4) | residual("pre_process.1", 4, 8)
    expected |= residual("enc_tower.0", 8, 8) | wn("enc_tower.1.conv", 8, 16)
    expected |= residual("enc_tower.2", 8, 8) | wn("enc_tower.3.conv", 8, 16)
    expected |= residual("enc_tower.4", 8, 16) | residual("enc_tower.5", 16, 16)
    expected |= wn("enc0.1", 16, 16)
    expected |= wn("enc_sampler.0", 4, 16, 3)
    for i in (1, 2):
        expected |= wn(f"enc_sampler.{i}", 4, 8, 3) | wn(f"dec_sampler.{i - 1}.1", 4, 16)
    for i in range(3):
        expected |= flow(f"nf_cells.{i}.cell1", 2) | flow(f"nf_cells.{i}.cell2", 2)
    expected |= wn("dec_tower.0.conv", 32, 34) | inverted("dec_tower.1", 32, 16, 6)
    expected |= inverted("dec_tower.2", 16, 16, 6) | wn("dec_tower.3.conv", 16, 18)
    expected |= inverted("dec_tower.4", 16, 16, 6) | wn("dec_tower.5.conv", 16, 18)
    expected |= inverted("post_process.0", 16, 8, 3) | inverted("post_process.1", 8, 8, 3)
    expected |= wn("image_conditional.1", 100, 8, 3)

    config = config_from_args(args)
    state_dict = export_state_dict(config, random_variables(config))
    assert {name: tensor.shape for name, tensor in state_dict.items()} == expected


def test_names_of_a_one_group_model():
    names = exported("one group, two blocks")
    assert not any(name.startswith(("enc_tower", "dec_tower", "dec_sampler")) for name in names)
    assert names["stem_decoder.weight"].shape == (16, 2, 1, 1)
    assert names["prior_ftr0"].shape == (16, 8, 8)
    assert {name.split(".")[1] for name in names if name.startswith("enc_sampler")} == {"0"}


def kind_of_cell(names):
    if any(name.startswith("conv.") for name in names):
        return "combine"
    kinds = {"down": "skip.conv_4.weight", "up": "skip.1.weight"}
    return next((kind for kind, name in kinds.items() if name in names), "cell")


def test_order_of_execution_over_three_scales():
    """Scales of 4, 2 and 1 groups, with 1 cell a group going up and 2 going down."""
    state_dict = exported("three scales")

    def kinds(tower):
        modules = {}
        for name in state_dict:
            if name.startswith(tower):
                _, number, rest = name.split(".", 2)
                modules.setdefault(int(number), set()).add(rest)
        return " ".join(kind_of_cell(modules[i]) for i in range(len(modules)))

    up = " cell combine" * 4 + " down" + " cell combine" * 2 + " down" + " cell"
    assert kinds("enc_tower") == up.strip()
    down = "combine" + " up" + " cell cell combine" * 2 + " up" + " cell cell combine" * 4
    assert kinds("dec_tower") == down


def import_numbered(name):
    """Parameters of a variant whose tensors hold their modules' numbers, and a reader of those."""
    state_dict = {key: np.array(tensor) for key, tensor in exported(name).items()}
    for key in state_dict:
        if key.startswith(("enc_tower", "dec_tower", "enc_sampler", "dec_sampler", "nf_cells")):
            state_dict[key][...] = int(key.split(".")[1])
    _, variables = import_state_dict(state_dict, VARIANTS[name])

    def numbers(tree, layer):
        return functools.reduce(dict.get, layer.split("."), tree)["bias"][..., 0].tolist()

    return variables["params"]["encoder"], variables["params"]["decoder"], numbers


def test_groups_are_stacked_top_down_in_the_decoder_and_bottom_up_in_the_encoder():
    encoder, decoder, numbers = import_numbered("three scales")
    assert numbers(encoder["scale_0"], "cell_0.op_0.conv") == [0, 2, 4, 6]
    assert numbers(encoder["scale_1"], "cell_0.op_0.conv") == [9, 11]
    # The decoder's first group of a scale sees what the encoder's last group put out.
    assert numbers(decoder["scale_0"], "combine_encoder") == [7, 5, 3, 1]
    assert numbers(decoder["scale_1"], "combine_encoder") == [12, 10]
    assert numbers(decoder["scale_1"], "combine") == [4, 7]
    assert numbers(decoder["scale_0"], "combine") == [11, 14, 17, 20]
    assert numbers(decoder["first"], "posterior") == 0
    assert numbers(decoder["scale_1"], "posterior") == [1, 2]
    assert numbers(decoder["scale_0"], "posterior") == [3, 4, 5, 6]
    assert numbers(decoder["scale_0"], "prior") == [2, 3, 4, 5]


def test_flow_pairs_are_numbered_group_by_group():
    _, decoder, numbers = import_numbered("two flow pairs, 5 bits")
    for pair in (0, 1):
        for cell in ("forward", "mirrored"):
            assert numbers(decoder["first"], f"flow_{pair}.{cell}.head") == pair
            assert numbers(decoder["scale_0"], f"flow_{pair}.{cell}.head") == [2 + pair]


def test_batch_norm_before_an_elu_has_a_name_of_its_own():
    names = exported("batch-norm and ELU")
    assert {"enc_tower.0._ops.1.bn.bn.running_var", "enc_tower.0._ops.1.conv_0.bias"} <= set(names)
    assert not any("bn_act" in name for name in names)
    assert not any("bn" in name for name in exported("no batch norm"))


def test_every_variable_has_one_official_tensor():
    for name, args in VARIANTS.items():
        config = config_from_args(args)
        entries = list(model_entries(config))
        assert len({entry.official for entry in entries}) == len(entries), name
        places = {(entry.path, entry.index) for entry in entries}
        assert len(places) == len(entries), name
        shapes = jax.tree_util.tree_leaves_with_path(variable_shapes(config))
        leaves = {tuple(key.key for key in path) for path, _ in shapes}
        assert {entry.path for entry in entries} == leaves, name
