"""Official state dicts: the way in, the way out, and what is refused."""

import goldens
import jax
import numpy as np
import pytest
from official_models import ARGS, THREE_SCALES, VARIANTS, exported, random_variables

from nvae_jax.interop.layout import model_entries
from nvae_jax.interop.official import (
    config_from_args,
    export_state_dict,
    import_optimizer_state,
    import_state_dict,
)
from nvae_jax.model import ModelConfig, variable_shapes


@pytest.mark.parametrize("name", VARIANTS)
def test_the_way_out_and_back_changes_no_bit(name):
    config = config_from_args(VARIANTS[name])
    variables = random_variables(config)
    state_dict = exported(name)
    again, imported = import_state_dict(state_dict, VARIANTS[name])
    assert again == config
    imported = {"batch_stats": {}} | imported
    assert jax.tree.structure(imported) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, imported, variables)

    # A CPU device takes arrays so aligned over without a copy.
    assert not any(x.ctypes.data % 64 for x in jax.tree.leaves(imported))

    back = export_state_dict(config, imported)
    assert back.keys() == state_dict.keys()
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, state_dict[key], strict=True)
        assert tensor.flags.c_contiguous


@pytest.mark.parametrize("name", ["mnist_tiny", "cifar_tiny"])
def test_an_official_state_dict_comes_back_bit_for_bit(name):
    state_dict = goldens.under(name, "sd")
    args, meta = (goldens.from_json(goldens.load(name)[key]) for key in ("args", "meta"))
    config, variables = import_state_dict(state_dict, args)
    back = export_state_dict(config, variables)
    assert set(back) == set(meta["state_dict_names"])
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)
    for key in set(back) - set(state_dict):
        if key.endswith("weight_normalized"):
            np.testing.assert_array_equal(back[key], back[key.removesuffix("_normalized")])
        else:
            assert key.endswith("num_batches_tracked")
            assert back[key].shape == ()
    # Derived buffers, and old checkpoints' missing arguments, make no difference.
    _, again = import_state_dict(back, args)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_arguments_become_the_configuration():
    config = config_from_args(THREE_SCALES | {"min_groups_per_scale": 2, "num_nf": 2})
    assert config == ModelConfig(
        image_shape=(64, 64, 3),
        likelihood="logistic_mixture",
        num_bits=8,
        num_mixtures=10,
        num_scales=3,
        num_groups=4,
        adaptive_groups=True,
        min_groups=2,
        num_latents=2,
        encoder_channels=4,
        decoder_channels=4,
        num_blocks=1,
        preprocess_cells=2,
        postprocess_cells=2,
        encoder_cells=1,
        decoder_cells=2,
        num_flows=2,
    )
    assert [scale.groups for scale in config.scales] == [4, 2, 2]
    assert config_from_args(ARGS | {"num_mixture_dec": 1}).likelihood == "normal"
    assert not config_from_args(ARGS | {"use_se": False}).squeeze_excite
    assert not config_from_args(ARGS | {"res_dist": False}).residual_posterior
    mnist = config_from_args(ARGS | {"dataset": "mnist", "num_mixture_dec": 1})
    assert (mnist.image_shape, mnist.border, mnist.likelihood) == ((32, 32, 1), 2, "bernoulli")


def test_datasets_have_the_official_sizes():
    standalone = goldens.load("standalone")
    sizes, outputs = (goldens.from_json(standalone[n]) for n in ("input_size", "num_output"))
    for dataset, side in sizes.items():
        config = config_from_args(ARGS | {"dataset": dataset})
        assert config.image_shape[:2] == (side, side), dataset
        assert config.image.num_dimensions == outputs[dataset], dataset


def test_old_arguments_have_defaults():
    new = {"ada_groups", "min_groups_per_scale", "num_mixture_dec"}
    old = {name: value for name, value in ARGS.items() if name not in new}
    assert config_from_args(old) == config_from_args(ARGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "svhn"}, r"dataset is 'svhn'; allowed: mnist, .*ffhq"),
        ({"num_postprocess_blocks": 2}, r"num_postprocess_blocks is 2; allowed: .*\(1\)"),
        (
            {"arch_instance": "res_mbconv9"},
            r"model\.architecture is 'res_mbconv9'; allowed: .*res_mbconv",
        ),
        ({"num_x_bits": 9}, r"num_bits is 9; allowed: 1 to 8"),
        ({"num_latent_scales": None}, "lack num_latent_scales"),
    ],
)
def test_impossible_arguments_are_named(change, message):
    args = {name: value for name, value in (ARGS | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        config_from_args(args)


def missing(state_dict):
    del state_dict["dec_tower.4.conv.bias"]


def renamed(state_dict):
    state_dict["stern.bias"] = state_dict.pop("stem.bias")


def surplus(state_dict):
    state_dict["discriminator.weight_normalized"] = np.zeros(3)


def misshapen(state_dict):
    state_dict["enc0.1.weight"] = state_dict["enc0.1.weight"][:, :, 0]


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (missing, ["dec_tower.4.conv.bias is missing"]),
        (renamed, ["stem.bias is missing", "stern.bias is not a tensor of this model"]),
        (surplus, ["discriminator.weight_normalized is not a tensor of this model"]),
        (misshapen, ["enc0.1.weight has shape (32, 32, 1), not (32, 32, 1, 1)"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(damage, messages):
    state_dict = dict(exported())
    damage(state_dict)
    with pytest.raises(ValueError, match="the state dict does not fit its arguments: ") as caught:
        import_state_dict(state_dict, THREE_SCALES)
    assert str(caught.value).split(": ", 1)[1].split("; ") == messages


def test_another_dataset_or_plan_is_refused_in_few_words():
    wrong = THREE_SCALES | {"dataset": "mnist"}
    with pytest.raises(ValueError, match=r"stem.weight has shape \(4, 3, 3, 3\), not \(4, 1, 3, 3"):
        import_state_dict(exported(), wrong)
    with pytest.raises(ValueError, match=r"; and \d+ more$") as caught:
        import_state_dict(exported(), THREE_SCALES | {"num_groups_per_scale": 8})
    assert len(str(caught.value)) < 1000


def optimizer_state(state_dict, args, step=7):
    """Random moments, by position; and the same under the parameters' names."""
    rng = np.random.default_rng(1)
    params = [e.official for e in model_entries(config_from_args(args)) if e.path[0] == "params"]
    names = [name for name in state_dict if name in params]
    moments = {
        kind: {name: rng.normal(size=state_dict[name].shape).astype("f") for name in names}
        for kind in ("exp_avg", "exp_inf")
    }
    state = {
        i: {"step": step, "exp_avg": moments["exp_avg"][name], "exp_inf": moments["exp_inf"][name]}
        for i, name in enumerate(names)
    }
    half = len(names) // 2
    groups = [{"params": list(range(half))}, {"params": list(range(half, len(names)))}]
    return {"state": state, "param_groups": groups}, moments


def test_moments_are_placed_like_their_parameters():
    state_dict = exported()
    state, moments = optimizer_state(state_dict, THREE_SCALES)
    config = config_from_args(THREE_SCALES)
    imported = import_optimizer_state(state, config, state_dict)
    assert imported["count"] == 7
    for ours, kind in (("mu", "exp_avg"), ("nu", "exp_inf")):
        _, as_weights = import_state_dict(state_dict | moments[kind], THREE_SCALES)
        jax.tree.map(np.testing.assert_array_equal, imported[ours], as_weights["params"])


def test_moments_before_the_first_update_are_zero():
    state_dict, config = exported(), config_from_args(THREE_SCALES)
    state, _ = optimizer_state(state_dict, THREE_SCALES)
    for nothing in (None, state | {"state": {}}):
        imported = import_optimizer_state(nothing, config, state_dict)
        assert imported["count"] == 0
        shapes = jax.tree.map(np.shape, variable_shapes(config)["params"])
        for tree in (imported["mu"], imported["nu"]):
            assert jax.tree.map(np.shape, tree) == shapes
            assert not any(x.any() for x in jax.tree.leaves(tree))


def test_the_unused_parameter_of_a_one_group_model_may_lack_moments():
    args = VARIANTS["one group"]
    state_dict, config = exported("one group"), config_from_args(args)
    state, _ = optimizer_state(state_dict, args)
    names = [name for name in state_dict if not name.endswith("normalized")]
    params = {e.official for e in model_entries(config) if e.path[0] == "params"}
    del state["state"][[name for name in names if name in params].index("prior_ftr0")]
    imported = import_optimizer_state(state, config, state_dict)
    assert not imported["mu"]["decoder"].pop("prior_features").any()
    assert all(x.any() for x in jax.tree.leaves(imported["mu"]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["param_groups"].pop(), r"the optimiser has \d+ parameters, not \d+"),
        (lambda s: s.pop("param_groups"), "the optimiser's state lacks param_groups"),
        (lambda s: s["state"].pop(3), r"exp_avg does not fit the model: \S+ is missing"),
        (lambda s: s["state"][3].pop("exp_inf"), r"exp_inf does not fit .*: \S+ is missing"),
        (lambda s: s["state"][3].update(step=8), r"at different steps: \[7, 8\]"),
        (
            lambda s: s["state"][3].update(exp_avg=np.zeros(0)),
            r"exp_avg does not fit .*: \S+ has shape \(0,\), not ",
        ),
    ],
)
def test_moments_that_do_not_fit_are_named(damage, message):
    state, _ = optimizer_state(exported(), THREE_SCALES)
    damage(state)
    with pytest.raises(ValueError, match=message):
        import_optimizer_state(state, config_from_args(THREE_SCALES), exported())
