import pytest

from nvae_jax.errors import ConfigError, reading, reason, require, writing


def test_a_message_is_one_line():
    error = ConfigError("size is 3;\n\n    allowed: 4")
    assert str(error) == "size is 3; allowed: 4"
    assert isinstance(error, ValueError)


def test_what_is_required_is_named_with_its_value():
    require("size", 4, True, "4")
    with pytest.raises(ConfigError, match=r"^size is '3'; allowed: 4$"):
        require("size", "3", False, "4")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "absent"
    with pytest.raises(ConfigError) as caught, reading("latents", path, "an .npz file"):
        path.read_bytes()
    assert str(caught.value) == (
        f"latents is '{path}', which cannot be read (No such file or directory); "
        "allowed: an .npz file"
    )
    with (
        pytest.raises(ConfigError, match=r"cannot be read \(torn\); allowed"),
        reading("latents", path, "an .npz file", KeyError, EOFError),
    ):
        raise EOFError("torn")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "absent" / "file"
    message = f"^{path} cannot be written: No such file or directory; allowed: a place with space"
    with pytest.raises(ConfigError, match=message), writing(path):
        path.write_text("")


@pytest.mark.parametrize("around", [lambda: reading("x", "y", "z", EOFError), lambda: writing("y")])
@pytest.mark.parametrize("error", [ConfigError("size is 3"), KeyError("a bug")])
def test_refusals_and_bugs_pass_through(around, error):
    with pytest.raises(type(error)) as caught, around():
        raise error
    assert caught.value is error


def test_an_error_without_text_is_called_by_its_name():
    assert reason(EOFError()) == "EOFError"
    assert reason(OSError(2, "No such file", "name")) == "No such file"
    assert reason(ValueError("text")) == "text"
