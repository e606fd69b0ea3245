"""The modes that compress and decompress: their images, their report and their figures."""

import dataclasses
import json
import types

import numpy as np
import pytest

pytest.importorskip("constriction", reason="requires the extra `compression`")

from compressing import COLOUR, model_of, model_of_digits, samples
from PIL import Image
from sklearn.datasets import load_sample_images

from nvae_jax.command_line import with_file
from nvae_jax.compression.images import named_images
from nvae_jax.compression.names import expanded
from nvae_jax.data.sources.scikit import Photos
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inputs import load_images
from nvae_jax.measuring.compression import (
    ONCE,
    crops,
    draw_overhead,
    measure_compression,
    read_measured,
    tables,
)
from nvae_jax.measuring.results import write_json
from nvae_jax.modes.compress import CompressOptions
from nvae_jax.modes.compress import compress as compress_mode
from nvae_jax.modes.decompress import DecompressOptions
from nvae_jax.modes.decompress import decompress as decompress_mode
from nvae_jax.modes.table import MODES


@pytest.fixture(scope="module")
def colour():
    return model_of(COLOUR)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return model_of_digits(tmp_path_factory.mktemp("run"))


def test_the_file_is_as_long_as_the_nelbo_says(digits, tmp_path):
    (tmp_path / "images").mkdir()
    images = samples(digits, 80)
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"images/{number:02d}.png")
    output = tmp_path / "digits.nvae"
    options = CompressOptions(str(output), (str(tmp_path / "images"),), batch_size=2)
    result = compress_mode(digits, options)
    assert output.stat().st_size == result["bytes"]
    assert result["sum"] == 8 * result["bytes"]
    coded = result["images"] - result["tiles_of_openings"]
    by_model = sum(group["sum"] for group in result["groups"]) + result["parts"]["pixels"]
    assert coded > 40
    assert by_model / coded == pytest.approx(result["nelbo_bits"] / 80, rel=0.03)
    assert set(result["other_codecs"]) >= {"PNG", "WebP"}
    saved = json.loads((digits.workdir.results / "compress/digits.nvae.json").read_text())
    assert saved["bytes"] == result["bytes"]

    written = decompress_mode(digits, DecompressOptions(str(output), only=("78-79", "3")))
    assert [path.rsplit("/")[-1] for path in written] == ["03.png", "78.png", "79.png"]
    for path, number in zip(written, (3, 78, 79), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path))[..., None], images[number])
    for options, message in (
        (DecompressOptions(str(output), only=("3",)), "new files"),
        (DecompressOptions(str(output), only=("80",)), "up to 79"),
        (DecompressOptions(str(output), only=("x",)), "up to 79"),
        (DecompressOptions(str(tmp_path / "no")), "No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            decompress_mode(digits, options)
    with pytest.raises(ConfigError, match=r"output is .* allowed: a new file"):
        compress_mode(digits, CompressOptions(str(output)))


def test_streams_are_measured_against_the_nelbo(digits, tmp_path):
    measured = measure_compression(digits, samples(digits, 80), (20, 80), (2,), compare=False)
    for record in measured.records:
        assert sum(record.bits.values()) == 8 * record.bytes
        assert record.nelbo * (1 + record.overhead) == pytest.approx(8 * record.bytes)
        for seconds in (record.encoding, record.decoding):
            parts = [seconds[part]["wall"] for part in ("network", "coder")]
            assert 0 < sum(parts) < seconds["total"]["wall"]
    few, many = measured.records
    assert many.once < few.once
    by_the_model = sum(many.bits.values()) - sum(many.bits[name] for name in ONCE)
    share = by_the_model / (many.nelbo - many.opening_nelbo)
    assert share == pytest.approx(1, rel=0.03)
    assert many.overhead - many.once == pytest.approx(
        (by_the_model - many.nelbo + many.opening_nelbo) / many.nelbo
    )

    write_json(str(tmp_path / "digits.json"), dataclasses.asdict(measured))
    measured = read_measured([str(tmp_path / "digits.json")])
    rows = [line.split(" | ") for line in tables(measured).splitlines()]
    all_parts, file = (int(row[1].replace(",", "")) for row in rows if "**" in row[0])
    assert all_parts == file == 8 * many.bytes
    draw_overhead(measured, str(tmp_path / "overhead.png"))
    assert (tmp_path / "overhead.png").stat().st_size > 0
    with pytest.raises(ConfigError, match="--lengths is 81"):
        measure_compression(digits, samples(digits, 80), (81,), (2,), compare=False)


def test_crops_are_of_their_part_of_the_photographs(digits):
    run = types.SimpleNamespace(
        data=Photos(), model=dataclasses.replace(COLOUR, image_shape=(32, 32, 3))
    )
    model = dataclasses.replace(digits, run=run)
    photographs = np.stack(load_sample_images().images)
    parts = photographs[:, :, 448:]
    for i, crop in enumerate(crops(model, ["test"], 5)):
        part = parts[i % 2]
        corners = np.argwhere((part[:-31, :-31] == crop[0, 0]).all(-1))
        assert any(np.array_equal(part[y : y + 32, x : x + 32], crop) for y, x in corners)
    with pytest.raises(ConfigError, match="photos, for crops"):
        crops(digits, ["test"], 5)
    with pytest.raises(ConfigError, match="--images"):
        crops(model, ["a.png"], 5)


def test_examples_are_what_the_model_sees(digits):
    images, names = named_images(digits, ["test:5-6", "test:9"])
    assert names == ["test:5-6", "test:9-9"]
    x = load_images(digits, ["test:5-6", "test:9"], "images")
    expected = 255 * digits.config.image.without_border(x).astype(np.uint8)
    np.testing.assert_array_equal(np.stack(images), expected)
    for name in ("test:297", "test:5-4"):
        with pytest.raises(ConfigError, match="test:0 to test:296"):
            named_images(digits, [name])
    assert len(named_images(digits, ["test"])[0]) == 297


def test_files_keep_their_pixels_or_are_refused(colour, tmp_path):
    rng = np.random.default_rng(0)
    pixels = {
        "b/grey.png": rng.integers(0, 256, (5, 6), dtype=np.uint8),
        "colour.png": rng.integers(0, 256, (9, 3, 3), dtype=np.uint8),
    }
    (tmp_path / "b").mkdir()
    for name, array in pixels.items():
        Image.fromarray(array).save(tmp_path / name)
    images, names = named_images(colour, [str(tmp_path), str(tmp_path / "colour.png")])
    assert names == ["b/grey.png", "colour.png", "colour.png"]
    np.testing.assert_array_equal(images[0], np.stack([pixels["b/grey.png"]] * 3, -1))
    np.testing.assert_array_equal(images[1], pixels["colour.png"])
    assert expanded(names) == ["b/grey", "colour", "colour_2"]
    for name, array in (
        ("alpha.png", np.zeros((2, 2, 4), np.uint8)),
        ("deep.png", np.zeros((2, 2), np.uint16)),
    ):
        Image.fromarray(array).save(tmp_path / name)
        with pytest.raises(ConfigError, match="do not keep everything"):
            named_images(colour, [str(tmp_path / name)])
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "no.png")):
        with pytest.raises(ConfigError, match="allowed: test, test:0-99"):
            named_images(colour, [name])


def test_the_file_may_stand_without_its_flag():
    modes = {mode: options for mode, (options, _) in MODES.items()}
    assert with_file("decompress", modes, ["f.nvae"]) == {"file": "f.nvae"}
    assert with_file("sample", modes, []) == {}
    for mode, rest in (("sample", ["x"]), ("decompress", ["f", "x"])):
        with pytest.raises(ConfigError, match="unexpected arguments: x"):
            with_file(mode, modes, rest)
