"""Does every solver give a sound result at every noise level and number of steps?

A grid of tasks, noise levels, numbers of steps and solvers with their defaults, on small crops of photographs. For each
solver the summary names the cell with the largest loss of PSNR against the best sample and against PiGDM, counts the
cells that are more than 1 dB below PiGDM, and those of them whose misfit shows why: noise that is left (above 1.1) or
noise that was fitted (below 0.9). The last column is the largest final misfit, and whether its status reports it.

    python benchmarks/robustness.py IMAGES --out runs/robustness

It resumes: a cell that is in the results is not run again.
"""

import csv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics, Tomography
from rich.console import Console
from torch import Tensor

from cmidiff import CMI, load_prior, measure, restore
from cmidiff.metrics import psnr
from cmidiff.physics import TASKS, from_callable
from cmidiff.result import RestorationWarning
from cmidiff.sources import list_sources, read_source

NOISES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
STEPS = (10, 25, 100)
BASES = ["cadps", "cadps-diagonal", "cadps-exact", "cadps-isotropic", "pigdm", "mcg", "dsg", "dps"]
SOLVERS = ",".join(["dpir", *BASES, *(f"{base}+cmi" for base in BASES)])
COLUMNS: list[str] = [*("task", "noise", "steps", "solver", "psnr", "misfit", "reported")]
Shape = tuple[int, ...]
Cell = tuple[str, float, int]
console = Console(stderr=True)


def scratches(shape: Shape, noise_std: float) -> LinearPhysics:
    """Four lines of two pixels: about 4% of a 64-pixel image."""
    mask = torch.ones(1, *shape)
    for k in range(1, 5):
        rows = torch.arange(shape[1] // 2) + k * shape[1] // 10
        columns = (rows * (1 + k) // 2 + 7 * k) % shape[2]
        mask[..., rows % shape[1], columns] = 0
        mask[..., rows % shape[1], (columns + 1) % shape[2]] = 0
    noise: Any = GaussianNoise(noise_std)
    size: Any = shape
    return Inpainting(size, mask=mask, noise_model=noise)


def mri(shape: Shape, noise_std: float) -> LinearPhysics:
    """Multi-coil MRI of each colour: four coils, every third line of Fourier space and the eighth in the middle."""
    rows, columns = (torch.linspace(-1, 1, n) for n in shape[1:])
    corners = [(a, b) for a in (-1, 1) for b in (-1, 1)]
    coils = torch.stack([torch.exp(-0.5 * ((rows[:, None] - a) ** 2 + (columns - b) ** 2)) for a, b in corners])
    coils = coils / coils.square().sum(0).sqrt()
    line = torch.fft.fftfreq(shape[2]).abs()
    lines = (torch.arange(shape[2]) % 3 == 0) | (line < 1 / 16)

    def measured(x: Tensor) -> Tensor:
        return torch.fft.fft2(coils.to(x) * x[:, :, None], norm="ortho")[..., lines]

    return from_callable(measured, shape, noise_std=noise_std)


def ct(shape: Shape, noise_std: float) -> LinearPhysics:
    """Parallel beams from 30 directions."""
    noise: Any = GaussianNoise(noise_std)
    return Tomography(angles=30, img_width=shape[2], normalize=True, noise_model=noise)


def named(task: str, **options: Any) -> Callable[[Shape, float], LinearPhysics]:
    def make(shape: Shape, noise_std: float) -> Any:
        return TASKS[task](shape, noise_std=noise_std, **options)

    return make


PHYSICS: dict[str, Callable[[Shape, float], LinearPhysics]] = {
    "denoise": named("denoise"),
    "inpaint-random": named("inpaint-random", hidden=0.5),
    "inpaint-box": named("inpaint-box", size=16),
    "scratches": scratches,
    "blur std 1": named("deblur-gaussian", kernel_size=7, std=1.0),
    "blur std 2": named("deblur-gaussian", kernel_size=13, std=2.0),
    "motion blur": named("deblur-motion", kernel_size=9),
    "super-resolution x2": named("super-resolution", factor=2),
    "super-resolution x4": named("super-resolution", factor=4),
    "colorize": named("colorize"),
    "MRI, four coils": mri,
    "CT, 30 angles": ct,
}


def middle(x: Tensor, size: int) -> Tensor:
    top, left = ((n - size) // 2 for n in x.shape[1:])
    return x[:, top : top + size, left : left + size]


def cells(tasks: str, noises: str, steps: str, solvers: str) -> Iterator[tuple[str, float, int, str]]:
    for task in tasks.split(";"):
        for noise in map(float, noises.split(",")):
            for count in map(int, steps.split(",")):
                for solver in solvers.split(","):
                    yield task, noise, count, solver


def solve(x: Tensor, prior: Any, task: str, noise: float, steps: int, solver: str) -> dict[str, Any]:
    """One cell: mean PSNR, the worst misfit, and whether every misfit above the bound is reported."""
    physics = PHYSICS[task](tuple(x.shape[1:]), noise)
    y = measure(x, physics, seed=0)
    name, _, cmi = solver.partition("+")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)
        found = restore(y, physics, prior, solver=name, cmi=CMI() if cmi else None, steps=steps, seed=0)
    status = [row[0] for row in found.status]
    return {
        "psnr": float(psnr(found.samples[:, 0].clamp(0, 1), x).mean()),
        "misfit": max(s.misfit for s in status),
        "reported": int(all(s.explains or s.message != "finished" for s in status)),
    }


def cell_of(row: dict[str, Any]) -> Cell:
    return row["task"], float(row["noise"]), int(row["steps"])


def summarise(rows: list[dict[str, Any]]) -> str:
    """The worst cells of each solver, as Markdown."""
    best: dict[Cell, float] = {}
    base: dict[Cell, float] = {}
    for row in rows:
        cell = cell_of(row)
        if row["solver"] != "dpir":  # a point estimate has a higher PSNR than any sample
            best[cell] = max(best.get(cell, 0.0), float(row["psnr"]))
        if row["solver"] == "pigdm":
            base[cell] = float(row["psnr"])
    lines = [
        "| solver | cells | worst gap to the best sample | worst gap to PiGDM | cells below -1 dB | of these, misfit "
        "not 0.9 to 1.1 | worst misfit |",
        "|---|---|---|---|---|---|---|",
    ]
    for solver in dict.fromkeys(row["solver"] for row in rows):
        own = [row for row in rows if row["solver"] == solver]

        def gap(row: dict[str, Any], to: dict[Cell, float]) -> float:
            return float(row["psnr"]) - to[cell_of(row)] if cell_of(row) in to else 0.0

        def place(row: dict[str, Any]) -> str:
            return f"{row['task']}, {row['noise']}, {row['steps']} steps"

        to_best, to_base = min(own, key=lambda r: gap(r, best)), min(own, key=lambda r: gap(r, base))
        noisy = [row for row in own if float(row["noise"]) > 0]
        below = [row for row in own if gap(row, base) < -1]
        off = [row for row in below if row in noisy and not 0.9 <= float(row["misfit"]) <= 1.1]
        misfit = max(noisy, key=lambda r: float(r["misfit"])) if noisy else None
        said = "" if misfit is None or int(misfit["reported"]) else ", not reported"
        lost = f"{gap(to_best, best):+.2f} ({place(to_best)}) | {gap(to_base, base):+.2f} ({place(to_base)})"
        lines.append(
            f"| {solver} | {len(own)} | {lost} | {len(below)} | {len(off)} | "
            + (f"{float(misfit['misfit']):.2f} ({place(misfit)}{said}) |" if misfit else "- |")
        )
    return "\n".join(lines)


def run(
    images: Annotated[Path, typer.Argument(help="Folder or archive of images.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/robustness"),
    prior: Annotated[str, typer.Option(help="Name of the prior.")] = "photo",
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 64,
    count: Annotated[int, typer.Option(help="Images.")] = 2,
    tasks: Annotated[str, typer.Option(help="Tasks, separated by semicolons.")] = ";".join(PHYSICS),
    noises: Annotated[str, typer.Option(help="Noise levels.")] = ",".join(map(str, NOISES)),
    steps: Annotated[str, typer.Option(help="Numbers of steps.")] = ",".join(map(str, STEPS)),
    solvers: Annotated[str, typer.Option(help="Solvers; +cmi adds CMI.")] = SOLVERS,
) -> None:
    """Run the grid and print the worst cells of each solver."""
    out.mkdir(parents=True, exist_ok=True)
    table, network = out / f"results-{prior}-{size}-{count}.csv", load_prior(prior)
    chosen = list_sources(images)
    x = torch.stack([middle(read_source(one), size) for one in chosen[:: max(1, len(chosen) // count)][:count]])
    rows = _read(table)
    done = {(row["task"], float(row["noise"]), int(row["steps"]), row["solver"]) for row in rows}
    for cell in cells(tasks, noises, steps, solvers):
        if cell in done:
            continue
        row = dict(zip(COLUMNS, cell, strict=False)) | solve(x, network, *cell)
        _append(table, row)
        rows.append(row)
        console.print(
            f"{row['task']}, noise {row['noise']}, {row['steps']} steps, {row['solver']}: {row['psnr']:.2f} dB"
        )
    print(summarise(rows))


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    typer.run(run)
