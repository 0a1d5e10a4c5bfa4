"""Images of a run: the loss curve, denoised images by noise level, and samples."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from cmidiff.train.noise import kernel, time_of
from cmidiff.train.validate import clean, draw


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


def draw_examples(network: nn.Module, held_out: Tensor, folder: Path) -> None:
    """Write ``denoised.png`` (truth, then noisy and denoised by level) and ``samples.png`` of the current average."""
    truth = held_out[:8]
    rows = [truth]
    for ratio in (0.2, 1.0, 5.0):
        rows.extend(_example(network, truth, ratio))
    _tile(torch.stack(rows), folder / "denoised.png")
    _tile(draw(network, 16, truth.shape[-1], steps=100).unflatten(0, (2, 8)), folder / "samples.png")


@torch.no_grad()
def _example(network: nn.Module, x_0: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    t = time_of(torch.full((len(x_0),), ratio))
    alpha_t, sigma_t = (k.float()[:, None, None, None] for k in kernel(t))
    x_t = alpha_t * x_0 + sigma_t * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    return x_t / alpha_t, clean(network, x_t, t)


def _tile(rows: Tensor, path: Path) -> None:
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte()
    image = Image.fromarray(pixels.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy())
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)
