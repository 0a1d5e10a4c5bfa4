"""The denoiser contract: all that a sampler needs to know about ``p(x_0)``.

A prior is called as ``prior(x_t, t).mean`` and answers ``x_hat = E[x_0 | x_t]``, differentiable in ``x_t`` and not
clipped; Tweedie's formula makes it the score, ``(alpha_t x_hat - x_t) / sigma_t^2``, and its Jacobian ``J = d x_hat / d
x_t`` the posterior covariance, ``Cov(x_0 | x_t) = (sigma_t^2 / alpha_t) J`` (arXiv 2501.02880, eq. 7a). It is the call
shape of azula's denoisers.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from cmidiff.schedule import Schedule


class Prediction(NamedTuple):
    """One evaluation of a denoiser.

    Attributes:
        mean: ``x_hat``, shape (B, ...), not clipped.
        variance_fraction: of a learned-variance head, the fraction ``f`` in [0, 1] of the reverse kernel's log-variance
            between its lower and its upper bound, shape (B, ...); None without one.
    """

    mean: Tensor
    variance_fraction: Tensor | None = None


@runtime_checkable
class Denoiser(Protocol):
    """A pretrained prior.

    Attributes:
        schedule: its perturbation kernel.
        value_range: the range of its images, (-1, 1) for picture priors: x_hat may be clipped to it, and images at the
            door are mapped to it; None for a prior over any other signal.
        channels: channels of its images, or None if any shape goes.
        multiple: sides must be divisible by this.
    """

    @property
    def schedule(self) -> Schedule: ...
    @property
    def value_range(self) -> tuple[float, float] | None: ...
    @property
    def channels(self) -> int | None: ...
    @property
    def multiple(self) -> int: ...

    def __call__(self, x_t: Tensor, t: float) -> Prediction: ...
