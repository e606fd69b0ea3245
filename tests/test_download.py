import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest

from nvae_jax.data.download import fetch

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT from where it is asked for, and hangs up after `limit` bytes."""

    limit, resumes, starts = len(CONTENT), True, []

    def do_GET(self):
        start = 0
        if (asked := self.headers["Range"]) and self.resumes:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        type(self).starts.append(start)
        if start >= len(CONTENT) and asked:
            self.send_error(416)
            return
        self.send_response(206 if asked and self.resumes else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """(the handler's class, the address of a server on this machine)."""
    handler = type("Handler", (Server,), {"starts": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()


def test_file_arrives_once(server, tmp_path):
    handler, url = server
    path = tmp_path / "folder" / "file"
    fetch(url, path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT
    fetch(url, path, len(CONTENT), SHA256)
    assert handler.starts == [0]
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_broken_connections_are_taken_up_where_they_broke(server, tmp_path):
    handler, url = server
    handler.limit = 1_000_000
    fetch(url, tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert handler.starts == [0, 1_000_000, 2_000_000]


def test_part_of_an_earlier_call_is_kept(server, tmp_path):
    handler, url = server
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    fetch(url, tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert handler.starts == [1234]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_part_that_is_already_whole_is_recognised(server, tmp_path, size):
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(server[1], tmp_path / "file", size, SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_cannot_resume_starts_over(server, tmp_path):
    handler, url = server
    handler.resumes = False
    (tmp_path / "file.part").write_bytes(b"x" * 1234)
    fetch(url, tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_sends_nothing_is_given_up_and_the_part_is_kept(server, tmp_path):
    handler, url = server
    handler.limit = 0
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    with pytest.raises(OSError, match="stopped after 1,234 bytes; the same command goes on there"):
        fetch(url, tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1234]


@pytest.mark.parametrize(
    ("size", "sha256", "message"),
    [
        (None, "0" * 64, f"SHA-256 {SHA256}, not 000"),
        (len(CONTENT) - 1, None, "3,000,000 bytes, not 2,999,999"),
    ],
)
def test_another_file_than_expected_is_deleted(server, tmp_path, size, sha256, message):
    with pytest.raises(ValueError, match=f"is another file than expected: {message}"):
        fetch(server[1], tmp_path / "file", size, sha256)
    assert list(tmp_path.iterdir()) == []
