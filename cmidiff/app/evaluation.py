"""cmidiff evaluate: from the options to a benchmark, and from what happens to what is shown."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer import BadParameter

from cmidiff import load_prior
from cmidiff.app.errors import BadInput, bad_input, unknown
from cmidiff.app.options import check_prior, device_of, given
from cmidiff.app.show import err, out
from cmidiff.evaluate import estimate
from cmidiff.evaluate.config import Config, as_curve, load, override
from cmidiff.evaluate.database import RunError, Status
from cmidiff.evaluate.engine import Engine, Local, Ray
from cmidiff.evaluate.run import Event, Options, evaluate, list_sources
from cmidiff.evaluate.setup import resolve
from cmidiff.prior.known import info_of
from cmidiff.registry import PRIORS

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Machine:
    """How and where the work is done."""

    engine: str
    address: str | None
    device: str
    cpus: float
    gpus: float | None
    threads: int
    batch: int


def words(text: str | None) -> list[str] | None:
    """The parts of a list with commas."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def numbers(name: str, text: str | None, parse: Callable[[str], Any]) -> tuple[Any, ...] | None:
    """The numbers of a list with commas, each as ``parse`` reads it.

    Raises:
        BadInput: something else.
    """
    parts = words(text)
    if parts == []:
        raise BadInput(f"{name} must be numbers with commas between them, received {text!r}")
    try:
        return None if parts is None else tuple(parse(part) for part in parts)
    except BadParameter as error:
        raise BadInput(f"each of {name} {error.message}") from error


def benchmark(config: str | None, curve: bool, **options: Any) -> Config:
    """The benchmark that a configuration and options describe.

    Raises:
        BadInput: what it refuses.
    """
    try:
        loaded = override(None if config is None else load(config), given(**options))
        return as_curve(loaded, options["steps"], options["eta"]) if curve else loaded
    except (RunError, ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


def show_plan(config: Config, machine: Machine) -> None:
    """The resolved configuration, the grid and what it will cost; nothing is written.

    Raises:
        BadInput: what a run would refuse.
    """
    engine_of(machine)
    try:
        record = resolve(config)
        images = len(list_sources(config)) if config.images is not None else config.limit
        prior = _prior(config, _device(machine)) if _present(config.prior) else None
        costs = estimate.costs(config, None if prior is None else prior.schedule)
    except (RunError, ValueError, TypeError) as error:
        raise BadInput(str(error)) from error
    print(json.dumps(record, indent=2))
    speed = None
    if prior is not None and config.size is not None:
        torch.set_num_threads(machine.threads)
        speed = estimate.speed(prior, samples=config.samples, size=config.size, device=_device(machine))
    _show_costs(config, costs, images, speed, machine)


def _show_costs(
    config: Config, costs: dict[Any, estimate.Cost], images: int | None, speed: estimate.Speed | None, machine: Machine
) -> None:
    units = (images or 0) * len(config.seeds)
    table = Table(title=f"{config.name}: {len(costs)} cells, {units * len(costs)} units of {config.samples} samples")
    for name in ("task", "solver", "eta", "steps", "evaluations", "gradients", "seconds"):
        table.add_column(name, justify="left" if name in ("task", "solver") else "right")
    evaluations = time = 0.0
    for cell, cost in costs.items():
        each = None if speed is None else estimate.seconds(cost, speed) * config.samples
        shown = [f"{cost.evaluations:.0f}", f"{cost.gradients:.0f}", "?" if each is None else f"{each:.2f}"]
        table.add_row(cell.task, cell.solver, f"{cell.eta:g}" if cell.cmi else "off", str(cell.steps), *shown)
        evaluations += cost.evaluations * config.samples * units
        time += (each or 0.0) * units
    out.print(table)
    print("evaluations and gradients of the network for each sample, seconds for each unit")
    number = "an unknown number of images" if images is None else f"{images} images, {len(config.seeds)} seed(s)"
    print(f"{number}: {evaluations:.3g} network evaluations")
    if speed is None:
        print("seconds: unknown, they need the weights of the prior on this machine and a --size")
    else:
        print(f"about {duration(time)} on one {_device(machine)} worker of {machine.threads} thread(s), network alone")


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def run(config: Config, machine: Machine, options: Options) -> dict[Status, int]:
    """Fill the run's folder; progress on standard error.

    Raises:
        BadInput: what cannot be used; nothing was started.
        Unwritable: the folder takes no more.
        KeyboardInterrupt: by the user, or by SIGTERM, as cluster schedulers send it.
    """
    engine = engine_of(machine)
    check_prior(config.prior)
    try:
        list_sources(config)
        resolve(config)
        prior = _prior(config, "cpu" if isinstance(engine, Ray) else _device(machine))
        with _terminable(), _bar() as tell:
            return evaluate(config, prior, engine, replace(options, device=_device(machine)), tell)
    except RunError as error:
        raise BadInput(str(error)) from error


def engine_of(machine: Machine) -> Engine:
    """
    Raises:
        BadInput: an unknown engine, or numbers that cannot be meant.
    """
    if machine.engine not in ENGINES:
        raise unknown("engine", machine.engine, ENGINES)
    for name, value in (("--batch", machine.batch), ("--threads", machine.threads)):
        if value < 1:
            raise BadInput(f"{name} must be a whole number >= 1, received {value}")
    if machine.engine == "local":
        if machine.address is not None or machine.gpus is not None:
            raise BadInput("--address and --gpus are for --engine ray: leave them out, or add it")
        return Local(_device(machine), machine.threads)
    return Ray(machine.address, machine.cpus, machine.gpus or 0.0, machine.threads)


def _device(machine: Machine) -> str:
    return device_of(machine.device)


def _present(prior: str) -> bool:
    """Whether it can be loaded without fetching anything."""
    check_prior(prior)
    return info_of(prior).where() is not None if prior in PRIORS else Path(prior).exists()


def _prior(config: Config, device: str) -> Any:
    try:
        return load_prior(config.prior, device=device)
    except (ValueError, OSError) as error:
        raise bad_input(error) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar() -> Iterator[Callable[[Event], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=err, speed_estimate_period=600)
    task = bar.add_task("starting", total=None)

    def tell(event: Event) -> None:
        bar.start()
        if event.done == 0:
            bar.reset(task)
        bar.update(task, completed=event.done, total=event.wanted, description=event.doing)

    try:
        yield tell
    finally:
        bar.stop()


def summary(counts: dict[Status, int], folder: Path) -> str:
    """One line."""
    shown = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    return f"{shown or 'no units'} in {folder}"
