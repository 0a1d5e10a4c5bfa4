"""One evaluation of a new prior, to find out whether its function fits its description."""

from __future__ import annotations

import torch

from cmidiff.prior.base import Denoiser


def try_prior(prior: Denoiser, shape: tuple[int, ...]) -> None:
    """Evaluate a prior at the cleanest time of its grid on two signals of zeros, in its precision or in float32.

    Raises:
        ValueError: the prior is for images and the signals are none, or the output has another shape or is not finite.
    """
    if prior.channels is not None and (len(shape) < 2 or shape[0] != prior.channels):
        raise ValueError(
            f"shape {shape} is no image of {prior.channels} channels: pass channels=, or value_range=None, "
            "channels=None for other signals"
        )
    x_t = torch.zeros(2, *shape, dtype=prior.dtype or torch.float32, device=prior.device)
    with torch.no_grad():
        x_hat = prior(x_t, prior.schedule.grid(2)[-1]).mean
    if x_hat.shape != x_t.shape:
        raise ValueError(
            f"{prior.name} answers {tuple(x_t.shape)} with {tuple(x_hat.shape)}: the output must have x_t's shape, or "
            "twice its channels with learned_variance=True"
        )
    if not bool(torch.isfinite(x_hat).all()):
        raise ValueError(f"{prior.name} answers zeros with values that are not finite at its cleanest time")
