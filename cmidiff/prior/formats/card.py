"""Cards: what a file of weights does not say about itself.

A card is a JSON object beside the weights: architecture, parametrisation, schedule, value range, and where they come
from (source, licence, sha256). Every number in it is checked, since a card is no more trusted than the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from cmidiff.config import STRICT
from cmidiff.schedule import DDPM, VE, VP, RectifiedFlow, Schedule


@dataclass(frozen=True)
class Fields:
    """Look-ups in a JSON object; what is missing or unusable is named together with the file.

    Args:
        values: the object.
        where: its file, for messages.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def read(cls, path: Path) -> Fields:
        """The object in a JSON file."""
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object, received {type(values).__name__}")
        return cls(values, str(path))

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def integer(self, name: str, default: int | None = None, *, low: int = 0, high: int = 2**31) -> int:
        """A whole number between ``low`` and ``high``."""
        kind = Annotated[int, Field(ge=low, le=high)]
        return self._take(name, kind, f"a whole number from {low} to {high}", default)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        return float(self._take(name, float, "a finite number", default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true or false."""
        return self._take(name, bool, "true or false", default)

    def choice(self, name: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
        """What ``choices`` has under a name."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return choices[value]

    def numbers(self, name: str) -> list[float]:
        """A list of finite numbers."""
        return self._take(name, list[float], "a list of finite numbers")

    def within(self, name: str) -> Fields:
        """The object under a name."""
        value = self._value(name, None)
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}, {name}")

    def wrong(self, name: str, wanted: str) -> ValueError:
        """The error that says what was wanted under a name."""
        seen = json.dumps(self.values[name], default=str)[:80] if name in self.values else "nothing"
        return ValueError(f"{self.where}: {name} must be {wanted}, received {seen}")

    def _take(self, name: str, kind: Any, wanted: str, default: Any = None) -> Any:
        """The value under a name, checked by the type that it must have."""
        try:
            return TypeAdapter(kind, config=STRICT).validate_python(self._value(name, default))
        except ValidationError as error:
            raise self.wrong(name, wanted) from error

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value


def schedule_of(card: Fields) -> Schedule:
    """The schedule of a card: ``{"kind": "linear" | "cosine" | "vp" | "ve" | "rectified-flow", ...}`` with the
    parameters of the class of that name in `cmidiff.schedule`; the linear grid of 1000 levels without one.
    """
    if "schedule" not in card:
        return DDPM.linear()
    fields = card.within("schedule")
    kinds = {"linear": DDPM.linear, "cosine": DDPM.cosine, "vp": VP, "ve": VE, "rectified-flow": RectifiedFlow}
    make = fields.choice("kind", kinds)
    given: dict[str, Any] = {name: fields.number(name) for name in fields if name not in ("kind", "levels")}
    if "levels" in fields:
        given["levels"] = fields.integer("levels", low=1, high=100_000)
    try:
        schedule = make(**given)
        alpha, sigma = schedule(schedule.grid(1)[0])
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{fields.where} makes no schedule: {error}") from error
    if not (math.isfinite(alpha) and math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"{fields.where} makes no schedule: its noisiest level is alpha = {alpha}, sigma = {sigma}")
    return schedule


def grid_of_betas(betas: np.ndarray, where: str) -> DDPM:
    """The discrete grid with these betas."""
    if betas.ndim != 1 or betas.size == 0 or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"{where}: betas must lie between 0 and 1")
    return DDPM(np.cumprod(1.0 - betas.astype(np.float64)))


def value_range_of(card: Fields) -> tuple[float, float] | None:
    """The range of a card's training images, (-1, 1) if it does not say; null says that there is none."""
    if "value_range" not in card:
        return None if "value_range" in card.values else (-1.0, 1.0)
    values = card.numbers("value_range")
    if len(values) != 2 or not values[0] < values[1]:
        raise card.wrong("value_range", "[low, high]")
    return values[0], values[1]


def assumed_of(card: Fields, value_range: str = "[-1, 1]") -> list[str]:
    """What a card of a network does not state and `schedule_of` and the range of its images then take for granted."""
    assumed = [] if "schedule" in card else ["schedule = linear betas 1e-4 to 0.02, 1000 levels"]
    return assumed if "value_range" in card.values else [*assumed, f"value_range = {value_range}"]


def card_beside(weights: Path) -> Fields | None:
    """The card of a file of weights: ``model.pt.json``, ``model.json`` or ``card.json`` beside it, in this order."""
    for path in (weights.with_name(f"{weights.name}.json"), weights.with_suffix(".json"), weights.parent / "card.json"):
        if path.is_file():
            return Fields.read(path)
    return None
