"""A real photograph, most of its pixels hidden and the rest noisy, restored with and without CMI on one sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidiff import load_prior
from cmidiff.app.errors import BadInput
from cmidiff.app.figures import Tile, side_by_side
from cmidiff.app.pictures import read_picture, to_image
from cmidiff.app.problem import degraded, task_of
from cmidiff.app.run import Row, judged
from cmidiff.app.show import progress
from cmidiff.guidance import CADPS, DPS, Guidance
from cmidiff.information import CMI
from cmidiff.restoration import Progress, restore

PHOTOGRAPH = Path(__file__).parent.parent / "assets" / "sails.png"
TASK, OPTIONS = "inpaint-random", {"hidden": 0.8, "noise_std": 0.05}
TITLE = "80% of the pixels hidden, noise 0.05"


@dataclass(frozen=True)
class Contender:
    """What is compared: a solver with or without CMI, and the mean of how many samples."""

    name: str
    solver: Guidance
    cmi: CMI | None = None
    samples: int = 1


CONTENDERS = (
    Contender("DPS", DPS()),
    Contender("DPS + CMI", DPS(), CMI()),
    Contender("CA-DPS", CADPS()),
)
STEPS = 100


def run(output: Path, *, seed: int, prior: str, device: str) -> list[Row]:
    """Restore the photograph with every contender, write the sheet, and return the figures.

    Raises:
        BadInput: the sheet cannot be written, or the prior cannot be loaded.
    """
    _check_writable(output)
    picture = read_picture(PHOTOGRAPH)
    channels, height, width = picture.values.shape
    problem = degraded(picture, task_of(TASK, OPTIONS, None, None, (channels, height, width), seed), seed)
    try:
        network = load_prior(prior, device=device)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    tiles = [Tile(to_image(problem.view()), "measurement", TITLE)]
    rows = []
    with progress(len(CONTENDERS) * STEPS) as line:
        for index, contender in enumerate(CONTENDERS):

            def show(now: Progress, index: int = index, name: str = contender.name) -> None:
                line(index * STEPS + now.step, f"{name}, step {now.step}/{STEPS}", float(now.misfit.median()))

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
            restored = restoration.mean[0].cpu()
            if restored.isfinite().all():
                row = judged(problem, contender.name, restored, picture.values)
            else:
                restored, row = restoration.samples[0, 0].cpu(), Row(contender.name, restoration.status[0][0].message)
            rows.append(row)
            tiles.append(Tile(to_image(restored), contender.name, row.note or row.status))
    tiles.append(Tile(to_image(picture.values), "truth"))
    side_by_side(tiles).save(output, format="PNG")
    return rows


def _check_writable(output: Path) -> None:
    if output.is_dir():
        raise BadInput(f"--output {output} is a folder: give a file as demo.png")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
    except OSError as error:
        raise BadInput(f"cannot write {output} ({error.strerror}): give another --output") from error
