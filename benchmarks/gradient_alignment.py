"""Where along t can the CMI gradient of a trained network be trusted? Cosines between its estimates.

At states ``x_t`` of true images, for each noise level sigma/alpha:

    two draws       two estimates with independent probes: what the estimator's own noise leaves
    one probe       one probe against the mean of all others, for each estimator
    contraction     the exact second derivative against the second difference, with the same probes

A network-free reference is the mixture of the laboratory: `cmidiff validate --only symmetry` compares a network that
was trained on it with the exact gradient. Mixtures of whole images are no reference: below a noise of about 20 they are
one component, whose gradient is zero.

    python benchmarks/gradient_alignment.py cats64/val.tar --prior cats-64
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from cells import TASKS
from torch import Tensor

from cmidiff import load_prior
from cmidiff.information import Contraction, Estimator, gradient
from cmidiff.prior.base import Denoiser
from cmidiff.tuning.problem import draw_physics, read_images

ESTIMATORS: tuple[Estimator, ...] = ("measurement-symmetric", "measurement", "two-term")


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two gradients, mean over the images."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean())


def compare(
    prior: Denoiser, physics: Any, x_0: Tensor, ratio: float, probes: int, noise_std: float
) -> dict[str, float]:
    """The cosines at one noise level.

    Args:
        prior: the denoiser.
        physics: linear.
        x_0: images in its units, (B, C, H, W).
        ratio: sigma / alpha.
        probes: of an estimate.
        noise_std: in these units.
    """
    t = prior.schedule.time(ratio)
    alpha, sigma = prior.schedule(t)
    x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).to(x_0)

    def estimate(count: int, seed: int, estimator: Estimator = ESTIMATORS[0], how: Contraction | None = None) -> Tensor:
        return gradient(
            prior,
            physics,
            x_t,
            t,
            noise_std=noise_std,
            covariance="isotropic",
            estimator=estimator,
            contraction=how,
            probes=count,
            seed=seed,
        )

    own = estimate(probes, 0)
    found = {"two draws": cosine(own, estimate(probes, 1))}
    for estimator in ESTIMATORS:
        found[f"one probe, {estimator}"] = cosine(own, estimate(1, 2, estimator))
    exact = estimate(1, 3, how="double-backward")
    found["contraction"] = cosine(exact, estimate(1, 3, how="second-difference"))
    return found


def main(
    images: Annotated[Path, typer.Argument(help="A folder or a tar archive of images.")],
    prior: Annotated[str, typer.Option(help="Name or folder of the prior.")] = "natural-64",
    tasks: Annotated[str, typer.Option(help="Names, separated by commas.")] = "super-resolution,inpaint-random",
    levels: Annotated[str, typer.Option(help="sigma/alpha.")] = "0.1,0.3,0.6,1,2,3.5",
    count: Annotated[int, typer.Option(help="Images.")] = 4,
    size: Annotated[int | None, typer.Option(help="Crop and shrink images to this side.")] = None,
    probes: Annotated[int, typer.Option(help="Probes of an estimate.")] = 16,
    noise_std: Annotated[float, typer.Option(help="Noise, for images in [0, 1].")] = 0.05,
) -> None:
    """Print a row for each task and noise level."""
    network = load_prior(prior)
    clean = read_images(images, count=count, size=size)
    signed = 2 * clean.truth - 1
    header = False
    for task in tasks.split(","):
        shape = tuple(signed.shape[1:])
        physics = draw_physics(task, shape, TASKS[task] | {"noise_std": noise_std}, [0])
        for ratio in map(float, levels.split(",")):
            rows = [compare(network, physics, signed[i : i + 1], ratio, probes, 2 * noise_std) for i in range(count)]
            if not header:
                print(f"| task | sigma/alpha | {' | '.join(rows[0])} |\n|{'---|' * (len(rows[0]) + 2)}")
                header = True
            means = (f"{fmean(row[name] for row in rows):.2f}" for name in rows[0])
            print(f"| {task} | {ratio:g} | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
