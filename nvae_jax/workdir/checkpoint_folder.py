"""A folder of checkpoints as files, which any process looks at on its own."""

from __future__ import annotations

import os

import orbax.checkpoint as ocp
from etils import epath

from nvae_jax.errors import require, writing
from nvae_jax.workdir.orbax import verify

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of Orbax's folders


class CheckpointFolder:
    """The steps that are saved in a folder, a folder each.

    Args:
      path: on a disk or in a bucket; it need not exist.

    Raises:
      ConfigError: there is a file of that name.
    """

    def __init__(self, path: epath.Path):
        is_folder = path.is_dir() or not path.exists()
        require("the folder of checkpoints", os.fspath(path), is_folder, "a folder")
        self.path = path

    def __getitem__(self, step: int) -> epath.Path:
        """The folder of a step."""
        return self.path / str(step)

    def name(self, step: int) -> str:
        """What messages call the checkpoint of a step."""
        return f"checkpoint {step} in {self.path}"

    def steps(self) -> list[int]:
        """The checkpoints' steps."""
        return [step for step in self._all() if self._is_checkpoint(step)]

    def strays(self) -> list[int]:
        """The steps whose folders hold no checkpoint."""
        return [step for step in self._all() if not self._is_checkpoint(step)]

    def has_checksums(self, step: int) -> bool:
        """Whether a checkpoint can be verified; those of the first format cannot."""
        return (self[step] / "checksums").exists()

    def check(self, step: int) -> None:
        """Verifies a checkpoint that has checksums, see `orbax.verify`."""
        if self.has_checksums(step):
            self.verify(step)

    def verify(self, step: int) -> None:
        """Verifies a checkpoint, see `orbax.verify`."""
        verify(self.name(step), self[step])

    def move_aside(self, step: int) -> epath.Path:
        """Moves a checkpoint to the folder `damaged` beside this one, and returns its new path."""
        place = self.path.parent / "damaged" / str(step)
        while place.exists():
            place = place.with_name(f"{place.name}_again")
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            self[step].rename(place)
        return place

    def remove_unfinished(self) -> None:
        """Removes what killed or failed saves have left."""
        if self.path.exists():
            for path in self.path.iterdir():
                if _UNFINISHED in path.name:
                    with writing(path):
                        path.rmtree(missing_ok=True)

    def _all(self) -> list[int]:
        # Without Orbax's manager, which all processes have to open together.
        return sorted(ocp.utils.checkpoint_steps(self.path)) if self.path.exists() else []

    def _is_checkpoint(self, step: int) -> bool:
        return (self[step] / "state").exists()
