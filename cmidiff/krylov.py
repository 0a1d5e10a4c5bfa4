"""Batched Krylov methods: every sample is a linear system of its own.

An operator maps (B, ...) to (B, ...) and acts on each sample alone. Scalars of the iteration are per sample, and a
sample that has converged or broken down is frozen. Therefore no sample's result depends on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
CHECK = 8  # iterations of conjugate gradients between two questions whether all samples have converged


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, shape (B,); the real part for complex tensors."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).real


def per_sample(scalar: Tensor, like: Tensor) -> Tensor:
    """Shape a (B,) tensor so that it multiplies ``like`` of shape (B, ...)."""
    return scalar.reshape(-1, *[1] * (like.ndim - 1))


def capped(x: Tensor, most: Tensor | float) -> Tensor:
    """``x`` (B, ...), shortened where its norm, per sample, is above ``most``: (B,) or one number."""
    size = dot(x, x).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    return x * per_sample((most / size).clamp_max(1.0), x)


class Solution(NamedTuple):
    """What conjugate gradients found.

    Attributes:
        x: the solution, shape (B, ...).
        residual: ``|b - S x| / |b|``, shape (B,).
    """

    x: Tensor
    residual: Tensor


def tight(dtype: torch.dtype) -> float:
    """The relative residual at which a linear system counts as solved: 1e-10 in double precision, otherwise 1e-6."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def conjugate_gradient(
    operator: Operator,
    b: Tensor,
    *,
    iterations: int,
    tolerance: float | None = None,
    curvature: float = 0.0,
    precondition: Operator | None = None,
) -> Solution:
    """Solve ``S x = b`` from ``x = 0`` for a symmetric positive ``S``, one system a sample.

    A sample that has converged stays as it is, so that no result depends on the rest of the batch. Whether all have
    is asked every `CHECK` iterations only: each question waits for the device.

    Args:
        operator: ``v -> S v``, shape (B, ...).
        b: right-hand sides, shape (B, ...).
        iterations: at most this many products.
        tolerance: a sample stops when ``|b - S x| <= tolerance |b|``; None: `tight`. A loose one makes the number of
            iterations, and with it the result, depend on how the batch rounds.
        curvature: a sample also stops, keeping its last iterate, when ``p^T S p <= curvature |p|^2``. The operator is
            not the positive matrix it should be in that direction (a network's Jacobian need be neither symmetric nor
            positive).
        precondition: ``r -> P r``, a symmetric positive approximation of ``S^-1``.

    Source: Hestenes, Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """
    tolerance = tight(b.real.dtype) if tolerance is None else tolerance
    z = b if precondition is None else precondition(b)
    x, r, p, rz = torch.zeros_like(b), b, z, dot(b, z)
    bb = rr = dot(b, b)
    active = rr > 0
    for k in range(iterations):
        if k % CHECK == CHECK - 1 and not bool(active.any()):
            break
        sp = operator(p)
        psp = dot(p, sp)
        active = active & (psp > curvature * dot(p, p)) & (psp > 0)
        step = torch.where(active, rz / psp, 0.0)
        x = x + per_sample(step, x) * p
        r = torch.where(per_sample(active, r), r - per_sample(step, r) * sp, r)
        z = r if precondition is None else precondition(r)
        rz_new, rr = dot(r, z), dot(r, r)
        p = torch.where(per_sample(active, p), z + per_sample(rz_new / rz, p) * p, p)
        rz = rz_new
        active = active & (rr > tolerance**2 * bb) & (rz > 0)
    return Solution(x, (rr / bb.clamp_min(torch.finfo(bb.dtype).tiny)).sqrt())


def gmres(operator: Operator, b: Tensor, *, iterations: int) -> Solution:
    """Solve ``S x = b`` from ``x = 0`` for any ``S``, one system a sample, by the least residual over a Krylov space.

    A sample whose Krylov space is exhausted has found its solution, and its further directions are zero.

    Args:
        operator: ``v -> S v``, shape (B, ...).
        b: right-hand sides, shape (B, ...).
        iterations: products.

    Source: Saad, Schultz, "GMRES: A Generalized Minimal Residual Algorithm", 1986, https://doi.org/10.1137/0907058
    """
    x, v, r = torch.zeros_like(b), b, b
    pairs: list[tuple[Tensor, Tensor]] = []  # (v, S v), the second of each orthonormal
    for _ in range(iterations):
        w = operator(v)
        size = dot(w, w).sqrt()
        for _ in range(2):  # twice is enough
            for v_j, w_j in pairs:
                along = per_sample(dot(w_j, w), w)
                v, w = v - along * v_j, w - along * w_j
        left = dot(w, w).sqrt()
        alive = left > 1e2 * torch.finfo(left.dtype).eps * size
        scale = per_sample(torch.where(alive, 1 / left.where(alive, 1.0), 0.0), w)
        v, w = scale * v, scale * w
        along = per_sample(dot(w, r), w)
        x, r = x + along * v, r - along * w
        pairs.append((v, w))
        v = w
    tiny = torch.finfo(b.real.dtype).tiny
    return Solution(x, (dot(r, r) / dot(b, b).clamp_min(tiny)).sqrt())


def lanczos(operator: Operator, z: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos tridiagonalisation started at ``z``, with full reorthogonalisation.

    Returns:
        Basis ``Q`` (k, B, ...), Ritz values (B, k) and Ritz vectors (B, k, k) of ``T = Q^T S Q``; ``Q e_1 = z / |z|``.
        A sample whose Krylov space is exhausted (an invariant subspace) has zero basis vectors from there on, decoupled
        from the rest by zeros in ``T``.

    Source: Golub, Meurant, "Matrices, Moments and Quadrature", 1994.
    """
    norm = dot(z, z).sqrt()
    basis = z.new_zeros(iterations, *z.shape)
    basis[0] = z / per_sample(norm.clamp_min(torch.finfo(norm.dtype).tiny), z)
    diagonal, off = [], []
    alive = norm > 0
    for k in range(iterations):
        w = operator(basis[k])
        entry = dot(basis[k], w)
        alive = alive & entry.isfinite()  # eigh refuses the whole batch for one row that is not finite
        diagonal.append(torch.where(alive, entry, diagonal[0] if diagonal else 1.0))
        if k + 1 == iterations:
            break
        known = basis[: k + 1].flatten(2)
        for _ in range(2):  # twice is enough
            along = torch.einsum("kbn,bn->kb", known.conj(), w.flatten(1)).real.to(w.dtype)
            w = w - torch.einsum("kb,kbn->bn", along, known).reshape(w.shape)
        beta = dot(w, w).sqrt()
        scale = torch.stack([d.abs() for d in diagonal]).amax(0)
        alive = alive & beta.isfinite() & (beta > 1e2 * torch.finfo(beta.dtype).eps * scale)
        beta = torch.where(alive, beta, 0.0)
        off.append(beta)
        basis[k + 1] = torch.where(per_sample(alive, w), w / per_sample(torch.where(alive, beta, 1.0), w), 0.0)
    t = torch.diag_embed(torch.stack(diagonal, -1))
    if off:
        t = t + torch.diag_embed(torch.stack(off, -1), offset=1) + torch.diag_embed(torch.stack(off, -1), offset=-1)
    values, vectors = torch.linalg.eigh(t)
    return basis, values, vectors


def lanczos_apply(operator: Operator, z: Tensor, f: Callable[[Tensor], Tensor], iterations: int) -> Tensor:
    """``f(S) z`` for a symmetric ``S``, per sample; ``f`` acts on eigenvalues, which are bounded below by a positive
    number."""
    m = z[0].numel()
    basis, values, vectors = lanczos(operator, z, min(iterations, m))
    first = vectors[:, 0, :]
    weight = f(values.clamp_min(torch.finfo(values.dtype).tiny)) * first
    weight = torch.where(first.abs() > torch.finfo(values.dtype).eps, weight, 0.0)
    coefficients = torch.einsum("bij,bj->ib", vectors, weight) * dot(z, z).sqrt()
    return torch.einsum("kb,kb...->b...", coefficients.to(z.dtype), basis)
