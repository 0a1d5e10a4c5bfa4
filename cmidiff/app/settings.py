"""The options of a restoration, resolved once for the command line and the page."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from deepinv.physics import LinearPhysics

from cmidiff.app.problem import JPEG, Problem
from cmidiff.config import unknown
from cmidiff.information import CMI
from cmidiff.loading import Loading
from cmidiff.prior.base import Denoiser
from cmidiff.prior.formats.weights import SUFFIXES
from cmidiff.prior.hub import HUB, hub_name, hub_repository
from cmidiff.prior.known import info_of
from cmidiff.registry import PRIORS, SOLVERS, describe
from cmidiff.solvers import CADPS, DPIR, DPS, Solver
from cmidiff.step import Sampler

if TYPE_CHECKING:
    from cmidiff.tuning.preset import Preset

ESTIMATE = -1  # the index of the best estimate, among those of the samples


@dataclass(frozen=True)
class Settings:
    """The resolved options of a run, apart from the problem.

    Attributes:
        solver_name, solver: the solver, by its name at the command line and as the object; None for the best estimate
            by `DPIR`, and samples by `CADPS`. The task ``jpeg`` has its own name and no object.
        cmi: the CMI correction of the samples, or None.
        prior: name or path of the prior.
        steps: of the solver; None for its default.
        samples: of the posterior.
        seed, batch: of the random numbers; ``batch`` samples are drawn at once.
        device: where.
        sampler: reverse sampler; None for the default.
        tile: side of the tiles in which a large image is seen, None for the whole, or ``auto``.
        loading: how the prior is loaded.
    """

    solver_name: str | None
    solver: Solver | None
    cmi: CMI | None
    prior: str
    steps: int | None
    samples: int
    seed: int
    batch: int
    device: str
    sampler: Sampler | None = None
    tile: int | Literal["auto"] | None = "auto"
    loading: Loading = field(default_factory=Loading)

    @property
    def estimator(self) -> tuple[str, Solver] | None:
        """What gives the best estimate; None if it is the mean of the samples."""
        if self.solver is None:
            return self.solver_name or "dpir", DPIR()
        return (str(self.solver_name), self.solver) if self.solver.point else None

    @property
    def drawer(self) -> tuple[str, Solver]:
        """What draws samples."""
        if self.solver is None or self.solver.point:
            return "cadps", CADPS()
        return str(self.solver_name), self.solver

    @property
    def parts(self) -> range:
        """The indices of the results: the estimate, if the solver gives one, and the samples."""
        return range(0 if self.estimator is None else ESTIMATE, self.samples)

    @property
    def title(self) -> str:
        """The run in one line."""
        parts = [] if self.estimator is None else [f"estimate by {self.estimator[0]}"]
        if self.samples:
            parts.append(f"samples by {self.drawer[0]}{' + CMI' if self.cmi else ''}")
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{', '.join(parts)}{steps}, seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        """The options as run.json holds them."""
        names = ("prior", "tile", "steps", "samples", "seed", "batch", "device")
        name, estimator = self.estimator or (None, None)
        estimate = None if name is None else {"name": name} | ({} if name == JPEG else describe(estimator))
        cmi = None if self.cmi is None else describe(self.cmi)
        sampler = None if self.sampler is None else {"name": type(self.sampler).__name__} | describe(self.sampler)
        solver = {"name": self.drawer[0]} | describe(self.drawer[1])
        record = {"estimate": estimate, "solver": solver, "cmi": cmi, "sampler": sampler}
        if self.drawer[1].together:  # the samples depend on how many there are
            record["particles"] = self.samples
        loading = {"loading": self.loading.describe()} if self.loading != Loading() else {}
        return record | {name: getattr(self, name) for name in names} | loading


def make_settings(
    *,
    solver: str | None,
    cmi: bool | None,
    eta: float | None,
    prior: str,
    steps: int | None,
    samples: int | None,
    seed: int,
    batch: int,
    device: str,
    tile: int | str = "auto",
    preset: Preset | None = None,
    loading: Loading | None = None,
) -> Settings:
    """Resolve the options of a run.

    Args:
        solver: None for the best estimate, and samples beside it.
        samples: None for those that a solver needs: one where it draws samples, or its particles; none otherwise.
        tile: 0 for none.
        preset: stands for the solver, the CMI and the steps that are None.
    """
    check_prior(prior)
    made = None if solver is None else SOLVERS.make(solver)
    correction, sampler = None if preset is None else preset.cmi, None
    if preset is not None:
        steps, sampler = preset.steps if steps is None else steps, preset.sampler
        solver, made = (preset.solver_name, preset.solver) if solver is None else (solver, made)
    if cmi is False and eta is not None:
        raise ValueError("--eta is the strength of CMI, which --no-cmi turns off: leave one of them out")
    if cmi is False:
        correction = None
    elif cmi or eta is not None:
        correction = correction or CMI()
        correction = correction if eta is None else replace(correction, eta=eta)
    count = _count_samples(samples, made, solver)
    if correction is not None and count == 0:
        raise ValueError("CMI corrects samples of the posterior, and none are drawn: add --samples 4")
    batch = max(batch, count) if made is not None and made.together else batch
    chosen: Any = tile or None
    how = loading or Loading()
    return Settings(
        solver, made, correction, prior, steps, count, seed, batch, find_device(device), sampler, chosen, how
    )


def _count_samples(samples: int | None, solver: Solver | None, name: str | None) -> int:
    draws = solver is not None and not solver.point
    if samples is None:
        return solver.default_samples if solver is not None and draws else 0
    if draws and samples < 1:
        raise ValueError(
            f"--solver {name} draws samples, at least 1, received --samples {samples}: leave one of them out"
        )
    if solver is not None and solver.point and samples > 0:
        raise ValueError(
            f"--solver {name} gives one estimate and no samples: leave --solver out for an estimate with samples"
        )
    return samples


def adapt(settings: Settings, problem: Problem) -> Settings:
    """Return the options for a problem: where the physics is not linear, samples by DPS and their mean."""
    if problem.name == JPEG and (settings.solver is not None or settings.samples):
        raise ValueError(
            f"the task jpeg gives one estimate: for --solver or --samples use --task denoise --noise-std "
            f"{problem.noise_std:.3g}, a noise as strong as its artefacts"
        )
    if problem.name == JPEG:
        return replace(settings, solver_name=JPEG)
    if settings.solver is None and not isinstance(problem.physics, LinearPhysics):
        return replace(settings, solver_name="dps", solver=DPS(), samples=max(1, settings.samples))
    return settings


def adapt_to_prior(settings: Settings, prior: Denoiser) -> Settings:
    """Return the options for a prior: with a latent prior, samples by DPS and their mean where no solver is named."""
    if prior.decoder is None or settings.solver is not None:
        return settings
    if settings.solver_name == JPEG:
        raise ValueError(
            f"the task jpeg needs a prior of images, and {settings.prior} is one of latents: use --task denoise with "
            "--noise-std, or --prior photo"
        )
    return replace(settings, solver_name="dps", solver=DPS(), samples=max(1, settings.samples))


def check_prior(prior: str) -> None:
    """Check that a prior can be loaded, without loading or fetching it."""
    if (named := hub_name(prior)).startswith(HUB):
        hub_repository(named)
    elif prior in PRIORS:
        info = info_of(prior)
        if info.where() is None and info.url is None and info.fallback is None:
            raise ValueError(f"the prior {prior} {info.remedy}")
    elif not Path(prior).exists():
        if Path(prior).suffix in SUFFIXES or "/" in prior:
            raise ValueError(f"there is no prior at {prior}: --prior takes a file of weights or a folder of diffusers")
        raise ValueError(unknown("prior", prior, PRIORS))
    elif Path(prior).is_file() and Path(prior).suffix.lower() not in SUFFIXES:
        raise ValueError(f"--prior takes a file of weights that ends in one of {', '.join(SUFFIXES)}, received {prior}")


def find_device(name: str) -> str:
    """Return the device that a name means on this machine."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in present.items() if there)
    if name not in present:
        raise ValueError(unknown("device", name, ["auto", *present]))
    if not present[name]:
        raise ValueError(f"--device {name} is not available on this machine: use --device auto or --device cpu")
    return name
