"""Are samples as uncertain as they are wrong? Spread against error, and the CRPS, by task and solver.

If samples and truth come from the same posterior, ``std sqrt(1 + 1 / K)`` over K samples is the error of their mean.

    python benchmarks/spread.py IMAGES --samples 19 --solvers pigdm,cadps,cadps:spread=2

"rmse of the mean" is that of the mean of infinitely many samples: ``sqrt(error^2 - std^2 / K)``. ``--gaussian`` takes
data of the Gaussian with the second moments of the prior, whose denoiser is exact. A point estimate, or one sample, has
a PSNR alone.
"""

import math
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from cmidiff import load_prior, measure, restore
from cmidiff.dct import idct
from cmidiff.metrics import coverage, crps, psnr
from cmidiff.physics import TASKS
from cmidiff.prior import Denoiser, GaussianMixture
from cmidiff.registry import SOLVERS
from cmidiff.result import RestorationWarning
from cmidiff.solvers import Solver
from cmidiff.sources import list_sources, read_source

PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "denoise 25/255": ("denoise", {"noise_std": 25 / 255}),
    "80% hidden": ("inpaint-random", {"noise_std": 0.05, "hidden": 0.8}),
    "super-resolution x4": ("super-resolution", {"noise_std": 0.01, "factor": 4}),
    "blur std 1.5": ("deblur-gaussian", {"noise_std": 0.01, "std": 1.5, "kernel_size": 11}),
}


def gaussian(prior: Denoiser, size: int, count: int) -> tuple[GaussianMixture, Tensor]:
    """The Gaussian with the second moments of a prior, for images in [0, 1], and draws of it."""
    moments, shape = prior.second_moments, (3, size, size)
    assert moments is not None
    moments = moments.rescaled(0.5, 0.5)
    variances, d = moments.spectrum(shape), 3 * size**2
    basis = idct(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(d, d)
    covariance = basis.mT @ (variances.flatten()[:, None] * basis)
    mean = moments.centre(shape).double() + torch.zeros(shape, dtype=torch.float64)
    z = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])
    return exact, mean + idct(variances.sqrt() * z)


def make(spelled: str) -> Solver:
    """A solver of ``name`` or ``name:option=number``."""
    name, _, option = spelled.partition(":")
    key, _, value = option.partition("=")
    return SOLVERS.make(name, {key: float(value)} if key else {})


def run(
    images: Annotated[Path, typer.Argument(help="Folder or archive of images.")],
    solvers: Annotated[str, typer.Option(help="Names, separated by commas.")] = "pigdm,cadps,cadps:spread=2",
    problems: Annotated[str, typer.Option(help="Problems, separated by semicolons.")] = ";".join(PROBLEMS),
    prior: Annotated[str, typer.Option(help="Name of the prior.")] = "photo",
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 64,
    count: Annotated[int, typer.Option(help="Images.")] = 2,
    samples: Annotated[int, typer.Option(help="Samples of each image.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; those of the solver by default.")] = None,
    exact: Annotated[bool, typer.Option("--gaussian", help="Gaussian data with an exact denoiser.")] = False,
) -> None:
    """Print a table: a row for each problem and solver."""
    network: Denoiser = load_prior(prior)
    given: dict[str, Any] = {"value_range": None} if exact else {}
    if exact:
        network, truth = gaussian(network, size, count)
    else:
        chosen = list_sources(images)[:count]
        truth = torch.stack([read_source(one)[:, 80 : 80 + size, 80 : 80 + size] for one in chosen])
    titles = ("PSNR of a sample", "of the mean", "rmse of the mean x 1000", "spread over error", "90% coverage")
    print(f"| problem | solver | {' | '.join(titles)} | CRPS x 1000 |")
    print("|---|---|---|---|---|---|---|---|")
    for problem in problems.split(";"):
        task, options = PROBLEMS[problem]
        physics = TASKS[task](truth.shape[1:], dtype=truth.dtype, **options)
        y = measure(truth, physics, seed=0)
        for solver in solvers.split(","):
            used = make(solver)
            drawn = 1 if used.point else samples
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RestorationWarning)
                found = restore(y, physics, network, solver=used, samples=drawn, steps=steps, **given)
            spread = float(found.std.square().mean().sqrt()) * math.sqrt(1 + 1 / drawn)
            error = float((found.mean - truth).square().mean().sqrt())
            one = float(psnr(found.samples[:, 0].clamp(0, 1), truth).mean())
            mean = float(psnr(found.mean.clamp(0, 1), truth).mean())
            inside = float(coverage(found.samples, truth).mean()) if drawn >= 19 else float("nan")
            least = 1000 * math.sqrt(max(error**2 - spread**2 / (drawn + 1), 0.0))
            score = 1000 * float(crps(found.samples, truth).mean()) if drawn > 1 else float("nan")
            figures = f"{one:.2f} | {mean:.2f} | {least:.2f} | {spread / error:.2f} | {inside:.2f} | {score:.2f}"
            print(f"| {problem} | {solver} | {figures} |")


if __name__ == "__main__":
    typer.run(run)
