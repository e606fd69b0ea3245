"""Runs whose updates fail go on, go back or end with a report; none is wrongly done.

With the stand-in update of `stand_in.py`, of which every applied one adds 1 to all parameters. Runs
have nine steps and a checkpoint after every third.
"""

import json
import re

import numpy as np
import pytest
import stand_in
from stand_in import ACCEPT, SAVES, applied, arrays, users

from nvae_jax.errors import ConfigError
from nvae_jax.training import learning, loop
from nvae_jax.workdir import Workdir

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    yield from users(tmp_path_factory.mktemp("user"))


@pytest.fixture(autouse=True)
def faults():
    yield from stand_in.faults()


class Killed(BaseException):
    """In place of SIGKILL: nothing that comes after it is done."""


class KilledAt:
    """Ends a run after a step."""

    def __init__(self, step):
        self.step = step

    def updated(self):
        pass

    def requested(self, step):
        if step == self.step:
            raise Killed


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("steps", [[1], [4], [3], [9], [3, 4, 5]])
def test_single_updates_are_left_out(user, faults, request, steps, value):
    faults["once"] |= dict.fromkeys(steps, value)
    run = re.sub(r"\W+", "_", request.node.name)
    output = user.train(run, SAVES, own=True)
    assert "done, 9 steps" in output
    assert output.count("the update is left out") == len(steps)
    for step in steps:
        assert f"step {step}: the update is left out" in output
    assert "going back" not in output
    assert applied(user, run) == 9 - len(steps)
    assert [r["step"] for r in Workdir(run).records.read_metrics() if "train/nelbo" in r] == [
        step for step in range(1, 10) if step not in steps
    ]


def test_many_in_a_row_make_the_run_go_back(user, faults):
    faults["once"] |= dict.fromkeys(range(4, 9), NAN)
    output = user.train("back", SAVES, own=True)
    assert (
        "5 updates in a row are left out at step 8: going back to step 3, with other draws and "
        "images in another order, the learning rate times 0.5"
    ) in output
    assert "done, 9 steps" in output
    assert applied(user, "back") == 9
    assert user.steps("back") == [*range(1, 10)]
    health = {k.split("'")[1]: int(v) for k, v in arrays("back", 9, "health").items()}
    assert (health["rollbacks"], health["recent"], health["since"]) == (1, 1, 3)
    assert arrays("back", 9, "seed")[""] == 1_000_003


def test_two_at_the_end_make_the_run_go_back(user, faults):
    faults["once"] |= {8: NAN, 9: NAN}
    output = user.train("end", SAVES, own=True)
    assert "2 updates in a row are left out at step 9: going back to step 6" in output
    assert applied(user, "end") == 9


def test_before_the_first_checkpoint_it_starts_anew(user, faults):
    faults["once"] |= dict.fromkeys(range(2, 7), NAN)
    # They are noticed at once, whenever the log has a line.
    rare = [f"--config.training.{name}_interval=100" for name in ("log", "checkpoint")]
    output = user.train("anew", *rare, own=True)
    assert "5 updates in a row are left out at step 6: going back to step 0" in output
    assert applied(user, "anew") == 9


@pytest.mark.parametrize("steps", [range(4, 99), range(5, 99)])
def test_a_run_that_cannot_be_helped_ends_with_a_report(user, faults, request, steps):
    faults["always"] |= dict.fromkeys(steps, NAN)
    run = re.sub(r"\W+", "_", request.node.name)
    with pytest.raises(FloatingPointError) as caught:
        user.train(run, SAVES, "--config.training.epochs=4", own=True)
    assert "going back 3 times did not help" in str(caught.value)
    assert ACCEPT in str(caught.value)
    assert (user.folder / run / "report.txt").read_text() == "the report\n"
    assert not (user.folder / run / "done.json").exists()
    assert Workdir(run).checkpoints.steps() == [3]
    faults["always"].clear()
    assert "done, 12 steps" in user.train(run)


def test_a_jump_that_stays_makes_the_run_go_back_and_is_not_saved(user, faults):
    faults["once"] |= dict.fromkeys(range(5, 99), 50)
    output = user.train("jump", SAVES, own=True)
    assert "the NELBO has jumped from 10.0 to 50.0 nats at step 7: going back to step 3" in output
    assert "done, 9 steps" in output
    assert {r["train/nelbo"] for r in Workdir("jump").records.read_metrics() if "train/nelbo" in r}
    assert max(r.get("train/nelbo", 0) for r in Workdir("jump").records.read_metrics()) == 10


def test_a_jump_at_the_end_makes_the_run_go_back(user, faults):
    faults["once"] |= {8: 50, 9: 50}
    output = user.train("last", SAVES, own=True)
    assert "the NELBO has jumped in the last windows at step 9: going back to step 6" in output
    assert "done, 9 steps" in output


def test_a_run_that_learns_nothing_is_never_done(user, faults, monkeypatch):
    """Images have 192 levels of 8 bits, at most 1,065 nats and a twentieth of that."""
    monkeypatch.setattr(learning, "STRETCH", 2)
    monkeypatch.setattr(learning, "WINDOWS", 4)
    faults["always"] |= dict.fromkeys(range(99), 2000) | {3: 1000, 7: 1000}
    assert "done, 9 steps" in user.train("once", SAVES, own=True)
    falls = {step: 3000 - 100 * step for step in range(99)}
    for run, values, last in (("stuck", dict.fromkeys(range(99), 2000), 4), ("falls", falls, 9)):
        faults["always"] |= values
        message = f"nothing is learned.* at step {last}.*a new run"
        for _ in range(2):
            with pytest.raises(FloatingPointError, match=message):
                user.train(run, SAVES, own=not (user.folder / run).exists())
        assert "going back" not in (user.folder / run / "log.txt").read_text()
        assert (user.folder / run / "report.txt").read_text() == "the report\n"
        assert not (user.folder / run / "done.json").exists()
        assert Workdir(run).checkpoints.steps() == [3, 6, 9][: last // 3][-2:]


def test_another_nelbo_after_an_accepted_change_is_no_jump(user, faults):
    user.train("changed", SAVES, own=True)
    faults["always"] |= dict.fromkeys(range(10, 99), 50)
    more = ("--config.training.epochs=6", "--config.training.weight_decay=0.1", ACCEPT)
    with pytest.raises(Killed):
        user.train("changed", *more, preemption=KilledAt(14))
    output = user.train("changed")
    assert "resumed after step 12" in output
    assert "done, 18 steps" in output
    assert "going back" not in (user.folder / "changed" / "log.txt").read_text()


def test_a_change_that_does_not_fit_is_not_written_down(user, monkeypatch):
    user.train("big", own=True)
    before = (user.folder / "big" / "config.json").read_bytes()

    def too_large(*_, **__):
        def update(*_):
            raise ConfigError("an update needs more memory")

        return update

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compiled_ahead", too_large)
        more = ("--config.training.epochs=12", "--config.training.batch_size=16", ACCEPT)
        assert "more memory" in user.refused("big", *more)
    assert (user.folder / "big" / "config.json").read_bytes() == before
    assert not (user.folder / "big" / "changes.jsonl").exists()
    assert "done, 9 steps" in user.train("big")


def test_a_jump_that_does_not_stay_changes_nothing(user, faults):
    faults["once"] |= {5: 50, 6: 50}
    output = user.train("blip", SAVES, own=True)
    assert "going back" not in output
    assert applied(user, "blip") == 9


@pytest.mark.parametrize("step", [3, 9])
def test_a_validation_that_is_not_finite_makes_the_run_go_back(user, faults, step):
    faults["validation"][step] = NAN
    run = f"validation{step}"
    output = user.train(run, SAVES, "--config.training.eval_interval=3", own=True)
    assert f"the validation NELBO is nan at step {step}: going back to step {step - 3}" in output
    assert "done, 9 steps" in output
    assert json.loads((user.folder / run / "done.json").read_text())["validation/nelbo"] == 1


def test_a_run_that_went_back_is_resumed_as_if_it_had_not_been_interrupted(user, faults):
    faults["once"] |= {2: NAN} | dict.fromkeys(range(5, 10), NAN)
    user.train("unbroken", SAVES, own=True)
    wanted = {name: arrays("unbroken", 9, name) for name in ("params", "health", "seed")}
    for stop in (1, 2, 3, 6, 8):
        run = f"killed{stop}"
        with pytest.raises(Killed):
            user.train(run, SAVES, own=True, preemption=KilledAt(stop))
        assert "done, 9 steps" in user.train(run)
        for name, value in wanted.items():
            np.testing.assert_equal(arrays(run, 9, name), value)
        assert user.steps(run) == user.steps("unbroken")
