"""The result of a restoration: the best estimate, samples of the posterior, and how each of them ended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MISFIT_BOUND = 1.5  # of a restoration that explains its measurement; the noise alone gives 1
QUANTUM = 2 / 255  # of the range of the images: bound of the residual where the measurement has no noise
EXCESS = 0.1  # of the range of the images: bound of what a result is beyond it (root mean square)


@dataclass(frozen=True)
class Status:
    """How one restoration ended.

    Attributes:
        ok: False if it diverged.
        step: the step (from 1) at which it diverged, None if it did not.
        message: what happened, and what to do if it needs attention.
        misfit: ``|y - A x| / (noise_std sqrt m)`` of the result; in units of ``y`` without noise.
        explains: False where the misfit is above `MISFIT_BOUND` though the solver uses the measurement. False, too,
            where the result is beyond the range of images by more than `EXCESS`, as amplified noise is.
    """

    ok: bool
    step: int | None = None
    message: str = "finished"
    misfit: float = 0.0
    explains: bool = True


class RestorationWarning(UserWarning):
    """A restoration does not explain its measurement."""


@dataclass(frozen=True)
class Progress:
    """A step of a run, as a callback sees it.

    Attributes:
        step, steps: number of the step, from 1.
        sample: index of the first sample in this batch; -1 for the estimate.
        x_hat: the estimate so far, shape (N, C, H, W), in ``value_range``: N samples of one image, or one sample of N
            images.
        misfit: ``|y - A x_hat| / (noise_std sqrt m)``, shape (N,).
    """

    step: int
    steps: int
    sample: int
    x_hat: Tensor
    misfit: Tensor


@dataclass(frozen=True)
class Restoration:
    """The best estimate and samples of the posterior.

    Attributes:
        estimate: shape (B, C, H, W), in ``value_range``, not clipped: the result of a point estimator such as `DPIR`,
            or the mean of the samples.
        samples: shape (B, K, C, H, W), likewise; K may be 0. A diverged sample is its last finite estimate.
        status: ``status[b][k]`` of the samples.
        estimate_status: of the estimates; where they are the mean of samples, that of the worst sample.
        stats: per step of the samples, shape (steps, B, K). ``misfit`` is in units of sigma. ``guidance`` and ``cmi``
            are norms of the moves, in the prior's units. ``residual`` is that of the linear solves (relative).
    """

    estimate: Tensor
    samples: Tensor
    status: list[list[Status]]
    estimate_status: list[Status]
    stats: dict[str, Tensor]

    @property
    def ok(self) -> Tensor:
        """Which samples finished, shape (B, K)."""
        flags = [[status.ok for status in row] for row in self.status]
        return torch.tensor(flags, dtype=torch.bool, device=self.samples.device).reshape(self.samples.shape[:2])

    @property
    def mean(self) -> Tensor:
        """Mean of the samples that finished, shape (B, C, H, W); NaN where none did.

        With K independent samples its expected squared error is ``1 + 1/K`` times that of the posterior mean.
        """
        weight = self._weight()
        return (self.samples * weight).sum(1) / weight.sum(1)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples that finished (0 for a single one), shape (B, C, H, W); NaN where none
        did."""
        weight = self._weight()
        squares = ((self.samples - self.mean[:, None]) ** 2 * weight).sum(1)
        count = weight.sum(1)
        return torch.where(count > 0, (squares / (count - 1).clamp_min(1.0)).sqrt(), torch.nan)

    def _weight(self) -> Tensor:
        if self.samples.shape[1] == 0:
            raise ValueError("no samples were drawn: call restore with samples=K, or take restoration.estimate")
        return self.ok.to(self.samples).reshape(*self.ok.shape, *[1] * (self.samples.ndim - 2))
