"""``Sigma = Q^T diag(1 / (1 / lambda + alpha_t^2 / sigma_t^2)) Q``: the covariance of Gaussian data with the second
moments of the prior, in the DCT domain.

It is exact for Gaussian data, at every noise level. At high noise it is the covariance of the data itself, and the
move of ``x_hat`` is the Wiener estimate. A network's Jacobian is tiny and inaccurate there, and ``r_t^2 I`` is off by
the size of the spectrum. It needs no derivative of the network. At low noise it tends to ``sigma_t^2 / alpha_t^2 I``,
which ignores that the denoiser knows more in smooth regions than at edges.
"""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from cmidiff import moments
from cmidiff.config import Iterations, Positive
from cmidiff.covariance.base import NOISE_FLOOR, Covariance, Iterated
from cmidiff.dct import dct, idct
from cmidiff.draws import SeededDraws
from cmidiff.krylov import conjugate_gradient, dot
from cmidiff.measurement import Measurement, probe_diagonal
from cmidiff.prior.base import Denoiser
from cmidiff.prior.wrapped import WrappedPrior
from cmidiff.schedule import pairs
from cmidiff.step import Problem, Step

COARSE = 0.1  # noise of a well-conditioned system, relative to what is not known: see `_among_signals`
ITERATIONS, TOLERANCE = 300, 1e-6  # of conjugate gradients; no network in these products
START = 4.0  # sigma_t / alpha_t: above it the noise hides what images have beyond their second moments
SAMPLES, AT_ONCE, STEPS, SIDE = 32, 8, 20, 64  # of the prior itself, where no second moments come with it
_measured: weakref.WeakKeyDictionary[Denoiser, dict[tuple[int, ...], moments.SecondMoments]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class SecondMoments(Covariance):
    """The covariance of the prior's second moments.

    Args:
        iterations: at most this many preconditioned conjugate-gradient iterations; none of them runs the network.
        tolerance: of the linear system, relative.
    """

    iterations: Iterations = ITERATIONS
    tolerance: Positive = TOLERANCE

    def at(self, step: Step) -> BoundMoments:
        _, spectrum = known_moments(step.prior, step.measurement.shape, step.x_t)
        variances = 1 / (1 / spectrum + 1 / step.ratio**2)
        return BoundMoments(step, self.iterations, variances, self.tolerance)

    @property
    def start(self) -> float:
        return START

    def needs_graph(self, ratio: float) -> bool:
        return False


@dataclass(frozen=True)
class BoundMoments(Iterated):
    """``Sigma = Q^T diag(variances) Q``."""

    variances: Tensor
    tolerance: float

    def product(self, v: Tensor) -> Tensor:
        return idct(self.variances * dct(v))

    def inverse(self, v: Tensor) -> Tensor:
        return idct(dct(v) / self.variances)

    def solve(self, e: Tensor) -> Tensor:
        step = self.step
        options = (COARSE * step.ratio, self.iterations, self.tolerance, step.record.residuals)
        return solve(step.measurement, self.variances, e, *options)

    def move(self, w: Tensor, *, last: bool = True) -> Tensor:
        return self.product(w)

    def scatter(self, scale: float) -> Tensor | None:
        scaled = replace(self, variances=scale * self.variances)
        return scaled.given(idct(scaled.variances.sqrt() * self.step.normal("posterior")))


@dataclass(frozen=True)
class LowRank:
    """What is added to a diagonal precision: ``Sigma^-1 = Q^T (diag(1 / variances) + W diag(signs) W^T) Q``, ``Q`` the
    DCT; positive definite.

    Args:
        variances: shape (B, ...) of a signal.
        vectors: ``W``, shape (K, B, ...).
        signs: 1 or -1, shape (K,).
    """

    variances: Tensor
    vectors: Tensor
    signs: Tensor

    @cached_property
    def _core(self) -> Tensor:
        """``diag(signs) + W^T diag(variances) W``, shape (B, K, K)."""
        scaled = self.variances * self.vectors
        return torch.diag(self.signs) + torch.einsum("jbn,kbn->bjk", scaled.flatten(2), self.vectors.flatten(2))

    def extra(self, u: Tensor) -> Tensor:
        """``W diag(signs) W^T u``, shape of ``u`` (B, ...)."""
        along = torch.einsum("kbn,bn->kb", self.vectors.flatten(2), u.flatten(1))
        return torch.einsum("kb,kb...->b...", self.signs[:, None] * along, self.vectors)

    def sigma(self, u: Tensor) -> Tensor:
        """``(diag(1 / variances) + W diag(signs) W^T)^-1 u``: Woodbury's identity."""
        plain = self.variances * u
        along = torch.einsum("kbn,bn->bk", self.vectors.flatten(2), plain.flatten(1))
        c = torch.linalg.solve_ex(self._core, along[..., None])[0][..., 0]
        return plain - self.variances * torch.einsum("bk,kb...->b...", c, self.vectors)


def solve(
    measurement: Measurement,
    variances: Tensor,
    e: Tensor,
    coarse: float,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    residuals: list[Tensor] | None = None,
    low_rank: LowRank | None = None,
) -> Tensor:
    """``A^T S^-1 e`` with ``Sigma = Q^T diag(variances) Q``, or with that of ``low_rank``.

    Args:
        coarse: noise level with which the system is well-conditioned, see `_among_signals`.
    """
    s2 = max(measurement.noise_std, NOISE_FLOOR) ** 2
    if measurement.y[0].numel() < 0.5 * math.prod(measurement.shape):
        w, residual = _among_measurements(measurement, variances, e, s2, iterations, tolerance, low_rank)
    else:
        w, residual = _among_signals(measurement, variances, e, s2, coarse**2, iterations, tolerance, low_rank)
    if residuals is not None:
        residuals.append(residual)
    return w


def _among_signals(
    measurement: Measurement,
    variances: Tensor,
    e: Tensor,
    s2: float,
    coarse2: float,
    iterations: int,
    tolerance: float,
    low_rank: LowRank | None,
) -> tuple[Tensor, Tensor]:
    """``Sigma A^T S^-1 e`` solves ``(A^T A / s2 + Sigma^-1) x = A^T e / s2``, which the diagonals of both in the DCT
    domain precondition: for denoising and for blurs they are nearly the whole operator.

    In u, with ``x = Q^T root u``, the operator is the identity plus a positive matrix: no eigenvalue is below 1.
    Components that are hidden, as the inside of a hole, have the smallest eigenvalues and hardly show in the residual
    when ``s2`` is small. They hardly depend on ``s2``: the solution for the noise ``coarse2`` is where the iterations
    for ``s2`` begin.
    """
    root, pulled = variances.sqrt(), dct(measurement.At(e))

    def extra(x: Tensor) -> Tensor | float:
        return 0.0 if low_rank is None else low_rank.extra(x)

    u = residual = torch.zeros_like(pulled)
    for noise, most in ((coarse2, iterations), (s2, iterations // 3)) if coarse2 > s2 else ((s2, iterations),):

        def operator(u: Tensor, noise: float = noise) -> Tensor:
            return u + root * (dct(measurement.At(measurement.A(idct(root * u)))) / noise + extra(root * u))

        diagonal = 1 + variances * measurement.spectrum / noise
        b = root * pulled / noise
        rest = b - operator(u) if noise == s2 < coarse2 else b
        found = conjugate_gradient(
            operator, rest, iterations=most, tolerance=tolerance, precondition=lambda r, diagonal=diagonal: r / diagonal
        )
        u = u + found.x
        residual = found.residual * (dot(rest, rest) / dot(b, b).clamp_min(torch.finfo(b.dtype).tiny)).sqrt()
    return idct(u / root + extra(root * u)), residual


def _among_measurements(
    measurement: Measurement,
    variances: Tensor,
    e: Tensor,
    s2: float,
    iterations: int,
    tolerance: float,
    low_rank: LowRank | None,
) -> tuple[Tensor, Tensor]:
    """``A^T q`` with ``S q = e``: nothing that was not measured can enter, however few iterations are made.

    The diagonal of ``S`` in the DCT domain of the measurement, estimated with random signs, preconditions.
    """

    def operator(v: Tensor) -> Tensor:
        u = dct(measurement.At(v))
        return s2 * v + measurement.A(idct(variances * u if low_rank is None else low_rank.sigma(u)))

    diagonal = probe_diagonal(operator, e)
    found = conjugate_gradient(
        operator,
        e,
        iterations=iterations,
        tolerance=tolerance,
        precondition=None if diagonal is None else lambda r: idct(dct(r) / diagonal.clamp_min(s2)),
    )
    return measurement.At(found.x), found.residual


def wiener_estimate(prior: Denoiser, measurement: Measurement, *, iterations: int = ITERATIONS) -> Tensor:
    """``mu + C A^T (A C A^T + sigma_y^2 I)^-1 (y - A mu)``: the posterior mean of Gaussian data with the second moments
    of the prior, shape (B, ...) of the canvas."""
    like = measurement.y.real.new_zeros(len(measurement.y), *measurement.shape)
    mean, variances = known_moments(prior, measurement.shape, like)
    mean, coarse = mean + like, COARSE * math.sqrt(prior.variance)
    w = solve(measurement, variances, measurement.residual(mean), coarse, iterations)
    return mean + idct(variances * dct(w))


def gaussian_draw(problem: Problem) -> Tensor:
    """A draw of the posterior of Gaussian data with the second moments of the prior, shape (B, ...) of the canvas."""
    measurement, like = problem.measurement, problem.like()
    mean, variances = known_moments(problem.prior, measurement.shape, like)
    x = mean + idct(variances.sqrt() * problem.draws.normal("start-image", 0, like))
    n = measurement.noise_std * problem.draws.normal("start-noise", 0, measurement.y)
    coarse = COARSE * math.sqrt(problem.prior.variance)
    w = solve(measurement, variances, measurement.residual(x) - n, coarse)
    return x + idct(variances * dct(w))


def known_moments(prior: Denoiser, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variances of a prior for signals of ``shape``, of the type and on the device of ``like``."""
    return _on_device(moments_of(prior, shape), tuple(shape), like.dtype, like.device)


@lru_cache(maxsize=32)
def _on_device(
    found: moments.SecondMoments, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rounded before they reach the device, which may have no double precision; made once."""
    return found.centre(shape).to(dtype).to(device), found.spectrum(shape).to(dtype).to(device)


def moments_of(prior: Denoiser, shape: tuple[int, ...]) -> moments.SecondMoments:
    """The second moments of a prior: those that come with it, or those of samples drawn from it.

    Args:
        prior: the denoiser.
        shape: of its signals, (C, H, W) or any other.
    """
    if prior.second_moments is not None:
        return prior.second_moments
    image = prior.value_range is not None and len(shape) == 3
    prior, drawn = drawable(prior, shape)
    known = _measured.setdefault(prior, {})
    if drawn not in known:
        logging.getLogger("cmidiff").info(
            "the prior %s has no second moments: measuring them on %d of its samples", prior.name, SAMPLES
        )
        known[drawn] = moments.SecondMoments.measure(draw(prior, drawn), per_channel=image)
    return known[drawn]


def drawable(prior: Denoiser, shape: tuple[int, ...]) -> tuple[Denoiser, tuple[int, ...]]:
    """The prior inside its wrappers, which change nothing, and the shape in which to draw from it. Images are drawn in
    one size, which does not depend on the restored size."""
    image = prior.value_range is not None and len(shape) == 3
    side = SIDE if prior.decoder is None else prior.size or min((SIDE, *shape[1:]))  # of latents
    while isinstance(prior, WrappedPrior):
        prior = prior.inner
    return prior, (shape[0], side, side) if image else tuple(shape)


@torch.no_grad()
def draw(prior: Denoiser, shape: tuple[int, ...], count: int = SAMPLES) -> Tensor:
    """Samples of a prior by DPM-Solver++ (2M), shape (count, ...), alike in every run. In as many steps DDIM has less
    than half of the variance at high frequencies."""
    dtype = torch.float64 if prior.dtype == torch.float64 else torch.float32
    like = torch.zeros(count, *shape, dtype=dtype, device=prior.device or "cpu")
    times = prior.schedule.grid(STEPS)
    alpha, sigma = prior.schedule(times[0])
    x = (alpha**2 + sigma**2) ** 0.5 * SeededDraws([(0, k) for k in range(count)]).normal("start", 0, like)
    before, h_before = x, math.inf
    for t, s in pairs(times, prior.schedule.end):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = prior.schedule(t), prior.schedule(s)
        x_hat = torch.cat([prior(part, t).mean for part in x.split(AT_ONCE)])
        x_hat = x_hat if prior.value_range is None else x_hat.clamp(*prior.value_range)
        h = math.log(alpha_s * sigma_t / (alpha_t * sigma_s)) if sigma_s > 0 else 0.0
        extrapolated = x_hat + h / h_before / 2 * (x_hat - before)
        x = alpha_s * extrapolated + sigma_s / sigma_t * (x - alpha_t * extrapolated)
        before, h_before = x_hat, h
    return x
