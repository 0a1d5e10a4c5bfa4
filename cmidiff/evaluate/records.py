"""What a run is made of: units and cells, what a finished unit leaves behind, and the rows of the database."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cmidiff.result import Status as SampleStatus

Status = Literal["pending", "ok", "diverged", "failed"]


class Unit(NamedTuple):
    """What is computed once.

    Attributes:
        image, task, solver: labels, as in the configuration.
        cmi: whether the solver is corrected by CMI.
        eta: its strength; 0 for the base solver.
        steps: of the sampler.
        seed: of mask, measurement noise and sampler, together with image and task.
    """

    image: str
    task: str
    solver: str
    cmi: bool
    eta: float
    steps: int
    seed: int

    @property
    def cell(self) -> Cell:
        return Cell(*self[1:6])


class Cell(NamedTuple):
    """The units that differ in image and seed alone: a table shows one figure for them."""

    task: str
    solver: str
    cmi: bool
    eta: float
    steps: int

    @property
    def base(self) -> Cell:
        """The same without CMI."""
        return self._replace(cmi=False, eta=0.0)


class ImageFile(NamedTuple):
    """A PNG of a unit, relative to the run's folder, with the SHA-256 of its bytes."""

    path: str
    digest: str


@dataclass(frozen=True)
class Outcome:
    """All that a finished unit leaves behind; it is written in one transaction."""

    unit: Unit
    status: Status
    error: str | None = None
    evaluations: float = math.nan
    gradients: float = math.nan
    seconds: float = math.nan
    finished: str = ""
    worker: str = ""
    samples: tuple[SampleStatus, ...] = ()
    images: Mapping[str, ImageFile] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitRow:
    """A unit as the database holds it, with its scores.

    Attributes:
        scores: metric -> value, NaN where it is not finite; absent where it was not computed.
        images: kind -> path, relative to the run's folder.
        seconds: of all its samples; NaN before it was computed.
        evaluations, gradients: forward and backward passes of the network for each sample.
    """

    unit: Unit
    status: Status
    error: str | None
    attempts: int
    diverged: int
    evaluations: float
    gradients: float
    seconds: float
    scores: dict[str, float]
    images: dict[str, str]


@dataclass(frozen=True)
class ImageRow:
    """An image of the run; ``error`` says why it could not be used, ``path`` is its PNG in the run."""

    name: str
    file: str
    digest: str | None
    width: int | None
    height: int | None
    path: str | None
    error: str | None


@dataclass(frozen=True)
class Metric:
    """A column of figures.

    Attributes:
        better: ``higher``, ``lower``, or ``none`` where neither is (misfit and coverage have a target).
        absent: why there are no values and how to get them; None if there are.
    """

    name: str
    units: str
    better: Literal["higher", "lower", "none"]
    description: str
    absent: str | None = None


@dataclass(frozen=True)
class CellScore:
    """A figure of a whole cell, as FID: from how many images, by the features of which network.

    Attributes:
        difference: to the base cell, on the images that both have; NaN for a base.
        error: standard error of the difference; NaN without one.
        pairs: images that both have.
    """

    cell: Cell
    metric: str
    value: float
    images: int
    network: str
    difference: float = math.nan
    error: float = math.nan
    pairs: int = 0
