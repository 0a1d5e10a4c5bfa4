"""Blur of a photograph whose surroundings are unknown.

A camera blurs the scene, then cuts out the frame: pixels at the border of a photograph hold light from outside. The
unknown image therefore lives on a canvas that is larger by the kernel. ``A`` is the convolution where it needs no pixel
from beyond the canvas: a circular convolution on the canvas, then the frame. Conjugate gradients solve the systems
``(s^2 + r^2 A^T A) v = b`` of solvers to a relative residual of 1e-3 in 5 to 30 iterations, at every noise level. The
circulant preconditioner ``(s^2 + r^2 H^T H)^-1`` of the convolution without the frame saves 8 to 50% of them and is
left out.

Source of the model: Almeida, Figueiredo, "Deconvolving Images With Unknown Boundaries Using the Alternating Direction
Method of Multipliers", 2013, https://arxiv.org/abs/1210.2687.
"""

from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor

from cmidiff.krylov import conjugate_gradient

ITERATIONS = 400


class ValidBlur(LinearPhysics):
    """``A x``: the part of ``kernel * x`` that depends on no pixel beyond ``x``.

    Args:
        kernel: ``(1 or B, 1 or C, k, l)`` with odd sides.
        img_size: ``(C, H, W)`` of the canvas; ``y`` is ``(B, C, H - k + 1, W - l + 1)``.
        noise_model: added to ``A x``.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, img_size: tuple[int, int, int], noise_model: GaussianNoise) -> None:
        noise: Any = noise_model  # deepinv takes the type of the default, ZeroNoise, for the only one
        super().__init__(img_size=img_size, noise_model=noise)
        self.canvas = img_size[1:]
        self.register_buffer("kernel", kernel)

    @property
    def frame(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the photograph shows."""
        reach = [n // 2 for n in self.kernel.shape[-2:]]
        rows, columns = (slice(r, side - r) for r, side in zip(reach, self.canvas, strict=True))
        return rows, columns

    def crop(self, x: Tensor) -> Tensor:
        """The part of the canvas that the photograph shows, of the size of ``y``."""
        return x[(..., *self.frame)]

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Blur ``x`` and keep the frame."""
        return self.crop(self._filter(x, self._response()))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Put ``y`` into its frame, with zeros around, and correlate with the kernel."""
        x = y.new_zeros(*y.shape[:-2], *self.canvas)
        x[(..., *self.frame)] = y
        return self._filter(x, self._response().conj())

    def prox_l2(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: Tensor | float | None, y: Tensor, gamma: Any, **kwargs: Any
    ) -> Tensor:
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2``, by conjugate gradients from ``z``."""
        start = z if isinstance(z, Tensor) else y.new_full((*y.shape[:-2], *self.canvas), float(z or 0))
        weight = float(gamma)
        found = conjugate_gradient(
            lambda v: v + weight * self.A_adjoint(self.A(v)),
            weight * self.A_adjoint(y - self.A(start)),
            iterations=ITERATIONS,
        )
        return start + found.x

    def _response(self) -> Tensor:
        """Fourier transform of the kernel, centred at the origin of the canvas."""
        rows, columns = self.kernel.shape[-2:]
        padded = torch.nn.functional.pad(self.kernel, (0, self.canvas[1] - columns, 0, self.canvas[0] - rows))
        return torch.fft.rfft2(padded.roll((-(rows // 2), -(columns // 2)), (-2, -1)))

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=self.canvas)
