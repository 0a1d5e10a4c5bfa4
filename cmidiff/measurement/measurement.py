"""What a solver needs to know of the measurement: ``y = A(x_0) + n``, ``n ~ N(0, sigma_y^2 I)``, in the prior's units.

`Canvas` has ``A`` and its adjoint, `Products` the functions of ``A^T A``. A measurement that is not linear takes both
from its linearisation at a state, `Measurement.linearised`. A latent prior has states ``z`` and a decoder ``D``: its
measurement is ``A(D(z))``, linearised by products with the Jacobian of the decoder.
"""

from __future__ import annotations

import math

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from cmidiff.forward import push_forward
from cmidiff.measurement.products import Products
from cmidiff.prior.decoder import Decoder

THROUGH_DECODER = 20  # products with a decoder in one linear solve: each is a forward and a backward pass of it


class Measurement(Products):
    """A measurement on the prior's canvas; see `Canvas` for its attributes."""

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
