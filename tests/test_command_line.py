import dataclasses
from typing import Literal

import pytest
from absl import flags

from nvae_jax import main
from nvae_jax.command_line import define_flags, door, expand_home, read_flags, validate
from nvae_jax.config.overrides import parse_overrides
from nvae_jax.errors import ConfigError
from nvae_jax.fields import names_of
from nvae_jax.modes.sample import SampleOptions


@dataclasses.dataclass(frozen=True)
class Paint:
    """Options of painting.

    Attributes:
      paint_colors: one or more,
        by commas
      paint_coats: how many
      paint_dry: wait at the end
    """

    paint_colors: tuple[str, ...]
    paint_coats: int | None = 2
    paint_dry: bool = False
    paint_tool: Literal["brush", "roll"] = "roll"
    seed: int = 0

    def __post_init__(self):
        validate(self, "paint_coats")


@dataclasses.dataclass(frozen=True)
class Saw:
    """Options of sawing."""

    saw_angle: float = 90.0


MODES = {"paint": Paint, "saw": Saw}


def test_flags_that_are_given_are_the_options():
    given = {"paint_colors": "red,blue", "paint_dry": True, "saw_angle": None, "workdir": "x"}
    assert read_flags("paint", MODES, given) == Paint(("red", "blue"), 2, True)
    assert read_flags("saw", MODES, {}) == Saw()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"saw_angle": "3"}, "--saw_angle is not an option of mode paint; allowed: paint_colors"),
        ({}, "--paint_colors is missing, which mode paint requires; allowed: one or more, by com"),
        ({"paint_colors": "red", "paint_coats": "0"}, "paint_coats is 0; allowed: 1 to 1000000000"),
        ({"paint_colors": "red", "paint_tool": "mop"}, "paint_tool is 'mop'; allowed: brush, roll"),
        ({"paint_colors": "red", "seed": "-1"}, "seed is -1; allowed: 0 to"),
    ],
)
def test_wrong_flags_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        read_flags("paint", MODES, given)


def test_a_flags_help_is_in_the_docstring():
    values = flags.FlagValues()
    define_flags(MODES, values)
    assert values["paint_colors"].help == "paint: one or more, by commas"
    values(["program", "--paint_dry", "--paint_coats=3"])
    assert values.paint_dry is True
    assert values.paint_coats == "3"
    assert values.saw_angle is None


def test_a_refusal_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as end, door():
        raise ConfigError("size is 3;\n   allowed: 4")
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "refused: size is 3; allowed: 4\n")


def test_ctrl_c_ends_a_command_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as end, door():
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_home_is_where_shells_do_not_put_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--workdir=~/runs", "--images=~/a.png,b~.png,~/c.png", "--name=a~/b", "~/x", "--x=~y"]
    assert expand_home(given) == [
        "--workdir=/home/me/runs",
        "--images=/home/me/a.png,b~.png,/home/me/c.png",
        "--name=a~/b",
        "/home/me/x",
        "--x=~y",
    ]


def test_what_is_meant_elsewhere_is_said():
    with pytest.raises(ConfigError, match=r"did you mean --config.x.saw_angle\? allowed: paint_co"):
        read_flags("paint", MODES, {"saw_angle": "3"}, {"saw_angle": "--config.x.saw_angle"})


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="operands could not be broadcast"), door():
        raise ValueError("operands could not be broadcast")


@pytest.mark.parametrize("mode", main.MODES)
def test_every_option_of_every_mode_is_documented(mode):
    options, run = main.MODES[mode]
    for field in dataclasses.fields(options):
        lines = flags.FLAGS[field.name].help.splitlines()
        assert [line for line in lines if line.startswith(f"{mode}: ") and line[len(mode) + 2 :]]
    assert run.__doc__


def test_help_is_for_people():
    everything = main._help(["nvae-jax", "--help"])
    assert all(f"--mode {mode}" in everything for mode in (*main.MODES, "train", "prepare"))
    assert "digits_large" in everything
    for mode, (options, _) in main.MODES.items():
        text = main._help(["nvae-jax", f"--mode={mode}", "--help"])
        assert text.startswith(f"--mode {mode}: ")
        assert all(f"--{field.name}" in text for field in dataclasses.fields(options))
        assert max(map(len, [*everything.splitlines(), *text.splitlines()])) <= 100
    assert "(default: 64)" in main._help(["nvae-jax", "--help", "--mode", "sample"])


@pytest.mark.parametrize(
    ("argv", "name"),
    [(["--config", "digits"], 1), (["--config=digits"], 0), (["-config", "digits", "--x=1"], 1)],
)
def test_configurations_are_named(argv, name):
    found = main._with_config_file(argv)
    assert found[name].endswith("configs/digits.py")
    assert found[:name] + found[name + 1 :] == argv[:name] + argv[name + 1 :]


def test_values_of_fields_may_stand_apart():
    argv = ["x", "--config", "digits", "--config.data.size", "16", "--config.data.flip", "--mode=x"]
    joined = [*argv[:3], "--config.data.size=16", *argv[5:]]
    assert main._with_values(argv) == joined
    assert main._with_values(joined) == joined


def test_fields_that_are_text_are_not_numbers():
    given = ["data.path=2024", "data.data_dir=1e5", "data.lmdb=[a]", "model.architecture=7"]
    texts = {name: text for name, _, text in (field.partition("=") for field in given)}
    assert parse_overrides([f"--config.{field}" for field in given]) == texts
    others = ["data.path=None", "data.size=48,64", "training.epochs=4", "model.remat=none"]
    assert parse_overrides([f"--config.{field}" for field in others]) == {
        "data.path": None,
        "data.size": (48, 64),
        "training.epochs": 4,
        "model.remat": "none",
    }


@pytest.mark.parametrize("name", ["", "/tmp/x", "../x", "a/../../x", ".."])
def test_names_stay_in_the_folder(name):
    with pytest.raises(ConfigError, match=r"^name is .*; allowed: the name of a file"):
        SampleOptions(name=name)
    assert SampleOptions(name="a/b..c").name == "a/b..c"


@pytest.mark.parametrize(
    "mode", [mode for mode in main._OPTIONS if "name" in names_of(main._OPTIONS[mode])]
)
def test_names_of_every_mode_stay_in_the_folder(mode):
    options = main._OPTIONS[mode]
    required = dict.fromkeys(names_of(options, without_default=True), "vary")  # an operation, too
    with pytest.raises(ConfigError, match=r"^name is '../x'; allowed: the name of a file"):
        read_flags(mode, main._OPTIONS, required | {"name": "../x"})


def test_numbers_that_are_not_finite_end_a_command_with_code_3(capsys):
    with pytest.raises(SystemExit) as exit_, door():
        raise FloatingPointError("scores are\nnot finite")
    assert exit_.value.code == 3
    assert capsys.readouterr().err == "failed: scores are not finite\n"
