"""``S^-1/2 b`` for a symmetric positive ``S`` that is known by its products alone.

    S^-1/2 = (2 / pi) int_-inf^inf e^u (e^2u I + S)^-1 du

The integrand is analytic in the strip ``|Im u| < pi / 2`` and falls off exponentially, so the trapezoidal rule with
step ``h`` errs by ``exp(-pi^2 / h)``. All its shifted systems share one Krylov space. Conjugate gradients on ``S``
solve them together, with one product of ``S`` an iteration for any number of shifts, until the slowest has converged.
No basis is stored, so the size of the signal does not limit the iterations.

Sources: Hale, Higham, Trefethen, "Computing A^alpha, log(A), and Related Matrix Functions by Contour Integrals", 2008,
https://doi.org/10.1137/070700607; Jegerlehner, "Krylov space solvers for shifted linear systems", 1996,
https://arxiv.org/abs/hep-lat/9612014 (the shifted recurrences); Trefethen, Weideman, "The Exponentially Convergent
Trapezoidal Rule", 2014, https://doi.org/10.1137/130932132.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmidiff.krylov import Operator, dot, per_sample

POWER_ITERATIONS = 8  # for the largest eigenvalue, of which only the order of magnitude matters


def inverse_root(operator: Operator, b: Tensor, least: float, *, iterations: int = 1000) -> Tensor:
    """``S^-1/2 b`` to half the digits of the precision, one system a sample, none depending on its neighbours.

    Args:
        operator: ``v -> S v``, shape (B, ...).
        b: shape (B, ...), in the range of ``S`` where that is singular.
        least: a lower bound of the eigenvalues that ``b`` meets, or 0 where none is known. Then those below the
            rounding error of the largest are not resolved.
        iterations: at most this many products.
    """
    eps = torch.finfo(b.real.dtype).eps
    size = dot(b, b).sqrt()
    unit = b / per_sample(size.clamp_min(torch.finfo(size.dtype).tiny), b)
    t, weight = _nodes(least, largest_eigenvalue(operator, unit), eps)
    return per_sample(size, b) * _shifted_sum(operator, unit, t**2, weight, 0.1 * math.sqrt(eps), iterations)


def largest_eigenvalue(operator: Operator, unit: Tensor) -> Tensor:
    """About the largest eigenvalue of a symmetric positive operator, shape (B,): power iteration from ``unit``."""
    v, value = unit, torch.ones_like(dot(unit, unit))
    for _ in range(POWER_ITERATIONS):
        w = operator(v)
        value = dot(w, w).sqrt()
        v = w / per_sample(value.clamp_min(torch.finfo(value.dtype).tiny), w)
    return value


def _nodes(least: float, most: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``t = e^u`` and the weights of the trapezoidal rule, both (nodes, B). Their number depends on the precision
    alone, their range on each sample's spectrum."""
    digits = -0.5 * math.log(eps)
    most = most.clamp_min(torch.finfo(most.dtype).tiny)
    low = 0.5 * most.mul(1e2 * eps).clamp_min(least).log() - digits
    high = 0.5 * most.log().maximum(2 * (low + digits)) + digits
    count = math.ceil((2 * digits - 0.5 * math.log(1e2 * eps)) * digits / math.pi**2) + 1
    u = low + (high - low) * torch.linspace(0, 1, count, dtype=most.dtype, device=most.device)[:, None]
    return u.exp(), 2 / math.pi * (high - low) / (count - 1) * u.exp()


def _shifted_sum(
    operator: Operator, b: Tensor, shift: Tensor, weight: Tensor, tolerance: float, iterations: int
) -> Tensor:
    """``sum_k weight_k (S + shift_k I)^-1 b`` by conjugate gradients on ``S``; residuals of the shifted systems are
    multiples of that of ``S``, by the product of the ``ratio``."""

    def each(values: Tensor) -> Tensor:
        return values.reshape(*values.shape, *[1] * (b.ndim - 1))

    r = p = b
    ps, total = b.expand(len(shift), *b.shape), torch.zeros_like(b)
    zeta = ratio = torch.ones_like(shift)
    rr, memory = dot(r, r), torch.zeros_like(shift[0])  # memory: b_{n-1} / a_{n-1}
    active = rr > 0
    for _ in range(iterations):
        if not bool(active.any()):
            break
        sp = operator(p)
        psp = dot(p, sp)
        active = active & (psp > 0)
        a = torch.where(active, rr / psp, 0.0)
        ratio = torch.where(active, 1 / (1 + a * (shift + memory * (1 - ratio))), ratio)
        total = total + (each(weight * a * ratio) * ps).sum(0)
        r = r - per_sample(a, r) * sp
        rr_new = torch.where(active, dot(r, r), rr)
        grown = torch.where(active, rr_new / rr, 0.0)
        zeta = torch.where(active, zeta * ratio, zeta)
        ps = each(zeta) * r + each(grown * ratio**2) * ps
        p = r + per_sample(grown, p) * p
        memory = torch.where(active, grown / a, memory)
        rr = rr_new
        active = active & (rr > tolerance**2)
    return total
