"""A run: check the arguments, continue where an earlier call stopped, and store everything that is finished."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import math
import os
import platform
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmidiff import files
from cmidiff.evaluate import scores, sets
from cmidiff.evaluate.config import Config
from cmidiff.evaluate.database import FILE, SCHEMA, RunError, Writer
from cmidiff.evaluate.engine import Engine
from cmidiff.evaluate.grid import check_tasks, list_jobs, list_units, open_image
from cmidiff.evaluate.records import Cell, CellScore, ImageRow, Outcome, Status, Unit
from cmidiff.evaluate.setup import compare, resolve
from cmidiff.evaluate.work import Done
from cmidiff.images import encode_image
from cmidiff.prior.base import Denoiser
from cmidiff.sources import Source
from cmidiff.sources import list_sources as list_files

log = logging.getLogger("cmidiff.evaluate")
PACKAGES = ("cmidiff", "torch", "deepinv", "diffusers", "torchmetrics")


class Unwritable(RuntimeError):
    """The run's folder takes no more, as when the disk is full; finished units remain."""


@dataclass(frozen=True)
class Options:
    """How the work is done; none of it changes a result by more than rounding.

    Args:
        out: the run's folder.
        batch: images of one cell that are restored together.
        retry_failed: repeat units that failed.
        extend: go on with a run whose grid has grown.
        features: of FID and KID, see `scores.compute_features`.
        device: where they are computed.
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


Tell = Callable[[Event], None]


def evaluate(
    config: Config, prior: Denoiser, engine: Engine, options: Options, tell: Tell = lambda event: None
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
        ValueError: images, configuration or folder that cannot be used; nothing was changed.
        Unwritable: the folder takes no more.
        KeyboardInterrupt: passed on; finished units remain.
    """
    about = describe(config, prior)
    found = list_sources(config)
    _check_out(options.out, config.images)
    with _writing(options.out), Writer(options.out) as writer, _logging(options.out):
        _check_same(writer.about(), about, extend=options.extend)
        log.info("opening %d images of %s", len(found), config.images)
        images = _open_images(writer, found, config, options, tell)
        usable = [image for image in images if image.error is None]
        check_tasks(config, usable)
        side = min(min(image.width or 0, image.height or 0) for image in usable)
        fid_absent = scores.explain_no_fid() if isinstance(options.features, int) else None
        columns = scores.list_metrics(
            config.samples, side, {"lpips": scores.explain_no_lpips(config.lpips), "fid": fid_absent, "kid": fid_absent}
        )
        net = config.lpips if any(m.name == "lpips" and m.absent is None for m in columns) else None
        created = writer.about().get("created") or datetime.now(UTC).isoformat(timespec="seconds")
        writer.plan(about | {"created": created}, images, list_units(config, images), columns)
        todo = _list_todo(writer, images, retry_failed=options.retry_failed)
        work = list_jobs(config, usable, todo, options.out, batch=options.batch, lpips=net)
        _fill(writer, engine.run(work, prior), len(todo), tell)
        if net is not None:
            _fill_lpips(writer, net)
        if fid_absent is None and (todo or not writer.cell_scores()) and not writer.counts()["pending"]:
            writer.record_cells(_compute_sets(writer, options))
        counts = writer.counts()
        log.info("%s", ", ".join(f"{number} {status}" for status, number in counts.items() if number))
        return counts


def list_sources(config: Config) -> list[Source]:
    """The image files of a benchmark."""
    if config.images is None:
        raise RunError("no images: give --images with a folder or a tar archive, or images in the configuration")
    try:
        return list_files(config.images, offset=config.offset, limit=config.limit)
    except ValueError as error:
        raise RunError(f"--images: {error}") from error


def describe(config: Config, prior: Denoiser) -> dict[str, Any]:
    """The content of the table ``run``, except when it was created."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return {
        "schema": SCHEMA,
        "config": resolve(config),
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
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = "full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        raise Unwritable(
            f"cannot write to {out}: {reason}. Finished units remain: make room, and the same command goes on"
        ) from error


class _Log(logging.FileHandler):
    """A log that a full disk silences, instead of breaking the run a second time."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def _logging(out: Path) -> Iterator[None]:
    handler = _Log(out / "run.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
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
        log.setLevel(level)
        handler.close()


def _check_same(before: dict[str, Any], about: dict[str, Any], *, extend: bool) -> None:
    if "config" not in before:
        return
    lines = compare(before["config"], about["config"], grown=extend)
    old, new = before["prior"], about["prior"]
    if old["digest"] != new["digest"]:
        lines.append(f"prior: {old['name']} ({old['digest'][:12]}) -> {new['name']} ({new['digest'][:12]})")
    ran, runs = before["versions"], about["versions"]
    lines += [f"{name}: version {ran.get(name)} -> {runs[name]}" for name in runs if runs[name] != ran.get(name)]
    if lines:
        hint = "" if extend else ", or --extend if images, cells or seeds were only added"
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise RunError(f"the run is of another configuration ({shown}): give another --out{hint}")


def _open_images(
    writer: Writer, found: Sequence[Source], config: Config, options: Options, tell: Tell
) -> list[ImageRow]:
    before, rows = {row.name: row for row in writer.images()}, []
    for number, source in enumerate(found):
        tell(Event(number, len(found), "opening the images"))
        known = before.get(source.name)
        if known is not None and (known.path is None or not (options.out / known.path).is_file()):
            known = None
        row, values = open_image(source, config.size, known)
        if values is not None and row.path is not None:
            files.write(options.out / row.path, encode_image(values))
        if row.error is not None:
            log.error("%s", row.error)
        rows.append(row)
    _check_images(before, {row.name: row for row in rows}, extend=options.extend)
    return rows


def _check_images(before: dict[str, ImageRow], now: dict[str, ImageRow], *, extend: bool) -> None:
    """Images of an earlier call must be there and the same; those that could not be used may have been mended."""
    lines = [f"{name} is gone" for name in before if name not in now]
    same = [name for name, row in before.items() if name in now and row.error is None]
    lines += [f"{name} has changed" for name in same if before[name].digest != now[name].digest]
    if before and not extend:
        lines += [f"{name} is new" for name in now if name not in before]
    if lines:
        hint = "" if extend else ", or --extend if images were only added"
        raise RunError(f"the images of the run are others ({'; '.join(lines[:8])}): give another --out{hint}")
    if all(row.error is not None for row in now.values()):
        raise RunError(f"none of the {len(now)} images can be used; the first: {next(iter(now.values())).error}")


def _list_todo(writer: Writer, images: Sequence[ImageRow], *, retry_failed: bool) -> set[Unit]:
    """The units to compute; those of images that cannot be used fail here."""
    wanted = {"pending", "failed"} if retry_failed else {"pending"}
    todo = {unit for unit, status in writer.statuses().items() if status in wanted}
    errors = {image.name: image.error for image in images if image.error is not None}
    writer.record(Outcome(unit, "failed", errors[unit.image]) for unit in sorted(todo) if unit.image in errors)
    return {unit for unit in todo if unit.image not in errors}


# the work, and what follows it


def _fill(writer: Writer, results: Iterator[Done], wanted: int, tell: Tell) -> None:
    number = 0
    log.info("%d units to do", wanted)
    tell(Event(0, wanted, "starting"))
    for done in results:
        for path, data in done.files.items():  # before their record: what is recorded is there
            files.write(writer.folder / path, data)
        writer.record(done.outcomes, done.measured)
        if done.trouble:
            log.warning("%s", done.trouble)
        for outcome in done.outcomes:
            level, ended = logging.INFO if outcome.status == "ok" else logging.WARNING, outcome.error or ""
            log.log(level, "%s in %.1f s: %s %s", outcome.status, outcome.seconds, tuple(outcome.unit), ended)
        number += len(done.outcomes)
        unit = done.outcomes[-1].unit
        tell(Event(number, wanted, f"{unit.task}, {unit.solver}{' + CMI' if unit.cmi else ''}"))


def _fill_lpips(writer: Writer, net: str) -> None:
    """LPIPS of units that were finished before its weights were available."""
    paths = {image.name: image.path for image in writer.images()}
    for row in writer.units():
        if row.status == "ok" and "lpips" not in row.scores:
            samples = [writer.folder / path for kind, path in row.images.items() if kind.startswith("sample-")]
            truth = writer.folder / str(paths[row.unit.image])
            writer.add_score(row.unit, "lpips", scores.compute_lpips_of_files(samples, truth, net))


def _compute_sets(writer: Writer, options: Options) -> Iterator[CellScore]:
    """FID and KID of the first samples of each cell, and with CMI their differences to the base."""
    log.info("computing FID and KID")
    network = scores.INCEPTION_NAME if isinstance(options.features, int) else type(options.features).__name__
    truth = {image.name: options.out / image.path for image in writer.images() if image.path is not None}
    cells = defaultdict[Cell, dict[tuple[str, int], Path]](dict)
    for row in writer.units():
        if "sample-0" in row.images:
            cells[row.unit.cell][row.unit.image, row.unit.seed] = options.out / row.images["sample-0"]
    names = list(dict.fromkeys(image for files in cells.values() for image, _ in files))
    true = dict(zip(names, _features([truth[name] for name in names], options), strict=True)) if names else {}
    bases: dict[Cell, dict[tuple[str, int], Any]] = {}
    for cell, paths in cells.items():  # a base comes before its CMI forms
        if len(paths) < scores.FID_LEAST:
            continue
        own = dict(zip(paths, _features(list(paths.values()), options), strict=True))
        if not cell.cmi:
            bases[cell] = own
        base = bases.get(cell.base, {}) if cell.cmi else {}
        both = [key for key in own if key in base]
        for metric, distance in sets.DISTANCES.items():
            value = sets.measure(distance, np.stack(list(own.values())), _truth(true, own)[0])
            difference, error = math.nan, math.nan
            if len(both) >= scores.FID_LEAST:
                corrected, plain = (np.stack([features[key] for key in both]) for features in (own, base))
                targets, numbers = _truth(true, both)
                difference, error = sets.compare(distance, corrected, plain, targets, numbers)
            yield CellScore(cell, metric, value, len(own), network, difference, error, len(both))


def _features(files: Sequence[Path], options: Options) -> np.ndarray:
    return scores.compute_features(files, options.features, options.device)


def _truth(true: dict[str, Any], units: Iterable[tuple[str, int]]) -> tuple[np.ndarray, list[int]]:
    """Features of the true images of (image, seed), each once, and the number of the one that each belongs to."""
    images = [image for image, _ in units]
    number = {name: i for i, name in enumerate(dict.fromkeys(images))}
    return np.stack([true[name] for name in number]), [number[name] for name in images]
