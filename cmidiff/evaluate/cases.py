"""Images of a run to look at: for each task and solver the median case and the worst, by the base solver.

The choice is made by the PSNR of the base before CMI is looked at, so that it flatters neither; the best is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from PIL import Image
from torch import Tensor

from cmidiff.evaluate.comparison import Comparison
from cmidiff.evaluate.database import Results
from cmidiff.evaluate.records import UnitRow
from cmidiff.images import read_image, to_pil

LOSSLESS = 128  # pixels: larger images are compressed, or a page of them would be too large to send
CHOICE = "psnr"


@dataclass(frozen=True)
class Tile:
    """One image of a case, what it is, and a figure below it; ``image`` is None where there is none."""

    title: str
    note: str
    image: Image.Image | None


@dataclass(frozen=True)
class Case:
    """One image of one task and solver: truth, measurement, base, CMI and the std maps on one scale."""

    task: str
    label: str
    rank: str
    image: str
    seed: int
    tiles: tuple[Tile, ...]


def list_cases(results: Results, comparison: Comparison) -> list[Case]:
    """Median and worst image of every task and solver, at its most steps and its first eta."""
    images = {image.name: image.path for image in comparison.images}
    rows = {row.unit: row for row in results.units()}
    found = []
    for task in comparison.tasks:
        for base, cmi in comparison.sides(task):
            for rank, row in _choose([row for row in rows.values() if row.unit.cell == base.cell(task)]):
                corrected = cmi.cell(task) if cmi else None
                other = rows.get(row.unit._replace(cmi=True, eta=corrected.eta)) if corrected else None
                measured = results.measurement(row.unit.image, task, row.unit.seed)
                tiles = (
                    Tile("truth", "", _image(results.folder, images[row.unit.image])),
                    Tile("measurement", "", _image(results.folder, measured)),
                    *_list_restored(results.folder, row, other, comparison.label(cmi, task) if cmi else ""),
                )
                found.append(Case(task, comparison.label(base, task), rank, row.unit.image, row.unit.seed, tiles))
    return found


def _choose(rows: Sequence[UnitRow]) -> list[tuple[str, UnitRow]]:
    """The median (the lower of two) and the worst; once where they are the same."""
    known = [row for row in rows if math.isfinite(row.scores.get(CHOICE, math.nan))]
    known.sort(key=lambda row: row.scores[CHOICE])
    if len(known) < 2:
        return [("only", row) for row in known]
    median, worst = known[(len(known) - 1) // 2], known[0]
    return [("worst", worst)] if median is worst else [("median", median), ("worst", worst)]


def _list_restored(folder: Path, base: UnitRow, cmi: UnitRow | None, label: str) -> list[Tile]:
    sides = [("base", base)] + ([(label, cmi)] if cmi else [])
    maps = [_read(folder, row.images.get("std")) for _, row in sides]
    top = max((float(values.max()) for values in maps if values is not None), default=0.0)
    tiles = [Tile(title, _ending(row), _image(folder, _first_sample(row))) for title, row in sides]
    for (title, _), values in zip(sides, maps, strict=True):
        if values is not None:
            tiles.append(Tile(f"std of {title}", f"dark 0, bright {top:.3f}", _colour(values, top)))
    return tiles


def _ending(row: UnitRow) -> str:
    value = row.scores.get(CHOICE, math.nan)
    if row.status != "ok" or not math.isfinite(value):
        return {"ok": "no PSNR", "pending": "not finished"}.get(row.status, row.status)
    return f"{value:.2f} dB" + (f", {row.diverged} samples diverged" if row.diverged else "")


def _first_sample(row: UnitRow) -> str | None:
    kinds = sorted((kind for kind in row.images if kind.startswith("sample-")), key=lambda kind: int(kind[7:]))
    return row.images[kinds[0]] if kinds else None


def _read(folder: Path, path: str | None) -> Tensor | None:
    return None if path is None or not (folder / path).is_file() else read_image(folder / path).values


def _image(folder: Path, path: str | None) -> Image.Image | None:
    values = _read(folder, path)
    return None if values is None else to_pil(values).convert("RGB")


def _colour(values: Tensor, top: float) -> Image.Image:
    levels = values[0].double().numpy() / (top or 1.0)
    return Image.fromarray(matplotlib.colormaps["magma"](levels, bytes=True)[..., :3].copy())


def encode(image: Image.Image) -> tuple[bytes, str]:
    """Bytes and media type; without loss up to 128 pixels a side."""
    file = BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(file, "PNG", optimize=True)
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=90)
    return file.getvalue(), "image/jpeg"
