"""What a file of weights becomes, whatever its format, before it is a prior on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from cmidiff.moments import SecondMoments
from cmidiff.prior.network import Parametrisation
from cmidiff.schedule import Schedule

PARAMETRISATIONS: dict[str, Parametrisation] = {"eps": "eps", "x0": "x0", "v": "v", "flow": "flow"}


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, on the CPU, in the precision of the file, and what its output means.

    Attributes:
        network: ``(x_t, t)`` or, with ``classes``, ``(x_t, t, label)`` to output.
        parametrisation, schedule, learned_variance, channels, multiple, classes, value_range, clip, size, smooth,
            min_ratio, max_ratio, second_moments: see `NetworkPrior`.
        assumed: what neither the file nor a card states, as ``name = value``.
    """

    network: nn.Module
    parametrisation: Parametrisation
    schedule: Schedule
    learned_variance: bool
    channels: int
    multiple: int
    classes: int | None = None
    value_range: tuple[float, float] | None = (-1.0, 1.0)
    clip: bool = True
    size: int | None = None
    smooth: bool = True
    min_ratio: float = 0.0
    max_ratio: float = math.inf
    second_moments: SecondMoments | None = None
    assumed: tuple[str, ...] = ()
