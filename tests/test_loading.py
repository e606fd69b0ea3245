import numpy as np
import pytest
from PIL import Image

from nvae_jax.data.images import ImageReader
from nvae_jax.measuring import loading


def test_every_loader_reads_every_kind(monkeypatch):
    pytest.importorskip("torch")
    kind = loading.Kind(8, 12, "png", ImageReader(), 16)
    monkeypatch.setattr(loading, "KINDS", {"small": kind})
    records = loading.measure_loading(workers=(0,), repetitions=2, seconds=0.01)
    assert [(r.kind, r.loader, r.num_workers) for r in records] == [
        ("small", "nvae_jax", 0),
        ("small", "torch", 0),
    ]
    for record in records:
        assert len(record.images_per_second) == 2
        assert min(record.images_per_second) > 0
    rows = loading.table(records).splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| small | 0 | nvae_jax | ")


@pytest.mark.parametrize("loader", ["nvae_jax", "torch"])
def test_both_loaders_read_each_image_once_per_epoch(tmp_path, loader):
    pytest.importorskip("torch")
    kind = loading.Kind(8, 12, "png", ImageReader(), 16)
    source = loading.make_source(str(tmp_path / "images"), kind, number=64)
    assert source[0].shape == (8, 12, 3)
    with loading.LOADERS[loader](source, kind, 0) as batches:
        epoch = [next(batches) for _ in range(4)]
    images = np.concatenate([b["image"] if loader == "nvae_jax" else b.numpy() for b in epoch])
    expected = [source[i].tobytes() for i in range(64)]
    assert sorted(image.tobytes() for image in images) == sorted(expected)


def test_table_has_medians_and_spread():
    record = loading.Record("faces", "nvae_jax", 2, [3000.0, 1000.0, 1500.4])
    assert loading.table([record]).splitlines()[-1] == (
        "| faces | 2 | nvae_jax | 1,500 | 1,000 | 3,000 |"
    )


def test_faces_are_cut_out_as_in_the_dataset():
    levels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    expected = image.crop((15, 40, 163, 188)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(loading.FACE(image)), np.asarray(expected))
