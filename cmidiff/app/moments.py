"""`cmidiff priors --moments`: the second moments of a person's images, written beside a prior of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from cmidiff import files, load_prior
from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Denoiser
from cmidiff.prior.load import moments_file
from cmidiff.sources import Source, list_sources, read_source

COMMAND = "priors"
MOST = 4096  # crops
FEW = 200  # crops, below which variances are uncertain by more than a tenth
SIDE = 64  # of the crops for a prior that was trained at no size of its own


def write_moments(prior: str, images: Path, *, device: str, overwrite: bool) -> str:
    """Measure the second moments of images (a folder or an archive) and return in words what was written.
    `load_prior` finds them beside ``prior``, a folder or a file of weights.

    Crops of the prior's training size are taken at the scale of the images.
    """
    path = Path(prior)
    if not prior or not path.exists():
        raise ValueError(
            f"--prior {prior or '(nothing)'} must be a folder or a file of weights, beside which moments are written: "
            "load_prior(NAME).save_pretrained(FOLDER) makes a folder"
        )
    file = moments_file(path)
    files.check_outputs([file], [images], command=COMMAND, overwrite=overwrite)
    network, sources = load_prior(prior, device=device), list_sources(images)
    signals = list(_signals(network, sources))
    if not signals:
        raise ValueError(f"no image of {images} is as large as a crop, {_side(network)} pixels: give larger ones")
    moments = SecondMoments.measure(signals)
    files.write(file, save(moments.tensors()), COMMAND)
    few = f"; fewer than {FEW} make uncertain variances" if len(signals) < FEW else ""
    return (
        f"{file}: mean {', '.join(f'{m:.3f}' for m in moments.mean.tolist())}, standard deviation "
        f"{moments.variance**0.5:.3f}, in units of the prior, of {len(signals)} crops of {_side(network)} pixels{few}"
    )


def _side(prior: Denoiser) -> int:
    size = prior.size or SIDE
    return size if prior.decoder is None else prior.decoder.image_shape((prior.channels or 1, size, size))[-1]


def _signals(prior: Denoiser, sources: list[Source]) -> Iterator[Tensor]:
    """Crops in the units of the prior, spread over all images."""
    low, high = prior.value_range or (0.0, 1.0)
    chosen = sources[:: -(-len(sources) // MOST)]
    for source in chosen:
        for crop in _crops(read_source(source), _side(prior), MOST // len(chosen)):
            x = (low + (high - low) * crop)[None].to(prior.device or "cpu")
            if prior.decoder is not None:
                with torch.no_grad():
                    x = prior.decoder.encoded(x)
            elif prior.channels == 1:
                x = x.mean(1, keepdim=True)
            yield x[0].cpu()


def _crops(image: Tensor, side: int, most: int) -> list[Tensor]:
    """Crops (3, side, side) that do not overlap, at most so many, spread over an image (3, H, W)."""
    rows, columns = (n // side for n in image.shape[1:])
    top, left = ((n - k * side) // 2 for n, k in zip(image.shape[1:], (rows, columns), strict=True))
    places = [(top + side * i, left + side * j) for i in range(rows) for j in range(columns)]
    return [image[:, i : i + side, j : j + side] for i, j in places[:: -(-len(places) // most) or 1]]
