"""Dataclasses from mappings and from text: what is built, and what errors say."""

import dataclasses
from typing import Literal, Optional

import ml_collections
import pytest

from nvae_jax.fields import from_mapping, names_of, parse, require_literals


@dataclasses.dataclass(frozen=True)
class Example:
    width: int
    rate: float = 1e-2
    squeeze: bool = True
    kind: Literal["normal", "mixture"] = "mixture"
    bits: Literal[5, 8] = 8
    groups: tuple[int, ...] = (2, 1)
    span: tuple[float, str] = (0.0, "a")
    name: str | None = None
    seed: Optional[int] = None  # noqa: UP045 - both spellings of a union are supported
    schedule: tuple[int, ...] | Literal["auto"] = "auto"
    widths: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1,))

    def __post_init__(self):
        if self.width < 1:
            raise ValueError("width must be positive")


@pytest.mark.parametrize("mapping_type", [dict, ml_collections.ConfigDict])
def test_builds_from_any_mapping(mapping_type):
    mapping = mapping_type({"width": 4, "rate": 1, "groups": [3, 2], "span": [1, "b"], "seed": 0})

    example = from_mapping(Example, mapping, "config.model")

    assert example == Example(4, rate=1.0, groups=(3, 2), span=(1.0, "b"), seed=0)
    assert type(example.rate) is float
    assert type(example.span[0]) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "x"),
        ("name", None),
        ("bits", 5),
        ("groups", ()),
        ("schedule", (1, 2)),
        ("schedule", "auto"),
    ],
)
def test_accepts(field, value):
    assert getattr(from_mapping(Example, {"width": 1, field: value}, "config"), field) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": True}, "config.model.width is True; allowed: int"),
        ({"width": 4.0}, "config.model.width is 4.0; allowed: int"),
        ({"width": "4"}, "config.model.width is '4'; allowed: int"),
        ({"width": None}, "config.model.width is None; allowed: int"),
        ({"rate": True}, "config.model.rate is True; allowed: float"),
        ({"rate": float("inf")}, "config.model.rate is inf; allowed: float"),
        ({"rate": float("-inf")}, "config.model.rate is -inf; allowed: float"),
        ({"rate": float("nan")}, "config.model.rate is nan; allowed: float"),
        ({"rate": 10**400}, f"config.model.rate is {10**400}; allowed: float"),
        ({"squeeze": 1}, "config.model.squeeze is 1; allowed: bool"),
        ({"kind": "x"}, "config.model.kind is 'x'; allowed: 'normal', 'mixture'"),
        ({"bits": 8.0}, "config.model.bits is 8.0; allowed: 5, 8"),
        ({"groups": 3}, "config.model.groups is 3; allowed: a list of int"),
        ({"groups": [3, "x"]}, "config.model.groups[1] is 'x'; allowed: int"),
        ({"span": [1.0]}, "config.model.span is [1.0]; allowed: a list of 2: float, str"),
        ({"name": 3}, "config.model.name is 3; allowed: str or None"),
        ({"seed": False}, "config.model.seed is False; allowed: int or None"),
        ({"schedule": [0.5]}, "config.model.schedule is [0.5]; allowed: a list of int or 'auto'"),
    ],
)
def test_wrong_types_are_named(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        from_mapping(Example, {"width": 4, **changes}, "config.model")
    assert str(caught.value) == message


def test_unknown_field_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"^config\.model\.foo is unknown; allowed: width, rate, "):
        from_mapping(Example, {"width": 4, "foo": 1}, "config.model")


def test_missing_field_is_named():
    with pytest.raises(ValueError, match=r"^config\.model\.width is missing; allowed: int$"):
        from_mapping(Example, {}, "config.model")


def test_not_a_mapping():
    with pytest.raises(ValueError, match=r"^config\.model is 3; allowed: a mapping of fields$"):
        from_mapping(Example, 3, "config.model")


def test_the_dataclass_speaks_for_itself():
    with pytest.raises(ValueError, match=r"^width must be positive$"):
        from_mapping(Example, {"width": 0}, "config.model")


def test_an_unsupported_annotation_is_a_programming_error():
    @dataclasses.dataclass(frozen=True)
    class Unsupported:
        table: dict[str, int]

    with pytest.raises(TypeError, match=r"config\.table is annotated as dict"):
        from_mapping(Unsupported, {"table": {}}, "config")


def test_text_becomes_what_the_field_is():
    assert parse(int, "3", "x") == 3
    assert parse(tuple[float, ...], "0.7, 1", "x") == (0.7, 1.0)
    assert parse(int | None, "none", "x") is None
    assert parse(tuple[int, ...] | None, "1,2", "x") == (1, 2)
    assert parse(Literal["a", "b"], "b", "x") == "b"
    with pytest.raises(ValueError, match=r"x is '1\.5'; allowed: ints"):
        parse(int, "1.5", "x")


def test_text_that_is_none_of_a_literals_values_is_refused():
    with pytest.raises(ValueError, match=r"^x is 'c'; allowed: a, b$"):
        parse(Literal["a", "b"], "c", "x")


def test_literals_are_checked_where_a_dataclass_is_made_in_code():
    require_literals(Example(1), "model.")
    with pytest.raises(ValueError, match=r"^model\.kind is 'x'; allowed: normal, mixture$"):
        require_literals(Example(1, kind="x"), "model.")


def test_names_of_fields():
    assert names_of(Example, without_default=True) == ["width"]
    assert names_of(Example)[:2] == ["width", "rate"]
