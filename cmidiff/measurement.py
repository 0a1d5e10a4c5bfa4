"""What a guidance needs to know of the measurement: ``y = A x_0 + n``, ``n ~ N(0, sigma_y^2 I)``, in the prior's own
units.

The physics speaks of images at the door (say, grayscale photographs of 250 x 187 pixels in [0, 1]); the prior of its
own canvas (three channels, sides divisible by 8, [-1, 1]). `Measurement` is the bridge. With ``P`` the map from canvas
to image (crop, then the mean of the channels where the physics has one and the prior three) and ``x01 = low + (x + 1)/2
(high - low)``, the affine part moves into ``y``, so that all solvers see a linear ``A P`` and one noise level. ``P P^T
= c I`` with ``c = 1`` or ``1/3``: spectra of ``A`` serve ``A P`` too.

Two products carry every covariance-aware solver while ``Sigma_post ~ r^2 I``, with ``S = sigma_y^2 I + r^2 A A^T``:

    solve(e, r2)   = A^T S^-1 e        (PiGDM, CA-DPS isotropic)
    whiten(z, r2)  = A^T S^-1/2 z      (the probes of the symmetric CMI estimator)

both in closed form if the physics declares its SVD (`deepinv.physics.DecomposablePhysics`), by Krylov iterations
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from deepinv.physics import DecomposablePhysics, LinearPhysics, Physics
from torch import Tensor

from cmidiff.krylov import conjugate_gradient, lanczos_apply
from cmidiff.physics import known_entries, measured_count

SIGMA_FLOOR = 1e-8  # relative to the largest singular value: what is below was not measured (float32: 1e-6)


@dataclass(frozen=True)
class Measurement:
    """A measurement on the prior's canvas.

    Args:
        y: measurement, shape (B, ...), in the units of the physics applied to the canvas.
        physics: the forward operator, applied to the image.
        noise_std: sigma_y >= 0, in the units of ``y``.
        shape: (C, H, W) of the canvas.
        image: (c, h, w) of the image; ``h <= H`` and ``w <= W``, and ``c`` is ``C`` or 1.
    """

    y: Tensor
    physics: Physics
    noise_std: float
    shape: tuple[int, ...]
    image: tuple[int, ...]

    @property
    def linear(self) -> bool:
        return isinstance(self.physics, LinearPhysics)

    @property
    def gain(self) -> float:
        """``c`` in ``P P^T = c I``."""
        return self.image[0] / self.shape[0]

    def crop(self, x: Tensor) -> Tensor:
        """``P x``: canvas (B, C, H, W) to image (B, c, h, w)."""
        if self.shape == self.image:
            return x
        x = x[(..., *(slice(0, n) for n in self.image[1:]))]
        return x if self.image[0] == self.shape[0] else x.mean(1, keepdim=True)

    def canvas(self, x: Tensor) -> Tensor:
        """``P^T x``: image to canvas."""
        if self.shape == self.image:
            return x
        padded = x.new_zeros(x.shape[0], self.image[0], *self.shape[1:])
        padded[(..., *(slice(0, n) for n in self.image[1:]))] = x
        return padded if self.image[0] == self.shape[0] else (padded / self.shape[0]).expand(-1, *self.shape)

    def A(self, x: Tensor) -> Tensor:
        """``A x``."""
        return self.physics.A(self.crop(x))

    def At(self, e: Tensor) -> Tensor:
        """``A^T e``."""
        if not isinstance(self.physics, LinearPhysics):
            raise TypeError(_nonlinear("the adjoint", self.physics))
        return self.canvas(self.physics.A_adjoint(e))

    def pull(self, x_hat: Tensor, e: Tensor) -> Tensor:
        """``(dA/dx at x_hat)^T e``: the adjoint of a linear physics, a vector-Jacobian product otherwise."""
        return self.canvas(self.physics.A_vjp(self.crop(x_hat), e))

    def residual(self, x_hat: Tensor) -> Tensor:
        """``y - A x_hat``."""
        return self.y - self.A(x_hat)

    def solve(self, e: Tensor, r2: float) -> Tensor:
        """``A^T (sigma_y^2 I + r2 A A^T)^-1 e``, the minimum-norm solution where ``sigma_y = 0``; ``e`` as ``y``, ``r2
        > 0``."""
        s2 = self.noise_std**2
        if isinstance(self.physics, DecomposablePhysics):
            return self._spectral(e, lambda w2: 1.0 / (s2 + r2 * self.gain * w2))
        tolerance = 1e-10 if e.dtype == torch.float64 else 1e-5
        return conjugate_gradient(
            lambda v: s2 * v + r2 * self.At(self.A(v)), self.At(e), iterations=200, tolerance=tolerance
        )

    def whiten(self, z: Tensor, r2: float) -> Tensor:
        """``A^T (sigma_y^2 I + r2 A A^T)^-1/2 z``; ``z`` as ``y``."""
        s2 = self.noise_std**2
        if isinstance(self.physics, DecomposablePhysics):
            return self._spectral(z, lambda w2: (s2 + r2 * self.gain * w2).rsqrt())

        def inverse_root(w: Tensor) -> Tensor:
            if s2 > 0:
                return w.clamp_min(s2).rsqrt()
            seen = w > 1e2 * torch.finfo(w.dtype).eps * w.amax(-1, keepdim=True)  # the others are rounded zeros
            return torch.where(seen, w, math.inf).rsqrt()

        return self.At(lanczos_apply(lambda v: s2 * v + r2 * self.A(self.At(v)), z, inverse_root, iterations=60))

    def _spectral(self, e: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``A^T f(A A^T) e`` through the declared SVD ``A = U diag(w) V^T``; directions with ``w = 0`` give 0."""
        physics = self.physics
        assert isinstance(physics, DecomposablePhysics)
        w = cast(Tensor, physics.mask)
        w2 = (w.conj() * w).real
        seen = w2 > max(SIGMA_FLOOR, 10 * torch.finfo(w2.dtype).eps) ** 2 * w2.max()
        weight = torch.where(seen, f(torch.where(seen, w2, 1.0)), 0.0)
        return self.canvas(physics.V(w.conj() * weight * physics.U_adjoint(e)))

    def misfit(self, x_hat: Tensor) -> Tensor:
        """``|y - A x_hat| / (sigma_y sqrt(m))`` per image, shape (B,): 1 where the residual is the noise. In units of
        ``y`` if ``sigma_y = 0``. Entries that a mask hides are not counted in ``m``."""
        r = self.residual(x_hat)
        physics = cast(LinearPhysics, self.physics)
        known, m = known_entries(physics, r), measured_count(physics, r).to(r.real)
        seen = r if known is None else r * known
        return torch.linalg.vector_norm(seen.flatten(1), dim=1) / (m.sqrt() * (self.noise_std or 1.0))


def _nonlinear(what: str, physics: Physics) -> str:
    return (
        f"{what} needs a linear physics, received {type(physics).__name__}: "
        "use DPS or DSG, which need only the gradient of the residual, or pass a deepinv LinearPhysics"
    )
