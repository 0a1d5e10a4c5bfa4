"""Posterior sampling with latent diffusion: the DPS step through the decoder, and a pull to what the autoencoder keeps.

    x_s = x'_s - grad_{x_t} ( omega |y - A D(x_hat)| + gamma |E(G(D(x_hat))) - x_hat| )

``D`` decodes, ``E`` encodes, and ``G`` makes an image agree with the measurement. The second term (the gluing
objective) asks for latents that are unchanged by decoding, agreement with ``y`` and encoding. ``gamma = 0`` is latent
DPS. Without a decoder ``D`` and ``E`` are the identity.

The paper's ``G(x) = A^T y + (I - A^T A) x`` is meant for ``A A^T = I``. Here ``G`` is the posterior mean of a pixel
with the variance ``v`` of images around ``x``. It is the same for such an ``A`` without noise:

    G(x) = x + v A^T (sigma_y^2 I + v A A^T)^-1 (y - A x)

Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, "Solving Linear Inverse Problems Provably via Posterior Sampling
with Latent Diffusion Models", 2023, https://arxiv.org/abs/2307.00619

The official code adds fresh measurement noise to ``A D(x_hat)`` at every step and takes an up-sampling for ``A^T`` in
super-resolution. Its samples of inpainting are shown with the true pixels pasted in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from cmidiff.config import NotNegative
from cmidiff.krylov import dot, per_sample
from cmidiff.measurement import Measurement
from cmidiff.prior.base import IMAGE_VARIANCE
from cmidiff.solvers.base import Solver
from cmidiff.solvers.scale import Scale, is_active, scale_at
from cmidiff.step import Carry, Problem, Step

Glue = Callable[[Step, Measurement, Tensor], Tensor]


class _Agreement(torch.autograd.Function):
    """``G`` above; its linear part is symmetric."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, measurement: Measurement, v: float) -> Tensor:
        ctx.measurement, ctx.v = measurement, v
        return image + v * measurement.solve(measurement.residual(image), v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        m: Measurement = ctx.measurement
        return grads[0] - ctx.v * m.solve(m.A(grads[0]), ctx.v), None, None


def agree(step: Step, measurement: Measurement, image: Tensor) -> Tensor:
    """``G(image)``, differentiable.

    Args:
        step: the prior.
        measurement: of the image.
        image: (B, C, H, W) on the canvas.
    """
    low, high = step.prior.value_range or (-1.0, 1.0)
    found = _Agreement.apply(image, measurement, IMAGE_VARIANCE * (0.5 * (high - low)) ** 2)
    assert isinstance(found, Tensor)
    return found


@dataclass(frozen=True)
class PSLD(Solver):
    """Posterior sampling with latent diffusion, for linear physics.

    Args:
        scale: omega >= 0 of a run of 1000 steps, as in `DPS`. The official default is 1, its scripts take 0.1.
        glue: gamma >= 0 of a run of 1000 steps; 0 is latent DPS, which needs no encoder.
        agree: ``G``, as a function of the step, the measurement of the image, and the image.
        guard: shorten a step that would overshoot the point where both norms are zero to first order; the official
            code does not.
    """

    scale: Scale = 1.0
    glue: NotNegative = 0.1
    agree: Glue = agree
    guard: bool = True

    kind: ClassVar[str] = "latent priors"
    needs_linear: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    @property
    def needs_graph(self) -> bool:
        return is_active(self.scale) or self.glue > 0

    def check(self, problem: Problem) -> None:
        decoder = problem.prior.decoder
        if self.glue > 0 and decoder is not None and decoder.encode is None:
            raise ValueError(
                f"PSLD: glue needs an encoder, and {problem.prior.name} has none: take glue=0 (latent DPS)"
            )

    def residual(self, step: Step, measurement: Measurement, image: Tensor) -> Tensor:
        """``y - A image``."""
        return measurement.residual(image)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        if not self.needs_graph:
            return x_s, carry
        value, pulled = self._objective(step)
        gradient = step.vjp(pulled, last=True)
        if not self.guard:
            return x_s - gradient, carry
        curvature = dot(gradient, gradient)
        length = (value / curvature.where(curvature > 0, 1.0)).clamp_max(1.0)
        return x_s - per_sample(length, gradient) * gradient, carry

    def _objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """The weighted norms, shape (B,), and their gradient with respect to ``x_hat``."""
        measurement, omega, gamma = step.measurement.of_image, scale_at(self.scale, step), self.glue * 1000 / step.steps
        with torch.enable_grad():
            z = step.x_hat.detach().requires_grad_()
            image = step.prior.decode(z)
            value = omega * vector_norm(self.residual(step, measurement, image).flatten(1), dim=1)
            if gamma > 0:
                glued = step.prior.encode(self.agree(step, measurement, image))
                value = value + gamma * vector_norm((glued - z).flatten(1), dim=1)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]
