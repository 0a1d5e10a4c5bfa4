"""One covariance at high noise, another at low noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmidiff.covariance.base import Bound, Covariance, make_covariance
from cmidiff.covariance.exact import Exact
from cmidiff.covariance.moments import SecondMoments
from cmidiff.step import Step

SWITCH = 0.6  # relative noise level below which the Jacobian of the network is better than the second moments


@dataclass(frozen=True)
class Hybrid(Covariance):
    """``high`` while ``sigma_t / alpha_t`` is above ``switch``, ``low`` below.

    The level is relative to half the range of the images, or to the standard deviation of the prior without one. The
    default takes the second moments of the data above 0.6 and the Jacobian below. The first needs no derivative,
    and the second is accurate there.

    Args:
        high, low: covariances, as objects, classes or names.
        switch: the noise level.

    Raises:
        ValueError, TypeError: an option that has no meaning.
    """

    high: Covariance = field(default_factory=SecondMoments)
    low: Covariance = field(default_factory=Exact)
    switch: float = SWITCH

    def __post_init__(self) -> None:
        for name in ("high", "low"):
            object.__setattr__(self, name, make_covariance(getattr(self, name), "Hybrid"))
        if not self.switch > 0:
            raise ValueError(f"Hybrid: switch must be a noise level > 0, received {self.switch!r}")

    def choose(self, ratio: float) -> Covariance:
        """The covariance at a noise level."""
        return self.high if ratio > self.switch else self.low

    def at(self, step: Step) -> Bound:
        return self.choose(step.relative_ratio).at(step)

    @property
    def start(self) -> float:
        return self.high.start

    @property
    def memory(self) -> int:
        return max(self.high.memory, self.low.memory)

    def needs_graph(self, ratio: float) -> bool:
        return self.choose(ratio).needs_graph(ratio)

    def needs_graph_inside(self, ratio: float) -> bool:
        return self.choose(ratio).needs_graph_inside(ratio)
