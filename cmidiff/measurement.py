"""What a solver needs to know of the measurement: ``y = A(x_0) + n``, ``n ~ N(0, sigma_y^2 I)``, in the prior's units.

`cmidiff.canvas.Canvas` has ``A`` and its adjoint. Here are the functions of ``A^T A`` that solvers take, with ``S =
sigma_y^2 I + r^2 A A^T``:

    solve(e, r2)   = A^T S^-1 e        (PiGDM, CA-DPS isotropic)
    whiten(z, r2)  = A^T S^-1/2 z      (the probes of the symmetric CMI estimator)
    filter(v, f)   = f(A^T A) v        (DDRM, DDNM)

They are in closed form if the physics declares its SVD (`deepinv.physics.DecomposablePhysics`), and Krylov iterations
otherwise. A measurement that is not linear has them at a state: `Measurement.linearised`. A latent prior has states
``z`` and a decoder ``D``: its measurement is ``A(D(z))``, linearised by products with the Jacobian of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
from deepinv.physics import DecomposablePhysics, Denoising, LinearPhysics
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmidiff.canvas import Canvas
from cmidiff.canvas import nonlinear as nonlinear
from cmidiff.dct import dct, idct
from cmidiff.draws import SeededDraws
from cmidiff.forward import push_forward
from cmidiff.krylov import conjugate_gradient, lanczos_apply
from cmidiff.physics import known_entries, measured_count
from cmidiff.prior.decoder import Decoder
from cmidiff.whitening import inverse_root

PROBES, WINDOW = 4, 5  # of the estimate of the diagonal of A^T A: random signs, and side of the window in frequencies
THROUGH_DECODER = 20  # products with a decoder in one linear solve: each is a forward and a backward pass of it
DENSE = 512  # numbers of a signal up to which the eigenvectors of A^T A are computed
LANCZOS = 24  # iterations for a function of A^T A without a declared SVD
SIGMA_FLOOR = 1e-8  # relative to the largest singular value: what is below was not measured (float32: 1e-6)


class Measurement(Canvas):
    """A measurement on the prior's canvas, and functions of its ``A^T A``; see `Canvas` for its attributes."""

    def pull(self, x_hat: Tensor, e: Tensor) -> Tensor:
        """``(dA/dx at x_hat)^T e``: the adjoint of a linear physics, a vector-Jacobian product otherwise.

        The product is automatic differentiation's, not ``physics.A_vjp``: deepinv's own is complex for a phase
        retrieval of real images."""
        if self.linear:
            return self.At(e)
        with torch.enable_grad():
            x = x_hat.detach().requires_grad_()
            return torch.autograd.grad(self.A(x), x, e)[0]

    def linearised(self, x_hat: Tensor) -> Measurement:
        """The linear measurement that this one is near ``x_hat``. ``A`` is ``dA/dx`` there, the noise is the same, and
        ``y`` is such that the residual at ``x_hat`` is that of this one, ``y - A(x_hat) + A x_hat``.

        What needs a linear operator takes it in place of ``step.measurement``. `A`, `At`, `solve` and `whiten` are
        Jacobian products (``A x`` and ``A^T e`` one backward pass each, through a graph that is made once). Rows of
        their arguments belong to the rows of ``x_hat``. A linear measurement is returned as it is.

        Args:
            x_hat: where, on the canvas, shape (B, C, H, W).
        """
        if self.linear:
            return self
        if self.decoder is not None:
            return self._through(self.decoder, x_hat.detach())
        with torch.enable_grad():
            x = x_hat.detach().requires_grad_()
            value = self.A(x)
            e = torch.zeros_like(value, requires_grad=True)
            pulled = torch.autograd.grad(value, x, e, create_graph=True)[0]  # linear in e: its derivative is dA/dx

        def forward(v: Tensor) -> Tensor:
            return torch.autograd.grad(pulled, e, v, retain_graph=True)[0]

        def adjoint(u: Tensor) -> Tensor:
            return torch.autograd.grad(value, x, u, retain_graph=True)[0]

        physics = LinearPhysics(A=forward, A_adjoint=adjoint, img_size=self.shape, device=x.device)
        y = self.y - value.detach() + forward(x.detach())
        return Measurement(y, physics, self.noise_std, self.shape, self.shape, local=True)

    def _through(self, decoder: Decoder, z: Tensor) -> Measurement:
        """`linearised` with a decoder: that of the image at ``D(z)``, times the Jacobian ``dD/dz``: forward products
        are forward-mode derivatives, which keep no graph. Adjoint products are backward passes of one graph."""
        with torch.enable_grad():
            z = z.requires_grad_()
            image = decoder.decode(z)
        inner = self.of_image.linearised(image.detach())

        def forward(v: Tensor) -> Tensor:
            with torch.no_grad():
                return inner.A(push_forward(decoder.decode, z.detach(), v))

        def adjoint(u: Tensor) -> Tensor:
            return torch.autograd.grad(image, z, inner.At(u), retain_graph=True)[0]

        physics = LinearPhysics(A=forward, A_adjoint=adjoint, img_size=self.shape, device=z.device)
        y = inner.residual(image.detach()) + forward(z.detach())
        return Measurement(
            y, physics, self.noise_std, self.shape, self.shape, iterations=THROUGH_DECODER, local=inner.local
        )

    def solve(self, e: Tensor, r2: float, residuals: list[Tensor] | None = None) -> Tensor:
        """``A^T (sigma_y^2 I + r2 A A^T)^-1 e``, the minimum-norm solution where ``sigma_y = 0``.

        Args:
            e: as ``y``.
            r2: positive.
            residuals: where the relative residual of an iterative solve is appended, shape (B,).
        """
        s2 = self.noise_std**2
        if self._decomposed:
            return self._spectral(e, lambda w2: 1.0 / (s2 + r2 * self.gain * w2))
        found = conjugate_gradient(
            lambda v: s2 * v + r2 * self.At(self.A(v)), self.At(e), iterations=self.iterations or 200
        )
        if residuals is not None:
            residuals.append(found.residual)
        return found.x

    def inverse(self, e: Tensor, r2: float) -> Tensor | None:
        """``(sigma_y^2 I + r2 A A^T)^-1 e``, shape of ``e``; None without a declared SVD."""
        if not self._decomposed:
            return None
        physics, s2 = self.physics, self.noise_std**2
        assert isinstance(physics, DecomposablePhysics)
        w = cast(Tensor, physics.mask)
        seen = r2 * self.gain * (w.conj() * w).real
        inside = physics.U_adjoint(e)
        # S = s2 I on what no singular vector reaches, and U (s2 + seen) U^T on the rest
        return e / s2 + physics.U((1 / (s2 + seen) - 1 / s2) * inside) if s2 > 0 else None

    def prox(self, v: Tensor, r2: float, residuals: list[Tensor] | None = None) -> Tensor:
        """``argmin_x |y - A x|^2 / sigma_y^2 + |x - v|^2 / r2``: the posterior mean of ``x ~ N(v, r2 I)``; where ``A``
        is not linear, one Gauss-Newton step from ``v``."""
        linear = self.linearised(v)
        return v + r2 * linear.solve(linear.residual(v), r2, residuals)

    def draw(self, v: Tensor, r2: float, n: Tensor, e: Tensor, residuals: list[Tensor] | None = None) -> Tensor:
        """A draw of ``p(x | y)`` for ``x ~ N(v, r2 I)``: `prox` of a perturbed ``v`` with a perturbed ``y``.

        Args:
            v: mean, shape (B, ...) of the canvas.
            r2: variance.
            n, e: standard normal numbers, shapes of ``v`` and of ``y``.
            residuals: as in `solve`.

        Source: Papandreou, Yuille, "Gaussian Sampling by Local Perturbations", 2010.
        """
        linear, v = self.linearised(v), v + math.sqrt(r2) * n
        return v + r2 * linear.solve(linear.residual(v) + self.noise_std * e, r2, residuals)

    @cached_property
    def spectrum(self) -> Tensor:
        """The diagonal of ``A^T A`` in the DCT domain, smoothed, shape (B, ...) of the canvas: a preconditioner."""
        like = self.y.real.new_zeros(len(self.y), *self.shape)
        found = probe_diagonal(lambda v: self.At(self.A(v)), like)
        assert found is not None
        return found.clamp_min(0.0)

    @property
    def identity(self) -> bool:
        """Whether ``y`` is the image itself with white noise of one level, on a canvas of the same shape."""
        return self.linear and isinstance(self.physics, Denoising) and self.weight is None and self.shape == self.image

    def amplify(self) -> Tensor:
        """The root mean square of ``A^+ e`` for white noise ``e`` of variance 1, one draw for all images, (B,)."""
        like = self.y[:1]
        e = SeededDraws([(0, 0)]).normal("amplification", 0, like).expand_as(self.y)
        known = known_entries(self.physics, e)
        found = self.solve(e if known is None else e * known, 1.0)
        return found.flatten(1).square().mean(1).sqrt()

    @property
    def tight(self) -> bool:
        """Whether ``A A^T`` is declared to be a multiple of the identity on what was measured, as for masks."""
        if not self._decomposed:
            return False
        w2 = _squares(cast(Tensor, cast(DecomposablePhysics, self.physics).mask))
        return bool(((w2 == 0) | (w2 >= (1 - 1e-3) * w2.max())).all())

    def whiten(self, z: Tensor, r2: float) -> Tensor:
        """``A^T (sigma_y^2 I + r2 A A^T)^-1/2 z``; ``z`` as ``y``."""
        s2 = self.noise_std**2
        if self._decomposed:
            return self._spectral(z, lambda w2: (s2 + r2 * self.gain * w2).rsqrt())

        if self.iterations is not None:
            root = lanczos_apply(
                lambda v: s2 * v + r2 * self.A(self.At(v)), z, lambda w: w.clamp_min(s2).rsqrt(), self.iterations
            )
            return self.At(root)
        # S^-1/2 on the side of the signal: A^T z is in the range of A^T A, where noise-free measurements are regular
        return inverse_root(lambda v: s2 * v + r2 * self.At(self.A(v)), self.At(z), s2)

    @property
    def _decomposed(self) -> bool:
        """Whether the singular values of ``A`` are declared: weights change them."""
        return self.linear and isinstance(self.physics, DecomposablePhysics) and self.weight is None

    def _spectral(self, e: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``A^T f(A A^T) e`` through the declared SVD ``A = U diag(w) V^T``; directions with ``w = 0`` give 0."""
        physics, w = self._decomposition()
        w2 = _squares(w)
        weight = torch.where(w2 > 0, f(torch.where(w2 > 0, w2, 1.0)), 0.0)
        return self.canvas(physics.V(w.conj() * weight * physics.U_adjoint(e)))

    def _decomposition(self) -> tuple[DecomposablePhysics, Tensor]:
        """The physics and its singular values, complex in the Fourier domain."""
        assert isinstance(self.physics, DecomposablePhysics)
        return self.physics, cast(Tensor, self.physics.mask)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (B, d) and eigenvectors (B, d, d) of ``A^T A`` of small signals, with one product a column."""
        like = self.y.real.new_zeros(len(self.y), math.prod(self.shape))
        columns = []
        for j in range(like.shape[1]):
            one = like.clone()
            one[:, j] = 1
            columns.append(self.At(self.A(one.reshape(-1, *self.shape))).flatten(1))
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
        if not self._decomposed and v[0].numel() <= DENSE and not v.is_complex():
            w2, basis = self._eigen
            return torch.einsum("bij,bj,bkj,bk->bi", basis, f(w2).expand_as(w2), basis, v.flatten(1)).reshape(v.shape)
        if not self._decomposed:
            floor = max(SIGMA_FLOOR**2, 10 * torch.finfo(v.dtype).eps)

            def above(values: Tensor) -> Tensor:
                return f(torch.where(values > floor * values.amax(-1, keepdim=True), values, 0.0))

            return lanczos_apply(lambda x: self.At(self.A(x)), v, above, LANCZOS)
        physics, w = self._decomposition()
        w2 = self.gain * _squares(w)
        hidden = f(w2.new_zeros(()))
        return hidden * v + self.canvas(physics.V((f(w2) - hidden) * physics.V_adjoint(self.crop(v)))) / self.gain

    def misfit(self, x_hat: Tensor) -> Tensor:
        """``|y - A x_hat| / (sigma_y sqrt(m))`` per image, shape (B,): 1 where the residual is the noise. In units of
        ``y`` if ``sigma_y = 0``. Entries that a mask hides are not counted in ``m``."""
        r = self.residual(x_hat)
        known, m = known_entries(self.physics, r), measured_count(self.physics, r).to(r.real)
        seen = r if known is None else r * known
        return torch.linalg.vector_norm(seen.flatten(1), dim=1) / (m.sqrt() * (self.noise_std or 1.0))


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
