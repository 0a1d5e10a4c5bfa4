"""How well the noise level and the blur width of a photograph are estimated, and what the border of a blur is worth.

Noise: white noise is added to every image; 8-bit images are rounded and cut off at 0 and 1. Blur: the images are
blurred by a Gaussian, their surroundings are cut off, and noise of known level is added. Border: a blurred frame of
96x96 of the first six images is restored by `DPIR` with eight levels under each model of what lies beyond it.

    python benchmarks/estimates.py FOLDER --kind kodak            # of images of 256x256, or a tar archive
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from cmidiff import load_prior, restore
from cmidiff.metrics import psnr
from cmidiff.physics import (
    ValidBlur,
    canvas_shape,
    estimate_blur_width,
    estimate_noise,
    from_kernel,
    measure,
    parse_kernel,
)
from cmidiff.result import RestorationWarning
from cmidiff.sources import list_sources, read_source

LEVELS = (0, 2, 5, 10, 15, 25, 50)  # of 255
WIDTHS = (0.8, 1.5, 2.5, 4.0)  # pixels
NOISES = (0.002, 0.01, 0.02)
KERNELS = ("gaussian:1.5", "gaussian:3", "motion:15,30")
BORDERS = ("circular", "reflect", "replicate", "valid")
FRAME = 96  # pixels


def main(
    images: Annotated[Path, typer.Argument(help="A folder or tar archive of images.")],
    size: Annotated[int, typer.Option(help="Side of the square that is taken of each, pixels.")] = 256,
    limit: Annotated[int, typer.Option(help="How many images.")] = 12,
    kind: Annotated[str, typer.Option(help="Beginning of the names of the images.")] = "",
) -> None:
    """Print the three tables."""
    sources = [source for source in list_sources(images) if Path(source.name).name.startswith(kind)]
    batch = torch.stack([read_source(source, size) for source in sources[:limit]]).double()
    print_noise(batch)
    print_widths(batch)
    print_borders(batch)


def print_noise(batch: Tensor) -> None:
    """Errors of the noise level of images (N, 3, H, W) in [0, 1]."""
    print("noise of 255 | 8 bits: bias, RMS error | not cut off: bias, RMS error | median of wavelets, 8 bits")
    for level in LEVELS:
        noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(level), dtype=batch.dtype)
        y = batch + level / 255 * noise
        stored = (255 * y).round().clamp(0, 255) / 255
        print(level, *(_error(255 * s - level) for s in (estimate_noise(stored), estimate_noise(y), wavelets(stored))))


def print_widths(batch: Tensor) -> None:
    """Errors of the width of a blur."""
    size = batch.shape[2]
    print("blur width | noise | median, 90% quantile of the relative error | bias")
    for width in WIDTHS:
        kernel = parse_kernel(f"gaussian:{width}")
        border = canvas_shape(kernel, batch.shape[1:])[1] - batch.shape[2]
        photograph = (3, size - border, size - border)
        for noise_std in NOISES:
            blur = from_kernel(
                kernel,
                canvas_shape(kernel, photograph),
                padding="valid",
                noise_std=noise_std,
                dtype=batch.dtype,
            )
            y = measure(batch, blur, seed=range(len(batch)))
            error = estimate_blur_width(y, noise_std) / width - 1
            median, most = error.abs().quantile(torch.tensor([0.5, 0.9], dtype=error.dtype)).tolist()
            print(f"{width} {noise_std} {median:.2f} {most:.2f} {float(error.mean()):+.2f}")


def print_borders(batch: Tensor) -> None:
    """PSNR of deblurred frames by the model of their border."""
    print("kernel | PSNR of the blurred frame and by border, dB")
    prior, middle = load_prior("photo"), (batch.shape[2] - FRAME) // 2
    warnings.simplefilter("ignore", RestorationWarning)  # a wrong border does not explain the measurement
    for name in KERNELS:
        kernel, found = parse_kernel(name), dict.fromkeys(("blurred", *BORDERS), 0.0)
        outer = canvas_shape(kernel, (3, FRAME, FRAME))
        reach = [(side - FRAME) // 2 for side in outer[1:]]
        for i, image in enumerate(batch[:6].float()):
            top, left = middle - reach[0], middle - reach[1]
            scene = image[None, :, top : top + outer[1], left : left + outer[2]]
            y = measure(scene, from_kernel(kernel, outer, padding="valid", noise_std=0.01), seed=i)
            truth = image[None, :, middle : middle + FRAME, middle : middle + FRAME]
            found["blurred"] += float(psnr(y.clamp(0, 1), truth)) / 6
            for border in BORDERS:
                shape = outer if border == "valid" else (3, FRAME, FRAME)
                physics = from_kernel(kernel, shape, padding=border, noise_std=0.01)
                estimate = restore(y, physics, prior, solver="dpir", steps=8).estimate
                shown = physics.crop(estimate) if isinstance(physics, ValidBlur) else estimate
                found[border] += float(psnr(shown.clamp(0, 1), truth)) / 6
        print(name, *(f"{border} {value:.2f}" for border, value in found.items()))


def _error(error: Tensor) -> str:
    return f"{float(error.mean()):+.2f} {float(error.square().mean().sqrt()):.2f}"


def wavelets(x: Tensor) -> Tensor:
    """The usual estimate: the median of the finest diagonal Haar coefficients over 0.6745."""
    diagonal = x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]
    return (diagonal / 2).abs().flatten(1).median(1).values / 0.6745


if __name__ == "__main__":
    typer.run(main)
