"""A page of a run in a headless browser, for tests and for the pictures of the documentation.

    python tests/browser.py runs/digits --output docs/viewer

writes the pictures. It requires the extra `view`, Playwright and Debian's Chromium.
"""

import argparse
import contextlib
import shutil
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# As root, without a screen; nothing is looked up on the network.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 60_000  # milliseconds


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def browser():
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Visitor:
    """Somebody who looks at the page.

    Args:
      chromium: the browser.
      address: of the page.
    """

    def __init__(self, chromium, address):
        # A context of one's own: nothing is shared with other visitors.
        self.view = chromium.new_context(viewport={"width": 1200, "height": 720}).new_page()
        self.view.set_default_timeout(PATIENCE)
        self.fetched = []
        self.view.on("request", lambda request: self.fetched.append(request.url))
        self.view.goto(address)

    def picture(self, other_than=None):
        """The bytes of the picture that is shown, once it is another one."""
        shown = self.view.locator("img[src*='file=']").locator("visible=true").first
        shown.wait_for()
        for _ in range(PATIENCE // 200):
            source = shown.get_attribute("src")
            content = self.view.request.get(source).body() if source else b""
            if content and content != other_than:
                return content
            self.view.wait_for_timeout(200)
        raise AssertionError("the picture does not change")

    def open_tab(self, name):
        self.view.get_by_role("tab", name=name).click()

    def move(self, label, value):
        """Moves a slider, or fills in a number."""
        field = self.view.get_by_label(label).locator("visible=true").first
        field.fill(str(value))
        field.press("Enter")

    def click(self, name):
        self.view.get_by_role("button", name=name).locator("visible=true").first.click()

    def upload(self, path, name):
        """Uploads a file where the page calls it so."""
        self.view.locator(f"#{name} input[type=file]").set_input_files(str(path))
        self.view.locator(f"#{name} [aria-label='{Path(path).name}']").wait_for()

    def says(self, text):
        """Waits until the page shows a text."""
        self.view.get_by_text(text).first.wait_for()

    def save(self, path):
        """A screenshot."""
        self.view.wait_for_timeout(500)  # until progress has faded
        self.view.screenshot(path=str(path))


def main():
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="work directory")
    parser.add_argument("--output", required=True, type=Path, help="folder of the pictures")
    options = parser.parse_args()
    import tempfile

    import nvae_jax
    from nvae_jax.viewer.page import make_page, serve
    from nvae_jax.viewer.shown import Shown
    from nvae_jax.workdir.pictures import image_file

    run = nvae_jax.load(options.run)
    page = make_page(Shown(run))
    address = serve(page, "127.0.0.1", free_port(), wait=False)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        files = [Path(folder) / f"{i}.png" for i in range(2)]
        for file, number in zip(files, (0, 42), strict=True):
            levels = run.trained.dataset.test[number][None]
            (image,) = run.config.model.image.without_border(levels)
            file.write_bytes(image_file(image / 255))
        visitor = Visitor(chromium, address)
        first = visitor.picture()
        visitor.move("temperature of scale 0", 1)
        visitor.picture(other_than=first)
        visitor.save(options.output / "sample.png")
        visitor.open_tab("Reconstruct")
        visitor.upload(files[0], "image")
        visitor.picture()
        visitor.save(options.output / "reconstruct.png")
        visitor.open_tab("Interpolate")
        for file, name in zip(files, ("first", "last"), strict=True):
            visitor.upload(file, name)
        visitor.click("Interpolate")
        visitor.picture()
        visitor.save(options.output / "interpolate.png")
        visitor.open_tab("Training")
        visitor.picture()
        visitor.save(options.output / "training.png")
    page.close()


if __name__ == "__main__":
    main()
