"""Repair of JPEG artefacts with a prior: what `cmidiff restore --task jpeg` computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.app.problem import Problem
from cmidiff.physics import restore_jpeg
from cmidiff.physics.jpeg import LEVELS
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import fitted


@torch.no_grad()
def repair(
    problem: Problem,
    prior: Denoiser,
    device: str,
    tile: int | Literal["auto"] | None,
    show: Callable[[float, str, float], None],
) -> tuple[Tensor, Tensor]:
    """Restore a compressed photograph.

    Args:
        problem: with the tables of its compression.
        prior: on ``device``.
        tile: as `cmidiff.restore` takes it.
        show: is told which fraction is done, what is being done, and the misfit.

    Returns:
        (C, H, W) in [0, 1], and after each call of the denoiser the root mean square of what was changed, in units of
        the strength of the artefacts.
    """
    assert problem.tables is not None, "the task is jpeg"
    denoiser, y, misfits = SigmaDenoiser(prior, tile), problem.y.to(device), []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        found = denoiser(x, sigma)
        misfits.append((found - y).square().mean().sqrt().cpu() / problem.noise_std)
        show(len(misfits) / len(LEVELS), f"estimate, step {len(misfits)}/{len(LEVELS)}", float(misfits[-1]))
        return found

    x = restore_jpeg(y, denoise, problem.tables, level=problem.noise_std)
    misfits.append((x - y).square().mean().sqrt().cpu() / problem.noise_std)
    return x[0].cpu(), torch.stack(misfits)


class SigmaDenoiser:
    """A prior as a denoiser ``D(x, sigma)`` of images in [0, 1].

    Args:
        prior: for images in any range.
        tile: as `cmidiff.restore` takes it.
    """

    def __init__(self, prior: Denoiser, tile: int | Literal["auto"] | None) -> None:
        self.prior = prior
        self.tile: int | Literal["auto"] | None = tile

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean images, shape (B, 1 or 3, H, W)."""
        low, high = self.prior.value_range or (0.0, 1.0)
        channels, height, width = x.shape[1:]
        whole = x.expand(-1, self.prior.channels or channels, -1, -1)
        down, right = (-n % self.prior.multiple for n in (height, width))
        whole = pad(whole, (0, right, 0, down), mode="replicate")
        schedule = self.prior.schedule
        t = schedule.time(max(sigma * (high - low), self.prior.min_ratio))
        alpha, _ = schedule(t)
        clean = fitted(self.prior, tuple(whole.shape[1:]), self.tile)(alpha * (low + (high - low) * whole), t).mean
        clean = (clean[..., :height, :width] - low) / (high - low)
        return clean if clean.shape[1] == channels else clean.mean(1, keepdim=True)
