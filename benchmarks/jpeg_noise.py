"""Which noise is found in a JPEG file, and what the defaults of ``cmidiff restore`` make of it.

White noise is added to photographs, they are saved as JPEG (Pillow, chroma halved), and `estimate_jpeg_noise` and
`estimate_noise` look for it. With ``--restored`` the photograph is restored as its noise or its compression asks.
Prints one line for each file, then a table: median and range over the photographs.

    python benchmarks/jpeg_noise.py IMAGES --names kodak --restored
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeAlias

import torch
import typer
from torch import Tensor

from cmidiff import load_prior
from cmidiff.app.compressed import sigma_denoiser
from cmidiff.app.photograph import read_problem
from cmidiff.app.problem import Problem
from cmidiff.images import to_pil
from cmidiff.metrics import psnr
from cmidiff.physics import estimate_jpeg_noise, estimate_noise, read_tables, restore_jpeg
from cmidiff.sources import list_sources, read_source

Denoise: TypeAlias = Callable[[Tensor, float], Tensor]
COLUMNS = ("before compression", "in the pixels", "file, dB", "gain of restore, dB", "repaired as JPEG")


def run(
    images: Annotated[Path, typer.Argument(help="Folder or archive of images.")],
    names: Annotated[str, typer.Option(help="Parts of the names of the images to take; empty: all.")] = "",
    qualities: Annotated[str, typer.Option(help="Of the JPEG files.")] = "50,75,85,90,95",
    noises: Annotated[str, typer.Option(help="Of 255.")] = "0,5,10,20",
    size: Annotated[int, typer.Option(help="Side of the middle squares, in pixels.")] = 256,
    restored: Annotated[bool, typer.Option(help="Restore the files, too.")] = False,
) -> None:
    """Print the estimates and the gains of each file, and their table."""
    chosen = [one for one in list_sources(images) if any(name in str(one) for name in names.split(","))]
    prior = load_prior("photo") if restored else None
    rows = []
    with TemporaryDirectory() as folder:
        for noise in map(float, noises.split(",")):
            for quality in map(int, qualities.split(",")):
                measured = []
                for one in chosen:
                    x = read_source(one)
                    top, left = ((n - size) // 2 for n in x.shape[1:])
                    x = x[:, top : top + size, left : left + size]
                    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                    file = Path(folder, "photo.jpg")
                    to_pil(x + noise / 255 * z).save(file, "JPEG", quality=quality)
                    measured.append(measure(file, x, sigma_denoiser(prior, None) if prior else None))
                    shown = ", ".join(f"{value:.2f}" for value in measured[-1])
                    print(f"noise {noise:g}, quality {quality}, {Path(str(one)).stem}: {shown}", flush=True)
                rows.append((noise, quality, list(zip(*measured, strict=True))))
    head = ["noise", "quality", *COLUMNS[: len(rows[0][2])]]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for noise, quality, columns in rows:
        cells = [f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns[:2]]
        cells += [f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns[2:4]]
        cells += [f"{sum(c):.0f} of {len(c)}" for c in columns[4:]]
        print(f"| {noise:g} | {quality} | " + " | ".join(cells) + " |")


def measure(file: Path, x: Tensor, denoise: Denoise | None) -> tuple[float, ...]:
    """Return `COLUMNS` of a file, the last three with a denoiser."""
    problem, tables = read_problem(file), read_tables(file)
    assert tables is not None, "it is a JPEG"
    y = problem.y[0]
    found = (255 * estimate_jpeg_noise(y, tables), 255 * float(estimate_noise(y)))
    if denoise is None:
        return found
    before, after = (float(psnr(image, x[None])) for image in (problem.y, restore(problem, denoise)))
    return (*found, before, after - before, float(problem.tables is not None))


@torch.no_grad()
def restore(problem: Problem, denoise: Denoise) -> Tensor:
    """Restore as the command line does: white noise by one call of the denoiser."""
    if problem.tables is not None:
        return restore_jpeg(problem.y, denoise, problem.tables, level=problem.noise_std)
    return denoise(problem.y, problem.noise_std).clamp(0, 1)


if __name__ == "__main__":
    typer.run(run)
