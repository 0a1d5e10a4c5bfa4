"""Replays of FPS, MCGDiff and TDS for `tests.conformance`: what their official codes do differently is set here.

The indices that the codes' resampling returned are used; weights are compared as well as states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmidiff.covariance import Isotropic
from cmidiff.krylov import dot
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.prior import Prediction, Prior
from cmidiff.prior.base import Denoiser
from cmidiff.samplers import DDIM, Ancestral, Renoise
from cmidiff.schedule import DDPM
from cmidiff.solvers import FPS, TDS, MCGDiff
from cmidiff.solvers.particles import Cloud, Particles
from cmidiff.step import Group, Problem, Sampler, Step
from tests.cases import problem_of
from tests.conformance import F64, Network, dense_physics, operator, origin, relative, tensor, whole_physics
from tests.conformance_draws import Streams, image_of, prior_of


class Resampled(Particles):
    """Particles that take recorded ancestors, and remember their weights."""

    recorded: Tensor
    weights: list[Tensor]
    gains: list[Tensor]

    def exchange(self, group: Group, x: Tensor, carry: Cloud) -> tuple[Tensor, Cloud]:
        log_w = carry.log_w + carry.gain
        self.weights.append(log_w)
        share = torch.softmax(log_w, 0)
        often = float(1 / share.square().sum()) < self.threshold * len(x) * (1 + 1e-12)
        chosen = often and group.index < len(self.recorded)
        source = self.recorded[group.index] if chosen else torch.arange(len(x))
        kept = torch.zeros_like(log_w) if chosen else share.log() + math.log(len(x))
        shift = carry.shift[source]
        gain = -carry.twist[source]
        if shift.numel() > 0:
            gain = gain - 0.5 * dot(shift, shift) - dot(shift, carry.noise)
        self.gains.append(gain)
        return x[source] + carry.std[source] * carry.noise, carry._replace(gain=gain, log_w=kept)


def prepared(solver: Particles, first: Tensor, ancestors: np.ndarray, **more: Any) -> list[Tensor]:
    """Give a solver what was recorded; its weights go into the list that is returned."""
    own = {"recorded": torch.from_numpy(ancestors).long(), "weights": [], "gains": [], "first": first}
    for name, value in (own | more).items():
        object.__setattr__(solver, name, value)
    return own["weights"]


class Started(Resampled):
    """Particles that start from a recorded state."""

    first: Tensor

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Cloud]:
        return self.first, super().start(problem, t)[1]


def cloud_of(
    prior: Denoiser, measurement: Measurement, count: int, sampler: Sampler, z: Tensor, clip: Any = None
) -> Problem:
    """The problem of ``count`` particles of one image, with the recorded noise."""
    rows = replace(measurement, y=measurement.y.expand(count, *measurement.y.shape[1:]))
    found: dict[str, Callable[[int, int], Tensor]] = {"kernel": lambda i, _: z[min(i, len(z) - 1)]}
    problem = problem_of(prior, rows, sampler=sampler, draws=Streams(found), clip=clip)
    return replace(problem, images=(0,) * count)


def compared(traces: Any, states: Tensor, weights: list[Tensor], log_w: Tensor) -> float:
    """The largest error of states and weights."""
    errors = [relative(trace.x_s, state) for trace, state in zip(traces, states, strict=False)]
    gaps = [float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(weights, log_w, strict=False)]
    return max(*errors, *gaps)


def times_of(data: Any) -> list[float]:
    return sorted((float(t) for t in data["timesteps"]), reverse=True)


# TDS


class AzulaTDS(TDS, Started):  # pyright: ignore[reportIncompatibleVariableOverride]
    """azula: the twisting function with its normalising constant. Its file holds what a step carries to the next."""

    def twisted(self, step: Step, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        move, twist = super().twisted(step, x_hat)
        variance, count = step.measurement.noise_std**2 + step.level_t[1] ** 2, self.measured
        return move, twist - 0.5 * count * math.log(2 * math.pi * variance)

    measured: int


def replay_tds_azula(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, shape = tensor(data[f"{name}/x"]), image_of(data)
    given = Measurement(tensor(data["y"]), operator(data, meta, shape), float(meta["sigma"]), shape, shape)
    used = AzulaTDS(1.0, Isotropic(1.0))
    prepared(used, theirs[0], data[f"{name}/ancestors"], measured=int(data["mask"].sum()))
    problem = cloud_of(prior_of(network), given, len(theirs[0]), Ancestral("small"), tensor(data[f"{name}/z"]))
    return compared(sample(problem, used, times_of(data)), theirs[1:], used.gains, tensor(data[f"{name}/log_w"]))


class AuthorsTDS(TDS, Started):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The authors' noise-free code: a potential without ``sigma_y``, a clipped proposal, and known pixels pasted at the
    end."""

    rule: int
    tau: float

    def variance(self, step: Step) -> float:
        q = step.ratio**2
        match self.rule:
            case 1:
                return q
            case 4:
                return step.transition[1] ** 2 / step.level_t[0]
            case _:
                return self.tau * q / (q + self.tau)

    def twisted(self, step: Step, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        m, v = step.measurement, self.variance(step)
        residual = m.residual(x_hat)
        return step.covariance_gain * step.vjp(m.At(residual) / v), -0.5 * dot(residual, residual) / v

    def guided(self, step: Step, x_hat: Tensor) -> Tensor:
        return step.mean(x_hat.clamp(-1, 1))

    def step(self, step: Step, carry: Cloud) -> tuple[Tensor, Cloud]:
        if not step.last:
            return super().step(step, carry)
        x_0 = step.x_hat.detach()
        _, twist = self.twisted(step, x_0)
        carry = carry._replace(gain=carry.gain + twist, twist=twist, noise=torch.zeros_like(x_0))
        return x_0, carry._replace(shift=x_0.new_zeros(len(x_0), 0))


def replay_tds(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, shape = tensor(data[f"{name}/x"]), image_of(data)
    y, log_w = tensor(data["y"]), tensor(data[f"{name}/log_w"])
    given = Measurement(y, operator(data, meta, shape), 0.0, shape, shape)
    used = AuthorsTDS(float(run["ess"]))
    own = {"rule": int(run["var_type"]), "tau": float(run["tausq"])}
    weights = prepared(used, theirs[0], data[f"{name}/ancestors"], **own)
    prior = prior_of(network)
    problem = cloud_of(prior, given, len(theirs[0]), Ancestral(), tensor(data[f"{name}/z"])[1:])
    times, last = times_of(data), None
    error = 0.0
    for k, trace in enumerate(sample(problem, used, times)):
        last = trace.x_s
        if k < len(times) - 1:
            error = max(error, relative(trace.x_s, theirs[k + 1]))
    assert last is not None
    known = given.A(torch.ones_like(last)) > 0
    before, now = theirs[-2], Step.at(problem, theirs[-2], times[-1], -1.0, graph=True)
    anc = torch.from_numpy(data[f"{name}/ancestors"][-1]).long()
    error = max(error, relative(torch.where(known, y, last), theirs[-1]))
    prediction = prior(before, times[-1])
    variance = learned(prediction, times)[anc]
    likelihood = torch.where(known, -0.5 * (y - last) ** 2 / variance - 0.5 * (2 * math.pi * variance).log(), 0.0)
    final = likelihood.flatten(1).sum(1) - used.twisted(now, now.x_hat.detach())[1][anc]
    final = final + (weights_after(used, weights) if float(run["ess"]) < 1 else 0.0)
    gaps = [float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(weights, log_w, strict=False)]
    return max(error, *gaps, float((final - log_w[-1]).abs().max() / log_w[-1].abs().max().clamp_min(1)))


def weights_after(used: Resampled, weights: list[Tensor]) -> Tensor:
    """What is left of the weights after the last exchange."""
    share = torch.softmax(weights[-1], 0)
    often = float(1 / share.square().sum()) < used.threshold * len(share)
    return torch.zeros_like(share) if often else share.log() + math.log(len(share))


def learned(prediction: Prediction, times: list[float]) -> Tensor:
    """The learned-range variance at the last level, whose lower bound is that of the level above."""
    schedule, fraction = DDPM.linear(), prediction.variance_fraction
    assert fraction is not None
    (a1, s1), (a0, s0) = schedule(times[-2]), schedule(times[-1])
    large = s0**2
    between = s1**2 - (a1 / a0 * s0) ** 2
    small = between * s0**2 / s1**2
    return (fraction * math.log(large) + (1 - fraction) * math.log(small)).exp()


# MCGDiff


class Rotated(Prior):
    """The denoiser in spectral coordinates ``V x``."""

    value_range = None
    channels: int | None = None

    def __init__(self, network: Network, basis: Tensor, shape: tuple[int, ...]) -> None:
        self.network, self.basis, self.shape, self.schedule = network, basis, shape, DDPM.linear()

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        alpha, sigma = self.schedule(t)
        x = (x_t @ self.basis).reshape(-1, *self.shape)
        eps = self.network(x, torch.full((len(x),), t, dtype=F64))[:, : self.shape[0]]
        return Prediction((x_t - sigma * eps.flatten(1) @ self.basis.mT) / alpha)


class OfficialMCGDiff(MCGDiff, Started):
    """The code's levels of the components, of its grid; the potential of the first state is subtracted too."""

    grid: list[float]

    def left(self, step: Step) -> Tensor:
        return self.distance(step, step.x_t.detach(), step.level_t, 0.0)

    def own_level(self, step: Step, w2: Tensor) -> Tensor:
        levels = torch.tensor([step.prior.schedule(t) for t in sorted(self.grid)], dtype=F64)
        a2, s2 = levels.square().unbind(1)
        gap = (step.measurement.noise_std**2 * a2 - w2[..., None] * s2).abs()
        return (s2 / a2).sqrt()[gap.argmin(-1)]


def replay_mcgdiff(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, shape = tensor(data[f"{name}/x"]), image_of(data)
    size = math.prod(shape)
    basis = tensor(data["V"]) if "V" in data else torch.eye(size, dtype=F64)
    where = torch.from_numpy(data["coordinates_mask"]).nonzero().flatten()
    matrix = torch.zeros(len(where), size, dtype=F64)
    matrix[torch.arange(len(where)), where] = tensor(data["singular_values"])
    y = tensor(data["obs"])[None]
    given = Measurement(y, whole_physics(matrix, (size,), (len(where),)), float(meta["sigma"]), (size,), (size,))
    used, times = OfficialMCGDiff(1.0, float(run["kappa"])), times_of(data)
    weights = prepared(used, theirs[0], data[f"{name}/ancestors"], grid=times)
    sampler = DDIM(math.sqrt(float(run["eta"])))
    problem = cloud_of(Rotated(network, basis, shape), given, len(theirs[0]), sampler, tensor(data[f"{name}/z"]))
    return compared(sample(problem, used, times), theirs[1:], weights, tensor(data[f"{name}/log_w_steps"]))


# FPS


class OfficialFPS(FPS, Started):
    """The code's path of the measurement, which is one level late, and its own weights and averaging operator."""

    paths: list[Tensor]
    averaged: Measurement
    mask: bool
    sigma: float

    def step(self, step: Step, carry: Cloud) -> tuple[Tensor, Cloud]:
        m, b, c = step.measurement, self.averaged, self.renewal
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        x_hat = step.x_hat.detach()
        eps = (step.x_t.detach() - alpha_t * x_hat) / sigma_t  # of the network, not of the clipped image
        mean = alpha_s * step.clipped(x_hat) + step.coefficients[0] * sigma_t * eps
        if step.last:
            return mean, carry._replace(gain=torch.zeros_like(carry.gain), noise=torch.zeros_like(mean))
        y, v, k = self.paths[step.index].expand_as(m.y), c * sigma_s**2, (alpha_t * self.sigma) ** 2
        ex = k / (v + 1e-6)
        centre = b.filter(mean + b.At(y) / ex, lambda w2: 1 / (1 + w2 / ex))
        wide = k / v if self.mask else ex
        x = centre + math.sqrt(v) * b.filter(step.z, lambda w2: (1 + w2 / wide).rsqrt())
        gap, moved, own = y - m.A(x), x - mean, x - centre
        log_w = -0.5 * dot(gap, gap) / (self.sigma * alpha_s) ** 2 - 0.5 * dot(moved, moved) / v
        root = b.filter(own, lambda w2: (1 + w2 / wide).sqrt())
        log_q = -0.5 * dot(root, root) / v if self.mask else -0.5 * (dot(own, own) / v + dot(m.A(own), m.A(own)) / k)
        count = len(x) if self.mask else 1
        return x, carry._replace(gain=count * (log_w - log_q), noise=torch.zeros_like(x))


def replay_fps(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, shape, c = tensor(data[f"{name}/x"]), image_of(data), float(run["c_rate"])
    given = Measurement(tensor(data["y"]), operator(data, meta, shape), float(meta["sigma"]), shape, shape)
    averaged = given
    if "mask" not in data:
        factor = shape[-1] // given.y.shape[-1]
        row = torch.kron(torch.eye(given.y.shape[-1], dtype=F64), torch.full((1, factor), 1 / factor, dtype=F64))
        averaged = replace(given, physics=dense_physics(torch.kron(row, row), shape[1:], given.y.shape[2:]))
    times, prior = times_of(data), prior_of(network)
    noise, paths = tensor(data[f"{name}/noise_ys"]), []
    for k, t in enumerate(times):
        (alpha, sigma), z = prior.schedule(t), given.A(noise[k : k + 1])
        if k == 0:
            paths.append(z)
            continue
        above, wide = prior.schedule(times[k - 1])
        kept = math.sqrt(1 - c) * sigma / wide
        paths.append(alpha * given.y + kept * (paths[-1] - above * given.y) + math.sqrt(c) * sigma * z)
    used = OfficialFPS(1.0, c)
    own = {"paths": paths[1:], "averaged": averaged, "mask": "mask" in data, "sigma": 0.05}
    weights = prepared(used, theirs[0], data[f"{name}/ancestors"], **own)
    problem = cloud_of(prior, given, len(theirs[0]), Renoise(c), tensor(data[f"{name}/z"]), (-1.0, 1.0))
    traces = list(sample(problem, used, times[1:]))
    shifted = [log_w - log_w.max() for log_w in weights]
    return compared(traces, theirs[1:], shifted, tensor(data[f"{name}/log_w"]))


REPLAYS: dict[tuple[str, str], Callable[..., float]] = {
    ("azula", "tds"): replay_tds_azula,
    ("blt2114/twisted_diffusion_sampler", "tds"): replay_tds,
    ("gabrielvc/mcg_diff", "mcgdiff"): replay_mcgdiff,
    ("ZehaoDou-official/FPS-SMC-2023", "fps"): replay_fps,
}
"""By the code and the method that a file names; each returns the largest relative error of a run."""


def replayer(meta: dict[str, Any]) -> Callable[..., float] | None:
    """The replay of a run; None for a file of another method."""
    return REPLAYS.get((origin(meta), meta.get("method", "")))
