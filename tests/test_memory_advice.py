"""A run that is refused for want of memory starts by what the refusal advises.

With the stand-in update of `stand_in.py`.
"""

import re
import shutil
import types

import pytest
from stand_in import ACCEPT, users

from nvae_jax.training import fitting, loop


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    yield from users(tmp_path_factory.mktemp("user"))


def memory_of(run, gib):
    """What a compiler for CPU might say of a run's update, `gib` in all of eight images."""
    model, training = run.model, run.training
    height, width, _ = model.image_shape
    of_images = training.batch_size / 8 * height * width / 64 * model.encoder_channels / 8
    memory = types.SimpleNamespace(
        argument_size_in_bytes=0.01 * fitting.GIB * (model.encoder_channels / 8) ** 2,
        temp_size_in_bytes=(gib - 0.01) * fitting.GIB * of_images,
        output_size_in_bytes=0,
        alias_size_in_bytes=0,
        generated_code_size_in_bytes=0,
    )
    return types.SimpleNamespace(memory_analysis=lambda: memory)


@pytest.fixture
def measured(monkeypatch):
    """A machine of 9 GiB, on which an update of eight images requires 12.5."""

    def compiled_ahead(function, *_, check):
        check(memory_of(check.__self__.run, 8))
        return function

    monkeypatch.setattr(loop, "compiled_ahead", compiled_ahead)
    monkeypatch.setattr(fitting, "usable_memory", lambda: 9 * fitting.GIB)


WIDE = ("--config.model.encoder_channels=8", "--config.model.decoder_channels=8")


def advised(message):
    """The ways out that a refusal names, each as arguments."""
    *ways, last = message.partition("allowed: ")[2].split(", or ")
    assert last == fitting.IGNORE
    assert all(re.fullmatch(r"(--\S+ ?)+", way) for way in ways)
    return [way.split() for way in ways]


def test_what_too_little_memory_advises_works(user, measured):
    ways = advised(user.refused("large", *WIDE, own=True))
    assert [way[0].partition("=")[0].rpartition(".")[2] for way in ways] == [
        "batch_size",
        "size",
        "encoder_channels",
    ]
    for i, way in enumerate(ways):
        run = shutil.copytree(user.folder / "large", user.folder / f"large_{i}").name
        assert "done, " in user.train(run, *way)


def test_what_too_little_memory_advises_a_run_that_exists_works(user, monkeypatch, request):
    user.train("grown", "--config.training.epochs=1", *WIDE, own=True)
    request.getfixturevalue("measured")
    on = "--config.training.epochs=3"
    ways = advised(user.refused("grown", on, ACCEPT))
    assert [way[1].partition("=")[0].rpartition(".")[2] for way in ways] == [
        "batch_size",
    ]
    for i, way in enumerate(ways):
        run = shutil.copytree(user.folder / "grown", user.folder / f"grown_{i}").name
        assert "done, " in user.train(run, on, *way)
