"""What a run shows and keeps while it trains: numbers, pictures, checkpoints and a summary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from nvae_jax.config.run import RunConfig
from nvae_jax.data.sources import Dataset
from nvae_jax.errors import ConfigError
from nvae_jax.memory import give_back_freed_memory
from nvae_jax.processes import decided
from nvae_jax.training.clock import Clock, duration
from nvae_jax.training.criterion import Criterion
from nvae_jax.training.learning import Learning, independent_limit, is_judged
from nvae_jax.training.metrics import flatten_metrics, mean_metrics
from nvae_jax.training.saving import Saver
from nvae_jax.training.state import TrainState
from nvae_jax.training.summary import summarize
from nvae_jax.training.tensorboard import TensorBoard
from nvae_jax.training.validating import drift_note
from nvae_jax.training.watch import DivergenceError, Watch
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.integrity import on_host
from nvae_jax.workdir.pictures import image_grid

SHOWN = 8  # images of an update, in a message
FIRST_STEPS = 6  # after which a run says how long it will take


class Recorder:
    """Writes a run down: console and log, metrics, TensorBoard, PNG files and checkpoints.

    Args:
      workdir: the run's folder.
      run: the run's configuration.
      dataset: its data.
      total_steps: the number of steps of the whole run.
      step: the number of steps that are done.
      validate: from variables to means over the test split, see `make_validation`.
      draw: from variables to pictures, see `make_pictures`.
    """

    def __init__(
        self,
        workdir: Workdir,
        run: RunConfig,
        dataset: Dataset,
        total_steps: int,
        step: int,
        validate: Callable[[Any], dict[str, np.ndarray]],
        draw: Callable[[Any], dict[str, np.ndarray]],
    ):
        self._workdir = workdir
        self._run = run
        self._dataset = dataset
        self._training = run.training
        self._criterion = Criterion.of(run)
        self._total_steps = total_steps
        self._validate = validate
        self._draw = draw
        self._saver = Saver(workdir)
        self._clock = Clock()
        self.restart(step)
        self._tensorboard = TensorBoard(workdir)
        self._steps = 0

    def restart(self, step: int) -> None:
        """Starts to write down what comes after `step`, and drops what was written of that."""
        self._workdir.records.truncate_metrics(step)
        # Other settings or images than before have another usual NELBO.
        first = self._workdir.records.last_change(step)
        self._workdir.checkpoints.compare_after(first)
        windows = decided(functools.partial(self._windows, first, step))
        self._watch_from(first, windows)
        self._window: list[dict[str, Array]] = []
        self._save_is_due = False
        self._validated: tuple[int, float | None] = (0, None)  # the last step, and its NELBO
        self.restart_clock()

    def _windows(self, first: int, last: int) -> list[dict[str, float]]:
        """The means of the windows between two steps that are written down."""
        prefix = "train/"
        return [
            {name.removeprefix(prefix): value for name, value in record.items()}
            for record in self._workdir.records.read_metrics()
            if f"{prefix}{self._criterion.name}" in record and first < record["step"] <= last
        ]

    def _watch_from(self, first: int, windows: Sequence[Mapping[str, float]] = ()) -> None:
        """Starts to learn what is usual from the windows after the step `first`."""
        self._watch = Watch([means[self._criterion.name] for means in windows], self._criterion)
        warm_up = self._training.warmup_epochs * (self._total_steps // self._training.epochs)
        limit = functools.partial(independent_limit, self._run, self._dataset)
        judged = is_judged(self._run)
        self._learning = Learning(max(first, warm_up), limit if judged else None, windows)

    def is_due(self, step: int) -> bool:
        """Whether more than counting is to be done after `step`."""
        training = self._training
        intervals = (
            training.log_interval,
            training.eval_interval,
            training.picture_interval,
            training.checkpoint_interval,
        )
        return any(self._is_due(step, interval) for interval in intervals)

    def skipped(self, step: int, metrics: dict[str, Array], index: Array) -> None:
        """Notes whether update `step`, of the images with these indices, was left out.

        Raises:
          DivergenceError: too many were, one after the other.
        """
        if int(metrics["skipped"]):
            names = ", ".join(map(str, np.sort(on_host(index))[:SHOWN]))
            value = float(metrics[self._criterion.name])
            self._workdir.log(
                f"step {step:,}: the update is left out ({self._criterion.title} "
                f"{value:.6g}{self._criterion.unit}, "
                f"norm of the gradient {float(metrics['gradient_norm']):.3g}); images {names}, …"
            )
        # At the end there is no later one that could show that it was but a few.
        most = min(2, self._training.max_skipped) if step == self._total_steps else None
        self._watch.skipped(
            step, int(metrics["skipped_in_a_row"]), most or self._training.max_skipped
        )

    def record(self, step: int, metrics: dict[str, Array], state: TrainState) -> None:
        """Keeps the metrics of step number `step`, counted from 1, and does what is due then.

        Raises:
          DivergenceError: the run cannot go on from this state.
        """
        self._window.append(metrics)
        self._steps += 1
        if self._steps == FIRST_STEPS:
            self._estimate(step, metrics)
        if self._is_due(step, self._training.log_interval):
            self._saver.settle(step)
            self._log(step)
            if step == self._total_steps:
                self._watch.end(step)
        if self._is_due(step, self._training.eval_interval):
            with self._clock.stopped():
                self._validation(step, state)
        if self._is_due(step, self._training.picture_interval):
            with self._clock.stopped():
                self._pictures(step, state)
        again = self._saver.failed and self._is_due(step, self._training.log_interval)
        self._save_is_due |= again or self._is_due(step, self._training.checkpoint_interval)
        if self._save_is_due and (step == self._total_steps or self._is_sound(metrics)):
            with self._clock.stopped():
                self._save(step, state)

    def interrupt(self, step: int, metrics: dict[str, Array], state: TrainState) -> None:
        """Saves `step`, if that is not done yet and it is sound, and closes what is open."""
        if self._is_sound(metrics):
            self._saver.complete(step, state)
        self._saver.settle(step, wait=True)
        saved = self._workdir.checkpoints.latest_step()
        self._close()
        self._workdir.log(
            f"interrupted after step {step:,}; the same command resumes after step {saved or 0:,}"
        )

    def expect_another_nelbo(self, step: int) -> None:
        """Forgets which NELBO is usual: after `step`, the run has other settings or images."""
        self._watch_from(step)
        self._workdir.checkpoints.compare_after(step)

    def settle(self, step: int) -> None:
        """Waits for the save under way; if it fails, the log says so, and the run goes on."""
        self._saver.settle(step, wait=True)

    def restart_clock(self) -> None:
        """Leaves out of the next figures of speed what came before."""
        self._clock.restart()

    def finish(self, step: int, state: TrainState) -> dict[str, float]:
        """Writes the curves and the summary of a run; returns the last validation's record.

        Args:
          step: the last one.
          state: after it, to be validated if the record of that is lost.

        Raises:
          DivergenceError: nothing is learned.
        """
        find = functools.partial(self._last_validation, step)
        if (last := decided(find)) is None:
            self._validation(step, state)
            last = decided(find)
        assert last is not None
        self._learning.end(step)
        text = summarize(self._workdir, self._run, self._dataset, last)
        self._close()
        self._workdir.records.finish(last)
        self._workdir.log(text)
        return last

    def _last_validation(self, step: int) -> dict[str, Any] | None:
        name = f"validation/{self._criterion.name}"
        records = reversed(self._workdir.records.read_metrics())
        return next((r for r in records if name in r and r["step"] == step), None)

    def _close(self) -> None:
        self._workdir.checkpoints.close()
        self._tensorboard.close()

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._total_steps

    def _estimate(self, step: int, metrics: dict[str, Array]) -> None:
        """Says early how long the run will take; the first step, which compiles, does not count."""
        jax.block_until_ready(metrics)
        seconds = self._clock.total() / (FIRST_STEPS - 1)
        left = self._total_steps - step
        if left > 0:
            self._workdir.log(
                f"{seconds:.2g} s per update: about {duration(left * seconds)} for the {left:,} "
                "updates that are left"
            )

    def _log(self, step: int) -> None:
        window, self._window = self._window, []
        steps_per_second = len(window) / self._clock.window()
        applied = [metrics for metrics in window if not int(metrics["skipped"])]
        if not applied:
            self._workdir.log(
                f"step {step:,}/{self._total_steps:,}  all {len(window):,} updates since the last "
                f"of these lines are left out{self._saver.note}"
            )
            return
        means: dict[str, Any] = mean_metrics(applied)
        means |= {"skipped": len(window) - len(applied)}
        images_per_second = steps_per_second * self._training.batch_size
        speed = {"steps_per_second": steps_per_second, "images_per_second": images_per_second}
        self._write(step, flatten_metrics(means | speed, "train", self._criterion.dimensions))
        left = (self._total_steps - step) / steps_per_second
        self._workdir.log(
            f"step {step:,}/{self._total_steps:,}  "
            f"{self._criterion.describe(means)} (weight {means['kl_weight']:.2f})  "
            f"{steps_per_second:.2f} steps/s, {images_per_second:.0f} images/s, "
            f"{duration(left)} left{self._saver.note}"
        )
        # On CPU, what is left between the blocks of memory in use grows with time.
        give_back_freed_memory()
        self._watch.window(step, float(means[self._criterion.name]))
        with self._clock.stopped():
            self._learning.window(step, means)

    def _validation(self, step: int, state: TrainState) -> None:
        means = self._validate(state.eval_variables)
        self._write(step, flatten_metrics(means, "validation", self._criterion.dimensions))
        self._workdir.log(
            f"step {step:,}/{self._total_steps:,}  "
            f"validation {self._criterion.describe(means)}, "
            f"{len(self._dataset.test):,} images{drift_note(means)}"
        )
        value = float(means[self._criterion.name])
        self._watch.validation(step, value)
        self._validated = step, value

    def _pictures(self, step: int, state: TrainState) -> None:
        try:
            pictures = self._draw(state.eval_variables)
        except FloatingPointError as error:
            raise DivergenceError(step, str(error)) from error
        for name, rows in pictures.items():
            columns, images = rows.shape[1], rows.reshape(-1, *rows.shape[2:])
            try:
                self._workdir.save_picture(f"{name}_{step:06d}", images, columns)
            except ConfigError as error:
                self._workdir.log(f"step {step:,}: a picture is not saved ({error})")
            self._tensorboard.images(step, name, image_grid(images, columns)[None])

    def _is_sound(self, metrics: dict[str, Array]) -> bool:
        """Whether to go back to this state, should there be trouble later."""
        return not (self._watch.suspicious or int(metrics["skipped"]))

    def _save(self, step: int, state: TrainState) -> None:
        self._save_is_due = False
        validated, nelbo = self._validated
        nelbo = nelbo if validated == step else None
        if step == self._total_steps:
            self._saver.complete(step, state, nelbo)
        else:
            self._saver.save(step, state, nelbo)

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._workdir.records.write_metrics(step, values)
        self._tensorboard.scalars(step, values)
