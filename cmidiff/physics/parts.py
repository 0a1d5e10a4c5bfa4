"""Parts of a physics: a complex measurement as twice as many real numbers, and some images of a batch.

The loop, the solvers and CMI take real measurements alone. A complex number is two measured numbers, its real and its
imaginary part, each with half of the noise variance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

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


def own_rows(value: Tensor | None, rows: Sequence[int], count: int) -> Tensor | None:
    """The rows of a tensor that has one for each image."""
    return value[list(rows)] if value is not None and value.ndim > 0 and len(value) == count else value


def rows_of(physics: Physics, rows: Sequence[int], count: int) -> Physics:
    """A copy of a physics with the parameters of some of its images."""
    own = copy.deepcopy(physics)
    for module in own.modules():
        for name, value in module._buffers.items():
            module._buffers[name] = own_rows(value, rows, count)
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(cast(Tensor, own_rows(value.data, rows, count)), False)
    return own
