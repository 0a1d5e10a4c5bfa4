"""What a guidance needs to know of the measurement: ``y = A(x_0) + n``, ``n ~ N(0, sigma_y^2 I)``, in the prior's own
units.

The physics acts on the user's images (say, grayscale photographs of 250 x 187 pixels in [0, 1]). The prior acts on its
own canvas (three channels, sides divisible by 8, [-1, 1]). `Measurement` is the bridge. ``P`` is the map from canvas to
image: crop, then the mean of the channels where the physics has one and the prior three. With ``x01 = gain x +
offset``, the affine part of a linear physics moves into ``y``. All solvers then see a linear ``A P`` and one noise
level. ``P P^T = c I`` with ``c = 1`` or ``1/3``: spectra of ``A`` serve ``A P`` too. A non-linear physics is composed
with the affine map instead, ``A'(x) = A(gain P x + offset) / gain``, which is the same up to a constant where ``A`` is
linear.

Noise whose variance differs from entry to entry (photons) is whitened. ``y`` and ``A`` are both multiplied by
``weight``, after which ``sigma_y`` is one number again.

A latent prior has states ``z`` and a decoder ``D``: its measurement is ``A(D(z))``, which is not linear. What needs a
linear operator takes the linearisation at a state (`Measurement.linearised`), by products with the decoder's Jacobian.

Two products carry every covariance-aware solver while ``Sigma_post ~ r^2 I``, with ``S = sigma_y^2 I + r^2 A A^T``:

    solve(e, r2)   = A^T S^-1 e        (PiGDM, CA-DPS isotropic)
    whiten(z, r2)  = A^T S^-1/2 z      (the probes of the symmetric CMI estimator)

both in closed form if the physics declares its SVD (`deepinv.physics.DecomposablePhysics`), by Krylov iterations
otherwise. A non-linear physics has them at a point: `Measurement.linearised`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from deepinv.physics import DecomposablePhysics, Denoising, LinearPhysics, Physics
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmidiff.dct import dct, idct
from cmidiff.draws import SeededDraws
from cmidiff.forward import push_forward
from cmidiff.krylov import conjugate_gradient, lanczos_apply
from cmidiff.physics import known_entries, measured_count
from cmidiff.physics.parts import own_rows, rows_of
from cmidiff.prior.decoder import Decoder
from cmidiff.whitening import inverse_root

PROBES, WINDOW = 4, 5  # of the estimate of the diagonal of A^T A: random signs, and side of the window in frequencies
THROUGH_DECODER = 20  # products with a decoder in one linear solve: each is a forward and a backward pass of it
DENSE = 512  # numbers of a signal up to which the eigenvectors of A^T A are computed
LANCZOS = 24  # iterations for a function of A^T A without a declared SVD
SIGMA_FLOOR = 1e-8  # relative to the largest singular value: what is below was not measured (float32: 1e-6)


@dataclass(frozen=True)
class Measurement:
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

    def take(self, rows: Sequence[int]) -> Measurement:
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
    def of_image(self) -> Measurement:
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

    def residual(self, x_hat: Tensor) -> Tensor:
        """``y - A x_hat``."""
        return self.y - self.A(x_hat)

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


def nonlinear(what: str, physics: Physics) -> str:
    """Why ``what`` is refused with a physics that is not linear."""
    return (
        f"{what} needs a linear physics, received {type(physics).__name__}: "
        "use DPS or DSG, which need only the gradient of the residual, or pass a deepinv LinearPhysics"
    )


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
