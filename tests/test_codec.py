"""Images through compression by whole small models, and files that must be refused."""

import contextlib
import dataclasses
import functools
import math

import numpy as np
import pytest

pytest.importorskip("constriction", reason="requires the extra `compression`")

from compressing import COLOUR, forged, model_of, samples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import SMALL

from nvae_jax.compression import coder, container, origin
from nvae_jax.compression.codec import compress, decompress
from nvae_jax.compression.network import check_codable
from nvae_jax.errors import ConfigError


@pytest.fixture(scope="module")
def colour():
    return model_of(COLOUR)


@pytest.fixture(scope="module")
def binary():
    return model_of(SMALL)


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
@example([("black", (1, 1))], None, 0)
@example([("noise", (1, 1)), ("noise", (17, 1)), ("black", (1, 9))], 1, 0)
def test_images_of_all_sizes_come_back(colour, kinds, stream_images, seed):
    rng = np.random.default_rng(seed)
    images = [picture(rng, kind, *size, 3) for kind, size in kinds]
    made = roundtrip(colour, images, batch_size=2, stream_images=stream_images)
    last = len(images) - 1
    ((number, image),) = decompress(colour, made.content, [last])
    assert number == last
    np.testing.assert_array_equal(image, images[last])


@pytest.mark.parametrize(("channels", "num_bits"), [(1, 8), (2, 8), (4, 5)])
def test_images_of_any_channels_and_bits_come_back(channels, num_bits):
    shape = (8, 4, channels)
    model = model_of(dataclasses.replace(COLOUR, image_shape=shape, num_bits=num_bits))
    rng = np.random.default_rng(channels)
    images = [picture(rng, kind, 9, 5, channels) for kind in ("noise", "black", "five bits")]
    roundtrip(model, [*images, *samples(model, 120)], batch_size=2)


def test_long_streams_draw_their_latents_from_an_opening(colour):
    images = samples(colour, 300)
    made = roundtrip(colour, images, batch_size=2)
    assert 0 < made.opening < 150
    drawn, latents = (
        sum(made.bits[f"{what} {g}"] for g in range(3)) for what in ("drawn", "latents")
    )
    assert latents > -drawn > 0


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
    other = functools.partial(dataclasses.replace, made)
    assert "the run's" in refusal(made_with=other(model="0" * 64))
    message = refusal(made_with=other(fingerprint=0, jaxlib="0.1"))
    assert "computes other numbers" in message
    assert "jaxlib 0.1 (here" in message
    # Another version that computes the same is no reason to refuse.
    again = container.write(dataclasses.replace(packed, made_with=other(jaxlib="0.1")))
    assert len(list(decompress(colour, again))) == len(images)

    with pytest.raises(ConfigError, match="the model of"):
        next(decompress(model_of(COLOUR, seed=1), content))


def test_no_byte_of_a_file_can_change(colour):
    content = compress(colour, [np.full((3, 2, 3), 200, np.uint8)]).content
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(ConfigError, match=r"f\.nvae"):
                next(decompress(colour, bytes(damaged), field="f.nvae"))


def changed(*path, to):
    """A change of a header: another value at a place."""

    def change(made):
        functools.reduce(lambda part, key: part[key], path[:-1], made)[path[-1]] = to
        return made

    return change


@pytest.fixture(scope="module")
def written(colour):
    """Twelve images and their file, all but the opening coded by the model."""
    rng = np.random.default_rng(0)
    images = [picture(rng, "five bits", 8, 4, 3) for _ in range(12)]
    return images, compress(colour, images, by_model=True).content


LARGE = [[12, 128, 128]]
FIELDS = ("shapes", "streams", "levels")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("coding", "levels", 0, to="000"), "the latent channels"),
        (changed("coding", "levels", to=[]), "the latent channels"),
        (changed("coding", "low_bits", to=1), "the low bits .* allowed: 0 or 3"),
        (changed("streams", 0, slice(1, 3), to=[13, 9]), "the opening of stream 0 .* to 12 tiles"),
        (changed("streams", 0, slice(1, 3), to=[1, 2**30]), "the bits of stream 0"),
        (
            lambda made: changed("streams", 0, slice(1, 3), to=[1, 9])(
                made | {"coding": made["coding"] | {"low_bits": 3}, "shapes": LARGE}
            ),
            "the bits of stream 0",
        ),
        (changed("shapes", to=[[12, 16, 8]]), "the check words .* allowed: 3"),
    ],
)
def test_headers_that_contradict_the_model_are_refused_before_it_is_compiled(
    colour, written, change, message, monkeypatch
):
    monkeypatch.setattr(origin, "Network", None)
    with pytest.raises(ConfigError, match=message) as caught:
        next(decompress(colour, forged(written[1], change), field="f.nvae"))
    assert "f.nvae" in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_header_makes_another_image(colour, written, data):
    images, content = written
    number = st.integers(0, 20) | st.integers(2**14 + 1, 2**31)

    def change(made):
        made["coding"] |= data.draw(st.sampled_from([{}, {"levels": ["00"] * 3}]))
        for name in data.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3)):
            part = made["coding"]["levels"] if name == "levels" else made[name]
            if name == "levels":
                group = data.draw(st.integers(0, len(part) - 1))
                part[group] = data.draw(st.text("0123456789", min_size=2, max_size=2))
            else:
                run = data.draw(st.sampled_from(part))
                run[data.draw(st.integers(0, 2))] = data.draw(number)
        return made

    with contextlib.suppress(ConfigError):
        for number, image in decompress(colour, forged(content, change), field="f.nvae"):
            np.testing.assert_array_equal(image, images[number])


def test_files_of_the_first_format_are_read(colour):
    images = samples(colour, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder.Stack, "scramble", lambda stack, bits: None)
        content = compress(colour, images, by_model=True).content
    packed = dataclasses.replace(container.read(content, "f"), version=1)
    back = dict(decompress(colour, container.write(packed)))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(back[number], image)


def test_what_cannot_be_coded_is_refused(colour, binary):
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
        compress(binary, [np.full((8, 4, 1), 7, np.uint8)])
    for options in ({"batch_size": 0}, {"stream_images": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            compress(colour, [good], **options)


def test_a_thousand_bits_are_not_needed_for_one_pixel(colour):
    made = compress(colour, [np.full((1, 1, 3), 8, np.uint8)])
    assert made.opening in (0, 1)
    assert made.bits["pixels"] + made.bits["opening"] < 200
    assert math.isclose(sum(made.bits.values()), 8 * len(made.content))
