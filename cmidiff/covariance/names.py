"""Covariances by name."""

from __future__ import annotations

from cmidiff.covariance.base import Covariance
from cmidiff.registry import COVARIANCES


def make_covariance(choice: Covariance | str | type[Covariance], owner: str) -> Covariance:
    """The covariance of a name; an object is returned as it is."""
    made = COVARIANCES.resolve(choice)
    if not isinstance(made, Covariance):
        raise TypeError(
            f"{owner}: covariance must be a name or an object of cmidiff.covariance such as Exact(), "
            f"received {choice!r}"
        )
    return made
