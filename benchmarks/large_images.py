"""Images larger than the prior was trained for: as a whole or in tiles? Quality, time, memory and seams.

Each setting runs in a process of its own, so that the peak of its memory is its own: the resident set of the whole
process. Time is that of the processor, for one image. The images are the archive's in sorted order, evenly spaced,
scaled so that the short side is at least ``--side`` (never shrunk) and cropped at the centre; image i has seed i for
its mask, noise and sampler.

A seam is a jump across the border of a tile. For each line of pixels where a tile begins or ends, the mean absolute
difference to the line before is compared with the same for the lines 8, 16 and 24 pixels away that are no borders: the
same phase of the network's own grid of 2, 4 and 8 pixels. ``seam`` is the mean ratio, less one, in per cent, and ``z``
that over its standard error. The truth has such a ``z`` too: chance alone.

    python benchmarks/large_images.py --data bsds/test.tar --side 256 --tile 0,64,96,128
    python benchmarks/large_images.py --data bsds/test.tar --side 512 --tile 128 --overlap 32 --count 1
"""

import math
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from cmidiff import CADPS, DPS, PiGDM, load_prior, measure, restore
from cmidiff.images import to_pil, write_image
from cmidiff.metrics import psnr, ssim
from cmidiff.physics import inpaint_box, inpaint_random, super_resolution
from cmidiff.prior.tiles import Tiled, starts
from cmidiff.solvers import Solver
from cmidiff.sources import list_sources, read_source

NOISE_STD = 0.05
SOLVERS: dict[str, Solver] = {"dps": DPS(), "pigdm": PiGDM(), "cadps": CADPS()}
TASKS = {
    "super-resolution": lambda shape, seed: super_resolution(shape, factor=4, noise_std=NOISE_STD),
    "inpaint-random": lambda shape, seed: inpaint_random(shape, hidden=0.9, noise_std=NOISE_STD, seed=seed),
    "inpaint-box": lambda shape, seed: inpaint_box(shape, size=shape[1] // 8, noise_std=NOISE_STD, seed=seed),
}


@dataclass(frozen=True)
class Setting:
    """One row of the result: ``tile`` 0 is the image as a whole."""

    task: str
    solver: str
    tile: int
    overlap: int
    steps: int


@dataclass(frozen=True)
class Result:
    """Of each image, PSNR in dB and SSIM; seconds for all, GiB at most; seams of the restoration and the truth."""

    psnr: list[float]
    ssim: list[float]
    seconds: float
    gib: float
    seam: tuple[float, float]
    seam_of_truth: tuple[float, float]


def read_images(archive: Path, count: int, side: int) -> Tensor:
    """(count, 3, side, side) in [0, 1]."""
    found = list_sources(archive)
    return torch.stack([_square(read_source(one), side) for one in found[:: max(1, len(found) // count)][:count]])


def _square(values: Tensor, side: int) -> Tensor:
    image = to_pil(values)
    scale = max(1.0, side / min(image.size))
    size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    cut = image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255).permute(2, 0, 1)


def seam(x: Tensor, lines: list[int]) -> tuple[float, float]:
    """Mean excess of the jump across ``lines``, rows and columns, as a fraction, and that over its standard error."""
    ratios = []
    for along in (x, x.mT):
        jump = along.diff(dim=-1).abs().mean((1, 2))  # entry c - 1: from column c - 1 to c
        for image in jump:
            for c in lines:
                near = [c + k for k in (-24, -16, -8, 8, 16, 24) if 0 < c + k <= len(image) and c + k not in lines]
                ratios.append(float(image[c - 1] / image[[k - 1 for k in near]].mean()) - 1)
    values = torch.tensor(ratios)
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    return mean, mean / error


def run(setting: Setting, truth: Tensor, save: Path | None) -> Result:
    """Restore each image alone."""
    network = load_prior("natural-64")
    prior = Tiled(network, setting.tile, setting.overlap) if setting.tile else network
    before, restored = time.process_time(), []
    for i, x in enumerate(truth):
        physics = TASKS[setting.task](tuple(x.shape), i)
        y = measure(x[None], physics, seed=i)
        solver = SOLVERS[setting.solver]
        restored.append(restore(y, physics, prior, solver=solver, steps=setting.steps, seed=i, tile=None).mean)
        if save is not None:
            for name, image in (("truth", x), ("restored", restored[-1][0]), ("measured", y[0])):
                write_image(save / f"{setting.task}-{setting.solver}-{setting.tile}-{i}-{name}.png", image)
    x_hat, seconds = torch.cat(restored).clamp(0, 1), time.process_time() - before
    side, tile = truth.shape[-1], setting.tile or 64
    begins = starts(side, tile, setting.overlap, network.multiple)
    lines = sorted({*begins[1:], *(b + tile for b in begins[:-1])})
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Result(
        psnr(x_hat, truth).tolist(), ssim(x_hat, truth).tolist(), seconds, gib, seam(x_hat, lines), seam(truth, lines)
    )


def paired(ours: list[float], theirs: list[float]) -> str:
    gaps = torch.tensor(ours) - torch.tensor(theirs)
    if len(gaps) < 2:
        return f"{float(gaps.mean()):+.2f}"
    return f"{float(gaps.mean()):+.2f} ± {float(gaps.std()) / math.sqrt(len(gaps)):.2f}"


def main(
    data: Annotated[Path, typer.Option(help="A tar archive of photographs.")],
    side: Annotated[int, typer.Option(help="Side of the images.")] = 256,
    tile: Annotated[str, typer.Option(help="Sides of the tiles, 0 for none.")] = "0,64",
    overlap: Annotated[int, typer.Option(help="What neighbouring tiles share.")] = 16,
    task: Annotated[str, typer.Option(help=f"Of {', '.join(TASKS)}.")] = "super-resolution,inpaint-random",
    solver: Annotated[str, typer.Option(help=f"Of {', '.join(SOLVERS)}.")] = "pigdm",
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 20,
    count: Annotated[int, typer.Option(help="Images.")] = 4,
    save: Annotated[Path | None, typer.Option(help="Folder for the images.")] = None,
) -> None:
    """Print a table in Markdown; gaps are paired, to the first tile."""
    truth = read_images(data, count, side)
    print("| side | task | solver | tile | PSNR | gap | SSIM | CPU s/step | GiB | seam % (z) | of the truth |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in task.split(","):
        for way in solver.split(","):
            first: Result | None = None
            for t in tile.split(","):
                setting = Setting(name, way, int(t), overlap, steps)
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    result = pool.submit(run, setting, truth, save).result()
                first = first or result
                print(
                    f"| {side} | {name} | {way} | {t} | {np.mean(result.psnr):.2f} | {paired(result.psnr, first.psnr)} "
                    f"| {np.mean(result.ssim):.3f} | {result.seconds / steps / count:.2f} | {result.gib:.2f} "
                    f"| {100 * result.seam[0]:+.1f} ({result.seam[1]:+.1f}) "
                    f"| {100 * result.seam_of_truth[0]:+.1f} ({result.seam_of_truth[1]:+.1f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
