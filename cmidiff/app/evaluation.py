"""cmidiff evaluate: from the options to a benchmark, its plan and its progress."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cmidiff.app.settings import check_prior
from cmidiff.app.show import out, progress
from cmidiff.app.speed import say_duration
from cmidiff.config import unknown
from cmidiff.evaluate import estimate
from cmidiff.evaluate.config import Config, as_curve, load, override
from cmidiff.evaluate.engine import Engine, Local, Ray
from cmidiff.evaluate.records import Status
from cmidiff.evaluate.run import Event, Options, evaluate, list_sources
from cmidiff.evaluate.setup import resolve
from cmidiff.loading import Loading
from cmidiff.prior.known import info_of
from cmidiff.registry import PRIORS

ENGINES = ["local", "ray"]


def split(text: str | None) -> list[str] | None:
    """Return the parts of a list with commas."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def make_benchmark(config: str | None, curve: bool, options: Mapping[str, Any], loading: Loading) -> Config:
    """Return the benchmark that a configuration and options describe."""
    given = {name: value for name, value in options.items() if value is not None}
    loaded = override(None if config is None else load(config), given)
    loaded = replace(loaded, prior_options=replace(loaded.prior_options, **loading.describe()))
    return as_curve(loaded, options["steps"], options["eta"]) if curve else loaded


def make_engine(name: str, device: str, address: str | None, cpus: float, gpus: float | None, threads: int) -> Engine:
    """Return where the work is done."""
    if name not in ENGINES:
        raise ValueError(unknown("engine", name, ENGINES))
    if name == "ray":
        return Ray(address, cpus, gpus or 0.0, threads)
    if address is not None or gpus is not None:
        raise ValueError("--address and --gpus are for --engine ray: leave them out, or add it")
    return Local(device, threads)


def show_plan(config: Config, device: str, threads: int) -> None:
    """Print the resolved configuration, the grid and what it will cost; nothing is written."""
    record = resolve(config)
    images = len(list_sources(config)) if config.images is not None else config.limit
    check_prior(config.prior)
    here = info_of(config.prior).where() is not None if config.prior in PRIORS else Path(config.prior).exists()
    prior = config.prior_options.load(config.prior, device) if here else None
    costs = estimate.count_costs(config, None if prior is None else prior.schedule)
    print(json.dumps(record, indent=2))
    speed = None
    if prior is not None and config.size is not None:
        torch.set_num_threads(threads)
        speed = estimate.measure_speed(prior, samples=config.samples, size=config.size, device=device)
    units = (images or 0) * len(config.seeds)
    table = Table(title=f"{config.name}: {len(costs)} cells, {units * len(costs)} units of {config.samples} samples")
    for name in ("task", "solver", "eta", "steps", "evaluations", "gradients", "seconds"):
        table.add_column(name, justify="left" if name in ("task", "solver") else "right")
    evaluations = time = 0.0
    for cell, cost in costs.items():
        each = None if speed is None else estimate.predict_seconds(cost, speed) * config.samples
        figures = [f"{cost.evaluations:.0f}", f"{cost.gradients:.0f}", "?" if each is None else f"{each:.2f}"]
        table.add_row(cell.task, cell.solver, f"{cell.eta:g}" if cell.cmi else "off", str(cell.steps), *figures)
        evaluations += cost.evaluations * config.samples * units
        time += (each or 0.0) * units
    out.print(table)
    print("evaluations and gradients of the network for each sample, seconds for each unit")
    number = "an unknown number of images" if images is None else f"{images} images, {len(config.seeds)} seed(s)"
    print(f"{number}: {evaluations:.3g} network evaluations")
    if speed is None:
        print("seconds: unknown, they need the weights of the prior on this machine and a --size")
    else:
        print(f"{say_duration(time)} on one {device} worker of {threads} thread(s), network alone")


def run(config: Config, engine: Engine, options: Options) -> dict[Status, int]:
    """Fill the run's folder; progress on standard error."""
    check_prior(config.prior)
    list_sources(config)
    resolve(config)
    prior = config.prior_options.load(config.prior, "cpu" if isinstance(engine, Ray) else options.device)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with progress() as move:

            def show(event: Event) -> None:
                move(event.done, f"{event.done}/{event.wanted} {event.doing}", event.wanted)

            return evaluate(config, prior, engine, options, show)
    finally:
        signal.signal(signal.SIGTERM, before)
