"""How symmetric the third derivative of log p_t is, as the embedded prior has learned it.

Of a density it is a symmetric tensor. ``grad_x <u, J u>`` is then the second derivative of the denoiser along ``u``,
which needs no backward pass (``second-difference``). A network was only trained to denoise; the gap is its own. It is
measured against ``double-backward`` with the same probe ``u = A^T S^-1/2 z``, one for each image, by noise level
``sigma_t / alpha_t``; ``finite-difference`` beside it, which assumes no symmetry. Which of them is nearer to a true
gradient only a prior can say whose gradient is known (`cmidiff.laboratory.learned`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from deepinv.physics import LinearPhysics
from matplotlib.figure import Figure
from torch import Tensor

from cmidiff.covariance import Isotropic
from cmidiff.information import Contraction, contract
from cmidiff.laboratory.chains import BlockDraws
from cmidiff.laboratory.findings import Findings, Table
from cmidiff.laboratory.learned import compare_known
from cmidiff.laboratory.photographs import SIDE, load_images
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.measurement import Measurement
from cmidiff.physics import inpaint_random, super_resolution
from cmidiff.prior import NetworkPrior, load_network
from cmidiff.samplers import Ancestral
from cmidiff.step import Problem, Step

LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.5, 5.0, 10.0)
NOISE_STD = 0.1  # of images in [-1, 1]
DATA_VARIANCE = 0.3  # of images in [-1, 1]
TASKS = ("inpainting, 80% hidden", "inpainting, 90% hidden", "super-resolution x4")
COMPARED: tuple[Contraction, ...] = ("second-difference", "finite-difference")


@cache
def load_embedded(dtype: torch.dtype) -> NetworkPrior:
    """natural-64."""
    return load_network("natural-64", dtype=dtype)


def task(name: str, dtype: torch.dtype = torch.float32) -> LinearPhysics:
    """One of `TASKS`."""
    shape = (3, SIDE, SIDE)
    match name:
        case "super-resolution x4":
            return super_resolution(shape, factor=4, noise_std=NOISE_STD, dtype=dtype)
        case "inpainting, 90% hidden":
            return inpaint_random(shape, hidden=0.9, noise_std=NOISE_STD, dtype=dtype)
        case _:
            return inpaint_random(shape, hidden=0.8, noise_std=NOISE_STD, dtype=dtype)


def probe_embedded(
    x_0: Tensor, name: str, ratio: float, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Step, Tensor]:
    """A step of the embedded prior at noise level ``ratio`` around the images ``x_0``, and a probe ``u`` for each. The
    same numbers in every dtype."""
    prior, physics = load_embedded(dtype), task(name, dtype)
    t = prior.schedule.time(ratio)
    alpha_t, sigma_t = prior.schedule(t)
    draws = BlockDraws(seed)
    x_t = (alpha_t * x_0 + sigma_t * draws.normal("state", 0, x_0)).to(dtype)
    shape = tuple(x_0.shape[1:])
    measurement = Measurement(torch.zeros_like(physics.A(x_t)), physics, NOISE_STD, shape, shape)
    problem = Problem(prior, measurement, Ancestral(), draws, tuple(range(len(x_t))))
    step = Step.at(problem, x_t, t, 0.98 * t, graph=True, steps=2)
    like = measurement.y.to(torch.float32)
    z = torch.where(draws.normal("cmi", 0, like) < 0, -1.0, 1.0).to(dtype)
    return step, Isotropic(DATA_VARIANCE).at(step).whiten(z)


def measure(settings: Settings) -> Findings:
    """Cosine and relative error by noise level."""
    x_0 = load_images(settings.images, 2 if settings.quick else 5)
    levels = (0.2, 2.0) if settings.quick else LEVELS
    rows = [
        [name, ratio, how, number, *values]
        for name in (TASKS[::2] if settings.quick else TASKS)
        for ratio in levels
        for how, number, values in _compared(x_0, name, ratio, settings)
    ]
    every = Table(
        "Contraction against double-backward, each image",
        ("task", "sigma/alpha", "contraction", "image", "cosine", "relative error"),
        rows,
        shown=False,
    )
    return Findings({"summary": _summarise(every), "known": compare_known(settings), "images": every})


def _compared(
    x_0: Tensor, name: str, ratio: float, settings: Settings
) -> Iterator[tuple[Contraction, int, tuple[float, float]]]:
    step, u = probe_embedded(x_0, name, ratio, make_seed(settings.seed, "symmetry", name, ratio))
    truth = contract(step, u, u, "double-backward").detach().flatten(1)
    for how in COMPARED:
        ours = contract(step, u, u, how).detach().flatten(1)
        cosine = torch.nn.functional.cosine_similarity(ours, truth)
        error = (ours - truth).norm(dim=1) / truth.norm(dim=1)
        for number, values in enumerate(zip(cosine.tolist(), error.tolist(), strict=True)):
            yield how, number, values


def _summarise(every: Table) -> Table:
    keys = ["task", "sigma/alpha"]
    groups = every.frame.groupby([*keys, "contraction"], sort=False)
    found = groups.agg(cosine=("cosine", "mean"), smallest=("cosine", "min"), error=("relative error", "mean"))
    wide = found.unstack(sort=False).reorder_levels([1, 0], axis=1)[list(COMPARED)]
    names = [f"{how}: {what}" for how in COMPARED for what in ("cosine", "smallest", "relative error")]
    return Table(
        "Contraction against double-backward on natural-64, same probe, float32: mean over images",
        (*keys, *names),
        [[*key, *values] for key, values in zip(wide.index, wide.to_numpy().tolist(), strict=True)],
        "A symmetric third derivative would give second-difference a cosine of 1.",
    )


def draw(found: Findings) -> dict[str, Figure]:
    """Cosine and relative error against the noise level."""
    frame = found.tables["images"].frame
    figure, (left, right) = panels(["cosine with double-backward", "relative error"], columns=2, width=5)
    colours = dict(zip(frame["task"].unique(), COLOURS, strict=False))
    for (name, how), rows in frame.groupby(["task", "contraction"], sort=False):
        style = {"color": colours[name], "linestyle": "-" if how == COMPARED[0] else "--", "marker": "."}
        levels = rows.groupby("sigma/alpha")
        cosines = levels["cosine"].agg(["mean", "min", "max"])
        left.semilogx(cosines.index, cosines["mean"], **style)
        left.fill_between(cosines.index, cosines["min"], cosines["max"], color=colours[name], alpha=0.12)
        errors = levels["relative error"].mean()
        right.loglog(errors.index, errors, **style, label=f"{name}, {how}")
    for axis in (left, right):
        axis.set_xlabel("noise level sigma_t / alpha_t")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.set_figheight(4.4)
    return {"cosine": figure}
