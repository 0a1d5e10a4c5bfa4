"""The official codes of PSLD and ReSample, replayed through this library's solvers; see tests/conformance.py.

What the codes do differently is set here, for this comparison alone: fresh noise on PSLD's prediction and its
transpose, ReSample's denoised image, its times while it looks ahead, its weight decay and its loss to stop at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.prior import Decoder, LatentPrior, NetworkPrior
from cmidiff.samplers import DDIM
from cmidiff.schedule import DDPM
from cmidiff.solvers import PSLD, ReSample
from cmidiff.solvers.resample import LEAST
from cmidiff.step import Problem, Step
from tests.cases import problem_of
from tests.conformance import F64, Network, operator, relative, tensor


@dataclass(frozen=True)
class Recorded:
    """The official code's own draws, by stream and number."""

    draws: dict[str, Tensor]

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        return self.draws[stream][index : index + 1].to(like)


def decoder_of(data: Any) -> Decoder:
    """The toy autoencoder of a file."""
    wd, wc, we, scale = (tensor(data[f"ae/{name}"]) for name in ("wd", "wc", "we", "scale"))
    functional = torch.nn.functional

    def decode(z: Tensor) -> Tensor:
        u = functional.conv_transpose2d(z / scale, wd, stride=2)
        return u + 0.3 * torch.tanh(functional.conv2d(u, wc, padding=1))

    return Decoder(decode, lambda x: scale * functional.conv2d(x, we, stride=2), channels=3, factor=2)


@dataclass(frozen=True)
class EndsAtLevelZero(DDPM):
    """The codes end at the cleanest level of the grid, and not at the clean image."""

    end: float = field(default=0.0, init=False)


class OfficialPSLD(PSLD):
    """With fresh measurement noise on the prediction."""

    def residual(self, step: Step, measurement: Measurement, image: Tensor) -> Tensor:
        return measurement.residual(image) - measurement.noise_std * step.draws.normal("noise", step.index, image)


def transposed(step: Step, measurement: Measurement, image: Tensor) -> Tensor:
    """``A' y + (I - A' A) image`` with the code's transpose: the identity for masks, up-sampling otherwise."""
    factor = image.shape[-1] // measurement.y.shape[-1]
    residual = measurement.residual(image)
    return image + residual.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


class OfficialReSample(ReSample):
    """The code as it is."""

    weight_decay: ClassVar[float] = 0.01
    eta: ClassVar[float] = 0.0
    official_times: ClassVar[list[float]] = []

    def times(self, problem: Problem, steps: int) -> list[float]:
        return self.official_times

    def stop_at(self, measurement: Measurement) -> float:
        return LEAST

    @staticmethod
    def wrong(step: Step, x_hat: Tensor, x: Tensor, level: tuple[float, float]) -> Tensor:
        """``(x - sigma^2 eps) / alpha`` from ``(x - sigma eps) / alpha``."""
        alpha, sigma = level
        return sigma * x_hat + (1 - sigma) * x / alpha

    def gradient(self, step: Step) -> Tensor:
        p = self.wrong(step, step.x_hat, step.x_t, step.level_t)
        residual = step.measurement.residual(p.detach())
        pulled = step.measurement.pull(p.detach(), residual) / residual.norm()
        return -step.vjp(pulled, of=p)

    def look_ahead(self, step: Step, x: Tensor, count: int) -> Tensor:
        """The coefficients of a step are those of its level, the network's time that of the next one."""
        schedule = step.prior.schedule
        times = [*self.times(step.problem, step.steps), 0.0]
        p = x
        for k in range(count):
            at = step.index + k
            level_t, level_s = schedule(times[at]), schedule(times[at + 1])
            alpha, sigma = schedule(times[at + 1])
            eps = (x - alpha * step.denoise(x, times[at + 1])) / sigma
            x_hat = (x - level_t[1] * eps) / level_t[0]
            p = self.wrong(step, x_hat, x, level_t)
            beta = 1 - (level_t[0] / level_s[0]) ** 2
            std = self.eta * level_s[1] / level_t[1] * beta**0.5
            direction = (level_s[1] ** 2 - std**2) ** 0.5
            z = step.draws.normal(f"ahead-{step.index}", k, x)
            x = level_s[0] * x_hat + direction * eps + std * z
        return p


def replay(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, decoder = tensor(data[f"{name}/x"]), decoder_of(data)
    latent, image = tuple(theirs.shape[1:]), tuple(data["x_true"].shape[1:])
    physics = operator(data, meta, image)
    measurement = Measurement(tensor(data["y"]), physics, float(meta["sigma"]), latent, image, decoder=decoder)
    schedule = EndsAtLevelZero(DDPM.linear().alphas_cumprod)
    inner = NetworkPrior(network, "eps", schedule, learned_variance=True, value_range=None, channels=3)
    prior = LatentPrior(inner, decoder)
    times = [float(t) for t in sorted(data["timesteps"], reverse=True)]
    return (_psld if meta["method"] == "psld" else _resample)(data, run, name, prior, measurement, times, theirs)


def _psld(
    data: Any,
    run: dict[str, Any],
    name: str,
    prior: LatentPrior,
    measurement: Measurement,
    times: list[float],
    theirs: Any,
) -> float:
    steps = len(times)
    z = tensor(data[f"{name}/z"])
    draws = Recorded(
        {"start": theirs[:1], "kernel": torch.cat([z[1:], z[:1]]), "noise": tensor(data[f"{name}/noise_meas"])}
    )
    solver = OfficialPSLD(run["omega"] * steps / 1000, run["gamma"] * steps / 1000, transposed, guard=False)
    problem = problem_of(prior, measurement, sampler=DDIM(run["eta"]), draws=draws)
    traces = zip(sample(problem, solver, times), theirs[1:], strict=True)
    return max(relative(trace.x_s[0], x) for trace, x in traces)


def _resample(
    data: Any,
    run: dict[str, Any],
    name: str,
    prior: LatentPrior,
    measurement: Measurement,
    times: list[float],
    theirs: Any,
) -> float:
    count, draws = len(times), iter(tensor(data[f"{name}/draws"])[:, None])
    streams: dict[str, Tensor] = {"start": next(draws)}
    kernel, again = [], torch.zeros(count, *theirs.shape[1:], dtype=F64)
    for i in range(count):
        kernel.append(next(draws))
        left = count - 1 - i
        if 0 < left <= count - count // 3 and left % 10 == 0:
            streams[f"ahead-{i}"] = torch.cat([next(draws) for _ in range(min(5, left))])
            again[i] = next(draws)[0]
    streams |= {"kernel": torch.cat(kernel), "resample": again}
    solver = type("Official", (OfficialReSample,), {"eta": run["eta"], "official_times": times})(
        pixel_steps=run.get("pixel_iters", 2000), latent_steps=run.get("latent_iters", 500)
    )
    problem = problem_of(prior, measurement, sampler=DDIM(run["eta"]), draws=Recorded(streams))
    expected, resampled = list(theirs[1 : count + 1]), iter(tensor(data[f"{name}/resampled"]))
    for i in range(count):
        if again[i].any():  # the file holds the state before it is drawn again
            expected[i] = next(resampled)
    expected[-1] = theirs[-1]  # after the last optimisation
    return max(relative(trace.x_s[0], x) for trace, x in zip(sample(problem, solver, times), expected, strict=True))


def replayer(meta: dict[str, Any]) -> Callable[..., float] | None:
    """The replay of a run; None for a file of another method."""
    return replay if meta.get("method") in ("psld", "resample") else None
