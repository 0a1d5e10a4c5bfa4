"""The sizes that a photograph can be restored at: which the server has time for, and what each of them means."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from cmidiff.app.settings import Settings, make_settings
from cmidiff.app.web.controls import CASES, Ask, Limits
from cmidiff.app.web.inputs import result_size
from cmidiff.app.web.layout import LATENT, SAMPLER, SOLVER
from cmidiff.app.web.priors import Ready
from cmidiff.app.web.shown import duration
from cmidiff.registry import SOLVERS

SIDES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
PATIENCE = 60  # seconds that the size chosen at first may take
MEAN = 2  # samples whose mean is the result of a solver that draws samples


def make_options(
    ready: Ready, solver: str, steps: int | None, seed: int, samples: int | None = None, eta: float | None = None
) -> Settings:
    """Return the options of a run; without ``samples``, of one that gives the best image. With a latent prior it is DPS
    that samples where no other solver was chosen."""
    if ready.prior.decoder is not None and solver in (SOLVER, SAMPLER):
        solver = LATENT
    if samples is None and solver != SOLVER:
        samples = 0 if SOLVERS.make(solver).point else MEAN
    chosen = {"solver": None if solver == SOLVER else solver, "cmi": eta is not None, "eta": eta, "prior": ready.name}
    chosen |= {"steps": steps, "samples": samples, "seed": seed, "batch": 1, "device": ready.device}
    return make_settings(**chosen, loading=ready.loading)


def options_of(ready: Ready, ask: Ask) -> Settings:
    """Return the options of the run that gives the best image."""
    return make_options(ready, SOLVER if ask.case == "blocks" else ask.solver, ask.steps, ask.seed)


def offer_sizes(
    ready: Ready, ask: Ask, size: tuple[int, int], limits: Limits
) -> tuple[dict[int, tuple[str, float]], int]:
    """Return the longer sides that can be computed, each in words and with its seconds, and the best one."""
    natural = min(limits.side, max(size) * (int(ask.strength) if ask.case == "small" else 1))
    found = dict[int, tuple[str, float]]()
    sides = [] if ask.case == "blocks" else [n for n in SIDES if n < natural]
    for side in [*sides, natural]:
        with suppress(ValueError):  # too narrow at this size
            height, width = result_size(replace(ask, side=side, whole=True), size)
            seconds = ready.speed.seconds(options_of(ready, ask), (3, height, width), task=CASES[ask.case].task)
            found[side] = f"{width} x {height} pixels", seconds
        if len(found) > 1 and found.get(side, ("", 0.0))[1] > limits.seconds:
            del found[side]
            break
    if not found:
        raise ValueError("This image is too narrow: crop it.")
    best = max([side for side, (_, seconds) in found.items() if seconds <= PATIENCE], default=min(found))
    if ask.case == "small" and best <= max(size):  # a result that is smaller than the photograph is no enlargement
        best = next((side for side in found if side > max(size)), best)
    return found, best


def describe_size(ask: Ask, size: tuple[int, int], text: str, seconds: float) -> str:
    """Return what a size means for a photograph of ``size = (height, width)``."""
    photograph = f"{size[1]} x {size[0]} pixels"
    if ask.case == "scratches" and not ask.whole:
        return (
            f"The result has the size of the photograph, {photograph}. The painted parts and their surroundings "
            f"are computed at up to {text}, which takes up to about {duration(seconds)}."
        )
    return f"The result has {text} (the photograph: {photograph}) and takes about {duration(seconds)}."
