"""Every command of README and docs runs, at a small size."""

import dataclasses
import importlib.util
import json
import re

import pytest
import stored
from commands import Commands
from documented import PAGES, ROOT, calls, scripts, smaller
from PIL import Image
from tiny import RUN_CONFIG, make_run
from xla import xla_flags

from nvae_jax.command_line import read_flags
from nvae_jax.modes.table import MODES

COLOUR = dataclasses.replace(
    RUN_CONFIG, image_shape=(32, 32, 3), border=0, likelihood="logistic_mixture", num_mixtures=1
)
USED, TRAINED = "used", "trained"  # folders: modes need a whole model, and training leaves a sketch
EXTRAS = {"compress": "constriction", "decompress": "constriction"}
GALLERY = ROOT / "docs" / "gallery.md"
WITH_COMMANDS = [page for page in PAGES if page != GALLERY and scripts(page)]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    for folder in (there / USED, there / TRAINED):
        for photos in ("PHOTOS", "package/img/google/64"):
            (folder / photos).mkdir(parents=True)
            for i in range(120):
                image = Image.fromarray(stored.photos(1, 32, 40, seed=i)[0])
                image.save(folder / photos / f"{i:03d}.png")
        (folder / "photos").mkdir()  # grey ones, as the model of DIR has them
        image.convert("L").save(folder / "photos" / "000.png")
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / "launch").symlink_to(ROOT / "launch")
        (folder / "docs" / "comparison").mkdir(parents=True)
        lists = ROOT / "docs" / "comparison" / "digits.json"
        (folder / "docs" / "comparison" / lists.name).write_bytes(lists.read_bytes())
    used = there / USED
    image.save(used / "me.jpg")
    run = make_run(used / "runs" / "digits")
    record = {"step": 1, "train/nelbo": 3.0, "validation/nelbo": 3.0}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    for again in ("DIR", "runs/imported"):
        (used / again).symlink_to(run)
    data = {"name": "image_folder", "path": str(used / "PHOTOS"), "size": 32}
    mine = make_run(used / "runs" / "mine", COLOUR, **data)
    for again in ("emoji", "photos32"):
        (used / "runs" / again).symlink_to(mine)
    return there


@pytest.fixture(scope="module")
def run(there):
    """Runs a command, once for all pages, and checks its exit code."""
    environment = {"XLA_FLAGS": xla_flags(1), "XDG_CACHE_HOME": str(there / "cache")}
    servers = {folder: Commands(there / folder, **environment) for folder in (USED, TRAINED)}
    start = ["--config", "configs/digits.py", "--workdir", "DIR"]  # of a run that goes on
    done = set()

    def run(command):
        if command not in done:
            server = servers[TRAINED if command.trains else USED]
            outcome = server.run(command.module, *command.arguments, before=command.before)
            assert outcome.code == command.code, (command, outcome.stderr[-2000:])
            done.add(command)

    run(smaller("nvae_jax.main", start))
    yield run
    for server in servers.values():
        server.close()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_the_commands_of_a_page_run(page, there, run):
    extras = (ROOT / "setup.cfg").read_text()
    tried = 0
    for script in scripts(page):
        for program, *arguments in calls(script, there / USED):
            tried += 1
            if program == "pip":
                asked = ",".join(arguments)
                for extra in asked.partition("[")[2].partition("]")[0].split(","):
                    assert not extra or f"\n{extra} =" in extras, script
            elif program == "nvae-jax":
                run(smaller("nvae_jax.main", arguments))
            elif arguments[:1] == ["-m"] and arguments[1].startswith("nvae_jax"):
                mode = arguments[arguments.index("--mode") + 1] if "--mode" in arguments else None
                if mode in EXTRAS and importlib.util.find_spec(EXTRAS[mode]) is None:
                    pytest.skip(f"requires {EXTRAS[mode]}")
                run(smaller(arguments[1], arguments[2:]))
    assert tried or "launch" in str(page)


def test_the_commands_of_the_gallery_are_the_modes_own():
    """Its tool has made them, and runs at a small size as a command of docs/modes.md."""
    commands = re.findall(r"^`python -m nvae_jax.main (.*)`$", GALLERY.read_text(), re.MULTILINE)
    assert len(commands) > 20
    modes = {mode: options for mode, (options, _) in MODES.items()}
    for command in commands:
        given = dict(re.findall(r"--(\w+)[ =](\S+)", command.replace(",…", "")))
        read_flags(given["mode"], modes, given)


def test_there_are_pages_with_commands():
    assert {"README.md", "docs/runs.md", "docs/modes.md"} <= set(map(name, WITH_COMMANDS))
