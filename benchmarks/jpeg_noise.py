"""Which noise is found in a JPEG file, and what a denoiser makes of it.

White noise is added to photographs, they are compressed, and `estimate_jpeg_noise` and `estimate_noise` look for it.
The PSNR is that of one call of the denoiser at the two estimates and at the best of several levels.

    python benchmarks/jpeg_noise.py IMAGES --names kodim02,kodim13
"""

import io
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from cmidiff import load_prior
from cmidiff.app.compressed import sigma_denoiser
from cmidiff.images import to_pil
from cmidiff.metrics import psnr
from cmidiff.physics import estimate_jpeg_noise, estimate_noise, read_tables
from cmidiff.sources import list_sources, read_source

LEVELS = (6, 8, 10, 12, 14, 17, 20, 24, 28, 33, 40, 48)  # of 255


def compress(x: Tensor, quality: int) -> tuple[Tensor, Image.Image]:
    """The decoded image (3, H, W), and the file as Pillow opens it."""
    file = io.BytesIO()
    to_pil(x).save(file, "JPEG", quality=quality)
    opened = Image.open(file)
    data = torch.frombuffer(bytearray(opened.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.reshape(opened.height, opened.width, 3).permute(2, 0, 1).float() / 255, opened


def run(
    images: Annotated[Path, typer.Argument(help="Folder or archive of images.")],
    names: Annotated[str, typer.Option(help="Parts of the names of the images to take; empty: all.")] = "",
    qualities: Annotated[str, typer.Option(help="Of the JPEG files.")] = "30,50,75,90",
    noises: Annotated[str, typer.Option(help="Of 255.")] = "0,10,20,40",
    size: Annotated[int, typer.Option(help="Side of the middle squares, in pixels.")] = 256,
    restored: Annotated[bool, typer.Option(help="Call the denoiser, too.")] = False,
) -> None:
    """Print the estimates of each image, and with ``--restored`` the PSNR at them."""
    chosen = [one for one in list_sources(images) if any(name in str(one) for name in names.split(","))]
    denoise = sigma_denoiser(load_prior("photo"), None) if restored else None
    for noise in map(float, noises.split(",")):
        for quality in map(int, qualities.split(",")):
            for one in chosen:
                x = read_source(one)
                top, left = ((n - size) // 2 for n in x.shape[1:])
                x = x[:, top : top + size, left : left + size]
                z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                y, file = compress(x + noise / 255 * z, quality)
                tables = read_tables(file)
                assert tables is not None, "it is a JPEG"
                found = {"jpeg": 255 * estimate_jpeg_noise(y, tables), "white": 255 * float(estimate_noise(y))}
                line = f"noise {noise:g}, quality {quality}, {Path(str(one)).stem}: " + ", ".join(
                    f"{name} {value:.1f}" for name, value in found.items()
                )
                if denoise is not None:
                    tries = {
                        level: float(psnr(denoise(y[None], max(level, 1) / 255).clamp(0, 1), x[None]))
                        for level in (*found.values(), *LEVELS)
                    }
                    best = max(tries, key=tries.__getitem__)
                    shown = ", ".join(f"{tries[value]:.2f}" for value in found.values())
                    line += f"; PSNR {float(psnr(y[None], x[None])):.2f}, at these {shown}"
                    line += f", best {tries[best]:.2f} at {best:g}"
                print(line, flush=True)


if __name__ == "__main__":
    typer.run(run)
