"""Replays of FPS, MCGDiff and TDS for `tests.conformance`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conformance import origin

REPLAYS: dict[tuple[str, str], Callable[..., float]] = {}


def replayer(meta: dict[str, Any]) -> Callable[..., float] | None:
    """The replay of a run; None for a file of another method."""
    return REPLAYS.get((origin(meta), meta.get("method", "")))
