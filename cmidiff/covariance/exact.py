"""``Sigma = (sigma_t^2 / alpha_t) J``: the Jacobian of the denoiser, one product of the network for each product.

The Jacobian of a network is neither symmetric nor positive. Conjugate gradients therefore stop a sample where the
curvature falls below that of the noise alone, which ``S`` must exceed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cmidiff.config import Iterations
from cmidiff.covariance.base import Covariance, Iterated
from cmidiff.covariance.diagonal import Diagonal
from cmidiff.step import Step


@dataclass(frozen=True)
class Exact(Covariance):
    """The Jacobian of the denoiser.

    Args:
        iterations: at most this many iterations, each a product of the network.
    """

    iterations: Iterations = 4

    def at(self, step: Step) -> BoundExact:
        return BoundExact(step, self.iterations)

    def needs_graph_inside(self, ratio: float) -> bool:
        return True


@dataclass(frozen=True)
class BoundExact(Iterated):
    """``Sigma = (sigma_t^2 / alpha_t) J^T``, products by the denoiser's graph."""

    def product(self, v: Tensor) -> Tensor:
        return self.step.covariance_gain * self.step.vjp(v)

    def scatter(self, scale: float) -> Tensor:
        """With the diagonal in place of the Jacobian, whose square root is not available."""
        return Diagonal(probes=1).at(self.step).scatter(scale)
