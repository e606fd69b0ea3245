"""What a validation says of batch norm, on stand-ins for the compiled functions."""

import types

import pytest
from tiny import ONE_DEVICE, tiny_run

from nvae_jax.training import validating
from nvae_jax.training.validating import drift_note, make_validation


@pytest.fixture
def validated(monkeypatch):
    """From fields of a run to its validation of statistics that make the NELBO what they are."""

    class ByBatch:
        def __init__(self, config, batch_size, mesh, has_posterior):
            assert batch_size == 16

        def nelbo(self, variables, source, batches):
            return 100.0 + batches

        def updated(self, variables, source, batches):
            return {"mean": variables["batch_stats"]["mean"] + batches}

    def by_running(config, test, batch_size, mesh, has_posterior):
        def means(variables, images=None):
            own = sum(variables["batch_stats"].values())
            return {"nelbo": own if images is None else own + images}

        return means

    monkeypatch.setattr(validating, "BatchStatistics", ByBatch)
    monkeypatch.setattr(validating.likelihood, "make_validation", by_running)
    data = types.SimpleNamespace(train=[], test=[], random_crop=False)

    def validate(statistics, **fields):
        run = tiny_run(**{f"training.{name}": value for name, value in fields.items()})
        validate = make_validation(run, data, 16, ONE_DEVICE)
        return validate({"params": {}, "batch_stats": statistics})

    return validate


def test_drift_is_the_difference_on_the_same_images(validated):
    found = validated({"mean": 200.0}, drift_batches=3)
    assert found == {
        "nelbo": 200.0,
        "batch_statistics_nelbo": 103.0,
        "batch_norm_drift": 200.0 + 3 * 16 - 103.0,
    }
    assert validated({"mean": 200.0}, drift_batches=0) == {"nelbo": 200.0}
    assert validated({}, drift_batches=3) == {"nelbo": 0}


def test_statistics_of_training_images_may_take_the_place_of_the_running_ones(validated):
    fields = {"eval_statistics": "training", "recalibration_batches": 7, "drift_batches": 0}
    assert validated({"mean": 200.0}, **fields) == {"nelbo": 207.0}


@pytest.mark.parametrize(("level", "drift", "warned"), [(100, 9, 0), (100, 11, 1), (-100, 11, 1)])
def test_a_large_drift_is_warned_of(level, drift, warned):
    means = {"nelbo": 1.0, "batch_statistics_nelbo": level, "batch_norm_drift": drift}
    note = drift_note(means)
    assert ("the NELBO is 11.0 nats lower" in note) == bool(warned)
    assert drift_note({"nelbo": 1.0}) == ""
