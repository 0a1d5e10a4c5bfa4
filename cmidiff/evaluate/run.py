"""A run: opened, refused, resumed, filled, with everything finished kept whatever happens."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import os
import platform
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cmidiff import files
from cmidiff.evaluate import scores
from cmidiff.evaluate.config import Config, difference, resolved
from cmidiff.evaluate.database import (
    FILE,
    SCHEMA,
    Cell,
    CellScore,
    ImageRow,
    Outcome,
    RunError,
    Status,
    Unit,
    UnitRow,
    Writer,
)
from cmidiff.evaluate.engine import Engine
from cmidiff.evaluate.grid import check_tasks, jobs, units
from cmidiff.evaluate.images import opened, read_truth
from cmidiff.evaluate.work import Done
from cmidiff.images import Source, encode_image, sources
from cmidiff.prior.base import Denoiser

log = logging.getLogger("cmidiff.evaluate")
PACKAGES = ("cmidiff", "torch", "deepinv", "diffusers", "torchmetrics")


class Unwritable(RuntimeError):
    """The run's folder takes no more, as when the disk is full; what was finished is kept."""


@dataclass(frozen=True)
class Options:
    """How the work is done; none of it changes a result by more than rounding.

    Args:
        out: the run's folder.
        batch: images of one cell that are restored together.
        retry_failed: repeat units that failed.
        extend: go on with a run whose grid has grown.
        features: of FID, see `scores.fid_reference`.
        device: where FID is computed.
    """

    out: Path
    batch: int = 1
    retry_failed: bool = False
    extend: bool = False
    features: Any = scores.FEATURES
    device: str = "cpu"


@dataclass(frozen=True)
class Event:
    """Progress: images opened, then units done, of those wanted in this call, and what the last one was."""

    done: int
    wanted: int
    doing: str


def evaluate(
    config: Config, prior: Denoiser, engine: Engine, options: Options, tell: Callable[[Event], None] | None = None
) -> dict[Status, int]:
    """Fill a run, or go on with it.

    Args:
        config: the benchmark.
        prior: its prior, on the engine's device (for Ray, on the CPU).
        engine: where the work is done.
        options: how.
        tell: called for each image that is opened, when the work starts, and after each job.

    Returns:
        how many units have each status.

    Raises:
        RunError: images, configuration or folder that cannot be used; nothing was changed.
        Unwritable: the folder takes no more.
        KeyboardInterrupt: passed on; what was finished is kept.
    """
    about = describe(config, prior)
    found = list_sources(config)
    _check_out(options.out, config.images)
    with _opened(options.out) as writer, _logging(options.out):
        _check_same(writer.about(), about, extend=options.extend)
        log.info("opening %d images of %s", len(found), config.images)
        images = _open_images(writer, found, config, options, tell or _silent)
        usable = [image for image in images if image.error is None]
        check_tasks(config, usable)
        lpips_absent, fid_absent = scores.lpips_absent(config.lpips), _fid_absent(options)
        side = min(min(image.width or 0, image.height or 0) for image in usable)
        columns = scores.metrics(config.samples, side, {"lpips": lpips_absent, "fid": fid_absent})
        with _writing(options.out):
            writer.plan(_dated(writer, about), images, units(config, images), columns)
        todo = _todo(writer, images, options)
        net = None if lpips_absent else config.lpips
        work = jobs(config, usable, todo, lambda row: read_truth(options.out, row), batch=options.batch, lpips=net)
        _fill(writer, engine.run(work, prior), len(todo), tell or _silent)
        with _writing(options.out):
            _fill_lpips(writer, net)
            if fid_absent is None and (todo or not writer.cell_scores()):
                _fill_fid(writer, options)
        counts = writer.counts()
        log.info("%s", ", ".join(f"{number} {status}" for status, number in counts.items() if number))
        return counts


def list_sources(config: Config) -> list[Source]:
    """The image files of a benchmark.

    Raises:
        RunError: none given, or none there.
    """
    if config.images is None:
        raise RunError("no images: give --images with a folder or a tar archive, or images in the configuration")
    try:
        return sources(config.images, offset=config.offset, limit=config.limit)
    except ValueError as error:
        raise RunError(f"--images: {error}") from error


def describe(config: Config, prior: Denoiser) -> dict[str, Any]:
    """What the table ``run`` says of a run, but when it was created."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return {
        "schema": SCHEMA,
        "config": resolved(config),
        "prior": {"name": config.prior, "card": prior.card, "digest": prior.fingerprint},
        "machine": {"kind": f"{platform.system()} {platform.machine()}, {name}"},
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


# before the work


def _check_out(out: Path, images: Path | None) -> None:
    """A run has a folder of its own, so that it replaces no file of another origin and reads none of its own."""
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file():
        raise RunError(f"--out {out} holds files of another origin: give a new or an empty folder")
    if images is not None and images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise RunError(f"--out {out} lies in the folder of the images {images}: give a folder outside of it")


@contextmanager
def _opened(out: Path) -> Iterator[Writer]:
    with _writing(out):
        writer = Writer(out)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = "full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        raise Unwritable(
            f"cannot write to {out}: {reason}. What is finished is kept: make room, and the same command goes on"
        ) from error


class _Log(logging.FileHandler):
    """A log that a full disk silences, instead of breaking the run a second time."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def _logging(out: Path) -> Iterator[None]:
    handler = _Log(out / "run.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except KeyboardInterrupt:
        log.info("interrupted")
        raise
    except Exception as error:
        log.error("%s", error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _check_same(before: dict[str, Any], about: dict[str, Any], *, extend: bool) -> None:
    if "config" not in before:
        return
    lines = difference(before["config"], about["config"], grown=extend)
    old, new = before["prior"], about["prior"]
    if old["digest"] != new["digest"]:
        lines.append(f"prior: {old['name']} ({old['digest'][:12]}) -> {new['name']} ({new['digest'][:12]})")
    if lines:
        hint = "" if extend else ", or --extend if images, cells or seeds were only added"
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise RunError(f"the run is of another configuration ({shown}): give another --out{hint}")


def _silent(event: Event) -> None:
    pass


def _open_images(
    writer: Writer, found: Sequence[Source], config: Config, options: Options, tell: Callable[[Event], None]
) -> list[ImageRow]:
    before = {row.name: row for row in writer.images()}
    rows = []
    for number, source in enumerate(found):
        tell(Event(number, len(found), "opening the images"))
        known = before.get(source.name)
        if known is not None and (known.path is None or not (options.out / known.path).is_file()):
            known = None
        row, values = opened(source, config.size, known)
        if values is not None:
            assert row.path is not None
            with _writing(options.out):
                files.write(options.out / row.path, encode_image(values))
        if row.error is not None:
            log.error("%s", row.error)
        rows.append(row)
    _check_images(before, rows, extend=options.extend)
    return rows


def _check_images(before: dict[str, ImageRow], rows: list[ImageRow], *, extend: bool) -> None:
    now = {row.name: row for row in rows}
    lines = [f"{name} is gone" for name in before if name not in now]
    mended = {name for name, row in before.items() if row.error is not None}
    both = [name for name in before if name in now and name not in mended]
    lines += [f"{name} has changed" for name in both if before[name].digest != now[name].digest]
    if before and not extend:
        lines += [f"{name} is new" for name in now if name not in before]
    if lines:
        hint = "" if extend else ", or --extend if images were only added"
        raise RunError(f"the images of the run are others ({'; '.join(lines[:8])}): give another --out{hint}")
    if all(row.error is not None for row in rows):
        raise RunError(f"none of the {len(rows)} images can be used; the first: {rows[0].error}")


def _dated(writer: Writer, about: dict[str, Any]) -> dict[str, Any]:
    created = writer.about().get("created") or datetime.now(UTC).isoformat(timespec="seconds")
    return about | {"created": created}


def _todo(writer: Writer, images: Sequence[ImageRow], options: Options) -> set[Unit]:
    """The units to compute; those of images that cannot be used fail here."""
    wanted = {"pending", "failed"} if options.retry_failed else {"pending"}
    todo = {unit for unit, status in writer.statuses().items() if status in wanted}
    errors = {image.name: image.error for image in images if image.error is not None}
    with _writing(options.out):
        writer.record(Outcome(unit, "failed", errors[unit.image]) for unit in sorted(todo) if unit.image in errors)
    return {unit for unit in todo if unit.image not in errors}


# the work


def _fill(writer: Writer, results: Iterator[Done], wanted: int, tell: Callable[[Event], None]) -> None:
    number = 0
    log.info("%d units to do", wanted)
    tell(Event(0, wanted, "starting"))
    for done in results:
        with _writing(writer.folder):
            _keep(writer, done)
        number += len(done.outcomes)
        unit = done.outcomes[-1].unit
        tell(Event(number, wanted, f"{unit.task}, {unit.solver}{' + CMI' if unit.cmi else ''}"))


def _keep(writer: Writer, done: Done) -> None:
    """Files first, then their record: what is recorded is there."""
    for path, data in done.files.items():
        files.write(writer.folder / path, data)
    writer.record(done.outcomes, done.measured)
    if done.trouble:
        log.warning("%s", done.trouble)
    for outcome in done.outcomes:
        level = logging.INFO if outcome.status == "ok" else logging.WARNING
        log.log(level, "%s in %.1f s: %s %s", outcome.status, outcome.seconds, tuple(outcome.unit), outcome.error or "")


# after the work


def _fill_lpips(writer: Writer, net: str | None) -> None:
    """LPIPS of units that were finished before its weights were at hand."""
    if net is None:
        return
    paths = {image.name: image.path for image in writer.images()}
    for row in writer.units():
        if row.status == "ok" and "lpips" not in row.scores:
            samples = [writer.folder / path for kind, path in row.pictures.items() if kind.startswith("sample-")]
            truth = writer.folder / str(paths[row.unit.image])
            writer.add_score(row.unit, "lpips", scores.distance_of_files(samples, truth, net))


def _fid_absent(options: Options) -> str | None:
    return scores.fid_absent() if isinstance(options.features, int) else None


def _fill_fid(writer: Writer, options: Options) -> None:
    """FID of the first samples of each cell, when the grid is full."""
    if writer.counts()["pending"]:
        return
    log.info("computing FID")
    cells: dict[Cell, list[UnitRow]] = {}
    for row in writer.units():
        if "sample-0" in row.pictures:
            cells.setdefault(row.unit.cell, []).append(row)
    truth = {image.name: options.out / image.path for image in writer.images() if image.path is not None}
    kept = {cell: rows for cell, rows in cells.items() if len(rows) >= scores.FID_LEAST}
    writer.record_cells(_fids(kept, truth, options))


def _fids(cells: dict[Cell, list[UnitRow]], truth: dict[str, Path], options: Options) -> Iterator[CellScore]:
    """Cells of the same images share the features of the true ones."""
    network = scores.INCEPTION_NAME if isinstance(options.features, int) else type(options.features).__name__
    references: dict[tuple[str, ...], Any] = {}
    for cell, rows in cells.items():
        names = tuple(dict.fromkeys(row.unit.image for row in rows))
        if names not in references:
            paths = [truth[name] for name in names]
            references[names] = scores.fid_reference(paths, options.features, options.device)
        value = scores.fid([options.out / row.pictures["sample-0"] for row in rows], references[names])
        yield CellScore(cell, "fid", value, len(rows), network)
