"""A real photograph, most of its pixels hidden and the rest noisy, restored with and without CMI on one sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cmidiff import files, load_prior
from cmidiff.app.errors import bad_input
from cmidiff.app.figures import Tile, side_by_side
from cmidiff.app.problem import Problem, degraded, task_of
from cmidiff.app.run import Row, judged
from cmidiff.app.show import Line, progress
from cmidiff.images import Image, encode, read_image, to_pil
from cmidiff.information import CMI
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Progress
from cmidiff.solvers import CADPS, DPS, Solver

PHOTOGRAPH = Path(__file__).parent.parent / "assets" / "plane.png"
TASK, OPTIONS = "inpaint-random", {"hidden": 0.8, "noise_std": 0.05}
TITLE = "80% of the pixels hidden, noise 0.05"


@dataclass(frozen=True)
class Contender:
    """What is compared: a solver with or without CMI, and how many samples it draws."""

    name: str
    solver: Solver
    cmi: CMI | None = None
    samples: int = 1


CONTENDERS = (
    Contender("DPS", DPS()),
    Contender("DPS + CMI", DPS(), CMI()),
    Contender("CA-DPS", CADPS(), samples=4),
)
STEPS = 100
TOTAL = STEPS * sum(contender.samples for contender in CONTENDERS)


def run(output: Path, *, seed: int, prior: str, device: str) -> list[Row]:
    """Restore the photograph with every contender, write the sheet, and return the figures.

    Raises:
        BadInput: the prior cannot be loaded.
        OSError: the sheet cannot be written.
    """
    truth = read_image(PHOTOGRAPH).values
    channels, height, width = truth.shape
    problem = degraded(Image(truth), task_of(TASK, OPTIONS, None, None, (channels, height, width), seed), seed)
    try:
        network = load_prior(prior, device=device)
    except (ValueError, OSError) as error:
        raise bad_input(error) from error
    shown: list[tuple[Row, Tensor]] = []
    with progress(TOTAL) as line:
        for contender in CONTENDERS:
            shown += _restored(contender, problem, network, truth, seed, device, line)
    tiles = [Tile(to_pil(problem.view()), "measurement", TITLE)]
    tiles += [Tile(to_pil(values), row.name, row.note or row.status) for row, values in shown]
    files.write(output, encode(side_by_side([*tiles, Tile(to_pil(truth), "truth")])), "demo")
    return [row for row, _ in shown]


def _restored(
    contender: Contender, problem: Problem, network: Denoiser, truth: Tensor, seed: int, device: str, line: Line
) -> list[tuple[Row, Tensor]]:
    """The first sample of a contender, and the mean of its samples if it draws several."""
    before = STEPS * sum(c.samples for c in CONTENDERS[: CONTENDERS.index(contender)])

    def show(now: Progress) -> None:
        doing = f"{contender.name}, step {now.step}/{now.steps}"
        line(before + now.step * contender.samples, doing, float(now.misfit.median()))

    restoration = restore(
        problem.y.to(device),
        problem.physics.to(device),
        network,
        solver=contender.solver,
        cmi=contender.cmi,
        steps=STEPS,
        samples=contender.samples,
        seed=seed,
        callback=show,
    )
    first, status = restoration.samples[0, 0].cpu(), restoration.status[0][0]
    rows = [
        (judged(problem, contender.name, first, truth) if status.ok else Row(contender.name, status.message), first)
    ]
    if contender.samples > 1 and restoration.ok.any():
        mean, name = restoration.mean[0].cpu(), f"{contender.name}, mean of {int(restoration.ok.sum())}"
        rows.append((judged(problem, name, mean, truth), mean))
    return rows
