"""What the estimate of each solver is worth along the run: PSNR of ``x_hat'`` by noise level.

A solver whose estimate is poor at high noise spends its first steps on nothing. ``x_hat`` is the denoised image before
the measurement acts on it, ``x_hat'`` what the sampler steps with: ``(x_s - a x_t - std z) / b`` of each step.

    python benchmarks/trajectory.py IMAGES --task denoise
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from cmidiff import load_prior, measure
from cmidiff.draws import SeededDraws
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.physics import TASKS
from cmidiff.registry import SOLVERS
from cmidiff.samplers import Ancestral
from cmidiff.sources import list_sources, read_source
from cmidiff.step import Problem, Step

OPTIONS: dict[str, dict[str, Any]] = {
    "denoise": {"noise_std": 25 / 255},
    "inpaint-random": {"noise_std": 0.05, "hidden": 0.8},
    "super-resolution": {"noise_std": 0.01, "factor": 4},
    "deblur-gaussian": {"noise_std": 0.01, "kernel_size": 13, "std": 1.5},
}


def follow(problem: Problem, name: str, steps: int, truth: Tensor) -> list[tuple[float, float, float]]:
    """Noise level, PSNR of ``x_hat`` and of ``x_hat'`` at each step; all in the prior's range [-1, 1]."""
    solver, rows = SOLVERS.make(name), []
    times = solver.times(problem, steps)
    x = solver.start(problem, times[0])[0]
    for trace in sample(problem, solver, times):
        s = problem.prior.schedule.end if trace.index + 1 == trace.steps else times[trace.index + 1]
        step = Step.at(problem, x, trace.t, s, graph=False, index=trace.index, steps=trace.steps)
        a, b = step.coefficients
        estimate = (trace.x_s - a * x - step.std * step.z) / b
        rows.append((step.ratio, _psnr(trace.x_hat, truth), _psnr(estimate, truth)))
        x = trace.x_s
    return rows


def _psnr(x: Tensor, truth: Tensor) -> float:
    return float((-10 * ((x.clamp(-1, 1) - truth).square().flatten(1).mean(1) / 4).log10()).mean())


@torch.no_grad()
def run(
    images: Annotated[Path, typer.Argument(help="Folder or archive of images.")],
    task: Annotated[str, typer.Option(help=", ".join(OPTIONS))] = "denoise",
    solvers: Annotated[
        str, typer.Option(help="Names, separated by commas.")
    ] = "cadps,cadps-exact,cadps-diagonal,pigdm",
    prior: Annotated[str, typer.Option(help="Name of the prior.")] = "photo",
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 64,
    count: Annotated[int, typer.Option(help="Images.")] = 4,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
) -> None:
    """Print a table: a row for each noise level, a column for each solver."""
    truth = torch.stack([read_source(one)[:, :size, :size] for one in list_sources(images)[:count]])
    network = load_prior(prior)
    physics = TASKS[task](truth.shape[1:], **OPTIONS[task])
    y, x = measure(truth, physics, seed=0), 2 * truth - 1
    inside = 2 * y - physics.A(torch.ones_like(truth))
    measurement = Measurement(inside, physics, 2 * OPTIONS[task]["noise_std"], tuple(x.shape[1:]), tuple(x.shape[1:]))
    rows = tuple(range(len(x)))
    problem = Problem(network, measurement, Ancestral(), SeededDraws([(0, k) for k in rows]), rows, (-1.0, 1.0))
    found = {name: follow(problem, name, steps, x) for name in solvers.split(",")}
    print(f"| sigma/alpha | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for k in range(steps):
        cells = [f"{rows[k][1]:.1f} -> {rows[k][2]:.1f}" for rows in found.values()]
        print(f"| {next(iter(found.values()))[k][0]:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(run)
