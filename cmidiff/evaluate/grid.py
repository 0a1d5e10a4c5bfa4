"""From a configuration and image files to units, and from units to the jobs that an engine runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from cmidiff.evaluate.config import Config
from cmidiff.evaluate.database import RunError
from cmidiff.evaluate.records import ImageRow, Unit
from cmidiff.evaluate.setup import list_cells, resolve, setup
from cmidiff.evaluate.work import Job
from cmidiff.images import decode_image, read_image, square
from cmidiff.physics import Task
from cmidiff.sources import Source


def open_image(source: Source, size: int | None, known: ImageRow | None = None) -> tuple[ImageRow, Tensor | None]:
    """An image (3, H, W) in [0, 1] and its row; a row with an error where it cannot be used.

    Args:
        source: the file.
        size: see `Config`.
        known: its row of an earlier call, if its PNG is in the run: a file that has not changed is not decoded again.
    """
    digest = None
    try:
        data = source.read()
        digest = hashlib.sha256(data).hexdigest()
        if known is not None and known.digest == digest:
            return known, None
        values = square(decode_image(data), size)
    except (OSError, ValueError) as error:
        message = f"the image {source.file} cannot be used: it {error}"
        return ImageRow(source.name, source.file, digest, None, None, None, message), None
    height, width = values.shape[1:]
    return ImageRow(source.name, source.file, digest, width, height, f"truth/{quote(source.name)}.png", None), values


def list_units(config: Config, images: Sequence[ImageRow]) -> list[Unit]:
    """Every unit of the grid, image by image: what is done early is complete for some images."""
    cells = list_cells(config)
    return [Unit(image.name, *cell, seed) for image in images for seed in config.seeds for cell in cells]


def check_tasks(config: Config, images: Sequence[ImageRow]) -> None:
    """Check that each task suits at least one of the images."""
    shapes = list(dict.fromkeys((3, image.height or 0, image.width or 0) for image in images))
    for task in resolve(config)["tasks"]:
        problems: list[str] = []
        for shape in shapes:
            try:
                Task.draw(task["task"], shape, _parameters(task))
            except (ValueError, TypeError) as error:
                problems.append(str(error))
        if len(problems) == len(shapes):
            raise RunError(f"task {task['label']} does not suit the images: {problems[0]}")


def _parameters(task: dict) -> dict:
    """The parameters in a task's resolved entry."""
    return {name: value for name, value in task.items() if name not in ("label", "task")}


def list_jobs(
    config: Config, images: Sequence[ImageRow], todo: Collection[Unit], folder: Path, *, batch: int, lpips: str | None
) -> Iterator[Job]:
    """The work to do, a few images at a time; which ones are together does not depend on what is done already.

    Args:
        config: the benchmark.
        images: those that can be used.
        todo: units that are wanted.
        folder: of the run, which holds the images.
        batch: images in a job, at most.
        lpips: network of LPIPS, or None.
    """
    tasks = {task["label"]: task for task in resolve(config)["tasks"]}
    setups, names = {cell: setup(config, cell) for cell in list_cells(config)}, {unit.image for unit in todo}
    for _, same in groupby(images, key=lambda image: (image.width, image.height)):
        together = list(same)
        for i in range(0, len(together), batch):
            pixels = {m.name: read_truth(folder, m) for m in together[i : i + batch] if m.name in names}
            for seed in config.seeds:
                for cell, made in setups.items():
                    wanted = tuple((n, v) for n, v in pixels.items() if Unit(n, *cell, seed) in todo)
                    if wanted:
                        task = tasks[cell.task]
                        yield Job(cell, seed, wanted, task["task"], _parameters(task), made, config.samples, lpips)


def read_truth(folder: Path, image: ImageRow) -> Tensor:
    """An image of a run, (3, H, W) in [0, 1]."""
    assert image.path is not None
    return read_image(folder / image.path).values.expand(3, -1, -1)
