"""The page of a run: what it shows, to several people at a time, and in a browser."""

import io
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Visitor, browser, free_port
from PIL import Image
from tiny import ONE_DEVICE, make_run

from nvae_jax.api import Run
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.latents import prior_noise
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.view import ViewOptions
from nvae_jax.viewer import shown as shown_module
from nvae_jax.viewer.page import make_page, serve
from nvae_jax.viewer.shown import Shown
from nvae_jax.workdir.pictures import image_grid


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("runs") / "digits")
    (path / "metrics.jsonl").write_text('{"step": 1, "train/nelbo": 3.0, "train/kl": 1.0}\n')
    return Shown(Run(open_run(path, ONE_DEVICE)))


@pytest.fixture
def photo(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_samples_are_the_runs(shown):
    sheet = shown.samples(4, (3, 3), (0.7, 1.0))
    images = shown.run.sample(4, temperature=(0.7, 1.0), seed=3)
    grid = image_grid(images, shown_module.COLUMNS)
    factor = len(sheet) // len(grid)
    assert factor > 1
    difference = np.abs(sheet[::factor, ::factor].astype(int) - grid)
    assert difference.max() <= 1  # between two compiled programs
    with pytest.raises(ConfigError, match="images is 65; allowed: 1 to 64"):
        shown.samples(65, (0, 0), (1.0, 1.0))


def test_a_scale_has_a_seed_of_its_own(shown):
    sheet = shown.samples(4, (3, 4), (1.0, 1.0))
    config = shown.run.config.model
    one, other = (prior_noise(config, 4, np.ones(4), seed) for seed in (3, 4))
    noise = [*one[:2], *other[2:]]  # two groups per scale
    images = shown.run.decode(noise, space="noise")
    grid = image_grid(images, shown_module.COLUMNS)
    factor = len(sheet) // len(grid)
    np.testing.assert_array_equal(sheet[::factor, ::factor], grid)
    assert (sheet != shown.samples(4, (3, 3), (1.0, 1.0))).any()
    assert shown.scales == [(4, 4), (8, 8)]


def test_uploads_are_seen_by_depth_and_bounded(shown, photo, tmp_path, monkeypatch):
    assert shown.by_depth(photo, 0).shape[1] > 3 * shown.by_depth(photo, 0).shape[0]
    assert shown.between(photo, photo, 3).dtype == np.uint8
    assert shown.curves().shape[-1] == 3
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"the image is 'broken.png', which cannot be read"):
        shown.by_depth(str(tmp_path / "broken.png"), 0)
    with pytest.raises(ConfigError, match="the image is None; allowed: an image file"):
        shown.between(photo, None, 3)
    monkeypatch.setattr(shown_module, "LARGEST_IMAGE", 1000)
    with pytest.raises(ConfigError, match="the pixels of the image is 1200; allowed: at most 1"):
        shown.by_depth(photo, 0)
    monkeypatch.setattr(shown_module, "LARGEST_FILE", 100)
    with pytest.raises(ConfigError, match=r"the bytes of the image is .* allowed: at most 100"):
        shown.by_depth(photo, 0)


def test_without_gradio_the_extra_is_named(shown, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"--mode view requires gradio, .*pip install gradio"):
        make_page(shown)
    with pytest.raises(ConfigError, match="port is 0; allowed: 1 to 65535"):
        ViewOptions(port=0)
    assert ViewOptions().host == "127.0.0.1"


@pytest.fixture(scope="module")
def page(shown):
    pytest.importorskip("gradio", reason="requires the extra `view`")
    page = make_page(shown)
    port = free_port()
    yield serve(page, "127.0.0.1", port, wait=False), port
    page.close()


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def test_two_people_do_not_mix(page, shown, photo):
    from gradio_client import Client, handle_file

    address, port = page
    assert address.startswith("http://127.0.0.1:")
    one, two = (Client(address, verbose=False) for _ in range(2))

    def picture(client, *arguments, api_name):
        file = client.predict(*arguments, api_name=api_name)
        file = file[0] if isinstance(file, tuple) else file
        return pixels(Path(file["path"] if isinstance(file, dict) else file).read_bytes())

    temperatures = (1.0, 1.0)
    found = picture(one, 4, 3, *temperatures, api_name="/draw")
    np.testing.assert_array_equal(found, shown.samples(4, (3, 3), temperatures))
    assert (picture(two, 4, 5, *temperatures, api_name="/draw") != found).any()
    # The first one's samples, though the second one drew later.
    found = picture(one, 4, 1, 6, *temperatures, api_name="/redraw")
    np.testing.assert_array_equal(found, shown.samples(4, (3, 6), temperatures))
    found = picture(one, 4, 0.5, 1.0, api_name="/move")
    np.testing.assert_array_equal(found, shown.samples(4, (3, 6), (0.5, 1.0)))
    found = picture(one, handle_file(photo), 0, api_name="/reconstruct")
    np.testing.assert_array_equal(found, shown.by_depth(photo, 0))
    with pytest.raises(ConfigError, match=f"--port is {port}, which is not free"):
        serve(make_page(shown), "127.0.0.1", port, wait=False)


def test_in_a_browser(page, shown, photo, tmp_path):
    pytest.importorskip("playwright.sync_api", reason="requires Playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(photo).read_bytes()[:1000])
    with browser() as chromium:
        one, two = (Visitor(chromium, page[0]) for _ in range(2))
        first = one.picture()
        np.testing.assert_array_equal(pixels(first), shown.samples(16, (0, 0), (0.8, 0.8)))
        one.move("temperature of scale 0", 0.1)
        moved = one.picture(other_than=first)
        np.testing.assert_array_equal(pixels(moved), shown.samples(16, (0, 0), (0.1, 0.8)))
        one.click("Draw this scale anew")
        anew = pixels(one.picture(other_than=moved))
        np.testing.assert_array_equal(anew, shown.samples(16, (0, 1), (0.1, 0.8)))
        assert two.picture() == first
        two.click("Draw others")
        others = pixels(two.picture(other_than=first))
        np.testing.assert_array_equal(others, shown.samples(16, (1, 1), (0.8, 0.8)))
        one.open_tab("Reconstruct")
        one.upload(photo, "image")
        np.testing.assert_array_equal(pixels(one.picture()), shown.by_depth(photo, 0))
        one.click("Clear")
        one.upload(cut, "image")
        one.says("the image is 'cut.png', which cannot be read")
        one.open_tab("Interpolate")
        one.upload(photo, "first")
        one.upload(photo, "last")
        one.click("Interpolate")
        np.testing.assert_array_equal(pixels(one.picture()), shown.between(photo, photo, 9))
        one.open_tab("Training")
        np.testing.assert_array_equal(pixels(one.picture()), shown.curves())
        fetched = one.fetched + two.fetched
        assert all(url.startswith((page[0], "data:", "blob:")) for url in fetched), fetched
