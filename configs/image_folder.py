"""Your own images: any folder of them, with a preset for the hardware that you have.

Command: python -m nvae_jax.main --config configs/image_folder.py:cpu64 --config.data.path=PHOTOS
--workdir DIR; nothing has to be prepared.
Presets, behind the colon: cpu32 and cpu64 for two CPU cores, at 32×32 and 64×64; small_gpu (the
default) and large_gpu at 64×64 and 128×128. Other sizes: --config.data.size=96, multiples of 8.
Hardware and time: on two CPU cores, cpu64 did its first update 65 to 85 s after its first start,
which compiles, and 1.3 updates of 16 images per second; it used 3.4 GB of memory in half an hour.
cpu32 is smaller. small_gpu requires 16.7 GiB on CPU as the compiler counts it and 1.2 TFLOP per
update of 32 images. The GPU presets are not measured.
Result: depends on the images. The log says what independent pixels achieve on them.
"""

from typing import Any

from ml_collections import ConfigDict

from nvae_jax.configs import default
from nvae_jax.errors import require

CPU: dict[str, dict[str, Any]] = {
    "model": {
        "num_scales": 2,
        "num_groups": 2,
        "encoder_channels": 16,
        "decoder_channels": 16,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
        "encoder_cells": 1,
        "decoder_cells": 1,
    },
    "training": {
        "epochs": 20,
        "batch_size": 16,
        "warmup_epochs": 1,
        "eval_interval": 500,
        "picture_interval": 250,
        "checkpoint_interval": 250,
    },
}
GPU: dict[str, dict[str, Any]] = {
    "model": {"num_scales": 3, "num_groups": 10, "adaptive_groups": True, "num_flows": 1},
    "training": {"epochs": 200, "batch_size": 32, "regularization": 1e-1},
}
PRESETS: dict[str, tuple[int, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "cpu32": (32, CPU, {"num_blocks": 1}),
    "cpu64": (64, CPU, {"num_blocks": 2}),
    "small_gpu": (64, GPU, {}),
    "large_gpu": (128, GPU, {"num_blocks": 2, "num_groups": 16, "remat": "cell"}),
}


def get_config(preset: str = "small_gpu") -> ConfigDict:
    """A model of the size that a preset's hardware trains.

    Args:
      preset: a key of `PRESETS`.

    Raises:
      ConfigError: there is no such preset.
    """
    require("--config", f"image_folder.py:{preset}", preset in PRESETS, ", ".join(PRESETS))
    size, sections, model = PRESETS[preset]
    config = default.get_config("image_folder")
    config.data.update(size=size, flip=True)
    config.model.update(sections["model"] | model)
    config.training.update(sections["training"])
    return config
