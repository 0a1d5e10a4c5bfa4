"""Physics that are not linear: they have a gradient and no adjoint.

DPS and DSG need no more than the gradient. Solvers that invert ``A A^T`` (PiGDM, MCG, CA-DPS) are refused by
`cmidiff.restore`; CMI takes the derivative ``dA/dx`` at the denoised image for ``A``
(`cmidiff.measurement.Measurement.linearised`). Every ``deepinv.physics.Physics`` that has an ``img_size`` is as good as
these, deepinv's phase retrievals with random masks among them.
"""

from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.physics.check import Shape, check_fraction, check_shape


class FourierMagnitude(Physics):
    """``A(x) = |F x|``: the orthonormal Fourier transform of the image in a frame of zeros, without its phase.

    The image, its mirror image through the centre and its circular shifts inside the frame measure the same. The task
    of Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
    https://arxiv.org/abs/2209.14687, in which the best of four samples is reported.

    Args:
        image: ``(C, H, W)``.
        oversampling: sides of the frame over those of the image, at least 1; 2 determines an image up to the above.
        noise_model: of the magnitudes.
    """

    def __init__(self, image: Shape, oversampling: float, noise_model: GaussianNoise) -> None:
        super().__init__(noise_model=noise_model)
        self.img_size = check_shape(image)
        oversampling = check_fraction("oversampling", oversampling, least=1, most=8)
        self.frame = tuple((round(oversampling * n) - n + 1) // 2 for n in self.img_size[1:])

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H', W')``, the zero frequency at ``[..., 0, 0]``."""
        rows, columns = self.frame
        return torch.fft.fft2(pad(x, (columns, columns, rows, rows)), norm="ortho").abs()


class Exposure(Physics):
    """``A(x) = clip(1/2 + factor (x - 1/2), 0, 1)``: contrast beyond what the sensor holds, so that highlights and
    shadows are lost.

    In [-1, 1] it is ``clip(factor x, -1, 1)``, the task "high dynamic range" of RED-diff (Mardani, Song, Kautz, Vahdat,
    2023, https://arxiv.org/abs/2305.04391). A clipped entry has no gradient.
    """

    def __init__(self, image: Shape, factor: float, noise_model: GaussianNoise) -> None:
        super().__init__(noise_model=noise_model)
        self.img_size = check_shape(image)
        self.factor = check_fraction("factor", factor, least=1, most=1000)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return (0.5 + self.factor * (x - 0.5)).clamp(0.0, 1.0)


class LightBlur(Physics):
    """``A(x) = encode(blur(decode(x)))``: light is what a shaken camera adds up, and an image stores a curve of it.

    ``decode`` is the sRGB curve (IEC 61966-2-1), continued as an odd function below 0; its straight piece at black
    keeps the gradient finite. Highlights spread further than a blur of the stored values says.

    Args:
        blur: of the light, linear.
    """

    def __init__(self, blur: LinearPhysics, image: Shape) -> None:
        super().__init__(noise_model=blur.noise_model)
        self.img_size = check_shape(image)
        self.blur = blur

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return encode(self.blur.A(decode(x)))


def decode(x: Tensor) -> Tensor:
    """Light from stored values, both 0 to 1."""
    size = x.abs()
    curved = ((size.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return x.sign() * torch.where(size <= 0.04045, size / 12.92, curved)


def encode(light: Tensor) -> Tensor:
    """Stored values from light, both 0 to 1."""
    size = light.abs()
    curved = 1.055 * size.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return light.sign() * torch.where(size <= 0.0031308, 12.92 * size, curved)
