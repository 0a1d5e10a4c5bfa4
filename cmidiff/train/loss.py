"""The loss: the noise of a batch, the target and its teacher.

The grid is DDPM's (Ho et al. 2020, https://arxiv.org/abs/2006.11239): 1000 linear betas from 1e-4 to 0.02. Between
integers, ``log abar`` is linear.

At low noise, FFDNet's output replaces the clean image as the target. The target of denoising is the posterior mean plus
an error that no network can predict. At low noise a good denoiser is nearer to the posterior mean than the clean image
is. Gradients of a small batch are then less noisy. Zhang, Zuo, Zhang 2018, FFDNet, https://arxiv.org/abs/1710.04026.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from cmidiff.prior.formats.ffdnet import FFDNet, load_ffdnet
from cmidiff.prior.formats.weights import read_tensors

STEPS = 1000
MIN_SIGMA = 6 / 255  # of images in [0, 1]; below, FFDNet denoises thumbnails worse than version 1 of natural-64
MAX_SIGMA = 75 / 255  # the largest noise that the weights were trained on
Network = Callable[[Tensor, Tensor], Tensor]
"""``(x_t, t) -> v``, or the teacher's ``(x, sigma) -> x``."""


def log_alpha_bar() -> Tensor:
    """``log abar_t`` at t = 0, ..., 999: shape (1000,), float64."""
    return torch.log1p(-torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)).cumsum(0)


def kernel(t: Tensor) -> tuple[Tensor, Tensor]:
    """``(alpha_t, sigma_t)`` at real ``t`` in [0, 999], shape (B,); float64 of the same shape."""
    table = log_alpha_bar()
    low = t.double().floor().clamp(0, STEPS - 2).long()
    log_abar = torch.lerp(table[low], table[low + 1], t.double() - low)
    return torch.exp(log_abar / 2), torch.sqrt(-torch.expm1(log_abar))


def kernel_like(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`kernel` as factors of images ``x``, shape (B, 1, 1, 1)."""
    alpha_t, sigma_t = (k.to(x)[:, None, None, None] for k in kernel(t))
    return alpha_t, sigma_t


def time_of(ratio: Tensor) -> Tensor:
    """Return the real ``t``, held to [0, 999], at which ``sigma_t / alpha_t`` is ``ratio``: float64 (B,) of (B,)."""
    table = -log_alpha_bar()
    wanted = torch.log1p(ratio.double() ** 2)
    low = (torch.searchsorted(table, wanted) - 1).clamp(0, STEPS - 2)
    return (low + (wanted - table[low]) / (table[low + 1] - table[low])).clamp(0, STEPS - 1)


def draw_times(batch: int, uniform_share: float, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Draw the times of one batch, stratified: shape (batch,), float64 in [0, 999].

    A share is uniform in ``t``; for the others ``log(sigma_t/alpha_t)`` is normal, as in Karras et al. 2022,
    https://arxiv.org/abs/2206.00364.
    """
    uniform = round(uniform_share * batch)
    u = torch.cat([_draw_strata(uniform, generator), _draw_strata(batch - uniform, generator)])
    normal = torch.special.ndtri(u[uniform:].clamp(1e-6, 1 - 1e-6))
    return torch.cat([u[:uniform] * (STEPS - 1), time_of(torch.exp(mean + std * normal))])


def _draw_strata(count: int, generator: torch.Generator) -> Tensor:
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    return (torch.arange(count) + jitter) / max(count, 1)


def load_teacher(path: Path) -> FFDNet:
    """Return FFDNet with its published weights, ready to evaluate."""
    network = load_ffdnet(read_tensors(path), path)
    network = cast(FFDNet, nn.Module.to(network, memory_format=torch.channels_last))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def teach(teacher: Network, x_0: Tensor, noisy: Tensor, ratio: Tensor) -> Tensor:
    """Return the targets: the output of the teacher ``D(x, sigma)`` for images in [0, 1] between ``MIN_SIGMA`` and
    ``MAX_SIGMA``, elsewhere ``x_0``. ``noisy`` is ``x_t / alpha_t`` and ``ratio`` ``sigma_t / alpha_t``, shape
    (B,)."""
    taught = (ratio >= 2 * MIN_SIGMA) & (ratio <= 2 * MAX_SIGMA)
    if not taught.any():
        return x_0
    target = x_0.clone()
    target[taught] = 2 * teacher((noisy[taught] + 1) / 2, ratio[taught] / 2) - 1
    return target


def v_loss(
    network: Network,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    bfloat16: bool,
    teacher: Network | None = None,
    detail: float = 0.0,
    patch_size: int = 2,
) -> Tensor:
    """Return ``|e|^2 + detail sigma_t^2 |e - mean of e over its block|^2`` with ``e = v_theta(x_t, t) - v``: a scalar.

    The second term does not move the minimum, which is the posterior mean. It raises the price of patterns with the
    period of the pixel-shuffle. They are visible at high noise, although their share of the squared error is small.

    Args:
        network: ``(x_t, t) -> v``.
        x_0: images (B, 3, H, W) in [-1, 1].
        t: real times (B,), on the CPU.
        eps: standard normal noise, the shape of ``x_0``.
        bfloat16: run the network in bfloat16 autocast.
        teacher: its output replaces ``x_0`` in the target where it is the better one.
        detail: weight of the second term.
        patch_size: side of the blocks.
    """
    alpha_t, sigma_t = kernel_like(t, x_0)
    x_t = alpha_t * x_0 + sigma_t * eps
    target = x_0 if teacher is None else teach(teacher, x_0, x_t / alpha_t, (sigma_t / alpha_t).flatten())
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=bfloat16):
        v = network(x_t, t.float().to(x_0.device))
    error = v.float() - (alpha_t * x_t - target) / sigma_t
    loss = error.square().mean()
    if detail:
        within = error - interpolate(avg_pool2d(error, patch_size), scale_factor=float(patch_size))
        loss = loss + detail * (sigma_t * within).square().mean()
    return loss
