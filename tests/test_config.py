"""The one validator: what a table, an option or a name that is wrong is answered with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from cmidiff import DPS, PiGDM
from cmidiff.config import (
    STRICT,
    Bound,
    Checked,
    Count,
    File,
    NotNegative,
    Positive,
    Several,
    Share,
    build,
    check_options,
    read_toml,
    suggest,
    unknown,
)


@dataclass(frozen=True, config=STRICT)
class Camera:
    """An example."""

    name: str
    out: File
    sides: Several[int] = (1,)
    gain: Annotated[float, Field(gt=0)] = 1.0
    mode: Literal["day", "night"] = "day"
    flash: bool = False

    def __post_init__(self) -> None:
        if self.mode == "night" and not self.flash:
            raise ValueError("mode night needs flash = true")


@dataclasses.dataclass(frozen=True)
class Ranged(Checked):
    """Options with ranges; ``note`` is for another reader of annotations."""

    scale: NotNegative | Callable[[float], float] = 1.0
    strength: Positive | None = 1.0
    share: Share = 0.5
    count: Count = 3
    even: Annotated[int, "note", Bound("an even number", lambda value: value % 2 == 0)] = 2


GOOD = {"name": "a", "out": "photos"}


def test_a_table_becomes_a_configuration() -> None:
    made = build(Camera, GOOD | {"sides": [2, 3], "gain": 2}, "the camera", Path("/base"))
    assert made == Camera("a", Path("/base/photos"), (2, 3), 2.0)
    assert isinstance(made.gain, float)
    assert build(Camera, GOOD | {"sides": 4}, "the camera").sides == (4,)
    assert build(Camera, GOOD | {"out": "/elsewhere"}, "the camera", Path("/base")).out == Path("/elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": [1.5]}, "the camera: sides must be a whole number, received 1.5"),
        ({"sides": ["1"]}, "the camera: sides must be a whole number, received '1'"),
        ({"sides": [True]}, "the camera: sides must be a whole number, received True"),
        ({"gain": "1"}, "the camera: gain must be a number, received '1'"),
        ({"gain": -1.0}, "the camera: gain must be greater than 0, received -1.0"),
        ({"gain": float("nan")}, "the camera: gain must be a finite number, received nan"),
        ({"flash": "yes"}, "the camera: flash must be true or false, received 'yes'"),
        ({"name": 3}, "the camera: name must be a text, received 3"),
        ({"out": 3}, "the camera: out must be a path, received 3"),
        ({"mode": "dusk"}, "the camera: mode must be 'day' or 'night', received 'dusk'"),
        ({"mode": "night"}, "the camera: mode night needs flash = true"),
        ({"gian": 1.0}, "the camera has no option 'gian': did you mean gain?"),
        ({"xyz": 1.0}, "the camera has no option 'xyz': choose one of name, out, sides, gain, mode, flash"),
    ],
)
def test_what_is_wrong_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="the camera") as caught:
        build(Camera, GOOD | change, "the camera")
    assert str(caught.value) == message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="the camera: out is missing: add it"):
        build(Camera, {"name": "a"}, "the camera")


def test_options_have_the_types_of_their_class() -> None:
    check_options(DPS, {"scale": 1, "guard": False}, ["scale", "guard"], "dps")
    check_options(PiGDM, {"data_variance": None, "weight": "flow"}, ["data_variance", "weight"], "pigdm")
    given: list[tuple[dict[str, Any], str]] = [
        ({"scale": "1"}, r"dps: scale must be a number or a ramp \{ start = ..., end = ... \}, received '1'"),
        ({"scale": True}, "dps: scale must be a number"),
        ({"guard": 1}, "dps: guard must be true or false, received 1"),
        ({"scael": 1.0}, "dps has no option 'scael': did you mean scale?"),
    ]
    for options, message in given:
        with pytest.raises(ValueError, match=message):
            check_options(DPS, options, ["scale", "guard"], "dps")
    with pytest.raises(ValueError, match="dps has no option 'scale': it has none"):
        check_options(DPS, {"scale": 1.0}, [], "dps")


def test_a_class_with_annotations_for_type_checkers_is_left_alone() -> None:
    @dataclasses.dataclass
    class Foreign:
        size: Nowhere = 1  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    check_options(Foreign, {"size": "large"}, ["size"], "foreign")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -0.1}, r"Ranged: scale must be a number >= 0, received -0\.1"),
        ({"scale": math.inf}, "scale must be a number >= 0, received inf"),
        ({"scale": "1"}, "scale must be a number or a function, received '1'"),
        ({"strength": 0.0}, "strength must be a number > 0, received 0.0"),
        ({"strength": True}, "strength must be a number or None, received True"),
        ({"share": 0}, r"share must be in \(0, 1\], received 0"),
        ({"count": 1.5}, "count must be a whole number, received 1.5"),
        ({"count": 0}, "count must be a whole number >= 1, received 0"),
        ({"even": 3}, "even must be an even number, received 3"),
    ],
)
def test_the_range_of_an_option_is_that_of_its_annotation(options: dict[str, Any], message: str) -> None:
    assert Ranged(scale=lambda ratio: -ratio, strength=None, share=1, count=1).even == 2
    with pytest.raises(ValueError, match=message):
        Ranged(**options)


@pytest.mark.parametrize("content", [b"a = = 1", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.toml is not valid TOML"):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("answer", [suggest, lambda wrong, known: unknown("colour", wrong, known)])
def test_the_nearest_names_are_offered(answer: Callable[[str, list[str]], str]) -> None:
    assert answer("Rde", ["red", "blue"]).endswith("did you mean red?")
    assert answer("xyz", ["red", "blue"]).endswith("choose one of red, blue")
