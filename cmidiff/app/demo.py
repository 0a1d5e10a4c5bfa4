"""A real photograph, most of its pixels hidden and the rest noisy: the best estimate first, then samples of the
posterior and where they disagree, without and with CMI, on one sheet."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cmidiff import files
from cmidiff.app.errors import say
from cmidiff.app.figures import Tile, side_by_side, std_tile
from cmidiff.app.problem import Problem, degraded, task_of
from cmidiff.app.run import Row, load_prior_named, row_of
from cmidiff.app.show import Line, progress
from cmidiff.images import Image, encode, read_image, to_pil
from cmidiff.information import CMI
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Progress, Restoration, RestorationWarning, Status
from cmidiff.solvers import CADPS, DPIR, Solver

PHOTOGRAPH = Path(__file__).parent.parent / "assets" / "plane.png"
TASK, OPTIONS = "inpaint-random", {"hidden": 0.8, "noise_std": 0.05}
TITLE = "80% of the pixels hidden, noise 0.05"


@dataclass(frozen=True)
class Run:
    """What is shown: a solver, with or without CMI, and how many samples it draws; none for a point estimate."""

    name: str
    solver: Solver
    cmi: CMI | None = None
    samples: int = 0


RUNS = (
    Run("restored", DPIR()),
    Run("CA-DPS", CADPS(), samples=4),
    Run("CA-DPS + CMI", CADPS(), CMI(), samples=4),
)
STEPS: int | None = None  # of every run; None: those of its solver


def run(output: Path, *, seed: int, prior: str, device: str) -> list[Row]:
    """Restore the photograph by every run and return the figures.

    The sheet is written when the estimate is there, and again when all is.

    Raises:
        BadInput: the prior cannot be loaded.
        OSError: the sheet cannot be written.
    """
    begun = time.monotonic()
    truth = read_image(PHOTOGRAPH).values
    channels, height, width = truth.shape
    problem = degraded(Image(truth), task_of(TASK, OPTIONS, None, None, (channels, height, width), seed), seed)
    network = load_prior_named(prior, device)
    rows, shown = list[Row](), [Tile(to_pil(problem.view()), "measurement", TITLE)]
    with progress(len(RUNS)) as line:
        for index, one in enumerate(RUNS):
            restoration = _restored(one, index, problem, network, seed, device, line)
            found, tiles = _tiles(one, restoration, truth)
            rows, shown = rows + found, shown + tiles
            files.write(output, encode(side_by_side([*shown, Tile(to_pil(truth), "truth")])), "demo")
            if not one.samples:
                say(f"restored after {time.monotonic() - begun:.0f} seconds: see {output}; samples are to come")
    return rows


def _restored(
    one: Run, index: int, problem: Problem, network: Denoiser, seed: int, device: str, line: Line
) -> Restoration:
    def show(now: Progress) -> None:
        line(index + now.step / now.steps, f"{one.name}, step {now.step}/{now.steps}", float(now.misfit.median()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)  # the table says so
        return restore(
            problem.y.to(device),
            problem.physics.to(device),
            network,
            solver=one.solver,
            cmi=one.cmi,
            steps=STEPS,
            samples=one.samples or None,
            seed=seed,
            callback=show,
        )


def _tiles(one: Run, restoration: Restoration, truth: Tensor) -> tuple[list[Row], list[Tile]]:
    """The estimate; or the first sample, the mean and the uncertainty of the samples."""

    def tile(name: str, values: Tensor, status: Status) -> tuple[Row, Tile]:
        row = row_of(name, values, status, truth)
        return row, Tile(to_pil(values), name, row.note or row.status)

    if not one.samples:
        row, shown = tile(one.name, restoration.estimate[0].cpu(), restoration.estimate_status[0])
        return [row], [shown]
    rows, tiles = [], []
    row, shown = tile(one.name, restoration.samples[0, 0].cpu(), restoration.status[0][0])
    rows, tiles = [row], [shown]
    if restoration.ok.any():
        name = f"{one.name}, mean of {int(restoration.ok.sum())}"
        row, shown = tile(name, restoration.mean[0].cpu(), restoration.estimate_status[0])
        image, top = std_tile(restoration.std[0].cpu())
        rows, tiles = [*rows, row], [*tiles, shown, Tile(image, "uncertainty", f"black 0, brightest {top:.3f}")]
    return rows, tiles
