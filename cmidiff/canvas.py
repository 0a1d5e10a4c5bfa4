"""The bridge from the prior's canvas to the image that a physics measures, and back.

The physics acts on the user's images (say, grayscale photographs of 250 x 187 pixels in [0, 1]). The prior acts on its
own canvas (three channels, sides divisible by 8, [-1, 1]). ``P`` is the map from canvas to image: crop, then the mean
of the channels where the physics has one and the prior three. With ``x01 = gain x + offset``, the affine part of a
linear physics moves into ``y``. All solvers then see a linear ``A P`` and one noise level. ``P P^T = c I`` with ``c =
1`` or ``1/3``: spectra of ``A`` serve ``A P`` too. A non-linear physics is composed with the affine map instead,
``A'(x) = A(gain P x + offset) / gain``, which is the same up to a constant where ``A`` is linear.

Noise whose variance differs from entry to entry (photons) is whitened. ``y`` and ``A`` are both multiplied by
``weight``, after which ``sigma_y`` is one number again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.draws import SeededDraws
from cmidiff.physics.parts import own_rows, rows_of
from cmidiff.prior.decoder import Decoder


@dataclass(frozen=True)
class Canvas:
    """A measurement on the prior's canvas.

    Args:
        y: measurement, shape (B, ...), in the units of the physics applied to the canvas, times ``weight``.
        physics: the forward operator, applied to the image.
        noise_std: sigma_y >= 0, in the units of ``y``.
        shape: (C, H, W) of the canvas.
        image: (c, h, w) of the image; ``h <= H`` and ``w <= W``, and ``c`` is ``C`` or 1.
        affine: ``(gain, offset)`` from the canvas to the image, for a non-linear physics alone.
        weight: factor on each entry of ``A x`` that makes the noise white, broadcastable to ``y``; None: it is.
        decoder: of a latent prior; then ``shape`` is that of the latents, (c, h, w).
        iterations: at most this many products in `solve` and `whiten`; None: to convergence.
        local: whether it is the linearisation of a non-linear physics, which holds near one image alone.
    """

    y: Tensor
    physics: Physics
    noise_std: float
    shape: tuple[int, ...]
    image: tuple[int, ...]
    affine: tuple[float, float] = (1.0, 0.0)
    weight: Tensor | None = None
    decoder: Decoder | None = None
    iterations: int | None = None
    local: bool = False

    def take(self, rows: Sequence[int]) -> Self:
        """The measurement of some images of its batch, or of one image several times.

        Args:
            rows: which images, in any order.

        Raises:
            ValueError: the physics holds parameters for each image and cannot be applied to some of them.
        """
        count = len(self.y)
        if list(rows) == list(range(count)):
            return self
        own = replace(self, y=self.y[list(rows)], weight=own_rows(self.weight, rows, count))
        if count == 1:
            return own
        x = SeededDraws([(0, k) for k in range(count)]).normal("rows", 0, self.y.real.new_zeros(count, *self.image))
        expected = self.physics.A(x)[list(rows)]
        for physics in (self.physics, rows_of(self.physics, rows, count)):
            own = replace(own, physics=physics)
            with contextlib.suppress(RuntimeError, ValueError, IndexError):
                found = physics.A(x[list(rows)])
                if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
                    return own
        raise ValueError(
            f"{type(self.physics).__name__} cannot be applied to a part of its batch of {count} images: restore "
            "them one by one, or leave batch_size out"
        )

    @property
    def linear(self) -> bool:
        return isinstance(self.physics, LinearPhysics) and self.decoder is None

    @property
    def of_image(self) -> Self:
        """The same measurement as one of the decoded image; itself without a decoder."""
        if self.decoder is None:
            return self
        return replace(self, shape=self.decoder.image_shape(self.shape), decoder=None)

    @property
    def gain(self) -> float:
        """``c`` in ``P P^T = c I``."""
        return self.image[0] / self.shape[0]

    def crop(self, x: Tensor) -> Tensor:
        """``P x``: canvas (B, C, H, W) to image (B, c, h, w); of latents, ``P D(z)``."""
        x = x if self.decoder is None else self.decoder.decode(x)
        if tuple(x.shape[1:]) == self.image:
            return x
        x = x[(..., *(slice(0, n) for n in self.image[1:]))]
        return x if self.image[0] == x.shape[1] else x.mean(1, keepdim=True)

    def canvas(self, x: Tensor) -> Tensor:
        """``P^T x``: image to canvas."""
        if self.shape == self.image:
            return x
        padded = x.new_zeros(x.shape[0], self.image[0], *self.shape[1:])
        padded[(..., *(slice(0, n) for n in self.image[1:]))] = x
        return padded if self.image[0] == self.shape[0] else (padded / self.shape[0]).expand(-1, *self.shape)

    def A(self, x: Tensor) -> Tensor:
        """``A x``."""
        image, (gain, offset) = self.crop(x), self.affine
        measured = self.physics.A(image) if self.affine == (1.0, 0.0) else self.physics.A(gain * image + offset) / gain
        return measured if self.weight is None else self.weight * measured

    def At(self, e: Tensor) -> Tensor:
        """``A^T e``."""
        if not isinstance(self.physics, LinearPhysics):
            raise TypeError(nonlinear("the adjoint", self.physics))
        if self.decoder is not None:
            raise TypeError("the adjoint of a measurement of decoded latents is that of its linearisation: take pull")
        return self.canvas(self.physics.A_adjoint(e if self.weight is None else self.weight * e))

    def residual(self, x_hat: Tensor) -> Tensor:
        """``y - A x_hat``."""
        return self.y - self.A(x_hat)


def nonlinear(what: str, physics: Physics) -> str:
    """Why ``what`` is refused with a physics that is not linear."""
    return (
        f"{what} needs a linear physics, received {type(physics).__name__}: "
        "use DPS or DSG, which need only the gradient of the residual, or pass a deepinv LinearPhysics"
    )
