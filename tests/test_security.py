"""Files and servers that mean harm are refused: nothing in them is run, and nothing gets out.

Not out of the folders that are written to, not over the limits of memory, disk and time.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import os
import pickle
import socketserver
import tarfile
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from tiny import CONFIG

from nvae_jax.data import archives, download
from nvae_jax.data.sources.arrays import NumpyArrays
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation import inception_weights
from nvae_jax.evaluation.inception_weights import GRAPH, load_weights
from nvae_jax.evaluation.latents import read_latents
from nvae_jax.interop.checkpoint import read_checkpoint

MIB = 1 << 20
SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    """The folder of files that may be written to, below one that may not; with small limits."""
    there = tmp_path / "a" / "b"
    there.mkdir(parents=True)
    monkeypatch.chdir(there)
    monkeypatch.setenv("XDG_CACHE_HOME", str(there / "cache"))
    monkeypatch.setattr(inception_weights, "LARGEST", MIB)
    monkeypatch.setattr(archives, "machine_memory", lambda: 2 * MIB)
    monkeypatch.setattr(download, "_TIMEOUT", 0.3)
    yield there
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert not (there / "ran").exists()
    assert not [path for path in (there / "cache").rglob("*") if path.is_file()]


def refused(function, *arguments, match):
    """Asserts that a call is refused in little time and memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(ConfigError, match=match):
            function(*arguments)
        assert time.monotonic() - start < 10
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


class Harm:
    def __reduce__(self):
        return os.system, ("touch ran ../ran",)


def saved(content, path):
    """As PyTorch would save it, but by pickle, for which nothing has to be known beforehand."""
    torch = pytest.importorskip("torch")
    torch.save(content, path)
    return path


def of_harm(path):
    saved({"state_dict": Harm(), "args": {}}, path)


def plain_pickle(path):
    pytest.importorskip("torch")  # without which the file is not looked at
    path.write_bytes(pickle.dumps({"state_dict": Harm(), "args": {}}))


def endless_nesting(path):
    content = {"args": {}, "global_step": 1}
    content["state_dict"] = content
    saved(content, path)


def bomb_in_zip(path):
    saved({"state_dict": {}, "args": {}}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(4 * MIB))


@pytest.mark.parametrize("make", [of_harm, plain_pickle, endless_nesting])
@pytest.mark.parametrize(
    ("suffix", "read"), [(".pt", read_checkpoint), (".pth", lambda path: load_weights(str(path)))]
)
def test_pickles_are_not_run(there, make, suffix, read):
    path = there / f"file{suffix}"
    make(path)
    refused(read, path, match="file")


def test_weights_that_unpack_to_gigabytes_are_refused(there):
    bomb_in_zip(there / "file.pth")
    assert (there / "file.pth").stat().st_size < MIB // 4
    refused(load_weights, "file.pth", match="bytes in file.pth is .*; allowed: at most")


@pytest.mark.parametrize("content", [[], "text", {"state_dict": 3, "args": {}}, {"args": 3}])
def test_checkpoints_of_something_else_are_refused(there, content):
    refused(read_checkpoint, saved(content, there / "file.pt"), match="file.pt")


def member(name, size=0, **fields):
    entry = tarfile.TarInfo(name)
    entry.size = size
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([member(GRAPH, 4 * MIB)], "at most"),
        ([member(f"{i}", MIB // 2) for i in range(8)], "at most"),
        ([member("../../out", 10)], f"archives with {GRAPH}"),
        ([member(GRAPH, type=tarfile.SYMTYPE, linkname="/etc/passwd")], f"archives with {GRAPH}"),
        ([member(GRAPH, type=tarfile.LNKTYPE, linkname="../../out")], f"archives with {GRAPH}"),
        ([member(GRAPH, type=tarfile.FIFOTYPE)], f"archives with {GRAPH}"),
    ],
    ids=["large", "many", "above", "link", "hard link", "pipe"],
)
def test_archives_are_only_read(there, entries, match):
    with tarfile.open(there / "file.tgz", "w:gz") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    assert (there / "file.tgz").stat().st_size < MIB // 4
    refused(load_weights, "file.tgz", match=match)


def test_an_endless_archive_is_refused(there):
    (there / "file.tgz").write_bytes(gzip.compress(bytes(8 * MIB)))
    refused(load_weights, "file.tgz", match="file.tgz")


def objects(path):
    harm = np.empty(2, object)
    harm[:] = Harm()
    np.savez(path, train=harm, test=harm)


def large_zeros(path):
    np.savez_compressed(path, train=np.zeros((4 * MIB, 1, 1), np.uint8), test=np.zeros(1))


def a_lie(path):
    """An array whose header promises more than there is."""
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (10**13, 1, 1)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train.npy", "test.npy"):
            archive.writestr(name, header.getvalue())


@pytest.mark.parametrize("make", [objects, large_zeros, a_lie])
@pytest.mark.parametrize(
    "read",
    [functools.partial(read_latents, CONFIG), lambda path: NumpyArrays(path=str(path)).open()],
    ids=["latents", "images"],
)
def test_arrays_are_numbers_that_fit_the_memory(there, make, read):
    make(there / "file.npz")
    refused(read, there / "file.npz", match=r"file\.npz|unpacked size")


def silent(connection):
    time.sleep(60)


def dripping(connection):
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(1200):
        connection.sendall(b"x")
        time.sleep(0.05)


def endless(connection):
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(1000):
        connection.sendall(bytes(MIB // 4))


def garbled(connection):
    connection.sendall(b"\0" * 100)


def circling(connection):
    connection.sendall(b"HTTP/1.0 302 Found\r\nLocation: /x.pb\r\n\r\n")


@pytest.mark.parametrize("answer", [silent, dripping, endless, garbled, circling])
def test_servers_get_little_time_and_space(there, answer):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(4096)
            with contextlib.suppress(OSError):  # hung up on
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/weights.pb"
        refused(load_weights, address, SHA256, match="weights")
        server.shutdown()
