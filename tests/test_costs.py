import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import CONFIG

from nvae_jax.config.run import read_run
from nvae_jax.measuring import aot, costs
from nvae_jax.measuring.aot import Report
from nvae_jax.measuring.costs import (
    Case,
    compile_cases,
    parse_values,
    read_cases,
    settings,
    tables,
)
from nvae_jax.measuring.flops import count_flops
from nvae_jax.measuring.hlo import Traffic
from nvae_jax.training.fitting import required_memory
from nvae_jax.training.program import make_program

SMALL = dataclasses.replace(CONFIG, num_blocks=0, remat="none", unroll=False)
RUN = read_run(
    {
        "model": dataclasses.asdict(SMALL),
        "training": {"epochs": 10, "batch_size": 16},
        "data": {"name": "digits"},
    }
)


def report(devices=8, flops=197e12, moved=None, gigabytes=819.0):
    moved = {"all-reduce": 100e9, "all-gather": 50e9} if moved is None else moved
    traffic = Traffic(gigabytes * 1e9, dict.fromkeys(moved, 3), moved)
    return Report(devices, "group", 1, 4, 2**29, 2**30, 3 * 2**30, flops, traffic, 61.2)


def test_limits_are_those_of_the_makers_figures():
    case = Case("v5e:2x4", "model.num_groups", 8, report())
    # (2 × 100 + 50) GB, of which 7/8 leave each of eight chips at 200 GB/s.
    expected = {"arithmetic": 1.0, "memory": 1.0, "links": 250 * 7 / 8 / 200}
    assert case.limits() == pytest.approx(expected)
    other = Case("v5p:2x2x2", "model.num_groups", 8, report(flops=459e12, gigabytes=2765 / 2))
    expected = {"arithmetic": 1.0, "memory": 0.5, "links": 250 * 7 / 8 / 600}
    assert other.limits() == pytest.approx(expected)
    moved = {"reduce-scatter": 1e9, "collective-permute": 3e9, "all-to-all": 8e9}
    shared = Case("v5e:2x4", "model.num_groups", 8, report(moved=moved))
    assert shared.limits()["links"] == pytest.approx((7 + 3 + 7) / 200)
    alone = Case("v5e:1x1", "model.num_groups", 8, report(devices=1))
    assert alone.limits()["links"] == 0


def test_an_epoch_takes_the_longest_limit_times_its_updates():
    case = Case("v5e:2x4", "chips", 8, report(gigabytes=4 * 819, moved={}))
    assert case.epoch(images=3200) == pytest.approx(100 * 4.0)  # 8 chips of 4 images


def test_table_has_a_row_for_each_case_and_a_table_for_each_field():
    cases = [
        Case("v5e:2x4", "model.num_groups", 8, report()),
        Case("v5e:2x2", "chips", 4, report(devices=4, flops=1.5e12, moved={})),
        Case("v5e:2x4", "model.num_groups", 15, report(flops=2 * 197e12)),
    ]
    lines = tables(cases, images=None).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0][:4] == ["model.num_groups", "slice", "images per chip", "TFLOP"]
    assert rows[2][:8] == ["8", "v5e:2x4", "4", "197", "819", "6", "1.5e+05", "1.00"]
    assert rows[2][8:] == ["3.00", "61", "1000.0", "1000.0", "1093.8"]
    assert [rows[3][0], rows[3][3], rows[3][10]] == ["15", "394", "2000.0"]
    assert rows[4] == [""]
    assert [rows[5][0], rows[7][0], rows[7][3], rows[7][5]] == ["chips", "4", "1.5", "0"]
    # 3,600 images at 32 per update, each a second of memory: 112.5 s on eight chips.
    (row,) = tables([Case("v5e:2x4", "chips", 8, report(moved={}))], 3600).splitlines()[2:3]
    assert row.endswith("| 112 | 0.25 |")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.num_groups=8,15", [8, 15]),
        ("model.num_groups=8", [8]),
        ("model.image_shape=(32,32,3),(64,64,3)", [(32, 32, 3), (64, 64, 3)]),
        ("training.learning_rate=1e-2,0.5", [0.01, 0.5]),
        ("model.remat=none,group", ["none", "group"]),
        ("model.squeeze_excite=True,False", [True, False]),
    ],
)
def test_values_are_numbers_shapes_or_words(text, expected):
    assert parse_values(text) == (text.partition("=")[0], expected)


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        (["model.num_groups"], "--vary is 'model.num_groups'; allowed: section.field=value,value"),
        (["model.num_groups="], "--vary is 'model.num_groups='"),
        (["data.name=a,b"], "--vary is 'data.name'; allowed: fields of model, training"),
        (["num_groups=1"], "--vary is 'num_groups'; allowed: fields of"),
        (
            ["model.groups=1,2"],
            "model.groups is unknown; did you mean num_groups. allowed: image_shape",
        ),
        (["model.num_groups=2,many"], "model.num_groups is '2'; allowed: int"),
        (["model.num_groups=2,-1"], "num_groups is -1; allowed:"),
        (
            ["model.encoder_channels=4,8", "model.decoder_channels=4"],
            "--vary has 1 value.s. of model.decoder_channels; allowed: 2, as of model.encoder_cha",
        ),
    ],
)
def test_what_cannot_be_varied_is_refused_by_name(varied, message):
    with pytest.raises(ValueError, match=message):
        settings(RUN, [parse_values(text) for text in varied])


def test_fields_change_together():
    varied = [("model.encoder_channels", [4, 8]), ("model.decoder_channels", [8, 16])]
    found = [(f, v, m.encoder_channels, m.decoder_channels) for f, v, m, _ in settings(RUN, varied)]
    assert found == [("model.encoder_channels", 4, 4, 8), ("model.encoder_channels", 8, 8, 16)]
    ((field, _, model, training),) = settings(RUN, [])
    assert (field, model, training.batch_size) == (costs.DEVICES, SMALL, 16)


def on_this_machine(topology):
    """Simulated devices under the name of a slice, for instance v5e:2x4."""
    height, width = map(int, topology.partition(":")[2].split("x"))
    return jax.devices()[: height * width], None


@pytest.mark.parametrize(
    ("topologies", "message"),
    [
        (["v5e:2x4", "v3:2x2"], "--topology is 'v3:2x2'; allowed: slices of v5e, v5p, v6e"),
        ([], "--topology is ''; allowed: a slice, or several without --vary"),
        (["v5e:2x4", "v5e:1x3"], r"training.batch_size is 16; allowed: multiples of .* \(3\)"),
    ],
)
def test_all_cases_are_checked_before_the_first_is_compiled(monkeypatch, topologies, message):
    monkeypatch.setattr(costs, "make_devices", on_this_machine)
    monkeypatch.setattr(aot, "compile_step", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(ValueError, match=message):
        compile_cases(RUN, topologies, [])


def test_operations_grow_by_the_same_with_every_group(monkeypatch):
    def traced(config, training, mesh, objective):
        program = make_program(config, training, steps_per_epoch=1, mesh=mesh, flip=False)
        update = program.update.trace(program.state, program.batch)
        return report(flops=count_flops(update.jaxpr))

    monkeypatch.setattr(costs, "make_devices", on_this_machine)
    monkeypatch.setattr(aot, "compile_step", traced)
    cases = compile_cases(RUN, ["v5e:1x1"], [("model.num_groups", [2, 3, 4])])
    assert [(c.field, c.value) for c in cases] == [("model.num_groups", n) for n in (2, 3, 4)]
    few, more, most = (case.report.flops for case in cases)
    assert most - more == more - few > 0


def test_a_case_that_does_not_fit_is_said_and_left_out(monkeypatch, capsys):
    def compiled(config, training, mesh, objective):
        if config.num_groups == 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 7G over")
        return report()

    monkeypatch.setattr(costs, "make_devices", on_this_machine)
    monkeypatch.setattr(aot, "compile_step", compiled)
    cases = compile_cases(RUN, ["v5e:2x4"], [("model.num_groups", [2, 3, 4])])
    assert [case.value for case in cases] == [2, 4]
    assert "does not fit: 7G over" in capsys.readouterr().out


def test_a_case_that_needs_more_memory_than_there_is_is_left_out(monkeypatch, capsys):
    def compiled(config, training, mesh, objective):
        return dataclasses.replace(report(), peak=config.num_groups * 2**30)

    memory = required_memory(3 * 2**30, "cpu", 8)
    monkeypatch.setattr(costs, "make_devices", lambda name: (on_this_machine(name)[0], memory))
    monkeypatch.setattr(aot, "compile_step", compiled)
    cases = compile_cases(RUN, ["v5e:2x4"], [("model.num_groups", [2, 3, 4])])
    assert [case.value for case in cases] == [2, 3]
    assert "v5e:2x4, model.num_groups 4\n" in capsys.readouterr().out


def test_slices_and_a_field_at_once_are_refused():
    with pytest.raises(ValueError, match="--topology is 'v5e:1x1,v5e:2x2'; allowed: a slice, or"):
        compile_cases(RUN, ["v5e:1x1", "v5e:2x2"], [("model.num_groups", [2, 3])])


def test_parameters_in_shards_are_refused(monkeypatch):
    monkeypatch.setattr(costs, "make_devices", on_this_machine)
    with pytest.raises(ValueError, match=r"training\.parameter_shards is 2; allowed: 1"):
        compile_cases(RUN, ["v5e:1x2"], [("training.parameter_shards", [2])])


def test_files_of_several_runs_make_one_table_and_picture(tmp_path):
    cases = [
        Case("v5e:2x4", "model.image_shape", [32, 32, 3], report()),
        Case("v5e:2x4", "model.image_shape", [64, 64, 3], report()),
        Case("v5e:2x2", "chips", 4, report(moved={})),
        Case("v5e:2x4", "model.remat", "group", report()),
    ]
    for name, part in (("a", cases[:3]), ("b", cases[3:])):
        text = json.dumps([dataclasses.asdict(case) for case in part])
        (tmp_path / f"{name}.json").write_text(text)
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert read_cases(files) == cases
    picture = tmp_path / "costs.png"
    command = [sys.executable, "-m", "nvae_jax.tools.costs", *files, "--picture", str(picture)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == tables(cases, None) + "\n"
    assert np.asarray(Image.open(picture)).std() > 0


@pytest.mark.parametrize("text", ["{", "[1]", '[{"field": "chips"}]'])
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other.json.*; allowed: a file that --json"):
        read_cases([str(path)])
