"""The step of the finite differences: truncation on one side, rounding on the other, the default in between.

Two derivatives of the denoiser are taken by differences. One is the contraction ``C(u, u)`` of the CMI gradient
(``finite-difference`` of vector-Jacobian products, ``second-difference`` of the denoiser). The other is the diagonal
variance of CA-DPS. Both on the 12-dimensional mixture of `cmidiff.laboratory.gradient`, in float32 and float64, and on
the embedded prior in float32. The reference is the exact derivative in float64. The limit of the network's second
difference differs from the contraction; its reference is a float64 difference with a step of 0.002. Steps are relative
to sigma_t (and the rms of the direction), as the library takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cmidiff.covariance import Exact, RowSum, difference_size
from cmidiff.covariance.diagonal import bounded, of_paper, slope
from cmidiff.forward import push_forward
from cmidiff.information import Contraction, contract
from cmidiff.laboratory.findings import Cell, Findings, Table
from cmidiff.laboratory.gradient import TIMES, M, make_problem, make_step
from cmidiff.laboratory.photographs import load_images
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.laboratory.symmetry import probe_embedded
from cmidiff.prior import GaussianMixture
from cmidiff.step import Step

FLOOR = 1e-4  # of the variances, as in the paper's rule

COLUMNS = ("quantity", "on", "precision", "level", "step", "relative error", "default")
ORDER: dict[str, Literal[1, 2]] = {"finite-difference": 1, "second-difference": 2, "diagonal": 1}  # of the derivative
CONTRACTIONS: tuple[Contraction, ...] = ("finite-difference", "second-difference")
NETWORK_LEVELS = (0.1, 0.5, 2.0)
Row = list[Cell]


def default_step(quantity: str, dtype: torch.dtype) -> float:
    """The library's step."""
    return difference_size(torch.finfo(dtype).eps, ORDER[quantity])


def measure(settings: Settings) -> Findings:
    """Errors on the mixture and on the embedded prior."""
    rows = list(_on_mixture(settings))
    rows += list(_on_network(settings))
    every = Table("Error against step", COLUMNS, rows, shown=False)
    return Findings({"default": _summarise(every), "steps": every, "probe": _diagonal_of_one_probe(settings)})


def _sizes(settings: Settings, low: float, high: float, count: int) -> list[float]:
    return torch.logspace(low, high, 7 if settings.quick else count, dtype=torch.float64).tolist()


def _states(prior: GaussianMixture, t: float, settings: Settings) -> Tensor:
    alpha_t, sigma_t = prior.schedule(t)
    g = settings.generator("difference", t)
    x_0 = prior.sample(64, g)
    return alpha_t * x_0 + sigma_t * torch.randn(x_0.shape, generator=g, dtype=x_0.dtype)


def _mixture_in(prior: GaussianMixture, dtype: torch.dtype) -> GaussianMixture:
    covariances = prior.covariance_matrices().to(dtype)
    return GaussianMixture(prior.weights.to(dtype), prior.means.to(dtype), covariances, prior.schedule)


def _on_mixture(settings: Settings) -> Iterator[Row]:
    prior, matrix = make_problem(settings)
    for t in TIMES[1:2] if settings.quick else TIMES:
        x_t, seed = _states(prior, t, settings), make_seed(settings.seed, "difference", t)
        exact = make_step(prior, matrix, x_t, t, seed)
        u = Exact(2 * M).at(exact).whiten(_signs(len(x_t), settings, t))
        for dtype in (torch.float32, torch.float64):
            step = make_step(_mixture_in(prior, dtype), matrix, x_t.to(dtype), t, seed)
            sizes = _sizes(settings, -8, 0.5, 35)
            yield from _curves(exact, u, step, u.to(dtype), "mixture", t, sizes)


def _signs(rows: int, settings: Settings, t: float) -> Tensor:
    z = torch.randn(rows, M, generator=settings.generator("signs", t), dtype=torch.float64)
    return torch.where(z < 0, -1.0, 1.0).to(z)


def _on_network(settings: Settings) -> Iterator[Row]:
    x_0 = load_images(settings.images, 1)
    for ratio in NETWORK_LEVELS[1:2] if settings.quick else NETWORK_LEVELS:
        seed = make_seed(settings.seed, "difference", ratio)
        exact, u = probe_embedded(x_0, "inpainting, 80% hidden", ratio, seed, torch.float64)
        step, v = probe_embedded(x_0, "inpainting, 80% hidden", ratio, seed)
        yield from _curves(exact, u, step, v, "natural-64", ratio, _sizes(settings, -5, 0, 13))


def _curves(
    exact: Step, u: Tensor, step: Step, v: Tensor, on: str, level: float, sizes: Sequence[float]
) -> Iterator[Row]:
    """Rows of all quantities: ``exact`` and ``u`` in float64, ``step`` and ``v`` the same in the precision to
    compare."""
    truth = contract(exact, u, u, "double-backward").detach()
    # The network's third derivative is not symmetric, so that its second difference has a limit of its own.
    second = truth if on == "mixture" else contract(exact, u, u, "second-difference", 2e-3)
    quantities: dict[str, tuple[Tensor, Callable[[float | None], Tensor]]] = {
        how: (
            truth if how == "finite-difference" else second,
            lambda size, how=how: contract(step, v, v, how, size).detach(),
        )
        for how in CONTRACTIONS
    }
    quantities["diagonal"] = (_exact_slope(exact), lambda size: _row_sums(step, size))
    dtype = step.x_t.dtype
    for quantity, (target, attempt) in quantities.items():
        default = default_step(quantity, dtype)
        for size in sorted([*sizes, default]):
            error = float((attempt(size).to(target) - target).norm() / target.norm())
            yield [quantity, on, str(dtype).removeprefix("torch."), level, size, error, str(size == default)]


def _row_sums(step: Step, size: float | None) -> Tensor:
    """``(sigma_t^2 / alpha_t) J 1`` by a difference of a given size, in its bounds."""
    return bounded(step, slope(step, torch.ones_like(step.x_t), size), FLOOR).variance


def _exact_slope(step: Step) -> Tensor:
    """What `_row_sums` tends to."""
    x, ones = step.x_t.detach(), torch.ones_like(step.x_t)
    return bounded(step, push_forward(step.denoise, x, ones).detach(), FLOOR).variance


def _diagonal_of_one_probe(settings: Settings) -> Table:
    """CA-DPS's variance against the exact diagonal: what one probe costs, beside which the step is nothing."""
    prior, matrix = make_problem(settings)
    rows: list[Row] = []
    for t in TIMES[1:2] if settings.quick else TIMES:
        x_t = _states(prior, t, settings)
        step = make_step(prior, matrix, x_t, t, make_seed(settings.seed, "probe", t))
        truth = prior.covariance(x_t, t).diagonal(dim1=1, dim2=2)
        for probe, choice in (("random signs", of_paper()), ("ones", RowSum(FLOOR))):
            several = [choice.at(replace(step, index=k)).variance for k in range(32)]
            one = torch.stack([(v - truth).norm() / truth.norm() for v in several]).mean()
            all_ = (torch.stack(several).mean(0) - truth).norm() / truth.norm()
            rows.append([t, probe, float(one), float(all_)])
    return Table(
        "CA-DPS's diagonal variance against the exact diagonal of the Jacobian, default step, mixture",
        ("t", "probe", "relative error, one probe", "relative error, mean of 32"),
        rows,
        "The error is that of the probe and of the bounds; the step adds nothing to it.",
    )


def _summarise(every: Table) -> Table:
    rows: list[Row] = []
    for key, records in every.frame.groupby(["quantity", "on", "precision", "level"], sort=False):
        best = records.loc[records["relative error"].idxmin()]
        (default,) = records[records["default"] == "True"].to_dict("records")
        rows.append([*key, *(row[name] for row in (default, best) for name in ("step", "relative error"))])
    return Table(
        "Error of the default step, and of the best one",
        ("quantity", "on", "precision", "level", "default step", "its error", "best step", "its error (best)"),
        rows,
        "Level: t on the mixture, sigma/alpha on natural-64. Diagonal: with the probe of ones, against J 1.",
    )


def draw(found: Findings) -> dict[str, Figure]:
    """Error against step, one panel for each quantity and prior."""
    groups = found.tables["steps"].frame.groupby(["on", "quantity"], sort=False)
    figure, axes = panels([f"{quantity}, {on}" for (on, quantity), _ in groups])
    for axis, ((on, _), rows) in zip(axes, groups, strict=True):
        colours = dict(zip(rows["level"].unique(), COLOURS, strict=False))
        for (level, precision), line in rows.groupby(["level", "precision"], sort=False):
            errors = line["relative error"].clip(lower=1e-16)
            name, style = "t" if on == "mixture" else "sigma/alpha", "-" if precision == "float32" else "--"
            label = f"{name} = {level:g}, {precision}"
            axis.loglog(line["step"], errors, style, color=colours[level], label=label)
            default = line["default"] == "True"
            axis.plot(line["step"][default], errors[default], "o", color=colours[level], markersize=5)
        axis.set_ylim(1e-12 if on == "mixture" else 1e-6, 1e2)
        axis.set_xlabel("step / sigma_t (dot: default)")
        axis.legend(fontsize=6, frameon=False)
    axes[0].set_ylabel("relative error")
    return {"steps": figure}
