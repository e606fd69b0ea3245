"""Files from the network: resumed where they stopped, and never taken for whole before they are."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_LEAST = 1 << 16  # bytes in so many seconds, or else the server counts as silent
LARGEST = 1 << 40  # bytes of a file whose size is not known


def fetch(
    url: str,
    path: Path,
    size: int | None = None,
    sha256: str | None = None,
    largest: int = LARGEST,
) -> None:
    """Downloads a file, with a progress bar, unless it is there already.

    What has arrived is kept as `<path>.part` until all of it is there and checked; a later call
    goes on from it.

    Args:
      url: what to download.
      path: the file to write.
      size: of the whole in bytes, if known.
      sha256: of the whole, if known.
      largest: bytes that a file of unknown size may have.

    Raises:
      OSError: the network or the disk does not do its part; the same call goes on.
      ValueError: what arrives is larger than that, or another file than `size` and `sha256` say; it
        is deleted.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    arrived = part.stat().st_size if part.exists() else 0
    most = largest if size is None else size
    while size is None or arrived < size:
        before = arrived
        whole = _receive(url, part, arrived, most)
        arrived = part.stat().st_size
        if whole:
            break
        if arrived == before:
            raise OSError(f"{url} stopped after {arrived:,} bytes; the same command goes on there")
    problem = _problem(part, size, sha256, most)
    if problem:
        part.unlink()
        raise ValueError(f"{url} is another file than expected: {problem}")
    os.replace(part, path)


def _receive(url: str, part: Path, start: int, most: int) -> bool:
    """Appends what follows byte `start`; returns whether the server sent all of it.

    After more than `most` bytes in all, nothing more is taken.
    """
    from tqdm import tqdm

    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # all of it had arrived
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        length = response.length  # None where the server does not say
        start = start if resumed else 0
        total = None if length is None else start + length
        received = seen = 0
        since = time.monotonic()
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True) as progress,
        ):
            try:
                while block := response.read1(_BLOCK):
                    file.write(block)
                    received += len(block)
                    progress.update(len(block))
                    if start + received > most:
                        return True
                    if time.monotonic() - since > _TIMEOUT:
                        if received - seen < _LEAST:
                            raise OSError(f"{url} sends too slowly; the same command goes on")
                        since, seen = time.monotonic(), received
            except (http.client.HTTPException, TimeoutError, ConnectionError):
                return False
    return length is None or received == length


def _problem(part: Path, size: int | None, sha256: str | None, most: int) -> str | None:
    """What is wrong with a file that has arrived."""
    arrived = part.stat().st_size
    if size is not None and arrived != size:
        return f"{arrived:,} bytes, not {size:,}"
    if arrived > most:
        return f"more than {most:,} bytes"
    if sha256 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            return f"SHA-256 {found}, not {sha256}"
    return None
