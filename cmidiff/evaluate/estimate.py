"""What a run will cost, before it is started: network evaluations counted exactly, seconds from a short timing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from cmidiff.evaluate.config import Config
from cmidiff.evaluate.records import Cell
from cmidiff.evaluate.setup import list_cells, setup
from cmidiff.evaluate.work import Counted
from cmidiff.moments import SecondMoments
from cmidiff.physics import inpaint_random, measure
from cmidiff.prior import NetworkPrior
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.schedule import DDPM, Schedule

COUNTED_STEPS = 100  # more are counted by proportion
_SHAPE = (3, 16, 16)


@dataclass(frozen=True)
class Cost:
    """Of one sample: network evaluations and gradients through the network."""

    evaluations: float
    gradients: float


@dataclass(frozen=True)
class Speed:
    """Seconds of one evaluation of the network, and of one gradient through it, for one image."""

    evaluation: float
    gradient: float


def count_costs(config: Config, schedule: Schedule | None = None) -> dict[Cell, Cost]:
    """What a sample of each cell costs, counted on a small image with a closed-form prior.

    Args:
        schedule: of the prior, on which it depends where CMI acts; that of DDPM by default.
    """
    found: dict[str, Cost] = {}
    cells = {}
    for cell in list_cells(config):
        key = f"{setup(config, cell)}{cell.steps}"
        if key not in found:
            found[key] = _cost(config, cell, DDPM.linear() if schedule is None else schedule)
        cells[cell] = found[key]
    return cells


def _cost(config: Config, cell: Cell, schedule: Schedule) -> Cost:
    made, steps = setup(config, cell), min(cell.steps, COUNTED_STEPS)
    physics = cast(LinearPhysics, inpaint_random(_SHAPE, hidden=0.5))
    y = measure(torch.full((1, *_SHAPE), 0.5), physics)
    prior = Counted(_gaussian(schedule))
    restore(y, physics, prior, solver=made.solver, cmi=made.correction, sampler=made.sampler, steps=steps)
    scale = cell.steps / steps
    return Cost(prior.forwards * scale, prior.backwards * scale)


def _gaussian(schedule: Schedule) -> NetworkPrior:
    """Pixels N(0, 0.25): ``E[eps | x_t] = sigma_t x_t / (alpha_t^2 / 4 + sigma_t^2)``."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t = schedule(float(t[0]))
        return sigma_t * x_t / (alpha_t**2 / 4 + sigma_t**2)

    moments = SecondMoments(torch.zeros(3), torch.full((3, 64, 64), 0.25, dtype=torch.float64))
    return NetworkPrior(network, "eps", schedule, second_moments=moments)


def measure_speed(prior: Denoiser, *, samples: int, size: int, device: str) -> Speed:
    """A timing of the prior on its device: ``samples`` images of side ``size`` at once."""
    side = -(-size // prior.multiple) * prior.multiple
    x_t = torch.randn(samples, prior.channels or 3, side, side, device=device, requires_grad=True)
    t = prior.schedule.grid(2)[1]
    forward = _timed(lambda: prior(x_t.detach(), t).mean, device)
    both = _timed(lambda: torch.autograd.grad(prior(x_t, t).mean.sum(), x_t), device)
    return Speed(forward / samples, max(both - forward, 0.0) / samples)


def _timed(work, device: str, repeats: int = 3) -> float:
    """Seconds of the fastest of a few calls."""
    spent = []
    for _ in range(repeats + 1):
        before = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - before)
    return min(spent[1:])


def predict_seconds(cost: Cost, speed: Speed) -> float:
    """Of one sample."""
    return cost.evaluations * speed.evaluation + cost.gradients * speed.gradient
