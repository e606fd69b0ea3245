"""The description of a whole run, and the one place where settings become one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from nvae_jax.config.overrides import with_overrides
from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import DataConfig, Dataset, data_config
from nvae_jax.errors import ConfigError, reading, require
from nvae_jax.fields import from_mapping, names_of, unknown
from nvae_jax.image_spec import ImageSpec
from nvae_jax.model.families import model_config
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Objective
from nvae_jax.objectives.table import ELBO, objective_config
from nvae_jax.packaged import read_config_file

# Where a run's images are; a mode can be told that they have moved.
PLACES = ("path", "data_dir", "lmdb")


@typing.runtime_checkable
class Saved(Protocol):
    """A work directory."""

    def load_config(self) -> dict[str, Any]:
        """The settings that it has saved."""


# What describes a run: a configuration's name or file, the config.json of a run or its work
# directory, or a `ConfigDict` or another mapping of sections.
Source = str | os.PathLike[str] | Mapping[str, Any] | Saved


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: what is trained, on which data, how that is read, how long, and to what end."""

    model: VAEConfig
    data: DataConfig
    loading: LoadingConfig
    training: TrainingConfig
    objective: Objective = ELBO

    @property
    def has_bound(self) -> bool:
        """Whether there is a bound of the likelihood: a likelihood, and a density of codes."""
        return self.model.has_likelihood and self.objective.has_posterior

    @property
    def criterion(self) -> str:
        """The metric by which states are compared: the bound, or what stands in for it."""
        return "nelbo" if self.has_bound else "reconstruction"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All settings as plain values, which `read_run` turns into the same run."""
        return {
            section: _name_of(getattr(self, section)) | fields
            for section, fields in dataclasses.asdict(self).items()
        }

    def open_data(self, known: Mapping[str, Any] | None = None) -> Dataset:
        """Opens the dataset.

        Args:
          known: the images that the run had before, see `DataConfig.open_again`; None: none.

        Raises:
          ConfigError: the data is missing or broken, or its images are not those of the model.
        """
        dataset = self.data.open() if known is None else self.data.open_again(known)
        _check_image(self.model, dataset.image, self.data.name)
        return dataset

    def with_data_at(self, places: Mapping[str, str | None]) -> RunConfig:
        """The same run with its images in other places.

        Args:
          places: new values of the fields `PLACES` of the data section; None: as it is.

        Raises:
          ConfigError: the dataset has no such field.
        """
        # In Python, places may be of `pathlib`.
        moved = {name: str(place) for name, place in places.items() if place is not None}
        for name, place in moved.items():
            fields = [field for field in names_of(type(self.data)) if field in PLACES]
            allowed = ", ".join(fields) or "nothing"
            field = f"config.data.{name}"
            require(field, place, name in fields, f"{allowed}, as {self.data.name} has it")
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **moved))


def load_run(
    source: Source, overrides: Mapping[str, Any] = types.MappingProxyType({})
) -> RunConfig:
    """The run that a configuration describes, for every command, every mode and the Python API.

    Args:
      source: what describes it.
      overrides: other values of some fields, by dotted name, see `with_overrides`.

    Raises:
      ConfigError: the configuration cannot be read, or does not describe a run, see `read_run`.
    """
    return read_run(with_overrides(load_settings(source), overrides))


def load_settings(source: Source) -> dict[str, Any]:
    """The sections of a configuration as plain values, unchecked.

    Raises:
      ConfigError: the configuration cannot be read, or has no sections.
    """
    settings: Any = source
    if isinstance(source, str | os.PathLike):
        settings = _read_file(os.fspath(source))
    elif isinstance(source, Saved):
        settings = source.load_config()
    has_sections = hasattr(settings, "keys")
    require("--config", source, has_sections, "a configuration, with sections of fields")
    return settings.to_dict() if hasattr(settings, "to_dict") else dict(settings)


def _read_file(path: str) -> Any:
    """The configuration in a file or of a name; a .json file is read without `ml_collections`."""
    if not path.endswith(".json"):
        return read_config_file(path)
    allowed = "a .py file, or the config.json of a run"
    with reading("--config", path, allowed, ValueError), open(path, encoding="utf-8") as file:
        return json.load(file)


def read_run(settings: Mapping[str, Any]) -> RunConfig:
    """A run from a `ConfigDict`, or from what `config.json` in a work directory holds.

    What follows from the data may be left out of the section `model`, or be None: `image_shape`,
    `border` and `likelihood`.

    Raises:
      ConfigError: a field is unknown, missing, of the wrong type or impossible, or contradicts
        another section.
    """
    sections = names_of(RunConfig)
    for name in settings.keys():  # noqa: SIM118 - a ConfigDict iterates over its keys all the same
        if name not in sections:
            raise unknown("config", name, sections)
    for name in ("model", "data", "training", *({"objective"} & set(settings.keys()))):
        has_fields = name in settings and hasattr(settings[name], "keys")
        require(name, settings.get(name), has_fields, "a section of fields")
    options = dict(settings["data"])
    require("data.name", options.get("name"), isinstance(options.get("name"), str), "a name")
    data = data_config(**options)
    model = _read_model(settings["model"], data)
    objective = objective_config(settings.get("objective", {}))
    training = from_mapping(TrainingConfig, settings["training"], "training")
    objective.check(model, training.batch_size // training.accumulation_steps)
    return RunConfig(
        model=model,
        data=data,
        loading=from_mapping(LoadingConfig, settings.get("loading", {}), "loading"),
        training=training,
        objective=objective,
    )


def _name_of(section: Any) -> dict[str, str]:
    """The name that chooses a section's class, where there are several."""
    return {"name": section.name} if hasattr(section, "name") else {}


def _read_model(settings: Mapping[str, Any], data: DataConfig) -> VAEConfig:
    """The model, with what is missing taken from the data; contradictions are refused."""
    given = {
        name: value
        for name, value in dict(settings).items()
        if not (value is None and name in ("image_shape", "border", "likelihood"))
    }
    image = data.image
    if image is None and "image_shape" not in given:
        image = data.open().image
    follows = image is not None and "image_shape" not in given
    if image is not None:
        default = "bernoulli" if image.binarize else "logistic_mixture"
        given = {"image_shape": image.shape, "border": image.border, "likelihood": default} | given
    with _naming_the_size(data) if follows else contextlib.nullcontext():
        model = model_config(given)
    if image is not None:
        _check_image(model, image, data.name)
    return model


@contextlib.contextmanager
def _naming_the_size(data: DataConfig) -> Iterator[None]:
    """Has a refusal of the model's `image_shape` name the size of the data that it follows from."""
    try:
        yield
    except ConfigError as error:
        shape, size = "model.image_shape is", getattr(data, "size", None)
        if size is None or not str(error).startswith(shape):
            raise
        raise ConfigError(f"data.size is {size!r}, so that {error}") from error


def _check_image(model: VAEConfig, image: ImageSpec, name: str) -> None:
    """Raises a ConfigError if the model's images are not the data's."""
    owner = f"as data.name = {name!r} has it"
    shape = model.image_shape
    require("model.image_shape", shape, shape == image.shape, f"{image.shape}, {owner}")
    require("model.border", model.border, model.border == image.border, f"{image.border}, {owner}")
    fits = model.image.binarize == image.binarize
    kinds = typing.get_args(typing.get_type_hints(type(model))["likelihood"])
    others = " or ".join(name for name in kinds if name != "bernoulli")
    allowed = "bernoulli" if image.binarize else others
    require("model.likelihood", model.likelihood, fits, f"{allowed}, {owner}")
