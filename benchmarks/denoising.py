"""How well priors denoise: PSNR by noise level, on whole images.

The noise depends on the level and on the image's place in the sorted list alone, so that tables of different priors
compare. The PSNR is that of the posterior mean, clipped to the image range, averaged over the images.

    python benchmarks/denoising.py natural-64 --images IMAGES --pattern "kodak_*" --count 6 \\
        --ffdnet FFDNET.pth
    python benchmarks/denoising.py natural-64 --images tiny-imagenet/val.tar --count 256 \\
        --levels 5,12.75,25.5,63.75,127.5,255 --batch 16
"""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from cmidiff.metrics import psnr
from cmidiff.sources import list_sources, read_source

Denoise = Callable[[Tensor, float], Tensor]


def read_images(where: Path, pattern: str, count: int) -> Tensor:
    """Return the first images by name, (N, 3, H, W) in [0, 1]; all must have one size."""
    found = [one for one in list_sources(where) if fnmatch(Path(one.name).name, pattern)][:count]
    if not found:
        raise typer.BadParameter(f"There is no image {pattern!r} in {where}. Correct --images or --pattern.")
    images = [read_source(one) for one in found]
    if len({x.shape for x in images}) > 1:
        raise typer.BadParameter(f"The images in {where} have several sizes. Choose those of one size with --pattern.")
    return torch.stack(images)


def prior_denoiser(name: str) -> Denoise:
    """Return ``(noisy image in [0, 1], sigma) -> clean image`` of a prior over images in [-1, 1]."""
    from cmidiff import load_prior

    prior = load_prior(name)

    def denoise(noisy: Tensor, sigma: float) -> Tensor:
        t = prior.schedule.time(2 * sigma)
        alpha_t, _ = prior.schedule(t)
        return (prior(alpha_t * (2 * noisy - 1), t).mean + 1) / 2

    return denoise


def ffdnet_denoiser(path: Path) -> tuple[Denoise, float]:
    """Return FFDNet as ``(noisy image in [0, 1], sigma) -> clean image``, and its largest noise level."""
    from cmidiff.train.loss import MAX_SIGMA, load_teacher

    network = load_teacher(path)

    def denoise(noisy: Tensor, sigma: float) -> Tensor:
        return network(noisy, torch.full((len(noisy),), sigma))

    return denoise, MAX_SIGMA


@torch.no_grad()
def measure(denoise: Denoise, truth: Tensor, sigma: float, batch: int) -> float:
    """Return the mean PSNR in dB at one noise level; the noise of image i has the seed (level, i)."""
    values: list[Tensor] = []
    for start in range(0, len(truth), batch):
        x = truth[start : start + batch]
        seeds = [1_000_003 * round(2550 * sigma) + i for i in range(start, start + len(x))]
        noise = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
        values.append(psnr(denoise(x + sigma * noise, sigma).clamp(0, 1), x))
    return float(torch.cat(values).mean())


def main(
    priors: Annotated[list[str], typer.Argument(help="names or paths, as of load_prior", show_default=False)],
    images: Annotated[Path, typer.Option(help="folder or tar archive of images")],
    pattern: Annotated[str, typer.Option(help="of the names of the images to use")] = "*",
    count: Annotated[int, typer.Option(min=1, help="how many of them, the first by name")] = 6,
    levels: Annotated[str, typer.Option(help="standard deviations of the noise, of 255")] = "15,25,50,75,128,255",
    ffdnet: Annotated[Path | None, typer.Option(help="weights of FFDNet, for a row of its own")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images at once")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="of torch; 0 leaves them alone")] = 0,
) -> None:
    """Print a Markdown table of PSNR in dB: a row for each prior, a column for each noise level."""
    if threads:
        torch.set_num_threads(threads)
    truth = read_images(images, pattern, count)
    sigmas = [float(level) / 255 for level in levels.split(",")]
    rows: list[tuple[str, Denoise, float]] = [(name, prior_denoiser(name), float("inf")) for name in priors]
    if ffdnet is not None:
        rows.append(("FFDNet", *ffdnet_denoiser(ffdnet)))
    typer.echo(f"PSNR in dB, {len(truth)} images of {truth.shape[3]} x {truth.shape[2]}\n")
    typer.echo(f"| sigma (of 255) | {' | '.join(levels.split(','))} |\n|---|{'---|' * len(sigmas)}")
    for name, denoise, largest in rows:
        cells = [f"{measure(denoise, truth, s, batch):.2f}" if s <= largest else "-" for s in sigmas]
        typer.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
