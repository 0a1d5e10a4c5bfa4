"""How good a denoiser is: its error by noise level on images never trained on, and what it draws unconditionally."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmidiff.train.noise import kernel, time_of

RATIOS = (0.02, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


class LevelLoss(NamedTuple):
    """Denoising error at one noise level.

    Attributes:
        ratio: ``sigma_t / alpha_t``, in units of an image in [-1, 1].
        mse: mean squared error of ``x_hat``, in the same units squared.
        psnr: of ``x_hat``, mean over the images, in dB for a range of 2.
        noisy_psnr: of ``x_t / alpha_t``, the trivial estimate, in dB.
        v_loss: the training loss at this level, ``mse / sigma_t^2``.
    """

    ratio: float
    mse: float
    psnr: float
    noisy_psnr: float
    v_loss: float


def clean(network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """``x_hat = alpha_t x_t - sigma_t v``, shape (B, 3, H, W), of real ``t``, shape (B,)."""
    alpha_t, sigma_t = (k.to(x_t.dtype)[:, None, None, None] for k in kernel(t))
    device = next(network.parameters(), x_t).device
    return alpha_t * x_t - sigma_t * network(x_t.to(device), t.to(device, x_t.dtype)).to(x_t.device)


@torch.no_grad()
def denoising(network: nn.Module, x_0: Tensor, ratios: tuple[float, ...] = RATIOS, batch: int = 32) -> list[LevelLoss]:
    """Denoising error on images ``x_0``, (B, 3, H, W) in [-1, 1], with noise that depends on the level alone."""
    return [_at_level(network, x_0, ratio, i, batch) for i, ratio in enumerate(ratios)]


def _at_level(network: nn.Module, x_0: Tensor, ratio: float, seed: int, batch: int) -> LevelLoss:
    t = time_of(torch.full((len(x_0),), ratio))
    alpha_t, sigma_t = (k.float()[:, None, None, None] for k in kernel(t))
    x_t = alpha_t * x_0 + sigma_t * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    x_hat = torch.cat([clean(network, x, s) for x, s in zip(x_t.split(batch), t.split(batch), strict=True)])
    errors = (x_hat - x_0).square().flatten(1).mean(1).double()
    noisy = (x_t / alpha_t - x_0).square().flatten(1).mean(1).double()
    sigma2 = float(sigma_t[0].double().square())
    return LevelLoss(ratio, float(errors.mean()), _psnr(errors), _psnr(noisy), float(errors.mean()) / sigma2)


def _psnr(errors: Tensor) -> float:
    return float((10 * torch.log10(4 / errors)).mean())


@torch.no_grad()
def draw(network: nn.Module, count: int, size: int, steps: int = 100, seed: int = 0) -> Tensor:
    """Unconditional samples by DDIM, (count, 3, size, size) in [-1, 1].

    Song et al. 2021, Denoising diffusion implicit models, https://arxiv.org/abs/2010.02502.
    """
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    times = torch.linspace(999, 0, steps, dtype=torch.float64)
    for t, s in zip(times, [*times[1:], None], strict=True):
        x_hat = clean(network, x, t.expand(count)).clamp(-1, 1)
        alpha_t, sigma_t = (float(k) for k in kernel(t[None]))
        alpha_s, sigma_s = (1.0, 0.0) if s is None else (float(k) for k in kernel(s[None]))
        x = alpha_s * x_hat + sigma_s * (x - alpha_t * x_hat) / sigma_t
    return x.clamp(-1, 1)
