"""The Python of README and docs runs, line by line, on a run of the smallest model."""

import re
from pathlib import Path

import pytest
from tiny import ONE_DEVICE, make_run

from nvae_jax.api import loop
from nvae_jax.evaluation import trained
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.export import ExportOptions, export

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXTRAS = {"compression.md": "constriction"}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(page.read_text())
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    path = make_run(folder / "runs" / "digits")
    (folder / "DIR").symlink_to(path)  # what pages call any run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "make_mesh", lambda: ONE_DEVICE)
        patch.setattr(loop, "train", lambda *_, **__: {"validation/nelbo": 275.7})
        patch.chdir(folder)
        yield path.parents[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(folder, page):
    if page.name in EXTRAS:
        pytest.importorskip(EXTRAS[page.name], reason="an extra of the package")
    names = {}
    blocks = BLOCK.findall(page.read_text())
    if any("export/model" in block for block in blocks):
        export(open_run(folder / "runs" / "digits"), ExportOptions(batch_size=2))
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_there_are_pages_with_python():
    assert {"README.md", "python.md", "modes.md", "export.md"} <= {page.name for page in PAGES}
