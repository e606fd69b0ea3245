"""Files of compressed images whose checksums are right, and whose headers are not."""

import contextlib
import copy
import functools
import json
import time
import tracemalloc
import zlib

import numpy as np
import pytest

pytest.importorskip("constriction", reason="requires the extra `compression`")

from compressing import forged
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_jax.compression import container, header, names
from nvae_jax.compression.latents import NONE
from nvae_jax.errors import ConfigError

TEXTS = ("model", "dtype", "device", "machine", "jax", "jaxlib", "numpy", "constriction")
FIELDS = ("made_with", "coding", "names", "shapes", "checks", "streams")


def a_container():
    words = np.arange(5, dtype=np.uint32)
    stream = container.Stream(2, 1, 7, words)
    return container.Container(
        header.MadeWith(fingerprint=1, **dict.fromkeys(TEXTS, "a")),
        header.Coding.of(1, 3, [np.asarray([NONE, 8]), np.asarray([0])]),
        ("test:0-2", "a.png"),
        [(4, 5)] * 3 + [(6, 7)],
        words[:2],
        [stream] * 2,
    )


def test_containers_come_back():
    made = a_container()
    content = container.write(made)
    read = container.read(content, "f.nvae")
    assert (read.made_with, read.coding, read.names) == (made.made_with, made.coding, made.names)
    assert read.shapes == made.shapes
    np.testing.assert_array_equal(read.check_words, made.check_words)
    assert [s.images for s in read.streams] == [2, 2]
    np.testing.assert_array_equal(read.streams[1].words, made.streams[1].words)
    assert [group.tolist() for group in read.coding.precisions] == [[NONE, 8], [0]]
    assert container.write(container.read(forged(content, lambda made: made), "f")) == content


def test_containers_that_are_not_what_was_written_are_refused():
    content = container.write(a_container())
    for place in range(len(content)):
        for flip in (1, 255):
            damaged = bytearray(content)
            damaged[place] ^= flip
            with pytest.raises(ConfigError, match=r"f\.nvae"):
                container.read(bytes(damaged), "f.nvae")
        with pytest.raises(ConfigError, match=r"f\.nvae"):
            container.read(content[:place], "f.nvae")
    with pytest.raises(ConfigError, match="1 bytes at its end"):
        container.read(content + b"x", "f.nvae")
    with pytest.raises(ConfigError, match="a file of mode compress"):
        container.read(b"GIF89a", "f.nvae")


def part_of(value, path):
    return functools.reduce(lambda part, key: part[key], path, value)


def at(*path):
    """From a value to a change of a header that puts it at a place."""

    def put(value):
        def change(made):
            part_of(made, path[:-1])[path[-1]] = value
            return made

        return change

    return put


def without(name):
    """A change of a header that leaves out a field."""
    return lambda made: {key: value for key, value in made.items() if key != name}


def deflated(text):
    """A change of a header to another text, from which it may be made."""
    return lambda made: zlib.compress(text(json.dumps(made).encode()) if callable(text) else text)


WRONG_NUMBERS = (-1, 10**12, 10**400, 1.0, float("nan"), True, None, "1", [1], {})
NUMBERS = [
    *[at("coding", name) for name in ("batch_size", "low_bits")],
    at("made_with", "fingerprint"),
    *[at("shapes", 0, i) for i in range(3)],
    *[at("checks", i) for i in range(2)],
    *[at("streams", 1, i) for i in range(5)],
]
WRONG_NAMES = [
    *("../x", "a/../../x", "/etc/x", "..", ".", "", "a\\..\\..\\x:/../../y", "a\0b", "\ud800"),
    *("n" * 300, "n/" * 3000 + "n", "test:0-2", "test:5-1", "test:0-999999999"),
]
FORGED = {
    "number": [put(x) for put in NUMBERS for x in WRONG_NUMBERS],
    "type": [at(f)(x) for f in FIELDS for x in (None, 3, "a", [], {}, [None], [[]], [{}])],
    "missing": [without(name) for name in FIELDS],
    "name": [at("names", 1)(name) for name in WRONG_NAMES],
    "coding": [at("coding", "levels")(levels) for levels in (["0a", "1"], ["0\u0661", "1"], "09")]
    + [at("coding", "batch_size")(0)],
    "text": [at("made_with", "jax")("\x1b[2J"), at("made_with", "model")("a" * 10**6)],
    "shapes": [at("shapes", 0, i)(0) for i in range(3)]
    + [at("shapes", 0, 0)(4), at("shapes")([[3, 2**14, 2**14], [1, 1, 1]])],
    "streams": [at("streams", 0, i)(x) for i, x in ((0, 4), (0, 1), (0, 0), (1, 0), (2, 0))],
    "unknown": [at("colour")(1), at("\x1b[2J")(1), at("\ud800")(1), at("n" * 10**6)(1)],
    "twice": [deflated(lambda text: b'{"names":[],' + text[1:])],
    "JSON": [deflated(x) for x in (b"{", b"", b"[]", b"\xff\xfe\xfd", b"1" * 10**6, b"[" * 10**6)],
    "deflated": [
        lambda made: b"",
        lambda made: json.dumps(made).encode(),
        lambda made: deflated(lambda text: text)(made)[:-9],
        lambda made: deflated(lambda text: text)(made) + b"x",
    ],
    "megabytes": [deflated(bytes(2**25)), deflated(b"[" + b"[]," * 10**5 + b"[]]")],
}


@pytest.mark.parametrize("kind", FORGED)
def test_headers_that_nobody_writes_are_refused(kind):
    written = container.write(a_container())
    for change in FORGED[kind]:
        content = forged(written, change)
        tracemalloc.start()
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(tracemalloc.stop)
            with pytest.raises(ConfigError, match=r"f\.nvae") as caught:
                container.read(content, "f.nvae")
            assert tracemalloc.get_traced_memory()[1] < 2**26
        assert time.monotonic() - start < 10
        assert len(str(caught.value)) < 600
        assert str(caught.value).isprintable()


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 5)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["test:0-3", "a/b.png", "0", "09", 2**32, 2**40])
)
JSON = st.recursive(PLAIN, lambda part: st.lists(part, max_size=3), max_leaves=5)


def places(value, path=()):
    """Paths to all parts of a JSON value."""
    yield path
    keys = {dict: lambda: value, list: lambda: range(len(value))}.get(type(value), tuple)
    for key in keys():
        yield from places(value[key], (*path, key))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_headers_that_are_changed_at_random_are_refused_or_agree_with_themselves(data):
    def change(made):
        for _ in range(data.draw(st.integers(1, 3))):
            *above, last = data.draw(st.sampled_from([*places(made)][1:]))
            part = part_of(made, above)
            kind = data.draw(st.sampled_from(["replace", "remove", "repeat"]))
            if kind == "replace":
                part[last] = data.draw(JSON)
            elif kind == "remove" and len(part) > 1:
                del part[last]
            elif kind == "repeat" and isinstance(part, list):
                part.insert(last, copy.deepcopy(part[last]))
        return made

    content = forged(container.write(a_container()), change)
    try:
        read = container.read(content, "f.nvae")
    except ConfigError:
        return
    assert len(names.expanded(read.names)) == len(read.shapes)
    assert sum(stream.images for stream in read.streams) == len(read.shapes)
    again = container.read(container.write(read), "f.nvae")
    assert (again.coding, again.names, again.shapes) == (read.coding, read.names, read.shapes)


def test_names_stay_in_their_folder():
    assert names.expanded(["test:8-10", "a:0-1", "0-2"]) == [
        *("test_08", "test_09", "test_10"),
        *("a_0", "a_1", "0-2"),
    ]
    assert names.expanded(["a.png", "a.jpg", "c:d"]) == ["a", "a_2", "c_d"]
    for name in ("/etc/x.png", "a/../../x.png", ".."):
        with pytest.raises(ConfigError, match="the name of an image"):
            names.expanded([name])


def test_many_equal_names_become_different_ones():
    expanded = names.expanded(["a.png"] * 30_000 + ["a_2.png", "b:0-2"])
    assert len(set(expanded)) == len(expanded) == 30_004
