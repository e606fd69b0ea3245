"""What a run may be continued with: free, fixed and consented fields; the images."""

import dataclasses

import pytest
from tiny import tiny_run

from nvae_jax.config.changes import ADJUSTABLE, changes, check_changes
from nvae_jax.config.overrides import FIELDS
from nvae_jax.config.run import read_run
from nvae_jax.errors import ConfigError
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.manifest import manifest_changes

PHOTOS = {
    "model": {
        "architecture": "res_bnswish",
        "num_groups": 2,
        "num_blocks": 0,
        "encoder_channels": 4,
        "decoder_channels": 4,
        "encoder_cells": 1,
        "decoder_cells": 1,
    },
    "data": {"name": "image_folder", "path": "photos", "size": 16},
    "training": {"epochs": 10, "batch_size": 4},
}


def photos(**fields):
    """A run on photographs, with other values of some fields."""
    settings = {section: dict(values) for section, values in PHOTOS.items()}
    for name, value in fields.items():
        section, field = name.split("__")
        settings.setdefault(section, {})[field] = value
    return read_run(settings)


def test_nothing_is_said_of_what_is_the_same_or_free():
    free = {
        "data__path": "elsewhere",
        "loading__num_workers": 3,
        "model__remat": "group",
        "model__unroll": True,
        "training__log_interval": 7,
        "training__eval_batch_size": 2,
    }
    assert check_changes(photos(), photos(**free), accept=False) == []
    known = {f"{section}.{name}" for section, names in FIELDS.items() for name in names}
    assert set(ADJUSTABLE) <= known


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("model__num_groups", 3, "which gives parameters their shape"),
        ("model__encoder_channels", 8, "which gives parameters their shape"),
        ("model__num_latents", 3, "which gives parameters their shape"),
        ("model__num_mixtures", 3, "which gives parameters their shape"),
        ("model__likelihood", "normal", "which gives parameters their shape"),
        ("model__num_bits", 5, "which is what an image is to the model"),
        ("data__size", 32, "which is what an image is to the model"),
        ("data__channels", 1, "which is what an image is to the model"),
    ],
)
def test_fixed_fields_are_refused_with_the_reason(field, value, reason):
    with pytest.raises(ConfigError) as caught:
        check_changes(photos(), photos(**{field: value}), accept=True)
    message = str(caught.value)
    assert f"config.{field.replace('__', '.')} is {value!r}, saved: " in message
    assert reason in message
    assert "another --workdir" in message
    assert "accept" not in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training__learning_rate", 1e-3),
        ("training__gradient_clip", 200.0),
        ("training__epochs", 20),
        ("training__batch_size", 8),
        ("training__seed", 1),
        ("training__ema_decay", 0.9),
        ("data__flip", True),
        ("data__unreadable", "skip"),
        ("data__test_fraction", 0.5),
        ("model__dtype", "bfloat16"),
    ],
)
def test_other_fields_require_consent(field, value):
    saved, given = photos(), photos(**{field: value})
    name = field.replace("__", ".")
    with pytest.raises(ConfigError, match=rf"config.{name} is .*saved: .*or --accept_changes to"):
        check_changes(saved, given, accept=False)
    assert [change.name for change in check_changes(saved, given, accept=True)] == [name]


def test_only_what_is_fixed_is_named_as_fixed():
    given = photos(model__num_groups=3, training__seed=1, model__dtype="bfloat16")
    with pytest.raises(ConfigError) as caught:
        check_changes(photos(), given, accept=True)
    assert "seed" not in str(caught.value)
    assert "dtype" not in str(caught.value)


def test_other_data_of_the_same_images_may_be_accepted():
    digits = tiny_run()
    other = dataclasses.replace(digits, data=dataclasses.replace(digits.data))
    assert changes(digits, other) == []
    folder = photos()
    faces = read_run(
        {"model": PHOTOS["model"] | {"image_shape": (64, 64, 3)}, "data": {"name": "celeba64"}}
        | {"training": PHOTOS["training"]}
    )
    same_size = photos(data__size=64)
    names = [change.name for change in check_changes(same_size, faces, accept=True)]
    assert "data.name" in names
    with pytest.raises(ConfigError, match=r"data.name is 'celeba64'.*what an image is"):
        check_changes(folder, faces, accept=True)


SAVED = {"train": {"a.png": 1, "b.png": 2, "c.png": 3}, "test": {"d.png": 4}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SAVED, []),
        (
            {"train": {"a.png": 1, "e.png": 2}, "test": {"d.png": 4, "c.png": 3}},
            [
                "1 image removed: b.png",
                "1 image added: e.png",
                "1 image moved to the other split: c.png",
            ],
        ),
        (
            {"train": SAVED["train"] | {f"n{i}.png": 0 for i in range(1234)}, "test": {"d.png": 5}},
            [
                "1,234 images added: n0.png, n1.png, n10.png, n100.png, n1000.png and 1,229 more",
                "1 image changed: d.png",
            ],
        ),
        ({"train": 2, "test": 1}, ["train has 2 images, saved: 3 images"]),
    ],
)
def test_what_is_different_about_the_images_is_listed(tmp_path, given, expected):
    assert manifest_changes(SAVED, given) == expected
    workdir = Workdir(tmp_path)
    assert workdir.image_changes(given) == []  # nothing is known of a run from before
    workdir.save_images(SAVED)
    assert workdir.image_changes(given) == expected


def test_a_broken_list_of_images_is_refused_by_name(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write("images.json.gz", b"torn")
    with pytest.raises(ConfigError, match=r"images.json.gz', which cannot be read"):
        workdir.image_changes(SAVED)
