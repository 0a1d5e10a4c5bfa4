r"""The noise that an image had before it was compressed as JPEG.

Compression rounds most coefficients of high frequency to 0, and with them the noise there, so that estimators of white
noise find far too little. But a coefficient that is 0 is an observation: the noise has left it between ``-q/2`` and
``q/2``. Let ``s`` be the standard deviation of a block's coefficients, noise and texture together. The level ``n`` of a
coefficient with the step ``q`` has the probability

$$ \Phi((n + 1/2) q / s) - \Phi((n - 1/2) q / s). $$

Each area of 2x2 blocks has its most likely ``s``. The areas where it is least have the least texture. White noise is
in all of their frequencies alike, and texture falls off. So each band of frequencies bounds the noise from above, and
the least bound is taken. A band that is rounded to 0 altogether allows much noise. The lowest frequencies are left out:
smooth shading is no noise.

Luma and both chroma planes bound the noise of the channels, and the least bound is taken. Independent white noise shows
in all three nearly alike, and texture in luma above all. Halved chroma averages it over pixels. An image without
colours has the same noise in all channels, which luma tells.

Source: Dempster, Laird, Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", 1977 (4.2: grouped,
censored data), https://doi.org/10.1111/j.2517-6161.1977.tb01600.x. Areas of little texture: Liu, Tanaka, Okutomi,
"Single-Image Noise Level Estimation for Blind Denoising", 2013, https://doi.org/10.1109/TIP.2013.2283400.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmidiff.physics.jpeg import TO_YCC, Quantisation, Tables, agree

BANDS = (3, 5, 7, 9, 15)  # sums of the two frequencies where bands begin; below are shading and edges
QUIET = 0.25  # fraction of the areas that is used, those with the least standard deviation
CONFIDENCE = 2.0  # log-likelihood ratio: with more noise than this allows, a band would show it
AREAS = 4000  # at most about this many
ENDS = 2.0  # of an area's mean from black and white, standard deviations
LEVELS = torch.logspace(math.log10(0.3), math.log10(120), 90, dtype=torch.float64)  # of s, 1/255
GRAY = 0.75 / 255  # root mean square of chroma below which an image has no colours


def estimate_jpeg_noise(y: Tensor, tables: Tables) -> float:
    """Estimate the standard deviation of the white noise in an image before it was compressed.

    Args:
        y: one image ``(C, H, W)`` in [0, 1], as decoded, C 1 or 3.
        tables: how it was compressed (`cmidiff.physics.read_tables`, `cmidiff.physics.find_tables`).

    Returns:
        In units of ``y``. Noise of less than about a third of the smallest steps is not seen.

    Raises:
        ValueError: the image is smaller than 2x2 blocks, or not what the tables describe.
    """
    if not agree(y[None], tables):
        raise ValueError(
            "the tables do not describe the image: it was changed after it was decoded; take estimate_noise"
        )
    cells = Quantisation(y[None].double(), tables)
    luma, steps = cells.centres[0][0], cells.steps[0]
    means = luma[..., 0, 0] / 8 + 128 / 255
    if min(means.shape[1:]) < 2:
        raise ValueError(f"the noise of a JPEG needs 2x2 blocks of 8x8 pixels, received {y.shape[1]}x{y.shape[2]}")
    own, shared = [], []  # likelihoods of the areas of luma, and of luma in the areas of chroma
    for each in _log_probabilities(luma[0], steps):
        own.append(_areas(each))
        shared.append(_areas(avg_pool2d(each.sum(0)[None], cells.sampling)))
    likelihood = torch.stack(own)
    bound = _bound(likelihood[..., _quiet(likelihood.sum(1), means)])
    if len(cells.centres) == 1 or float(cells.centres[1].square().mean().sqrt()) < GRAY:
        return bound
    gains = TO_YCC.square().sum(1).sqrt().tolist()  # of white noise of the channels, in luma and chroma
    bounds, chroma = [bound / gains[0]], cells.centres[1][0]
    if cells.known[1] and min(chroma.shape[1:3]) > 1:
        means = avg_pool2d(y.double()[(..., *cells.region)], [8 * n for n in cells.sampling])
        quiet = _quiet(torch.cat(shared), means, 1 / gains[0])  # not by chroma itself, whose quietest areas are rounded
        for plane, gain in zip(chroma, gains[1:], strict=True):
            likelihood = torch.stack([_areas(each) for each in _log_probabilities(plane, cells.steps[1])])
            bounds.append(_bound(likelihood[..., quiet]) / gain * math.prod(cells.sampling) ** 0.5)
    return min(bounds)


def _quiet(likelihood: Tensor, means: Tensor, scale: float = 1.0) -> Tensor:
    """Whether an area is one of little texture, and far from the ends of the range.

    Args:
        likelihood: of each standard deviation and area.
        means: of blocks, (channels, rows, columns).
        scale: of the noise of the channels, relative to that of what is likely.
    """
    found = LEVELS.to(means.device)[likelihood.argmax(0)] / 255
    middle = _areas(means / 4)
    inside = (torch.minimum(middle, 1 - middle) > ENDS * scale * found).all(0)
    inside = inside if bool(inside.any()) else torch.ones_like(inside)
    return inside & (found <= torch.quantile(found[inside], QUIET))


def _bound(likelihood: Tensor) -> float:
    """The most noise that all bands allow; likelihoods of each standard deviation, band and area."""
    total = likelihood.sum(2)
    possible = total >= total.amax(0) - CONFIDENCE
    return min(float(LEVELS[band].max()) for band in possible.T.cpu()) / 255


def _log_probabilities(centres: Tensor, steps: Tensor) -> Iterator[Tensor]:
    """For each standard deviation, of the levels of each block and band of frequencies, (bands, rows, columns)."""
    counts = (centres / steps).round().abs().long()
    n = torch.arange(int(counts.max()) + 1, device=counts.device)
    frequency = torch.arange(8, device=counts.device)
    order = frequency[:, None] + frequency
    bands = [(low <= order) & (order < high) for low, high in pairwise(BANDS)]
    places = [counts[..., band] + len(n) * torch.arange(int(band.sum()), device=n.device) for band in bands]
    for s in LEVELS:
        scale = (255 * steps / (float(s) * math.sqrt(2)))[..., None]
        upper, lower = torch.erfc((n - 0.5) * scale), torch.erfc((n + 0.5) * scale)
        table = (0.5 * (upper - lower)).clamp_min(1e-12).log()
        yield torch.stack([table[band].take(place).sum(-1) for band, place in zip(bands, places, strict=True)])


def _areas(blocks: Tensor) -> Tensor:
    """The sums over 2x2 blocks of (bands, rows, columns), at every ``n``-th place, (bands, areas)."""
    sums = blocks[:, :-1, :-1] + blocks[:, 1:, :-1] + blocks[:, :-1, 1:] + blocks[:, 1:, 1:]
    n = max(1, math.isqrt(blocks.shape[1] * blocks.shape[2] // AREAS))
    return sums[:, ::n, ::n].flatten(1)
