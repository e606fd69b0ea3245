"""Which files of a folder can be read, found out once."""

import pytest
import stored
from PIL import Image

from nvae_jax.data.images import ImageReader
from nvae_jax.data.sources import checked


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def unreadable(root, names, channels=3):
    verdicts = checked.check_files(root, names, channels)
    assert list(verdicts) == names
    return [name for name, verdict in verdicts.items() if verdict.reason is not None]


def test_what_was_read_once_is_not_read_again(tmp_path, monkeypatch):
    root = tmp_path / "images"
    names = stored.write_mixed(root, 10)
    (root / "broken.png").write_bytes(b"")
    names.append("broken.png")
    reads = []
    original = checked._read
    monkeypatch.setattr(
        checked, "_read", lambda reader, path: reads.append(path.name) or original(reader, path)
    )
    assert unreadable(root, names) == ["broken.png"]
    assert len(reads) == len(names)
    # What failed is tried again: its reason may not have been the content.
    assert unreadable(root, names) == ["broken.png"]
    assert reads[len(names) :] == ["broken.png"]
    (root / "broken.png").write_bytes(stored.encode(stored.photos(1, 8, 8)[0], "png"))
    assert unreadable(root, names) == []
    assert unreadable(root, names) == []
    assert reads[len(names) :] == ["broken.png"] * 2


@pytest.mark.parametrize("repair", ["limit", "link"])
def test_reasons_outside_the_file_are_not_remembered(tmp_path, monkeypatch, repair):
    root = tmp_path / "images"
    names = stored.write_mixed(root, 5)
    if repair == "limit":
        with monkeypatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
            assert unreadable(root, names) == names
    else:
        (root / names[0]).rename(tmp_path / "away.png")
        (root / names[0]).symlink_to(tmp_path / "back.png")
        assert unreadable(root, names) == names[:1]
        (tmp_path / "away.png").rename(tmp_path / "back.png")
    assert unreadable(root, names) == []


def test_files_are_checked_as_they_will_be_read(tmp_path, monkeypatch):
    Image.fromarray(stored.photos(1, 8, 8)[0]).convert("LAB").save(tmp_path / "lab.tif")

    class NoGrey(ImageReader):
        def pixels(self, image):
            if self.channels == 1:
                raise ValueError("not to grey")
            return super().pixels(image)

    with monkeypatch.context() as patch:
        patch.setattr(checked, "ImageReader", NoGrey)
        assert unreadable(tmp_path, ["lab.tif"], channels=3) == []
        assert unreadable(tmp_path, ["lab.tif"], channels=1) == ["lab.tif"]
        assert unreadable(tmp_path, ["lab.tif"], channels=4) == []
    assert unreadable(tmp_path, ["lab.tif"], channels=1) == []


def test_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    names = stored.write_mixed(tmp_path / "images", 3)
    assert unreadable(tmp_path / "images", names) == []
