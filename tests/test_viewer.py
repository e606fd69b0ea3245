"""The page of a run: what it shows, to several people at a time, and in a browser."""

import shutil
import socket

import numpy as np
import pytest
from PIL import Image
from tiny import ONE_DEVICE, make_run

from nvae_jax.api import Run
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.view import ViewOptions
from nvae_jax.viewer import shown as shown_module
from nvae_jax.viewer.page import make_page, serve
from nvae_jax.viewer.shown import Shown
from nvae_jax.workdir.pictures import image_grid

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
    sheet, noise = shown.sample(4, 3, (0.7, 1.0))
    images = shown.run.sample(4, temperature=(0.7, 1.0), seed=3)
    grid = image_grid(images, shown_module.COLUMNS)
    factor = len(sheet) // len(grid)
    assert factor > 1
    difference = np.abs(sheet[::factor, ::factor].astype(int) - grid)
    assert difference.max() <= 1  # between two compiled programs
    assert [z.shape[0] for z in noise] == [4] * 4


def test_one_scale_is_drawn_anew_and_the_others_stay(shown):
    _, noise = shown.sample(4, 3, (1.0, 1.0))
    sheet, mixed = shown.resample(noise, 1, 4, (1.0, 1.0))
    _, other = shown.sample(4, 4, (1.0, 1.0))
    for group, (old, new, now) in enumerate(zip(noise, other, mixed, strict=True)):
        np.testing.assert_array_equal(now, new if group >= 2 else old)
    back, _ = shown.resample(mixed, 1, 3, (1.0, 1.0))
    np.testing.assert_array_equal(back, shown.sample(4, 3, (1.0, 1.0))[0])
    assert (back != sheet).any()


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
    with pytest.raises(ConfigError, match="the pixels of the image is 1200; allowed: 1,000"):
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield serve(page, "127.0.0.1", port, wait=False), port
    page.close()


def test_two_people_do_not_mix(page, shown, photo):
    from gradio_client import Client, handle_file

    address, port = page
    assert address.startswith("http://127.0.0.1:")
    one, two = (Client(address, verbose=False) for _ in range(2))

    def picture(file):
        with Image.open(file["path"] if isinstance(file, dict) else file) as image:
            return np.asarray(image.convert("RGB"))

    def draw(client, seed):
        return picture(client.predict(4, seed, 1.0, 1.0, api_name="/sample"))

    np.testing.assert_array_equal(draw(one, 3), shown.sample(4, 3, (1.0, 1.0))[0])
    assert (draw(two, 5) != draw(one, 3)).any()
    again = picture(one.predict(1, 4, 1.0, 1.0, api_name="/resample"))
    noise = shown.sample(4, 3, (1.0, 1.0))[1]  # the first one's, though the second drew later
    np.testing.assert_array_equal(again, shown.resample(noise, 1, 4, (1.0, 1.0))[0])
    by_depth = picture(one.predict(handle_file(photo), 0, api_name="/reconstruct"))
    np.testing.assert_array_equal(by_depth, shown.by_depth(photo, 0))
    with pytest.raises(ConfigError, match=f"--port is {port}, which is not free"):
        serve(make_page(shown), "127.0.0.1", port, wait=False)


def test_in_a_browser_a_slider_changes_the_picture(page, photo, tmp_path):
    driver = pytest.importorskip("playwright.sync_api", reason="requires Playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 1000})
        fetched = []
        view.on("request", lambda request: fetched.append(request.url))
        view.goto(page[0])
        samples = view.locator("img[src*='file=']").locator("visible=true").first
        before = source(view, samples)
        slider = view.get_by_label("temperature of scale 0").first
        slider.fill("0.1")
        slider.press("Enter")
        after = source(view, samples, other_than=before)
        assert after != before
        view.screenshot(path=str(tmp_path / "sample.png"))
        view.get_by_role("tab", name="Reconstruct").click()
        uploads = view.locator("input[type=file]")
        uploads.first.set_input_files(photo)
        source(view, view.locator("img[src*='file=']").locator("visible=true").first)
        view.screenshot(path=str(tmp_path / "reconstruct.png"))
        view.get_by_role("button", name="Clear").locator("visible=true").first.click()
        view.locator("input[type=file]").first.set_input_files(str(tmp_path / "broken.png"))
        view.get_by_text("cannot be read").first.wait_for()
        assert all(url.startswith((page[0], "data:", "blob:")) for url in fetched), fetched
        browser.close()


def source(view, image, other_than=None):
    """Where an image comes from, once it is there."""
    image.wait_for(timeout=60_000)
    for _ in range(300):
        found = image.get_attribute("src")
        if found and found != other_than:
            return found
        view.wait_for_timeout(200)
    raise AssertionError("the picture does not change")
