"""A real photograph, most of its pixels hidden and the rest noisy. The sheet shows the best estimate first, then
samples of the posterior and where they disagree, without and with CMI."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import cmidiff
from cmidiff import files
from cmidiff.app.errors import say
from cmidiff.app.figures import Tile, side_by_side, std_tile
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

PHOTOGRAPH = Path(__file__).parent.parent / "assets" / "plane.png"
TASK, OPTIONS = "inpaint-random", {"hidden": 0.8, "noise_std": 0.05}
TITLE = "80% of the pixels hidden, noise 0.05"
RUNS, SAMPLES = ("restored", "CA-DPS", "CA-DPS + CMI"), 4
STEPS: int | None = None  # of every run; None: those of its solver


def run(output: Path, *, seed: int, prior: str, device: str) -> list[Row]:
    """Restore the photograph by every run and return the figures.

    The sheet is written when the estimate is there, and again when all is.
    """
    begun, truth = time.monotonic(), read_image(PHOTOGRAPH)
    problem = degrade(truth, Degradation(TASK, OPTIONS).make_task(shape_of(truth.values), seed), seed)
    options = {"prior": prior, "steps": STEPS, "samples": SAMPLES, "seed": seed, "batch": SAMPLES, "device": device}
    settings = make_settings(solver=None, cmi=None, eta=None, **options)
    network = cmidiff.load_prior(prior, device=settings.device)
    rows, tiles = list[Row](), [Tile(to_pil(problem.view()), "measurement", TITLE)]

    def add(name: str, values: Tensor, status: Status) -> None:
        rows.append(make_row(name, values, status, truth.values))
        tiles.append(Tile(to_pil(values), name, rows[-1].note or rows[-1].status))

    with progress(len(RUNS)) as move:
        for index, name in enumerate(RUNS):

            def show(fraction: float, doing: str, *_: object, index: int = index, name: str = name) -> None:
                move(index + fraction, f"{name}, {doing}")

            used = replace(settings, cmi=CMI() if "CMI" in name else None)
            indices = range(SAMPLES) if index else range(ESTIMATE, 0)
            done = restore_part(problem, used, network, indices, show)
            add(name, done[0].values, done[0].status)
            if index and (good := [one for one in done if one.ok]):
                stack = torch.stack([one.values for one in good])
                mean = stack.mean(0)
                add(f"{name}, mean of {len(good)}", mean, find_status_of_mean(problem, good, mean))
                tiles.append(std_tile(stack.std(0)))
            files.write(output, encode(side_by_side([*tiles, Tile(to_pil(truth.values), "truth")])), "demo")
            if not index:
                say(f"restored after {time.monotonic() - begun:.0f} seconds: see {output}; samples are to come")
    return rows
