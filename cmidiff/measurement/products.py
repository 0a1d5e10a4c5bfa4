"""Functions of ``A^T A`` that every covariance-aware solver takes, with ``S = sigma_y^2 I + r^2 A A^T``:

    solve(e, r2)   = A^T S^-1 e        (PiGDM, CA-DPS isotropic)
    whiten(z, r2)  = A^T S^-1/2 z      (the probes of the symmetric CMI estimator)
    filter(v, f)   = f(A^T A) v        (DDRM, DDNM)

They are in closed form if the physics declares its SVD (`deepinv.physics.DecomposablePhysics`), and Krylov iterations
otherwise. A physics that is not linear has them at a point: `Measurement.linearised`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
from deepinv.physics import DecomposablePhysics
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmidiff.dct import dct, idct
from cmidiff.draws import SeededDraws
from cmidiff.krylov import conjugate_gradient, lanczos_apply
from cmidiff.measurement.canvas import Canvas
from cmidiff.whitening import inverse_root

PROBES, WINDOW = 4, 5  # of the estimate of the diagonal of A^T A: random signs, and side of the window in frequencies
DENSE = 512  # numbers of a signal up to which the eigenvectors of A^T A are computed
LANCZOS = 24  # iterations for a function of A^T A without a declared SVD
SIGMA_FLOOR = 1e-8  # relative to the largest singular value: what is below was not measured (float32: 1e-6)


class Products(Canvas):
    """A linear measurement as an operator: functions of its ``A^T A``."""

    def solve(self, e: Tensor, r2: float, residuals: list[Tensor] | None = None) -> Tensor:
        """``A^T (sigma_y^2 I + r2 A A^T)^-1 e``, the minimum-norm solution where ``sigma_y = 0``.

        Args:
            e: as ``y``.
            r2: positive.
            residuals: where the relative residual of an iterative solve is appended, shape (B,).
        """
        s2 = self.noise_std**2
        if (svd := self._svd) is not None:
            return self._spectral(*svd, e, lambda w2: 1.0 / (s2 + r2 * self.gain * w2))
        found = conjugate_gradient(
            lambda v: s2 * v + r2 * self._normal(v), self.At(e), iterations=self.iterations or 200
        )
        if residuals is not None:
            residuals.append(found.residual)
        return found.x

    def inverse(self, e: Tensor, r2: float) -> Tensor | None:
        """``(sigma_y^2 I + r2 A A^T)^-1 e``, shape of ``e``; None without a declared SVD."""
        svd, s2 = self._svd, self.noise_std**2
        if svd is None or s2 == 0:
            return None
        physics, w = svd
        seen = r2 * self.gain * (w.conj() * w).real
        # S = s2 I on what no singular vector reaches, and U (s2 + seen) U^T on the rest
        return e / s2 + physics.U((1 / (s2 + seen) - 1 / s2) * physics.U_adjoint(e))

    def whiten(self, z: Tensor, r2: float) -> Tensor:
        """``A^T (sigma_y^2 I + r2 A A^T)^-1/2 z``; ``z`` as ``y``."""
        s2 = self.noise_std**2
        if (svd := self._svd) is not None:
            return self._spectral(*svd, z, lambda w2: (s2 + r2 * self.gain * w2).rsqrt())
        if self.iterations is not None:
            root = lanczos_apply(
                lambda v: s2 * v + r2 * self.A(self.At(v)), z, lambda w: w.clamp_min(s2).rsqrt(), self.iterations
            )
            return self.At(root)
        # S^-1/2 on the side of the signal: A^T z is in the range of A^T A, where noise-free measurements are regular
        return inverse_root(lambda v: s2 * v + r2 * self._normal(v), self.At(z), s2)

    @property
    def _svd(self) -> tuple[DecomposablePhysics, Tensor] | None:
        """The physics and its singular values, complex in the Fourier domain; None where they are not declared, as with
        weights, which change them."""
        physics = self.physics
        if not (self.linear and isinstance(physics, DecomposablePhysics)) or self.weight is not None:
            return None
        return physics, cast(Tensor, physics.mask)

    def _normal(self, v: Tensor) -> Tensor:
        """``A^T A v``."""
        return self.At(self.A(v))

    def _spectral(self, physics: DecomposablePhysics, w: Tensor, e: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``A^T f(A A^T) e`` through the declared SVD ``A = U diag(w) V^T``; directions with ``w = 0`` give 0."""
        w2 = _squares(w)
        weight = torch.where(w2 > 0, f(torch.where(w2 > 0, w2, 1.0)), 0.0)
        return self.canvas(physics.V(w.conj() * weight * physics.U_adjoint(e)))

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (B, d) and eigenvectors (B, d, d) of ``A^T A`` of small signals, with one product a column."""
        like = self.y.real.new_zeros(len(self.y), math.prod(self.shape))
        columns = []
        for j in range(like.shape[1]):
            one = like.clone()
            one[:, j] = 1
            columns.append(self._normal(one.reshape(-1, *self.shape)).flatten(1))
        matrix = torch.stack(columns, 2)
        values, basis = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
        floor = max(SIGMA_FLOOR**2, 10 * torch.finfo(values.dtype).eps)
        return torch.where(values > floor * values.amax(1, keepdim=True), values, 0.0), basis

    def filter(self, v: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``f(A^T A) v``, shape of ``v``: through the declared SVD, the eigenvectors of small signals, or by Lanczos.

        Args:
            v: shape (B, ...) of the canvas.
            f: of the squared singular values, element by element; they are exactly 0 where nothing was measured.
        """
        if (svd := self._svd) is not None:
            physics, w = svd
            w2 = self.gain * _squares(w)
            hidden = f(w2.new_zeros(()))
            return hidden * v + self.canvas(physics.V((f(w2) - hidden) * physics.V_adjoint(self.crop(v)))) / self.gain
        if v[0].numel() <= DENSE and not v.is_complex():
            w2, basis = self._eigen
            return torch.einsum("bij,bj,bkj,bk->bi", basis, f(w2).expand_as(w2), basis, v.flatten(1)).reshape(v.shape)
        floor = max(SIGMA_FLOOR**2, 10 * torch.finfo(v.dtype).eps)

        def above(values: Tensor) -> Tensor:
            return f(torch.where(values > floor * values.amax(-1, keepdim=True), values, 0.0))

        return lanczos_apply(self._normal, v, above, LANCZOS)

    @cached_property
    def spectrum(self) -> Tensor:
        """The diagonal of ``A^T A`` in the DCT domain, smoothed, shape (B, ...) of the canvas: a preconditioner."""
        like = self.y.real.new_zeros(len(self.y), *self.shape)
        found = probe_diagonal(self._normal, like)
        assert found is not None
        return found.clamp_min(0.0)

    @property
    def condition(self) -> float:
        """The largest over the least singular value that is not 0; infinity where they are not declared."""
        if (svd := self._svd) is None:
            return math.inf
        w2 = _squares(svd[1])
        seen = w2[w2 > 0]
        return math.sqrt(float(w2.max() / seen.min())) if len(seen) else 1.0

    @property
    def tight(self) -> bool:
        """Whether ``A A^T`` is declared to be a multiple of the identity on what was measured, as for masks."""
        return self.condition <= 1 + 5e-4


def _squares(w: Tensor) -> Tensor:
    """Squared singular values, those that are rounding errors of the largest one of their image set to 0."""
    w2 = (w.conj() * w).real
    largest = w2.amax(tuple(range(1, w2.ndim)), keepdim=True) if w2.ndim > 1 else w2.amax()  # of each image alone
    return torch.where(w2 > max(SIGMA_FLOOR, 10 * torch.finfo(w2.dtype).eps) ** 2 * largest, w2, 0.0)


def probe_diagonal(operator: Callable[[Tensor], Tensor], like: Tensor) -> Tensor | None:
    """The diagonal of a symmetric operator in the DCT domain, smoothed over neighbouring frequencies; None for complex
    signals.

    It is estimated with random signs, the same ones for every image and in every run.

    Args:
        operator: on tensors like ``like``, shape (B, ...).
        like: shape, dtype and device.
    """
    if like.is_complex():
        return None
    draws, total = SeededDraws([(0, 0)]), torch.zeros_like(like)
    for k in range(PROBES):
        z = torch.where(draws.normal("diagonal", 0, like[:1], inner=k) < 0, -1.0, 1.0).to(like).expand_as(like)
        total = total + z * dct(operator(idct(z)))
    mean = total / PROBES
    if mean.ndim == 4:
        mean = avg_pool2d(mean, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    return mean
