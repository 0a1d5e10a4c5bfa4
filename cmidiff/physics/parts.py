"""A complex measurement as twice as many real numbers.

The loop, the solvers and CMI take real measurements alone. A complex number is two measured numbers, its real and its
imaginary part, each with half of the noise variance.
"""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor


class Parts(Physics):
    """Real and imaginary parts of what a physics measures, ``(B, ..., 2)``.

    Args:
        whole: the physics, whose measurements ``(B, ...)`` are complex.
    """

    def __init__(self, whole: Physics) -> None:
        super().__init__()
        self.whole = whole
        self.img_size = getattr(whole, "img_size", None)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``(B, C, H, W)`` to ``(B, ..., 2)``."""
        return torch.view_as_real(self.whole.A(x, **kwargs))


class LinearParts(Parts, LinearPhysics):
    """`Parts` of a linear physics."""

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """``(B, ..., 2)`` to ``(B, C, H, W)``: images are real, so the adjoint is the real part of the complex one."""
        assert isinstance(self.whole, LinearPhysics)
        return self.whole.A_adjoint(torch.view_as_complex(y.contiguous()), **kwargs).real


def split(physics: Physics) -> Parts:
    """Return the real and imaginary parts of what a physics measures."""
    return LinearParts(physics) if isinstance(physics, LinearPhysics) else Parts(physics)
