"""Twelve photographs as they come off a phone, to a trained model by one command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import stored
from PIL import Image
from stand_in import OWN
from xla import xla_flags

ROOT = Path(__file__).parents[1]


def take_photos(folder):
    """Twelve files, one of them unreadable and one a copy."""
    folder.mkdir()
    images = [Image.fromarray(stored.photos(1, 30, 40, seed=i)[0]) for i in range(10)]
    orientation = Image.Exif()
    orientation[0x0112] = 8
    for i, image in enumerate(images[:7]):
        exif = {"exif": orientation} if i < 3 else {}
        image.save(folder / f"IMG_{i:04d}.jpg", **exif)
    deep = np.asarray(images[7].convert("L"), np.uint16) * 257
    Image.fromarray(deep).save(folder / "scan.png")
    images[8].putalpha(Image.linear_gradient("L").resize(images[8].size))
    images[8].save(folder / "sticker.png")
    images[9].save(folder / "panorama.webp")
    (folder / "IMG_0003 (copy).jpg").write_bytes((folder / "IMG_0003.jpg").read_bytes())
    (folder / "IMG_0010.jpg").write_bytes(b"\0\0\0\x24ftypheic" + bytes(200))


def test_twelve_photographs_become_a_model_and_its_pictures(tmp_path):
    take_photos(tmp_path / "DCIM")
    fields = OWN | {"data.path": str(tmp_path / "DCIM"), "data.unreadable": "skip"}
    fields |= {"training.epochs": 2}
    del fields["training.batch_size"]  # the preset's, for which twelve are too few
    preset = f"--config={ROOT}/configs/image_folder.py:cpu64"
    command = [sys.executable, "-m", "nvae_jax.main", preset]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment["XLA_FLAGS"] = xla_flags(1)
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 12 files are unreadable: IMG_0010.jpg" in done.stdout
    assert "1 of the images are copies of others" in done.stdout
    assert "training.batch_size is 8 and not 16, because there are 10 training" in done.stdout
    run = tmp_path / "run"
    last = json.loads((run / "done.json").read_text())
    assert np.isfinite(last["validation/nelbo"])
    names = {path.name.split("_")[0] for path in (run / "pictures").glob("*.png")}
    assert names == {"samples", "reconstructions", "curves.png"}
    samples = np.asarray(Image.open(next((run / "pictures").glob("samples_*"))))
    assert samples.std() > 1
