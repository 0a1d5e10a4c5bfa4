"""Does CMI help where it should? Its samples beside those of trivial changes of the same sampler.

For each task and solver: CMI of several strengths and both signs, with isotropic ``S`` and with the covariance of the
second moments above sigma/alpha 0.6; the noise of the sampler times a factor (temperature); churn; and more steps, as
many evaluations of the network as CMI needs. Three verdicts, each with a paired 95% bootstrap interval over images:

    distribution    energy score of the best CMI minus that of the solver alone
    temperature     energy score of the best CMI minus that of the front of the noise factors at the same PSNR
    cost            energy score of the best CMI minus that of more steps with the same evaluations

The best strength is chosen on the first half of the images, and the verdicts are of the second half. Negative is in
favour of CMI. The energy score is least for the true posterior; PSNR and LPIPS are of single samples.

    python benchmarks/cmi_controls.py cats64/val.tar --prior cats-64 --plot front.png

It resumes: a finished image of a variant is a line of the file. FID and KID of a sweep over eta are those of `cmidiff
evaluate --eta`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import typer
from cells import TASKS, TITLES, Ledger, bootstrap, score
from torch import Tensor

from cmidiff import CMI, load_prior
from cmidiff.covariance import Hybrid, Isotropic, SecondMoments
from cmidiff.evaluate.work import Counted
from cmidiff.prior.base import Denoiser
from cmidiff.registry import describe
from cmidiff.result import RestorationWarning
from cmidiff.samplers import ProbabilityFlow
from cmidiff.solvers import CADPS, DAPS, DPIR, DPS, PiGDM, Solver
from cmidiff.step import Carry, Estimate, Sampler, Step
from cmidiff.tuning.problem import Images, measure_images, read_images, restore_problem

BASES: dict[str, Solver] = {
    "dps": DPS(),
    "pigdm": PiGDM(),
    "cadps": CADPS(),
    "cadps, paper": CADPS("diagonal", grid="schedule"),
    "daps": DAPS(),
    "dpir": DPIR(),
}
METRICS = ("psnr", "mean_psnr", "lpips", "crps", "energy", "coverage")
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Tempered:
    """A sampler whose noise is multiplied by a factor; its mean stays the same.

    Args:
        inner: the sampler.
        factor: of the standard deviation of its noise.
    """

    inner: Sampler
    factor: float

    @property
    def silent(self) -> bool:
        return self.inner.silent

    def prepare(self, step: Step) -> Step:
        return self.inner.prepare(step)

    def coefficients(self, step: Step) -> tuple[float, float]:
        return self.inner.coefficients(step)

    def std(self, step: Step) -> float | Tensor:
        return self.factor * self.inner.std(step)

    def advance(self, step: Step, estimate: Estimate, carry: Carry) -> tuple[Tensor, Carry]:
        return self.inner.advance(step, estimate, carry)


@dataclass(frozen=True)
class Variant:
    """A run of a solver.

    Attributes:
        kind: ``none``, ``cmi``, ``cmi, moments``, ``noise``, ``churn`` or ``steps``.
        value: eta, factor, churn, or number of steps.
    """

    kind: str
    value: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind} {self.value:g}"

    @property
    def cmi(self) -> CMI | None:
        match self.kind:
            case "cmi":
                return CMI(eta=self.value)
            case "cmi, moments":
                return CMI(eta=self.value, covariance=Hybrid(high=SecondMoments(), low=Isotropic()))
        return None

    def sampler(self, solver: Solver) -> Sampler | None:
        match self.kind:
            case "noise":
                return Tempered(solver.sampler, self.value)
            case "churn":
                return ProbabilityFlow(order=1, churn=self.value)
        return None


@dataclass(frozen=True)
class Bench:
    """Cells: a variant of a solver on an image.

    Attributes:
        ledger: of what is finished.
        prior, images, noise_std, steps, samples: of the runs.
    """

    ledger: Ledger
    prior: Denoiser
    images: Images
    noise_std: float
    steps: int
    samples: int

    def cell(self, task: str, base: str, variant: Variant, i: int) -> dict[str, float]:
        solver = BASES[base]
        key = {"task": task, "solver": base, "options": describe(solver), "variant": str(variant)}
        key |= {"image": self.images.names[i], "steps": self.steps, "samples": self.samples}
        key |= {"noise_std": self.noise_std, "prior": self.prior.fingerprint[:16]}
        return self.ledger.once(key, lambda: self._run(task, solver, variant, i))

    def _run(self, task: str, solver: Solver, variant: Variant, i: int) -> dict[str, float]:
        problem = measure_images(self.images.part(i, i + 1), task, TASKS[task] | {"noise_std": self.noise_std})
        steps = round(variant.value) if variant.kind == "steps" else self.steps
        prior, samples = Counted(self.prior), 1 if solver.point else self.samples
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RestorationWarning)
            found = restore_problem(
                problem,
                prior,
                solver,
                variant.cmi,
                steps=steps,
                samples=samples,
                sampler=variant.sampler(solver),
            )
        return score(found.samples[0], problem.images.truth[0]) | {"evaluations": prior.forwards / samples}

    def figures(self, task: str, base: str, variant: Variant) -> list[dict[str, float]]:
        return [self.cell(task, base, variant, i) for i in range(len(self.images))]

    def compute(
        self, task: str, base: str, etas: Sequence[float], factors: Sequence[float], churns: Sequence[float]
    ) -> dict[Variant, list[dict[str, float]]]:
        """All variants of a solver on all images."""
        variants = [Variant("none"), *(Variant(kind, eta) for kind in ("cmi", "cmi, moments") for eta in etas)]
        if not BASES[base].point:
            variants += [Variant("noise", factor) for factor in factors]
        if isinstance(BASES[base], (PiGDM, CADPS)):
            variants += [Variant("churn", churn) for churn in churns]
        found = {variant: self.figures(task, base, variant) for variant in variants}
        ratio = _mean(found[Variant("cmi", etas[0])], "evaluations") / _mean(found[variants[0]], "evaluations")
        more = Variant("steps", round(self.steps * ratio))
        return found | {more: self.figures(task, base, more)}


def _mean(rows: Sequence[Scores], metric: str) -> float:
    return fmean(row[metric] for row in rows)


def front_gap(chosen: np.ndarray, front: Sequence[np.ndarray]) -> float:
    """Energy score of a variant minus that of a front at the same PSNR, by linear interpolation.

    Beyond the ends of the front its last point is taken.

    Args:
        chosen: PSNR and energy score of the images, (n, 2).
        front: the same of every point of the front.
    """
    psnr, energy = chosen.mean(0)
    points = sorted(tuple(point.mean(0)) for point in front)
    return float(energy - np.interp(psnr, [p for p, _ in points], [e for _, e in points]))


def verdicts(found: Mapping[Variant, Sequence[Scores]]) -> list[tuple[str, str, tuple[float, float, float]]]:
    """The verdicts on CMI: of which variant, in which question, and the gap in energy score with its interval.

    Args:
        found: scores of all variants, image by image; with an energy score.
    """
    half = len(next(iter(found.values()))) // 2
    table = {v: np.array([[row["psnr"], row["energy"]] for row in rows]) for v, rows in found.items()}
    first, second = ({v: part[s] for v, part in table.items()} for s in (slice(half), slice(half, None)))
    n = len(second[Variant("none")])
    noise = [second[v] for v in found if v.kind in ("none", "noise")]
    more = next(second[v] for v in found if v.kind == "steps")
    result = []
    for kind in ("cmi", "cmi, moments"):
        tried = [v for v in found if v.kind == kind]
        best = min(tried, key=lambda v: first[v][:, 1].mean())
        own = second[best]

        def against(other: np.ndarray, own: np.ndarray = own) -> tuple[float, float, float]:
            return bootstrap(lambda rows: float((own[rows] - other[rows])[:, 1].mean()), n)

        def beside(rows: np.ndarray, own: np.ndarray = own) -> float:
            return front_gap(own[rows], [point[rows] for point in noise])

        result.append((str(best), "distribution", against(second[Variant("none")])))
        result.append((str(best), "temperature", bootstrap(beside, n)))
        result.append((str(best), "cost", against(more)))
    return result


def word(gap: tuple[float, float, float]) -> str:
    """What an interval says about CMI."""
    _, low, high = gap
    return "better" if high < 0 else "worse" if low > 0 else "open"


def print_tables(task: str, base: str, found: Mapping[Variant, Sequence[Scores]]) -> None:
    """The scores of all variants, and the verdicts."""
    known = [m for m in METRICS if all(m in row for rows in found.values() for row in rows)]
    print(f"\n{task}, {base}, {len(next(iter(found.values())))} images\n")
    print(f"| variant | {' | '.join(TITLES.get(m, m) for m in known)} | evaluations |")
    print("|" + "---|" * (len(known) + 2))
    for variant, rows in found.items():
        cells = [f"{_mean(rows, m):.{2 if 'psnr' in m else 4}f}" for m in known]
        print(f"| {variant} | {' | '.join(cells)} | {_mean(rows, 'evaluations'):.0f} |")
    if "energy" in known:
        print("\n| CMI | question | energy score | 95% interval | verdict |\n|---|---|---|---|---|")
        for name, question, (mean, low, high) in verdicts(found):
            print(f"| {name} | {question} | {mean:+.4f} | {low:+.4f} to {high:+.4f} | {word((mean, low, high))} |")


def plot(all_found: Mapping[tuple[str, str], Mapping[Variant, Sequence[Scores]]], metric: str, path: Path) -> None:
    """Fronts: PSNR or LPIPS of a sample against the energy score, a panel for each task and solver."""
    import matplotlib.pyplot as plt

    panels = {names: found for names, found in all_found.items() if "energy" in next(iter(found.values()))[0]}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), squeeze=False)
    for axis, ((task, base), found) in zip(axes[0], panels.items(), strict=True):
        for kind, style in (("cmi", "o-"), ("cmi, moments", "s-"), ("noise", "x--"), ("churn", "^:"), ("steps", "D")):
            line = [v for v in found if v.kind == kind]
            if kind in ("cmi", "cmi, moments", "noise"):
                unit = 1.0 if kind == "noise" else 0.0
                line = sorted([*line, Variant("none")], key=lambda v: v.value if v.kind != "none" else unit)
            points = [(_mean(found[v], metric), _mean(found[v], "energy")) for v in line]
            axis.plot(*zip(*points, strict=True), style, label=kind) if points else None
        axis.set_title(f"{task}, {base}", fontsize=9)
        axis.set_xlabel(f"{TITLES[metric]} of a sample")
    axes[0][0].set_ylabel("energy score (lower is nearer to the posterior)")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def main(
    images: Annotated[Path, typer.Argument(help="A folder or a tar archive of images.")],
    prior: Annotated[str, typer.Option(help="Name or folder of the prior.")] = "natural-64",
    out: Annotated[Path, typer.Option(help="File of the finished cells.")] = Path("runs/controls.jsonl"),
    tasks: Annotated[str, typer.Option(help="Names, separated by commas.")] = "inpaint-random,super-resolution",
    solvers: Annotated[str, typer.Option(help="Names, separated by semicolons.")] = ";".join(BASES),
    etas: Annotated[str, typer.Option(help="Strengths of CMI.")] = "0.03,0.1,0.3,-0.03,-0.1,-0.3",
    factors: Annotated[str, typer.Option(help="Factors of the noise.")] = "0.9,0.95,0.98,1.02,1.05",
    churns: Annotated[str, typer.Option(help="Churn of the probability flow.")] = "5,20",
    count: Annotated[int, typer.Option(help="Images; half choose, half decide.")] = 32,
    offset: Annotated[int, typer.Option(help="The first one.")] = 0,
    size: Annotated[int | None, typer.Option(help="Crop and shrink images to this side.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    samples: Annotated[int, typer.Option(help="Samples of each image.")] = 2,
    noise_std: Annotated[float, typer.Option(help="Noise, for images in [0, 1].")] = 0.05,
    metric: Annotated[str, typer.Option(help="Of the plot: psnr or lpips.")] = "psnr",
    plotted: Annotated[Path | None, typer.Option("--plot", help="File of the fronts.")] = None,
) -> None:
    """Print the tables and verdicts, and draw the fronts."""
    clean = read_images(images, count=count, offset=offset, size=size)
    bench = Bench(Ledger(out), load_prior(prior), clean, noise_std, steps, samples)
    all_found = {}
    for task in tasks.split(","):
        for base in solvers.split(";"):
            found = bench.compute(task, base, _numbers(etas), _numbers(factors), _numbers(churns))
            print_tables(task, base, found)
            all_found[task, base] = found
    if plotted is not None:
        plot(all_found, metric, plotted)


if __name__ == "__main__":
    typer.run(main)
