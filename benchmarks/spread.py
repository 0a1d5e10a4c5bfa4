"""Are samples as uncertain as they are wrong? Spread against error, and the CRPS, by task and solver.

If samples and truth come from the same posterior, ``std sqrt(1 + 1 / K)`` over K samples is the error of their mean.

    python benchmarks/spread.py IMAGES --solvers pigdm,cadps

A point estimate, or one sample, has a PSNR alone.
"""

import math
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from cmidiff import load_prior, measure, restore
from cmidiff.metrics import coverage, crps, psnr
from cmidiff.physics import TASKS
from cmidiff.registry import SOLVERS
from cmidiff.result import RestorationWarning
from cmidiff.sources import list_sources, read_source

PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "denoise 25/255": ("denoise", {"noise_std": 25 / 255}),
    "80% hidden": ("inpaint-random", {"noise_std": 0.05, "hidden": 0.8}),
    "super-resolution x4": ("super-resolution", {"noise_std": 0.01, "factor": 4}),
    "blur std 1.5": ("deblur-gaussian", {"noise_std": 0.01, "std": 1.5, "kernel_size": 11}),
}


def run(
    images: Annotated[Path, typer.Argument(help="Folder or archive of images.")],
    solvers: Annotated[str, typer.Option(help="Names, separated by commas.")] = "pigdm,cadps",
    problems: Annotated[str, typer.Option(help="Problems, separated by semicolons.")] = ";".join(PROBLEMS),
    prior: Annotated[str, typer.Option(help="Name of the prior.")] = "photo",
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 64,
    count: Annotated[int, typer.Option(help="Images.")] = 2,
    samples: Annotated[int, typer.Option(help="Samples of each image.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; those of the solver by default.")] = None,
) -> None:
    """Print a table: a row for each problem and solver."""
    truth = torch.stack([read_source(one)[:, 80 : 80 + size, 80 : 80 + size] for one in list_sources(images)[:count]])
    network = load_prior(prior)
    print("| problem | solver | PSNR of a sample | of the mean | spread over error | 90% coverage | CRPS x 1000 |")
    print("|---|---|---|---|---|---|---|")
    for problem in problems.split(";"):
        task, options = PROBLEMS[problem]
        physics = TASKS[task](truth.shape[1:], **options)
        y = measure(truth, physics, seed=0)
        for solver in solvers.split(","):
            drawn = 1 if SOLVERS.make(solver).point else samples
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RestorationWarning)
                found = restore(y, physics, network, solver=solver, samples=drawn, steps=steps)
            spread = float(found.std.square().mean().sqrt()) * math.sqrt(1 + 1 / drawn)
            error = float((found.mean - truth).square().mean().sqrt())
            one = float(psnr(found.samples[:, 0].clamp(0, 1), truth).mean())
            mean = float(psnr(found.mean.clamp(0, 1), truth).mean())
            inside = float(coverage(found.samples, truth).mean()) if drawn >= 9 else float("nan")
            score = 1000 * float(crps(found.samples, truth).mean()) if drawn > 1 else float("nan")
            figures = f"{one:.2f} | {mean:.2f} | {spread / error:.2f} | {inside:.2f} | {score:.2f}"
            print(f"| {problem} | {solver} | {figures} |")


if __name__ == "__main__":
    typer.run(run)
