"""A guidance is one method: from a step to the next state, pulled towards the measurement.

``needs_graph`` says whether it differentiates the denoiser (then ``step.x_hat`` carries the graph from ``step.x_t``).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from cmidiff.krylov import dot, per_sample
from cmidiff.step import Step


@runtime_checkable
class Guidance(Protocol):
    """How ``y`` pulls on the next state. State comes in with the step and goes out as ``x_s``; nothing is kept between
    steps."""

    @property
    def needs_graph(self) -> bool: ...

    def __call__(self, step: Step) -> Tensor:
        """``x_s``, shape of ``step.x_t``."""
        ...


def misfit_gradient(step: Step, *, through_clip: bool = False) -> Tensor:
    """``grad |y - A x_hat(x_t)|``, the norm of each image alone, shape of ``x_t``; zero where the residual is zero. It
    is the step's last product (see `Step.vjp`).

    Args:
        through_clip: evaluate and differentiate the clipped ``x_hat``, whose clipped pixels pass no gradient (the
            official codes), instead of the mean.
    """
    x_hat = step.clipped(step.x_hat) if through_clip else step.x_hat
    residual = step.measurement.residual(x_hat.detach())
    norm = dot(residual, residual).sqrt()
    pulled = step.measurement.pull(x_hat.detach(), residual)
    return -step.vjp(pulled / per_sample(norm.where(norm > 0, 1.0), pulled), of=x_hat, last=True)


def checked_positive(solver: str, **values: float) -> None:
    """Raise ``ValueError`` for a negative or non-finite strength."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{solver}: {name} must be a number >= 0, received {value!r}")


def checked_variance(solver: str, data_variance: float) -> None:
    """Raise ``ValueError`` for a prior variance that is not positive and finite."""
    if not 0 < data_variance < float("inf"):
        raise ValueError(
            f"{solver}: data_variance must be a number > 0, received {data_variance!r}: "
            "take the variance of the prior's images, 1 in the paper"
        )
