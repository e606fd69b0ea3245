"""What a run shows and keeps while it trains: numbers, pictures, checkpoints and a summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, SupportsFloat

import jax
import numpy as np
from jax import Array

from nvae_jax.config.changes import ACCEPT
from nvae_jax.config.run import RunConfig
from nvae_jax.data.baselines import independent_pixels
from nvae_jax.data.sources import Dataset
from nvae_jax.evaluation.pictures import draw_curves
from nvae_jax.model.distributions import bits_per_dimension
from nvae_jax.training.metrics import flatten_metrics, mean_metrics
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.pictures import image_grid

FIRST_STEPS = 6  # after which a run says how long it will take


class Recorder:
    """Writes a run down: console and log, metrics, TensorBoard, PNG files and checkpoints.

    Args:
      workdir: the run's folder.
      run: the run's configuration.
      dataset: its data.
      total_steps: the number of steps of the whole run.
      validate: from variables to means over the test split, see `make_validation`.
      draw: from variables to pictures, see `make_pictures`.
    """

    def __init__(
        self,
        workdir: Workdir,
        run: RunConfig,
        dataset: Dataset,
        total_steps: int,
        validate: Callable[[Any], dict[str, np.ndarray]],
        draw: Callable[[Any], dict[str, np.ndarray]],
    ):
        self._workdir = workdir
        self._image = run.model.image
        self._dataset = dataset
        self._training = run.training
        self._total_steps = total_steps
        self._validate = validate
        self._draw = draw
        self._window: list[dict[str, Array]] = []
        self._window_start = time.monotonic()
        self._tensorboard = _tensorboard_writer(workdir)
        self._steps, self._start = 0, time.monotonic()

    def record(self, step: int, metrics: dict[str, Array], state: TrainState) -> None:
        """Takes the metrics of step number `step`, counted from 1, and does what is due then.

        Raises: FloatingPointError if the loss is not finite any more.
        """
        self._window.append(metrics)
        self._steps += 1
        if self._steps == FIRST_STEPS:
            self._estimate(step, metrics)
        if self._is_due(step, self._training.log_interval):
            self._log(step)
        if self._is_due(step, self._training.eval_interval):
            with self._off_the_clock():
                self._validation(step, state)
        if self._is_due(step, self._training.picture_interval):
            with self._off_the_clock():
                self._pictures(step, state)
        if self._is_due(step, self._training.checkpoint_interval):
            with self._off_the_clock():
                self._save(step, metrics, state)

    def interrupt(self, step: int, metrics: dict[str, Array], state: TrainState) -> None:
        """Saves `step`, if that is not done yet and its loss is finite, and closes what is open."""
        if self._workdir.checkpoints.latest_step() != step:
            self._save(step, metrics, state)
        saved = self._workdir.checkpoints.latest_step()
        self._close()
        self._workdir.log(
            f"interrupted after step {step:,}; the same command goes on after step {saved or 0:,}"
        )

    def restart_clock(self) -> None:
        """Leaves out of the next figures of speed what came before."""
        self._window_start = self._start = time.monotonic()

    def finish(self) -> dict[str, float]:
        """Writes the curves and the summary; returns the last validation's record."""
        records = self._workdir.records.read_metrics()
        last = [record for record in records if "validation/nelbo" in record][-1]
        baseline = independent_pixels(self._dataset, self._image)
        curves = draw_curves(records, baseline, self._dataset.name)
        self._workdir.save_picture("curves", curves[None])
        self._close()
        self._workdir.records.finish(last)
        self._workdir.log(
            f"done, {last['step']:,} steps\n"
            f"  validation NELBO    {self._in_both_units(last['validation/nelbo'])}\n"
            f"  independent pixels  {self._in_both_units(baseline)}\n"
            f"  pictures            {self._workdir.path / 'pictures'}\n"
            f"  checkpoints         {self._workdir.path / 'checkpoints'}"
        )
        return last

    def _close(self) -> None:
        self._workdir.checkpoints.close()
        if self._tensorboard:
            self._tensorboard.close()

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._total_steps

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        elapsed = time.monotonic() - start
        self._window_start += elapsed
        self._start += elapsed

    def _estimate(self, step: int, metrics: dict[str, Array]) -> None:
        """Says early how long the run will take; the first step, which compiles, does not count."""
        jax.block_until_ready(metrics)
        seconds = (time.monotonic() - self._start) / (FIRST_STEPS - 1)
        left = self._total_steps - step
        if left > 0:
            self._workdir.log(
                f"{seconds:.2g} s per update: about {_duration(left * seconds)} for the {left:,} "
                "updates that are left"
            )

    def _log(self, step: int) -> None:
        means: dict[str, Any] = mean_metrics(self._window)
        steps_per_second = len(self._window) / (time.monotonic() - self._window_start)
        self._window = []
        self._window_start = time.monotonic()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss is {means['loss']} at or before step {step}. Checkpoints from before "
                f"are kept. What helps: --config.training.gradient_clip=200, a lower "
                "--config.training.learning_rate, a higher --config.training.regularization, or a "
                f"larger batch, each with {ACCEPT} to go on with this run."
            )
        images_per_second = steps_per_second * self._training.batch_size
        speed = {"steps_per_second": steps_per_second, "images_per_second": images_per_second}
        self._write(step, flatten_metrics(means | speed, "train", self._image.num_dimensions))
        left = (self._total_steps - step) / steps_per_second
        self._workdir.log(
            f"step {step:,}/{self._total_steps:,}  "
            f"NELBO {self._in_both_units(means['nelbo'])} = {means['reconstruction']:.1f} + "
            f"KL {means['kl']:.1f} (weight {means['kl_weight']:.2f})  "
            f"{steps_per_second:.2f} steps/s, {images_per_second:.0f} images/s, "
            f"{_duration(left)} left"
        )

    def _validation(self, step: int, state: TrainState) -> None:
        means = self._validate(state.eval_variables)
        self._write(step, flatten_metrics(means, "validation", self._image.num_dimensions))
        self._workdir.log(
            f"step {step:,}/{self._total_steps:,}  "
            f"validation NELBO {self._in_both_units(means['nelbo'])} = "
            f"{means['reconstruction']:.1f} + KL {means['kl']:.1f}, "
            f"{len(self._dataset.test):,} images"
        )

    def _pictures(self, step: int, state: TrainState) -> None:
        for name, rows in self._draw(state.eval_variables).items():
            columns, images = rows.shape[1], rows.reshape(-1, *rows.shape[2:])
            self._workdir.save_picture(f"{name}_{step:06d}", images, columns)
            if self._tensorboard:
                self._tensorboard.write_images(step, {name: image_grid(images, columns)[None]})

    def _save(self, step: int, metrics: dict[str, Array], state: TrainState) -> None:
        if math.isfinite(metrics["loss"]):  # else the next log stops the run
            self._workdir.checkpoints.save(step, state, {"step": step})

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._workdir.records.write_metrics(step, values)
        if self._tensorboard:
            self._tensorboard.write_scalars(step, values)
            self._tensorboard.flush()

    def _in_both_units(self, nats: SupportsFloat) -> str:
        nats = float(nats)
        bits = bits_per_dimension(nats, self._image.num_dimensions)
        return f"{nats:.2f} nats ({bits:.3f} bits/dim)"


def _tensorboard_writer(workdir: Workdir) -> Any:
    """A writer of TensorBoard files on the first process, else None."""
    if jax.process_index() != 0:
        return None
    from clu.metric_writers import SummaryWriter

    return SummaryWriter(str(workdir.path / "tensorboard"))


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
