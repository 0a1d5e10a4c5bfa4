"""Particles: the samples of one image carry weights, and those of low weight are replaced by those of high weight.

A step computes, for each particle, a mean, the change after the resampling, and the change of the logarithm of its
weight. The exchange then normalises the weights of each image. It resamples where their effective sample size falls
below a threshold, and always at the end. It accumulates the logarithm of the evidence ``p(y)``.

Weights are float64 on the CPU, outside of the device path. Resampling is systematic, with one random number an image
and a step, on sorted particles. A particle that has diverged has the weight zero.

Sources: Doucet, Johansen, "A Tutorial on Particle Filtering and Smoothing", 2011; Kitagawa, 1996 (systematic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cmidiff.config import Fraction
from cmidiff.covariance import NOISE_FLOOR
from cmidiff.krylov import dot
from cmidiff.physics import measured_count
from cmidiff.solvers.base import Solver, noise
from cmidiff.step import Carry, Group, Problem, Step

SQUARINGS, RANK_ONE = 40, 1 - 1e-12  # for the direction along which particles are sorted
GOLDEN = (math.sqrt(5) - 1) / 2


class Cloud(NamedTuple):
    """The particles between two steps; the first dimension is that of the rows.

    Attributes:
        log_w: logarithms of the weights, of mean 1 for each image, shape (B,), float64 on the CPU.
        log_z: log-evidence of the image so far, likewise.
        ess: effective sample size over the number of particles, likewise.
        gain: what the step adds to ``log_w``, shape (B,).
        std, noise: of what is added to the states after the resampling: ``std`` belongs to the state that was left,
            ``noise`` to the new one. Shapes that broadcast to (B, ...).
        shift: of a proposal, its mean minus that of the sampler, in standard deviations; shape (B, ...) or (B, 0).
        twist: the logarithm of the twisting function at the state that was left, shape (B,).
        guess: denoised images, along whose largest spread particles are sorted and noise is stratified; shape (B, ...),
            or (B, 0) for the states themselves.
        path: other numbers of an image that the next step needs, shape (B, ...) or (B, 0).
    """

    log_w: Tensor
    log_z: Tensor
    ess: Tensor
    gain: Tensor
    std: Tensor
    noise: Tensor
    shift: Tensor
    twist: Tensor
    guess: Tensor
    path: Tensor


@dataclass(frozen=True)
class Particles(Solver):
    """A solver whose samples interact.

    Attributes:
        evidence: whether its weights estimate ``p(y)``; otherwise they lack constants that all particles share.
        stratify: whether the noise of a step is spread evenly among the particles (see `stratified`).

    Args:
        threshold: resample where the effective sample size is below this share of the particles; 0: at the end only.
    """

    threshold: Fraction = 0.5

    kind: ClassVar[str] = "particles"
    stratify: ClassVar[bool] = False
    needs_linear: ClassVar[bool] = True
    together: ClassVar[bool] = True
    evidence: ClassVar[bool] = True
    default_samples: ClassVar[int] = 16

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        x = noise(problem, t)
        zero, none = x.new_zeros(len(x)), x.new_zeros(len(x), 0)
        weight = torch.zeros(len(x), dtype=torch.float64, device="cpu")
        one = x.new_ones(len(x), *[1] * (x.ndim - 1))
        return x, Cloud(weight, weight, weight + 1, zero, one, torch.zeros_like(x), none, zero, none, none)

    def exchange(self, group: Group, x: Tensor, carry: Cloud) -> tuple[Tensor, Cloud]:
        rows = group.rows
        log_w, log_z = (carry.log_w + carry.gain.cpu().double())[rows], carry.log_z[rows]
        log_w = log_w.nan_to_num(-math.inf, -math.inf, -math.inf)
        total, count = log_w.logsumexp(1, keepdim=True), rows.shape[1]
        w = torch.where(total.isfinite(), (log_w - total).exp(), 1 / count)
        ess = 1 / w.square().sum(1, keepdim=True) / count
        low = (ess < self.threshold) | (ess < 1 - 1e-9 if group.last else False)
        guess = x if group.last or carry.guess.numel() == 0 else carry.guess
        if bool(low.any()):
            order = sorting(guess.flatten(1)[rows.to(x.device)]).cpu()
            rows, w, log_w = (values.gather(1, order) for values in (rows, w, log_w))
        found = rows.gather(1, self.ancestors(group, w))
        source = torch.empty_like(rows.flatten()).scatter(0, rows.flatten(), torch.where(low, found, rows).flatten())
        even = torch.where(low, 0.0, log_w - total + math.log(count))

        def scattered(values: Tensor) -> Tensor:
            return torch.empty(len(source), dtype=torch.float64, device="cpu").scatter(
                0, rows.flatten(), values.expand_as(rows).flatten()
            )

        own = source.to(x.device)
        x, shift, noise = x[own], carry.shift[own], carry.noise
        if self.stratify and not group.last:
            noise = stratified(group, x, noise, guess[own])
        gain = torch.zeros_like(carry.gain)
        if shift.numel() > 0:
            gain = -0.5 * dot(shift, shift) - dot(shift, noise) - carry.twist[own]
        weights = {"log_w": scattered(even), "log_z": scattered(log_z + total - math.log(count)), "ess": scattered(ess)}
        return x + carry.std[own] * noise, carry._replace(**weights, gain=gain)

    def ancestors(self, group: Group, w: Tensor) -> Tensor:
        """The particle that each one is replaced by, shape (images, K), for weights of sum 1."""
        return systematic(w, group.uniform("resample"))

    def report(self, carry: Cloud) -> dict[str, Tensor]:
        return {"ess": carry.ess} | ({"log_evidence": carry.log_z} if self.evidence else {})


def direction(x: Tensor) -> Tensor:
    """The unit direction (P, 1, d) of the largest spread of particles (P, K, d); zero where they do not spread.

    It is the leading eigenvector of their covariance. Squared repeatedly, the smaller of the matrices ``X X^T`` and
    ``X^T X`` tends to the projection on that of its leading eigenvalue. Each squaring doubles the logarithm of the
    ratio of two eigenvalues, so that 40 separate ratios of ``1 + 1e-11``. The particle or coordinate with the largest
    entry has the positive sign. Float64 on a CPU, the precision of ``x`` on other devices.
    """
    centred = x - x.mean(1, keepdim=True)
    rows = centred.double() if x.device.type == "cpu" else centred
    rows = rows / rows.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    few = rows.shape[1] <= rows.shape[2]
    gram = rows @ rows.mT if few else rows.mT @ rows
    for _ in range(SQUARINGS):
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        gram = gram / trace.where(trace > 0, 1.0)
        if bool((gram.square().sum((1, 2)) > RANK_ONE).all()):
            break
        gram = gram @ gram
    entries = gram.diagonal(dim1=1, dim2=2)
    largest = (entries >= 0.999 * entries.amax(1, keepdim=True)).int().argmax(1)  # rounding must not decide a tie
    v = gram[torch.arange(len(gram), device=gram.device), largest][:, None]
    return torch.nn.functional.normalize(v @ rows if few else v, dim=-1).to(x)


def sorting(x: Tensor) -> Tensor:
    """Indices (P, K) that sort particles (P, K, d) along their direction of largest spread. Systematic resampling then
    keeps the share of every region on it to one particle.

    Source: Gerber, Chopin, Whiteley, "Negative association, ordering and convergence of resampling methods", 2019.
    """
    x = x.nan_to_num(0.0, 0.0, 0.0)
    return (x @ direction(x).mT)[..., 0].argsort(1)


def stratified(group: Group, x: Tensor, noise: Tensor, guess: Tensor) -> Tensor:
    """Noise (B, ...) that is spread evenly among particles, along the direction of largest spread of ``guess``.

    The particle of rank k on that line takes the quantile ``frac(k g + u)`` there, with the golden ratio ``g`` and one
    uniform number ``u`` an image. Neighbours then cover the normal distribution evenly. The noise of each particle is
    standard normal as before: expectations and the evidence have no bias, and the shares of the modes vary less.

    Source: L'Ecuyer, Lécot, Tuffin, "A Randomized Quasi-Monte Carlo Simulation Method for Markov Chains", 2008.
    """
    rows = group.rows.to(x.device)
    near, own = x.flatten(1)[rows].nan_to_num(0.0, 0.0, 0.0), noise.flatten(1)[rows]
    v = direction(guess.flatten(1)[rows].nan_to_num(0.0, 0.0, 0.0))
    rank = (near @ v.mT)[..., 0].argsort(1).argsort(1).cpu().double()
    u = (rank * GOLDEN + group.uniform("stratify")[:, None]).remainder(1.0)
    quantile = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12)).to(own)
    own = own + (quantile[..., None] - own @ v.mT) * v
    return torch.empty_like(noise.flatten(1)).index_copy(0, rows.flatten(), own.flatten(0, 1)).reshape(noise.shape)


def systematic(w: Tensor, u: Tensor) -> Tensor:
    """Systematic resampling: indices (P, K) for weights (P, K) of sum 1 and one uniform number ``u`` (P,) each."""
    count = w.shape[1]
    at = (torch.arange(count, dtype=w.dtype, device=w.device) + u[:, None]) / count
    total = w.cumsum(1)
    return torch.searchsorted(total / total[:, -1:], at).clamp_max(count - 1)


def log_likelihood(step: Step, x: Tensor) -> Tensor:
    """``log N(y; A x, sigma_y^2 I)`` of the measured numbers, shape (B,)."""
    m = step.measurement
    s2, residual = (m.noise_std or NOISE_FLOOR) ** 2, m.residual(x)
    count = measured_count(m.physics, m.y).to(x)
    return -0.5 * dot(residual, residual) / s2 - 0.5 * count * math.log(2 * math.pi * s2)


def kernel_std(step: Step) -> float:
    """The standard deviation of the sampler's noise where it must be one number."""
    std = step.std
    return std if isinstance(std, float) else step.transition[1] * step.level_s[1] / step.level_t[1]
