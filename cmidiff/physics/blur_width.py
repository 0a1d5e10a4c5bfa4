r"""The width of a Gaussian blur, chosen by the data.

The power of a photograph falls with the frequency as ``c f^-a``. A blur of width ``w`` multiplies it by
``exp(-(2 pi f w)^2)``, and white noise adds a floor:

    S(f) = c f^-a exp(-(2 pi f w)^2) + sigma^2

Under a Gaussian prior of these second moments the periodogram ``I(f)`` has the log-likelihood
``-sum (log S + I / S)`` (Whittle). It is maximised over ``c``, and summed over ``a`` with a normal prior, for each
``w``; the most likely ``w`` is the answer. A window that vanishes at the border makes the surroundings irrelevant.

Sources: Whittle, "Estimation and Information in Stationary Time Series", 1953; Field, "Relations Between the Statistics
of Natural Images and the Response Properties of Cortical Cells", 1987, https://doi.org/10.1364/JOSAA.4.002379 (the
power law); Reeves, Mersereau, "Blur Identification by the Method of Generalized Cross-Validation", 1992,
https://doi.org/10.1109/83.148604 (a width chosen by a likelihood or a misfit).
"""

import math

import torch
from torch import Tensor

from cmidiff.physics.check import check_images, check_noise_std

LEAST, MOST = 0.3, 6.0  # pixels
WIDTHS = 61
POWERS = torch.linspace(1, 5, 41, dtype=torch.float64)
POWER, POWER_STD = 3.0, 0.3  # prior of ``a``; sharp photographs have 1.7 to 3.3
RINGS = 48
LOWEST = 3  # periods in an image, below which the window mixes the frequencies
ROUNDS = 30
SMALLEST = 32  # side of an image, pixels


def estimate_blur_width(y: Tensor, noise_std: float, *, largest: float = MOST) -> Tensor:
    """Estimate the standard deviation of the Gaussian that blurred each image.

    Args:
        y: blurred images ``(B, C, H, W)`` or one image ``(C, H, W)``, float, both sides at least 32 pixels.
        noise_std: of the noise in ``y``, in its units.
        largest: the largest width considered, pixels.

    Returns:
        Widths in pixels, ``(B,)``, or a scalar tensor for one image, from 0.3 (sharp) to ``largest``.

    Raises:
        ValueError: for images that are no floats, not finite or too small, or a width of 0.3 or less.
    """
    if not (math.isfinite(largest) and largest > LEAST):
        raise ValueError(f"largest must be a number of pixels above {LEAST}; got {largest!r}. The default is {MOST:g}.")
    sigma = check_noise_std(noise_std)
    batch = check_images("y", y, SMALLEST).double()
    widths = torch.logspace(math.log10(LEAST), math.log10(largest), WIDTHS, dtype=torch.float64)
    result = torch.stack([_most_likely(_likelihood(image, sigma, widths), widths) for image in batch]).to(y)
    return result if y.ndim == 4 else result[0]


def _likelihood(image: Tensor, sigma: float, widths: Tensor) -> Tensor:
    """The logarithm of that of each width, for the mean of the channels."""
    gray = image.mean(0)
    contrast = float(gray.var())
    floor = sigma**2 / len(image) + 1e-8 * contrast + torch.finfo(torch.float64).tiny
    frequency, power, count = _spectrum(gray)
    blur = torch.exp(-((2 * math.pi * frequency * widths[:, None]) ** 2))
    shape = blur[:, None] * frequency ** -POWERS[:, None]  # widths x powers x rings
    low = slice(0, 8)
    scale = ((power * count)[low].sum() / (shape * count)[..., low].sum(-1)).clamp_min(1e-300).log()
    for _ in range(ROUNDS):  # Newton's method, of the expected curvature
        signal = scale.exp()[..., None] * shape
        total = signal + floor
        slope = (count * signal / total * (power / total - 1)).sum(-1)
        curvature = (count * (signal / total).square()).sum(-1)
        scale = scale + (slope / curvature.clamp_min(1e-9)).clamp(-1, 1)
    total = scale.exp()[..., None] * shape + floor
    value = -(count * (total.log() + power / total)).sum(-1)
    return torch.logsumexp(value - 0.5 * ((POWERS - POWER) / POWER_STD).square(), 1)


def _spectrum(gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean frequency (periods per pixel), the mean power and the number of coefficients in each ring."""
    height, width = gray.shape
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in (height, width)))
    gray = gray - (gray * window).sum() / window.sum()
    power = torch.fft.fft2(gray * window).abs().square() / window.square().sum()
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    use = (frequency < 0.5) & (frequency > LOWEST / min(height, width))
    ring = (frequency[use] * 2 * RINGS).long()
    sums = torch.zeros(3, RINGS, dtype=torch.float64)
    sums.index_add_(1, ring, torch.stack([frequency[use], power[use], torch.ones_like(power[use])]))
    frequencies, powers, count = sums[:, sums[2] > 0]
    return frequencies / count, powers / count, count


def _most_likely(value: Tensor, widths: Tensor) -> Tensor:
    """The width at the top of the parabola through the largest value and its neighbours."""
    best = int(value.argmax())
    if best in (0, len(widths) - 1):
        return widths[best]
    left, top, right = value[best - 1 : best + 2]
    shift = 0.5 * (left - right) / (left - 2 * top + right)
    return widths[best] * (widths[1] / widths[0]) ** shift
