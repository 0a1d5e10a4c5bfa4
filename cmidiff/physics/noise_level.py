r"""The noise level of an image, estimated from the image alone.

Texture looks like noise to a high-pass filter. The median of the finest wavelet coefficients is too large by 2 to 3 of
255 on photographs. But the patches of a clean image span few directions, and white noise spans all of them evenly. So
the smallest eigenvalue of the covariance of noisy patches is the noise variance, best from patches with little texture.
These are the ones whose gradient energy is below a quantile of that of noise of the present estimate,

    sigma^2 = lambda_min(Cov(p_i : p_i^T G p_i <= sigma^2 tau)),

a fixed point that is iterated (Liu, Tanaka, Okutomi). Two corrections are added:

- The smallest eigenvalue of few patches is below the variance. That of white noise at the same places says by how
  much, where all directions are noise. Texture makes up for a part of it: the square root of this factor is applied.
- Values that are cut off at the ends of the range make noise look weaker. Patches whose mean lies near an end are left
  out. The variance of the others is corrected for what is cut off of a Gaussian there.

Channels are estimated separately, because compression and demosaicing smooth noise across colours. Patches of all
channels together (Chen, Zhu, Heng, "An Efficient Statistical Method for Image Noise Level Estimation", 2015,
https://doi.org/10.1109/ICCV.2015.62) are more accurate for independent noise below 15 of 255, and find no noise where
the channels share it. Above, the cut-off values cost them more.

Source: Liu, Tanaka, Okutomi, "Single-Image Noise Level Estimation for Blind Denoising", 2013,
https://doi.org/10.1109/TIP.2013.2283400.
"""

import math
import statistics
from functools import cache

import torch
from scipy.special import gammaincinv
from torch import Tensor

from cmidiff.physics.check import check_images

SIDE = 7  # of a patch, pixels
PATCHES = 60_000  # of a channel, at most about this many
FEWEST = 10 * SIDE**2  # patches for an eigenvalue
CONFIDENCE = 1 - 1e-6  # of a patch of pure noise being taken
MARGIN = 1.0  # of a patch's mean from the ends of the range, noise standard deviations
ROUNDS = 8
SMALLEST = 16  # side of an image, pixels


def estimate_noise(x: Tensor, *, value_range: tuple[float, float] | None = (0.0, 1.0)) -> Tensor:
    """Estimate the standard deviation of the white noise in each image.

    The noise of the channels is taken to be equally strong: the median of theirs is returned. Noise whose neighbours
    are correlated (of a photograph that was enlarged, or strongly compressed after the noise) is underestimated. The
    estimate includes the rounding to 8 bits, 0.3 of 255.

    Args:
        x: images ``(B, C, H, W)`` or one image ``(C, H, W)``, float, both sides at least 16 pixels.
        value_range: values at which the image is cut off; None if it is not. An image with values outside of it is not.

    Returns:
        Noise standard deviation in the units of ``x``: ``(B,)``, or a scalar tensor for one image. It is 0 for a
        constant image.

    Raises:
        ValueError: for images that are no floats, not finite or too small.
    """
    low, high = value_range or (-math.inf, math.inf)
    batch = check_images("x", x, SMALLEST)
    variances = [statistics.median(_variance(channel, low, high) for channel in image) for image in batch]
    result = torch.tensor(variances, dtype=torch.float64).sqrt().to(x)
    return result if x.ndim == 4 else result[0]


def _variance(channel: Tensor, low: float, high: float) -> float:
    """The noise variance of one channel ``(H, W)``."""
    if channel.min() < low or channel.max() > high:
        low, high = -math.inf, math.inf
    offset, scale = float(channel.min()), float(channel.max() - channel.min())
    if scale == 0:
        return 0.0
    patches = _patches((channel - offset).float() / scale)
    white = _patches(torch.randn(channel.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32))
    mean = patches.mean(1).double()
    energy = ((patches @ _gradient().to(patches)) * patches).sum(1)
    below, above = mean - (low - offset) / scale, (high - offset) / scale - mean
    chosen = torch.ones_like(energy, dtype=torch.bool)
    variance = _least_eigenvalue(patches)
    for _ in range(ROUNDS):
        sigma = math.sqrt(variance)
        near = (energy <= variance * _threshold()) & (torch.minimum(below, above) >= MARGIN * sigma)
        if int(near.sum()) < FEWEST:
            break
        chosen = near
        new = _least_eigenvalue(patches[chosen]) / _kept_variance(below[chosen], above[chosen], sigma)
        converged = abs(new - variance) <= 1e-3 * variance
        variance = new
        if converged:
            break
    few = max(_least_eigenvalue(white[chosen]), 1e-3)
    return variance / math.sqrt(few) * scale**2


def _patches(channel: Tensor) -> Tensor:
    """``(patches, SIDE^2)``, of all places or of a regular part of them."""
    places = (channel.shape[0] - SIDE + 1) * (channel.shape[1] - SIDE + 1)
    stride = max(1, math.ceil(math.sqrt(places / PATCHES)))
    return torch.nn.functional.unfold(channel[None, None], SIDE, stride=stride)[0].T.contiguous()


def _least_eigenvalue(patches: Tensor) -> float:
    """Of the covariance of the patches."""
    centred = patches - patches.mean(0)
    covariance = (centred.T @ centred).double() / len(centred)
    return float(torch.linalg.eigvalsh(covariance)[0].clamp_min(0))


@cache
def _gradient() -> Tensor:
    """``G`` in ``p^T G p``, the energy of the central differences of a patch along rows and columns."""
    difference = torch.zeros(SIDE - 2, SIDE, dtype=torch.float64)
    for i in range(SIDE - 2):
        difference[i, i], difference[i, i + 2] = -0.5, 0.5
    one = difference.T @ difference
    eye = torch.eye(SIDE, dtype=torch.float64)
    return torch.kron(eye, one) + torch.kron(one, eye)


@cache
def _threshold() -> float:
    """The quantile ``tau`` of the energy of a patch of white noise of variance 1, nearly a gamma distribution."""
    matrix = _gradient()
    rank, trace = int(torch.linalg.matrix_rank(matrix)), float(matrix.trace())
    return float(2 * trace / rank * gammaincinv(rank / 2, CONFIDENCE))


def _kept_variance(below: Tensor, above: Tensor, sigma: float) -> float:
    """Variance of a Gaussian cut off at ``below`` and ``above`` its mean, over ``sigma^2``; the mean over patches."""
    if sigma == 0:
        return 1.0
    a, b = -(below / sigma).clamp(0, 8), (above / sigma).clamp(0, 8)  # beyond 8 nothing is cut off
    low, high = torch.special.ndtr(a), torch.special.ndtr(-b)
    density_a, density_b = (torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi) for t in (a, b))
    first = a * low + b * high + density_a - density_b
    second = a.square() * low + b.square() * high + 1 - low - high + a * density_a - b * density_b
    return float((second - first.square()).mean())
