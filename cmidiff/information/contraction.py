"""``C(a, b) = grad_x <b, J(x_t) a>``: the derivative of the denoiser's Jacobian along two constant directions.

It is computed in one of four ways (`contract`); which one is right depends on the network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cmidiff.covariance import difference_size, precision
from cmidiff.forward import push_forward
from cmidiff.krylov import dot, per_sample
from cmidiff.prior.base import Denoiser
from cmidiff.step import Step

Estimator = Literal["measurement-symmetric", "measurement", "shared-probe", "two-term"]
Contraction = Literal["finite-difference", "double-backward", "reverse-over-forward", "second-difference"]

HALF = (torch.float16, torch.bfloat16)


def contract(step: Step, a: Tensor, b: Tensor, how: Contraction, size: float | None = None) -> Tensor:
    """``C(a, b)_k = sum_ij b_i (d J_ij / d x_k) a_j`` at ``x_t``, shape (B, ...).

    Args:
        a, b: directions, shape of ``x_t``.
        how: ``double-backward`` (exact; the network's backward must be differentiable), ``reverse-over-forward``
            (exact; needs forward-mode formulas, fails with activation checkpointing). ``finite-difference`` of
            vector-Jacobian products (any network). ``second-difference`` of the denoiser (no backward, only for ``a =
            b``). Its error is the asymmetry of the network's third derivative.
        size: finite-difference step relative to ``sigma_t`` and the rms of ``a``; by default
            `difference_size`.
    """
    if how == "double-backward":
        with torch.enable_grad():
            pulled = torch.autograd.grad(step.x_hat, step.x_t, b, create_graph=True)[0]
            through = (pulled * a).sum()
        if not through.requires_grad:  # a denoiser that is linear in x_t
            return torch.zeros_like(a)
        grad = torch.autograd.grad(through, step.x_t, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(a) if grad is None else grad
    x_t = step.x_t.detach()
    if how == "reverse-over-forward":

        def along(x: Tensor) -> Tensor:
            return (push_forward(step.denoise, x, a) * b).sum()

        return torch.func.grad(along)(x_t)
    rms = (dot(a, a) / a[0].numel()).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
    if size is None:
        size = difference_size(precision(step), 1 if how == "finite-difference" else 2)
    h = per_sample(step.level_t[1] * size / rms, a)
    if how == "second-difference":
        with torch.no_grad():
            plus, minus = step.denoise(torch.cat([x_t + h * a, x_t - h * a])).chunk(2)
        return (plus - 2 * step.x_hat.detach() + minus) / h**2

    def back(x: Tensor) -> Tensor:
        """``J(x)^T b``; one graph at a time, no larger than the sampler's own."""
        with torch.enable_grad():
            x.requires_grad_()
            return torch.autograd.grad(step.denoise(x), x, b)[0]

    return (back(x_t + h * a) - back(x_t - h * a)) / (2 * h)


def default_contraction(estimator: Estimator, prior: Denoiser) -> Contraction:
    """``second-difference`` for the symmetric estimator on networks in single precision or finer, else
    ``finite-difference``.

    The second difference is the cheapest. On a network trained on a mixture whose information gradient is known, it is
    as accurate as an exact contraction of the Jacobian. The remaining error is that of the network
    (``docs/validation.md``). In half precision the rounding of the network leaves a third of it
    (``docs/cost-256.md``).
    """
    symmetric = estimator == "measurement-symmetric"
    return "second-difference" if symmetric and prior.dtype not in HALF else "finite-difference"
