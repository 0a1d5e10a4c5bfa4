"""Replays of DAPS, DDRM, PnP-DM, RED-diff and RePaint for `tests.conformance`: what their official codes do
differently is set here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.prior import NetworkPrior, Prediction, Prior
from cmidiff.samplers import DDIM, Ancestral, ProbabilityFlow
from cmidiff.schedule import DDPM, VE
from cmidiff.solvers import DAPS, DDRM, DPS, PnPDM, REDDiff, RePaint
from cmidiff.solvers.base import travel
from cmidiff.step import Carry, Problem, Sampler, Step
from tests.cases import problem_of
from tests.conformance import F64, Network, dense_physics, operator, origin, relative, tensor


@dataclass(frozen=True)
class Streams:
    """Recorded numbers by stream: each a function of the step and of the inner index."""

    found: dict[str, Callable[[int, int], Tensor]]

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        if stream not in self.found:
            return torch.ones_like(like)  # the start of a power iteration, and what has no effect
        return self.found[stream](index, inner).reshape(like.shape).to(like)


@dataclass
class InOrder:
    """Recorded numbers in the order of their use."""

    numbers: Tensor
    _left: Iterator[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._left = iter(self.numbers)

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        return next(self._left).reshape(like.shape).to(like)


def image_of(data: Any) -> tuple[int, ...]:
    return tuple(data["x_true"].shape[1:])


def prior_of(network: Network) -> NetworkPrior:
    return NetworkPrior(network, "eps", DDPM.linear(), learned_variance=True)


class HDR(Physics):
    """``clip(2 x, -1, 1)``."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return (2 * x).clamp(-1, 1)


class Phase(Physics):
    """The magnitude of the centred orthonormal Fourier transform of ``x / 2 + 1 / 2``, padded by a quarter."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        pad = x.shape[-1] // 4
        padded = torch.nn.functional.pad(x / 2 + 0.5, (pad, pad, pad, pad))
        shifted = torch.fft.fft2(torch.fft.ifftshift(padded, dim=(-2, -1)), norm="ortho")
        return torch.fft.fftshift(shifted, dim=(-2, -1)).abs()


def physics_of(data: Any, meta: dict[str, Any]) -> Physics:
    task, shape = meta["task"], image_of(data)
    if task == "hdr":
        return HDR()
    if task.startswith("phase"):
        return Phase()
    for key in ("A1d", "B", "H1d"):
        if key in data:
            row = tensor(data[key])
            return dense_physics(torch.kron(row, row), shape[1:], (len(row), len(row)))
    return operator(data, meta, shape)


# DAPS


class Precond(Prior):
    """DAPS's wrapping of a DDPM network: the continuous time of the noise level, not rounded."""

    channels: int | None = 3

    def __init__(self, network: Network) -> None:
        self.network, self.schedule = network, VE()

    def time(self, sigma: float) -> float:
        return 999 * (math.sqrt(0.01 + 39.8 * math.log1p(sigma**2)) - 0.1) / 19.9

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        time = torch.full((len(x_t),), self.time(t), dtype=F64)
        return Prediction(x_t - t * self.network(x_t / math.sqrt(1 + t**2), time)[:, :3])


class OfficialDAPS(DAPS):
    """The code's step sizes, and its noise of the measurement."""

    official: dict[str, Any]
    first: Tensor
    last_flow: float

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        return t * self.first, None

    def flow_levels(self, step: Step) -> list[float]:
        low, high = self.last_flow ** (1 / 7), step.ratio ** (1 / 7)
        return [(high + k / self.flow_steps * (low - high)) ** 7 for k in range(self.flow_steps + 1)]

    def variance(self, step: Step) -> float:
        return self.official["tau"] ** 2 / (1 if self.chain == "metropolis" else 2)

    def step_size(self, step: Step, x_0: Tensor) -> Tensor:
        left = 1 - (1 - self.official["lr_min_ratio"]) * step.index / (step.steps + 1)
        return x_0.new_full((len(x_0),), self.official["lr"] * left)

    def prior_gradient(self, step: Step, x_0: Tensor, u: Tensor) -> Tensor:
        kind, low = self.official.get("prior_solver", "gaussian"), self.official.get("prior_sigma_min", 0.01)
        x_t = step.x_t.detach()

        def score(x: Tensor, sigma: float) -> Tensor:
            return (step.denoise(x, sigma) - x) / sigma**2

        match kind:
            case "gaussian":
                return super().prior_gradient(step, x_0, u)
            case "exact":
                return (x_t - u) / step.ratio**2 + score(u, low)
            case "score-min":
                return (x_t - u) / step.ratio**2 + score(x_0, low)
            case "score-t":
                return (x_t - u) / step.ratio**2 + score(x_t, step.ratio)
        raise ValueError(f"unknown prior of DAPS {kind!r}")


def replay_daps(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    chain = run["mcmc"]
    kind = {"langevin": "langevin", "hmc": "hmc", "mh": "metropolis"}[chain["mc_algo"]]
    used = OfficialDAPS(
        cast(Any, kind), meta["n_ode"], chain["num_steps"], momentum=float(chain.get("momentum", 0.0)), scale=1.0
    )
    for key, value in (("official", chain), ("first", tensor(data["noise_xT"]))):
        object.__setattr__(used, key, value)
    object.__setattr__(used, "last_flow", float(meta["ode_sigma_min"]))
    found: dict[str, Callable[[int, int], Tensor]] = {
        "chain": lambda i, k: tensor(data["z_mc"][i, k]),
        "kernel": lambda i, _: tensor(data["z_fwd"][i]),
        "momentum": lambda i, _: tensor(data["v0"][i]),
        "accept": lambda i, k: torch.special.ndtri(tensor(data["u"][i, k])),
    }
    times = [float(sigma) for sigma in data["sigmas"][:-1]]
    y, shape = tensor(data["y"]), image_of(data)
    given = Measurement(y, physics_of(data, meta), meta["sigma"], shape, shape)
    problem = problem_of(Precond(network), given, sampler=used.sampler, draws=Streams(found))
    return largest(sample(problem, used, times), tensor(data[f"{name}/x"])[1:])


def largest(traces: Any, states: Tensor) -> float:
    """The largest error of as many states as there are."""
    return max(relative(trace.x_s, state) for trace, state in zip(traces, states, strict=False))


# DDRM


class OfficialDDRM(DDRM):
    """The code's start, and its last step, which is the denoised image."""

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        x, carry = super().start(problem, t)
        return x / problem.prior.schedule(t)[1], carry

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        return (step.x_hat.detach(), carry) if step.last else super().step(step, carry)


def replay_ddrm(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    shape, used = image_of(data), OfficialDDRM(float(run["eta"]), float(run["etaB"]))
    y, theirs = tensor(data[f"{name}/y"]), tensor(data[f"{name}/x"])
    given = Measurement(y, physics_of(data, meta), float(run["sigma_0"]), shape, shape)
    found: dict[str, Callable[[int, int], Tensor]] = {
        "start": lambda *_: tensor(data["noise_xT"]),
        "kernel": lambda i, _: tensor(data["z"][i]),
    }
    problem = problem_of(prior_of(network), given, sampler=used.sampler, draws=Streams(found))
    times = sorted((float(t) for t in data["timesteps"]), reverse=True)
    start = relative(used.start(problem, times[0])[0], theirs[:1])
    return max(start, largest(sample(problem, used, times), theirs[1:]))


# RED-diff


def replay_reddiff(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    """The code's means in the place of our sums: Adam's ``eps`` and the weight of the measurement are converted."""
    y, theirs, shape = tensor(data[f"{name}/y"]), tensor(data[f"{name}/x"]), image_of(data)
    count = math.prod(shape)
    used = REDDiff(
        float(run["lr"]),
        run["weight"],
        float(run["grad_term_weight"]),
        float(run["obs_weight"]) * count / y.numel(),
        float(run["sigma_x0"]),
        float(meta["adam_eps"]) * count,
    )
    physics = physics_of(data, meta)
    given = Measurement(y, physics, 0.0, shape, shape)
    xt, x0 = tensor(data["noise_xt"]), tensor(data["noise_x0"])
    draws = Streams({"kernel": lambda i, _: xt[i], "spread": lambda i, _: x0[i]})
    simple = isinstance(physics, LinearPhysics) and ("mask" in data or "A" in data)
    initial = None if simple else theirs[:1]  # the code's pseudoinverses of the others have rules of their own
    problem = problem_of(prior_of(network), given, sampler=used.sampler, draws=draws, initial=initial)
    times = sorted((float(t) for t in data["timesteps"]), reverse=True)
    spread, errors = float(run["sigma_x0"]), [relative(used.start(problem, times[0])[1].mu, theirs[:1])]
    for trace in sample(problem, used, times):
        mu, k = trace.x_s, trace.index + 1
        if k < len(times):
            alpha, sigma = problem.prior.schedule(times[k])
            mu = (mu - sigma * xt[k]) / alpha - spread * x0[k]
            if k == len(times) - 1:
                errors.append(relative(mu + spread * x0[k], tensor(data[f"{name}/out"])))
        errors.append(relative(mu, theirs[k : k + 1]))
    return max(errors)


# PnP-DM


class EulerSDE(ProbabilityFlow):
    """PnP-DM's stochastic inner process on the variance-exploding grid: twice the flow's slope, and noise."""

    def coefficients(self, step: Step) -> tuple[float, float]:
        slope = 2 * (step.s - step.t) / step.t
        return 1 + slope, -slope

    def std(self, step: Step) -> float:
        return math.sqrt(2 * step.t * (step.t - step.s)) if step.s > 0 else 0.0

    def advance(self, step: Step, estimate: Any, carry: Carry) -> tuple[Tensor, Carry]:
        mean, std = step.mean(estimate(step)), self.std(step)
        return (mean + std * step.z if std > 0 else mean), carry


class EDMPrecond(Precond):
    """PnP-DM's wrapping: the same time, rounded for the toy networks."""

    def time(self, sigma: float) -> float:
        return float(round(super().time(sigma)))


class OfficialPnPDM(PnPDM):
    """The code's root of the covariance, and its inner grid, which begins below ``rho``."""

    grid: Sequence[float]

    def coupled(self, problem: Problem, x: Tensor, t: float, index: int, residuals: Any) -> Tensor:
        m, z = problem.measurement, problem.draws.normal("split", index, x)
        s2 = m.noise_std**2
        return m.prox(x, t**2) + m.filter(z, lambda w2: (w2 / s2 + 1 / t**2).rsqrt())

    def inner_times(self, step: Step) -> list[float]:
        return [level for level in self.grid if 0 < level < step.t]


def circular(kernel: Tensor, side: int) -> Tensor:
    """PnP-DM's blur as a matrix: ``out[i] = sum_k K[k] x[i + 1 - (k - c)]``, on a circle, in both directions."""
    c, size = [n // 2 for n in kernel.shape], range(side)
    matrix = torch.zeros(side, side, side, side, dtype=F64)
    for i in size:
        for j in size:
            for k in range(kernel.shape[0]):
                for n in range(kernel.shape[1]):
                    matrix[i, j, (i + 1 - k + c[0]) % side, (j + 1 - n + c[1]) % side] += kernel[k, n]
    return matrix.reshape(side**2, side**2)


def replay_pnpdm(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    shape, y = image_of(data), tensor(data["y"])
    side = shape[-1]
    if "kernel" in data:
        physics: Physics = dense_physics(circular(tensor(data["kernel"]), side), shape[1:], shape[1:])
    elif meta["task"].startswith("sr"):
        factor = int("".join(c for c in meta["task"] if c.isdigit()))
        row = torch.kron(torch.eye(side // factor, dtype=F64), torch.full((1, factor), 1 / factor, dtype=F64))
        physics = dense_physics(torch.kron(row, row), shape[1:], (len(row), len(row)))
        y = y.reshape(1, shape[0], len(row), len(row))
    else:
        physics = physics_of(data, meta)
    given = Measurement(y, physics, float(meta["sigma"]), shape, shape)
    sampler: Sampler = EulerSDE(1) if run["mode"].endswith("sde") else ProbabilityFlow(1)
    theirs, coupled = tensor(data[f"{name}/x"]), tensor(data[f"{name}/z_lik"])
    used = OfficialPnPDM(1e3, 1e-3, 1, 1e-4)
    object.__setattr__(used, "grid", [float(level) for level in data[f"{name}/t_steps"]])
    draws = InOrder(tensor(data[f"{name}/draws"]))
    problem = problem_of(EDMPrecond(network), given, sampler=sampler, draws=draws)
    times = [max(run["rho"] * run["decay"] ** k, run["rho_min"]) for k in range(len(theirs))]
    states = torch.cat([coupled[1:], theirs[-1:]])
    return largest(sample(problem, used, times), states)


# RePaint


class OfficialRePaint(RePaint):
    """The authors' code: known pixels are replaced before a step, but for the first one, and not after the last."""

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        z = step.z  # drawn before the noise of the known pixels
        if step.index == 0:
            return step.advance(carry)
        alpha, sigma = step.level_t
        m, n = step.measurement, step.normal("guidance")
        x_t = step.x_t.detach()
        pasted = step.moved(x_t - m.At(m.A(x_t)) + m.At(alpha * m.y + sigma * m.A(n)), step.t)
        x_s, carry = replace(pasted, problem=replace(step.problem, draws=Streams({"kernel": lambda *_: z}))).advance(
            carry
        )
        return x_s, carry


def replay_repaint(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, shape = tensor(data[f"{name}/x"]), image_of(data)
    given = Measurement(tensor(data["y"]), physics_of(data, meta), 0.0, shape, shape)
    levels = sorted((float(t) for t in data[f"{name}/timesteps"]), reverse=True)
    used = OfficialRePaint(int(run["jump_length"]), int(run["jump_n_sample"]))
    times = travel(levels, used.length, used.repeat)
    if [levels[::-1].index(t) for t in times] != [int(t) for t in data[f"{name}/times"] if t >= 0]:
        return math.inf
    numbers = tensor(data[f"{name}/draws"])
    draws = InOrder(numbers[1:] if len(numbers) > 0 and torch.equal(numbers[:1], theirs[:1]) else numbers)
    problem = problem_of(prior_of(network), given, sampler=Ancestral(), draws=draws, clip=(-1.0, 1.0))
    problem = replace(problem, initial=theirs[:1])
    object.__setattr__(used, "start", lambda *_: (theirs[:1], None))
    return largest(sample(problem, used, times), theirs[1:])


def replay_repaint_azula(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    """azula ends at the level of the last time, and draws a last noise that it discards."""
    shape, rounds = image_of(data), int(run["iterations"])
    given = Measurement(tensor(data["y"]), physics_of(data, meta), 0.0, shape, shape)
    numbers, theirs = tensor(data[f"{name}/draws"]), tensor(data[f"{name}/x"])
    levels = sorted((float(t) for t in data["timesteps"]), reverse=True)
    times = [t for a, b in itertools.pairwise(levels) for t in (a, b) * rounds]
    steps = [t for k, t in enumerate(times) if k == 0 or t != times[k - 1]]

    def number(index: int) -> int:
        level, k = divmod(index, 2 * rounds - 1)
        return 3 * (level * rounds + k // 2)

    found: dict[str, Callable[[int, int], Tensor]] = {
        "start": lambda *_: tensor(data["noise_xT"]),
        "kernel": lambda i, _: numbers[number(i)],
        "guidance": lambda i, _: numbers[number(i) + 1],
        "travel": lambda i, _: numbers[number(i - 1) + 2],
    }
    sampler = DDIM(math.sqrt(float(run["eta"])))
    problem = problem_of(prior_of(network), given, sampler=sampler, draws=Streams(found))
    ends = range(2 * rounds - 2, (2 * rounds - 1) * (len(levels) - 1), 2 * rounds - 1)
    used = RePaint(1, 1)
    object.__setattr__(used, "start", lambda problem, t: (theirs[:1], None))
    states = {trace.index: trace.x_s for trace in sample(problem, used, steps)}
    return max(relative(states[k], theirs[i + 1 : i + 2]) for i, k in enumerate(ends))


def replay_dps_azula(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    shape, theirs = image_of(data), tensor(data[f"{name}/x"])
    given = Measurement(tensor(data["y"]), physics_of(data, meta), float(meta["sigma"]), shape, shape)
    times = sorted((float(t) for t in data["timesteps"]), reverse=True)
    used = DPS(float(run["zeta"]) * len(times) / 1000, guard=False)
    found: dict[str, Callable[[int, int], Tensor]] = {"kernel": lambda i, _: tensor(data["z"][min(i, len(times) - 2)])}
    problem = problem_of(prior_of(network), given, sampler=Ancestral("small"), draws=Streams(found))
    object.__setattr__(used, "start", lambda *_: (theirs[:1], None))
    return largest(sample(problem, used, times), theirs[1:])


REPLAYS: dict[tuple[str, str], Callable[..., float]] = {
    ("DAPS", "daps"): replay_daps,
    ("ddrm", "ddrm"): replay_ddrm,
    ("RED-diff", "reddiff"): replay_reddiff,
    ("zihuiwu/PnP-DM-public", "pnpdm"): replay_pnpdm,
    ("andreas128/RePaint", "repaint"): replay_repaint,
    ("azula", "repaint"): replay_repaint_azula,
    ("azula", "dps"): replay_dps_azula,
}
"""By the code and the method that a file names; each returns the largest relative error of a run."""


def replayer(meta: dict[str, Any]) -> Callable[..., float] | None:
    """The replay of a run; None for a file of another method."""
    return REPLAYS.get((origin(meta), meta.get("method", "")))
