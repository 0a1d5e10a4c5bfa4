"""Unconditional samples of a prior: their distances to real images, and the training images nearest to them.

FID and KID (Inception features, see `cmidiff.evaluate.sets`) of the samples to training images and to images kept
aside. The row of training images against those kept aside shows what a perfect sampler reaches at these numbers of
images. A sample that is a copy of a training image is much nearer to it than an image kept aside is to its own nearest
training image: the distances are root mean squares over pixels, of images in [0, 1], mirrored ones included.

    python benchmarks/prior_samples.py cats-64 --train cats64/train.tar --kept cats64/val.tar --out build/cats

An interrupted run goes on. OUT/samples.png shows the first 64 samples. OUT/nearest.png shows the eight samples that
are nearest to a training image, each with its three nearest ones.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torchvision.utils import save_image

from cmidiff import load_prior, restore
from cmidiff.evaluate.scores import compute_features
from cmidiff.evaluate.sets import DISTANCES, measure
from cmidiff.physics import denoise
from cmidiff.sources import Source, list_sources, read_source

BATCH = 20


def sample(prior: str, folder: Path, count: int, steps: int, size: int) -> list[Path]:
    """Draw samples by DDIM into numbered PNG files; sample k depends on k alone."""
    files = [folder / "samples" / f"{k:05d}.png" for k in range(count)]
    missing = [k for k, file in enumerate(files) if not file.is_file()]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    network = load_prior(prior)
    for start in range(0, len(missing), BATCH):
        seeds = missing[start : start + BATCH]
        y = torch.zeros(len(seeds), 3, size, size)
        physics = denoise((3, size, size), noise_std=1.0)
        drawn = restore(y, physics, network, solver="unconditional", sampler="ddim", steps=steps, seed=seeds).samples
        for k, x in zip(seeds, drawn[:, 0], strict=True):
            save_image(x.clamp(0, 1), files[k])
        typer.echo(f"{start + len(seeds)} of {len(missing)}", err=True)
    return files


def write_images(sources: list[Source], folder: Path) -> list[Path]:
    """Write images as PNG files, from which features are computed as from those of samples."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{k:05d}.png" for k in range(len(sources))]
    for source, file in zip(sources, files, strict=True):
        if not file.is_file():
            save_image(read_source(source), file)
    return files


def features(name: str, files: list[Path], folder: Path) -> np.ndarray:
    """Inception features of files, stored in the folder for the next run."""
    store = folder / f"features-{name}-{len(files)}.npy"
    if not store.is_file():
        np.save(store, compute_features(files))
    return np.load(store)


def find_nearest(x: Tensor, train: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """Return distances and numbers (B, count) of the training images nearest to ``x``; a mirrored image counts."""
    both = [torch.cdist(x.flatten(1), side.flatten(1)) for side in (train, train.flip(-1))]
    distance = torch.minimum(*both) / x[0].numel() ** 0.5
    found = distance.topk(count, largest=False)
    return found.values, found.indices


def read_files(files: list[Path]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0) / 255 for file in files])


def main(
    prior: str,
    train: Annotated[Path, typer.Option(help="tar archive or folder of the training images")],
    kept: Annotated[Path, typer.Option(help="images never trained on")],
    out: Annotated[Path, typer.Option(help="folder of samples, features and figures")] = Path("build/prior-samples"),
    count: Annotated[int, typer.Option(min=64, help="of samples, and of training images whose features count")] = 1000,
    steps: int = 50,
    size: int = 64,
) -> None:
    """Draw samples, print Markdown tables, and write both figures."""
    files = sample(prior, out, count, steps, size)
    sources, aside = list_sources(train), list_sources(kept)
    chosen = sources[:: max(1, len(sources) // count)][:count]
    sets = {"samples": files, "train": write_images(chosen, out / "train"), "kept": write_images(aside, out / "kept")}
    found = {name: features(name, one, out) for name, one in sets.items()}
    typer.echo("| | images | FID | KID x 1000 |\n|---|---|---|---|")
    for a, b in (("samples", "train"), ("samples", "kept"), ("train", "kept")):
        fid, kid = (measure(DISTANCES[name], found[a], found[b]) for name in ("fid", "kid"))
        typer.echo(f"| {a} to {b} | {len(found[a])}, {len(found[b])} | {fid:.1f} | {1000 * kid:.1f} |")
    everything = torch.stack([read_source(source) for source in sources])
    drawn, held_out = read_files(files), read_files(sets["kept"])
    typer.echo("\n| distance to the nearest training image | least | median |\n|---|---|---|")
    for name, x in (("samples", drawn), ("kept", held_out)):
        nearest = find_nearest(x, everything, 1)[0]
        typer.echo(f"| {name} | {float(nearest.min()):.4f} | {float(nearest.median()):.4f} |")
    save_image(drawn[:64], out / "samples.png", nrow=8, padding=2)
    closest = find_nearest(drawn, everything, 1)[0].flatten().argsort()[:8]
    rows = [torch.cat([drawn[k][None], everything[find_nearest(drawn[k][None], everything)[1][0]]]) for k in closest]
    save_image(torch.cat(rows), out / "nearest.png", nrow=4, padding=2)


if __name__ == "__main__":
    typer.run(main)
