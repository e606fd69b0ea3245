"""A run's folder: its configuration, its records, and rows of numbers that are completed later."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.errors import ConfigError
from nvae_jax.workdir import Workdir, records


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def test_config_comes_back(workdir):
    assert not workdir.has_config()
    with pytest.raises(ConfigError, match=r"--workdir is '.*run'; allowed: the folder of a run"):
        workdir.load_config()
    workdir.log("a line, so that there is a folder")
    with pytest.raises(
        ConfigError, match=r"which has no config.json; allowed: the folder of a run"
    ):
        workdir.load_config()
    settings = {"model": {"groups": (2, 1), "name": None}, "training": {"rate": 1e-2, "steps": 3}}
    workdir.save_config(settings)
    assert workdir.has_config()
    assert workdir.load_config() == json.loads(json.dumps(settings))
    assert [path.name for path in workdir.path.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_broken_config_is_refused_by_name(workdir, content):
    workdir.write("config.json", content.encode())
    with pytest.raises(ConfigError, match=r"the configuration is '.*config.json', which cannot be"):
        workdir.load_config()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--workdir is '.*file'|cannot be written"):
        Workdir(tmp_path / name).log("a line")


def test_log_is_printed_and_appended(workdir, capsys):
    workdir.log("first")
    workdir.log("second — with a dash")
    assert capsys.readouterr().out == "first\nsecond — with a dash\n"
    lines = (workdir.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second — with a dash"]


def test_metrics_come_back(workdir):
    assert workdir.records.read_metrics() == []
    workdir.records.write_metrics(1, {"loss": jnp.float32(0.5)})
    workdir.records.write_metrics(2, {"loss": float("nan"), "kl": 3})
    first, second = workdir.records.read_metrics()
    assert first == {"step": 1, "loss": 0.5}
    assert np.isnan(second.pop("loss"))
    assert second == {"step": 2, "kl": 3.0}


def test_lines_that_are_no_records_are_left_out(workdir):
    workdir.records.write_metrics(1, {"loss": 1})
    with (workdir.path / "metrics.jsonl").open("ab") as file:
        file.write(b'torn {\n[1]\n5\n{"loss": 1}\n{"step": "two"}\n\xff\n')
    workdir.records.write_metrics(2, {"loss": 2})
    with (workdir.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [r["step"] for r in workdir.records.read_metrics()] == [1, 2]


def test_a_resumed_run_has_no_double_records(workdir):
    for step in (1, 2, 3):
        workdir.records.write_metrics(step, {"loss": step})
    workdir.records.truncate_metrics(2)
    workdir.records.write_metrics(3, {"loss": 30})
    assert [(r["step"], r["loss"]) for r in workdir.records.read_metrics()] == [
        (1, 1),
        (2, 2),
        (3, 30),
    ]


def test_a_torn_last_line_is_tolerated(workdir):
    workdir.records.write_metrics(1, {"loss": 1})
    path = workdir.path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [record["step"] for record in workdir.records.read_metrics()] == [1]

    workdir.records.write_metrics(2, {"loss": 2})
    assert [record["step"] for record in workdir.records.read_metrics()] == [1, 2]

    workdir.records.truncate_metrics(2)
    assert len(path.read_text().splitlines()) == 2


DESCRIPTION = {"step": 7, "of": "numbers"}


def test_rows_are_completed_where_they_stopped(workdir):
    rows = workdir.rows("a/numbers", 3, DESCRIPTION)
    assert rows.values.shape == (0, 3)
    rows.append(np.arange(6).reshape(2, 3))
    rows.append(np.arange(3))
    # A row that was being written when its process was killed is dropped.
    path = workdir.path / "a" / "numbers.f32"
    path.write_bytes(path.read_bytes() + b"12345")
    again = workdir.rows("a/numbers", 3, DESCRIPTION)
    assert len(again) == 3
    np.testing.assert_array_equal(again.values, [[0, 1, 2], [3, 4, 5], [0, 1, 2]])
    again.append(np.ones(3))
    np.testing.assert_array_equal(workdir.rows("a/numbers", 3, DESCRIPTION).values, again.values)
    again.remove()
    assert list((workdir.path / "a").iterdir()) == []


def test_rows_of_something_else_are_not_used(workdir):
    workdir.rows("numbers", 2, DESCRIPTION).append(np.ones(2))
    other = workdir.rows("numbers", 2, DESCRIPTION | {"step": 8})
    assert len(other) == 0
    assert len(workdir.rows("numbers", 2, DESCRIPTION)) == 0


def test_results_may_be_written_elsewhere(tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    Workdir(run).save_config({"model": {}})
    workdir = Workdir(run, results=results)
    workdir.check_writable()
    workdir.log("said")
    workdir.write("sample/a.png", b"x")
    workdir.rows("evaluate/rows", 2, {}).append(np.zeros((1, 2)))
    assert [path.name for path in run.iterdir()] == ["config.json"]
    found = {path.name for path in results.rglob("*") if path.is_file()}
    assert found == {"log.txt", "a.png", "rows.f32", "rows.json"}


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    workdir = Workdir(tmp_path / "run", results=tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match=r"file/below.* cannot be written.*--results=FOLDER"):
        workdir.check_writable()


def test_lines_that_cannot_be_written_wait(workdir, monkeypatch, capsys):
    workdir.log("first")
    workdir.records.write_metrics(1, {"loss": 1})
    with monkeypatch.context() as patch:

        def full(path, line):
            raise ConfigError(f"{path} cannot be written: No space left on device")

        patch.setattr(records, "append_line", full)
        workdir.log("second")
        workdir.log("third")
        workdir.records.write_metrics(2, {"loss": 2})
        assert capsys.readouterr().out.count("its lines wait in memory") == 2
        assert [r["step"] for r in workdir.records.read_metrics()] == [1, 2]
    workdir.log("fourth")
    workdir.records.write_metrics(3, {"loss": 3})
    lines = (workdir.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second", "third", "fourth"]
    content = (workdir.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in content] == [1, 2, 3]
