"""How good a denoiser is: its error by noise level on images never trained on, and images that show it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from cmidiff.train.loss import kernel, kernel_like, time_of

RATIOS = (0.02, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
SHOWN = 8  # images in a row of the examples


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
    alpha_t, sigma_t = kernel_like(t, x_t)
    device = next(network.parameters(), x_t).device
    return alpha_t * x_t - sigma_t * network(x_t.to(device), t.to(device, x_t.dtype)).to(x_t.device)


@torch.no_grad()
def denoising(network: nn.Module, x_0: Tensor, ratios: tuple[float, ...] = RATIOS, batch: int = 32) -> list[LevelLoss]:
    """Measure the denoising error on images ``x_0``, (B, 3, H, W) in [-1, 1], with noise that depends on the level
    alone."""

    def psnr(errors: Tensor) -> float:
        return float((10 * torch.log10(4 / errors)).mean())

    levels = []
    for seed, ratio in enumerate(ratios):
        t, x_t, noisy = _add_noise(x_0, ratio, seed)
        x_hat = torch.cat([clean(network, x, s) for x, s in zip(x_t.split(batch), t.split(batch), strict=True)])
        errors, trivial = ((x - x_0).square().flatten(1).mean(1).double() for x in (x_hat, noisy))
        mse, sigma2 = float(errors.mean()), float(kernel(t[:1])[1]) ** 2
        levels.append(LevelLoss(ratio, mse, psnr(errors), psnr(trivial), mse / sigma2))
    return levels


def _add_noise(x_0: Tensor, ratio: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``t``, ``x_t`` and ``x_t / alpha_t``."""
    t = time_of(torch.full((len(x_0),), ratio))
    alpha_t, sigma_t = kernel_like(t, x_0)
    x_t = alpha_t * x_0 + sigma_t * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    return t, x_t, x_t / alpha_t


@torch.no_grad()
def draw(network: nn.Module, count: int, size: int, steps: int = 100, seed: int = 0) -> Tensor:
    """Draw unconditional samples by DDIM, (count, 3, size, size) in [-1, 1].

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


def draw_curve(folder: Path) -> None:
    """Draw ``loss.png`` from ``loss.csv`` of a run's folder."""
    from matplotlib.figure import Figure

    if not (path := folder / "loss.csv").is_file():
        return
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], linewidth=0.8)
    axes.set(xlabel="step", ylabel="training loss (v, mean square)", yscale="log", title="Training")
    figure.savefig(folder / "loss.png", dpi=120)


@torch.no_grad()
def draw_examples(network: nn.Module, held_out: Tensor, folder: Path) -> None:
    """Write ``denoised.png`` (truth, then noisy and denoised by level) and ``samples.png`` of the current average."""
    rows = [held_out[:SHOWN]]
    for ratio in (0.2, 1.0, 5.0):
        t, x_t, noisy = _add_noise(rows[0], ratio, seed=1)
        rows += [noisy, clean(network, x_t, t)]
    samples = draw(network, 2 * SHOWN, held_out.shape[-1])
    for name, images in (("denoised", torch.cat(rows)), ("samples", samples)):
        columns = len(rows[0]) if name == "denoised" else SHOWN
        save_image(images, folder / f"{name}.png", nrow=columns, padding=0, normalize=True, value_range=(-1, 1))
