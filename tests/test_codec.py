"""Images through compression by whole small models, and files that must be refused."""

import contextlib
import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

pytest.importorskip("constriction", reason="requires the extra `compression`")

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import ONE_DEVICE, make_run, random_variables

from nvae_jax.command_line import with_file
from nvae_jax.compression import container, network
from nvae_jax.compression.codec import compress, decompress
from nvae_jax.compression.images import expanded, named_images
from nvae_jax.compression.network import check_codable
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inputs import load_images
from nvae_jax.evaluation.trained import TrainedModel, open_run
from nvae_jax.model import NVAE, ModelConfig
from nvae_jax.model.distributions import image_distribution
from nvae_jax.modes.compress import CompressOptions
from nvae_jax.modes.compress import compress as compress_mode
from nvae_jax.modes.decompress import DecompressOptions
from nvae_jax.modes.decompress import decompress as decompress_mode
from nvae_jax.modes.table import MODES

COLOUR = ModelConfig(
    image_shape=(8, 4, 3),
    num_bits=5,
    num_mixtures=2,
    num_scales=2,
    num_groups=2,
    adaptive_groups=True,
    num_latents=2,
    encoder_channels=4,
    decoder_channels=4,
    num_blocks=0,
    encoder_cells=1,
    decoder_cells=1,
    architecture="res_bnswish",
    squeeze_excite=False,
    num_flows=1,
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    with pytest.MonkeyPatch.context() as patch:
        options = {"xla_backend_optimization_level": 0}
        patch.setattr(
            network,
            "jit_on",
            lambda mesh, function, reproducible: jax.jit(function, compiler_options=options),
        )
        yield


def tamed(config, variables):
    """Parameters with which latents and pixels are worth something, unlike at random.

    Posteriors are near their priors, and pixels have little noise.
    """
    mixtures = config.num_mixtures

    def change(path, x):
        x = np.array(x)
        names = [key.key for key in path]
        if "posterior" in names:
            x = x - 3 if names[-1] == "log_gain" else 0 * x if names[-1] == "bias" else x
        binary = config.likelihood == "bernoulli"
        if names[-2:] == ["image", "bias" if binary else "log_gain"]:
            x = x - 3
        elif names[-2:] == ["image", "bias"]:
            x[mixtures:].reshape(config.image_shape[-1], -1, mixtures)[:, 1] = -3.5
        return np.float32(x)

    return jax.tree_util.tree_map_with_path(change, variables)


def of(config, seed=0):
    """A model as `open_run` returns it; without a run, which compression does not need."""
    variables = tamed(config, random_variables(config))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: np.float32(x + 0.01 * rng.normal(size=x.shape)), variables)
    run = types.SimpleNamespace(model=config)
    return TrainedModel(None, run, ONE_DEVICE, variables, step=7, log=print)


def samples(model, number):
    """Images of a model's own, (h, w, C) uint8 each, which it codes as well as is possible."""
    config = model.config

    def draw(variables, key):
        logits = NVAE(config).apply(
            variables, number, method="sample_prior", rngs={"sample": jax.random.fold_in(key, 0)}
        )
        return image_distribution(config, logits).sample(jax.random.fold_in(key, 1))

    x = np.asarray(model.compile(draw)(model.variables, jax.random.key(0)))
    bits = 1 if config.image.binarize else config.num_bits
    levels = np.rint(x * (2**bits - 1)).astype(np.uint8)
    levels = levels * 255 if bits == 1 else levels << (8 - bits)
    return list(config.image.without_border(levels))


@pytest.fixture(scope="module")
def colour():
    return of(COLOUR)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    model = open_run(make_run(tmp_path_factory.mktemp("run")), ONE_DEVICE)
    return dataclasses.replace(model, variables=tamed(model.config, model.variables))


def picture(rng, kind, height, width, channels):
    if kind == "noise":
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if kind == "five bits":
        return rng.integers(0, 32, (height, width, channels), dtype=np.uint8) << 3
    value = {"black": 0, "white": 255}[kind]
    return np.full((height, width, channels), value, np.uint8)


def roundtrip(model, images, **options):
    made = compress(model, images, **options)
    assert sum(made.bits.values()) == 8 * len(made.content)
    back = dict(decompress(model, made.content))
    assert sorted(back) == list(range(len(images)))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(back[number], image)
        assert back[number].dtype == np.uint8
    return made


KINDS = st.sampled_from(["noise", "black", "white", "five bits"])
SIZES = st.tuples(st.integers(1, 17), st.integers(1, 9))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(KINDS, SIZES), min_size=1, max_size=6),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 2**32 - 1),
)
def test_images_of_all_sizes_come_back(colour, kinds, stream_images, seed):
    rng = np.random.default_rng(seed)
    images = [picture(rng, kind, *size, 3) for kind, size in kinds]
    made = roundtrip(colour, images, batch_size=2, stream_images=stream_images)
    last = len(images) - 1
    ((number, image),) = decompress(colour, made.content, [last])
    assert number == last
    np.testing.assert_array_equal(image, images[last])


def test_long_streams_draw_their_latents_from_an_opening(colour):
    images = samples(colour, 300)
    made = roundtrip(colour, images, batch_size=2)
    assert 0 < made.opening < 150
    drawn, latents = (
        sum(made.bits[f"{what} {g}"] for g in range(3)) for what in ("drawn", "latents")
    )
    assert latents > -drawn > 0


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


def test_other_numbers_and_other_bits_are_never_an_image(colour):
    images = samples(colour, 300)[:60]
    content = compress(colour, images).content
    packed = container.read(content, "f")

    def read(**changes):
        again = container.write(dataclasses.replace(packed, **changes))
        for number, image in decompress(colour, again, field="f.nvae"):
            np.testing.assert_array_equal(image, images[number])

    def refusal(**changes):
        with pytest.raises(ConfigError, match=r"f\.nvae") as caught:
            read(**changes)
        return str(caught.value)

    (stream,) = packed.streams
    assert stream.opening < 60
    for place in np.linspace(0, len(stream.words) - 1, 6).astype(int):
        words = stream.words.copy()
        words[place] ^= 1 << (place % 32)
        with contextlib.suppress(ConfigError):  # the last bits of the opening may be of no use
            read(streams=[dataclasses.replace(stream, words=words)])
    words = stream.words.copy()
    words[-2] ^= 1 << 30
    assert "cannot be decoded here" in refusal(streams=[dataclasses.replace(stream, words=words)])
    refusal(check_words=packed.check_words + 1)
    made = packed.made_with
    assert "the run's" in refusal(made_with=made | {"model": "0" * 64})
    message = refusal(made_with=made | {"fingerprint": 0, "jaxlib": "0.1"})
    assert "computes other numbers" in message
    assert "jaxlib 0.1 (here" in message
    # Another version that computes the same is no reason to refuse.
    again = container.write(dataclasses.replace(packed, made_with=made | {"jaxlib": "0.1"}))
    assert len(list(decompress(colour, again))) == len(images)

    with pytest.raises(ConfigError, match="the model of"):
        next(decompress(of(COLOUR, seed=1), content))


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


def test_what_cannot_be_coded_is_refused(colour, digits):
    for changes, message in (
        ({"likelihood": "normal"}, "a density is no probability"),
        ({"flow": "mixture_logistic"}, "change the volume"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_codable(dataclasses.replace(COLOUR, **changes))
    check_codable(dataclasses.replace(COLOUR, flow="mixture_logistic", num_flows=0))
    good = np.zeros((3, 3, 3), np.uint8)
    for bad in (good[..., :1], good[0], good.astype(int), good[:0]):
        with pytest.raises(ConfigError, match=r"image 1 is .* 3 channels of uint8"):
            compress(colour, [good, bad])
    with pytest.raises(ConfigError, match="1 or more"):
        compress(colour, [])
    with pytest.raises(ConfigError, match="the model's images are binary"):
        compress(digits, [np.full((28, 28, 1), 7, np.uint8)])
    for options in ({"batch_size": 0}, {"stream_images": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            compress(colour, [good], **options)


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


def test_names_stay_in_their_folder():
    assert expanded(["test:8-10", "a:0-1", "0-2"]) == [
        *("test_08", "test_09", "test_10"),
        *("a_0", "a_1", "0-2"),
    ]
    assert expanded(["a.png", "a.jpg", "c:d"]) == ["a", "a_2", "c_d"]
    for name in ("/etc/x.png", "a/../../x.png", ".."):
        with pytest.raises(ConfigError, match="the name of an image"):
            expanded([name])


def test_the_file_may_stand_without_its_flag():
    modes = {mode: options for mode, (options, _) in MODES.items()}
    assert with_file("decompress", modes, ["f.nvae"]) == {"file": "f.nvae"}
    assert with_file("sample", modes, []) == {}
    for mode, rest in (("sample", ["x"]), ("decompress", ["f", "x"])):
        with pytest.raises(ConfigError, match="unexpected arguments: x"):
            with_file(mode, modes, rest)


def test_a_thousand_bits_are_not_needed_for_one_pixel(colour):
    made = compress(colour, [np.full((1, 1, 3), 8, np.uint8)])
    assert made.opening in (0, 1)
    assert made.bits["pixels"] + made.bits["opening"] < 200
    assert math.isclose(sum(made.bits.values()), 8 * len(made.content))
