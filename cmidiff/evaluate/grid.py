"""From a configuration and images to units, and from units to the jobs that an engine runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from cmidiff.evaluate.config import Config, resolved
from cmidiff.evaluate.database import Cell, ImageRow, RunError, Unit
from cmidiff.evaluate.work import Job
from cmidiff.physics import Task


def units(config: Config, images: Sequence[ImageRow]) -> list[Unit]:
    """Every unit of the grid, image by image: what is done early is complete for some images."""
    cells = config.cells()
    return [Unit(image.name, *cell, seed) for image in images for seed in config.seeds for cell in cells]


def check_tasks(config: Config, images: Sequence[ImageRow]) -> None:
    """Whether each task suits at least one of the images.

    Raises:
        RunError: for one that suits none, and why.
    """
    shapes = list(dict.fromkeys((3, image.height or 0, image.width or 0) for image in images))
    for task in resolved(config)["tasks"]:
        problems = [message for shape in shapes if (message := _misfit(task, shape))]
        if len(problems) == len(shapes):
            raise RunError(f"task {task['label']} does not suit the images: {problems[0]}")


def _misfit(task: dict[str, Any], shape: tuple[int, int, int]) -> str:
    try:
        Task.draw(task["task"], shape, parameters(task))
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def parameters(task: dict[str, Any]) -> dict[str, Any]:
    """The parameters in a task's resolved entry."""
    return {name: value for name, value in task.items() if name not in ("label", "task")}


def jobs(
    config: Config,
    images: Sequence[ImageRow],
    todo: Collection[Unit],
    read: Callable[[ImageRow], Tensor],
    *,
    batch: int,
    lpips: str | None,
) -> Iterator[Job]:
    """The work to do, a few images at a time; which ones are together does not depend on what is done already.

    Args:
        images: those that can be used.
        todo: units that are wanted.
        read: an image, (3, H, W) in [0, 1].
        batch: images in a job, at most.
        lpips: network of LPIPS, or None.
    """
    tasks = {task["label"]: task for task in resolved(config)["tasks"]}
    cells, names = config.cells(), {unit.image for unit in todo}
    for group in _groups(images, batch):
        pixels = {image.name: read(image) for image in group if image.name in names}
        for seed in config.seeds:
            for cell in cells:
                wanted = [name for name in pixels if Unit(name, *cell, seed) in todo]
                if wanted:
                    chosen = tuple((name, pixels[name]) for name in wanted)
                    yield _job(config, cell, seed, chosen, tasks[cell.task], lpips)


def _groups(images: Sequence[ImageRow], batch: int) -> Iterator[list[ImageRow]]:
    for _, same in groupby(images, key=lambda image: (image.width, image.height)):
        together = list(same)
        yield from (together[i : i + batch] for i in range(0, len(together), batch))


def _job(
    config: Config,
    cell: Cell,
    seed: int,
    images: tuple[tuple[str, Tensor], ...],
    task: dict[str, Any],
    lpips: str | None,
) -> Job:
    return Job(cell, seed, images, task["task"], parameters(task), config.setup(cell), config.samples, lpips)
