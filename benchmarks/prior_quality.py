"""Is a prior good enough to matter? Solvers with it against tuned classical baselines, on small natural images.

Tasks, at 64x64 and noise_std 0.05 of images in [0, 1]: random inpainting with 90% of the pixels hidden (another mask
for each image), Gaussian deblurring of std 2 pixels (the CMI paper's std 5 at 256 pixels would be 1.25 here; 2 is
harder), and bicubic super-resolution x4.

Images: the archive's names in sorted order; with step = number // 16, images 0, step, 2 step, ... are reported and
images step / 2, 3 step / 2, ... tune the baselines' weights. Image i of a set has seed i, for its mask, its noise and
the sampler.

Baselines: total variation, ``argmin 1/2 |A x - y|^2 + w TV(x)`` (isotropic, deepinv's ``TVPrior``), by 1000 iterations
of the primal-dual method of Chambolle and Pock (2011, https://doi.org/10.1007/s10851-010-0251-1): the objective is then
within 1e-3 of its minimum, the PSNR within 0.01 dB. And the closed form of deepinv's ``prox_l2``,
``argmin 1/2 |A x - y|^2 + w/2 |x - z|^2``, with z either 0 or the mean colour of the measurement. Both weights, and z,
are chosen per task for the highest mean PSNR on the tuning images.

    python benchmarks/prior_quality.py --data tiny-imagenet/val.tar --solver pigdm,cadps
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from deepinv.optim import TVPrior
from deepinv.physics import LinearPhysics
from rich.console import Console
from torch import Tensor

from cmidiff.metrics import psnr, ssim
from cmidiff.physics import deblur_gaussian, from_mask, measure, random_mask, super_resolution
from cmidiff.sources import list_sources, read_source

NOISE_STD = 0.05
TV_WEIGHTS = [0.02 * 2 ** (k / 3) for k in range(-12, 13)]
L2_WEIGHTS = [10 ** (k / 8) for k in range(-24, 13)]
console = Console(stderr=True)


@dataclass(frozen=True)
class Problem:
    """A task for a set of images: the truth, the physics and the measurement."""

    truth: Tensor
    physics: LinearPhysics
    y: Tensor


def read_images(archive: Path, count: int) -> tuple[Tensor, Tensor]:
    """The images to report and the images to tune on, each ``(count, 3, H, W)`` in [0, 1]."""
    found = list_sources(archive)
    step = len(found) // count
    if step < 2:
        raise typer.BadParameter(f"{archive} holds {len(found)} images; {2 * count} are needed. Ask for fewer.")
    chosen = found[: count * step : step] + found[step // 2 : count * step : step]
    values = torch.stack([read_source(one) for one in chosen])
    return values[:count], values[count:]


def make_problem(task: str, truth: Tensor) -> Problem:
    """The task of that name for these images; image i has seed i."""
    shape, seeds = truth.shape[1:], range(len(truth))
    if task == "inpaint-random":
        mask = torch.cat([random_mask(shape, hidden=0.9, seed=s) for s in seeds])
        physics = from_mask(mask, shape, noise_std=NOISE_STD)
    elif task == "deblur-gaussian":
        physics = deblur_gaussian(shape, std=2.0, noise_std=NOISE_STD)
    else:
        physics = super_resolution(shape, factor=4, noise_std=NOISE_STD)
    return Problem(truth, physics, measure(truth, physics, seed=seeds))


TASK_NAMES = ("inpaint-random", "deblur-gaussian", "super-resolution")


def total_variation(problem: Problem, weight: float, *, iterations: int = 1000) -> Tensor:
    """``argmin_x 1/2 |A x - y|^2 + weight sum |grad x|``, the primal-dual method with step sizes for images in [0,
    1]."""
    tv, y, physics = TVPrior(), problem.y, problem.physics
    balance = 0.1 / weight  # primal over dual scale: of 0.02 to 3 tried, the one that converged fastest in every task
    tau, sigma = balance / math.sqrt(8), 1 / (balance * math.sqrt(8))
    x = ahead = coloured(problem)
    u = torch.zeros_like(tv.nabla(x))
    for _ in range(iterations):
        u = u + sigma * tv.nabla(ahead)
        u = u / (u.norm(dim=-1, keepdim=True) / weight).clamp_min(1)
        new = physics.prox_l2(x - tau * tv.nabla_adjoint(u), y, tau)
        x, ahead = new, 2 * new - x
    return x


def tv_objective(problem: Problem, x: Tensor, weight: float) -> Tensor:
    """What ``total_variation`` minimises, per image."""
    misfit = (problem.physics.A(x) - problem.y).square().flatten(1).sum(1) / 2
    return misfit + weight * TVPrior().fn(x)


def coloured(problem: Problem) -> Tensor:
    """The mean colour of each measurement as a constant image: what is known of the truth before any pixel is
    placed."""
    ones = problem.physics.A(torch.ones_like(problem.truth))
    colour = (problem.y * ones).sum((2, 3), keepdim=True) / ones.square().sum((2, 3), keepdim=True)
    return colour.expand(problem.truth.shape).contiguous()


def tikhonov(problem: Problem, weight: float, *, from_colour: bool) -> Tensor:
    """``argmin_x 1/2 |A x - y|^2 + weight/2 |x - z|^2`` in closed form."""
    z = coloured(problem) if from_colour else torch.zeros_like(problem.truth)
    return problem.physics.prox_l2(z, problem.y, 1 / weight)


def best_tv_weight(problem: Problem) -> float:
    """The weight of the highest mean PSNR, found by climbing from 0.02: the PSNR has one maximum in the weight."""
    scores: dict[int, float] = {}

    def score(k: int) -> float:
        if k not in scores:
            x = total_variation(problem, TV_WEIGHTS[k], iterations=200)
            scores[k] = float(psnr(x, problem.truth).mean())
            console.print(f"  total variation, weight {TV_WEIGHTS[k]:.4f}: {scores[k]:.2f} dB")
        return scores[k]

    k = len(TV_WEIGHTS) // 2
    while True:
        better = max((j for j in (k - 1, k, k + 1) if 0 <= j < len(TV_WEIGHTS)), key=score)
        if better == k:
            return TV_WEIGHTS[k]
        k = better


def best_tikhonov(problem: Problem) -> tuple[float, bool]:
    """The weight and the start of the highest mean PSNR."""
    choices = [(weight, from_colour) for weight in L2_WEIGHTS for from_colour in (False, True)]
    return max(choices, key=lambda c: float(psnr(tikhonov(problem, c[0], from_colour=c[1]), problem.truth).mean()))


def run_baselines(tuning: Problem, problem: Problem) -> dict[str, Tensor]:
    """Both baselines on the reported images, named with what was chosen on the tuning images."""
    weight = best_tv_weight(tuning)
    l2_weight, from_colour = best_tikhonov(tuning)
    start = "mean colour" if from_colour else "0"
    return {
        f"total variation, w = {weight:.3g}": total_variation(problem, weight),
        f"prox_l2, w = {l2_weight:.3g}, z = {start}": tikhonov(problem, l2_weight, from_colour=from_colour),
    }


def solvers() -> dict[str, dict[str, Any]]:
    """The solvers by the names of the command line, and those with CMI: keyword arguments of ``restore``."""
    from cmidiff import CMI
    from cmidiff.registry import SOLVERS

    found: dict[str, dict[str, Any]] = {name: {"solver": SOLVERS.make(name)} for name in SOLVERS}
    return found | {f"cmi+{name}": options | {"cmi": CMI()} for name, options in found.items()}


def run_solver(problem: Problem, prior: Any, options: dict[str, Any], steps: int, samples: int, device: str) -> Tensor:
    """The estimate: the mean of the samples, or that of a point estimator; image i has seed i."""
    from cmidiff import restore

    seeds = list(range(len(problem.truth)))
    y, physics = problem.y.to(device), problem.physics.clone().to(device)
    count = 1 if options["solver"].point else samples
    return restore(y, physics, prior, steps=steps, samples=count, seed=seeds, **options).estimate.cpu()


def table_row(name: str, x: Tensor, problem: Problem, baseline: Tensor | None, seconds: float) -> str:
    """One line of the Markdown table; the gap's standard error is over the images."""
    if not bool(x.isfinite().all()):
        return f"| {name} | diverged | | | {seconds:.0f} |"
    values = psnr(x, problem.truth)
    cells = [f"{float(values.mean()):.2f}", f"{float(ssim(x, problem.truth).mean()):.3f}"]
    gap = values - (values if baseline is None else psnr(baseline, problem.truth))
    error = float(gap.std() / math.sqrt(len(gap)))
    cells.append("" if baseline is None else f"{float(gap.mean()):+.2f} ± {error:.2f}")
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def compare(
    task: str,
    images: tuple[Tensor, Tensor],
    chosen: dict[str, dict[str, Any]],
    prior: Any,
    steps: int,
    samples: int,
    device: str,
) -> None:
    """The table of one task, printed row by row."""
    problem, tuning = (make_problem(task, x) for x in images)
    began = time.monotonic()
    rivals = run_baselines(tuning, problem)
    seconds = time.monotonic() - began
    typer.echo(f"\n### {task}, noise_std {NOISE_STD}, {len(problem.truth)} images\n")
    typer.echo("| method | PSNR dB | SSIM | gap to the better baseline, dB | s |\n|---|---|---|---|---|")
    best = max(rivals.values(), key=lambda x: float(psnr(x, problem.truth).mean()))
    for name, x in rivals.items():
        typer.echo(table_row(name, x, problem, None if x is best else best, seconds / 2))
    for name, options in chosen.items():
        began = time.monotonic()
        x = run_solver(problem, prior, options, steps, samples, device)
        label = f"{name}, {steps} steps, mean of {samples}"
        typer.echo(table_row(label, x, problem, best, time.monotonic() - began))


def main(
    data: Annotated[Path, typer.Option(help="tar archive of images, all of one size")] = Path("tiny-imagenet/val.tar"),
    solver: Annotated[
        str, typer.Option(help="names separated by commas, 'all', or 'none' for the baselines alone")
    ] = "all",
    prior: Annotated[str, typer.Option(help="name or folder of the prior")] = "natural-64",
    task: Annotated[str, typer.Option(help="names separated by commas, or 'all'")] = "all",
    images: Annotated[int, typer.Option(min=2, help="how many to report, and as many to tune the baselines on")] = 16,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    samples: Annotated[int, typer.Option(min=1, help="posterior samples whose mean is scored")] = 4,
    device: Annotated[str, typer.Option(help="of the solvers; the baselines run on the CPU")] = "cpu",
) -> None:
    """Print a Markdown table of mean PSNR and SSIM for each task, with the gap to the better classical baseline."""
    if not data.is_file():
        raise typer.BadParameter(f"There is no archive of images at {data}. Name one with --data.")
    known = solvers() if solver != "none" else {}
    chosen = known if solver in ("all", "none") else _pick(solver, known, "solver")
    tasks = list(TASK_NAMES) if task == "all" else list(_pick(task, dict.fromkeys(TASK_NAMES), "task"))
    network = None
    if chosen:
        from cmidiff import load_prior

        network = load_prior(prior, device=device)
    pair = read_images(data, images)
    for name in tasks:
        compare(name, pair, chosen, network, steps, samples, device)


def _pick(names: str, known: dict[str, Any], what: str) -> dict[str, Any]:
    picked = names.split(",")
    for name in picked:
        if name not in known:
            raise typer.BadParameter(f"There is no {what} {name!r}. Choose from: {', '.join(known)}.")
    return {name: known[name] for name in picked}


if __name__ == "__main__":
    typer.run(main)
