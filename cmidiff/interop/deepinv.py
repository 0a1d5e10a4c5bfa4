"""Restoration as a reconstruction model of deepinv: ``model(y, physics)`` works in `deepinv.test` and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from deepinv import models
from deepinv.physics import Physics
from torch import Tensor

from cmidiff.information import CMI
from cmidiff.prior import load_prior
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.solvers import Solver
from cmidiff.step import Sampler


class Reconstructor(models.Reconstructor):
    """Restore images inside deepinv.

    The result carries no gradient: a posterior sampler cannot be trained by backpropagation.

    Args:
        prior: a prior or its name for `load_prior`.
        solver: a solver or its name; None gives the best estimate (see `cmidiff.restore`).
        cmi: the CMI correction of the samples.
        sampler: the reverse process of the samples; ancestral by default.
        steps: sampling steps; by default those of the solver.
        samples: with a solver, the samples whose mean is returned; 1 by default.
        noise_std: noise level of ``y``; by default that of ``physics.noise_model``.
        seed: of all random numbers.
        value_range: range of the images; None for images in the prior's own units.
        tile: side of the tiles in which the prior sees an image (see `cmidiff.restore`).
        device: where the prior runs.

    Shapes:
        ``y`` (B, ...) as the physics measures it; the result has the shape of the images, (B, C, H, W).

    Raises:
        ValueError, TypeError: on call, as `cmidiff.restore`.
    """

    def __init__(
        self,
        prior: Denoiser | str = "photo",
        solver: Solver | str | None = None,
        *,
        cmi: CMI | bool | None = None,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        samples: int | None = None,
        noise_std: float | None = None,
        seed: int = 0,
        value_range: tuple[float, float] | None = (0.0, 1.0),
        tile: int | Literal["auto"] | None = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        torch.nn.Module.__init__(self)  # deepinv's own moves the module before it has a prior
        self.prior = load_prior(prior) if isinstance(prior, str) else prior
        self.options: dict[str, Any] = {
            "solver": solver,
            "cmi": cmi,
            "noise_std": noise_std,
            "sampler": sampler,
            "steps": steps,
            "samples": samples,
            "seed": seed,
            "value_range": value_range,
            "tile": tile,
        }
        self.to(device)

    def forward(self, y: Tensor, physics: Physics) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the estimate for ``y``: that of the point estimator, or the mean of the samples."""
        return restore(y, physics, self.prior, **self.options).estimate

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the prior with the module, also a prior that is not a module itself."""
        if not isinstance(self.prior, torch.nn.Module):
            self.prior = self.prior.to(fn(torch.zeros(0)).device)
        return super()._apply(fn, recurse)
