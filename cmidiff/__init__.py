"""cmidiff: posterior sampling with diffusion priors and conditional mutual information.

A measurement ``y`` of a physics is explained by a prior. A guidance pulls each step of the one sampling loop towards
``y``, information (CMI) corrects it, and the result is a restoration. The names below are loaded when they are first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from cmidiff.information import CMI as CMI
    from cmidiff.interop.diffusers import RestorationPipeline as RestorationPipeline
    from cmidiff.physics import measure as measure
    from cmidiff.prior import GaussianMixture as GaussianMixture
    from cmidiff.prior import NetworkPrior as NetworkPrior
    from cmidiff.prior import load_prior as load_prior
    from cmidiff.restoration import restore as restore
    from cmidiff.result import Restoration as Restoration
    from cmidiff.samplers import DDIM as DDIM
    from cmidiff.samplers import Ancestral as Ancestral
    from cmidiff.samplers import ProbabilityFlow as ProbabilityFlow
    from cmidiff.solvers import CADPS as CADPS
    from cmidiff.solvers import DPIR as DPIR
    from cmidiff.solvers import DPS as DPS
    from cmidiff.solvers import DSG as DSG
    from cmidiff.solvers import MCG as MCG
    from cmidiff.solvers import PSLD as PSLD
    from cmidiff.solvers import PiGDM as PiGDM
    from cmidiff.solvers import Ramp as Ramp
    from cmidiff.solvers import ReSample as ReSample
    from cmidiff.solvers import Unconditional as Unconditional

_HOME = {
    **dict.fromkeys(
        ("CADPS", "DPIR", "DPS", "DSG", "MCG", "PSLD", "PiGDM", "Ramp", "ReSample", "Unconditional"), "cmidiff.solvers"
    ),
    **dict.fromkeys(("GaussianMixture", "NetworkPrior", "load_prior"), "cmidiff.prior"),
    "Restoration": "cmidiff.result",
    "restore": "cmidiff.restoration",
    **dict.fromkeys(("DDIM", "Ancestral", "ProbabilityFlow"), "cmidiff.samplers"),
    "CMI": "cmidiff.information",
    "RestorationPipeline": "cmidiff.interop.diffusers",
    "measure": "cmidiff.physics",
}
__all__ = ["CADPS", "CMI", "DDIM", "DPIR", "DPS", "DSG", "MCG", "PSLD", "Ancestral", "GaussianMixture", "NetworkPrior"]
__all__ += ["PiGDM", "ProbabilityFlow", "Ramp", "ReSample", "Restoration", "RestorationPipeline", "Unconditional"]
__all__ += ["__version__", "load_prior", "measure", "restore"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cmidiff' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
