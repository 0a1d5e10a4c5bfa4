"""A real photograph and a cat's face, most of whose pixels are hidden and the rest noisy.

The sheet shows the best estimate of the photograph first, then samples of the posterior and where they disagree,
without and with CMI. The cat is restored by the prior of cat faces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import cmidiff
from cmidiff import files
from cmidiff.app.errors import say
from cmidiff.app.figures import PAPER, Tile, side_by_side, std_tile
from cmidiff.app.folder import Row
from cmidiff.app.photograph import Degradation
from cmidiff.app.problem import degrade, shape_of
from cmidiff.app.run import restore_part
from cmidiff.app.settings import ESTIMATE, make_settings
from cmidiff.app.show import progress
from cmidiff.app.summary import find_status_of_mean, make_row
from cmidiff.images import encode, read_image, to_pil
from cmidiff.information import CMI
from cmidiff.result import Status

ASSETS = Path(__file__).parent.parent / "assets"
ESTIMATED, SAMPLED, SAMPLES = "restored", ("CA-DPS", "CA-DPS + CMI"), 4
COLUMNS = 7  # of the sheet: a scene is one row
STEPS: int | None = None  # of every run; None: those of its solver


@dataclass(frozen=True)
class Scene:
    """One degraded image: its file, the task, the prior (None: the user's) and what is run."""

    file: str
    title: str
    task: str
    options: dict[str, Any]
    prior: str | None
    runs: tuple[str, ...]


NOISE = {"noise_std": 0.05}
HALF = {"size": (32, 64), "position": (32, 0)}  # the lower half of the face
SCENES = (
    Scene("plane.png", "80% of the pixels hidden", "inpaint-random", {"hidden": 0.8}, None, (ESTIMATED, *SAMPLED)),
    Scene("cat.png", "90% of the pixels hidden", "inpaint-random", {"hidden": 0.9}, "cats-64", SAMPLED),
    Scene("cat.png", "half of the face hidden", "inpaint-box", HALF, "cats-64", SAMPLED),
)


def run(output: Path, *, seed: int, prior: str, device: str) -> Iterator[tuple[str, list[Row]]]:
    """Restore each scene by its runs; yield its title and figures.

    The sheet is written when the estimate of the photograph is there, and again after each run.

    Args:
        prior: of the photograph.
    """
    begun, strips = time.monotonic(), list[Image.Image]()
    for scene in SCENES:
        rows, shown = list[Row](), strips
        for rows, strip in _restore(scene, seed=seed, prior=scene.prior or prior, device=device):
            shown = [*strips, strip]
            files.write(output, encode(_stack(shown)), "demo")
            if len(rows) == 1 and rows[0].name == ESTIMATED:
                say(f"restored after {time.monotonic() - begun:.0f} seconds: see {output}; samples are to come")
        strips = shown
        yield f"{scene.title}, noise {NOISE['noise_std']:g}", rows


def _restore(scene: Scene, *, seed: int, prior: str, device: str) -> Iterator[tuple[list[Row], Image.Image]]:
    """The figures and the strip of images after each run."""
    truth = read_image(ASSETS / scene.file)
    task = Degradation(scene.task, scene.options | NOISE).make_task(shape_of(truth.values), seed)
    problem = degrade(truth, task, seed)
    options = {"prior": prior, "steps": STEPS, "samples": SAMPLES, "seed": seed, "batch": SAMPLES, "device": device}
    settings = make_settings(solver=None, cmi=None, eta=None, **options)
    network = cmidiff.load_prior(prior, device=settings.device)
    rows, tiles, maps = list[Row](), [Tile(to_pil(problem.view()), "measurement", scene.title)], list[Tile]()

    def add(name: str, values: Tensor, status: Status) -> None:
        rows.append(make_row(name, values, status, truth.values))

    with progress(len(scene.runs)) as move:
        for index, name in enumerate(scene.runs):

            def show(fraction: float, doing: str, *_: object, index: int = index, name: str = name) -> None:
                move(index + fraction, f"{name}, {doing}")

            used = replace(settings, cmi=CMI() if "CMI" in name else None)
            indices = range(ESTIMATE, 0) if name == ESTIMATED else range(SAMPLES)
            done = restore_part(problem, used, network, indices, show)
            add(name, done[0].values, done[0].status)
            tiles.append(Tile(to_pil(done[0].values), name, rows[-1].note or rows[-1].status))
            if name != ESTIMATED and (good := [one for one in done if one.ok]):
                stack = torch.stack([one.values for one in good])
                mean = stack.mean(0)
                add(f"{name}, mean of {len(good)}", mean, find_status_of_mean(problem, good, mean))
                maps.append(replace(std_tile(stack.std(0)), title=f"spread of {name}"))
            yield rows, side_by_side([*tiles, *maps, Tile(to_pil(truth.values), "truth")], columns=COLUMNS)


def _stack(strips: list[Image.Image]) -> Image.Image:
    """Strips one below the other."""
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet
