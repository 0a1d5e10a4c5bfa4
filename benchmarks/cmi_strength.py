"""How strong should CMI be, and of which sign? Quality of samples and of their distribution against eta.

Every image of every setting is measured and sampled from the image's own seed, so that the difference to the base
solver (eta = 0) is paired: its mean over the images comes with a 95% interval of Student's t. PSNR and SSIM are those
of a single sample, which gains from samples that spread too little; the CRPS of two samples (lower is better) is in
expectation least for the true posterior. Finished cells (a setting on a batch of images) are kept in a CSV file, one
line for each image: the same command again goes on, and ``--report`` only prints what is there.

    python benchmarks/cmi_strength.py --solvers dps,pigdm --tasks inpaint-box,super-resolution --out strength.csv
    python benchmarks/cmi_strength.py --report --out strength.csv --plot strength.png

Choose on one range of images (``--offset 0 --count 32``), confirm on another (``--offset 100 --count 32``).
"""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cmidiff.statistics import Estimate, estimate

NOISE_STD = 0.05
TASKS: dict[str, dict[str, Any]] = {
    "inpaint-box": {"size": 32},
    "inpaint-random": {"hidden": 0.9},
    "super-resolution": {"factor": 4},
    "deblur-motion": {"kernel_size": 15, "intensity": 0.5},
}  # as in the preset "embedded" of cmidiff evaluate
SAMPLES = 2
console = Console(stderr=True)


@dataclass(frozen=True)
class Setting:
    """One line of the report: what is run, as text and numbers that a CSV file holds."""

    task: str
    solver: str
    steps: int
    eta: float
    weight: str = "reverse-sde"
    low: float = 0.0
    high: float = 3.5
    cap: float = 0.05
    every: int = 1
    contraction: str = "second-difference"
    covariance: str = "isotropic"
    direction: str = "gradient"

    @property
    def base(self) -> Setting:
        """The same with CMI off; what shapes CMI is then always the same, since it does not matter."""
        return Setting(self.task, self.solver, self.steps, 0.0, contraction="finite-difference")

    @property
    def shape(self) -> str:
        """What distinguishes this CMI apart from its eta, in words."""
        words = [self.weight, f"window {self.low:g} to {self.high:g}", f"cap {self.cap:g}", self.contraction]
        words += [f"{self.covariance} covariance"] if self.covariance != "isotropic" else []
        words += ["moves of the same size in random directions"] if self.direction == "random" else []
        return ", ".join(words + ([f"every {self.every}"] if self.every > 1 else []))


FIELDS = [field.name for field in fields(Setting)]
VALUES = ["image", "psnr", "ssim", "crps", "lpips", "misfit", "ok", "seconds"]


def solver_of(name: str, steps: int) -> Any:
    """The solver by its name here; the steps of DPS sum to 200."""
    from cmidiff import CADPS, DPS, PiGDM
    from cmidiff.covariance import Exact, Hybrid, Isotropic

    known = {
        "dps": DPS(0.2),
        "pigdm": PiGDM(),
        "cadps": CADPS(),
        "cadps-diagonal": CADPS("diagonal"),
        "cadps-isotropic": CADPS("isotropic"),
        "cadps-exact": CADPS("exact"),
        "cadps-switch": CADPS(Hybrid(high=Isotropic(), low=Exact(), switch=0.5)),
    }
    if name not in known:
        raise typer.BadParameter(f"There is no solver {name!r}. Choose from: {', '.join(known)}.")
    return known[name]


def at_random(cmi: Any) -> Any:
    """The control: CMI's moves, as large as they are, in directions that know nothing."""

    class AtRandom(type(cmi)):
        def __call__(self, step: Any) -> Any:
            moved = super().__call__(step)
            if moved is step:
                return step
            anywhere = step.draws.normal("control", step.index, moved.correction)
            scale = moved.correction.flatten(1).norm(dim=1) / anywhere.flatten(1).norm(dim=1)
            return replace(moved, correction=anywhere * scale.reshape(-1, *[1] * (anywhere.ndim - 1)))

    return AtRandom(**{field.name: getattr(cmi, field.name) for field in fields(cmi)})


def cmi_of(setting: Setting) -> Any:
    """The CMI of a setting, or None."""
    from cmidiff import CMI

    if setting.eta == 0:
        return None
    options: dict[str, Any] = {name: getattr(setting, name) for name in ("eta", "weight", "cap", "every")}
    options |= {"contraction": setting.contraction, "covariance": setting.covariance}
    cmi = CMI(window=(setting.low, setting.high), **options)
    return cmi if setting.direction == "gradient" else at_random(cmi)


def done(path: Path) -> dict[tuple[Setting, int], dict[str, float]]:
    """The figures that a file holds; a last line that a kill cut short is left out."""
    if not path.is_file():
        return {}
    types = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Setting)}
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if any(row.get(name) in (None, "") for name in FIELDS + VALUES):
                continue
            setting = Setting(**{name: kind(row[name]) for name, kind in types.items()})
            found[setting, int(row["image"])] = {name: float(row[name]) for name in VALUES[1:]}
    return found


def append(path: Path, setting: Setting, rows: list[dict[str, float]]) -> None:
    """Add the lines of a finished cell in one write."""
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")
    new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        if torn:
            file.write("\n")
        writer = csv.DictWriter(file, FIELDS + VALUES)
        if new:
            writer.writeheader()
        writer.writerows(asdict(setting) | row for row in rows)


def run_cell(setting: Setting, images: Any, prior: Any, device: str) -> list[dict[str, float]]:
    """One setting on a batch of images."""
    import torch

    from cmidiff.metrics import data_misfit
    from cmidiff.tuning.problem import measure_images, restore_problem, score_images

    problem = measure_images(images, setting.task, TASKS[setting.task] | {"noise_std": NOISE_STD}, device)
    began = time.monotonic()
    restoration = restore_problem(
        problem,
        prior,
        solver_of(setting.solver, setting.steps),
        cmi_of(setting),
        steps=setting.steps,
        samples=SAMPLES,
    )
    seconds = (time.monotonic() - began) / len(images)
    table = {name: score_images(restoration, images.truth, name) for name in ("psnr", "ssim", "crps")}
    table["misfit"] = data_misfit(restoration.samples[:, 0], problem.y, problem.physics, noise_std=NOISE_STD).cpu()
    table["ok"] = restoration.ok.all(dim=1).cpu()
    try:
        table["lpips"] = score_images(restoration, images.truth, "lpips")
    except FileNotFoundError:  # the weights of LPIPS are not at hand
        table["lpips"] = torch.full((len(images),), math.nan)
    return [
        {"image": index, "seconds": round(seconds, 3)} | {name: float(values[i]) for name, values in table.items()}
        for i, index in enumerate(images.index)
    ]


def grid(**choices: str) -> Iterator[Setting]:
    """The product of comma-separated choices, each base (eta = 0) once and first."""
    types = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Setting)}
    columns = [[types[name](text) for text in choices[name].split(",")] for name in FIELDS]
    seen: set[Setting] = set()
    for values in itertools.product(*columns):
        setting = Setting(*values)
        for one in (setting.base, setting):
            canonical = one.base if one.eta == 0 else one
            if canonical not in seen:
                seen.add(canonical)
                yield canonical


# the report


Figures = dict[tuple[Setting, int], dict[str, float]]


def settings_of(figures: Figures) -> list[Setting]:
    return sorted({setting for setting, _ in figures}, key=lambda s: (s.task, s.solver, s.steps, s.shape, s.eta))


def compared(figures: Figures, setting: Setting, metric: str) -> tuple[float, Estimate] | None:
    """Mean of a metric and its paired difference to the base, on the images that both have finished."""
    images = sorted(image for s, image in figures if s == setting and (setting.base, image) in figures)
    if not images or any(math.isnan(figures[setting, image][metric]) for image in images):
        return None
    values = [figures[setting, image][metric] for image in images]
    base = [figures[setting.base, image][metric] for image in images]
    return sum(values) / len(values), estimate(values, base)


def report(figures: Figures) -> str:
    """Markdown: for each shape of CMI a table with a line for each task, solver and eta; * where the interval of the
    difference excludes zero."""
    with_lpips = any(not math.isnan(row["lpips"]) for row in figures.values())
    metrics = [("psnr", "PSNR dB", 2), ("ssim", "SSIM", 3), ("crps", "CRPS", 4)]
    metrics += [("lpips", "LPIPS", 3)] if with_lpips else []
    heads = [f"{head} | minus that of eta 0" for _, head, _ in metrics]
    lines: list[str] = []
    corrected = sorted((s for s in settings_of(figures) if s.eta != 0), key=lambda s: (s.shape, s.steps))
    for (shape, steps), group in itertools.groupby(corrected, key=lambda s: (s.shape, s.steps)):
        members = set(group)
        lines += [f"\nCMI with {shape}; {steps} steps\n", f"| task | solver | eta | images | {' | '.join(heads)} |"]
        lines += ["|" + "---|" * (4 + 2 * len(metrics))]
        every = members | {s.base for s in members}
        lines += [_line(figures, s, metrics) for s in sorted(every, key=lambda s: (s.task, s.solver, s.eta))]
    failed = sum(not row["ok"] for row in figures.values())
    return "\n".join([*lines, f"\n{failed} of {len(figures)} samples diverged."])


def _line(figures: Figures, setting: Setting, metrics: list[tuple[str, str, int]]) -> str:
    cells, count = [], 0
    for metric, _, digits in metrics:
        found = compared(figures, setting, metric)
        count = found[1].n if found else count
        cells += (
            [f"{found[0]:.{digits}f}", "" if setting.eta == 0 else _starred(found[1], digits + 1)]
            if found
            else ["", ""]
        )
    return f"| {setting.task} | {setting.solver} | {setting.eta:g} | {count} | {' | '.join(cells)} |"


def _starred(difference: Estimate, digits: int) -> str:
    star = "*" if abs(difference.mean) > (math.inf if difference.half is None else difference.half) else ""
    return f"{difference.mean:+.{digits}f} ± {difference.half:.{digits}f}{star}"


def plot(figures: Figures, path: Path) -> None:
    """Paired differences of PSNR and CRPS against eta, a panel for each task and metric."""
    import matplotlib.pyplot as plt

    tasks = sorted({s.task for s, _ in figures})
    drawing, axes = plt.subplots(2, len(tasks), figsize=(5 * len(tasks), 7.5), squeeze=False, sharex=True)
    for column, task in enumerate(tasks):
        for row, metric in enumerate(("psnr", "crps")):
            _panel(axes[row][column], figures, task, metric)
    labelled = dict(
        pair for axis in axes.flat for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True)
    )
    drawing.legend(labelled.values(), labelled.keys(), loc="lower center", ncols=2, fontsize=9)
    drawing.tight_layout(rect=(0, 0.08, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=100)


def _panel(axis: Any, figures: Figures, task: str, metric: str) -> None:
    settings = [s for s in settings_of(figures) if s.eta != 0]
    lines = sorted({(s.solver, s.shape) for s in settings})  # each has one colour in all panels
    shapes = [s.shape.split(", ") for s in settings]
    common = [part for part in shapes[0] if all(part in shape for shape in shapes)] if shapes else []
    own = [s for s in settings if s.task == task]
    for (solver, shape), group in itertools.groupby(own, key=lambda s: (s.solver, s.shape)):
        found = [(s.eta, compared(figures, s, metric)) for s in group]
        points = [(eta, both[1].mean, both[1].half) for eta, both in found if both]
        etas, means, halves = (list(values) for values in zip(*sorted([*points, (0.0, 0.0, 0.0)]), strict=True))
        label = ", ".join([solver, *(part for part in shape.split(", ") if part not in common)])
        axis.errorbar(etas, means, halves, marker=".", capsize=2, label=label, color=f"C{lines.index((solver, shape))}")
    ticks = sorted({0.0, *(s.eta for s in settings)})
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set_xticks(ticks, [f"{eta:g}" for eta in ticks])
    axis.set_title(task)
    axis.set_xlabel("eta")
    axis.set_ylabel("PSNR minus that of eta = 0, dB" if metric == "psnr" else "CRPS minus that of eta = 0")


def main(
    images: Annotated[Path, typer.Option(help="a folder or a tar archive")] = Path("tiny-imagenet/val.tar"),
    count: Annotated[int, typer.Option(help="images")] = 16,
    offset: Annotated[int, typer.Option(help="the first image, in the order of the names")] = 0,
    batch: Annotated[int, typer.Option(help="images restored at once: a cell")] = 16,
    solvers: Annotated[str, typer.Option(help="names separated by commas")] = "dps,pigdm",
    tasks: Annotated[
        str, typer.Option(help="names separated by commas")
    ] = "inpaint-box,inpaint-random,super-resolution",
    etas: Annotated[str, typer.Option(help="numbers separated by commas")] = "-0.3,0.1,0.3",
    weights: Annotated[str, typer.Option(help="CMI's weight: reverse-sde, snr, constant")] = "reverse-sde",
    lows: Annotated[str, typer.Option(help="lower ends of CMI's window, in sigma/alpha")] = "0",
    highs: Annotated[str, typer.Option(help="upper ends of CMI's window, in sigma/alpha")] = "3.5",
    caps: Annotated[str, typer.Option(help="CMI's cap")] = "0.05",
    every: Annotated[str, typer.Option(help="CMI's every")] = "1",
    contractions: Annotated[str, typer.Option(help="CMI's contraction")] = "second-difference",
    covariances: Annotated[str, typer.Option(help="CMI's covariance")] = "isotropic",
    directions: Annotated[str, typer.Option(help="gradient, or random for the control")] = "gradient",
    steps: Annotated[str, typer.Option(help="steps of the sampler")] = "25",
    prior: Annotated[str, typer.Option(help="name or folder of the prior")] = "natural-64",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="CSV file that keeps every finished cell")] = Path("runs/cmi_strength.csv"),
    only_report: Annotated[bool, typer.Option("--report", help="run nothing, print what the file holds")] = False,
    plotted: Annotated[Path | None, typer.Option("--plot", help="draw the differences into this image")] = None,
) -> None:
    """Print, as Markdown, PSNR, SSIM and LPIPS against eta with paired 95% intervals."""
    wanted = range(offset, offset + count)
    if not only_report:
        _run(
            list(
                grid(
                    task=tasks,
                    solver=solvers,
                    steps=steps,
                    eta=etas,
                    weight=weights,
                    low=lows,
                    high=highs,
                    cap=caps,
                    every=every,
                    contraction=contractions,
                    covariance=covariances,
                    direction=directions,
                )
            ),
            images,
            wanted,
            batch,
            prior,
            device,
            out,
        )
    figures = {key: row for key, row in done(out).items() if key[1] in wanted}
    typer.echo(report(figures))
    if plotted is not None:
        plot(figures, plotted)


def _run(settings: list[Setting], source: Path, wanted: range, batch: int, prior: str, device: str, out: Path) -> None:
    from cmidiff import load_prior
    from cmidiff.tuning import read_images

    network = load_prior(prior, device=device)
    finished = done(out)
    for first in range(wanted.start, wanted.stop, batch):
        images = read_images(source, count=min(batch, wanted.stop - first), offset=first)
        for number, setting in enumerate(settings, 1):
            if all((setting, index) in finished for index in images.index):
                continue
            began = time.monotonic()
            append(out, setting, run_cell(setting, images, network, device))
            where = f"images {first}-{first + len(images) - 1}, setting {number}/{len(settings)}"
            console.print(
                f"{where}: {setting.task} {setting.solver} eta {setting.eta:g}, {time.monotonic() - began:.0f} s",
                highlight=False,
            )


if __name__ == "__main__":
    typer.run(main)
