"""How much noise an image has."""

from __future__ import annotations

from torch import Tensor


def estimate_noise(values: Tensor) -> float:
    """Estimate the standard deviation of white noise in an image (C, H, W).

    The median absolute value of the diagonal Haar coefficients, divided by 0.6745.

    References:
        Donoho, Johnstone: Ideal spatial adaptation by wavelet shrinkage. Biometrika 81 (1994), section 4.
    """
    even = values[:, : values.shape[1] // 2 * 2, : values.shape[2] // 2 * 2]
    a, b, c, d = (even[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return float(((a - b - c + d) / 2).abs().median() / 0.6745)
