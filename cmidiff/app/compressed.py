"""Repair of JPEG artefacts with a prior: what the task ``jpeg`` computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.app.problem import Problem
from cmidiff.app.settings import Settings
from cmidiff.physics import restore_jpeg
from cmidiff.physics.jpeg import LEVELS
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import fitted

if TYPE_CHECKING:
    from cmidiff.app.run import Watch


@torch.no_grad()
def restore_compressed(problem: Problem, prior: Denoiser, settings: Settings, watch: Watch) -> tuple[Tensor, Tensor]:
    """Restore a compressed photograph, (C, H, W) in [0, 1]. Also return the root mean square of the changes after
    each call of the denoiser, in units of the strength of the artefacts."""
    assert problem.tables is not None, "the task is jpeg"
    y, misfits = problem.y.to(settings.device), list[Tensor]()
    remove_noise = sigma_denoiser(prior, settings.tile)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        found = remove_noise(x, sigma)
        misfits.append((found - y).square().mean().sqrt().cpu() / problem.noise_std)
        step = len(misfits)
        watch(step / len(LEVELS), f"estimate, step {step}/{len(LEVELS)}", float(misfits[-1]), found[0])
        return found

    x = restore_jpeg(y, denoise, problem.tables, level=problem.noise_std)
    misfits.append((x - y).square().mean().sqrt().cpu() / problem.noise_std)
    return x[0].cpu(), torch.stack(misfits)


def sigma_denoiser(prior: Denoiser, tile: int | Literal["auto"] | None) -> Callable[[Tensor, float], Tensor]:
    """Return a prior as a denoiser ``D(x, sigma)`` of images (B, 1 or 3, H, W) in [0, 1]."""
    low, high = prior.value_range or (0.0, 1.0)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        channels, height, width = x.shape[1:]
        whole = x.expand(-1, prior.channels or channels, -1, -1)
        down, right = (-n % prior.multiple for n in (height, width))
        whole = pad(whole, (0, right, 0, down), mode="replicate")
        t = prior.schedule.time(max(sigma * (high - low), prior.min_ratio))
        alpha, _ = prior.schedule(t)
        network = fitted(prior, tuple(whole.shape[1:]), tile)
        clean = (network(alpha * (low + (high - low) * whole), t).mean[..., :height, :width] - low) / (high - low)
        return clean if clean.shape[1] == channels else clean.mean(1, keepdim=True)

    return denoise
