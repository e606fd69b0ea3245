import json
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import nvae_jax
from configs import default, digits
from nvae_jax.config.changes import ADJUSTABLE
from nvae_jax.config.run import PLACES, RunConfig, load_run, read_run
from nvae_jax.data.sources import DATASETS
from nvae_jax.errors import ConfigError
from nvae_jax.fields import names_of
from nvae_jax.workdir import Workdir


def folder_config(**data):
    config = default.get_config("image_folder")
    config.data.update(path="photos", size=64, **data)
    return config


def test_what_follows_from_the_data_need_not_be_said():
    model = read_run(folder_config(channels=1)).model
    assert (model.image_shape, model.border, model.likelihood) == (
        (64, 64, 1),
        0,
        "logistic_mixture",
    )
    model = read_run(default.get_config("mnist")).model
    assert (model.image_shape, model.border, model.likelihood) == ((32, 32, 1), 2, "bernoulli")
    # What is said is kept where the data allows it.
    config = folder_config()
    config.model.likelihood = "normal"
    assert read_run(config).model.likelihood == "normal"


def test_the_shape_of_arrays_is_found_in_the_files(tmp_path):
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}.npy", np.zeros((3, 8, 12, 3), np.uint8))
    config = default.get_config("numpy_arrays")
    config.data.update(path=str(tmp_path), border=2)
    run = read_run(config)
    assert (run.model.image_shape, run.model.border) == ((12, 16, 3), 2)
    # What is saved says it, so that nothing is opened then.
    saved = json.loads(json.dumps(run.to_dict()))
    saved["data"]["path"] = "nowhere"
    assert read_run(saved).model == run.model
    # Files that are other ones by now are refused.
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"model.image_shape is \(12, 16, 3\); allowed: \(12, 12"):
        run.open_data()


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_shape", (32, 32, 3), r"\(64, 64, 3\), as data.name = 'image_folder' has it"),
        ("border", 2, "0, as data.name"),
        ("likelihood", "bernoulli", "logistic_mixture or normal, as data.name"),
    ],
)
def test_contradictions_are_refused(field, value, allowed):
    config = folder_config()
    config.model[field] = value
    with pytest.raises(ConfigError, match=f"^model.{field} is .*; allowed: {allowed}"):
        read_run(config)


def test_a_run_is_the_same_wherever_it_is_described(tmp_path):
    run = read_run(digits.get_config())
    workdir = Workdir(tmp_path)
    workdir.save_config(run.to_dict())
    mapping = run.to_dict()
    for source in ("digits", digits.__file__, tmp_path / "config.json", workdir, mapping):
        assert load_run(source) == run
    assert load_run(digits.get_config(), {"training.seed": 7}).training.seed == 7
    (listed := tmp_path / "list.json").write_text("[1]")
    for broken in ([1], None, 3, str(listed)):
        text = re.escape(f"--config is {broken!r}; allowed: a configuration, with sections")
        with pytest.raises(ConfigError, match=text):
            load_run(broken)


def test_settings_are_read_in_one_place():
    package = Path(nvae_jax.__file__).parent
    callers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "read_run(" in path.read_text(encoding="utf-8").replace("def read_run(", "")
    ]
    assert callers == ["config/run.py"]


def test_a_saved_configuration_of_before_is_read():
    """Without a section for loading, shapes as lists, and without fields that came later."""
    run = read_run(digits.get_config())
    saved = json.loads(json.dumps(run.to_dict()))
    del saved["loading"], saved["training"]["parameter_shards"], saved["model"]["remat"]
    assert saved["model"]["image_shape"] == [32, 32, 1]
    assert read_run(saved) == read_run(ConfigDict(saved)) == run


# config.json of configs/digits.py as it was written before fields could follow from the data.
SAVED = """
{"data": {"name": "digits"},
 "loading": {"num_workers": 0, "prefetch": 2},
 "model": {"adaptive_groups": true, "architecture": "res_mbconv", "bins": "exact", "border": 2,
  "decoder_cells": 1, "decoder_channels": 8, "dtype": "float32", "encoder_cells": 1,
  "encoder_channels": 8, "flow": "shift", "image_shape": [32, 32, 1], "likelihood": "bernoulli",
  "min_groups": 1, "num_bits": 8, "num_blocks": 2, "num_flows": 0, "num_groups": 3,
  "num_latents": 20, "num_mixtures": 10, "num_scales": 3, "postprocess_cells": 1,
  "preprocess_cells": 1, "remat": "none", "residual_posterior": true, "squeeze_excite": true,
  "unroll": null},
 "training": {"accumulation_steps": 1, "batch_size": 64, "checkpoint_interval": 200,
  "ema_decay": null, "epochs": 26, "eval_batch_size": null, "eval_interval": 100,
  "gradient_clip": null, "initial_regularization": null, "keep_checkpoints": 2,
  "kl_balance": "square", "kl_constant": 0.0001, "kl_warmup": 0.3, "learning_rate": 0.03,
  "log_interval": 50, "min_learning_rate": 0.0001, "parameter_shards": 1, "picture_interval": 200,
  "regularization": 0.01, "seed": 0, "warmup_epochs": 5, "weight_decay": 0.0003}}
"""


@pytest.mark.parametrize("without", [(), ("loading",)])
def test_a_file_that_says_everything_is_the_run_of_today(without):
    saved = {name: fields for name, fields in json.loads(SAVED).items() if name not in without}
    assert read_run(saved) == read_run(digits.get_config())


@pytest.mark.parametrize("name", ["path", "data_dir", "lmdb"])
def test_every_place_can_be_another_one(name):
    config = folder_config() if name == "path" else default.get_config("celeba64")
    run = read_run(config)
    moved = run.with_data_at(dict.fromkeys(PLACES) | {name: "elsewhere"})
    assert getattr(moved.data, name) == "elsewhere"
    expected = run.to_dict()
    expected["data"][name] = "elsewhere"
    assert moved.to_dict() == expected


def test_data_that_has_moved(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    run = read_run(folder_config())
    moved = run.with_data_at({"path": str(tmp_path), "data_dir": None})
    assert moved.data.path == str(tmp_path)
    assert moved.model is run.model
    assert run.with_data_at({}) == run
    with pytest.raises(
        ConfigError, match=r"config.data.lmdb is 'x'; allowed: path, as image_folder"
    ):
        run.with_data_at({"lmdb": "x"})
    message = r"^config\.data\.path is 'x'; allowed: nothing, as digits has it$"
    with pytest.raises(ConfigError, match=message):
        read_run(digits.get_config()).with_data_at({"path": "x"})


def test_adjustable_fields_and_places_are_fields():
    run = read_run(digits.get_config())
    sections = {name: getattr(run, name) for name in ("model", "loading", "training")}
    known = {f"{name}.{field}" for name, s in sections.items() for field in names_of(type(s))}
    known |= {f"data.{field}" for dataset in DATASETS.values() for field in names_of(dataset)}
    assert set(ADJUSTABLE) <= known
    assert {f"data.{place}" for place in PLACES} <= set(ADJUSTABLE)


def test_a_run_is_frozen_and_can_be_compared():
    run = read_run(digits.get_config())
    assert isinstance(run, RunConfig)
    assert hash(run) == hash(read_run(digits.get_config()))
    with pytest.raises(AttributeError):
        run.model = None
